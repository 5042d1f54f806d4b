package store

import (
	"context"
	"errors"
	"fmt"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Errors that callers branch on. They come wrapped, with a [protocol.Error] of
// the same meaning beside them.
var (
	// ErrNotFound says that there is no such row.
	ErrNotFound = errors.New("not found")
	// ErrConflict says that the row was changed by somebody else since it was
	// read, or that there is already one of that name.
	ErrConflict = errors.New("conflict")
)

func notFound(what string, key ...any) error {
	return both(ErrNotFound, protocol.CodeNotFound, "%s not found", named(what, key))
}

func changed(what string, key ...any) error {
	return both(ErrConflict, protocol.CodeConflict, "%s was changed by somebody else meanwhile: look again and repeat", named(what, key))
}

func exists(what string, key ...any) error {
	return both(ErrConflict, protocol.CodeConflict, "%s exists already", named(what, key))
}

func named(what string, key []any) string {
	for i, k := range key {
		sep := " "
		if i > 0 {
			sep = "/"
		}
		what += fmt.Sprintf("%s%v", sep, k)
	}
	return what
}

// coded is a sentinel and a refusal at once.
type coded struct {
	sentinel error
	refusal  error
}

func both(sentinel error, code protocol.Code, format string, args ...any) error {
	return &coded{sentinel, protocol.Errorf(code, format, args...)}
}

func (e *coded) Error() string   { return e.refusal.Error() }
func (e *coded) Unwrap() []error { return []error{e.sentinel, e.refusal} }

// refine gives errors of the database the code they mean. Errors that carry a
// code already, and those it does not know, stay as they are.
func refine(err error) error {
	if err == nil || protocol.CodeOf(err) != protocol.CodeInternal {
		return err
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return refineSQLite(e)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return protocol.Errorf(protocol.CodeUnavailable, "the store did not answer within %s: nothing was changed as far as is known, try again", Limit)
	case errors.Is(err, context.Canceled):
		return protocol.Errorf(protocol.CodeTimeout, "the call was given up before the store answered")
	}
	return err
}

func refineSQLite(e *sqlite.Error) error {
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR:
		return protocol.Errorf(protocol.CodeStorageFull, "the store cannot be written, its disk is full or broken: make room and try again (%v)", e)
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT:
		return protocol.Errorf(protocol.CodeUnavailable, "the store did not answer within %s: try again", Limit)
	}
	return e
}

// isDuplicate reports whether err says that a primary key or a unique index
// holds the row already.
func isDuplicate(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && (e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}
