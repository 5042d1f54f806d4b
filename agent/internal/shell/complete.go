package shell

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Bounds of a completion: nobody waits longer for a key, and reads more names.
const (
	completeTime = 2 * time.Second
	maxShown     = 200
)

// complete completes the word at pos when Tab is typed: a command, or a path. If
// there are several, it goes as far as they are the same, or shows them.
func (s *Shell) complete(ctx context.Context, line string, pos int, key rune) (string, int, bool) {
	if key != '\t' {
		return "", 0, false
	}
	ctx, cancel := context.WithTimeout(ctx, completeTime)
	defer cancel()
	begin, typed, quoted := lastWord(line[:pos])
	var found []string
	if isCommand(line[:begin]) {
		for _, name := range slices.Sorted(maps.Keys(commands)) {
			if strings.HasPrefix(name, typed) {
				found = append(found, name+" ")
			}
		}
	} else {
		found = s.paths(ctx, typed)
	}
	if len(found) == 0 {
		return line, pos, true
	}
	common := found[0]
	for _, f := range found[1:] {
		common = commonPrefix(common, f)
	}
	if len(common) <= len(typed) {
		if len(found) > 1 {
			s.showChoices(found)
		}
		return line, pos, true
	}
	word := typeable(common, quoted, len(found) == 1)
	return line[:begin] + word + line[pos:], begin + len(word), true
}

// lastWord returns where the last word of a line begins, what it means, and the
// quote it is in.
func lastWord(line string) (begin int, text string, quoted byte) {
	var b strings.Builder
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case quoted != 0 && c == quoted:
			quoted = 0
		case quoted != 0:
			b.WriteByte(c)
		case c == '\'' || c == '"':
			quoted = c
		case c == '\\' && i+1 < len(line):
			i++
			b.WriteByte(line[i])
		case strings.IndexByte(" \t;|&<>", c) >= 0:
			begin = i + 1
			b.Reset()
		default:
			b.WriteByte(c)
		}
	}
	return begin, b.String(), quoted
}

// isCommand reports whether a command comes after this beginning of a line.
func isCommand(before string) bool {
	before = strings.TrimRight(before, " \t")
	return before == "" || strings.IndexByte(";|&", before[len(before)-1]) >= 0
}

// paths lists what a path may go on to, spelt as it was begun. Folders end with
// a slash, anything else with a space.
func (s *Shell) paths(ctx context.Context, typed string) (found []string) {
	folder, name := path.Split(typed)
	err := s.files.Each(s.resolve(folder), func(info fs.FileInfo) error {
		one := info.Name()
		if !strings.HasPrefix(one, name) || name == "" && one[0] == '.' || strings.ContainsFunc(one, func(r rune) bool { return !unicode.IsGraphic(r) || r == unicode.ReplacementChar }) {
			return ctx.Err()
		}
		end := " "
		if info.IsDir() {
			end = "/"
		}
		found = append(found, folder+one+end)
		if len(found) > maxMatches {
			return errors.New("too many")
		}
		return ctx.Err()
	})
	if err != nil {
		return nil
	}
	slices.Sort(found)
	return found
}

func commonPrefix(a, b string) string {
	x, y := []rune(a), []rune(b)
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return string(x[:i])
		}
	}
	return string(x[:min(len(x), len(y))])
}

// typeable spells a path so that it is read as itself. If it is whole, a quote
// is closed behind it.
func typeable(text string, quoted byte, whole bool) string {
	if quoted == '\'' && !strings.Contains(text, "'") {
		name, isName := strings.CutSuffix(text, " ")
		if whole && isName {
			return "'" + name + "' "
		}
		return "'" + text
	}
	name, isName := strings.CutSuffix(text, " ")
	if !isName || !whole {
		name = text
	}
	var b strings.Builder
	for _, r := range name {
		if r < 0x80 && !plain(r) || strings.ContainsRune("*?[]", r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	if whole && isName {
		b.WriteByte(' ')
	}
	return b.String()
}

// showChoices lists the completions above the line.
func (s *Shell) showChoices(found []string) {
	var b strings.Builder
	for i, f := range found {
		if i == maxShown {
			fmt.Fprintf(&b, "… and %d more", len(found)-i)
			break
		}
		name := strings.TrimSuffix(f, " ")
		if dir, last := path.Split(strings.TrimSuffix(name, "/")); dir != "" {
			name = last + name[len(dir)+len(last):]
		}
		b.WriteString(Visible(name) + "  ")
	}
	fmt.Fprintln(s.cfg.Console, b.String())
}
