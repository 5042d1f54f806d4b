package bitlocker

import (
	"bytes"
	"errors"
	"slices"
	"strings"
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

// TestRefusedChanges wants changes refused that would leave a volume nobody can
// open, or that make no sense: the disk is not touched.
func TestRefusedChanges(t *testing.T) {
	o := testOptions(t)
	o.Protectors = append(o.Protectors, ProtectorKey{GUID{3}, ClearKey{}})
	first := o.Protectors[0].ID
	other, err := GenerateExternalKey(testRand(4))
	if err != nil {
		t.Fatal(err)
	}
	var many []ProtectorKey
	for i := range maxProtectors {
		many = append(many, ProtectorKey{GUID{50, byte(i)}, other})
	}
	for name, v := range map[string]struct {
		key    Credential
		change ProtectorChange
		says   string
	}{
		"the last one":           {nil, ProtectorChange{Remove: []GUID{first}}, "no protector would be left"},
		"the last but clear key": {ClearKey{}, ProtectorChange{Remove: []GUID{first}, Add: []ProtectorKey{{GUID{4}, ClearKey{}}}}, "no protector would be left"},
		"all":                    {nil, ProtectorChange{Remove: []GUID{first, {3}}}, "no protector would be left"},
		"an unknown one":         {nil, ProtectorChange{Remove: []GUID{{9}}}, "no protector 00000009"},
		"one twice":              {nil, ProtectorChange{Remove: []GUID{{3}, {3}}}, "no protector 00000003"},
		"a name taken":           {nil, ProtectorChange{Add: []ProtectorKey{{first, other}}}, "two protectors"},
		"a name twice":           {nil, ProtectorChange{Add: []ProtectorKey{{GUID{4}, other}, {GUID{4}, ClearKey{}}}}, "two protectors"},
		"no key":                 {nil, ProtectorChange{Add: []ProtectorKey{{ID: GUID{4}}}}, "no key"},
		"an empty key":           {nil, ProtectorChange{Add: []ProtectorKey{{GUID{4}, ExternalKey{}}}}, "no external key"},
		"too many":               {nil, ProtectorChange{Add: many}, "at most 64"},
		"another key":            {other, ProtectorChange{Remove: []GUID{{3}}}, "wrong key"},
		"no such protector":      {passphrase(t, "x"), ProtectorChange{Remove: []GUID{{3}}}, "no protector of this kind: passphrase"},
	} {
		m, _ := formatted(t, o)
		before := slices.Clone(m.b)
		volume, err := Open(m, testSize)
		if err != nil {
			t.Fatal(err)
		}
		if v.key == nil {
			v.key = externalKey(o)
		}
		v.change.Rand, v.change.Now = testRand(9), testNow
		if err := volume.ChangeProtectors(v.key, v.change); err == nil || !strings.Contains(err.Error(), v.says) {
			t.Errorf("%s: %v, want an error with %q", name, err, v.says)
		}
		if !bytes.Equal(m.b, before) {
			t.Errorf("%s: the disk was touched", name)
		}
	}
	m, _ := formatted(t, o)
	add := ProtectorChange{Add: []ProtectorKey{{GUID{4}, other}}, Now: testNow}
	volume, err := Open(m, testSize)
	if err != nil {
		t.Fatal(err)
	}
	if err := volume.ChangeProtectors(externalKey(o), add); err == nil || !strings.Contains(err.Error(), "randomness") {
		t.Errorf("without randomness: %v", err)
	}
	add.Rand = testRand(9)
	if volume, err = Open(bytes.NewReader(m.b), testSize); err != nil {
		t.Fatal(err)
	}
	if err := volume.ChangeProtectors(externalKey(o), add); !errors.Is(err, ErrReadOnly) {
		t.Errorf("read-only: %v", err)
	}
}

// TestFailingChange has the disk fail at each place that a change writes: the error
// says so, and the volume opens.
func TestFailingChange(t *testing.T) {
	o := testOptions(t)
	for _, at := range o.Metadata {
		m, view := formatted(t, o)
		volume, err := Open(failing{m, at}.writesOnly(), testSize)
		if err != nil {
			t.Fatal(err)
		}
		change := ProtectorChange{Add: []ProtectorKey{{GUID{4}, ClearKey{}}}, Rand: testRand(9), Now: testNow}
		if err := volume.ChangeProtectors(externalKey(o), change); !errors.Is(err, errDisk) {
			t.Errorf("failing at %#x: %v", at, err)
		}
		compare(t, unlocked(t, m, testSize, externalKey(o)), view)
	}
}

// TestLookalikes has volumes with the protectors of some that Windows makes: the
// right one is found, and named, in any order.
func TestLookalikes(t *testing.T) {
	o := testOptions(t)
	var ids []GUID
	var keys []Credential
	for _, text := range []string{goodPassword, "000000-000011-000000-000000-000000-000000-000000-720885"} {
		p, err := ParseRecoveryPassword(text)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, p)
	}
	keys = append(keys, passphrase(t, "žluťoučký kůň 🐎"), passphrase(t, "anaconda"))
	for i, key := range keys {
		ids = append(ids, GUID{byte(i + 1)})
		o.Protectors = append(o.Protectors, ProtectorKey{ids[i], key})
	}
	bek := NewBEK(o.Protectors[0].ID, externalKey(o), testNow)
	bek.Volume = o.ID // the long form of the file
	file, err := ParseBEK(bek.Encode())
	if err != nil {
		t.Fatal(err)
	}
	ids, keys = append(ids, file.ID), append(keys, file.Key)
	m, view := formatted(t, o)
	remake(t, m, externalKey(o), nil, func(entries []entry) []entry { // recovery passwords first, a smart card between
		slices.SortStableFunc(entries, func(a, b entry) int {
			return int(b.kind()&RecoveryPasswordProtector) - int(a.kind()&RecoveryPasswordProtector)
		})
		card := entry{typeVMK, valueVMK, 1, slices.Concat([]byte{0xCA, 15: 0}, u64(0), u32(uint32(PublicKeyProtector)<<16),
			appendEntry(nil, 0x0C, 0x99, []byte("certificate")))}
		hint := entry{0, 0x18, 1, encodeString("m*****@contoso.com")}
		return slices.Insert(entries, 2, card, hint)
	})
	v, err := Open(m, testSize)
	if err != nil {
		t.Fatal(err)
	}
	want := []ProtectorKind{RecoveryPasswordProtector, PublicKeyProtector, RecoveryPasswordProtector, ExternalKeyProtector, PassphraseProtector, PassphraseProtector}
	if got := kinds(v); !slices.Equal(got, want) {
		t.Errorf("protectors %v, want %v", got, want)
	}
	for i, key := range keys {
		p, err := v.Unlock(key)
		if err != nil {
			t.Errorf("%v %v: %v", key.protects(), ids[i], err)
			continue
		}
		compare(t, p, view)
		if p.Protector().ID != ids[i] {
			t.Errorf("opened by %v, want %v", p.Protector(), ids[i])
		}
		p.Wipe()
	}
}
