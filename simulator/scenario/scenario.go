// Package scenario plays the story of the product with the real programs: the
// daemons as processes of their own, the lockbox command, stock ssh, smbclient,
// and foreign judges of the disks.
//
// Every step says what was tried and what came back, and fails unless that is
// what it must be. Whatever happens, nothing is left behind: no process, mount
// or loop device.
package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/simulator/profile"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// Config says how the story is played.
type Config struct {
	Bin     string          // folder with lockboxd, databox-agent and lockbox
	Dir     string          // of the world; made if missing
	Profile profile.Profile // of the device
	Out     io.Writer

	// After, if set, is called after every step, to disturb the story: kill a
	// program and start it again, say. It is told the step's number.
	After func(ctx context.Context, s *Story, step string) error
}

// Story is the story while it is played.
type Story struct {
	cfg   Config
	w     *world.World
	procs *processes
	keys  map[string]world.Keys
	out   *report

	// What one step finds and another needs.
	logKey       string // verifier of the activity log
	policyDigest string // of the device's trust policy
	ticket       string
	session      string
	ssh          string // stock ssh into the session, as a shell reads it
	number       string // of the main request
	requestID    string
	statement    []byte
	provider     []byte // envelope of the internal approval
	customer     []byte // envelope of the customer's decision
	other        foreignApproval
	captured     []byte              // an order as it went over the wire
	volumeKeys   map[string][][]byte // halves of the disks' volume keys
	access       []secret            // parts of what was handed over that lets into accounts
	password     string              // recovery password of the first disk, which step 16 makes worthless
}

// step is one step of the story.
type step struct {
	number string
	title  string
	play   func(*Story, context.Context)
}

// steps is the story, in order.
var steps = []step{
	{"1", "the control plane starts on an empty directory, and again", (*Story).startControlPlane},
	{"2", "tenant, subscription, Lockbox, people", (*Story).registerEverybody},
	{"3", "an order, its device with real BitLocker disks, the trust policy", (*Story).prepareOrder},
	{"4", "the agents enrol and dial out; the customer consents to the data copy", (*Story).enrol},
	{"5", "the copy job runs, halts, and the disks are locked again", (*Story).copyAndHalt},
	{"6", "a ticket, and a support session on a locked device", (*Story).openSession},
	{"7", "a request: evaluated, approved internally, the customer notified", (*Story).raiseRequest},
	{"8a", "a hostile control plane without the customer's decision", (*Story).attackWithoutDecision},
	{"9", "the customer looks, and approves with their SSH key", (*Story).approve},
	{"8b", "its controls, and a hostile control plane with the customer's decision", (*Story).attackWithDecision},
	{"10", "the engineer executes: disks unlocked, shares open", (*Story).execute},
	{"8c", "a captured order is replayed while unlocked", (*Story).replay},
	{"11", "the engineer moves the misplaced files and prepares to ship", (*Story).repair},
	{"12", "the session is disabled: shares gone, disks locked, certificate useless", (*Story).disableSession},
	{"8d", "a captured order once more, and a spent approval", (*Story).attackSpent},
	{"13", "the job is resumed and completes", (*Story).resume},
	{"14", "a request is denied, one expires; the log is listed and verified", (*Story).sideStories},
	{"15", "a foreign judge opens the disk", (*Story).judge},
	{"16", "the disks are erased: certified, and the judge is refused with the same key", (*Story).erase},
}

// Play plays the story. It returns an error that names the step that did not
// hold, or that something was left behind.
func Play(ctx context.Context, cfg Config) (err error) {
	w, err := world.New(world.Config{Dir: cfg.Dir, Profile: cfg.Profile})
	if err != nil {
		return err
	}
	s := newStory(cfg, w)
	began := time.Now()
	defer func() {
		err = errors.Join(err, s.cleanUp())
		if err == nil {
			fmt.Fprintf(cfg.Out, "\nEvery step held, in %s. Nothing was left behind.\n", time.Since(began).Round(time.Second))
		}
	}()
	for _, st := range steps {
		if err := s.playStep(ctx, st); err != nil {
			return err
		}
		if cfg.After == nil {
			continue
		}
		if err := cfg.After(ctx, s, st.number); err != nil {
			return fmt.Errorf("after step %s: %w", st.number, err)
		}
	}
	return nil
}

func newStory(cfg Config, w *world.World) *Story {
	return &Story{cfg: cfg, w: w, out: newReport(cfg.Out), procs: newProcesses(cfg.Bin, w.LogDir()), volumeKeys: make(map[string][][]byte)}
}

// failure is what a step that does not hold panics with.
type failure struct{ error }

// playStep plays one step. A step says what did not hold by failing.
func (s *Story) playStep(ctx context.Context, st step) (err error) {
	s.out.step(st.number, st.title)
	defer func() {
		p := recover()
		f, ok := p.(failure)
		switch {
		case ok && ctx.Err() != nil:
			err = ctx.Err()
		case ok:
			err = fmt.Errorf("step %s did not hold: %w", st.number, f.error)
			s.out.failed(f.error, s.procs.tails())
		case p != nil:
			panic(p)
		}
	}()
	st.play(s, ctx)
	return ctx.Err()
}

// fail ends the step.
func (s *Story) fail(format string, args ...any) { panic(failure{fmt.Errorf(format, args...)}) }

// must ends the step if err is not nil.
func (s *Story) must(err error) {
	if err != nil {
		panic(failure{err})
	}
}

// hold ends the step unless ok.
func (s *Story) hold(ok bool, format string, args ...any) {
	if !ok {
		s.fail(format, args...)
	}
}

// cleanUp ends what the story started and looks whether anything is left.
func (s *Story) cleanUp() error {
	return errors.Join(s.procs.stopAll(), removeRuns(s.w.Nodes()))
}

// removeRuns removes the run directories of nodes whose agents have ended,
// unless something is still open there.
func removeRuns(nodes []world.Node) (err error) {
	for _, n := range nodes {
		if left := leftOf(n); len(left) > 0 {
			err = errors.Join(err, fmt.Errorf("left behind by node %s: %s", n.ID, strings.Join(left, ", ")))
			continue
		}
		os.RemoveAll(n.Run)
		os.Remove(filepath.Dir(n.Run)) // if it is empty
	}
	return err
}
