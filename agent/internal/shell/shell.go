// Package shell is the shell of a support session: a small evaluator with
// commands of its own.
//
//   - There is no process behind it. Its commands see the shares of the lease,
//     below /shares/<share>, and nothing else (package files).
//   - Of the language it takes the parser only: simple commands, pipes,
//     redirections and patterns. The rest it refuses by name.
//   - Every command is recorded before it runs, and how it ended after. What it
//     does to files is recorded too, operation by operation.
//   - Output and time of a command are bounded, its panic ends it alone, and
//     nothing it shows steers a terminal.
//   - It knows neither SSH nor the lock: whoever serves the session says what may
//     be used, see [Node] and [Session].
package shell

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"

	"github.com/databox-lockbox/lockbox/agent/internal/shell/files"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// maxLine is the longest command line, in bytes. With its quotes it fits in an
// audit record.
const maxLine = 4 << 10

// Shell evaluates command lines. It is for one caller at a time.
type Shell struct {
	cfg        Config
	files      *files.System
	unrecorded *atomic.Bool
	dir        string // absolute
	done       bool   // exit was typed
	status     int    // of the last command
}

// New returns a shell in the folder above the shares.
func New(cfg Config) *Shell {
	if cfg.In == nil {
		cfg.In = strings.NewReader("")
	}
	s := &Shell{cfg: cfg, dir: "/", unrecorded: new(atomic.Bool)}
	s.files = files.New(files.Config{Grant: s.grant, Log: cfg.FileLog, Via: recording.ViaShell, Client: cfg.Client})
	return s
}

func (s *Shell) grant() (files.Grant, error) {
	lease, err := s.cfg.Node.Lease()
	return files.Grant{Access: lease.Access, Shares: lease.Shares}, err
}

// Unrecorded reports whether something could not be recorded: the session must
// end.
func (s *Shell) Unrecorded() bool { return s.unrecorded.Load() }

// Run runs one line and returns its exit status. It ends early when ctx does.
func (s *Shell) Run(ctx context.Context, text string) int {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	io := streams{in: s.cfg.In}
	if c := s.cfg.Console; c != nil {
		c.running(cancel)
		defer c.running(nil)
		io = streams{in: c.input(ctx), out: newOutput(c, true), err: newOutput(c, true), console: c}
	} else {
		io.out, io.err = newOutput(s.cfg.Out, false), newOutput(s.cfg.Err, false)
	}
	s.status = s.evaluate(ctx, text, io)
	io.out.flush(true)
	return s.status
}

// Lines runs lines from r until exit, the end of r, or the end of ctx, and
// returns the status of the last one. What a command reads is what follows its
// line.
func (s *Shell) Lines(ctx context.Context, r io.Reader) int {
	s.cfg.In = r
	return s.lines(ctx, func() (string, error) { return readLine(r) })
}

// Interact runs the lines that are typed at a terminal, as Lines does. prompt is
// asked for each.
func (s *Shell) Interact(ctx context.Context, c *Console, prompt func() string) int {
	s.cfg.Console = c
	c.editor.AutoCompleteCallback = func(line string, pos int, key rune) (string, int, bool) {
		return s.complete(ctx, line, pos, key)
	}
	return s.lines(ctx, func() (string, error) { return c.readLine(prompt()) })
}

func (s *Shell) lines(ctx context.Context, next func() (string, error)) int {
	for !s.over(ctx) {
		line, err := next()
		if strings.TrimSpace(line) != "" {
			s.Run(ctx, line)
		}
		if err != nil {
			break
		}
	}
	return s.status
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
