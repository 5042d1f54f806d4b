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
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// part is a file of a recording, growing or closed. It is safe for concurrent use.
type part struct {
	store  *Store
	of     *Recording
	meta   recording.Meta        // does not change once anything was written
	closed atomic.Pointer[known] // nil while it grows; size stays as it is then

	syncing sync.Mutex // held while the file is synced or closed; taken before mu

	mu       sync.Mutex // guards what follows
	file     *os.File   // nil once it is closed
	encoder  *recording.Encoder
	first    []byte    // what the file begins with
	sum      hash.Hash // over size bytes
	size     int64     // written
	opening  int64     // of them, at its beginning: whose it is, and how things stood
	synced   int64     // durable
	reserved int64     // taken from the quota
	since    time.Time // when the oldest byte that is not durable was written
	listed   bool      // the file's name is durable
	begun    bool      // the journal knows
	noted    recording.Head
	notedAt  time.Time
	grown    chan struct{} // closed, and made anew, when there is more to read
	next     string        // the part that goes on
	ended    recording.Reason
	tried    time.Time // when closing it failed
	acked    int64     // what the control plane has
	ask      bool      // whether it has all of it still
	refused  bool      // by the control plane, for good
	warned   bool      // that it finds no room there
}

func newID() string {
	var id [16]byte
	rand.Read(id[:])
	return "REC-" + hex.EncodeToString(id[:])
}

func (s *Store) newPart(r *Recording, m recording.Meta) *part {
	return &part{store: s, of: r, meta: m, grown: make(chan struct{}), sum: sha256.New(), notedAt: time.Now()}
}

// add makes a part one of the store's.
func (s *Store) add(p *part) {
	s.mu.Lock()
	s.all[p.meta.ID] = p
	s.mu.Unlock()
	wake(s.changed)
}

// create makes the file, empty, with room bytes set aside for it.
func (p *part) create(room int64) (err error) {
	if p.file, err = os.OpenFile(p.path(), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return state.Coded(err)
	}
	if err := p.reserve(room); err != nil {
		p.discard()
		return err
	}
	return nil
}

func (p *part) path() string { return p.store.path(p.meta.ID, ".rec") }

// begin writes what the file begins with.
func (p *part) begin(bodies ...recording.Body) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	encoder, first, err := recording.NewEncoder(p.meta)
	if err != nil {
		return err
	}
	p.encoder, p.first, p.meta = encoder, first, encoder.Meta()
	if err := p.write(first); err != nil {
		return err
	}
	for _, b := range bodies {
		if err := p.appendLocked(b); err != nil {
			return err
		}
	}
	p.opening = p.size
	return nil
}

// discard removes a part in which nothing was recorded.
func (p *part) discard() {
	if p.file != nil {
		_ = errors.Join(p.file.Close(), os.Remove(p.file.Name()))
	}
	p.store.give(p.reserved)
	p.file, p.reserved = nil, 0
}

// errFull says that a recording goes on in another part.
var errFull = errors.New("the part is full")

// append writes a frame. With errFull nothing was written.
func (p *part) append(b recording.Body) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.appendLocked(b)
}

func (p *part) appendLocked(b recording.Body) error {
	if !p.since.IsZero() && time.Since(p.since) > syncBound {
		return errors.New("the file system of the recordings does not answer in time")
	}
	before := *p.encoder
	frame, err := p.encoder.Append(p.store.cfg.Now(), b)
	need := int64(len(frame)) + endRoom
	if err == nil && p.size+need > p.store.cfg.Part && p.size > p.opening && p.opening > 0 {
		err = errFull
	}
	if err == nil {
		err = p.reserve(need)
	}
	if err == nil {
		err = p.write(frame)
	}
	if err != nil {
		*p.encoder = before
	}
	return err
}

// write writes a frame behind the others, and tells who reads along.
func (p *part) write(frame []byte) error {
	if _, err := p.file.WriteAt(frame, p.size); err != nil {
		return state.Coded(err)
	}
	p.sum.Write(frame)
	p.size += int64(len(frame))
	if p.since.IsZero() {
		p.since = time.Now()
	}
	p.grew()
	wake(p.store.dirty)
	return nil
}

// grew tells who reads along that there is more, or no more.
func (p *part) grew() {
	close(p.grown)
	p.grown = make(chan struct{})
}

// reserve makes sure that n more bytes can be written.
func (p *part) reserve(n int64) error {
	if p.size+n <= p.reserved {
		return nil
	}
	if err := p.store.checkFree(); err != nil {
		return err
	}
	more := (n + room - 1) / room * room
	if err := p.store.take(more); err != nil {
		return err
	}
	err := unix.Fallocate(int(p.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, p.reserved, more)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		p.store.give(more)
		return state.Coded(err)
	}
	p.reserved += more
	return nil
}

// pass closes the part as one that goes on in next: it is durable then, and its
// digest returned. After an error it is as it was before.
func (p *part) pass(next string) (approval.Digest, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	encoder, size := *p.encoder, p.size
	sum, err := p.sum.(hash.Cloner).Clone() // as SHA-256 is
	if err != nil {
		return "", err
	}
	err = p.writeEndLocked(recording.EndContinued, next)
	if err == nil {
		err = p.store.durable(p.file)
	}
	if err != nil {
		*p.encoder, p.size, p.sum, p.ended = encoder, size, sum, ""
		return "", state.Coded(err)
	}
	p.synced, p.since, p.next = p.size, time.Time{}, next
	return p.digestLocked(), nil
}

// followed is whose the part is that goes on with this one, of that digest.
func (p *part) followed(id string, digest approval.Digest) recording.Meta {
	m := p.meta
	m.ID, m.Started = id, p.store.cfg.Now()
	if !m.Started.After(p.meta.Started) {
		m.Started = p.meta.Started.Add(time.Microsecond)
	}
	m.Continues = recording.Continues{Recording: p.meta.Whole(), Part: p.meta.Part() + 1, Before: p.meta.ID, Digest: digest}
	return m
}

func (p *part) digestLocked() approval.Digest {
	return approval.Digest("sha256:" + hex.EncodeToString(p.sum.Sum(nil)))
}

// syncWithin makes a file durable, or fails if that takes too long.
func syncWithin(f *os.File) error {
	done := make(chan error, 1)
	go func() { done <- f.Sync() }() // ends when the file system answers
	select {
	case err := <-done:
		return err
	case <-time.After(syncBound):
		return errors.New("the file system of the recordings does not answer in time")
	}
}

// writeEndLocked writes the end. next is the part that goes on, if one does.
func (p *part) writeEndLocked(reason recording.Reason, next string) error {
	if err := p.file.Truncate(p.size); err != nil { // half a frame goes, and what was reserved beyond
		return state.Coded(err)
	}
	if p.size == 0 { // what it begins with could not be written before
		if err := p.write(p.first); err != nil {
			return err
		}
	}
	before := *p.encoder
	var frame []byte
	var err error
	if now := p.store.cfg.Now(); next != "" {
		frame, err = p.encoder.Continue(now, next, p.store.cfg.Key)
	} else {
		frame, err = p.encoder.End(now, reason, p.store.cfg.Key)
	}
	if err == nil {
		err = p.write(frame)
	}
	if err != nil {
		*p.encoder = before
		return err
	}
	p.ended = reason
	return nil
}

// confirmedAt returns when the control plane had it all; zero if it has not.
func (p *part) confirmedAt() time.Time {
	if k := p.closed.Load(); k != nil {
		return k.Confirmed
	}
	return time.Time{}
}

// finish closes the file of a part that has ended.
func (p *part) finish() error {
	p.syncing.Lock()
	defer p.syncing.Unlock()
	p.of.mu.Lock() // no other part is being begun
	p.mu.Lock()
	file, next := p.file, p.next
	p.mu.Unlock()
	p.of.mu.Unlock()
	if file == nil {
		return nil
	}
	var err error
	if after, gone := p.store.find(next); gone == nil { // what is known of this part says that there was the next
		err = after.sync()
	}
	if err == nil {
		err = p.close()
	}
	if err != nil {
		p.mu.Lock()
		p.tried = time.Now()
		p.mu.Unlock()
		p.store.cfg.Log.Error().Err(err).Str("recording", p.meta.ID).Msg("a recording cannot be closed yet")
		wake(p.store.dirty)
		return err
	}
	wake(p.store.changed)
	return nil
}

// close writes the end, if it is not there yet, and makes all of it known. The
// caller holds syncing.
func (p *part) close() error {
	if err := p.writeEnd(); err != nil {
		return err
	}
	if err := p.flush(); err != nil {
		return err
	}
	p.mu.Lock()
	k := known{Size: p.size, Digest: p.digestLocked(), Reason: p.ended, Ended: p.store.cfg.Now(), Next: p.next}
	begun, head, counts := p.begun, p.encoder.Head(), p.encoder.Counts()
	p.mu.Unlock()
	if !begun {
		if err := p.recordBegin(context.Background()); err != nil {
			return err
		}
	}
	if err := p.store.recordEnd(p.meta, k, head, counts); err != nil {
		return err
	}
	if err := p.store.writeKnown(p.meta.ID, k); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.file.Close()
	p.store.give(p.reserved - p.size)
	p.file, p.synced, p.reserved, p.since = nil, p.size, p.size, time.Time{}
	p.closed.Store(&k)
	p.grew()
	return err
}

func (p *part) writeEnd() error {
	p.of.mu.Lock() // no event is under way
	defer p.of.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.encoder.Ended() {
		return nil
	}
	return p.writeEndLocked(p.of.reasonLocked(), "")
}

// flush makes the file durable, and its name. The caller holds syncing.
func (p *part) flush() error {
	err := p.file.Sync()
	if err == nil && !p.listed {
		err = state.SyncDir(p.store.cfg.Dir)
		p.listed = err == nil
	}
	return state.Coded(err)
}

// recordBegin tells the journal that there is this part.
func (p *part) recordBegin(ctx context.Context) error {
	rec := p.store.record(auditlog.OpBeginRecording, auditlog.Start, p.meta)
	if c := p.meta.Continues; c.Part > 0 {
		rec.Properties["part"], rec.Properties["before"], rec.Properties["whole"] = strconv.Itoa(c.Part), c.Before, c.Recording
	}
	if _, err := p.store.cfg.Journal.Append(ctx, rec); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun = true
	return nil
}

func (s *Store) recordEnd(m recording.Meta, k known, head recording.Head, counts recording.Counts) error {
	rec := s.record(auditlog.OpEndRecording, auditlog.Success, m)
	if k.Reason == recording.EndFailed {
		rec = s.record(auditlog.OpEndRecording, auditlog.Failure, m)
	}
	properties(rec, head)
	rec.Properties["digest"] = string(k.Digest)
	rec.Properties["reason"] = string(k.Reason)
	if k.Next != "" {
		rec.Properties["next"] = k.Next
	}
	rec.Properties["commands"] = strconv.FormatInt(counts.Commands, 10)
	rec.Properties["files"] = strconv.FormatInt(counts.Files, 10)
	rec.Properties["output"] = strconv.FormatInt(counts.Output, 10)
	_, err := s.cfg.Journal.Append(context.Background(), rec)
	return err
}

// isOver reports whether nothing more will be recorded in the part.
func (p *part) isOver() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended != "" || p.of.ends.Load() != nil
}

// upkeep syncs what was written, notes the head, and closes what could not be
// closed before. It returns when it wants to be called again at the latest, 0
// if there is nothing to do then.
func (p *part) upkeep() time.Duration {
	p.mu.Lock()
	open, tried := p.file != nil, p.tried
	p.mu.Unlock()
	if open && p.isOver() {
		if wait := time.Until(tried.Add(retryEvery)); wait > 0 {
			return wait
		}
		_ = p.finish() // it says so itself
		return retryEvery
	}
	if err := p.sync(); err != nil {
		p.of.fail(err)
	}
	return p.note()
}

// sync makes what was written durable.
func (p *part) sync() error {
	p.syncing.Lock()
	defer p.syncing.Unlock()
	p.mu.Lock()
	file, size, synced := p.file, p.size, p.synced
	p.mu.Unlock()
	switch {
	case file == nil || size == synced && size > 0:
		return nil
	case size == 0:
		return errors.New("nothing could be written to the next part yet")
	}
	began := time.Now()
	if err := p.flush(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if size > p.synced { // else it was passed on meanwhile
		p.synced, p.since = size, time.Time{}
		if p.size > size {
			p.since = began
		}
	}
	wake(p.store.changed)
	return nil
}

// note notes in the journal that the part began, and the head of its chain when it
// is time, and returns how long until then.
func (p *part) note() time.Duration {
	p.mu.Lock()
	if p.file == nil {
		p.mu.Unlock()
		return 0
	}
	begun, head, noted, notedAt := p.begun, p.encoder.Head(), p.noted, p.notedAt
	p.mu.Unlock()
	if !begun {
		if err := p.recordBegin(context.Background()); err != nil {
			p.of.fail(fmt.Errorf("that the recording goes on cannot be noted: %w", err))
		}
	}
	if head == noted {
		return 0
	}
	if wait := time.Until(notedAt.Add(noteEvery)); wait > 0 {
		return wait
	}
	rec := p.store.record(auditlog.OpNoteRecording, auditlog.Success, p.meta)
	properties(rec, head)
	_, err := p.store.cfg.Journal.Append(context.Background(), rec)
	if err != nil {
		p.of.fail(fmt.Errorf("the head of the recording cannot be noted: %w", err))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notedAt = time.Now()
	if err == nil {
		p.noted = head
	}
	return 0
}
