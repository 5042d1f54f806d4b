package lock

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/sealing"
)

// bubble runs a test in a bubble of fake time.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(365 * 24 * time.Hour) // away from the year 2000, before which no record can be
		f(t)
	})
}

func TestUnlockAndCommit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		a := s.newAttempt(protocol.SupportAccess)
		var phases []string
		c, err := a.challenge()
		if err != nil {
			t.Fatal(err)
		}
		s.stateIs(protocol.Challenged)
		proof, err := s.Unlock(t.Context(), nil, a.order(c), func(d protocol.DiskID, phase string) { phases = append(phases, string(d)+" "+phase) })
		if err != nil {
			t.Fatal(err)
		}
		s.stateIs(protocol.Opened)
		if since := time.Since(s.state.HighWater()); since > time.Second {
			t.Errorf("the high-water mark is %v old", since)
		}
		want := []string{" verifying", " recording", "disk1 opening", "disk1 open", "disk2 opening", "disk2 open"}
		if !slices.Equal(phases, want) {
			t.Errorf("phases %q, want %q", phases, want)
		}
		if o, err := approval.VerifyOpened(proof, s.nodeRefs()[0], a.subject); err != nil || time.Since(time.Unix(o.OpenedAt, 0)) > time.Second {
			t.Errorf("the proof of opening: %+v, %v", o, err)
		}
		if s.shares.running() != 0 || s.disks.get("disk1").isMounted() {
			t.Error("something is shared before the commit")
		}
		if s.journal.count(auditlog.OpUnlockIntent, auditlog.Start) != 1 || s.journal.count(auditlog.OpUnlockVolume, auditlog.Success) != 1 {
			t.Errorf("records: %+v", s.journal.records)
		}
		end, shares, err := s.Commit(t.Context(), a.commitEnvelope(proof))
		if err != nil {
			t.Fatal(err)
		}
		s.stateIs(protocol.Unlocked)
		if want := time.Unix(a.statement.Created, 0).Add(8 * time.Hour); !end.Equal(want) {
			t.Errorf("the lease ends %v, want %v", end, want)
		}
		if len(shares) != 2 || shares[0].Name != "contosodata_BlockBlob-disk1" || shares[0].State != "open" || shares[0].Address != "127.0.0.1:4445" {
			t.Errorf("shares: %v", shares)
		}
		l, ok := s.Lease()
		if !ok || l.Engineer != a.statement.Engineer || l.Password != "secret of this lease" || len(l.Shares) != 2 || l.Access != approval.ReadWrite {
			t.Errorf("lease: %+v, %v", l, ok)
		}
		if s.disks.get("disk1").readOnly {
			t.Error("a read-write approval opened the disk read-only")
		}
		if got := s.Status().Disks[0].State; got != "mounted" {
			t.Errorf("disk1 is shown as %s", got)
		}
		if _, err := s.Lock(t.Context(), Operator, "", false); err != nil {
			t.Fatal(err)
		}
		s.lockedBecause(Operator)
		if shares := s.Status().Shares; len(shares) != 2 || shares[0].State != "closed" || shares[0].Address != "" {
			t.Errorf("shares after locking: %v", shares)
		}
		if !slices.Equal(s.sessions, []Reason{Operator}) {
			t.Errorf("sessions were ended for %v", s.sessions)
		}
		a.wait = 0
		a.open() // not spent: the same approval opens again
	})
}

// What is shared is what the approval names: neither the share server nor the
// session learns of another.
func TestOnlyNamedSharesAreOpened(t *testing.T) {
	for name, want := range map[string][]string{
		"contosodata_BlockBlob": {"contosodata_BlockBlob-disk1 open", "contosodata_PageBlob closed", "contosodata_BlockBlob-disk2 open"},
		"contosodata_PageBlob":  {"contosodata_BlockBlob-disk1 closed", "contosodata_PageBlob open", "contosodata_BlockBlob-disk2 closed"},
		"contosodata_AzFile":    {"contosodata_BlockBlob-disk1 closed", "contosodata_PageBlob closed", "contosodata_BlockBlob-disk2 closed"},
	} {
		bubble(t, func(t *testing.T) {
			s := newScene(t)
			if err := os.Mkdir(filepath.Join(s.disks.root("disk1"), "contosodata_PageBlob"), 0o755); err != nil {
				t.Fatal(err)
			}
			a := s.newAttempt(protocol.SupportAccess)
			a.statement.Shares, a.statement.Protocols = []string{name}, []approval.Protocol{approval.NFS}
			a.open()
			if l, _ := s.Lease(); !slices.Equal(l.Protocols, a.statement.Protocols) {
				t.Errorf("the lease's protocols: %v", l.Protocols)
			}
			var got, open []string
			for _, one := range s.Status().Shares {
				got = append(got, one.Name+" "+one.State)
				if one.State == "open" {
					open = append(open, one.Name)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: shares %q, want %q", name, got, want)
			}
			var served, held []string
			for _, f := range s.shares.folders {
				served = append(served, f.Name)
			}
			l, _ := s.Lease()
			for _, one := range l.Shares {
				held = append(held, one.String())
			}
			if !slices.Equal(served, open) || len(held) != len(open) || slices.ContainsFunc(held, func(h string) bool { return h != name }) {
				t.Errorf("%s: the server has %q, the session %q, open are %q", name, served, held, open)
			}
		})
	}
}

// refusals is every way in which an unlock can be wrong, one at a time, with the
// code that the device must give.
var refusals = []struct {
	name    string
	purpose protocol.Purpose // support-access if empty
	code    protocol.Code
	fault   func(a *attempt)
	repair  func(a *attempt) // of what the fault left in the device
}{
	{name: "not the control plane", code: protocol.CodePeer, fault: func(a *attempt) { a.peer = errors.New("no certificate") }},
	{name: "service key of somebody else", code: protocol.CodeServiceSignature, fault: func(a *attempt) { a.service = "mallory" }},
	{name: "order signed by the node itself", code: protocol.CodeServiceSignature, fault: func(a *attempt) { a.service = "node 1" }},
	{name: "order garbled", code: protocol.CodeInvalid, fault: func(a *attempt) {
		a.onRequest = func(r *devicev1.UnlockRequest) { r.Order = r.Order[:len(r.Order)-2] }
	}},
	{name: "another nonce", code: protocol.CodeNonce, fault: func(a *attempt) {
		a.onOrder = func(o *approval.Order) { o.Nonce = make([]byte, approval.NonceSize) }
	}},
	{name: "challenge too old", code: protocol.CodeNonce, fault: func(a *attempt) { a.wait = time.Minute }},
	{name: "challenge for another request", code: protocol.CodeNonce, fault: func(a *attempt) { a.challengeFor = approval.DigestOf([]byte("x")) }},
	{name: "challenge for another purpose", code: protocol.CodeAction, fault: func(a *attempt) { a.challengeAs = protocol.DataCopy }},
	{name: "no customer decision", code: protocol.CodeDecisionMissing, fault: func(a *attempt) { a.without(approval.Customer) }},
	{name: "no provider decision", code: protocol.CodeDecisionMissing, fault: func(a *attempt) { a.without(approval.Provider) }},
	{name: "no decision", code: protocol.CodeDecisionMissing, fault: func(a *attempt) { a.votes = nil }},
	{name: "provider decides as customer", code: protocol.CodeSignerUnknown, fault: func(a *attempt) {
		a.without(approval.Customer)
		a.votes = append(a.votes, vote{Decision: approval.Decision{Role: approval.Customer, Verdict: approval.Approve, MaxDuration: 60, DecidedAt: a.statement.Created}, signer: "petra"})
	}},
	{name: "decision by a stranger", code: protocol.CodeSignerUnknown, fault: func(a *attempt) { a.voteOf(approval.Customer).signer = "mallory" }},
	{name: "decision in another's name", code: protocol.CodeSignatureInvalid, fault: func(a *attempt) {
		v := a.voteOf(approval.Customer)
		v.signer, v.id = "mallory", "alice-laptop"
	}},
	{name: "decision by the engineer", code: protocol.CodeSignerEngineer, fault: func(a *attempt) { a.voteOf(approval.Customer).signer = "erin" }},
	{name: "the engineer is an approver", code: protocol.CodeSignerEngineer, fault: func(a *attempt) { a.statement.Engineer.Person = "alice@contoso.example" }},
	{name: "denied", code: protocol.CodeDenied, fault: func(a *attempt) {
		v := a.voteOf(approval.Customer)
		v.Verdict, v.MaxDuration = approval.Deny, 0
	}},
	{name: "decisions of another request", code: protocol.CodeSignatureInvalid, fault: func(a *attempt) {
		other := a.s.newAttempt(protocol.SupportAccess)
		other.sign()
		a.onRequest = func(r *devicev1.UnlockRequest) { r.Decisions = other.decisions }
	}},
	{name: "another statement than the order's", code: protocol.CodeSignatureInvalid, fault: func(a *attempt) {
		other := a.s.newAttempt(protocol.SupportAccess)
		other.sign()
		g := must(a.s.policy.Authorize(approval.Request{Statement: other.requestBytes, Decisions: other.decisions, Now: a.s.clock.Now()}))
		a.onRecord = func(r *auditlog.Record) {
			r.CorrelationID = string(other.statement.RequestID)
			r.Properties[auditlog.PropertySubjectDigest] = string(other.subject)
		}
		a.onSeal = func(c *sealing.Context) {
			c.RequestDigest, c.DecisionsDigest = string(other.subject), string(g.DecisionsDigest)
		}
		a.onOrder = func(o *approval.Order) { o.DecisionsDigest = g.DecisionsDigest }
		a.onRequest = func(r *devicev1.UnlockRequest) { r.Statement, r.Decisions = other.requestBytes, other.decisions }
	}},
	{name: "another set of decisions", code: protocol.CodeSignatureInvalid, fault: func(a *attempt) {
		a.onOrder = func(o *approval.Order) { o.DecisionsDigest = approval.DigestOf([]byte("x")) }
	}},
	{name: "another trust policy", code: protocol.CodePolicyDigest, fault: func(a *attempt) { a.statement.PolicyDigest = approval.DigestOf([]byte("x")) }},
	{name: "another order's policy", code: protocol.CodePolicyDigest, fault: func(a *attempt) { a.statement.OrderID = "ORD-9999" }},
	{name: "unknown action", code: protocol.CodeAction, fault: func(a *attempt) { a.statement.Action = "format-databox" }},
	{name: "approval to see a subscription", code: protocol.CodeAction, fault: func(a *attempt) {
		a.statement.Action, a.statement.Scope, a.statement.Access = approval.AccessSubscription, approval.OfSubscription, approval.ReadOnly
		a.statement.Nodes, a.statement.Disks = nil, nil
	}},
	{name: "statement for the copy job", code: protocol.CodeAction, fault: func(a *attempt) { a.statement.Purpose = protocol.DataCopy }},
	{name: "order for the copy job", code: protocol.CodeAction, fault: func(a *attempt) {
		a.onOrder = func(o *approval.Order) { o.Purpose = protocol.DataCopy }
	}},
	{name: "a consent beside the statement", code: protocol.CodeAction, fault: func(a *attempt) {
		other := a.s.newAttempt(protocol.DataCopy)
		other.sign()
		a.onRequest = func(r *devicev1.UnlockRequest) { r.Consent = other.consentBytes }
	}},
	{name: "another device", code: protocol.CodeNode, fault: func(a *attempt) {
		a.statement.Nodes[0].Serial = "DBX0002"
		for i := range a.statement.Disks {
			a.statement.Disks[i].Node = "DBX0002/1"
		}
	}},
	{name: "the other node", code: protocol.CodeNode, fault: func(a *attempt) {
		a.statement.Nodes[0].Node = 2
		for i := range a.statement.Disks {
			a.statement.Disks[i].Node = "DBX0001/2"
		}
	}},
	{name: "another key of the node", code: protocol.CodeNode, fault: func(a *attempt) {
		a.statement.Nodes[0].KeyFingerprint = approval.KeyFingerprint(public("mallory"))
	}},
	{name: "order for another node", code: protocol.CodeNode, fault: func(a *attempt) {
		a.onOrder = func(o *approval.Order) { o.Node = "DBX0001/2" }
	}},
	{name: "a node key that nobody approved", code: protocol.CodeNode, fault: func(a *attempt) {
		a.onRequest = func(r *devicev1.UnlockRequest) {
			r.NodeKeys = append(r.NodeKeys, must(x509.MarshalPKIXPublicKey(public("mallory"))))
		}
	}},
	{name: "a disk that is not here", code: protocol.CodeDisks, fault: func(a *attempt) {
		a.statement.Disks = append(a.statement.Disks, approval.DiskRef{Node: "DBX0001/1", Disk: "disk9"})
	}},
	{name: "a disk that was not approved", code: protocol.CodeDisks, fault: func(a *attempt) {
		a.statement.Disks = a.statement.Disks[:1]
		a.onOrder = func(o *approval.Order) {
			o.Keys = append(o.Keys, approval.SealedKey{Disk: "disk2", KeyType: o.Keys[0].KeyType, Ciphertext: o.Keys[0].Ciphertext})
		}
	}},
	{name: "another disk than the one approved", code: protocol.CodeDisks, fault: func(a *attempt) {
		a.statement.Disks = a.statement.Disks[:1]
		a.key = func(protocol.DiskID) []byte { return diskKey(a.s.nodes[0], "disk2") }
		a.onSeal = func(c *sealing.Context) { c.Disk = "disk2" }
		a.onOrder = func(o *approval.Order) { o.Keys[0].Disk = "disk2" }
	}},
	{name: "a disk without a key", code: protocol.CodeDisks, fault: func(a *attempt) {
		a.onOrder = func(o *approval.Order) { o.Keys = o.Keys[:1] }
	}},
	{name: "a disk that cannot be read", code: protocol.CodeDisks,
		fault:  func(a *attempt) { a.s.disks.openErr = errors.New("damaged") },
		repair: func(a *attempt) { a.s.disks.openErr = nil }},
	{name: "window over", code: protocol.CodeWindow, fault: func(a *attempt) {
		a.voteOf(approval.Customer).MaxDuration = 10
		a.wait = 10 * time.Second
	}},
	{name: "decided after the request expired", code: protocol.CodeWindow, fault: func(a *attempt) {
		a.statement.Created -= 200
		a.statement.Expires = a.statement.Created + 1
	}},
	{name: "clock behind the order", code: protocol.CodeClock,
		fault:  func(a *attempt) { a.s.clock.setBy(-121 * time.Second) },
		repair: func(a *attempt) { a.s.clock.setBy(121 * time.Second) }},
	{name: "clock ahead of the order", code: protocol.CodeClock,
		fault:  func(a *attempt) { a.s.clock.setBy(122 * time.Second) },
		repair: func(a *attempt) { a.s.clock.setBy(-122 * time.Second) }},
	{name: "clock set back by a day", code: protocol.CodeClock,
		fault:  func(a *attempt) { a.s.clock.setBy(-24 * time.Hour) },
		repair: func(a *attempt) { a.s.clock.setBy(24 * time.Hour) }},
	{name: "clock set forth by a day", code: protocol.CodeClock,
		fault:  func(a *attempt) { a.s.clock.setBy(24 * time.Hour) },
		repair: func(a *attempt) { a.s.clock.setBy(-24 * time.Hour) }},
	{name: "clock below the high-water mark", code: protocol.CodeClock,
		fault: func(a *attempt) {
			if err := a.s.state.RaiseHighWater(a.s.clock.Now().Add(30 * time.Second)); err != nil {
				a.s.t.Fatal(err)
			}
		},
		repair: func(a *attempt) { time.Sleep(31 * time.Second) }},
	{name: "log checkpoint by another key", code: protocol.CodeCheckpoint, fault: func(a *attempt) { a.logKey = "mallory" }},
	{name: "record not in the log", code: protocol.CodeCheckpoint, fault: func(a *attempt) {
		a.onOrder = func(o *approval.Order) { o.LogProof[0] = make([]byte, 32) }
	}},
	{name: "another number in the log", code: protocol.CodeCheckpoint, fault: func(a *attempt) {
		a.onOrder = func(o *approval.Order) { o.LogIndex-- }
	}},
	{name: "record of another operation", code: protocol.CodeCheckpoint, fault: func(a *attempt) {
		a.onRecord = func(r *auditlog.Record) { *r = withOp(*r, auditlog.OpSealDiskKeys) }
	}},
	{name: "record of another request", code: protocol.CodeCheckpoint, fault: func(a *attempt) {
		a.onRecord = func(r *auditlog.Record) { r.Properties[auditlog.PropertySubjectDigest] = "sha256:0" }
	}},
	{name: "record of another nonce", code: protocol.CodeCheckpoint, fault: func(a *attempt) {
		a.onRecord = func(r *auditlog.Record) { r.Properties[auditlog.PropertyNonce(a.s.nodes[0])] = "00" }
	}},
	{name: "record of another correlation", code: protocol.CodeCheckpoint, fault: func(a *attempt) {
		a.onRecord = func(r *auditlog.Record) { r.CorrelationID = "LockboxRequest_other" }
	}},
	{name: "record of a device in the log", code: protocol.CodeCheckpoint, fault: func(a *attempt) {
		a.onRecord = func(r *auditlog.Record) { r.Origin = "DBX0001/1" }
	}},
	{name: "intent not recorded here", code: protocol.CodeNotRecorded,
		fault:  func(a *attempt) { a.s.journal.breaks(protocol.Errorf(protocol.CodeStorageFull, "full"), nil) },
		repair: func(a *attempt) { a.s.journal.breaks(nil, nil) }},
	{name: "wrong disk key", code: protocol.CodeDiskKey, fault: func(a *attempt) {
		a.key = func(d protocol.DiskID) []byte { return diskKey(a.s.nodes[0], "disk1") } // right for the first disk
	}},
	{name: "key sealed for another disk", code: protocol.CodeDiskKey, fault: func(a *attempt) {
		a.onSeal = func(c *sealing.Context) { c.Disk = "disk1" }
	}},
	{name: "key sealed for another purpose", code: protocol.CodeDiskKey, fault: func(a *attempt) {
		a.onSeal = func(c *sealing.Context) { c.Purpose = protocol.DataCopy }
	}},
	{name: "key of another type", code: protocol.CodeDiskKey, fault: func(a *attempt) {
		a.onOrder = func(o *approval.Order) { o.Keys[1].KeyType = "recovery-password" }
	}},
	{name: "copy: consent by a stranger", purpose: protocol.DataCopy, code: protocol.CodeSignerUnknown, fault: func(a *attempt) { a.consenter = "mallory" }},
	{name: "copy: consent by the provider", purpose: protocol.DataCopy, code: protocol.CodeSignerUnknown, fault: func(a *attempt) { a.consenter = "petra" }},
	{name: "copy: consent garbled", purpose: protocol.DataCopy, code: protocol.CodeInvalid, fault: func(a *attempt) {
		a.onRequest = func(r *devicev1.UnlockRequest) { r.Consent = r.Consent[1:] }
	}},
	{name: "copy: a statement beside the consent", purpose: protocol.DataCopy, code: protocol.CodeAction, fault: func(a *attempt) {
		other := a.s.newAttempt(protocol.SupportAccess)
		other.sign()
		a.onRequest = func(r *devicev1.UnlockRequest) { r.Statement = other.requestBytes }
	}},
	{name: "copy: destination not allowed here", purpose: protocol.DataCopy, code: protocol.CodeAction,
		fault:  func(a *attempt) { a.s.jobs.bad = protocol.Errorf(protocol.CodeAction, "not below blob_roots") },
		repair: func(a *attempt) { a.s.jobs.bad = nil }},
	{name: "copy: access to an account that the consent does not name", purpose: protocol.DataCopy, code: protocol.CodeAction, fault: func(a *attempt) {
		a.onOrder = func(o *approval.Order) {
			other := o.Access[0]
			other.Account = "fabrikamdata"
			o.Access = append(o.Access, other)
		}
	}},
	{name: "copy: access at an endpoint that the consent does not name", purpose: protocol.DataCopy, code: protocol.CodeAction, fault: func(a *attempt) {
		a.onOrder = func(o *approval.Order) { o.Access[0].Endpoint = "https://contosodata.blob.example" }
	}},
	{name: "copy: access sealed for another account", purpose: protocol.DataCopy, code: protocol.CodeDiskKey, fault: func(a *attempt) {
		a.onAccess = func(c *sealing.Context) { c.Account = "fabrikamdata" }
	}},
	{name: "copy: access sealed for another challenge", purpose: protocol.DataCopy, code: protocol.CodeDiskKey, fault: func(a *attempt) {
		a.onAccess = func(c *sealing.Context) { c.Nonce = make([]byte, sealing.NonceSize) }
	}},
	{name: "copy: access of another type", purpose: protocol.DataCopy, code: protocol.CodeDiskKey, fault: func(a *attempt) {
		a.onOrder = func(o *approval.Order) { o.Access[0].KeyType = string(sealing.ExternalKey) }
	}},
	{name: "copy: access that would break out of its request", purpose: protocol.DataCopy, code: protocol.CodeDiskKey, fault: func(a *attempt) {
		a.access = "sig=x HTTP/1.1\r\nHost: evil.example"
	}},
	{name: "copy: consent over", purpose: protocol.DataCopy, code: protocol.CodeWindow, fault: func(a *attempt) {
		a.consent.Until = a.consent.Created + 10
		a.wait = 10 * time.Second
	}},
	{name: "copy: another node", purpose: protocol.DataCopy, code: protocol.CodeNode, fault: func(a *attempt) {
		a.consent.Nodes[0].KeyFingerprint = approval.KeyFingerprint(public("mallory"))
	}},
	{name: "copy: order for support", purpose: protocol.DataCopy, code: protocol.CodeAction, fault: func(a *attempt) {
		a.onOrder = func(o *approval.Order) { o.Purpose, o.Access = protocol.SupportAccess, nil }
	}},
}

func withOp(r auditlog.Record, op auditlog.Operation) auditlog.Record {
	r.Operation, r.Category = op, op.Category()
	return r
}

func (a *attempt) voteOf(role approval.Role) *vote {
	for i := range a.votes {
		if a.votes[i].Role == role {
			return &a.votes[i]
		}
	}
	panic("no vote")
}

func (a *attempt) without(role approval.Role) {
	a.votes = slices.DeleteFunc(a.votes, func(v vote) bool { return v.Role == role })
}

// One fault, one code, nothing open; and with only that fault repaired, it opens.
func TestRefusals(t *testing.T) {
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newScene(t)
				if r.purpose == "" {
					r.purpose = protocol.SupportAccess
				}
				a := s.newAttempt(r.purpose)
				r.fault(a)
				_, err := a.unlock()
				if protocol.CodeOf(err) != r.code {
					t.Fatalf("refused with %v, want %s", err, r.code)
				}
				s.stateIs(protocol.Locked)
				if held := s.disks.held(); len(held) > 0 {
					t.Errorf("disks %v are open", held)
				}
				if r.code != protocol.CodeNotRecorded && s.journal.count(auditlog.OpRefuseUnlock, auditlog.Refused) != 1 {
					t.Error("the refusal was not recorded")
				}
				if r.repair != nil {
					r.repair(a)
				}
				good := s.newAttempt(r.purpose)
				good.open()
				s.stateIs(protocol.Unlocked)
			})
		})
	}
}

func TestReplays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		a := s.newAttempt(protocol.SupportAccess)
		first := must(a.challenge())
		old := a.order(first)
		second := must(a.challenge()) // replaces the first
		if _, err := s.Unlock(t.Context(), nil, old, nil); protocol.CodeOf(err) != protocol.CodeNonce {
			t.Errorf("an order for the challenge before: %v", err)
		}
		if _, err := s.Unlock(t.Context(), nil, a.order(second), nil); protocol.CodeOf(err) != protocol.CodeNonce {
			t.Errorf("a good order after an attempt killed its challenge: %v", err)
		}
		c := must(a.challenge())
		req := a.order(c)
		if _, err := s.Unlock(t.Context(), nil, req, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Unlock(t.Context(), nil, req, nil); protocol.CodeOf(err) != protocol.CodeBusy {
			t.Errorf("the same order while it is open: %v", err)
		}
		if _, err := s.Lock(t.Context(), Operator, "", false); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Unlock(t.Context(), nil, req, nil); protocol.CodeOf(err) != protocol.CodeNonce {
			t.Errorf("the same order again: %v", err)
		}
		must(a.challenge())
		if _, err := s.Unlock(t.Context(), nil, req, nil); protocol.CodeOf(err) != protocol.CodeNonce {
			t.Errorf("the same order after a new challenge: %v", err)
		}
		s.stateIs(protocol.Locked)
	})
}

// A log that forgets, or forks from, what this node has seen is refused.
func TestLogMustGoOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		s.open(protocol.SupportAccess)
		must(s.Lock(t.Context(), Operator, "", false))
		seen := s.log

		s.log = new(auditlog.Tree) // another log, longer than the one seen
		for range 20 {
			s.logRecord(auditlog.NewRecord(time.Now(), auditlog.OpStopService, auditlog.Success))
		}
		if _, err := s.newAttempt(protocol.SupportAccess).unlock(); protocol.CodeOf(err) != protocol.CodeCheckpoint {
			t.Errorf("a forked log: %v", err)
		}
		a := s.newAttempt(protocol.SupportAccess)
		s.log = new(auditlog.Tree) // shorter
		a.onOrder = func(o *approval.Order) { o.LogConsistency = nil }
		noConsistency := s.state.Checkpoint()
		if len(noConsistency) == 0 {
			t.Fatal("no checkpoint was kept")
		}
		s.log = seen
		if _, err := a.unlock(); protocol.CodeOf(err) != protocol.CodeCheckpoint {
			t.Errorf("no consistency proof: %v", err)
		}
		s.open(protocol.SupportAccess) // the log it knows
	})
}

func TestChallenge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		if _, err := s.Challenge(t.Context(), "sha256:0", protocol.SupportAccess); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("no digest: %v", err)
		}
		if _, err := s.Challenge(t.Context(), approval.DigestOf(nil), "root-access"); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("no purpose: %v", err)
		}
		a := s.newAttempt(protocol.SupportAccess)
		must(a.challenge())
		time.Sleep(59 * time.Second)
		s.stateIs(protocol.Challenged)
		time.Sleep(2 * time.Second)
		s.stateIs(protocol.Locked)

		req := a.order(must(a.challenge()))
		must(s.Lock(t.Context(), Operator, "", false))
		s.stateIs(protocol.Locked)
		if _, err := s.Unlock(t.Context(), nil, req, nil); protocol.CodeOf(err) != protocol.CodeNonce {
			t.Errorf("an order for a challenge that was locked away: %v", err)
		}
		a.open()
		if _, err := s.newAttempt(protocol.SupportAccess).challenge(); protocol.CodeOf(err) != protocol.CodeBusy {
			t.Errorf("a challenge while unlocked: %v", err)
		}
	})
}

// What lets into the accounts of a consent is the job's while its lease lasts, and
// gone when the node locks, while the job still runs too.
func TestAccessIsOfTheLease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		a := s.open(protocol.DataCopy)
		targets := <-s.jobs.got
		if len(targets) != 1 || targets[0].Destination != a.consent.Destinations[0] {
			t.Fatalf("the job goes to %v", targets)
		}
		if got, ok := targets[0].Access.AppendTo(nil); !ok || string(got) != a.access {
			t.Errorf("what lets in is %q, %v", got, ok)
		}
		if text := fmt.Sprintf("%v %+v %#v", targets[0].Access, targets[0], targets[0].Access); strings.Contains(text, "sig=") {
			t.Errorf("it can be printed: %s", text)
		}
		must(s.Lock(t.Context(), Operator, "", false))
		if got, ok := targets[0].Access.AppendTo(nil); ok || len(got) > 0 {
			t.Errorf("after the relock it is %q", got)
		}
		a.onOrder = func(o *approval.Order) { o.Access = nil } // a folder needs none
		a.open()
		if targets := <-s.jobs.got; len(targets) != 1 || targets[0].Access != nil {
			t.Errorf("without access: %v", targets)
		}
	})
}

func TestDataCopyHoldsTheNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		s.open(protocol.DataCopy)
		if s.shares.running() != 0 {
			t.Error("the copy job opened shares")
		}
		if !s.disks.get("disk1").readOnly {
			t.Error("the copy job opened a disk for writing")
		}
		if _, err := s.newAttempt(protocol.SupportAccess).unlock(); protocol.CodeOf(err) != protocol.CodeBusy {
			t.Errorf("support while the job runs: %v", err)
		}
		s.stateIs(protocol.Unlocked)
	})
}

// When the caller goes away in the middle, nothing stays open.
func TestCallerGone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		a := s.newAttempt(protocol.SupportAccess)
		req := a.order(must(a.challenge()))
		ctx, cancel := context.WithCancel(t.Context())
		_, err := s.Unlock(ctx, nil, req, func(d protocol.DiskID, phase string) {
			if d == "disk1" && phase == phaseOpen {
				cancel()
			}
		})
		if protocol.CodeOf(err) != protocol.CodeTimeout || s.disks.opened != 1 {
			t.Errorf("refused with %v after %d disks were opened", err, s.disks.opened)
		}
		s.lockedBecause(UnlockFailed)
		s.open(protocol.SupportAccess)
	})
}

// A disk that never opens does not keep the node busy for ever.
func TestOpeningHasALimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		stuck := make(chan struct{})
		s.disks.hangOpen = stuck
		a := s.newAttempt(protocol.SupportAccess)
		req := a.order(must(a.challenge()))
		result := make(chan error, 1)
		go func() {
			_, err := s.Unlock(t.Context(), nil, req, nil)
			result <- err
		}()
		time.Sleep(openWithin + lockWithin + time.Second)
		s.stateIs(protocol.Faulted)
		close(stuck)
		if err := <-result; err == nil {
			t.Error("it opened")
		}
		synctest.Wait()
		s.lockedBecause(UnlockFailed)
	})
}

// A panic in the middle is no way to keep a disk open.
func TestPanicLocks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		a := s.newAttempt(protocol.SupportAccess)
		req := a.order(must(a.challenge()))
		func() {
			defer func() { _ = recover() }()
			s.Unlock(t.Context(), nil, req, func(d protocol.DiskID, phase string) {
				if d == "disk2" {
					panic("a bug")
				}
			})
		}()
		s.lockedBecause(UnlockFailed)
	})
}

// hangingState is a state whose file system hangs, in one of its calls.
type hangingState struct {
	State
	spend chan struct{}
}

func (h hangingState) Spend(digest, reason string, until time.Time) error {
	hang(h.spend)
	return h.State.Spend(digest, reason, until)
}

// What is being revoked cannot be opened any more, even while that is not yet
// durable; and a state that hangs is a refusal.
func TestRevocationThatIsSlowToWrite(t *testing.T) {
	bubble(t, func(t *testing.T) {
		stuck := make(chan struct{})
		s := newScene(t, func(s *scene) { s.cfg.State = hangingState{s.state, stuck} })
		a := s.newAttempt(protocol.SupportAccess)
		req := a.order(must(a.challenge()))
		result := make(chan error, 1)
		slow := true
		_, err := s.Unlock(t.Context(), nil, req, func(_ protocol.DiskID, phase string) {
			if phase == phaseRecording && slow { // verified, and now somebody revokes it
				slow = false
				go func() {
					_, err := s.Lock(t.Context(), Revoked, a.subject, false)
					result <- err
				}()
				synctest.Wait()
			}
		})
		if protocol.CodeOf(err) != protocol.CodeLocked {
			t.Errorf("the order under way: %v", err)
		}
		start := time.Now()
		if _, err := a.unlock(); protocol.CodeOf(err) != protocol.CodeNotRecorded || time.Since(start) > 5*time.Second {
			t.Errorf("while the state hangs: %v after %v", err, time.Since(start))
		}
		if err := <-result; err == nil {
			t.Error("the revocation was reported durable")
		}
		close(stuck)
		synctest.Wait()
		if _, err := a.unlock(); protocol.CodeOf(err) != protocol.CodeRevoked {
			t.Errorf("afterwards: %v", err)
		}
		if s.disks.opened != 0 {
			t.Error("a disk was opened")
		}
	})
}

// The order is verified against what was known before the revocation came.
func TestRevocationBetweenCheckAndOpening(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		a := s.newAttempt(protocol.SupportAccess)
		a.sign()
		s.Machine.mu.Lock()
		s.used[a.subject] = Revoked // what [Machine.Lock] does first
		s.Machine.mu.Unlock()
		if _, err := a.unlock(); protocol.CodeOf(err) != protocol.CodeRevoked {
			t.Errorf("not yet durable: %v", err)
		}
	})
}

func TestJournalThatHangsIsARefusal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t)
		stuck := make(chan struct{})
		s.journal.breaks(nil, stuck)
		start := time.Now()
		_, err := s.newAttempt(protocol.SupportAccess).unlock()
		if protocol.CodeOf(err) != protocol.CodeNotRecorded {
			t.Errorf("unlock: %v", err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		if s.disks.opened != 0 {
			t.Error("a disk was opened without a record")
		}
		s.journal.breaks(nil, nil)
		close(stuck)
		s.open(protocol.SupportAccess)
	})
}
