package disk

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Child is a process that does not outlive the agent: the kernel kills it when
// the agent dies, and so does the keeper.
type Child struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; set when done is closed
}

// StartChild starts cmd, whose SysProcAttr gains a parent-death signal, and books
// it with the keeper, which may be nil.
func StartChild(cmd *exec.Cmd, keeper *Keeper) (*Child, error) {
	return startChild(cmd, keeper, thread{})
}

// StartChildApart is [StartChild] for a child with a mount table of its own, which
// prepare changes before it starts. What is mounted elsewhere later may not appear
// in it, and what is unmounted may not disappear.
func StartChildApart(cmd *exec.Cmd, keeper *Keeper, prepare func() error) (*Child, error) {
	return startChild(cmd, keeper, thread{before: func() error {
		if err := separateMounts(); err != nil {
			return err
		}
		return prepare()
	}})
}

// separateMounts gives the calling thread, and the processes it starts, a mount
// table of their own.
func separateMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("cannot get a mount table: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("cannot separate the mount table: %w", err)
	}
	return nil
}

// thread is work done on the operating system's thread that starts a child, which
// is the child's parent and is never used for anything else.
type thread struct {
	before func() error             // prepares what the child inherits
	after  func(child *Child) error // a failure kills the child
}

func startChild(cmd *exec.Cmd, keeper *Keeper, t thread) (*Child, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	c := &Child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	onOwnThread(func() {
		err := c.start(keeper, t)
		started <- err
		if err == nil {
			<-c.done
		}
	})
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

// onOwnThread runs f in a goroutine on an operating system's thread of its own,
// which ends with it: the parent-death signal of a process that f starts comes when
// that thread ends, and what f does to its mount table concerns nobody else. It is
// never the main thread, which does not end and stands for the whole process.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		running := make(chan struct{})
		onOwnThread(func() { // on another, for this goroutine holds the main thread
			close(running)
			f()
		})
		<-running
		runtime.UnlockOSThread()
	}()
}

func (c *Child) start(keeper *Keeper, t thread) error {
	if t.before != nil {
		if err := t.before(); err != nil {
			return err
		}
	}
	if err := c.cmd.Start(); err != nil {
		return err
	}
	booking := thing{PID: c.PID(), Start: startTime(c.PID())}
	err := keeper.watch(booking)
	go func() {
		c.err = c.cmd.Wait()
		keeper.forget(booking)
		close(c.done)
	}()
	if err == nil && t.after != nil {
		err = t.after(c)
	}
	if err != nil {
		c.Kill()
		<-c.done
	}
	return err
}

// PID returns the process's id.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Kill sends SIGKILL and does not wait for the end.
func (c *Child) Kill() { c.cmd.Process.Kill() }

// Signal sends a signal to a process that has not ended.
func (c *Child) Signal(sig os.Signal) { c.cmd.Process.Signal(sig) }

// Done is closed when the process has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Err returns how the process ended, nil for a success. It may be called once
// Done is closed.
func (c *Child) Err() error { return c.err }

// wait waits for the end of a process that was told to end.
func (c *Child) wait(limit time.Duration) error {
	return waitFor(c.done, limit, fmt.Sprintf("process %d does not end", c.PID()))
}

// startTime returns when a process started, in clock ticks since boot: together
// with its id it names a process for good. It is 0 for one that is gone.
func startTime(pid int) uint64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, can hold anything.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return 0
	}
	var ticks uint64
	fmt.Sscan(fields[19], &ticks)
	return ticks
}

// tail keeps the last bytes of what a child says, for its error.
type tail struct {
	mu   sync.Mutex
	text []byte
}

// tailSize is how much a tail keeps, in bytes.
const tailSize = 2 << 10

// Write implements [io.Writer].
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b...)
	if over := len(t.text) - tailSize; over > 0 {
		t.text = append([]byte(nil), t.text[over:]...)
	}
	return len(b), nil
}

// String returns the text as one line.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(strings.Fields(string(t.text)), " ")
}
