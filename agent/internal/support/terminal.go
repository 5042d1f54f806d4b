package support

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/agent/internal/recorder"
	"github.com/databox-lockbox/lockbox/agent/internal/shell"
	"github.com/databox-lockbox/lockbox/agent/internal/shell/files"
	"github.com/databox-lockbox/lockbox/agent/internal/support/transfer"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// terminal is one session channel: a shell, one command, or files.
type terminal struct {
	conn    *connection
	name    string // of the channel, in the recording
	channel active
	ended   sync.Once // the client has been told how it ended

	// These belong to the one who answers the requests; the console is safe for
	// concurrent use and does not change once the work has started.
	started       bool
	pty           bool
	columns, rows int
	console       *shell.Console     // of an interactive shell with a terminal
	rec           *recorder.Terminal // once the work has started

	unrecorded bool // the work could not be recorded: the connection ends with it
}

// serve answers the channel's requests. One of them starts the work; the others
// describe the terminal, or are signals for what runs.
func (t *terminal) serve(ctx context.Context, requests <-chan *ssh.Request) {
	defer t.channel.Close()
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	for r := range requests {
		then := t.answer(r)
		if r.WantReply {
			r.Reply(then != nil, nil)
		}
		if then != nil {
			then(ctx, &work, cancel)
		}
	}
}

// deed is what to do once a request was answered. Whoever starts work in it adds
// it to the group; cancel ends the work.
type deed func(ctx context.Context, work *sync.WaitGroup, cancel context.CancelFunc)

func nothing(context.Context, *sync.WaitGroup, context.CancelFunc) {}

// answer decides about a request. It returns what to do, nil to refuse it.
func (t *terminal) answer(r *ssh.Request) deed {
	switch r.Type {
	case "pty-req":
		if !t.started && t.startTerminal(r.Payload) {
			return nothing
		}
	case "window-change":
		if t.resize(r.Payload) {
			return nothing
		}
	case "signal", "break":
		return t.signal(r)
	case "shell":
		return t.withConsole(t.start(t.shell))
	case "exec":
		if line, ok := text(r.Payload); ok {
			return t.withConsole(t.start(func(ctx context.Context) int { return t.exec(ctx, line) }))
		}
	case "subsystem":
		if name, ok := text(r.Payload); ok && name == "sftp" {
			return t.start(t.sftp)
		}
	}
	return nil // env, agent and X11 forwarding, other subsystems
}

// text reads a payload that is one string, perhaps with more behind it.
func text(payload []byte) (string, bool) {
	var p struct {
		Text string
		Rest []byte `ssh:"rest"`
	}
	err := ssh.Unmarshal(payload, &p)
	return p.Text, err == nil
}

// start has the channel do its one piece of work, which returns an exit status.
func (t *terminal) start(do func(context.Context) int) deed {
	if t.started {
		return nil
	}
	t.started = true
	if t.pty {
		t.rec = t.conn.sitting.Terminal(t.name, t.columns, t.rows)
	} else {
		t.rec = t.conn.sitting.Plain(t.name)
	}
	return func(ctx context.Context, work *sync.WaitGroup, cancel context.CancelFunc) {
		work.Go(func() {
			defer cancel()
			status := do(ctx)
			t.unrecorded = t.rec.Close() != nil || t.unrecorded
			if t.unrecorded {
				t.conn.server.giveUp(t.conn)
			}
			t.exit("exit-status", ssh.Marshal(struct{ Status uint32 }{uint32(status)}))
		})
	}
}

// withConsole gives the work a console if the client has a terminal.
func (t *terminal) withConsole(begin deed) deed {
	if begin == nil || !t.pty {
		return begin
	}
	t.console = shell.NewConsole(struct {
		io.Reader
		io.Writer
	}{t.channel, shown{t.channel, t.rec}}, t.columns, t.rows)
	return func(ctx context.Context, work *sync.WaitGroup, cancel context.CancelFunc) {
		work.Go(func() { t.console.Pump(ctx) })
		begin(ctx, work, cancel)
	}
}

// signal ends what runs, as a signal does. INT, and break, only interrupt the
// command of a shell with a terminal.
func (t *terminal) signal(r *ssh.Request) deed {
	name := "INT"
	if r.Type == "signal" {
		name, _ = text(r.Payload)
	}
	switch {
	case !t.started || !slices.Contains(signals, name):
		return nil
	case t.console != nil && name == "INT":
		return func(context.Context, *sync.WaitGroup, context.CancelFunc) { t.console.Interrupt() }
	}
	return func(_ context.Context, _ *sync.WaitGroup, cancel context.CancelFunc) { t.kill(name, cancel) }
}

// signals are those that end what runs, RFC 4254 section 6.10.
var signals = []string{"HUP", "INT", "KILL", "QUIT", "TERM"}

// kill ends what runs and tells the client so at once, whatever it waits for.
func (t *terminal) kill(name string, cancel context.CancelFunc) {
	t.exit("exit-signal", ssh.Marshal(struct {
		Name           string
		Core           bool
		Text, Language string
	}{Name: name}))
	cancel()
}

func (t *terminal) startTerminal(payload []byte) bool {
	var p struct {
		Term                         string
		Columns, Rows, Width, Height uint32
		Modes                        string
	}
	if ssh.Unmarshal(payload, &p) != nil {
		return false
	}
	t.pty = true
	t.setSize(p.Columns, p.Rows)
	return true
}

func (t *terminal) resize(payload []byte) bool {
	var p struct{ Columns, Rows, Width, Height uint32 }
	if ssh.Unmarshal(payload, &p) != nil {
		return false
	}
	t.setSize(p.Columns, p.Rows)
	return true
}

// setSize ignores sizes that no terminal has; a client without one sends zero.
func (t *terminal) setSize(columns, rows uint32) {
	if columns == 0 || rows == 0 || columns > 1000 || rows > 1000 {
		return
	}
	t.columns, t.rows = int(columns), int(rows)
	if t.console != nil {
		t.console.SetSize(t.columns, t.rows)
	}
	if t.rec != nil {
		_ = t.rec.Resize(t.columns, t.rows) // if it fails, so does the next output
	}
}

// config is that of this channel's shell.
func (t *terminal) config() shell.Config {
	return shell.Config{
		Node: t.conn, Session: recorded{t.conn, t.rec}, FileLog: t.conn.sitting, Client: "channel " + t.name, Now: t.conn.server.cfg.Clock.Now,
		In: t.channel, Console: t.console, Out: shown{t.channel, t.rec}, Err: shown{t.channel.Stderr(), t.rec}, Log: t.conn.server.cfg.Log,
	}
}

// exec runs one command line.
func (t *terminal) exec(ctx context.Context, line string) int {
	if words := shell.Words(line); len(words) > 1 && words[0] == "scp" {
		return t.scp(ctx, words)
	}
	sh := shell.New(t.config())
	defer func() { t.unrecorded = sh.Unrecorded() }()
	return sh.Run(ctx, line)
}

// sftp serves files until the client has enough.
func (t *terminal) sftp(ctx context.Context) int {
	return t.serveFiles(ctx, "sftp", recording.ViaSFTP, func(system *files.System) error {
		return transfer.ServeSFTP(ctx, t.channel, shown{t.channel.Stderr(), t.rec}, system)
	})
}

// scp is the far end of a client's scp -O.
func (t *terminal) scp(ctx context.Context, words []string) int {
	copies, err := transfer.ParseSCP(words[1:])
	if err != nil {
		fmt.Fprintln(t.channel.Stderr(), shell.Visible(err.Error()))
		return exitUsage
	}
	return t.serveFiles(ctx, strings.Join(words, " "), recording.ViaSCP, func(system *files.System) error {
		return transfer.ServeSCP(ctx, t.channel, system, copies)
	})
}

// Exit statuses of what is no shell.
const (
	exitFailed = 1
	exitUsage  = 2
)

// serveFiles has the shares served. What is done is recorded as a command, and
// each operation.
func (t *terminal) serveFiles(ctx context.Context, command string, via recording.Via, serve func(*files.System) error) int {
	words := map[string]string{"command": shell.Visible(command)}
	session := recorded{t.conn, t.rec}
	err := session.Record(ctx, auditlog.OpRunCommand, auditlog.Start, words)
	if err == nil {
		_, err = t.conn.grant() // to say at once what there is to do
	} else {
		t.unrecorded = true
	}
	if err == nil {
		err = serve(files.New(files.Config{Grant: t.conn.grant, Log: t.conn.sitting, Via: via, Client: "channel " + t.name}))
	}
	status, result := 0, auditlog.Success
	if err != nil {
		status, result = exitFailed, auditlog.Failure
		fmt.Fprintln(t.channel.Stderr(), shell.Visible(strings.ReplaceAll(err.Error(), "\n", "; ")))
	}
	words["status"] = strconv.Itoa(status)
	unrecorded := session.Record(context.WithoutCancel(ctx), auditlog.OpRunCommand, result, words)
	t.unrecorded = t.unrecorded || unrecorded != nil || errors.Is(err, files.ErrUnrecorded)
	return status
}

// shell runs lines until the end of input.
func (t *terminal) shell(ctx context.Context) int {
	sh := shell.New(t.config())
	defer func() { t.unrecorded = sh.Unrecorded() }()
	if !t.pty {
		return sh.Lines(ctx, t.channel)
	}
	t.conn.server.atConsole(t, true)
	defer t.conn.server.atConsole(t, false)
	t.greet()
	return sh.Interact(ctx, t.console, t.prompt)
}

func (t *terminal) greet() {
	one := t.conn.session
	fmt.Fprintf(t.console, "Support session %s on node %s for %s, ticket %s.\nEverything you do is recorded. Type help for the commands.\n",
		shell.Visible(string(one.ID)), t.conn.server.cfg.Node, shell.Visible(string(one.Engineer)), shell.Visible(string(one.Ticket)))
}

// prompt shows where one is and how the disks are.
func (t *terminal) prompt() string {
	cfg := t.conn.server.cfg
	return fmt.Sprintf("%s [%s]> ", cfg.Node, strings.ToLower(cfg.Lock.Status().State))
}

// exit tells the client how the work ended, once, and ends the channel. That is an
// end of file, too, and CloseWrite must not meet a Write of what was killed.
func (t *terminal) exit(request string, payload []byte) {
	t.ended.Do(func() {
		t.channel.SendRequest(request, false, payload)
		t.channel.Close()
	})
}
