package hostile

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/sealing"
)

// vote is a decision before its signer signs it.
type vote struct {
	approval.Decision
	by string // whose key
}

// attempt is one try to open one device. What is set before [attempt.sign] is
// what people truly signed; the rest is the control plane's own, which it
// changes as it likes.
type attempt struct {
	f       *fight
	d       *device
	rng     *rand.Rand
	purpose protocol.Purpose

	statement approval.Statement
	votes     []vote
	standing  *approval.Standing
	consent   approval.Consent
	signers   []string // of the standing consent or the consent

	payload     []byte // of the statement
	decisions   [][]byte
	envelope    []byte // of the consent
	revocations [][]byte

	challengeFor approval.Digest  // "": for what the order is
	challengeAs  protocol.Purpose // "": as the order is
	mute         bool             // ask for no challenge
	log          *merkle          // nil: the honest one
	logSigner    note.Signer
	service      ed25519.PrivateKey
	diskKey      []byte
	record       func(*auditlog.Record)
	seal         func(*sealing.Context)
	order        func(*approval.Order)
	request      func(*devicev1.UnlockRequest)
	sent         *devicev1.UnlockRequest
	opened       []byte // proof of the device
}

func (f *fight) attempt(d *device, rng *rand.Rand) *attempt {
	now := d.clock.Now().Unix() - 5
	id := fmt.Sprintf("%016x", rng.Uint64())
	node := []approval.NodeRef{d.ref}
	disks := []approval.DiskRef{{Node: approval.NameOf(d.id), Disk: diskID}}
	engineer, _ := approval.SSHFingerprint(f.people["erin-laptop"].line) // it was just made
	a := &attempt{
		f: f, d: d, rng: rng, purpose: protocol.SupportAccess, logSigner: f.plane.signer, service: f.plane.service, diskKey: d.key,
		statement: approval.Statement{
			RequestID: protocol.RequestID("LockboxRequest_" + id), Action: approval.UnlockDatabox, TenantID: tenant,
			SubscriptionID: "sub", OrderID: orderID, Nodes: node, Disks: disks,
			Purpose: protocol.SupportAccess, Access: approval.ReadWrite, ReasonCode: "copied-to-wrong-folder", Ticket: "SR-2001",
			Engineer:    approval.Engineer{Person: f.people["erin-laptop"].person, SSHKey: engineer},
			MaxDuration: 8 * 3600, PolicyDigest: d.policy.Digest(), Created: now, Expires: now + 96*3600,
		},
		consent: approval.Consent{
			ConsentID: protocol.ConsentID("CON-" + id), TenantID: tenant, SubscriptionID: "sub", OrderID: orderID, Nodes: node, Disks: disks,
			Destinations: []approval.Destination{{Account: "contosodata", Endpoint: "file:///srv/blobs"}},
			PolicyDigest: d.policy.Digest(), Created: now, Until: now + 30*86400,
		},
		signers: slices.Clone(enough),
	}
	for _, by := range enough {
		a.vote(by, approval.Customer)
	}
	a.vote("petra-laptop", approval.Provider)
	return a
}

func (a *attempt) vote(by string, role approval.Role) {
	a.votes = append(a.votes, vote{approval.Decision{
		Role: role, Verdict: approval.Approve, MaxDuration: 4 * 3600, DecidedAt: a.statement.Created + 1, Signer: by,
	}, by})
}

// Shapes that a good attempt can have, beside that of a plain request.

func (a *attempt) underStanding() {
	a.votes = a.votes[len(enough):]
	a.standing = &approval.Standing{
		StandingID: "STANDING-1", Verdict: approval.Approve, TenantID: tenant, OrderID: orderID, Nodes: a.statement.Nodes,
		ReasonCodes: []string{a.statement.ReasonCode}, Access: approval.ReadWrite, MaxDuration: 4 * 3600,
		PolicyDigest: a.statement.PolicyDigest, Created: a.statement.Created - 3600, Until: a.statement.Created + 86400,
	}
}

func (a *attempt) breakGlass() {
	a.votes = nil
	a.statement.Exclusion, a.statement.Access = approval.BreakGlass, approval.ReadOnly
	a.vote("petra-laptop", approval.Provider)
	a.vote("paul-laptop", approval.Provider)
}

func (a *attempt) copying() { a.purpose = protocol.DataCopy }

// sign has people sign. Its errors say that a document makes no sense.
func (a *attempt) sign() (err error) {
	if a.purpose == protocol.DataCopy {
		a.envelope, err = a.f.people.envelope(a.consent, a.signers...)
		return err
	}
	if a.payload, err = a.statement.Encode(); err != nil {
		return err
	}
	for _, v := range a.votes {
		v.RequestDigest = cmp.Or(v.RequestDigest, approval.DigestOf(a.payload))
		e, err := a.f.people.forged(v.Decision, v.by, v.Signer)
		if err != nil {
			return err
		}
		a.decisions = append(a.decisions, e)
	}
	if a.standing != nil {
		e, err := a.f.people.envelope(*a.standing, a.signers...)
		if err != nil {
			return err
		}
		a.decisions = append(a.decisions, e)
	}
	return nil
}

// subject is what the order is about.
func (a *attempt) subject() approval.Digest {
	if a.purpose == protocol.SupportAccess {
		return approval.DigestOf(a.payload)
	}
	if e, err := approval.ParseEnvelope(a.envelope); err == nil {
		return e.Digest()
	}
	return approval.DigestOf(a.envelope)
}

// decided is the decisions digest, as SPEC.md says.
func (a *attempt) decided() approval.Digest {
	all := a.decisions
	if a.purpose == protocol.DataCopy {
		all = [][]byte{a.envelope}
	}
	lines := make([]string, len(all))
	for i, e := range all {
		lines[i] = string(approval.DigestOf(e)) + "\n"
	}
	slices.Sort(lines)
	return approval.DigestOf([]byte("databox-decisions-v1\n" + strings.Join(lines, "")))
}

// unlock goes as far as the device lets it. The error is the device's refusal.
func (a *attempt) unlock(ctx context.Context) error {
	c, seen, err := a.challenge(ctx)
	if err != nil {
		return err
	}
	return a.answer(ctx, c, seen)
}

// challenge asks the device for a challenge.
func (a *attempt) challenge(ctx context.Context) (c approval.Challenge, seen int64, err error) {
	if a.mute { // any will do
		c = approval.Challenge{Nonce: make([]byte, approval.NonceSize)}
		key, err := sealing.GenerateKey()
		if err != nil {
			return c, 0, err
		}
		c.HPKEKey = key.Public()
		return c, 0, nil
	}
	resp, err := a.d.node.Challenge(ctx, &devicev1.ChallengeRequest{
		SubjectDigest: string(cmp.Or(a.challengeFor, a.subject())), Purpose: string(cmp.Or(a.challengeAs, a.purpose)),
	})
	if err != nil {
		return c, 0, err
	}
	c, err = parseChallenge(resp.Challenge)
	return c, resp.LogSize, err
}

// answer sends the order for a challenge.
func (a *attempt) answer(ctx context.Context, c approval.Challenge, seen int64) (err error) {
	if a.sent, err = a.unlockRequest(c, seen); err != nil {
		return err
	}
	return a.send(ctx)
}

func (a *attempt) send(ctx context.Context) error {
	stream, err := a.d.node.Unlock(ctx, a.sent)
	if err != nil {
		return err
	}
	defer stream.Close()
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return errors.New("the device gave neither proof nor refusal")
		}
		if err != nil {
			return err
		}
		if len(m.Opened) > 0 {
			a.opened = m.Opened
			return nil
		}
	}
}

func (a *attempt) unlockRequest(c approval.Challenge, seen int64) (*devicev1.UnlockRequest, error) {
	order, err := a.makeOrder(c, seen)
	if err != nil {
		return nil, err
	}
	envelope, err := approval.SignEd25519(order, a.service)
	if err != nil {
		return nil, err
	}
	req := &devicev1.UnlockRequest{Order: envelope, Revocations: a.revocations, NodeKeys: [][]byte{a.d.spki}}
	if a.purpose == protocol.DataCopy {
		req.Consent = a.envelope
	} else {
		req.Statement, req.Decisions = a.payload, a.decisions
	}
	if a.request != nil {
		a.request(req)
	}
	return req, nil
}

func (a *attempt) makeOrder(c approval.Challenge, seen int64) (approval.Order, error) {
	proof, err := a.logIntent(c, seen)
	if err != nil {
		return approval.Order{}, err
	}
	o := approval.Order{
		Purpose: a.purpose, Node: approval.NameOf(a.d.id), RequestDigest: a.subject(), DecisionsDigest: a.decided(), Nonce: c.Nonce,
		IssuedAt: time.Now().Unix(), LogCheckpoint: proof.checkpoint, LogRecord: proof.record, LogIndex: proof.index,
		LogProof: proof.inclusion, LogConsistency: proof.consistency,
	}
	box := sealing.Context{
		RequestDigest: string(o.RequestDigest), DecisionsDigest: string(o.DecisionsDigest), Nonce: o.Nonce,
		Node: a.d.id, Disk: diskID, Purpose: a.purpose, KeyType: sealing.ExternalKey,
	}
	if a.seal != nil {
		a.seal(&box)
	}
	sealed, err := sealing.Seal(c.HPKEKey, box, a.diskKey)
	if err != nil {
		return o, err
	}
	o.Keys = []approval.SealedKey{{Disk: diskID, KeyType: string(sealing.ExternalKey), Ciphertext: sealed}}
	if a.order != nil {
		a.order(&o)
	}
	return o, nil
}

func (a *attempt) logIntent(c approval.Challenge, seen int64) (evidence, error) {
	r := auditlog.NewRecord(time.Now(), auditlog.OpUnlockIntent, auditlog.Start)
	r.CorrelationID = string(a.statement.RequestID)
	if a.purpose == protocol.DataCopy {
		r.CorrelationID = string(a.consent.ConsentID)
	}
	r.Properties = map[string]string{
		auditlog.PropertySubjectDigest: string(a.subject()), auditlog.PropertyNonce(a.d.id): hex.EncodeToString(c.Nonce),
	}
	if x := a.statement.Exclusion; x != "" && a.purpose == protocol.SupportAccess {
		r.Properties[auditlog.PropertyExclusion] = string(x)
	}
	if a.record != nil {
		a.record(&r)
	}
	p := a.f.plane
	p.logs.Lock()
	defer p.logs.Unlock()
	log := &p.honest
	if a.log != nil {
		log = a.log
	}
	return log.log(r, seen, a.logSigner)
}

// commit tells the device to share what it has opened.
func (a *attempt) commit(ctx context.Context, change func(*approval.Commit)) error {
	doc := approval.Commit{RequestDigest: a.subject(), Opened: [][]byte{a.opened}, IssuedAt: time.Now().Unix()}
	if change != nil {
		change(&doc)
	}
	envelope, err := approval.SignEd25519(doc, a.service)
	if err != nil {
		return err
	}
	_, err = a.d.node.Commit(ctx, &devicev1.CommitRequest{Commit: envelope})
	return err
}

// lock relocks, whatever is open; with spend, it uses up the approval.
func (a *attempt) lock(ctx context.Context, spend bool) error {
	req := &devicev1.LockRequest{Reason: "operator", Spend: spend}
	if spend {
		req.SubjectDigest = string(a.subject())
	}
	_, err := a.d.node.Lock(ctx, req)
	return err
}
