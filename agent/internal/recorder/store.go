// Package recorder keeps the recordings of support sessions and shares on the
// device: written as things happen, closed with the node's signature, and kept
// until the control plane has them.
//
// The rules:
//
//   - Recorded before answered: when a method of [Recording] returns nil, the
//     event was written to the file; within 200 ms it survives a loss of power.
//     When one returns an error, the operation must fail, and whoever is recorded
//     ends at once ([Recording.Failed]).
//   - A recording that cannot go on is closed as what it is. The room for that is
//     kept free from the beginning.
//   - Nothing is deleted that the control plane has not confirmed. What it has
//     confirmed is kept for a while, or until room is needed.
//   - A recording that was not closed, because the agent was killed, is cut behind
//     its last whole frame when the store is opened, closed with "agent-died" and
//     signed. What was cut off beyond one frame is kept beside it.
//   - The journal names every recording when it begins and when it ends, and the
//     head of its chain at least every minute while it grows.
//   - One that becomes too long goes on in another part, between two events: the
//     part before is durable and signed before the next has anything in it. To
//     whoever is recorded or watches it is one; whatever stops the agent between
//     the two, they fit together when it starts again.
//   - Who watches, and what goes to the control plane, is read from the file: a
//     slow reader costs the session nothing.
//
// A part is a file "<id>.rec" (protocol/recording); what is known of it once it is
// closed stands in "<id>.json".
package recorder

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// Times and sizes.
const (
	syncEvery  = 200 * time.Millisecond // from an event to its being durable
	syncBound  = 5 * time.Second        // a file system that takes longer has failed
	noteEvery  = time.Minute            // between notes of a growing chain's head in the journal
	retryEvery = 30 * time.Second       // of closing what could not be closed
	tidyEvery  = time.Hour              // removing what was confirmed long enough ago
	room       = 256 << 10              // taken from the file system at once
	endRoom    = 16 << 10               // of which this much is for the end
	maxSecrets = 32

	// DefaultPart is how long a part of a recording becomes, in bytes.
	DefaultPart = 256 << 20
)

// Journal is the node's audit chain. A record is durable when Append returns.
type Journal interface {
	Append(ctx context.Context, r auditlog.Record) (int64, error)
}

// Config is what a Store is made of.
type Config struct {
	Dir     string // made if it is missing
	Node    protocol.NodeID
	Key     crypto.Signer // the node's enrolled key, Ed25519
	Journal Journal
	Now     func() time.Time // the wall clock; nil: the system's
	Quota   int64            // bytes of all recordings together
	Part    int64            // bytes of one part of a recording; 0: DefaultPart
	MinFree int64            // bytes that must stay free on the file system
	Keep    time.Duration    // how long what the control plane confirmed is kept
	Log     zerolog.Logger
}

// Store keeps the recordings of one node. It is safe for concurrent use.
type Store struct {
	cfg     Config
	durable func(*os.File) error // makes a file durable within a bound: syncWithin, but for tests
	dirty   chan struct{}        // holds one: something is to be synced
	changed chan struct{}        // holds one: something is to be sent

	mu      sync.Mutex // guards what follows; taken after that of a Recording
	all     map[string]*part
	used    int64 // bytes taken by all
	secrets []string
}

// New opens the store and closes what an earlier agent left unclosed. It starts
// nothing.
func New(cfg Config) (*Store, error) {
	if cfg.Now == nil {
		cfg.Now = func() time.Time { return time.Now().Round(0) }
	}
	if cfg.Part == 0 {
		cfg.Part = DefaultPart
	}
	s := &Store{cfg: cfg, durable: syncWithin, dirty: make(chan struct{}, 1), changed: make(chan struct{}, 1), all: make(map[string]*part)}
	if err := state.PrivateDir(cfg.Dir); err != nil {
		return nil, err
	}
	names, err := filepath.Glob(filepath.Join(cfg.Dir, "REC-*.rec"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		id := strings.TrimSuffix(filepath.Base(name), ".rec")
		if !recording.ValidID(id) {
			continue
		}
		p, err := s.load(id)
		if err != nil {
			return nil, fmt.Errorf("cannot use recording %s: %w", id, err)
		}
		if p != nil {
			s.all[id] = p
			s.used += p.reserved
		}
	}
	return s, s.closeLeft()
}

// Mask hides a secret from now on: wherever it would be recorded stands as many
// asterisks. The newest 32 are kept; empty and very short ones are ignored.
func (s *Store) Mask(secrets ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range secrets {
		if len(secret) >= minSecret && !slices.Contains(s.secrets, secret) {
			s.secrets = append(slices.Clone(s.secrets), secret) // readers keep what they have
		}
	}
	s.secrets = s.secrets[max(0, len(s.secrets)-maxSecrets):]
}

func (s *Store) hidden() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.secrets
}

// OfSession returns the newest recording of a support session, or the newest part
// of it, "" if there is none.
func (s *Store) OfSession(id protocol.SessionID) string {
	var newest *part
	for _, p := range s.list() {
		if p.meta.Session == id && p.meta.Kind == recording.Session && (newest == nil || p.meta.Started.After(newest.meta.Started)) {
			newest = p
		}
	}
	if newest == nil {
		return ""
	}
	return newest.meta.ID
}

// list returns all parts, oldest first.
func (s *Store) list() []*part {
	s.mu.Lock()
	list := slices.Collect(maps.Values(s.all))
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b *part) int {
		if c := a.meta.Started.Compare(b.meta.Started); c != 0 {
			return c
		}
		return strings.Compare(a.meta.ID, b.meta.ID)
	})
	return list
}

func (s *Store) find(id string) (*part, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.all[id]; p != nil {
		return p, nil
	}
	return nil, protocol.Errorf(protocol.CodeNotFound, "node %s has no recording %q", s.cfg.Node, id)
}

// Run makes what is written durable, notes heads, and removes what may go, until
// ctx ends.
func (s *Store) Run(ctx context.Context) error {
	tidy := time.NewTicker(tidyEvery)
	defer tidy.Stop()
	s.tidy()
	for {
		var later <-chan time.Time
		if pause := s.syncAll(); pause > 0 {
			later = time.After(pause)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tidy.C:
			s.tidy()
		case <-later:
		case <-s.dirty:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(syncEvery / 2): // what comes in quick succession is synced once
			}
		}
	}
}

// syncAll syncs and notes what is due, and returns when there is more to do
// without anybody saying so; 0 for never.
func (s *Store) syncAll() time.Duration {
	next := time.Duration(0)
	for _, p := range s.list() {
		if due := p.upkeep(); due > 0 && (next == 0 || due < next) {
			next = due
		}
	}
	return next
}

// Close closes what is still open, with "end" unless it ended for another
// reason. Nobody uses the store any more.
func (s *Store) Close() error {
	var errs []error
	for _, p := range s.list() {
		if p.closed.Load() == nil {
			errs = append(errs, p.of.End(recording.EndDone))
		}
	}
	return errors.Join(errs...)
}

// take takes n bytes of the quota, making room where that is allowed.
func (s *Store) take(n int64) error {
	if s.tryTake(n) {
		return nil
	}
	s.free(n)
	if s.tryTake(n) {
		return nil
	}
	return protocol.Errorf(protocol.CodeStorageFull, "recordings fill the %d MiB that they may have, and the control plane has not confirmed them yet", s.cfg.Quota>>20)
}

func (s *Store) tryTake(n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used+n > s.cfg.Quota {
		return false
	}
	s.used += n
	return true
}

func (s *Store) give(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used -= n
}

// checkFree refuses when the file system has less room than must stay free.
func (s *Store) checkFree() error {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.cfg.Dir, &fs); err != nil {
		return fmt.Errorf("cannot tell what is free for recordings: %w", err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < s.cfg.MinFree+room {
		return protocol.Errorf(protocol.CodeStorageFull, "%d MiB are free where recordings are kept: %d must stay so", free>>20, s.cfg.MinFree>>20)
	}
	return nil
}

// tidy removes what was confirmed long enough ago.
func (s *Store) tidy() {
	before := s.cfg.Now().Add(-s.cfg.Keep)
	for _, p := range s.list() {
		if at := p.confirmedAt(); !at.IsZero() && at.Before(before) {
			s.remove(p)
		}
	}
}

// free removes confirmed recordings, the oldest first, until n bytes fit.
func (s *Store) free(n int64) {
	for _, p := range s.list() {
		s.mu.Lock()
		fits := s.used+n <= s.cfg.Quota
		s.mu.Unlock()
		if fits {
			return
		}
		if !p.confirmedAt().IsZero() {
			s.remove(p)
		}
	}
}

// remove removes a confirmed recording.
func (s *Store) remove(p *part) {
	rec := s.record(auditlog.OpRemoveRecording, auditlog.Success, p.meta)
	rec.Properties["digest"] = string(p.closed.Load().Digest)
	if _, err := s.cfg.Journal.Append(context.Background(), rec); err != nil {
		s.cfg.Log.Error().Err(err).Str("recording", p.meta.ID).Msg("a recording cannot be removed: that cannot be recorded")
		return
	}
	s.mu.Lock()
	if s.all[p.meta.ID] == p {
		delete(s.all, p.meta.ID)
		s.used -= p.size
	}
	s.mu.Unlock()
	// The file of what is known goes last: without it the recording would be
	// taken for one that was never closed.
	if err := errors.Join(os.Remove(p.path()), os.Remove(s.path(p.meta.ID, ".json")), state.SyncDir(s.cfg.Dir)); err != nil {
		s.cfg.Log.Error().Err(err).Str("recording", p.meta.ID).Msg("a recording cannot be removed")
	}
}

func (s *Store) path(id, ending string) string { return filepath.Join(s.cfg.Dir, id+ending) }

// record makes a record about a recording.
func (s *Store) record(op auditlog.Operation, result auditlog.Result, m recording.Meta) auditlog.Record {
	r := auditlog.NewRecord(s.cfg.Now(), op, result)
	r.Origin = s.cfg.Node.String()
	r.Caller = s.cfg.Node.URI().String()
	r.ResourceID = fmt.Sprintf("/devices/%s/nodes/%d/recordings/%s", s.cfg.Node.Serial, s.cfg.Node.Node, m.ID)
	r.CorrelationID = string(m.Request)
	if r.CorrelationID == "" {
		r.CorrelationID = string(m.Session)
	}
	r.Properties = map[string]string{"recording": m.ID, "kind": string(m.Kind), "engineer": string(m.Engineer)}
	if m.Session != "" {
		r.Properties["session"] = string(m.Session)
	}
	return r
}

// properties adds what a chain is at its head.
func properties(r auditlog.Record, h recording.Head) {
	r.Properties["frames"] = strconv.FormatInt(h.Frames, 10)
	r.Properties["size"] = strconv.FormatInt(h.Size, 10)
	r.Properties["head"] = h.Hash
}

// known is what is known of a closed part: its file <id>.json. If it names a next
// one, that was durable.
type known struct {
	Size      int64            `json:"size"`
	Digest    approval.Digest  `json:"digest"`
	Reason    recording.Reason `json:"reason"`
	Ended     time.Time        `json:"ended"`
	Next      string           `json:"next,omitempty"`     // the part that goes on
	Confirmed time.Time        `json:"confirmed,omitzero"` // when the control plane had it
}

func (s *Store) writeKnown(id string, k known) error {
	data, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return state.WriteFile(s.path(id, ".json"), data)
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
