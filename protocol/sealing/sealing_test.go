package sealing_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/sealing"
)

var diskKey = bytes.Repeat([]byte{0xa5, 0x17}, 16)

func context() sealing.Context {
	return sealing.Context{
		RequestDigest:   "sha256:" + strings.Repeat("11", 32),
		DecisionsDigest: "sha256:" + strings.Repeat("22", 32),
		Nonce:           bytes.Repeat([]byte{0x33}, sealing.NonceSize),
		Node:            protocol.NodeID{Serial: "DBX0001", Node: 1},
		Disk:            "disk1",
		Purpose:         protocol.SupportAccess,
		KeyType:         sealing.ExternalKey,
	}
}

func generate(t testing.TB) *sealing.PrivateKey {
	t.Helper()
	k, err := sealing.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func seal(t testing.TB, public []byte, ctx sealing.Context) []byte {
	t.Helper()
	sealed, err := sealing.Seal(public, ctx, diskKey)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestRoundTrip(t *testing.T) {
	k := generate(t)
	if len(k.Public()) != sealing.PublicSize {
		t.Errorf("public key has %d bytes, want %d", len(k.Public()), sealing.PublicSize)
	}
	sealed := seal(t, k.Public(), context())
	if len(sealed) != sealing.SealedSize {
		t.Errorf("sealed key has %d bytes, want %d", len(sealed), sealing.SealedSize)
	}
	if bytes.Contains(sealed, diskKey) {
		t.Error("the sealed key shows the key")
	}
	got, err := k.Open(context(), sealed)
	if err != nil || !bytes.Equal(got, diskKey) {
		t.Errorf("opened %x, %v", got, err)
	}
	if bytes.Equal(sealed, seal(t, k.Public(), context())) {
		t.Error("sealing twice gives the same bytes")
	}
}

// otherContexts are contexts that differ from context in one thing each.
var otherContexts = map[string]func(*sealing.Context){
	"request digest":   func(c *sealing.Context) { c.RequestDigest = "sha256:" + strings.Repeat("12", 32) },
	"decisions digest": func(c *sealing.Context) { c.DecisionsDigest = "sha256:" + strings.Repeat("23", 32) },
	"nonce":            func(c *sealing.Context) { c.Nonce[31] ^= 1 },
	"serial":           func(c *sealing.Context) { c.Node.Serial = "DBX0002" },
	"node":             func(c *sealing.Context) { c.Node.Node = 2 },
	"disk":             func(c *sealing.Context) { c.Disk = "disk2" },
	"purpose":          func(c *sealing.Context) { c.Purpose = protocol.DataCopy },
	"key type":         func(c *sealing.Context) { c.KeyType = "recovery-password" },
	"digests swapped":  func(c *sealing.Context) { c.RequestDigest, c.DecisionsDigest = c.DecisionsDigest, c.RequestDigest },
	"border of two fields moved": func(c *sealing.Context) {
		c.RequestDigest, c.DecisionsDigest = c.RequestDigest+c.DecisionsDigest[:1], c.DecisionsDigest[1:]
	},
}

func TestContextIsBound(t *testing.T) {
	k := generate(t)
	sealed := seal(t, k.Public(), context())
	for name, change := range otherContexts {
		t.Run(name, func(t *testing.T) {
			other := context()
			change(&other)
			if got, err := k.Open(other, sealed); err != sealing.ErrOpen || got != nil {
				t.Errorf("opened %x, %v", got, err)
			}
			if got, err := k.Open(other, seal(t, k.Public(), other)); err != nil || !bytes.Equal(got, diskKey) {
				t.Errorf("control: opened %x, %v", got, err)
			}
		})
	}
	if _, err := k.Open(context(), sealed); err != nil {
		t.Errorf("control: %v", err)
	}
}

// What lets into an account is sealed for that account, at that endpoint, for the
// copy job, and for nothing else.
func TestAccess(t *testing.T) {
	k := generate(t)
	ctx := context()
	ctx.KeyType, ctx.Purpose = sealing.AccessToStorage, protocol.DataCopy
	ctx.Disk, ctx.Account, ctx.Endpoint = "", "contosodata", "https://contosodata.blob.core.windows.net"
	for _, size := range []int{1, 300, sealing.MaxAccess} {
		access := bytes.Repeat([]byte("s"), size)
		sealed, err := sealing.Seal(k.Public(), ctx, access)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := k.Open(ctx, sealed); err != nil || !bytes.Equal(got, access) {
			t.Errorf("%d bytes: opened %d, %v", size, len(got), err)
		}
		for name, change := range map[string]func(*sealing.Context){
			"account":      func(c *sealing.Context) { c.Account = "contosodata2" },
			"endpoint":     func(c *sealing.Context) { c.Endpoint += "/" },
			"border moved": func(c *sealing.Context) { c.Account, c.Endpoint = "contosodat", "a "+c.Endpoint },
			"node":         func(c *sealing.Context) { c.Node.Node = 2 },
			"nonce":        func(c *sealing.Context) { c.Nonce[0] ^= 1 },
			"key type": func(c *sealing.Context) {
				c.KeyType, c.Disk, c.Account, c.Endpoint = sealing.ExternalKey, "contosodata https://contosodata.blob.core.windows.net", "", ""
			},
		} {
			other := ctx
			other.Nonce = bytes.Clone(ctx.Nonce)
			change(&other)
			if _, err := k.Open(other, sealed); err != sealing.ErrOpen {
				t.Errorf("other %s: %v", name, err)
			}
		}
	}
	for name, change := range map[string]func(*sealing.Context){
		"no account": func(c *sealing.Context) { c.Account = "" }, "no endpoint": func(c *sealing.Context) { c.Endpoint = "" },
		"a disk too": func(c *sealing.Context) { c.Disk = "disk1" }, "for support": func(c *sealing.Context) { c.Purpose = protocol.SupportAccess },
	} {
		other := ctx
		change(&other)
		if _, err := sealing.Seal(k.Public(), other, []byte("x")); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
	for _, size := range []int{0, sealing.MaxAccess + 1} {
		if _, err := sealing.Seal(k.Public(), ctx, make([]byte, size)); err == nil {
			t.Errorf("%d bytes: sealed", size)
		}
	}
}

// incomplete takes one field from a context.
var incomplete = map[string]func(*sealing.Context){
	"request digest":   func(c *sealing.Context) { c.RequestDigest = "" },
	"decisions digest": func(c *sealing.Context) { c.DecisionsDigest = "" },
	"nonce":            func(c *sealing.Context) { c.Nonce = nil },
	"short nonce":      func(c *sealing.Context) { c.Nonce = c.Nonce[:31] },
	"node":             func(c *sealing.Context) { c.Node = protocol.NodeID{} },
	"disk":             func(c *sealing.Context) { c.Disk = "" },
	"purpose":          func(c *sealing.Context) { c.Purpose = "" },
	"key type":         func(c *sealing.Context) { c.KeyType = "" },
}

func TestIncompleteContext(t *testing.T) {
	k := generate(t)
	for name, change := range incomplete {
		t.Run(name, func(t *testing.T) {
			ctx := context()
			change(&ctx)
			if _, err := sealing.Seal(k.Public(), ctx, diskKey); err == nil {
				t.Error("sealed without it")
			}
			if _, err := k.Open(ctx, seal(t, k.Public(), context())); err != sealing.ErrOpen {
				t.Errorf("Open: %v", err)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	k, other := generate(t), generate(t)
	sealed := seal(t, k.Public(), context())
	tests := map[string][]byte{
		"empty":               nil,
		"cut":                 sealed[:len(sealed)-1],
		"extended":            append(slices.Clone(sealed), 0),
		"for another key":     seal(t, other.Public(), context()),
		"two halves of two":   append(slices.Clone(sealed[:1120]), seal(t, k.Public(), context())[1120:]...),
		"zeroes":              make([]byte, len(sealed)),
		"low-order X25519":    append(append(slices.Clone(sealed[:1088]), make([]byte, 32)...), sealed[1120:]...),
		"plain key in place":  append(slices.Clone(sealed[:1120]), append(slices.Clone(diskKey), make([]byte, 16)...)...),
		"encapsulation alone": sealed[:1120],
	}
	for name, data := range tests {
		t.Run(name, func(t *testing.T) {
			if got, err := k.Open(context(), data); err != sealing.ErrOpen || got != nil {
				t.Errorf("opened %x, %v", got, err)
			}
		})
	}
	for i := range sealed {
		changed := slices.Clone(sealed)
		changed[i] ^= 1
		if _, err := k.Open(context(), changed); err != sealing.ErrOpen {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	if _, err := k.Open(context(), sealed); err != nil {
		t.Errorf("control: %v", err)
	}
}

func TestErrOpenHasItsCode(t *testing.T) {
	if got := protocol.CodeOf(sealing.ErrOpen); got != protocol.CodeDiskKey {
		t.Errorf("code is %q, want %q", got, protocol.CodeDiskKey)
	}
	if !errors.Is(fmt.Errorf("disk1: %w", sealing.ErrOpen), sealing.ErrOpen) {
		t.Error("it is not found when wrapped")
	}
}

func TestSealRefuses(t *testing.T) {
	k := generate(t)
	for name, key := range map[string][]byte{"no": nil, "short": diskKey[:31], "long": append(slices.Clone(diskKey), 0)} {
		if _, err := sealing.Seal(k.Public(), context(), key); err == nil {
			t.Errorf("sealed %s key", name)
		}
	}
	for name, public := range map[string][]byte{
		"no": nil, "short": k.Public()[:sealing.PublicSize-1], "long": append(k.Public(), 0),
		"out of range": bytes.Repeat([]byte{0xff}, sealing.PublicSize),
	} {
		if _, err := sealing.Seal(public, context(), diskKey); err == nil {
			t.Errorf("sealed to %s public key", name)
		}
	}
}

func TestWipe(t *testing.T) {
	k := generate(t)
	public := k.Public()
	sealed := seal(t, public, context())
	k.Wipe()
	if got, err := k.Open(context(), sealed); err != sealing.ErrOpen || got != nil {
		t.Errorf("a wiped key opened %x, %v", got, err)
	}
	if !bytes.Equal(k.Seed(), make([]byte, 32)) {
		t.Error("the seed is still there")
	}
	if got, err := sealing.FromSeed(make([]byte, 32)).Open(context(), sealed); err == nil {
		t.Errorf("the key of zeroes opened %x", got)
	}
}

// TestNothingIsPrinted formats a key with every verb.
func TestNothingIsPrinted(t *testing.T) {
	k := generate(t)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		for _, v := range []any{k, struct{ Key *sealing.PrivateKey }{k}} {
			text := fmt.Sprintf(verb, v)
			if strings.Contains(text, hex.EncodeToString(k.Seed())[:16]) || strings.Contains(text, fmt.Sprint(k.Seed()[:4])[1:8]) {
				t.Errorf("%s prints %s", verb, text)
			}
		}
	}
}

func TestPublicIsACopy(t *testing.T) {
	k := generate(t)
	public := k.Public()
	clear(public)
	if bytes.Equal(k.Public(), public) {
		t.Error("the caller can change the key")
	}
}

// FuzzOpen checks that nothing opens but the sealed key of the vector.
func FuzzOpen(f *testing.F) {
	v := readVector(f, "testdata/accepted.txt")
	k, good := sealing.FromSeed(unhex(f, v["seed-hex"])), unhex(f, v["sealed-hex"])
	f.Add(good)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, sealed []byte) {
		got, err := k.Open(context(), sealed)
		if bytes.Equal(sealed, good) {
			if err != nil {
				t.Error(err)
			}
			return
		}
		if err != sealing.ErrOpen || got != nil {
			t.Errorf("opened %x of %x, %v", got, sealed, err)
		}
	})
}

// FuzzContext checks that two contexts have the same associated data only when
// they are the same.
func FuzzContext(f *testing.F) {
	f.Add("r", "d", []byte("n"), "DBX0001", 1, "disk1", "p", "t", "rd", "", []byte("n"), "DBX0001", 1, "disk1", "p", "t")
	f.Fuzz(func(t *testing.T, r1, d1 string, n1 []byte, s1 string, i1 int, k1, p1, t1, r2, d2 string, n2 []byte, s2 string, i2 int, k2, p2, t2 string) {
		build := func(r, d string, n []byte, s string, i int, k, p, typ string) sealing.Context {
			return sealing.Context{
				RequestDigest: r, DecisionsDigest: d, Nonce: n, Node: protocol.NodeID{Serial: protocol.DeviceSerial(s), Node: i},
				Disk: protocol.DiskID(k), Purpose: protocol.Purpose(p), KeyType: sealing.KeyType(typ),
			}
		}
		a, b := build(r1, d1, n1, s1, i1, k1, p1, t1), build(r2, d2, n2, s2, i2, k2, p2, t2)
		same := r1 == r2 && d1 == d2 && bytes.Equal(n1, n2) && a.Node.String() == b.Node.String() && k1 == k2 && p1 == p2 && t1 == t2
		if equal := bytes.Equal(a.AssociatedData(), b.AssociatedData()); equal != same {
			t.Errorf("%+v and %+v: same associated data is %t", a, b, equal)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	k := generate(b)
	sealed := seal(b, k.Public(), context())
	for b.Loop() {
		if _, err := k.Open(context(), sealed); err != nil {
			b.Fatal(err)
		}
	}
}
