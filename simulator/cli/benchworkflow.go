package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/simulator/figure"
	"github.com/databox-lockbox/lockbox/simulator/fleet"
	"github.com/databox-lockbox/lockbox/simulator/hostile"
)

// What requests_per_s is measured with.
const (
	requestDevices = 16
	requestsEach   = 8
)

// benchWorkflow are the flags of the command.
type benchWorkflow struct {
	attacks, devices int
	seed             uint64
}

func benchWorkflowCommand() *cobra.Command {
	var b benchWorkflow
	c := &cobra.Command{
		Use:   "bench-workflow",
		Short: "Attack devices with every key but the customer's, and measure requests",
		Long: `Attack devices with every key but the customer's, and measure requests.

  hostile_attacks   attacks of a control plane that has every service key, on real agents without mounts
  hostile_opened    those that opened a device: if it is not 0, they are printed and the command fails
  requests_per_s    requests that are made, approved by both sides, executed and revoked, on bare devices,
                    by a control plane over SQLite

One line each on standard output; on standard error, a table of the kinds of attack and
of the codes they were refused with. For each kind, the same with nothing wrong opens.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return b.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.IntVar(&b.attacks, "attacks", 100_000, "how many attacks, in all")
	f.IntVar(&b.devices, "devices", 4, "how many devices are attacked side by side")
	f.Uint64Var(&b.seed, "seed", 0, "what the attacks are drawn from; any if 0")
	return c
}

func (b benchWorkflow) run(ctx context.Context, out, note io.Writer) (err error) {
	if b.attacks < 1 || b.devices < 1 || b.devices > 64 {
		return usageError{fmt.Errorf("--attacks %d --devices %d: want at least 1, and at most 64 devices", b.attacks, b.devices)}
	}
	dir, err := os.MkdirTemp("", "hostile-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for b.seed == 0 {
		b.seed = rand.Uint64()
	}
	fmt.Fprintln(out, machine())
	began := time.Now()
	r, err := hostile.Run(ctx, hostile.Config{Dir: dir, Devices: b.devices, Attacks: b.attacks, Seed: b.seed})
	if err := errors.Join(err, r.Print(note)); err != nil {
		return err
	}
	fmt.Fprintf(note, "seed %d: %d controls opened; %s in all\n", b.seed, r.Controls, time.Since(began).Round(time.Second))
	fmt.Fprintln(out, figure.Figure{Name: "hostile_attacks", Value: float64(r.Attacks), Unit: "attacks"})
	fmt.Fprintln(out, figure.Figure{Name: "hostile_opened", Value: float64(len(r.Opened)), Unit: "attacks"})
	for _, o := range r.Opened {
		fmt.Fprintln(note, o)
	}
	if len(r.Opened) > 0 {
		return fmt.Errorf("%d attacks opened a device", len(r.Opened))
	}
	rate, err := fleet.RequestRate(ctx, filepath.Join(dir, "requests"), requestDevices, requestsEach, note)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, rate)
	return nil
}
