package support

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime/debug"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/syntax"

	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// Exit statuses, as a POSIX shell has them.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNotFound = 127
)

// shell evaluates command lines: simple commands, joined by ; && and ||. Of the
// language it takes the parser only; what it does not know it refuses.
type shell struct {
	server  *Server
	session Session
	in      io.Reader
	out     io.Writer
	err     io.Writer
	dir     string // absolute
	done    bool   // exit was typed
	status  int    // of the last command
}

// line runs one line and returns its exit status.
func (s *shell) line(ctx context.Context, text string) int {
	if len(text) > maxLine {
		return s.fail(exitUsage, "the line is too long: at most %d bytes", maxLine)
	}
	file, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(strings.NewReader(text), "")
	if err != nil {
		return s.fail(exitUsage, "cannot read the line: %v", err)
	}
	for _, stmt := range file.Stmts {
		if s.done {
			break
		}
		s.status = s.statement(ctx, stmt)
	}
	return s.status
}

func (s *shell) fail(status int, format string, args ...any) int {
	fmt.Fprintf(s.err, format+"\n", args...)
	return status
}

func (s *shell) statement(ctx context.Context, stmt *syntax.Stmt) int {
	if stmt.Background || stmt.Negated || stmt.Coprocess || len(stmt.Redirs) > 0 {
		return s.fail(exitUsage, "only simple commands joined by ; && and || are understood here; see help")
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
	return s.fail(exitUsage, "only simple commands joined by ; && and || are understood here; see help")
}

func (s *shell) both(ctx context.Context, cmd *syntax.BinaryCmd) int {
	if cmd.Op != syntax.AndStmt && cmd.Op != syntax.OrStmt {
		return s.fail(exitUsage, "there are no pipes here; see help")
	}
	status := s.statement(ctx, cmd.X)
	if s.done || (status == exitOK) != (cmd.Op == syntax.AndStmt) {
		return status
	}
	return s.statement(ctx, cmd.Y)
}

// literal returns the words if nothing in them needs expanding.
func literal(args []*syntax.Word) ([]string, error) {
	words := make([]string, 0, len(args))
	for _, w := range args {
		var b strings.Builder
		for _, part := range w.Parts {
			if err := literalPart(&b, part); err != nil {
				return nil, err
			}
		}
		words = append(words, b.String())
	}
	return words, nil
}

func literalPart(b *strings.Builder, part syntax.WordPart) error {
	switch p := part.(type) {
	case *syntax.Lit:
		b.WriteString(unescape(p.Value, ""))
	case *syntax.SglQuoted:
		b.WriteString(p.Value)
	case *syntax.DblQuoted:
		for _, inner := range p.Parts {
			lit, ok := inner.(*syntax.Lit)
			if !ok {
				return errors.New("there are no variables and substitutions here; use single quotes for a $ that is meant")
			}
			b.WriteString(unescape(lit.Value, "\\\"$`"))
		}
	default:
		return errors.New("there are no variables and substitutions here; use single quotes for a $ that is meant")
	}
	return nil
}

// unescape removes the backslashes of a literal. Within double quotes only
// those before a byte of special are removed.
func unescape(s, special string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) && (special == "" || strings.IndexByte(special, s[i+1]) >= 0) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// command records one command and runs it. A panic ends the command, not the
// agent.
func (s *shell) command(ctx context.Context, words []string) (status int) {
	if len(words) == 0 {
		return s.status
	}
	c, ok := commands[words[0]]
	if !ok {
		return s.fail(exitNotFound, "%s: no such command; type help", strconv.Quote(words[0]))
	}
	rec := s.server.record(auditlog.OpRunCommand, auditlog.Start, s.session)
	rec.Properties["command"] = shorten(strings.Join(words, " "), 4<<10)
	rec.Properties["directory"] = s.dir
	if _, err := s.server.cfg.Journal.Append(ctx, rec); err != nil {
		s.done = true
		return s.fail(exitFailed, "the command cannot be recorded, so the session ends: %v", refusal(err))
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			s.server.cfg.Log.Error().Str("command", words[0]).Bytes("stack", debug.Stack()).Msg("panic in a support command")
			status = s.fail(exitFailed, "%s: internal error", words[0])
		}
	}()
	err := c.run(ctx, s, words[1:])
	var usage usageError
	switch {
	case errors.As(err, &usage):
		return s.fail(exitUsage, "usage: %s", c.usage)
	case err != nil:
		return s.fail(exitFailed, "%s: %s", words[0], refusal(err))
	}
	return exitOK
}

// usageError says that a command was typed wrong.
type usageError struct{}

func (usageError) Error() string { return "typed wrong" }

// resolve makes a path absolute.
func (s *shell) resolve(name string) string {
	if !path.IsAbs(name) {
		name = path.Join(s.dir, name)
	}
	return path.Clean(name)
}

func shorten(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
