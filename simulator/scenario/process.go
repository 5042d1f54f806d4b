package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stopWithin is how long a daemon may take to end before it is killed.
const stopWithin = 10 * time.Second

// processes are the daemons of a world.
type processes struct {
	bin, logs string

	mu  sync.Mutex // guards what follows
	all map[string]*process
}

type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how; valid once done
}

func newProcesses(bin, logs string) *processes {
	return &processes{bin: bin, logs: logs, all: make(map[string]*process)}
}

// start starts a daemon under a name. It has a process group of its own, so
// that Ctrl-C reaches it only through us, in order.
func (p *processes) start(name, program string, args ...string) error {
	log, err := os.OpenFile(p.logFile(name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(p.bin, program), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start %s: %w", program, err)
	}
	one := &process{name: name, cmd: cmd, done: make(chan struct{})}
	go func() { // ends with the daemon
		one.err = cmd.Wait()
		close(one.done)
	}()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all[name] = one
	return nil
}

func (p *processes) logFile(name string) string { return filepath.Join(p.logs, name+".log") }

func (p *processes) get(name string) *process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all[name]
}

// pid returns a daemon's process id.
func (p *processes) pid(name string) int { return p.get(name).cmd.Process.Pid }

// end sends a signal and waits for the end.
func (p *processes) end(name string, sig syscall.Signal) error {
	one := p.get(name)
	if one == nil {
		return nil
	}
	p.mu.Lock()
	delete(p.all, name)
	p.mu.Unlock()
	_ = one.cmd.Process.Signal(sig) // it may have ended by itself
	select {
	case <-one.done:
	case <-time.After(stopWithin):
		_ = one.cmd.Process.Kill()
		<-one.done
		return fmt.Errorf("%s did not end within %s and was killed", name, stopWithin)
	}
	var exit *exec.ExitError
	if sig == syscall.SIGTERM && errors.As(one.err, &exit) {
		return fmt.Errorf("%s ended with %w", name, one.err)
	}
	return nil
}

// stopAll ends all daemons, agents first: they have something to lock.
func (p *processes) stopAll() error {
	p.mu.Lock()
	var names []string
	for name := range p.all {
		names = append(names, name)
	}
	p.mu.Unlock()
	slices.SortFunc(names, func(a, b string) int {
		return strings.Compare(order(a)+a, order(b)+b)
	})
	var errs []error
	for _, name := range names {
		errs = append(errs, p.end(name, syscall.SIGTERM))
	}
	return errors.Join(errs...)
}

func order(name string) string {
	if name == controlPlane {
		return "1"
	}
	return "0"
}

// tails returns the ends of all logs.
func (p *processes) tails() map[string]string {
	tails := make(map[string]string)
	files, _ := filepath.Glob(filepath.Join(p.logs, "*.log"))
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
		tails[strings.TrimSuffix(filepath.Base(f), ".log")] = string(bytes.Join(lines[max(0, len(lines)-12):], []byte("\n")))
	}
	return tails
}

// command is the outcome of a program that ran to its end.
type command struct {
	code     int
	out, err string
}

// run runs a program to its end. in is its standard input.
func run(ctx context.Context, in string, name string, args ...string) (command, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(in)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return command{}, fmt.Errorf("cannot run %s: %w", name, err)
	}
	return command{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}, ctx.Err()
}

// sshAgent starts an ssh-agent that ends when stop is called or ctx ends. Left to
// itself, one that outlives its command stays for another ten seconds.
func (s *Story) sshAgent(ctx context.Context) (socket string, stop func()) {
	socket = filepath.Join(filepath.Dir(s.w.Device.Nodes[0].Run), "ssh-agent.sock")
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, "ssh-agent", "-D", "-a", socket)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		cancel()
		s.fail("cannot start ssh-agent: %w", err)
	}
	stop = func() {
		cancel()
		_ = cmd.Wait() // it ends by our signal
		os.Remove(socket)
	}
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		// Its file is there a moment before it listens.
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return socket, stop
		}
		if ctx.Err() != nil || time.Since(began) > patience {
			stop()
			s.fail("ssh-agent does not open %s", socket)
		}
	}
}
