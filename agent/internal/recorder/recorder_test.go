package recorder

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent/internal/journal"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("RECORDER_TEST_CHILD"); dir != "" {
		child(dir)
	}
	goleak.VerifyTestMain(m)
}

var (
	testKey  = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	testNode = protocol.NodeID{Serial: "DBX0001", Node: 1}
	testMeta = recording.Meta{Kind: recording.Session, Session: "SES-1", Engineer: "erin@provider.example", EngineerKey: "SHA256:x", Ticket: "SR-2001"}
)

// scene is a store with a journal beside it.
type scene struct {
	*testing.T
	dir     string
	journal *journal.Journal
	store   *Store
}

func newScene(t *testing.T, change ...func(*Config)) *scene {
	t.Helper()
	s := &scene{T: t, dir: t.TempDir()}
	s.restart(change...)
	t.Cleanup(s.shut)
	return s
}

// shut closes the journal, once.
func (s *scene) shut() {
	if s.journal != nil {
		s.journal.Close()
		s.journal = nil
	}
}

// restart opens the store again, as a new agent would.
func (s *scene) restart(change ...func(*Config)) {
	s.Helper()
	s.shut()
	var err error
	if s.journal, err = journal.New(filepath.Join(s.dir, "journal"), testNode, testKey); err != nil {
		s.Fatal(err)
	}
	cfg := Config{
		Dir: filepath.Join(s.dir, "recordings"), Node: testNode, Key: testKey, Journal: s.journal,
		Quota: 64 << 20, Keep: time.Hour, Log: zerolog.Nop(),
	}
	for _, f := range change {
		f(&cfg)
	}
	if s.store, err = New(cfg); err != nil {
		s.Fatal(err)
	}
}

// run runs the store, and what else is given, until the test or stop ends it.
func (s *scene) run(more ...func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(s.Context())
	var all sync.WaitGroup
	for _, f := range append(more, s.store.Run) {
		all.Go(func() {
			if err := f(ctx); err != nil {
				s.Error(err)
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		all.Wait()
	})
	s.Cleanup(stop)
	return stop
}

func (s *scene) begin() *Recording {
	s.Helper()
	r, err := s.store.Begin(s.Context(), testMeta)
	if err != nil {
		s.Fatal(err)
	}
	return r
}

func (s *scene) bytes(id string) []byte {
	s.Helper()
	data, err := os.ReadFile(s.store.path(id, ".rec"))
	if err != nil {
		s.Fatal(err)
	}
	return data
}

// verify verifies a closed recording against the journal too.
func (s *scene) verify(id string, reason recording.Reason) recording.Report {
	s.Helper()
	want := recording.Expect{Key: approval.KeyFingerprint(testKey.Public().(ed25519.PublicKey)), Node: testNode}
	for _, rec := range s.records() {
		if rec.Properties["recording"] != id || rec.Properties["head"] == "" {
			continue
		}
		frames, _ := strconv.ParseInt(rec.Properties["frames"], 10, 64)
		size, _ := strconv.ParseInt(rec.Properties["size"], 10, 64)
		want.Heads = append(want.Heads, recording.Head{Frames: frames, Size: size, Hash: rec.Properties["head"]})
		if rec.Operation == auditlog.OpEndRecording {
			want.Digest = approval.Digest(rec.Properties["digest"])
		}
	}
	if want.Digest == "" {
		s.Errorf("the journal does not say how recording %s ended", id)
	}
	report, err := recording.Verify(bytes.NewReader(s.bytes(id)), want)
	if err != nil || report.End.Reason != reason {
		s.Errorf("recording %s: %v, ended with %q, want %q", id, err, report.End.Reason, reason)
	}
	return report
}

func (s *scene) records() (all []auditlog.Record) {
	s.Helper()
	for {
		entries, err := s.journal.Read(int64(len(all)))
		if err != nil {
			s.Fatal(err)
		}
		if len(entries) == 0 {
			return all
		}
		for _, e := range entries {
			rec, err := auditlog.ParseRecord(e.Record)
			if err != nil {
				s.Fatal(err)
			}
			all = append(all, rec)
		}
	}
}

func (s *scene) operations() (ops []string) {
	for _, rec := range s.records() {
		ops = append(ops, string(rec.Operation)+" "+string(rec.Result))
	}
	return ops
}

// bodies returns what a recording holds, without its first frame and its end.
func (s *scene) bodies(id string) (list []recording.Body) {
	s.Helper()
	in := recording.NewReader(bytes.NewReader(s.bytes(id)))
	for {
		_, b, err := in.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			s.Fatal(err)
		}
		switch b := b.(type) {
		case recording.Meta, recording.End:
		case recording.Output:
			list = append(list, recording.Output{Channel: b.Channel, Data: bytes.Clone(b.Data)})
		default:
			list = append(list, b)
		}
	}
}

func event(n int) recording.FileEvent {
	return recording.FileEvent{Via: recording.ViaSFTP, Op: recording.OpWrite, Share: "contoso_BlockBlob", Path: fmt.Sprintf("file %d", n), Size: int64(n)}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestRecording(t *testing.T) {
	s := newScene(t)
	s.run()
	r := s.begin()
	term := r.Terminal("c1", 80, 24)
	must(t, term.Output([]byte("> ")), term.Command("ls"), term.Resize(100, 30), term.Output([]byte("a\r\n")), term.Close(), term.Close())
	long := bytes.Repeat([]byte("x"), recording.MaxPlain+1000)
	plain := r.Plain("c2")
	must(t, r.Command("c2", "cat big"), plain.Output(long), r.File(event(1)), plain.Close())
	if err := r.Terminal("c1", 80, 24).Output([]byte("x")); protocol.CodeOf(err) != protocol.CodeConflict {
		t.Errorf("a second channel of the same name: %v", err)
	}
	must(t, r.End(recording.EndKilled), r.End(recording.EndDone))
	if err := r.File(event(2)); protocol.CodeOf(err) != protocol.CodeConflict {
		t.Errorf("an event after the end: %v", err)
	}
	report := s.verify(r.ID(), recording.EndKilled)
	if got, want := report.End.Counts, (recording.Counts{Channels: 2, Commands: 2, Files: 1, Output: recording.MaxPlain + 5}); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
	shut := s.bodies(r.ID())[11].(recording.Close)
	if shut.Bytes != int64(len(long)) || shut.SHA256 != strings.TrimPrefix(string(approval.DigestOf(long)), "sha256:") {
		t.Errorf("the channel was closed as %+v", shut)
	}
	if diff := cmp.Diff([]string{"Begin Recording Start", "End Recording Success"}, s.operations()); diff != "" {
		t.Error(diff)
	}
	if got := s.store.OfSession("SES-1"); got != r.ID() {
		t.Errorf("the session's recording is %q", got)
	}
	s.restart()
	if diff := cmp.Diff(2, len(s.operations())); diff != "" {
		t.Errorf("a closed recording was closed again: %s", diff)
	}
	s.verify(r.ID(), recording.EndKilled)
}

// noJournal takes no record.
type noJournal struct{}

func (noJournal) Append(context.Context, auditlog.Record) (int64, error) {
	return 0, protocol.Errorf(protocol.CodeNotRecorded, "the journal hangs")
}

// TestNotBegun: without a record in the journal there is no recording.
func TestNotBegun(t *testing.T) {
	s := newScene(t, func(c *Config) { c.Journal = noJournal{} })
	if _, err := s.store.Begin(t.Context(), testMeta); protocol.CodeOf(err) != protocol.CodeNotRecorded {
		t.Errorf("begun without a journal: %v", err)
	}
	if names, _ := filepath.Glob(filepath.Join(s.dir, "recordings", "*")); len(names) > 0 || s.store.used != 0 {
		t.Errorf("%v are left, %d bytes taken", names, s.store.used)
	}
}

func TestSyncedSoon(t *testing.T) {
	s := newScene(t)
	s.run()
	r := s.begin()
	for n := range 5 {
		must(t, r.File(event(n)))
		wait(t, "an event is not durable", func() bool {
			p := r.part
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.synced == p.size && p.since.IsZero()
		})
	}
	r.part.mu.Lock()
	r.part.notedAt = r.part.notedAt.Add(-noteEvery)
	r.part.mu.Unlock()
	must(t, r.File(event(9)))
	wait(t, "the head was not noted", func() bool { return slices.Contains(s.operations(), "Note Recording Success") })
	must(t, r.End(recording.EndLease))
	s.verify(r.ID(), recording.EndLease)
}

func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for start := time.Now(); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatal(what)
		}
	}
}

// child records without end, and says after each event that it was recorded.
func child(dir string) {
	j, err := journal.New(filepath.Join(dir, "journal"), testNode, testKey)
	if err != nil {
		panic(err)
	}
	s, err := New(Config{Dir: filepath.Join(dir, "recordings"), Node: testNode, Key: testKey, Journal: j, Quota: 1 << 30, Part: 64 << 10, Log: zerolog.Nop()})
	if err != nil {
		panic(err)
	}
	go s.Run(context.Background())
	r, err := s.Begin(context.Background(), testMeta)
	if err != nil {
		panic(err)
	}
	term := r.Terminal("c1", 80, 24)
	for n := 0; ; n++ {
		if err := errors.Join(r.File(event(n)), term.Output(bytes.Repeat([]byte{byte(n)}, n*37%5000+1))); err != nil {
			panic(err)
		}
		fmt.Println(n)
	}
}

// TestKilled: what an agent recorded before it was killed is there, and the
// recording closed as what it is.
func TestKilled(t *testing.T) {
	for round := range 4 {
		s := newScene(t)
		s.shut()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "RECORDER_TEST_CHILD="+s.dir)
		out, err := cmd.StdoutPipe()
		must(t, err, cmd.Start())
		last := -1
		for in := bufio.NewScanner(out); in.Scan(); {
			if n, err := strconv.Atoi(in.Text()); err == nil {
				last = n
			}
			if last == 50*(round+1) {
				must(t, cmd.Process.Kill())
			}
		}
		_ = cmd.Wait()
		s.restart(short)
		reports, _ := s.parts(recording.EndAgent)
		files := int64(0)
		for _, r := range reports {
			files += r.End.Counts.Files
		}
		if last < 10 || files < int64(last+1) {
			t.Errorf("%d events were recorded, %d are there", last+1, files)
		}
	}
}

// TestCutAnywhere: however much of an unclosed recording reached the disk, all
// whole frames of it are kept.
func TestCutAnywhere(t *testing.T) {
	origin := newScene(t)
	r := origin.begin()
	term := r.Terminal("c1", 80, 24)
	must(t, r.File(event(1)), term.Output([]byte("hello")))
	id, whole := r.ID(), origin.bytes(r.ID())
	must(t, r.End(recording.EndDone))
	closed := origin.bytes(id)
	in, ends := recording.NewReader(bytes.NewReader(closed)), []int64{0}
	for in.End() == nil {
		if _, _, err := in.Next(); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, in.Head().Size)
	}
	// found puts data where an agent would have left it, and starts the next.
	found := func(data []byte) *scene {
		s := newScene(t)
		must(t, os.WriteFile(s.store.path(id, ".rec"), data, 0o600))
		s.restart()
		return s
	}
	for i, end := range ends[1 : len(ends)-1] {
		for _, size := range []int64{end, end + 1, end + 50, ends[i+2] - 1} {
			s := found(closed[:size])
			if report := s.verify(id, recording.EndAgent); report.End.Head.Size != end {
				t.Fatalf("cut at %d, %d are kept of %d", size, report.End.Head.Size, end)
			}
		}
	}
	if s := found(closed[:ends[1]-1]); s.store.OfSession("SES-1") != "" {
		t.Error("a recording without its first frame was kept")
	}
	s := found(append(whole, bytes.Repeat([]byte{0}, 2*recording.MaxFrame)...))
	s.verify(id, recording.EndAgent)
	if info, err := os.Stat(s.store.path(id, ".cut")); err != nil || info.Size() != 2*recording.MaxFrame {
		t.Errorf("what was cut off was not kept: %v", err)
	}
	found(closed).verify(id, recording.EndDone) // killed after the end, before that was known
}

// fill records until that fails.
func fill(t *testing.T, r *Recording) error {
	t.Helper()
	term := r.Terminal("c1", 80, 24)
	for range 10_000 {
		if err := term.Output(make([]byte, 30_000)); err != nil {
			return err
		}
	}
	t.Fatal("the quota holds nobody back")
	return nil
}

// checkFull: the recording failed for want of room, said so at once, and was
// closed as such.
func (s *scene) checkFull(r *Recording) {
	s.Helper()
	err := fill(s.T, r)
	if protocol.CodeOf(err) != protocol.CodeNotRecorded {
		s.Errorf("full: %v", err)
	}
	select {
	case <-r.Failed():
	default:
		s.Error("nobody is told that the recording failed")
	}
	if err := r.File(event(0)); protocol.CodeOf(err) != protocol.CodeNotRecorded {
		s.Errorf("after it failed: %v", err)
	}
	must(s.T, r.End(recording.EndDone))
	s.verify(r.ID(), recording.EndFailed)
}

func TestQuota(t *testing.T) {
	s := newScene(t, func(c *Config) { c.Quota = 2 << 20 })
	s.run()
	first := s.begin()
	s.checkFull(first)
	if _, err := s.store.Begin(t.Context(), testMeta); protocol.CodeOf(err) != protocol.CodeNotRecorded {
		t.Errorf("begun without room: %v", err)
	}
	s.bytes(first.ID()) // not confirmed: still there
	if _, err := first.part.ack(Chunk{Closed: true}, first.part.size, true); err != nil {
		t.Fatal(err)
	}
	second := s.begin()
	s.checkFull(second)
	if _, err := os.Stat(s.store.path(first.ID(), ".rec")); err == nil {
		t.Error("what is confirmed is kept, for want of room")
	}
	if want := second.part.size; s.store.used != want {
		t.Errorf("%d bytes are taken, want %d", s.store.used, want)
	}
}

func TestMinFree(t *testing.T) {
	s := newScene(t, func(c *Config) { c.MinFree = 1 << 60 })
	if _, err := s.store.Begin(t.Context(), testMeta); protocol.CodeOf(err) != protocol.CodeNotRecorded {
		t.Errorf("begun on a full file system: %v", err)
	}
}

// TestFullDisk: on a file system that is full the recording is still closed.
func TestFullDisk(t *testing.T) {
	s := newScene(t)
	dir := filepath.Join(s.dir, "recordings")
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=3m,mode=0700"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s.restart()
	s.checkFull(s.begin())
}

func TestKeep(t *testing.T) {
	now := time.Now().UTC()
	s := newScene(t, func(c *Config) { c.Now = func() time.Time { return now } })
	r := s.begin()
	must(t, r.End(recording.EndDone))
	now = now.Add(24 * time.Hour)
	s.store.tidy()
	s.bytes(r.ID())
	if _, err := r.part.ack(Chunk{Closed: true}, r.part.size, true); err != nil {
		t.Fatal(err)
	}
	s.restart(func(c *Config) { c.Now = func() time.Time { return now } })
	now = now.Add(59 * time.Minute)
	s.store.tidy()
	s.bytes(r.ID())
	now = now.Add(2 * time.Minute)
	s.store.tidy()
	if names, _ := filepath.Glob(filepath.Join(s.dir, "recordings", "*")); len(names) > 0 || s.store.used != 0 {
		t.Errorf("%v are left, %d bytes taken", names, s.store.used)
	}
	if ops := s.operations(); ops[len(ops)-1] != "Remove Recording Success" {
		t.Errorf("records: %q", ops)
	}
}

// TestMask: a secret is masked wherever output is split.
func TestMask(t *testing.T) {
	s := newScene(t)
	s.store.Mask("hunter-22", "", "abc", "22-hunt")
	r := s.begin()
	text, want := "password: hunter-22\r\nhunter-2 hunthunter-22abc22-hunt\r\nh", "password: *********\r\nhunter-2 hunt*********abc*******\r\nh"
	for i := range len(text) {
		term := r.Terminal(fmt.Sprintf("c%d", i), 80, 24)
		must(t, term.Output([]byte(text[:i])), term.Output([]byte(text[i:i+1])), term.Output([]byte(text[i+1:])), term.Close())
	}
	must(t, r.Command("c1", "echo hunter-22"), r.File(recording.FileEvent{
		Via: recording.ViaSMB, Op: recording.OpRename, Share: "share", Path: "a/hunter-22.txt", To: "share/hunter-22", Client: "hunter-22", Error: "no hunter-22",
	}), r.End(recording.EndDone))
	got := map[string]string{}
	for _, b := range s.bodies(r.ID()) {
		switch b := b.(type) {
		case recording.Output:
			got[b.Channel] += string(b.Data)
		case recording.Command:
			if b.Line != "echo *********" {
				t.Errorf("command %q", b.Line)
			}
		case recording.FileEvent:
			if b.Path != "a/*********.txt" || b.To != "share/*********" || b.Client != "*********" || b.Error != "no *********" {
				t.Errorf("%+v", b)
			}
		}
	}
	for channel, text := range got {
		if text != want {
			t.Errorf("%s: %q, want %q", channel, text, want)
		}
	}
	if len(got) != len(text) || bytes.Contains(s.bytes(r.ID()), []byte("hunter-22")) {
		t.Errorf("%d channels, or a secret in the file", len(got))
	}
}

func TestWatch(t *testing.T) {
	s := newScene(t)
	s.run()
	r := s.begin()
	told := make(chan []string, 10)
	r.OnWatch(func(names []string) { told <- names })
	expect := func(want ...string) {
		t.Helper()
		if got := <-told; !slices.Equal(got, want) {
			t.Errorf("told of %q, want %q", got, want)
		}
	}
	var fast, slow bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	hold, done := make(chan struct{}), make(chan error, 2)
	go func() {
		done <- s.store.Watch(t.Context(), r.ID(), 0, "ann@contoso.example", func(at int64, data []byte) error {
			if at != int64(fast.Len()) {
				t.Errorf("byte %d after %d", at, fast.Len())
			}
			fast.Write(data)
			return nil
		})
	}()
	expect("ann@contoso.example")
	go func() {
		done <- s.store.Watch(ctx, r.ID(), 10, "bob@contoso.example", func(_ int64, data []byte) error {
			<-hold
			slow.Write(data)
			return ctx.Err()
		})
	}()
	expect("ann@contoso.example", "bob@contoso.example")
	term := r.Terminal("c1", 80, 24)
	for range 100 { // more than any pipe would hold
		must(t, term.Output(make([]byte, recording.MaxOutput)))
	}
	cancel()
	close(hold)
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the slow one: %v", err)
	}
	expect("ann@contoso.example")
	must(t, r.End(recording.EndKilled), <-done)
	if !bytes.Equal(fast.Bytes(), s.bytes(r.ID())) || !bytes.Equal(slow.Bytes(), s.bytes(r.ID())[10:10+slow.Len()]) {
		t.Errorf("%d and %d bytes were watched of %d", fast.Len(), slow.Len(), r.part.size)
	}
	s.verify(r.ID(), recording.EndKilled)
	for what, err := range map[protocol.Code]error{
		protocol.CodeNotFound: s.store.Watch(t.Context(), "REC-", 0, "ann", nil),
		protocol.CodeInvalid:  s.store.Watch(t.Context(), r.ID(), r.part.size+1, "ann", nil),
	} {
		if protocol.CodeOf(err) != what {
			t.Errorf("%v: want %s", err, what)
		}
	}
}

// plane is the control plane: it keeps what it is sent.
type plane struct {
	t         *testing.T
	mu        sync.Mutex // guards what follows
	data      map[string][]byte
	confirmed map[string]bool
	calls     int
	answer    func(n int) error // to call n, after it took effect; nil: none fails
}

func newPlane(t *testing.T) *plane {
	return &plane{t: t, data: map[string][]byte{}, confirmed: map[string]bool{}}
}

func (p *plane) send(_ context.Context, c Chunk) (int64, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	have := p.data[c.Recording]
	if skip := int64(len(have)) - c.Offset; skip >= 0 && skip <= int64(len(c.Data)) {
		if !bytes.Equal(have[c.Offset:], c.Data[:skip]) {
			p.t.Error("what was sent has changed")
		}
		p.data[c.Recording] = append(have, c.Data[skip:]...)
	}
	have = p.data[c.Recording]
	if c.Closed && int64(len(have)) == c.Offset+int64(len(c.Data)) {
		if approval.DigestOf(have) != c.Digest {
			p.t.Error("the digest is another")
		}
		p.confirmed[c.Recording] = true
	}
	if p.answer != nil {
		if err := p.answer(p.calls); err != nil {
			return 0, false, err
		}
	}
	return int64(len(have)), p.confirmed[c.Recording], nil
}

func (p *plane) has(id string, n int, confirmed bool) func() bool {
	return func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.data[id]) >= n && p.confirmed[id] == confirmed
	}
}

// TestUpload: every recording arrives as it grows, whatever is cut, restarted or
// restored on the way.
func TestUpload(t *testing.T) {
	s, p := newScene(t), newPlane(t)
	p.answer = func(n int) error {
		if n%3 == 0 {
			return errors.New("cut")
		}
		return nil
	}
	stop := s.run(func(ctx context.Context) error { return s.store.Upload(ctx, p.send) })
	r := s.begin()
	term := r.Terminal("c1", 80, 24)
	must(t, term.Output(make([]byte, 500<<10)))
	wait(t, "a growing recording does not arrive", p.has(r.ID(), 500<<10, false))
	stop()
	s.restart() // the agent died
	p.data[r.ID()] = p.data[r.ID()][:1000]
	s.run(func(ctx context.Context) error { return s.store.Upload(ctx, p.send) })
	wait(t, "it does not arrive after a restart", p.has(r.ID(), 500<<10, true))
	if !bytes.Equal(p.data[r.ID()], s.bytes(r.ID())) {
		t.Error("another recording arrived")
	}
	wait(t, "it is not known to be confirmed", func() bool { return !s.store.all[r.ID()].confirmedAt().IsZero() })
	s.verify(r.ID(), recording.EndAgent)
}

// TestUploadRefused: one that is refused for good is recorded, kept, and in
// nobody's way.
func TestUploadRefused(t *testing.T) {
	s, p := newScene(t), newPlane(t)
	bad, good := s.begin(), s.begin()
	must(t, bad.End(recording.EndDone), good.End(recording.EndDone))
	s.run(func(ctx context.Context) error {
		return s.store.Upload(ctx, func(ctx context.Context, c Chunk) (int64, bool, error) {
			if c.Recording == bad.ID() {
				return 0, false, protocol.Errorf(protocol.CodeInvalid, "no")
			}
			return p.send(ctx, c)
		})
	})
	wait(t, "the other one does not arrive", p.has(good.ID(), 100, true))
	wait(t, "the refusal is not recorded", func() bool { return slices.Contains(s.operations(), "Note Recording Refused") })
	s.bytes(bad.ID())
}

// TestManyAtOnce: channels, clients and watchers do not get in each other's way.
func TestManyAtOnce(t *testing.T) {
	s := newScene(t)
	s.run()
	r := s.begin()
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			term := r.Terminal(fmt.Sprintf("c%d", n), 80, 24)
			for i := range 100 {
				if err := errors.Join(term.Output([]byte("some output\r\n")), r.File(event(i)), term.Command("ls")); err != nil {
					t.Error(err)
				}
			}
			if err := term.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	must(t, r.End(recording.EndRevoked))
	if got, want := s.verify(r.ID(), recording.EndRevoked).End.Counts, (recording.Counts{Channels: 8, Commands: 800, Files: 800, Output: 800 * 13}); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
}
