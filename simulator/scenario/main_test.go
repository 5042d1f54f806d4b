package scenario

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/simulator/profile"
	"github.com/databox-lockbox/lockbox/simulator/simtest"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// programs is the folder of the programs that the tests play with.
var programs string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "databox-programs-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	programs = dir
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// build builds the programs, once. They are as they are shipped, without the
// race detector: bounds of seconds are measured on them.
var build = sync.OnceValue(func() error {
	out, err := exec.Command("go", "build", "-race=false", "-o", programs, "../../agent/cmd/...", "../../controlplane/cmd/...", "../../simulator/cmd/...").CombinedOutput()
	if err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
})

// needWorld skips a test where devices cannot be played; under CI=true it fails
// instead. It builds the programs.
func needWorld(t *testing.T) {
	t.Helper()
	simtest.Need(t, "/dev/fuse", "/dev/loop-control", "mkntfs", "ntfs-3g", "ntfscat", "smbclient", "smbd", "ssh", "cryptsetup", "dislocker-file")
	if err := build(); err != nil {
		t.Fatal(err)
	}
}

// tale collects what a story prints, for when it fails.
type tale struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *tale) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

func (w *tale) all() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// end returns the last part of it.
func (w *tale) end() string {
	const most = 20_000
	text := w.all()
	return text[max(0, len(text)-most):]
}

// smallProfile is a device with small disks: one node with the first two, or a
// Heavy with one on each of two nodes.
func smallProfile(t *testing.T, name string) profile.Profile {
	t.Helper()
	p, err := profile.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	p.DiskSize = 16 << 20
	for i := range p.Nodes {
		p.Nodes[i].Disks = p.Nodes[i].Disks[:2/len(p.Nodes)]
	}
	return p
}

// stage is a world with a story under way in it.
type stage struct {
	*Story
	t *testing.T
}

// newStage lays a world out. When the test ends, so does the world, and nothing
// may be left of it. before, which may be nil, is called on the world as it lies
// on disk.
func newStage(t *testing.T, cfg world.Config, before func(*world.World)) *stage {
	t.Helper()
	needWorld(t)
	cfg.Dir = filepath.Join(t.TempDir(), "world")
	w, err := world.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if before != nil {
		before(w)
	}
	told := &tale{}
	s := newStory(Config{Bin: programs, Dir: cfg.Dir, Profile: cfg.Profile, Out: told}, w)
	t.Cleanup(func() {
		t.Logf("the end of the story:\n%s", told.end()) // shown when the test fails
		if err := s.cleanUp(); err != nil {
			t.Error(err)
		}
	})
	return &stage{s, t}
}

// in runs a part of a test on the stage.
func (s *stage) in(name string, part func(*stage)) {
	s.t.Helper()
	s.t.Run(name, func(t *testing.T) { part(&stage{s.Story, t}) })
}

// do does a part of the story that is not one of its steps. It ends the test if
// it does not hold.
func (s *stage) do(what string, part func(context.Context)) {
	s.t.Helper()
	if err := s.try(what, part); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) try(what string, part func(context.Context)) error {
	return s.playStep(s.t.Context(), step{"test", what, func(_ *Story, ctx context.Context) { part(ctx) }})
}

// play plays steps by their numbers.
func (s *stage) play(numbers ...string) {
	s.t.Helper()
	for _, number := range numbers {
		i := slices.IndexFunc(steps, func(st step) bool { return st.number == number })
		if err := s.playStep(s.t.Context(), steps[i]); err != nil {
			s.t.Fatal(err)
		}
	}
}

// toApproved plays the story as shortly as can be until a request is approved.
func (s *stage) toApproved() {
	s.t.Helper()
	s.play("1", "2", "3", "4", "6", "7", "9")
}

// killAgents kills the agents of the story's device, all at once.
func (s *Story) killAgents() {
	for _, n := range s.w.Device.Nodes {
		s.must(s.procs.end(agentName(n), syscall.SIGKILL))
	}
}

// startAgents starts them again.
func (s *Story) startAgents() {
	for _, n := range s.w.Device.Nodes {
		s.startAgent(n)
	}
}

// nothingOpen shows that the kernel knows of nothing open of the device. Programs
// that have just started need no search of their memory.
func (s *Story) nothingOpen() {
	for _, n := range s.w.Device.Nodes {
		left := s.mountsOf(n)
		s.hold(len(left) == 0, "open on %s: %s", n.ID, strings.Join(left, ", "))
	}
}

// goneWithin waits until nothing is left of a node and says how long it took.
func goneWithin(n world.Node, limit time.Duration) (took time.Duration, left []string) {
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		left, took = leftOf(n), time.Since(began)
		if len(left) == 0 || took > limit {
			return took, left
		}
	}
}

// task is a lockbox command under way.
type task struct {
	done    chan struct{} // closed when it has ended
	outcome command       // of it; valid once done
}

// wait waits until the command has ended.
func (t *task) wait() command {
	<-t.done
	return t.outcome
}

// isOver reports whether the command has ended.
func (t *task) isOver() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

// background starts a lockbox command. It ends by itself, or with ctx.
func (s *Story) background(ctx context.Context, who string, args ...string) *task {
	t := &task{done: make(chan struct{})}
	go func() { // ends with the command
		defer close(t.done)
		c, err := run(ctx, "", filepath.Join(s.cfg.Bin, "lockbox"), append([]string{"--home", s.w.People[who].Home()}, args...)...)
		if err != nil {
			c = command{code: -1, err: err.Error()}
		}
		t.outcome = command{code: c.code, out: c.out, err: strings.TrimSpace(c.err)}
	}()
	return t
}
