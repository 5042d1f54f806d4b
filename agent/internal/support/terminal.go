package support

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/term"
)

// maxLine is the longest command line, in bytes. With its quotes it fits in an
// audit record.
const maxLine = 4 << 10

// terminal is one session channel: a shell, or one command.
type terminal struct {
	conn    *connection
	channel active

	// These belong to the one who answers the requests; the editor is safe for
	// concurrent use and does not change once the work has started.
	started       bool
	pty           bool
	columns, rows int
	editor        *term.Terminal // of an interactive shell with a terminal
	keys          *keyboard
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
			t.keys = newKeyboard(t.channel)
			t.editor = term.NewTerminal(t.keys, "")
			t.editor.SetSize(t.columns, t.rows)
		}
		return func(ctx context.Context, work *sync.WaitGroup, cancel context.CancelFunc) {
			if t.keys != nil {
				work.Go(func() { t.keys.pump(ctx) })
			}
			work.Go(func() {
				defer cancel()
				sh := &shell{conn: t.conn, out: t.channel, err: t.channel.Stderr(), dir: "/"}
				t.finish(t.run(ctx, sh, line, isExec))
				if sh.unrecorded {
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
	if t.editor != nil {
		t.editor.SetSize(t.columns, t.rows)
	}
}

// run runs one command line, or lines until the end of input, and returns the
// exit status.
func (t *terminal) run(ctx context.Context, sh *shell, line string, isExec bool) int {
	switch {
	case isExec && t.pty: // output only; a terminal wants its line ends
		sh.out, sh.err = lineEnds{t.channel}, lineEnds{t.channel}
		return sh.line(ctx, line)
	case isExec:
		return sh.line(ctx, line)
	case t.pty:
		sh.out, sh.err, sh.keys = t.editor, t.editor, t.keys
		return t.interact(ctx, sh)
	}
	return lines(ctx, sh, func() (string, error) { return readLine(t.channel) })
}

// interact is a shell with a terminal.
func (t *terminal) interact(ctx context.Context, sh *shell) int {
	one := t.conn.session
	fmt.Fprintf(sh.out, "Support session %s on node %s for %s, ticket %s.\nEverything you do is recorded. Type help for the commands.\n",
		visible(string(one.ID)), t.conn.server.cfg.Node, visible(string(one.Engineer)), visible(string(one.Ticket)))
	return lines(ctx, sh, func() (string, error) {
		t.editor.SetPrompt(t.prompt())
		return t.editor.ReadLine()
	})
}

// prompt shows where one is and how the disks are.
func (t *terminal) prompt() string {
	cfg := t.conn.server.cfg
	return fmt.Sprintf("%s [%s]> ", cfg.Node, strings.ToLower(cfg.Lock.Status().State))
}

// lines runs lines until exit, the end of input, or the end of ctx, and returns
// the status of the last one.
func lines(ctx context.Context, sh *shell, next func() (string, error)) int {
	for !sh.done && ctx.Err() == nil {
		line, err := next()
		if strings.TrimSpace(line) != "" {
			sh.line(ctx, line)
		}
		if err != nil {
			break
		}
	}
	return sh.status
}

// readLine reads one line, a byte at a time: what follows belongs to the next.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); len(line) <= maxLine; {
		n, err := r.Read(b)
		if n == 1 && b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[:n]...)
		if err != nil {
			return string(line), err
		}
	}
	return string(line), errors.New("the line is too long")
}

// finish reports the exit status and ends the channel.
func (t *terminal) finish(status int) {
	t.channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status)}))
	t.channel.CloseWrite()
	t.channel.Close()
}
