package approval

import (
	"cmp"
	"fmt"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Exclusion is a reason for which support gets access without asking the
// customer. There is none unless the customer's trust policy says so, and then
// the provider's own people have to approve.
type Exclusion string

// The exclusions.
const (
	LockboxOff          Exclusion = "lockbox-off"           // the tenant has turned Lockbox off
	BreakGlass          Exclusion = "break-glass"           // work outside standard procedure to restore service
	InadvertentExposure Exclusion = "inadvertent-exposure"  // data was seen while troubleshooting something else
	LegalDemand         Exclusion = "external-legal-demand" // somebody with the law on their side asks
)

// Exclusions returns all exclusions.
func Exclusions() []Exclusion {
	return []Exclusion{LockboxOff, BreakGlass, InadvertentExposure, LegalDemand}
}

// leastProviders is how many different people of the provider have to approve
// where the customer is not asked.
const leastProviders = 2

// ExclusionRule says who of the provider has to approve an unlock to which the
// customer is not asked to agree, and what it may be at most.
type ExclusionRule struct {
	Kind           Exclusion `json:"kind"`
	ProviderGroups []Group   `json:"providerGroups"` // at least two people in all
	Access         Access    `json:"access"`         // the furthest
	MaxDuration    int64     `json:"maxDuration"`    // seconds, of one lease
}

// rule returns x in the form in which decisions are counted.
func (x ExclusionRule) rule() Rule {
	return Rule{Action: UnlockDatabox, ProviderGroups: x.ProviderGroups, Service: true, MaxDuration: x.MaxDuration}
}

// Exclusion returns the rule for an exclusion, and whether there is one.
func (p *Policy) Exclusion(kind Exclusion) (ExclusionRule, bool) {
	for _, x := range p.doc.Exclusions {
		if x.Kind == kind {
			return x, true
		}
	}
	return ExclusionRule{}, false
}

// RuleFor returns the rule by which a statement is decided: that of its action
// ([AccessSubscription] has that of [UnlockDatabox]), or of the exclusion it names,
// which asks for no customer. Without one, or when the exclusion does not go as
// far, it refuses with [protocol.CodeAction].
func (p *Policy) RuleFor(st Statement) (Rule, error) {
	if st.Action == AccessSubscription {
		return p.ruleFor(UnlockDatabox)
	}
	if st.Exclusion == "" {
		return p.ruleFor(st.Action)
	}
	x, ok := p.Exclusion(st.Exclusion)
	switch {
	case !ok:
		return Rule{}, protocol.Errorf(protocol.CodeAction, "the trust policy does not allow %s: the customer has to be asked", st.Exclusion)
	case st.Action != UnlockDatabox:
		return Rule{}, protocol.Errorf(protocol.CodeAction, "%s is for %s only, not for %s", st.Exclusion, UnlockDatabox, st.Action)
	case !st.Access.within(x.Access):
		return Rule{}, protocol.Errorf(protocol.CodeAction, "the trust policy allows %s for %s only, not for %s", st.Exclusion, x.Access, st.Access)
	}
	return x.rule(), nil
}

// within reports whether a allows no more than other does.
func (a Access) within(other Access) bool { return a.rank() <= other.rank() }

// rank orders the kinds of access, each of which includes those before it.
func (a Access) rank() int {
	switch a {
	case ReadOnly:
		return 1
	case ReadWrite:
		return 2
	case Delete:
		return 3
	}
	return 4
}

func (s Statement) checkExclusion() error {
	if s.Exclusion == "" {
		return nil
	}
	return checkOneOf("exclusion", s.Exclusion, Exclusions()...)
}

// checkExclusion checks one exclusion of a policy. roles collects what each
// person is over all rules: nobody of the customer approves for the provider.
func (t TrustPolicy) checkExclusion(x ExclusionRule, roles map[protocol.Person]Role) error {
	r := x.rule()
	err := cmp.Or(
		checkOneOf("kind", x.Kind, Exclusions()...),
		checkCount("providerGroups", len(x.ProviderGroups), maxList),
		checkOneOf("access", x.Access, ReadOnly, ReadWrite, Delete),
		checkDuration("maxDuration", x.MaxDuration),
		checkUnique("groups", x.ProviderGroups, func(g Group) string { return g.Name }),
		t.checkGroups(r, roles),
	)
	if err != nil {
		return err
	}
	people := 0
	for _, g := range x.ProviderGroups {
		people += g.Threshold // each person is in one group only
	}
	if people < leastProviders {
		return fmt.Errorf("providerGroups ask for %d approval: want %d different people at least", people, leastProviders)
	}
	return nil
}
