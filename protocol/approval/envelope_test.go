package approval_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/databox-lockbox/lockbox/protocol"
	. "github.com/databox-lockbox/lockbox/protocol/approval"
)

// TestPAE holds the encoding to the example of the DSSE specification.
func TestPAE(t *testing.T) {
	got := PAE("http://example.com/HelloWorld", []byte("hello world"))
	if want := "DSSEv1 29 http://example.com/HelloWorld 11 hello world"; string(got) != want {
		t.Errorf("PAE is %q, want %q", got, want)
	}
}

// foreignVerifier judges with go-securesystemslib.
type foreignVerifier struct{ key ed25519.PublicKey }

func (v foreignVerifier) Verify(_ context.Context, data, sig []byte) error {
	if !ed25519.Verify(v.key, data, sig) {
		return errors.New("wrong")
	}
	return nil
}
func (v foreignVerifier) KeyID() (string, error)   { return string(KeyFingerprint(v.key)), nil }
func (v foreignVerifier) Public() crypto.PublicKey { return v.key }

type foreignSigner struct{ ed25519.PrivateKey }

func (s foreignSigner) Sign(_ context.Context, data []byte) ([]byte, error) {
	return ed25519.Sign(s.PrivateKey, data), nil
}
func (s foreignSigner) KeyID() (string, error) {
	return string(KeyFingerprint(s.PrivateKey.Public().(ed25519.PublicKey))), nil
}

// TestForeignDSSE lets go-securesystemslib verify our envelopes, and verifies
// the ones it makes.
func TestForeignDSSE(t *testing.T) {
	doc := newMachines(t).commit
	doc.Opened = [][]byte{[]byte("proof")}
	ours := must[[]byte](t)(SignEd25519(doc, machineKey("service")))

	var theirs dsse.Envelope
	if err := json.Unmarshal(ours, &theirs); err != nil {
		t.Fatal(err)
	}
	judge := must[*dsse.EnvelopeVerifier](t)(dsse.NewEnvelopeVerifier(foreignVerifier{machinePublic("service")}))
	if _, err := judge.Verify(t.Context(), &theirs); err != nil {
		t.Errorf("go-securesystemslib refuses our envelope: %v", err)
	}
	theirs.Payload = base64.StdEncoding.EncodeToString([]byte("something else"))
	if _, err := judge.Verify(t.Context(), &theirs); err == nil {
		t.Error("the judge accepts anything")
	}

	payload := must[[]byte](t)(doc.Encode())
	signer := must[*dsse.EnvelopeSigner](t)(dsse.NewEnvelopeSigner(foreignSigner{machineKey("service")}))
	made := must[*dsse.Envelope](t)(signer.SignPayload(t.Context(), string(KindCommit), payload))
	if got := must[[]byte](t)(json.Marshal(made)); !bytes.Equal(got, ours) {
		t.Errorf("go-securesystemslib makes another envelope:\n%s\n%s", got, ours)
	}
}

func TestParseEnvelope(t *testing.T) {
	good := string(newScene(t).policy.envelope(t))
	if _, err := ParseEnvelope([]byte(good)); err != nil {
		t.Fatalf("control is refused: %v", err)
	}
	sig := `{"keyid":"k","sig":"AAAA"}`
	env := func(typ, payload, sigs string) string {
		return `{"payloadType":"` + typ + `","payload":"` + payload + `","signatures":[` + sigs + `]}`
	}
	const decision = string(KindDecision)
	if _, err := ParseEnvelope([]byte(env(decision, "AAAA", sig))); err != nil {
		t.Fatalf("small control is refused: %v", err)
	}
	many := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, strings.Replace(sig, "k\"", fmt.Sprintf("k%d\"", i), 1))
		}
		return strings.Join(list, ",")
	}
	if _, err := ParseEnvelope([]byte(env(decision, "AAAA", many(64)))); err != nil {
		t.Fatalf("64 signatures are refused: %v", err)
	}
	tests := map[string]string{
		"empty":                    "",
		"null":                     "null",
		"space before":             " " + good,
		"newline after":            good + "\n",
		"two":                      good + good,
		"unknown type":             env("application/json", "AAAA", sig),
		"type with other case":     env("application/vnd.databox.Decision+json", "AAAA", sig),
		"empty payload":            env(decision, "", sig),
		"base64url payload":        env(decision, "AA-_", sig),
		"unpadded payload":         env(decision, "AAA", sig),
		"payload with stray bits":  env(decision, "AAB=", sig),
		"payload with line break":  env(decision, `AAAA\n`, sig),
		"no signature":             env(decision, "AAAA", ""),
		"65 signatures":            env(decision, "AAAA", many(65)),
		"key id twice":             env(decision, "AAAA", sig+","+sig),
		"no key id":                env(decision, "AAAA", `{"sig":"AAAA"}`),
		"empty key id":             env(decision, "AAAA", `{"keyid":"","sig":"AAAA"}`),
		"empty signature":          env(decision, "AAAA", `{"keyid":"k","sig":""}`),
		"huge signature":           env(decision, "AAAA", `{"keyid":"k","sig":"`+strings.Repeat("AAAA", 1366)+`"}`),
		"unknown field":            env(decision, "AAAA", `{"keyid":"k","sig":"AAAA","cert":""}`),
		"field twice":              env(decision, "AAAA", `{"keyid":"k","keyid":"k","sig":"AAAA"}`),
		"field in capitals":        strings.Replace(env(decision, "AAAA", sig), `"payload"`, `"Payload"`, 1),
		"other order":              `{"payload":"AAAA","payloadType":"` + decision + `","signatures":[` + sig + `]}`,
		"escaped slash":            strings.ReplaceAll(env(decision, "AAAA", sig), "/", `\/`),
		"unicode escape":           strings.ReplaceAll(env(decision, "AAAA", sig), "keyid\":\"k", `keyid":"\u006b`),
		"payload beyond the limit": env(decision, strings.Repeat("AAAA", MaxDocument/3+1), sig),
		"beyond the limit":         env(decision, strings.Repeat("A", MaxEnvelope), sig),
	}
	for name, data := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ParseEnvelope([]byte(data))
			wantCode(t, err, protocol.CodeInvalid)
		})
	}
}

// TestAddRefuses checks that a bad signature does not get into an envelope.
func TestAddRefuses(t *testing.T) {
	e := must[Envelope](t)(NewEnvelope(basePolicy(t)))
	if _, err := e.Encode(); err == nil {
		t.Error("an envelope without signature can be encoded")
	}
	if err := e.SignSSH("alice-laptop", sshSigner(t, "alice")); err != nil {
		t.Fatal(err)
	}
	if err := e.SignSSH("alice-laptop", sshSigner(t, "alice")); protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Errorf("a second signature of one key: %v", err)
	}
	if err := e.SignSSH("alice laptop", sshSigner(t, "alice")); err == nil {
		t.Error("a key id with a space was taken")
	}
	if err := e.SignEd25519(newAuthenticator(t, "bob").key); err == nil {
		t.Error("a machine signed with an ECDSA key")
	}
	if err := e.AddPasskey("bob-passkey", []byte("nonsense")); err == nil {
		t.Error("nonsense was taken for an assertion")
	}
	if len(e.Signatures) != 1 {
		t.Errorf("%d signatures are left, want 1", len(e.Signatures))
	}
}
