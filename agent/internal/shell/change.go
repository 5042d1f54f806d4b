package shell

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
)

func mkdir(ctx context.Context, t *task, args []string) error {
	if len(args) == 0 {
		return usageError("")
	}
	return t.each(ctx, args, func(name string) error {
		if t.opts.has("p") {
			return t.mkdirs(name, t.resolve(name))
		}
		err := t.files.Mkdir(t.resolve(name))
		t.tell(err, "created folder %s", name)
		return err
	})
}

// mkdirs makes a folder and those above it.
func (t *task) mkdirs(name, full string) error {
	info, err := t.files.Stat(full)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return syscall.EEXIST
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := t.mkdirs(name, path.Dir(full)); err != nil {
		return err
	}
	err = t.files.Mkdir(full)
	if errors.Is(err, fs.ErrExist) { // somebody was faster
		err = nil
	}
	t.tell(err, "created folder %s", full)
	return err
}

// tell says with -v what was done.
func (t *task) tell(err error, format string, names ...string) {
	if err != nil || !t.opts.has("v") {
		return
	}
	shown := make([]any, len(names))
	for i, n := range names {
		shown[i] = "'" + Visible(n) + "'"
	}
	fmt.Fprintf(t.out, format+"\n", shown...)
}

// eachTarget calls do for each but the last name, with the path it is to have:
// the last name itself or, in a folder, its own name.
func (t *task) eachTarget(ctx context.Context, args []string, do func(name, from, to string) error) error {
	if len(args) < 2 {
		return usageError("")
	}
	if err := t.mayWrite(); err != nil {
		return err
	}
	last := args[len(args)-1]
	target := t.resolve(last)
	info, err := t.files.Stat(target)
	into := err == nil && info.IsDir()
	if !into && (len(args) > 2 || strings.HasSuffix(last, "/")) {
		return fmt.Errorf("target '%s' is not a folder", last)
	}
	return t.each(ctx, args[:len(args)-1], func(name string) error {
		from, to := t.resolve(name), target
		if into {
			to = path.Join(target, path.Base(from))
		}
		if to == from || strings.HasPrefix(to, from+"/") {
			if _, err := t.files.Lstat(from); err != nil {
				return err
			}
			return fmt.Errorf("cannot go into itself, '%s'", to)
		}
		if _, err := t.files.Lstat(to); err == nil && t.opts.has("n") {
			return nil
		}
		return do(name, from, to)
	})
}

func mv(ctx context.Context, t *task, args []string) error {
	return t.eachTarget(ctx, args, func(name, from, to string) error {
		if err := t.sameFile(from, to); err != nil {
			return err
		}
		p := t.progress(name, 0)
		defer p.end()
		err := t.files.Move(ctx, from, to, true, p.add)
		t.tell(err, "renamed %s -> %s", name, to)
		return err
	})
}

// sameFile refuses two names of one file: to move one over the other would do
// nothing.
func (t *task) sameFile(from, to string) error {
	a, err := t.files.Lstat(from)
	if err != nil {
		return err
	}
	if b, err := t.files.Lstat(to); err == nil && os.SameFile(a, b) {
		return fmt.Errorf("is the same file as '%s'", to)
	}
	return nil
}

func cp(ctx context.Context, t *task, args []string) error {
	return t.eachTarget(ctx, args, func(name, from, to string) error {
		info, err := t.files.Stat(from)
		switch {
		case err != nil:
			return err
		case !info.IsDir():
			return t.copyFile(ctx, name, from, to, info.Size())
		case !t.opts.has("rRa"):
			return errors.New("-r not specified; omitting folder")
		}
		return t.copyFolder(ctx, from, to, entry{name, from, info})
	})
}

func (t *task) copyFile(ctx context.Context, name, from, to string, size int64) error {
	if _, err := t.files.Lstat(to); err == nil && t.opts.has("n") {
		return nil
	}
	p := t.progress(name, size)
	defer p.end()
	err := t.files.Copy(ctx, from, to, t.opts.has("pa"), p.add)
	t.tell(err, "%s -> %s", name, to)
	return err
}

// copyFolder copies a folder with all in it. What cannot be copied is complained
// of.
func (t *task) copyFolder(ctx context.Context, from, to string, e entry) error {
	return t.walk(ctx, e, 0, 1<<30, func(one entry, _ int) error {
		target := to + strings.TrimPrefix(one.path, from)
		err := t.copyEntry(ctx, one, target)
		if err == nil || ends(ctx, err) {
			return err
		}
		t.complain(one.name, err)
		if one.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
}

func (t *task) copyEntry(ctx context.Context, e entry, to string) error {
	switch {
	case e.IsDir():
		if info, err := t.files.Stat(to); err == nil && info.IsDir() {
			return nil
		}
		err := t.files.Mkdir(to)
		t.tell(err, "%s -> %s", e.name, to)
		return err
	case e.Mode().IsRegular():
		return t.copyFile(ctx, e.name, e.path, to, e.Size())
	}
	return fmt.Errorf("is a %s: not copied", kind(e.Mode()))
}

func rm(ctx context.Context, t *task, args []string) error {
	if len(args) == 0 {
		return usageError("")
	}
	if err := t.mayDelete(); err != nil {
		return err
	}
	return t.each(ctx, args, func(name string) error {
		full := t.resolve(name)
		if full == t.dir || strings.HasPrefix(t.dir, full+"/") {
			return errors.New("you are in it: refusing to remove it")
		}
		info, err := t.files.Lstat(full)
		switch {
		case errors.Is(err, fs.ErrNotExist) && t.opts.has("f"):
			return nil
		case err != nil:
			return err
		case t.opts.has("rR"):
			err = t.files.RemoveAll(ctx, full)
		case info.IsDir():
			err = syscall.EISDIR
		default:
			err = t.files.Remove(full)
		}
		t.tell(err, "removed %s", name)
		return err
	})
}
