package hostile

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/sealing"
)

// kind is one way to try it without the customer. Its control is the same
// without before, after and try, and opens.
type kind struct {
	name   string
	shape  func(*attempt)                        // of what is good; nil: a request that all approve
	before func(*attempt)                        // what people truly signed is for something else
	after  func(*attempt)                        // what is made of what they signed
	try    func(context.Context, *attempt) error // in place of unlock; costs a disk or a clock, so it is rare
	good   func(context.Context, *attempt) error // the control in place of unlock
}

func pick[T any](rng *rand.Rand, list ...T) T { return list[rng.IntN(len(list))] }

// noise is bytes nobody has seen.
func noise(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func anyDigest(rng *rand.Rand) approval.Digest { return approval.DigestOf(noise(rng, 32)) }

// flip changes one byte.
func flip(rng *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	b[rng.IntN(len(b))] ^= byte(1 + rng.IntN(255))
	return b
}

// mangle changes how a JSON document is written, or what it says.
func mangle(rng *rand.Rand, b []byte) []byte {
	at := 1 + rng.IntN(len(b)-1)
	comma := bytes.IndexByte(b, ',')
	switch rng.IntN(7) {
	case 0:
		return b[:at]
	case 1: // the first member twice
		return slices.Concat(b[:comma], b[comma:comma+1], b[1:])
	case 2: // and last
		return slices.Concat(b[:len(b)-1], []byte(","), b[1:comma], []byte("}"))
	case 3:
		return slices.Concat(b[:1], []byte(" "), b[1:])
	case 4:
		return slices.Concat(b[:len(b)-1], []byte(`,"more":1}`))
	case 5:
		return slices.Concat(b, pick(rng, []byte("\n"), []byte("{}"), []byte(" "), b))
	}
	return flip(rng, b)
}

// one returns a place among the customers' decisions.
func (a *attempt) one() int { return a.rng.IntN(len(enough)) }

// reopen changes an envelope of a decision.
func (a *attempt) reopen(i int, change func(*approval.Envelope)) {
	e, err := approval.ParseEnvelope(a.decisions[i])
	if err != nil {
		return
	}
	change(&e)
	if data, err := e.Encode(); err == nil {
		a.decisions[i] = data
	}
}

// rewrite changes a decision under its signature.
func (a *attempt) rewrite(i int, change func(*approval.Decision)) {
	a.reopen(i, func(e *approval.Envelope) {
		d, err := approval.ParseDecision(e.Payload)
		if err != nil {
			return
		}
		change(&d)
		if data, err := d.Encode(); err == nil {
			e.Payload = data
		}
	})
}

// forge puts another's signature in the place of a customer's.
func (a *attempt) forge(by, keyID string, role approval.Role) {
	d := a.votes[0].Decision
	d.RequestDigest, d.Signer, d.Role = approval.DigestOf(a.payload), keyID, role
	if e, err := a.f.people.forged(d, by, keyID); err == nil {
		a.decisions[a.one()] = e
	}
}

// enlarge changes the statement after it was signed.
func enlarge(a *attempt) {
	s := &a.statement
	pick(a.rng,
		func() { s.RequestID += "0" },
		func() { s.TenantID += "x" },
		func() { s.SubscriptionID += "x" },
		func() { s.OrderID += "x" },
		func() { s.Access = approval.Delete },
		func() { s.ReasonCode += "x" },
		func() { s.Ticket += "1" },
		func() { s.Engineer.Person = "mallory@people.example" },
		func() { s.Engineer.SSHKey, _ = approval.SSHFingerprint(a.f.people["mallory-laptop"].line) },
		func() { s.MaxDuration += 1 + a.rng.Int64N(3600) },
		func() { s.Created -= 1 + a.rng.Int64N(3600) },
		func() { s.Expires += 1 + a.rng.Int64N(3600) },
		func() { s.Shares = []string{"contosodata_BlockBlob"} },
		func() { s.PolicyDigest = anyDigest(a.rng) },
	)()
	if payload, err := s.Encode(); err == nil {
		a.payload = payload
	}
}

// elsewhere makes what is signed one for another place.
func elsewhere(a *attempt) ([]approval.NodeRef, []approval.DiskRef) {
	n, d := a.statement.Nodes[0], a.statement.Disks[0]
	switch a.rng.IntN(4) {
	case 0:
		n.Serial = "DBX9999"
	case 1:
		n.Node = 2
	case 2:
		n.KeyFingerprint = anyDigest(a.rng)
	default:
		d.Disk = "disk2"
	}
	d.Node = approval.NameOf(n.ID())
	return []approval.NodeRef{n}, []approval.DiskRef{d}
}

// long moves the times of a request and of its decisions.
func (a *attempt) long(by time.Duration) {
	s := int64(by.Seconds())
	a.statement.Created, a.statement.Expires = a.statement.Created+s, a.statement.Expires+s
	for i := range a.votes {
		a.votes[i].DecidedAt += s
	}
}

func between(rng *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(rng.Int64N(int64(to-from)))
}

// stranger is a key of a machine that nobody trusts.
func stranger(rng *rand.Rand) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(noise(rng, ed25519.SeedSize))
}

// kinds are all ways that are tried.
func kinds() []kind {
	return slices.Concat(statementKinds(), decisionKinds(), otherConsents(), orderKinds(), logKinds(), rareKinds())
}

func statementKinds() []kind {
	return []kind{
		{name: "statement-field", after: enlarge},
		{name: "statement-json", after: func(a *attempt) { a.payload = mangle(a.rng, a.payload) }},
		{name: "statement-elsewhere", before: func(a *attempt) { a.statement.Nodes, a.statement.Disks = elsewhere(a) }},
		{name: "statement-policy", before: func(a *attempt) { a.statement.PolicyDigest = anyDigest(a.rng) }},
		{name: "statement-order", before: func(a *attempt) {
			pick(a.rng, func() { a.statement.OrderID = "ORD-1002" }, func() { a.statement.TenantID = "fabrikam" })()
		}},
		{name: "statement-action", before: func(a *attempt) {
			pick(a.rng, func() { a.statement.Action = approval.CopyData }, func() { a.statement.Action = "reboot" }, func() { a.statement.Purpose = protocol.DataCopy })()
		}},
		{name: "statement-over", before: func(a *attempt) { a.long(-between(a.rng, 5*time.Hour, 90*time.Hour)) }},
		{name: "statement-not-yet", before: func(a *attempt) { a.long(between(a.rng, 3*time.Minute, 90*time.Hour)) }},
		{name: "statement-of-approver", before: func(a *attempt) {
			who := a.f.people[pick(a.rng, enough...)]
			pick(a.rng, func() { a.statement.Engineer.Person = who.person }, func() { a.statement.Engineer.SSHKey, _ = approval.SSHFingerprint(who.line) })()
		}},
	}
}

func decisionKinds() []kind {
	return []kind{
		{name: "decision-missing", after: func(a *attempt) {
			a.rng.Shuffle(len(a.decisions), func(i, j int) { a.decisions[i], a.decisions[j] = a.decisions[j], a.decisions[i] })
			a.decisions = a.decisions[:a.rng.IntN(len(a.decisions))]
		}},
		{name: "decision-signature", after: func(a *attempt) {
			a.reopen(a.one(), func(e *approval.Envelope) { e.Signatures[0].Sig = flip(a.rng, e.Signatures[0].Sig) })
		}},
		{name: "decision-swap", after: func(a *attempt) {
			i := a.one()
			other, err := approval.ParseEnvelope(a.decisions[(i+1)%len(a.decisions)])
			if err == nil {
				a.reopen(i, func(e *approval.Envelope) { e.Signatures[0].Sig = other.Signatures[0].Sig })
			}
		}},
		{name: "decision-forged", after: func(a *attempt) {
			a.forge(pick(a.rng, "mallory-laptop", "petra-laptop", "erin-laptop"), pick(a.rng, enough...), approval.Customer)
		}},
		{name: "decision-stranger", after: func(a *attempt) { a.forge("mallory-laptop", "mallory-laptop", approval.Customer) }},
		{name: "decision-role", after: func(a *attempt) {
			by := pick(a.rng, providers...)
			a.forge(by, by, pick(a.rng, approval.Customer, approval.Provider))
		}},
		{name: "decision-recovery-key", after: func(a *attempt) { a.forge("rita-laptop", "rita-laptop", approval.Customer) }},
		{name: "decision-same-person", before: func(a *attempt) { a.votes[1].by, a.votes[1].Signer = "alice-phone", "alice-phone" }},
		{name: "decision-same-group", before: func(a *attempt) { a.votes[2].by, a.votes[2].Signer = "carla-laptop", "carla-laptop" }},
		{name: "decision-twice", after: func(a *attempt) {
			i := a.one()
			a.decisions[i] = a.decisions[(i+1+a.rng.IntN(len(a.decisions)-1))%len(a.decisions)]
		}},
		{name: "decision-other-request", before: func(a *attempt) { a.votes[a.one()].RequestDigest = anyDigest(a.rng) }},
		{name: "decision-deny", before: func(a *attempt) {
			v := &a.votes[a.rng.IntN(len(a.votes))]
			v.Verdict, v.MaxDuration = approval.Deny, 0
		}},
		{name: "decision-deny-turned", before: func(a *attempt) { a.votes[0].Verdict, a.votes[0].MaxDuration = approval.Deny, 0 },
			after: func(a *attempt) {
				a.rewrite(0, func(d *approval.Decision) { d.Verdict, d.MaxDuration = approval.Approve, 3600 })
			}},
		{name: "decision-longer", after: func(a *attempt) {
			a.rewrite(a.one(), func(d *approval.Decision) { d.MaxDuration += 1 + a.rng.Int64N(3600) })
		}},
		{name: "decision-json", after: func(a *attempt) { i := a.one(); a.decisions[i] = mangle(a.rng, a.decisions[i]) }},
		{name: "decision-payload-type", after: func(a *attempt) {
			a.reopen(a.one(), func(e *approval.Envelope) {
				e.PayloadType = pick(a.rng, approval.KindRequest, approval.KindConsent, approval.KindStanding, approval.KindRevocation, approval.KindPolicy)
			})
		}},
		{name: "decision-time", before: func(a *attempt) {
			a.votes[a.one()].DecidedAt += pick(a.rng, -int64(between(a.rng, 10*time.Minute, 9*time.Hour).Seconds()), int64(between(a.rng, 10*time.Minute, 200*time.Hour).Seconds()))
		}},
		{name: "decision-and-bad-one", after: func(a *attempt) {
			a.decisions = append(a.decisions, mangle(a.rng, a.decisions[a.one()]))
		}},
		{name: "revocation-unreadable", after: func(a *attempt) { a.revocations = [][]byte{mangle(a.rng, a.decisions[a.one()])} }},
	}
}

// otherConsents are about what stands in the place of decisions: standing
// consents, exclusions, and the consent to copy.
func otherConsents() []kind {
	return []kind{
		{name: "standing-short", shape: (*attempt).underStanding, before: func(a *attempt) { i := a.one(); a.signers = slices.Delete(a.signers, i, i+1) }},
		{name: "standing-signed-by-others", shape: (*attempt).underStanding, before: func(a *attempt) {
			a.signers[a.one()] = pick(a.rng, "petra-laptop", "mallory-laptop", "erin-laptop", "rita-laptop")
		}},
		{name: "standing-json", shape: (*attempt).underStanding, after: func(a *attempt) { i := len(a.decisions) - 1; a.decisions[i] = mangle(a.rng, a.decisions[i]) }},
		{name: "standing-for-other", shape: (*attempt).underStanding, before: func(a *attempt) {
			s := a.standing
			pick(a.rng, func() { s.ReasonCodes = []string{"other"} }, func() { s.Access = approval.ReadOnly }, func() { s.OrderID = "ORD-1002" },
				func() { s.TenantID = "fabrikam" }, func() { s.Nodes, _ = elsewhere(a); s.Nodes[0].Serial = "DBX9998" }, func() { s.PolicyDigest = anyDigest(a.rng) })()
		}},
		{name: "standing-over", shape: (*attempt).underStanding, before: func(a *attempt) {
			off := int64(between(a.rng, 48*time.Hour, 2000*time.Hour).Seconds())
			off *= pick(a.rng, int64(-1), 1)
			a.standing.Created, a.standing.Until = a.standing.Created+off, a.standing.Until+off
		}},
		{name: "standing-deny", shape: (*attempt).underStanding, before: func(a *attempt) { a.standing.Verdict, a.standing.MaxDuration = approval.Deny, 0 }},
		{name: "standing-alone", shape: (*attempt).underStanding, after: func(a *attempt) { a.decisions = a.decisions[1:] }},
		{name: "exclusion-not-agreed", shape: (*attempt).breakGlass, before: func(a *attempt) {
			a.statement.Exclusion = pick(a.rng, approval.LockboxOff, approval.InadvertentExposure, approval.LegalDemand)
		}},
		{name: "exclusion-further", shape: (*attempt).breakGlass, before: func(a *attempt) { a.statement.Access = pick(a.rng, approval.ReadWrite, approval.Delete) }},
		{name: "exclusion-short", shape: (*attempt).breakGlass, after: func(a *attempt) { i := a.rng.IntN(2); a.decisions[i] = a.decisions[1-i] }},
		{name: "exclusion-silent", shape: (*attempt).breakGlass, after: func(a *attempt) {
			a.record = func(r *auditlog.Record) {
				delete(r.Properties, auditlog.PropertyExclusion)
				if a.rng.IntN(2) == 0 {
					r.Properties[auditlog.PropertyExclusion] = string(approval.LegalDemand)
				}
			}
		}},
		{name: "exclusion-added", after: func(a *attempt) {
			a.statement.Exclusion, a.statement.Access = approval.BreakGlass, approval.ReadOnly
			if payload, err := a.statement.Encode(); err == nil {
				a.payload = payload
			}
		}},
		{name: "exclusion-signed-by-one", shape: (*attempt).breakGlass, before: func(a *attempt) { a.votes[1].by = pick(a.rng, "petra-laptop", "mallory-laptop", "erin-laptop") }},
		{name: "consent-for-support", shape: (*attempt).copying, after: func(a *attempt) {
			a.order = func(o *approval.Order) { o.Purpose = protocol.SupportAccess }
			a.challengeAs = pick(a.rng, protocol.SupportAccess, protocol.DataCopy)
		}},
		{name: "statement-for-copy", after: func(a *attempt) { a.order = func(o *approval.Order) { o.Purpose = protocol.DataCopy } }},
		{name: "consent-beside-statement", after: func(a *attempt) {
			a.request = func(r *devicev1.UnlockRequest) { r.Consent = noise(a.rng, 1+a.rng.IntN(100)) }
		}},
		{name: "consent-as-decision", after: func(a *attempt) {
			if e, err := a.f.people.envelope(a.consent, enough...); err == nil {
				a.decisions = [][]byte{e, a.decisions[len(a.decisions)-1]}
			}
		}},
		{name: "consent-short", shape: (*attempt).copying, before: func(a *attempt) { i := a.one(); a.signers = slices.Delete(a.signers, i, i+1) }},
		{name: "consent-signed-by-others", shape: (*attempt).copying, before: func(a *attempt) {
			a.signers[a.one()] = pick(a.rng, "petra-laptop", "mallory-laptop", "erin-laptop", "rita-laptop")
		}},
		{name: "consent-json", shape: (*attempt).copying, after: func(a *attempt) { a.envelope = mangle(a.rng, a.envelope) }},
		{name: "consent-elsewhere", shape: (*attempt).copying, before: func(a *attempt) { a.consent.Nodes, a.consent.Disks = elsewhere(a) }},
		{name: "consent-other", shape: (*attempt).copying, before: func(a *attempt) {
			pick(a.rng, func() { a.consent.PolicyDigest = anyDigest(a.rng) }, func() { a.consent.OrderID = "ORD-1002" }, func() { a.consent.TenantID = "fabrikam" })()
		}},
		{name: "consent-over", shape: (*attempt).copying, before: func(a *attempt) {
			off := int64(between(a.rng, 31*24*time.Hour, 3000*time.Hour).Seconds()) * pick(a.rng, int64(-1), 1)
			a.consent.Created, a.consent.Until = a.consent.Created+off, a.consent.Until+off
		}},
		{name: "consent-destination", shape: (*attempt).copying, after: func(a *attempt) {
			e, err := approval.ParseEnvelope(a.envelope)
			if err != nil {
				return
			}
			a.consent.Destinations[0].Endpoint = "https://mallory.example/"
			if e.Payload, err = a.consent.Encode(); err == nil {
				a.envelope, _ = e.Encode()
			}
		}},
		{name: "access-elsewhere", shape: (*attempt).copying, after: func(a *attempt) {
			a.order = func(o *approval.Order) {
				to := pick(a.rng, approval.Destination{Account: "mallorydata", Endpoint: a.consent.Destinations[0].Endpoint},
					approval.Destination{Account: a.consent.Destinations[0].Account, Endpoint: "https://mallory.example/"})
				o.Access = []approval.SealedAccess{{Account: to.Account, Endpoint: to.Endpoint, KeyType: string(sealing.AccessToStorage), Ciphertext: noise(a.rng, 1200)}}
			}
		}},
		{name: "access-garbled", shape: (*attempt).copying, after: func(a *attempt) {
			a.order = func(o *approval.Order) {
				to := a.consent.Destinations[0]
				o.Access = []approval.SealedAccess{{Account: to.Account, Endpoint: to.Endpoint, KeyType: string(sealing.AccessToStorage), Ciphertext: noise(a.rng, 1+a.rng.IntN(3000))}}
			}
		}},
	}
}

func orderKinds() []kind {
	order := func(change func(*attempt, *approval.Order)) func(*attempt) {
		return func(a *attempt) { a.order = func(o *approval.Order) { change(a, o) } }
	}
	return []kind{
		{name: "order-signed-by-another", after: func(a *attempt) { a.service = pick(a.rng, stranger(a.rng), a.f.plane.log) }},
		{name: "order-json", after: func(a *attempt) { a.request = func(r *devicev1.UnlockRequest) { r.Order = mangle(a.rng, r.Order) } }},
		{name: "order-nonce", after: order(func(a *attempt, o *approval.Order) { o.Nonce = flip(a.rng, o.Nonce) })},
		{name: "order-unasked", after: func(a *attempt) { a.mute = true }},
		{name: "challenge-for-another", after: func(a *attempt) { a.challengeFor = anyDigest(a.rng) }},
		{name: "challenge-as-another", after: func(a *attempt) { a.challengeAs = protocol.DataCopy }},
		{name: "order-node", after: order(func(a *attempt, o *approval.Order) {
			o.Node = pick[approval.NodeName](a.rng, "DBX9999/1", approval.NodeName(a.d.id.Serial)+"/2")
		})},
		{name: "order-subject", after: order(func(a *attempt, o *approval.Order) { o.RequestDigest = anyDigest(a.rng) })},
		{name: "order-decisions", after: order(func(a *attempt, o *approval.Order) { o.DecisionsDigest = anyDigest(a.rng) })},
		{name: "order-time", after: order(func(a *attempt, o *approval.Order) {
			o.IssuedAt += pick(a.rng, int64(-1), 1) * int64(between(a.rng, 3*time.Minute, 1000*time.Hour).Seconds())
		})},
		{name: "order-disks", after: order(func(a *attempt, o *approval.Order) {
			more := o.Keys[0]
			more.Disk = "disk2"
			if o.Keys = append(o.Keys, more); a.rng.IntN(2) == 0 {
				o.Keys = o.Keys[1:]
			}
		})},
		{name: "node-keys", after: func(a *attempt) {
			a.request = func(r *devicev1.UnlockRequest) { r.NodeKeys = append(r.NodeKeys, flip(a.rng, r.NodeKeys[0])) }
		}},
	}
}

func logKinds() []kind {
	record := func(change func(*attempt, *auditlog.Record)) func(*attempt) {
		return func(a *attempt) { a.record = func(r *auditlog.Record) { change(a, r) } }
	}
	return []kind{
		{name: "log-signed-by-another", after: func(a *attempt) { a.logSigner, _ = auditlog.NewSigner(logName, stranger(a.rng)) }},
		{name: "log-rewritten", after: func(a *attempt) { a.log = &a.f.plane.rewritten }},
		{name: "log-rolled-back", after: func(a *attempt) { a.log, _ = a.f.plane.honest.begin() }},
		{name: "log-proof", after: func(a *attempt) {
			a.order = func(o *approval.Order) {
				pick(a.rng, func() { o.LogIndex += pick(a.rng, int64(1), 2, 1000) }, func() { o.LogProof = nil },
					func() { o.LogProof[a.rng.IntN(len(o.LogProof))] = noise(a.rng, 32) }, func() { o.LogRecord = flip(a.rng, o.LogRecord) })()
			}
		}},
		{name: "log-consistency", after: func(a *attempt) {
			a.order = func(o *approval.Order) { o.LogConsistency = append(o.LogConsistency, noise(a.rng, 32)) }
		}},
		{name: "log-of-another-act", after: record(func(a *attempt, r *auditlog.Record) {
			pick(a.rng, func() { r.Operation = auditlog.OpApproveRequest; r.Category = r.Operation.Category() }, func() { r.Origin = a.d.id.String() }, func() { r.CorrelationID += "x" },
				func() { r.Properties[auditlog.PropertySubjectDigest] = string(anyDigest(a.rng)) },
				func() { delete(r.Properties, auditlog.PropertyNonce(a.d.id)) }, func() { r.Properties[auditlog.PropertyExclusion] = string(approval.BreakGlass) })()
		})},
	}
}

// rareKinds open a disk, write on one, or set a clock before they attack.
func rareKinds() []kind {
	return []kind{
		{name: "order-replayed", try: func(ctx context.Context, a *attempt) error {
			if _, _, err := a.challenge(ctx); err != nil {
				return err
			}
			a.request = func(r *devicev1.UnlockRequest) { r.Order = a.d.captured }
			return a.unlock(ctx)
		}},
		{name: "challenge-outdated", try: func(ctx context.Context, a *attempt) error {
			c, seen, err := a.challenge(ctx)
			if err != nil {
				return err
			}
			if _, _, err := a.challenge(ctx); err != nil {
				return err
			}
			return a.answer(ctx, c, seen)
		}},
		{name: "clock-set-back", before: func(a *attempt) { a.long(-between(a.rng, 10*time.Hour, 90*time.Hour)) }, try: func(ctx context.Context, a *attempt) error {
			then := time.Unix(a.statement.Created+10, 0)
			a.d.clock.set(time.Until(then))
			defer a.d.clock.set(0)
			a.order = func(o *approval.Order) { o.IssuedAt = then.Unix() }
			return a.unlock(ctx)
		}},
		{name: "clock-set-forth", try: func(ctx context.Context, a *attempt) error {
			a.d.clock.set(between(a.rng, 3*time.Minute, 3*time.Hour))
			defer a.d.clock.set(0)
			return a.unlock(ctx)
		}},
		{name: "spent", try: func(ctx context.Context, a *attempt) error {
			if err := a.lock(ctx, true); err != nil {
				return err
			}
			return a.unlock(ctx)
		}},
		{name: "revoked", try: func(ctx context.Context, a *attempt) error {
			by := pick(a.rng, customers...)
			e, err := a.f.people.envelope(approval.Revocation{SubjectDigest: a.subject(), RevokedAt: time.Now().Unix(), Signer: by}, by)
			if err != nil {
				return err
			}
			a.revocations = [][]byte{e}
			if err := a.unlock(ctx); protocol.CodeOf(err) != protocol.CodeRevoked {
				return err
			}
			a.revocations = nil // once seen is for good
			return a.unlock(ctx)
		}},
		{name: "order-key-type", try: plain, after: func(a *attempt) {
			a.order = func(o *approval.Order) { o.Keys[0].KeyType = pick(a.rng, "recovery-password", "external-key2", "key") }
		}},
		{name: "key-sealed-for-another", try: plain, after: func(a *attempt) {
			a.seal = func(c *sealing.Context) {
				pick(a.rng, func() { c.RequestDigest = string(anyDigest(a.rng)) }, func() { c.DecisionsDigest = string(anyDigest(a.rng)) }, func() { c.Nonce = noise(a.rng, len(c.Nonce)) },
					func() { c.Node.Node = 2 }, func() { c.Disk = "disk2" }, func() { c.Purpose = protocol.DataCopy })()
			}
		}},
		{name: "key-changed", try: plain, after: func(a *attempt) {
			a.order = func(o *approval.Order) { o.Keys[0].Ciphertext = flip(a.rng, o.Keys[0].Ciphertext) }
		}},
		{name: "wrong-disk-key", after: func(a *attempt) { a.diskKey = flip(a.rng, a.diskKey) }, try: plain},
		{name: "policy-successor", try: trySuccessor, good: goodSuccessor},
		{name: "commit", try: tryCommit, good: goodCommit},
	}
}

// plain is how it is tried if a kind says nothing else.
func plain(ctx context.Context, a *attempt) error { return a.unlock(ctx) }

// trySuccessor brings a trust policy that the old one's customers did not sign.
func trySuccessor(ctx context.Context, a *attempt) error {
	next := a.d.policy.Document()
	next.Version, next.PreviousDigest = next.Version+1, a.d.policy.Digest()
	signers := []string{"alice-laptop", "dave-laptop"}
	switch a.rng.IntN(6) {
	case 0:
		signers = slices.Clone(providers)
	case 1:
		signers = []string{"mallory-laptop"}
	case 2: // all have signed what is not the next version
		signers = slices.Clone(enough)
		next.PreviousDigest = anyDigest(a.rng)
	case 3:
		signers = slices.Clone(enough)
		next.OrderID = "ORD-1002"
	case 4: // the recovery key makes another its successor
		signers = []string{"rita-laptop"}
		key, err := a.f.people.key("mallory-laptop")
		if err != nil {
			return err
		}
		next.RecoveryKey = &key
	default:
		next.Rules = slices.Clone(next.Rules)
		next.Rules[0].CustomerGroups = next.Rules[0].CustomerGroups[:1]
	}
	e, err := a.f.people.envelope(next, signers...)
	if err != nil {
		return err
	}
	_, err = a.d.node.UpdateTrustPolicy(ctx, &devicev1.UpdateTrustPolicyRequest{Policy: e})
	return err
}

// goodSuccessor brings the next version, and opens under it.
func goodSuccessor(ctx context.Context, a *attempt) error {
	next := a.d.policy.Document()
	next.Version, next.PreviousDigest = next.Version+1, a.d.policy.Digest()
	e, err := a.f.people.envelope(next, enough...)
	if err != nil {
		return err
	}
	if _, err := a.d.node.UpdateTrustPolicy(ctx, &devicev1.UpdateTrustPolicyRequest{Policy: e}); err != nil {
		return err
	}
	if a.d.policy, err = a.d.policy.VerifySuccessor(e); err != nil {
		return err
	}
	b := a.f.attempt(a.d, a.rng)
	if err := b.sign(); err != nil {
		return err
	}
	err = b.unlock(ctx)
	a.sent = b.sent
	return err
}

// goodCommit opens, and shares.
func goodCommit(ctx context.Context, a *attempt) error {
	if err := a.unlock(ctx); err != nil {
		return err
	}
	return a.commit(ctx, nil)
}

// tryCommit opens with everything right and commits with something wrong.
func tryCommit(ctx context.Context, a *attempt) error {
	if err := a.unlock(ctx); err != nil {
		return err
	}
	proof, err := approval.ParseEnvelope(a.opened)
	if err != nil {
		return err
	}
	said, err := approval.ParseOpened(proof.Payload)
	if err != nil {
		return err
	}
	forged := func(c *approval.Commit) { // by a key the attacker has
		key := stranger(a.rng)
		said.NodeKey = key.Public().(ed25519.PublicKey)
		if e, err := approval.SignEd25519(said, key); err == nil {
			c.Opened = [][]byte{e}
		}
	}
	var change func(*approval.Commit)
	switch a.rng.IntN(5) {
	case 0:
		a.service = stranger(a.rng)
	case 1:
		change = func(c *approval.Commit) { c.RequestDigest = anyDigest(a.rng) }
	case 2:
		change = func(c *approval.Commit) { c.Opened = [][]byte{mangle(a.rng, a.opened)} }
	case 3:
		change = forged
	default:
		said.IntentDigest = anyDigest(a.rng)
		change = forged
	}
	return a.commit(ctx, change)
}
