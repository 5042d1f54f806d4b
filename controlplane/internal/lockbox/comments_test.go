package lockbox_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (w *world) comment(who auth.Caller, id, text string, replyTo int64, question bool) (*lockboxv1.Request, error) {
	return w.lockbox.CommentRequest(w.t.Context(), w.as(who), &lockboxv1.CommentRequestRequest{Id: id, Text: text, ReplyTo: replyTo, Question: question})
}

func TestComments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := halted(t, 1, time.Now)
		r := w.create()
		say := func(who auth.Caller, text string, replyTo int64, question bool) *lockboxv1.Request {
			t.Helper()
			got, err := w.comment(who, r.Id, text, replyTo, question)
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		say(orderstest.Ian, "is the whole disk needed?", 0, true)
		w.mustDecide(orderstest.Ian, r.Id, "approve")
		say(orderstest.Olga, "which folder is it? it holds 4711", 0, true)
		if got := say(orderstest.Olga, "I looked for it myself", 2, false); !got.Comments[1].Open {
			t.Error("her own words answer her question")
		}
		got := say(orderstest.Erin, "Wrong_Folder", 2, false)
		var lines []string
		for _, c := range got.Comments {
			lines = append(lines, fmt.Sprintf("%d<%d %s %s question=%v open=%v", c.Number, c.ReplyTo, strings.Split(c.Person, "@")[0], c.Side, c.Question, c.Open))
		}
		want := []string{
			"1<0 ian provider question=true open=true", "2<0 olga customer question=true open=false",
			"3<2 olga customer question=false open=false", "4<2 erin provider question=false open=false",
		}
		if strings.Join(lines, "\n") != strings.Join(want, "\n") {
			t.Errorf("comments\n%s", strings.Join(lines, "\n"))
		}

		records := w.Records(auditlog.OpCommentRequest)
		if len(records) != 4 || records[1].Properties["text"] != string(approval.DigestOf([]byte("which folder is it? it holds 4711"))) {
			t.Errorf("%d records: %+v", len(records), records)
		}
		w.deliver()
		told := func(who auth.Caller) string { return strings.Join(w.mails(string(who.Person)), "\n") }
		if !strings.Contains(told(orderstest.Erin), "olga@contoso.example asks") || !strings.Contains(told(orderstest.Erin), "ian@provider.example asks") {
			t.Error("the engineer was not told of the questions")
		}
		if !strings.Contains(told(orderstest.Olga), "erin@provider.example writes") || strings.Contains(told(orderstest.Olga), "ian@provider.example asks") {
			t.Error("the customer is to be told of the answer, and not of what was said before they were asked")
		}
		for _, text := range []string{told(orderstest.Erin), told(orderstest.Olga), fmt.Sprint(records)} {
			if strings.Contains(text, "4711") {
				t.Error("what was written left the request")
			}
		}
	})
}

func TestCommentsAreRefused(t *testing.T) {
	w := halted(t, 1, time.Now)
	r := w.create()
	for _, test := range []struct {
		who     auth.Caller
		text    string
		replyTo int64
		code    protocol.Code
	}{
		{orderstest.Erin, strings.Repeat("x", 4096), 0, ""},
		{orderstest.Erin, strings.Repeat("x", 4097), 0, protocol.CodeInvalid},
		{orderstest.Erin, "", 0, protocol.CodeInvalid},
		{orderstest.Erin, "reply", 1, ""},
		{orderstest.Erin, "reply", 3, protocol.CodeInvalid},
		{orderstest.Erin, "reply", -1, protocol.CodeInvalid},
		{orderstest.Eve, "not mine", 0, protocol.CodeForbidden},
		{orderstest.Staff, "not mine", 0, protocol.CodeForbidden},
		{orderstest.Mallory, "not mine", 0, protocol.CodeNotFound},
	} {
		_, err := w.comment(test.who, r.Id, test.text, test.replyTo, false)
		wantCode(t, err, test.code)
	}
	for n := len(w.get(r.Id).Comments) + 1; n < 200; n++ {
		storetest.Exec(t, w.Store, `INSERT INTO request_comments (request, number, reply_to, person, side, question, text, created)
			VALUES ($1, $2, 0, 'erin@provider.example', 'provider', 0, 'more', 0)`, r.Id, n)
	}
	_, err := w.comment(orderstest.Erin, r.Id, "the last", 0, false)
	wantCode(t, err, "")
	_, err = w.comment(orderstest.Erin, r.Id, "more", 0, false)
	wantCode(t, err, protocol.CodeConflict)

	denied := w.create()
	w.mustDecide(orderstest.Ian, denied.Id, "deny")
	_, err = w.comment(orderstest.Erin, denied.Id, "but", 0, false)
	wantCode(t, err, protocol.CodeConflict)
}
