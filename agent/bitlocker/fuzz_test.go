package bitlocker

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// FuzzMetadata gives any bytes as a metadata area, with a checksum that fits: no
// panic, and a layout that covers the volume without gaps.
func FuzzMetadata(f *testing.F) {
	o := testOptions(f)
	m, _ := formatted(f, o)
	f.Add(m.b[o.Metadata[0]:][:2048], int64(testSize), false)
	for name, area := range windowsAreas(f) {
		f.Add(area[:2048], int64(100<<20), strings.Contains(name, "4k"))
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

// windowsAreas returns a metadata area of each volume made by Windows.
func windowsAreas(f *testing.F) map[string][]byte {
	areas := map[string][]byte{}
	for name, image := range windowsStarts(f, 36<<20) { // the first area is in there
		at := bytes.LastIndex(image, []byte(signature))
		areas[name] = bytes.Clone(image[at : at+areaSize])
	}
	return areas
}

// FuzzVolume gives any boot sector, block and entries, sealed as they should be and
// with a protector that opens: whatever opens can be read and written, without its
// metadata being touched, and its protectors changed, without anything else being
// lost.
func FuzzVolume(f *testing.F) {
	o, size := smallOptions(f)
	image := &memory{b: randomBytes(3, int(size))}
	if err := Format(image, size, o); err != nil {
		f.Fatal(err)
	}
	v, err := Open(image, size)
	if err != nil {
		f.Fatal(err)
	}
	vmk, _, err := v.copies[0].openVMK(externalKey(o))
	if err != nil {
		f.Fatal(err)
	}
	own := encodeEntries(v.copies[0].entries)
	f.Add(image.b[:bootSize], v.copies[0].raw[:entriesAt], []byte{})
	f.Add(toGo(bytes.Clone(image.b[:bootSize])), v.copies[0].raw[:entriesAt], appendEntry(nil, 0x77, 0x78, []byte("unknown")))
	for _, area := range windowsAreas(f) {
		m, err := parseMetadata(area)
		if err != nil {
			continue // made with two bad copies
		}
		entries := encodeEntries(slices.DeleteFunc(slices.Clone(m.entries), func(e entry) bool { return e.typ == typeHeaderArea || e.typ == typeFVEK }))
		f.Add(image.b[:bootSize], v.copies[0].raw[:entriesAt], entries)
		f.Add(image.b[:bootSize], m.raw[:entriesAt], entries)
	}
	f.Fuzz(func(t *testing.T, boot, front, entries []byte) {
		if len(front) < entriesAt || len(entries) > areaSize/2 {
			return
		}
		m := &memory{b: bytes.Clone(image.b)}
		copy(m.b[:bootSize], boot)
		s := sealer{vmk: vmk, next: le.Uint32(front[blockHeaderSize+32:])}
		block, err := s.block(front, slices.Concat(entries, own))
		if err != nil {
			return
		}
		for _, off := range o.Metadata {
			copy(m.b[off:], block)
		}
		v, err := Open(m, size)
		if _, insane := Inspect(m, size); err == nil && insane != nil {
			t.Fatalf("opens, but Inspect says %v", insane)
		}
		if err != nil {
			return
		}
		checkLayout(t, v.copies[0].layout, size, int64(v.sectorSize))
		p, err := v.Unlock(externalKey(o))
		if err != nil {
			return
		}
		defer p.Wipe()
		rewrite(t, p, m)
		before := slices.Clone(v.copies[0].entries)
		change := ProtectorChange{Add: []ProtectorKey{{GUID{0xCC, 0xCC}, ClearKey{}}}, Rand: testRand(9), Now: testNow}
		if err := v.ChangeProtectors(externalKey(o), change); err != nil {
			return // the name is taken, or the area full
		}
		if v, err = Open(m, size); err != nil {
			t.Fatalf("after a change: %v", err)
		}
		after := slices.DeleteFunc(slices.Clone(v.copies[0].entries), func(e entry) bool { return e.isProtector(GUID{0xCC, 0xCC}) })
		if !bytes.Equal(encodeEntries(after), encodeEntries(recoveryLast(before))) {
			t.Errorf("entries %v become %v", before, after)
		}
	})
}

// rewrite writes what it reads, all over the view: nothing may change on disk.
func rewrite(t *testing.T, p *Plaintext, m *memory) {
	t.Helper()
	before := bytes.Clone(m.b)
	b := make([]byte, 4096)
	for at := int64(0); at < p.Size(); at += int64(len(b)) {
		n, err := p.ReadAt(b, at)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if _, err := p.WriteAt(b[:n], at); err != nil && !errors.Is(err, ErrReserved) {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(m.b, before) {
		t.Fatal("writing what was read changes the disk")
	}
}

// FuzzEntries wants entries to encode to what they were read from.
func FuzzEntries(f *testing.F) {
	for _, area := range windowsAreas(f) {
		f.Add(area[entriesAt:2048])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := parseEntries(b)
		if err == nil && !bytes.HasPrefix(b, encodeEntries(entries)) {
			t.Errorf("%x becomes %x", b, encodeEntries(entries))
		}
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
