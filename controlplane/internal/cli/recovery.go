package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

func (a *app) trustPolicyRecoveryKey() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "recovery-key --out FILE",
		Short: "Make a recovery key, offline",
		Long: `Make a recovery key: an SSH key like those of 'ssh-keygen -t ed25519', which does
as well. The private half goes to FILE, the public half to FILE.pub. This command
calls nobody: run it on a machine without a network, and keep FILE there.

Whoever has the recovery key can replace the trust policy alone. Its use is told
to everybody and recorded, but not prevented.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := need(cmd, "out"); err != nil {
				return err
			}
			pub, err := newSSHKey(out)
			if err != nil {
				return err
			}
			fingerprint := ssh.FingerprintSHA256(pub)
			shown := map[string]string{"fingerprint": fingerprint, "private_key": out, "public_key": out + ".pub"}
			return a.printValue(cmd, shown, func(w io.Writer) {
				fields(w, "Recovery key", fingerprint, "Private half", out+" (keep it offline)", "Public half", out+".pub")
			})
		},
	}
	c.Flags().StringVar(&out, "out", "", "file for the private half; it must not exist")
	return c
}

// newSSHKey makes an Ed25519 key in the form of OpenSSH.
func newSSHKey(file string) (ssh.PublicKey, error) {
	for _, name := range []string{file, file + ".pub"} {
		if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s exists already: name a file that does not", name)
		}
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	defer clear(private)
	block, err := ssh.MarshalPrivateKey(private, "lockbox recovery key")
	if err != nil {
		return nil, err
	}
	defer clear(block.Bytes)
	text := pem.EncodeToMemory(block)
	defer clear(text)
	pub, err := ssh.NewPublicKey(private.Public())
	if err != nil {
		return nil, err
	}
	if err := writeFile(file, text); err != nil {
		return nil, err
	}
	return pub, os.WriteFile(file+".pub", ssh.MarshalAuthorizedKey(pub), 0o644)
}

func (a *app) trustPolicyDraft() *cobra.Command {
	var flags policyFlags
	var out string
	c := &cobra.Command{
		Use:   "draft ORDER (--recovery-key FILE.pub | --without-recovery-key) --out FILE",
		Short: "Write the next trust policy to a file, to be signed elsewhere",
		Long: `Draft the order's trust policy, or the next version of it, as 'lockbox
trust-policy sign' does, show it, and write it to FILE: to be signed where the
recovery key is, with 'lockbox trust-policy recover --draft FILE'.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if err := need(cmd, "out"); err != nil {
				return err
			}
			policy, _, _, err := flags.draft(ctx, a, c, cmd, args[0])
			if err != nil {
				return err
			}
			payload, err := policy.Encode()
			if err != nil {
				return err
			}
			if err := writeFile(out, payload); err != nil {
				return err
			}
			shown := map[string]string{"digest": string(approval.DigestOf(payload)), "file": out}
			return a.printValue(cmd, shown, func(w io.Writer) {
				fields(w, "Trust policy", shown["digest"], "Written to", out)
			})
		}),
	}
	flags.register(c)
	c.Flags().StringVar(&out, "out", "", "write the draft to this file")
	return c
}

func (a *app) trustPolicyRecover() *cobra.Command {
	var flags policyFlags
	var key, draft, out string
	var yes bool
	c := &cobra.Command{
		Use:   "recover (ORDER --recovery-key FINGERPRINT | --draft FILE --out FILE) --key FILE",
		Short: "Replace the trust policy with the recovery key alone",
		Long: `Sign a new version of the trust policy with the recovery key, which is enough
when too few of the customer's keys are left. Everybody is told, and it is
recorded.

With ORDER, the new version is drafted, shown, signed and submitted at once, by
the flags of 'lockbox trust-policy sign'. With --draft nobody is called: a draft
of 'lockbox trust-policy draft' is shown and signed where the key is, and --out
is for 'lockbox trust-policy submit'.

The recovery key cannot put another in its place: that is for the customers whom
the new version names, in the version after it.`,
		Args: func(c *cobra.Command, got []string) error {
			if draft != "" {
				return args()(c, got)
			}
			return args("ORDER")(c, got)
		},
	}
	online := a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
		policy, current, _, err := flags.draft(ctx, a, c, cmd, args[0])
		if err != nil {
			return err
		}
		envelope, err := signRecovery(ctx, cmd, key, policy, current.RecoveryKey, yes)
		if err != nil {
			return err
		}
		return a.submitPolicy(ctx, c, cmd, args[0], envelope)
	})
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := need(cmd, "key"); err != nil {
			return err
		}
		if draft == "" {
			return online(cmd, args)
		}
		if err := need(cmd, "out"); err != nil {
			return err
		}
		return a.recoverOffline(cmd, draft, key, out, yes)
	}
	flags.register(c)
	f := c.Flags()
	f.StringVar(&key, "key", "", "the recovery key's private half")
	f.StringVar(&draft, "draft", "", "sign this draft, calling nobody")
	f.StringVar(&out, "out", "", "with --draft: write what was signed to this file")
	f.BoolVar(&yes, "yes", false, "do not ask before signing")
	return c
}

func (a *app) recoverOffline(cmd *cobra.Command, draft, key, out string, yes bool) error {
	payload, err := os.ReadFile(draft)
	if err != nil {
		return err
	}
	policy, err := approval.ParseTrustPolicy(payload)
	if err != nil {
		return fmt.Errorf("%s is no draft of a trust policy: %w", draft, err)
	}
	if err := tell(cmd, func(w io.Writer) { showPolicy(w, policy) }); err != nil {
		return err
	}
	envelope, err := signRecovery(cmd.Context(), cmd, key, policy, policy.RecoveryKey, yes)
	if err != nil {
		return err
	}
	if err := writeFile(out, envelope); err != nil {
		return err
	}
	shown := map[string]string{"digest": string(approval.DigestOf(payload)), "file": out}
	return a.printValue(cmd, shown, func(w io.Writer) { fields(w, "Signed", shown["digest"], "Written to", out) })
}

// signRecovery signs a policy with the recovery key of the one before it.
func signRecovery(ctx context.Context, cmd *cobra.Command, file string, policy approval.TrustPolicy, recovery *approval.Key, yes bool) ([]byte, error) {
	if recovery == nil || policy.Version == 1 {
		return nil, errors.New("there is no recovery key in the trust policy that this one is to replace: only its customers can replace it")
	}
	return signAs(ctx, cmd, file, approval.TrustPolicy{RecoveryKey: recovery}, policy, yes)
}

func (a *app) trustPolicySubmit() *cobra.Command {
	return &cobra.Command{
		Use:   "submit ORDER FILE",
		Short: "Submit a trust policy that was signed elsewhere",
		Long: `Submit a trust policy that 'lockbox trust-policy recover --draft' has signed on
another machine.`,
		Args: args("ORDER", "FILE"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			envelope, err := os.ReadFile(args[1])
			if err != nil {
				return err
			}
			return a.submitPolicy(ctx, c, cmd, args[0], envelope)
		}),
	}
}
