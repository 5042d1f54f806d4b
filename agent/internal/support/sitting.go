package support

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/agent/internal/recorder"
	"github.com/databox-lockbox/lockbox/agent/internal/shell"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// endWithin is how long the end of a recording waits for what is still to be
// recorded of its connections, which are closed.
const endWithin = 2 * time.Second

// sitting is what is recorded as one: a session from its first login until it
// ends, or until everybody is put out.
type sitting struct {
	*recorder.Recording
	files FileLog       // nil: nobody else is told of them
	left  chan struct{} // closed when it is over and everybody has left

	// Guarded by the server's mu:
	conns    int // recorded in it
	over     bool
	channels int // that it has had
	consoles map[*terminal]bool
}

// File records an operation on a file, and tells those who look after the files.
func (s *sitting) File(e recording.FileEvent) error {
	if err := s.Recording.File(e); err != nil || s.files == nil {
		return err
	}
	return s.files.File(e)
}

// sit puts a connection that has logged in on record. It is to stand up again.
func (s *Server) sit(ctx context.Context, one Session) (*sitting, error) {
	s.beginning.Lock() // two would begin two recordings
	defer s.beginning.Unlock()
	if sit, err := s.sitDown(one, nil); sit != nil || err != nil {
		return sit, err
	}
	meta := recording.Meta{Kind: recording.Session, Session: one.ID, Engineer: one.Engineer, EngineerKey: one.Key, Ticket: one.Ticket}
	if lease, ok := s.cfg.Lock.Lease(); ok {
		meta.Request = lease.RequestID
	}
	rec, err := s.cfg.Recorder.Begin(ctx, meta)
	if err != nil {
		return nil, fmt.Errorf("this cannot be recorded, so session %s opens nothing: %w", one.ID, err)
	}
	sit, err := s.sitDown(one, rec)
	if err != nil {
		_ = rec.End(recording.EndDisabled) // it is closed again later
		return nil, err
	}
	rec.OnWatch(func(names []string) { s.watched(sit, names) })
	return sit, nil
}

// sitDown adds a connection to the session's sitting, or to a new one with a
// recording. Without either it returns nil.
func (s *Server) sitDown(in Session, rec *recorder.Recording) (*sitting, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.sessions[in.ID]
	if one == nil || one.ended || s.stopped {
		return nil, protocol.Errorf(protocol.CodeNotFound, "session %s has ended", in.ID)
	}
	if one.sitting == nil && rec != nil {
		one.sitting = &sitting{Recording: rec, files: s.cfg.Files, left: make(chan struct{}), consoles: make(map[*terminal]bool)}
	}
	if one.sitting != nil {
		one.sitting.conns++
	}
	return one.sitting, nil
}

// stand takes a connection out of its sitting.
func (s *Server) stand(sit *sitting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sit.conns--
	if sit.over && sit.conns == 0 {
		close(sit.left)
	}
}

// closeLocked ends the sitting of a session, whose connections are being closed:
// its recording ends as soon as they have left.
func (s *Server) closeLocked(one *session, reason recording.Reason) {
	sit := one.sitting
	if sit == nil {
		return
	}
	one.sitting, sit.over = nil, true
	if sit.conns == 0 {
		close(sit.left)
	}
	s.handlers.Go(func() {
		select {
		case <-sit.left:
		case <-time.After(endWithin):
		}
		if err := sit.End(reason); err != nil {
			s.cfg.Log.Error().Err(err).Str("recording", sit.ID()).Msg("cannot close a recording yet")
		}
	})
}

// sayWithin is how long telling those who are put out may take.
const sayWithin = 500 * time.Millisecond

// giveUp ends a session that cannot be recorded any more, each of its connections
// by itself: it says why, and closes this one.
func (s *Server) giveUp(c *connection) {
	s.mu.Lock()
	if one := s.sessions[c.session.ID]; one != nil && one.sitting == c.sitting {
		s.closeLocked(one, recording.EndFailed)
	}
	s.mu.Unlock()
	why := "this cannot be recorded, so it ends"
	if err := c.sitting.Err(); err != nil {
		why = err.Error()
	}
	defer time.AfterFunc(sayWithin, func() { c.Close() }).Stop()
	c.parting.Do(func() { c.say("*** " + shell.Visible(why)) })
	c.Close()
}

// partWithin is how long clients that are put out may take to hear why: no longer
// than those who end it would notice.
const partWithin = 100 * time.Millisecond

// partings say to clients how their session ended.
var partings = map[recording.Reason]string{
	recording.EndKilled:   "killed by the customer or an admin",
	recording.EndDisabled: "it was disabled",
	recording.EndRevoked:  "the approval was revoked",
	recording.EndLease:    "the disks are locked again",
	recording.EndDeadMan:  "the node heard nothing of the control plane, or of its peer, and locked",
	recording.EndDone:     "the work is done, or the agent stops",
}

// part tells the clients of a connection why it ends, and closes it. A client that
// does not listen costs [partWithin].
func (c *connection) part(why string) {
	defer c.raw.Close()
	said := make(chan struct{})
	c.server.handlers.Go(func() { // ends with the connection; that holds handlers above zero
		defer close(said)
		c.parting.Do(func() { c.say(shell.Visible(fmt.Sprintf("*** session %s ended: %s", c.session.ID, why))) })
	})
	select {
	case <-said:
	case <-time.After(partWithin):
	}
}

// say writes a line on every channel of a connection.
func (c *connection) say(line string) {
	c.mu.Lock()
	terminals := slices.Collect(maps.Keys(c.terminals))
	c.mu.Unlock()
	var all sync.WaitGroup
	for _, t := range terminals {
		all.Go(func() { fmt.Fprint(t.channel.Stderr(), "\r\n"+line+"\r\n") })
	}
	all.Wait()
}

// turnAway refuses the first channel of a connection, which is how a client is
// told why there will be none.
func turnAway(ctx context.Context, channels <-chan ssh.NewChannel, why error) {
	select {
	case nc, ok := <-channels:
		if ok {
			nc.Reject(ssh.ConnectionFailed, shell.Visible(why.Error()))
		}
	case <-time.After(handshakeTimeout):
	case <-ctx.Done():
	}
}

// channel gives a channel a name in the recording.
func (s *Server) channel(sit *sitting) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	sit.channels++
	return strconv.Itoa(sit.channels)
}

// watched tells whoever sits at a terminal who watches them.
func (s *Server) watched(sit *sitting, names []string) {
	text := "nobody watches this session any more"
	if len(names) > 0 {
		text = "this session is watched by " + shell.Visible(strings.Join(names, ", "))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := range sit.consoles {
		s.handlers.Go(func() { fmt.Fprintf(t.console, "*** %s\n", text) }) // its connection holds handlers above zero
	}
}

// atConsole says whether somebody sits at the terminal of a channel.
func (s *Server) atConsole(t *terminal, sits bool) {
	s.mu.Lock()
	if sits {
		t.conn.sitting.consoles[t] = true
	} else {
		delete(t.conn.sitting.consoles, t)
	}
	s.mu.Unlock()
	if names := t.conn.sitting.Watchers(); sits && len(names) > 0 {
		fmt.Fprintf(t.console, "*** this session is watched by %s\n", shell.Visible(strings.Join(names, ", ")))
	}
}

// shown is output that is recorded before it is shown.
type shown struct {
	w   io.Writer
	rec *recorder.Terminal
}

func (o shown) Write(p []byte) (int, error) {
	if err := o.rec.Output(p); err != nil {
		return 0, err
	}
	return o.w.Write(p)
}

// recorded is the session of a channel's shell: its command lines are in the
// recording, too.
type recorded struct {
	*connection
	rec *recorder.Terminal
}

// Record implements [shell.Session].
func (r recorded) Record(ctx context.Context, op auditlog.Operation, result auditlog.Result, properties map[string]string) error {
	if op == auditlog.OpRunCommand && (result == auditlog.Start || result == auditlog.Refused) {
		if err := r.rec.Command(properties["command"]); err != nil {
			return err
		}
	}
	return r.connection.Record(ctx, op, result, properties)
}
