package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) requestChanges() *cobra.Command {
	return &cobra.Command{
		Use:   "changes N",
		Short: "Show what was touched under a request, as the device says and signed",
		Long: `Show how the files of a device's shares differ from what they were when the
request unlocked it: added, removed, changed, moved. The device says so and signs
it, with the key that the request's statement names; the signatures are verified
here. N is the request's number or its id.

It says so twice. When it locks, it tells of what it saw to be touched until then.
When its disks are next open, before anybody can change them, it walks all of them
again, which closes the answer. What it did not reach, and why, is shown with
either. Only the newest answer for each opening is shown.`,
		Args: args("N"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			r, err := c.Requests.GetRequest(ctx, &lockboxv1.GetRequestRequest{Id: args[0]})
			if err != nil {
				return err
			}
			parts, err := changesParts(ctx, c, r.Id)
			if err != nil {
				return err
			}
			answers, err := readChanges(r.GetStatement().GetPayload(), parts)
			if err != nil {
				return err
			}
			return a.printValue(cmd, answers, func(w io.Writer) { showChanges(w, r, answers) })
		}),
	}
}

// changesParts gets all parts of what the nodes said.
func changesParts(ctx context.Context, c *client.Client, request string) ([]*lockboxv1.ChangesPart, error) {
	var parts []*lockboxv1.ChangesPart
	for after := int64(0); ; {
		resp, err := c.Requests.GetChanges(ctx, &lockboxv1.GetChangesRequest{Id: request, After: after})
		if err != nil {
			return nil, err
		}
		parts = append(parts, resp.Parts...)
		if resp.Next <= after {
			return parts, nil
		}
		after = resp.Next
	}
}

// changesAnswer is what a node said of one opening, all parts in one list.
type changesAnswer struct {
	approval.Changes
	Missing []int `json:"missing,omitempty"` // parts that have not come
}

// readChanges verifies every part against the statement that was approved, puts
// the parts together, and keeps the newest answer for each node and opening.
func readChanges(statement []byte, parts []*lockboxv1.ChangesPart) ([]changesAnswer, error) {
	s, err := approval.ParseStatement(statement)
	if err != nil {
		return nil, fmt.Errorf("cannot read the request statement: tell your security team: %w", err)
	}
	var answers []changesAnswer
	for _, p := range parts {
		i := slices.IndexFunc(s.Nodes, func(n approval.NodeRef) bool { return n.Node == int(p.Node) })
		if i < 0 {
			return nil, fmt.Errorf("the control plane sent what node %d says, which the request does not name: tell your security team", p.Node)
		}
		c, err := approval.VerifyChanges(p.Envelope, s.Nodes[i], approval.DigestOf(statement))
		if err != nil {
			return nil, fmt.Errorf("what node %d is said to say cannot be trusted: tell your security team: %w", p.Node, err)
		}
		if answers, err = addPart(answers, c); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(answers, func(x, y changesAnswer) int {
		return cmp.Or(cmp.Compare(x.Begun, y.Begun), cmp.Compare(x.Node, y.Node))
	})
	return slices.DeleteFunc(answers, func(old changesAnswer) bool {
		return old.Stage == approval.AtRelock && slices.ContainsFunc(answers, func(other changesAnswer) bool {
			return other.Stage == approval.AtReopened && other.Node == old.Node && other.Begun == old.Begun && len(other.Missing) == 0
		})
	}), nil
}

// addPart puts a part into the answer that it belongs to.
func addPart(answers []changesAnswer, c approval.Changes) ([]changesAnswer, error) {
	i := slices.IndexFunc(answers, func(a changesAnswer) bool {
		return a.Node == c.Node && a.Begun == c.Begun && a.Stage == c.Stage
	})
	if i < 0 {
		answers = append(answers, changesAnswer{Changes: c})
		i = len(answers) - 1
		answers[i].List, answers[i].Part = nil, 1
		for part := range c.Parts {
			answers[i].Missing = append(answers[i].Missing, part+1)
		}
	}
	a := &answers[i]
	at := slices.Index(a.Missing, c.Part)
	if at < 0 || c.Parts != a.Parts || c.MadeAt != a.MadeAt {
		return nil, fmt.Errorf("the parts of what node %s says do not belong together: tell your security team", c.Node)
	}
	a.Missing = slices.Delete(a.Missing, at, at+1)
	a.List = append(a.List, c.List...)
	return answers, nil
}

func showChanges(w io.Writer, r *lockboxv1.Request, answers []changesAnswer) {
	fields(w, "Request", strconv.FormatInt(r.Number, 10)+"  "+r.Id, "Engineer", r.Engineer)
	if len(answers) == 0 {
		fmt.Fprintln(w, "The device has said nothing yet of what was touched.")
	}
	for _, one := range answers {
		showAnswer(w, one)
	}
}

func showAnswer(w io.Writer, c changesAnswer) {
	stage, after := "as seen when it locked: the rest is told when the disks are next open", "Seen again"
	if c.Stage == approval.AtReopened {
		stage, after = "all of it, walked again when the disks were next open", "After"
	}
	fmt.Fprintln(w)
	fields(w, "Node", string(c.Node)+"  signed by its key "+string(approval.KeyFingerprint(c.NodeKey)), "Open", when(c.Begun)+" to "+when(c.Ended), "Told", when(c.MadeAt)+"  "+stage,
		"Before", walked(c.Before), after, walked(c.After),
		"Touched", fmt.Sprintf("%d added, %d removed, %d changed, %d moved", c.Added, c.Removed, c.Changed, c.Moved))
	for _, why := range slices.Concat(c.Before.Why, c.After.Why) {
		fields(w, "Not reached", why)
	}
	for _, one := range c.List {
		showChange(w, one)
	}
	if c.Unlisted > 0 {
		fmt.Fprintf(w, "  and %d more\n", c.Unlisted)
	}
	if len(c.Missing) > 0 {
		fmt.Fprintf(w, "  %d of %d parts have not come yet\n", len(c.Missing), c.Parts)
	}
}

func walked(k approval.Walk) string {
	s := fmt.Sprintf("%d files of %d bytes, CRC64 of %d", k.Files, k.Bytes, k.Summed)
	if k.Unreached > 0 {
		s += fmt.Sprintf(", %d NOT REACHED", k.Unreached)
	}
	return s
}

func showChange(w io.Writer, c approval.Change) {
	fmt.Fprintf(w, "  %-8s %s", c.Kind, shownPath(c.File))
	if c.From != nil {
		fmt.Fprint(w, "  from "+shownPath(*c.From))
	}
	switch {
	case c.Kind == approval.Moved || c.Before == nil:
		fmt.Fprintf(w, "  %d bytes", c.After.Size)
	case c.After == nil:
		fmt.Fprintf(w, "  %d bytes", c.Before.Size)
	default:
		fmt.Fprintf(w, "  %d to %d bytes", c.Before.Size, c.After.Size)
	}
	if c.Unsure != "" {
		fmt.Fprint(w, "  ("+printable(c.Unsure)+")")
	}
	fmt.Fprintln(w)
}

// shownPath quotes a path that holds anything that could deceive.
func shownPath(p approval.FilePath) string {
	if q := strconv.Quote(p.Bytes()); p.Raw != nil || q != `"`+p.Bytes()+`"` {
		return string(p.Disk) + ":" + p.Share + "/" + q
	}
	return string(p.Disk) + ":" + p.Share + "/" + printable(p.Path)
}
