package shell

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// finder is what find looks for.
type finder struct {
	min, max int // depth
	long     bool
	any      [][]test // one of which must hold, all in it
}

type test func(e entry) (bool, error)

// add adds a test to those that must hold together.
func (f *finder) add(t test) {
	last := len(f.any) - 1
	f.any[last] = append(f.any[last], t)
}

func find(ctx context.Context, t *task, args []string) error {
	var roots []string
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") && args[0] != "!" && args[0] != "(" {
		roots, args = append(roots, args[0]), args[1:]
	}
	if len(roots) == 0 {
		roots = []string{"."}
	}
	f := finder{max: 1 << 30, any: make([][]test, 1)}
	for len(args) > 0 {
		var err error
		if args, err = t.test(&f, args); err != nil {
			return err
		}
	}
	if len(f.any) > 1 && slices.ContainsFunc(f.any, func(all []test) bool { return len(all) == 0 }) {
		return usageError("-o stands between tests")
	}
	return t.each(ctx, roots, func(name string) error {
		e, err := t.start(name)
		if err != nil {
			return err
		}
		return t.walk(ctx, e, 0, f.max, func(e entry, depth int) error { return t.found(f, e, depth) })
	})
}

func (t *task) found(f finder, e entry, depth int) error {
	if depth < f.min {
		return nil
	}
	if ok, err := f.holds(e); err != nil || !ok {
		return err
	}
	line := Visible(e.name)
	if f.long {
		line = fmt.Sprintf("%s %2d %12d %s %s", mode(e.Mode()), links(e), e.Size(), stamp(e.ModTime()), line)
	}
	_, err := fmt.Fprintln(t.out, line)
	return err
}

// holds reports whether an entry is what is looked for.
func (f finder) holds(e entry) (bool, error) {
	for _, all := range f.any {
		ok, err := true, error(nil)
		for _, test := range all {
			if ok, err = test(e); err != nil || !ok {
				break
			}
		}
		if err != nil || ok {
			return ok, err
		}
	}
	return false, nil
}

// test takes one test off the arguments.
func (t *task) test(f *finder, args []string) ([]string, error) {
	name, args := args[0], args[1:]
	switch name {
	case "-print", "-a", "-and":
		return args, nil
	case "-o", "-or":
		f.any = append(f.any, nil)
		return args, nil
	case "(", ")":
		return nil, usageError("parentheses are not known here")
	case "-ls":
		f.long = true
		return args, nil
	case "-empty":
		f.add(t.isEmpty)
		return args, nil
	case "-not", "!":
		if len(args) == 0 {
			return nil, usageError(name + " needs a test")
		}
		not := finder{any: make([][]test, 1)}
		rest, err := t.test(&not, args)
		if err == nil && (len(not.any) != 1 || len(not.any[0]) != 1) {
			err = usageError(name + " needs a test")
		}
		if err == nil {
			f.add(func(e entry) (bool, error) { ok, err := not.any[0][0](e); return !ok, err })
		}
		return rest, err
	case "-delete", "-exec", "-execdir", "-ok", "-okdir", "-fprint", "-fls", "-fprintf", "-printf", "-print0":
		return nil, usageError(name + " is not for this find: it only lists")
	}
	if len(args) == 0 {
		return nil, usageError(fmt.Sprintf("'%s' is no test, or needs a value", name))
	}
	test, err := t.testWith(f, name, args[0])
	if test != nil {
		f.add(test)
	}
	return args[1:], err
}

// testWith makes a test that has a value.
func (t *task) testWith(f *finder, name, value string) (test, error) {
	switch name {
	case "-maxdepth", "-mindepth":
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 {
			return nil, usageError(fmt.Sprintf("'%s' is no depth", value))
		}
		if name == "-maxdepth" {
			f.max = n
		} else {
			f.min = n
		}
		return nil, nil
	case "-name", "-iname", "-path":
		return testName(name, value)
	case "-type":
		if len(value) != 1 || !strings.Contains("fdl", value) {
			return nil, usageError("-type knows f, d and l")
		}
		return func(e entry) (bool, error) {
			return value == "f" && e.Mode().IsRegular() || value == "d" && e.IsDir() || value == "l" && e.Mode()&fs.ModeSymlink != 0, nil
		}, nil
	case "-size":
		return testSize(value)
	case "-mtime":
		days, compare, err := comparison(value)
		now := t.cfg.Now()
		return func(e entry) (bool, error) { return compare(int64(now.Sub(e.ModTime())/(24*time.Hour)), days), nil }, err
	case "-newer":
		info, err := t.files.Stat(t.resolve(value))
		if err != nil {
			return nil, about(value, err)
		}
		return func(e entry) (bool, error) { return e.ModTime().After(info.ModTime()), nil }, nil
	}
	return nil, usageError(fmt.Sprintf("'%s' is no test that is known here", name))
}

func testName(name, value string) (test, error) {
	pattern := strings.ReplaceAll(value, "[!", "[^")
	if name == "-iname" {
		pattern = strings.ToLower(pattern)
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, usageError(fmt.Sprintf("'%s' is no pattern", value))
	}
	return func(e entry) (bool, error) {
		text := path.Base(e.name)
		switch name {
		case "-iname":
			text = strings.ToLower(text)
		case "-path": // in which * matches slashes too
			return path.Match(strings.ReplaceAll(pattern, "/", "\x00"), strings.ReplaceAll(e.name, "/", "\x00"))
		}
		return path.Match(pattern, text)
	}, nil
}

// comparison reads +N, -N or N.
func comparison(text string) (n int64, compare func(got, want int64) bool, err error) {
	compare = func(got, want int64) bool { return got == want }
	switch {
	case strings.HasPrefix(text, "+"):
		text, compare = text[1:], func(got, want int64) bool { return got > want }
	case strings.HasPrefix(text, "-"):
		text, compare = text[1:], func(got, want int64) bool { return got < want }
	}
	n, err = strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, nil, usageError(fmt.Sprintf("'%s' is no number", text))
	}
	return n, compare, nil
}

// testSize compares sizes, rounded up to the unit that was typed.
func testSize(value string) (test, error) {
	unit, digits := int64(512), value
	if i := strings.IndexByte("cbkMGT", value[max(0, len(value)-1)]); i >= 0 {
		unit, digits = []int64{1, 512, 1 << 10, 1 << 20, 1 << 30, 1 << 40}[i], value[:len(value)-1]
	}
	n, compare, err := comparison(digits)
	return func(e entry) (bool, error) { return compare((e.Size()+unit-1)/unit, n), nil }, err
}

// isEmpty reports whether a file or a folder has nothing in it.
func (t *task) isEmpty(e entry) (bool, error) {
	if !e.IsDir() {
		return e.Mode().IsRegular() && e.Size() == 0, nil
	}
	empty := true
	err := t.files.Each(e.path, func(fs.FileInfo) error {
		empty = false
		return fs.SkipAll
	})
	if err == fs.SkipAll {
		err = nil
	}
	return empty, err
}
