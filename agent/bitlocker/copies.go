package bitlocker

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// read reads a volume's metadata, refused or not.
func read(r io.ReaderAt, size int64) (*Volume, error) {
	sector := make([]byte, min(max(size, 0), bootSize))
	if err := readFull(r, sector, 0); err != nil {
		return nil, fmt.Errorf("cannot read the boot sector: %w", err)
	}
	boot, err := parseBoot(sector)
	if err != nil {
		return nil, err
	}
	v := &Volume{r: r, size: size, sectorSize: boot.sectorSize, toGo: boot.toGo(), refused: boot.refused}
	err = v.readCopies(boot.metadata)
	if err != nil && boot.refused != nil {
		return nil, boot.refused // what kind it is says more than what is wrong with it
	}
	return v, err
}

// readCopies reads the metadata copies that are whole, at the given offsets and
// where whole ones say that there are more. A copy that is damaged makes way for
// the next one. One that tells of a problem counts if there are no others, and else
// once it has proved genuine.
func (v *Volume) readCopies(offsets [numberOfCopies]int64) error {
	var problems []error
	for i, off := range offsets {
		problems = append(problems, v.addCopy(i, off))
	}
	for _, m := range slices.Clone(v.copies) {
		for i, off := range m.geometry.metadata {
			if v.damage[i] != "" && off != offsets[i] {
				problems = append(problems, v.addCopy(i, off))
			}
		}
	}
	if len(v.copies) > 0 && v.copies[0].problem == nil {
		return nil
	}
	if v.refused == nil {
		v.refused, _ = errors.AsType[*RefusedError](errors.Join(problems...))
	}
	switch {
	case len(v.copies) > 0 && v.refused != nil:
		return nil
	case v.refused != nil:
		return v.refused
	case len(v.copies) > 0:
		return v.copies[0].problem
	case !slices.ContainsFunc(offsets[:], func(off int64) bool { return !v.behind(off) }):
		return fmt.Errorf("%w: all metadata lie behind the %d bytes that are there", ErrTruncated, v.size)
	}
	return damaged("no metadata copy is whole: copy 1: %s; copy 2: %s; copy 3: %s", v.damage[0], v.damage[1], v.damage[2])
}

// addCopy reads copy i at off, and returns what is wrong with it or with the volume.
func (v *Volume) addCopy(i int, off int64) error {
	m, err := v.readCopy(off)
	if err != nil {
		v.damage[i] = strings.TrimPrefix(err.Error(), ErrDamaged.Error()+": ")
		return err
	}
	if slices.ContainsFunc(v.copies, m.same) {
		return m.problem
	}
	v.copies = append(v.copies, m)
	slices.SortStableFunc(v.copies, func(a, b *metadata) int {
		return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(b.nextNonce, a.nextNonce))
	})
	return m.problem
}

// rank puts copies without a problem first.
func (m *metadata) rank() int {
	if m.problem == nil {
		return 0
	}
	return 1
}

// behind reports whether an area at off would not be there for the image's end,
// in a volume that is not absurd.
func (v *Volume) behind(off int64) bool {
	return off > v.size-areaSize && off < maxSize && off%int64(v.sectorSize) == 0
}

// maxSize bounds what is believed of an offset, in bytes: NTFS ends far below.
const maxSize = 1 << 56

// readCopy reads the metadata copy at off. It fails if that is not whole.
func (v *Volume) readCopy(off int64) (*metadata, error) {
	if off < 0 || off > v.size-areaSize {
		return nil, damaged("its offset %#x lies outside the image of %d bytes", off, v.size)
	}
	area := make([]byte, areaSize)
	if err := readFull(v.r, area, off); err != nil {
		return nil, damaged("cannot read it: %v", err)
	}
	m, err := parseMetadata(area)
	switch {
	case err != nil || m.problem != nil:
		return m, err
	case v.refused != nil:
		m.problem = v.refused
		return m, nil
	}
	if err := m.checkComplete(); err != nil {
		return nil, err
	}
	if m.encryptedSize > v.size {
		m.problem = fmt.Errorf("%w: %d of %d bytes are there", ErrTruncated, v.size, m.encryptedSize)
		return m, nil
	}
	m.layout, err = newLayout(m.geometry, v.size, v.sectorSize)
	return m, err
}
