package bitlocker

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// access is one write that storage saw, or a sync if it has no data.
type access struct {
	off  int64
	data []byte
}

// traced is storage that records its writes and syncs.
type traced struct {
	*memory
	trace []access
}

func (r *traced) WriteAt(b []byte, off int64) (int, error) {
	r.trace = append(r.trace, access{off, bytes.Clone(b)})
	return r.memory.WriteAt(b, off)
}

func (r *traced) Sync() error {
	r.trace = append(r.trace, access{})
	return nil
}

// powerSector is what a disk writes wholly or not at all, in bytes.
const powerSector = 512

// powerCuts calls check with all that a power cut may leave of before, as the trace
// is written to it: what was synced is there, and of what was written since the
// last sync any sectors, in any order. Sectors that do not change are left out of
// the count; of more than ten others, a hundred random choices are made.
func powerCuts(t *testing.T, before []byte, trace []access, check func(t *testing.T, b []byte)) {
	t.Helper()
	disk := bytes.Clone(before)
	var open []access // sectors written since the last sync
	for _, a := range trace {
		if a.data != nil {
			for i := 0; i < len(a.data); i += powerSector {
				sector := access{a.off + int64(i), a.data[i:min(i+powerSector, len(a.data))]}
				if !bytes.Equal(disk[sector.off:][:len(sector.data)], sector.data) {
					open = append(open, sector)
				}
			}
		}
		choices(len(open), func(chosen func(i int) bool) {
			b := bytes.Clone(disk)
			for i, s := range open {
				if chosen(i) {
					copy(b[s.off:], s.data)
				}
			}
			check(t, b)
		})
		if a.data == nil {
			for _, s := range open {
				copy(disk[s.off:], s.data)
			}
			open = nil
		}
		if t.Failed() {
			t.FailNow() // one state is enough
		}
	}
}

// choices calls do with subsets of n things: all of them if they are few, else
// every beginning and random ones.
func choices(n int, do func(chosen func(i int) bool)) {
	if n <= 10 {
		for set := range 1 << n {
			do(func(i int) bool { return set&(1<<i) != 0 })
		}
		return
	}
	for end := range n + 1 {
		do(func(i int) bool { return i < end })
	}
	rnd := rand.New(rand.NewPCG(uint64(n), 1))
	for range 100 {
		set := make([]bool, n)
		for i := range set {
			set[i] = rnd.IntN(2) == 0
		}
		do(func(i int) bool { return set[i] })
	}
}

// smallOptions are those of a volume small enough to be copied a thousand times.
func smallOptions(t testing.TB) (o FormatOptions, size int64) {
	o = testOptions(t)
	o.Metadata, o.HeaderCopy = [3]int64{0x4000, 0x14000, 0x24000}, 0x2000
	return o, 0x36000
}

// damageCopies damages some copies of the metadata: their checksum, or only what
// the sealed one covers.
func damageCopies(o FormatOptions, b []byte, sealedOnly bool, copies ...int) {
	m := &memory{b: b}
	for _, i := range copies {
		if sealedOnly {
			change(m, o, func(area []byte) { area[entriesAt+entryHeader] ^= 1 }, i)
		} else {
			b[o.Metadata[i]+200] ^= 1
		}
	}
}

// TestPowerCutInChange rotates the key of a volume, and cuts the power at every
// moment: what is left opens with the old key or the new one, shows the same data,
// and can be changed again to what was wanted. The first copies are whole, or all
// but one are damaged already.
func TestPowerCutInChange(t *testing.T) {
	o, size := smallOptions(t)
	next, err := GenerateExternalKey(testRand(8))
	if err != nil {
		t.Fatal(err)
	}
	cuts, nonces := 0, 0
	for name, damage := range map[string]func(b []byte){
		"all whole":             func([]byte) {},
		"1 damaged":             func(b []byte) { damageCopies(o, b, false, 0) },
		"1 and 2 damaged":       func(b []byte) { damageCopies(o, b, false, 0, 1) },
		"1 and 3 damaged":       func(b []byte) { damageCopies(o, b, false, 0, 2) },
		"2 and 3 damaged":       func(b []byte) { damageCopies(o, b, false, 1, 2) },
		"1 and 2 altered":       func(b []byte) { damageCopies(o, b, true, 0, 1) },
		"2 and 3 altered":       func(b []byte) { damageCopies(o, b, true, 1, 2) },
		"first offset lost":     func(b []byte) { le.PutUint64(b[offIdentifier+16:], 1<<40) },
		"all but offset 3 lost": func(b []byte) { clear(b[offIdentifier+16:][:16]) },
	} {
		t.Run(name, func(t *testing.T) {
			seen := map[string]string{} // every nonce, and what was sealed with it
			m := &memory{b: randomBytes(3, int(size))}
			if err := Format(m, size, o); err != nil {
				t.Fatal(err)
			}
			view := readBytes(t, unlocked(t, m, size, externalKey(o)))
			damage(m.b)
			before := bytes.Clone(m.b)
			disk := &traced{memory: m}
			rotate(t, disk, size, externalKey(o), ProtectorChange{
				Remove: []GUID{o.Protectors[0].ID}, Add: []ProtectorKey{{GUID{9}, next}}, Rand: testRand(10), Now: testNow,
			})
			collectNonces(t, m.b, o, seen) // also of what a cut leaves of it in no whole copy
			seed := byte(0)
			powerCuts(t, before, disk.trace, func(t *testing.T, b []byte) {
				cuts++
				seed++
				with, c := GUID{9}, Credential(next)
				p, err := openWith(b, size, next)
				if errors.Is(err, ErrWrongKey) {
					with, c = o.Protectors[0].ID, externalKey(o)
					p, err = openWith(b, size, externalKey(o))
				}
				if err != nil {
					t.Fatalf("after a power cut, neither key opens: %v", err)
				}
				defer p.Wipe()
				if !bytes.Equal(readBytes(t, p), view) || p.Protector().ID != with {
					t.Fatal("after a power cut, the data are different")
				}
				if cuts%5 == 0 {
					collectNonces(t, b, o, seen)
					finishRotation(t, b, size, c, o, next, seed, seen)
				}
			})
			nonces += len(seen)
			if p, err := openWith(m.b, size, next); err != nil {
				t.Errorf("the new key: %v", err)
			} else {
				p.Wipe()
			}
			if _, err := openWith(m.b, size, externalKey(o)); err != ErrWrongKey {
				t.Errorf("the old key, at the end: %v", err)
			}
		})
	}
	t.Logf("%d states after power cuts, %d nonces", cuts, nonces)
}

func rotate(t *testing.T, disk Storage, size int64, c Credential, change ProtectorChange) {
	t.Helper()
	v, err := Open(disk, size)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.ChangeProtectors(c, change); err != nil {
		t.Fatal(err)
	}
}

func openWith(b []byte, size int64, c Credential) (*Plaintext, error) {
	v, err := Open(bytes.NewReader(b), size)
	if err != nil {
		return nil, err
	}
	return v.Unlock(c)
}

func readBytes(t *testing.T, p *Plaintext) []byte {
	t.Helper()
	b := make([]byte, p.Size())
	if _, err := p.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// finishRotation rotates again, from what a power cut has left, with a clock that
// has not moved: then the new key opens, in all copies, and the old one does not.
func finishRotation(t *testing.T, b []byte, size int64, c Credential, o FormatOptions, next ExternalKey, seed byte, seen map[string]string) {
	t.Helper()
	m := &memory{b: b}
	v, err := Open(m, size)
	if err != nil {
		t.Fatal(err)
	}
	var gone []GUID
	if p, err := v.Unlock(externalKey(o)); err == nil { // by an older copy, maybe
		p.Wipe()
		gone = append(gone, o.Protectors[0].ID)
	}
	if slices.ContainsFunc(v.Info().Protectors, func(p Protector) bool { return p.ID == GUID{9} }) {
		gone = append(gone, GUID{9})
	}
	rotate(t, m, size, c, ProtectorChange{Remove: gone, Add: []ProtectorKey{{GUID{8}, next}}, Rand: testRand(100 + seed), Now: testNow})
	collectNonces(t, b, o, seen)
	first := b[o.Metadata[0]:][:areaSize]
	for _, off := range o.Metadata {
		if !bytes.Equal(b[off:][:areaSize], first) {
			t.Fatal("a second change leaves copies that differ")
		}
	}
	p, err := openWith(b, size, next)
	if err != nil {
		t.Fatalf("after a second change: %v", err)
	}
	p.Wipe()
	if _, err := openWith(b, size, externalKey(o)); err != ErrWrongKey {
		t.Fatalf("after a second change, the old key: %v", err)
	}
}

// collectNonces finds what is sealed in the copies whose structure is whole, and
// fails when a nonce was used for two different things.
func collectNonces(t *testing.T, b []byte, o FormatOptions, seen map[string]string) {
	t.Helper()
	for _, off := range o.Metadata {
		m, err := parseMetadata(b[off:][:areaSize])
		if err != nil {
			continue
		}
		items := append(sealedItems(t, encodeEntries(m.entries)), m.validation)
		for _, s := range items {
			nonce, text := string(s[:nonceSize]), string(s[nonceSize:])
			if have, ok := seen[nonce]; ok && have != text {
				t.Fatalf("nonce %x was used twice", nonce)
			}
			seen[nonce] = text
		}
	}
}

// TestPowerCutInFormat cuts the power at every moment of making a volume: what is
// left is none, or a whole one.
func TestPowerCutInFormat(t *testing.T) {
	o, size := smallOptions(t)
	for _, sectorSize := range []int{512, 4096} {
		t.Run(fmt.Sprint(sectorSize), func(t *testing.T) {
			o.SectorSize, o.Rand = sectorSize, testRand(2)
			before := randomBytes(3, int(size))
			disk := &traced{memory: &memory{b: bytes.Clone(before)}}
			if err := Format(disk, size, o); err != nil {
				t.Fatal(err)
			}
			view := readBytes(t, unlocked(t, disk, size, externalKey(o)))
			volumes := 0
			powerCuts(t, before, disk.trace, func(t *testing.T, b []byte) {
				p, err := openWith(b, size, externalKey(o))
				if errors.Is(err, ErrNotBitLocker) {
					return
				}
				if err != nil {
					t.Fatalf("a volume that does not open: %v", err)
				}
				defer p.Wipe()
				volumes++
				if !bytes.Equal(readBytes(t, p), view) {
					t.Fatal("a volume whose data are different")
				}
			})
			if volumes == 0 {
				t.Error("no volume at the end")
			}
			if last := disk.trace[len(disk.trace)-1]; last.data != nil {
				t.Error("the boot sector is not synced")
			}
		})
	}
}
