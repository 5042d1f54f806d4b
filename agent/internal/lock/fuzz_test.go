package lock

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// No change of a good request opens anything. A change is: at some place of its
// wire form, some bytes are cut out and others put in.
func FuzzUnlock(f *testing.F) {
	f.Add(uint16(0), uint8(0), []byte{})
	f.Add(uint16(10), uint8(1), []byte{0x41})
	f.Add(uint16(500), uint8(200), []byte("AAAA"))
	f.Add(uint16(3000), uint8(0), []byte(`"`))
	f.Add(uint16(9000), uint8(1), []byte{0xff, 0xff})
	f.Add(uint16(65535), uint8(255), []byte{})
	s := newScene(f)
	f.Fuzz(func(t *testing.T, at uint16, cut uint8, put []byte) {
		a := s.newAttempt(protocol.SupportAccess)
		good := a.order(must(a.challenge()))
		wire := must(proto.Marshal(good))
		from := min(int(at), len(wire))
		to := min(from+int(cut), len(wire))
		changed := append(append(bytes.Clone(wire[:from]), put...), wire[to:]...)
		req := new(devicev1.UnlockRequest)
		if proto.Unmarshal(changed, req) != nil {
			t.Skip()
		}
		same := sameRequest(good, req)
		_, err := s.Unlock(t.Context(), nil, req, nil)
		if opened := err == nil; opened != same {
			t.Errorf("opened: %v, though the request is the same: %v (%v)", opened, same, err)
		}
		if same {
			must(s.Lock(t.Context(), Operator, "", false))
		}
		if held := s.disks.held(); len(held) > 0 {
			t.Errorf("disks %v are open", held)
		}
	})
}

// sameRequest reports whether a changed request still says the same as far as
// the device decides by it. The nodes' keys only have to be those approved, so
// some may be left out; and one field set twice counts once.
func sameRequest(good, changed *devicev1.UnlockRequest) bool {
	c := proto.CloneOf(changed)
	c.ProtoReflect().SetUnknown(nil)
	for _, k := range c.NodeKeys {
		if !bytes.Equal(k, good.NodeKeys[0]) {
			return false
		}
	}
	c.NodeKeys = good.NodeKeys
	return proto.Equal(good, c)
}
