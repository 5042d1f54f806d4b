package lockbox

import (
	"context"
	"slices"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// killed is the reason for which a killed session ends on its node, in the words
// of its recording.
const killed = "killed"

// KillSession ends a session at once and for good, with or without an access:
// what its engineer was approved for on the device is revoked, executed or not,
// and the device locks. The answer says what each node confirmed, or when what it
// did not confirm ends by itself.
func (s *Service) KillSession(ctx context.Context, caller auth.Caller, in *lockboxv1.KillSessionRequest) (*lockboxv1.KillSessionResponse, error) {
	if len(in.Reason) > maxText {
		return nil, invalid("a reason has at most %d bytes", maxText)
	}
	if !caller.Is(auth.Admin, auth.TenantAdmin, auth.Owner, auth.Approver) {
		return nil, forbidden("%s is %s: an approver or an admin kills a session", caller.Person, caller.Role)
	}
	row, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (store.Session, error) { return session(ctx, tx, caller, in.Session) })
	if err != nil {
		return nil, err
	}
	ended, err := s.endSession(context.WithoutCancel(ctx), caller, row.ID, sessionEnd{
		state: SessionKilled, reason: in.Reason, event: TakenBack, why: "session-killed", all: true,
	})
	if err != nil {
		return nil, err
	}
	return &lockboxv1.KillSessionResponse{Session: showSession(ended.session), Nodes: s.answers(ended)}, nil
}

// answers are those of all nodes: of those that locked, and of the session's own
// if it had nothing to lock.
func (s *Service) answers(ended endedSession) []*lockboxv1.RelockResult {
	node := ended.session.Node.String()
	if slices.ContainsFunc(ended.relocked, func(r *lockboxv1.RelockResult) bool { return r.Node == node }) {
		return ended.relocked
	}
	own := &lockboxv1.RelockResult{Node: node, State: string(protocol.Locked), TookMs: ended.took.Milliseconds()}
	if ended.off == nil {
		own.Confirmed, own.ConfirmedAt = true, s.now().Unix()
	} else {
		own.State, own.LocksBy = "", ended.session.Expires.Unix()
	}
	return append(ended.relocked, own)
}
