package changes

import (
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// watch is a lease that is watched over, or was.
type watch struct {
	record
	dir           string
	most, minFree int64

	mu       sync.Mutex // guards what follows
	reached  *key       // how far the walk is; nil before it began
	done     bool       // it is over
	looks    map[key]*seen
	overflow int64 // touched, and too many to remember
}

// key names a file of a lease.
type key struct {
	share int
	path  string
}

func (k key) compare(o key) int { return compareKeys(k.share, k.path, o.share, o.path) }

// seen is what was seen of a touched path.
type seen struct {
	touched time.Time // last; zero if it only lies in a folder that was
	early   bool      // first touched before the walk came there
	at      time.Time // of the look; zero if there was none
	found   found
	entry   entry // when an entry was found
}

// found is what a look found.
type found int

const (
	gone    found = iota // nothing is there
	there                // an entry is
	whole                // a folder, and all below it was looked at
	partial              // a folder, of which not all could be looked at
)

// current reports whether the look is newer than what was done to the path.
func (s *seen) current() bool { return s.at.After(s.touched) }

// Bounds of what is looked at while the shares are open.
const (
	maxTouched = 100_000
	idleFor    = time.Second            // since a path was touched, before it is looked at
	lookEvery  = 500 * time.Millisecond // for paths that are due
)

// touched remembers that a path was touched.
func (o *watch) touched(share, name string) {
	if name = path.Clean(name); name == "." || name == "/" || len(name) > maxPath {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, s := range o.Shares {
		if s.named(share) {
			o.touchLocked(key{i, name}).touched = time.Now()
		}
	}
}

// touchLocked returns what is known of a path that is touched, or a place for
// what nobody will remember.
func (o *watch) touchLocked(k key) *seen {
	s := o.looks[k]
	if s == nil {
		s = &seen{early: !o.done && (o.reached == nil || k.compare(*o.reached) > 0)}
		if len(o.looks) >= maxTouched {
			o.overflow++
			return s
		}
		o.looks[k] = s
	}
	return s
}

// run walks and looks until ctx ends. walked is called when the list is whole.
func (o *watch) run(ctx context.Context, walked func()) {
	var both sync.WaitGroup
	both.Go(func() {
		if o.list(ctx) == nil {
			walked()
			o.sums(ctx)
		}
	})
	both.Go(func() { o.lookAround(ctx) })
	both.Wait()
}

// list writes down what is in the shares, names and sizes first: that is fast.
func (o *watch) list(ctx context.Context) error {
	y := &whys{}
	err := writeList(ctx, filepath.Join(o.dir, beforeFile), o.Shares, true, y, o.most, o.minFree, func(e entry) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.reached = &key{e.share, e.path}
	})
	o.mu.Lock()
	o.done = err == nil
	o.mu.Unlock()
	o.Walked, o.Why, o.Unreached = err == nil, y.texts(), y.total()
	if err != nil {
		o.Why = append(o.Why, "the walk before did not come to its end: "+reason(ctx, err))
		o.Unreached++
	}
	return errors.Join(err, o.save())
}

// reason says why a walk ended early.
func reason(ctx context.Context, err error) string {
	switch {
	case ctx.Err() != nil:
		return "the node locked"
	case errors.Is(err, errFull):
		return err.Error()
	}
	return "the node could not write its list"
}

// writeList walks shares and writes down what is there.
func writeList(ctx context.Context, path string, shares []Share, pace bool, y *whys, most, minFree int64, reached func(entry)) error {
	l, err := newListWriter(path, most, minFree)
	if err != nil {
		return err
	}
	w := &walker{ctx: ctx, pace: pace, whys: y}
	for i, s := range shares {
		err = w.share(i, s.Dir, func(e entry) error {
			reached(e)
			return l.add(e)
		})
		if err != nil {
			break
		}
	}
	return errors.Join(err, l.close())
}

// sums takes the CRC64 of every file of the list. One that was touched before its
// turn is left out: what it was cannot be known any more.
func (o *watch) sums(ctx context.Context) {
	l, err := openList(filepath.Join(o.dir, beforeFile))
	if err != nil {
		return
	}
	defer l.close()
	f, err := os.Create(filepath.Join(o.dir, sumsFile))
	if err != nil {
		return
	}
	defer f.Close() // a sum that is missing was not taken
	w := &walker{ctx: ctx, pace: true, whys: &whys{}}
	roots := &roots{shares: o.Shares}
	defer roots.close()
	for {
		e, err := l.next()
		if err != nil {
			return
		}
		var crc uint64
		taken := false
		if root := roots.of(e.share); root != nil && e.kind == file {
			if crc, taken, err = w.sum(root, e); err != nil {
				return
			}
		}
		if _, err := f.Write(encodeSum(crc, taken)); err != nil {
			return
		}
	}
}

// roots are the folders of shares, opened once.
type roots struct {
	shares []Share
	open   map[int]*os.Root
}

// of returns the folder of a share, nil if it cannot be opened.
func (r *roots) of(share int) *os.Root {
	if share >= len(r.shares) {
		return nil
	}
	if root, ok := r.open[share]; ok {
		return root
	}
	if r.open == nil {
		r.open = make(map[int]*os.Root)
	}
	root, err := os.OpenRoot(r.shares[share].Dir)
	if err != nil {
		root = nil
	}
	r.open[share] = root
	return root
}

func (r *roots) close() {
	for _, root := range r.open {
		if root != nil {
			root.Close()
		}
	}
}

// lookAround looks at what was touched as soon as it is left alone, since at the
// relock it will be too late.
func (o *watch) lookAround(ctx context.Context) {
	w := &walker{ctx: ctx, pace: true, whys: &whys{}}
	roots := &roots{shares: o.Shares}
	defer roots.close()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for _, k := range o.due(now) {
				if o.look(w, roots, k) != nil {
					return
				}
			}
		}
	}
}

// due returns the paths that were touched and then left alone.
func (o *watch) due(now time.Time) []key {
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []key
	for k, s := range o.looks {
		if !s.current() && now.Sub(s.touched) >= idleFor {
			list = append(list, k)
		}
	}
	slices.SortFunc(list, key.compare)
	return list
}

// look looks at one path, and at all below it if it is a folder, as one is that
// was moved. It fails only with ctx.
func (o *watch) look(w *walker, roots *roots, k key) error {
	root := roots.of(k.share)
	if root == nil {
		return w.ctx.Err()
	}
	at := time.Now()
	info, err := root.Lstat(k.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		o.saw(k, at, gone, entry{})
	case err == nil && info.IsDir():
		return o.lookBelow(w, root, k, at)
	case err == nil:
		return o.lookAtFile(w, root, k, at, entryOf(info, entry{share: k.share, path: k.path}))
	}
	return w.ctx.Err()
}

func (o *watch) lookAtFile(w *walker, root *os.Root, k key, at time.Time, e entry) error {
	o.saw(k, at, there, e) // a big file takes long
	if e.kind != file {
		return nil
	}
	var err error
	if e.crc, e.summed, err = w.sum(root, e); err == nil && e.summed {
		o.saw(k, at, there, e)
	}
	return err
}

func (o *watch) lookBelow(w *walker, root *os.Root, k key, at time.Time) error {
	sub, err := root.OpenRoot(k.path)
	if err != nil {
		return w.ctx.Err()
	}
	defer sub.Close()
	what := whole
	err = w.folder(sub, entry{kind: unread, share: k.share, path: k.path}, 0, func(e entry) error {
		if e.kind == unread {
			what = partial
			return nil
		}
		return o.lookAtFile(w, root, key{e.share, e.path}, at, e)
	})
	if err == nil {
		o.saw(k, at, what, entry{})
	}
	return err
}

func (o *watch) saw(k key, at time.Time, what found, e entry) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.touchLocked(k)
	s.at, s.found, s.entry = at, what, e
}
