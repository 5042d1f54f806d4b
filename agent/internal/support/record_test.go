package support

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// closed waits until there are n closed recordings, verifies them against the
// journal, and returns them, oldest first.
func (s *scene) closed(n int) (list []recording.Report, data [][]byte) {
	s.t.Helper()
	for end := time.Now().Add(10 * time.Second); len(s.journal.of(auditlog.OpEndRecording, "recording")) < n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("%d recordings have ended, want %d", len(s.journal.of(auditlog.OpEndRecording, "recording")), n)
		}
	}
	digests := s.journal.of(auditlog.OpEndRecording, "digest")
	for i, id := range s.journal.of(auditlog.OpEndRecording, "recording") {
		_, id, _ = strings.Cut(id, "REC-")
		one := must(os.ReadFile(filepath.Join(s.dir, "recordings", "REC-"+id+".rec")))
		report, err := recording.Verify(bytes.NewReader(one), recording.Expect{Node: s.node})
		if err != nil || !strings.Contains(digests[i], string(report.Digest)) {
			s.t.Errorf("recording %s: %v, %s, recorded is %s", id, err, report.Digest, digests[i])
		}
		list, data = append(list, report), append(data, one)
	}
	return list, data
}

// sitDown starts a stock ssh with a terminal.
func (s *scene) sitDown() (out *watchedBuffer, typing io.WriteCloser, wait func() error) {
	s.t.Helper()
	l := s.login()
	l.options = []string{"-tt"}
	in, typing := io.Pipe()
	l.stdin = in
	cmd := s.command(l)
	out = &watchedBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return out, typing, func() error {
		typing.Close()
		return cmd.Wait()
	}
}

// TestRecordedTerminal: what a stock client shows is in the recording and in its
// export, but for the password of the shares; a watcher sees it, and is seen; the
// approver kills the session.
func TestRecordedTerminal(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadOnly, s.session.Key)
	out, typing, wait := s.sitDown()
	out.await(t, "[unlocked]> ")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var watched watchedBuffer
	watching := make(chan error, 1)
	id := s.server.Status()[0].Recording
	go func() {
		watching <- s.records.Watch(ctx, id, 0, "ann@contoso.example", func(_ int64, data []byte) error {
			_, err := watched.Write(data)
			return err
		})
	}()
	out.await(t, "*** this session is watched by ann@contoso.example\r\n")
	if got := s.server.Status()[0].Watchers; !slices.Equal(got, []string{"ann@contoso.example"}) {
		t.Errorf("the status names %q", got)
	}
	io.WriteString(typing, "shares\r")
	out.await(t, "pw-of-this-lease")
	watched.await(t, strings.Repeat("*", len("pw-of-this-lease")))
	io.WriteString(typing, "ls pw-of-this-lease\r")
	out.await(t, "No such file")
	if list := s.journal.of(auditlog.OpRunCommand, "command"); !contains(list, "ls ****************") {
		t.Errorf("records: %q", list)
	}
	s.server.Disable("ses-1", "killed")
	if err := wait(); err == nil {
		t.Error("a killed session ended well")
	}
	if err := <-watching; err != nil {
		t.Errorf("the watcher's end: %v", err)
	}
	reports, data := s.closed(1)
	if reports[0].End.Reason != recording.EndKilled || reports[0].Meta.Request != "LockboxRequest_1" || reports[0].End.Counts.Commands != 2 {
		t.Errorf("recorded: %+v", reports[0])
	}
	if !bytes.Equal(data[0], []byte(watched.String())) {
		t.Error("what was watched is not what was recorded")
	}
	var cast bytes.Buffer
	if err := recording.Asciicast(&cast, bytes.NewReader(data[0]), ""); err != nil {
		t.Fatal(err)
	}
	played := playback(t, cast.String())
	shown := strings.ReplaceAll(out.String(), "pw-of-this-lease", "****************")
	if !strings.Contains(shown, "****************") || !strings.HasPrefix(shown, played) {
		t.Errorf("shown was\n%q\nplayed is\n%q", shown, played)
	}
	if bytes.Contains(data[0], []byte("pw-of-this-lease")) {
		t.Error("the recording holds the password of the shares")
	}
}

// playback returns what an asciicast shows.
func playback(t *testing.T, cast string) string {
	t.Helper()
	var b strings.Builder
	for i, line := range strings.Split(strings.TrimSuffix(cast, "\n"), "\n") {
		if i == 0 {
			continue
		}
		var event [3]any
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if event[1] == "o" {
			b.WriteString(event[2].(string))
		}
	}
	return b.String()
}

// TestEndReasons: whatever ends a session ends every channel of it within two
// seconds, closes its recording with that reason, and leaves nothing behind.
func TestEndReasons(t *testing.T) {
	kick := func(why lock.Reason) func(*scene) { return func(s *scene) { s.server.Kick(why.Recording()) } }
	for name, test := range map[string]struct {
		way    func(*scene)
		reason recording.Reason
	}{
		"disabled":  {func(s *scene) { s.server.Disable("ses-1", "engineer-done") }, recording.EndDisabled},
		"killed":    {func(s *scene) { s.server.Disable("ses-1", "killed") }, recording.EndKilled},
		"relocked":  {kick(lock.SessionKilled), recording.EndKilled},
		"revoked":   {kick(lock.Revoked), recording.EndRevoked},
		"lease end": {kick(lock.WindowOver), recording.EndLease},
		"dead man":  {kick(lock.DeadMan), recording.EndDeadMan},
		"expired":   {func(s *scene) { s.clock.add(2*time.Hour, 0) }, recording.EndDone},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.unlock(approval.ReadOnly, s.session.Key)
			s.write("big", strings.Repeat("x", 8<<20))
			idle, busy := s.client(), s.client()
			if err := must(idle.NewSession()).Shell(); err != nil {
				t.Fatal(err)
			}
			if err := must(busy.NewSession()).Start("cat /shares/contoso_BlockBlob/big"); err != nil { // nobody reads it
				t.Fatal(err)
			}
			for s.connections() != 2 || s.server.Status()[0].Recording == "" {
				time.Sleep(time.Millisecond)
			}
			start := time.Now()
			test.way(s)
			ends(t, idle, time.Until(start.Add(2*time.Second)))
			ends(t, busy, time.Until(start.Add(2*time.Second)))
			reports, _ := s.closed(1)
			if took := time.Since(start); reports[0].End.Reason != test.reason || took > 5*time.Second {
				t.Errorf("the recording was closed with %q after %v, want %q", reports[0].End.Reason, took, test.reason)
			}
			if s.connections() != 0 {
				t.Errorf("%d connections are left", s.connections())
			}
			if list := s.server.Status(); len(list) == 0 {
				return // the session has ended
			}
			if r := s.run("pwd"); r.code != 0 { // it goes on, in a recording of its own
				t.Errorf("after that: %+v", r)
			}
			s.server.Disable("ses-1", "x")
			if reports, _ := s.closed(2); reports[1].End.Reason != recording.EndDisabled || reports[1].End.Counts.Commands != 1 {
				t.Errorf("the second recording: %+v", reports[1].End)
			}
		})
	}
}

// TestFailedRecording: a session that cannot be recorded ends at once and is told
// why; so is whoever comes next.
func TestFailedRecording(t *testing.T) {
	s := newScene(t)
	out, _, wait := s.sitDown()
	out.await(t, "[locked]> ")
	full := make([]byte, 64<<10)
	s.server.mu.Lock()
	sit := s.server.sessions["ses-1"].sitting
	s.server.mu.Unlock()
	other := sit.Plain("other")
	terminal := sit.Terminal("more", 80, 24)
	start := time.Now()
	for terminal.Output(full) == nil { // until the quota is reached
	}
	out.await(t, "*** this cannot be recorded, so it ends: recordings fill the 4 MiB")
	if err := wait(); err == nil || time.Since(start) > 5*time.Second {
		t.Errorf("the session ended with %v after %v", err, time.Since(start))
	}
	if err := other.Output([]byte("x")); err == nil {
		t.Error("a recording that failed goes on")
	}
	if reports, _ := s.closed(1); reports[0].End.Reason != recording.EndFailed {
		t.Errorf("closed with %q", reports[0].End.Reason)
	}
	if r := s.run("pwd"); r.code == 0 || !strings.Contains(r.err, "cannot be recorded") || r.out != "" {
		t.Errorf("without room: %+v", r)
	}
}

// told keeps what is said of files.
type told struct {
	mu   sync.Mutex // guards what follows
	list []recording.FileEvent
}

func (t *told) File(e recording.FileEvent) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = append(t.list, e)
	return nil
}

// TestFilesAreTold: whoever looks after the files hears what a session does with
// them, and the recording has it too.
func TestFilesAreTold(t *testing.T) {
	s, files := newScene(t), &told{}
	s.server.cfg.Files = files // nobody has logged in
	s.unlock(approval.ReadWrite, s.session.Key)
	s.wants("mkdir /shares/contoso_BlockBlob/new", 0, "", "")
	made := func(e recording.FileEvent) bool {
		return e.Via == recording.ViaShell && e.Op == recording.OpMkdir && e.Share == "contoso_BlockBlob" && e.Path == "new"
	}
	if !slices.ContainsFunc(files.list, made) || !slices.ContainsFunc(s.events(), made) {
		t.Errorf("told: %+v\nrecorded: %+v", files.list, s.events())
	}
}

// TestToldWhy: whoever is put out is told why, once, on every channel of a stock
// client, and a client that does not listen holds nothing up.
func TestToldWhy(t *testing.T) {
	for name, tt := range map[string]struct {
		end  func(*Server)
		want string
	}{
		"killed":   {func(s *Server) { s.Disable("ses-1", "killed") }, "killed by the customer"},
		"revoked":  {func(s *Server) { s.Kick(recording.EndRevoked); s.Disable("ses-1", "revoked") }, "the approval was revoked"},
		"relocked": {func(s *Server) { s.Kick(recording.EndLease) }, "the disks are locked again"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.unlock(approval.ReadOnly, s.session.Key)
			s.write("big", strings.Repeat("x", 8<<20))
			hung := s.client()
			deaf := must(hung.NewSession())
			stdout := must(deaf.StdoutPipe())
			if err := deaf.Start("cat /shares/contoso_BlockBlob/big"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(stdout, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			shell, _, left := s.sitDown()
			shell.await(t, "[unlocked]> ")
			var out, errs watchedBuffer
			exec := s.command(s.login(), "tail -f /shares/contoso_BlockBlob/photos/a.txt")
			exec.Stdout, exec.Stderr = &out, &errs
			if err := exec.Start(); err != nil {
				t.Fatal(err)
			}
			out.await(t, "alpha")

			began := time.Now()
			tt.end(s.server)
			if took := time.Since(began); took > partWithin/2 {
				t.Errorf("to end it took %s", took)
			}
			line := "*** session ses-1 ended: " + tt.want
			shell.await(t, line)
			left()
			exec.Wait()
			ends(t, hung, partWithin+500*time.Millisecond)
			for channel, said := range map[string]string{"the shell": shell.String(), "the command": errs.String()} {
				if strings.Count(said, line) != 1 || strings.Count(said, "***") != 1 {
					t.Errorf("%s was told %q", channel, said)
				}
			}
			if out.String() != "alpha" {
				t.Errorf("among the output: %q", out.String())
			}
		})
	}
}
