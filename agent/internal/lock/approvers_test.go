package lock

import (
	"strings"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// namedKey is the SSH key of a test's hand, in the policy as somebody's.
func namedKey(hand string, person protocol.Person) approval.Key {
	return must(approval.NewSSHKey(hand+"-laptop", person, authorized(hand)))
}

// strict asks for two of three owners and one of security, and lets two people
// of the provider break the glass. Otto has a spare key.
func strict(p *approval.TrustPolicy) []string {
	p.Keys = append(p.Keys,
		namedKey("otto", "otto@contoso.example"), namedKey("otto-spare", "otto@contoso.example"),
		namedKey("olive", "olive@contoso.example"), namedKey("sara", "sara@contoso.example"),
		namedKey("paul", "paul@provider.example"), namedKey("petra-spare", "petra@provider.example"))
	groups := []approval.Group{
		{Name: "owners", Threshold: 2, Keys: []string{"alice-laptop", "otto-laptop", "otto-spare-laptop", "olive-laptop"}},
		{Name: "security", Threshold: 1, Keys: []string{"sara-laptop"}},
	}
	for i := range p.Rules {
		p.Rules[i].CustomerGroups = groups
	}
	p.Exclusions = []approval.ExclusionRule{{
		Kind: approval.BreakGlass, Access: approval.ReadWrite, MaxDuration: 3600,
		ProviderGroups: []approval.Group{{Name: "duty managers", Threshold: 2, Keys: []string{"petra-laptop", "petra-spare-laptop", "paul-laptop"}}},
	}}
	return []string{"alice", "otto", "sara"}
}

func strictScene(t *testing.T) *scene {
	return newScene(t, func(s *scene) { s.writePolicy(strict) })
}

// by lets exactly these people approve.
func (a *attempt) by(role approval.Role, hands ...string) {
	for _, hand := range hands {
		a.votes = append(a.votes, vote{Decision: approval.Decision{
			Role: role, Verdict: approval.Approve, MaxDuration: 8 * 3600, DecidedAt: a.s.clock.Now().Unix(),
		}, signer: hand})
	}
}

// refusedWith runs an attempt that the device must refuse.
func (a *attempt) refusedWith(t *testing.T, code protocol.Code) {
	t.Helper()
	if _, err := a.unlock(); protocol.CodeOf(err) != code {
		t.Errorf("got %v, want code %q", err, code)
	}
	a.s.stateIs(protocol.Locked)
}

// The device counts itself: two of the owners and one of security, each person
// once, and nobody for their own request.
func TestEveryGroupReachesItsThreshold(t *testing.T) {
	tests := []struct {
		name      string
		customers string // hands
		engineer  protocol.Person
		code      protocol.Code
	}{
		{"two owners and security", "alice olive sara", "", ""},
		{"an owner with the spare key", "alice otto-spare sara", "", ""},
		{"one owner", "alice sara", "", protocol.CodeDecisionMissing},
		{"one owner with two keys", "otto otto-spare sara", "", protocol.CodeDecisionMissing},
		{"no security", "alice otto olive", "", protocol.CodeDecisionMissing},
		{"nobody", "", "", protocol.CodeDecisionMissing},
		{"the engineer is an owner who does not decide", "alice olive sara", "otto@contoso.example", protocol.CodeSignerEngineer},
		{"the engineer decides with another key", "alice otto-spare sara", "otto@contoso.example", protocol.CodeSignerEngineer},
	}
	for _, tt := range tests {
		bubble(t, func(t *testing.T) {
			s := strictScene(t)
			a := s.newAttempt(protocol.SupportAccess)
			a.votes = nil
			a.by(approval.Provider, "petra")
			a.by(approval.Customer, strings.Fields(tt.customers)...)
			if tt.engineer != "" {
				a.statement.Engineer.Person = tt.engineer
			}
			if tt.code != "" {
				t.Log(tt.name)
				a.refusedWith(t, tt.code)
				return
			}
			if a.open(); s.journal.count(auditlog.OpUnlockIntent, auditlog.Start) != 1 {
				t.Errorf("%s: the intent is not recorded", tt.name)
			}
		})
	}
}

// inEmergency is an attempt to break the glass, approved as the policy asks.
func (s *scene) inEmergency() *attempt {
	a := s.newAttempt(protocol.SupportAccess)
	a.statement.Exclusion, a.votes = approval.BreakGlass, nil
	a.by(approval.Provider, "petra", "paul")
	return a
}

// Without the customer the device opens only what its trust policy allows, by two
// people of the provider, and only if the activity log says that it was so.
func TestExclusions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := strictScene(t)
		a := s.inEmergency()
		if end := a.open(); end.Sub(s.clock.Now()) > time.Hour {
			t.Errorf("the lease ends %v, later than the policy's hour", end)
		}
		for _, r := range s.journal.records {
			if r.Properties[auditlog.PropertyExclusion] != "break-glass" {
				t.Errorf("record %q does not say that the customer was not asked", r.Operation)
			}
		}
	})
	tests := []struct {
		name  string
		plain bool // under a policy without exclusions
		fault func(a *attempt)
		code  protocol.Code
	}{
		{"a policy without exclusions", true, func(*attempt) {}, protocol.CodeAction},
		{"one person", false, func(a *attempt) { a.votes = a.votes[:1] }, protocol.CodeDecisionMissing},
		{"one person with two keys", false, func(a *attempt) { a.votes[1].signer = "petra-spare" }, protocol.CodeDecisionMissing},
		{"nobody but the service", false, func(a *attempt) { a.votes = nil }, protocol.CodeDecisionMissing},
		{"another exclusion", false, func(a *attempt) { a.statement.Exclusion = approval.LockboxOff }, protocol.CodeAction},
		{"more access", false, func(a *attempt) { a.statement.Access = approval.Delete }, protocol.CodeAction},
		{"approvals of a request to the customer", false, func(a *attempt) {
			a.statement.Exclusion = ""
			a.sign()
			decisions := a.decisions
			a.statement.Exclusion, a.subject, a.decisions = approval.BreakGlass, "", nil
			a.sign()
			a.decisions = decisions
		}, protocol.CodeSignatureInvalid},
		{"a log that keeps silent", false, func(a *attempt) {
			a.onRecord = func(r *auditlog.Record) { delete(r.Properties, auditlog.PropertyExclusion) }
		}, protocol.CodeCheckpoint},
		{"a log that says something else", false, func(a *attempt) {
			a.onRecord = func(r *auditlog.Record) { r.Properties[auditlog.PropertyExclusion] = "lockbox-off" }
		}, protocol.CodeCheckpoint},
	}
	for _, tt := range tests {
		bubble(t, func(t *testing.T) {
			t.Log(tt.name)
			s := strictScene(t)
			if tt.plain {
				s = newScene(t)
			}
			a := s.inEmergency()
			if tt.plain {
				a.votes = a.votes[:1]
			}
			tt.fault(a)
			a.refusedWith(t, tt.code)
		})
	}
}

// automatic is an attempt under a standing consent.
func (s *scene) automatic() *attempt {
	a := s.newAttempt(protocol.SupportAccess)
	a.votes = nil
	a.by(approval.Provider, "petra")
	now := s.clock.Now()
	a.standing = &approval.Standing{
		StandingID: "STC-1", Verdict: approval.Approve, TenantID: "contoso", OrderID: "ORD-1001", Nodes: s.nodeRefs(),
		ReasonCodes: []string{"copied-to-wrong-folder"}, Access: approval.ReadWrite, MaxDuration: 1800,
		PolicyDigest: s.policy.Digest(), Created: now.Add(-time.Hour).Unix(), Until: now.Add(24 * time.Hour).Unix(),
	}
	a.standers = []string{"alice", "olive", "sara"}
	return a
}

// A standing consent opens what it covers, and nothing else; without the
// provider's people it opens nothing at all.
func TestStandingConsents(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := strictScene(t)
		a := s.automatic()
		if end := a.open(); end.Sub(s.clock.Now()) > 30*time.Minute {
			t.Errorf("the lease ends %v, later than the half hour consented to", end)
		}
		for _, r := range s.journal.records {
			if r.Properties[auditlog.PropertyStanding] != "STC-1" {
				t.Errorf("record %q does not name the standing consent", r.Operation)
			}
		}
	})
	tests := []struct {
		name  string
		fault func(a *attempt)
		code  protocol.Code
	}{
		{"no provider", func(a *attempt) { a.votes = nil }, protocol.CodeDecisionMissing},
		{"too few customers", func(a *attempt) { a.standers = a.standers[1:] }, protocol.CodeDecisionMissing},
		{"signed by the provider", func(a *attempt) { a.standers = []string{"petra", "paul"} }, protocol.CodeSignerUnknown},
		{"not signed by the customer's key", func(a *attempt) {
			a.sign()
			e := must(approval.ParseEnvelope(a.decisions[len(a.decisions)-1]))
			e.Signatures[0].Sig[60] ^= 1
			a.decisions[len(a.decisions)-1] = must(e.Encode())
		}, protocol.CodeSignatureInvalid},
		{"another reason", func(a *attempt) { a.statement.ReasonCode = "incorrect-data-format" }, protocol.CodeAction},
		{"more access", func(a *attempt) { a.statement.Access = approval.Delete }, protocol.CodeAction},
		{"another device", func(a *attempt) { a.standing.Nodes[0].KeyFingerprint = approval.DigestOf(nil) }, protocol.CodeAction},
		{"over", func(a *attempt) { a.standing.Until = a.s.clock.Now().Unix() }, protocol.CodeWindow},
		{"denies", func(a *attempt) { a.standing.Verdict, a.standing.MaxDuration = approval.Deny, 0 }, protocol.CodeDenied},
		{"in an exclusion", func(a *attempt) { a.statement.Exclusion = approval.BreakGlass }, protocol.CodeSignerUnknown},
	}
	for _, tt := range tests {
		bubble(t, func(t *testing.T) {
			t.Log(tt.name)
			a := strictScene(t).automatic()
			tt.fault(a)
			a.refusedWith(t, tt.code)
		})
	}
}

// A standing consent that the node was told is revoked opens nothing ever again,
// though every later request is another, and the service says nothing of it.
func TestRevokedStandingConsent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := strictScene(t)
		first := s.automatic()
		e := must(approval.NewEnvelope(*first.standing))
		if _, err := s.Lock(t.Context(), Revoked, e.Digest(), true); err != nil {
			t.Fatal(err)
		}
		first.refusedWith(t, protocol.CodeRevoked)
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
		s.run()
		second := s.automatic()
		second.standing = first.standing
		second.refusedWith(t, protocol.CodeRevoked)
		third := s.automatic() // control: another consent
		third.standing.StandingID = "STC-2"
		third.open()
	})
}
