// Package cli is the databox-agent command line, for datacenter staff at the
// device: run, enroll, status, lock.
package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/databox-lockbox/lockbox/agent/internal/config"
	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
)

// Exit codes of the command.
const (
	ExitOK      = 0
	ExitFailed  = 1
	ExitUsage   = 2 // typed wrong, or a configuration that cannot be used
	ExitRefused = 3 // refused, with a code
)

// Program is what the commands call of the agent.
type Program struct {
	// Run runs the agent until ctx ends.
	Run func(ctx context.Context, cfg config.Config) error
	// ReadPolicy checks a trust policy and returns its digest and what people
	// compare it by.
	ReadPolicy func(envelope []byte) (digest, description string, err error)
	// Enroll installs the trust policy and enrols the node.
	Enroll func(ctx context.Context, cfg config.Config, server, token string, policy []byte) error
	// Status asks the running agent how the node is.
	Status func(ctx context.Context, cfg config.Config) (*devicev1.NodeStatus, error)
	// Lock has the running agent lock the node.
	Lock func(ctx context.Context, cfg config.Config) (*devicev1.NodeStatus, error)
	// Keeper is the hidden process that cleans up after a killed agent.
	Keeper func() error
	// NFS is the hidden process that serves shares over NFS.
	NFS func() error
}

// The arguments that make the program its own keeper, and its own NFS server.
const (
	KeeperCommand = "keeper"
	NFSCommand    = "nfs-server"
)

// Main runs the command with the process's arguments and returns its exit code.
func Main(p Program) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return Run(ctx, p, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// Run runs the command with args and returns its exit code.
func Run(ctx context.Context, p Program, args []string, in io.Reader, out, errOut io.Writer) int {
	root := newRoot(p)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	fmt.Fprintln(errOut, "databox-agent: "+err.Error())
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

type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

type app struct {
	Program
	configFile string
}

func newRoot(p Program) *cobra.Command {
	a := &app{Program: p}
	root := &cobra.Command{
		Use:   "databox-agent",
		Short: "Keeps a Data Box node locked, and unlocks it when the customer said yes",
		Long: `Keeps the disks and shares of a Data Box node locked. It verifies approvals
itself; no command here, and nobody in the datacenter, can unlock.

  databox-agent enroll   once, with a join token and the customer's trust policy
  databox-agent run      the daemon
  databox-agent status   how the node is
  databox-agent lock     lock it now

Exit codes: 0 done, 1 failed, 2 typed wrong or a bad configuration, 3 refused (the
code stands in brackets).`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q; see 'databox-agent --help'", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see '%s --help'", err, c.CommandPath())}
	})
	root.PersistentFlags().StringVar(&a.configFile, "config", "/etc/databox-agent/agent.yaml", "configuration file")
	root.AddCommand(a.runCommand(), a.enrollCommand(), a.statusCommand(), a.lockCommand(), a.checkConfigCommand(), a.keeperCommand(), a.nfsCommand())
	return root
}

func (a *app) load() (config.Config, error) {
	c, err := config.Load(a.configFile)
	if err != nil {
		return c, usageError{err}
	}
	return c, nil
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no arguments, got %q", c.CommandPath(), args)
	}
	return nil
}

func (a *app) runCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the daemon",
		Long: `Run the daemon, on an enrolled node. Whatever it finds open at its start, it locks;
before it ends, it locks.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			return a.Run(cmd.Context(), cfg)
		},
	}
}

func (a *app) checkConfigCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check-config",
		Short: "Say whether the configuration file can be used",
		Long:  "Say whether the configuration file can be used, and everything that is wrong with it.",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := a.load()
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), a.configFile+" is fine")
			}
			return err
		},
	}
}

func (a *app) keeperCommand() *cobra.Command {
	return &cobra.Command{
		Use:    KeeperCommand,
		Short:  "Clean up after an agent that was killed (started by the agent itself)",
		Hidden: true,
		Args:   noArgs,
		RunE:   func(*cobra.Command, []string) error { return a.Keeper() },
	}
}

func (a *app) nfsCommand() *cobra.Command {
	return &cobra.Command{
		Use:    NFSCommand,
		Short:  "Serve shares over NFS (started by the agent itself)",
		Hidden: true,
		Args:   noArgs,
		RunE:   func(*cobra.Command, []string) error { return a.NFS() },
	}
}

func (a *app) enrollCommand() *cobra.Command {
	var server, tokenFile, policyFile, digest string
	c := &cobra.Command{
		Use:   "enroll --server HOST:PORT --token-file FILE --trust-policy FILE",
		Short: "Install the customer's trust policy and enrol the node",
		Long: `Install the customer's trust policy and enrol the node, once.

The digest of the policy is printed: compare it with the one the customer gave
you by another way, and confirm, or give that one as --digest. The policy says
whose signatures unlock this node; it can only be replaced by one that its own
signers signed. The node's key is made here and never leaves it.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			if server == "" || tokenFile == "" || policyFile == "" {
				return usagef("--server, --token-file and --trust-policy are needed; see 'databox-agent enroll --help'")
			}
			token, err := readSmall(cmd, tokenFile)
			if err != nil {
				return err
			}
			policy, err := readSmall(cmd, policyFile)
			if err != nil {
				return err
			}
			if err := a.confirmPolicy(cmd, policy, digest); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			if err := a.Enroll(ctx, cfg, server, strings.TrimSpace(string(token)), policy); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Node %s is enrolled. Start it with 'databox-agent --config %s run'.\n", cfg.NodeID(), a.configFile)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&server, "server", "", "address of the control plane's API, host:port")
	f.StringVar(&tokenFile, "token-file", "", "file with the join token; - for standard input")
	f.StringVar(&policyFile, "trust-policy", "", "file with the signed trust policy")
	f.StringVar(&digest, "digest", "", "digest of the trust policy, as the customer told you; without it you are asked")
	return c
}

// maxFile is the longest file that is read: tokens and trust policies are
// smaller.
const maxFile = 1 << 20

// readSmall reads a file, or standard input for "-".
func readSmall(cmd *cobra.Command, name string) ([]byte, error) {
	r := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s is too large: want at most %d bytes", name, maxFile)
	}
	return data, err
}

// confirmPolicy shows the policy and has its digest compared.
func (a *app) confirmPolicy(cmd *cobra.Command, policy []byte, want string) error {
	digest, description, err := a.ReadPolicy(policy)
	if err != nil {
		return fmt.Errorf("cannot use the trust policy: %w", err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s\nDigest of the trust policy: %s\n", description, digest)
	if want != "" {
		if want != digest {
			return protocol.Errorf(protocol.CodePolicyDigest, "this trust policy is not the one with digest %s: nothing was installed, ask the customer for the right file", want)
		}
		return nil
	}
	fmt.Fprint(cmd.OutOrStdout(), "Is this the digest the customer told you? Type yes to go on: ")
	answer := make(chan string, 1)
	go func() { // ends with the process: what waits for people cannot be taken back
		line, _ := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 1<<10)).ReadString('\n') // what cannot be read is no yes
		answer <- strings.TrimSpace(line)
	}()
	select {
	case <-cmd.Context().Done():
		fmt.Fprintln(cmd.OutOrStdout())
		return errors.New("interrupted: nothing was installed")
	case yes := <-answer:
		if yes != "yes" {
			return usagef("stopped, nothing was installed: give --digest where nobody can be asked")
		}
		return nil
	}
}

func (a *app) statusCommand() *cobra.Command {
	return a.askCommand("status", "Show how the node is: lock, lease, disks, shares, sessions, job",
		`Ask the running agent how the node is: lock, lease, disks and what the machine shows
open of them, shares, sessions, copy job.`, a.Status)
}

func (a *app) lockCommand() *cobra.Command {
	return a.askCommand("lock", "Lock the node now; the approval is not spent",
		`Lock the node now, without asking anybody: shares and connections of sessions are
closed, disks locked, keys wiped. The approval is not spent: within its time it can
be executed again, until it is revoked or the session is disabled.`, a.Lock)
}

// outputs are the ways to print.
var outputs = []string{"text", "json", "raw"}

// askCommand is a command that asks the running agent and shows its answer.
func (a *app) askCommand(use, short, long string, ask func(context.Context, config.Config) (*devicev1.NodeStatus, error)) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Long:  long,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(outputs, output) {
				return usagef("--output is %q: want one of %s", output, strings.Join(outputs, ", "))
			}
			cfg, err := a.load()
			if err != nil {
				return err
			}
			s, err := ask(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			switch output {
			case "json":
				return showJSON(cmd.OutOrStdout(), s, rpc.Plain)
			case "raw":
				return showJSON(cmd.OutOrStdout(), s, rpc.Raw)
			}
			return showText(cmd.OutOrStdout(), s)
		},
	}
	c.Flags().StringVar(&output, "output", "text", "text; json, with times in RFC 3339; or raw, JSON as the agent sends it")
	return c
}

func showJSON(w io.Writer, s *devicev1.NodeStatus, as func(proto.Message) (map[string]any, error)) error {
	value, err := as(s)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(value)
}

func showText(w io.Writer, s *devicev1.NodeStatus) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, value)
		}
	}
	row("Node", fmt.Sprintf("%s/%d", s.Serial, s.Node))
	row("Lock", strings.TrimSpace(s.State+" "+s.Purpose))
	if s.LeaseEnd != 0 {
		row("Lease ends", protocol.Until(time.Unix(s.LeaseEnd, 0), time.Now()))
	}
	row("Last relock", strings.TrimSpace(s.LastRelockReason+" "+s.LastRelockDetail))
	row("Fault", s.Fault)
	row("Trust policy", strings.TrimSpace(fmt.Sprintf("version %d %s", s.TrustPolicyVersion, s.TrustPolicyDigest)))
	for _, d := range s.Disks {
		row("Disk "+d.Disk, fmt.Sprintf("%s  %s  %s", d.State, d.Method, strings.Join(open(d), " ")))
	}
	for _, sh := range s.Shares {
		row("Share "+sh.Name, strings.TrimSpace(sh.State+" "+sh.Protocol+" "+sh.Address))
	}
	for _, sv := range s.ShareServices {
		row("Shares by "+sv.Protocol, strings.TrimSpace(sv.State+" "+sv.Address+" "+sv.Detail))
	}
	for _, one := range s.Sessions {
		row("Session "+one.Session, fmt.Sprintf("%s, %d connections, until %s", one.Engineer, one.Connections, protocol.Until(time.Unix(one.Expires, 0), time.Now())))
	}
	if j := s.Job; j.GetState() != "" {
		row("Copy job", fmt.Sprintf("%s, %d of %d files, %d not; %s", j.State, j.FilesDone, j.FilesTotal, j.FilesErrored,
			protocol.Transfer(j.BytesDone, j.BytesTotal, j.BytesPerSecond)))
	}
	return t.Flush()
}

// open lists what the machine shows open of a disk.
func open(d *devicev1.DiskStatus) (list []string) {
	for _, group := range [][]string{d.Exports, d.LoopDevices, d.Mounts} {
		list = append(list, group...)
	}
	return list
}
