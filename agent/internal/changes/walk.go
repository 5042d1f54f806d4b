package changes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// Bounds of what is walked. The customer's disks may hold anything.
const (
	maxNames = 1 << 20 // of one folder
	maxDepth = 512     // folders within each other; each holds a descriptor while it is walked
)

// walker looks at the files of shares.
type walker struct {
	ctx    context.Context
	pace   bool // half of the time is left to others
	worked time.Duration
	since  time.Time
	whys   *whys
}

// rest is how long is worked before others get their turn.
const rest = 10 * time.Millisecond

// breathe ends a piece of work that began at since, and waits as long as was
// worked.
func (w *walker) breathe() error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	now := time.Now()
	w.worked += now.Sub(w.since)
	w.since = now
	if !w.pace || w.worked < rest {
		return nil
	}
	select {
	case <-w.ctx.Done():
	case <-time.After(w.worked):
	}
	w.worked, w.since = 0, time.Now()
	return w.ctx.Err()
}

// share calls visit for all files of a share in the order of the walk. An error
// of visit, or the end of the context, ends it; what cannot be read is visited as
// unread.
func (w *walker) share(index int, dir string, visit func(entry) error) error {
	w.since = time.Now()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return w.skip(entry{kind: unread, share: index}, "a share cannot be opened", visit)
	}
	defer root.Close()
	return w.folder(root, entry{kind: unread, share: index}, 0, visit)
}

// folder walks what root is, whose entry, should it be unreadable, is at.
func (w *walker) folder(root *os.Root, at entry, depth int, visit func(entry) error) error {
	names, err := namesOf(root)
	switch {
	case err != nil:
		return w.skip(at, "folders that cannot be read", visit)
	case len(names) > maxNames:
		return w.skip(at, fmt.Sprintf("folders with more than %d entries", maxNames), visit)
	case depth > maxDepth:
		return w.skip(at, fmt.Sprintf("folders more than %d deep", maxDepth), visit)
	}
	for _, name := range names {
		if err := w.breathe(); err != nil {
			return err
		}
		if err := w.entry(root, at, name, depth, visit); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) entry(root *os.Root, at entry, name string, depth int, visit func(entry) error) error {
	path := name
	if at.path != "" {
		path = at.path + "/" + name
	}
	inner := entry{kind: unread, share: at.share, path: path}
	if len(path) > maxPath {
		w.whys.add(fmt.Sprintf("paths of more than %d bytes", maxPath)) // in neither walk
		return nil
	}
	info, err := root.Lstat(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil // removed meanwhile
	case err != nil:
		return w.skip(inner, "files that cannot be looked at", visit)
	case !info.IsDir():
		return visit(entryOf(info, inner))
	}
	sub, err := root.OpenRoot(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return w.skip(inner, "folders that cannot be read", visit)
	}
	defer sub.Close()
	return w.folder(sub, inner, depth+1, visit)
}

func (w *walker) skip(at entry, why string, visit func(entry) error) error {
	if err := w.ctx.Err(); err != nil {
		return err // that is why
	}
	w.whys.add(why)
	return visit(at)
}

// namesOf lists what is in a folder, in order, but not much more than is walked.
func namesOf(root *os.Root) ([]string, error) {
	f, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxNames + 1)
	if err == io.EOF {
		err = nil
	}
	slices.SortFunc(names, func(a, b string) int { return compareKeys(0, a, 0, b) })
	return names, err
}

// entryOf fills in what lies where at says.
func entryOf(info os.FileInfo, at entry) entry {
	at.kind = other
	if info.Mode().IsRegular() {
		at.kind = file
	}
	at.size, at.mtime = info.Size(), info.ModTime().UnixNano()
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		at.ctime, at.ino = stat.Ctim.Nano(), stat.Ino
	}
	return at
}

// chunk is how much of a file is read at a time.
const chunk = 1 << 20

// sum takes the CRC64 of a file that is as e says from beginning to end, and
// reports whether it was. An error is the context's.
func (w *walker) sum(root *os.Root, e entry) (uint64, bool, error) {
	w.since = time.Now()
	f, err := root.OpenFile(e.path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, false, w.ctx.Err()
	}
	defer f.Close()
	crc, buf := manifest.NewCRC64(), make([]byte, min(chunk, max(e.size, 1)))
	for {
		if !e.same(look(f, e)) {
			return 0, false, w.ctx.Err()
		}
		n, err := f.Read(buf)
		crc.Write(buf[:n])
		if err := w.breathe(); err != nil {
			return 0, false, err
		}
		if err == io.EOF {
			return crc.Sum64(), e.same(look(f, e)), nil
		}
		if err != nil {
			return 0, false, nil
		}
	}
}

// look returns what an open file is now; at says where it is.
func look(f *os.File, at entry) entry {
	info, err := f.Stat()
	if err != nil {
		return entry{}
	}
	return entryOf(info, at)
}

// whys collects what was not reached, each reason once with how often.
type whys struct {
	order []string
	count map[string]int64
}

func (y *whys) add(why string) {
	if y.count == nil {
		y.count = make(map[string]int64)
	}
	if y.count[why] == 0 {
		y.order = append(y.order, why)
	}
	y.count[why]++
}

// total is how many things were not reached.
func (y *whys) total() (n int64) {
	for _, c := range y.count {
		n += c
	}
	return n
}

func (y *whys) texts() []string {
	var list []string
	for _, why := range y.order {
		list = append(list, fmt.Sprintf("%s: %d", why, y.count[why]))
	}
	return list
}
