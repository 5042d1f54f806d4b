package recorder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// load reads what is known of a recording, and closes it if nobody did. It
// returns nil for a file without a first frame: nothing was begun.
func (s *Store) load(id string) (*Recording, error) {
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
	r := s.newRecording(in.Meta())
	r.size, r.synced, r.reserved = k.Size, k.Size, k.Size
	r.ends.Store(&k.Reason)
	r.closed.Store(&k)
	return r, nil
}

// recover closes a recording that an earlier agent left. It is cut behind its
// last whole frame, unless it has its end.
func (s *Store) recover(id string) (*Recording, error) {
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
	r := s.newRecording(in.Meta())
	r.file, r.encoder, r.notedAt = file, encoder, time.Now()
	reason := recording.EndAgent
	if end := in.End(); end != nil {
		reason = end.Reason
	}
	r.ends.Store(&reason)
	if err := r.cut(in.Head().Size); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	r.reserved = r.size
	return r, r.close()
}

// cut leaves the first size bytes of the file, and keeps what is cut off beside
// it if that is more than a frame that was being written.
func (r *Recording) cut(size int64) error {
	info, err := r.file.Stat()
	if err != nil {
		return err
	}
	if tail := info.Size() - size; tail > 0 {
		if err := r.keepTail(size, tail); err != nil {
			return err
		}
		if err := r.file.Truncate(size); err != nil {
			return state.Coded(err)
		}
	}
	r.size = size
	_, err = io.Copy(r.sum, io.NewSectionReader(r.file, 0, size))
	return err
}

func (r *Recording) keepTail(at, tail int64) error {
	rec := r.store.record(auditlog.OpNoteRecording, auditlog.Failure, r.meta)
	properties(rec, r.encoder.Head())
	rec.Properties["cut"] = fmt.Sprint(tail)
	if tail > recording.MaxFrame {
		path := r.store.path(r.meta.ID, ".cut")
		out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return state.Coded(err)
		}
		_, err = io.Copy(out, io.NewSectionReader(r.file, at, tail))
		if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
			return state.Coded(err)
		}
	}
	_, err := r.store.cfg.Journal.Append(context.Background(), rec)
	return err
}
