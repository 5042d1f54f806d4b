package shell

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"mvdan.cc/sh/v3/syntax"
)

// maxStages is how many commands a pipe may have.
const maxStages = 16

// parse reads a line. What it returns has simple commands only, joined by ; &&
// || and pipes.
func parse(text string) ([]*syntax.Stmt, error) {
	if err := checkLine(text); err != nil {
		return nil, err
	}
	file, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(strings.NewReader(text), "")
	if err != nil {
		return nil, fmt.Errorf("cannot read the line: %v", err)
	}
	for _, stmt := range file.Stmts {
		if err := checkStmt(stmt); err != nil {
			return nil, err
		}
	}
	return file.Stmts, nil
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

func unknown(what string) error { return fmt.Errorf("there are no %s here; see help", what) }

// checkStmt refuses, by its name, what this shell does not do. A line with such
// a thing in it does not begin.
func checkStmt(stmt *syntax.Stmt) error {
	switch {
	case stmt.Background, stmt.Disown:
		return unknown("background commands (&)")
	case stmt.Coprocess:
		return unknown("coprocesses (|&)")
	case stmt.Negated:
		return unknown("negations (!)")
	}
	for _, r := range stmt.Redirs {
		if _, err := redirection(r); err != nil {
			return err
		}
	}
	switch cmd := stmt.Cmd.(type) {
	case nil:
		return errors.New("a redirection needs a command")
	case *syntax.CallExpr:
		if len(cmd.Assigns) > 0 {
			return errVariables
		}
		_, err := words(cmd.Args)
		return err
	case *syntax.BinaryCmd:
		if len(stmt.Redirs) > 0 {
			return unknown("redirections of more than one command")
		}
		return checkBinary(cmd)
	}
	return unknown(construct(stmt.Cmd))
}

func checkBinary(cmd *syntax.BinaryCmd) error {
	switch cmd.Op {
	case syntax.AndStmt, syntax.OrStmt:
	case syntax.Pipe:
		if n := len(stages(cmd)); n > maxStages {
			return fmt.Errorf("a pipe of %d commands is too long: at most %d", n, maxStages)
		}
		for _, side := range []*syntax.Stmt{cmd.X, cmd.Y} {
			if b, ok := side.Cmd.(*syntax.BinaryCmd); ok && b.Op != syntax.Pipe {
				return unknown("pipes of more than simple commands")
			}
		}
	default:
		return unknown("pipes of errors (|&)")
	}
	if err := checkStmt(cmd.X); err != nil {
		return err
	}
	return checkStmt(cmd.Y)
}

// stages lists the commands of a pipe.
func stages(cmd *syntax.BinaryCmd) (list []*syntax.Stmt) {
	for _, side := range []*syntax.Stmt{cmd.X, cmd.Y} {
		if b, ok := side.Cmd.(*syntax.BinaryCmd); ok && b.Op == syntax.Pipe {
			list = append(list, stages(b)...)
		} else {
			list = append(list, side)
		}
	}
	return list
}

// construct names a part of the language that is not for this shell.
func construct(cmd syntax.Command) string {
	switch cmd.(type) {
	case *syntax.Subshell:
		return "subshells ( )"
	case *syntax.Block:
		return "groups { }"
	case *syntax.IfClause:
		return "conditions (if)"
	case *syntax.WhileClause, *syntax.ForClause:
		return "loops (for, while, until, select)"
	case *syntax.CaseClause:
		return "choices (case)"
	case *syntax.FuncDecl:
		return "functions"
	case *syntax.ArithmCmd, *syntax.LetClause:
		return "arithmetics"
	case *syntax.TestClause:
		return "tests ([[ ]])"
	case *syntax.DeclClause:
		return "declarations"
	case *syntax.TimeClause:
		return "measurements (time)"
	}
	return "such commands"
}

// redirect is one redirection of a command.
type redirect struct {
	fd   int    // 0, 1 or 2
	op   string // < > >> or >&
	word word   // of a file; the descriptor for >&
}

func redirection(r *syntax.Redirect) (redirect, error) {
	out := redirect{fd: 1}
	switch r.Op {
	case syntax.RdrOut, syntax.RdrClob:
		out.op = ">"
	case syntax.AppOut:
		out.op = ">>"
	case syntax.RdrIn:
		out.op, out.fd = "<", 0
	case syntax.DplOut:
		out.op = ">&"
	case syntax.Hdoc, syntax.DashHdoc, syntax.WordHdoc:
		return out, unknown("here-documents (<<)")
	default:
		return out, unknown("redirections of this kind (" + r.Op.String() + ")")
	}
	if r.N != nil {
		fd := strings.Index("012", r.N.Value)
		if len(r.N.Value) != 1 || fd < 0 || (fd == 0) != (out.op == "<") {
			return out, unknown("such file descriptors (" + r.N.Value + r.Op.String() + ")")
		}
		out.fd = fd
	}
	list, err := words([]*syntax.Word{r.Word})
	if err != nil {
		return out, err
	}
	out.word = list[0]
	if out.op == ">&" && out.word.text != "1" && out.word.text != "2" {
		return out, unknown("such file descriptors (>&" + out.word.text + ")")
	}
	return out, nil
}

// word is one word of a command.
type word struct {
	text    string
	pattern string // for path.Match; "" if the word has none of * ? and [
}

// words returns the words, if nothing but patterns in them needs expanding.
func words(args []*syntax.Word) ([]word, error) {
	list := make([]word, 0, len(args))
	for _, arg := range args {
		var b wordBuilder
		for _, part := range arg.Parts {
			if err := b.part(part); err != nil {
				return nil, err
			}
		}
		list = append(list, b.word())
	}
	return list, nil
}

// wordBuilder puts a word together, as text and as a pattern.
type wordBuilder struct {
	text, pattern strings.Builder
	magic         bool
}

func (b *wordBuilder) word() word {
	if _, err := path.Match(b.pattern.String(), ""); !b.magic || err != nil {
		return word{text: b.text.String()}
	}
	return word{b.text.String(), b.pattern.String()}
}

var errVariables = errors.New("there are no variables here; use single quotes for a $ that is meant")

func (b *wordBuilder) part(part syntax.WordPart) error {
	switch p := part.(type) {
	case *syntax.Lit:
		b.unquoted(p.Value)
	case *syntax.SglQuoted:
		if p.Dollar {
			return unknown("escapes ($'…')")
		}
		b.quoted(p.Value)
	case *syntax.DblQuoted:
		for _, inner := range p.Parts {
			lit, ok := inner.(*syntax.Lit)
			if !ok {
				return b.part(inner)
			}
			b.quoted(unescapeDouble(lit.Value))
		}
	case *syntax.ParamExp:
		return errVariables
	case *syntax.CmdSubst:
		return unknown("command substitutions")
	case *syntax.ProcSubst:
		return unknown("process substitutions")
	case *syntax.ArithmExp:
		return unknown("arithmetics")
	case *syntax.ExtGlob:
		return unknown("patterns but * ? and [ ]")
	default:
		return unknown("such expansions")
	}
	return nil
}

func (b *wordBuilder) quoted(text string) {
	b.text.WriteString(text)
	b.pattern.WriteString(escapePattern(text))
}

// unquoted takes text in which a backslash quotes, and * ? and [ are patterns.
func (b *wordBuilder) unquoted(text string) {
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && i+1 < len(text):
			i++
			b.quoted(text[i : i+1])
		case c == '*' || c == '?' || c == '[':
			b.magic = true
			b.text.WriteByte(c)
			b.pattern.WriteByte(c)
			if c == '[' && i+1 < len(text) && text[i+1] == '!' {
				i++
				b.text.WriteByte('!')
				b.pattern.WriteByte('^')
			}
		default:
			b.text.WriteByte(c)
			b.pattern.WriteByte(c)
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
