package custody

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// LockIn says what to lock and why.
type LockIn struct {
	Caller      auth.Caller
	Nodes       []protocol.NodeID
	Reason      string          // engineer-done | revoked | session-disabled | operator | …
	Subject     approval.Digest // only what this opened; "" for whatever is open
	Spend       bool            // the approval can never be used again
	Revocation  []byte          // envelope, when revoked with one
	Tenant      protocol.TenantID
	Correlation string // request or consent id, for the record
}

// Lock tells the nodes to lock, all at once, and records the outcome after. It
// does so even if ctx ends. A node that does not confirm locks by itself at the time its result says.
// Results are in the order of the nodes.
func (s *Service) Lock(ctx context.Context, in LockIn) []*lockboxv1.RelockResult {
	ctx = context.WithoutCancel(ctx) // a lock that was begun is carried out, whoever still waits for the answer
	results := s.lockAll(ctx, in)
	err := s.Store.Tx(ctx, func(tx *store.Tx) error { return s.recordLocks(ctx, tx, in, results) })
	if err != nil { // the nodes are locked: this is no reason to tell the caller otherwise
		s.Logger.Error().Err(err).Msg("cannot record that nodes were locked")
	}
	return results
}

func (s *Service) lockAll(ctx context.Context, in LockIn) []*lockboxv1.RelockResult {
	results := make([]*lockboxv1.RelockResult, len(in.Nodes))
	var all sync.WaitGroup
	for i, id := range in.Nodes {
		all.Go(func() { results[i] = s.lockNode(ctx, id, in) })
	}
	all.Wait()
	return results
}

// confirmed reports whether all nodes said that they are locked.
func confirmed(results []*lockboxv1.RelockResult) bool {
	return !slices.ContainsFunc(results, func(r *lockboxv1.RelockResult) bool { return !r.Confirmed })
}

func (s *Service) lockNode(ctx context.Context, id protocol.NodeID, in LockIn) *lockboxv1.RelockResult {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	status, took, err := s.askToLock(ctx, id, in)
	if err != nil {
		level := zerolog.WarnLevel
		if protocol.CodeOf(err) == protocol.CodeOffline { // [Service.Run] asks again every second
			level = zerolog.DebugLevel
		}
		s.Logger.WithLevel(level).Err(err).Stringer("node", id).Str("reason", in.Reason).Msg("a node did not confirm that it is locked")
		return &lockboxv1.RelockResult{Node: id.String(), LocksBy: s.Now().Add(s.DeadMan).Unix()}
	}
	state := protocol.LockState(status.GetState())
	out := &lockboxv1.RelockResult{Node: id.String(), State: string(state), TookMs: took}
	// What is open under another subject is none of this lock's business: of
	// in.Subject nothing is.
	other := in.Subject != "" && status.GetRequestDigest() != "" && status.GetRequestDigest() != string(in.Subject)
	out.Confirmed = state == protocol.Locked || state == protocol.Faulted || other
	if out.Confirmed {
		out.ConfirmedAt = s.Now().Unix()
	} else {
		out.LocksBy = s.Now().Add(s.DeadMan).Unix()
	}
	return out
}

func (s *Service) askToLock(ctx context.Context, id protocol.NodeID, in LockIn) (*devicev1.NodeStatus, int64, error) {
	node, err := s.Nodes.Node(id)
	if err != nil {
		return nil, 0, err
	}
	resp, err := node.Lock(ctx, &devicev1.LockRequest{
		Reason: in.Reason, SubjectDigest: string(in.Subject), Spend: in.Spend, Revocation: in.Revocation,
	})
	if err != nil {
		return nil, 0, err
	}
	return resp.GetStatus(), resp.GetTookMs(), nil
}

// recordLocks writes down what each node answered.
func (s *Service) recordLocks(ctx context.Context, tx *store.Tx, in LockIn, results []*lockboxv1.RelockResult) error {
	for i, r := range results {
		rec := s.record(auditlog.OpLockVolume, auditlog.Success, in.Caller, in.Nodes[i], in.Tenant)
		if !r.Confirmed {
			rec = s.record(auditlog.OpLockVolume, auditlog.Failure, in.Caller, in.Nodes[i], in.Tenant)
			rec.Properties["locksBy"] = time.Unix(r.LocksBy, 0).UTC().Format(time.RFC3339)
		}
		rec.CorrelationID = in.Correlation
		rec.Properties["reason"] = in.Reason
		if _, err := s.Audit.Record(ctx, tx, rec); err != nil {
			return err
		}
	}
	return nil
}

// Recover locks the nodes of attempts that are neither committed nor under way
// in this process, and returns how many have not ended. [Service.Run] calls it
// until there are none.
func (s *Service) Recover(ctx context.Context) (left int, err error) {
	var open []store.Attempt
	err = s.Store.View(ctx, func(tx *store.Tx) (err error) {
		open, err = tx.OpenAttempts(ctx)
		return err
	})
	if err != nil {
		return 0, err
	}
	for _, a := range open {
		if !s.claim(a.Serial) { // under way, or just ending: look again
			left++
			continue
		}
		done, err := s.recoverAttempt(ctx, a)
		s.release(a.Serial)
		if err != nil {
			return left, err
		}
		if !done {
			left++
		}
	}
	return left, nil
}

// recoverAttempt locks the nodes of an attempt and reports whether all have
// confirmed; then the attempt has failed for good.
func (s *Service) recoverAttempt(ctx context.Context, a store.Attempt) (bool, error) {
	in, err := lockOf(a)
	if err != nil {
		return false, err
	}
	// Reread: it may have ended before it was claimed.
	err = s.Store.View(ctx, func(tx *store.Tx) (err error) { a, err = tx.Attempt(ctx, a.ID); return err })
	if err != nil || a.State == store.AttemptCommitted || a.State == store.AttemptFailed {
		return err == nil, err
	}
	results := s.lockAll(ctx, in)
	if !confirmed(results) {
		return false, nil
	}
	if a.ErrorCode == "" {
		a.ErrorCode = protocol.CodeUnavailable // cut off
	}
	a.State, a.Updated = store.AttemptFailed, s.Now()
	err = s.Store.Tx(ctx, func(tx *store.Tx) error {
		if err := tx.UpdateAttempt(ctx, &a); err != nil {
			return err
		}
		return s.recordLocks(ctx, tx, in, results)
	})
	return err == nil, err
}

// lockOf says how to lock what an attempt may have opened. Its approval is not
// spent: an error is nobody's use of it.
func lockOf(a store.Attempt) (LockIn, error) {
	in := LockIn{
		Caller: auth.SystemCaller(), Reason: "unlock-failed", Subject: approval.Digest(a.SubjectDigest),
		Tenant: a.Tenant, Correlation: a.Subject,
	}
	for _, name := range a.Nodes {
		id, err := protocol.ParseNodeID(name)
		if err != nil {
			return LockIn{}, err
		}
		in.Nodes = append(in.Nodes, id)
	}
	return in, nil
}

// move writes an attempt's next state.
func (s *Service) move(ctx context.Context, a *store.Attempt, state string) error {
	next := *a
	next.State, next.Updated = state, s.Now()
	err := s.Store.Tx(ctx, func(tx *store.Tx) error { return tx.UpdateAttempt(ctx, &next) })
	if err == nil {
		*a = next
	}
	return err
}
