package approval

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/protocol"
)

// maxEnvelopes bounds the decisions and the revocations of one request.
const maxEnvelopes = 64

// Request is what [Policy.Authorize] judges.
type Request struct {
	Statement   []byte            // payload of the request statement
	Decisions   [][]byte          // envelopes of decisions on it; one may be of a standing consent
	Revocations [][]byte          // envelopes; those of other subjects change nothing
	Self        *NodeRef          // the node that asks; nil for custody, which asks for all
	SelfDisks   []protocol.DiskID // the disks that node has; with Self only
	Now         time.Time
}

// Grant is an approved request: what may be done, and for how long.
type Grant struct {
	Statement       Statement
	RequestDigest   Digest
	DecisionsDigest Digest
	Access          Access
	Start           time.Time // the customer decision that completed the thresholds; where none is asked for, the provider's
	End             time.Time // Start and the shortest of all durations, but not after a standing consent
	Standing        *Standing // what stands for the customer's decisions, nil if they made them
	StandingDigest  Digest    // of Standing, "" if there is none; a verifier that knows it as revoked refuses
}

// Authorize decides whether a statement and its decisions allow to unlock now.
// It checks, in this order and with a code for each: form, action or exclusion
// known to the policy, engineer, each decision's signature and role, denials,
// thresholds, the policy named, purpose, node, disks, window, revocations.
func (p *Policy) Authorize(in Request) (Grant, error) {
	st, err := ParseStatement(in.Statement)
	if err == nil && st.Action == AccessSubscription {
		err = protocol.Errorf(protocol.CodeAction, "%s opens no device: ask for %s", AccessSubscription, UnlockDatabox)
	}
	if err != nil {
		return Grant{}, err
	}
	return p.authorize(in, st)
}

// AuthorizeAccess decides whether a statement and its decisions allow to see now
// what the service knows of a subscription or tenant. It judges as
// [Policy.Authorize] does, by the groups of the rule for [UnlockDatabox]; no device
// does, and what it grants opens none.
func (p *Policy) AuthorizeAccess(in Request) (Grant, error) {
	st, err := ParseStatement(in.Statement)
	if err == nil && st.Action != AccessSubscription {
		err = protocol.Errorf(protocol.CodeAction, "the statement asks for %s, not for %s", st.Action, AccessSubscription)
	}
	if err != nil {
		return Grant{}, err
	}
	in.Self, in.SelfDisks = nil, nil
	return p.authorize(in, st)
}

func (p *Policy) authorize(in Request, st Statement) (Grant, error) {
	digest := DigestOf(in.Statement)
	rule, err := p.RuleFor(st)
	if err != nil {
		return Grant{}, err
	}
	given, err := p.readDecisions(in.Decisions, rule, st, digest)
	if err != nil {
		return Grant{}, err
	}
	start, err := p.tally(rule, given)
	if err != nil {
		return Grant{}, err
	}
	if err := p.checkScope(st.PolicyDigest, st.TenantID, st.OrderID); err != nil {
		return Grant{}, err
	}
	if st.Action != UnlockDatabox && st.Action != AccessSubscription || st.Purpose != protocol.SupportAccess {
		return Grant{}, protocol.Errorf(protocol.CodeAction,
			"a request statement can ask for %s as %s only, not for %s as %s",
			UnlockDatabox, protocol.SupportAccess, st.Action, st.Purpose)
	}
	if err := checkPlace(in.Self, in.SelfDisks, st.Nodes, st.Disks); err != nil {
		return Grant{}, err
	}
	grant := Grant{
		Statement:       st,
		RequestDigest:   digest,
		DecisionsDigest: digestOfAll(in.Decisions),
		Access:          st.Access,
		Start:           unixTime(start),
		End:             unixTime(start + shortest(rule, st, given.votes)),
	}
	subjects := []Digest{digest}
	if s := given.standing; s != nil {
		grant.Standing, grant.StandingDigest = &s.doc, s.Digest()
		subjects = append(subjects, grant.StandingDigest)
		if err := s.doc.checkTime(&grant); err != nil {
			return Grant{}, err
		}
	}
	if err := checkWindow(st, given.votes, grant, in.Now); err != nil {
		return Grant{}, err
	}
	if err := p.checkRevoked(in.Revocations, subjects...); err != nil {
		return Grant{}, err
	}
	return grant, nil
}

// CopyRequest is what [Policy.AuthorizeCopy] judges.
type CopyRequest struct {
	Consent     []byte            // envelope of the consent
	Revocations [][]byte          // envelopes; those of other subjects change nothing
	Self        *NodeRef          // the node that asks; nil for custody, which asks for all
	SelfDisks   []protocol.DiskID // the disks that node has; with Self only
	Now         time.Time
}

// CopyGrant is a valid consent: where the copy job may write, and for how long.
type CopyGrant struct {
	Consent         Consent
	ConsentDigest   Digest
	DecisionsDigest Digest // of the one envelope
	Destinations    []Destination
	End             time.Time // of a lease that begins now: the policy's longest, but not after the consent
}

// AuthorizeCopy decides whether a consent allows to unlock for the copy job
// now. It checks as [Policy.Authorize] does, but for decisions.
func (p *Policy) AuthorizeCopy(in CopyRequest) (CopyGrant, error) {
	e, err := open[Consent](in.Consent)
	if err != nil {
		return CopyGrant{}, err
	}
	c, digest := e.doc, e.Digest()
	rule, err := p.ruleFor(CopyData)
	if err != nil {
		return CopyGrant{}, err
	}
	if err := p.verifyGroups(e.Envelope, []Rule{rule}); err != nil {
		return CopyGrant{}, err
	}
	if err := p.checkScope(c.PolicyDigest, c.TenantID, c.OrderID); err != nil {
		return CopyGrant{}, err
	}
	if err := checkPlace(in.Self, in.SelfDisks, c.Nodes, c.Disks); err != nil {
		return CopyGrant{}, err
	}
	now := in.Now
	if now.Before(unixTime(c.Created).Add(-Skew)) || !now.Before(unixTime(c.Until)) {
		return CopyGrant{}, protocol.Errorf(protocol.CodeWindow, "the consent is valid from %s until %s, now is %s",
			protocol.Stamp(unixTime(c.Created)), protocol.Stamp(unixTime(c.Until)), protocol.Stamp(now))
	}
	if err := p.checkRevoked(in.Revocations, digest); err != nil {
		return CopyGrant{}, err
	}
	end := now.Add(time.Duration(rule.MaxDuration) * time.Second)
	if until := unixTime(c.Until); until.Before(end) {
		end = until
	}
	return CopyGrant{c, digest, digestOfAll([][]byte{in.Consent}), c.Destinations, end}, nil
}

// Destination returns the destination with this account and endpoint, or an
// error with [protocol.CodeAction] if the customer did not name it.
func (g CopyGrant) Destination(account, endpoint string) (Destination, error) {
	for _, d := range g.Destinations {
		if d.Account == account && d.Endpoint == endpoint {
			return d, nil
		}
	}
	return Destination{}, protocol.Errorf(protocol.CodeAction,
		"the consent does not name account %q at %q as a destination", account, endpoint)
}

func (p *Policy) ruleFor(a Action) (Rule, error) {
	rule, ok := p.Rule(a)
	if !ok {
		return Rule{}, protocol.Errorf(protocol.CodeAction, "the trust policy has no rule for action %q", a)
	}
	return rule, nil
}

// vote is one verified decision.
type vote struct {
	Decision
	person protocol.Person
}

// given is what people decided, verified: on the statement, or before.
type given struct {
	votes    []vote
	standing *signed[Standing] // nil if there is none
}

// readDecisions verifies each decision: over this statement, by a key that the
// rule names for its role, and not by the engineer. A standing consent among them
// must cover the statement.
func (p *Policy) readDecisions(envelopes [][]byte, rule Rule, st Statement, digest Digest) (given, error) {
	if len(envelopes) > maxEnvelopes {
		return given{}, invalid("%d decisions are too many: at most %d", len(envelopes), maxEnvelopes)
	}
	if err := p.refuseEngineer(rule, st.Engineer); err != nil {
		return given{}, err
	}
	var all given
	for i, data := range envelopes {
		if slices.ContainsFunc(envelopes[:i], func(b []byte) bool { return string(b) == string(data) }) {
			return given{}, invalid("decision %d is there twice", i+1)
		}
		if err := p.readInto(&all, data, rule, st, digest); err != nil {
			return given{}, err
		}
	}
	return all, nil
}

func (p *Policy) readInto(all *given, data []byte, rule Rule, st Statement, digest Digest) error {
	if e, err := ParseEnvelope(data); err != nil || e.PayloadType != KindStanding {
		v, err := p.readDecision(data, rule, st.Engineer, digest)
		all.votes = append(all.votes, v)
		return err
	}
	if all.standing != nil {
		return invalid("there are two standing consents: one is enough")
	}
	s, err := p.readStanding(data, rule, st)
	all.standing = &s
	return err
}

func (p *Policy) readDecision(data []byte, rule Rule, engineer Engineer, digest Digest) (vote, error) {
	e, err := open[Decision](data)
	if err != nil {
		return vote{}, err
	}
	d, s, err := single(e, e.doc.Signer)
	if err != nil {
		return vote{}, err
	}
	if pub := sshsigKey(s.Sig); pub != nil && ssh.FingerprintSHA256(pub) == engineer.SSHKey {
		return vote{}, fromEngineer(engineer)
	}
	k, ok := p.keys[s.KeyID]
	if ok && k.Person == engineer.Person {
		return vote{}, fromEngineer(engineer)
	}
	if !ok || !inGroups(rule.groupsOf(d.Role), s.KeyID) {
		return vote{}, unknownSigner(KindDecision, s.KeyID)
	}
	if err := k.verifyIn(e.Envelope, s); err != nil {
		return vote{}, err
	}
	if d.RequestDigest != digest {
		return vote{}, protocol.Errorf(protocol.CodeSignatureInvalid,
			"the decision of %s is for request %s, not for %s", k.Person, d.RequestDigest, digest)
	}
	return vote{d, k.Person}, nil
}

// single returns the document and the one signature of an envelope that one
// signer, named in the document, must have signed alone.
func single[T document](e signed[T], signer string) (T, Signature, error) {
	if len(e.Signatures) != 1 || e.Signatures[0].KeyID != signer {
		return e.doc, Signature{}, protocol.Errorf(protocol.CodeSignatureInvalid,
			"the %s must have one signature, of its signer %q", e.PayloadType.name(), signer)
	}
	return e.doc, e.Signatures[0], nil
}

// refuseEngineer refuses a request whose engineer is among the approvers asked.
func (p *Policy) refuseEngineer(rule Rule, engineer Engineer) error {
	for _, g := range rule.groups() {
		for _, id := range g.Keys {
			k := p.keys[id]
			if k.Person == engineer.Person || k.Fingerprint() == engineer.SSHKey {
				return fromEngineer(engineer)
			}
		}
	}
	return nil
}

func fromEngineer(engineer Engineer) error {
	return protocol.Errorf(protocol.CodeSignerEngineer,
		"%s asks and would approve: the engineer's key counts for no approving role", engineer.Person)
}

// tally counts the votes and returns when the customers' thresholds were
// complete, in Unix seconds; the provider's, where no decision of the customer's
// is asked for. A single denial refuses.
func (p *Policy) tally(rule Rule, all given) (int64, error) {
	approved := map[Role]approvals{Customer: {}, Provider: {}}
	for _, v := range all.votes {
		if v.Verdict == Deny {
			return 0, protocol.Errorf(protocol.CodeDenied, "%s denied the request", v.person)
		}
		approved[v.Role].add(v.person, v.DecidedAt)
	}
	if s := all.standing; s != nil && s.doc.Verdict == Deny {
		return 0, protocol.Errorf(protocol.CodeDenied, "standing consent %s denies the request", s.doc.StandingID)
	}
	provided, err := p.completed(rule.ProviderGroups, approved[Provider])
	if err != nil || all.standing != nil || len(rule.CustomerGroups) == 0 {
		return provided, err
	}
	return p.completed(rule.CustomerGroups, approved[Customer])
}

// approvals holds when each person first approved, in Unix seconds.
type approvals map[protocol.Person]int64

func (a approvals) add(who protocol.Person, at int64) {
	if first, ok := a[who]; !ok || at < first {
		a[who] = at
	}
}

// completed returns when the last of the groups reached its threshold, or an
// error with [protocol.CodeDecisionMissing] naming one that has not.
func (p *Policy) completed(groups []Group, given approvals) (int64, error) {
	var last int64
	for _, g := range groups {
		var times []int64
		for _, who := range p.people(g) {
			if at, ok := given[who]; ok {
				times = append(times, at)
			}
		}
		if len(times) < g.Threshold {
			return 0, protocol.Errorf(protocol.CodeDecisionMissing,
				"group %q has %d of the %d approvals it needs", g.Name, len(times), g.Threshold)
		}
		slices.Sort(times)
		last = max(last, times[g.Threshold-1])
	}
	return last, nil
}

// people returns the people of a group, each once.
func (p *Policy) people(g Group) []protocol.Person {
	var list []protocol.Person
	for _, id := range g.Keys {
		if who := p.keys[id].Person; !slices.Contains(list, who) {
			list = append(list, who)
		}
	}
	return list
}

func (r Rule) groupsOf(role Role) []Group {
	if role == Customer {
		return r.CustomerGroups
	}
	return r.ProviderGroups
}

func inGroups(groups []Group, keyID string) bool {
	return slices.ContainsFunc(groups, func(g Group) bool { return slices.Contains(g.Keys, keyID) })
}

// checkScope checks that a document was made under this policy.
func (p *Policy) checkScope(digest Digest, tenant protocol.TenantID, order protocol.OrderID) error {
	switch {
	case digest != p.digest:
		return protocol.Errorf(protocol.CodePolicyDigest, "made under trust policy %s, the one in force is %s", digest, p.digest)
	case tenant != p.doc.TenantID:
		return protocol.Errorf(protocol.CodePolicyDigest, "made for tenant %q, the trust policy is of %q", tenant, p.doc.TenantID)
	case p.doc.OrderID != "" && order != p.doc.OrderID:
		return protocol.Errorf(protocol.CodePolicyDigest, "made for order %q, the trust policy is of %q", order, p.doc.OrderID)
	}
	return nil
}

// checkPlace checks that a document is for this node, with this key, and names
// disks that it has.
func checkPlace(self *NodeRef, has []protocol.DiskID, nodes []NodeRef, disks []DiskRef) error {
	if self == nil {
		return nil
	}
	if !slices.Contains(nodes, *self) {
		return protocol.Errorf(protocol.CodeNode, "the approval is not for node %s with key %s", self.ID(), self.KeyFingerprint)
	}
	for _, d := range disksOf(disks, self.ID()) {
		if !slices.Contains(has, d) {
			return protocol.Errorf(protocol.CodeDisks, "the approval names disk %s, which node %s does not have", d, self.ID())
		}
	}
	return nil
}

// shortest returns the shortest of all durations, in seconds.
func shortest(rule Rule, st Statement, votes []vote) int64 {
	d := min(rule.MaxDuration, st.MaxDuration)
	for _, v := range votes {
		d = min(d, v.MaxDuration)
	}
	return d
}

// checkWindow checks that every decision was made while the statement was
// open, and that now lies in what they grant.
func checkWindow(st Statement, votes []vote, g Grant, now time.Time) error {
	late := func(format string, args ...any) error {
		return protocol.Errorf(protocol.CodeWindow, format, args...)
	}
	opens, closes, latest := unixTime(st.Created).Add(-Skew), unixTime(st.Expires), now.Add(Skew)
	if latest.Before(unixTime(st.Created)) {
		return late("the request is of %s, now is %s: check the clock", protocol.Stamp(unixTime(st.Created)), protocol.Stamp(now))
	}
	for _, v := range votes {
		switch at := unixTime(v.DecidedAt); {
		case at.Before(opens) || at.After(closes):
			return late("%s decided at %s, the request was open from %s to %s",
				v.person, protocol.Stamp(at), protocol.Stamp(unixTime(st.Created)), protocol.Stamp(closes))
		case at.After(latest):
			return late("%s decided at %s, now is %s: check the clock", v.person, protocol.Stamp(at), protocol.Stamp(now))
		}
	}
	if !now.Before(g.End) {
		return late("the access ended at %s, now is %s", protocol.Stamp(g.End), protocol.Stamp(now))
	}
	return nil
}

// checkRevoked refuses when a revocation names a subject, and when one
// cannot be verified: what was meant to end access must not be lost.
func (p *Policy) checkRevoked(envelopes [][]byte, subjects ...Digest) error {
	if len(envelopes) > maxEnvelopes {
		return invalid("%d revocations are too many: at most %d", len(envelopes), maxEnvelopes)
	}
	for _, data := range envelopes {
		r, err := p.VerifyRevocation(data)
		if err != nil {
			return err
		}
		if slices.Contains(subjects, r.SubjectDigest) {
			return protocol.Errorf(protocol.CodeRevoked, "revoked by %s at %s", r.Signer, protocol.Stamp(unixTime(r.RevokedAt)))
		}
	}
	return nil
}

// VerifyRevocation verifies that someone the policy names, or the service,
// signed a revocation.
func (p *Policy) VerifyRevocation(envelope []byte) (Revocation, error) {
	e, err := open[Revocation](envelope)
	if err != nil {
		return Revocation{}, err
	}
	r, s, err := single(e, e.doc.Signer)
	if err != nil {
		return Revocation{}, err
	}
	v, ok := verifier(p.keys[s.KeyID].verifier), true
	if v == nil {
		v, ok = p.services[s.KeyID]
	}
	if !ok {
		return Revocation{}, unknownSigner(KindRevocation, s.KeyID)
	}
	if err := v.verify(KindRevocation, e.PAE(), s.Sig); err != nil {
		return Revocation{}, protocol.Errorf(protocol.CodeSignatureInvalid,
			"signature of %s on the revocation is not valid: %v", s.KeyID, err)
	}
	return r, nil
}

// digestOfAll returns the digest of a set of envelopes, whatever their order.
func digestOfAll(envelopes [][]byte) Digest {
	digests := make([]string, 0, len(envelopes))
	for _, e := range envelopes {
		digests = append(digests, string(DigestOf(e)))
	}
	slices.Sort(digests)
	h := sha256.New()
	fmt.Fprint(h, "databox-decisions-v1\n")
	for _, d := range digests {
		fmt.Fprintf(h, "%s\n", d)
	}
	return Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
}
