package approval_test

import (
	"testing"

	"github.com/databox-lockbox/lockbox/protocol"
	. "github.com/databox-lockbox/lockbox/protocol/approval"
)

// access is a scene in which the engineer asks for a subscription, not a device.
func access(t testing.TB) *scene {
	t.Helper()
	s := newScene(t)
	s.statement.Action, s.statement.Scope, s.statement.Access = AccessSubscription, OfSubscription, ReadOnly
	s.statement.Nodes, s.statement.Disks = nil, nil
	return s
}

// authorizeAccess runs the verification that the control plane does.
func (s *scene) authorizeAccess(t testing.TB) (Grant, error) {
	t.Helper()
	envelope, in := s.unlock(t)
	return must[*Policy](t)(VerifyPolicyV1(envelope)).AuthorizeAccess(in)
}

func TestAuthorizeAccess(t *testing.T) {
	g, err := access(t).authorizeAccess(t)
	if err != nil || g.Start.Unix() != created+600 || g.End.Sub(g.Start).Hours() != 8 {
		t.Errorf("from %s to %s: %v", g.Start, g.End, err)
	}
	tests := []struct {
		name  string
		fault func(s *scene)
		code  protocol.Code
	}{
		{"a group of the customer's is missing", func(s *scene) { s.without("carol-token") }, protocol.CodeDecisionMissing},
		{"the provider is missing", func(s *scene) { s.without("petra-laptop") }, protocol.CodeDecisionMissing},
		{"denied", func(s *scene) { d := s.decision("alice-laptop"); d.doc.Verdict, d.doc.MaxDuration = Deny, 0 }, protocol.CodeDenied},
		{"the engineer approves", func(s *scene) { s.statement.Engineer.Person = "alice@contoso.example" }, protocol.CodeSignerEngineer},
		{"revoked", func(s *scene) { s.revocations = append(s.revocations, revokeByService()) }, protocol.CodeRevoked},
		{"the time is over", func(s *scene) { s.now = created + 600 + 8*3600 }, protocol.CodeWindow},
		{"another trust policy", func(s *scene) { s.statement.PolicyDigest = DigestOf(nil) }, protocol.CodePolicyDigest},
		{"another order's", func(s *scene) { s.statement.OrderID = "ORD-9999" }, protocol.CodePolicyDigest},
		{"for the copy job", func(s *scene) { s.statement.Purpose = protocol.DataCopy }, protocol.CodeAction},
		{"an unlock", func(s *scene) { s.statement = newScene(t).statement }, protocol.CodeAction},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := access(t)
			tt.fault(s)
			_, err := s.authorizeAccess(t)
			wantCode(t, err, tt.code)
		})
	}
}

// TestAccessOpensNothing shows approvals of an access, which are whole, to a node
// and to custody.
func TestAccessOpensNothing(t *testing.T) {
	for _, scope := range []Scope{OfSubscription, OfTenant} {
		s := access(t)
		s.statement.Scope = scope
		if _, err := s.authorizeAccess(t); err != nil {
			t.Errorf("control: %v", err)
		}
		_, err := s.authorize(t)
		wantCode(t, err, protocol.CodeAction)
		s.changeUnlock = func(in *Request) { in.Self = nil }
		_, err = s.authorize(t)
		wantCode(t, err, protocol.CodeAction)
	}
}

func TestStatementSaysOneThing(t *testing.T) {
	whole := newScene(t).statement
	whole.PolicyDigest = DigestOf(nil)
	asked := access(t).statement
	asked.PolicyDigest = whole.PolicyDigest
	tests := []struct {
		name   string
		change func(unlock, access *Statement)
	}{
		{"an unlock without nodes", func(u, _ *Statement) { u.Nodes = nil }},
		{"an unlock without disks", func(u, _ *Statement) { u.Disks = nil }},
		{"an unlock with a scope", func(u, _ *Statement) { u.Scope = OfSubscription }},
		{"an access with a node", func(_, a *Statement) { a.Nodes = whole.Nodes }},
		{"an access with a disk", func(_, a *Statement) { a.Disks = whole.Disks }},
		{"an access with a share", func(_, a *Statement) { a.Shares = []string{"contosodata_BlockBlob"} }},
		{"an access over a protocol", func(_, a *Statement) { a.Protocols = []Protocol{NFS} }},
		{"an access with an exclusion", func(_, a *Statement) { a.Exclusion = BreakGlass }},
		{"an access to write", func(_, a *Statement) { a.Access = ReadWrite }},
		{"an access without a scope", func(_, a *Statement) { a.Scope = "" }},
		{"an access to everything", func(_, a *Statement) { a.Scope = "service" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u, a := whole, asked
			tt.change(&u, &a)
			_, err := u.Encode()
			if _, other := a.Encode(); err == nil {
				err = other
			}
			wantCode(t, err, protocol.CodeInvalid)
		})
	}
	for _, s := range []Statement{whole, asked} { // control
		if _, err := s.Encode(); err != nil {
			t.Error(err)
		}
	}
}
