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
	"github.com/databox-lockbox/lockbox/simulator/history"
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
	played           int
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
  model_histories   random histories of people, clocks, crashes and cuts on the real programs: if one does
                    not go as the model of the lock allows, that is printed and the command fails
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
	f.IntVar(&b.played, "histories", 40, "how many histories are played")
	f.Uint64Var(&b.seed, "seed", 0, "what attacks and histories are drawn from; any if 0")
	return c
}

func (b benchWorkflow) run(ctx context.Context, out, note io.Writer) (err error) {
	if b.attacks < 1 || b.played < 1 || b.devices < 1 || b.devices > 64 {
		return usageError{fmt.Errorf("--attacks %d --histories %d --devices %d: want at least 1, and at most 64 devices", b.attacks, b.played, b.devices)}
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
	if err := b.histories(ctx, filepath.Join(dir, "history"), out, note); err != nil {
		return err
	}
	rate, err := fleet.RequestRate(ctx, filepath.Join(dir, "requests"), requestDevices, requestsEach, note)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, rate)
	return nil
}

// What histories are played with.
const (
	historyLanes = 4
	historySteps = 40
)

func (b benchWorkflow) histories(ctx context.Context, dir string, out, note io.Writer) error {
	r, err := history.Run(ctx, history.Config{Dir: dir, Histories: b.played, Lanes: historyLanes, Steps: historySteps, Seed: b.seed})
	if err != nil {
		return err
	}
	fmt.Fprintf(note, "%d openings, %d looks at locks; acts %v; executions answered with %v\n", r.Openings, r.Looks, r.Acts, r.Answers)
	fmt.Fprintln(out, figure.Figure{Name: "model_histories", Value: float64(r.Histories), Unit: "histories"})
	for _, v := range r.Violations {
		fmt.Fprintln(note, v)
	}
	if len(r.Violations) > 0 {
		return fmt.Errorf("%d times something did not hold", len(r.Violations))
	}
	return nil
}
