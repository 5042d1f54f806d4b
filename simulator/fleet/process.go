package fleet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

const (
	readyWithin  = time.Minute
	answerWithin = 30 * time.Second
	endWithin    = time.Minute // of thousands of agents that each record their end
)

// Process is a part of a measurement in a process of its own. It ends when this
// one does. It is not for concurrent use.
type Process struct {
	name  string
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string   // closed when it says no more
	done  chan struct{} // closed when it has ended
	err   error         // how; valid once done
	said  string        // its first line
	close sync.Once
}

// startPart starts this program again as a part, and waits until it is ready.
// Its process group is its own, so that Ctrl-C reaches it only through us.
func startPart(ctx context.Context, args ...string) (_ *Process, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &Process{name: args[0], cmd: exec.Command(self, append([]string{PartCommand}, args...)...), lines: make(chan string, 1), done: make(chan struct{})}
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start the %s: %w", p.name, err)
	}
	go p.watch(out) // ends with the process, which Stop awaits
	if p.said, err = p.line(ctx, readyWithin); err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return p, nil
}

// StartControlPlane starts a control plane in a process of its own.
func StartControlPlane(ctx context.Context, config string) (*Process, error) {
	return startPart(ctx, partControlPlane, config)
}

// StartAgent starts an agent in a process of its own, without a keeper. Its clock
// can be set, see [Process.SetClock].
func StartAgent(ctx context.Context, config string) (*Process, error) {
	return startPart(ctx, partSetAgent, config)
}

// State returns the state of an agent's lock.
func (p *Process) State(ctx context.Context) (protocol.LockState, error) {
	answer, err := p.ask(ctx, askState)
	return protocol.LockState(answer), err
}

// SetClock sets an agent's wall clock off by so much.
func (p *Process) SetClock(ctx context.Context, off time.Duration) error {
	answer, err := p.ask(ctx, askClock+" "+off.String())
	if err == nil && answer != "set" {
		err = fmt.Errorf("the clock of the %s cannot be set", p.name)
	}
	return err
}

func (p *Process) watch(out io.Reader) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		p.lines <- lines.Text()
	}
	close(p.lines)
	p.err = p.cmd.Wait()
	close(p.done)
}

// line returns the next line that the part says.
func (p *Process) line(ctx context.Context, within time.Duration) (string, error) {
	select {
	case line, ok := <-p.lines:
		if !ok {
			<-p.done
			return "", fmt.Errorf("the %s ended: %v", p.name, p.err)
		}
		return line, nil
	case <-ctx.Done():
		return "", ctx.Err()
	case <-time.After(within):
		return "", fmt.Errorf("the %s did not answer within %s", p.name, within)
	}
}

func (p *Process) ask(ctx context.Context, question string) (string, error) {
	if _, err := fmt.Fprintln(p.in, question); err != nil {
		return "", fmt.Errorf("the %s takes no questions: %w", p.name, err)
	}
	return p.line(ctx, answerWithin)
}

// Count returns how many devices are connected to the part.
func (p *Process) Count(ctx context.Context) (int, error) {
	answer, err := p.ask(ctx, askCount)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(answer)
}

// Await waits until exactly n devices are connected.
func (p *Process) Await(ctx context.Context, n int, within time.Duration) error {
	const poll = 20 * time.Millisecond
	for deadline := time.Now().Add(within); ; time.Sleep(poll) {
		have, err := p.Count(ctx)
		if err != nil || have == n {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d devices are connected to the %s after %s", have, n, p.name, within)
		}
	}
}

// Resident returns the part's resident memory in bytes, once it has given back
// what it does not need.
func (p *Process) Resident(ctx context.Context) (int64, error) {
	if _, err := p.ask(ctx, askFree); err != nil {
		return 0, err
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Rss:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("the kernel tells no resident memory")
}

// CPU returns how much processor time the part has used.
func (p *Process) CPU() (time.Duration, error) {
	const tick = time.Second / 100 // USER_HZ of every Linux
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(data), ") ") // of the name; the third field follows
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, errors.New("the kernel tells no processor time")
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * tick, err
}

// Stop has the part end, and returns how it did. It may be called again.
func (p *Process) Stop() error {
	p.close.Do(func() { p.in.Close() })
	select {
	case <-p.drained():
		if p.err != nil && p.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			return fmt.Errorf("the %s ended with %w", p.name, p.err)
		}
		return nil
	case <-time.After(endWithin):
		return errors.Join(fmt.Errorf("the %s did not end within %s and was killed", p.name, endWithin), p.Kill())
	}
}

// Kill kills the part, as a loss of power would.
func (p *Process) Kill() error {
	p.close.Do(func() { p.in.Close() })
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.drained()
	return nil
}

// drained takes what the part still says, so that it can end.
func (p *Process) drained() <-chan struct{} {
	go func() { // ends with the process
		for range p.lines {
		}
	}()
	return p.done
}
