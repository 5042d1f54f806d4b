// Package hostile is the control plane in an attacker's hands, who tries to open
// devices without the customer: by the hundred thousand.
//
// The rules:
//
//   - The attacker has what the control plane has: the authorities, the service
//     key, the log's key, the disks' keys, all that was ever signed. The provider's
//     approvers help too. Only the customers' keys are missing.
//   - The devices are real agents in this process, without mounts: their lock,
//     state, journal and BitLocker volume are the ones that ship.
//   - Every kind of attack has a control, the same with nothing wrong, that opens.
//   - An attack that is neither refused with a code of the lock nor opens is an
//     error of the harness: it proves nothing.
package hostile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/databox-lockbox/lockbox/protocol"
)

// callTimeout bounds one attack.
const callTimeout = 30 * time.Second

// rareShare is one in how many attacks is of a rare kind.
const rareShare = 500

// Config says how much is tried.
type Config struct {
	Dir     string // for the devices; short, their sockets lie there
	Devices int    // attacked side by side; 0: 4
	Attacks int    // in all; at least one of each kind on each device
	Seed    uint64 // the same seed makes the same attacks
}

// Report is what came of it.
type Report struct {
	Attacks  int
	Controls int
	Codes    map[string]map[protocol.Code]int // attacks by kind, then by the code of the refusal
	Opened   []Opening                        // attacks that opened a device: there must be none
}

// Opening is an attack that opened a device.
type Opening struct {
	Seed   uint64
	Device string
	Number int // of the attack on this device
	Kind   string
	Sent   string // the unlock request, as JSON: it holds sealed keys only
}

// String says how to see it again.
func (o Opening) String() string {
	return fmt.Sprintf("seed %d, device %s, attack %d, %s: opened by %s", o.Seed, o.Device, o.Number, o.Kind, o.Sent)
}

// fight is a run.
type fight struct {
	cfg    Config
	plane  *plane
	people people
	common []kind
	rare   []kind

	mu     sync.Mutex
	report Report // guarded by mu
}

// Run makes the devices and attacks them. It returns an error if a control did
// not open, or an attack was answered with something else than a refusal; what
// was opened is in the report. Everything it started has ended when it returns.
func Run(ctx context.Context, cfg Config) (Report, error) {
	if cfg.Devices == 0 {
		cfg.Devices = 4
	}
	f := &fight{cfg: cfg, report: Report{Codes: make(map[string]map[protocol.Code]int)}}
	for _, k := range kinds() {
		if k.try == nil {
			f.common = append(f.common, k)
		} else {
			f.rare = append(f.rare, k)
		}
	}
	var err error
	if f.plane, err = newPlane(cfg.Dir); err != nil {
		return f.report, err
	}
	if f.people, err = newPeople(filepath.Join(cfg.Dir, "people")); err != nil {
		return f.report, err
	}
	serving, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- f.plane.run(serving) }()
	err = f.withDevices(ctx)
	stop()
	return f.report, errors.Join(err, <-served)
}

// withDevices runs the devices while they are attacked.
func (f *fight) withDevices(ctx context.Context) error {
	doc, err := f.people.policy(f.plane)
	if err != nil {
		return err
	}
	policy, err := f.people.envelope(doc, enough...)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	var agents, attacks errgroup.Group
	for i := range f.cfg.Devices {
		serial := protocol.DeviceSerial(fmt.Sprintf("DBX%04d", i+1))
		d, err := newDevice(ctx, filepath.Join(f.cfg.Dir, string(serial)), serial, f.plane, policy)
		if err != nil {
			stop()
			return errors.Join(err, agents.Wait())
		}
		defer clear(d.key)
		agents.Go(func() error { return d.agent.Run(running) })
		attacks.Go(func() error { return f.attack(running, d, uint64(i)) })
	}
	err = attacks.Wait()
	stop()
	return errors.Join(err, agents.Wait())
}

// attack attacks one device: first a round of all kinds, each with its control,
// then whatever comes.
func (f *fight) attack(ctx context.Context, d *device, number uint64) error {
	if err := d.meet(ctx, f.plane); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(f.cfg.Seed, number))
	all := slices.Concat(f.common, f.rare)
	if err := f.control(ctx, d, rng, kind{name: "a good request"}); err != nil { // it has seen the log from here on
		return err
	}
	for i := range max(len(all), f.cfg.Attacks/f.cfg.Devices) {
		var k kind
		switch {
		case i < len(all):
			k = all[i]
		case rng.IntN(rareShare) == 0:
			k = pick(rng, f.rare...)
		default:
			k = pick(rng, f.common...)
		}
		if err := f.once(ctx, d, rng, k, i); err != nil {
			return fmt.Errorf("seed %d, device %s, attack %d, %s: %w", f.cfg.Seed, d.id, i, k.name, err)
		}
		if i < len(all) {
			if err := f.control(ctx, d, rng, k); err != nil {
				return err
			}
		}
	}
	return nil
}

// once makes one attack.
func (f *fight) once(ctx context.Context, d *device, rng *rand.Rand, k kind, number int) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	a := f.attempt(d, rng)
	if k.shape != nil {
		k.shape(a)
	}
	if k.before != nil {
		k.before(a)
	}
	if err := a.sign(); err != nil {
		return err
	}
	if k.after != nil {
		k.after(a)
	}
	err := either(k.try)(ctx, a)
	code := protocol.CodeOf(err)
	if err != nil && !refusals[code] {
		return fmt.Errorf("neither opened nor refused: %w", err)
	}
	f.count(k.name, code, err == nil)
	if err == nil {
		sent, _ := json.Marshal(a.sent) // of bytes and strings only
		f.opened(Opening{f.cfg.Seed, d.id.String(), number, k.name, string(sent)})
	}
	if d.locked() {
		return nil
	}
	return a.lock(ctx, false) // what only a commit was refused for
}

// either returns try, or the plain one.
func either(try func(context.Context, *attempt) error) func(context.Context, *attempt) error {
	if try == nil {
		return plain
	}
	return try
}

// refusals are the codes with which a lock says no, and means the attack.
var refusals = map[protocol.Code]bool{
	protocol.CodeServiceSignature: true, protocol.CodeNonce: true, protocol.CodeDecisionMissing: true, protocol.CodeSignatureInvalid: true,
	protocol.CodeSignerUnknown: true, protocol.CodeSignerEngineer: true, protocol.CodeDenied: true, protocol.CodePolicyDigest: true,
	protocol.CodeAction: true, protocol.CodeNode: true, protocol.CodeDisks: true, protocol.CodeDiskKey: true, protocol.CodeWindow: true,
	protocol.CodeClock: true, protocol.CodeRevoked: true, protocol.CodeSpent: true, protocol.CodeCheckpoint: true, protocol.CodeNotOpened: true,
	protocol.CodeInvalid: true,
}

// control does what a kind does with nothing wrong, and locks again.
func (f *fight) control(ctx context.Context, d *device, rng *rand.Rand, k kind) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	a := f.attempt(d, rng)
	if k.shape != nil {
		k.shape(a)
	}
	if err := a.sign(); err != nil {
		return err
	}
	if err := either(k.good)(ctx, a); err != nil {
		return fmt.Errorf("seed %d, device %s: the control of %s did not open: %w", f.cfg.Seed, d.id, k.name, err)
	}
	if d.locked() {
		return fmt.Errorf("device %s is locked after the control of %s", d.id, k.name)
	}
	d.captured = a.sent.Order
	f.mu.Lock()
	f.report.Controls++
	f.mu.Unlock()
	return a.lock(ctx, false)
}

func (f *fight) count(name string, code protocol.Code, opened bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.report.Attacks++
	if opened {
		return
	}
	if f.report.Codes[name] == nil {
		f.report.Codes[name] = make(map[protocol.Code]int)
	}
	f.report.Codes[name][code]++
}

func (f *fight) opened(o Opening) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.report.Opened = append(f.report.Opened, o)
}

// Print writes how often each kind was refused with each code.
func (r Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "kind\tattacks\trefused with")
	for _, name := range slices.Sorted(maps.Keys(r.Codes)) {
		var codes []string
		n := 0
		for _, code := range slices.Sorted(maps.Keys(r.Codes[name])) {
			n += r.Codes[name][code]
			codes = append(codes, fmt.Sprintf("%s %d", code, r.Codes[name][code]))
		}
		fmt.Fprintf(t, "%s\t%d\t%s\n", name, n, strings.Join(codes, ", "))
	}
	return t.Flush()
}
