package orders

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

const (
	// lookAgain is how long [Service.Run] leaves deliveries alone when none is
	// due: another daemon may have written one.
	lookAgain = time.Minute
	// longestPause is the longest between two attempts at a node that refuses.
	longestPause = 10 * time.Minute
	// deliverAtOnce is how many nodes are handed a policy side by side.
	deliverAtOnce = 8
)

// Run hands trust policies to the nodes that do not have them yet, as soon as
// they are there, until ctx ends. It returns the error of ctx.
func (s *Service) Run(ctx context.Context) error {
	for {
		pause, err := s.deliverDue(ctx)
		if err != nil && ctx.Err() == nil {
			s.cfg.Logger.Error().Err(err).Msg("cannot deliver trust policies")
		}
		wait := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-wait.C:
		case <-s.wake:
		}
		wait.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// deliverDue delivers what can be now, and returns how long nothing else can.
func (s *Service) deliverDue(ctx context.Context) (time.Duration, error) {
	rows, err := view(ctx, s.cfg.Store, func(tx *store.Tx) ([]store.PolicyDelivery, error) { return tx.OpenPolicyDeliveries(ctx) })
	if err != nil {
		return lookAgain, err
	}
	pause := lookAgain
	var due []store.PolicyDelivery
	waiting := make(map[protocol.NodeID]bool)
	for _, d := range rows {
		waiting[d.Node] = true
		switch left := d.NextAttempt.Sub(s.now()); {
		case !s.cfg.Tunnels.Online(d.Node): // its first report wakes Run
		case left <= 0:
			due = append(due, d)
		default:
			pause = min(pause, left)
		}
	}
	s.mu.Lock()
	s.waiting = waiting
	s.mu.Unlock()
	s.deliver(ctx, due)
	return pause, nil
}

// deliver hands a policy to each of these nodes and notes how that went.
func (s *Service) deliver(ctx context.Context, due []store.PolicyDelivery) {
	var all sync.WaitGroup
	slots := make(chan struct{}, deliverAtOnce)
	for _, d := range due {
		if !s.beginDelivery(d.Node) {
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() {
				s.endDelivery(d.Node)
				<-slots
			}()
			failed := s.handOver(ctx, d)
			if err := s.noteDelivery(context.WithoutCancel(ctx), d, failed); err != nil {
				s.cfg.Logger.Error().Err(err).Str("node", d.Node.String()).Msg("cannot note how a trust policy was delivered")
			}
		})
	}
	all.Wait()
}

// beginDelivery takes a node for one delivery at a time.
func (s *Service) beginDelivery(id protocol.NodeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handing[id] {
		return false
	}
	s.handing[id] = true
	return true
}

func (s *Service) endDelivery(id protocol.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.handing, id)
}

// handOver gives a node every version that it lacks, one after the other: each
// is signed as the one before it asks.
func (s *Service) handOver(ctx context.Context, d store.PolicyDelivery) error {
	chain, err := view(ctx, s.cfg.Store, func(tx *store.Tx) ([]store.TrustPolicy, error) { return tx.TrustPolicies(ctx, d.Order) })
	if err != nil {
		return err
	}
	node, err := s.cfg.Tunnels.Node(d.Node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, deviceCall)
	defer cancel()
	now, err := node.Status(ctx, &devicev1.StatusRequest{})
	if err != nil {
		return err
	}
	has := now.GetStatus().GetTrustPolicyDigest()
	i := slices.IndexFunc(chain, func(p store.TrustPolicy) bool { return p.Digest == has })
	if i < 0 {
		return protocol.Errorf(protocol.CodePolicyDigest, "the node has trust policy %s, which was never one of order %s", orNone(has), d.Order)
	}
	for _, p := range chain[i+1:] {
		got, err := node.UpdateTrustPolicy(ctx, &devicev1.UpdateTrustPolicyRequest{Policy: p.Envelope})
		if err != nil {
			return err
		}
		if got.GetDigest() != p.Digest {
			return protocol.Errorf(protocol.CodePolicyDigest, "the node says that it has trust policy %s now, not %s", orNone(got.GetDigest()), p.Digest)
		}
	}
	return nil
}

// noteDelivery writes down how an attempt went. A node that only is away costs no
// attempt; of one that refuses, the first refusal is recorded.
func (s *Service) noteDelivery(ctx context.Context, d store.PolicyDelivery, failed error) error {
	if protocol.CodeOf(failed) == protocol.CodeOffline {
		return nil
	}
	d.Attempts++
	d.LastError = ""
	if failed == nil {
		d.Delivered = s.now()
	} else {
		d.NextAttempt, d.LastError = s.now().Add(min(time.Second<<min(d.Attempts, 16), longestPause)), failed.Error()
	}
	return s.cfg.Store.Tx(ctx, func(tx *store.Tx) error {
		if failed == nil || d.Attempts == 1 {
			if err := s.recordDelivery(ctx, tx, d, failed); err != nil {
				return err
			}
		}
		return tx.UpdatePolicyDelivery(ctx, &d)
	})
}

func (s *Service) recordDelivery(ctx context.Context, tx *store.Tx, d store.PolicyDelivery, failed error) error {
	o, err := tx.Order(ctx, d.Order)
	if err != nil {
		return err
	}
	rec := auditlog.NewRecord(s.now(), auditlog.OpDeliverTrustPolicy, auditlog.Success)
	if failed != nil {
		rec = auditlog.NewRecord(s.now(), auditlog.OpDeliverTrustPolicy, auditlog.Failure)
	}
	rec.Caller, rec.Properties = auditlog.OriginControlPlane, map[string]string{}
	about(&rec, o)
	rec.ResourceID = fmt.Sprintf("/devices/%s/nodes/%d", d.Node.Serial, d.Node.Node)
	rec.Properties["node"], rec.Properties["digest"] = d.Node.String(), d.Digest
	if failed != nil {
		rec.Properties["code"], rec.Properties["reason"] = string(protocol.CodeOf(failed)), failed.Error()
	}
	_, err = s.cfg.Audit.Record(ctx, tx, rec)
	return err
}

// expectPolicy writes down, within tx, that a node is to have the order's policy
// in force. From now on its reports wake [Service.Run].
func (s *Service) expectPolicy(ctx context.Context, tx *store.Tx, node protocol.NodeID, o store.Order) error {
	s.mu.Lock()
	s.waiting[node] = true
	s.mu.Unlock()
	return tx.PutPolicyDelivery(ctx, &store.PolicyDelivery{Node: node, Order: o.ID, Digest: o.TrustPolicyDigest, NextAttempt: s.now()})
}

// noticePolicy looks, within tx, at the policy that a node says it has. One that
// is not in force is replaced, whatever the books say of it: the node may have
// been away, or put back to an older state.
func (s *Service) noticePolicy(ctx context.Context, tx *store.Tx, n store.Node, has string) error {
	o, err := tx.Order(ctx, n.Order)
	if err != nil || has == "" || has == o.TrustPolicyDigest {
		return err
	}
	rows, err := tx.PolicyDeliveries(ctx, o.ID)
	if err != nil {
		return err
	}
	open := func(d store.PolicyDelivery) bool {
		return d.Node == n.ID && d.Digest == o.TrustPolicyDigest && d.Delivered.IsZero()
	}
	if slices.ContainsFunc(rows, open) {
		return nil
	}
	return s.expectPolicy(ctx, tx, n.ID, o)
}

// wakeRun has [Service.Run] look at the deliveries now.
func (s *Service) wakeRun() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// isWaiting reports whether a node lacks a policy, as far as memory knows.
func (s *Service) isWaiting(id protocol.NodeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting[id]
}

// GetPolicyDelivery says which node of an order has which trust policy.
func (s *Service) GetPolicyDelivery(ctx context.Context, caller auth.Caller, in *lockboxv1.GetPolicyDeliveryRequest) (*lockboxv1.GetPolicyDeliveryResponse, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.GetPolicyDeliveryResponse, error) {
		o, err := order(ctx, tx, caller, in.Order)
		if err != nil {
			return nil, err
		}
		nodes, err := tx.NodesOfOrder(ctx, o.ID)
		if err != nil {
			return nil, err
		}
		rows, err := tx.PolicyDeliveries(ctx, o.ID)
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.GetPolicyDeliveryResponse{Digest: o.TrustPolicyDigest, Version: o.TrustPolicyVersion}
		for _, n := range nodes {
			shown, err := s.showNodePolicy(o, n, rows)
			if err != nil {
				return nil, err
			}
			out.Nodes = append(out.Nodes, shown)
		}
		return out, nil
	})
}

func (s *Service) showNodePolicy(o store.Order, n store.Node, rows []store.PolicyDelivery) (*lockboxv1.NodePolicy, error) {
	status, err := Status(n)
	if err != nil {
		return nil, err
	}
	out := &lockboxv1.NodePolicy{Node: n.ID.String(), Version: int64(status.TrustPolicyVersion), Digest: status.TrustPolicyDigest, State: "waiting"}
	for _, d := range rows {
		if d.Node == n.ID && d.Digest == o.TrustPolicyDigest {
			out.Delivered, out.Attempts, out.NextAttempt, out.Error = unix(d.Delivered), d.Attempts, unix(d.NextAttempt), d.LastError
		}
	}
	switch {
	case n.KeyFingerprint == "":
		out.State = "not-enrolled"
	case out.Digest == o.TrustPolicyDigest || out.Delivered != 0:
		out.State, out.Version, out.Digest = "installed", o.TrustPolicyVersion, o.TrustPolicyDigest
	case !s.cfg.Tunnels.Online(n.ID):
		out.State = "offline"
	case out.Error != "":
		out.State = "refused"
	}
	return out, nil
}
