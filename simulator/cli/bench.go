package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent"
	"github.com/databox-lockbox/lockbox/simulator/figure"
	"github.com/databox-lockbox/lockbox/simulator/fleet"
)

// bench are the flags of the command.
type bench struct {
	devices, runs int
	only, bin     string
}

func benchCommand() *cobra.Command {
	var b bench
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure unlocking, relocking, and a fleet of idle devices",
		Long: `Measure unlocking, relocking, and a fleet of idle devices.

  approve_to_open_p50, _p99   the customer's decision is sent → shares are open; one device, 4 real disks
  revoke_to_locked_p99        the revocation is sent → the node has confirmed that it is locked
  idle_device_rss             resident memory of the control plane for each idle device, next to raw TLS
  reconnect_N                 the control plane is killed and restarted → all N devices are back

One line each on standard output, progress on standard error. It needs root.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return b.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.IntVar(&b.devices, "devices", 2000, "size of the fleet")
	f.IntVar(&b.runs, "runs", 50, "how often to unlock and lock")
	f.StringVar(&b.only, "only", "", "only the figure with this name")
	f.StringVar(&b.bin, "bin", "", "folder with databox-agent; that of databox-sim if not given")
	return c
}

// partCommand is how [fleet] starts this program again.
func partCommand() *cobra.Command {
	return &cobra.Command{
		Use:    fleet.PartCommand,
		Hidden: true,
		Args:   cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			return fleet.Part(c.Context(), args, os.Stdin, os.Stdout)
		},
	}
}

func (b bench) run(ctx context.Context, out, note io.Writer) (err error) {
	unlocks := []string{"approve_to_open_p50", "approve_to_open_p99", "revoke_to_locked_p99"}
	reconnect := fleet.FigureReconnect + strconv.Itoa(b.devices)
	names := append(slices.Clone(unlocks), fleet.FigureMemory, reconnect)
	switch {
	case b.only != "" && !slices.Contains(names, b.only):
		return usageError{fmt.Errorf("there is no figure %q: want one of %s", b.only, strings.Join(names, ", "))}
	case b.devices < 1 || b.devices > fleet.MaxDevices:
		return usageError{fmt.Errorf("--devices %d: want 1 to %d", b.devices, fleet.MaxDevices)}
	case b.runs < 1:
		return usageError{fmt.Errorf("--runs %d: want at least 1", b.runs)}
	case os.Geteuid() != 0:
		return errors.New("disks are mounted for real, which takes root: run it with sudo")
	}
	dir, err := os.MkdirTemp("", "databox-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	fmt.Fprintln(out, machine())
	wants := func(name string) bool { return b.only == "" || b.only == name }
	show := func(figures []figure.Figure) {
		for _, f := range figures {
			if wants(f.Name) {
				fmt.Fprintln(out, f)
			}
		}
	}
	if slices.ContainsFunc(unlocks, wants) {
		figures, err := fleet.UnlockTimes(ctx, filepath.Join(dir, "unlock"), b.runs, b.keeper(note), note)
		if err != nil {
			return err
		}
		show(figures)
	}
	costs := fleet.Costs{
		Dir: filepath.Join(dir, "fleet"), Devices: b.devices, Memory: wants(fleet.FigureMemory), Reconnect: wants(reconnect),
		Settle: fleet.Settle, Note: note,
	}
	if costs.Memory || costs.Reconnect {
		r := agent.DefaultConfig().Reconnect
		fmt.Fprintf(note, "devices dial again after a random pause of up to %s, doubling up to %s\n", r.Min, r.Max)
		figures, err := costs.Measure(ctx)
		if err != nil {
			return err
		}
		show(figures)
	}
	return nil
}

// keeper is how to start the keeper of the measured agent's mounts, as
// databox-agent does for itself; nil if that program is not there.
func (b bench) keeper(note io.Writer) []string {
	if b.bin == "" {
		self, err := os.Executable()
		if err != nil {
			return nil
		}
		b.bin = filepath.Dir(self)
	}
	program := filepath.Join(b.bin, "databox-agent")
	if _, err := os.Stat(program); err != nil {
		fmt.Fprintf(note, "%s is not there: the agent runs without a keeper of its mounts\n", program)
		return nil
	}
	return []string{program, "keeper"}
}

// machine says what was measured, where, and how.
func machine() string {
	var kernel unix.Utsname
	_ = unix.Uname(&kernel) // it cannot fail with memory of our own
	return fmt.Sprintf("machine=%q cores=%d load=%s kernel=%s go=%s agent=%s commit=%s command=%q",
		cpuModel(), runtime.NumCPU(), load(), unix.ByteSliceToString(kernel.Release[:]), runtime.Version(), agent.Version, commit(), strings.Join(os.Args, " "))
}

func cpuModel() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// load is how many processes wanted to run in the last minute, on average: beside
// a busy machine's figures it says what they are worth.
func load() string {
	data, _ := os.ReadFile("/proc/loadavg")
	minute, _, _ := strings.Cut(string(data), " ")
	return minute
}

// commit is the source that this program was built from, if the build knows.
func commit() string {
	info, _ := debug.ReadBuildInfo()
	if info == nil {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value[:min(12, len(s.Value))]
		}
	}
	return "unknown"
}
