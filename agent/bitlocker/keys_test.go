package bitlocker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const goodPassword = "235818-357951-253979-013365-241120-245575-342914-591910"

func TestRecoveryPassword(t *testing.T) {
	for _, s := range []string{goodPassword, "000000-000011-000000-000000-000000-000000-000000-720885"} {
		p, err := ParseRecoveryPassword(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
		} else if p.Reveal() != s {
			t.Errorf("%s becomes %s", s, p.Reveal())
		}
	}
	for name, s := range map[string]string{
		"empty":             "",
		"seven groups":      goodPassword[:48],
		"nine groups":       goodPassword + "-000011",
		"no dashes":         strings.ReplaceAll(goodPassword, "-", ""),
		"dash at the end":   goodPassword + "-",
		"five digits":       strings.Replace(goodPassword, "013365", "13365", 1),
		"not by 11":         strings.Replace(goodPassword, "013365", "013366", 1),
		"too large":         strings.Replace(goodPassword, "013365", "720896", 1),
		"letter":            strings.Replace(goodPassword, "013365", "01336O", 1),
		"sign":              strings.Replace(goodPassword, "013365", "+13365", 1),
		"space before":      " " + goodPassword,
		"another digit set": strings.Replace(goodPassword, "013365", "٠٣٣", 1),
	} {
		_, err := ParseRecoveryPassword(s)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if s != "" && strings.Contains(err.Error(), s) {
			t.Errorf("%s: the error shows the password: %v", name, err)
		}
	}
}

// TestKeysDoNotPrint prints keys in every way that package fmt and JSON know,
// alone and inside exported and unexported fields.
func TestKeysDoNotPrint(t *testing.T) {
	external, err := NewExternalKey(bytes.Repeat([]byte{'k'}, keySize))
	if err != nil {
		t.Fatal(err)
	}
	password := RecoveryPassword{newSecret(bytes.Repeat([]byte{'k'}, passwordSize))}
	passphrase := Passphrase{newSecret(bytes.Repeat([]byte{'k'}, keySize))}
	type wrapped struct {
		Exported, unexported any
		key                  ExternalKey
		password             RecoveryPassword
		passphrase           Passphrase
	}
	all := []any{external, password, passphrase, NewBEK(GUID{}, external, testNow), &external,
		wrapped{external, password, external, password, passphrase}, []ExternalKey{external},
		&wrapped{password, external, external, password, passphrase}, map[string]any{"key": external}}
	for _, v := range all {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%08b", "%c", "%U"} {
			checkNoKey(t, verb, fmt.Sprintf(verb, v))
		}
		if b, err := json.Marshal(v); err == nil {
			checkNoKey(t, "json", string(b))
		}
	}
	if got := fmt.Sprint(external); got != "[redacted]" {
		t.Errorf("an external key prints as %q", got)
	}
}

// checkNoKey looks for the letter k repeated, in several notations.
func checkNoKey(t *testing.T, how, printed string) {
	t.Helper()
	for _, key := range []string{"kkkk", "107 107", "107, 107", "6b6b", "6B6B", "0x6b, 0x6b", "1101011 ", "a2tra", "U+006B"} {
		if strings.Contains(printed, key) {
			t.Errorf("%s prints a key: %s", how, printed)
		}
	}
}

func TestKeysEqualAndWipe(t *testing.T) {
	a, _ := NewExternalKey(randomBytes(1, keySize))
	b, _ := NewExternalKey(randomBytes(1, keySize))
	c, _ := NewExternalKey(randomBytes(2, keySize))
	if !a.Equal(b) || a.Equal(c) || a.Equal(ExternalKey{}) {
		t.Error("Equal is wrong")
	}
	same := a
	a.Wipe()
	if same.Equal(b) || !isZero(same.Bytes()) {
		t.Error("wiping a key leaves its copy")
	}
	ExternalKey{}.Wipe() // does nothing
	for _, n := range []int{0, 31, 33} {
		if _, err := NewExternalKey(make([]byte, n)); err == nil {
			t.Errorf("a key of %d bytes is accepted", n)
		}
	}
	for _, s := range []string{"", strings.Repeat("x", maxPassphrase+1), strings.Repeat("🔑", maxPassphrase/2) + "x", "gr\xF6\xDFer"} {
		if _, err := NewPassphrase(s); err == nil {
			t.Errorf("a passphrase of %d characters is accepted", len(s))
		}
	}
}

func testBEK(t testing.TB) BEK {
	t.Helper()
	key, err := NewExternalKey(randomBytes(5, keySize))
	if err != nil {
		t.Fatal(err)
	}
	return NewBEK(MustGUID("4381F759-C4F8-4DE0-BB61-FC33A831BDA5"), key, testNow)
}

func TestBEK(t *testing.T) {
	short := testBEK(t)
	long := testBEK(t)
	long.Volume = MustGUID("00112233-4455-6677-8899-AABBCCDDEEFF")
	for size, want := range map[int]BEK{156: short, 180: long} {
		b := want.Encode()
		if len(b) != size {
			t.Errorf("encodes to %d bytes, want %d", len(b), size)
		}
		got, err := ParseBEK(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(BEK{}), cmp.Comparer(ExternalKey.Equal)); diff != "" {
			t.Error(diff)
		}
	}
	if name := short.FileName(); name != "4381F759-C4F8-4DE0-BB61-FC33A831BDA5.BEK" {
		t.Errorf("file name %s", name)
	}
}

// TestWindowsBEK has a file made by Windows encode to itself.
func TestWindowsBEK(t *testing.T) {
	windowsRows(t)
	b, err := os.ReadFile(filepath.Join(windowsFolder, "4381F759-C4F8-4DE0-BB61-FC33A831BDA5.BEK"))
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParseBEK(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(k.Encode(), b) || k.ID.String() != "4381F759-C4F8-4DE0-BB61-FC33A831BDA5" {
		t.Error("does not encode to itself")
	}
}

func TestBadBEK(t *testing.T) {
	good := testBEK(t).Encode()
	put16 := func(at int, v uint16) func(b []byte) []byte {
		return func(b []byte) []byte { le.PutUint16(b[at:], v); return b }
	}
	// Offsets: the startup-key entry is at 48, its label at 80, its key at 112.
	for name, change := range map[string]func(b []byte) []byte{
		"empty":                 func(b []byte) []byte { return nil },
		"cut":                   func(b []byte) []byte { return b[:155] },
		"longer":                func(b []byte) []byte { return append(b, 0) },
		"huge":                  func(b []byte) []byte { return make([]byte, maxBEK+1) },
		"another length":        put16(0, 155),
		"another version":       put16(4, 2),
		"another header length": put16(8, 32),
		"two lengths":           put16(12, 155),
		"entry too short":       put16(48, 7),
		"entry too long":        put16(48, 200),
		"no entry":              put16(48, 0),
		"not a startup key":     put16(50, typeVMK),
		"not an external key":   put16(52, valueKey),
		"nested entry too long": put16(80, 100),
		"no key":                put16(112+4, valueGUID),
		"key too short":         put16(112, 40),
		"other ID inside":       put16(56, 0),
	} {
		_, err := ParseBEK(change(bytes.Clone(good)))
		if !errors.Is(err, errBEK) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
	}
}

// TestForeignBEK reads what other writers may put into the file.
func TestForeignBEK(t *testing.T) {
	want := testBEK(t)
	for name, change := range map[string]func(b []byte){
		"entry version":          func(b []byte) { b[54] = 3 },
		"unknown entry":          func(b []byte) { le.PutUint16(b[82:], 0x77); le.PutUint16(b[84:], 0x78) },
		"nonzero reserved field": func(b []byte) { b[36] = 1 },
	} {
		b := want.Encode()
		change(b)
		if got, err := ParseBEK(b); err != nil || got.ID != want.ID || !got.Key.Equal(want.Key) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestGUID(t *testing.T) {
	g := MustGUID("4967D63B-2E29-4AD8-8399-F6A339E3D001")
	if !bytes.Equal(g[:], unhex(t, "3BD66749292ED84A8399F6A339E3D001")) {
		t.Errorf("bytes are %x", g[:])
	}
	if same, err := ParseGUID(strings.ToLower(g.String())); err != nil || same != g {
		t.Errorf("%v does not parse again: %v", g, err)
	}
	for _, s := range []string{"", "4967D63B", "4967D63B2E294AD88399F6A339E3D001", "4967D63B-2E29-4AD8-8399-F6A339E3D00", "4967D63-B2E29-4AD8-8399-F6A339E3D001", "G967D63B-2E29-4AD8-8399-F6A339E3D001"} {
		if _, err := ParseGUID(s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
	g, err := NewGUID(testRand(1))
	if err != nil || g.String()[14] != '4' || !strings.Contains("89AB", g.String()[19:20]) {
		t.Errorf("%v is not of version 4: %v", g, err)
	}
}

func TestFiletime(t *testing.T) {
	for want, f := range map[time.Time]filetime{
		time.Date(1601, 1, 1, 0, 0, 0, 0, time.UTC):             0,
		time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC):             116444736000000000,
		time.Date(2019, 7, 5, 5, 52, 15, 156235200, time.UTC):   newFiletime(time.Date(2019, 7, 5, 5, 52, 15, 156235200, time.UTC)),
		time.Date(60056, 5, 28, 5, 36, 10, 955161500, time.UTC): 1<<64 - 1,
	} {
		if got := f.time(); !got.Equal(want) {
			t.Errorf("%d is %v, want %v", f, got, want)
		}
		if got := newFiletime(want); got != f {
			t.Errorf("%v is %d, want %d", want, got, f)
		}
	}
}
