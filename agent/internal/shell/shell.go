// Package shell is the shell of a support session: a small evaluator with
// commands of its own.
//
//   - There is no process behind it. Its commands see the shares of the lease,
//     below /shares/<share>, and nothing else.
//   - Of the language it takes the parser only; what it does not know it refuses.
//   - Every command is recorded before it runs, and how it ended after.
//   - It knows neither SSH nor the lock: whoever serves the session says what may
//     be used, see [Node] and [Session].
package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"mvdan.cc/sh/v3/syntax"

	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// Exit statuses, as a POSIX shell has them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 127
	exitInterrupted = 130
)

// commandTimeout bounds one command, after which its connection ends. Hashing
// a full disk takes long.
const commandTimeout = 30 * time.Minute

// maxLine is the longest command line, in bytes. With its quotes it fits in an
// audit record.
const maxLine = 4 << 10

// Shell evaluates command lines. It is for one caller at a time.
type Shell struct {
	cfg     Config
	console *Console // nil without a terminal
	dir     string   // absolute
	done    bool     // exit was typed, or nothing can be recorded
	status  int      // of the last command

	unrecorded bool
}

// New returns a shell in the folder above the shares.
func New(cfg Config) *Shell { return &Shell{cfg: cfg, dir: "/"} }

// Unrecorded reports whether something could not be recorded: the session must
// end.
func (s *Shell) Unrecorded() bool { return s.unrecorded }

// Run runs one line and returns its exit status. It ends early when ctx does.
func (s *Shell) Run(ctx context.Context, text string) int {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.console != nil {
		s.console.running(cancel)
		defer s.console.running(nil)
	}
	s.status = s.evaluate(ctx, text)
	return s.status
}

// Lines runs lines from r until exit, the end of r, or the end of ctx, and
// returns the status of the last one.
func (s *Shell) Lines(ctx context.Context, r io.Reader) int {
	return s.lines(ctx, func() (string, error) { return readLine(r) })
}

// Interact runs the lines that are typed at a terminal, as Lines does. prompt is
// asked for each. Output goes to the terminal.
func (s *Shell) Interact(ctx context.Context, c *Console, prompt func() string) int {
	s.console, s.cfg.Out, s.cfg.Err = c, c, c
	return s.lines(ctx, func() (string, error) { return c.readLine(prompt()) })
}

func (s *Shell) lines(ctx context.Context, next func() (string, error)) int {
	for !s.done && ctx.Err() == nil {
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

func (s *Shell) evaluate(ctx context.Context, text string) int {
	if err := checkLine(text); err != nil {
		return s.fail(exitUsage, "%v", err)
	}
	file, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(strings.NewReader(text), "")
	if err != nil {
		return s.fail(exitUsage, "cannot read the line: %v", err)
	}
	status := exitOK
	for _, stmt := range file.Stmts {
		if s.done || ctx.Err() != nil {
			break
		}
		status = s.statement(ctx, stmt)
	}
	return status
}

// checkLine refuses what would not look in a record as it was typed.
func checkLine(text string) error {
	switch {
	case len(text) > maxLine:
		return fmt.Errorf("the line is too long: at most %d bytes", maxLine)
	case !utf8.ValidString(text):
		return errors.New("the line is not UTF-8; put a ? where a name has a strange character")
	case strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && r != '\t' && !unicode.IsGraphic(r) }):
		return errors.New("the line has control characters; put a ? where a name has a strange character")
	}
	return nil
}

// fail tells what went wrong, in one line: names come from the customer's disks
// and must not steer the terminal.
func (s *Shell) fail(status int, format string, args ...any) int {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	fmt.Fprintln(s.cfg.Err, Visible(text))
	return status
}

const onlySimple = "only simple commands joined by ; && and || are understood here; see help"

func (s *Shell) statement(ctx context.Context, stmt *syntax.Stmt) int {
	if stmt.Background || stmt.Negated || stmt.Coprocess || len(stmt.Redirs) > 0 {
		return s.fail(exitUsage, onlySimple)
	}
	switch cmd := stmt.Cmd.(type) {
	case *syntax.CallExpr:
		if len(cmd.Assigns) > 0 {
			return s.fail(exitUsage, "there are no variables here; see help")
		}
		words, err := literal(cmd.Args)
		if err != nil {
			return s.fail(exitUsage, "%v", err)
		}
		return s.command(ctx, words)
	case *syntax.BinaryCmd:
		return s.both(ctx, cmd)
	}
	return s.fail(exitUsage, onlySimple)
}

func (s *Shell) both(ctx context.Context, cmd *syntax.BinaryCmd) int {
	if cmd.Op != syntax.AndStmt && cmd.Op != syntax.OrStmt {
		return s.fail(exitUsage, "there are no pipes here; see help")
	}
	status := s.statement(ctx, cmd.X)
	if s.done || ctx.Err() != nil || (status == exitOK) != (cmd.Op == syntax.AndStmt) {
		return status
	}
	return s.statement(ctx, cmd.Y)
}

// word is one word of a command.
type word struct {
	text    string
	pattern string // for path.Match; "" if the word has none of * and ?
}

// literal returns the words, if nothing but patterns in them needs expanding.
func literal(args []*syntax.Word) ([]word, error) {
	words := make([]word, 0, len(args))
	for _, arg := range args {
		var b wordBuilder
		for _, part := range arg.Parts {
			if err := b.part(part); err != nil {
				return nil, err
			}
		}
		words = append(words, b.word())
	}
	return words, nil
}

// wordBuilder puts a word together, as text and as a pattern.
type wordBuilder struct {
	text, pattern strings.Builder
	magic         bool
}

func (b *wordBuilder) word() word {
	if !b.magic {
		return word{text: b.text.String()}
	}
	return word{b.text.String(), b.pattern.String()}
}

var errExpansion = errors.New("there are no variables and substitutions here; use single quotes for a $ that is meant")

func (b *wordBuilder) part(part syntax.WordPart) error {
	switch p := part.(type) {
	case *syntax.Lit:
		b.unquoted(p.Value)
	case *syntax.SglQuoted:
		b.quoted(p.Value)
	case *syntax.DblQuoted:
		for _, inner := range p.Parts {
			lit, ok := inner.(*syntax.Lit)
			if !ok {
				return errExpansion
			}
			b.quoted(unescapeDouble(lit.Value))
		}
	default:
		return errExpansion
	}
	return nil
}

func (b *wordBuilder) quoted(text string) {
	b.text.WriteString(text)
	b.pattern.WriteString(escapePattern(text))
}

// unquoted takes text in which a backslash quotes, and * and ? are patterns.
func (b *wordBuilder) unquoted(text string) {
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && i+1 < len(text):
			i++
			b.quoted(text[i : i+1])
		case c == '*' || c == '?':
			b.magic = true
			b.text.WriteByte(c)
			b.pattern.WriteByte(c)
		default:
			b.quoted(text[i : i+1])
		}
	}
}

// unescapeDouble removes the backslashes that count within double quotes.
func unescapeDouble(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) && strings.IndexByte("\\\"$`", s[i+1]) >= 0 {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// command records one command, runs it, and records how it ended.
func (s *Shell) command(ctx context.Context, words []word) int {
	if len(words) == 0 {
		return s.status
	}
	name, args := words[0].text, words[1:]
	c, known := commands[name]
	if !known {
		if err := s.recordCommand(ctx, auditlog.Refused, words, nil); err != nil {
			return s.fail(exitFailed, "%s", err)
		}
		return s.fail(exitNotFound, "%s: no such command; type help", strconv.Quote(name))
	}
	s.cfg.Session.Running(true)
	defer s.cfg.Session.Running(false)
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	// What hangs in a read or write hears of no context.
	defer time.AfterFunc(commandTimeout, s.cfg.Session.Hung).Stop()

	expanded, err := s.expand(ctx, args)
	began := map[string]string{}
	if err == nil && slices.ContainsFunc(args, func(w word) bool { return w.pattern != "" }) {
		began["arguments"] = quote(expanded)
	}
	if err := s.recordCommand(ctx, auditlog.Start, words, began); err != nil {
		return s.fail(exitFailed, "%s", err)
	}
	if err == nil {
		err = s.invoke(ctx, name, c, expanded)
	}
	status := s.explain(ctx, name, c, err)
	result := auditlog.Success
	if status != exitOK {
		result = auditlog.Failure
	}
	if err := s.recordCommand(context.WithoutCancel(ctx), result, words, map[string]string{"status": strconv.Itoa(status)}); err != nil {
		return s.fail(exitFailed, "%s", err)
	}
	return status
}

// invoke runs a command. A panic ends the command, not the agent.
func (s *Shell) invoke(ctx context.Context, name string, c command, args []string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Log.Error().Str("command", name).Bytes("stack", debug.Stack()).Msg("panic in a support command")
			err = errors.New("internal error")
		}
	}()
	return c.run(ctx, s, args)
}

// explain says what an error was and returns the exit status.
func (s *Shell) explain(ctx context.Context, name string, c command, err error) int {
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return s.fail(exitUsage, "usage: %s", c.usage)
	case errors.Is(ctx.Err(), context.Canceled):
		return s.fail(exitInterrupted, "%s: interrupted", name)
	}
	return s.fail(exitFailed, "%s: %s", name, err)
}

// usageError says that a command was typed wrong.
type usageError struct{}

func (usageError) Error() string { return "typed wrong" }

// recordCommand records about a command.
func (s *Shell) recordCommand(ctx context.Context, result auditlog.Result, words []word, properties map[string]string) error {
	texts := make([]string, len(words))
	for i, w := range words {
		texts[i] = w.text
	}
	all := map[string]string{"command": quote(texts), "directory": Visible(s.dir)}
	maps.Copy(all, properties)
	return s.record(ctx, auditlog.OpRunCommand, result, all)
}

// record makes a record durable. If that fails, the session ends.
func (s *Shell) record(ctx context.Context, op auditlog.Operation, result auditlog.Result, properties map[string]string) error {
	err := s.cfg.Session.Record(ctx, op, result, properties)
	if err == nil || ctx.Err() != nil {
		return err
	}
	s.done, s.unrecorded = true, true
	return fmt.Errorf("this cannot be recorded, so the session ends: %w", err)
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
	return r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("/._-+=:,@%*?", r))
}

// resolve makes a path absolute.
func (s *Shell) resolve(name string) string {
	if !path.IsAbs(name) {
		name = path.Join(s.dir, name)
	}
	return path.Clean(name)
}
