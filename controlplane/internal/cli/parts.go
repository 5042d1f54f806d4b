package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// wholes puts the parts of each recording together, in order, unless each is wanted
// by itself. The recordings stay in the order of the list.
func wholes(list []*lockboxv1.Recording, each bool) (all [][]*lockboxv1.Recording) {
	type whole struct { // a node may say of its own that they belong to another's
		id, serial string
		node       int32
	}
	at := make(map[whole]int)
	for _, r := range list {
		of := whole{r.Whole, r.Serial, r.Node}
		i, known := at[of]
		if !known || each {
			i = len(all)
			at[of], all = i, append(all, nil)
		}
		all[i] = append(all[i], r)
	}
	for _, parts := range all {
		slices.SortFunc(parts, func(a, b *lockboxv1.Recording) int { return cmp.Compare(a.Part, b.Part) })
	}
	return all
}

// wholeRow is a recording in a line of a table.
func wholeRow(parts []*lockboxv1.Recording) []string {
	r, last := parts[0], parts[len(parts)-1]
	return []string{
		nameOf(parts), r.Kind, r.Session, r.Serial + "/" + strconv.Itoa(int(r.Node)), r.Engineer, when(r.Began), lasted(r.Began, last.Ended), sizeOf(parts),
		partsText(int(r.Part), int(last.Part)), standing(parts),
	}
}

// nameOf is the id that stands for parts.
func nameOf(parts []*lockboxv1.Recording) string {
	if len(parts) == 1 {
		return parts[0].Id
	}
	return parts[0].Whole
}

func sizeOf(parts []*lockboxv1.Recording) string {
	size := int64(0)
	for _, p := range parts {
		size += p.Size
	}
	return sizeText(size)
}

// partsText says which parts there are.
func partsText(first, last int) string {
	if first == last {
		return strconv.Itoa(first)
	}
	return fmt.Sprintf("%d-%d", first, last)
}

func lasted(began, ended int64) string {
	if ended == 0 {
		return ""
	}
	return (time.Duration(ended-began) * time.Second).String()
}

// standing says in a few words how far a recording can be relied on, all of whose
// parts are given that are there.
func standing(parts []*lockboxv1.Recording) string {
	last := parts[len(parts)-1]
	words := []string{last.State}
	switch {
	case last.State == "recording" && len(last.Watchers) > 0:
		words = []string{"recording, watched by " + strings.Join(last.Watchers, ", ")}
	case last.State == "complete" && last.Next != "":
		words = []string{fmt.Sprintf("goes on, but part %d has not come", last.Part+1)}
	case last.State == "complete":
		words = []string{"complete (" + last.Reason + ")"}
		if slices.ContainsFunc(parts, func(p *lockboxv1.Recording) bool { return p.State == "complete" && !p.Logged }) {
			words = append(words, "not in the activity log yet")
		}
	}
	for i, p := range parts[:len(parts)-1] {
		if p.State != "complete" {
			words = append(words, fmt.Sprintf("part %d %s", p.Part, p.State))
		}
		if next := parts[i+1].Part; next != p.Part+1 {
			words = append(words, "missing: part "+partsText(int(p.Part)+1, int(next)-1))
		}
	}
	return strings.Join(words, ", ")
}

// remoteParts reads a recording from the control plane as it comes, part after
// part, one behind the other.
type remoteParts struct {
	part *remote
	open func(id string) *remote                              // another part
	next func(id string) (next string, found bool, err error) // the one that goes on with a part, and whether it is there
	wait bool                                                 // until it is
}

// readParts returns a reader of a recording from one of its parts on, which ends
// with ctx. With follow it goes on for as long as the recording does.
func readParts(ctx context.Context, c *client.Client, id string, follow bool) *remoteParts {
	get := func(id string) (*lockboxv1.Recording, error) {
		return c.Recordings.GetRecording(ctx, &lockboxv1.GetRecordingRequest{Id: id})
	}
	r := &remoteParts{wait: follow}
	r.open = func(id string) *remote { return readRemote(ctx, c, id, follow) }
	r.next = func(id string) (string, bool, error) {
		part, err := get(id)
		if err != nil || part.Next == "" {
			return "", false, err
		}
		_, err = get(part.Next)
		if protocol.CodeOf(err) == protocol.CodeNotFound {
			return part.Next, false, nil
		}
		return part.Next, err == nil, err
	}
	r.part = r.open(id)
	return r
}

// Read implements io.Reader.
func (r *remoteParts) Read(p []byte) (int, error) {
	for {
		n, err := r.part.Read(p)
		if n > 0 || !errors.Is(err, io.EOF) {
			return n, err
		}
		if err := r.goOn(); err != nil {
			return 0, err
		}
	}
}

// goOn opens the next part. Without one, the error is io.EOF.
func (r *remoteParts) goOn() error {
	for {
		next, found, err := r.next(r.part.req.Id)
		switch {
		case err != nil:
			return err
		case found:
			r.part.Close()
			r.part = r.open(next)
			return nil
		case next == "" || !r.wait:
			return io.EOF
		}
		if err := r.part.pause(); err != nil {
			return err
		}
	}
}

// Close ends the connection.
func (r *remoteParts) Close() { r.part.Close() }

// firstPart returns the part to begin with: the first of a session's newest
// recording, or the one that is named.
func firstPart(ctx context.Context, c *client.Client, name string) (string, error) {
	r, err := c.Recordings.GetRecording(ctx, &lockboxv1.GetRecordingRequest{Id: name})
	if err != nil || r.Id == name {
		return name, err
	}
	return r.Whole, nil
}

// verifyFiles verifies recordings that were exported, each whole file by itself and
// the parts of each recording together.
func verifyFiles(names []string, key approval.Digest) (all [][]recording.Report, err error) {
	at := make(map[string]int)
	for _, name := range names {
		reports, err := verifyFile(name, key)
		if err != nil {
			return nil, err
		}
		for _, r := range reports {
			i, known := at[r.Meta.Whole()]
			if !known {
				i = len(all)
				at[r.Meta.Whole()], all = i, append(all, nil)
			}
			all[i] = append(all[i], r)
		}
	}
	for i := range all {
		if all[i], err = recording.Join(all[i]); err != nil {
			return nil, brokenError{fmt.Errorf("the parts of recording %s do not fit: %w", all[i][0].Meta.Whole(), err)}
		}
	}
	return all, nil
}

// isWhole reports whether verified parts of a recording are all of it.
func isWhole(parts []recording.Report) bool {
	return parts[0].Meta.Part() == 1 && parts[len(parts)-1].End.Next == ""
}

// allHere is the error of a recording whose first parts or last are not here.
func allHere(all [][]recording.Report) error {
	for _, parts := range all {
		if !isWhole(parts) {
			return brokenError{fmt.Errorf("this is not all of recording %s: name the files of all its parts, or say --some", parts[0].Meta.Whole())}
		}
	}
	return nil
}

// recordedForm is that of the ids by which recordings are found.
var recordedForm = regexp.MustCompile(`^(SES|REC)-[0-9a-f]+$`)

func verifyFile(name string, key approval.Digest) ([]recording.Report, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) && recordedForm.MatchString(name) {
		return nil, usagef("what is verified is a file: lockbox session export %[1]s --out %[1]s.rec", name)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	reports, err := recording.VerifyParts(f, key)
	if err != nil {
		return nil, brokenError{fmt.Errorf("%s does not verify: %w", name, err)}
	}
	return reports, nil
}

// showVerified shows a recording all of whose parts were verified that are here.
func showVerified(w io.Writer, parts []recording.Report, keyGiven bool) {
	first, last := parts[0], parts[len(parts)-1]
	m, e := first.Meta, last.End
	signer := string(last.Key)
	if !keyGiven {
		signer += " (compare it with that of the device, or give --node-key)"
	}
	var c recording.Counts
	for _, p := range parts {
		c.Commands, c.Files, c.Output = c.Commands+p.End.Counts.Commands, c.Files+p.End.Counts.Files, c.Output+p.End.Counts.Output
		c.Channels += p.End.Counts.Channels
	}
	whole := "whole and signed"
	if !isWhole(parts) {
		whole = "not all of it; what is here is whole and signed"
	}
	shown := []string{
		"Recording", m.Whole() + ", " + whole, "Kind", string(m.Kind), "Node", m.Node, "Session", string(m.Session), "Request", string(m.Request),
		"Engineer", string(m.Engineer), "Ticket", string(m.Ticket), "Began", protocol.Stamp(m.Started), "Ended", protocol.Stamp(e.Ended) + ", " + string(e.Reason),
		"Holds", fmt.Sprintf("%d channels, %d commands, %d file operations, %d bytes of output", c.Channels, c.Commands, c.Files, c.Output),
	}
	if m.Part() > 1 {
		shown = append(shown, "Before", fmt.Sprintf("part %d, recording %s, %s: not here", m.Part()-1, m.Continues.Before, m.Continues.Digest))
	}
	if m.Part() == 1 && e.Next == "" && len(parts) == 1 {
		shown = append(shown, "Digest", string(first.Digest))
	} else {
		for _, p := range parts {
			shown = append(shown, fmt.Sprintf("Part %d", p.Meta.Part()), p.Meta.ID+", "+string(p.Digest))
		}
	}
	if e.Next != "" {
		shown = append(shown, "Behind", fmt.Sprintf("part %d, recording %s: not here", last.Meta.Part()+1, e.Next))
	}
	fields(w, append(shown, "Signed with", signer)...)
}
