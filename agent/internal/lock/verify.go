package lock

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/sealing"
)

// maxClockError is how far the wall clock may be from the order's time.
const maxClockError = 2 * time.Minute

// scope is what a valid order allows, whatever its purpose.
type scope struct {
	purpose         protocol.Purpose
	subject         approval.Digest // of the statement or the consent
	decisionsDigest approval.Digest
	correlation     string // id of the request or the consent
	orderID         protocol.OrderID
	ticket          protocol.TicketID
	engineer        approval.Engineer
	access          approval.Access
	exclusion       approval.Exclusion // why the customer was not asked; "" if they were
	standing        string             // id of the standing consent that stood for their decisions
	standingDigest  approval.Digest    // of it; "" if there is none
	nodes           []approval.NodeRef
	diskIDs         []protocol.DiskID // of this node
	shares          []string          // the only ones to publish; all if empty
	protocols       []approval.Protocol
	destinations    []approval.Destination
	end             time.Time // of the window
	expires         time.Time // from when on the subject cannot be approved again
}

// readOnly reports whether nothing is to be written to the disks.
func (s scope) readOnly() bool {
	return s.purpose == protocol.DataCopy || s.access == approval.ReadOnly
}

// publishes reports whether a share is to be opened.
func (s scope) publishes(share string) bool {
	return len(s.shares) == 0 || slices.Contains(s.shares, share)
}

// caller names who will use the disks, for records.
func (s scope) caller() string {
	if s.purpose == protocol.DataCopy {
		return string(protocol.DataCopy)
	}
	return string(s.engineer.Person)
}

// verified is an order that passed every check.
type verified struct {
	scope
	order       approval.Order
	orderDigest approval.Digest
	now         time.Time // wall clock at the time of the check, which it confirmed
}

// verify checks an order, in the order of DESIGN.md section 3. c is the
// challenge that was outstanding, nil if there was none; it is already dead.
func (m *Machine) verify(peer error, c *challenge, req *devicev1.UnlockRequest) (verified, error) {
	if peer != nil {
		return verified{}, protocol.Errorf(protocol.CodePeer, "the other end of the tunnel is not the control plane: %v", peer)
	}
	policy, err := m.cfg.Policy()
	if err != nil {
		return verified{}, protocol.Errorf(protocol.CodePolicyDigest, "node %s has no valid trust policy: %v", m.cfg.Node, err)
	}
	order, digest, err := policy.VerifyOrder(req.GetOrder())
	if err != nil {
		return verified{}, err
	}
	v := verified{order: order, orderDigest: digest, now: m.cfg.Clock.Now()}
	if err := m.checkNonce(c, order); err != nil {
		return verified{}, err
	}
	known, err := m.recall(order.RequestDigest)
	if err != nil {
		return verified{}, err
	}
	clock := m.checkClock(order, v.now, known.highWater)
	v.scope, err = m.authorize(policy, order.Purpose, req, v.now)
	switch {
	case clock != nil && (err == nil || protocol.CodeOf(err) == protocol.CodeWindow):
		return verified{}, clock
	case protocol.CodeOf(err) == protocol.CodeRevoked:
		return verified{}, m.rememberRevoked(order.RequestDigest, err)
	case err != nil:
		return verified{}, err
	}
	if err := m.checkOrder(v, c, req); err != nil {
		return verified{}, err
	}
	if known.isSpent {
		return verified{}, usedUp(known.spentFor)
	}
	if err := m.checkStanding(v); err != nil {
		return verified{}, err
	}
	return v, m.checkLog(policy, v, known.checkpoint)
}

// memory is what the node has not forgotten, as far as an order is concerned.
type memory struct {
	highWater  time.Time
	checkpoint []byte
	isSpent    bool
	spentFor   string // the reason
}

// recall reads what is known about a subject. A file system that hangs under the
// state hangs its readers too, but not the caller.
func (m *Machine) recall(subject approval.Digest) (memory, error) {
	answer := make(chan memory, 1)
	err := m.writer.do(recordWithin, func() error {
		reason, spent := m.cfg.State.Spent(string(subject))
		answer <- memory{m.cfg.State.HighWater(), m.cfg.State.Checkpoint(), spent, reason}
		return nil
	})
	if err != nil {
		return memory{}, protocol.Errorf(protocol.CodeNotRecorded, "nothing was opened, because the node's state cannot be read: %v", err)
	}
	return <-answer, nil
}

// checkStanding refuses what a standing consent allows that was revoked, whatever
// the service says of it now.
func (m *Machine) checkStanding(v verified) error {
	if v.standingDigest == "" {
		return nil
	}
	known, err := m.recall(v.standingDigest)
	if err == nil && known.isSpent {
		err = usedUp(known.spentFor)
	}
	return err
}

func (m *Machine) checkNonce(c *challenge, order approval.Order) error {
	switch {
	case c == nil:
		return protocol.Errorf(protocol.CodeNonce, "node %s has no challenge outstanding: ask for a new one", m.cfg.Node)
	case m.cfg.Clock.Boot() >= c.expires:
		return protocol.Errorf(protocol.CodeNonce, "the challenge of node %s expired: ask for a new one", m.cfg.Node)
	case !bytes.Equal(c.nonce, order.Nonce):
		return protocol.Errorf(protocol.CodeNonce, "the order does not answer the outstanding challenge of node %s: ask for a new one", m.cfg.Node)
	case c.subject != order.RequestDigest:
		return protocol.Errorf(protocol.CodeNonce, "the challenge was for %s, the order is for %s: ask for a new one", c.subject, order.RequestDigest)
	}
	return nil
}

// checkClock compares the wall clock with the time that the service signed and
// with the latest time this node knows to have been.
func (m *Machine) checkClock(order approval.Order, now, high time.Time) error {
	issued := time.Unix(order.IssuedAt, 0)
	if off := now.Sub(issued); off > maxClockError || off < -maxClockError {
		return protocol.Errorf(protocol.CodeClock, "the clock of node %s shows %s, the order was made at %s: set the clock right",
			m.cfg.Node, protocol.Stamp(now), protocol.Stamp(issued))
	}
	if now.Before(high) {
		return protocol.Errorf(protocol.CodeClock, "the clock of node %s shows %s, but it has been %s already: set the clock right",
			m.cfg.Node, protocol.Stamp(now), protocol.Stamp(high))
	}
	return nil
}

// authorize checks what the customers signed, against this node's own trust
// policy.
func (m *Machine) authorize(policy *approval.Policy, purpose protocol.Purpose, req *devicev1.UnlockRequest, now time.Time) (scope, error) {
	if purpose == protocol.DataCopy {
		return m.authorizeCopy(policy, req, now)
	}
	if len(req.GetConsent()) != 0 {
		return scope{}, protocol.Errorf(protocol.CodeAction, "a data-copy consent is not valid for %s", purpose)
	}
	g, err := policy.Authorize(approval.Request{
		Statement: req.GetStatement(), Decisions: req.GetDecisions(), Revocations: req.GetRevocations(),
		Self: &m.self, SelfDisks: m.cfg.DiskIDs, Now: now,
	})
	if err != nil {
		return scope{}, err
	}
	st := g.Statement
	standing := ""
	if g.Standing != nil {
		standing = g.Standing.StandingID
	}
	return scope{
		purpose: purpose, subject: g.RequestDigest, decisionsDigest: g.DecisionsDigest, correlation: string(st.RequestID),
		orderID: st.OrderID, ticket: st.Ticket, engineer: st.Engineer, access: g.Access,
		exclusion: st.Exclusion, standing: standing, standingDigest: g.StandingDigest,
		nodes: st.Nodes, diskIDs: st.DisksOf(m.cfg.Node), shares: st.Shares, protocols: st.Protocols, end: g.End,
		expires: time.Unix(st.Expires+st.MaxDuration, 0),
	}, nil
}

func (m *Machine) authorizeCopy(policy *approval.Policy, req *devicev1.UnlockRequest, now time.Time) (scope, error) {
	if len(req.GetStatement()) != 0 || len(req.GetDecisions()) != 0 {
		return scope{}, protocol.Errorf(protocol.CodeAction, "a request statement is not valid for %s", protocol.DataCopy)
	}
	g, err := policy.AuthorizeCopy(approval.CopyRequest{
		Consent: req.GetConsent(), Revocations: req.GetRevocations(),
		Self: &m.self, SelfDisks: m.cfg.DiskIDs, Now: now,
	})
	if err != nil {
		return scope{}, err
	}
	if !m.cfg.Bare {
		if err := m.cfg.Jobs.Check(g.Destinations); err != nil {
			return scope{}, err
		}
	}
	c := g.Consent
	return scope{
		purpose: protocol.DataCopy, subject: g.ConsentDigest, decisionsDigest: g.DecisionsDigest, correlation: string(c.ConsentID),
		orderID: c.OrderID, nodes: c.Nodes, diskIDs: c.DisksOf(m.cfg.Node), destinations: g.Destinations,
		end: g.End, expires: time.Unix(c.Until, 0),
	}, nil
}

// checkOrder checks that the order is for what was approved, for this node and
// for exactly the disks approved.
func (m *Machine) checkOrder(v verified, c *challenge, req *devicev1.UnlockRequest) error {
	switch {
	case v.order.RequestDigest != v.subject:
		return protocol.Errorf(protocol.CodeSignatureInvalid, "the order is for %s, what was signed is %s", v.order.RequestDigest, v.subject)
	case v.order.DecisionsDigest != v.decisionsDigest:
		return protocol.Errorf(protocol.CodeSignatureInvalid, "the order was made for other decisions than those that came with it")
	case v.order.Purpose != c.purpose:
		return protocol.Errorf(protocol.CodeAction, "the challenge was for %s, the order is for %s", c.purpose, v.order.Purpose)
	case v.order.Node != approval.NameOf(m.cfg.Node):
		return protocol.Errorf(protocol.CodeNode, "the order is for node %s, this is %s", v.order.Node, m.cfg.Node)
	}
	if err := checkNodeKeys(req.GetNodeKeys(), v.nodes); err != nil {
		return err
	}
	if err := checkAccess(v.order.Access, v.destinations); err != nil {
		return err
	}
	return checkDisks(v.order.Keys, v.diskIDs)
}

// checkAccess checks that the order lets into no account but those that a consent
// names, each at the endpoint that it names.
func checkAccess(access []approval.SealedAccess, destinations []approval.Destination) error {
	for _, a := range access {
		if !slices.ContainsFunc(destinations, func(d approval.Destination) bool { return d.Account == a.Account && d.Endpoint == a.Endpoint }) {
			return protocol.Errorf(protocol.CodeAction, "the order lets into account %q at %q, which the consent does not name", a.Account, a.Endpoint)
		}
		if a.KeyType != string(sealing.AccessToStorage) {
			return protocol.Errorf(protocol.CodeDiskKey, "what lets into account %s is of type %q: want %s", a.Account, a.KeyType, sealing.AccessToStorage)
		}
	}
	return nil
}

// checkNodeKeys checks that every key said to be a node's is one of those that
// the approval pins.
func checkNodeKeys(keys [][]byte, nodes []approval.NodeRef) error {
	for _, der := range keys {
		parsed, err := x509.ParsePKIXPublicKey(der)
		pub, ok := parsed.(ed25519.PublicKey)
		if err != nil || !ok {
			return protocol.Errorf(protocol.CodeNode, "a node's key is not an Ed25519 key")
		}
		fingerprint := approval.KeyFingerprint(pub)
		if !slices.ContainsFunc(nodes, func(n approval.NodeRef) bool { return n.KeyFingerprint == fingerprint }) {
			return protocol.Errorf(protocol.CodeNode, "the key %s is of no node in the approval", fingerprint)
		}
	}
	return nil
}

// checkDisks checks that the order brings a key for each approved disk and for
// no other.
func checkDisks(keys []approval.SealedKey, disks []protocol.DiskID) error {
	for _, k := range keys {
		if !slices.Contains(disks, k.Disk) {
			return protocol.Errorf(protocol.CodeDisks, "the order has a key for disk %s, which was not approved", k.Disk)
		}
	}
	if len(keys) != len(disks) {
		return protocol.Errorf(protocol.CodeDisks, "the order has keys for %d of the %d disks that were approved", len(keys), len(disks))
	}
	return nil
}

// usedUp refuses an approval that was spent.
func usedUp(reason string) error {
	if reason == string(Revoked) {
		return protocol.Errorf(protocol.CodeRevoked, "the approval was revoked")
	}
	return protocol.Errorf(protocol.CodeSpent, "the approval was used up (%s): it takes a new request", reason)
}

// checkLog checks that the intent to unlock is in the activity log, and that
// the log goes on from where this node saw it last.
func (m *Machine) checkLog(policy *approval.Policy, v verified, seen []byte) error {
	key, err := note.NewVerifier(policy.Document().LogKey)
	if err != nil {
		return protocol.Errorf(protocol.CodeCheckpoint, "the trust policy names no valid key of the activity log")
	}
	head, err := auditlog.OpenCheckpoint(v.order.LogCheckpoint, key)
	if err != nil {
		return err
	}
	if _, err := auditlog.CheckInclusion(proofText("index", v.order.LogIndex, v.order.LogProof), head, auditlog.LeafHash(v.order.LogRecord)); err != nil {
		return err
	}
	if err := m.checkIntent(v); err != nil {
		return err
	}
	if len(seen) == 0 {
		return nil
	}
	last, err := auditlog.OpenCheckpoint(seen, key)
	if err != nil {
		return err
	}
	return auditlog.CheckConsistency(proofText("old", last.Size, v.order.LogConsistency), last, head)
}

// checkIntent checks that the record says what is about to be done here, and
// if the customer was not asked, that it was not: that is never silent.
func (m *Machine) checkIntent(v verified) error {
	r, err := auditlog.ParseRecord(v.order.LogRecord)
	if err != nil {
		return protocol.Errorf(protocol.CodeCheckpoint, "the logged intent cannot be read: %v", err)
	}
	ok := r.Operation == auditlog.OpUnlockIntent && r.Origin == auditlog.OriginControlPlane &&
		r.CorrelationID == v.correlation &&
		r.Properties[auditlog.PropertyExclusion] == string(v.exclusion) &&
		r.Properties[auditlog.PropertySubjectDigest] == string(v.subject) &&
		r.Properties[auditlog.PropertyNonce(m.cfg.Node)] == hex.EncodeToString(v.order.Nonce)
	if !ok {
		return protocol.Errorf(protocol.CodeCheckpoint, "the logged record is not the intent of this unlock")
	}
	return nil
}

// proofText writes a proof of an order in the form that package auditlog reads.
func proofText(word string, n int64, hashes [][]byte) []byte {
	text := fmt.Appendf(nil, "%s %d\n", word, n)
	for _, h := range hashes {
		text = fmt.Appendln(text, base64.StdEncoding.EncodeToString(h))
	}
	return text
}

// settle makes durable what must be before anything opens: the time, the
// checkpoint, and the intent.
func (m *Machine) settle(v verified) error {
	earlier := time.Unix(v.order.IssuedAt, 0)
	if v.now.Before(earlier) {
		earlier = v.now
	}
	err := m.writer.do(recordWithin, func() error {
		if err := errors.Join(m.cfg.State.RaiseHighWater(earlier), m.cfg.State.SetCheckpoint(v.order.LogCheckpoint)); err != nil {
			return err
		}
		return m.journal(m.intent(v))
	})
	if err != nil {
		return protocol.Errorf(protocol.CodeNotRecorded, "nothing was opened, because the intent could not be recorded: %v", err)
	}
	return nil
}

// rememberRevoked makes a revocation that came with an order durable, and
// returns the refusal.
func (m *Machine) rememberRevoked(subject approval.Digest, refusal error) error {
	err := m.writer.do(recordWithin, func() error {
		return m.cfg.State.Spend(string(subject), string(Revoked), m.cfg.Clock.Now().Add(forever))
	})
	if err != nil {
		return protocol.Errorf(protocol.CodeRevoked, "%v; it could not be remembered: %v", refusal, err)
	}
	return refusal
}
