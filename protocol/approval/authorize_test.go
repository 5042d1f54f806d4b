package approval_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/protocol"
	. "github.com/databox-lockbox/lockbox/protocol/approval"
)

// unlockCase is one refusal with its control: the base scene after prepare is
// accepted, and with fault on top it is refused with code. Without fault only
// the acceptance is tested.
type unlockCase struct {
	name    string
	prepare func(t testing.TB, s *scene)
	fault   func(t testing.TB, s *scene)
	code    protocol.Code
}

// withBob lets bob's passkey approve in place of alice's SSH key.
func withBob(_ testing.TB, s *scene) {
	s.without("alice-laptop")
	s.decisions = append(s.decisions, approve("bob-passkey", Customer, created+130))
}

// bobAs lets bob's authenticator behave differently.
func bobAs(change func(*authenticator)) func(testing.TB, *scene) {
	return func(_ testing.TB, s *scene) { s.decision("bob-passkey").hand = byPasskey("bob", change) }
}

// aliceAs lets alice's SSH signature be made differently.
func aliceAs(change func(*sshsig)) func(testing.TB, *scene) {
	return func(_ testing.TB, s *scene) { s.decision("alice-laptop").hand = byBlob("alice", change) }
}

// showing changes a blob after it was signed.
func showing(change func(*sshsig)) func(*sshsig) { return func(b *sshsig) { b.show = change } }

// twoOwners asks for two of the owners, alice and bob.
func twoOwners(t testing.TB, s *scene) {
	s.rule(UnlockDatabox).CustomerGroups[0].Threshold = 2
	s.policy.keyIDs = []string{"alice-laptop", "bob-passkey", "carol-token"}
	s.decisions = append(s.decisions, approve("bob-passkey", Customer, created+130))
}

// oneOwner asks for one owner alone, as the rule for data-copy does.
func oneOwner(_ testing.TB, s *scene) {
	rule := s.rule(UnlockDatabox)
	rule.ProviderGroups, rule.CustomerGroups = nil, rule.CustomerGroups[:1]
	s.policy.keyIDs = []string{"alice-laptop"}
	s.without("petra-laptop")
	s.without("carol-token")
}

// inEmergency asks to break the glass, with the approvals that takes.
func inEmergency(_ testing.TB, s *scene) {
	s.statement.Exclusion = BreakGlass
	s.decisions = []signedDoc[Decision]{
		approve("petra-laptop", Provider, created+60),
		approve("paul-laptop", Provider, created+300),
	}
}

// withStanding lets a standing consent stand for the customers' decisions.
func withStanding(_ testing.TB, s *scene) {
	s.without("alice-laptop")
	s.without("carol-token")
	s.standing = &signedDoc[Standing]{
		doc: Standing{
			StandingID: "STC-5d0f6a0c", Verdict: Approve, TenantID: "contoso", OrderID: "ORD-1001", Nodes: []NodeRef{node(1), node(2)},
			ReasonCodes: []string{"copied-to-wrong-folder", "incorrect-data-format"}, Access: ReadWrite, MaxDuration: 4 * 3600,
			Created: created - 24*3600, Until: created + 24*3600,
		},
		keyIDs: []string{"bob-passkey", "carol-token"},
	}
}

// notGiven denies by a standing consent.
func notGiven(_ testing.TB, s *scene) { s.standing.doc.Verdict, s.standing.doc.MaxDuration = Deny, 0 }

// flip changes one bit of the first signature.
func flip(e *Envelope) { e.Signatures[0].Sig[len(e.Signatures[0].Sig)-1] ^= 1 }

var unlockCases = []unlockCase{
	{name: "accepted-ssh"},
	{name: "accepted-named-shares", prepare: func(_ testing.TB, s *scene) {
		s.statement.Shares = []string{"contosodata_BlockBlob", "contosodata_AzFile"}
	}},
	{name: "accepted-nfs", prepare: func(_ testing.TB, s *scene) { s.statement.Protocols = []Protocol{NFS} }},
	{name: "accepted-passkey", prepare: withBob},
	{name: "accepted-two-of-a-group", prepare: twoOwners},
	{name: "accepted-spare-key", prepare: func(_ testing.TB, s *scene) {
		s.without("alice-laptop")
		s.decisions = append(s.decisions, approve("alice-spare", Customer, created+130))
	}},
	{name: "accepted-passkey-other-subdomain-port", prepare: func(t testing.TB, s *scene) {
		withBob(t, s)
		s.policy.doc.Keys[2].Origins = []string{"https://portal.lockbox.example", "https://a.lockbox.example:8443"}
		s.decision("bob-passkey").hand = byPasskey("bob", func(a *authenticator) { a.origin = "https://a.lockbox.example:8443" })
	}},
	{name: "accepted-passkey-unknown-client-data", prepare: func(t testing.TB, s *scene) {
		withBob(t, s)
		bobAs(func(a *authenticator) { a.extra["other_keys_can_be_added_here"] = "do not compare clientDataJSON" })(t, s)
	}},
	{name: "accepted-passkey-ed25519", prepare: func(t testing.TB, s *scene) {
		withBob(t, s)
		change := func(a *authenticator) { a.key = machineKey("bob") }
		bobAs(change)(t, s)
		a := newAuthenticator(t, "bob")
		change(&a)
		s.policy.doc.Keys[2] = a.policyKey(t, "bob-passkey", "bob@contoso.example")
	}},
	{name: "accepted-passkey-without-crossorigin", prepare: func(t testing.TB, s *scene) {
		withBob(t, s)
		bobAs(func(a *authenticator) { a.extra = nil })(t, s)
	}},
	{name: "accepted-revocation-of-another-request", prepare: func(_ testing.TB, s *scene) {
		r := revoke("alice-laptop")
		r.doc.SubjectDigest = DigestOf([]byte("another request"))
		s.revocations = append(s.revocations, r)
	}},
	{name: "accepted-decided-after-others-expired", prepare: func(_ testing.TB, s *scene) {
		s.now = s.statement.Expires + 60
		s.decision("carol-token").doc.DecidedAt = s.statement.Expires
	}},
	{name: "accepted-decision-dated-a-little-early", prepare: func(_ testing.TB, s *scene) {
		s.decision("petra-laptop").doc.DecidedAt = created - 120
	}},
	{name: "accepted-policy-of-any-order", prepare: func(_ testing.TB, s *scene) { s.policy.doc.OrderID = "" }},

	{name: "accepted-exclusion", prepare: inEmergency},
	{name: "accepted-exclusion-by-two-groups", prepare: func(t testing.TB, s *scene) {
		inEmergency(t, s)
		s.policy.doc.Exclusions[0].ProviderGroups = []Group{{"leads", 1, []string{"petra-laptop"}}, {"managers", 1, []string{"paul-laptop"}}}
	}},
	{name: "exclusion-not-in-policy", prepare: inEmergency, fault: func(_ testing.TB, s *scene) { s.policy.doc.Exclusions = nil }, code: protocol.CodeAction},
	{name: "exclusion-of-another-kind", prepare: inEmergency, fault: func(_ testing.TB, s *scene) { s.statement.Exclusion = LegalDemand }, code: protocol.CodeAction},
	{name: "exclusion-goes-too-far", prepare: inEmergency, fault: func(_ testing.TB, s *scene) { s.statement.Access = Delete }, code: protocol.CodeAction},
	{name: "exclusion-for-another-action", prepare: inEmergency, fault: func(_ testing.TB, s *scene) { s.statement.Action = CopyData }, code: protocol.CodeAction},
	{name: "exclusion-of-data-copy", prepare: inEmergency, fault: func(_ testing.TB, s *scene) { s.statement.Purpose = protocol.DataCopy }, code: protocol.CodeAction},
	{name: "exclusion-by-one", prepare: inEmergency, fault: func(_ testing.TB, s *scene) { s.without("paul-laptop") }, code: protocol.CodeDecisionMissing},
	{name: "exclusion-by-one-with-two-keys", prepare: inEmergency, fault: func(_ testing.TB, s *scene) {
		s.without("paul-laptop")
		s.decisions = append(s.decisions, approve("petra-spare", Provider, created+300))
	}, code: protocol.CodeDecisionMissing},
	{name: "exclusion-by-nobody", prepare: inEmergency, fault: func(_ testing.TB, s *scene) { s.decisions = nil }, code: protocol.CodeDecisionMissing},
	{name: "exclusion-by-service", prepare: inEmergency, fault: func(_ testing.TB, s *scene) {
		s.without("paul-laptop")
		d := approve(string(KeyFingerprint(machinePublic("service"))), Provider, created+130)
		d.hand = byMachine("service")
		s.decisions = append(s.decisions, d)
	}, code: protocol.CodeSignerUnknown},
	{name: "exclusion-approved-for-the-customer", prepare: inEmergency, fault: func(_ testing.TB, s *scene) {
		s.decision("paul-laptop").doc.Role = Customer
	}, code: protocol.CodeSignerUnknown},
	{name: "exclusion-of-which-approvers-knew-nothing", prepare: inEmergency, fault: func(t testing.TB, s *scene) {
		_, in := func() ([]byte, Request) {
			o := newScene(t)
			inEmergency(t, o)
			o.statement.Exclusion = ""
			return o.unlock(t)
		}()
		s.changeUnlock = func(now *Request) { now.Decisions = in.Decisions }
	}, code: protocol.CodeSignatureInvalid},
	{name: "exclusion-denied", prepare: func(t testing.TB, s *scene) {
		inEmergency(t, s)
		group := &s.policy.doc.Exclusions[0].ProviderGroups[0]
		group.Keys = append(group.Keys, "quinn-laptop")
		s.policy.doc.Keys = append(s.policy.doc.Keys, sshKey(t, "quinn-laptop", "quinn@provider.example", sshSigner(t, "quinn").PublicKey()))
	}, fault: func(_ testing.TB, s *scene) {
		d := approve("quinn-laptop", Provider, created+130)
		d.doc.Verdict, d.doc.MaxDuration, d.hand = Deny, 0, byFile("quinn")
		s.decisions = append(s.decisions, d)
	}, code: protocol.CodeDenied},
	{name: "exclusion-by-engineer", prepare: inEmergency, fault: func(_ testing.TB, s *scene) {
		s.statement.Engineer.Person = "paul@provider.example"
	}, code: protocol.CodeSignerEngineer},
	{name: "exclusion-by-engineer-with-another-key", prepare: inEmergency, fault: func(t testing.TB, s *scene) {
		s.statement.Engineer.SSHKey = ssh.FingerprintSHA256(sshSigner(t, "petra spare").PublicKey())
	}, code: protocol.CodeSignerEngineer},
	{name: "exclusion-over", prepare: inEmergency, fault: func(_ testing.TB, s *scene) { s.now = created + 300 + 2*3600 }, code: protocol.CodeWindow},
	{name: "exclusion-revoked-by-customer", prepare: inEmergency, fault: func(_ testing.TB, s *scene) {
		s.revocations = append(s.revocations, revoke("alice-laptop"))
	}, code: protocol.CodeRevoked},
	{name: "exclusion-by-standing-consent", prepare: inEmergency, fault: func(t testing.TB, s *scene) {
		withStanding(t, s)
	}, code: protocol.CodeSignerUnknown},

	{name: "accepted-standing-consent", prepare: withStanding},
	{name: "accepted-standing-consent-with-a-decision", prepare: func(t testing.TB, s *scene) {
		withStanding(t, s)
		s.decisions = append(s.decisions, approve("alice-laptop", Customer, created+120))
	}},
	{name: "accepted-standing-consent-that-began-a-little-late", prepare: func(t testing.TB, s *scene) {
		withStanding(t, s)
		s.standing.doc.Created = created + 180
	}},
	{name: "standing-consent-missing-group", prepare: withStanding, fault: func(_ testing.TB, s *scene) { s.standing.keyIDs = []string{"bob-passkey"} }, code: protocol.CodeDecisionMissing},
	{name: "standing-consent-without-provider", prepare: withStanding, fault: func(_ testing.TB, s *scene) { s.decisions = nil }, code: protocol.CodeDecisionMissing},
	{name: "standing-consent-where-no-provider-is-asked", prepare: withStanding, fault: func(_ testing.TB, s *scene) {
		s.rule(UnlockDatabox).ProviderGroups, s.decisions = nil, nil
	}, code: protocol.CodeDecisionMissing},
	{name: "standing-consent-by-stranger", prepare: withStanding, fault: func(_ testing.TB, s *scene) {
		s.standing.keyIDs = append(s.standing.keyIDs, "mallory")
	}, code: protocol.CodeSignerUnknown},
	{name: "standing-consent-by-provider", prepare: withStanding, fault: func(_ testing.TB, s *scene) { s.standing.keyIDs = []string{"petra-laptop"} }, code: protocol.CodeSignerUnknown},
	{name: "standing-consent-by-recovery-key", prepare: withStanding, fault: func(_ testing.TB, s *scene) { s.standing.keyIDs = []string{"vault"} }, code: protocol.CodeSignerUnknown},
	{name: "standing-consent-by-service", prepare: withStanding, fault: func(_ testing.TB, s *scene) {
		s.standing.keyIDs, s.standing.hand = []string{string(KeyFingerprint(machinePublic("service")))}, byMachine("service")
	}, code: protocol.CodeSignerUnknown},
	{name: "standing-consent-flipped", prepare: withStanding, fault: func(_ testing.TB, s *scene) { s.standing.change = flip }, code: protocol.CodeSignatureInvalid},
	{name: "standing-consent-widened", prepare: withStanding, fault: func(_ testing.TB, s *scene) {
		s.standing.change = func(e *Envelope) {
			e.Payload = bytes.Replace(e.Payload, []byte(`"read-write"`), []byte(`"delete"`), 1)
		}
	}, code: protocol.CodeSignatureInvalid},
	{name: "standing-consent-namespace", prepare: withStanding, fault: func(_ testing.TB, s *scene) {
		s.standing.keyIDs, s.standing.hand = []string{"carol-token"}, byBlob("carol", func(b *sshsig) { b.namespace = KindDecision.Namespace() })
	}, code: protocol.CodeSignatureInvalid},
	{name: "standing-consent-of-the-engineer", prepare: withStanding, fault: func(_ testing.TB, s *scene) {
		s.statement.Engineer.Person = "bob@contoso.example"
	}, code: protocol.CodeSignerEngineer},
	{name: "standing-consent-for-another-reason", prepare: withStanding, fault: func(_ testing.TB, s *scene) {
		s.statement.ReasonCode = "prepare-to-ship-not-run"
	}, code: protocol.CodeAction},
	{name: "standing-consent-for-less-access", prepare: withStanding, fault: func(_ testing.TB, s *scene) { s.statement.Access = Delete }, code: protocol.CodeAction},
	{name: "standing-consent-for-nfs", prepare: withStanding, fault: func(_ testing.TB, s *scene) { s.statement.Protocols = []Protocol{NFS} }, code: protocol.CodeAction},
	{name: "standing-consent-for-another-node", prepare: withStanding, fault: func(_ testing.TB, s *scene) { s.standing.doc.Nodes = []NodeRef{node(2)} }, code: protocol.CodeAction},
	{name: "standing-consent-for-another-key", prepare: withStanding, fault: func(_ testing.TB, s *scene) {
		s.standing.doc.Nodes[0].KeyFingerprint = KeyFingerprint(machinePublic("thief"))
	}, code: protocol.CodeAction},
	{name: "standing-consent-for-another-order", prepare: func(t testing.TB, s *scene) {
		withStanding(t, s)
		s.policy.doc.OrderID = ""
	}, fault: func(_ testing.TB, s *scene) { s.standing.doc.OrderID = "ORD-1002" }, code: protocol.CodeAction},
	{name: "standing-consent-tenant", prepare: withStanding, fault: func(_ testing.TB, s *scene) { s.standing.doc.TenantID = "fabrikam" }, code: protocol.CodePolicyDigest},
	{name: "standing-consent-policy", prepare: withStanding, fault: func(_ testing.TB, s *scene) { s.standing.doc.PolicyDigest = DigestOf(nil) }, code: protocol.CodePolicyDigest},
	{name: "standing-consent-not-yet", prepare: withStanding, fault: func(_ testing.TB, s *scene) { s.standing.doc.Created = created + 181 }, code: protocol.CodeWindow},
	{name: "standing-consent-over", prepare: withStanding, fault: func(_ testing.TB, s *scene) { s.standing.doc.Until = created + 60 }, code: protocol.CodeWindow},
	{name: "standing-consent-over-meanwhile", prepare: withStanding, fault: func(_ testing.TB, s *scene) { s.standing.doc.Until = s.now }, code: protocol.CodeWindow},
	{name: "standing-consent-used-up-its-time", prepare: withStanding, fault: func(_ testing.TB, s *scene) { s.now = created + 60 + 4*3600 }, code: protocol.CodeWindow},
	{name: "standing-consent-denies", prepare: withStanding, fault: notGiven, code: protocol.CodeDenied},
	{name: "standing-consent-denies-what-goes-further", prepare: withStanding, fault: func(t testing.TB, s *scene) {
		notGiven(t, s)
		s.statement.Access = Delete
	}, code: protocol.CodeDenied},
	{name: "standing-consent-denies-nothing-here", prepare: withStanding, fault: func(t testing.TB, s *scene) {
		notGiven(t, s)
		s.standing.doc.Access = Delete
	}, code: protocol.CodeAction},
	{name: "standing-consent-and-a-denial", prepare: withStanding, fault: func(_ testing.TB, s *scene) {
		d := approve("alice-laptop", Customer, created+120)
		d.doc.Verdict, d.doc.MaxDuration = Deny, 0
		s.decisions = append(s.decisions, d)
	}, code: protocol.CodeDenied},
	{name: "standing-consent-revoked", prepare: withStanding, fault: func(t testing.TB, s *scene) {
		s.changeUnlock = func(in *Request) {
			r := revoke("alice-laptop")
			r.doc.SubjectDigest = digestOfPayload(t, in.Decisions[len(in.Decisions)-1])
			in.Revocations = [][]byte{r.envelope(t)}
		}
	}, code: protocol.CodeRevoked},
	{name: "standing-consent-twice", prepare: withStanding, fault: func(t testing.TB, s *scene) {
		s.changeUnlock = func(in *Request) {
			e := must[Envelope](t)(ParseEnvelope(in.Decisions[len(in.Decisions)-1]))
			slices.Reverse(e.Signatures)
			in.Decisions = append(in.Decisions, must[[]byte](t)(e.Encode()))
		}
	}, code: protocol.CodeInvalid},

	{name: "missing-all", fault: func(_ testing.TB, s *scene) { s.decisions = nil }, code: protocol.CodeDecisionMissing},
	{name: "missing-customer-group", fault: func(_ testing.TB, s *scene) { s.without("alice-laptop") }, code: protocol.CodeDecisionMissing},
	{name: "missing-other-customer-group", fault: func(_ testing.TB, s *scene) { s.without("carol-token") }, code: protocol.CodeDecisionMissing},
	{name: "missing-provider-group", fault: func(_ testing.TB, s *scene) { s.without("petra-laptop") }, code: protocol.CodeDecisionMissing},
	{name: "missing-second-of-two", prepare: twoOwners, fault: func(_ testing.TB, s *scene) { s.without("bob-passkey") }, code: protocol.CodeDecisionMissing},
	{name: "missing-one-person-with-two-keys", prepare: twoOwners, fault: func(_ testing.TB, s *scene) {
		s.without("bob-passkey")
		s.decisions = append(s.decisions, approve("alice-spare", Customer, created+130))
	}, code: protocol.CodeDecisionMissing},

	{name: "signature-flipped-ssh", fault: func(_ testing.TB, s *scene) { s.decision("alice-laptop").change = flip }, code: protocol.CodeSignatureInvalid},
	{name: "signature-flipped-security-key", fault: func(_ testing.TB, s *scene) { s.decision("carol-token").change = flip }, code: protocol.CodeSignatureInvalid},
	{name: "signature-of-another-key", fault: func(_ testing.TB, s *scene) { s.decision("alice-laptop").hand = byFile("mallory") }, code: protocol.CodeSignatureInvalid},
	{name: "signature-of-another-key-claiming-this", fault: func(t testing.TB, s *scene) {
		s.decision("alice-laptop").hand = byBlob("mallory", func(b *sshsig) { b.public = sshSigner(t, "alice").PublicKey().Marshal() })
	}, code: protocol.CodeSignatureInvalid},
	{name: "signature-payload-changed", fault: func(_ testing.TB, s *scene) {
		s.decision("alice-laptop").change = func(e *Envelope) {
			e.Payload = bytes.Replace(e.Payload, []byte(`"maxDuration":28800`), []byte(`"maxDuration":28801`), 1)
		}
	}, code: protocol.CodeSignatureInvalid},
	{name: "signature-namespace-of-consent", fault: aliceAs(func(b *sshsig) { b.namespace = KindConsent.Namespace() }), code: protocol.CodeSignatureInvalid},
	{name: "signature-namespace-file", fault: aliceAs(func(b *sshsig) { b.namespace = "file" }), code: protocol.CodeSignatureInvalid},
	{name: "signature-hash-sha256", fault: aliceAs(func(b *sshsig) { b.hash = "sha256" }), code: protocol.CodeSignatureInvalid},
	{name: "signature-reserved", fault: aliceAs(func(b *sshsig) { b.reserved = "x" }), code: protocol.CodeSignatureInvalid},
	{name: "signature-sshsig-version", fault: aliceAs(func(b *sshsig) { b.version = 2 }), code: protocol.CodeSignatureInvalid},
	{name: "signature-sshsig-magic", fault: aliceAs(func(b *sshsig) { b.magic = "SSHSIH" }), code: protocol.CodeSignatureInvalid},
	{name: "signature-trailing-byte", fault: func(_ testing.TB, s *scene) {
		s.decision("alice-laptop").change = func(e *Envelope) { e.Signatures[0].Sig = append(e.Signatures[0].Sig, 0) }
	}, code: protocol.CodeSignatureInvalid},
	{name: "signature-inner-trailing-byte", fault: func(_ testing.TB, s *scene) {
		s.decision("alice-laptop").hand = byRest(func(t testing.TB) ssh.Signer { return sshSigner(t, "alice") }, oneMore)
	}, code: protocol.CodeSignatureInvalid},
	{name: "signature-security-key-trailing-byte", fault: func(_ testing.TB, s *scene) {
		s.decision("carol-token").hand = byRest(func(testing.TB) ssh.Signer { return newSecurityKey("carol") }, oneMore)
	}, code: protocol.CodeSignatureInvalid},
	{name: "signature-security-key-without-flags", fault: func(_ testing.TB, s *scene) {
		s.decision("carol-token").hand = byRest(func(testing.TB) ssh.Signer { return newSecurityKey("carol") }, none)
	}, code: protocol.CodeSignatureInvalid},
	{name: "signature-security-key-untouched", fault: func(_ testing.TB, s *scene) {
		s.decision("carol-token").hand = func(t testing.TB, e *Envelope, keyID string) {
			key := newSecurityKey("carol")
			key.flags = 0x04
			e.Signatures = append(e.Signatures, Signature{KeyID: keyID, Sig: plainSSHSig(e.PayloadType).sign(t, key, e.PAE())})
		}
	}, code: protocol.CodeSignatureInvalid},
	{name: "signature-security-key-of-web-page", fault: func(_ testing.TB, s *scene) {
		s.decision("carol-token").hand = func(t testing.TB, e *Envelope, keyID string) {
			key, good := newSecurityKey("carol"), newSecurityKey("carol")
			key.application = "https://evil.example"
			blob := plainSSHSig(e.PayloadType)
			blob.public = good.PublicKey().Marshal()
			e.Signatures = append(e.Signatures, Signature{KeyID: keyID, Sig: blob.sign(t, key, e.PAE())})
		}
	}, code: protocol.CodeSignatureInvalid},
	{name: "signature-shows-another-key", fault: func(t testing.TB, s *scene) {
		aliceAs(func(b *sshsig) { b.public = sshSigner(t, "mallory").PublicKey().Marshal() })(t, s)
	}, code: protocol.CodeSignatureInvalid},
	{name: "signature-shows-another-namespace", fault: aliceAs(showing(func(b *sshsig) { b.namespace = "file" })), code: protocol.CodeSignatureInvalid},
	{name: "signature-shows-another-hash", fault: aliceAs(showing(func(b *sshsig) { b.hash = "sha256" })), code: protocol.CodeSignatureInvalid},
	{name: "signature-shows-reserved", fault: aliceAs(showing(func(b *sshsig) { b.reserved = "x" })), code: protocol.CodeSignatureInvalid},
	{name: "signature-shows-another-magic", fault: aliceAs(showing(func(b *sshsig) { b.magic = "SSHSIH" })), code: protocol.CodeSignatureInvalid},
	{name: "signature-plain-ed25519", fault: func(_ testing.TB, s *scene) { s.decision("alice-laptop").hand = byMachine("alice") }, code: protocol.CodeSignatureInvalid},
	{name: "signature-ssh-in-place-of-passkey", prepare: withBob, fault: func(_ testing.TB, s *scene) {
		s.decision("bob-passkey").hand = byFile("bob")
	}, code: protocol.CodeSignatureInvalid},
	{name: "signature-two-in-one-decision", fault: func(_ testing.TB, s *scene) {
		s.decision("alice-laptop").keyIDs = []string{"alice-laptop", "carol-token"}
	}, code: protocol.CodeSignatureInvalid},
	{name: "signature-signer-is-another", fault: func(_ testing.TB, s *scene) { s.decision("alice-laptop").doc.Signer = "alice-spare" }, code: protocol.CodeSignatureInvalid},
	{name: "signature-on-another-request", fault: func(_ testing.TB, s *scene) {
		s.decision("alice-laptop").doc.RequestDigest = DigestOf([]byte("another request"))
	}, code: protocol.CodeSignatureInvalid},

	{name: "passkey-another-challenge", prepare: withBob, fault: func(_ testing.TB, s *scene) {
		s.decision("bob-passkey").hand = func(t testing.TB, e *Envelope, keyID string) {
			if err := e.AddPasskey(keyID, newAuthenticator(t, "bob").assert(t, seed("another challenge"))); err != nil {
				t.Fatal(err)
			}
		}
	}, code: protocol.CodeSignatureInvalid},
	{name: "passkey-another-origin", prepare: withBob, fault: bobAs(func(a *authenticator) { a.origin = "https://portal.lockbox.example.evil.example" }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-another-site", prepare: withBob, fault: bobAs(func(a *authenticator) { a.rpID = "evil.example" }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-another-credential", prepare: withBob, fault: bobAs(func(a *authenticator) { a.credential = seed("x")[:16] }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-another-key", prepare: withBob, fault: func(t testing.TB, s *scene) {
		bobAs(func(a *authenticator) { a.key = newAuthenticator(t, "mallory").key })(t, s)
	}, code: protocol.CodeSignatureInvalid},
	{name: "passkey-registration", prepare: withBob, fault: bobAs(func(a *authenticator) { a.ceremony = "webauthn.create" }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-user-not-verified", prepare: withBob, fault: bobAs(func(a *authenticator) { a.flags = 0x01 }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-user-not-present", prepare: withBob, fault: bobAs(func(a *authenticator) { a.flags = 0x04 }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-backup-flags", prepare: withBob, fault: bobAs(func(a *authenticator) { a.flags = 0x15 }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-new-credential", prepare: withBob, fault: bobAs(func(a *authenticator) { a.flags = 0x45 }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-trailing-bytes", prepare: withBob, fault: bobAs(func(a *authenticator) { a.trailing = []byte{0} }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-cross-origin", prepare: withBob, fault: bobAs(func(a *authenticator) { a.extra["crossOrigin"] = true }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-top-origin", prepare: withBob, fault: bobAs(func(a *authenticator) { a.extra["topOrigin"] = "https://evil.example" }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-another-id", prepare: withBob, fault: bobAs(func(a *authenticator) { a.outer = map[string]any{"id": "AAAA"} }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-another-raw-id", prepare: withBob, fault: bobAs(func(a *authenticator) { a.outer = map[string]any{"rawId": "AAAA"} }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-another-type", prepare: withBob, fault: bobAs(func(a *authenticator) { a.outer = map[string]any{"type": "password"} }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-short-data", prepare: withBob, fault: bobAs(func(a *authenticator) { a.cut = 6 }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-client-data-trailing", prepare: withBob, fault: bobAs(func(a *authenticator) { a.tail = "{}" }), code: protocol.CodeSignatureInvalid},
	{name: "passkey-client-data-twice", prepare: withBob, fault: func(_ testing.TB, s *scene) {
		s.decision("bob-passkey").hand = func(t testing.TB, e *Envelope, keyID string) {
			a := newAuthenticator(t, "bob")
			evil := a
			evil.origin = "https://evil.example"
			data := evil.clientData(t, e.PasskeyChallenge())
			data = append(bytes.TrimSuffix(data, []byte("}")), `,"origin":"`+a.origin+`"}`...)
			if err := e.AddPasskey(keyID, a.wrap(t, data)); err != nil {
				t.Fatal(err)
			}
		}
	}, code: protocol.CodeSignatureInvalid},
	{name: "passkey-assertion-not-canonical", prepare: withBob, fault: func(_ testing.TB, s *scene) {
		s.decision("bob-passkey").change = func(e *Envelope) {
			e.Signatures[0].Sig = append([]byte(" "), e.Signatures[0].Sig...)
		}
	}, code: protocol.CodeSignatureInvalid},

	{name: "signer-stranger", fault: func(_ testing.TB, s *scene) {
		s.without("alice-laptop")
		s.decisions = append(s.decisions, approve("mallory", Customer, created+130))
	}, code: protocol.CodeSignerUnknown},
	{name: "signer-stranger-besides", fault: func(_ testing.TB, s *scene) {
		s.decisions = append(s.decisions, approve("mallory", Customer, created+130))
	}, code: protocol.CodeSignerUnknown},
	{name: "signer-in-no-group", fault: func(_ testing.TB, s *scene) {
		s.decisions = append(s.decisions, approve("dave-laptop", Customer, created+130))
	}, code: protocol.CodeSignerUnknown},
	{name: "signer-provider-for-customer", fault: func(_ testing.TB, s *scene) { s.decision("petra-laptop").doc.Role = Customer }, code: protocol.CodeSignerUnknown},
	{name: "signer-customer-for-provider", fault: func(_ testing.TB, s *scene) { s.decision("alice-laptop").doc.Role = Provider }, code: protocol.CodeSignerUnknown},
	{name: "signer-recovery-key", fault: func(_ testing.TB, s *scene) {
		s.without("alice-laptop")
		s.decisions = append(s.decisions, approve("vault", Customer, created+130))
	}, code: protocol.CodeSignerUnknown},
	{name: "signer-service", fault: func(_ testing.TB, s *scene) {
		s.without("alice-laptop")
		d := approve(string(KeyFingerprint(machinePublic("service"))), Customer, created+130)
		d.hand = byMachine("service")
		s.decisions = append(s.decisions, d)
	}, code: protocol.CodeSignerUnknown},

	{name: "engineer-decides", fault: func(_ testing.TB, s *scene) {
		s.decisions = append(s.decisions, approve("erin-laptop", Customer, created+130))
	}, code: protocol.CodeSignerEngineer},
	{name: "engineer-decides-under-other-id", fault: func(_ testing.TB, s *scene) {
		s.decision("alice-laptop").hand = byFile("erin")
	}, code: protocol.CodeSignerEngineer},
	{name: "engineer-key-is-approver", fault: func(t testing.TB, s *scene) {
		s.statement.Engineer.SSHKey = ssh.FingerprintSHA256(sshSigner(t, "alice spare").PublicKey())
	}, code: protocol.CodeSignerEngineer},
	{name: "engineer-key-is-security-key-of-approver", fault: func(_ testing.TB, s *scene) {
		s.statement.Engineer.SSHKey = ssh.FingerprintSHA256(newSecurityKey("carol").PublicKey())
	}, code: protocol.CodeSignerEngineer},
	{name: "engineer-person-is-approver", fault: func(_ testing.TB, s *scene) {
		s.statement.Engineer.Person = "bob@contoso.example"
	}, code: protocol.CodeSignerEngineer},
	{name: "engineer-person-is-provider-approver", fault: func(_ testing.TB, s *scene) {
		s.statement.Engineer.Person = "petra@provider.example"
	}, code: protocol.CodeSignerEngineer},
	{name: "engineer-is-silent-provider-approver", prepare: func(_ testing.TB, s *scene) {
		g := &s.rule(UnlockDatabox).ProviderGroups[0]
		g.Keys = append(g.Keys, "dave-laptop")
	}, fault: func(_ testing.TB, s *scene) { s.statement.Engineer.Person = "dave@contoso.example" }, code: protocol.CodeSignerEngineer},
	{name: "engineer-person-in-no-group-decides", fault: func(_ testing.TB, s *scene) {
		s.statement.Engineer.Person = "dave@contoso.example"
		s.decisions = append(s.decisions, approve("dave-laptop", Customer, created+130))
	}, code: protocol.CodeSignerEngineer},

	{name: "denied-by-customer", fault: func(_ testing.TB, s *scene) {
		d := &s.decision("carol-token").doc
		d.Verdict, d.MaxDuration = Deny, 0
	}, code: protocol.CodeDenied},
	{name: "denied-by-provider", fault: func(_ testing.TB, s *scene) {
		d := &s.decision("petra-laptop").doc
		d.Verdict, d.MaxDuration = Deny, 0
	}, code: protocol.CodeDenied},
	{name: "denied-by-second-of-group", fault: func(_ testing.TB, s *scene) {
		d := approve("bob-passkey", Customer, created+130)
		d.doc.Verdict, d.doc.MaxDuration = Deny, 0
		s.decisions = append(s.decisions, d)
	}, code: protocol.CodeDenied},
	{name: "denied-by-same-person-with-spare-key", fault: func(_ testing.TB, s *scene) {
		d := approve("alice-spare", Customer, created+130)
		d.doc.Verdict, d.doc.MaxDuration = Deny, 0
		s.decisions = append(s.decisions, d)
	}, code: protocol.CodeDenied},

	{name: "policy-digest", fault: func(_ testing.TB, s *scene) { s.statement.PolicyDigest = DigestOf([]byte("another policy")) }, code: protocol.CodePolicyDigest},
	{name: "policy-tenant", fault: func(_ testing.TB, s *scene) { s.statement.TenantID = "fabrikam" }, code: protocol.CodePolicyDigest},
	{name: "policy-order", fault: func(_ testing.TB, s *scene) { s.statement.OrderID = "ORD-1002" }, code: protocol.CodePolicyDigest},

	{name: "action-not-in-policy", fault: func(_ testing.TB, s *scene) {
		s.policy.doc.Rules = s.policy.doc.Rules[1:]
		s.policy.keyIDs = []string{"alice-laptop"}
	}, code: protocol.CodeAction},
	{name: "action-unknown", fault: func(_ testing.TB, s *scene) { s.statement.Action = "erase-databox" }, code: protocol.CodeAction},
	{name: "action-data-copy-by-statement", prepare: oneOwner, fault: func(_ testing.TB, s *scene) {
		s.statement.Action, s.statement.Purpose = CopyData, protocol.DataCopy
	}, code: protocol.CodeAction},
	{name: "action-data-copy-as-support", prepare: oneOwner, fault: func(_ testing.TB, s *scene) {
		s.statement.Action = CopyData
	}, code: protocol.CodeAction},
	{name: "purpose-data-copy", fault: func(_ testing.TB, s *scene) { s.statement.Purpose = protocol.DataCopy }, code: protocol.CodeAction},

	{name: "node-other-device", fault: func(_ testing.TB, s *scene) { s.self.Serial = "DBX0002" }, code: protocol.CodeNode},
	{name: "node-other-node", fault: func(_ testing.TB, s *scene) { s.self.Node = 2 }, code: protocol.CodeNode},
	{name: "node-other-key", fault: func(_ testing.TB, s *scene) { s.self.KeyFingerprint = KeyFingerprint(machinePublic("thief")) }, code: protocol.CodeNode},

	{name: "disks-missing", fault: func(_ testing.TB, s *scene) { s.selfDisks = []protocol.DiskID{"disk1"} }, code: protocol.CodeDisks},
	{name: "disks-unknown", fault: func(_ testing.TB, s *scene) { s.statement.Disks[1].Disk = "disk9" }, code: protocol.CodeDisks},

	{name: "window-over", fault: func(_ testing.TB, s *scene) { s.now = created + 600 + 8*3600 }, code: protocol.CodeWindow},
	{name: "window-over-by-shortest-decision", fault: func(_ testing.TB, s *scene) {
		s.decision("alice-laptop").doc.MaxDuration = 100
	}, code: protocol.CodeWindow},
	{name: "window-over-by-policy", fault: func(_ testing.TB, s *scene) { s.rule(UnlockDatabox).MaxDuration = 100 }, code: protocol.CodeWindow},
	{name: "window-over-by-statement", fault: func(_ testing.TB, s *scene) { s.statement.MaxDuration = 100 }, code: protocol.CodeWindow},
	{name: "window-decided-in-the-future", fault: func(_ testing.TB, s *scene) { s.now = created + 600 - 121 }, code: protocol.CodeWindow},
	{name: "window-decided-before-created", fault: func(_ testing.TB, s *scene) { s.decision("petra-laptop").doc.DecidedAt = created - 121 }, code: protocol.CodeWindow},
	{name: "window-decided-after-expiry", prepare: func(_ testing.TB, s *scene) { s.now += 3600 }, fault: func(_ testing.TB, s *scene) {
		s.statement.Expires = created + 599
	}, code: protocol.CodeWindow},
	{name: "window-clock-before-request", prepare: func(_ testing.TB, s *scene) {
		for i := range s.decisions {
			s.decisions[i].doc.DecidedAt = created - 60
		}
		s.now = created - 120
	}, fault: func(_ testing.TB, s *scene) { s.now = created - 121 }, code: protocol.CodeWindow},

	{name: "revoked-by-customer", fault: func(_ testing.TB, s *scene) { s.revocations = append(s.revocations, revoke("bob-passkey")) }, code: protocol.CodeRevoked},
	{name: "revoked-by-provider", fault: func(_ testing.TB, s *scene) { s.revocations = append(s.revocations, revoke("petra-laptop")) }, code: protocol.CodeRevoked},
	{name: "revoked-by-one-in-no-group", fault: func(_ testing.TB, s *scene) { s.revocations = append(s.revocations, revoke("dave-laptop")) }, code: protocol.CodeRevoked},
	{name: "revoked-by-recovery-key", fault: func(_ testing.TB, s *scene) { s.revocations = append(s.revocations, revoke("vault")) }, code: protocol.CodeRevoked},
	{name: "revoked-by-service", fault: func(_ testing.TB, s *scene) { s.revocations = append(s.revocations, revokeByService()) }, code: protocol.CodeRevoked},
	{name: "revoked-among-others", prepare: func(_ testing.TB, s *scene) {
		r := revoke("alice-laptop")
		r.doc.SubjectDigest = DigestOf([]byte("another request"))
		s.revocations = append(s.revocations, r)
	}, fault: func(_ testing.TB, s *scene) { s.revocations = append(s.revocations, revoke("alice-laptop")) }, code: protocol.CodeRevoked},
	{name: "revocation-by-stranger", fault: func(_ testing.TB, s *scene) { s.revocations = append(s.revocations, revoke("mallory")) }, code: protocol.CodeSignerUnknown},
	{name: "revocation-forged", fault: func(_ testing.TB, s *scene) {
		r := revoke("alice-laptop")
		r.hand = byFile("mallory")
		s.revocations = append(s.revocations, r)
	}, code: protocol.CodeSignatureInvalid},
	{name: "revocation-forged-of-service", fault: func(_ testing.TB, s *scene) {
		r := revokeByService()
		r.hand = byMachine("mallory")
		s.revocations = append(s.revocations, r)
	}, code: protocol.CodeSignatureInvalid},

	{name: "form-consent-as-decision", fault: func(t testing.TB, s *scene) {
		consent := s.consent
		consent.doc.PolicyDigest = DigestOf(nil)
		s.changeUnlock = func(in *Request) { in.Decisions[1] = consent.envelope(t) }
	}, code: protocol.CodeInvalid},
	{name: "form-decision-as-revocation", fault: func(_ testing.TB, s *scene) {
		s.decision("alice-laptop").hand = func(t testing.TB, e *Envelope, keyID string) {
			e.PayloadType = KindRevocation
			byFile("alice")(t, e, keyID)
		}
	}, code: protocol.CodeInvalid},
	{name: "form-same-decision-twice", fault: func(_ testing.TB, s *scene) {
		s.changeUnlock = func(in *Request) { in.Decisions = append(in.Decisions, in.Decisions[0]) }
	}, code: protocol.CodeInvalid},
	{name: "form-too-many-decisions", fault: func(_ testing.TB, s *scene) {
		s.changeUnlock = func(in *Request) { in.Decisions = slices.Repeat(in.Decisions, 22) }
	}, code: protocol.CodeInvalid},
	{name: "form-too-many-revocations", fault: func(_ testing.TB, s *scene) {
		s.changeUnlock = func(in *Request) { in.Revocations = make([][]byte, 65) }
	}, code: protocol.CodeInvalid},
	{name: "form-statement-with-space", fault: func(_ testing.TB, s *scene) {
		s.changeUnlock = func(in *Request) { in.Statement = append(in.Statement, ' ') }
	}, code: protocol.CodeInvalid},
}

// scenes returns the control and the fault of c; the latter is nil if c has no
// fault.
func (c unlockCase) scenes(t testing.TB) (control, fault *scene) {
	t.Helper()
	control = newScene(t)
	if c.prepare != nil {
		c.prepare(t, control)
	}
	if c.fault == nil {
		return control, nil
	}
	fault = newScene(t)
	if c.prepare != nil {
		c.prepare(t, fault)
	}
	c.fault(t, fault)
	return control, fault
}

func TestAuthorize(t *testing.T) {
	for _, c := range unlockCases {
		t.Run(c.name, func(t *testing.T) {
			control, fault := c.scenes(t)
			if _, err := control.authorize(t); err != nil {
				t.Fatalf("control is refused: %v", err)
			}
			if fault == nil {
				return
			}
			grant, err := fault.authorize(t)
			wantCode(t, err, c.code)
			if grant.Access != "" || !grant.End.IsZero() {
				t.Error("a refusal came with a grant")
			}
		})
	}
}

func TestGrant(t *testing.T) {
	hour := int64(3600)
	tests := []struct {
		name       string
		change     func(*scene)
		start, end int64
	}{
		{"last customer decision counts", func(*scene) {}, created + 600, created + 600 + 8*hour},
		{"later provider decision does not", func(s *scene) { s.decision("petra-laptop").doc.DecidedAt = created + 650 }, created + 600, created + 600 + 8*hour},
		{"a decision beyond the threshold does not delay", func(s *scene) {
			s.decisions = append(s.decisions, approve("bob-passkey", Customer, created+690))
		}, created + 600, created + 600 + 8*hour},
		{"a second decision of one person does not delay", func(s *scene) {
			s.decisions = append(s.decisions, approve("alice-spare", Customer, created+690))
		}, created + 600, created + 600 + 8*hour},
		{"the threshold of a group may be the last", func(s *scene) {
			s.rule(UnlockDatabox).CustomerGroups[0].Threshold = 2
			s.policy.keyIDs = []string{"alice-laptop", "bob-passkey", "carol-token"}
			s.decisions = append(s.decisions, approve("bob-passkey", Customer, created+650))
		}, created + 650, created + 650 + 8*hour},
		{"the other group may be the last", func(s *scene) { s.decision("alice-laptop").doc.DecidedAt = created + 660 }, created + 660, created + 660 + 8*hour},
		{"shortest is a customer's", func(s *scene) { s.decision("carol-token").doc.MaxDuration = hour }, created + 600, created + 600 + hour},
		{"shortest is the provider's", func(s *scene) { s.decision("petra-laptop").doc.MaxDuration = 2 * hour }, created + 600, created + 600 + 2*hour},
		{"shortest is one beyond the threshold", func(s *scene) {
			d := approve("bob-passkey", Customer, created+690)
			d.doc.MaxDuration = 1000
			s.decisions = append(s.decisions, d)
		}, created + 600, created + 600 + 1000},
		{"shortest is the statement's", func(s *scene) { s.statement.MaxDuration = 3 * hour }, created + 600, created + 600 + 3*hour},
		{"shortest is the policy's", func(s *scene) { s.rule(UnlockDatabox).MaxDuration = 4 * hour }, created + 600, created + 600 + 4*hour},
		{"an exclusion begins with the provider", func(s *scene) { inEmergency(nil, s) }, created + 300, created + 300 + 2*hour},
		{"a standing consent begins with the provider", func(s *scene) { withStanding(nil, s) }, created + 60, created + 60 + 4*hour},
		{"no access outlasts a standing consent", func(s *scene) {
			withStanding(nil, s)
			s.standing.doc.Until = created + hour
		}, created + 60, created + hour},
		{"shortest is the standing consent's or a decision's", func(s *scene) {
			withStanding(nil, s)
			s.decision("petra-laptop").doc.MaxDuration = hour
		}, created + 60, created + 60 + hour},
		{"still valid in the last second", func(s *scene) { s.now = created + 600 + 8*hour - 1 }, created + 600, created + 600 + 8*hour},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t)
			tt.change(s)
			g, err := s.authorize(t)
			if err != nil {
				t.Fatal(err)
			}
			if g.Start.Unix() != tt.start || g.End.Unix() != tt.end {
				t.Errorf("access from %s to %s, want %s to %s", g.Start, g.End, time.Unix(tt.start, 0).UTC(), time.Unix(tt.end, 0).UTC())
			}
		})
	}
}

// TestDecisionsDigest holds the digest to what SPEC.md says: the same for any
// order of the decisions, and another for other decisions.
func TestDecisionsDigest(t *testing.T) {
	s := newScene(t)
	policy, in := s.unlock(t)
	p := must[*Policy](t)(VerifyPolicyV1(policy))
	g := must[Grant](t)(p.Authorize(in))
	var lines []string
	for _, d := range in.Decisions {
		lines = append(lines, string(DigestOf(d))+"\n")
	}
	slices.Sort(lines)
	if want := DigestOf([]byte("databox-decisions-v1\n" + strings.Join(lines, ""))); g.DecisionsDigest != want {
		t.Errorf("digest is %s, want %s", g.DecisionsDigest, want)
	}
	slices.Reverse(in.Decisions)
	if again := must[Grant](t)(p.Authorize(in)); again.DecisionsDigest != g.DecisionsDigest {
		t.Error("another order of the decisions has another digest")
	}
	s.decision("alice-laptop").doc.Reason = "yes"
	if other := must[Grant](t)(s.authorize(t)); other.DecisionsDigest == g.DecisionsDigest {
		t.Error("other decisions have the same digest")
	}
	if other := must[Grant](t)(s.authorize(t)); other.RequestDigest != g.RequestDigest {
		t.Error("the request digest depends on the decisions")
	}
}

// TestCustodyAuthorizesAllNodes checks that without a node every node and disk
// of the statement is granted.
func TestCustodyAuthorizesAllNodes(t *testing.T) {
	s := newScene(t)
	s.statement.Nodes = append(s.statement.Nodes, node(2))
	s.statement.Disks = append(s.statement.Disks, DiskRef{"DBX0001/2", "disk1"})
	s.changeUnlock = func(in *Request) { in.Self, in.SelfDisks = nil, nil }
	g, err := s.authorize(t)
	if err != nil {
		t.Fatal(err)
	}
	if got := g.Statement.DisksOf(protocol.NodeID{Serial: "DBX0001", Node: 2}); !slices.Equal(got, []protocol.DiskID{"disk1"}) {
		t.Errorf("disks of node 2 are %v", got)
	}
}

// copyCases are the refusals of a consent, each with its control.
var copyCases = []unlockCase{
	{name: "accepted-consent"},
	{name: "accepted-consent-passkey", prepare: func(_ testing.TB, s *scene) { s.consent.keyIDs = []string{"bob-passkey"} }},
	{name: "accepted-consent-of-two", prepare: func(_ testing.TB, s *scene) {
		s.rule(CopyData).CustomerGroups[0].Threshold = 2
		s.policy.keyIDs = []string{"alice-laptop", "bob-passkey", "carol-token"}
		s.consent.keyIDs = []string{"bob-passkey", "alice-spare"}
	}},
	{name: "consent-missing-second", prepare: func(_ testing.TB, s *scene) {
		s.rule(CopyData).CustomerGroups[0].Threshold = 2
		s.policy.keyIDs = []string{"alice-laptop", "bob-passkey", "carol-token"}
		s.consent.keyIDs = []string{"bob-passkey", "alice-spare"}
	}, fault: func(_ testing.TB, s *scene) { s.consent.keyIDs = []string{"alice-laptop", "alice-spare"} }, code: protocol.CodeDecisionMissing},
	{name: "consent-by-stranger", fault: func(_ testing.TB, s *scene) { s.consent.keyIDs = []string{"mallory"} }, code: protocol.CodeSignerUnknown},
	{name: "consent-by-stranger-besides", fault: func(_ testing.TB, s *scene) { s.consent.keyIDs = []string{"alice-laptop", "mallory"} }, code: protocol.CodeSignerUnknown},
	{name: "consent-by-provider", fault: func(_ testing.TB, s *scene) { s.consent.keyIDs = []string{"petra-laptop"} }, code: protocol.CodeSignerUnknown},
	{name: "consent-by-group-of-other-rule", fault: func(_ testing.TB, s *scene) { s.consent.keyIDs = []string{"carol-token"} }, code: protocol.CodeSignerUnknown},
	{name: "consent-by-recovery-key", fault: func(_ testing.TB, s *scene) { s.consent.keyIDs = []string{"vault"} }, code: protocol.CodeSignerUnknown},
	{name: "consent-by-service", fault: func(_ testing.TB, s *scene) {
		s.consent.keyIDs, s.consent.hand = []string{string(KeyFingerprint(machinePublic("service")))}, byMachine("service")
	}, code: protocol.CodeSignerUnknown},
	{name: "consent-flipped", fault: func(_ testing.TB, s *scene) { s.consent.change = flip }, code: protocol.CodeSignatureInvalid},
	{name: "consent-destination-changed", fault: func(_ testing.TB, s *scene) {
		s.consent.change = func(e *Envelope) {
			e.Payload = bytes.ReplaceAll(e.Payload, []byte("contosodata"), []byte("mallorydata"))
		}
	}, code: protocol.CodeSignatureInvalid},
	{name: "consent-namespace", fault: func(_ testing.TB, s *scene) {
		s.consent.hand = byBlob("alice", func(b *sshsig) { b.namespace = KindDecision.Namespace() })
	}, code: protocol.CodeSignatureInvalid},
	{name: "consent-policy-digest", fault: func(_ testing.TB, s *scene) { s.consent.doc.PolicyDigest = DigestOf(nil) }, code: protocol.CodePolicyDigest},
	{name: "consent-order", fault: func(_ testing.TB, s *scene) { s.consent.doc.OrderID = "ORD-1002" }, code: protocol.CodePolicyDigest},
	{name: "consent-tenant", fault: func(_ testing.TB, s *scene) { s.consent.doc.TenantID = "fabrikam" }, code: protocol.CodePolicyDigest},
	{name: "consent-not-in-policy", fault: func(_ testing.TB, s *scene) { s.policy.doc.Rules = s.policy.doc.Rules[:1] }, code: protocol.CodeAction},
	{name: "consent-other-node", fault: func(_ testing.TB, s *scene) { s.self.Serial = "DBX0002" }, code: protocol.CodeNode},
	{name: "consent-other-node-key", fault: func(_ testing.TB, s *scene) { s.self.KeyFingerprint = DigestOf(nil) }, code: protocol.CodeNode},
	{name: "consent-disk-missing", fault: func(_ testing.TB, s *scene) { s.selfDisks = []protocol.DiskID{"disk2"} }, code: protocol.CodeDisks},
	{name: "consent-over", fault: func(_ testing.TB, s *scene) { s.now = s.consent.doc.Until }, code: protocol.CodeWindow},
	{name: "consent-not-yet", fault: func(_ testing.TB, s *scene) { s.now = created - 121 }, code: protocol.CodeWindow},
	{name: "consent-revoked", fault: func(_ testing.TB, s *scene) { s.revocations = append(s.revocations, revoke("alice-laptop")) }, code: protocol.CodeRevoked},
	{name: "consent-revoked-by-service", fault: func(_ testing.TB, s *scene) { s.revocations = append(s.revocations, revokeByService()) }, code: protocol.CodeRevoked},
	{name: "form-decision-as-consent", fault: func(t testing.TB, s *scene) {
		d := *s.decision("alice-laptop")
		d.doc.RequestDigest = DigestOf(nil)
		s.changeCopy = func(in *CopyRequest) { in.Consent = d.envelope(t) }
	}, code: protocol.CodeInvalid},
}

func TestAuthorizeCopy(t *testing.T) {
	for _, c := range copyCases {
		t.Run(c.name, func(t *testing.T) {
			control, fault := c.scenes(t)
			if _, err := control.authorizeCopy(t); err != nil {
				t.Fatalf("control is refused: %v", err)
			}
			if fault == nil {
				return
			}
			grant, err := fault.authorizeCopy(t)
			wantCode(t, err, c.code)
			if grant.Destinations != nil || !grant.End.IsZero() {
				t.Error("a refusal came with a grant")
			}
		})
	}
}

func TestCopyGrant(t *testing.T) {
	s := newScene(t)
	g, err := s.authorizeCopy(t)
	if err != nil {
		t.Fatal(err)
	}
	if want := s.now + 24*3600; g.End.Unix() != want {
		t.Errorf("lease ends at %d, want %d: the policy's longest", g.End.Unix(), want)
	}
	if d, err := g.Destination("contosodata", "https://contosodata.blob.example"); err != nil || d.ServerName != "contosodata.blob.example" {
		t.Errorf("named destination: %+v, %v", d, err)
	}
	_, err = g.Destination("contosodata", "https://contosodata.blob.evil.example")
	wantCode(t, err, protocol.CodeAction)
	_, err = g.Destination("mallorydata", "https://contosodata.blob.example")
	wantCode(t, err, protocol.CodeAction)

	s = newScene(t)
	s.now = s.consent.doc.Until - 60
	if g, err = s.authorizeCopy(t); err != nil || g.End.Unix() != s.consent.doc.Until {
		t.Errorf("lease ends at %s (%v), want the consent's end %d", g.End, err, s.consent.doc.Until)
	}
}
