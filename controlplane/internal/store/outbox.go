package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Audiences of notices.
const (
	ToCustomer = "customer"
	ToProvider = "provider"
)

// Channels and states of deliveries.
const (
	ByMail    = "mail"
	ByWebhook = "webhook"

	DeliveryWaiting = "waiting"
	DeliverySent    = "sent"
	DeliveryDead    = "dead" // given up, until somebody has it tried again
)

// Notice is what happened, written in the transaction of the change it tells of.
type Notice struct {
	ID       string
	Kind     string
	Tenant   protocol.TenantID // whose it is, "" if nobody's
	Audience string            // ToCustomer or ToProvider
	Subject  string            // what it is about, e.g. a request id
	Number   int64             // of the request it is about, 0 if of none
	State    string            // of the subject after it, "" if it has none
	Title    string
	Text     string
	HTML     string
	Link     string // "" without a portal
	Created  time.Time
}

var notices = table{"notices", "notice", 1, "id, kind, tenant, audience, subject, number, state, title, text, html, link, created"}

func (r *Notice) fields() []any {
	return []any{
		&r.ID, &r.Kind, &r.Tenant, &r.Audience, &r.Subject, &r.Number, &r.State, &r.Title, &r.Text, &r.HTML, &r.Link, ms{&r.Created},
	}
}

// InsertNotice adds r.
func (tx *Tx) InsertNotice(ctx context.Context, r *Notice) error {
	return insert(ctx, tx, notices, r.fields())
}

// Notice reads one notice.
func (tx *Tx) Notice(ctx context.Context, id string) (Notice, error) {
	return get[Notice](ctx, tx, notices, `WHERE id = $1`, id)
}

// HasNotice reports whether there is a notice of that kind about subject.
func (tx *Tx) HasNotice(ctx context.Context, kind, subject string) (bool, error) {
	var n int
	err := tx.tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM notices WHERE subject = $1 AND kind = $2`, subject, kind).Scan(&n)
	return n > 0, refine(err)
}

// Delivery is the word of a notice to one recipient.
type Delivery struct {
	ID          string
	Notice      string
	Channel     string // ByMail or ByWebhook
	Recipient   string // an address, or a webhook's id
	State       string
	Attempts    int64 // since it was last given another chance
	NextAttempt time.Time
	Sent        time.Time
	LastError   string
	Rev         int64
}

var deliveries = table{"deliveries", "delivery", 1, "id, notice, channel, recipient, state, attempts, next_attempt, sent, last_error, rev"}

func (r *Delivery) fields() []any {
	return []any{
		&r.ID, &r.Notice, &r.Channel, &r.Recipient, &r.State, &r.Attempts, ms{&r.NextAttempt}, ms{&r.Sent}, &r.LastError, &r.Rev,
	}
}

// InsertDelivery adds r.
func (tx *Tx) InsertDelivery(ctx context.Context, r *Delivery) error {
	return insert(ctx, tx, deliveries, r.fields())
}

// UpdateDelivery writes r if nobody changed it since it was read.
func (tx *Tx) UpdateDelivery(ctx context.Context, r *Delivery) error {
	return update(ctx, tx, deliveries, &r.Rev, r.fields())
}

// DueDeliveries reads what is to be tried now by a channel: of each recipient the
// longest waiting only, so that one with a long queue does not hide others.
func (tx *Tx) DueDeliveries(ctx context.Context, channel string, now time.Time, limit int) ([]Delivery, error) {
	return list[Delivery](ctx, tx, deliveries, `AS d WHERE state = 'waiting' AND channel = $1 AND next_attempt <= $2
		AND id = (SELECT e.id FROM deliveries e WHERE e.state = 'waiting' AND e.channel = d.channel AND e.recipient = d.recipient
			AND e.next_attempt <= $2 ORDER BY e.next_attempt, e.id LIMIT 1)
		ORDER BY next_attempt, id LIMIT $3`, channel, millis(now), limit)
}

// Word is a delivery with what it tells.
type Word struct {
	Delivery
	Kind     string
	Tenant   protocol.TenantID
	Audience string
	Subject  string
	Number   int64
	Title    string
	Created  time.Time
}

var words = table{"deliveries d JOIN notices n ON n.id = d.notice", "delivery", 1,
	"d.id, d.notice, d.channel, d.recipient, d.state, d.attempts, d.next_attempt, d.sent, d.last_error, d.rev, " +
		"n.kind, n.tenant, n.audience, n.subject, n.number, n.title, n.created"}

func (r *Word) fields() []any {
	return append(r.Delivery.fields(), &r.Kind, &r.Tenant, &r.Audience, &r.Subject, &r.Number, &r.Title, ms{&r.Created})
}

// Word reads one delivery with what it tells.
func (tx *Tx) Word(ctx context.Context, delivery string) (Word, error) {
	return get[Word](ctx, tx, words, `WHERE d.id = $1`, delivery)
}

// WordsAbout reads the deliveries about a subject with what they tell, oldest
// first.
func (tx *Tx) WordsAbout(ctx context.Context, subject string) ([]Word, error) {
	return list[Word](ctx, tx, words, `WHERE n.subject = $1 ORDER BY n.created, d.id`, subject)
}

// WordFilter selects deliveries. Empty fields leave nothing out.
type WordFilter struct {
	Tenant   protocol.TenantID
	Audience string
	Subject  string
	State    string
	Channel  string
	Limit    int // 0: all
}

// Words reads deliveries with what they tell, newest first.
func (tx *Tx) Words(ctx context.Context, f WordFilter) ([]Word, error) {
	limit := f.Limit
	if limit == 0 {
		limit = -1
	}
	return list[Word](ctx, tx, words, `WHERE ($1 = '' OR n.tenant = $1) AND ($2 = '' OR n.audience = $2) AND ($3 = '' OR n.subject = $3)
		AND ($4 = '' OR d.state = $4) AND ($5 = '' OR d.channel = $5) ORDER BY n.created DESC, d.id LIMIT $6`,
		f.Tenant, f.Audience, f.Subject, f.State, f.Channel, limit)
}

// Webhook is where a tenant wants to hear of what happens. The row outlives the
// webhook's removal.
type Webhook struct {
	ID        string
	Tenant    protocol.TenantID
	URL       string
	Secret    []byte // encrypted
	CreatedBy protocol.Person
	Created   time.Time
	Removed   time.Time
	Rev       int64
}

var webhooks = table{"webhooks", "webhook", 1, "id, tenant, url, secret, created_by, created, removed, rev"}

func (r *Webhook) fields() []any {
	return []any{&r.ID, &r.Tenant, &r.URL, &r.Secret, &r.CreatedBy, ms{&r.Created}, ms{&r.Removed}, &r.Rev}
}

// InsertWebhook adds r.
func (tx *Tx) InsertWebhook(ctx context.Context, r *Webhook) error {
	return insert(ctx, tx, webhooks, r.fields())
}

// UpdateWebhook writes r if nobody changed it since it was read.
func (tx *Tx) UpdateWebhook(ctx context.Context, r *Webhook) error {
	return update(ctx, tx, webhooks, &r.Rev, r.fields())
}

// Webhook reads one webhook, removed ones included.
func (tx *Tx) Webhook(ctx context.Context, id string) (Webhook, error) {
	return get[Webhook](ctx, tx, webhooks, `WHERE id = $1`, id)
}

// Webhooks reads webhooks that are not removed, oldest first: a tenant's, or all
// if it is "".
func (tx *Tx) Webhooks(ctx context.Context, tenant protocol.TenantID) ([]Webhook, error) {
	return list[Webhook](ctx, tx, webhooks, `WHERE removed = 0 AND ($1 = '' OR tenant = $1) ORDER BY created, id`, tenant)
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
// has, or has moved it since it was read.
func (tx *Tx) FinishTimer(ctx context.Context, t Timer) error {
	n, err := exec(ctx, tx, `UPDATE timers SET done = 1 WHERE id = $1 AND due = $2 AND done = 0`, t.ID, millis(t.Due))
	if err == nil && n == 0 {
		err = changed("timer", t.ID)
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
