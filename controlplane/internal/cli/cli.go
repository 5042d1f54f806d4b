// Package cli is the lockbox command line: everything the API can do, one file
// per subject.
//
// It asks the control plane through the public client only. What a person
// signs is shown from the very bytes that are signed, never from what the
// control plane says about them.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
)

// Exit codes of the command.
const (
	ExitOK      = 0
	ExitFailed  = 1 // something went wrong
	ExitUsage   = 2 // the command was typed wrong
	ExitRefused = 3 // the control plane or the device refused, with a code
)

// Main runs the command with the process's arguments and returns its exit code.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// Run runs the command with args and returns its exit code.
func Run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	var exit exitStatus
	if errors.As(err, &exit) {
		return int(exit)
	}
	fmt.Fprintln(errOut, "lockbox: "+err.Error())
	if advice := advise(err); advice != "" {
		fmt.Fprintln(errOut, advice)
	}
	return exitCode(err)
}

// exitStatus is the status of a command that lockbox ran and that has already
// said what was wrong, such as ssh.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is a command typed wrong.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func exitCode(err error) int {
	var usage usageError
	var refused *protocol.Error
	switch {
	case errors.As(err, &usage):
		return ExitUsage
	case errors.As(err, &refused):
		return ExitRefused
	}
	return ExitFailed
}

// advise says what to do about a refusal, where it is always the same.
func advise(err error) string {
	switch protocol.CodeOf(err) {
	case protocol.CodeUnauthenticated:
		return "Your certificate is missing, expired or was revoked: run 'lockbox login' with a new token from an administrator."
	case protocol.CodeForbidden:
		return "Run 'lockbox whoami' to see who you are and what you may do."
	case protocol.CodeUnavailable:
		return "Is the control plane running, and is this its address? 'lockbox whoami' tries it."
	case protocol.CodeOffline:
		return "'lockbox device show SERIAL' says when the device was last seen."
	case protocol.CodeNotApproved:
		return "'lockbox request show N' says what is still missing."
	}
	return ""
}

// app is what every command needs.
type app struct {
	home    string
	output  string
	timeout time.Duration
}

func newRoot() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "lockbox",
		Short: "Customer Lockbox for Data Box",
		Long: `Customer Lockbox for Data Box: support looks inside a halted device only when
the customer says yes, only on that device, only for that long, on record.

Engineers      lockbox session enable, lockbox ssh, lockbox request create|execute
Approvers      lockbox request list --pending, lockbox request show|approve|deny
Staff          lockbox device list, lockbox order advance, lockbox device join-token
Admins         lockbox person create, lockbox tenant create, lockbox audit export|verify

Start with 'lockbox login --server HOST:PORT'.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noWords,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "text" && a.output != "json" {
				return usagef("--output is %q: want text or json", a.output)
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see '%s --help'", err, c.CommandPath())}
	})
	f := root.PersistentFlags()
	f.StringVar(&a.home, "home", defaultHome(), "folder of your key and certificate (LOCKBOX_HOME)")
	f.StringVar(&a.output, "output", "text", "how to print: text or json")
	f.DurationVar(&a.timeout, "timeout", 2*time.Minute, "give up after this long")
	root.AddCommand(
		a.loginCommand(), a.logoutCommand(), a.whoamiCommand(),
		a.personCommand(), a.tenantCommand(), a.subscriptionCommand(),
		a.orderCommand(), a.trustPolicyCommand(), a.consentCommand(),
		a.deviceCommand(), a.ticketCommand(),
		a.sessionCommand(), a.sshCommand(), a.sshProxyCommand(),
		a.requestCommand(), a.keyCommand(), a.auditCommand(),
	)
	return root
}

func defaultHome() string {
	if home := os.Getenv("LOCKBOX_HOME"); home != "" {
		return home
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return ".lockbox"
	}
	return filepath.Join(dir, "lockbox")
}

// group returns a command that only holds others: called alone or with an
// unknown word, it says which there are.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  noWords,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(subs...)
	return c
}

func noWords(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unknown command %q for %q; see '%s --help'", args[0], c.CommandPath(), c.CommandPath())
	}
	return nil
}

// args demands exactly these arguments, by name.
func args(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, got []string) error {
		if len(got) != len(names) {
			return usagef("want %d argument(s) %v, got %d: usage: %s", len(names), names, len(got), c.UseLine())
		}
		return nil
	}
}

// action is what a command does, connected.
type action func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error

// connected wraps an action: it loads the identity, renews it when it is about
// to end, connects, and bounds the whole by --timeout.
func (a *app) connected(do action) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
		defer cancel()
		id, err := client.LoadIdentity(a.home)
		if err != nil {
			return err
		}
		c, err := client.New(id)
		if err != nil {
			return err
		}
		defer c.Close()
		a.renewInTime(ctx, c, id)
		return do(ctx, c, cmd, args)
	}
}

// renewInTime replaces a certificate that ends within the hour. A failure is
// no reason not to try the command: the certificate still holds.
func (a *app) renewInTime(ctx context.Context, c *client.Client, id *client.Identity) {
	end, err := id.Expires()
	if err != nil || time.Until(end) > time.Hour || time.Until(end) < 0 {
		return
	}
	if fresh, err := c.Renew(ctx, id); err == nil {
		_ = fresh.Save(a.home) // the old one is still in place when this fails
	}
}
