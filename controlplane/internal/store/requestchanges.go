package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// RequestChanges is one part of what a node said was touched under a request.
type RequestChanges struct {
	Request  protocol.RequestID
	Node     int
	Begun    time.Time // which opening it is of
	Stage    string    // relock | reopened
	Part     int
	Digest   string // sha256:<hex> of the payload
	Envelope []byte // signed by the node
	Time     time.Time
}

var requestChanges = table{"request_changes", "part of what was touched", 5, "request, node, begun, stage, part, digest, envelope, time"}

func (r *RequestChanges) fields() []any {
	return []any{&r.Request, &r.Node, ms{&r.Begun}, &r.Stage, &r.Part, &r.Digest, &r.Envelope, ms{&r.Time}}
}

// InsertRequestChanges adds r. A part exists once.
func (tx *Tx) InsertRequestChanges(ctx context.Context, r *RequestChanges) error {
	return insert(ctx, tx, requestChanges, r.fields())
}

// RequestChangesPart reads the part that r names, whatever else it holds.
func (tx *Tx) RequestChangesPart(ctx context.Context, r RequestChanges) (RequestChanges, error) {
	return get[RequestChanges](ctx, tx, requestChanges, `WHERE request = $1 AND node = $2 AND begun = $3 AND stage = $4 AND part = $5`,
		r.Request, r.Node, millis(r.Begun), r.Stage, r.Part)
}

// RequestChanges reads parts about a request in the order in which they came,
// without the first of them, at most limit.
func (tx *Tx) RequestChanges(ctx context.Context, request protocol.RequestID, without int64, limit int) ([]RequestChanges, error) {
	return list[RequestChanges](ctx, tx, requestChanges, `WHERE request = $1 ORDER BY id LIMIT $3 OFFSET $2`, request, without, limit)
}

// CountRequestChanges counts the parts that a node sent about a request.
func (tx *Tx) CountRequestChanges(ctx context.Context, request protocol.RequestID, node int) (n int, err error) {
	err = tx.tx.QueryRowContext(ctx, `SELECT count(*) FROM request_changes WHERE request = $1 AND node = $2`, request, node).Scan(&n)
	return n, refine(err)
}
