package approval_test

import (
	"crypto/ecdsa"
	"encoding/json"
	"strings"
	"testing"

	webauthn "github.com/go-webauthn/webauthn/protocol"

	"github.com/databox-lockbox/lockbox/protocol"
	. "github.com/databox-lockbox/lockbox/protocol/approval"
)

// coseKey returns an ES256 public key as COSE, which go-webauthn wants.
func coseKey(t testing.TB, pub *ecdsa.PublicKey) []byte {
	t.Helper()
	point := must[[]byte](t)(pub.Bytes())
	key := []byte{0xa5, 0x01, 0x02, 0x03, 0x26, 0x20, 0x01, 0x21, 0x58, 0x20}
	key = append(key, point[1:33]...)
	return append(append(key, 0x22, 0x58, 0x20), point[33:]...)
}

// judgePasskey asks go-webauthn for its opinion of an assertion.
func judgePasskey(t testing.TB, assertion, challenge []byte) error {
	t.Helper()
	bob := newAuthenticator(t, "bob")
	parsed, err := webauthn.ParseCredentialRequestResponseBytes(assertion)
	if err != nil {
		return err
	}
	return parsed.Verify(b64url(challenge), bob.rpID, "", []string{bob.origin}, nil, nil,
		webauthn.TopOriginExplicitVerificationMode, false, true, true,
		coseKey(t, bob.key.Public().(*ecdsa.PublicKey)), webauthn.SignaturePolicy{})
}

// TestForeignWebAuthn compares our verdicts on assertions with go-webauthn's.
func TestForeignWebAuthn(t *testing.T) {
	tests := []struct {
		name   string
		change func(*authenticator)
		good   bool
	}{
		{"good", func(*authenticator) {}, true},
		{"synced passkey", func(a *authenticator) { a.flags = 0x1d }, true},
		{"unknown field in the client data", func(a *authenticator) { a.extra["other_keys_can_be_added_here"] = 1 }, true},
		{"user not verified", func(a *authenticator) { a.flags = 0x01 }, false},
		{"user not present", func(a *authenticator) { a.flags = 0x04 }, false},
		{"other origin", func(a *authenticator) { a.origin = "https://evil.example" }, false},
		{"other site", func(a *authenticator) { a.rpID = "evil.example" }, false},
		{"registration", func(a *authenticator) { a.ceremony = "webauthn.create" }, false},
		{"in a page of another origin", func(a *authenticator) { a.extra["crossOrigin"] = true }, false},
		{"other key", func(a *authenticator) { a.key = newAuthenticator(t, "mallory").key }, false},
		{"trailing bytes", func(a *authenticator) { a.trailing = []byte{0} }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t)
			withBob(t, s)
			bobAs(tt.change)(t, s)
			_, in := s.unlock(t)
			_, err := s.authorize(t)
			if ours := err == nil; ours != tt.good {
				t.Errorf("we say %v", err)
			}
			e := must[Envelope](t)(ParseEnvelope(in.Decisions[2]))
			err = judgePasskey(t, e.Signatures[0].Sig, e.PasskeyChallenge())
			if theirs := err == nil; theirs != tt.good {
				t.Errorf("go-webauthn says %v", err)
			}
		})
	}
}

// TestCanonicalAssertion checks that what a browser gives is kept in one form,
// however the browser writes it.
func TestCanonicalAssertion(t *testing.T) {
	browser := newAuthenticator(t, "bob").assert(t, seed("challenge"))
	sig := must[[]byte](t)(CanonicalAssertion(browser))
	if again := must[[]byte](t)(CanonicalAssertion(sig)); string(again) != string(sig) {
		t.Error("the canonical form is not its own canonical form")
	}
	if strings.Contains(string(sig), "userHandle") {
		t.Error("what is not verified was kept")
	}
	var loose map[string]any
	if err := json.Unmarshal(browser, &loose); err != nil {
		t.Fatal(err)
	}
	indented := must[[]byte](t)(json.MarshalIndent(loose, "", "  "))
	if again := must[[]byte](t)(CanonicalAssertion(indented)); string(again) != string(sig) {
		t.Error("another spelling has another canonical form")
	}
	for _, bad := range []string{"", "[]", "null" + strings.Repeat(" ", 17<<10)} {
		if _, err := CanonicalAssertion([]byte(bad)); err == nil {
			t.Errorf("CanonicalAssertion(%.10q) succeeded", bad)
		}
	}
}

// TestAssertionFields pads the base64 of each field of an assertion: another
// spelling of the same bytes, which must not be accepted.
func TestAssertionFields(t *testing.T) {
	for _, field := range []string{"clientDataJSON", "authenticatorData", "signature"} {
		t.Run(field, func(t *testing.T) {
			s := newScene(t)
			withBob(t, s)
			s.decision("bob-passkey").hand = func(t testing.TB, e *Envelope, keyID string) {
				var a map[string]any
				if err := json.Unmarshal(newAuthenticator(t, "bob").assert(t, e.PasskeyChallenge()), &a); err != nil {
					t.Fatal(err)
				}
				response := a["response"].(map[string]any)
				response[field] = response[field].(string) + "="
				if err := e.AddPasskey(keyID, must[[]byte](t)(json.Marshal(a))); err != nil {
					t.Fatal(err)
				}
			}
			_, err := s.authorize(t)
			wantCode(t, err, protocol.CodeSignatureInvalid)
		})
	}
}
