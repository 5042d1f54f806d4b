package auditlog

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/databox-lockbox/lockbox/protocol"
)

// testKey is the key of the logs in these tests and in testdata.
var testKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))

const testOrigin = "databox-lockbox/test"

func testSigner(t testing.TB) (note.Signer, note.Verifier) {
	t.Helper()
	s, err := NewSigner(testOrigin, testKey)
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(testOrigin, testKey.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return s, v
}

// testRecord returns the nth record of a story, encoded.
func testRecord(t testing.TB, n int) []byte {
	t.Helper()
	ops := []Operation{OpCreateRequest, OpApproveRequest, OpUnlockIntent, OpUnlockVolume, OpLockVolume, OpDenyRequest}
	r := NewRecord(time.UnixMilli(1_790_000_000_000+int64(n)*1234), ops[n%len(ops)], Success)
	r.ResourceID = "/orders/ORD-1001/devices/DBX0001/nodes/1"
	r.Caller = "erin@provider.example"
	r.CorrelationID = "LockboxRequest_5b0e0d6c-8f3f-4a7e-9f43-0d6f4e1c2a11"
	r.Properties = map[string]string{"disk": fmt.Sprintf("disk%d", n), "reason": "a < b & \"c\" \u2028 ü\n"}
	return encode(t, r)
}

func encode(t testing.TB, r Record) []byte {
	t.Helper()
	data, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// testLog returns a log of n records, and its tree.
func testLog(t testing.TB, n int) ([][]byte, *Tree) {
	t.Helper()
	var tree Tree
	var records [][]byte
	for i := range n {
		records = append(records, testRecord(t, i))
		appendRecord(t, &tree, records[i])
	}
	return records, &tree
}

func appendRecord(t testing.TB, tree *Tree, record []byte) {
	t.Helper()
	if _, err := tree.Append(record); err != nil {
		t.Fatal(err)
	}
}

// head returns the signed checkpoint of the first n records, and what it says.
func head(t testing.TB, records [][]byte, n int) ([]byte, Checkpoint) {
	t.Helper()
	s, v := testSigner(t)
	var tree Tree
	for _, r := range records[:n] {
		appendRecord(t, &tree, r)
	}
	signed, err := tree.Checkpoint(s)
	if err != nil {
		t.Fatal(err)
	}
	c, err := OpenCheckpoint(signed, v)
	if err != nil {
		t.Fatal(err)
	}
	return signed, c
}

// rootOf is the tree hash written down as RFC 6962 section 2.1 defines it.
func rootOf(records [][]byte) tlog.Hash {
	switch n := len(records); n {
	case 0:
		return tlog.Hash(sha("")[:])
	case 1:
		return tlog.Hash(sha("\x00" + string(records[0]))[:])
	default:
		k := 1
		for k*2 < n {
			k *= 2
		}
		l, r := rootOf(records[:k]), rootOf(records[k:])
		return tlog.Hash(sha("\x01" + string(l[:]) + string(r[:]))[:])
	}
}

// TestKnownRoot checks the tree against the reference tree of Certificate
// Transparency.
func TestKnownRoot(t *testing.T) {
	var tree Tree
	var records [][]byte
	for _, leaf := range []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"} {
		data, err := hex.DecodeString(leaf)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, data)
		appendRecord(t, &tree, data)
	}
	const want = "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
	got, err := TreeHash(tree.Size(), &tree)
	if err != nil || hex.EncodeToString(got[:]) != want {
		t.Errorf("root = %x, %v, want %s", got, err, want)
	}
	if own := rootOf(records); own != got {
		t.Errorf("the root by definition is %x", own)
	}
}

func TestTreeAndFrontierAgreeWithTheDefinition(t *testing.T) {
	var tree Tree
	var f frontier
	var records [][]byte
	for n := range 70 {
		got, err := TreeHash(int64(n), &tree)
		if want := rootOf(records); err != nil || got != want || f.root() != want {
			t.Fatalf("%d records: tree %x, frontier %x, want %x (%v)", n, got, f.root(), want, err)
		}
		record := fmt.Appendf(nil, "record %d", n)
		records = append(records, record)
		appendRecord(t, &tree, record)
		f.push(LeafHash(record))
	}
}

func TestProofs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tree Tree
		var records [][]byte
		size := rapid.IntRange(1, 100).Draw(t, "size")
		for i := range size {
			records = append(records, fmt.Appendf(nil, "record %d", i))
			if _, err := tree.Append(records[i]); err != nil {
				t.Fatal(err)
			}
		}
		old := rapid.IntRange(0, size).Draw(t, "old")
		newer := Checkpoint{testOrigin, int64(size), rootOf(records)}
		older := Checkpoint{testOrigin, int64(old), rootOf(records[:old])}

		index := rapid.IntRange(0, size-1).Draw(t, "index")
		inclusion, err := ProveInclusion(int64(size), int64(index), &tree)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := CheckInclusion(inclusion, newer, LeafHash(records[index])); err != nil || got != int64(index) {
			t.Fatalf("inclusion of %d: %d, %v", index, got, err)
		}
		if _, err := CheckInclusion(inclusion, newer, LeafHash([]byte("another"))); protocol.CodeOf(err) != protocol.CodeCheckpoint {
			t.Fatalf("another record: %v", err)
		}

		consistency, err := ProveConsistency(int64(old), int64(size), &tree)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckConsistency(consistency, older, newer); err != nil {
			t.Fatalf("consistency of %d: %v", old, err)
		}
		if old > 0 {
			forked := newer
			forked.Hash = rootOf(append([][]byte{[]byte("forged")}, records[1:]...))
			if err := CheckConsistency(consistency, older, forked); protocol.CodeOf(err) != protocol.CodeCheckpoint {
				t.Fatalf("a fork: %v", err)
			}
		}
		checkFlips(t, inclusion, func(p []byte) error { _, err := CheckInclusion(p, newer, LeafHash(records[index])); return err })
		checkFlips(t, consistency, func(p []byte) error { return CheckConsistency(p, older, newer) })
	})
}

// checkFlips flips one drawn bit of a proof, which must then fail.
func checkFlips(t *rapid.T, proof []byte, check func([]byte) error) {
	bit := rapid.IntRange(0, len(proof)*8-1).Draw(t, "bit")
	bad := bytes.Clone(proof)
	bad[bit/8] ^= 1 << (bit % 8)
	if check(bad) == nil {
		t.Fatalf("bit %d can be flipped in\n%s", bit, proof)
	}
}

func TestConsistencyRefusals(t *testing.T) {
	records, tree := testLog(t, 9)
	_, four := head(t, records, 4)
	_, nine := head(t, records, 9)
	proof, err := ProveConsistency(4, 9, tree)
	if err != nil {
		t.Fatal(err)
	}
	other := nine
	other.Origin = "databox-lockbox/other"
	for name, err := range map[string]error{
		"shrunk":       CheckConsistency(proof, nine, four),
		"other log":    CheckConsistency(proof, four, other),
		"empty proof":  CheckConsistency(nil, four, nine),
		"wrong size":   CheckConsistency([]byte("old 5\n"), four, nine),
		"absurd size":  CheckConsistency(proof, four, Checkpoint{testOrigin, math.MaxInt64, nine.Hash}),
		"forged empty": CheckConsistency([]byte("old 0\n"), Checkpoint{testOrigin, 0, nine.Hash}, nine),
	} {
		if protocol.CodeOf(err) != protocol.CodeCheckpoint {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := CheckConsistency(proof, four, nine); err != nil {
		t.Errorf("control: %v", err)
	}
}

func TestCheckpoint(t *testing.T) {
	s, v := testSigner(t)
	records, _ := testLog(t, 3)
	signed, c := head(t, records, 3)
	if want := (Checkpoint{testOrigin, 3, rootOf(records)}); c != want {
		t.Errorf("checkpoint = %v, want %v", c, want)
	}
	for bit := range len(signed) * 8 {
		bad := bytes.Clone(signed)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := OpenCheckpoint(bad, v); protocol.CodeOf(err) != protocol.CodeCheckpoint {
			t.Fatalf("bit %d of byte %d flipped: %v", bit%8, bit/8, err)
		}
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	loose := bytes.Clone(signed)
	last := bytes.LastIndex(loose, []byte("=\n")) - 1 // its lowest two bits encode nothing
	loose[last] = alphabet[strings.IndexByte(alphabet, loose[last])^1]
	if _, err := note.Open(loose, note.VerifierList(v)); err != nil {
		t.Fatalf("control: %v", err)
	}
	if _, err := OpenCheckpoint(loose, v); protocol.CodeOf(err) != protocol.CodeCheckpoint {
		t.Errorf("unused bits of the signature changed: %v", err)
	}
	if _, err := (Checkpoint{"databox-lockbox/other", 3, c.Hash}).Sign(s); err == nil {
		t.Error("the key signs for another log")
	}
	if _, err := (Checkpoint{testOrigin, -1, c.Hash}).Sign(s); err == nil {
		t.Error("a negative size is signed")
	}
	witness, err := NewSigner("witness.example", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		t.Fatal(err)
	}
	both, err := note.Sign(n, witness)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenCheckpoint(both, v); err != nil || got != c {
		t.Errorf("with a witness: %v, %v", got, err)
	}
}

func TestNames(t *testing.T) {
	pub := testKey.Public().(ed25519.PublicKey)
	for _, name := range []string{"", "a b", "a+b", "a\nb"} {
		if _, err := VerifierKey(name, pub); err == nil {
			t.Errorf("%q names a log", name)
		}
	}
	node := protocol.NodeID{Serial: "DBX0001", Node: 1}
	if _, err := VerifierKey(node.URI().String(), pub); err != nil {
		t.Error(err)
	}
}

func FuzzOpenCheckpoint(f *testing.F) {
	_, v := testSigner(f)
	records, _ := testLog(f, 3)
	signed, _ := head(f, records, 3)
	f.Add(signed)
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := OpenCheckpoint(data, v); err == nil && c.text() != string(data[:len(c.text())]) {
			t.Errorf("%q parsed as %v", data, c)
		}
	})
}

func FuzzProofs(f *testing.F) {
	records, tree := testLog(f, 9)
	_, four := head(f, records, 4)
	_, nine := head(f, records, 9)
	inclusion, _ := ProveInclusion(9, 3, tree)
	consistency, _ := ProveConsistency(4, 9, tree)
	f.Add(inclusion)
	f.Add(consistency)
	f.Fuzz(func(t *testing.T, data []byte) {
		for i, r := range records {
			if n, err := CheckInclusion(data, nine, LeafHash(r)); err == nil && n != int64(i) {
				t.Errorf("%q proves that record %d is %d", data, i, n)
			}
		}
		if err := CheckConsistency(data, four, nine); err == nil && !bytes.Equal(data, consistency) {
			t.Errorf("%q is another proof", data)
		}
	})
}
