package changes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// Why something is not certain.
const (
	unsureEarly   = "it was touched before it was walked: what it was at first is not known"
	unsureContent = "the CRC64 before was not taken: it may be the same content"
	unsureMoved   = "the CRC64 before was not taken: it is the same file by its number, size and time"
	unsureLater   = "it was touched under a later request, too"
	unsureStale   = "it was touched again after it was looked at"
)

// early returns the paths that were touched before the walk came there.
func (o *watch) early() []earlyKey {
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []earlyKey
	for k, s := range o.looks {
		if s.early && !s.touched.IsZero() && len(list) < maxEarly {
			list = append(list, earlyKey{k.share, []byte(k.path)})
		}
	}
	return list
}

// maxEarly bounds the paths that are remembered beyond the relock.
const maxEarly = 10_000

// answerAtRelock says what was seen to be touched while the shares were open.
func (w *Watcher) answerAtRelock(o *watch) error {
	before, closeBefore, err := o.beforeStream()
	if err != nil {
		return err
	}
	defer closeBefore()
	again, closeAgain, err := o.beforeStream()
	if err != nil {
		return err
	}
	defer closeAgain()
	after, err := o.overlaid(again)
	if err != nil {
		return err
	}
	c := o.comparison()
	if err := c.run(before, after); err != nil {
		return err
	}
	doc := w.document(o, c, approval.AtRelock)
	doc.After = o.lookedAt()
	if o.Died {
		doc.After.Why = append(doc.After.Why, "the agent ended before the lease did: what it had seen is lost")
	}
	return w.send(doc, o.changes(c, time.Time{}))
}

// comparison prepares to compare with the walk before.
func (o *watch) comparison() *comparison {
	c := &comparison{begun: o.Begun, walked: o.Walked, early: make(map[key]bool)}
	for _, k := range o.Early {
		c.early[key{k.Share, string(k.Path)}] = true
	}
	return c
}

// beforeStream reads the list of the walk before; there may be none.
func (o *watch) beforeStream() (stream, func(), error) {
	l, err := openList(filepath.Join(o.dir, beforeFile))
	if errors.Is(err, os.ErrNotExist) {
		return empty, func() {}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	return l.next, l.close, nil
}

// lookedAt says how much of what was touched was looked at.
func (o *watch) lookedAt() approval.Walk {
	var out approval.Walk
	for _, s := range o.looks {
		if !s.touched.IsZero() && !s.current() {
			out.Unreached++
		}
		if s.found == there && !s.at.IsZero() {
			out.Files++
			out.Bytes += s.entry.size
			if s.entry.summed {
				out.Summed++
			}
		}
	}
	if out.Unreached > 0 {
		out.Why = append(out.Why, fmt.Sprintf("touched, and not looked at before the node locked: %d", out.Unreached))
	}
	if o.overflow > 0 {
		out.Unreached += o.overflow
		out.Why = append(out.Why, fmt.Sprintf("touched beyond the %d paths that are looked at: %d", maxTouched, o.overflow))
	}
	return out
}

// complete closes the answers for those older leases whose shares are all among
// these, which are sorted. list is a list of all of them, "" to walk them now.
func (w *Watcher) complete(ctx context.Context, shares []Share, list string) error {
	w.answering.Lock()
	defer w.answering.Unlock()
	pending, err := w.pending()
	covered := slices.DeleteFunc(slices.Clone(pending), func(o *watch) bool { return o.Ended.IsZero() || !covers(shares, o.Shares) })
	if len(covered) == 0 {
		return err
	}
	y := &whys{}
	if list == "" {
		list = filepath.Join(w.cfg.Dir, afterFile)
		defer os.Remove(list)
		if err := writeList(ctx, list, shares, false, y, w.cfg.MaxList, w.cfg.MinFree, func(entry) {}); err != nil {
			return fmt.Errorf("the walk did not come to its end: %w", err)
		}
	}
	for i, o := range covered {
		next := time.Time{}
		if i+1 < len(covered) {
			next = covered[i+1].Begun
		} else if one := w.open(); one != nil {
			next = one.Begun
		}
		err = errors.Join(err, w.answerAtReopened(ctx, o, shares, list, y, next))
	}
	return err
}

func (w *Watcher) open() *watch {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current
}

// covers reports whether all shares of a lease are among those that are open.
func covers(open, shares []Share) bool {
	return !slices.ContainsFunc(shares, func(s Share) bool { return indexOf(open, s) < 0 })
}

func indexOf(shares []Share, s Share) int {
	return slices.IndexFunc(shares, func(o Share) bool { return compareShares(o, s) == 0 })
}

// answerAtReopened closes the answer for a lease, by a list of what is there now.
// next is when a later lease began.
func (w *Watcher) answerAtReopened(ctx context.Context, o *watch, shares []Share, list string, y *whys, next time.Time) error {
	before, closeBefore, err := o.beforeStream()
	if err != nil {
		return err
	}
	defer closeBefore()
	l, err := openList(list)
	if err != nil {
		return err
	}
	defer l.close()
	c := o.comparison()
	if err := c.run(before, of(l.next, shares, o.Shares)); err != nil {
		return err
	}
	for i := range o.Shares { // where they are mounted now
		o.Shares[i].Dir = shares[indexOf(shares, o.Shares[i])].Dir
	}
	summed, unread, err := o.sumAfter(ctx, c)
	if err != nil {
		return err
	}
	doc := w.document(o, c, approval.AtReopened)
	doc.After = approval.Walk{Files: c.after.files, Bytes: c.after.bytes, Summed: summed, Unreached: y.total(), Why: y.texts()}
	if unread > 0 {
		doc.After.Why = append(doc.After.Why, fmt.Sprintf("files that differ and were not read: %d", unread))
	}
	if err := w.send(doc, o.changes(c, next)); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(o.dir), state.SyncDir(w.cfg.Dir))
}

// of yields of a list over some shares what is in others, by their indexes.
func of(s stream, listed, wanted []Share) stream {
	return func() (entry, error) {
		for {
			e, err := s()
			if err != nil || e.share >= len(listed) {
				return e, err
			}
			if i := indexOf(wanted, listed[e.share]); i >= 0 {
				e.share = i
				return e, nil
			}
		}
	}
}

// maxRead bounds what is read of files that differ before the copy job begins.
const maxRead = 64 << 30

// sumAfter reads the files that differ and are there, and returns how many it did
// and how many not.
func (o *watch) sumAfter(ctx context.Context, c *comparison) (summed, unread int64, err error) {
	w := &walker{ctx: ctx, whys: &whys{}}
	roots := &roots{shares: o.Shares}
	defer roots.close()
	left := int64(maxRead)
	for _, d := range c.list {
		e := d.after
		if e == nil || e.kind != file {
			continue
		}
		if root := roots.of(e.share); root != nil && left >= e.size {
			if e.crc, e.summed, err = w.sum(root, *e); err != nil {
				return 0, 0, err
			}
			left -= e.size
		}
		if e.summed {
			summed++
		} else {
			unread++
		}
	}
	return summed, unread, nil
}

// changes makes of what differs what became of it.
func (o *watch) changes(c *comparison, next time.Time) []approval.Change {
	list := o.pairMoves(c)
	var out []approval.Change
	for _, d := range list {
		if one, ok := o.change(d); ok {
			if !next.IsZero() && d.after != nil && !time.Unix(0, d.after.ctime).Before(next) {
				one.Unsure = unsureLater
			}
			out = append(out, one)
		}
	}
	return out
}

// change says what became of one file; nothing did if only its dates are others.
func (o *watch) change(d difference) (approval.Change, bool) {
	one := approval.Change{Before: stateOf(d.before), After: stateOf(d.after)}
	switch {
	case d.before == nil:
		one.Kind, one.File = approval.Added, o.pathOf(d.after)
	case d.after == nil:
		one.Kind, one.File = approval.Removed, o.pathOf(d.before)
	case d.before.path != d.after.path || d.before.share != d.after.share:
		from := o.pathOf(d.before)
		one.Kind, one.File, one.From = approval.Moved, o.pathOf(d.after), &from
		if !d.before.summed {
			one.Unsure = unsureMoved
		}
	default:
		one.Kind, one.File = approval.Changed, o.pathOf(d.after)
		switch sameSize := d.before.size == d.after.size && d.before.kind == d.after.kind; {
		case !d.early && sameSize && d.before.summed && d.after.summed && d.before.crc == d.after.crc:
			return one, false
		case sameSize && (!d.before.summed || !d.after.summed):
			one.Unsure = unsureContent
		}
	}
	if d.early {
		one.Unsure = unsureEarly
	}
	if at := d.after; at != nil && o.looks != nil {
		if s := o.looks[key{at.share, at.path}]; s != nil && !s.current() {
			one.Unsure = unsureStale
		}
	}
	return one, true
}

func (o *watch) pathOf(e *entry) approval.FilePath {
	s := o.Shares[e.share]
	return approval.NewFilePath(s.Disk, s.Share, e.path)
}

func stateOf(e *entry) *approval.FileState {
	if e == nil {
		return nil
	}
	s := &approval.FileState{Size: e.size, Modified: max(0, time.Unix(0, e.mtime).Unix())}
	if e.mtime == 0 {
		s.Modified = 0
	}
	if e.summed {
		s.CRC64 = fmt.Sprintf("%016x", e.crc)
	}
	return s
}

// identity is by what a file is known again under another name.
type identity struct {
	disk  string // where the number counts; "" for a sum
	size  int64
	crc   uint64
	ino   uint64
	mtime int64
}

// identities returns by what a file may be known: by its content, and by its
// number where no content is known.
func (o *watch) identities(e *entry) []identity {
	number := identity{disk: string(o.Shares[e.share].Disk), size: e.size, ino: e.ino, mtime: e.mtime}
	if e.summed {
		return []identity{{size: e.size, crc: e.crc}, number}
	}
	return []identity{number}
}

// pairMoves turns pairs of what is gone and what is new into what was moved.
func (o *watch) pairMoves(c *comparison) []difference {
	goneBy := make(map[identity][]int)
	for i, d := range c.list {
		if d.after == nil && d.before.kind == file && !d.early {
			for _, id := range o.identities(d.before)[:1] { // a content that is known decides
				goneBy[id] = append(goneBy[id], i)
			}
		}
	}
	paired := make(map[int]bool)
	for i, d := range c.list {
		if d.before != nil || d.after.kind != file {
			continue
		}
		for _, id := range o.identities(d.after) {
			if from := goneBy[id]; len(from) > 0 {
				goneBy[id] = from[1:]
				c.list[i].before, paired[from[0]] = c.list[from[0]].before, true
				break
			}
		}
	}
	var list []difference
	for i, d := range c.list {
		if !paired[i] {
			list = append(list, d)
		}
	}
	return list
}

// document begins an answer: all but the list.
func (w *Watcher) document(o *watch, c *comparison, stage approval.ChangesStage) approval.Changes {
	return approval.Changes{
		Node: approval.NameOf(w.cfg.Node), NodeKey: w.pub, RequestDigest: o.Request, Stage: stage,
		Begun: o.Begun.Unix(), Ended: max(o.Ended.Unix(), o.Begun.Unix()), MadeAt: w.cfg.Now().Unix(),
		Before: approval.Walk{
			Files: c.before.files, Bytes: c.before.bytes, Summed: c.before.summed, Unreached: o.Unreached, Why: o.Why,
		},
		Added: c.beyond.added, Removed: c.beyond.removed, Changed: c.beyond.changed,
		Unlisted: c.beyond.added + c.beyond.removed + c.beyond.changed,
	}
}

// partSize is how much of a document may be its list, in bytes.
const partSize = approval.MaxOrder - 48<<10

// send signs an answer, in as many parts as it takes, records their digests and
// hands them over.
func (w *Watcher) send(doc approval.Changes, list []approval.Change) error {
	parts, unlisted := split(list)
	for _, one := range list {
		switch one.Kind {
		case approval.Added:
			doc.Added++
		case approval.Removed:
			doc.Removed++
		case approval.Changed:
			doc.Changed++
		case approval.Moved:
			doc.Moved++
		}
	}
	doc.Unlisted += unlisted
	doc.Parts = len(parts)
	for i, part := range parts {
		doc.Part, doc.List = i+1, part
		envelope, err := approval.SignEd25519(doc, w.cfg.Key)
		if err != nil {
			return err
		}
		if err := errors.Join(w.journal(doc, envelope), w.cfg.Send(envelope)); err != nil {
			return err
		}
	}
	return nil
}

// split divides a list into parts that fit a document each, at least one, and
// returns how many entries found no room.
func split(list []approval.Change) (parts [][]approval.Change, unlisted int64) {
	parts = [][]approval.Change{nil}
	size := 0
	for i, one := range list {
		data, err := json.Marshal(one)
		if err != nil {
			continue // cannot happen: it holds nothing but text and numbers
		}
		if size += len(data) + 1; size > partSize {
			if len(parts) == approval.MaxChangesParts {
				return parts, int64(len(list) - i)
			}
			parts, size = append(parts, nil), len(data)+1
		}
		parts[len(parts)-1] = append(parts[len(parts)-1], one)
	}
	return parts, 0
}

// journal records that a part of an answer was signed.
func (w *Watcher) journal(doc approval.Changes, envelope []byte) error {
	e, err := approval.ParseEnvelope(envelope)
	if err != nil {
		return err
	}
	r := auditlog.NewRecord(w.cfg.Now(), auditlog.OpReportChanges, auditlog.Success)
	r.ResourceID = fmt.Sprintf("/devices/%s/nodes/%d", w.cfg.Node.Serial, w.cfg.Node.Node)
	r.Caller, r.Origin = w.cfg.Node.URI().String(), w.cfg.Node.String()
	r.Properties = map[string]string{
		auditlog.PropertySubjectDigest: string(doc.RequestDigest), "stage": string(doc.Stage), "digest": string(e.Digest()),
		"part": strconv.Itoa(doc.Part) + " of " + strconv.Itoa(doc.Parts),
	}
	_, err = w.cfg.Journal.Append(context.Background(), r)
	return err
}
