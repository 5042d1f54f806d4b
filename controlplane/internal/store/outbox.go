package store

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// Notice is a message to people, written in the transaction of what it tells
// and delivered later.
type Notice struct {
	ID          string
	Kind        string
	Subject     string // what it is about, e.g. a request id
	Recipients  []string
	Title       string
	Body        string
	Created     time.Time
	NextAttempt time.Time
	Attempts    int64
	Delivered   time.Time
	LastError   string
	Rev         int64
}

var notices = table{"notices", "notice", 1, "id, kind, subject, recipients, title, body, created, next_attempt, attempts, delivered, last_error, rev"}

func (r *Notice) fields() []any {
	return []any{
		&r.ID, &r.Kind, &r.Subject, js[string]{&r.Recipients}, &r.Title, &r.Body, ms{&r.Created}, ms{&r.NextAttempt}, &r.Attempts,
		ms{&r.Delivered}, &r.LastError, &r.Rev,
	}
}

// InsertNotice adds r.
func (tx *Tx) InsertNotice(ctx context.Context, r *Notice) error {
	return insert(ctx, tx, notices, r.fields())
}

// UpdateNotice writes r if nobody changed it since it was read.
func (tx *Tx) UpdateNotice(ctx context.Context, r *Notice) error {
	return update(ctx, tx, notices, &r.Rev, r.fields())
}

// DueNotices reads notices to be delivered now, the longest waiting first.
func (tx *Tx) DueNotices(ctx context.Context, now time.Time, limit int) ([]Notice, error) {
	return list[Notice](ctx, tx, notices, `WHERE delivered = 0 AND next_attempt <= $1 ORDER BY next_attempt, created, id LIMIT $2`, millis(now), limit)
}

// NextNotice returns when the next notice is to be delivered, the zero time if
// none waits.
func (tx *Tx) NextNotice(ctx context.Context) (time.Time, error) {
	return earliest(ctx, tx, `SELECT MIN(next_attempt) FROM notices WHERE delivered = 0`)
}

// Timer is a thing to do at a time.
type Timer struct {
	ID      int64
	Kind    string // what to do, e.g. "request-expiry"
	Subject string // to what, e.g. a request id
	Due     time.Time
}

var timers = table{"timers", "timer", 1, "id, kind, subject, due"}

func (r *Timer) fields() []any { return []any{&r.ID, &r.Kind, &r.Subject, ms{&r.Due}} }

// SetTimer sets the one open timer of that kind and subject, moving it if there
// is one.
func (tx *Tx) SetTimer(ctx context.Context, kind, subject string, due time.Time) error {
	_, err := exec(ctx, tx, `INSERT INTO timers (kind, subject, due, done) VALUES ($1, $2, $3, 0)
		ON CONFLICT (kind, subject) WHERE done = 0 DO UPDATE SET due = excluded.due`, kind, subject, millis(due))
	return err
}

// FinishTimer marks an open timer done. It is [ErrConflict] if somebody else
// has.
func (tx *Tx) FinishTimer(ctx context.Context, id int64) error {
	n, err := exec(ctx, tx, `UPDATE timers SET done = 1 WHERE id = $1 AND done = 0`, id)
	if err == nil && n == 0 {
		err = changed("timer", id)
	}
	return err
}

// CancelTimer removes the open timer of that kind and subject, if there is one.
func (tx *Tx) CancelTimer(ctx context.Context, kind, subject string) error {
	_, err := exec(ctx, tx, `DELETE FROM timers WHERE kind = $1 AND subject = $2 AND done = 0`, kind, subject)
	return err
}

// DueTimers reads open timers whose time has come, earliest first.
func (tx *Tx) DueTimers(ctx context.Context, now time.Time, limit int) ([]Timer, error) {
	return list[Timer](ctx, tx, timers, `WHERE done = 0 AND due <= $1 ORDER BY due, id LIMIT $2`, millis(now), limit)
}

// NextTimer returns when the next timer is due, the zero time if none is set.
func (tx *Tx) NextTimer(ctx context.Context) (time.Time, error) {
	return earliest(ctx, tx, `SELECT MIN(due) FROM timers WHERE done = 0`)
}

func earliest(ctx context.Context, tx *Tx, query string) (time.Time, error) {
	var n sql.NullInt64
	if err := tx.tx.QueryRowContext(ctx, query).Scan(&n); err != nil || !n.Valid {
		return time.Time{}, refine(err)
	}
	return time.UnixMilli(n.Int64).UTC(), nil
}

// Meta reads a setting of the instance, "" if it was never set.
func (tx *Tx) Meta(ctx context.Context, key string) (string, error) {
	var v string
	err := tx.tx.QueryRowContext(ctx, `SELECT value FROM meta WHERE key = $1`, key).Scan(&v)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return v, refine(err)
}

// SetMeta writes a setting of the instance.
func (tx *Tx) SetMeta(ctx context.Context, key, value string) error {
	_, err := exec(ctx, tx, `INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value)
	return err
}
