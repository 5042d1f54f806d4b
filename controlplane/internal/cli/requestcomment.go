package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) requestComment() *cobra.Command {
	req := &lockboxv1.CommentRequestRequest{}
	c := &cobra.Command{
		Use:   "comment N TEXT [--reply-to K] [--question]",
		Short: "Say or ask something about a request before it is decided",
		Long: `Say or ask something about a request while it is undecided or lasts. The engineer
who raised it, internal approvers and the customer can, and all of them read it;
the other side is told. A question that nobody has answered is shown to whoever
decides. What is said is not signed: only the request itself is.`,
		Args: args("N", "TEXT"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			req.Id, req.Text = args[0], args[1]
			r, err := c.Requests.CommentRequest(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, r, func(w io.Writer) { showComments(w, r.Comments) })
		}),
	}
	c.Flags().Int64Var(&req.ReplyTo, "reply-to", 0, "number of the comment that you answer")
	c.Flags().BoolVar(&req.Question, "question", false, "it waits for an answer")
	return c
}

// showComments writes what was said as a thread: each answer below what it
// answers.
func showComments(w io.Writer, comments []*lockboxv1.RequestComment) {
	if len(comments) > 0 {
		fmt.Fprintln(w, "Comments")
		showReplies(w, comments, 0, 1)
	}
}

// deepest is how far answers to answers are indented.
const deepest = 8

// showReplies writes what answers one comment. A comment answers only earlier
// ones, whatever the control plane says, so that this ends.
func showReplies(w io.Writer, comments []*lockboxv1.RequestComment, to int64, depth int) {
	for i, c := range comments {
		if c.ReplyTo == to && c.Number > to {
			fmt.Fprintf(w, "%s%s\n", strings.Repeat("  ", min(depth, deepest)), commentLine(c))
			showReplies(w, comments[i+1:], c.Number, depth+1)
		}
	}
}

func commentLine(c *lockboxv1.RequestComment) string {
	mark := ""
	switch {
	case c.Open:
		mark = "  QUESTION, not answered"
	case c.Question:
		mark = "  question"
	}
	return fmt.Sprintf("%d  %s  %s (%s)%s: %s", c.Number, when(c.Time), printable(c.Person), printable(c.Side), mark, printable(strings.Join(strings.Fields(c.Text), " ")))
}

// showOpenQuestions writes, to whoever is about to decide, what nobody has
// answered.
func showOpenQuestions(w io.Writer, r *lockboxv1.Request) {
	for _, c := range r.Comments {
		if c.Open {
			fmt.Fprintf(w, "Open question %s\n", commentLine(c))
		}
	}
}
