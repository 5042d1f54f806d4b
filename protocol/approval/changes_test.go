package approval_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/protocol"
	. "github.com/databox-lockbox/lockbox/protocol/approval"
)

// changes is an answer with one change of each kind.
func (m *machines) changes() Changes {
	file := func(path string) FilePath { return NewFilePath("disk1", "contosodata_BlockBlob", path) }
	from, state := file("Wrong_Folder/b.txt"), &FileState{Size: 9, Modified: created, CRC64: "ae8b14860a799888"}
	return Changes{
		Node: "DBX0001/1", NodeKey: machinePublic("node 1"), RequestDigest: m.subject, Stage: AtReopened,
		Begun: created, Ended: created + 60, MadeAt: created + 120, Part: 1, Parts: 1,
		Before: Walk{Files: 4, Bytes: 36, Summed: 3}, After: Walk{Files: 4, Bytes: 40, Unreached: 1, Why: []string{"disk1: one folder cannot be read"}},
		Added: 1, Removed: 1, Changed: 1, Moved: 1,
		List: []Change{
			{Kind: Added, File: file("docs/new\n\x1b[2J\xff"), After: state},
			{Kind: Removed, File: file(`docs/"quoted" \ back`), Before: &FileState{}},
			{Kind: Changed, File: file("docs/a.txt"), Before: &FileState{Size: 8}, After: state, Unsure: "the CRC64 before is not known"},
			{Kind: Moved, File: file("docs/b.txt"), From: &from, Before: state, After: state},
		},
	}
}

func TestVerifyChanges(t *testing.T) {
	m := newMachines(t)
	envelope := m.sign(t, m.changes(), "node 1", nil)
	got := must[Changes](t)(VerifyChanges(envelope, m.nodes[0], m.subject))
	want := m.changes()
	want.V = Version
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for name, refused := range map[string]struct {
		envelope []byte
		node     NodeRef
		subject  Digest
		code     protocol.Code
	}{
		"another node":    {envelope, m.nodes[1], m.subject, protocol.CodeNode},
		"another request": {envelope, m.nodes[0], DigestOf(nil), protocol.CodeInvalid},
		"another key":     {m.sign(t, m.changes(), "node 2", nil), m.nodes[0], m.subject, protocol.CodeSignatureInvalid},
		"another kind":    {m.sign(t, m.challenge, "node 1", nil), m.nodes[0], m.subject, protocol.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := VerifyChanges(refused.envelope, refused.node, refused.subject)
			wantCode(t, err, refused.code)
		})
	}
}

// TestChangesNonsense encodes answers that no reader may take.
func TestChangesNonsense(t *testing.T) {
	for name, spoil := range map[string]func(*Changes){
		"a part too many":     func(c *Changes) { c.Part = 2 },
		"too many parts":      func(c *Changes) { c.Parts = MaxChangesParts + 1 },
		"counts less":         func(c *Changes) { c.Added = 0 },
		"counts more":         func(c *Changes) { c.Moved = 2 },
		"a negative count":    func(c *Changes) { c.Added, c.Removed = -1, 3 },
		"unlisted too many":   func(c *Changes) { c.Unlisted = 1 },
		"added with a past":   func(c *Changes) { c.List[0].Before = &FileState{} },
		"removed with future": func(c *Changes) { c.List[1].After = &FileState{} },
		"changed from":        func(c *Changes) { c.List[2].From = &c.List[2].File },
		"moved from nowhere":  func(c *Changes) { c.List[3].From = nil },
		"no path":             func(c *Changes) { c.List[0].File.Raw = nil },
		"two paths":           func(c *Changes) { c.List[1].File.Raw = []byte("x\n") },
		"plain text raw":      func(c *Changes) { c.List[0].File.Raw = []byte("x") },
		"a path of any size":  func(c *Changes) { c.List[0].File.Raw = []byte("\n" + strings.Repeat("x", 32<<10)) },
		"NUL":                 func(c *Changes) { c.List[0].File.Raw = []byte("a\x00b") },
		"no share":            func(c *Changes) { c.List[0].File.Share = "share" },
		"no disk":             func(c *Changes) { c.List[0].File.Disk = "../x" },
		"no CRC64":            func(c *Changes) { c.List[0].After.CRC64 = "12" },
		"a size below zero":   func(c *Changes) { c.List[1].Before.Size = -1 },
		"too many whys":       func(c *Changes) { c.Before.Why = make([]string, 17) },
		"another stage":       func(c *Changes) { c.Stage = "later" },
	} {
		t.Run(name, func(t *testing.T) {
			c := newMachines(t).changes()
			spoil(&c)
			_, err := c.Encode()
			wantCode(t, err, protocol.CodeInvalid)
		})
	}
}
