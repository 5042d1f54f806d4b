package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// RequestComment is what somebody said about a request.
type RequestComment struct {
	Request  protocol.RequestID
	Number   int64 // within the request, from 1
	ReplyTo  int64 // number of the comment it answers, 0 if none
	Person   protocol.Person
	Side     string // provider | customer
	Question bool
	Text     string
	Created  time.Time
}

var requestComments = table{"request_comments", "comment", 2, "request, number, reply_to, person, side, question, text, created"}

func (r *RequestComment) fields() []any {
	return []any{&r.Request, &r.Number, &r.ReplyTo, &r.Person, &r.Side, &r.Question, &r.Text, ms{&r.Created}}
}

// InsertRequestComment adds r. A number exists once: whoever comes second gets
// [ErrConflict].
func (tx *Tx) InsertRequestComment(ctx context.Context, r *RequestComment) error {
	return insert(ctx, tx, requestComments, r.fields())
}

// RequestComments reads what was said about a request, oldest first.
func (tx *Tx) RequestComments(ctx context.Context, request protocol.RequestID) ([]RequestComment, error) {
	return list[RequestComment](ctx, tx, requestComments, `WHERE request = $1 ORDER BY number`, request)
}
