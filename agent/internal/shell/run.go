package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"mvdan.cc/sh/v3/syntax"

	"github.com/databox-lockbox/lockbox/agent/internal/shell/files"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// Exit statuses, as a POSIX shell has them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitTimeout     = 124
	exitNotFound    = 127
	exitInterrupted = 130
	exitPipe        = 141
)

// What bounds one command. Those that go through files may take as long as a
// lease does by default.
const (
	quickTime = 5 * time.Minute
	longTime  = 8 * time.Hour
	hungTime  = 10 * time.Second // after its time was over
)

// streams are what a command reads and writes.
type streams struct {
	in       io.Reader
	out, err *output
	console  *Console // if out is its terminal
}

// task is one command as it runs.
type task struct {
	*Shell
	command
	name    string
	opts    options
	in      io.Reader
	out     io.Writer
	err     *output
	console *Console // of an interactive command, whose output is the terminal
	failed  bool     // some of it could not be done, which was said
}

// evaluate runs a line.
func (s *Shell) evaluate(ctx context.Context, text string, io streams) int {
	list, err := parse(text)
	if err != nil {
		return s.fail(io.err, exitUsage, "%v", err)
	}
	status := exitOK
	for _, stmt := range list {
		if s.over(ctx) {
			break
		}
		status = s.statement(ctx, stmt, io)
	}
	return status
}

// over reports whether nothing more runs.
func (s *Shell) over(ctx context.Context) bool {
	return s.done || ctx.Err() != nil || s.unrecorded.Load()
}

func (s *Shell) statement(ctx context.Context, stmt *syntax.Stmt, io streams) int {
	cmd, ok := stmt.Cmd.(*syntax.BinaryCmd)
	switch {
	case !ok:
		return s.simple(ctx, stmt, io)
	case cmd.Op == syntax.Pipe:
		return s.pipe(ctx, stages(cmd), io)
	}
	status := s.statement(ctx, cmd.X, io)
	if s.over(ctx) || (status == exitOK) != (cmd.Op == syntax.AndStmt) {
		return status
	}
	return s.statement(ctx, cmd.Y, io)
}

// pipe runs commands at once, the output of each the input of the next, and
// returns the status of the last. Each is in a folder of its own.
func (s *Shell) pipe(ctx context.Context, list []*syntax.Stmt, all streams) int {
	var work sync.WaitGroup
	statuses := make([]int, len(list))
	in, from := all.in, (*io.PipeReader)(nil)
	for i, stmt := range list {
		mine, reads, writes := all, from, (*io.PipeWriter)(nil)
		mine.in = in
		if i < len(list)-1 {
			from, writes = io.Pipe()
			in, mine.out, mine.console = from, newOutput(writes, false), nil
		}
		sub := *s
		work.Go(func() {
			statuses[i] = sub.statement(ctx, stmt, mine)
			if writes != nil {
				mine.out.flush(true)
				writes.Close()
			}
			if reads != nil {
				reads.CloseWithError(errPipe)
			}
		})
	}
	work.Wait()
	return statuses[len(list)-1]
}

// simple records one command, runs it, and records how it ended.
func (s *Shell) simple(ctx context.Context, stmt *syntax.Stmt, io streams) int {
	list, err := words(stmt.Cmd.(*syntax.CallExpr).Args)
	if err != nil || len(list) == 0 {
		return s.fail(io.err, exitUsage, "cannot read the line: %v", err)
	}
	said := said(list, stmt.Redirs)
	name := list[0].text
	c, known := commands[name]
	if !known {
		if err := s.recordCommand(ctx, auditlog.Refused, said, nil); err != nil {
			return s.fail(io.err, exitFailed, "%s", err)
		}
		return s.fail(io.err, exitNotFound, "%s: no such command; type help", strconv.Quote(name))
	}
	s.cfg.Session.Running(true)
	defer s.cfg.Session.Running(false)
	t := &task{Shell: s, command: c, name: name}
	ctx, cancel := context.WithTimeout(ctx, t.time())
	defer cancel()
	// What hangs in a read or write hears of no context.
	defer time.AfterFunc(t.time()+hungTime, s.cfg.Session.Hung).Stop()

	args, err := s.expand(ctx, list[1:])
	began := map[string]string{}
	if err == nil && slices.ContainsFunc(list, func(w word) bool { return w.pattern != "" }) {
		began["arguments"] = quoteSome(args)
	}
	if err := s.recordCommand(ctx, auditlog.Start, said, began); err != nil {
		return s.fail(io.err, exitFailed, "%s: %s", name, err)
	}
	if err == nil {
		err = t.run(ctx, args, stmt.Redirs, io)
	}
	status := t.explain(ctx, err, io.err)
	result := auditlog.Success
	if status != exitOK {
		result = auditlog.Failure
	}
	if err := s.recordCommand(context.WithoutCancel(ctx), result, said, map[string]string{"status": strconv.Itoa(status)}); err != nil {
		return s.fail(io.err, exitFailed, "%s", err)
	}
	return status
}

func (t *task) time() time.Duration {
	if t.long {
		return longTime
	}
	return quickTime
}

// run runs the command with its streams redirected.
func (t *task) run(ctx context.Context, args []string, redirs []*syntax.Redirect, io streams) (err error) {
	var opened []redirected
	defer func() {
		io.out.flush(true)
		for _, r := range opened {
			err = errors.Join(err, r.close(ctx.Err() == nil && !t.unrecorded.Load()))
		}
	}()
	for _, r := range redirs {
		one, err := t.redirect(ctx, r, &io)
		if err != nil {
			return err
		}
		if one.file != nil {
			opened = append(opened, one)
		}
	}
	if t.opts, args, err = t.parseOptions(args); err != nil {
		return err
	}
	t.in, t.out, t.err, t.console = contextReader{ctx, io.in}, io.out, io.err, io.console
	return t.invoke(ctx, args)
}

// redirected is a file that is a command's input or output.
type redirected struct {
	file *files.File
	out  *output // nil for input
}

// close ends the redirection. If the command was interrupted, what was to be
// replaced stays as it was.
func (r redirected) close(keep bool) error {
	if r.out == nil {
		return r.file.Close()
	}
	err := r.out.flush(true)
	if err != nil || !keep {
		return errors.Join(err, r.file.Abandon())
	}
	return r.file.Close()
}

// nowhere is the only device there is.
const nowhere = "/dev/null"

func (t *task) redirect(ctx context.Context, r *syntax.Redirect, io *streams) (one redirected, err error) {
	to, err := redirection(r)
	if err != nil {
		return one, err
	}
	if to.op == ">&" {
		if from := io.out; to.word.text == "1" {
			io.err = from
		} else if to.fd == 1 {
			io.out, io.console = io.err, nil
		}
		return one, nil
	}
	names, err := t.expand(ctx, []word{to.word})
	if err != nil {
		return one, err
	}
	if len(names) != 1 {
		return one, fmt.Errorf("%s: more than one file matches", to.word.text)
	}
	target := t.resolve(names[0])
	switch {
	case to.op == "<" && target == nowhere:
		io.in = strings.NewReader("")
		return one, nil
	case to.op == "<":
		one.file, err = t.files.Open(target)
		io.in = one.file
	case target == nowhere:
		one.out = newOutput(discard{}, false)
	case to.op == ">>":
		one.file, err = t.files.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	default:
		one.file, err = t.files.Replace(target)
	}
	if err != nil {
		return redirected{}, about(names[0], err)
	}
	if to.op == "<" {
		return one, nil
	}
	if one.out == nil {
		one.out = newOutput(one.file, false)
	}
	if to.fd == 2 {
		io.err = one.out
	} else {
		io.out, io.console = one.out, nil
	}
	return one, nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// invoke runs a command. A panic ends the command, not the agent.
func (t *task) invoke(ctx context.Context, args []string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			t.cfg.Log.Error().Str("command", t.name).Any("panic", p).Bytes("stack", debug.Stack()).Msg("panic in a support command")
			err = errors.New("internal error: the command ended, the shell goes on")
		}
	}()
	return t.command.run(ctx, t, args)
}

// complain says that something could not be done; the command goes on.
func (t *task) complain(what string, err error) {
	t.failed = true
	if errors.Is(err, files.ErrUnrecorded) {
		t.unrecorded.Store(true)
	}
	t.say("%s: %s: %s", t.name, what, Because(err))
}

// say writes a line to the errors.
func (t *task) say(format string, args ...any) {
	if o, ok := t.out.(*output); ok {
		o.flush(false)
	}
	t.fail(t.err, exitFailed, format, args...)
}

// ends reports whether an error ends the whole command, rather than what it does
// with one of several files.
func ends(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, errPipe) || errors.Is(err, errTooMuch) || errors.Is(err, files.ErrUnrecorded)
}

// each does something for each name. What fails is said, and the next one has
// its turn.
func (t *task) each(ctx context.Context, names []string, do func(name string) error) error {
	for _, name := range names {
		err := do(name)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if ends(ctx, err) {
				return err
			}
			t.complain(name, err)
		}
	}
	return nil
}

// Because is why something failed, in the words that people know.
func Because(err error) string {
	cause := err
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		cause = p.Err
	}
	if errno, ok := errors.AsType[syscall.Errno](cause); ok {
		cause = errors.New(capital(errno.Error()))
	}
	switch {
	case errors.Is(cause, fs.ErrNotExist):
		return "No such file or directory"
	case errors.Is(cause, fs.ErrExist):
		return "File exists"
	case cause.Error() == "path escapes from parent": // of package os, which does not export it
		return "Leads out of its share"
	}
	return cause.Error()
}

// aboutError is an error about a path, as it was typed.
type aboutError struct {
	name string
	err  error
}

func about(name string, err error) error { return &aboutError{name, err} }

func (e *aboutError) Error() string { return e.name + ": " + Because(e.err) }
func (e *aboutError) Unwrap() error { return e.err }

// describe is an error with the path that it is about.
func describe(err error) string {
	if a, ok := errors.AsType[*aboutError](err); ok {
		return a.Error()
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Path + ": " + Because(p)
	}
	return err.Error()
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// usageError says that a command was typed wrong.
type usageError string

func (e usageError) Error() string { return string(e) }

// exitStatus is the status of a command that said what there was to say.
type exitStatus int

func (e exitStatus) Error() string { return "status " + strconv.Itoa(int(e)) }

// explain says what an error was and returns the exit status.
func (t *task) explain(ctx context.Context, err error, errOut *output) int {
	usage, isUsage := errors.AsType[usageError](err)
	status, isStatus := errors.AsType[exitStatus](err)
	switch {
	case errors.Is(err, files.ErrUnrecorded):
		t.unrecorded.Store(true)
		return t.fail(errOut, exitFailed, "%s: %s", t.name, err)
	case err == nil && t.failed:
		return exitFailed
	case err == nil:
		return exitOK
	case isStatus:
		return int(status)
	case isUsage:
		if usage != "" {
			t.fail(errOut, exitUsage, "%s: %s", t.name, usage)
		}
		return t.fail(errOut, exitUsage, "usage: %s", t.usage)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return t.fail(errOut, exitTimeout, "%s: took longer than %s and was ended", t.name, t.time())
	case ctx.Err() != nil:
		return t.fail(errOut, exitInterrupted, "%s: interrupted", t.name)
	case errors.Is(err, errPipe):
		return exitPipe
	}
	return t.fail(errOut, exitFailed, "%s: %s", t.name, describe(err))
}

// fail tells what went wrong, in one line: names come from the customer's disks
// and must not steer the terminal.
func (s *Shell) fail(to *output, status int, format string, args ...any) int {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	fmt.Fprintln(to, Visible(text))
	to.flush(true)
	return status
}

// recordCommand records about a command.
func (s *Shell) recordCommand(ctx context.Context, result auditlog.Result, command string, properties map[string]string) error {
	all := map[string]string{"command": command, "directory": Visible(s.dir)}
	maps.Copy(all, properties)
	return s.record(ctx, auditlog.OpRunCommand, result, all)
}

// record makes a record durable. If that fails, the session ends.
func (s *Shell) record(ctx context.Context, op auditlog.Operation, result auditlog.Result, properties map[string]string) error {
	err := s.cfg.Session.Record(ctx, op, result, properties)
	if err == nil || ctx.Err() != nil {
		return err
	}
	s.unrecorded.Store(true)
	return fmt.Errorf("this cannot be recorded, so the session ends: %w", err)
}

// said shows a command as it was typed, in one line.
func said(list []word, redirs []*syntax.Redirect) string {
	texts := make([]string, len(list))
	for i, w := range list {
		texts[i] = w.text
	}
	line := quote(texts)
	for _, r := range redirs {
		if to, err := redirection(r); err == nil {
			line += " "
			if to.fd == 2 {
				line += "2"
			}
			line += to.op + quote([]string{to.word.text})
		}
	}
	return line
}

// maxQuoted bounds the matches of patterns in the record of a command, in bytes.
// All of them are in the recording, file by file.
const maxQuoted = 6 << 10

// quoteSome quotes as many words as a record holds.
func quoteSome(words []string) string {
	size := 0
	for i, w := range words {
		if size += len(quote([]string{w})) + 1; size > maxQuoted {
			return fmt.Sprintf("%s … and %d more", quote(words[:i]), len(words)-i)
		}
	}
	return quote(words)
}

// quote puts words in one line that shows where each begins and ends.
func quote(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = w
		if w == "" || strings.ContainsFunc(w, func(r rune) bool { return !plain(r) }) {
			quoted[i] = strconv.Quote(w)
		}
	}
	return strings.Join(quoted, " ")
}

// plain reports whether a word of such characters needs no quotes.
func plain(r rune) bool {
	return r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("/._-+=:,@%*?[]", r))
}

// resolve makes a path absolute.
func (s *Shell) resolve(name string) string {
	if !path.IsAbs(name) {
		name = path.Join(s.dir, name)
	}
	return path.Clean(name)
}

// Visible keeps names and messages from steering the terminal or hiding in it.
func Visible(name string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return unicode.ReplacementChar
		}
		return r
	}, name)
}
