package shell

import (
	"context"
	"fmt"
	"path"
	"strings"
)

// Limits of what patterns match: the names are recorded before they are used.
const (
	maxMatches  = 1000
	maxExpanded = 6 << 10 // bytes, all words of a command with their quotes
)

// expand replaces the words that are patterns by the paths that they match.
func (s *Shell) expand(ctx context.Context, words []word) ([]string, error) {
	var list []string
	for _, w := range words {
		if w.pattern == "" {
			list = append(list, w.text)
			continue
		}
		names, err := s.glob(ctx, w)
		if err != nil {
			return nil, err
		}
		if len(quote(list))+len(quote(names)) > maxExpanded {
			return nil, fmt.Errorf("%s matches more than can be recorded: name the folder instead", w.text)
		}
		list = append(list, names...)
	}
	return list, nil
}

// glob returns the paths in a share that match, at least one.
func (s *Shell) glob(ctx context.Context, w word) ([]string, error) {
	pattern := w.pattern
	if !path.IsAbs(pattern) {
		pattern = escapePattern(s.dir) + "/" + pattern
	}
	rest, ok := strings.CutPrefix(path.Clean(pattern), sharesDir+"/")
	share, inside, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 || isPattern(share) {
		return nil, fmt.Errorf("%s: patterns match within a share only", w.text)
	}
	p, err := s.open(sharesDir + "/" + unescapePattern(share))
	if err != nil {
		return nil, err
	}
	defer p.Close()
	found := []string{"."}
	for segment := range strings.SplitSeq(inside, "/") {
		if found, err = p.match(ctx, found, segment); err != nil {
			return nil, s.clean(err)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s matches nothing", w.text)
	}
	for i, name := range found {
		found[i] = p.path(name)
	}
	return found, nil
}

// match goes one segment of a pattern deeper, from each of the folders.
func (p place) match(ctx context.Context, folders []string, segment string) (found []string, err error) {
	for _, folder := range folders {
		names := []string{unescapePattern(segment)}
		if isPattern(segment) {
			if names, err = p.matching(folder, segment); err != nil {
				return nil, err
			}
		}
		for _, name := range names {
			name = path.Join(folder, name)
			if _, err := p.Lstat(name); err == nil {
				found = append(found, name)
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case len(found) > maxMatches:
			return nil, fmt.Errorf("more than %d names match: name the folder instead", maxMatches)
		}
	}
	return found, nil
}

// matching lists what matches in one folder, as a shell does: what is no folder
// has nothing in it, and hidden names are matched by patterns that begin with
// a dot only.
func (p place) matching(folder, segment string) (names []string, err error) {
	if info, err := p.Stat(folder); err != nil || !info.IsDir() {
		return nil, nil
	}
	entries, err := p.entries(folder)
	for _, e := range entries {
		ok, _ := path.Match(segment, e.Name()) // the pattern is well formed: this package made it
		if ok && (e.Name()[0] != '.' || segment[0] == '.') {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// isPattern reports whether an escaped segment has a * or a ?.
func isPattern(segment string) bool {
	for i := 0; i < len(segment); i++ {
		switch segment[i] {
		case '\\':
			i++
		case '*', '?':
			return true
		}
	}
	return false
}

// escapePattern makes a pattern that matches text only.
func escapePattern(text string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(text)
}

func unescapePattern(segment string) string {
	return strings.NewReplacer(`\\`, `\`, `\*`, `*`, `\?`, `?`, `\[`, `[`).Replace(segment)
}
