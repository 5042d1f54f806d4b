package auditlog

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/databox-lockbox/lockbox/protocol"
)

var update = flag.Bool("update", false, "write the test vectors anew")

func testVerifierKey(t testing.TB) string {
	t.Helper()
	key, err := VerifierKey(testOrigin, testKey.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// export returns the export of records, with the checkpoint of all of them.
func export(t testing.TB, records [][]byte) []byte {
	t.Helper()
	signed, _ := head(t, records, len(records))
	return exportUnder(t, signed, records)
}

func exportUnder(t testing.TB, checkpoint []byte, records [][]byte) []byte {
	t.Helper()
	return exportPruned(t, checkpoint, records, nil)
}

// exportPruned leaves out the records whose numbers are given.
func exportPruned(t testing.TB, checkpoint []byte, records [][]byte, gone []int) []byte {
	t.Helper()
	var out bytes.Buffer
	err := Export(&out, checkpoint, func(yield func(Entry, error) bool) {
		for i, r := range records {
			e := Entry{LeafHash(r), r}
			if slices.Contains(gone, i) {
				e.Record = nil
			}
			if !yield(e, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestVerifyPruned(t *testing.T) {
	prune := NewRecord(time.Now(), OpPruneLog, Start)
	prune.Properties = map[string]string{PropertyBelow: "3"}
	records, _ := testLog(t, 5)
	records = append(records, encode(t, prune))
	more, _ := testLog(t, 2)
	records = append(records, more...)
	signed, _ := head(t, records, len(records))
	older, _ := head(t, records, 2)
	for _, gone := range [][]int{{0}, {0, 1, 2}, {0, 2}} {
		report, err := Verify(bytes.NewReader(exportPruned(t, signed, records, gone)), testVerifierKey(t), older)
		if err != nil || report.Pruned != int64(len(gone)) {
			t.Errorf("%v pruned: %d, %v", gone, report.Pruned, err)
		}
	}
	for what, gone := range map[string][]int{"not announced": {0, 3}, "behind the announcement": {6}, "the announcement itself": {0, 5}} {
		if at := found(t, what, exportPruned(t, signed, records, gone), testVerifierKey(t), nil); at != int64(gone[len(gone)-1]) && what != "the announcement itself" {
			t.Errorf("%s: record %d is named", what, at)
		}
	}
	node := protocol.NodeID{Serial: "DBX-0001", Node: 1}
	prune.Origin = node.String()
	said, err := Replay(node, 0, encode(t, prune))
	if err != nil {
		t.Fatal(err)
	}
	replayed := slices.Replace(slices.Clone(records), 5, 6, encode(t, said))
	under, _ := head(t, replayed, len(replayed))
	found(t, "announced by a device", exportPruned(t, under, replayed, []int{0}), testVerifierKey(t), nil)
	whole := exportPruned(t, signed, records, []int{0})
	for what, spoil := range map[string]func([]byte) []byte{
		"another hash": func(b []byte) []byte {
			other := LeafHash(records[1]).String()
			return bytes.Replace(b, []byte(LeafHash(records[0]).String()), []byte(other), 1)
		},
		"no hash": func(b []byte) []byte {
			return bytes.Replace(b, []byte(LeafHash(records[0]).String()+" pruned"), []byte("x pruned"), 1)
		},
	} {
		found(t, what, spoil(whole), testVerifierKey(t), nil)
	}
}

// found verifies a spoilt export and returns which record is named.
func found(t *testing.T, what string, data []byte, key string, older []byte) int64 {
	t.Helper()
	_, err := Verify(bytes.NewReader(data), key, older)
	tamper, ok := errors.AsType[*TamperError](err)
	if !ok || protocol.CodeOf(err) != protocol.CodeCheckpoint {
		t.Fatalf("%s: %v", what, err)
	}
	return tamper.Record
}

func TestVerify(t *testing.T) {
	for n := range 9 {
		records, _ := testLog(t, n)
		signed, c := head(t, records, n)
		for old := range n + 1 {
			older, _ := head(t, records, old)
			report, err := Verify(iotest.OneByteReader(bytes.NewReader(export(t, records))), testVerifierKey(t), older)
			if err != nil || report.Checkpoint != c || report.Older.Size != int64(old) {
				t.Errorf("%d records, %d before: %+v, %v", n, old, report, err)
			}
		}
		if got := exportUnder(t, signed, records); !bytes.Equal(got, export(t, records)) {
			t.Error("two exports of one log differ")
		}
	}
}

func TestVerifyReports(t *testing.T) {
	records, _ := testLog(t, 7)
	report, err := Verify(bytes.NewReader(export(t, records)), testVerifierKey(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := ParseRecord(records[0])
	last, _ := ParseRecord(records[6])
	if !report.First.Equal(first.Time) || !report.Last.Equal(last.Time) || report.Operations[OpCreateRequest] != 2 || report.Replayed != 0 {
		t.Errorf("report = %+v", report)
	}
}

// TestEveryBitFlipIsFound flips every single bit of an export.
func TestEveryBitFlipIsFound(t *testing.T) {
	records, _ := testLog(t, 3)
	data, key := export(t, records), testVerifierKey(t)
	start := bytes.Index(data, records[1])
	for bit := range len(data) * 8 {
		bad := bytes.Clone(data)
		bad[bit/8] ^= 1 << (bit % 8)
		named := found(t, fmt.Sprintf("bit %d of byte %d", bit%8, bit/8), bad, key, nil)
		if i := bit / 8; i >= start && i < start+len(records[1]) && named != 1 {
			t.Errorf("bit %d of byte %d is in record 1, and record %d is named", bit%8, i, named)
		}
	}
}

func TestEveryCutIsFound(t *testing.T) {
	records, _ := testLog(t, 4)
	data, key := export(t, records), testVerifierKey(t)
	for n := range len(data) {
		found(t, fmt.Sprintf("cut at byte %d", n), data[:n], key, nil)
	}
	found(t, "one byte more", append(bytes.Clone(data), '\n'), key, nil)
	found(t, "one record more", append(bytes.Clone(data), fmt.Sprintf("4 %s %s\n", LeafHash(records[0]), records[0])...), key, nil)
}

// TestEveryRearrangementIsFound drops, doubles and swaps records, first as
// lines of the export, then as somebody would who numbers and hashes the lines
// anew.
func TestEveryRearrangementIsFound(t *testing.T) {
	records, _ := testLog(t, 7)
	signed, _ := head(t, records, 7)
	key := testVerifierKey(t)
	lines := bytes.SplitAfter(export(t, records), []byte("\n"))
	header, lines := lines[:7], lines[7:]
	try := func(what string, names int, change func([][]byte) [][]byte) {
		t.Helper()
		spoilt := bytes.Join(slices.Concat(header, change(slices.Clone(lines))), nil)
		if named := found(t, what, spoilt, key, nil); named != int64(names) {
			t.Errorf("%s: record %d is named, want %d", what, named, names)
		}
		found(t, what+", numbered anew", exportUnder(t, signed, change(slices.Clone(records))), key, nil)
	}
	for i := range records {
		try(fmt.Sprintf("drop %d", i), i, func(list [][]byte) [][]byte { return slices.Delete(list, i, i+1) })
		try(fmt.Sprintf("double %d", i), i+1, func(list [][]byte) [][]byte { return slices.Insert(list, i, list[i]) })
		for k := range i {
			try(fmt.Sprintf("swap %d and %d", k, i), k, func(list [][]byte) [][]byte {
				list[i], list[k] = list[k], list[i]
				return list
			})
		}
	}
}

// TestForkIsFound has the owner of the log's key rewrite history. Whoever kept
// a checkpoint from before finds out; without it the rewritten log is a log.
func TestForkIsFound(t *testing.T) {
	records, _ := testLog(t, 8)
	key := testVerifierKey(t)
	for old := 1; old <= 8; old++ {
		older, before := head(t, records, old)
		for i := range old {
			forged := slices.Clone(records)
			forged[i] = testRecord(t, i+100)
			data := export(t, forged)
			found(t, fmt.Sprintf("record %d rewritten after %d were seen", i, old), data, key, older)
			if _, err := Verify(bytes.NewReader(data), key, nil); err != nil {
				t.Fatalf("control: %v", err)
			}
			var tree Tree
			for _, r := range forged {
				appendRecord(t, &tree, r)
			}
			_, after := head(t, forged, 8)
			proof, err := ProveConsistency(int64(old), 8, &tree)
			if err != nil {
				t.Fatal(err)
			}
			if err := CheckConsistency(proof, before, after); protocol.CodeOf(err) != protocol.CodeCheckpoint {
				t.Errorf("record %d of %d: the fork has a consistency proof: %v", i, old, err)
			}
		}
		if old > 1 {
			found(t, "shrunk", export(t, records[:old-1]), key, older)
		}
	}
}

func TestVerifyBadArguments(t *testing.T) {
	records, _ := testLog(t, 2)
	data := export(t, records)
	for name, err := range map[string]error{
		"no key":        second(Verify(bytes.NewReader(data), "", nil)),
		"other key":     second(Verify(bytes.NewReader(data), otherKey(t), nil)),
		"odd older":     second(Verify(bytes.NewReader(data), testVerifierKey(t), []byte("x"))),
		"broken reader": second(Verify(iotest.ErrReader(os.ErrClosed), testVerifierKey(t), nil)),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	_, err := Verify(iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(data))), testVerifierKey(t), nil)
	if _, ok := errors.AsType[*TamperError](err); ok || !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("a reader that fails counts as tampering: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func otherKey(t *testing.T) string {
	t.Helper()
	key, err := VerifierKey(testOrigin, ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestExportPassesOnErrors(t *testing.T) {
	err := Export(&bytes.Buffer{}, nil, func(yield func(Entry, error) bool) { yield(Entry{}, os.ErrClosed) })
	if !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

// TestVerifyVectors reads testdata/verify/*.txtar. The comment of each says
// what is expected: "ok", or "tampered <record>".
func TestVerifyVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	names, err := filepath.Glob("testdata/verify/*.txtar")
	if err != nil || len(names) < 8 {
		t.Fatalf("%d vectors, %v", len(names), err)
	}
	for _, name := range names {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files := make(map[string][]byte)
		for _, f := range archive.Files {
			files[f.Name] = f.Data
		}
		want, _, _ := strings.Cut(string(archive.Comment), "\n")
		_, err = Verify(bytes.NewReader(files["export"]), strings.TrimSpace(string(files["key"])), files["older"])
		got := "ok"
		if tamper, ok := errors.AsType[*TamperError](err); ok {
			got = fmt.Sprintf("tampered %d", tamper.Record)
		} else if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %s, want %s (%v)", name, got, want, err)
		}
	}
}

// writeVectors makes the vectors, which everybody's verifier should agree on.
func writeVectors(t *testing.T) {
	records, _ := testLog(t, 5)
	older, _ := head(t, records, 3)
	good := export(t, records)
	forged := slices.Clone(records)
	forged[1] = testRecord(t, 99)
	signed, _ := head(t, records, 5)
	swapped := slices.Clone(records)
	swapped[1], swapped[2] = swapped[2], swapped[1]
	flipped := bytes.Clone(good)
	flipped[bytes.Index(good, records[3])+40] ^= 1
	lines := bytes.SplitAfter(good, []byte("\n"))
	for name, v := range map[string]struct {
		want          string
		export, older []byte
	}{
		"good":             {"ok", good, nil},
		"good-older":       {"ok", good, older},
		"empty":            {"ok", export(t, nil), nil},
		"flipped":          {"tampered 3", flipped, nil},
		"dropped":          {"tampered 2", bytes.Join(slices.Delete(slices.Clone(lines), 9, 10), nil), nil},
		"cut":              {"tampered 4", bytes.Join(lines[:11], nil), nil},
		"swapped-anew":     {"tampered -1", exportUnder(t, signed, swapped), nil},
		"forged-anew":      {"tampered -1", exportUnder(t, signed, forged), nil},
		"forked":           {"tampered -1", export(t, forged), older},
		"forked-not-seen":  {"ok", export(t, forged), nil},
		"shrunk":           {"tampered 2", export(t, records[:2]), older},
		"wrong-checkpoint": {"tampered -1", bytes.Replace(good, []byte("\n5\n"), []byte("\n4\n"), 1), nil},
	} {
		archive := &txtar.Archive{Comment: []byte(v.want + "\n"), Files: []txtar.File{
			{Name: "key", Data: []byte(testVerifierKey(t) + "\n")}, {Name: "export", Data: v.export},
		}}
		if v.older != nil {
			archive.Files = append(archive.Files, txtar.File{Name: "older", Data: v.older})
		}
		if err := os.MkdirAll("testdata/verify", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join("testdata/verify", name+".txtar"), txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	records, _ := testLog(f, 3)
	data, key := export(f, records), testVerifierKey(f)
	below := data[bytes.Index(data, []byte("\n0 ")):]
	f.Add(data)
	f.Fuzz(func(t *testing.T, x []byte) {
		if _, err := Verify(bytes.NewReader(x), key, nil); err == nil && !bytes.HasSuffix(x, below) {
			t.Errorf("%q passes", x)
		}
	})
}
