package shell

import (
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// Words returns the words of a line that is one simple command, with quotes taken
// off and patterns as they stand, or nil for any other line.
func Words(line string) []string {
	if checkLine(line) != nil {
		return nil
	}
	file, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(strings.NewReader(line), "")
	if err != nil || len(file.Stmts) != 1 {
		return nil
	}
	stmt := file.Stmts[0]
	call, ok := stmt.Cmd.(*syntax.CallExpr)
	if !ok || len(call.Assigns) > 0 || len(stmt.Redirs) > 0 || stmt.Background || stmt.Negated || stmt.Coprocess {
		return nil
	}
	words, err := literal(call.Args)
	if err != nil {
		return nil
	}
	var texts []string
	for _, w := range words {
		texts = append(texts, w.text)
	}
	return texts
}
