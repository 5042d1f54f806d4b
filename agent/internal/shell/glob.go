package shell

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// maxMatches is how many names one line's patterns may match.
const maxMatches = 10_000

// expand replaces the words that are patterns by the paths that they match.
func (s *Shell) expand(ctx context.Context, words []word) ([]string, error) {
	list := make([]string, 0, len(words))
	for _, w := range words {
		if w.pattern == "" {
			list = append(list, w.text)
			continue
		}
		names, err := s.glob(ctx, w)
		if err != nil {
			return nil, err
		}
		list = append(list, names...)
	}
	return list, nil
}

// glob returns what a pattern matches, sorted and spelt as the pattern is, at
// least one name: that of the pattern's own text if nothing else.
func (s *Shell) glob(ctx context.Context, w word) ([]string, error) {
	found := []string{""}
	if path.IsAbs(w.pattern) {
		found[0] = "/"
	}
	for segment := range strings.SplitSeq(strings.Trim(w.pattern, "/"), "/") {
		if segment == "" {
			continue
		}
		var err error
		if found, err = s.match(ctx, found, segment); err != nil {
			return nil, err
		}
	}
	if len(found) == 0 {
		if _, err := s.files.Lstat(s.resolve(w.text)); err != nil {
			return nil, fmt.Errorf("%s matches nothing", w.text)
		}
		return []string{w.text}, nil
	}
	for i, name := range found {
		if strings.HasPrefix(name, "-") { // is no option
			found[i] = "./" + name
		}
	}
	return found, nil
}

// match goes one segment of a pattern deeper, from each of the folders.
func (s *Shell) match(ctx context.Context, folders []string, segment string) (found []string, err error) {
	for _, folder := range folders {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if isPattern(segment) {
			names, err := s.matching(folder, segment)
			if err != nil {
				return nil, err
			}
			for _, name := range names {
				found = append(found, join(folder, name))
			}
		} else if name := join(folder, unescapePattern(segment)); s.there(name) {
			found = append(found, name)
		}
		if len(found) > maxMatches {
			return nil, fmt.Errorf("more than %d names match: name the folder instead", maxMatches)
		}
	}
	return found, nil
}

// there reports whether something is at a path.
func (s *Shell) there(name string) bool {
	_, err := s.files.Lstat(s.resolve(name))
	return err == nil
}

// join appends a name to a path as it was typed.
func join(folder, name string) string {
	if folder == "" || strings.HasSuffix(folder, "/") {
		return folder + name
	}
	return folder + "/" + name
}

// matching lists what matches in one folder, as a shell does: what is no folder
// has nothing in it, and hidden names are matched by patterns that begin with
// a dot only.
func (s *Shell) matching(folder, segment string) (names []string, err error) {
	target := s.resolve(folder)
	if info, err := s.files.Stat(target); err != nil || !info.IsDir() {
		return nil, err2nil(err)
	}
	err = s.files.Each(target, func(info fs.FileInfo) error {
		ok, _ := path.Match(segment, info.Name()) // the pattern is well formed: a word was made of it
		if ok && (info.Name()[0] != '.' || segment[0] == '.') {
			names = append(names, info.Name())
		}
		if len(names) > maxMatches {
			return fmt.Errorf("more than %d names match: name the folder instead", maxMatches)
		}
		return nil
	})
	slices.Sort(names)
	return names, err
}

// err2nil drops an error that says no more than that a path does not match.
func err2nil(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok && p != nil {
		return nil
	}
	return err
}

// isPattern reports whether an escaped segment has a * ? or [.
func isPattern(segment string) bool {
	for i := 0; i < len(segment); i++ {
		switch segment[i] {
		case '\\':
			i++
		case '*', '?', '[':
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
