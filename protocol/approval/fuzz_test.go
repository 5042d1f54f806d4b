package approval_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	. "github.com/databox-lockbox/lockbox/protocol/approval"
)

// fuzzDocument checks for one kind of document that reading never panics and
// that what parses re-encodes to the same bytes.
func fuzzDocument(f *testing.F, kind Kind) {
	for _, doc := range samples(f) {
		if doc.Kind() == kind {
			f.Add(must[[]byte](f)(doc.Encode()))
		}
	}
	f.Add([]byte(`{"v":1}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		doc, err := parse(kind, payload)
		if err != nil {
			return
		}
		if again := must[[]byte](t)(doc.Encode()); !bytes.Equal(again, payload) {
			t.Errorf("%q\nre-encodes as\n%q", payload, again)
		}
	})
}

func FuzzParseStatement(f *testing.F)   { fuzzDocument(f, KindRequest) }
func FuzzParseDecision(f *testing.F)    { fuzzDocument(f, KindDecision) }
func FuzzParseRevocation(f *testing.F)  { fuzzDocument(f, KindRevocation) }
func FuzzParseConsent(f *testing.F)     { fuzzDocument(f, KindConsent) }
func FuzzParseStanding(f *testing.F)    { fuzzDocument(f, KindStanding) }
func FuzzParseTrustPolicy(f *testing.F) { fuzzDocument(f, KindPolicy) }
func FuzzParseChallenge(f *testing.F)   { fuzzDocument(f, KindChallenge) }
func FuzzParseOrder(f *testing.F)       { fuzzDocument(f, KindOrder) }
func FuzzParseOpened(f *testing.F)      { fuzzDocument(f, KindOpened) }
func FuzzParseCommit(f *testing.F)      { fuzzDocument(f, KindCommit) }
func FuzzParseErasure(f *testing.F)     { fuzzDocument(f, KindErasure) }
func FuzzParseChanges(f *testing.F)     { fuzzDocument(f, KindChanges) }

func FuzzParseEnvelope(f *testing.F) {
	s := newScene(f)
	policy, in := s.unlock(f)
	for _, data := range append(in.Decisions, policy) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEnvelope(data)
		if err != nil {
			return
		}
		if again := must[[]byte](t)(e.Encode()); !bytes.Equal(again, data) {
			t.Errorf("%q\nre-encodes as\n%q", data, again)
		}
	})
}

// FuzzSignature puts arbitrary bytes where a signature is expected. None may
// panic, and none but the true one may be accepted.
func FuzzSignature(f *testing.F) {
	s := newScene(f)
	withBob(f, s)
	policy, in := s.unlock(f)
	p := must[*Policy](f)(VerifyPolicyV1(policy))
	for i, d := range in.Decisions {
		f.Add(uint8(i), must[Envelope](f)(ParseEnvelope(d)).Signatures[0].Sig)
	}
	f.Fuzz(func(t *testing.T, which uint8, sig []byte) {
		changed := in
		changed.Decisions = append([][]byte(nil), in.Decisions...)
		i := int(which) % len(in.Decisions)
		e := must[Envelope](t)(ParseEnvelope(in.Decisions[i]))
		same := bytes.Equal(e.Signatures[0].Sig, sig)
		e.Signatures[0].Sig = sig
		data, err := e.Encode()
		if err != nil {
			return
		}
		changed.Decisions[i] = data
		if _, err := p.Authorize(changed); err == nil && !same {
			t.Errorf("decision %d is accepted with signature %q", i, sig)
		}
	})
}

func FuzzCanonicalAssertion(f *testing.F) {
	f.Add(newAuthenticator(f, "bob").assert(f, seed("challenge")))
	f.Fuzz(func(t *testing.T, data []byte) {
		sig, err := CanonicalAssertion(data)
		if err != nil {
			return
		}
		if again := must[[]byte](t)(CanonicalAssertion(sig)); !bytes.Equal(again, sig) {
			t.Errorf("%q is not its own canonical form: %q", sig, again)
		}
	})
}

// TestMutation flips one bit of every byte of every envelope and of the
// statement. No change may be accepted with another meaning.
func TestMutation(t *testing.T) {
	s := newScene(t)
	withBob(t, s)
	policy, in := s.unlock(t)
	p := must[*Policy](t)(VerifyPolicyV1(policy))
	want := must[Grant](t)(p.Authorize(in))

	mutate := func(t *testing.T, data []byte, accepted func(changed []byte) bool) {
		t.Helper()
		for i := range data {
			changed := bytes.Clone(data)
			changed[i] ^= 1 << (i % 8)
			if accepted(changed) {
				t.Errorf("byte %d %q to %q is accepted", i, data[i], changed[i])
			}
		}
	}
	t.Run("policy", func(t *testing.T) {
		mutate(t, policy, func(changed []byte) bool { _, err := VerifyPolicyV1(changed); return err == nil })
	})
	t.Run("statement", func(t *testing.T) {
		mutate(t, in.Statement, func(changed []byte) bool {
			other := in
			other.Statement = changed
			_, err := p.Authorize(other)
			return err == nil
		})
	})
	for i := range in.Decisions {
		t.Run("decision", func(t *testing.T) {
			mutate(t, in.Decisions[i], func(changed []byte) bool {
				other := in
				other.Decisions = append([][]byte(nil), in.Decisions...)
				other.Decisions[i] = changed
				got, err := p.Authorize(other)
				return err == nil && (got.RequestDigest != want.RequestDigest || got.Start != want.Start || got.End != want.End || got.Access != want.Access)
			})
		})
	}
	s = newScene(t)
	_, copyIn := s.copyRequest(t)
	copyWant := must[CopyGrant](t)(s.authorizeCopy(t))
	t.Run("consent", func(t *testing.T) {
		mutate(t, copyIn.Consent, func(changed []byte) bool {
			other := copyIn
			other.Consent = changed
			got, err := p.AuthorizeCopy(other)
			return err == nil && got.ConsentDigest != copyWant.ConsentDigest
		})
	})
	s = newScene(t)
	withStanding(t, s)
	standingPolicy, standingIn := s.unlock(t)
	under := must[*Policy](t)(VerifyPolicyV1(standingPolicy))
	standingWant := must[Grant](t)(under.Authorize(standingIn))
	t.Run("standing consent", func(t *testing.T) {
		last := len(standingIn.Decisions) - 1
		mutate(t, standingIn.Decisions[last], func(changed []byte) bool {
			other := standingIn
			other.Decisions = append(slices.Clone(standingIn.Decisions[:last]), changed)
			got, err := under.Authorize(other)
			return err == nil && (got.Start != standingWant.Start || got.End != standingWant.End || got.Access != standingWant.Access)
		})
	})
	t.Run("revocation", func(t *testing.T) {
		revocation := revoke("alice-laptop")
		revocation.doc.SubjectDigest = want.RequestDigest
		mutate(t, revocation.envelope(t), func(changed []byte) bool {
			other := in
			other.Revocations = [][]byte{changed}
			_, err := p.Authorize(other)
			return err == nil
		})
	})
	m := newMachines(t)
	sent := m.signAll(t)
	t.Run("challenge", func(t *testing.T) {
		mutate(t, sent.challenge, func(changed []byte) bool {
			_, err := VerifyChallenge(changed, m.nodes[0], m.subject, time.Unix(m.now, 0))
			return err == nil
		})
	})
	t.Run("order", func(t *testing.T) {
		mutate(t, sent.order, func(changed []byte) bool { _, _, err := p.VerifyOrder(changed); return err == nil })
	})
	t.Run("commit", func(t *testing.T) {
		mutate(t, sent.commit, func(changed []byte) bool {
			request := m.commitRequest(sent)
			request.Commit = changed
			_, err := p.VerifyCommit(request)
			return err == nil
		})
	})
}

// TestTransplant moves each signature to every other envelope of the story:
// it must be of no use there.
func TestTransplant(t *testing.T) {
	s := newScene(t)
	policy, in := s.unlock(t)
	p := must[*Policy](t)(VerifyPolicyV1(policy))
	_, copyIn := s.copyRequest(t)
	donors := append([][]byte{policy, copyIn.Consent}, in.Decisions...)
	for _, from := range donors {
		sig := must[Envelope](t)(ParseEnvelope(from)).Signatures[0]
		for i, to := range in.Decisions {
			if bytes.Equal(from, to) {
				continue
			}
			e := must[Envelope](t)(ParseEnvelope(to))
			e.Signatures[0] = sig
			other := in
			other.Decisions = append([][]byte(nil), in.Decisions...)
			other.Decisions[i] = must[[]byte](t)(e.Encode())
			if _, err := p.Authorize(other); err == nil {
				t.Errorf("decision %d is accepted with a signature of %.60s", i, from)
			}
		}
	}
	if strings.Count(string(copyIn.Consent), "keyid") != 1 {
		t.Fatal("the consent should have one signature")
	}
}
