package shell

import "mvdan.cc/sh/v3/syntax"

// Words returns the words of a line that is one simple command, with quotes taken
// off and patterns as they stand, or nil for any other line.
func Words(line string) []string {
	list, err := parse(line)
	if err != nil || len(list) != 1 || len(list[0].Redirs) > 0 {
		return nil
	}
	call, ok := list[0].Cmd.(*syntax.CallExpr)
	if !ok {
		return nil
	}
	args, err := words(call.Args)
	if err != nil {
		return nil
	}
	texts := make([]string, len(args))
	for i, w := range args {
		texts[i] = w.text
	}
	return texts
}
