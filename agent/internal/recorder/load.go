package recorder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// load reads what is known of a part. If nobody closed it, closeLeft has to. It
// returns nil for a file without a first frame: nothing was begun.
func (s *Store) load(id string) (*part, error) {
	var k known
	data, err := os.ReadFile(s.path(id, ".json"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s.recover(id)
	case err != nil:
		return nil, err
	}
	if err := json.Unmarshal(data, &k); err != nil {
		return nil, fmt.Errorf("%s.json cannot be read: %w", id, err)
	}
	file, err := os.Open(s.path(id, ".rec"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	in := recording.NewReader(file)
	if _, _, err := in.Next(); err != nil {
		return nil, err
	}
	p := s.found(in.Meta(), k.Reason)
	p.size, p.synced, p.reserved, p.next = k.Size, k.Size, k.Size, k.Next
	p.ask = !k.Confirmed.IsZero()
	p.closed.Store(&k)
	return p, nil
}

// found is a part that an earlier agent recorded.
func (s *Store) found(m recording.Meta, reason recording.Reason) *part {
	r := s.newRecording(m.Whole())
	r.ends.Store(&reason)
	r.part = s.newPart(r, m)
	r.part.begun = true
	return r.part
}

// recover reads a part that an earlier agent left. It is cut behind its last whole
// frame, unless it has its end.
func (s *Store) recover(id string) (*part, error) {
	file, err := os.OpenFile(s.path(id, ".rec"), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	in := recording.NewReader(file)
	for err == nil {
		_, _, err = in.Next()
	}
	if _, damaged := errors.AsType[*recording.Damage](err); !damaged && !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, file.Close())
	}
	encoder, err := in.Resume()
	if err != nil { // it was never begun: no frame, no record
		return nil, errors.Join(file.Close(), os.Remove(file.Name()), state.SyncDir(s.cfg.Dir))
	}
	p := s.found(in.Meta(), recording.EndAgent)
	p.file, p.encoder = file, encoder
	p.begun = in.Meta().Part() == 1 // of another it is recorded later than that is written: rather twice than never
	if end := in.End(); end != nil {
		p.ended, p.next = end.Reason, end.Next
	}
	if err := p.cut(in.Head().Size); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	p.reserved = p.size
	return p, nil
}

// closeLeft closes what earlier agents left unclosed. A part that goes on in one
// that is not there gets it first: once it is known as closed, the next was there.
func (s *Store) closeLeft() error {
	for _, p := range s.list() {
		if _, gone := s.find(p.next); p.closed.Load() == nil && p.next != "" && gone != nil {
			if err := s.succeed(p); err != nil {
				return fmt.Errorf("cannot go on with recording %s: %w", p.meta.ID, err)
			}
		}
	}
	for _, p := range s.list() {
		if p.closed.Load() == nil {
			if err := p.close(); err != nil {
				return fmt.Errorf("cannot close recording %s: %w", p.meta.ID, err)
			}
		}
	}
	wake(s.changed)
	return nil
}

// succeed begins the part that an agent did not come to begin after it had closed
// the one before. Nothing was recorded in it.
func (s *Store) succeed(before *part) error {
	next := s.found(before.followed(before.next, before.digestLocked()), recording.EndAgent)
	if err := next.create(0); err != nil {
		return err
	}
	if err := next.begin(); err != nil {
		return err
	}
	next.begun = false
	s.add(next)
	return next.sync()
}

// cut leaves the first size bytes of the file, and keeps what is cut off beside
// it if that is more than a frame that was being written.
func (p *part) cut(size int64) error {
	info, err := p.file.Stat()
	if err != nil {
		return err
	}
	if tail := info.Size() - size; tail > 0 {
		if err := p.keepTail(size, tail); err != nil {
			return err
		}
		if err := p.file.Truncate(size); err != nil {
			return state.Coded(err)
		}
	}
	p.size = size
	_, err = io.Copy(p.sum, io.NewSectionReader(p.file, 0, size))
	return err
}

func (p *part) keepTail(at, tail int64) error {
	rec := p.store.record(auditlog.OpNoteRecording, auditlog.Failure, p.meta)
	properties(rec, p.encoder.Head())
	rec.Properties["cut"] = fmt.Sprint(tail)
	if tail > recording.MaxFrame {
		path := p.store.path(p.meta.ID, ".cut")
		out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return state.Coded(err)
		}
		_, err = io.Copy(out, io.NewSectionReader(p.file, at, tail))
		if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
			return state.Coded(err)
		}
	}
	_, err := p.store.cfg.Journal.Append(context.Background(), rec)
	return err
}
