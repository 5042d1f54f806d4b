// Package cli is the lockbox command line: everything the API can do, one file
// per subject.
//
// It asks the control plane through the public client only; of the services it
// knows the pure JIT rules, to try them without one. What a person
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
	"slices"
	"strings"
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
	c, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	if exit, ok := errors.AsType[exitStatus](err); ok {
		return int(exit)
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	_ = show(errOut, []byte("lockbox: "+err.Error()+"\n"))
	if advice := advise(err, c); advice != "" {
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
	if _, ok := errors.AsType[usageError](err); ok {
		return ExitUsage
	}
	if _, ok := errors.AsType[brokenError](err); ok {
		return ExitFailed
	}
	if _, ok := errors.AsType[sshFailure](err); ok {
		return exitSSH
	}
	switch protocol.CodeOf(err) {
	case protocol.CodeInternal, protocol.CodeUnavailable, protocol.CodeTimeout, protocol.CodeKeyService: // nobody refused anything
		return ExitFailed
	}
	return ExitRefused
}

// advise says what to do about a refusal of c, where it is always the same.
func advise(err error, c *cobra.Command) string {
	switch protocol.CodeOf(err) {
	case protocol.CodeUnauthenticated:
		return "Run 'lockbox login' with a new token from an administrator, or with --sso."
	case protocol.CodeForbidden:
		return "Run 'lockbox whoami' to see who you are and what you may do."
	case protocol.CodeUnavailable:
		return "Try again. If it stays so: does the control plane run, at the address you logged in to?"
	case protocol.CodeTimeout:
		return "It may have been done all the same: look before you repeat it."
	case protocol.CodeOffline:
		return "'lockbox device list' says when the device was last seen."
	case protocol.CodeKeyService:
		return "Administrators see with 'lockbox key show' what the key service says."
	case protocol.CodeNotApproved:
		if c.HasParent() && c.Parent().Name() == "request" && c.Flags().NArg() > 0 {
			return fmt.Sprintf("'lockbox request show %s' says how it stands.", printable(c.Flags().Arg(0)))
		}
		return "'lockbox request list' says how each request stands."
	}
	return ""
}

// outputs are the ways to print.
var outputs = []string{"text", "json", "raw"}

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

Engineers      lockbox session enable, lockbox ssh|scp|sftp, lockbox config ssh,
               lockbox request create|execute
Customers      lockbox order place, lockbox trust-policy sign, lockbox ticket file
Approvers      lockbox request list --pending, lockbox request show|approve|deny,
               lockbox session watch|kill|recordings|play, lockbox request changes
Staff          lockbox order prepare|advance|start-job|resume-job|erase,
               lockbox device join-token
Admins         lockbox person create, lockbox tenant create, lockbox audit export|verify

Start with 'lockbox login --server HOST:PORT'.

Exit codes: 0 done, 1 failed, 2 typed wrong, 3 refused by the control plane or
the device (the code stands in brackets); 'lockbox ssh', scp and sftp end as the
stock programs do, with 255 when there is no session to run them in.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noWords,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if !slices.Contains(outputs, a.output) {
				return usagef("--output is %q: want one of %s", a.output, strings.Join(outputs, ", "))
			}
			if a.timeout <= 0 {
				return usagef("--timeout is %s: want more than nothing, as in 30s", a.timeout)
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see '%s --help'", err, c.CommandPath())}
	})
	f := root.PersistentFlags()
	f.StringVar(&a.home, "home", defaultHome(), "folder of your key and certificate (LOCKBOX_HOME)")
	f.StringVar(&a.output, "output", "text", "how to print: text; json, with documents as they read and times in RFC 3339; or raw, JSON as the API sends it. Progress is a document a line")
	f.DurationVar(&a.timeout, "timeout", 2*time.Minute, "give up a call after this long")
	choices(root, "output", outputs...)
	root.AddCommand(
		a.loginCommand(), a.logoutCommand(), a.whoamiCommand(),
		a.personCommand(), a.tenantCommand(), a.subscriptionCommand(),
		a.orderCommand(), a.trustPolicyCommand(), a.consentCommand(),
		a.deviceCommand(), a.ticketCommand(), a.policyCommand(), a.contactCommand(), a.catalogueCommand(),
		a.sessionCommand(), a.sshCommand(), a.scpCommand(), a.sftpCommand(), a.configCommand(), a.sshProxyCommand(), a.sshCertificateCommand(),
		a.requestCommand(), a.keyCommand(), a.auditCommand(),
		a.noticeCommand(), a.webhookCommand(),
	)
	plainUse(root)
	return root
}

// plainUse leaves the usage lines as they are written.
func plainUse(c *cobra.Command) {
	c.DisableFlagsInUseLine = true
	for _, sub := range c.Commands() {
		plainUse(sub)
	}
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

// choices names the values of a flag for shell completion.
func choices(c *cobra.Command, flag string, values ...string) {
	err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic("cli: internal error: " + err.Error())
	}
}

// group returns a command that only holds others: called alone or with an
// unknown word, it says which there are.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Long:  short + ".",
		Args:  noWords,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(subs...)
	return c
}

func noWords(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		c.SuggestionsMinimumDistance = 2
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			return usagef("unknown command %q for %q: did you mean %s?", args[0], c.CommandPath(), strings.Join(near, " or "))
		}
		return usagef("unknown command %q for %q; see '%s --help'", args[0], c.CommandPath(), c.CommandPath())
	}
	return nil
}

func countOf(names []string) string {
	switch len(names) {
	case 0:
		return "no argument"
	case 1:
		return "one argument, " + names[0]
	}
	return fmt.Sprintf("%d arguments, %s", len(names), strings.Join(names, " and "))
}

// args demands exactly these arguments, by name.
func args(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, got []string) error {
		if len(got) != len(names) {
			return usagef("want %s, got %d: usage: %s", countOf(names), len(got), c.UseLine())
		}
		return nil
	}
}

// atLeastOne demands one argument or more.
func atLeastOne(name string) cobra.PositionalArgs {
	return func(c *cobra.Command, got []string) error {
		if len(got) == 0 {
			return usagef("want %s: usage: %s", name, c.UseLine())
		}
		return nil
	}
}

// optional demands at most one argument.
func optional(name string) cobra.PositionalArgs {
	return func(c *cobra.Command, got []string) error {
		if len(got) > 1 {
			return usagef("want at most one %s, got %d: usage: %s", name, len(got), c.UseLine())
		}
		return nil
	}
}

// need demands flags that have no default.
func need(c *cobra.Command, flags ...string) error {
	for _, name := range flags {
		if c.Flag(name).Value.String() == "" {
			return usagef("--%s is missing: usage: %s", name, c.UseLine())
		}
	}
	return nil
}

// seconds returns what --for says. Nothing and less is a mistake: it must not
// be taken for a flag that was not given.
func seconds(c *cobra.Command, d time.Duration) (int64, error) {
	if c.Flags().Changed("for") && d < time.Second {
		return 0, usagef("--for is %s: want at least a second, as in 2h", d)
	}
	return int64(d / time.Second), nil
}

// first demands at least one argument.
func first(name string) cobra.PositionalArgs {
	return func(c *cobra.Command, got []string) error {
		if len(got) == 0 {
			return usagef("%s is missing: usage: %s", name, c.UseLine())
		}
		return nil
	}
}

// action is what a command does, connected.
type action func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error

// connected wraps an action: it loads the identity, renews it when it is about
// to end, and connects. Every call is bounded by --timeout; people who read and
// type meanwhile are not.
func (a *app) connected(do action) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		id, err := a.identity()
		if err != nil {
			return err
		}
		c, err := client.New(id)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetTimeout(a.timeout)
		a.renewInTime(cmd.Context(), c, id)
		return do(cmd.Context(), c, cmd, args)
	}
}

// identity loads who calls. An expired certificate is better said here than by
// a failed handshake.
func (a *app) identity() (*client.Identity, error) {
	id, err := client.LoadIdentity(a.home)
	if err != nil {
		return nil, err
	}
	end, err := id.Expires()
	if err != nil {
		return nil, err
	}
	if time.Now().After(end) {
		return nil, protocol.Errorf(protocol.CodeUnauthenticated, "your certificate expired at %s", protocol.Stamp(end))
	}
	return id, nil
}

// renewInTime replaces a certificate that will soon end. A failure is no reason
// not to try the command: the certificate still holds.
func (a *app) renewInTime(ctx context.Context, c *client.Client, id *client.Identity) {
	if !id.Ages(time.Now()) {
		return
	}
	if fresh, err := c.Renew(ctx, id); err == nil {
		_ = fresh.Save(a.home) // the old one is still in place when this fails
	}
}
