package recorder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// Limits of those who read along.
const (
	maxWatchers = 8                // of one recording
	watchChunk  = 16 << 10         // bytes sent at once to a watcher
	watchQuiet  = 10 * time.Second // without anything to send: then nothing is sent, to find who has left
	watchBound  = 10 * time.Second // a watcher who takes longer for them is dropped
	sendChunk   = 128 << 10        // bytes sent at once to the control plane: more than a frame has
	sendBound   = 30 * time.Second
	sendEvery   = time.Second // between two pieces of a growing recording
	firstPause  = 500 * time.Millisecond
	longest     = time.Minute
)

// watcher is somebody who watches a recording.
type watcher struct{ name string }

// OnWatch says who is to be told who watches: f is called with the names
// whenever they change, and at once if there are any. f must not wait, nor use
// the recording.
func (r *Recording) OnWatch(f func(names []string)) {
	r.telling.Lock()
	defer r.telling.Unlock()
	r.onWatch = append(r.onWatch, f)
	if names := r.Watchers(); len(names) > 0 {
		f(names)
	}
}

// Watchers returns the names of those who watch. It never waits.
func (r *Recording) Watchers() []string {
	if names := r.names.Load(); names != nil {
		return *names
	}
	return nil
}

// Watch sends a part of a recording to somebody from an offset on, and then what
// is added to it, until it is closed or ctx ends. Those who are recorded are told.
// A watcher that does not take what it is sent is dropped with
// [protocol.CodeLimit]. With a negative offset nothing is sent: somebody watches
// what the control plane has, until the recording ends, in whatever part.
func (s *Store) Watch(ctx context.Context, id string, offset int64, name string, send func(offset int64, data []byte) error) error {
	p, err := s.find(id)
	if err != nil {
		return err
	}
	leave, err := p.of.enter(name)
	if err != nil {
		return err
	}
	defer leave()
	if offset < 0 {
		return p.of.attend(ctx, send)
	}
	return p.follow(ctx, offset, send)
}

// enter adds a watcher and returns what takes it out again.
func (r *Recording) enter(name string) (leave func(), err error) {
	w := &watcher{name}
	err = r.change(func() error {
		if len(r.watchers) >= maxWatchers {
			return protocol.Errorf(protocol.CodeLimit, "recording %s is watched by %d already", r.id, maxWatchers)
		}
		r.watchers[w] = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	return func() {
		// If it cannot be recorded that somebody left, all of it ends.
		_ = r.change(func() error { delete(r.watchers, w); return nil })
	}, nil
}

// change changes who watches, records it, and tells those who are watched. The
// watcher of a recording that has ended is nobody's business.
func (r *Recording) change(do func() error) error {
	r.telling.Lock()
	defer r.telling.Unlock()
	if err := do(); err != nil {
		return err
	}
	var names []string
	for w := range r.watchers {
		names = append(names, w.name)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if slices.Equal(names, r.Watchers()) {
		return nil // the same person, once more or once less
	}
	r.names.Store(&names)
	if r.ends.Load() != nil {
		return nil
	}
	err := r.append(recording.Watch{Names: names})
	for _, f := range r.onWatch {
		f(names)
	}
	return err
}

// attend waits until the recording has ended, and sends nothing now and then.
func (r *Recording) attend(ctx context.Context, send func(offset int64, data []byte) error) error {
	for {
		r.mu.Lock()
		p := r.part
		r.mu.Unlock()
		size, grown, closed := p.progress()
		if closed && r.ends.Load() != nil {
			return nil
		}
		if err := more(ctx, grown, func() error { return send(size, nil) }); err != nil {
			return err
		}
	}
}

// more waits until a part has grown, and calls quiet if that takes long.
func more(ctx context.Context, grown <-chan struct{}, quiet func() error) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-grown:
		return nil
	case <-time.After(watchQuiet):
		return quiet()
	}
}

// progress says how much there is, gives a channel that is closed when that
// changes, and says whether it never will.
func (p *part) progress() (size int64, grown <-chan struct{}, closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.size, p.grown, p.closed.Load() != nil
}

// follow sends what is written, from an offset on, until the part is closed.
func (p *part) follow(ctx context.Context, offset int64, send func(offset int64, data []byte) error) error {
	file, err := os.Open(p.path())
	if err != nil {
		return err
	}
	defer file.Close()
	buf := make([]byte, watchChunk)
	for {
		size, grown, closed := p.progress()
		switch {
		case offset > size:
			return protocol.Errorf(protocol.CodeInvalid, "recording %s has %d bytes: nothing follows byte %d", p.meta.ID, size, offset)
		case offset < size:
			n, err := file.ReadAt(buf[:min(watchChunk, size-offset)], offset)
			if err != nil {
				return fmt.Errorf("cannot read recording %s: %w", p.meta.ID, err)
			}
			began := time.Now()
			if err := send(offset, buf[:n]); err != nil {
				return err
			}
			if time.Since(began) > watchBound {
				return protocol.Errorf(protocol.CodeLimit, "the watcher is too slow: watch again from byte %d", offset+int64(n))
			}
			offset += int64(n)
			continue
		case closed:
			return nil
		}
		if err := more(ctx, grown, func() error { return send(offset, nil) }); err != nil {
			return err
		}
	}
}

// Chunk is a piece of a part of a recording for the control plane.
type Chunk struct {
	Recording string
	Offset    int64
	Data      []byte
	Closed    bool            // Data reaches the end of a closed part
	Digest    approval.Digest // of all of it, when Closed
}

// AskAgain has Upload ask whether what the control plane confirmed is there still:
// it may have been restored from a backup. What it has not is sent again.
func (s *Store) AskAgain() {
	for _, p := range s.list() {
		if !p.confirmedAt().IsZero() {
			p.mu.Lock()
			p.ask = true
			p.mu.Unlock()
		}
	}
	wake(s.changed)
}

// Upload brings every recording to the control plane as it grows, until ctx
// ends; then it returns nil. Only what is durable here is sent.
//
// send delivers a piece and returns the offset that is expected next, and
// whether the whole, closed recording is kept there. A failed send is repeated
// after a pause that grows to a minute; one that is refused for good
// ([protocol.CodeInvalid], [protocol.CodeConflict], [protocol.CodeForbidden],
// [protocol.CodeRecording], [protocol.CodeCheckpoint]) is recorded, and the recording is kept.
func (s *Store) Upload(ctx context.Context, send func(context.Context, Chunk) (acked int64, confirmed bool, err error)) error {
	for failures := 0; ctx.Err() == nil; {
		sent, failed := s.uploadAll(ctx, send)
		switch {
		case failed && !sent:
			sleep(ctx, min(longest, firstPause<<min(failures, 16)))
			failures++
			continue
		case !sent:
			select {
			case <-ctx.Done():
			case <-s.changed:
			}
		}
		failures = 0
		sleep(ctx, sendEvery)
	}
	return nil
}

// uploadAll sends what there is, and reports whether anything was brought
// forward, and whether anything failed.
func (s *Store) uploadAll(ctx context.Context, send func(context.Context, Chunk) (int64, bool, error)) (sent, failed bool) {
	for _, p := range s.list() {
		for ctx.Err() == nil {
			moved, err := p.upload(ctx, send)
			if err != nil {
				failed = true
				s.cfg.Log.Debug().Err(err).Str("recording", p.meta.ID).Msg("cannot bring a recording to the control plane")
			}
			if !moved {
				break
			}
			sent = true
		}
	}
	return sent, failed
}

// upload sends the next piece of the part, if there is one, and reports whether
// that brought it forward.
func (p *part) upload(ctx context.Context, send func(context.Context, Chunk) (int64, bool, error)) (moved bool, err error) {
	p.mu.Lock()
	closed, at, synced := p.closed.Load(), p.acked, p.synced
	if p.ask {
		at = synced
	}
	done := p.refused || !p.confirmedAt().IsZero() && !p.ask || closed == nil && at == synced
	c := Chunk{Recording: p.meta.ID, Offset: at}
	if synced-at <= sendChunk && closed != nil {
		c.Closed, c.Digest = true, closed.Digest
	}
	p.mu.Unlock()
	if done {
		return false, nil
	}
	if c.Data, err = p.piece(at, min(sendChunk, synced-at)); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, sendBound)
	defer cancel()
	acked, confirmed, err := send(ctx, c)
	if err != nil {
		return false, p.answered(err)
	}
	return p.ack(c, acked, confirmed)
}

func (p *part) piece(at, n int64) ([]byte, error) {
	file, err := os.Open(p.path())
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data := make([]byte, n)
	_, err = file.ReadAt(data, at)
	return data, err
}

// ack takes an answer of the control plane.
func (p *part) ack(c Chunk, acked int64, confirmed bool) (moved bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if acked < 0 || acked > p.synced {
		return false, fmt.Errorf("byte %d cannot be expected of %d", acked, p.synced)
	}
	asked := p.ask
	p.acked = acked // which may go back, when the control plane was restored
	switch {
	case asked && confirmed:
		p.ask = false
		return true, nil
	case asked: // it was restored from a backup that had less
		err := p.confirmLocked(time.Time{})
		p.ask = err != nil
		return err == nil, err
	case confirmed && c.Closed:
		err := p.confirmLocked(p.store.cfg.Now())
		return err == nil, err
	case acked <= c.Offset:
		return false, fmt.Errorf("the control plane goes on from byte %d", acked)
	}
	return true, nil
}

// confirmLocked writes down when the control plane confirmed a closed part; zero if
// it has lost it.
func (p *part) confirmLocked(at time.Time) error {
	k := *p.closed.Load()
	k.Confirmed = at
	if err := p.store.writeKnown(p.meta.ID, k); err != nil {
		return err
	}
	p.closed.Store(&k)
	return nil
}

// answered takes a refusal. One for good is recorded, once; for want of room there
// it is logged, once.
func (p *part) answered(err error) error {
	switch code := protocol.CodeOf(err); code {
	case protocol.CodeLimit, protocol.CodeStorageFull:
		p.mu.Lock()
		warned := p.warned
		p.warned = true
		p.mu.Unlock()
		if !warned {
			p.store.cfg.Log.Warn().Err(err).Str("recording", p.meta.ID).Msg("the control plane has no room for a recording, which stays here: see recording.part_mib here, recordings.max_mib, node_mib and total_mib there")
		}
	case protocol.CodeInvalid, protocol.CodeConflict, protocol.CodeForbidden, protocol.CodeRecording, protocol.CodeCheckpoint:
		p.mu.Lock()
		p.refused = true
		p.mu.Unlock()
		rec := p.store.record(auditlog.OpNoteRecording, auditlog.Refused, p.meta)
		rec.Properties["refused"] = string(code)
		rec.Properties["message"] = strings.ToValidUTF8(err.Error(), "?")
		_, recordErr := p.store.cfg.Journal.Append(context.Background(), rec)
		return errors.Join(err, recordErr)
	}
	return err
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
