package approval

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Standing is a decision that the customer makes before anybody asks: it stands
// for all their decisions about the requests that it covers, until it ends. Its
// envelope carries the signatures of the customers, as many as they need to
// approve one request. Where it approves, the provider's own people still have to
// look at each request: the control plane alone cannot use it.
type Standing struct {
	Header
	StandingID   string            `json:"standingId"`
	Verdict      Verdict           `json:"verdict"`
	TenantID     protocol.TenantID `json:"tenantId"`
	OrderID      protocol.OrderID  `json:"orderId"`
	Nodes        []NodeRef         `json:"nodes"`       // of the device it is about
	ReasonCodes  []string          `json:"reasonCodes"` // of the requests it covers
	Access       Access            `json:"access"`      // approving: the furthest; denying: the least that is denied
	MaxDuration  int64             `json:"maxDuration"` // seconds; 0 exactly when denying
	PolicyDigest Digest            `json:"policyDigest"`
	Created      int64             `json:"created"` // Unix seconds
	Until        int64             `json:"until"`   // Unix seconds; no access under it lasts longer
}

// ParseStanding reads a standing consent.
func ParseStanding(payload []byte) (Standing, error) { return decode[Standing](payload) }

// Encode returns the canonical bytes of s.
func (s Standing) Encode() ([]byte, error) { s.V = Version; return encode(s) }

// Kind returns [KindStanding].
func (Standing) Kind() Kind { return KindStanding }

func (s Standing) check() error {
	return cmp.Or(
		checkName("standingId", s.StandingID),
		checkOneOf("verdict", s.Verdict, Approve, Deny),
		checkName("tenantId", string(s.TenantID)),
		checkName("orderId", string(s.OrderID)),
		checkNodes(s.Nodes),
		s.checkReasons(),
		checkOneOf("access", s.Access, ReadOnly, ReadWrite, Delete),
		s.checkDuration(),
		checkDigest("policyDigest", s.PolicyDigest),
		checkTime("created", s.Created),
		checkTime("until", s.Until),
		checkPeriod("created", s.Created, "until", s.Until),
		checkDuration("until - created", s.Until-s.Created),
	)
}

func (s Standing) checkReasons() error {
	if err := checkCount("reasonCodes", len(s.ReasonCodes), maxList); err != nil {
		return err
	}
	for _, code := range s.ReasonCodes {
		if err := checkForm("reasonCodes", code, tokenForm); err != nil {
			return err
		}
	}
	return checkUnique("reasonCodes", s.ReasonCodes, func(code string) string { return code })
}

func (s Standing) checkDuration() error {
	if s.Verdict == Approve {
		return checkDuration("maxDuration", s.MaxDuration)
	}
	if s.MaxDuration != 0 {
		return fmt.Errorf("maxDuration must be 0 when denying, is %d", s.MaxDuration)
	}
	return nil
}

// Covers reports whether s decides about a statement, as far as that depends on
// what is asked for, not on when. No approval covers [Statement.Protocols]. A request for longer than s allows is covered,
// and gets no longer than that.
func (s Standing) Covers(st Statement) bool {
	access := st.Access.within(s.Access)
	if s.Verdict == Deny {
		access = s.Access.within(st.Access)
	}
	if s.Verdict == Approve && len(st.Protocols) > 0 {
		return false // nobody has decided about those
	}
	known := func(n NodeRef) bool { return slices.Contains(s.Nodes, n) }
	return access && st.Exclusion == "" && st.Action == UnlockDatabox &&
		st.TenantID == s.TenantID && st.OrderID == s.OrderID &&
		slices.Contains(s.ReasonCodes, st.ReasonCode) &&
		!slices.ContainsFunc(st.Nodes, func(n NodeRef) bool { return !known(n) })
}

// VerifyStanding verifies a standing consent: signed by the threshold of every
// customer group that approves unlocking, and made under p. Where it approves,
// there must be a group of the provider's to look at each request.
func (p *Policy) VerifyStanding(envelope []byte) (Standing, error) {
	rule, err := p.ruleFor(UnlockDatabox)
	if err != nil {
		return Standing{}, err
	}
	s, err := p.openStanding(envelope, rule)
	return s.doc, err
}

func (p *Policy) openStanding(envelope []byte, rule Rule) (signed[Standing], error) {
	e, err := open[Standing](envelope)
	if err != nil {
		return e, err
	}
	if err := p.verifyGroups(e.Envelope, []Rule{rule}); err != nil {
		return e, err
	}
	if e.doc.Verdict == Approve && len(rule.ProviderGroups) == 0 {
		return e, protocol.Errorf(protocol.CodeDecisionMissing,
			"nobody would look at the requests that standing consent %s approves: it needs a provider group in the trust policy", e.doc.StandingID)
	}
	return e, p.checkScope(e.doc.PolicyDigest, e.doc.TenantID, e.doc.OrderID)
}

// readStanding verifies a standing consent that comes in the place of the
// customers' decisions on a statement.
func (p *Policy) readStanding(envelope []byte, rule Rule, st Statement) (signed[Standing], error) {
	e, err := p.openStanding(envelope, rule)
	if err == nil && !e.doc.Covers(st) {
		err = protocol.Errorf(protocol.CodeAction, "standing consent %s does not cover this request", e.doc.StandingID)
	}
	return e, err
}

// checkTime refuses a grant that begins while s does not stand, and shortens one
// that would outlast it.
func (s Standing) checkTime(g *Grant) error {
	if g.Start.Before(unixTime(s.Created).Add(-Skew)) || !g.Start.Before(unixTime(s.Until)) {
		return protocol.Errorf(protocol.CodeWindow, "standing consent %s stands from %s until %s, the request was approved at %s",
			s.StandingID, protocol.Stamp(unixTime(s.Created)), protocol.Stamp(unixTime(s.Until)), protocol.Stamp(g.Start))
	}
	for _, limit := range []int64{g.Start.Unix() + s.MaxDuration, s.Until} {
		if end := unixTime(limit); end.Before(g.End) {
			g.End = end
		}
	}
	return nil
}
