package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

func (a *app) sessionRecordings() *cobra.Command {
	req := &lockboxv1.ListRecordingsRequest{}
	var each bool
	c := &cobra.Command{
		Use:     "recordings [--device SERIAL] [--request N]",
		Aliases: []string{"recording"},
		Short:   "List what was recorded",
		Long: `List recordings of support sessions and of the use of shares, newest first.
Customers see those of their own devices, engineers their own. A recording is
complete when its device has signed its end; broken when what came of it
contradicts itself, its device, or the activity log. A long one comes in parts,
which are one line, under the id of the first, unless --parts lists them.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Recordings.ListRecordings(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, parts := range wholes(resp.Recordings, each) {
					rows = append(rows, wholeRow(parts))
				}
				table(w, "RECORDING KIND SESSION NODE ENGINEER BEGAN LASTED SIZE PARTS STATE", rows)
				for _, r := range resp.Recordings {
					if r.Problem != "" {
						fmt.Fprintf(w, "%s: %s\n", printable(r.Id), printable(r.Problem))
					}
				}
			})
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Serial, "device", "", "only this device's")
	f.StringVar(&req.Session, "session", "", "only this session's")
	f.StringVar(&req.Request, "request", "", "only what was done under this request")
	f.StringVar(&req.Engineer, "engineer", "", "only of this engineer")
	f.Int32Var(&req.Limit, "limit", 100, "at most so many parts")
	f.BoolVar(&each, "parts", false, "list each part by itself")
	return c
}

func sizeText(n int64) string {
	switch {
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 10<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}

// remote reads a recording from the control plane as it comes. A connection that
// ends is made again from where it was.
type remote struct {
	open   func(*lockboxv1.ReadRecordingRequest) (lockboxv1.RecordingServiceReadRecordingClientStream, error)
	pause  func() error // before a connection is made again; an error once nobody reads any more
	req    lockboxv1.ReadRecordingRequest
	stream *lockboxv1.RecordingServiceReadRecordingClientStream
	rest   []byte
	ended  bool
	moved  bool // since the connection was made
	tries  int
}

// readRemote returns a reader of a recording, which ends with ctx.
func readRemote(ctx context.Context, c *client.Client, id string, follow bool) *remote {
	r := &remote{
		open: func(req *lockboxv1.ReadRecordingRequest) (lockboxv1.RecordingServiceReadRecordingClientStream, error) {
			return c.Recordings.ReadRecording(ctx, req)
		},
		pause: func() error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
				return nil
			}
		},
	}
	r.req.Id, r.req.Follow = id, follow
	return r
}

// maxTries is how often a connection is made again without getting anything.
const maxTries = 5

// Read implements io.Reader.
func (r *remote) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.ended {
			return 0, io.EOF
		}
		if err := r.receive(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *remote) receive() error {
	m, err := r.next()
	if err == nil {
		r.rest, r.ended, r.moved, r.tries = m.Data, m.Ended, r.moved || len(m.Data) > 0, 0
		r.req.Offset += int64(len(m.Data))
		return nil
	}
	r.Close()
	if errors.Is(err, io.EOF) { // the control plane wants to be asked again
		r.ended = !r.moved && !r.req.Follow
		return nil
	}
	if r.tries++; r.tries > maxTries || exitCode(err) == ExitRefused {
		return err
	}
	return r.pause()
}

func (r *remote) next() (*lockboxv1.ReadRecordingResponse, error) {
	if r.stream == nil {
		stream, err := r.open(&r.req)
		if err != nil {
			return nil, err
		}
		r.stream, r.moved = &stream, false
	}
	return r.stream.Receive()
}

// Close ends the connection.
func (r *remote) Close() {
	if r.stream != nil {
		_ = r.stream.Close() // nothing more is wanted of it
		r.stream = nil
	}
}

// opened calls do with a recording: a file that was exported, or else what the
// control plane has under that id.
func (a *app) opened(cmd *cobra.Command, name string, do func(r io.Reader) error) error {
	f, err := os.Open(name)
	if err == nil {
		defer f.Close()
		return do(f)
	}
	if strings.ContainsRune(name, filepath.Separator) {
		return err
	}
	return a.connected(func(ctx context.Context, c *client.Client, _ *cobra.Command, _ []string) error {
		first, err := firstPart(ctx, c, name)
		if err != nil {
			return err
		}
		r := readParts(ctx, c, first, false)
		defer r.Close()
		return do(r)
	})(cmd, nil)
}

// formats of an export.
var formats = []string{"raw", "asciicast", "events"}

func (a *app) sessionExport() *cobra.Command {
	var format, channel, out string
	c := &cobra.Command{
		Use:   "export ID [--format raw|asciicast|events] [--out FILE]",
		Short: "Write a recording to a file",
		Long: `Write a recording, named by its id or as the newest one of a session; of one in
parts all of them, or from the part on that is named:

  raw        as its device signed it, parts one behind the other: what 'lockbox
             session verify' and 'play' take
  asciicast  one terminal of it as asciicast v2, for asciinema and other players
  events     everything but what terminals showed, a JSON document a line`,
		Example: `  lockbox session export SES-7bee46424e0c9c64 --out session.rec && lockbox session verify session.rec
  lockbox session export SES-7bee46424e0c9c64 --format asciicast --out session.cast && asciinema play session.cast`,
		Args: args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(formats, format) {
				return usagef("--format is %q: want one of %s", format, strings.Join(formats, ", "))
			}
			if out == "" && format != "events" && isTerminal(cmd.OutOrStdout()) {
				return usagef("what a session wrote may steer your terminal: name a file with --out, or use 'lockbox session play'")
			}
			return a.opened(cmd, args[0], func(r io.Reader) error {
				return toFile(out, cmd.OutOrStdout(), func(w io.Writer) error { return export(w, r, format, channel) })
			})
		},
	}
	f := c.Flags()
	f.StringVar(&format, "format", "raw", "raw, asciicast or events")
	f.StringVar(&channel, "channel", "", "the terminal, of an asciicast; the first by default")
	f.StringVarP(&out, "out", "o", "", "file to write, instead of standard output")
	choices(c, "format", formats...)
	return c
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// toFile has f write a new file, mode 0600, or to otherwise if it has no name.
func toFile(name string, otherwise io.Writer, write func(io.Writer) error) error {
	if name == "" {
		return write(otherwise)
	}
	f, err := renameio.NewPendingFile(name, renameio.WithTempDir(filepath.Dir(name)), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	if err := write(f); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

func export(w io.Writer, r io.Reader, format, channel string) error {
	switch format {
	case "asciicast":
		return recording.Asciicast(w, r, channel)
	case "events":
		return exportEvents(w, r)
	}
	_, err := io.Copy(w, r)
	return err
}

// exportEvents writes every frame but output, a line each.
func exportEvents(w io.Writer, r io.Reader) error {
	in := recording.NewParts(r)
	for {
		f, b, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, ok := b.(recording.Output); ok {
			continue
		}
		line, err := json.Marshal(struct {
			Time time.Time      `json:"time"`
			Kind string         `json:"kind"`
			Body recording.Body `json:"body"`
		}{f.Time, kindOf(b), b})
		if err != nil {
			return err
		}
		if _, err := w.Write(append(escapeJSON(line), '\n')); err != nil {
			return err
		}
	}
}

// kindOf names what a frame holds, as SPEC.md of the format does.
func kindOf(b recording.Body) string {
	switch b.(type) {
	case recording.Meta:
		return "meta"
	case recording.Open:
		return "open"
	case recording.Resize:
		return "resize"
	case recording.Close:
		return "close"
	case recording.Command:
		return "command"
	case recording.FileEvent:
		return "file"
	case recording.Watch:
		return "watch"
	}
	return "end"
}

func (a *app) sessionVerify() *cobra.Command {
	var key string
	var some bool
	c := &cobra.Command{
		Use:   "verify FILE... [--node-key FINGERPRINT]",
		Short: "Verify an exported recording offline",
		Long: `Verify a recording that was exported with --format raw, offline: every frame, their
order, and the signature of its end. --node-key is the fingerprint of the device
node's key, as the request that was approved names it and 'lockbox device show'
prints it; without it the recording is only shown to be whole, and whose key
signed it. Exit status 1 if anything is wrong, with what, and where.

A recording in parts may be one file or several: each part is verified, and that
it continues the one before, so none is missing between two or exchanged. Parts
before the first and behind the last are named, with the digest of the one before;
that they are not here is wrong, too, unless --some says that it is meant so.`,
		Args: atLeastOne("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := verifyFiles(args, approval.Digest(strings.Replace(key, "SHA256:", "sha256:", 1)))
			if err != nil {
				return err
			}
			var shown any = slices.Concat(all...)
			if len(all) == 1 && len(all[0]) == 1 {
				shown = all[0][0]
			}
			err = a.printValue(cmd, shown, func(w io.Writer) {
				for _, parts := range all {
					showVerified(w, parts, key != "")
				}
			})
			if err != nil || some {
				return err
			}
			return allHere(all)
		},
	}
	c.Flags().StringVar(&key, "node-key", "", `fingerprint of the node's key, "sha256:…"`)
	c.Flags().BoolVar(&some, "some", false, "of a recording in parts these need not be all")
	return c
}

// brokenError is what was found wrong with a file that is here: nobody refused
// anything.
type brokenError struct{ error }

func (a *app) sessionKill() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "kill SESSION [--reason TEXT]",
		Short: "End somebody's session at once; disks relock, approvals are spent",
		Long: `End a support session at once, as the customer's approver: every channel and open
file is closed, the disks relock, and all that its engineer was approved for on
the device is revoked, executed or not. The answer says when the device confirmed,
or when it locks by itself if it could not be reached.`,
		Args: args("SESSION"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			resp, err := c.Recordings.KillSession(ctx, &lockboxv1.KillSessionRequest{Session: args[0], Reason: reason})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				fields(w, "Session", resp.Session.Id, "State", resp.Session.State)
				showRelocked(w, resp.Nodes)
			})
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return c
}

func (a *app) sessionWatch() *cobra.Command {
	var channel string
	var patience time.Duration
	var all bool
	c := &cobra.Command{
		Use:   "watch SESSION",
		Short: "Watch a session live",
		Long: `Watch a support session as it happens: the customer's approvers those on their
devices, an engineer their own. What was shown so far comes first, of a recording
in parts that of the newest, or with --all of all. The engineer
sees that a customer watches, and it is recorded. Leave with Ctrl-C; approvers end
the session with 'lockbox session kill'.

A session begins when its engineer connects. Before that this waits for it.`,
		Args: args("SESSION"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if err := untilBegun(ctx, c, cmd, args[0], patience); err != nil {
				return left(ctx, err)
			}
			part, err := c.Recordings.GetRecording(ctx, &lockboxv1.GetRecordingRequest{Id: args[0]})
			if err != nil {
				return left(ctx, err)
			}
			from := part.Id
			if all {
				from = part.Whole
			}
			r := readParts(ctx, c, from, true)
			defer r.Close()
			p := newPlayer(cmd, channel)
			err = left(ctx, p.play(ctx, r))
			return errors.Join(err, p.screen.restore())
		}),
	}
	c.Flags().StringVar(&channel, "channel", "", "only this channel; by default one terminal after the other")
	c.Flags().BoolVar(&all, "all", false, "from the first part of the recording on")
	c.Flags().DurationVar(&patience, "wait", 10*time.Minute, "wait at most so long for the session to begin")
	return c
}

// left returns err, unless whoever watched has left.
func left(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// lookEvery is how often it is looked whether something has begun.
const lookEvery = 500 * time.Millisecond

// untilBegun waits until something is recorded of a session that can still begin.
func untilBegun(ctx context.Context, c *client.Client, cmd *cobra.Command, id string, patience time.Duration) error {
	for began, told := time.Now(), false; ; told = true {
		_, err := c.Recordings.GetRecording(ctx, &lockboxv1.GetRecordingRequest{Id: id})
		if protocol.CodeOf(err) != protocol.CodeNotFound {
			return err
		}
		s, noSession := c.Sessions.GetSession(ctx, &lockboxv1.GetSessionRequest{Id: id})
		switch {
		case protocol.CodeOf(noSession) == protocol.CodeNotFound:
			return err
		case noSession != nil:
			return noSession
		case s.State != "enabled":
			return protocol.Errorf(protocol.CodeNotFound, "session %s is %s, and nothing was recorded of it", s.Id, s.State)
		case time.Since(began) >= patience:
			return protocol.Errorf(protocol.CodeNotFound, "%s has not connected to session %s: watch again later, or longer with --wait", s.Engineer, s.Id)
		case !told:
			fmt.Fprintf(cmd.ErrOrStderr(), "waiting for the session to begin: %s has not connected yet…\n", printable(s.Engineer))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookEvery):
		}
	}
}

func (a *app) sessionPlay() *cobra.Command {
	var channel, speed string
	var maxIdle time.Duration
	var files bool
	c := &cobra.Command{
		Use:   "play ID|FILE [--speed 2x] [--max-idle 2s]",
		Short: "Play a recording in the terminal",
		Long: `Play a recording: a file that was exported with --format raw, or what the control
plane has under the id of a recording or, the newest one, of a session. One in
parts is played to its end: from its beginning, or from the part that is named,
which begins with the terminals that are open.

One terminal after the other is shown, with commands and file operations of other
channels between them. What steers your terminal (clipboard, title, links,
queries) is left out. Keys: space pauses, . goes one step, + and - change the
speed, q quits. Where the output is no terminal it is written as plain text, at
once.`,
		Example: `  lockbox session play SES-7bee46424e0c9c64 --speed 4x --max-idle 1s
  lockbox session play REC-7b0c… --files`,
		Args: args("ID|FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			factor, err := strconv.ParseFloat(strings.TrimSuffix(speed, "x"), 64)
			if err != nil || factor < minSpeed || factor > maxSpeed {
				return usagef("--speed is %q: want a factor of %g to %g, as in 2x", speed, minSpeed, maxSpeed)
			}
			return a.opened(cmd, args[0], func(r io.Reader) error {
				if files {
					return a.showFiles(cmd, r)
				}
				p := newPlayer(cmd, channel)
				p.speed, p.maxIdle = factor, maxIdle
				restore := p.controls(cmd)
				return errors.Join(p.play(cmd.Context(), r), p.screen.restore(), restore())
			})
		},
	}
	f := c.Flags()
	f.StringVar(&speed, "speed", "1x", "how fast, as in 2x")
	f.DurationVar(&maxIdle, "max-idle", 2*time.Second, "wait no longer than this where nothing happened; 0: as long as it was")
	f.StringVar(&channel, "channel", "", "only this channel; by default one terminal after the other")
	f.BoolVar(&files, "files", false, "list the operations on files instead")
	return c
}

// showFiles lists the operations on files.
func (a *app) showFiles(cmd *cobra.Command, r io.Reader) error {
	in := recording.NewParts(r)
	events := []recording.FileEvent{}
	for {
		_, b, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if e, ok := b.(recording.FileEvent); ok {
			events = append(events, e)
		}
	}
	return a.printValue(cmd, events, func(w io.Writer) {
		var rows [][]string
		for _, e := range events {
			size, result := "", "done"
			if e.Size >= 0 {
				size = fmt.Sprint(e.Size)
			}
			if e.Error != "" {
				result = e.Error
			}
			rows = append(rows, []string{protocol.Clock(e.Time), string(e.Via), string(e.Op), pathOf(e), size, e.SHA256[:min(12, len(e.SHA256))], e.Client, result})
		}
		table(w, "TIME VIA OPERATION PATH SIZE SHA256 CLIENT RESULT", rows)
	})
}

func pathOf(e recording.FileEvent) string {
	path := e.Share + "/" + e.Path
	if e.To != "" {
		path += " → " + e.To
	}
	return path
}

// ended says how a recording ended.
func ended(in *recording.Reader) string {
	switch end := in.End(); {
	case end == nil:
	case end.Next != "":
		return fmt.Sprintf("goes on at %s in part %d, recording %s, which is not here", protocol.Stamp(end.Ended), in.Meta().Part()+1, end.Next)
	default:
		return fmt.Sprintf("ended at %s: %s", protocol.Stamp(end.Ended), end.Reason)
	}
	return "not closed: there is no more of it"
}

// damaged is the error of a recording that is not whole.
func damaged(err error) error {
	if _, ok := errors.AsType[*recording.Damage](err); ok {
		return brokenError{fmt.Errorf("%w; what was shown is whole up to there", err)}
	}
	return err
}
