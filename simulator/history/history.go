// Package history plays random histories of people, clocks, crashes and cuts on
// the real programs, and holds what the devices do against what they may.
//
//   - The control plane and every agent are processes of their own, which are
//     killed; the lines between them are cut; the devices' clocks are set.
//   - People act through the public API, as any client does. An act whose answer
//     did not come may have happened or not, and counts as either.
//   - The devices are bare and have one disk each. Somebody looks at their locks
//     all the time: what is open must be allowed at that moment, by the customer,
//     by the clock, and by the tunnel.
//   - At its end, a history's log is verified whole, and holds an intent for every
//     opening that was seen.
package history

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/simulator/fleet"
	"github.com/databox-lockbox/lockbox/simulator/profile"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// The times of a history. They are short, for everything waits for them.
const (
	expiry  = 5 * time.Second         // of a request that nobody answers
	deadMan = 2 * time.Second         // without an answer from the control plane, a device locks
	longest = 12 * time.Second        // of an access; at least three seconds
	slack   = 2500 * time.Millisecond // for machines with much else to do
)

// Config says how much is played.
type Config struct {
	Dir       string // for the world; made
	Histories int    // in all; each has a device of its own
	Lanes     int    // so many are played side by side
	Steps     int    // acts of a history
	Seed      uint64 // what the acts are drawn from; what came of them depends on time too
}

// Report is what came of it.
type Report struct {
	Histories  int
	Acts       map[string]int        // that were tried
	Answers    map[protocol.Code]int // to executions; "" is a yes
	Openings   int                   // that were seen
	Looks      int                   // at locks
	Violations []string              // of what must hold; there must be none
}

// play is a run.
type play struct {
	cfg   Config
	w     *world.World
	crew  *world.Crew
	guard sync.RWMutex // held for writing while the control plane is started again

	mu      sync.Mutex // guards what follows
	control *fleet.Process
	down    time.Time // since when the control plane is, zero if it is up
	up      time.Time // when it came up last
	report  Report
	seen    []byte // the newest checkpoint of the log that was seen, signed
	logKey  string
}

// Run plays the histories. An error says that they could not be played; what did
// not hold is in the report. Everything it started has ended when it returns.
func Run(ctx context.Context, cfg Config) (_ Report, err error) {
	if cfg.Histories < 1 || cfg.Lanes < 1 || cfg.Steps < 1 {
		return Report{}, errors.New("want at least one history, lane and step")
	}
	p := &play{cfg: cfg, report: Report{Acts: make(map[string]int), Answers: make(map[protocol.Code]int)}}
	sku, err := profile.Get("databox")
	if err != nil {
		return p.report, err
	}
	if p.w, err = world.New(world.Config{Dir: cfg.Dir, Profile: sku, DeadMan: deadMan}); err != nil {
		return p.report, err
	}
	defer func() { err = errors.Join(err, p.w.RemoveRun()) }()
	if err := p.w.WriteControlConfig(expiry); err != nil {
		return p.report, err
	}
	if p.control, err = fleet.StartControlPlane(ctx, p.w.ControlConfig()); err != nil {
		return p.report, err
	}
	defer func() { err = errors.Join(err, p.control.Stop()) }()
	if p.crew, err = p.w.Register(ctx); err != nil {
		return p.report, err
	}
	defer p.crew.Close()

	numbers := make(chan int, cfg.Histories)
	for n := range cfg.Histories {
		numbers <- n + 1
	}
	close(numbers)
	lanes, playing := errgroup.WithContext(ctx)
	for range min(cfg.Lanes, cfg.Histories) {
		lanes.Go(func() error {
			for n := range numbers {
				if err := p.history(playing, n); err != nil {
					return fmt.Errorf("history %d of seed %d: %w", n, cfg.Seed, err)
				}
			}
			return nil
		})
	}
	if err := lanes.Wait(); err != nil {
		return p.report, err
	}
	return p.report, p.checkLog(ctx)
}

// history plays one, on a device of its own.
func (p *play) history(ctx context.Context, n int) (err error) {
	l := &lane{
		play: p, name: fmt.Sprintf("history %d of seed %d", n, p.cfg.Seed), rng: rand.New(rand.NewPCG(p.cfg.Seed, uint64(n))),
		serial: protocol.DeviceSerial(fmt.Sprintf("HIS%05d", n)), ended: make(map[string]string),
	}
	if err := l.begin(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.end()) }()
	looking, stop := context.WithCancel(ctx)
	var looks sync.WaitGroup
	looks.Go(func() { l.look(looking) })
	for range p.cfg.Steps {
		if err := l.step(ctx); err != nil {
			stop()
			looks.Wait()
			return err
		}
	}
	stop()
	looks.Wait()
	p.mu.Lock()
	p.report.Histories++
	p.mu.Unlock()
	return ctx.Err()
}

// act counts an act that is tried.
func (p *play) act(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Acts[name]++
}

// violated notes that something did not hold.
func (p *play) violated(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Violations = append(p.report.Violations, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// answered counts what an execution was answered with.
func (p *play) answered(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	code := protocol.CodeOf(err)
	if err != nil && code == "" {
		code = protocol.CodeUnavailable
	}
	p.report.Answers[code]++
}

// killControl kills the control plane, and starts it again after a while. The
// histories that are played beside this one have to live with it.
func (p *play) killControl(ctx context.Context, after time.Duration) error {
	if !p.guard.TryLock() {
		return nil // somebody else does
	}
	defer p.guard.Unlock()
	p.mu.Lock()
	p.down = time.Now()
	p.mu.Unlock()
	if err := p.control.Kill(); err != nil {
		return err
	}
	wait(ctx, after)
	control, err := fleet.StartControlPlane(ctx, p.w.ControlConfig())
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.control, p.down, p.up = control, time.Time{}, time.Now()
	return nil
}

// downSince is since when the control plane is down, zero if it is up, and since
// when it is up.
func (p *play) downSince() (down, up time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.down, p.up
}

// checkLog verifies the whole log, from the last checkpoint that was seen on, and
// that no opening lacks its intent.
func (p *play) checkLog(ctx context.Context) error {
	if err := p.remember(ctx); err != nil {
		return err
	}
	stream, err := p.crew.As("admin").Audit.ExportLog(ctx, &lockboxv1.ExportLogRequest{})
	if err != nil {
		return err
	}
	defer stream.Close()
	var export bytes.Buffer
	for {
		part, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		export.Write(part.Data)
	}
	report, err := auditlog.Verify(&export, p.logKey, p.seen)
	if err != nil {
		p.violated("the activity log does not verify: %v", err)
		return nil
	}
	if n := report.Operations[auditlog.OpUnlockIntent]; n < int64(p.report.Openings) {
		p.violated("%d openings were seen, and %d intents are on record", p.report.Openings, n)
	}
	return nil
}

// remember keeps the newest checkpoint, which must go on from the one before.
func (p *play) remember(ctx context.Context) error {
	p.mu.Lock()
	seen, key := p.seen, p.logKey
	p.mu.Unlock()
	var older auditlog.Checkpoint
	if seen != nil {
		var err error
		if older, err = openCheckpoint(seen, key); err != nil {
			return err
		}
	}
	resp, err := p.crew.As("admin").Audit.GetCheckpoint(ctx, &lockboxv1.GetCheckpointRequest{ConsistentWith: older.Size})
	if err != nil {
		return err
	}
	newer, err := openCheckpoint(resp.Checkpoint, resp.VerifierKey)
	if err != nil {
		return err
	}
	if older.Size > 0 {
		if err := auditlog.CheckConsistency(resp.Consistency, older, newer); err != nil {
			p.violated("the activity log is not the one that was seen before: %v", err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen, p.logKey = resp.Checkpoint, resp.VerifierKey
	return nil
}

// wait waits, less if ctx ends.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
