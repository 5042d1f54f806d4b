package bitlocker

import (
	"bytes"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
)

// FuzzMetadata gives any bytes as a metadata area, with a checksum that fits: no
// panic, and a layout that covers the volume without gaps.
func FuzzMetadata(f *testing.F) {
	o := testOptions(f)
	m, _ := formatted(f, o)
	f.Add(m.b[o.Metadata[0]:][:2048], int64(testSize), false)
	if _, err := os.Stat(windowsFolder); err == nil {
		done := map[string]bool{}
		for _, row := range windowsRows(f) {
			if done[row.file] {
				continue
			}
			done[row.file] = true
			image := windowsImage(f, row.file, 36<<20) // the first metadata area is in there
			at := bytes.LastIndex(image, []byte(signature))
			f.Add(image[at:][:2048], row.size, row.file == "bitlk-aes-xts-128-4k.img")
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, size int64, large bool) {
		area := make([]byte, areaSize)
		copy(area, b)
		if length := blockUnit * int(le.Uint16(area[8:])); length <= areaSize-validationSize {
			le.PutUint32(area[length+4:], crc32.ChecksumIEEE(area[:length]))
		}
		meta, err := parseMetadata(area)
		if err != nil {
			return
		}
		if _, _, err := meta.openVMK(externalKey(o)); err == nil && !bytes.Contains(area, []byte(meta.protectors[0].vmk)) {
			t.Error("a key opens what is not there")
		}
		sectorSize := 512
		if large {
			sectorSize = 4096
		}
		l, err := newLayout(meta.geometry, size, sectorSize)
		if err != nil {
			return
		}
		checkLayout(t, l, size, int64(sectorSize))
	})
}

func checkLayout(t *testing.T, l layout, size, sectorSize int64) {
	t.Helper()
	var at int64
	for _, s := range l {
		if s.start != at || s.end <= s.start || s.start%sectorSize != 0 {
			t.Fatalf("span %+v after %#x", s, at)
		}
		if s.kind == encrypted && (s.end%sectorSize != 0 || s.start+s.shift < 0 || s.end+s.shift > size) {
			t.Fatalf("span %+v in a volume of %#x", s, size)
		}
		if l.at(s.start) != s || l.at(s.end-1) != s {
			t.Fatalf("span %+v is not found", s)
		}
		at = s.end
	}
	if at != size {
		t.Fatalf("the view ends at %#x, want %#x", at, size)
	}
}

func FuzzBoot(f *testing.F) {
	normal := bootSector{sectorSize: 512, identifier: offIdentifier, metadata: [3]int64{0x10000, 0x30000, 0x60000}}.encode()
	f.Add(normal)
	f.Add(toGo(bytes.Clone(normal)))
	for _, image := range windowsStarts(f, bootSize) {
		f.Add(image)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseBoot(b)
		if err != nil {
			return
		}
		again := bytes.Clone(b)
		s.putOffsets(again)
		if !bytes.Equal(again, b) {
			t.Errorf("%+v is not where it was read", s)
		}
		if s.toGo() {
			return
		}
		encoded, err := parseBoot(s.encode())
		if err != nil || encoded.sectorSize != s.sectorSize || encoded.metadata != s.metadata {
			t.Errorf("%+v becomes %+v, %v", s, encoded, err)
		}
	})
}

func FuzzBEK(f *testing.F) {
	k := testBEK(f)
	f.Add(k.Encode())
	k.Volume = k.ID
	f.Add(k.Encode())
	if b, err := os.ReadFile(filepath.Join(windowsFolder, k.FileName())); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseBEK(b)
		if err != nil {
			return
		}
		again, err := ParseBEK(k.Encode())
		if err != nil || again.ID != k.ID || again.Volume != k.Volume || !again.Key.Equal(k.Key) {
			t.Errorf("%x becomes %x: %v", b, k.Encode(), err)
		}
	})
}

func FuzzRecoveryPassword(f *testing.F) {
	f.Add(goodPassword)
	f.Add("000000-000011-000000-000000-000000-000000-000000-720885")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseRecoveryPassword(s)
		if err == nil && p.Reveal() != s {
			t.Errorf("%q becomes %q", s, p.Reveal())
		}
	})
}

func FuzzGUID(f *testing.F) {
	f.Add(identifierNormal.String())
	f.Fuzz(func(t *testing.T, s string) {
		g, err := ParseGUID(s)
		if err != nil {
			return
		}
		if again, err := ParseGUID(g.String()); err != nil || again != g {
			t.Errorf("%q becomes %v, %v", s, again, err)
		}
	})
}
