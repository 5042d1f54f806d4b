package changes

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const shareName = "contosodata_BlockBlob"

// scene is a node with one share, which is a plain folder.
type scene struct {
	t       testing.TB
	dir     string
	watcher *Watcher
	node    approval.NodeRef
	request approval.Digest

	mu        sync.Mutex
	envelopes [][]byte
	records   []auditlog.Record
	stop      func()
}

func newScene(t testing.TB) *scene {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	node := protocol.NodeID{Serial: "DBX0001", Node: 1}
	s := &scene{
		t: t, dir: filepath.Join(t.TempDir(), shareName), request: approval.DigestOf([]byte(t.Name())),
		node: approval.NodeRef{Serial: node.Serial, Node: node.Node, KeyFingerprint: approval.KeyFingerprint(pub)},
	}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.watcher, err = New(Config{
		Dir: filepath.Join(t.TempDir(), "changes"), Node: node, Key: key, Now: time.Now, Log: zerolog.New(zerolog.NewTestWriter(t)), Journal: s,
		Send: func(envelope []byte) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.envelopes = append(s.envelopes, envelope)
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Append is the journal's.
func (s *scene) Append(_ context.Context, r auditlog.Record) (int64, error) {
	s.records = append(s.records, r)
	return int64(len(s.records)), nil
}

func (s *scene) shares() []Share {
	return []Share{{Disk: "disk1", Share: shareName, Dir: s.dir}}
}

// open begins a lease, at a time after all files there were last changed.
func (s *scene) open() {
	s.t.Helper()
	begun := s.later()
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.watcher.Watch(ctx, Lease{Request: s.request, Begun: begun, Shares: s.shares()})
	}()
	s.stop = func() { cancel(); <-done }
	synctest.Wait()
}

// later is a time by the file system's clock, which is real in every bubble.
func (s *scene) later() time.Time {
	s.t.Helper()
	for {
		name := filepath.Join(filepath.Dir(s.dir), "clock")
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			s.t.Fatal(err)
		}
		info, err := os.Stat(name)
		if err != nil {
			s.t.Fatal(err)
		}
		if newest := s.newest(); info.ModTime().After(newest) {
			return info.ModTime()
		}
		for deadline := 0; deadline < 1e6; deadline++ { // the kernel's clock has ticks of milliseconds
		}
	}
}

func (s *scene) newest() (newest time.Time) {
	w := &walker{ctx: context.Background(), whys: &whys{}}
	err := w.share(0, s.dir, func(e entry) error {
		if at := time.Unix(0, e.ctime); at.After(newest) {
			newest = at
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return newest
}

func (s *scene) path(name string) string { return filepath.Join(s.dir, name) }

// write, move and remove do what an engineer does, and report it.
func (s *scene) write(name, content string) {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Dir(s.path(name)), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(s.path(name), []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.event(recording.FileEvent{Op: recording.OpWrite, Share: shareName, Path: name})
}

func (s *scene) move(from, to string) {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Dir(s.path(to)), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(s.path(from), s.path(to)); err != nil {
		s.t.Fatal(err)
	}
	s.event(recording.FileEvent{Op: recording.OpRename, Share: shareName, Path: from, To: shareName + "/" + to})
}

func (s *scene) remove(name string) {
	s.t.Helper()
	if err := os.RemoveAll(s.path(name)); err != nil {
		s.t.Fatal(err)
	}
	s.event(recording.FileEvent{Op: recording.OpRemove, Share: shareName, Path: name})
}

func (s *scene) event(e recording.FileEvent) {
	s.t.Helper()
	if err := s.watcher.File(e); err != nil {
		s.t.Fatal(err)
	}
}

// answer returns the newest answer, its parts put together.
func (s *scene) answer() approval.Changes {
	s.t.Helper()
	var all approval.Changes
	for i, envelope := range s.envelopes {
		c, err := approval.VerifyChanges(envelope, s.node, s.request)
		if err != nil {
			s.t.Fatal(err)
		}
		if c.Part == 1 {
			all = c
		} else {
			all.List = append(all.List, c.List...)
		}
		if got := s.records[i].Properties["digest"]; got != string(parsed(s.t, envelope).Digest()) {
			s.t.Errorf("the journal has the digest %s", got)
		}
	}
	if all.Part == 0 {
		s.t.Fatal("the node has said nothing")
	}
	return all
}

func parsed(t testing.TB, envelope []byte) approval.Envelope {
	t.Helper()
	e, err := approval.ParseEnvelope(envelope)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// lines says what an answer lists, sorted.
func lines(c approval.Changes) []string {
	var out []string
	for _, one := range c.List {
		line := string(one.Kind) + " " + one.File.Bytes()
		if one.From != nil {
			line += " from " + one.From.Bytes()
		}
		if one.Unsure != "" {
			line += " (" + one.Unsure + ")"
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}

func (s *scene) want(stage approval.ChangesStage, want ...string) {
	s.t.Helper()
	c := s.answer()
	slices.Sort(want)
	if diff := gocmp.Diff(want, lines(c)); diff != "" || c.Stage != stage {
		s.t.Errorf("at %s, want %s:\n%s", c.Stage, stage, diff)
	}
}

// TestStory is the story of a repair: files are moved, changed, made and removed,
// seen while the shares are open and found again when they are next open.
func TestStory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		for _, name := range []string{"Wrong_Folder/a.txt", "Wrong_Folder/deep/b.txt", "docs/c.txt", "docs/d.txt", "docs/e.txt", "docs.txt", "new\nline\xff"} {
			s.write(name, "content of "+name)
		}
		s.open()
		time.Sleep(10 * time.Second)
		s.move("Wrong_Folder", "right-folder")
		s.write("docs/c.txt", "other content")
		s.write("docs/d.txt", "content of docs/d.txt") // only its dates are others
		s.remove("docs/e.txt")
		s.write("docs/f.txt", "new")
		s.remove("new\nline\xff")
		s.event(recording.FileEvent{Op: recording.OpRead, Share: shareName, Path: "docs.txt"})
		time.Sleep(10 * time.Second)
		s.write("docs/late.txt", "too late to be looked at")
		s.stop()
		story := []string{
			"moved right-folder/a.txt from Wrong_Folder/a.txt", "moved right-folder/deep/b.txt from Wrong_Folder/deep/b.txt",
			"changed docs/c.txt", "removed docs/e.txt", "added docs/f.txt", "removed new\nline\xff",
		}
		s.want(approval.AtRelock, story...)
		c := s.answer()
		if c.After.Unreached != 1 || c.Before.Files != 7 || c.Before.Summed != 7 || c.Before.Unreached != 0 || c.Moved != 2 {
			t.Errorf("got %+v", c)
		}
		one := c.List[slices.IndexFunc(c.List, func(c approval.Change) bool { return c.Kind == approval.Changed })]
		if want := fmt.Sprintf("%016x", manifest.ChecksumCRC64([]byte("other content"))); one.After.CRC64 != want || one.Before.Size == one.After.Size {
			t.Errorf("got %+v %+v, want the CRC64 %s", one.Before, one.After, want)
		}

		s.watcher.Complete(t.Context(), s.shares())
		s.want(approval.AtReopened, append(story, "added docs/late.txt")...)
		if c := s.answer(); c.After.Unreached != 0 || c.After.Files != 7 || len(c.After.Why) != 0 {
			t.Errorf("got %+v", c)
		}
		n := len(s.envelopes)
		s.watcher.Complete(t.Context(), s.shares())
		if left, err := os.ReadDir(s.watcher.cfg.Dir); len(s.envelopes) != n || len(left) != 0 || err != nil {
			t.Errorf("answered again, or left %v %v", left, err)
		}
	})
}

// TestNobodyReports does what no event tells of: it is found when the disks are
// open again.
func TestNobodyReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		s.write("docs/a.txt", "a")
		s.write("docs/b.txt", "b")
		s.open()
		time.Sleep(10 * time.Second)
		before, err := os.Stat(s.path("docs/a.txt"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.path("docs/a.txt"), []byte("A"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(s.path("docs/a.txt"), before.ModTime(), before.ModTime()); err != nil { // same size, date put back
			t.Fatal(err)
		}
		s.stop()
		s.want(approval.AtRelock)
		s.watcher.Complete(t.Context(), s.shares())
		s.want(approval.AtReopened, "changed docs/a.txt")
	})
}

// TestTouchedBeforeItWasWalked touches files before the walk comes there.
func TestTouchedBeforeItWasWalked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		for _, name := range []string{"a", "changed", "gone", "moved"} {
			s.write(name, "content of "+name)
		}
		one, err := s.watcher.begin(Lease{Request: s.request, Begun: s.later(), Shares: s.shares()})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		s.write("changed", "other")
		s.remove("gone")
		s.move("moved", "there")
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Second, cancel)
		one.run(ctx, func() {})
		one.Ended, one.Early = time.Now(), one.early()
		if err := s.watcher.answerAtRelock(one); err != nil {
			t.Fatal(err)
		}
		early := " (" + unsureEarly + ")"
		s.want(approval.AtRelock, "changed changed"+early, "removed gone"+early, "removed moved"+early, "changed there"+early)
	})
}

// TestWalkIsCutOff locks before the walk is over: what it did not reach is not
// called added.
func TestWalkIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		for i := range 200 {
			s.write(fmt.Sprintf("docs/%03d", i), "x")
		}
		s.watcher.cfg.MaxList = 2000
		s.open()
		time.Sleep(10 * time.Second)
		s.write("docs/000", "changed")
		s.write("docs/199", "changed")
		time.Sleep(10 * time.Second)
		s.stop()
		early := " (" + unsureEarly + ")"
		s.want(approval.AtRelock, "changed docs/000", "added docs/199"+early)
		if c := s.answer(); c.Before.Files >= 200 || c.Before.Unreached != 1 || len(c.Before.Why) != 1 || !strings.Contains(c.Before.Why[0], errFull.Error()) {
			t.Errorf("got %+v", c.Before)
		}
		s.watcher.cfg.MaxList = 1 << 20
		s.watcher.Complete(t.Context(), s.shares())
		s.want(approval.AtReopened, "changed docs/000", "added docs/199"+early)
	})
}

// TestAgentDied finds a lease that was open when the agent ended.
func TestAgentDied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		s.write("a", "a")
		one, err := s.watcher.begin(Lease{Request: s.request, Begun: s.later(), Shares: s.shares()})
		if err != nil {
			t.Fatal(err)
		}
		if err := one.list(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.write("b", "b")
		again, err := New(s.watcher.cfg)
		if err != nil {
			t.Fatal(err)
		}
		again.Recover()
		s.want(approval.AtRelock)
		if c := s.answer(); len(c.After.Why) != 1 || !strings.Contains(c.After.Why[0], "the agent ended") {
			t.Errorf("got %+v", c.After)
		}
		again.Complete(t.Context(), s.shares())
		s.want(approval.AtReopened, "added b")
	})
}

// TestNextLeaseClosesTheAnswer opens for a second request before any copy job
// has: what the second one does is not called the first one's without saying so.
func TestNextLeaseClosesTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		s.write("a", "a")
		s.open()
		time.Sleep(10 * time.Second)
		s.write("b", "b")
		s.stop()
		s.open()
		time.Sleep(10 * time.Second)
		s.want(approval.AtReopened, "added b")
		s.write("c", "c")
		s.stop()
		s.watcher.Complete(t.Context(), nil) // other disks
		s.watcher.Complete(t.Context(), s.shares())
		s.want(approval.AtReopened, "added c")
	})
}

// TestManyChanges has more of them than one document holds.
func TestManyChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		s.open()
		time.Sleep(10 * time.Second)
		const n = 2500
		for i := range n {
			if err := os.WriteFile(s.path(fmt.Sprintf("%s-%05d", strings.Repeat("long", 40), i)), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s.stop()
		s.watcher.Complete(t.Context(), s.shares())
		if c := s.answer(); len(c.List) != n || c.Added != n || c.Parts < 2 || c.Unlisted != 0 {
			t.Errorf("%d in %d parts", len(c.List), c.Parts)
		}
		many := make([]approval.Change, 100_000)
		for i := range many {
			many[i] = approval.Change{Kind: approval.Removed, File: approval.NewFilePath("disk1", shareName, fmt.Sprint(strings.Repeat("x", 60), i)), Before: &approval.FileState{}}
		}
		parts, unlisted := split(many)
		listed := 0
		for _, p := range parts {
			listed += len(p)
		}
		if len(parts) != approval.MaxChangesParts || unlisted == 0 || listed+int(unlisted) != len(many) {
			t.Errorf("%d in %d parts, %d not", listed, len(parts), unlisted)
		}
	})
}

// TestWatchEndsAtOnce locks while a big file is read.
func TestWatchEndsAtOnce(t *testing.T) {
	s := newScene(t)
	if err := os.WriteFile(s.path("big"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.path("big"), 1<<40); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.watcher.Watch(ctx, Lease{Request: s.request, Begun: time.Now(), Shares: s.shares()})
	}()
	listed := func() bool {
		s.watcher.mu.Lock()
		o := s.watcher.current
		s.watcher.mu.Unlock()
		if o == nil {
			return false
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.done
	}
	for end := time.Now().Add(10 * time.Second); !listed() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	start := time.Now()
	cancel()
	<-done
	if took := time.Since(start); took > 5*time.Second { // to read it all takes hours
		t.Errorf("it took %s", took)
	}
	if c := s.answer(); c.Before.Files != 1 || c.Before.Summed != 0 {
		t.Errorf("got %+v", c.Before)
	}
}

// TestWalkOrder walks a tree of random names: the order is the one in which lists
// are compared.
func TestWalkOrder(t *testing.T) {
	s := newScene(t)
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		name := ""
		for range 1 + r.IntN(4) {
			name += string([]byte{" -.a~\xff\x01"[r.IntN(7)], "ab.-"[r.IntN(4)]}) + "/"
		}
		_ = os.MkdirAll(filepath.Dir(s.path(name)), 0o755) // some are files already
		_ = os.WriteFile(s.path(strings.TrimSuffix(name, "/")), nil, 0o600)
	}
	var walked []string
	w := &walker{ctx: t.Context(), whys: &whys{}}
	if err := w.share(0, s.dir, func(e entry) error { walked = append(walked, e.path); return nil }); err != nil {
		t.Fatal(err)
	}
	sorted := slices.Clone(walked)
	slices.SortFunc(sorted, func(a, b string) int { return cmp.Or(compareKeys(0, a, 0, b)) })
	if diff := gocmp.Diff(sorted, walked); diff != "" || len(walked) < 50 {
		t.Error(len(walked), diff)
	}
}

// TestUnreadFolder has a folder that cannot be walked, before or after: nothing
// below it is called added or removed.
func TestUnreadFolder(t *testing.T) {
	file := func(p string) entry { return entry{kind: file, path: p, size: 1} }
	hole := entry{kind: unread, path: "docs"}
	for name, c := range map[string]struct{ before, after []entry }{
		"before": {[]entry{hole, file("docs.txt")}, []entry{file("docs/a"), file("docs/b/c"), file("docs.txt")}},
		"after":  {[]entry{file("docs/a"), file("docs/b/c"), file("docs.txt")}, []entry{hole, file("docs.txt")}},
	} {
		t.Run(name, func(t *testing.T) {
			got := &comparison{walked: true, begun: time.Unix(1, 0)}
			if err := got.run(streamOf(c.before), streamOf(c.after)); err != nil || len(got.list) != 0 {
				t.Errorf("%v %v", got.list, err)
			}
		})
	}
}

func streamOf(list []entry) stream {
	return func() (entry, error) {
		if len(list) == 0 {
			return empty()
		}
		e := list[0]
		list = list[1:]
		return e, nil
	}
}
