package recorder

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// Recording is what a [Store] records as one, in one part or several. It is safe
// for concurrent use.
type Recording struct {
	store  *Store
	id     string                           // of its first part
	failed chan struct{}                    // closed when it cannot go on
	ends   atomic.Pointer[recording.Reason] // why it ends; nil while it grows
	names  atomic.Pointer[[]string]         // of those who watch

	telling  sync.Mutex // guards the next two, and is held while people are told; taken before mu
	watchers map[*watcher]bool
	onWatch  []func(names []string)

	mu       sync.Mutex       // guards what follows; taken before that of a part
	part     *part            // that grows, or was the last
	channels map[string]bool  // names that were used
	open     []recording.Open // channels that are open, as they stand
	err      error            // why it cannot go on
}

// Begin begins a recording. ID, node and start of m are filled in. It is in the
// journal, and its file is durable, when Begin returns nil.
func (s *Store) Begin(ctx context.Context, m recording.Meta) (*Recording, error) {
	m.ID, m.Node, m.Started = newID(), s.cfg.Node.String(), s.cfg.Now()
	r := s.newRecording(m.ID)
	p := s.newPart(r, m)
	r.part = p
	err := p.create(room)
	if err == nil {
		err = p.begin()
	}
	if err == nil {
		err = p.sync()
	}
	if err != nil {
		p.discard()
		return nil, notRecorded(err)
	}
	if err := p.recordBegin(ctx); err != nil {
		p.discard()
		return nil, err
	}
	s.add(p)
	return r, nil
}

func (s *Store) newRecording(id string) *Recording {
	return &Recording{
		store: s, id: id, failed: make(chan struct{}), channels: make(map[string]bool), watchers: make(map[*watcher]bool),
	}
}

// ID returns the name of the recording, which is that of its first part.
func (r *Recording) ID() string { return r.id }

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
	}
	err := r.part.append(b)
	if errors.Is(err, errFull) {
		if err = r.rotateLocked(); err == nil {
			err = r.part.append(b)
		}
	}
	if err != nil {
		return r.failLocked(err)
	}
	r.trackLocked(b)
	return nil
}

// rotateLocked goes on in another part. The one before is durable, with its signed
// end, before anything is written to the next: whatever stops the agent in between
// leaves two that fit together, or one that names the next, see [Store.succeed].
func (r *Recording) rotateLocked() error {
	before := r.part
	m := before.meta
	m.ID = newID()
	next := r.store.newPart(r, m)
	if err := next.create(room); err != nil {
		return err
	}
	digest, err := before.pass(m.ID)
	if err != nil {
		next.discard()
		return err
	}
	next.meta = before.followed(m.ID, digest)
	r.part = next // even if nothing can be written to it: that is how it ends then
	err = next.begin(r.stateLocked()...)
	r.store.add(next)
	return err
}

// stateLocked is what a part begins with that goes on with another.
func (r *Recording) stateLocked() (bodies []recording.Body) {
	for _, o := range r.open {
		bodies = append(bodies, o)
	}
	if names := r.Watchers(); len(names) > 0 {
		bodies = append(bodies, recording.Watch{Names: names})
	}
	return bodies
}

// trackLocked keeps in mind which channels are open, and how wide.
func (r *Recording) trackLocked(b recording.Body) {
	switch b := b.(type) {
	case recording.Open:
		b.Continued = true
		r.open = append(r.open, b)
	case recording.Resize:
		if o := r.openLocked(b.Channel); o >= 0 {
			r.open[o].Columns, r.open[o].Rows = b.Columns, b.Rows
		}
	case recording.Close:
		if o := r.openLocked(b.Channel); o >= 0 {
			r.open = slices.Delete(r.open, o, o+1)
		}
	}
}

func (r *Recording) openLocked(channel string) int {
	return slices.IndexFunc(r.open, func(o recording.Open) bool { return o.Channel == channel })
}

func (r *Recording) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		_ = r.failLocked(err)
	}
}

// failLocked marks the recording as one that cannot go on.
func (r *Recording) failLocked(err error) error {
	r.err = notRecorded(err)
	r.store.cfg.Log.Error().Err(err).Str("recording", r.id).Msg("a recording failed")
	close(r.failed)
	return r.err
}

func notRecorded(err error) error {
	return protocol.Errorf(protocol.CodeNotRecorded, "this cannot be recorded, so it ends: %v", err)
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
		return protocol.Errorf(protocol.CodeNotRecorded, "the end of recording %s is not durable yet: the file system does not answer", r.id)
	}
}

// EndSoon ends the recording without waiting, not even for the file system:
// nothing more is recorded, and [Store.Run], or Close, closes it.
func (r *Recording) EndSoon(reason recording.Reason) {
	r.ends.CompareAndSwap(nil, &reason)
	wake(r.store.dirty)
}

// finish closes the parts of a recording that has ended, the last one last.
func (r *Recording) finish() error {
	r.mu.Lock() // an event that was under way may have begun another part
	last := r.part
	r.mu.Unlock()
	var errs []error
	for _, p := range r.store.list() {
		if p.of == r && p != last {
			errs = append(errs, p.finish())
		}
	}
	return errors.Join(append(errs, last.finish())...)
}

// reasonLocked returns why the recording ended.
func (r *Recording) reasonLocked() recording.Reason {
	if r.err != nil {
		return recording.EndFailed
	}
	return *r.ends.Load()
}
