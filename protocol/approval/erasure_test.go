package approval_test

import (
	"testing"

	"github.com/databox-lockbox/lockbox/protocol"
	. "github.com/databox-lockbox/lockbox/protocol/approval"
)

// erasure is a certificate for two disks.
func (m *machines) erasure() Erasure {
	return Erasure{
		Node: "DBX0001/1", NodeKey: machinePublic("node 1"), OrderID: "ORD-1001", Standard: ErasureStandard, Method: ErasurePurge,
		Technique: ErasureTechnique, Details: "three metadata areas", Tool: "databox-agent", ToolVersion: "0.1.0", Verification: ErasureVerified,
		OrderedBy: "sam@provider.example", Begun: created, Finished: created + 1,
		Media: []ErasedMedium{
			{Disk: "disk1", VolumeGUID: "{a}", Size: 1 << 30, Encryption: "AES-XTS-128"},
			{Disk: "disk2", VolumeGUID: "{b}", Size: 1 << 30, Encryption: "AES-XTS-128"},
		},
	}
}

func TestVerifyErasure(t *testing.T) {
	m := newMachines(t)
	envelope := m.sign(t, m.erasure(), "node 1", nil)
	if c, err := VerifyErasure(envelope, m.nodes[0], "ORD-1001"); err != nil || len(c.Media) != 2 {
		t.Errorf("got %v, %v", c, err)
	}
	_, err := VerifyErasure(envelope, m.nodes[0], "ORD-1002")
	wantCode(t, err, protocol.CodeInvalid)
	_, err = VerifyErasure(envelope, m.nodes[1], "ORD-1001")
	wantCode(t, err, protocol.CodeNode)
	_, err = VerifyErasure(m.sign(t, m.erasure(), "node 2", nil), m.nodes[0], "ORD-1001")
	wantCode(t, err, protocol.CodeSignatureInvalid)
	for name, spoil := range map[string]func(*Erasure){
		"no media":     func(e *Erasure) { e.Media = nil },
		"a disk twice": func(e *Erasure) { e.Media[1].Disk = "disk1" },
		"no bytes":     func(e *Erasure) { e.Media[0].Size = 0 },
		"clear":        func(e *Erasure) { e.Method = "Clear" },
		"unverified":   func(e *Erasure) { e.Verification = "none" },
		"nobody":       func(e *Erasure) { e.OrderedBy = "" },
	} {
		t.Run(name, func(t *testing.T) {
			e := m.erasure()
			spoil(&e)
			_, err := e.Encode()
			wantCode(t, err, protocol.CodeInvalid)
		})
	}
}
