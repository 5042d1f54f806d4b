package bitlocker

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"
)

// ProtectorKey is a protector to be made: its name, and the key that opens it. A
// [ClearKey] suspends protection: the volume then carries its key in clear.
type ProtectorKey struct {
	ID  GUID
	Key Credential
}

// ProtectorChange is a change of a volume's protectors, done as one: to rotate a
// key, remove its protector and add another. A change of nothing makes damaged
// metadata copies whole again.
type ProtectorChange struct {
	Remove []GUID
	Add    []ProtectorKey
	Rand   io.Reader // of salts and clear keys
	Now    time.Time // modification time of the new protectors
}

// ChangeProtectors opens the volume with c and changes its protectors. The data
// and their key stay as they are. It refuses to leave the volume without a key
// that this package can use: clear keys, TPMs and smart cards do not count.
//
// The metadata copies are written one after the other, the newest whole one last,
// each durable before the next if the storage is a [Syncer]. Power loss at any
// moment leaves a volume that opens with the old keys or with the new ones; a
// volume half changed may open with both, and the next change finishes it.
//
// Its errors are those of [Volume.Unlock], and [ErrReadOnly]. Afterwards v tells
// what was; [Open] the volume again. Do not change a volume twice at once.
func (v *Volume) ChangeProtectors(c Credential, change ProtectorChange) error {
	w, ok := v.r.(io.WriterAt)
	if !ok {
		return ErrReadOnly
	}
	var base *metadata
	var area []byte
	var err error
	withCleanStack(func() { base, area, err = v.changedArea(c, change) })
	if err != nil {
		return fmt.Errorf("cannot change the protectors: %w", err)
	}
	return v.writeCopies(w, base, area)
}

// changedArea returns the newest genuine copy of the metadata and the area that
// is to replace it.
func (v *Volume) changedArea(c Credential, change ProtectorChange) (*metadata, []byte, error) {
	opened, err := v.open(c)
	if err != nil {
		return nil, nil, err
	}
	defer opened.wipe()
	base := v.newest(opened.vmk)
	entries, err := v.kept(base, change)
	if err != nil {
		return nil, nil, err
	}
	s := sealer{vmk: opened.vmk, rand: change.Rand, now: newFiletime(change.Now)}
	if err := v.drawNonces(&s); err != nil {
		return nil, nil, err
	}
	if entries, err = addProtectors(entries, &s, change.Add); err != nil {
		return nil, nil, err
	}
	block, err := s.block(base.raw, encodeEntries(recoveryLast(entries)))
	if err != nil {
		return nil, nil, err
	}
	area := make([]byte, areaSize)
	copy(area, block)
	return base, area, nil
}

// addProtectors puts new protectors behind those among the entries.
func addProtectors(entries []entry, s *sealer, add []ProtectorKey) ([]entry, error) {
	for _, p := range add {
		b, err := s.appendProtector(nil, p)
		if err != nil {
			return nil, err
		}
		added, err := parseEntries(b)
		if err != nil {
			return nil, err
		}
		entries = slices.Insert(entries, afterProtectors(entries), added...)
	}
	return entries, nil
}

// newest returns the latest of the copies that vmk proves genuine: after a change
// that was interrupted, the one that had been changed.
func (v *Volume) newest(vmk []byte) *metadata {
	var newest *metadata
	for _, m := range v.copies {
		if m.verify(vmk) == nil && (newest == nil || m.nextNonce > newest.nextNonce) {
			newest = m
		}
	}
	return newest
}

// drawNonces sets s to nonces that were never used under the volume's master key.
// The counter goes on behind that of every genuine copy. What an interrupted change
// has sealed is in no whole copy, maybe; for that the other part is random.
func (v *Volume) drawNonces(s *sealer) error {
	var b [8]byte
	if s.rand == nil {
		return errors.New("no source of randomness")
	}
	if _, err := io.ReadFull(s.rand, b[:]); err != nil {
		return fmt.Errorf("cannot draw a nonce: %w", err)
	}
	s.epoch = le.Uint64(b[:])
	for _, m := range v.copies {
		if m.verify(s.vmk) == nil {
			s.next = max(s.next, m.nextNonce)
		}
	}
	if s.next > math.MaxUint32-areaSize {
		return errors.New("the volume's nonces are used up")
	}
	return nil
}

// kept returns the entries of base that stay, having checked the change. What only
// an older copy still has is removed from all of them by any change.
func (v *Volume) kept(base *metadata, change ProtectorChange) ([]entry, error) {
	entries := slices.Clone(base.entries)
	for _, id := range change.Remove {
		named := func(e entry) bool { return e.isProtector(id) }
		i := slices.IndexFunc(entries, named)
		switch {
		case i >= 0:
			entries = slices.Delete(entries, i, i+1)
		case !slices.ContainsFunc(v.copies, func(m *metadata) bool { return m != base && slices.ContainsFunc(m.entries, named) }):
			return nil, fmt.Errorf("no protector %v", id)
		}
	}
	left := slices.DeleteFunc(slices.Clone(base.protectors), func(p protector) bool { return slices.Contains(change.Remove, p.ID) })
	return entries, checkProtectors(left, change.Add)
}

// checkProtectors demands that the protectors of a volume have a key each, and
// names of their own, and that one of them can be used.
func checkProtectors(kept []protector, added []ProtectorKey) error {
	var ids []GUID
	lasting := false
	for _, p := range kept {
		ids = append(ids, p.ID)
		lasting = lasting || p.openable() && p.Kind != ClearKeyProtector
	}
	for _, p := range added {
		if err := checkKey(p.Key); err != nil {
			return fmt.Errorf("protector %v: %w", p.ID, err)
		}
		if slices.Contains(ids, p.ID) {
			return fmt.Errorf("two protectors %v", p.ID)
		}
		ids = append(ids, p.ID)
		lasting = lasting || p.Key.protects() != ClearKeyProtector
	}
	switch {
	case !lasting:
		return errors.New("no protector would be left but clear keys, TPMs or smart cards: want an external key, a recovery password or a passphrase")
	case len(ids) > maxProtectors:
		return fmt.Errorf("%d protectors: want at most %d", len(ids), maxProtectors)
	}
	return nil
}

func checkKey(c Credential) error {
	if c == nil {
		return errors.New("no key")
	}
	if k, ok := c.(interface{ IsZero() bool }); ok && k.IsZero() {
		return fmt.Errorf("no %v", c.protects())
	}
	return nil
}

// isProtector reports whether e is the protector of the given name.
func (e entry) isProtector(id GUID) bool { return e.isVMK() && bytes.HasPrefix(e.data, id[:]) }

func (e entry) isVMK() bool { return e.typ == typeVMK && e.value == valueVMK }

// afterProtectors returns where one more protector goes among the entries.
func afterProtectors(entries []entry) int {
	for i, e := range slices.Backward(entries) {
		if e.isVMK() {
			return i + 1
		}
	}
	return min(1, len(entries)) // behind the description
}

// recoveryLast moves recovery passwords behind the other protectors: some
// versions of cryptsetup cannot open a volume on which one comes first.
func recoveryLast(entries []entry) []entry {
	rank := func(e entry) int {
		if e.kind() == RecoveryPasswordProtector {
			return 1
		}
		return 0
	}
	first := slices.IndexFunc(entries, entry.isVMK)
	slices.SortStableFunc(entries[first:afterProtectors(entries)], func(a, b entry) int {
		return cmp.Compare(rank(a), rank(b))
	})
	return entries
}

// writeCopies puts area into the places of base's three copies. What is no genuine
// copy is overwritten first, base itself last: at every moment one is whole, and
// found.
func (v *Volume) writeCopies(w io.WriterAt, base *metadata, area []byte) error {
	if err := v.repairBoot(w, base); err != nil {
		return fmt.Errorf("cannot repair the boot sector: %w", err)
	}
	order := []int{2, 1, 0}
	rank := make([]int, numberOfCopies)
	for i, off := range base.geometry.metadata {
		if m, err := v.readCopy(off); err == nil && m.same(base) {
			rank[i] = 1
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rank[a], rank[b]) })
	for _, i := range order {
		if err := writeDurably(w, area, base.geometry.metadata[i]); err != nil {
			return fmt.Errorf("cannot write metadata copy %d: %w", i+1, err)
		}
	}
	return nil
}

// repairBoot has the boot sector point to all of base's copies. Until then readers
// may find only one, which must not be written.
func (v *Volume) repairBoot(w io.WriterAt, base *metadata) error {
	sector := make([]byte, v.sectorSize)
	if err := readFull(v.r, sector, 0); err != nil {
		return err
	}
	boot, err := parseBoot(sector)
	if err != nil || boot.metadata == base.geometry.metadata {
		return err
	}
	boot.metadata = base.geometry.metadata
	boot.putOffsets(sector)
	return writeDurably(w, sector, 0)
}
