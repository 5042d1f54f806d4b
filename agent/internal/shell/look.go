package shell

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func pwd(_ context.Context, t *task, args []string) error {
	if err := none(args); err != nil {
		return err
	}
	_, err := fmt.Fprintln(t.out, Visible(t.dir))
	return err
}

func cd(_ context.Context, t *task, args []string) error {
	if len(args) > 1 {
		return usageError("too many arguments")
	}
	target := "/"
	if len(args) == 1 {
		target = t.resolve(args[0])
	}
	if target != "/" { // which is there while the node is locked, too
		info, err := t.files.Stat(target)
		if err != nil {
			return about(args[0], err)
		}
		if !info.IsDir() {
			return about(args[0], syscall.ENOTDIR)
		}
	}
	t.dir = target
	return nil
}

// entry is something that is listed.
type entry struct {
	name string // as it is shown
	path string // absolute
	fs.FileInfo
}

func ls(ctx context.Context, t *task, args []string) error {
	named := args
	if len(args) == 0 {
		named = []string{"."}
	}
	var single, folders []entry
	err := t.each(ctx, named, func(name string) error {
		e := entry{name: name, path: t.resolve(name)}
		var err error
		if t.opts.has("ld") {
			e.FileInfo, err = t.files.Lstat(e.path)
		} else {
			e.FileInfo, err = t.files.Stat(e.path)
		}
		switch {
		case err != nil:
			return err
		case e.IsDir() && !t.opts.has("d"):
			folders = append(folders, e)
		default:
			single = append(single, e)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := t.list(single); err != nil {
		return err
	}
	for i, e := range folders {
		if err := t.lsFolder(ctx, e, len(args) > 1 || t.opts.has("R"), i > 0 || len(single) > 0); err != nil {
			return err
		}
	}
	return nil
}

// lsFolder lists a folder, under its name if it is one of several, after an
// empty line if there was something before it.
func (t *task) lsFolder(ctx context.Context, e entry, titled, spaced bool) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if spaced {
		fmt.Fprintln(t.out)
	}
	if titled {
		fmt.Fprintf(t.out, "%s:\n", Visible(e.name))
	}
	infos, err := t.files.ReadDir(e.path)
	if err != nil {
		if ends(ctx, err) {
			return err
		}
		t.complain(e.name, err)
	}
	list := make([]entry, 0, len(infos))
	for _, info := range infos {
		if info.Name()[0] != '.' || t.opts.has("aA") {
			list = append(list, entry{info.Name(), path.Join(e.path, info.Name()), info})
		}
	}
	if err := t.list(list); err != nil || !t.opts.has("R") {
		return err
	}
	for _, sub := range list {
		if sub.IsDir() {
			sub.name = join(e.name, sub.name)
			if err := t.lsFolder(ctx, sub, true, true); err != nil {
				return err
			}
		}
	}
	return nil
}

// list shows entries, in the order that the options say.
func (t *task) list(entries []entry) error {
	slices.SortStableFunc(entries, func(a, b entry) int {
		switch {
		case t.opts.has("t"):
			return cmp.Or(b.ModTime().Compare(a.ModTime()), cmp.Compare(a.name, b.name))
		case t.opts.has("S"):
			return cmp.Or(cmp.Compare(b.Size(), a.Size()), cmp.Compare(a.name, b.name))
		}
		return cmp.Compare(a.name, b.name)
	})
	if t.opts.has("r") {
		slices.Reverse(entries)
	}
	if t.console != nil && !t.opts.has("l1") {
		return t.columns(entries)
	}
	for _, e := range entries {
		if _, err := fmt.Fprintln(t.out, t.line(e)); err != nil {
			return err
		}
	}
	return nil
}

// line is what ls says of an entry.
func (t *task) line(e entry) string {
	name := Visible(e.name) + t.mark(e)
	if !t.opts.has("l") {
		return name
	}
	size := strconv.FormatInt(e.Size(), 10)
	if t.opts.has("h") {
		size = human(e.Size())
	}
	if e.Mode()&fs.ModeSymlink != 0 {
		if target, err := t.files.Readlink(e.path); err == nil {
			name = Visible(e.name) + " -> " + Visible(target)
		}
	}
	return fmt.Sprintf("%s %2d %12s %s %s", mode(e.Mode()), links(e), size, stamp(e.ModTime()), name)
}

// mark tells folders and links from files.
func (t *task) mark(e entry) string {
	switch {
	case t.console == nil && !t.opts.has("F"):
	case e.IsDir():
		return "/"
	case e.Mode()&fs.ModeSymlink != 0:
		return "@"
	}
	return ""
}

// columns shows names side by side, down and then across.
func (t *task) columns(entries []entry) error {
	widest, names := 0, make([]string, len(entries))
	for i, e := range entries {
		names[i] = Visible(e.name) + t.mark(e)
		widest = max(widest, len([]rune(names[i])))
	}
	columns, _ := t.console.size()
	across := max(1, columns/(widest+2))
	down := (len(names) + across - 1) / across
	for row := range down {
		var b strings.Builder
		for i := row; i < len(names); i += down {
			if i > row {
				b.WriteString("  ")
			}
			b.WriteString(names[i])
			if i+down < len(names) {
				b.WriteString(strings.Repeat(" ", widest-len([]rune(names[i]))))
			}
		}
		if _, err := fmt.Fprintln(t.out, b.String()); err != nil {
			return err
		}
	}
	return nil
}

// mode is the mode of a file as ls shows it.
func mode(m fs.FileMode) string {
	kind := "-"
	switch {
	case m.IsDir():
		kind = "d"
	case m&fs.ModeSymlink != 0:
		kind = "l"
	case m&fs.ModeNamedPipe != 0:
		kind = "p"
	case m&fs.ModeSocket != 0:
		kind = "s"
	case m&fs.ModeCharDevice != 0:
		kind = "c"
	case m&fs.ModeDevice != 0:
		kind = "b"
	}
	return kind + m.Perm().String()[1:]
}

func stamp(at time.Time) string {
	if at.IsZero() {
		return "               -"
	}
	return at.UTC().Format("2006-01-02 15:04")
}

// system is what the kernel says of a file; zero for a folder of no disk.
func system(info fs.FileInfo) syscall.Stat_t {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return *st
	}
	return syscall.Stat_t{Nlink: 1}
}

func links(info fs.FileInfo) uint64 { return uint64(system(info).Nlink) }

// human is a size as coreutils show it, rounded up.
func human(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10)
	}
	unit, tenths := -1, n*10
	if n > 1<<59 {
		unit, tenths = 0, n/1024*10
	}
	for tenths >= 10240 && unit < 5 {
		tenths = (tenths + 1023) / 1024
		unit++
	}
	if tenths < 100 {
		return fmt.Sprintf("%d.%d%c", tenths/10, tenths%10, "KMGTPE"[unit])
	}
	return fmt.Sprintf("%d%c", (tenths+9)/10, "KMGTPE"[unit])
}

func stat(ctx context.Context, t *task, args []string) error {
	if len(args) == 0 {
		return usageError("")
	}
	return t.each(ctx, args, func(name string) error {
		look := t.files.Lstat
		if t.opts.has("L") {
			look = t.files.Stat
		}
		info, err := look(t.resolve(name))
		if err != nil {
			return err
		}
		st := system(info)
		_, err = fmt.Fprintf(t.out, "  File: %s\n  Size: %-12d  Blocks: %-10d  %s\n Inode: %-12d  Links: %-10d  Mode: %s\nModify: %s\nAccess: %s\nChange: %s\n",
			Visible(name), info.Size(), st.Blocks, kind(info.Mode()), st.Ino, st.Nlink, mode(info.Mode()),
			precise(info.ModTime()), precise(time.Unix(st.Atim.Unix())), precise(time.Unix(st.Ctim.Unix())))
		return err
	})
}

func precise(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05.000000000 -0700") }

func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m.IsRegular():
		return "regular file"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	case m&fs.ModeNamedPipe != 0:
		return "fifo"
	}
	return "special file"
}

// walk calls visit for what is at a path and, without following links, below
// it, down to so many folders. What cannot be listed is complained of. visit may
// return fs.SkipDir.
func (t *task) walk(ctx context.Context, e entry, depth, deepest int, visit func(e entry, depth int) error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err := visit(e, depth)
	if errors.Is(err, fs.SkipDir) {
		return nil
	}
	if err != nil || !e.IsDir() || depth == deepest {
		return err
	}
	var folders []entry // one at a time: a deep tree must not use up what may be open
	err = t.files.Each(e.path, func(info fs.FileInfo) error {
		sub := entry{join(e.name, info.Name()), path.Join(e.path, info.Name()), info}
		if info.IsDir() {
			folders = append(folders, sub)
			return ctx.Err()
		}
		return t.walk(ctx, sub, depth+1, deepest, visit)
	})
	if err != nil {
		if _, listing := errors.AsType[*fs.PathError](err); !listing || ends(ctx, err) {
			return err
		}
		t.complain(e.name, err)
	}
	slices.SortFunc(folders, func(a, b entry) int { return cmp.Compare(a.path, b.path) })
	for _, sub := range folders {
		if err := t.walk(ctx, sub, depth+1, deepest, visit); err != nil {
			return err
		}
	}
	return nil
}

// start is the beginning of a walk.
func (t *task) start(name string) (entry, error) {
	e := entry{name: name, path: t.resolve(name)}
	info, err := t.files.Lstat(e.path)
	e.FileInfo = info
	return e, err
}

func du(ctx context.Context, t *task, args []string) error {
	if len(args) == 0 {
		args = []string{"."}
	}
	shown, err := t.number('d', 1<<30)
	if err != nil {
		return err
	}
	if t.opts.has("s") {
		shown = 0
	}
	total := int64(0)
	err = t.each(ctx, args, func(name string) error {
		e, err := t.start(name)
		if err != nil {
			return err
		}
		sum, err := t.duBelow(ctx, e, 0, int(shown))
		total += sum
		return err
	})
	if err == nil && t.opts.has("c") {
		err = t.duLine(total, "total")
	}
	return err
}

// duBelow sums up what is at a path and below it, and shows folders down to so
// many levels.
func (t *task) duBelow(ctx context.Context, e entry, depth, shown int) (sum int64, err error) {
	var folders []entry
	err = t.walk(ctx, e, 0, 1, func(one entry, below int) error {
		if below == 1 && one.IsDir() {
			folders = append(folders, one)
			return nil
		}
		size := t.duSize(one)
		sum += size
		if below == 1 && t.opts.has("a") && depth < shown {
			return t.duLine(size, one.name)
		}
		return nil
	})
	for _, sub := range folders {
		if err == nil {
			var n int64
			n, err = t.duBelow(ctx, sub, depth+1, shown)
			sum += n
		}
	}
	if err != nil || depth > shown {
		return sum, err
	}
	return sum, t.duLine(sum, e.name)
}

func (t *task) duSize(e entry) int64 {
	if t.opts.has("b") {
		return e.Size()
	}
	return system(e).Blocks * 512
}

func (t *task) duLine(bytes int64, name string) error {
	size := strconv.FormatInt((bytes+1023)/1024, 10)
	switch {
	case t.opts.has("h"):
		size = human(bytes)
	case t.opts.has("b"):
		size = strconv.FormatInt(bytes, 10)
	}
	_, err := fmt.Fprintf(t.out, "%s\t%s\n", size, Visible(name))
	return err
}

func tree(ctx context.Context, t *task, args []string) error {
	if len(args) == 0 {
		args = []string{"."}
	}
	deepest, err := t.number('L', 1<<30)
	if err != nil {
		return err
	}
	dirs, others := 0, 0
	err = t.each(ctx, args, func(name string) error {
		e, err := t.start(name)
		if err != nil {
			return err
		}
		fmt.Fprintln(t.out, Visible(name))
		if !e.IsDir() {
			return syscall.ENOTDIR
		}
		return t.branches(ctx, e, "", int(deepest), &dirs, &others)
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(t.out, "\n%d folders, %d files\n", dirs, others)
	return err
}

func (t *task) branches(ctx context.Context, e entry, indent string, deepest int, dirs, others *int) error {
	if ctx.Err() != nil || deepest == 0 {
		return ctx.Err()
	}
	infos, err := t.files.ReadDir(e.path)
	if err != nil {
		if ends(ctx, err) {
			return err
		}
		t.complain(e.name, err)
	}
	infos = slices.DeleteFunc(infos, func(i fs.FileInfo) bool {
		return i.Name()[0] == '.' && !t.opts.has("a") || !i.IsDir() && t.opts.has("d")
	})
	for i, info := range infos {
		branch, below := "├── ", "│   "
		if i == len(infos)-1 {
			branch, below = "└── ", "    "
		}
		sub := entry{join(e.name, info.Name()), path.Join(e.path, info.Name()), info}
		if _, err := fmt.Fprintln(t.out, indent+branch+Visible(info.Name())); err != nil {
			return err
		}
		if !info.IsDir() {
			*others++
			continue
		}
		*dirs++
		if err := t.branches(ctx, sub, indent+below, deepest-1, dirs, others); err != nil {
			return err
		}
	}
	return nil
}
