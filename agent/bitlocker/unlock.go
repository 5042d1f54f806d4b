package bitlocker

import (
	"bytes"
	"slices"
)

// Attempt is a volume, and what is to open it.
type Attempt struct {
	Volume     *Volume
	Credential Credential
}

// Unlocked is what came of an [Attempt]: what [Volume.Unlock] returns.
type Unlocked struct {
	Plaintext *Plaintext
	Err       error
}

// UnlockAll unlocks volumes with a credential each, as [Volume.Unlock] does, and
// returns what came of each in their order. All passwords and passphrases are
// stretched together, on all processors and several on each: on two, seventy of
// them take as long as sixteen one after the other.
//
// The caller wipes the credentials, and every Plaintext when done. One volume may
// be tried with several credentials.
func UnlockAll(attempts []Attempt) []Unlocked {
	credentials := make([]Credential, len(attempts))
	var keys []stretching
	defer func() { wipeKeys(keys) }()
	for i, a := range attempts {
		credentials[i] = a.Credential
		if p, ok := a.Credential.(password); ok {
			var s stretched
			withCleanStack(func() { s = a.Volume.stretched(p) })
			credentials[i] = s
			keys = append(keys, s.keys...)
		}
	}
	stretchAll(keys)
	all := make([]Unlocked, len(attempts))
	for i, a := range attempts {
		all[i].Plaintext, all[i].Err = a.Volume.Unlock(credentials[i])
	}
	return all
}

// password is a credential whose keys are stretched.
type password interface {
	Credential
	// initial fills dst with what is stretched.
	initial(dst []byte)
}

// stretched stands for a password whose keys have been stretched, one for each
// salt on a volume.
type stretched struct {
	kind ProtectorKind
	keys []stretching
}

// stretched returns all keys that p may open v with, yet to be stretched.
func (v *Volume) stretched(p password) stretched {
	s := stretched{kind: p.protects()}
	for _, m := range v.copies {
		if m.checkOpenable() != nil {
			continue
		}
		for _, to := range m.protectors {
			if to.Kind == s.kind && to.openable() && s.find(to.salt) < 0 {
				key := make([]byte, keySize)
				p.initial(key)
				s.keys = append(s.keys, stretching{key, to.salt})
			}
		}
	}
	return s
}

func (s stretched) find(salt []byte) int {
	return slices.IndexFunc(s.keys, func(k stretching) bool { return bytes.Equal(k.salt, salt) })
}

func (s stretched) protects() ProtectorKind      { return s.kind }
func (s stretched) key(to protector, dst []byte) { copyKey(dst, s.keys[s.find(to.salt)].key) }
