package cli

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// policyWish is the trust policy that somebody asked the control plane to
// draft. What comes back is compared with it before anybody is asked to sign:
// the control plane writes the draft, but it does not decide what is in it.
type policyWish struct {
	signer      protocol.Person // who asked
	tenant      protocol.TenantID
	order       protocol.OrderID
	customers   []*lockboxv1.PolicyGroup     // none: one group of the signer's own organization
	providers   []*lockboxv1.PolicyGroup     // none: one group of others
	exclusions  []*lockboxv1.PolicyExclusion // none: the customer is always asked
	longest     time.Duration
	recoveryKey string // fingerprint of the one that the policy may name, "" for none
	noRecovery  bool   // that there is none was asked for
}

// wrongDraft refuses to sign.
func wrongDraft(format string, args ...any) error {
	return fmt.Errorf("the control plane drafted another trust policy than you asked for: sign nothing, tell your security team: "+format, args...)
}

// check refuses a draft that is not what was asked for.
func (w policyWish) check(p approval.TrustPolicy) error {
	switch {
	case p.OrderID != w.order:
		return wrongDraft("it is for order %q, not %s", p.OrderID, w.order)
	case p.TenantID != w.tenant:
		return wrongDraft("it is for tenant %q, yours is %s", p.TenantID, w.tenant)
	case len(p.ServiceKeys) != 1:
		return wrongDraft("it trusts %d service keys, not one", len(p.ServiceKeys))
	}
	if err := w.checkRecovery(p.RecoveryKey); err != nil {
		return err
	}
	if err := checkDraftKeys(p); err != nil {
		return err
	}
	if err := w.checkRules(p); err != nil {
		return err
	}
	return w.checkExclusions(p)
}

// checkSigner refuses a policy in which the signer's own key, k, is another
// person's.
func (w policyWish) checkSigner(k approval.Key) error {
	if k.Person != w.signer {
		return wrongDraft("it says that your key %s is of %s", k.ID, k.Person)
	}
	return nil
}

// checkRecovery refuses a recovery key that nobody asked for: its owner could
// replace the policy alone.
func (w policyWish) checkRecovery(k *approval.Key) error {
	switch {
	case k == nil && w.recoveryKey != "":
		return wrongDraft("it names no recovery key, you asked for %s", w.recoveryKey)
	case k == nil && !w.noRecovery:
		return wrongDraft("it names no recovery key; if that is meant, say --without-recovery-key")
	case k != nil && w.recoveryKey == "":
		return wrongDraft("it names a recovery key, %s of %s, which could replace the policy alone; if your organization has it, ask for it with --recovery-key", keyFingerprint(*k), k.Person)
	case k != nil && keyFingerprint(*k) != w.recoveryKey:
		return wrongDraft("its recovery key is %s of %s, you asked for %s", keyFingerprint(*k), k.Person, w.recoveryKey)
	}
	return nil
}

// checkDraftKeys refuses a key that no group needs, and one that is called by the
// fingerprint of another.
func checkDraftKeys(p approval.TrustPolicy) error {
	for _, k := range p.Keys {
		named := slices.ContainsFunc(p.Rules, func(r approval.Rule) bool {
			return inAny(slices.Concat(r.CustomerGroups, r.ProviderGroups), k.ID)
		}) || slices.ContainsFunc(p.Exclusions, func(x approval.ExclusionRule) bool { return inAny(x.ProviderGroups, k.ID) })
		switch {
		case !named:
			return wrongDraft("it names key %s of %s, which is in no group", k.ID, k.Person)
		case strings.HasPrefix(k.ID, "SHA256:") && k.ID != k.Fingerprint():
			return wrongDraft("the key it calls %s is %s", k.ID, keyFingerprint(k))
		}
	}
	return nil
}

// inAny reports whether a key is in one of the groups.
func inAny(groups []approval.Group, keyID string) bool {
	return slices.ContainsFunc(groups, func(g approval.Group) bool { return slices.Contains(g.Keys, keyID) })
}

// checkExclusions refuses exclusions that nobody asked for: they let the provider
// in without the customer.
func (w policyWish) checkExclusions(p approval.TrustPolicy) error {
	if len(p.Exclusions) != len(w.exclusions) {
		return wrongDraft("it lets the provider in without your approval for %d reasons, you asked for %d", len(p.Exclusions), len(w.exclusions))
	}
	for i, x := range p.Exclusions {
		asked := w.exclusions[i]
		switch longest := time.Duration(x.MaxDuration) * time.Second; {
		case string(x.Kind) != asked.Kind:
			return wrongDraft("it lets the provider in without your approval for %s, you asked for %s", x.Kind, asked.Kind)
		case string(x.Access) != asked.Access || x.MaxDuration != asked.MaxDurationSeconds:
			return wrongDraft("for %s it gives %s for %s, not %s for %s", x.Kind, x.Access, longest, asked.Access, time.Duration(asked.MaxDurationSeconds)*time.Second)
		}
		ofProvider := func(who protocol.Person) bool { return !w.ofSigner(who) }
		if err := w.checkGroups(p, "provider", x.ProviderGroups, asked.Groups, 2, ofProvider); err != nil {
			return err
		}
	}
	return nil
}

func (w policyWish) checkRules(p approval.TrustPolicy) error {
	unlock, ok := ruleFor(p, approval.UnlockDatabox)
	copying, both := ruleFor(p, approval.CopyData)
	if !ok || !both || len(p.Rules) != 2 {
		return wrongDraft("it does not have one rule for support and one for copying")
	}
	for _, r := range p.Rules {
		if got := time.Duration(r.MaxDuration) * time.Second; got != w.longest {
			return wrongDraft("one approval to %s lasts up to %s, not %s", r.Action, got, w.longest)
		}
	}
	sameGroup := func(a, b approval.Group) bool {
		return a.Name == b.Name && a.Threshold == b.Threshold && slices.Equal(a.Keys, b.Keys)
	}
	if !slices.EqualFunc(unlock.CustomerGroups, copying.CustomerGroups, sameGroup) {
		return wrongDraft("other people of yours approve support than copying")
	}
	if err := w.checkGroups(p, "customer", unlock.CustomerGroups, w.customers, 1, w.ofSigner); err != nil {
		return err
	}
	return w.checkGroups(p, "provider", unlock.ProviderGroups, w.providers, 1, func(who protocol.Person) bool { return !w.ofSigner(who) })
}

func ruleFor(p approval.TrustPolicy, a approval.Action) (approval.Rule, bool) {
	i := slices.IndexFunc(p.Rules, func(r approval.Rule) bool { return r.Action == a })
	if i < 0 {
		return approval.Rule{}, false
	}
	return p.Rules[i], true
}

// ofSigner reports whether somebody is of the signer's organization, by the
// domain of their name.
func (w policyWish) ofSigner(who protocol.Person) bool { return domainOf(who) == domainOf(w.signer) }

func domainOf(who protocol.Person) string {
	return string(who)[strings.LastIndex(string(who), "@")+1:]
}

// checkGroups compares the groups of one side with those that were asked for.
// Where none were, there is to be one, of fitting people only, of which as many
// are enough as threshold says.
func (w policyWish) checkGroups(p approval.TrustPolicy, side string, got []approval.Group, asked []*lockboxv1.PolicyGroup, threshold int, fits func(protocol.Person) bool) error {
	if len(asked) == 0 {
		return checkDefault(p, side, got, threshold, fits)
	}
	if len(got) != len(asked) {
		return wrongDraft("it has %d %s groups, you asked for %d", len(got), side, len(asked))
	}
	for i, g := range got {
		var people []protocol.Person
		for _, who := range asked[i].People {
			people = append(people, protocol.Person(who))
		}
		slices.Sort(people)
		switch have := peopleOf(p, g); {
		case g.Name != asked[i].Name:
			return wrongDraft("it has a %s group %q, not %q", side, g.Name, asked[i].Name)
		case g.Threshold != int(asked[i].Threshold):
			return wrongDraft("of %s group %s it wants %d, not %d", side, g.Name, g.Threshold, asked[i].Threshold)
		case !slices.Equal(have, slices.Compact(people)):
			return wrongDraft("in %s group %s it has %v, not %v", side, g.Name, have, people)
		}
	}
	return nil
}

func checkDefault(p approval.TrustPolicy, side string, got []approval.Group, threshold int, fits func(protocol.Person) bool) error {
	if len(got) != 1 || got[0].Threshold != threshold {
		return wrongDraft("without --%[1]s-group it has one %[1]s group, of which %[2]d are enough; this one has %[3]d", side, threshold, len(got))
	}
	for _, who := range peopleOf(p, got[0]) {
		if !fits(who) {
			return wrongDraft("it counts %s for the %s; if that is right, name the people yourself with --%s-group", who, side, side)
		}
	}
	return nil
}

// peopleOf returns the people of a group, sorted.
func peopleOf(p approval.TrustPolicy, g approval.Group) []protocol.Person {
	var people []protocol.Person
	for _, k := range p.Keys {
		if slices.Contains(g.Keys, k.ID) {
			people = append(people, k.Person)
		}
	}
	slices.Sort(people)
	return slices.Compact(people)
}

// keyFingerprint is what a person can compare a key by: an SSH key's own
// fingerprint, else the SHA-256 of its public key (SPKI).
func keyFingerprint(k approval.Key) string {
	if k.Kind == approval.SSHKey {
		return k.Fingerprint()
	}
	spki, err := base64.StdEncoding.DecodeString(k.PublicKey)
	if err != nil {
		return "unreadable"
	}
	return string(approval.DigestOf(spki))
}

// checkConsent refuses the draft of a consent that is for another order, or
// longer, than was asked for. until is in Unix seconds, 0 for the default.
func checkConsent(c approval.Consent, p approval.TrustPolicy, order string, until int64, now time.Time) error {
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("the control plane drafted another consent than you asked for: sign nothing, tell your security team: "+format, args...)
	}
	latest := until
	if until == 0 {
		latest = now.Add(consentTTL + time.Hour).Unix() // clocks differ
	}
	switch {
	case string(c.OrderID) != order:
		return wrong("it is for order %s, not %s", c.OrderID, order)
	case c.TenantID != p.TenantID:
		return wrong("it is for tenant %s, the trust policy is for %s", c.TenantID, p.TenantID)
	case c.Until > latest:
		return wrong("it lasts until %s", when(c.Until))
	}
	return nil
}

// consentTTL is how long a consent lasts unless --until says otherwise.
const consentTTL = 90 * 24 * time.Hour
