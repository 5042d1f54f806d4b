package approval_test

import (
	"encoding/base64"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/databox-lockbox/lockbox/protocol"
	. "github.com/databox-lockbox/lockbox/protocol/approval"
)

// sshKeygen runs the stock tool with input and returns its error.
func sshKeygen(t *testing.T, stdin []byte, args ...string) error {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "ssh-keygen", args...)
	cmd.Stdin = strings.NewReader(string(stdin))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Logf("ssh-keygen %v: %v: %s", args, err, out)
	}
	return err
}

// judgeSSH asks ssh-keygen -Y verify for its opinion of a raw SSHSIG blob.
func judgeSSH(t *testing.T, pub ssh.PublicKey, namespace string, message, raw []byte) error {
	t.Helper()
	dir := t.TempDir()
	signers, sig := filepath.Join(dir, "signers"), filepath.Join(dir, "sig")
	armored := "-----BEGIN SSH SIGNATURE-----\n" + base64.StdEncoding.EncodeToString(raw) + "\n-----END SSH SIGNATURE-----\n"
	writeFile(t, signers, "someone "+authorized(pub))
	writeFile(t, sig, armored)
	return sshKeygen(t, message, "-Y", "verify", "-f", signers, "-I", "someone", "-n", namespace, "-s", sig)
}

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestOpenSSHVerifiesOurs lets the stock tool verify what SignSSH makes, of a
// plain key, a security key, and a key in an agent.
func TestOpenSSHVerifiesOurs(t *testing.T) {
	message := []byte("DSSEv1 1 a 1 b")
	namespace := KindDecision.Namespace()
	if namespace != "databox-decision@lockbox" {
		t.Errorf("namespace is %q", namespace)
	}
	signers := map[string]ssh.Signer{
		"file":         sshSigner(t, "alice"),
		"security key": newSecurityKey("carol"),
		"agent":        agentSigner(t, "alice"),
	}
	for name, signer := range signers {
		t.Run(name, func(t *testing.T) {
			raw := must[[]byte](t)(SignSSH(signer, namespace, message))
			if judgeSSH(t, signer.PublicKey(), namespace, message, raw) != nil {
				t.Error("ssh-keygen refuses our signature")
			}
			if judgeSSH(t, signer.PublicKey(), "file", message, raw) == nil {
				t.Error("ssh-keygen accepts it for another namespace")
			}
			if judgeSSH(t, signer.PublicKey(), namespace, message[1:], raw) == nil {
				t.Error("ssh-keygen accepts it for another message")
			}
		})
	}
}

// agentSigner returns a signer that asks a real agent over a connection.
func agentSigner(t *testing.T, name string) ssh.Signer {
	t.Helper()
	keyring := agent.NewKeyring()
	key := machineKey(name)
	if err := keyring.Add(agent.AddedKey{PrivateKey: &key}); err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- agent.ServeAgent(keyring, there) }()
	t.Cleanup(func() { here.Close(); <-done })
	return must[[]ssh.Signer](t)(agent.NewClient(here).Signers())[0]
}

// TestWeVerifyOpenSSH lets the stock tool make key and signature, adds the
// signature to a decision, and verifies that.
func TestWeVerifyOpenSSH(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "id")
	if err := sshKeygen(t, nil, "-q", "-t", "ed25519", "-N", "", "-C", "alice@laptop", "-f", key); err != nil {
		t.Fatal(err)
	}
	public := string(must[[]byte](t)(os.ReadFile(key + ".pub")))

	// byTool signs with ssh-keygen -Y sign, as on a machine apart.
	byTool := func(namespace string) hand {
		return func(tb testing.TB, e *Envelope, keyID string) {
			message := filepath.Join(dir, "message")
			writeFile(t, message, string(e.PAE()))
			os.Remove(message + ".sig")
			if err := sshKeygen(t, nil, "-q", "-Y", "sign", "-f", key, "-n", namespace, message); err != nil {
				tb.Fatal(err)
			}
			if err := e.AddSSH(keyID, must[[]byte](tb)(os.ReadFile(message+".sig"))); err != nil {
				tb.Fatal(err)
			}
		}
	}
	signed := func(namespace string) *scene {
		s := newScene(t)
		s.policy.doc.Keys[0] = must[Key](t)(NewSSHKey("alice-laptop", "alice@contoso.example", public))
		s.policy.keyIDs = []string{"bob-passkey", "carol-token"}
		s.decision("alice-laptop").hand = byTool(namespace)
		return s
	}
	if _, err := signed(KindDecision.Namespace()).authorize(t); err != nil {
		t.Errorf("a signature of ssh-keygen is refused: %v", err)
	}
	_, err := signed("file").authorize(t)
	wantCode(t, err, protocol.CodeSignatureInvalid)
}

// mixedUp is an agent that shows one key and signs with another.
type mixedUp struct {
	ssh.Signer
	shown ssh.PublicKey
}

func (m mixedUp) PublicKey() ssh.PublicKey { return m.shown }

func TestSignSSHRefuses(t *testing.T) {
	untouched, web := newSecurityKey("carol"), newSecurityKey("carol")
	untouched.flags, web.application = 0, "https://evil.example"
	ecdsaSigner := must[ssh.Signer](t)(ssh.NewSignerFromSigner(newAuthenticator(t, "bob").key))
	for name, signer := range map[string]ssh.Signer{
		"untouched security key":            untouched,
		"security key of a web page":        web,
		"ECDSA":                             ecdsaSigner,
		"agent that signs with another key": mixedUp{sshSigner(t, "mallory"), sshSigner(t, "alice").PublicKey()},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := SignSSH(signer, "databox-decision@lockbox", []byte("x")); err == nil {
				t.Error("it signed")
			}
		})
	}
}

func TestAddSSHRefuses(t *testing.T) {
	e := must[Envelope](t)(NewEnvelope(basePolicy(t)))
	for _, bad := range []string{
		"", "nonsense",
		"-----BEGIN SSH SIGNATURE-----",
		"-----BEGIN SSH SIGNATURE-----\n!\n-----END SSH SIGNATURE-----",
		"-----BEGIN SSH SIGNATURE-----\n-----END SSH SIGNATURE-----",
	} {
		if err := e.AddSSH("alice-laptop", []byte(bad)); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("AddSSH(%q) = %v", bad, err)
		}
	}
}
