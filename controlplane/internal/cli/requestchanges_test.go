package cli

import (
	"crypto/ed25519"
	"slices"
	"testing"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// told makes a part of what a node says.
func told(t *testing.T, key ed25519.PrivateKey, request approval.Digest, stage approval.ChangesStage, part, parts int) *lockboxv1.ChangesPart {
	t.Helper()
	envelope, err := approval.SignEd25519(approval.Changes{
		Node: "DBX0001/1", NodeKey: key.Public().(ed25519.PublicKey), RequestDigest: request, Stage: stage,
		Begun: 1000, Ended: 2000, MadeAt: 2000, Part: part, Parts: parts, Added: int64(parts),
		List: []approval.Change{{Kind: approval.Added, File: approval.NewFilePath("disk1", "contosodata_BlockBlob", "new\n"), After: &approval.FileState{Size: 5}}},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return &lockboxv1.ChangesPart{Node: 1, Envelope: envelope}
}

// TestReadChanges puts parts together and refuses what the node did not say.
func TestReadChanges(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, foreign, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	statement, err := approval.Statement{
		RequestID: "LockboxRequest_1", Action: approval.UnlockDatabox, TenantID: "contoso", SubscriptionID: "sub", OrderID: "ORD-1001",
		Nodes: []approval.NodeRef{{Serial: "DBX0001", Node: 1, KeyFingerprint: approval.KeyFingerprint(key.Public().(ed25519.PublicKey))}},
		Disks: []approval.DiskRef{{Node: "DBX0001/1", Disk: "disk1"}}, Purpose: protocol.SupportAccess, Access: approval.ReadWrite,
		ReasonCode: "copied-to-wrong-folder", Ticket: "SR-1", MaxDuration: 60, PolicyDigest: approval.DigestOf(nil), Created: 1, Expires: 2,
		Engineer: approval.Engineer{Person: "erin", SSHKey: "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},
	}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	request := approval.DigestOf(statement)
	early := told(t, key, request, approval.AtRelock, 1, 1)
	one, two := told(t, key, request, approval.AtReopened, 1, 2), told(t, key, request, approval.AtReopened, 2, 2)

	got, err := readChanges(statement, []*lockboxv1.ChangesPart{early, two, one})
	if err != nil || len(got) != 1 || got[0].Stage != approval.AtReopened || len(got[0].List) != 2 || len(got[0].Missing) != 0 {
		t.Errorf("got %+v, %v", got, err)
	}
	got, err = readChanges(statement, []*lockboxv1.ChangesPart{early, two})
	if err != nil || len(got) != 2 || !slices.Equal(got[1].Missing, []int{1}) {
		t.Errorf("with a part missing: %+v, %v", got, err)
	}
	for name, parts := range map[string][]*lockboxv1.ChangesPart{
		"a part twice":        {one, one},
		"another key":         {told(t, foreign, request, approval.AtRelock, 1, 1)},
		"another request":     {told(t, key, approval.DigestOf(nil), approval.AtRelock, 1, 1)},
		"a node not named":    {{Node: 2, Envelope: early.Envelope}},
		"parts that disagree": {one, told(t, key, request, approval.AtReopened, 2, 3)},
	} {
		if got, err := readChanges(statement, parts); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
