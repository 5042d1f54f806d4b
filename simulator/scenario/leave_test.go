package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/simulator/world"
)

// sandbox is a temporary directory for a program, in which it must leave
// nothing: neither files nor anything that is rooted there.
type sandbox struct {
	t   *testing.T
	dir string
}

func newSandbox(t *testing.T) *sandbox {
	t.Helper()
	dir, err := os.MkdirTemp("", "sim-") // short: sockets lie below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &sandbox{t, dir}
}

// sim prepares databox-sim as a terminal would start it: in a process group of
// its own, to which Ctrl-C goes.
func (s *sandbox) sim(args ...string) (*exec.Cmd, *tale) {
	out := &tale{}
	cmd := exec.Command(filepath.Join(programs, "databox-sim"), args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+s.dir)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd, out
}

// runs runs databox-sim to its end.
func (s *sandbox) runs(exit int, says string, args ...string) {
	s.t.Helper()
	cmd, out := s.sim(args...)
	if err := cmd.Run(); cmd.ProcessState == nil {
		s.t.Fatal(err)
	}
	if cmd.ProcessState.ExitCode() != exit || !strings.Contains(out.end(), says) {
		s.t.Fatalf("databox-sim %s: exit %d, want %d and %q:\n%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), exit, says, out.end())
	}
}

// wantEmpty fails the test unless nothing is left.
func (s *sandbox) wantEmpty() {
	s.t.Helper()
	files, err := os.ReadDir(s.dir)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range files {
		s.t.Errorf("left behind: %s", f.Name())
	}
	for _, left := range append(leftOf(world.Node{Dir: s.dir, Run: s.dir}), processesIn(s.dir)...) {
		s.t.Errorf("left behind: %s", left)
	}
}

// processesIn lists the processes that were started with that temporary
// directory, whatever became of them since.
func processesIn(dir string) []string {
	var found []string
	list, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range list {
		env, err := os.ReadFile(name)
		if err == nil && bytes.Contains(env, []byte("TMPDIR="+dir+"\x00")) {
			args, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "cmdline"))
			found = append(found, "process "+string(bytes.ReplaceAll(args, []byte{0}, []byte{' '})))
		}
	}
	return found
}

// Ctrl-C at some moment of the demo ends it with exit code 1, and nothing is
// left.
func TestInterruptedDemo(t *testing.T) {
	needWorld(t)
	for _, among := range [][]string{{"2", "3", "4", "5"}, {"8b", "10", "8c", "11"}} {
		number, late := among[rand.IntN(len(among))], rand.N(1500*time.Millisecond)
		t.Run("step "+number, func(t *testing.T) {
			t.Parallel()
			t.Logf("interrupted %s after the beginning of step %s", late, number)
			s := newSandbox(t)
			cmd, out := s.sim("demo")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { // ends with the program
				defer close(ended)
				cmd.Wait()
			}()
			for !strings.Contains(out.all(), "── step "+number+":") {
				select {
				case <-ended:
					t.Fatalf("the demo ended before its step %s:\n%s", number, out.end())
				case <-time.After(5 * time.Millisecond):
				}
			}
			time.Sleep(late)
			if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			select {
			case <-ended:
			case <-time.After(2 * stopWithin):
				syscall.Kill(-cmd.Process.Pid, syscall.SIGQUIT)
				<-ended
				t.Errorf("the demo did not end within %s of Ctrl-C", 2*stopWithin)
			}
			if code := cmd.ProcessState.ExitCode(); code != 1 || strings.Contains(out.all(), "Every step held") {
				t.Errorf("exit %d, want 1:\n%s", code, out.end())
			}
			s.wantEmpty()
		})
	}
}

// A story that does not hold ends with an error that names the step, and
// nothing is left, though the disks were unlocked.
func TestFailingStep(t *testing.T) {
	needWorld(t)
	t.Parallel()
	broken := errors.New("broken on purpose")
	var nodes []world.Node
	err := Play(t.Context(), Config{Bin: programs, Dir: t.TempDir(), Profile: smallProfile(t, "databox"), Out: &tale{}, After: func(ctx context.Context, s *Story, step string) error {
		if step != "10" {
			return nil
		}
		nodes = s.w.Nodes()
		if len(s.mountsOf(nodes[0])) == 0 {
			t.Error("nothing is mounted while unlocked: this test proves nothing")
		}
		return broken
	}})
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "step 10") {
		t.Errorf("the story ended with %v", err)
	}
	for _, n := range nodes {
		if left := leftOf(n); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if _, err := os.Stat(filepath.Dir(n.Run)); !os.IsNotExist(err) {
			t.Errorf("the run directory is left behind: %v", err)
		}
	}
}

// A world that is up stays up until it is taken down, and both only once.
func TestUpAndDown(t *testing.T) {
	needWorld(t)
	t.Parallel()
	s := newSandbox(t)
	dir := filepath.Join(s.dir, "world")
	s.runs(1, "no world is up in "+dir, "down", "--dir", dir)
	s.runs(0, "What to type next", "up", "--dir", dir)
	running := processesIn(s.dir)
	for _, name := range []string{"lockboxd", "databox-agent"} {
		if !strings.Contains(fmt.Sprint(running), name) {
			t.Errorf("%s does not run: %v", name, running)
		}
	}
	s.runs(1, "a world is up in "+dir+" already", "up", "--dir", dir)
	s.runs(0, "", "down", "--dir", dir)
	s.wantEmpty()
	s.runs(1, "no world is up in "+dir, "down", "--dir", dir)
}
