// Package agent assembles the databox-agent: the daemon on each node of a
// device, which keeps its disks locked and its shares closed, and opens them
// only under approvals that it has verified itself.
//
// Everything meets here and nowhere else: the parts below know what lies under
// them, not each other.
package agent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"github.com/databox-lockbox/lockbox/agent/internal/changes"
	"github.com/databox-lockbox/lockbox/agent/internal/config"
	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/agent/internal/erasure"
	"github.com/databox-lockbox/lockbox/agent/internal/journal"
	"github.com/databox-lockbox/lockbox/agent/internal/localapi"
	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/agent/internal/recorder"
	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/agent/internal/support"
	"github.com/databox-lockbox/lockbox/agent/internal/uplink"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// Version is what the agent calls itself towards the control plane.
const Version = "0.1.0"

// Config is everything that can be set, see configs/agent.yaml.
type Config = config.Config

// Parts of a [Config].
type (
	DiskConfig      = config.Disk
	LockConfig      = config.Lock
	ShareConfig     = config.Share
	ReconnectConfig = config.Reconnect
)

// DefaultConfig returns the defaults of all settings that have one.
func DefaultConfig() Config { return config.Default() }

// LoadConfig reads a configuration file strictly.
func LoadConfig(path string) (Config, error) { return config.Load(path) }

// Clock tells the two times a lease is held against.
type Clock = lock.Clock

// Options are what a program gives the agent beside its settings.
type Options struct {
	Log   zerolog.Logger
	Clock Clock    // nil: the system's
	Self  []string // how to start this program as its own keeper; nil: none is started
	NFS   []string // how to start this program as its own NFS server; nil: it cannot serve NFS
}

// Agent is the daemon of one node.
type Agent struct {
	cfg      Config
	opts     Options
	state    *state.Dir
	journal  *journal.Journal
	recorder *recorder.Store
	disks    *disks
	changes  *changes.Watcher
	erasure  *erasure.Eraser
	lock     *lock.Machine
	support  *support.Server
	uplink   *uplink.Uplink
	local    *localapi.Server
	keeper   *disk.Keeper

	trust struct { // the chain that was verified last
		mu     sync.Mutex
		chain  []byte
		policy *approval.Policy
	}
}

// ErrNotEnrolled is returned by [New] on a node that never enrolled.
var ErrNotEnrolled = errors.New("this node is not enrolled: run 'databox-agent enroll' first")

// New assembles the agent of an enrolled node. It opens its state and, with
// Options.Self, starts the keeper; nothing else runs until [Agent.Run], which
// must be called, for it also closes what New opened.
func New(cfg Config, opts Options) (_ *Agent, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if opts.Clock == nil {
		opts.Clock = lock.SystemClock{}
	}
	a := &Agent{cfg: cfg, opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	if a.state, err = state.Open(cfg.StateDir); err != nil {
		return nil, err
	}
	id, ok := a.state.Identity()
	if !ok {
		return nil, ErrNotEnrolled
	}
	if id.NodeID() != cfg.NodeID() {
		return nil, fmt.Errorf("the state directory belongs to node %s, the configuration names %s: correct serial and node, or state_dir", id.NodeID(), cfg.NodeID())
	}
	if err := state.PrivateDir(cfg.RunDir); err != nil {
		return nil, err
	}
	if len(opts.Self) > 0 {
		if a.keeper, err = disk.StartKeeper(opts.Self); err != nil {
			return nil, fmt.Errorf("cannot start the keeper: %w", err)
		}
	}
	if err := a.assemble(id); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Agent) assemble(id state.Identity) error {
	key, err := nodeKey(a.state)
	if err != nil {
		return err
	}
	if _, err := a.policy(); err != nil {
		return fmt.Errorf("cannot use the installed trust policy: %w", err)
	}
	if a.journal, err = journal.New(journalDir(a.cfg), a.cfg.NodeID(), key); err != nil {
		return err
	}
	a.disks = newDisks(a.cfg, a.keeper)
	if a.changes, err = a.newChanges(key); err != nil {
		return err
	}
	if a.erasure, err = a.newErasure(key); err != nil {
		return err
	}
	if a.recorder, err = a.newRecorder(key); err != nil {
		return err
	}
	if a.lock, err = a.newLock(key); err != nil {
		return err
	}
	if a.support, err = a.newSupport(id); err != nil {
		return err
	}
	if a.uplink, err = a.newUplink(id, key); err != nil {
		return err
	}
	a.local = localapi.New(a.cfg.Socket(), a.lock)
	return nil
}

// nodeKey returns the key that the node enrolled with, or will.
func nodeKey(dir *state.Dir) (ed25519.PrivateKey, error) {
	signer, err := dir.NodeKey()
	if err != nil {
		return nil, err
	}
	key, ok := signer.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the node's key is a %T: want Ed25519", signer)
	}
	return key, nil
}

func journalDir(cfg Config) string { return filepath.Join(cfg.StateDir, "journal") }

// newRecord makes a record about the node itself.
func newRecord(cfg Config, now time.Time, op auditlog.Operation, result auditlog.Result) auditlog.Record {
	r := auditlog.NewRecord(now, op, result)
	r.Origin = cfg.NodeID().String()
	r.Caller = cfg.NodeID().URI().String()
	r.ResourceID = fmt.Sprintf("/devices/%s/nodes/%d", cfg.Serial, cfg.Node)
	return r
}

// newRecorder opens the recordings, and closes those that an earlier agent left
// unclosed.
func (a *Agent) newRecorder(key ed25519.PrivateKey) (*recorder.Store, error) {
	return recorder.New(recorder.Config{
		Dir:     filepath.Join(a.cfg.StateDir, "recordings"),
		Node:    a.cfg.NodeID(),
		Key:     key,
		Journal: a.journal,
		Now:     a.opts.Clock.Now,
		Quota:   int64(a.cfg.Recording.Quota) << 20,
		Part:    int64(a.cfg.Recording.PartMiB()) << 20,
		MinFree: int64(a.cfg.Recording.MinFree) << 20,
		Keep:    a.cfg.Recording.Keep,
		Log:     a.opts.Log,
	})
}

func (a *Agent) newLock(key ed25519.PrivateKey) (*lock.Machine, error) {
	ids := make([]protocol.DiskID, 0, len(a.cfg.Disks))
	for _, d := range a.cfg.Disks {
		ids = append(ids, protocol.DiskID(d.ID))
	}
	shares, err := newShares(a.cfg, a.opts, a.keeper, a.changes, a.recorder)
	if err != nil {
		return nil, err
	}
	return lock.New(lock.Config{
		Node:         a.cfg.NodeID(),
		Key:          key,
		DiskIDs:      ids,
		Version:      Version,
		Clock:        a.opts.Clock,
		Policy:       a.policy,
		State:        a.state,
		Journal:      a.journal,
		Disks:        a.disks,
		Shares:       shares,
		Jobs:         jobs{newJobs(a.cfg), a.changes},
		Bare:         a.cfg.Bare,
		DeadMan:      a.cfg.Lock.DeadMan,
		ChallengeTTL: a.cfg.Lock.ChallengeTTL,
		CommitWithin: a.cfg.Lock.CommitWithin,
		MaxLease:     a.cfg.Lock.MaxLease,
		EndSessions:  func(why lock.Reason) { a.support.Kick(why.Recording()) },
		Sessions:     func() []*devicev1.SessionStatus { return a.support.Status() },
		JobEvent:     a.jobEvent,
		Watch:        a.watchChanges,
	})
}

// jobEvent remembers that the copy job has completed its order, and passes its news
// on.
func (a *Agent) jobEvent(e lock.JobEvent) {
	switch end := copyjob.State(e.Event); end {
	case copyjob.Completed, copyjob.CompletedWithWarnings, copyjob.CompletedWithErrors:
		if err := a.erasure.Completed(e.Order, e.Disks, end != copyjob.CompletedWithErrors); err != nil {
			a.opts.Log.Error().Err(err).Msg("cannot remember that the copy job is completed")
		}
	}
	a.uplink.ReportJob(e)
}

func (a *Agent) newErasure(key ed25519.PrivateKey) (*erasure.Eraser, error) {
	cfg := erasure.Config{
		Dir:     filepath.Join(a.cfg.StateDir, "erasure"),
		Node:    a.cfg.NodeID(),
		Key:     key,
		Tool:    "databox-agent",
		Version: Version,
		Journal: a.journal,
		Now:     a.opts.Clock.Now,
		Done:    a.disks.forget,
		Locked:  func() bool { return protocol.LockState(a.lock.Status().State) == protocol.Locked },
	}
	for _, d := range a.cfg.Disks {
		cfg.Disks = append(cfg.Disks, disk.Disk{ID: protocol.DiskID(d.ID), Image: d.Image})
	}
	return erasure.New(cfg)
}

func (a *Agent) newChanges(key ed25519.PrivateKey) (*changes.Watcher, error) {
	return changes.New(changes.Config{
		Dir:     filepath.Join(a.cfg.StateDir, "changes"),
		Node:    a.cfg.NodeID(),
		Key:     key,
		Send:    func(envelope []byte) error { return a.uplink.ReportChanges(envelope) },
		Journal: a.journal,
		Now:     a.opts.Clock.Now,
		Log:     a.opts.Log,
	})
}

// watchChanges looks after what is touched under a lease for support.
func (a *Agent) watchChanges(ctx context.Context, l lock.Lease) {
	a.changes.Watch(ctx, changes.Lease{Request: l.Subject, Begun: l.Begun, Shares: changedShares(l.Shares)})
}

func (a *Agent) newSupport(id state.Identity) (*support.Server, error) {
	host, err := a.state.HostKey()
	if err != nil {
		return nil, err
	}
	return support.New(support.Config{
		Node:            a.cfg.NodeID(),
		HostKey:         host,
		HostCertificate: id.SSHHostCertificate,
		Lock:            a.lock,
		Journal:         a.journal,
		Recorder:        a.recorder,
		Files:           a.changes,
		Clock:           a.opts.Clock,
		Manifests:       func(m *devicev1.ReportManifestRequest) { a.uplink.ReportManifest(m) },
		Log:             a.opts.Log,
	})
}

func (a *Agent) newUplink(id state.Identity, key ed25519.PrivateKey) (*uplink.Uplink, error) {
	return uplink.New(uplink.Config{
		Node:          a.cfg.NodeID(),
		Key:           key,
		Identity:      id,
		State:         a.state,
		Journal:       a.journal,
		Recorder:      a.recorder,
		Lock:          a.lock,
		Sessions:      sessions{a.support},
		ReplacePolicy: a.replacePolicy,
		Erase:         a.erasure.Erase,
		LogSize:       a.logSize,
		Address:       a.cfg.ControlPlane.TunnelAddress,
		Heartbeat:     a.cfg.Lock.DeadMan / 4,
		BackoffMin:    a.cfg.Reconnect.Min,
		BackoffMax:    a.cfg.Reconnect.Max,
		Log:           a.opts.Log,
	})
}

// Run runs the agent until ctx ends. It locks the node before it returns.
func (a *Agent) Run(ctx context.Context) error {
	a.recordLife(auditlog.OpStartAgent)
	a.opts.Log.Info().Str("node", a.cfg.NodeID().String()).Int("disks", len(a.cfg.Disks)).Msg("agent started, disks locked")
	for _, s := range a.lock.Status().ShareServices {
		if s.Detail != "" {
			a.opts.Log.Warn().Str("protocol", s.Protocol).Str("why", s.Detail).Msg("shares cannot be served over this protocol")
		}
	}
	a.changes.Recover()
	if err := a.erasure.Resume(ctx); err != nil {
		a.opts.Log.Error().Err(err).Msg("cannot finish erasing the disks yet")
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.recorder.Run(ctx) })
	g.Go(func() error { return a.lock.Run(ctx) })
	g.Go(func() error { return a.support.Run(ctx) })
	g.Go(func() error { return a.uplink.Run(ctx) })
	g.Go(func() error { return a.local.Run(ctx) })
	if a.keeper != nil {
		g.Go(func() error { return a.watchKeeper(ctx) })
	}
	err := g.Wait()
	a.recordLife(auditlog.OpStopAgent)
	return errors.Join(err, a.close())
}

// watchKeeper ends the agent when its keeper has died: without it, a killed
// agent would leave its mounts.
func (a *Agent) watchKeeper(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.keeper.Done():
		return errors.New("the keeper died: the agent locks and stops")
	}
}

// recordLife records that the agent starts or stops. An agent that cannot
// record still keeps its disks locked, so it goes on.
func (a *Agent) recordLife(op auditlog.Operation) {
	r := newRecord(a.cfg, a.opts.Clock.Now(), op, auditlog.Success)
	r.Properties = map[string]string{"version": Version}
	if _, err := a.journal.Append(context.Background(), r); err != nil {
		a.opts.Log.Error().Err(err).Str("operation", string(op)).Msg("cannot record")
	}
}

// close gives back what New opened, the keeper last.
func (a *Agent) close() error {
	var errs []error
	if a.recorder != nil {
		errs = append(errs, a.recorder.Close())
	}
	if a.journal != nil {
		errs = append(errs, a.journal.Close())
	}
	if a.state != nil {
		errs = append(errs, a.state.Close())
	}
	if a.keeper != nil {
		errs = append(errs, a.keeper.Close())
	}
	return errors.Join(errs...)
}

// Status is how the node is.
func (a *Agent) Status() *devicev1.NodeStatus { return a.lock.Status() }

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
