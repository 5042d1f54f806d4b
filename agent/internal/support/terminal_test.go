package support

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// TestExitStatusAndStreams: what package shell tests without SSH comes through.
func TestExitStatusAndStreams(t *testing.T) {
	s := newScene(t)
	s.wants("bash; pwd", 0, "/\n", "no such command")
	s.wants("pwd; bash", 127, "/\n", "no such command")
	s.wants("ls", 1, "", "(disks-locked)")
	if r := s.run("ls; pwd"); strings.Contains(r.out, "locked") || strings.Contains(r.err, "/\n") {
		t.Errorf("the streams are mixed: %q, %q", r.out, r.err)
	}
}

// TestWhatASessionMay looks through SSH at what the lease lets its engineer do.
func TestWhatASessionMay(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadOnly, s.session.Key)
	s.wants("shares", 0, "pw-of-this-lease", "")
	if n := len(s.journal.of(auditlog.OpReadShareSecret)); n != 1 {
		t.Errorf("%d records of shown credentials", n)
	}
	s.wants("prepare-to-ship", 1, "", "(forbidden)")
	if len(s.journal.of(auditlog.OpPrepareToShip))+len(s.manifests) > 0 {
		t.Error("a refused prepare-to-ship was recorded as begun")
	}
	s.unlock(approval.ReadWrite, s.session.Key)
	s.wants("prepare-to-ship", 0, "ERROR_CONTAINER_OR_SHARE_NAME_ALPHA_NUMERIC_DASH  Wrong_Folder/b.txt", "")
	if len(s.manifests) != 1 || s.manifests[0].State != "ScanCompletedWithIssues" {
		t.Errorf("reports: %v", s.manifests)
	}
	s.manifests = nil
	s.wants("cd /shares/contoso_BlockBlob; mkdir reports; mv Wrong_Folder/* reports/; ls reports", 0, "c d.txt", "")
	s.wants("prepare-to-ship", 0, "prepare-to-ship: Succeeded\n", "")
	if len(s.manifests) != 1 || s.manifests[0].State != "Succeeded" || len(s.manifests[0].Manifests) != 1 || s.manifests[0].Request != "LockboxRequest_1" {
		t.Errorf("reports: %v", s.manifests)
	}
	shipped := s.journal.of(auditlog.OpPrepareToShip, "digest.contoso_BlockBlob")
	if len(shipped) != 4 || shipped[2] != "Start" || !strings.HasPrefix(shipped[3], "Success digest.contoso_BlockBlob=sha256:") {
		t.Errorf("records: %q", shipped)
	}
	states := s.journal.of(auditlog.OpPrepareToShip, "state")
	if want := []string{"Start state=InProgress", "Success state=ScanCompletedWithIssues", "Start state=InProgress", "Success state=Succeeded"}; !slices.Equal(states, want) {
		t.Errorf("states: %q", states)
	}
	if err := os.Symlink("a.txt", filepath.Join(s.share, "photos/link")); err != nil {
		t.Fatal(err)
	}
	removed := filepath.Join(s.share, "photos/.fuse_hidden0000001000000001")
	if err := os.WriteFile(removed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.wants("prepare-to-ship", 0, "ERROR_PREPARE_TO_SHIP_NOT_RUN  photos/.fuse_hidden0000001000000001 (it was removed while a client had it open", "")
	if err := os.Remove(removed); err != nil {
		t.Fatal(err)
	}
	s.wants("prepare-to-ship", 0, "ERROR_BLOB_OR_FILE_TYPE_UNSUPPORTED  photos/link\nprepare-to-ship: ScanCompletedWithIssues\n", "")
}

func TestShipState(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for want, got := range map[string]string{
		"Succeeded":               shipState(t.Context(), nil, 0, 0),
		"SucceededWithWarnings":   shipState(t.Context(), nil, 0, 2),
		"ScanCompletedWithIssues": shipState(t.Context(), nil, 1, 2),
		"Failed":                  shipState(t.Context(), io.ErrUnexpectedEOF, 1, 2),
		"Canceled":                shipState(ended, ended.Err(), 1, 2),
	} {
		if got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
	m := copyjob.Manifest{Timeless: []string{"photos/old"}}
	if got := unkept(m); !slices.Equal(got, []string{"WARNING_MODIFICATION_TIME_NOT_KEPT  photos/old"}) {
		t.Errorf("warnings: %q", got)
	}
}

func TestBigOutput(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadOnly, s.session.Key)
	content := strings.Repeat("0123456789abcdef", 1<<20)
	s.write("big", content)
	if r := s.run("cat /shares/contoso_BlockBlob/big"); r.code != 0 || r.out != content {
		t.Errorf("exit %d, %d bytes: %s", r.code, len(r.out), r.err)
	}
}

func TestShellWithoutTerminal(t *testing.T) {
	s := newScene(t)
	l := s.login()
	l.stdin = strings.NewReader("pwd\n\nbash\ndisks\nls")
	if r := s.ssh(l); r.code != 1 || r.out != "/\nDISK   STATE   METHOD       VOLUME\ndisk1  locked  XTS-AES-128  \n" || !strings.Contains(r.err, "no such command") {
		t.Errorf("exit %d\n%q\n%q", r.code, r.out, r.err)
	}
	l.stdin = strings.NewReader(strings.Repeat("x", 1<<20))
	if r := s.ssh(l); r.code != 2 {
		t.Errorf("a line without end: exit %d: %s", r.code, r.err)
	}
}

func TestTerminal(t *testing.T) {
	s := newScene(t)
	l := s.login()
	l.options = []string{"-tt"}
	in, typing := io.Pipe()
	l.stdin = in
	cmd := s.command(l)
	out := &watchedBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	typed := func(keys, want string) {
		t.Helper()
		io.WriteString(typing, keys)
		out.await(t, want)
	}
	out.await(t, "DBX0001/1 [locked]> ")
	typed("disks\r", "disk1  locked")
	typed("not this\x03pwd\r", "\r\n/\r\n") // Ctrl-C empties the line
	s.unlock(approval.ReadOnly, s.session.Key)
	typed("shares\r", "pw-of-this-lease")
	typed("cd /shares/contoso_BlockBlob\r", "[unlocked]> ")
	typed("ls\r", "photos/")
	typed("bash\r", "no such command")
	typed("exit 0\r", "exit 0\r\n")
	typing.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("exit: %v\n%s", err, out)
	}
	l.stdin = nil
	if r := s.ssh(l, "pwd; bash"); r.code != 127 || r.out != "/\r\n\"bash\": no such command; type help\r\n" {
		t.Errorf("a command with a terminal: exit %d, %q", r.code, r.out)
	}
}

// watchedBuffer is output that a test waits for.
type watchedBuffer struct {
	mu   sync.Mutex
	data []byte
	seen int
}

func (b *watchedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p...)
	return len(p), nil
}

func (b *watchedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.data)
}

// await waits for text that was not awaited before.
func (b *watchedBuffer) await(t *testing.T, want string) {
	t.Helper()
	for range 500 {
		b.mu.Lock()
		i := bytes.Index(b.data[b.seen:], []byte(want))
		if i >= 0 {
			b.seen += i + len(want)
		}
		b.mu.Unlock()
		if i >= 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("no %q in %q", want, b.String())
}

func TestWithoutRecordTheSessionEnds(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadWrite, s.session.Key)
	c := s.client()
	idle := must(c.NewSession())
	if err := idle.Shell(); err != nil {
		t.Fatal(err)
	}
	s.journal.breakNow()
	one := must(c.NewSession())
	var errOut bytes.Buffer
	one.Stderr = &errOut
	if err := one.Run("mkdir /shares/contoso_BlockBlob/x"); err == nil || !strings.Contains(errOut.String(), "(not-recorded)") {
		t.Errorf("%v: %s", err, errOut.String())
	}
	ends(t, c, 10*time.Second)
	if _, err := os.Stat(filepath.Join(s.share, "x")); err == nil {
		t.Error("an unrecorded command ran")
	}
	if r := s.run("pwd"); r.code != 255 {
		t.Errorf("an unrecorded connection is served: exit %d", r.code)
	}
}

// TestFloodWaits types commands faster than is worth recording.
func TestFloodWaits(t *testing.T) {
	s := newScene(t)
	other := s.session
	other.ID = "ses-2"
	s.enable(other)
	const more = 20
	began := time.Now()
	s.wants(strings.Repeat("pwd;", recordBurst+more)+"pwd", 0, "/\n", "")
	if took := time.Since(began); took < more*recordEvery {
		t.Errorf("%d commands in %v", recordBurst+more, took)
	}
	if n := len(s.journal.of(auditlog.OpRunCommand)); n != 2*(recordBurst+more+1) {
		t.Errorf("%d records", n)
	}
	began = time.Now()
	if err := s.server.pace(t.Context(), "ses-2"); err != nil || time.Since(began) > recordEvery {
		t.Errorf("another session waits too: %v, %v", time.Since(began), err)
	}
}
