package bitlocker

import (
	"bytes"
	"fmt"
	"io"
	"slices"
)

// Erase destroys all that is on the volume of the key of its data: the three
// metadata areas, with every protector, the volume's key and its validation, are
// overwritten with zeros and read back. No credential opens the volume any more,
// and nothing brings the key back: what is left are sectors encrypted with a key
// that is nowhere (NIST SP 800-88 Rev. 1, cryptographic erase). It needs no
// credential.
//
// The boot sector stays, as the place to begin again: power loss at any moment
// leaves a volume that Erase can be called for once more, and areas that only the
// metadata itself knows are destroyed first. Its error is [ErrNotBitLocker] if the
// boot sector does not say where the areas are.
func Erase(s Storage, size int64) error {
	areas, err := metadataAreas(s, size)
	if err != nil {
		return fmt.Errorf("cannot erase: %w", err)
	}
	zeros := make([]byte, areaSize)
	for _, off := range areas {
		if err := writeDurably(s, zeros, off); err != nil {
			return fmt.Errorf("cannot erase the metadata at %#x: %w", off, err)
		}
	}
	done, err := Erased(s, size)
	if err == nil && !done {
		err = fmt.Errorf("cannot erase: what was overwritten is still there")
	}
	return err
}

// Erased reports whether [Erase] has destroyed all metadata areas of a volume.
func Erased(r io.ReaderAt, size int64) (bool, error) {
	areas, err := metadataAreas(r, size)
	if err != nil {
		return false, err
	}
	area, zeros := make([]byte, areaSize), make([]byte, areaSize)
	for _, off := range areas {
		if err := readFull(r, area, off); err != nil {
			return false, fmt.Errorf("cannot read the metadata at %#x: %w", off, err)
		}
		if !bytes.Equal(area, zeros) {
			return false, nil
		}
	}
	return true, nil
}

// metadataAreas returns where metadata lie or may lie: first what only a copy
// knows, then what the boot sector says, within the volume.
func metadataAreas(r io.ReaderAt, size int64) ([]int64, error) {
	sector := make([]byte, min(max(size, 0), bootSize))
	if err := readFull(r, sector, 0); err != nil {
		return nil, fmt.Errorf("cannot read the boot sector: %w", err)
	}
	boot, err := parseBoot(sector)
	if err != nil {
		return nil, err
	}
	inside := func(off int64) bool { return off > 0 && off <= size-areaSize }
	var named, known []int64
	for _, off := range boot.metadata {
		if !inside(off) {
			continue
		}
		named = append(named, off)
		area := make([]byte, areaSize)
		if err := readFull(r, area, off); err != nil {
			continue // it is written all the same
		}
		if m, err := parseMetadata(area); err == nil {
			known = append(known, m.geometry.metadata[:]...)
		}
	}
	known = slices.DeleteFunc(known, func(off int64) bool { return !inside(off) || slices.Contains(named, off) })
	slices.Sort(known)
	areas := append(slices.Compact(known), named...)
	if len(named) == 0 {
		return nil, damaged("the boot sector names no metadata area within the %d bytes that are there", size)
	}
	return areas, nil
}
