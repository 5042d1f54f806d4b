package disk

import (
	"os"
	"testing"
)

// BenchmarkWriteFile writes a file and syncs it, as a big copy does.
func BenchmarkWriteFile(b *testing.B) {
	const size = 32 << 20
	file, data := benchFile(b), random(1<<20)
	b.SetBytes(size)
	for b.Loop() {
		for off := int64(0); off < size; off += int64(len(data)) {
			if _, err := file.WriteAt(data, off); err != nil {
				b.Fatal(err)
			}
		}
		if err := file.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSync writes a block of a file and syncs it, as a database does.
func BenchmarkSync(b *testing.B) {
	file, data := benchFile(b), random(4<<10)
	for b.Loop() {
		if _, err := file.WriteAt(data, 0); err != nil {
			b.Fatal(err)
		}
		if err := file.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

// benchFile returns a new file on a mounted disk.
func benchFile(b *testing.B) *os.File {
	b.Helper()
	m := mounted(b)
	file, err := os.Create(m.path("file"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { file.Close() })
	return file
}
