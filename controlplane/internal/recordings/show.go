package recordings

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

const (
	defaultLimit = 100
	maxLimit     = 1000
	chunk        = 64 << 10         // bytes that are sent at once
	lookTime     = 60 * time.Second // of one call: who goes on asks again, and is asked again who they are
)

// sees reports whether caller may know of a recording.
func sees(caller auth.Caller, row store.Recording) bool {
	if caller.Is(auth.Engineer) {
		return caller.Person == row.Engineer
	}
	return caller.Sees(row.Tenant)
}

// ListRecordings lists the recordings that caller may see, newest first. An engineer
// who was given access to a subscription sees in the list what others recorded
// there; to play it is not theirs.
func (s *Service) ListRecordings(ctx context.Context, caller auth.Caller, in *lockboxv1.ListRecordingsRequest) (*lockboxv1.ListRecordingsResponse, error) {
	if in.Limit < 0 {
		return nil, invalid("limit must not be negative")
	}
	f := store.RecordingFilter{
		Tenant: caller.Scope(), Serial: protocol.DeviceSerial(in.Serial), Session: protocol.SessionID(in.Session),
		Engineer: protocol.Person(in.Engineer), Limit: defaultLimit,
	}
	if in.Limit > 0 {
		f.Limit = int(min(in.Limit, maxLimit))
	}
	if caller.Is(auth.Engineer) {
		f.Reader = caller.Person
		var err error
		if f.Reach, err = s.cfg.Reach(ctx, caller, "recordings", nil); err != nil {
			return nil, err
		}
	}
	var rows []store.Recording
	err := s.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		if in.Request != "" {
			if f.Request, err = request(ctx, tx, caller, in.Request); err != nil {
				return err
			}
		}
		rows, err = tx.Recordings(ctx, f)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &lockboxv1.ListRecordingsResponse{}
	for _, row := range rows {
		if f.Reader == "" && !sees(caller, row) {
			continue
		}
		shown, err := s.show(row)
		if err != nil {
			return nil, err
		}
		out.Recordings = append(out.Recordings, shown)
	}
	return out, nil
}

// request reads a request, by id or short number, that caller may see.
func request(ctx context.Context, tx *store.Tx, caller auth.Caller, name string) (*store.Request, error) {
	var r store.Request
	var err error
	var number int64
	if _, scanned := fmt.Sscanf(name+"\n", "%d\n", &number); scanned == nil {
		r, err = tx.RequestByNumber(ctx, number)
	} else {
		r, err = tx.Request(ctx, protocol.RequestID(name))
	}
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && !caller.Sees(r.Tenant) {
		err = protocol.Errorf(protocol.CodeNotFound, "request %s not found", name)
	}
	return &r, err
}

// GetRecording shows one recording, named by its id or as the newest one of a
// session.
func (s *Service) GetRecording(ctx context.Context, caller auth.Caller, in *lockboxv1.GetRecordingRequest) (*lockboxv1.Recording, error) {
	row, err := s.find(ctx, caller, in.Id)
	if err != nil {
		return nil, err
	}
	return s.show(row)
}

// find reads a recording that caller may see.
func (s *Service) find(ctx context.Context, caller auth.Caller, id string) (row store.Recording, err error) {
	err = s.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		row, err = tx.Recording(ctx, id)
		if protocol.CodeOf(err) != protocol.CodeNotFound || id == "" {
			return err
		}
		rows, err := tx.Recordings(ctx, store.RecordingFilter{Session: protocol.SessionID(id), Limit: 1})
		if err == nil && len(rows) > 0 {
			row = rows[0]
		}
		return err
	})
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && (row.ID == "" || !sees(caller, row)) {
		err = notFound(id)
	}
	return row, err
}

func (s *Service) show(row store.Recording) (*lockboxv1.Recording, error) {
	size := row.Size
	if row.State == store.RecordingGrows {
		var err error
		if size, err = s.sizeOf(row.ID); err != nil {
			return nil, err
		}
	}
	lost, err := s.lost(row)
	if err != nil {
		return nil, err
	}
	if lost {
		row.Problem = notHere
	}
	return &lockboxv1.Recording{
		Id: row.ID, Kind: row.Kind, Session: string(row.Session), Request: string(row.Request), Order: string(row.Order),
		Serial: string(row.Node.Serial), Node: int32(row.Node.Node), Engineer: string(row.Engineer), Ticket: string(row.Ticket),
		Began: unix(row.Began), Ended: unix(row.Ended), Reason: row.Reason, Size: size, Digest: row.Digest, State: row.State,
		Problem: row.Problem, Logged: row.Logged, Watchers: s.watchers(row.ID), NodeKey: row.NodeKey,
		Whole: row.Parts.Whole, Part: int32(row.Parts.Part), Next: row.Parts.Next,
	}, nil
}

// notHere is what is wrong with a recording whose file is missing.
const notHere = "its file is not here, as in a backup without recordings: its device sends it again if it still keeps it"

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// ReadRecording sends a recording from an offset on, once that is recorded. While
// it grows, the engineer sees the names of the customer's people who look; of the
// provider's only the engineer does.
func (s *Service) ReadRecording(ctx context.Context, caller auth.Caller, in *lockboxv1.ReadRecordingRequest, send func(*lockboxv1.ReadRecordingResponse) error) error {
	row, err := s.find(ctx, caller, in.Id)
	switch {
	case err != nil:
		return err
	case in.Offset < 0:
		return invalid("offset must not be negative")
	case row.State == store.RecordingDeleted:
		return protocol.Errorf(protocol.CodeNotFound, "recording %s was deleted: it was too old", row.ID)
	}
	if lost, err := s.lost(row); err != nil {
		return err
	} else if lost {
		return protocol.Errorf(protocol.CodeNotFound, "recording %s cannot be shown: %s", row.ID, notHere)
	}
	op, watches := auditlog.OpPlayRecording, row.State == store.RecordingGrows && caller.Person != row.Engineer
	if watches {
		if !caller.Role.OfCustomer() {
			return forbidden("session %s goes on: the customer watches it, and its engineer. Play it when it has ended", row.Session)
		}
		op = auditlog.OpWatchSession
	}
	leave, err := s.enter(ctx, look{row.ID, caller.Person, watches}, s.about(op, auditlog.Start, string(caller.Person), row))
	if err != nil {
		return err
	}
	defer leave()
	return s.send(ctx, row, in, send)
}

// send sends what is there, and then what comes if that is wanted, for so long.
func (s *Service) send(ctx context.Context, row store.Recording, in *lockboxv1.ReadRecordingRequest, send func(*lockboxv1.ReadRecordingResponse) error) error {
	f, err := os.Open(s.path(row.ID))
	if err != nil {
		return fmt.Errorf("cannot open recording %s: %w", row.ID, err)
	}
	defer f.Close()
	over := time.NewTimer(lookTime)
	defer over.Stop()
	began := time.Now()
	for offset := in.Offset; ; {
		size, changed, err := s.there(ctx, row.ID)
		if err != nil {
			return err
		}
		for offset < size {
			data := make([]byte, min(chunk, size-offset))
			if _, err := f.ReadAt(data, offset); err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("cannot read recording %s: %w", row.ID, err)
			}
			if err := send(&lockboxv1.ReadRecordingResponse{Offset: offset, Data: data}); err != nil {
				return err
			}
			offset += int64(len(data))
			if time.Since(began) > lookTime {
				return nil
			}
		}
		switch {
		case changed == nil:
			return send(&lockboxv1.ReadRecordingResponse{Offset: offset, Ended: true})
		case !in.Follow:
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-over.C:
			return nil
		case <-changed:
		}
	}
}

// there says how much of a recording is there, and gives a channel that is closed
// when that changes: nil if it never will.
func (s *Service) there(ctx context.Context, id string) (int64, <-chan struct{}, error) {
	g, err := s.grows(id)
	if err != nil {
		return 0, nil, err
	}
	size, changed := g.progress()
	row, err := s.row(ctx, id) // after the channel is in hand, so that no end is missed
	if err != nil {
		return 0, nil, err
	}
	if row.State != store.RecordingGrows {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.growing, id)
		return row.Size, nil, nil
	}
	return size, changed, nil
}
