package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"slices"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// The checkpoint of [Store.Purge] keeps writers out while it waits for readers,
// so it waits briefly and often.
const (
	checkpointWait  = "PRAGMA busy_timeout = 100"
	checkpointPause = 100 * time.Millisecond
	usualWait       = "PRAGMA busy_timeout = 5000" // as pragmas has it
)

// Purge returns when what was deleted or replaced before the call is in none of
// the database's files: secure_delete has overwritten it in the pages, and the
// write-ahead log is emptied. It then looks for gone in every page, and only if
// it finds any, or if it is not told what to look for, it writes the whole
// database anew, during which nothing else is written.
//
// One purge runs at a time. It waits for readers and takes as long as the database is large; ctx bounds
// it. Values have at least 16 bytes; also a part of one is found.
func (s *Store) Purge(ctx context.Context, gone ...[]byte) error {
	if !s.enter() {
		return protocol.Errorf(protocol.CodeUnavailable, "the store is closed")
	}
	defer s.running.Done()
	select {
	case s.purging <- struct{}{}:
		defer func() { <-s.purging }()
	case <-ctx.Done():
		return refine(ctx.Err())
	}
	if err := s.emptyWAL(ctx); err != nil {
		return err
	}
	if len(gone) > 0 {
		if found, err := s.holds(ctx, gone); err != nil || !found {
			return err
		}
	}
	if err := s.vacuum(ctx); err != nil {
		return err
	}
	if err := s.emptyWAL(ctx); err != nil {
		return err
	}
	found, err := s.holds(ctx, gone)
	if err == nil && found {
		err = protocol.Errorf(protocol.CodeConflict, "what was to be erased is in the store again")
	}
	return err
}

// vacuum rebuilds the database, so that no page has remains of what was moved.
func (s *Store) vacuum(ctx context.Context) error {
	select {
	case s.writing <- struct{}{}:
		defer func() { <-s.writing }()
	case <-ctx.Done():
		return refine(ctx.Err())
	}
	_, err := s.db.ExecContext(ctx, `VACUUM`)
	return refine(err)
}

// emptyWAL moves the write-ahead log into the database and cuts it to nothing.
func (s *Store) emptyWAL(ctx context.Context) error {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return refine(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, checkpointWait); err != nil {
		return refine(err)
	}
	defer conn.ExecContext(context.WithoutCancel(ctx), usualWait)
	for {
		var busy, frames, moved int
		err := conn.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &frames, &moved)
		if err != nil {
			return refine(err)
		}
		if busy == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return refine(ctx.Err())
		case <-time.After(checkpointPause):
		}
	}
}

// holds reports whether any page of the database holds a piece of any of the
// values.
func (s *Store) holds(ctx context.Context, values [][]byte) (bool, error) {
	look := newNeedles(values)
	rows, err := s.db.QueryContext(ctx, `SELECT data FROM sqlite_dbpage`)
	if err != nil {
		return false, refine(err)
	}
	defer rows.Close()
	for rows.Next() {
		var page sql.RawBytes
		if err := rows.Scan(&page); err != nil {
			return false, refine(err)
		}
		if look.in(page) {
			return true, nil
		}
	}
	return false, refine(rows.Err())
}

// pieceSize is how many bytes of a value are looked for at once. What is left of
// a value may have been overwritten in part.
const pieceSize = 16

// needles finds any of many pieces in one pass.
type needles struct {
	begins [1 << 16]bool // by the first two bytes
	pieces map[[pieceSize]byte]bool
}

func newNeedles(values [][]byte) *needles {
	n := &needles{pieces: map[[pieceSize]byte]bool{}}
	for _, v := range values {
		for piece := range slices.Chunk(v, pieceSize) {
			if len(piece) == pieceSize {
				n.pieces[[pieceSize]byte(piece)] = true
				n.begins[binary.NativeEndian.Uint16(piece)] = true
			}
		}
	}
	return n
}

func (n *needles) in(page []byte) bool {
	for len(page) >= pieceSize {
		if n.begins[binary.NativeEndian.Uint16(page)] && n.pieces[[pieceSize]byte(page)] {
			return true
		}
		page = page[1:]
	}
	return false
}
