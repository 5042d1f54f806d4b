package bitlocker

import (
	"bytes"
	"errors"
	"testing"
)

// TestErase cuts the power at every moment of an erasure: what is left can be
// erased, and then no credential opens it and no byte of the metadata is left. One
// of the boot sector's pointers is wrong, so that a copy is found by the others
// only.
func TestErase(t *testing.T) {
	o, size := smallOptions(t)
	before := make([]byte, size)
	if err := Format(&memory{b: before}, size, o); err != nil {
		t.Fatal(err)
	}
	le.PutUint64(before[offIdentifier+16+8:], 0x3000) // the second pointer, into the data
	var secrets [][]byte
	for _, off := range o.Metadata {
		secrets = append(secrets, bytes.Clone(before[off+64:][:64]), bytes.Clone(before[off+areaSize/4:][:64]))
	}
	s := &traced{memory: &memory{b: bytes.Clone(before)}}
	if done, err := Erased(s, size); done || err != nil {
		t.Fatalf("erased before: %v %v", done, err)
	}
	if err := Erase(s, size); err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T, b []byte) {
		t.Helper()
		m := &memory{b: b}
		if err := Erase(m, size); err != nil {
			t.Fatal(err)
		}
		if done, err := Erased(m, size); !done || err != nil {
			t.Errorf("not erased: %v %v", done, err)
		}
		if _, err := Open(m, size); !errors.Is(err, ErrDamaged) {
			t.Errorf("it opens: %v", err)
		}
		for _, off := range o.Metadata {
			if !bytes.Equal(b[off:][:areaSize], make([]byte, areaSize)) {
				t.Errorf("something is left at %#x", off)
			}
		}
		if !bytes.Equal(secrets[0], make([]byte, 64)) && bytes.Contains(b, secrets[0]) {
			t.Error("the metadata are somewhere else, too")
		}
	}
	powerCuts(t, before, s.trace, check)
}

func TestEraseNeedsAVolume(t *testing.T) {
	for name, b := range map[string][]byte{"nothing": nil, "zeros": make([]byte, 1<<20)} {
		if err := Erase(&memory{b: b}, int64(len(b))); err == nil {
			t.Errorf("%s: erased", name)
		}
	}
}
