package bitlocker

import (
	"cmp"
	"slices"
)

// geometry is where BitLocker's own areas lie in a volume; all in bytes.
type geometry struct {
	encryptedSize int64
	metadata      [numberOfCopies]int64
	headerCopy    int64 // where the first headerSize bytes of the file system are
	headerSize    int64
	headerSectors int64 // the same in sectors, as stored beside it
}

// spanKind is how the bytes of a span are shown.
type spanKind int

const (
	encrypted spanKind = iota // decrypted; physically shift bytes further on
	reserved                  // zeros, and not to be written
	plain                     // as they are, and not to be written
)

// span is a range of the decrypted view.
type span struct {
	start, end int64
	kind       spanKind
	shift      int64
}

// layout is the whole decrypted view: spans in order, without gaps, beginning
// and ending on sector boundaries up to the encrypted size.
type layout []span

// newLayout checks g against a volume of size bytes and lays out its view.
func newLayout(g geometry, size int64, sectorSize int) (layout, error) {
	if g.encryptedSize <= 0 || g.encryptedSize > size || g.encryptedSize%int64(sectorSize) != 0 {
		return nil, damaged("encrypted size of %d bytes in a volume of %d", g.encryptedSize, size)
	}
	if g.headerSize != g.headerSectors*int64(sectorSize) {
		return nil, damaged("header of %d bytes and of %d sectors of %d bytes", g.headerSize, g.headerSectors, sectorSize)
	}
	areas, err := g.areas(int64(sectorSize))
	if err != nil {
		return nil, err
	}
	var l layout
	var at int64
	for _, a := range areas {
		if a.start < at {
			return nil, damaged("areas overlap at %#x", a.start)
		}
		l = l.appendSpan(span{at, a.start, encrypted, 0}).appendSpan(a)
		at = a.end
	}
	return l.appendSpan(span{at, g.encryptedSize, encrypted, 0}).appendSpan(span{g.encryptedSize, size, plain, 0}), nil
}

// areas returns the spans that are not simply decrypted in place, in order, each
// within the encrypted size and on sector boundaries.
func (g geometry) areas(sectorSize int64) (layout, error) {
	var areas layout
	var bad error
	add := func(start, length int64, kind spanKind, shift int64) {
		if length <= 0 || start < 0 || length > g.encryptedSize || start > g.encryptedSize-length ||
			start%sectorSize != 0 || length%sectorSize != 0 {
			bad = damaged("area of %d bytes at %#x does not fit a volume of %d", length, start, g.encryptedSize)
			return
		}
		areas = append(areas, span{start, start + length, kind, shift})
	}
	add(0, g.headerSize, encrypted, g.headerCopy)
	add(g.headerCopy, g.headerSize, reserved, 0)
	for _, off := range g.metadata {
		add(off, areaSize, reserved, 0)
	}
	slices.SortFunc(areas, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	return areas, bad
}

func (l layout) appendSpan(s span) layout {
	if s.start == s.end {
		return l
	}
	return append(l, s)
}

// at returns the span that holds off, which must be within the view.
func (l layout) at(off int64) span {
	i, _ := slices.BinarySearchFunc(l, off, func(s span, off int64) int {
		switch {
		case s.end <= off:
			return -1
		case s.start > off:
			return 1
		}
		return 0
	})
	return l[i]
}

// size returns the length of the view in bytes.
func (l layout) size() int64 { return l[len(l)-1].end }
