// Package cli is the databox-sim command line: it plays the story, keeps its
// world up, measures, and handles BitLocker images.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/simulator/profile"
	"github.com/databox-lockbox/lockbox/simulator/scenario"
)

// Exit codes of the command. Those above 2 are of 'image'.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitWrongKey = 3
	exitRefused  = 4 // a kind of volume that is not opened here
	exitDamaged  = 5 // or truncated, or no BitLocker volume
)

type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// volumeError is an error about a volume, which has exit codes of its own.
type volumeError struct{ error }

func (e volumeError) Unwrap() error { return e.error }

func exitCode(err error) int {
	var usage usageError
	var volume volumeError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &volume):
		return volume.exitCode()
	}
	return exitFailed
}

func (e volumeError) exitCode() int {
	switch bitlocker.ClassOf(e.error) {
	case bitlocker.ClassWrongKey:
		return exitWrongKey
	case bitlocker.ClassRefused:
		return exitRefused
	case bitlocker.ClassDamaged, bitlocker.ClassNotBitLocker:
		return exitDamaged
	}
	return exitFailed
}

// Main runs the command with the process's arguments and returns its exit code.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newRoot().ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(os.Stderr, "databox-sim: "+oneLine(err))
	return exitCode(err)
}

// oneLine is what err says, of however many errors it consists.
func oneLine(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "databox-sim",
		Short: "Simulated devices with real BitLocker disks, and the story played on them",
		Long: `Simulated devices with real BitLocker disks, and the story played on them.

  databox-sim demo            play the story with the real programs, and check every step
  databox-sim up              play it until the copy job has halted, and leave it running
  databox-sim down            end what 'up' left running
  databox-sim bench           measure unlocking, relocking, and a fleet of idle devices
  databox-sim bench-disk      measure the disk engine beside its peers
  databox-sim bench-session   measure sessions, shares and the upload beside their peers
  databox-sim bench-workflow  attack devices with every key but the customer's, and measure requests
  databox-sim image           make, read, check and re-key BitLocker images`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see '%s --help'", err, c.CommandPath())}
	})
	root.AddCommand(demoCommand(), upCommand(), downCommand(), benchCommand(), partCommand(), benchDiskCommand(), benchSessionCommand(), benchWorkflowCommand(), unlockPartCommand(), imageCommand())
	return root
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s does not know %q; see '%s --help'", c.CommandPath(), args[0], c.CommandPath())}
	}
	return nil
}

// options are what demo and up have in common.
type options struct {
	profile, bin, dir string
	diskMiB           int64
}

func (o *options) flags(c *cobra.Command, dir string) {
	f := c.Flags()
	f.StringVar(&o.profile, "profile", "databox", "kind of device: "+strings.Join(profile.Names, ", "))
	f.Int64Var(&o.diskMiB, "disk-size", profile.DefaultDiskSize>>20, "size of each simulated disk in MiB, 16 to 65536")
	f.StringVar(&o.bin, "bin", "", "folder with the programs; that of databox-sim if not given")
	f.StringVar(&o.dir, "dir", dir, "folder of the world")
}

func (o *options) config() (scenario.Config, error) {
	if os.Geteuid() != 0 {
		return scenario.Config{}, errors.New("the devices' disks are mounted for real, which takes root: run it with sudo")
	}
	p, err := profile.Get(o.profile)
	if err != nil {
		return scenario.Config{}, usageError{err}
	}
	if o.diskMiB < 16 || o.diskMiB > 64<<10 {
		return scenario.Config{}, usageError{fmt.Errorf("--disk-size %d is out of range: give 16 to 65536 MiB", o.diskMiB)}
	}
	p.DiskSize = o.diskMiB << 20
	if o.bin == "" {
		self, err := os.Executable()
		if err != nil {
			return scenario.Config{}, err
		}
		o.bin = filepath.Dir(self)
	}
	return scenario.Config{Bin: o.bin, Dir: o.dir, Profile: p, Out: os.Stdout}, nil
}

func demoCommand() *cobra.Command {
	o := &options{}
	c := &cobra.Command{
		Use:   "demo",
		Short: "Play the story with the real programs, and check every step",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			cfg, err := o.config()
			if err != nil {
				return err
			}
			if cfg.Dir == "" {
				if cfg.Dir, err = os.MkdirTemp("", "databox-demo-"); err != nil {
					return err
				}
				defer func() { err = errors.Join(err, os.RemoveAll(cfg.Dir)) }()
			}
			return scenario.Play(cmd.Context(), cfg)
		},
	}
	o.flags(c, "")
	return c
}

func upCommand() *cobra.Command {
	o := &options{}
	c := &cobra.Command{
		Use:   "up",
		Short: "Play the story until the copy job has halted, and leave it running",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := o.config()
			if err != nil {
				return err
			}
			return scenario.Up(cmd.Context(), cfg)
		},
	}
	o.flags(c, ".world")
	return c
}

func downCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "down",
		Short: "End what 'up' left running, and remove its world",
		Args:  noArgs,
		RunE:  func(*cobra.Command, []string) error { return scenario.Down(dir) },
	}
	c.Flags().StringVar(&dir, "dir", ".world", "folder of the world")
	return c
}
