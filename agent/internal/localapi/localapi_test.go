package localapi

import (
	"context"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type fakeLock struct {
	mu      sync.Mutex
	state   string
	refuse  error
	began   chan struct{} // closed when Lock is called
	release chan struct{} // Lock waits for it
}

func (f *fakeLock) Status() *devicev1.NodeStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &devicev1.NodeStatus{Serial: "DBX0001", Node: 1, State: f.state, Disks: []*devicev1.DiskStatus{{Disk: "disk1", Size: 1 << 40}}}
}

func (f *fakeLock) Lock(_ context.Context, reason lock.Reason, subject approval.Digest, spend bool) (time.Duration, error) {
	if f.began != nil {
		close(f.began)
		<-f.release
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if reason != lock.Operator || subject != "" || spend {
		panic("locked for another reason")
	}
	if f.refuse == nil {
		f.state = "Locked"
	}
	return time.Millisecond, f.refuse
}

// serve runs a server until the test, or stop, ends it.
func serve(t *testing.T, path string, l Lock) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- New(path, l).Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	for range 500 {
		if conn, err := net.Dial("unix", path); err == nil {
			conn.Close()
			return stop
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the socket is not served")
	return nil
}

func TestStatusAndLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l := &fakeLock{state: "Unlocked"}
	serve(t, path, l)
	c := NewClient(path)
	s, err := c.Status(t.Context())
	if err != nil || s.State != "Unlocked" || s.Disks[0].Size != 1<<40 {
		t.Errorf("Status: %v, %v", s, err)
	}
	if s, err = c.Lock(t.Context()); err != nil || s.State != "Locked" {
		t.Errorf("Lock: %v, %v", s, err)
	}
	l.refuse = protocol.Errorf(protocol.CodeFaulted, "node DBX0001/1 is faulted")
	if _, err = c.Lock(t.Context()); protocol.CodeOf(err) != protocol.CodeFaulted || err.Error() != "node DBX0001/1 is faulted (faulted)" {
		t.Errorf("Lock of a faulted node: %v", err)
	}
	for _, wrong := range [][2]string{{"GET", "/v1/lock"}, {"POST", "/v1/status"}, {"GET", "/"}} {
		if _, err := c.ask(t.Context(), wrong[0], wrong[1]); err == nil {
			t.Errorf("%v was answered", wrong)
		}
	}
}

func TestSocketIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	stop := serve(t, path, &fakeLock{})
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	stop()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is left behind")
	}
}

func TestSecondAgentIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	serve(t, path, &fakeLock{state: "Unlocked"})
	if err := New(path, &fakeLock{}).Run(t.Context()); protocol.CodeOf(err) != protocol.CodeBusy {
		t.Errorf("a second agent: %v", err)
	}
	if s, err := NewClient(path).Status(t.Context()); err != nil || s.State != "Unlocked" {
		t.Errorf("the first one: %v, %v", s, err)
	}
}

func TestWhatIsInTheWay(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	ln, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	serve(t, stale, &fakeLock{}) // replaced

	file := filepath.Join(dir, "precious")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link, dir} {
		if err := New(path, &fakeLock{}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "no socket") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if data, err := os.ReadFile(link); string(data) != "data" {
		t.Errorf("the file is gone: %v", err)
	}
}

func TestNotRunning(t *testing.T) {
	_, err := NewClient(filepath.Join(t.TempDir(), "agent.sock")).Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), "is it running") || strings.Contains(err.Error(), "http://") {
		t.Errorf("%v", err)
	}
}

// TestLockIsAnsweredAtTheEnd: the end of the agent waits for a lock under way.
func TestLockIsAnsweredAtTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l := &fakeLock{state: "Unlocked", began: make(chan struct{}), release: make(chan struct{})}
	stop := serve(t, path, l)
	answered := make(chan error, 1)
	go func() {
		_, err := NewClient(path).Lock(context.Background())
		answered <- err
	}()
	<-l.began
	time.AfterFunc(100*time.Millisecond, func() { close(l.release) })
	stop()
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func TestLargeRequestIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	serve(t, path, &fakeLock{})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	conn.Write([]byte("GET /v1/status HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10)))
	buf := make([]byte, 64)
	n, _ := conn.Read(buf)
	if !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 431") {
		t.Errorf("answer: %q", buf[:n])
	}
}
