package recorder

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// Recording is one recording of a [Store], growing or closed. It is safe for
// concurrent use.
type Recording struct {
	store  *Store
	meta   recording.Meta
	failed chan struct{}                    // closed when it cannot go on
	closed atomic.Pointer[known]            // nil while it grows; size and meta stay as they are then
	ends   atomic.Pointer[recording.Reason] // why it ends; nil while it grows
	names  atomic.Pointer[[]string]         // of those who watch

	telling  sync.Mutex // guards the next two, and is held while people are told; taken before mu
	watchers map[*watcher]bool
	onWatch  []func(names []string)

	syncing sync.Mutex // held while the file is synced or closed; taken before mu

	mu       sync.Mutex // guards what follows
	file     *os.File   // nil once it is closed
	encoder  *recording.Encoder
	sum      hash.Hash // over size bytes
	size     int64     // written
	synced   int64     // durable
	reserved int64     // taken from the quota
	since    time.Time // when the oldest byte that is not durable was written
	noted    recording.Head
	notedAt  time.Time
	grown    chan struct{} // closed, and made anew, when there is more to read
	channels map[string]bool
	err      error     // why it cannot go on
	tried    time.Time // when closing it failed
	acked    int64     // what the control plane has
	refused  bool      // by the control plane, for good
}

// Begin begins a recording. ID, node and start of m are filled in. It is in the
// journal, and its file is durable, when Begin returns nil.
func (s *Store) Begin(ctx context.Context, m recording.Meta) (*Recording, error) {
	var id [16]byte
	rand.Read(id[:])
	m.ID, m.Node, m.Started = "REC-"+hex.EncodeToString(id[:]), s.cfg.Node.String(), s.cfg.Now()
	encoder, first, err := recording.NewEncoder(m)
	if err != nil {
		return nil, err
	}
	r := s.newRecording(encoder.Meta())
	r.encoder = encoder
	if err := r.create(first); err != nil {
		return nil, notRecorded(err)
	}
	if _, err := s.cfg.Journal.Append(ctx, s.record(auditlog.OpBeginRecording, auditlog.Start, r.meta)); err != nil {
		r.discard()
		return nil, err
	}
	s.mu.Lock()
	s.all[m.ID] = r
	s.mu.Unlock()
	wake(s.changed)
	return r, nil
}

func (s *Store) newRecording(m recording.Meta) *Recording {
	return &Recording{
		store: s, meta: m, failed: make(chan struct{}), grown: make(chan struct{}), sum: sha256.New(),
		channels: make(map[string]bool), watchers: make(map[*watcher]bool),
	}
}

// create makes the file, with its first frame.
func (r *Recording) create(first []byte) (err error) {
	path := r.store.path(r.meta.ID, ".rec")
	if r.file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return state.Coded(err)
	}
	defer func() {
		if err != nil {
			r.discard()
		}
	}()
	if err := r.reserve(int64(len(first))); err != nil {
		return err
	}
	if err := r.write(first); err != nil {
		return err
	}
	if err := errors.Join(r.file.Sync(), state.SyncDir(r.store.cfg.Dir)); err != nil {
		return state.Coded(err)
	}
	r.synced, r.since, r.notedAt = r.size, time.Time{}, time.Now()
	return nil
}

// discard removes a recording that never began.
func (r *Recording) discard() {
	_ = errors.Join(r.file.Close(), os.Remove(r.file.Name()))
	r.store.give(r.reserved)
}

// ID returns the name of the recording.
func (r *Recording) ID() string { return r.meta.ID }

// Failed is closed when the recording cannot go on: whoever is recorded ends at
// once, and says why.
func (r *Recording) Failed() <-chan struct{} { return r.failed }

// Err returns why the recording cannot go on, nil if it can.
func (r *Recording) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// File records one operation on a file.
func (r *Recording) File(e recording.FileEvent) error {
	for _, text := range []*string{&e.Share, &e.Path, &e.To, &e.SHA256, &e.Client, &e.Error} { // clients choose most of it
		*text = r.store.Masked(*text)
	}
	return r.append(e)
}

// Command records a command line, before it runs.
func (r *Recording) Command(channel, line string) error {
	return r.append(recording.Command{Channel: channel, Line: r.store.Masked(line)})
}

func (r *Recording) append(b recording.Body) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.appendLocked(b)
}

func (r *Recording) appendLocked(b recording.Body) error {
	switch {
	case r.err != nil:
		return r.err
	case r.ends.Load() != nil:
		return protocol.Errorf(protocol.CodeConflict, "the recording has ended")
	case !r.since.IsZero() && time.Since(r.since) > syncBound:
		return r.failLocked(errors.New("the file system of the recordings does not answer in time"))
	}
	before := *r.encoder
	frame, err := r.encoder.Append(r.store.cfg.Now(), b)
	if err == nil {
		err = r.reserve(int64(len(frame)) + endRoom)
	}
	if err == nil {
		err = r.write(frame)
	}
	if err != nil {
		*r.encoder = before
		return r.failLocked(err)
	}
	return nil
}

// write writes a frame behind the others, and tells who reads along.
func (r *Recording) write(frame []byte) error {
	if _, err := r.file.WriteAt(frame, r.size); err != nil {
		return state.Coded(err)
	}
	r.sum.Write(frame)
	r.size += int64(len(frame))
	if r.since.IsZero() {
		r.since = time.Now()
	}
	close(r.grown)
	r.grown = make(chan struct{})
	wake(r.store.dirty)
	return nil
}

// reserve makes sure that n more bytes can be written.
func (r *Recording) reserve(n int64) error {
	if r.size+n <= r.reserved {
		return nil
	}
	if err := r.store.checkFree(); err != nil {
		return err
	}
	more := (n + room - 1) / room * room
	if err := r.store.take(more); err != nil {
		return err
	}
	err := unix.Fallocate(int(r.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, r.reserved, more)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		r.store.give(more)
		return state.Coded(err)
	}
	r.reserved += more
	return nil
}

// failLocked marks the recording as one that cannot go on.
func (r *Recording) failLocked(err error) error {
	r.err = notRecorded(err)
	r.store.cfg.Log.Error().Err(err).Str("recording", r.meta.ID).Msg("a recording failed")
	close(r.failed)
	return r.err
}

func notRecorded(err error) error {
	return protocol.Errorf(protocol.CodeNotRecorded, "this cannot be recorded, so it ends: %v", err)
}

// confirmedAt returns when the control plane had it all; zero if it has not.
func (r *Recording) confirmedAt() time.Time {
	if k := r.closed.Load(); k != nil {
		return k.Confirmed
	}
	return time.Time{}
}

// End closes the recording: signed, durable, and in the journal when it returns
// nil. The first reason counts, but a recording that failed ended with that. If
// closing fails it is tried again later. End returns within five seconds
// whatever the file system does.
func (r *Recording) End(reason recording.Reason) error {
	done := make(chan error, 1)
	go func() { // ends when the file system answers
		r.ends.CompareAndSwap(nil, &reason)
		done <- r.finish()
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(syncBound):
		return protocol.Errorf(protocol.CodeNotRecorded, "the end of recording %s is not durable yet: the file system does not answer", r.meta.ID)
	}
}

// EndSoon ends the recording without waiting, not even for the file system:
// nothing more is recorded, and [Store.Run], or Close, closes it.
func (r *Recording) EndSoon(reason recording.Reason) {
	r.ends.CompareAndSwap(nil, &reason)
	wake(r.store.dirty)
}

// reasonLocked returns why the recording ended.
func (r *Recording) reasonLocked() recording.Reason {
	if r.err != nil {
		return recording.EndFailed
	}
	return *r.ends.Load()
}

// finish closes the file of a recording that has ended.
func (r *Recording) finish() error {
	r.syncing.Lock()
	defer r.syncing.Unlock()
	if r.file == nil {
		return nil
	}
	if err := r.close(); err != nil {
		r.mu.Lock()
		r.tried = time.Now()
		r.mu.Unlock()
		r.store.cfg.Log.Error().Err(err).Str("recording", r.meta.ID).Msg("a recording cannot be closed yet")
		wake(r.store.dirty)
		return err
	}
	wake(r.store.changed)
	return nil
}

// close writes the end, if it is not there yet, and makes all of it known. The
// caller holds syncing.
func (r *Recording) close() error {
	if err := r.writeEnd(); err != nil {
		return err
	}
	if err := r.file.Sync(); err != nil {
		return state.Coded(err)
	}
	r.mu.Lock()
	k := known{Size: r.size, Digest: approval.Digest("sha256:" + hex.EncodeToString(r.sum.Sum(nil))), Reason: r.reasonLocked(), Ended: r.store.cfg.Now()}
	head, counts := r.encoder.Head(), r.encoder.Counts()
	r.mu.Unlock()
	if err := r.store.recordEnd(r.meta, k, head, counts); err != nil {
		return err
	}
	if err := r.store.writeKnown(r.meta.ID, k); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.file.Close()
	r.store.give(r.reserved - r.size)
	r.file, r.synced, r.reserved, r.since = nil, r.size, r.size, time.Time{}
	r.closed.Store(&k)
	close(r.grown)
	r.grown = make(chan struct{})
	return err
}

func (r *Recording) writeEnd() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.encoder.Ended() {
		return nil
	}
	before := *r.encoder
	frame, err := r.encoder.End(r.store.cfg.Now(), r.reasonLocked(), r.store.cfg.Key)
	if err == nil {
		err = state.Coded(r.file.Truncate(r.size)) // half a frame goes, and what was reserved beyond
	}
	if err == nil {
		err = r.write(frame)
	}
	if err != nil {
		*r.encoder = before
	}
	return err
}

func (s *Store) recordEnd(m recording.Meta, k known, head recording.Head, counts recording.Counts) error {
	rec := s.record(auditlog.OpEndRecording, auditlog.Success, m)
	if k.Reason == recording.EndFailed {
		rec = s.record(auditlog.OpEndRecording, auditlog.Failure, m)
	}
	properties(rec, head)
	rec.Properties["digest"] = string(k.Digest)
	rec.Properties["reason"] = string(k.Reason)
	rec.Properties["commands"] = strconv.FormatInt(counts.Commands, 10)
	rec.Properties["files"] = strconv.FormatInt(counts.Files, 10)
	rec.Properties["output"] = strconv.FormatInt(counts.Output, 10)
	_, err := s.cfg.Journal.Append(context.Background(), rec)
	return err
}

// upkeep syncs what was written, notes the head, and closes what could not be
// closed before. It returns when it wants to be called again at the latest, 0
// if there is nothing to do then.
func (r *Recording) upkeep() time.Duration {
	r.mu.Lock()
	over, tried := r.ends.Load() != nil && r.file != nil, r.tried
	r.mu.Unlock()
	if over {
		if wait := time.Until(tried.Add(retryEvery)); wait > 0 {
			return wait
		}
		_ = r.finish() // it says so itself
		return retryEvery
	}
	r.sync()
	return r.note()
}

func (r *Recording) sync() {
	r.syncing.Lock()
	defer r.syncing.Unlock()
	r.mu.Lock()
	file, size, synced := r.file, r.size, r.synced
	r.mu.Unlock()
	if file == nil || size == synced {
		return
	}
	began := time.Now()
	err := file.Sync()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		if r.err == nil {
			_ = r.failLocked(state.Coded(err))
		}
		return
	}
	r.synced, r.since = size, time.Time{}
	if r.size > size {
		r.since = began
	}
	wake(r.store.changed)
}

// note notes the head of the chain in the journal when it is time, and returns
// how long until then.
func (r *Recording) note() time.Duration {
	r.mu.Lock()
	if r.file == nil || r.encoder.Head() == r.noted {
		r.mu.Unlock()
		return 0
	}
	if wait := time.Until(r.notedAt.Add(noteEvery)); wait > 0 {
		r.mu.Unlock()
		return wait
	}
	head := r.encoder.Head()
	r.mu.Unlock()
	rec := r.store.record(auditlog.OpNoteRecording, auditlog.Success, r.meta)
	properties(rec, head)
	_, err := r.store.cfg.Journal.Append(context.Background(), rec)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notedAt = time.Now()
	if err == nil {
		r.noted = head
	} else if r.err == nil {
		_ = r.failLocked(fmt.Errorf("the head of the recording cannot be noted: %w", err))
	}
	return 0
}
