package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/databox-lockbox/lockbox/configs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/config"
)

// Exit codes of lockboxd.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2 // typed wrong, or a configuration that cannot be used
)

// errUsage marks what was typed or configured wrong.
var errUsage = errors.New("usage")

type usageError struct{ error }

func (usageError) Is(target error) bool { return target == errUsage }
func (e usageError) Unwrap() error      { return e.error }

// Main is the lockboxd program. It returns the exit code.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newCommand().ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(os.Stderr, "lockboxd: "+oneLine(err))
	if errors.Is(err, errUsage) {
		return exitUsage
	}
	return exitFailed
}

// oneLine is the text of an error: on one line, unless several things are wrong
// with a configuration.
func oneLine(err error) string {
	text := err.Error()
	if bad, ok := errors.AsType[*configs.Error](err); ok && len(bad.Problems) > 1 {
		return text
	}
	return strings.Join(strings.Fields(text), " ")
}

func newCommand() *cobra.Command {
	var file string
	root := &cobra.Command{
		Use:   "lockboxd",
		Short: "The control plane of Customer Lockbox for Data Box",
		Long: `The control plane: orders, tickets, requests, key custody, activity log, and the
tunnels that devices dial.

The first start on an empty data directory makes the authorities, the keys and
the first administrator, whose login token is left in first-admin.token.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see '%s --help'", err, c.CommandPath())}
	})
	root.PersistentFlags().StringVar(&file, "config", "/etc/lockboxd/lockboxd.yaml", "configuration file")
	load := func() (Config, error) {
		cfg, err := LoadConfig(file)
		if err != nil {
			return cfg, usageError{err}
		}
		return cfg, nil
	}
	root.AddCommand(serveCommand(load), backupCommand(load), restoreCommand(load), checkCommand(load, &file), versionCommand())
	return root
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s does not know %q; see '%s --help'", c.CommandPath(), args[0], c.CommandPath())}
	}
	return nil
}

func serveCommand(load func() (Config, error)) *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load()
			if err != nil {
				return err
			}
			if err := protectMemory(); err != nil {
				return err
			}
			c, err := New(cfg, Options{Log: newLogger(cfg.Log)})
			if err != nil {
				return err
			}
			return c.Run(cmd.Context())
		},
	}
}

func backupCommand(load func() (Config, error)) *cobra.Command {
	var out string
	var opts BackupOptions
	c := &cobra.Command{
		Use:   "backup --out FILE",
		Short: "Write the store, all keys and the recordings to a file; the daemon may be running",
		Long: `Write the store, all keys and the recordings to a new file, mode 0600; the daemon may
be running.
With keys.service local the master key is in it: the file opens every disk in
custody that is not under its customer's key, and holds what lets into their storage
accounts. Keep it like the disks themselves.
Keys in a token or in a vault are not in it: back them up as their makers say, or
the backup opens nothing.
Recordings are in it as far as they had come, and go on from there after a restore.
They make it as large as they are: with --without-recordings they are left out. Then
copy the folder recordings of data_dir after the backup was made (its files only grow,
until they are deleted for their age), and put it back before a restored lockboxd serves.
What a restored one misses, devices send again that still keep it.
Wrappings that an order's former key made are in backups of before it moved, and
credentials that were replaced or destroyed in those of before that: destroy such
backups once the customer relies on it.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load()
			if err != nil {
				return err
			}
			if out == "" {
				return usageError{errors.New("--out is missing: name the file to write")}
			}
			return Backup(cmd.Context(), cfg, out, opts)
		},
	}
	c.Flags().StringVar(&out, "out", "", "new file for the backup")
	c.Flags().BoolVar(&opts.WithoutRecordings, "without-recordings", false, "leave the recordings out")
	return c
}

func restoreCommand(load func() (Config, error)) *cobra.Command {
	var in string
	c := &cobra.Command{
		Use:   "restore --in FILE",
		Short: "Unpack a backup into an empty data directory",
		Args:  noArgs,
		RunE: func(_ *cobra.Command, _ []string) error {
			cfg, err := load()
			if err != nil {
				return err
			}
			if in == "" {
				return usageError{errors.New("--in is missing: name the backup")}
			}
			return Restore(cfg, in)
		},
	}
	c.Flags().StringVar(&in, "in", "", "the backup")
	return c
}

func checkCommand(load func() (Config, error), file *string) *cobra.Command {
	return &cobra.Command{
		Use:   "check-config",
		Short: "Say whether the configuration file can be used",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := load()
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), *file+" is fine")
			}
			return err
		},
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), Version) },
	}
}

// newLogger makes the logger that a configuration asks for.
func newLogger(cfg config.Log) zerolog.Logger {
	level, err := zerolog.ParseLevel(cfg.Level)
	if err != nil {
		level = zerolog.InfoLevel // checked when the configuration was loaded
	}
	log := zerolog.New(os.Stderr)
	if cfg.Format == "console" {
		log = log.Output(zerolog.ConsoleWriter{Out: os.Stderr, TimeFormat: time.RFC3339, NoColor: !term.IsTerminal(int(os.Stderr.Fd()))})
	}
	return log.Level(level).With().Timestamp().Logger()
}
