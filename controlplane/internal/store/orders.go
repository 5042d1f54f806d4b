package store

import (
	"context"
	"fmt"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Destination is a storage account that an order's data may go to.
type Destination struct {
	Account  string   `json:"account"`
	Endpoint string   `json:"endpoint"`
	Shares   []string `json:"shares,omitempty"`
}

// Order is an import order.
type Order struct {
	ID                 protocol.OrderID
	Subscription       protocol.SubscriptionID
	Tenant             protocol.TenantID
	SKU                string // databox | databox-heavy
	Stage              string // DeviceOrdered … Completed
	Status             string // portal string
	Serial             protocol.DeviceSerial
	Destinations       []Destination
	TrustPolicyVersion int64
	TrustPolicyDigest  string
	Consent            protocol.ConsentID // the one in force
	ConsentDigest      string
	JobState           string
	ErrorCodes         []string
	FilesTotal         int64
	FilesDone          int64
	FilesErrored       int64
	BytesDone          int64
	Created            time.Time
	Updated            time.Time
	Rev                int64
}

var orders = table{"orders", "order", 1, "id, subscription, tenant, sku, stage, status, serial, destinations, trust_policy_version, trust_policy_digest, " +
	"consent, consent_digest, job_state, error_codes, files_total, files_done, files_errored, bytes_done, created, updated, rev"}

func (r *Order) fields() []any {
	return []any{
		&r.ID, &r.Subscription, &r.Tenant, &r.SKU, &r.Stage, &r.Status, &r.Serial, js[Destination]{&r.Destinations},
		&r.TrustPolicyVersion, &r.TrustPolicyDigest, &r.Consent, &r.ConsentDigest, &r.JobState, js[string]{&r.ErrorCodes},
		&r.FilesTotal, &r.FilesDone, &r.FilesErrored, &r.BytesDone, ms{&r.Created}, ms{&r.Updated}, &r.Rev,
	}
}

// NumberedOrder begins the ids of orders whose customers chose none.
const NumberedOrder = "ORD-A"

// NextOrderID returns the id for an order whose customer chose none.
func (tx *Tx) NextOrderID(ctx context.Context) (protocol.OrderID, error) {
	var n int64
	err := tx.tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(CAST(SUBSTR(id, LENGTH($1) + 1) AS INTEGER)), 1000) + 1
		FROM orders WHERE id GLOB $1 || '[0-9]*'`, NumberedOrder).Scan(&n)
	return protocol.OrderID(fmt.Sprintf("%s%d", NumberedOrder, n)), refine(err)
}

// InsertOrder adds r.
func (tx *Tx) InsertOrder(ctx context.Context, r *Order) error {
	return insert(ctx, tx, orders, r.fields())
}

// UpdateOrder writes r if nobody changed it since it was read. It is
// [ErrConflict] as well if another open order holds the device.
func (tx *Tx) UpdateOrder(ctx context.Context, r *Order) error {
	return update(ctx, tx, orders, &r.Rev, r.fields())
}

// Order reads one order.
func (tx *Tx) Order(ctx context.Context, id protocol.OrderID) (Order, error) {
	return get[Order](ctx, tx, orders, `WHERE id = $1`, id)
}

// OrderOfDevice reads the newest order that a device serves or served.
func (tx *Tx) OrderOfDevice(ctx context.Context, serial protocol.DeviceSerial) (Order, error) {
	return get[Order](ctx, tx, orders, `WHERE serial = $1 ORDER BY created DESC, id DESC LIMIT 1`, serial)
}

// Orders reads a tenant's orders by age; all if tenant is "".
func (tx *Tx) Orders(ctx context.Context, tenant protocol.TenantID) ([]Order, error) {
	return list[Order](ctx, tx, orders, `WHERE $1 = '' OR tenant = $1 ORDER BY created, id`, tenant)
}

// The kinds of things that have a history.
const (
	OrderHistory   = "order"
	TicketHistory  = "ticket"
	RequestHistory = "request"
)

// HistoryLine is one event in the life of an order, ticket or request, for
// people to read. The activity log is the evidence.
type HistoryLine struct {
	Time   time.Time
	What   string
	Detail string
}

var history = table{"history", "history line", 0, "time, what, detail"}

func (r *HistoryLine) fields() []any { return []any{ms{&r.Time}, &r.What, &r.Detail} }

// AddHistory appends a line to the history of subject, an id of that kind.
func (tx *Tx) AddHistory(ctx context.Context, kind, subject string, line HistoryLine) error {
	_, err := exec(ctx, tx, `INSERT INTO history (kind, subject, time, what, detail) VALUES ($1, $2, $3, $4, $5)`,
		kind, subject, millis(line.Time), line.What, line.Detail)
	return err
}

// History reads the history of subject, oldest first.
func (tx *Tx) History(ctx context.Context, kind, subject string) ([]HistoryLine, error) {
	return list[HistoryLine](ctx, tx, history, `WHERE kind = $1 AND subject = $2 ORDER BY id`, kind, subject)
}

// Manifest is one version of a share's bill of materials. Version 1 is the
// customer's own.
type Manifest struct {
	Serial         protocol.DeviceSerial
	Node           int
	Disk           protocol.DiskID
	Share          string
	Version        int64
	Order          protocol.OrderID
	BOM            []byte // XML
	Digest         string // sha256:<hex> of BOM
	PreviousDigest string
	Difference     string
	Request        protocol.RequestID // under which it was made
	Time           time.Time
}

var manifests = table{"manifests", "manifest", 5, "serial, node, disk, share, version, order_id, bom, digest, previous_digest, difference, request, time"}

func (r *Manifest) fields() []any {
	return []any{&r.Serial, &r.Node, &r.Disk, &r.Share, &r.Version, &r.Order, &r.BOM, &r.Digest, &r.PreviousDigest, &r.Difference, &r.Request, ms{&r.Time}}
}

// InsertManifest adds r.
func (tx *Tx) InsertManifest(ctx context.Context, r *Manifest) error {
	return insert(ctx, tx, manifests, r.fields())
}

// Manifests reads every version of an order's manifests, by node, disk, share
// and version.
func (tx *Tx) Manifests(ctx context.Context, order protocol.OrderID) ([]Manifest, error) {
	return list[Manifest](ctx, tx, manifests, `WHERE order_id = $1 ORDER BY serial, node, disk, share, version`, order)
}

// CopyLog is what one run of the copy job wrote on one node.
type CopyLog struct {
	Order protocol.OrderID
	Node  protocol.NodeID
	State string // of the node's job
	Time  time.Time
	XML   []byte
}

var copyLogs = table{"copy_logs", "copy log", 0, "order_id, serial, node, state, time, xml"}

func (r *CopyLog) fields() []any {
	return []any{&r.Order, &r.Node.Serial, &r.Node.Node, &r.State, ms{&r.Time}, &r.XML}
}

// PutCopyLog replaces the copy log of r.Node for r.State: there is one of each.
func (tx *Tx) PutCopyLog(ctx context.Context, r *CopyLog) error {
	_, err := exec(ctx, tx, `DELETE FROM copy_logs WHERE order_id = $1 AND serial = $2 AND node = $3 AND state = $4`,
		r.Order, r.Node.Serial, r.Node.Node, r.State)
	if err != nil {
		return err
	}
	return insert(ctx, tx, copyLogs, r.fields())
}

// CopyLogs reads the newest copy log of each of an order's nodes.
func (tx *Tx) CopyLogs(ctx context.Context, order protocol.OrderID) ([]CopyLog, error) {
	return list[CopyLog](ctx, tx, copyLogs,
		`WHERE id IN (SELECT MAX(id) FROM copy_logs WHERE order_id = $1 GROUP BY serial, node) ORDER BY serial, node`, order)
}
