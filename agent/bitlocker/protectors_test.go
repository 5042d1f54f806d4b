package bitlocker

import (
	"slices"
	"testing"
)

// passphrase returns the passphrase of a test.
func passphrase(t testing.TB, s string) Passphrase {
	t.Helper()
	p, err := NewPassphrase(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func kinds(v *Volume) (kinds []ProtectorKind) {
	for _, p := range v.Info().Protectors {
		kinds = append(kinds, p.Kind)
	}
	return kinds
}

// TestChangeProtectors adds every kind of protector, rotates one, and removes the
// first: what was added opens, what was removed does not, the data stay.
func TestChangeProtectors(t *testing.T) {
	o := testOptions(t)
	m, view := formatted(t, o)
	password, err := ParseRecoveryPassword(goodPassword)
	if err != nil {
		t.Fatal(err)
	}
	phrase := passphrase(t, "größer als ∞ 🔑")
	change := func(c Credential, ch ProtectorChange) error {
		v, err := Open(m, testSize)
		if err != nil {
			t.Fatal(err)
		}
		ch.Rand, ch.Now = testRand(9), testNow
		return v.ChangeProtectors(c, ch)
	}
	if err := change(externalKey(o), ProtectorChange{Add: []ProtectorKey{{GUID{1}, password}, {GUID{2}, phrase}, {GUID{3}, ClearKey{}}}}); err != nil {
		t.Fatal(err)
	}
	v, err := Open(m, testSize)
	if err != nil {
		t.Fatal(err)
	}
	if want := []ProtectorKind{ExternalKeyProtector, PassphraseProtector, ClearKeyProtector, RecoveryPasswordProtector}; !slices.Equal(kinds(v), want) {
		t.Errorf("protectors %v, want %v", kinds(v), want)
	}
	for _, c := range []Credential{externalKey(o), password, phrase, ClearKey{}} {
		compare(t, unlocked(t, m, testSize, c), view)
	}
	if err := change(phrase, ProtectorChange{Remove: []GUID{o.Protectors[0].ID, {3}}}); err != nil {
		t.Fatal(err)
	}
	if v, err = Open(m, testSize); err != nil {
		t.Fatal(err)
	}
	for _, c := range []Credential{externalKey(o), ClearKey{}} {
		if _, err := v.Unlock(c); ClassOf(err) != ClassWrongKey {
			t.Errorf("a removed %v: %v", c.protects(), err)
		}
	}
	compare(t, unlocked(t, m, testSize, password), view)
}
