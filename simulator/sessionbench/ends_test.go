package sessionbench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/simulator/netfault"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// deadMan is how long the node of TestEveryEnd stays unlocked without an answer.
const deadMan = 3 * time.Second

// slack is what a machine that is busy with other tests may take on top of a limit.
const slack = time.Second

// lateClock is a wall clock that can be set forward.
type lateClock struct {
	began time.Time
	ahead atomic.Int64 // nanoseconds
}

func (c *lateClock) Now() time.Time      { return time.Now().Round(0).Add(time.Duration(c.ahead.Load())) }
func (c *lateClock) Boot() time.Duration { return time.Since(c.began) }

// TestEveryEnd ends sessions in every way that there is while stock clients are at
// work over SSH, SFTP, SMB and NFS, one of them hung: within two seconds every
// connection is cut, every file closed and the disk gone, and the session is over.
func TestEveryEnd(t *testing.T) {
	lockbox := needs(t, "ssh", "sftp", "smbclient", "smbd", "nfs-cat", "mkntfs", "ntfs-3g")
	clock := &lateClock{began: time.Now()}
	var line *netfault.Proxy
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	cfg := Config{Dir: t.TempDir(), Lockbox: lockbox, Size: 64 << 20, Note: io.Discard}
	s, err := raise(t.Context(), cfg, func(w *world.World, opts *agent.Options) (err error) {
		opts.Clock, opts.NFS = clock, []string{filepath.Join(programs, "databox-agent"), "nfs-server"}
		if line, err = netfault.New(w.Tunnel); err != nil {
			return err
		}
		running.Go(func() { line.Run(ctx) })
		return changeNode(w, line.Addr())
	})
	t.Cleanup(func() { stop(); running.Wait() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		line.Heal()
		if err := s.end(); err != nil {
			t.Error(err)
		}
	})
	olga := s.crew.As("olga")
	for i, end := range []struct {
		name   string
		state  string // of the session afterwards
		reason string // for which the recordings end
		within time.Duration
		said   string // to the engineer
		do     func(session, request string) error
	}{
		{"killed", "killed", "killed", 2 * time.Second, "killed by the customer", func(id, _ string) error {
			_, err := olga.Recordings.KillSession(t.Context(), &lockboxv1.KillSessionRequest{Session: id, Reason: "enough"})
			return err
		}},
		{"disabled", "disabled", "disabled", 2 * time.Second, "it was disabled", func(id, _ string) error {
			_, err := s.crew.As("erin").Sessions.DisableSession(t.Context(), &lockboxv1.DisableSessionRequest{Id: id, Reason: "done"})
			return err
		}},
		{"revoked", "disabled", "revoked", 2 * time.Second, "the approval was revoked", func(_, request string) error {
			_, err := olga.Requests.RevokeRequest(t.Context(), &lockboxv1.RevokeRequestRequest{Id: request, Reason: "not any more"})
			return err
		}},
		{"tunnel cut", "enabled", "dead-man", deadMan + 2*time.Second, "", func(string, string) error { line.Cut(); return nil }},
		{"lease over", "enabled", "lease-end", 3 * time.Second, "ended", func(string, string) error { clock.ahead.Store(int64(9 * time.Hour)); return nil }},
	} {
		t.Run(end.name, func(t *testing.T) {
			if i > 0 {
				line.Heal()
				if id, err := s.current(t.Context()); err == nil { // left enabled
					if _, err := s.crew.As("erin").Sessions.DisableSession(t.Context(), &lockboxv1.DisableSessionRequest{Id: id}); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.unlock(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := s.connect(t.Context(), lockbox); err != nil {
					t.Fatal(err)
				}
			}
			id, err := s.current(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			requests, err := olga.Requests.ListRequests(t.Context(), &lockboxv1.ListRequestsRequest{})
			if err != nil {
				t.Fatal(err)
			}
			request := ""
			for _, r := range requests.Requests {
				if r.Status == "Approved" {
					request = r.Id
				}
			}
			closed, said := s.busy(t)
			began := time.Now()
			if err := end.do(id, request); err != nil {
				t.Fatal(err)
			}
			closed(began.Add(end.within + slack))
			if over := "*** session " + id + " ended: "; !strings.Contains(said.String(), end.said) || strings.Count(said.String(), over) != min(len(end.said), 1) {
				t.Errorf("the engineer was told %q, want once %s%s", said, over, end.said)
			}
			line.Heal()
			got, err := s.crew.As("erin").Sessions.GetSession(t.Context(), &lockboxv1.GetSessionRequest{Id: id})
			if err != nil || got.State != end.state {
				t.Errorf("the session is %v, %v: want it %s", got, err, end.state)
			}
			s.recorded(t, id, request, end.reason)
		})
	}
}

// recorded waits for the recordings of the session and of its shares, and fails
// unless they ended for a reason.
func (s *session) recorded(t *testing.T, id, request, reason string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		ended := make(map[string]string)
		for _, in := range []*lockboxv1.ListRecordingsRequest{{Session: id}, {Request: request}} {
			list, err := s.crew.As("olga").Recordings.ListRecordings(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range list.Recordings {
				if r.State == "complete" && (r.Session == id || r.Kind == "shares" && r.Request == request) {
					ended[r.Kind] = r.Reason
				}
			}
		}
		if len(ended) == 2 || time.Now().After(deadline) {
			// When the lease is over, so is the time of the session.
			if ended["shares"] != reason || ended["session"] != reason && reason != "lease-end" {
				t.Errorf("the recordings ended: %v, want %s", ended, reason)
			}
			return
		}
	}
}

// changeNode gives the node NFS, a short dead-man time, and a line that can be cut.
func changeNode(w *world.World, line string) error {
	file := w.Device.Nodes[0].ConfigFile()
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(line)
	text := strings.Replace(string(data), "dead_man: 1m0s", "dead_man: "+deadMan.String(), 1)
	text = strings.Replace(text, "share:\n", "share:\n  nfs:\n    enabled: true\n    port: 0\n", 1)
	return os.WriteFile(file, []byte(text+fmt.Sprintf("control_plane:\n  tunnel_address: localhost:%s\n", port)), 0o600)
}

var nfsAddress = regexp.MustCompile(`nfs +(127\.0\.0\.1:\d+)`)

// prompt is the screen of a shell, which has shown its prompt or has not.
type prompt struct {
	text  []byte
	shown chan struct{}
}

func (p *prompt) Write(data []byte) (int, error) {
	before := bytes.Contains(p.text, []byte("]> "))
	p.text = append(p.text, data...)
	if !before && bytes.Contains(p.text, []byte("]> ")) {
		close(p.shown)
	}
	return len(data), nil
}

// busy starts clients, and returns what waits until all of them are cut off and
// the disk is gone, and fails if that is later than it should be, and what the one
// at the terminal is told by then.
func (s *session) busy(t *testing.T) (closed func(deadline time.Time), said *bytes.Buffer) {
	t.Helper()
	file := filepath.Join(s.folder, "large")
	if err := os.WriteFile(file, bytes.Repeat([]byte("x"), 48<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	server, err := s.smbShare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	shown, err := exec.CommandContext(t.Context(), "ssh", "-F", s.client.config, s.client.host, "shares").Output()
	address := nfsAddress.FindSubmatch(shown)
	if err != nil || address == nil {
		t.Fatalf("%v: no address of NFS in %s", err, shown)
	}
	nfs, err := net.Dial("tcp", string(address[1]))
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(string(address[1]))
	ssh := func(args ...string) *exec.Cmd {
		return exec.CommandContext(t.Context(), "ssh", append([]string{"-q", "-F", s.client.config, s.client.host}, args...)...)
	}
	clients := map[string]*exec.Cmd{
		"a shell": exec.CommandContext(t.Context(), "ssh", "-q", "-tt", "-F", s.client.config, s.client.host),
		"tail -f": ssh("tail", "-f", s.client.folder+"/first"),
		"sftp":    exec.CommandContext(t.Context(), "sftp", "-q", "-l", "8000", "-F", s.client.config, "-b", "-", s.client.host),
		"smbclient": exec.CommandContext(t.Context(), "smbclient", "//127.0.0.1/"+share, "-p", server.port, "-s", "/dev/null",
			"-c", strings.Repeat(`get bench\large /dev/null;`, 4000)),
	}
	said = &bytes.Buffer{}
	clients["a shell"].Stderr = said
	at := &prompt{shown: make(chan struct{})}
	clients["a shell"].Stdout = at
	clients["sftp"].Stdin = strings.NewReader("get " + s.client.folder + "/large " + filepath.Join(t.TempDir(), "got") + "\n")
	clients["smbclient"].Env = append(os.Environ(), "USER="+server.user, "PASSWD="+server.password)
	for _, name := range []string{"a shell", "tail -f"} { // stays open
		if _, err := clients[name].StdinPipe(); err != nil {
			t.Fatal(err)
		}
	}
	hung := ssh("cat", s.client.folder+"/large", s.client.folder+"/large")
	reading := exec.CommandContext(t.Context(), "nfs-cat", fmt.Sprintf("nfs://127.0.0.1/%s/bench/large?nfsport=%s&mountport=%s&version=3", share, port, port))
	for _, one := range []*exec.Cmd{hung, reading} { // which nobody reads
		if _, err := one.StdoutPipe(); err != nil {
			t.Fatal(err)
		}
		if err := one.Start(); err != nil {
			t.Fatal(err)
		}
	}
	type ending struct {
		name string
		at   time.Time
	}
	ended := make(chan ending, len(clients)+1)
	for name, one := range clients {
		if err := one.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { one.Wait(); ended <- ending{name, time.Now()} }()
	}
	go func() { io.Copy(io.Discard, nfs); ended <- ending{"NFS", time.Now()} }()
	time.Sleep(time.Second) // they are at work
	select {
	case <-at.shown:
	case <-time.After(patience):
		t.Fatal("the shell does not answer")
	}
	if err := hung.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	select {
	case one := <-ended:
		t.Fatalf("%s ended at once", one.name)
	default:
	}
	return func(deadline time.Time) {
		t.Helper()
		for ; ; time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(filepath.Dir(filepath.Dir(s.folder))); err != nil {
				break
			}
			if time.Now().After(deadline.Add(patience)) {
				t.Fatal("the disk is still there")
			}
		}
		gone := time.Now()
		if late := gone.Sub(deadline); late > 0 {
			t.Errorf("the disk was gone %s too late", late)
		}
		for range len(clients) + 1 {
			select {
			case one := <-ended:
				if late := one.at.Sub(deadline); late > 0 {
					t.Errorf("%s ended %s too late", one.name, late)
				}
			case <-time.After(patience):
				t.Error("a client is still connected")
			}
		}
		for _, one := range []*exec.Cmd{hung, reading} {
			one.Process.Kill()
			one.Wait()
		}
	}, said
}
