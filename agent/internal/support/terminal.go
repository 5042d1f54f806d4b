package support

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/term"

	"github.com/databox-lockbox/lockbox/protocol"
)

// terminal is one session channel: a shell, or one command.
type terminal struct {
	server  *Server
	session Session
	channel active

	pty           bool
	columns, rows int
	editor        *term.Terminal // of an interactive shell with a terminal
}

// serve answers the channel's requests. One of them starts the work; the others
// describe the terminal.
func (t *terminal) serve(ctx context.Context, requests <-chan *ssh.Request) {
	defer t.channel.Close()
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	started := false
	for r := range requests {
		ok := true
		switch r.Type {
		case "pty-req":
			ok = t.startTerminal(r.Payload)
		case "window-change":
			ok = t.resize(r.Payload)
		case "shell", "exec":
			if ok = !started; !ok {
				break
			}
			started = true
			line, isExec := execLine(r)
			work.Go(func() {
				defer cancel()
				t.finish(t.run(ctx, line, isExec))
			})
		default: // env, signal, agent and X11 forwarding, subsystems
			ok = false
		}
		if r.WantReply {
			r.Reply(ok, nil)
		}
	}
}

func execLine(r *ssh.Request) (string, bool) {
	if r.Type == "shell" {
		return "", false
	}
	var p struct{ Command string }
	if ssh.Unmarshal(r.Payload, &p) != nil {
		return "", true
	}
	return p.Command, true
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

// run runs one command, or lines until the end of input, and returns the exit
// status.
func (t *terminal) run(ctx context.Context, line string, isExec bool) int {
	sh := &shell{server: t.server, session: t.session, in: t.channel, out: t.channel, err: t.channel.Stderr(), dir: "/"}
	switch {
	case isExec:
		return sh.line(ctx, line)
	case t.pty:
		t.editor = term.NewTerminal(t.channel, "")
		t.editor.SetSize(t.columns, t.rows)
		sh.out, sh.err = t.editor, t.editor
		return t.interact(ctx, sh, func() (string, error) {
			t.editor.SetPrompt(t.prompt())
			return t.editor.ReadLine()
		})
	}
	return t.interact(ctx, sh, func() (string, error) { return readLine(t.channel) })
}

// prompt shows where one is and how the disks are.
func (t *terminal) prompt() string {
	state := strings.ToLower(t.server.cfg.Lock.Status().State)
	return fmt.Sprintf("%s [%s]> ", t.server.cfg.Node, state)
}

func (t *terminal) interact(ctx context.Context, sh *shell, next func() (string, error)) int {
	if t.pty {
		fmt.Fprintf(sh.out, "Support session %s on node %s for %s, ticket %s.\nEverything you do is recorded. Type help for the commands.\n",
			t.session.ID, t.server.cfg.Node, t.session.Engineer, t.session.Ticket)
	}
	status := 0
	for !sh.done && ctx.Err() == nil {
		line, err := next()
		if strings.TrimSpace(line) != "" {
			status = sh.line(ctx, line)
		}
		if err != nil {
			break
		}
	}
	return status
}

// maxLine is the longest command line, in bytes.
const maxLine = 16 << 10

// readLine reads one line, a byte at a time: what follows belongs to the
// command.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); len(line) < maxLine; {
		n, err := r.Read(b)
		if n == 1 && b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[:n]...)
		if err != nil {
			return string(line), err
		}
	}
	return "", errors.New("the line is too long")
}

// finish reports the exit status and ends the channel.
func (t *terminal) finish(status int) {
	t.channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status)}))
	t.channel.CloseWrite()
	t.channel.Close()
}

// refusal is the text of an error for the engineer.
func refusal(err error) string {
	if e, ok := errors.AsType[*protocol.Error](err); ok {
		return e.Error()
	}
	return err.Error()
}

// commandTimeout bounds one command. Hashing a full disk takes long.
const commandTimeout = 30 * time.Minute
