// Package store keeps the records of the control plane in one SQLite database.
//
// Its rules:
//
//   - Everything happens in a transaction: [Store.Tx] to change, [Store.View]
//     to read one consistent state. When Tx returns nil, the change is on disk.
//     Many small changes at once can share one ([Store.Shared]).
//   - A row that changes carries a Rev. Update methods compare and set it:
//     whoever comes second gets [ErrConflict] and reads again.
//   - No call takes longer than [Limit], whatever the disk does. What the disk
//     still does after that is unknown to the caller, who was refused.
//   - Times are stored in Unix milliseconds and come back in UTC; the zero time
//     is stored as 0 and means "not yet".
//
// The package decides nothing: which state may follow which is known to the
// services above it.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the database

	"github.com/databox-lockbox/lockbox/protocol"
)

// Limit is the longest that any call waits for the database.
const Limit = 5 * time.Second

// pragmas are the settings of every connection. modernc ignores options of any
// other spelling silently. What is deleted is overwritten, see [Store.Purge].
const pragmas = "?_pragma=journal_mode(WAL)&_pragma=busy_timeout(5000)&_pragma=foreign_keys(1)&_pragma=synchronous(FULL)&_pragma=secure_delete(1)&_txlock=immediate"

//go:embed migrations/sqlite/*.sql
var migrations embed.FS

// Store is an open database. Its methods may be called concurrently.
type Store struct {
	path    string
	db      *sql.DB
	writing chan struct{} // held by the one transaction that writes; first come, first served
	purging chan struct{} // held by the one purge
	shares  shares        // what waits to share a transaction

	mu      sync.Mutex
	closed  bool           // guarded by mu
	running sync.WaitGroup // transactions, also those whose caller was refused; Add is guarded by mu
}

// Open opens the database at path, makes it with mode 0600 if there is none,
// and brings its tables up to date.
func Open(ctx context.Context, path string) (*Store, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the store: %w", err)
	}
	f.Close()
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+pragmas)
	if err != nil {
		return nil, fmt.Errorf("cannot open the store %s: %w", path, err)
	}
	db.SetMaxOpenConns(8)
	db.SetMaxIdleConns(8)
	if err := migrate(ctx, db); err != nil {
		db.Close()
		return nil, fmt.Errorf("cannot open the store %s: %w", path, refine(err))
	}
	return &Store{path: path, db: db, writing: make(chan struct{}, 1), purging: make(chan struct{}, 1)}, nil
}

func migrate(ctx context.Context, db *sql.DB) error {
	dir, err := fs.Sub(migrations, "migrations/sqlite")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, dir, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("cannot bring its tables up to date: %w", err)
	}
	return nil
}

// Path returns the file of the database.
func (s *Store) Path() string { return s.path }

// Close waits, at most [Limit], for transactions under way and closes the
// database.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	idle := make(chan struct{})
	go func() { s.running.Wait(); close(idle) }()
	select {
	case <-idle:
		return s.db.Close()
	case <-time.After(Limit):
		return errors.New("cannot close the store: the disk does not answer")
	}
}

// BackupTo writes a consistent copy of the database to a new file at path, with
// mode 0600.
func (s *Store) BackupTo(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("cannot back up the store: %w", err)
	}
	defer f.Close()
	if _, err := s.db.ExecContext(ctx, `VACUUM INTO $1`, path); err != nil {
		os.Remove(path)
		return fmt.Errorf("cannot back up the store: %w", refine(err))
	}
	return f.Sync()
}

// Tx is one transaction. It is valid until the function it was given to
// returns, and not for concurrent use.
type Tx struct{ tx *sql.Tx }

// Tx runs f in a transaction that may write, one at a time, and commits if f
// returns nil. An error of f rolls back and is returned as it is.
//
// If Tx returns a [protocol.CodeUnavailable] or [protocol.CodeTimeout], f may
// still be running: it must write to nothing that the caller reads then.
func (s *Store) Tx(ctx context.Context, f func(*Tx) error) error {
	return s.bounded(ctx, func(ctx context.Context) error {
		select {
		case s.writing <- struct{}{}:
			defer func() { <-s.writing }()
		case <-ctx.Done():
			return ctx.Err()
		}
		return s.run(ctx, &sql.TxOptions{}, f)
	})
}

// View runs f in a transaction that sees one state of the database and writes
// nothing. What was said of [Store.Tx] holds for its errors.
func (s *Store) View(ctx context.Context, f func(*Tx) error) error {
	return s.bounded(ctx, func(ctx context.Context) error {
		return s.run(ctx, &sql.TxOptions{ReadOnly: true}, f)
	})
}

func (s *Store) run(ctx context.Context, opts *sql.TxOptions, f func(*Tx) error) error {
	tx, err := s.db.BeginTx(ctx, opts)
	if err != nil {
		return refine(err)
	}
	defer tx.Rollback()
	if err := f(&Tx{tx}); err != nil {
		return err
	}
	if opts.ReadOnly {
		return nil
	}
	return refine(tx.Commit())
}

// bounded runs f, and gives up on it after [Limit]: a system call on a disk that
// hangs takes no context.
func (s *Store) bounded(ctx context.Context, f func(context.Context) error) error {
	if !s.enter() {
		return protocol.Errorf(protocol.CodeUnavailable, "the store is closed")
	}
	ctx, cancel := context.WithTimeout(ctx, Limit)
	done := make(chan error, 1)
	go func() {
		defer s.running.Done()
		defer cancel()
		done <- f(ctx)
	}()
	select {
	case err := <-done:
		return refine(err)
	case <-ctx.Done():
	}
	// An answer that came at the last moment is still the answer.
	select {
	case err := <-done:
		return refine(err)
	case <-time.After(lastMoment):
		return refine(ctx.Err())
	}
}

// lastMoment is how long a transaction whose time is up gets to roll back.
const lastMoment = 100 * time.Millisecond

func (s *Store) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.running.Add(1)
	}
	return !s.closed
}
