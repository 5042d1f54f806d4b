// Package changes finds out what was touched while a node was unlocked for
// support, and has the node sign it.
//
// The rules:
//
//   - Nothing waits for it. The shares are walked while they are open, with half
//     of the time left to others; a relock waits for nothing of it.
//   - When the node locks, its disks are gone at once. So there are two answers:
//     one at the relock, of what was seen to be touched while the disks were open
//     ([Watcher.Touched]), and one when they are next open, before the copy job
//     begins ([Watcher.Complete]) or while the next engineer works: then all of
//     the shares have been walked again, and the answer is closed.
//   - What was not reached is said, with the reason, in either.
//   - A file is as it was if its size and both its times are. One of them, the
//     change time, is set by the kernel alone. Everything else is read.
//   - Lists are on the state directory's disk, in the order of the walk, so that
//     comparing them takes no memory for what did not change. They leave room for
//     others.
package changes

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// Share is a share's folder on one mounted disk.
type Share struct {
	Disk  protocol.DiskID
	Share string // <account>_<kind>
	Dir   string `json:"-"`
}

// named reports whether clients know the share by that name: its own, with the
// disk behind it where two disks have it.
func (s Share) named(name string) bool {
	return name == s.Share || name == s.Share+"-"+string(s.Disk)
}

// Lease is one opening of shares for support.
type Lease struct {
	Request approval.Digest
	Begun   time.Time // before anything could be touched
	Shares  []Share
}

// Config is what a Watcher is made of.
type Config struct {
	Dir  string // of its own
	Node protocol.NodeID
	Key  crypto.Signer // the node's enrolled Ed25519 key
	// Send brings one part of an answer to the control plane. It is durable when
	// Send returns nil.
	Send    func(envelope []byte) error
	Journal Journal
	Now     func() time.Time
	Log     zerolog.Logger

	MaxList int64 // bytes of one list; 0 is 512 MiB, some five million files
	MinFree int64 // bytes that lists leave free on their file system; 0 is 256 MiB
}

// Journal is the node's audit chain.
type Journal interface {
	Append(ctx context.Context, rec auditlog.Record) (index int64, err error)
}

// Watcher watches over the shares of one node. It is safe for concurrent use.
type Watcher struct {
	cfg Config
	pub ed25519.PublicKey

	answering sync.Mutex // held while older leases are answered for
	mu        sync.Mutex // guards what follows
	current   *watch     // of the lease that is open; nil if none is
}

// New returns a watcher. It starts nothing.
func New(cfg Config) (*Watcher, error) {
	pub, ok := cfg.Key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the node's key is a %T: want Ed25519", cfg.Key.Public())
	}
	cfg.MaxList, cfg.MinFree = cmp.Or(cfg.MaxList, 512<<20), cmp.Or(cfg.MinFree, 256<<20)
	return &Watcher{cfg: cfg, pub: pub}, state.PrivateDir(cfg.Dir)
}

// File takes a file event and never fails: what was touched is found without it,
// only later.
func (w *Watcher) File(e recording.FileEvent) error {
	if e.Error != "" {
		return nil
	}
	switch e.Op {
	case recording.OpOpen, recording.OpRead, recording.OpList, recording.OpStat, recording.OpConnect, recording.OpLeave:
		return nil
	}
	w.Touched(e.Share, e.Path)
	if share, path, ok := strings.Cut(e.To, "/"); ok {
		w.Touched(share, path)
	}
	return nil
}

// Touched says that something at a path of a share was just written, made, moved
// or removed. It waits for nothing.
func (w *Watcher) Touched(share, path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current != nil {
		w.current.touched(share, path)
	}
}

// Watch walks the shares of a lease that has begun, until ctx ends because they
// are closed, and then answers with what it saw.
func (w *Watcher) Watch(ctx context.Context, l Lease) {
	if err := w.watch(ctx, l); err != nil {
		w.cfg.Log.Error().Err(err).Str("request", string(l.Request)).Msg("cannot say all of what was touched")
	}
}

func (w *Watcher) watch(ctx context.Context, l Lease) error {
	one, err := w.begin(l)
	if err != nil {
		return err
	}
	one.run(ctx, func() { // which closes the answers for those before
		if err := w.complete(ctx, one.Shares, filepath.Join(one.dir, beforeFile)); err != nil {
			w.cfg.Log.Error().Err(err).Msg("cannot say what was touched before")
		}
	})
	w.mu.Lock()
	w.current = nil
	w.mu.Unlock()
	one.Ended, one.Early = w.cfg.Now(), one.early()
	return errors.Join(one.save(), w.answerAtRelock(one))
}

// begin makes the lease durable, so that it will be answered for whatever
// happens.
func (w *Watcher) begin(l Lease) (*watch, error) {
	slices.SortFunc(l.Shares, compareShares)
	one := &watch{
		record: record{Request: l.Request, Begun: l.Begun, Shares: l.Shares},
		dir:    filepath.Join(w.cfg.Dir, fmt.Sprintf("%019d-%s", l.Begun.UnixNano(), strings.TrimPrefix(string(l.Request), "sha256:")[:16])),
		most:   w.cfg.MaxList, minFree: w.cfg.MinFree,
		looks: make(map[key]*seen),
	}
	if err := errors.Join(os.MkdirAll(one.dir, 0o700), one.save(), state.SyncDir(w.cfg.Dir)); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.current = one
	return one, nil
}

func compareShares(a, b Share) int {
	return cmp.Or(cmp.Compare(a.Disk, b.Disk), cmp.Compare(a.Share, b.Share))
}

// Complete closes the answers for older leases whose shares are all among those
// that are open now. Nobody may change anything until it returns, which it does
// when ctx ends, too.
func (w *Watcher) Complete(ctx context.Context, shares []Share) {
	if err := w.complete(ctx, slices.SortedFunc(slices.Values(shares), compareShares), ""); err != nil && ctx.Err() == nil {
		w.cfg.Log.Error().Err(err).Msg("cannot say what was touched before")
	}
}

// Recover answers for leases that were open when an earlier process ended. It
// is called once, before anything is watched.
func (w *Watcher) Recover() {
	w.answering.Lock()
	defer w.answering.Unlock()
	list, err := w.pending()
	for _, r := range list {
		if r.Ended.IsZero() {
			r.Ended, r.Died = w.cfg.Now(), true
			err = errors.Join(err, r.save(), w.answerAtRelock(r))
		}
	}
	if err != nil {
		w.cfg.Log.Error().Err(err).Msg("cannot say what was touched before the agent ended")
	}
}

// Files of a lease.
const (
	recordFile = "lease.json"
	beforeFile = "before" // list of the walk
	sumsFile   = "sums"   // of its files
	afterFile  = "after"  // list of a walk that closes answers; beside the leases
)

// record is what is known of a lease, durably.
type record struct {
	Request   approval.Digest
	Begun     time.Time
	Ended     time.Time  // zero while the shares are open
	Died      bool       // the agent ended before them
	Shares    []Share    // sorted by disk and name
	Walked    bool       // to the end of the list
	Why       []string   // what the walk did not reach
	Unreached int64      // how much it is
	Early     []earlyKey // touched before the walk came there
}

// earlyKey is a path that was touched before its state was known.
type earlyKey struct {
	Share int
	Path  []byte
}

func (o *watch) save() error {
	data, err := json.Marshal(o.record)
	if err != nil {
		return err
	}
	return state.WriteFile(filepath.Join(o.dir, recordFile), data)
}

// pending returns the leases that are not answered for to the end, oldest first,
// without the one that is open.
func (w *Watcher) pending() ([]*watch, error) {
	entries, err := os.ReadDir(w.cfg.Dir)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	open := w.current
	w.mu.Unlock()
	var list []*watch
	for _, e := range entries {
		dir := filepath.Join(w.cfg.Dir, e.Name())
		if !e.IsDir() || open != nil && open.dir == dir {
			continue
		}
		one := &watch{dir: dir, most: w.cfg.MaxList, minFree: w.cfg.MinFree}
		data, readErr := os.ReadFile(filepath.Join(dir, recordFile))
		if readErr = errors.Join(readErr, json.Unmarshal(data, &one.record)); readErr != nil {
			err = errors.Join(err, fmt.Errorf("lease %s: %w", e.Name(), readErr), os.RemoveAll(dir))
			continue
		}
		list = append(list, one)
	}
	return list, err
}
