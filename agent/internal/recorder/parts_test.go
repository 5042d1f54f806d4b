package recorder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// short has recordings go on in another part soon.
func short(c *Config) { c.Part = 64 << 10 }

// parts verifies all parts of the one recording there is: each by itself, with the
// journal, and that they fit together from the first to the last, which ended for
// the reason. It returns what they hold, each by itself.
func (s *scene) parts(reason recording.Reason) (reports []recording.Report, bodies [][]recording.Body) {
	s.Helper()
	for _, p := range s.store.list() {
		want := recording.EndContinued
		if p.next == "" {
			want = reason
		}
		reports = append(reports, s.verify(p.meta.ID, want))
	}
	joined, err := recording.Join(reports)
	if err != nil || joined[0].Meta.Part() != 1 || !slices.EqualFunc(joined, reports, func(a, b recording.Report) bool { return a.Digest == b.Digest }) {
		s.Fatalf("%d parts do not fit: %v", len(reports), err)
	}
	for _, r := range reports {
		if r.Size > s.store.cfg.Part {
			s.Errorf("a part has %d bytes: at most %d", r.Size, s.store.cfg.Part)
		}
		bodies = append(bodies, s.bodies(r.Meta.ID))
	}
	return reports, bodies
}

// TestGoesOn: a recording goes on in other parts between two events. Nothing is
// lost or changed, each begins with the channels that are open, as they stand, and
// nobody who is recorded or watches notices.
func TestGoesOn(t *testing.T) {
	s := newScene(t, short)
	s.run()
	secret := "hunter-22-hunter-22"
	s.store.Mask(secret)
	r := s.begin()
	told := make(chan []string, 100)
	r.OnWatch(func(names []string) { told <- names })
	ctx, leave := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() {
		watched <- s.store.Watch(ctx, r.ID(), -1, "ann@contoso.example", func(int64, []byte) error { return nil })
	}()
	<-told
	term, plain, gone := r.Terminal("c1", 80, 24), r.Plain("c2"), r.Terminal("c3", 10, 10)
	must(t, term.Resize(132, 43), gone.Close())
	var shown, piped bytes.Buffer
	for n := 0; len(s.store.list()) < 4; n++ {
		// The secret comes in two writes, so that one lies across each seam, sooner or later.
		at := n % len(secret)
		out := append(bytes.Repeat([]byte{byte('a' + n%26)}, 700), secret[:at]...)
		must(t, term.Output(out), r.File(event(n)), term.Output([]byte(secret[at:])), plain.Output(out[:700]))
		shown.Write(append(out[:700], bytes.Repeat([]byte("*"), len(secret))...))
		piped.Write(out[:700])
	}
	if got := s.store.OfSession("SES-1"); got != s.store.list()[3].meta.ID {
		t.Errorf("the newest part is %s", got)
	}
	must(t, term.Close(), plain.Close(), r.End(recording.EndDone), <-watched)
	leave()
	if len(told) > 0 {
		t.Errorf("told of watchers again: %q", <-told)
	}

	reports, bodies := s.parts(recording.EndDone)
	var text []byte
	files, beyond := 0, 0
	for i, list := range bodies {
		if i > 0 {
			begins := []recording.Body{
				recording.Open{Channel: "c1", Terminal: true, Columns: 132, Rows: 43, Continued: true}, recording.Open{Channel: "c2", Continued: true},
				recording.Watch{Names: []string{"ann@contoso.example"}},
			}
			if diff := cmp.Diff(begins, list[:3]); diff != "" {
				t.Errorf("part %d begins otherwise: %s", i+1, diff)
			}
		}
		for _, b := range list {
			switch b := b.(type) {
			case recording.FileEvent:
				if b.Path != event(files).Path {
					t.Errorf("event %d is %+v", files, b)
				}
				files++
			case recording.Output:
				if b.Channel == "c1" {
					text = append(text, b.Data...)
				} else {
					beyond += len(b.Data)
				}
			case recording.Close:
				if b.Channel == "c2" && b.Bytes != int64(piped.Len()) {
					t.Errorf("%d bytes were written to c2: %+v", piped.Len(), b)
				}
			}
		}
	}
	if !bytes.Equal(text, shown.Bytes()) || beyond != min(recording.MaxPlain, piped.Len()) {
		t.Errorf("the terminal shows %d bytes of %d, and %d of a command's %d", len(text), shown.Len(), beyond, piped.Len())
	}
	begun := 0
	for _, rec := range s.records() {
		if rec.Operation == "Begin Recording" && rec.Properties["whole"] == r.ID() {
			begun++
		}
		if rec.Properties["recording"] == reports[0].Meta.ID && rec.Operation == "End Recording" && rec.Properties["next"] != reports[1].Meta.ID {
			t.Errorf("the journal does not say how it goes on: %v", rec.Properties)
		}
	}
	var used int64
	for _, r := range reports {
		used += r.Size
	}
	if begun != 3 || s.store.used != used {
		t.Errorf("the journal has %d of 3 further parts; %d bytes are taken, want %d", begun, s.store.used, used)
	}
	s.restart(short)
	s.parts(recording.EndDone)
}

// seam is a recording at the moment at which its second part has begun and nothing
// is known of it yet: the bytes of both files.
func seam(t *testing.T) (ids [2]string, first, second []byte, end int) {
	t.Helper()
	s := newScene(t, short)
	r := s.begin()
	term := r.Terminal("c1", 80, 24)
	for n := 0; len(s.store.list()) < 2; n++ {
		must(t, r.File(event(n)), term.Output(make([]byte, 5000)))
	}
	must(t, r.File(event(1)))
	for i, p := range s.store.list() {
		ids[i] = p.meta.ID
	}
	first, second = s.bytes(ids[0]), s.bytes(ids[1])
	in := recording.NewReader(bytes.NewReader(first))
	for in.End() == nil {
		end = int(in.Head().Size)
		if _, _, err := in.Next(); err != nil {
			t.Fatal(err)
		}
	}
	return ids, first, second, end
}

// TestKilledAtTheSeam: wherever an agent dies between two parts, the next one finds
// a recording whose parts fit together, up to a signed end.
func TestKilledAtTheSeam(t *testing.T) {
	ids, first, second, end := seam(t)
	check := func(what string, one, two []byte, parts int) {
		t.Helper()
		s := newScene(t, short)
		must(t, os.WriteFile(s.store.path(ids[0], ".rec"), one, 0o600))
		if two != nil {
			must(t, os.WriteFile(s.store.path(ids[1], ".rec"), two, 0o600))
		}
		for range 2 { // what was made once is not made again
			s.restart(short)
			reports, _ := s.parts(recording.EndAgent)
			if len(reports) != parts || parts == 2 && reports[1].Meta.ID != ids[1] {
				t.Errorf("%s: %d parts, want %d", what, len(reports), parts)
			}
		}
		named := slices.ContainsFunc(s.records(), func(rec auditlog.Record) bool {
			return rec.Operation == auditlog.OpBeginRecording && rec.Properties["recording"] == ids[1] && rec.Properties["before"] == ids[0]
		})
		if named != (parts == 2) {
			t.Errorf("%s: the journal names the second: %v", what, named)
		}
		var used int64
		for _, p := range s.store.list() {
			used += p.size
		}
		if s.store.used != used {
			t.Errorf("%s: %d bytes are taken, want %d", what, s.store.used, used)
		}
		s.shut()
	}
	for size := end; size < len(first); size += 1 + (len(first)-end)/12 {
		check(fmt.Sprintf("killed %d bytes into the end", size-end), first[:size], []byte{}, 1)
	}
	check("before the second had a name", first, nil, 2)
	for size := 0; size <= len(second); size += 1 + len(second)/12 {
		check(fmt.Sprintf("killed %d bytes into the second", size), first, second[:size], 2)
	}
	check("later", first, second, 2)
}

// TestRemovedIsNotMissing: a next part that was removed, because the control plane
// has it, is not begun anew.
func TestRemovedIsNotMissing(t *testing.T) {
	s := newScene(t, short)
	r := s.begin()
	for n := 0; len(s.store.list()) < 2; n++ {
		must(t, r.File(event(n)))
	}
	must(t, r.End(recording.EndDone))
	second := s.store.list()[1]
	if _, err := second.ack(Chunk{Closed: true}, second.size, true); err != nil {
		t.Fatal(err)
	}
	s.store.remove(second)
	s.restart(short)
	if n := len(s.store.list()); n != 1 {
		t.Errorf("%d parts are there", n)
	}
}

// TestSeamFails: when a recording cannot go on in another part it ends as failed,
// at once, and with nothing half made.
func TestSeamFails(t *testing.T) {
	filled := func(s *scene) *Recording {
		r := s.begin()
		for n := 0; r.part.size < s.store.cfg.Part-endRoom-2000; n++ {
			must(t, r.File(event(n)))
		}
		return r
	}
	failing := func(s *scene, r *Recording) {
		t.Helper()
		var err error
		for n := 0; n < 100 && err == nil; n++ {
			err = r.File(event(n))
		}
		if protocol.CodeOf(err) != protocol.CodeNotRecorded || len(s.store.list()) != 1 {
			t.Errorf("it goes on: %v", err)
		}
		<-r.Failed()
		if files, _ := filepath.Glob(filepath.Join(s.dir, "recordings", "*")); len(files) != 1 {
			t.Errorf("left behind: %q", files)
		}
	}
	t.Run("no room", func(t *testing.T) {
		s := newScene(t, short, func(c *Config) { c.Quota = room })
		r := filled(s)
		failing(s, r)
		must(t, r.End(recording.EndDone))
		s.parts(recording.EndFailed)
	})
	t.Run("no end", func(t *testing.T) {
		s := newScene(t, short)
		r := filled(s)
		file := r.part.file
		broken, err := os.Open(os.DevNull)
		must(t, err)
		r.part.file = broken
		failing(s, r)
		r.part.file = file
		must(t, broken.Close(), r.End(recording.EndDone))
		s.parts(recording.EndFailed)
	})
	t.Run("not durable", func(t *testing.T) {
		s := newScene(t, short)
		r := filled(s)
		s.store.durable = func(*os.File) error { return errors.New("input/output error") }
		failing(s, r)
		must(t, r.End(recording.EndDone))
		s.parts(recording.EndFailed)
	})
	t.Run("no beginning", func(t *testing.T) {
		s := newScene(t, short)
		r := filled(s)
		id := newID()
		digest, err := r.part.pass(id)
		must(t, err)
		next := s.store.newPart(r, r.part.followed(id, digest))
		must(t, next.create(room))
		next.encoder, next.first, err = recording.NewEncoder(next.meta)
		must(t, err)
		r.part = next
		s.store.add(next)
		if s.store.list()[0].upkeep() != retryEvery || s.store.list()[0].closed.Load() != nil {
			t.Error("the first part is known to go on in one in which nothing is")
		}
		r.fail(errors.New("input/output error"))
		_ = r.End(recording.EndDone) // the first part waits for the second
		must(t, r.End(recording.EndDone))
		s.parts(recording.EndFailed)
	})
}

// TestEndsAtTheSeam: whoever ends a recording while others record, as a relock
// does, loses no event that was recorded, wherever the parts meet.
func TestEndsAtTheSeam(t *testing.T) {
	for range 5 {
		s := newScene(t, short)
		stop := s.run()
		r := s.begin()
		var all sync.WaitGroup
		var recorded [4]int
		for n := range recorded {
			all.Go(func() {
				term := r.Terminal(fmt.Sprintf("c%d", n), 80, 24)
				for term.Output(make([]byte, 1000)) == nil && r.File(event(n)) == nil {
					recorded[n]++
				}
			})
		}
		wait(t, "it does not go on", func() bool { return len(s.store.list()) > 3 })
		time.Sleep(rand.N(5 * time.Millisecond))
		r.EndSoon(recording.EndLease)
		all.Wait()
		must(t, r.End(recording.EndDone))
		stop()
		_, bodies := s.parts(recording.EndLease)
		for n, want := range recorded {
			got := 0
			for _, b := range slices.Concat(bodies...) {
				if e, ok := b.(recording.FileEvent); ok && e.Path == event(n).Path {
					got++
				}
			}
			if got < want {
				t.Errorf("%d of %d events are there", got, want)
			}
		}
		if r.Err() != nil {
			t.Errorf("it failed: %v", r.Err())
		}
		s.shut()
	}
}

// TestBeyondTheQuota: a session that records more than there is room for goes on as
// long as the control plane takes the parts that are closed.
func TestBeyondTheQuota(t *testing.T) {
	s, p := newScene(t, func(c *Config) { c.Part, c.Quota = 256<<10, 2<<20 }), newPlane(t)
	s.run(func(ctx context.Context) error { return s.store.Upload(ctx, p.send) })
	r := s.begin()
	term := r.Terminal("c1", 80, 24)
	for n := range 3 {
		must(t, term.Output(make([]byte, 1<<20)))
		wait(t, "the parts do not arrive", func() bool {
			return !slices.ContainsFunc(s.store.list(), func(p *part) bool { return p != r.part && p.confirmedAt().IsZero() })
		})
		if r.Err() != nil {
			t.Fatalf("after %d MiB: %v", n, r.Err())
		}
	}
	must(t, r.End(recording.EndDone))
	wait(t, "the last part does not arrive", p.has(s.store.OfSession("SES-1"), 1, true))
	var reports []recording.Report
	for _, data := range p.data {
		report, err := recording.Verify(bytes.NewReader(data), recording.Expect{})
		must(t, err)
		reports = append(reports, report)
	}
	if _, err := recording.Join(reports); err != nil || len(reports) < 10 {
		t.Errorf("%d parts arrived: %v", len(reports), err)
	}
}

// TestAskAgain: what a control plane lost that was restored from a backup is sent
// again, and kept here until it is.
func TestAskAgain(t *testing.T) {
	now := time.Now().UTC()
	s, p := newScene(t, func(c *Config) { c.Now = func() time.Time { return now } }), newPlane(t)
	stop := s.run(func(ctx context.Context) error { return s.store.Upload(ctx, p.send) })
	kept, lost := s.begin(), s.begin()
	must(t, kept.End(recording.EndDone), lost.End(recording.EndKilled))
	wait(t, "they do not arrive", func() bool { return p.has(kept.ID(), 1, true)() && p.has(lost.ID(), 1, true)() })
	confirmed := func(r *Recording) func() bool {
		return func() bool {
			p, err := s.store.find(r.ID())
			must(t, err)
			p.mu.Lock()
			defer p.mu.Unlock()
			return !p.confirmedAt().IsZero() && !p.ask
		}
	}
	wait(t, "they are not known to be confirmed", func() bool { return confirmed(kept)() && confirmed(lost)() })
	stop()

	delete(p.data, lost.ID())
	delete(p.confirmed, lost.ID())
	s.store.AskAgain()
	again := make(chan string, 100)
	stop = s.run(func(ctx context.Context) error {
		return s.store.Upload(ctx, func(ctx context.Context, c Chunk) (int64, bool, error) {
			if len(c.Data) > 0 {
				again <- c.Recording
				return 0, false, errors.New("not now")
			}
			return p.send(ctx, c)
		})
	})
	if id := <-again; id != lost.ID() {
		t.Errorf("%s is sent again", id)
	}
	wait(t, "it is not asked for all", confirmed(kept))
	stop()
	now = now.Add(2 * time.Hour)
	s.store.tidy()
	if _, err := s.store.find(kept.ID()); err == nil {
		t.Error("what is there still is kept for ever")
	}
	if _, err := os.Stat(s.store.path(lost.ID(), ".rec")); err != nil {
		t.Errorf("what was lost there is gone here: %v", err)
	}
	s.restart(func(c *Config) { c.Now = func() time.Time { return now } })
	s.run(func(ctx context.Context) error { return s.store.Upload(ctx, p.send) })
	wait(t, "what was lost is not sent again", p.has(lost.ID(), 1, true))
	if !bytes.Equal(p.data[lost.ID()], s.bytes(lost.ID())) {
		t.Error("another was sent")
	}
}

// TestNoRoomThere: that the control plane takes no more of a recording is logged,
// once, with what to do.
func TestNoRoomThere(t *testing.T) {
	var log bytes.Buffer
	s, p := newScene(t, func(c *Config) { c.Log = zerolog.New(&log) }), newPlane(t)
	tries := make(chan bool, 100)
	stop := s.run(func(ctx context.Context) error {
		return s.store.Upload(ctx, func(ctx context.Context, c Chunk) (int64, bool, error) {
			tries <- true
			return 0, false, protocol.Errorf(protocol.CodeLimit, "at most so many")
		})
	})
	r := s.begin()
	must(t, r.End(recording.EndDone))
	for range 3 {
		<-tries
	}
	stop()
	if got := log.String(); strings.Count(got, "recording.part_mib") != 1 || !strings.Contains(got, "recordings.max_mib") {
		t.Errorf("logged: %s", got)
	}
	s.run(func(ctx context.Context) error { return s.store.Upload(ctx, p.send) })
	wait(t, "it does not arrive when there is room", p.has(r.ID(), 1, true))
}
