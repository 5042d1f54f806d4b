package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/term"

	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// agentTimeout bounds one talk with the ssh-agent. Its user may have to touch
// a key or type a passphrase.
const agentTimeout = 2 * time.Minute

// readPublicKey returns the one key of an SSH public key file, without its
// comment.
func readPublicKey(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		return "", fmt.Errorf("%s is not an SSH public key: give the file that ends in .pub", file)
	}
	return authorizedKey(key), nil
}

func authorizedKey(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// findSigner returns the first key the trust policy names among those in file,
// or in the ssh-agent if file is empty, with its id in the policy. done frees
// the agent.
func findSigner(ctx context.Context, cmd *cobra.Command, file string, policy approval.TrustPolicy) (signer ssh.Signer, key approval.Key, done func(), err error) {
	signers, done, err := openSigners(ctx, cmd, file)
	if err != nil {
		return nil, approval.Key{}, nil, err
	}
	var have []string
	for _, s := range signers {
		fingerprint := ssh.FingerprintSHA256(s.PublicKey())
		if k, ok := policy.KeyByFingerprint(fingerprint); ok {
			return s, k, done, nil
		}
		have = append(have, fingerprint)
	}
	done()
	return nil, approval.Key{}, nil, fmt.Errorf("the trust policy does not name your key %s: sign with a key that the order's trust policy names", strings.Join(have, ", "))
}

func openSigners(ctx context.Context, cmd *cobra.Command, file string) ([]ssh.Signer, func(), error) {
	if file == "" {
		return agentSigners(ctx)
	}
	s, err := fileSigner(cmd, file)
	return []ssh.Signer{s}, func() {}, err
}

func agentSigners(ctx context.Context) ([]ssh.Signer, func(), error) {
	socket := os.Getenv("SSH_AUTH_SOCK")
	if socket == "" {
		return nil, nil, usagef("which key? give --key FILE, or start an ssh-agent that holds it (SSH_AUTH_SOCK is not set)")
	}
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot reach the ssh-agent at SSH_AUTH_SOCK: %w", err)
	}
	done := func() { conn.Close() }
	conn.SetDeadline(time.Now().Add(agentTimeout))
	signers, err := agent.NewClient(conn).Signers()
	if err == nil && len(signers) == 0 {
		err = errors.New("it holds no key; add one with ssh-add")
	}
	if err != nil {
		done()
		return nil, nil, fmt.Errorf("cannot use the ssh-agent: %w", err)
	}
	return signers, done, nil
}

func fileSigner(cmd *cobra.Command, file string) (ssh.Signer, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	if _, _, _, _, err := ssh.ParseAuthorizedKey(data); err == nil {
		return nil, fmt.Errorf("%s is a public key: give the private key's file, without .pub", file)
	}
	s, err := ssh.ParsePrivateKey(data)
	var encrypted *ssh.PassphraseMissingError
	if errors.As(err, &encrypted) {
		return encryptedSigner(cmd, file, data)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the SSH key %s: %w", file, err)
	}
	return s, nil
}

func encryptedSigner(cmd *cobra.Command, file string, data []byte) (ssh.Signer, error) {
	stdin, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(stdin.Fd())) {
		return nil, fmt.Errorf("%s is encrypted and there is no terminal to ask for its passphrase: use an ssh-agent", file)
	}
	passphrase, err := readHidden(cmd, stdin, fmt.Sprintf("Passphrase for %s: ", file))
	if err != nil {
		return nil, err
	}
	defer clear(passphrase)
	s, err := ssh.ParsePrivateKeyWithPassphrase(data, passphrase)
	if err != nil {
		return nil, fmt.Errorf("cannot read the SSH key %s: wrong passphrase?", file)
	}
	return s, nil
}

// signAs has a key that the trust policy names sign doc, see [sign]: that in file, or
// one of the ssh-agent's.
func signAs(ctx context.Context, cmd *cobra.Command, file string, policy approval.TrustPolicy, doc approval.Document, yes bool) ([]byte, error) {
	signer, k, done, err := findSigner(ctx, cmd, file, policy)
	if err != nil {
		return nil, err
	}
	defer done()
	return sign(cmd, doc, k.ID, signer, yes)
}

// sign shows the very bytes of doc, asks, and signs them in an envelope.
func sign(cmd *cobra.Command, doc approval.Document, keyID string, signer ssh.Signer, yes bool) ([]byte, error) {
	env, err := approval.NewEnvelope(doc)
	if err != nil {
		return nil, err
	}
	err = tell(cmd, func(w io.Writer) {
		key := ssh.FingerprintSHA256(signer.PublicKey())
		if keyID != key {
			key = keyID + " (" + key + ")"
		}
		fmt.Fprintf(w, "\nThese %d bytes will be signed, as %s, in namespace %s,\nwith key %s:\n\n%s\n\n",
			len(env.Payload), env.PayloadType, env.PayloadType.Namespace(), key, env.Payload)
	})
	if err != nil {
		return nil, err
	}
	if !yes {
		if err := confirm(cmd, "Sign?"); err != nil {
			return nil, err
		}
	}
	if err := env.SignSSH(keyID, signer); err != nil {
		return nil, fmt.Errorf("cannot sign: %w", err)
	}
	return env.Encode()
}

// confirm asks for a yes. Anything else is a no.
func confirm(cmd *cobra.Command, question string) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s Type yes to go on: ", question)
	line, err := typed(cmd, func() (string, error) { return readLine(cmd.InOrStdin()) })
	if errors.Is(err, errInterrupted) {
		fmt.Fprintln(cmd.ErrOrStderr())
		return err
	}
	if err != nil && line == "" {
		return usagef("nobody answered: give --yes where nobody can be asked")
	}
	if !slices.Contains([]string{"yes", "y"}, strings.ToLower(strings.TrimSpace(line))) {
		return errors.New("stopped: nothing was done")
	}
	return nil
}

// readLine reads one line of at most 1 KiB and not a byte more.
func readLine(r io.Reader) (string, error) {
	var line bytes.Buffer
	for b := make([]byte, 1); line.Len() < 1<<10; {
		n, err := r.Read(b)
		if n == 1 && b[0] == '\n' {
			return line.String(), nil
		}
		line.Write(b[:n])
		if err != nil {
			return line.String(), err
		}
	}
	return line.String(), nil
}
