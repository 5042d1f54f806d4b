package custody

import (
	"context"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// refuseHeld refuses an unlock of a device that is open under the same subject
// already. The attempt would fail at the challenge, and locking after it, as is
// due after a failure, would take away what is in use.
//
// A node that does not answer is left to the challenge.
func (s *Service) refuseHeld(ctx context.Context, sub *subject) error {
	for _, id := range sub.ids() {
		if s.holds(ctx, id, sub.digest) {
			return protocol.Errorf(protocol.CodeBusy, "node %s is open under %s already", id, sub.id)
		}
	}
	return nil
}

func (s *Service) holds(ctx context.Context, id protocol.NodeID, digest approval.Digest) bool {
	node, err := s.Nodes.Node(id)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := node.Status(ctx, &devicev1.StatusRequest{})
	status := resp.GetStatus()
	return err == nil && status.GetState() == string(protocol.Unlocked) && status.GetRequestDigest() == string(digest)
}
