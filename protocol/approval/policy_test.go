package approval_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"

	"github.com/databox-lockbox/lockbox/protocol"
	. "github.com/databox-lockbox/lockbox/protocol/approval"
)

// policyCase is one refusal of a chain of policies with its control: version 1
// alone, or version 1 and its successor.
type policyCase struct {
	name  string
	alone bool // version 1 alone
	fault func(t testing.TB, first, next *signedDoc[TrustPolicy])
	code  protocol.Code
}

// policyPair returns version 1 and a valid successor, in which dave has taken
// alice's place.
func policyPair(t testing.TB) (first, next signedDoc[TrustPolicy]) {
	t.Helper()
	first = signedDoc[TrustPolicy]{doc: basePolicy(t), keyIDs: []string{"alice-laptop", "carol-token"}}
	next = signedDoc[TrustPolicy]{doc: basePolicy(t), keyIDs: []string{"bob-passkey", "carol-token"}}
	next.doc.Version = 2
	for i := range next.doc.Rules {
		next.doc.Rules[i].CustomerGroups[0].Keys = []string{"dave-laptop", "bob-passkey"}
	}
	return first, next
}

var policyCases = []policyCase{
	{name: "policy-v1-too-few", alone: true, fault: func(_ testing.TB, first, _ *signedDoc[TrustPolicy]) { first.keyIDs = []string{"alice-laptop"} }, code: protocol.CodeDecisionMissing},
	{name: "policy-v1-one-person-twice", alone: true, fault: func(_ testing.TB, first, _ *signedDoc[TrustPolicy]) {
		first.keyIDs = []string{"alice-laptop", "alice-spare"}
	}, code: protocol.CodeDecisionMissing},
	{name: "policy-v1-by-stranger", alone: true, fault: func(_ testing.TB, first, _ *signedDoc[TrustPolicy]) { first.keyIDs = []string{"mallory"} }, code: protocol.CodeSignerUnknown},
	{name: "policy-v1-by-provider-too", alone: true, fault: func(_ testing.TB, first, _ *signedDoc[TrustPolicy]) {
		first.keyIDs = []string{"alice-laptop", "carol-token", "petra-laptop"}
	}, code: protocol.CodeSignerUnknown},
	{name: "policy-v1-by-one-in-no-group", alone: true, fault: func(_ testing.TB, first, _ *signedDoc[TrustPolicy]) {
		first.keyIDs = []string{"dave-laptop", "carol-token"}
	}, code: protocol.CodeSignerUnknown},
	{name: "policy-v1-by-recovery-key", alone: true, fault: func(_ testing.TB, first, _ *signedDoc[TrustPolicy]) { first.keyIDs = []string{"vault"} }, code: protocol.CodeSignerUnknown},
	{name: "policy-v1-by-service", alone: true, fault: func(_ testing.TB, first, _ *signedDoc[TrustPolicy]) {
		first.keyIDs, first.hand = []string{string(KeyFingerprint(machinePublic("service")))}, byMachine("service")
	}, code: protocol.CodeSignerUnknown},
	{name: "policy-v1-flipped", alone: true, fault: func(_ testing.TB, first, _ *signedDoc[TrustPolicy]) { first.change = flip }, code: protocol.CodeSignatureInvalid},
	{name: "policy-v1-namespace", alone: true, fault: func(_ testing.TB, first, _ *signedDoc[TrustPolicy]) {
		first.keyIDs = []string{"alice-laptop"}
		first.hand = byBlob("alice", func(b *sshsig) { b.namespace = KindDecision.Namespace() })
	}, code: protocol.CodeSignatureInvalid},
	{name: "policy-v1-is-version-2", alone: true, fault: func(_ testing.TB, first, _ *signedDoc[TrustPolicy]) {
		first.doc.Version, first.doc.PreviousDigest = 2, DigestOf(nil)
	}, code: protocol.CodePolicyDigest},

	{name: "policy-next-same-version", fault: func(_ testing.TB, first, next *signedDoc[TrustPolicy]) {
		next.doc.Version, next.doc.PreviousDigest = 1, ""
	}, code: protocol.CodePolicyDigest},
	{name: "policy-next-previous-digest", fault: func(_ testing.TB, _, next *signedDoc[TrustPolicy]) {
		next.doc.PreviousDigest = DigestOf([]byte("another policy"))
	}, code: protocol.CodePolicyDigest},
	{name: "policy-next-tenant", fault: func(_ testing.TB, _, next *signedDoc[TrustPolicy]) { next.doc.TenantID = "fabrikam" }, code: protocol.CodePolicyDigest},
	{name: "policy-next-order", fault: func(_ testing.TB, _, next *signedDoc[TrustPolicy]) { next.doc.OrderID = "" }, code: protocol.CodePolicyDigest},
	{name: "policy-next-recovery-drops-itself", fault: func(_ testing.TB, _, next *signedDoc[TrustPolicy]) {
		next.keyIDs, next.doc.RecoveryKey, next.doc.NoRecovery = []string{"vault"}, nil, true
	}, code: protocol.CodePolicyDigest},
	{name: "policy-next-recovery-replaces-itself", fault: func(t testing.TB, _, next *signedDoc[TrustPolicy]) {
		next.keyIDs, next.doc.RecoveryKey = []string{"vault"}, anotherVault(t)
	}, code: protocol.CodePolicyDigest},
	{name: "policy-next-by-recovery-key-it-names", fault: func(t testing.TB, _, next *signedDoc[TrustPolicy]) {
		next.keyIDs, next.doc.RecoveryKey = []string{"mallory"}, anotherVault(t)
		next.doc.RecoveryKey.ID = "mallory"
	}, code: protocol.CodeSignerUnknown},
	{name: "policy-next-replaces-log-key", fault: func(t testing.TB, _, next *signedDoc[TrustPolicy]) {
		next.doc.LogKey = must[string](t)(note.NewEd25519VerifierKey("log.lockbox.example", machinePublic("another log")))
	}, code: protocol.CodePolicyDigest},
	{name: "policy-next-too-few", fault: func(_ testing.TB, _, next *signedDoc[TrustPolicy]) { next.keyIDs = []string{"carol-token"} }, code: protocol.CodeDecisionMissing},
	{name: "policy-next-by-its-own-customers", fault: func(_ testing.TB, _, next *signedDoc[TrustPolicy]) {
		next.keyIDs = []string{"dave-laptop", "carol-token"}
	}, code: protocol.CodeSignerUnknown},
	{name: "policy-next-recovery-and-customer", fault: func(_ testing.TB, _, next *signedDoc[TrustPolicy]) {
		next.keyIDs = []string{"vault", "carol-token"}
	}, code: protocol.CodeSignerUnknown},
	{name: "policy-next-recovery-forged", fault: func(_ testing.TB, _, next *signedDoc[TrustPolicy]) {
		next.keyIDs, next.hand = []string{"vault"}, byFile("mallory")
	}, code: protocol.CodeSignatureInvalid},
	{name: "policy-next-recovery-of-none", fault: func(_ testing.TB, first, next *signedDoc[TrustPolicy]) {
		first.doc.RecoveryKey, next.doc.RecoveryKey = nil, nil
		first.doc.NoRecovery, next.doc.NoRecovery = true, true
		next.keyIDs = []string{"vault"}
	}, code: protocol.CodeSignerUnknown},
	{name: "policy-next-nonsense", fault: func(_ testing.TB, _, next *signedDoc[TrustPolicy]) {
		next.change = func(e *Envelope) { e.Payload = e.Payload[:len(e.Payload)-1] }
	}, code: protocol.CodeInvalid},
}

// anotherVault is a recovery key that no policy has named yet.
func anotherVault(t testing.TB) *Key {
	k := sshKey(t, "vault-2", "vault@contoso.example", sshSigner(t, "mallory").PublicKey())
	return &k
}

// envelopes signs the chain of a case, with its fault or without.
func (c policyCase) envelopes(t testing.TB, faulty bool) [][]byte {
	t.Helper()
	first, next := policyPair(t)
	if faulty {
		c.fault(t, &first, &next)
	}
	chain := [][]byte{first.envelope(t)}
	if c.alone {
		return chain
	}
	if next.doc.PreviousDigest == "" && next.doc.Version > 1 {
		next.doc.PreviousDigest = digestOfPayload(t, chain[0])
	}
	return append(chain, next.envelope(t))
}

func TestVerifyPolicies(t *testing.T) {
	for _, c := range policyCases {
		t.Run(c.name, func(t *testing.T) {
			control := c.envelopes(t, false)
			if _, err := VerifyPolicies(control[0], control[1:]...); err != nil {
				t.Fatalf("control is refused: %v", err)
			}
			chain := c.envelopes(t, true)
			p, err := VerifyPolicies(chain[0], chain[1:]...)
			wantCode(t, err, c.code)
			if p != nil {
				t.Error("a refusal came with a policy")
			}
		})
	}
}

// TestRecovery checks that the recovery key alone may replace a policy, that
// one may skip a version, and that everyone can be told.
func TestRecovery(t *testing.T) {
	first, next := policyPair(t)
	next.keyIDs, next.doc.Version = []string{"vault"}, 5
	one := first.envelope(t)
	next.doc.PreviousDigest = digestOfPayload(t, one)
	p := must[*Policy](t)(VerifyPolicies(one, next.envelope(t)))
	if !p.ByRecovery() {
		t.Error("the use of the recovery key is not reported")
	}
	if p.Document().Version != 5 || p.Digest() != digestOfPayload(t, next.envelope(t)) {
		t.Errorf("policy is version %d, %s", p.Document().Version, p.Digest())
	}
	third := next
	third.doc.Version, third.doc.PreviousDigest = 5, p.Digest()
	third.keyIDs = []string{"dave-laptop", "carol-token"}
	_, err := p.VerifySuccessor(third.envelope(t))
	wantCode(t, err, protocol.CodePolicyDigest)
	third.doc.Version = 6
	q := must[*Policy](t)(p.VerifySuccessor(third.envelope(t)))
	if q.ByRecovery() {
		t.Error("a policy signed by customers counts as a recovery")
	}
	if _, err := q.VerifySuccessor(next.envelope(t)); err == nil {
		t.Error("an older policy replaces a newer one")
	}
}

// TestRecoveryKeyIsReplaced checks that customers who lost their recovery key
// name another, or none, and that the lost one is of no use from then on.
func TestRecoveryKeyIsReplaced(t *testing.T) {
	first, next := policyPair(t)
	one := first.envelope(t)
	next.doc.PreviousDigest, next.doc.RecoveryKey = digestOfPayload(t, one), anotherVault(t)
	p := must[*Policy](t)(VerifyPolicies(one, next.envelope(t)))
	if p.ByRecovery() {
		t.Error("the customers' own policy counts as a recovery")
	}
	third := next
	third.doc.Version, third.doc.PreviousDigest = 3, p.Digest()
	third.keyIDs = []string{"vault"}
	_, err := p.VerifySuccessor(third.envelope(t))
	wantCode(t, err, protocol.CodeSignerUnknown)
	third.keyIDs, third.hand = []string{"vault-2"}, byFile("mallory")
	if q := must[*Policy](t)(p.VerifySuccessor(third.envelope(t))); !q.ByRecovery() {
		t.Error("the new recovery key's policy is no recovery")
	}
	third.keyIDs, third.hand = []string{"dave-laptop", "carol-token"}, nil
	third.doc.RecoveryKey, third.doc.NoRecovery = nil, true
	must[*Policy](t)(p.VerifySuccessor(third.envelope(t)))
}

// TestValidate walks through policies that are nonsense.
func TestValidate(t *testing.T) {
	if err := basePolicy(t).Validate(); err != nil {
		t.Fatalf("control is refused: %v", err)
	}
	unlock := func(p *TrustPolicy) *Rule { return &p.Rules[0] }
	tests := []struct {
		name  string
		fault func(p *TrustPolicy)
	}{
		{"no tenant", func(p *TrustPolicy) { p.TenantID = "" }},
		{"no word of recovery", func(p *TrustPolicy) { p.RecoveryKey = nil }},
		{"a recovery key and none", func(p *TrustPolicy) { p.NoRecovery = true }},
		{"unknown exclusion", func(p *TrustPolicy) { p.Exclusions[0].Kind = "boredom" }},
		{"exclusion twice", func(p *TrustPolicy) { p.Exclusions = append(p.Exclusions, p.Exclusions[0]) }},
		{"exclusion by nobody", func(p *TrustPolicy) { p.Exclusions[0].ProviderGroups = nil }},
		{"exclusion by one person", func(p *TrustPolicy) { p.Exclusions[0].ProviderGroups[0].Threshold = 1 }},
		{"exclusion by two keys of one person", func(p *TrustPolicy) {
			p.Exclusions[0].ProviderGroups[0].Keys = []string{"petra-laptop", "petra-spare"}
		}},
		{"exclusion by one person in two groups", func(p *TrustPolicy) {
			p.Exclusions[0].ProviderGroups = []Group{{"a", 1, []string{"petra-laptop"}}, {"b", 1, []string{"petra-spare"}}}
		}},
		{"exclusion by a customer", func(p *TrustPolicy) { p.Exclusions[0].ProviderGroups[0].Keys[2] = "bob-passkey" }},
		{"exclusion by two groups of a name", func(p *TrustPolicy) {
			p.Exclusions[0].ProviderGroups = []Group{{"a", 1, []string{"petra-laptop"}}, {"a", 1, []string{"paul-laptop"}}}
		}},
		{"exclusion of unknown access", func(p *TrustPolicy) { p.Exclusions[0].Access = "root" }},
		{"exclusion of no duration", func(p *TrustPolicy) { p.Exclusions[0].MaxDuration = 0 }},
		{"version 0", func(p *TrustPolicy) { p.Version = 0 }},
		{"version 1 with a previous digest", func(p *TrustPolicy) { p.PreviousDigest = DigestOf(nil) }},
		{"version 2 without a previous digest", func(p *TrustPolicy) { p.Version = 2 }},
		{"no keys", func(p *TrustPolicy) { p.Keys = nil }},
		{"no rules", func(p *TrustPolicy) { p.Rules = nil }},
		{"unknown action", func(p *TrustPolicy) { unlock(p).Action = "erase" }},
		{"two rules for an action", func(p *TrustPolicy) { p.Rules[1] = p.Rules[0] }},
		{"no customer group", func(p *TrustPolicy) { unlock(p).CustomerGroups = nil }},
		{"empty group", func(p *TrustPolicy) { unlock(p).CustomerGroups[0].Keys = nil }},
		{"unnamed group", func(p *TrustPolicy) { unlock(p).CustomerGroups[0].Name = "" }},
		{"two groups of a name", func(p *TrustPolicy) { unlock(p).CustomerGroups[1].Name = "owners" }},
		{"threshold 0", func(p *TrustPolicy) { unlock(p).CustomerGroups[0].Threshold = 0 }},
		{"threshold -1", func(p *TrustPolicy) { unlock(p).CustomerGroups[0].Threshold = -1 }},
		{"threshold above members", func(p *TrustPolicy) { unlock(p).CustomerGroups[1].Threshold = 2 }},
		{"threshold above people, not keys", func(p *TrustPolicy) { unlock(p).CustomerGroups[0].Threshold = 3 }},
		{"threshold of providers 0", func(p *TrustPolicy) { unlock(p).ProviderGroups[0].Threshold = 0 }},
		{"unknown key id", func(p *TrustPolicy) { unlock(p).CustomerGroups[0].Keys[0] = "nobody" }},
		{"recovery key in a group", func(p *TrustPolicy) { unlock(p).CustomerGroups[0].Keys[0] = "vault" }},
		{"key id twice in a group", func(p *TrustPolicy) { unlock(p).CustomerGroups[0].Keys = []string{"bob-passkey", "bob-passkey"} }},
		{"person in two groups", func(p *TrustPolicy) { unlock(p).CustomerGroups[1].Keys = []string{"alice-spare"} }},
		{"person on both sides", func(p *TrustPolicy) { unlock(p).ProviderGroups[0].Keys = []string{"bob-passkey"} }},
		{"person on both sides over two rules", func(p *TrustPolicy) { p.Rules[1].CustomerGroups[0].Keys = []string{"petra-laptop"} }},
		{"no service", func(p *TrustPolicy) { unlock(p).Service = false }},
		{"no duration", func(p *TrustPolicy) { unlock(p).MaxDuration = 0 }},
		{"providers consent", func(p *TrustPolicy) { p.Rules[1].ProviderGroups = p.Rules[0].ProviderGroups }},
		{"key id twice", func(p *TrustPolicy) { p.Keys[1].ID = "alice-laptop" }},
		{"public key twice", func(p *TrustPolicy) { p.Keys[1].PublicKey = p.Keys[0].PublicKey }},
		{"recovery key is an approver's", func(p *TrustPolicy) { p.RecoveryKey.PublicKey = p.Keys[0].PublicKey }},
		{"recovery key's id is an approver's", func(p *TrustPolicy) { p.RecoveryKey.ID = p.Keys[0].ID }},
		{"key id of bad form", func(p *TrustPolicy) { p.Keys[4].ID = "dave laptop" }},
		{"person in capitals", func(p *TrustPolicy) { p.Keys[0].Person = "Alice@contoso.example" }},
		{"person empty", func(p *TrustPolicy) { p.Keys[0].Person = "" }},
		{"unknown kind", func(p *TrustPolicy) { p.Keys[0].Kind = "pgp" }},
		{"key with comment", func(p *TrustPolicy) { p.Keys[0].PublicKey += " alice@laptop" }},
		{"key with options", func(p *TrustPolicy) { p.Keys[0].PublicKey = "no-pty " + p.Keys[0].PublicKey }},
		{"key of another type", func(p *TrustPolicy) { p.Keys[0].PublicKey = ecdsaLine(t) }},
		{"ssh key with origin", func(p *TrustPolicy) { p.Keys[0].Origins = []string{"https://lockbox.example"} }},
		{"security key of a web page", func(p *TrustPolicy) {
			k := newSecurityKey("carol")
			k.application = "https://evil.example"
			p.Keys[3].PublicKey = authorized(k.PublicKey())[:len(authorized(k.PublicKey()))-1]
		}},
		{"passkey without site", func(p *TrustPolicy) { p.Keys[2].RPID = "" }},
		{"passkey without origin", func(p *TrustPolicy) { p.Keys[2].Origins = nil }},
		{"passkey without credential", func(p *TrustPolicy) { p.Keys[2].CredentialID = "" }},
		{"passkey with padded credential", func(p *TrustPolicy) { p.Keys[2].CredentialID = "YQ==" }},
		{"origin of another site", func(p *TrustPolicy) { p.Keys[2].Origins = []string{"https://evillockbox.example"} }},
		{"origin without TLS", func(p *TrustPolicy) { p.Keys[2].Origins = []string{"http://lockbox.example"} }},
		{"origin with path", func(p *TrustPolicy) { p.Keys[2].Origins = []string{"https://lockbox.example/"} }},
		{"passkey that is no SPKI", func(p *TrustPolicy) { p.Keys[2].PublicKey = "AAAA" }},
		{"passkey with other base64", func(p *TrustPolicy) { p.Keys[2].PublicKey = b64url([]byte{0xfb, 0xff, 0xfe}) }},
		{"passkey on P-384", func(p *TrustPolicy) { p.Keys[2].PublicKey = p384SPKI(t) }},
		{"no service key", func(p *TrustPolicy) { p.ServiceKeys = nil }},
		{"short service key", func(p *TrustPolicy) { p.ServiceKeys[0] = p.ServiceKeys[0][:31] }},
		{"service key twice", func(p *TrustPolicy) { p.ServiceKeys = append(p.ServiceKeys, p.ServiceKeys[0]) }},
		{"no log key", func(p *TrustPolicy) { p.LogKey = "" }},
		{"bad log key", func(p *TrustPolicy) { p.LogKey += "x" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := basePolicy(t)
			tt.fault(&p)
			wantCode(t, p.Validate(), protocol.CodeInvalid)
			if _, err := p.Encode(); err == nil {
				t.Error("it can be encoded all the same")
			}
		})
	}
}

// ecdsaLine returns a sound SSH key of a type that is not accepted.
func ecdsaLine(t testing.TB) string {
	t.Helper()
	pub := must[ssh.PublicKey](t)(ssh.NewPublicKey(newAuthenticator(t, "bob").key.Public()))
	return strings.TrimSpace(authorized(pub))
}

// p384SPKI returns a sound SPKI of a curve that is not accepted.
func p384SPKI(t testing.TB) string {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.ParseRawPrivateKey(elliptic.P384(), append(make([]byte, 16), seed("p384")...)))
	return base64.StdEncoding.EncodeToString(must[[]byte](t)(x509.MarshalPKIXPublicKey(key.Public())))
}

func TestNewSSHKey(t *testing.T) {
	pub := sshSigner(t, "alice").PublicKey()
	line := authorized(pub)
	k, err := NewSSHKey("alice", "alice@contoso.example", line[:len(line)-1]+" alice@laptop\n")
	if err != nil || k.PublicKey+"\n" != line {
		t.Errorf("key is %+v, %v", k, err)
	}
	want := must[string](t)(SSHFingerprint(line))
	if k.Fingerprint() != want {
		t.Errorf("fingerprint is %s, want %s", k.Fingerprint(), want)
	}
	found, ok := basePolicy(t).KeyByFingerprint(want)
	if !ok || found.ID != "alice-laptop" {
		t.Errorf("found %+v, %t", found, ok)
	}
	if _, ok := basePolicy(t).KeyByFingerprint(""); ok {
		t.Error("a passkey was found by an empty fingerprint")
	}
	for _, bad := range []string{"", "nonsense", ecdsaLine(t), line + line, "no-pty " + line} {
		if _, err := NewSSHKey("alice", "alice@contoso.example", bad); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("NewSSHKey(%.30q) = %v", bad, err)
		}
	}
}
