package support

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/agent/internal/shell"
)

// terminal is one session channel: a shell, or one command.
type terminal struct {
	conn    *connection
	channel active

	// These belong to the one who answers the requests; the console is safe for
	// concurrent use and does not change once the work has started.
	started       bool
	pty           bool
	columns, rows int
	console       *shell.Console // of an interactive shell with a terminal
}

// serve answers the channel's requests. One of them starts the work; the others
// describe the terminal.
func (t *terminal) serve(ctx context.Context, requests <-chan *ssh.Request) {
	defer t.channel.Close()
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	for r := range requests {
		run := t.answer(r)
		if r.WantReply {
			r.Reply(run != nil, nil)
		}
		if run != nil {
			run(ctx, &work, cancel)
		}
	}
}

// answer decides about a request. It returns what to do once it was answered,
// nil to refuse it.
func (t *terminal) answer(r *ssh.Request) func(context.Context, *sync.WaitGroup, context.CancelFunc) {
	nothing := func(context.Context, *sync.WaitGroup, context.CancelFunc) {}
	switch r.Type {
	case "pty-req":
		if !t.started && t.startTerminal(r.Payload) {
			return nothing
		}
	case "window-change":
		if t.resize(r.Payload) {
			return nothing
		}
	case "shell", "exec":
		line, isExec, ok := execLine(r)
		if t.started || !ok {
			return nil
		}
		t.started = true
		if t.pty && !isExec {
			t.console = shell.NewConsole(t.channel, t.columns, t.rows)
		}
		return func(ctx context.Context, work *sync.WaitGroup, cancel context.CancelFunc) {
			if t.console != nil {
				work.Go(func() { t.console.Pump(ctx) })
			}
			work.Go(func() {
				defer cancel()
				sh := shell.New(t.config(isExec))
				t.finish(t.run(ctx, sh, line, isExec))
				if sh.Unrecorded() {
					t.conn.Close()
				}
			})
		}
	}
	return nil // env, signal, agent and X11 forwarding, subsystems
}

func execLine(r *ssh.Request) (line string, isExec, ok bool) {
	if r.Type == "shell" {
		return "", false, true
	}
	var p struct{ Command string }
	err := ssh.Unmarshal(r.Payload, &p)
	return p.Command, true, err == nil
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
}

// config is that of this channel's shell.
func (t *terminal) config(isExec bool) shell.Config {
	cfg := shell.Config{
		Node: t.conn, Session: t.conn, Now: t.conn.server.cfg.Clock.Now,
		Out: t.channel, Err: t.channel.Stderr(), Log: t.conn.server.cfg.Log,
	}
	if isExec && t.pty { // output only; a terminal wants its line ends
		cfg.Out, cfg.Err = lineEnds{t.channel}, lineEnds{t.channel}
	}
	return cfg
}

// run runs one command line, or lines until the end of input, and returns the
// exit status.
func (t *terminal) run(ctx context.Context, sh *shell.Shell, line string, isExec bool) int {
	switch {
	case isExec:
		return sh.Run(ctx, line)
	case t.pty:
		t.greet()
		return sh.Interact(ctx, t.console, t.prompt)
	}
	return sh.Lines(ctx, t.channel)
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

// finish reports the exit status and ends the channel.
func (t *terminal) finish(status int) {
	t.channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status)}))
	t.channel.CloseWrite()
	t.channel.Close()
}

// lineEnds ends lines as a terminal wants them.
type lineEnds struct{ w io.Writer }

func (l lineEnds) Write(p []byte) (int, error) {
	if _, err := l.w.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}
