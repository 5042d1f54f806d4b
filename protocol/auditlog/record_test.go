package auditlog

import (
	"bytes"
	"crypto/sha256"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/protocol"
)

func sha(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}

func TestRecordRoundTrip(t *testing.T) {
	r := NewRecord(time.Date(2026, 11, 21, 19, 30, 0, 123456789, time.FixedZone("", 3600)), OpUnlockIntent, Start)
	r.Properties = map[string]string{"b": "2", "a": "1"}
	data := encode(t, r)
	got, err := ParseRecord(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, got); diff != "" {
		t.Error(diff)
	}
	want := `{"v":1,"time":"2026-11-21T18:30:00.123Z","operationName":"Unlock Databox Intent","category":"Security",` +
		`"level":"Informational","resourceId":"","resultType":"Start","caller":"","correlationId":"","origin":"control-plane",` +
		`"properties":{"a":"1","b":"2"}}`
	if string(data) != want {
		t.Errorf("got  %s\nwant %s", data, want)
	}
}

func TestEncodeRefusals(t *testing.T) {
	many := make(map[string]string)
	for i := range maxProperties + 1 {
		many["p"+strings.Repeat("x", i%60)+string(rune('a'+i/60))] = ""
	}
	for name, spoil := range map[string]func(*Record){
		"unknown operation": func(r *Record) { r.Operation = "Do Something" },
		"wrong category":    func(r *Record) { r.Category = Administrative },
		"unknown level":     func(r *Record) { r.Level = "Loud" },
		"unknown result":    func(r *Record) { r.Result = "Maybe" },
		"no time":           func(r *Record) { r.Time = time.Time{} },
		"year 10000":        func(r *Record) { r.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"no origin":         func(r *Record) { r.Origin = "" },
		"odd origin":        func(r *Record) { r.Origin = "DBX0001/3" },
		"line in caller":    func(r *Record) { r.Caller = "a\nb" },
		"long resource":     func(r *Record) { r.ResourceID = strings.Repeat("x", maxText+1) },
		"not UTF-8":         func(r *Record) { r.CorrelationID = "\xff" },
		"value not UTF-8":   func(r *Record) { r.Properties = map[string]string{"a": "\xff"} },
		"odd property":      func(r *Record) { r.Properties = map[string]string{"a b": ""} },
		"many properties":   func(r *Record) { r.Properties = many },
		"too long":          func(r *Record) { r.Properties = map[string]string{"a": strings.Repeat("x", MaxOwnRecord)} },
		"own with device":   func(r *Record) { r.Device = &DeviceRef{} },
	} {
		r := NewRecord(time.UnixMilli(1_790_000_000_000), OpUnlockIntent, Success)
		if _, err := r.Encode(); err != nil {
			t.Fatalf("control: %v", err)
		}
		spoil(&r)
		if _, err := r.Encode(); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRecordVectors reads testdata/records.txt: lines "ok <leaf hash> <record>"
// and "bad <why> <record>".
func TestRecordVectors(t *testing.T) {
	data, err := os.ReadFile("testdata/records.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		kind, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		what, record, _ := strings.Cut(rest, " ")
		_, err := ParseRecord([]byte(record))
		switch {
		case kind == "ok" && (err != nil || LeafHash([]byte(record)).String() != what):
			t.Errorf("%s: %v, leaf hash %s", line, err, LeafHash([]byte(record)))
		case kind == "bad" && protocol.CodeOf(err) != protocol.CodeInvalid:
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestReplay(t *testing.T) {
	node := protocol.NodeID{Serial: "DBX0001", Node: 1}
	r := NewRecord(time.UnixMilli(1_790_000_000_000), OpLockVolume, Success)
	r.Origin = node.String()
	r.Properties = map[string]string{"a": "", "b": ""}
	r.Properties["a"] = strings.Repeat("x", MaxOwnRecord-len(encode(t, r))) // as long as can be
	own := encode(t, r)
	replayed, err := Replay(node, 1<<39, own)
	if err != nil {
		t.Fatal(err)
	}
	data := encode(t, replayed)
	if got, err := ParseRecord(data); err != nil || got.Device.LeafHash != LeafHash(own) {
		t.Errorf("replayed record: %v, %v", got, err)
	}
	replayed.Caller = "somebody else"
	if _, err := replayed.Encode(); protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Errorf("a replayed record was changed: %v", err)
	}
	if _, err := Replay(protocol.NodeID{Serial: "DBX0002", Node: 1}, 0, own); protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Errorf("a record of another node: %v", err)
	}
	if _, err := Replay(node, 0, data); protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Errorf("a record replayed twice: %v", err)
	}
}

func TestVocabulary(t *testing.T) {
	ops := Operations()
	for _, op := range []Operation{"Create Lockbox Request", "Approve Lockbox Request", "Deny Lockbox Request", "Lockbox Request Expiry"} {
		if !slices.Contains(ops, op) || !ValidOperation(op) {
			t.Errorf("%q is missing", op)
		}
	}
	source, err := os.ReadFile("operations.go")
	if err != nil {
		t.Fatal(err)
	}
	if declared := bytes.Count(source, []byte(" Operation = \"")); declared != len(ops) {
		t.Errorf("%d operations are declared, %d are in the table", declared, len(ops))
	}
	if ValidOperation("") || ValidOperation("create lockbox request") {
		t.Error("the vocabulary is not closed")
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add(testRecord(f, 0))
	f.Add([]byte(`{"v":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRecord(data)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("%q encodes as %q, %v", data, again, err)
		}
	})
}
