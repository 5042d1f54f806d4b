package changes

import (
	"cmp"
	"io"
	"path"
	"slices"
	"time"
)

// stream yields entries in the order of the walk, then io.EOF.
type stream func() (entry, error)

// empty is a stream without entries.
func empty() (entry, error) { return entry{}, io.EOF }

// peeked is a stream of which the next entry is known.
type peeked struct {
	next stream
	e    entry
	over bool
}

func peek(s stream) (*peeked, error) {
	p := &peeked{next: s}
	return p, p.advance()
}

func (p *peeked) advance() (err error) {
	p.e, err = p.next()
	if err == io.EOF {
		p.over, err = true, nil
	}
	return err
}

// order compares where two streams are; the one that is over comes last.
func (p *peeked) order(o *peeked) int {
	switch {
	case p.over:
		return 1
	case o.over:
		return -1
	}
	return compareKeys(p.e.share, p.e.path, o.e.share, o.e.path)
}

// overlaid lays what was seen over the list of a walk.
func (o *watch) overlaid(before stream) (stream, error) {
	list, err := peek(before)
	if err != nil {
		return nil, err
	}
	looks, err := peek(o.looked())
	if err != nil {
		return nil, err
	}
	return func() (entry, error) {
		for !list.over || !looks.over {
			order := list.order(looks)
			e, at, isThere := list.e, time.Time{}, true
			if order >= 0 {
				s := o.looks[key{looks.e.share, looks.e.path}]
				e, at, isThere = looks.e, s.at, s.found == there
				if err := looks.advance(); err != nil {
					return entry{}, err
				}
			}
			if order <= 0 {
				if err := list.advance(); err != nil {
					return entry{}, err
				}
			}
			if isThere && !o.replaced(e, at) {
				return e, nil
			}
		}
		return entry{}, io.EOF
	}, nil
}

// looked yields all paths that were looked at, in order.
func (o *watch) looked() stream {
	var list []entry
	for k, s := range o.looks {
		if !s.at.IsZero() {
			e := s.entry
			e.share, e.path = k.share, k.path
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b entry) int { return compareKeys(a.share, a.path, b.share, b.path) })
	return func() (entry, error) {
		if len(list) == 0 {
			return entry{}, io.EOF
		}
		e := list[0]
		list = list[1:]
		return e, nil
	}
}

// replaced reports whether a folder above e was found to be gone, or was looked
// at whole, later than e: then e would have been seen were it there still.
func (o *watch) replaced(e entry, at time.Time) bool {
	for dir := path.Dir(e.path); dir != "." && dir != "/"; dir = path.Dir(dir) {
		s := o.looks[key{e.share, dir}]
		if s != nil && s.at.After(at) && (s.found == gone || s.found == whole) {
			return true
		}
	}
	return false
}

// difference is one file that is not as it was. One of both may be nil.
type difference struct {
	before, after *entry
	early         bool // what is before may not be what was there at first
}

// comparison goes through two walks.
type comparison struct {
	begun  time.Time    // of the lease: what changed since is not what was before
	walked bool         // the walk before came to its end
	early  map[key]bool // touched before the walk came there

	before, after tally
	list          []difference
	beyond        struct{ added, removed, changed int64 } // found when the list was full
}

// tally counts what a walk found.
type tally struct{ files, bytes, summed int64 }

func (t *tally) count(e entry) {
	if e.kind == unread {
		return
	}
	t.files++
	t.bytes += e.size
	if e.summed {
		t.summed++
	}
}

// maxDifferences bounds the differences that are looked at one by one.
const maxDifferences = 50_000

// run compares. Where one of both walks did not come, nothing differs.
func (c *comparison) run(before, after stream) error {
	b, err := peek(before)
	if err != nil {
		return err
	}
	a, err := peek(after)
	if err != nil {
		return err
	}
	var hole *key // below it one of both knows nothing
	for !b.over || !a.over {
		order := b.order(a)
		var old, now *entry
		if order <= 0 {
			e := b.e
			old = &e
			c.before.count(e)
			if err := b.advance(); err != nil {
				return err
			}
		}
		if order >= 0 {
			e := a.e
			now = &e
			c.after.count(e)
			if err := a.advance(); err != nil {
				return err
			}
		}
		at := cmp.Or(old, now)
		if old != nil && old.kind == unread || now != nil && now.kind == unread {
			hole = &key{at.share, at.path}
			continue
		}
		if hole != nil && hole.share == at.share && below(at.path, hole.path) {
			continue
		}
		c.differ(old, now, b.over)
	}
	c.vanished()
	return nil
}

// differ adds a difference if there is one. beyond is whether the walk before has
// ended.
func (c *comparison) differ(old, now *entry, beyond bool) {
	at := cmp.Or(old, now)
	k := key{at.share, at.path}
	early := c.early[k] || old != nil && !time.Unix(0, old.ctime).Before(c.begun)
	delete(c.early, k)
	switch {
	case !early && old != nil && now != nil && old.same(*now):
	case !early && old == nil && beyond && !c.walked: // nobody knows whether it was there
	default:
		c.add(difference{before: old, after: now, early: early})
	}
}

// vanished adds what was touched before it was walked and is in neither walk.
func (c *comparison) vanished() {
	for k := range c.early {
		c.add(difference{before: &entry{share: k.share, path: k.path}, early: true})
	}
}

func (c *comparison) add(d difference) {
	switch {
	case len(c.list) < maxDifferences:
		c.list = append(c.list, d)
	case d.before == nil:
		c.beyond.added++
	case d.after == nil:
		c.beyond.removed++
	default:
		c.beyond.changed++
	}
}
