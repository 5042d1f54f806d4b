package custody

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/sealing"
)

// UnlockIn names what allows the unlock: a request for support access, or a
// consent for the copy job. Exactly one is set.
type UnlockIn struct {
	Request protocol.RequestID
	Consent protocol.ConsentID
}

// UnlockOut is a committed unlock.
type UnlockOut struct {
	Attempt  string
	Nodes    []protocol.NodeID
	LeaseEnd time.Time // the earliest of the nodes'
	Shares   []*devicev1.ShareStatus
}

// Unlock opens all nodes of a device under a request or consent: challenge,
// verify, record, seal, order, commit. If any step fails on any node, all nodes
// are told to lock and the error is returned with the node's own code; the
// approval is not spent. progress may be nil; it is never called concurrently.
//
// The caller has checked that the request may be executed by whoever asks.
func (s *Service) Unlock(ctx context.Context, caller auth.Caller, in UnlockIn, progress func(*lockboxv1.ProgressEvent)) (UnlockOut, error) {
	if (in.Request == "") == (in.Consent == "") {
		return UnlockOut{}, protocol.Errorf(protocol.CodeInvalid, "name a request or a consent")
	}
	sub, err := s.load(ctx, in)
	if err != nil {
		return UnlockOut{}, err
	}
	if !s.claim(sub.serial()) {
		return UnlockOut{}, busy(sub.serial())
	}
	defer s.release(sub.serial())
	if err := s.finishEarlier(ctx, sub.serial()); err != nil {
		return UnlockOut{}, err
	}
	if err := s.refuseHeld(ctx, &sub); err != nil {
		return UnlockOut{}, err
	}
	run := &saga{s: s, caller: caller, subject: sub, report: progress}
	if err := run.begin(ctx); err != nil {
		return UnlockOut{}, err
	}
	if err := run.unlock(ctx); err != nil {
		run.abort(context.WithoutCancel(ctx), err)
		return UnlockOut{}, err
	}
	return run.out, nil
}

func busy(serial protocol.DeviceSerial) error {
	return protocol.Errorf(protocol.CodeBusy, "another unlock of %s is under way: wait until it has ended", serial)
}

// finishEarlier locks what an earlier attempt on the device may have left.
func (s *Service) finishEarlier(ctx context.Context, serial protocol.DeviceSerial) error {
	var open []store.Attempt
	err := s.Store.View(ctx, func(tx *store.Tx) (err error) { open, err = tx.OpenAttempts(ctx); return err })
	if err != nil {
		return err
	}
	for _, a := range open {
		if a.Serial != serial {
			continue
		}
		done, err := s.recoverAttempt(ctx, a)
		if err != nil {
			return err
		}
		if !done {
			return protocol.Errorf(protocol.CodeBusy, "an earlier unlock of %s failed, and its nodes have not all confirmed that they are locked", serial)
		}
	}
	return nil
}

// saga is one attempt over all nodes of a device.
type saga struct {
	s       *Service
	caller  auth.Caller
	subject subject
	attempt store.Attempt
	nodes   []*sagaNode
	grant   grant
	access  []store.DestinationAccess // to the destinations of the grant
	out     UnlockOut

	mu     sync.Mutex
	report func(*lockboxv1.ProgressEvent) // guarded by mu
}

// sagaNode is what an attempt knows of one node.
type sagaNode struct {
	ref       approval.NodeRef
	client    devicev1.NodeServiceClient
	challenge approval.Challenge
	order     []byte          // envelope
	digest    approval.Digest // of the order
	opened    []byte          // envelope
	seen      int64           // size of the log it saw last, as it says with its challenge; 0 if it does not say
	logSize   int64           // of the checkpoint in the order
	commit    *devicev1.CommitResponse
}

// begin writes the attempt down. From here on, whatever happens to this
// process, its nodes get locked unless it commits.
func (g *saga) begin(ctx context.Context) error {
	now := g.s.Now()
	g.attempt = store.Attempt{
		ID: attemptID(), Order: g.subject.order.ID, Tenant: g.subject.order.Tenant, Subject: g.subject.id,
		SubjectDigest: string(g.subject.digest), Purpose: g.subject.purpose, Serial: g.subject.serial(),
		State: store.AttemptChallenging, IntentIndex: -1, Started: now, Updated: now,
	}
	for _, id := range g.subject.ids() {
		g.attempt.Nodes = append(g.attempt.Nodes, id.String())
	}
	g.out.Attempt, g.out.Nodes = g.attempt.ID, g.subject.ids()
	err := g.s.Store.Tx(ctx, func(tx *store.Tx) error { return tx.InsertAttempt(ctx, &g.attempt) })
	if errors.Is(err, store.ErrConflict) {
		return busy(g.attempt.Serial)
	}
	return err
}

func attemptID() string {
	b := make([]byte, 8)
	rand.Read(b)
	return "UNL-" + hex.EncodeToString(b)
}

func (g *saga) unlock(ctx context.Context) error {
	keys, err := g.s.nodeKeys(ctx, &g.subject)
	if err != nil {
		return err
	}
	if err := g.reach(); err != nil {
		return err
	}
	if err := g.each(ctx, callTimeout, g.challengeNode); err != nil {
		return err
	}
	if g.grant, err = g.subject.authorize(g.s.Now()); err != nil {
		return err
	}
	if g.access, err = g.s.accessFor(ctx, g.subject.order.ID, g.grant); err != nil {
		return err
	}
	if err := g.recordIntent(ctx); err != nil {
		return err
	}
	if err := g.seal(ctx); err != nil {
		return err
	}
	open := func(ctx context.Context, n *sagaNode) error { return g.openNode(ctx, n, keys) }
	if err := g.each(ctx, unlockTimeout, open); err != nil {
		return err
	}
	return g.commit(ctx)
}

// reach finds all nodes before any is asked for anything.
func (g *saga) reach() error {
	for _, ref := range g.subject.nodes {
		client, err := g.s.Nodes.Node(ref.ID())
		if err != nil {
			return err
		}
		g.nodes = append(g.nodes, &sagaNode{ref: ref, client: client})
	}
	return nil
}

// each does step on all nodes at once and returns the first node's error that
// came. The others are cancelled: all have to lock anyway.
func (g *saga) each(ctx context.Context, limit time.Duration, step func(context.Context, *sagaNode) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var all sync.WaitGroup
	var once sync.Once
	var first error
	for _, n := range g.nodes {
		all.Go(func() {
			if err := step(ctx, n); err != nil {
				once.Do(func() { first = nodeError(ctx, n.ref.ID(), err) })
				cancel()
			}
		})
	}
	all.Wait()
	return first
}

// nodeError names the node in an error and keeps its code.
func nodeError(ctx context.Context, id protocol.NodeID, err error) error {
	if e, ok := errors.AsType[*protocol.Error](err); ok {
		return protocol.Errorf(e.Code, "node %s: %s", id, e.Message)
	}
	if ctx.Err() != nil {
		return protocol.Errorf(protocol.CodeTimeout, "node %s did not answer in time", id)
	}
	return protocol.Errorf(protocol.CodeUnavailable, "node %s: %v", id, err)
}

func (g *saga) challengeNode(ctx context.Context, n *sagaNode) error {
	resp, err := n.client.Challenge(ctx, &devicev1.ChallengeRequest{
		SubjectDigest: string(g.subject.digest), Purpose: string(g.subject.purpose),
	})
	if err != nil {
		return err
	}
	n.seen = resp.GetLogSize()
	if n.challenge, err = verifyFresh(resp.GetChallenge(), n.ref, g.subject.digest, g.s.Now()); err != nil {
		return err
	}
	g.tell(n, "", "challenge")
	return nil
}

// verifyFresh verifies a challenge that was made for this call. If it has
// expired all the same, the node's clock is behind: it would refuse the order
// for that, so people are told now.
func verifyFresh(envelope []byte, node approval.NodeRef, subject approval.Digest, now time.Time) (approval.Challenge, error) {
	c, err := approval.VerifyChallenge(envelope, node, subject, time.Unix(0, 0))
	if err != nil {
		return approval.Challenge{}, err
	}
	if end := time.Unix(c.Expires, 0).UTC(); !now.Before(end) {
		return approval.Challenge{}, protocol.Errorf(protocol.CodeClock,
			"the clock is behind: a challenge made just now lasts until %s, but it is %s at the control plane: set the clock right",
			protocol.Stamp(end), protocol.Stamp(now))
	}
	return c, nil
}

// recordIntent puts what is about to be done on disk, before any key is
// unwrapped.
func (g *saga) recordIntent(ctx context.Context) error {
	rec := g.record(auditlog.OpUnlockIntent, auditlog.Start)
	rec.Properties[auditlog.PropertySubjectDigest] = string(g.subject.digest)
	if x := g.subject.exclusion; x != "" {
		rec.Properties[auditlog.PropertyExclusion] = string(x)
	}
	if len(g.access) > 0 {
		rec.Properties["access"] = accountsOf(g.access)
	}
	for _, n := range g.nodes {
		rec.Properties[auditlog.PropertyNonce(n.ref.ID())] = hex.EncodeToString(n.challenge.Nonce)
	}
	limited, cancel := context.WithTimeout(ctx, intentTimeout)
	defer cancel()
	index, err := g.s.Audit.RecordIntent(limited, rec)
	if err != nil {
		return err
	}
	g.attempt.IntentIndex = index
	if err := g.s.move(ctx, &g.attempt, store.AttemptRecorded); err != nil {
		return err
	}
	g.tellAll("recording")
	return nil
}

// seal makes the orders of all nodes, and writes down that they may leave.
func (g *saga) seal(ctx context.Context) error {
	k, err := g.s.storedOrderKey(ctx, g.subject.order.ID)
	if err != nil {
		return err
	}
	defer k.Wipe()
	for _, n := range g.nodes {
		if err := g.makeOrder(ctx, n, k); err != nil {
			return err
		}
		g.tell(n, "", "sealing")
	}
	return g.s.move(ctx, &g.attempt, store.AttemptOrdered)
}

func (g *saga) makeOrder(ctx context.Context, n *sagaNode, k *OrderKey) error {
	keys, seen, err := g.wrappedKeys(ctx, n.ref.ID())
	if err != nil {
		return err
	}
	if n.seen > 0 {
		seen = n.seen
	}
	proof, err := g.s.Audit.Proof(ctx, g.attempt.IntentIndex, seen)
	if err != nil {
		return err
	}
	sealed, err := g.sealKeys(ctx, n, k, keys)
	if err != nil {
		return err
	}
	access, err := g.sealAccess(ctx, n, k)
	if err != nil {
		return err
	}
	n.logSize = proof.Size
	n.order, err = approval.SignEd25519(approval.Order{
		Purpose: g.subject.purpose, Node: approval.NameOf(n.ref.ID()),
		RequestDigest: g.subject.digest, DecisionsDigest: g.grant.decisions,
		Nonce: n.challenge.Nonce, IssuedAt: g.s.Now().Unix(), Keys: sealed, Access: access,
		LogCheckpoint: proof.Checkpoint, LogRecord: proof.Record, LogIndex: proof.Index,
		LogProof: proof.Inclusion, LogConsistency: proof.Consistency,
	}, g.s.Signer)
	if err != nil {
		return fmt.Errorf("cannot sign the order to %s: %w", n.ref.ID(), err)
	}
	e, err := approval.ParseEnvelope(n.order)
	if err != nil {
		return err
	}
	n.digest = e.Digest()
	return nil
}

// wrappedKeys reads the keys of the disks asked for, and how much of the
// activity log the node had seen when it last reported.
func (g *saga) wrappedKeys(ctx context.Context, id protocol.NodeID) (keys []store.DiskKey, seen int64, err error) {
	err = g.s.Store.View(ctx, func(tx *store.Tx) error {
		node, err := tx.Node(ctx, id)
		if err != nil {
			return err
		}
		seen = node.LogSize
		for _, disk := range g.subject.disksOf(id) {
			key, err := tx.DiskKey(ctx, id, disk, store.ExternalKey)
			if err != nil {
				return err
			}
			keys = append(keys, key)
		}
		return nil
	})
	return keys, seen, err
}

func (g *saga) sealKeys(ctx context.Context, n *sagaNode, k *OrderKey, keys []store.DiskKey) ([]approval.SealedKey, error) {
	var out []approval.SealedKey
	for _, row := range keys {
		ciphertext, err := g.sealKey(ctx, n, k, row)
		if err != nil {
			return nil, err
		}
		out = append(out, approval.SealedKey{Disk: row.Disk, KeyType: string(sealing.ExternalKey), Ciphertext: ciphertext})
	}
	return out, nil
}

// sealKey is the one place where a disk's external key is in clear.
func (g *saga) sealKey(ctx context.Context, n *sagaNode, k *OrderKey, row store.DiskKey) ([]byte, error) {
	key, err := g.s.openDiskKey(ctx, k, row)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return sealing.Seal(n.challenge.HPKEKey, sealing.Context{
		RequestDigest: string(g.subject.digest), DecisionsDigest: string(g.grant.decisions), Nonce: n.challenge.Nonce,
		Node: n.ref.ID(), Disk: row.Disk, Purpose: g.subject.purpose, KeyType: sealing.ExternalKey,
	}, key)
}

func (g *saga) openNode(ctx context.Context, n *sagaNode, keys [][]byte) error {
	stream, err := n.client.Unlock(ctx, &devicev1.UnlockRequest{
		Order: n.order, Statement: g.subject.statement, Decisions: g.subject.decisions,
		Consent: g.subject.consent, Revocations: g.subject.revocations, NodeKeys: keys,
	})
	if err != nil {
		return err
	}
	defer stream.Close()
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if msg.Phase != "" {
			g.tell(n, msg.Disk, msg.Phase)
		}
		if len(msg.Opened) > 0 {
			n.opened = msg.Opened
		}
	}
	opened, err := approval.VerifyOpened(n.opened, n.ref, g.subject.digest)
	if err == nil && opened.OrderDigest != n.digest {
		err = protocol.Errorf(protocol.CodeNotOpened, "its proof of opening is for another order")
	}
	return err
}

// commit tells all nodes that all have opened. A revocation that came
// meanwhile still stops it.
func (g *saga) commit(ctx context.Context) error {
	g.attempt.LeaseEnd = g.grant.end
	if err := g.noteOpened(ctx); err != nil {
		return err
	}
	doc := approval.Commit{RequestDigest: g.subject.digest, IssuedAt: g.s.Now().Unix()}
	for _, n := range g.nodes {
		doc.Opened = append(doc.Opened, n.opened)
	}
	envelope, err := approval.SignEd25519(doc, g.s.Signer)
	if err != nil {
		return fmt.Errorf("cannot sign the commit: %w", err)
	}
	g.tellAll("commit")
	send := func(ctx context.Context, n *sagaNode) (err error) {
		n.commit, err = n.client.Commit(ctx, &devicev1.CommitRequest{Commit: envelope})
		return err
	}
	if err := g.each(ctx, callTimeout, send); err != nil {
		return err
	}
	return g.finish(ctx)
}

func (g *saga) noteOpened(ctx context.Context) error {
	next := g.attempt
	next.State, next.Updated = store.AttemptOpened, g.s.Now()
	err := g.s.Store.Tx(ctx, func(tx *store.Tx) error {
		now := subject{digest: g.subject.digest}
		if err := now.loadRevocations(ctx, tx); err != nil {
			return err
		}
		if now.revoked {
			return protocol.Errorf(protocol.CodeRevoked, "%s was revoked while it was being opened", g.subject.id)
		}
		for _, n := range g.nodes {
			if err := tx.NodeSawLog(ctx, n.ref.ID(), n.logSize); err != nil {
				return err
			}
		}
		return tx.UpdateAttempt(ctx, &next)
	})
	if err == nil {
		g.attempt = next
	}
	return err
}

// finish writes down that the attempt is committed.
func (g *saga) finish(ctx context.Context) error {
	end := g.grant.end
	for _, n := range g.nodes {
		if at := time.Unix(n.commit.GetLeaseEnd(), 0).UTC(); n.commit.GetLeaseEnd() > 0 && at.Before(end) {
			end = at
		}
		g.out.Shares = append(g.out.Shares, n.commit.GetShares()...)
	}
	g.out.LeaseEnd = end
	next := g.attempt
	next.State, next.LeaseEnd, next.Updated = store.AttemptCommitted, end, g.s.Now()
	rec := g.record(auditlog.OpCommitUnlock, auditlog.Success)
	rec.Properties["leaseEnd"] = end.UTC().Format(time.RFC3339)
	err := g.s.Store.Tx(ctx, func(tx *store.Tx) error {
		if err := tx.UpdateAttempt(ctx, &next); err != nil {
			return err
		}
		_, err := g.s.Audit.Record(ctx, tx, rec)
		return err
	})
	if err != nil {
		return err
	}
	g.attempt = next
	phase := "shares-open"
	if g.subject.purpose == protocol.DataCopy {
		phase = "running"
	}
	g.tellAll(phase)
	return nil
}

// abort locks all nodes, first, and then writes down why. What cannot be done
// now is left to [Service.Run].
func (g *saga) abort(ctx context.Context, cause error) {
	next := g.attempt
	next.ErrorCode = protocol.CodeOf(cause)
	in, err := lockOf(next)
	if err != nil {
		panic("custody: internal error: " + err.Error())
	}
	results := g.s.lockAll(ctx, in)
	next.State, next.Updated = store.AttemptLocking, g.s.Now()
	if confirmed(results) {
		next.State = store.AttemptFailed
	}
	rec := g.record(auditlog.OpRefuseUnlock, auditlog.Refused)
	rec.Properties["code"], rec.Properties["step"] = string(next.ErrorCode), g.attempt.State
	if next.ErrorCode == protocol.CodeCustomerKey || next.ErrorCode == protocol.CodeKeyService {
		rec.Properties["reason"] = cause.Error() // names what the key's owner can do
	}
	ctx, cancel := context.WithTimeout(ctx, failureTimeout)
	defer cancel()
	err = g.s.Store.Tx(ctx, func(tx *store.Tx) error {
		if err := tx.UpdateAttempt(ctx, &next); err != nil {
			return err
		}
		if _, err := g.s.Audit.Record(ctx, tx, rec); err != nil {
			return err
		}
		return g.s.recordLocks(ctx, tx, in, results)
	})
	if err != nil {
		g.s.Logger.Error().Err(err).Str("attempt", g.attempt.ID).Msg("cannot write down that an unlock failed")
	}
	g.s.wakeUp()
}

// record begins a record about the attempt.
func (g *saga) record(op auditlog.Operation, result auditlog.Result) auditlog.Record {
	rec := auditlog.NewRecord(g.s.Now(), op, result)
	rec.Caller, rec.CorrelationID = string(g.caller.Person), g.subject.id
	rec.ResourceID = "/devices/" + string(g.attempt.Serial)
	rec.Properties = map[string]string{
		audit.PropertySerial: string(g.attempt.Serial), audit.PropertyTenant: string(g.attempt.Tenant),
		"purpose": string(g.attempt.Purpose), "nodes": strings.Join(g.attempt.Nodes, " "), "attempt": g.attempt.ID,
	}
	return rec
}

func (g *saga) tellAll(phase string) {
	for _, n := range g.nodes {
		g.tell(n, "", phase)
	}
}

func (g *saga) tell(n *sagaNode, disk, phase string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.report == nil {
		return
	}
	event := &lockboxv1.ProgressEvent{Time: g.s.Now().Unix(), Node: n.ref.ID().String(), Disk: disk, Phase: phase}
	if !g.out.LeaseEnd.IsZero() {
		event.LeaseEnd = g.out.LeaseEnd.Unix()
	}
	g.report(event)
}
