package bitlocker

import (
	"testing"
)

func BenchmarkReadAt(b *testing.B) {
	o := testOptions(b)
	m, _ := formatted(b, o)
	p := unlocked(b, m, testSize, externalKey(o))
	for name, size := range map[string]int{"4KiB": 4 << 10, "256KiB": 256 << 10} {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := p.ReadAt(buf, 0x90000); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkWriteAt(b *testing.B) {
	o := testOptions(b)
	m, _ := formatted(b, o)
	p := unlocked(b, m, testSize, externalKey(o))
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := p.WriteAt(buf, 0x90000); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCipher(b *testing.B) {
	for _, m := range []Method{AES128XTS, AES256XTS, AES128CBC} {
		b.Run(m.String(), func(b *testing.B) {
			c, err := newSectorCipher(m, randomBytes(1, methods[m].keySize), 512)
			if err != nil {
				b.Fatal(err)
			}
			buf := make([]byte, cryptChunk)
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				c.decrypt(buf, 1<<20)
			}
		})
	}
}
