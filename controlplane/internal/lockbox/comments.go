package lockbox

import (
	"context"
	"fmt"
	"slices"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

const (
	maxComment  = 4096 // bytes of one comment
	maxComments = 200  // on one request
)

// CommentRequest adds what somebody says or asks about a request while it can
// still be decided or lasts. The engineer who asked, internal approvers and the
// customer may. The other side is told; the activity log keeps the digest of the
// text, not the text.
func (s *Service) CommentRequest(ctx context.Context, caller auth.Caller, in *lockboxv1.CommentRequestRequest) (*lockboxv1.Request, error) {
	if in.Text == "" || len(in.Text) > maxComment {
		return nil, invalid("a comment has 1 to %d bytes", maxComment)
	}
	err := s.change(ctx, func(tx *store.Tx) error {
		r, err := request(ctx, tx, caller, in.Id)
		if err != nil {
			return err
		}
		c := store.RequestComment{
			Request: r.ID, ReplyTo: in.ReplyTo, Person: caller.Person, Question: in.Question, Text: in.Text, Created: s.now(),
		}
		if c.Side, err = commenterOf(caller, r); err != nil {
			return err
		}
		if c.Number, err = mayComment(ctx, tx, r, in.ReplyTo); err != nil {
			return err
		}
		return s.comment(ctx, tx, caller, r, c)
	})
	if err != nil {
		return nil, err
	}
	return s.GetRequest(ctx, caller, &lockboxv1.GetRequestRequest{Id: in.Id})
}

// commenterOf returns the side for which caller speaks.
func commenterOf(caller auth.Caller, r store.Request) (string, error) {
	switch {
	case caller.Role.OfCustomer():
		return string(approval.Customer), nil
	case caller.Person == r.Engineer, caller.Is(auth.InternalApprover):
		return string(approval.Provider), nil
	}
	return "", forbidden("request %d was made by %s: they, internal approvers and the customer comment on it", r.Number, r.Engineer)
}

// mayComment returns the number of the next comment.
func mayComment(ctx context.Context, tx *store.Tx, r store.Request, replyTo int64) (int64, error) {
	if state := StateOf(r.Status); state.Terminal() {
		return 0, conflict("request %d is %s: there is nothing left to say", r.Number, state)
	}
	comments, err := tx.RequestComments(ctx, r.ID)
	next := int64(len(comments)) + 1
	switch {
	case err != nil:
		return 0, err
	case next > maxComments:
		return 0, conflict("request %d has %d comments: use the ticket", r.Number, maxComments)
	case replyTo < 0 || replyTo >= next:
		return 0, invalid("request %d has no comment %d", r.Number, replyTo)
	}
	return next, nil
}

func (s *Service) comment(ctx context.Context, tx *store.Tx, caller auth.Caller, r store.Request, c store.RequestComment) error {
	if err := tx.InsertRequestComment(ctx, &c); err != nil {
		return err
	}
	err := s.record(ctx, tx, caller, auditlog.OpCommentRequest, auditlog.Success, r, map[string]string{
		"number": fmt.Sprint(c.Number), "replyTo": fmt.Sprint(c.ReplyTo), "side": c.Side, "question": fmt.Sprint(c.Question),
		"text": string(approval.DigestOf([]byte(c.Text))),
	})
	if err != nil {
		return err
	}
	// What was written stays with the request: mail goes further than the right
	// to see it.
	verb := "writes"
	if c.Question {
		verb = "asks"
	}
	detail := fmt.Sprintf("%s %s. To read it, and to answer, type\n\n    lockbox request show %d\n    lockbox request comment %d TEXT --reply-to %d",
		c.Person, verb, r.Number, r.Number, c.Number)
	if c.Side == string(approval.Customer) {
		return s.tellEngineer(ctx, tx, notify.RequestComment, r, detail)
	}
	if err := s.tellApprovers(ctx, tx, notify.RequestComment, r, detail); err != nil || caller.Person == r.Engineer {
		return err
	}
	return s.tellEngineer(ctx, tx, notify.RequestComment, r, detail)
}

// showComments shows what was said, oldest first, and which questions are open:
// those that nobody else has answered.
func showComments(rows []store.RequestComment) []*lockboxv1.RequestComment {
	var out []*lockboxv1.RequestComment
	for _, c := range rows {
		answered := slices.ContainsFunc(rows, func(a store.RequestComment) bool { return a.ReplyTo == c.Number && a.Person != c.Person })
		out = append(out, &lockboxv1.RequestComment{
			Number: c.Number, ReplyTo: c.ReplyTo, Person: string(c.Person), Side: c.Side,
			Question: c.Question, Open: c.Question && !answered, Text: c.Text, Time: c.Created.Unix(),
		})
	}
	return out
}
