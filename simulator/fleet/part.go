package fleet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent"
	"github.com/databox-lockbox/lockbox/controlplane"
)

// PartCommand is the argument after which this program is a part of a
// measurement: it calls [Part] with the arguments that follow.
const PartCommand = "bench-part"

// The parts.
const (
	partControlPlane = "controlplane"   // CONFIG
	partAgent        = "agent"          // CONFIG [KEEPER…]
	partSetAgent     = "set-agent"      // CONFIG; its clock can be set
	partFleet        = "fleet"          // DIR
	partRawServer    = "rawtls-server"  // AUTHORITY
	partRawClients   = "rawtls-clients" // AUTHORITY ADDRESS N
)

// What a part is asked, a line each. It answers each with a line; its first
// line, which nobody asked for, says that it is ready.
const (
	askCount = "count" // how many devices are connected
	askFree  = "free"  // collect garbage and give memory back
	askState = "state" // of the agent's lock
	askClock = "clock" // followed by how far to set the agent's clock off
)

// openFiles is how many files a part may have to open.
const openFiles = 7*MaxDevices + 1000

// part is a running part as its questioner sees it.
type part struct {
	ready string     // the first line
	count func() int // devices connected; nil if it has none
	run   func(context.Context) error
	agent *agent.Agent // nil if it is none
	clock *setClock    // of the agent; nil if nobody sets it
}

// setClock is a wall clock that is set, over a boot clock that nobody sets.
type setClock struct {
	began time.Time
	off   atomic.Int64 // nanoseconds
}

// Now implements [agent.Clock].
func (c *setClock) Now() time.Time { return time.Now().Round(0).Add(time.Duration(c.off.Load())) }

// Boot implements [agent.Clock].
func (c *setClock) Boot() time.Duration { return time.Since(c.began) }

// PartMain runs a part and does not return, if that is what this process was
// started as: for the program of a test, which is that of its parts, too.
func PartMain() {
	if len(os.Args) < 2 || os.Args[1] != PartCommand {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	err := Part(ctx, os.Args[2:], os.Stdin, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Part is all that the process of a part does. It ends with ctx, or when in does.
func Part(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if err := raiseFiles(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, err := newPart(args)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- p.run(ctx) }() // its end is awaited below
	answered := make(chan struct{})
	go func() { // ends with in, which the process's exit closes
		defer close(answered)
		p.answer(in, out)
	}()
	select {
	case err := <-ended:
		return err
	case <-answered:
	case <-ctx.Done():
	}
	cancel()
	return <-ended
}

// answer says that the part is ready and answers questions until in ends.
func (p *part) answer(in io.Reader, out io.Writer) {
	fmt.Fprintln(out, p.ready)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		answer := "?"
		off, isClock := strings.CutPrefix(lines.Text(), askClock+" ")
		switch {
		case isClock && p.clock != nil:
			if d, err := time.ParseDuration(off); err == nil {
				p.clock.off.Store(int64(d))
				answer = "set"
			}
		case lines.Text() == askState && p.agent != nil:
			answer = p.agent.Status().State
		case lines.Text() == askFree:
			freeMemory()
			answer = "freed"
		case lines.Text() == askCount && p.count != nil:
			answer = strconv.Itoa(p.count())
		}
		fmt.Fprintln(out, answer)
	}
}

// freeMemory leaves what is in use. Each collection halves the stacks that are
// larger than they need be.
func freeMemory() {
	for range 5 {
		debug.FreeOSMemory()
	}
}

// raiseFiles raises the limit of open files as far as this user may.
func raiseFiles() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("cannot read the limit of open files: %w", err)
	}
	limit.Cur = max(limit.Cur, openFiles)
	limit.Max = max(limit.Max, limit.Cur)
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		return nil
	}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("cannot read the limit of open files: %w", err)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("cannot raise the limit of open files: %w", err)
	}
	return nil
}

func newPart(args []string) (*part, error) {
	if len(args) < 2 {
		return nil, errors.New("a part needs a name and what to work on")
	}
	switch name, what := args[0], args[1]; name {
	case partControlPlane:
		return newControlPlane(what)
	case partAgent:
		return newAgent(what, agent.Options{Log: logger(), Self: args[2:]})
	case partSetAgent:
		clock := &setClock{began: time.Now()}
		p, err := newAgent(what, agent.Options{Log: zerolog.Nop(), Clock: clock})
		if p != nil {
			p.clock = clock
		}
		return p, err
	case partFleet:
		return newFleet(what), nil
	case partRawServer:
		return newRawServer(what)
	case partRawClients:
		return newRawClients(args[1:])
	default:
		return nil, fmt.Errorf("there is no part %q", name)
	}
}

// logger writes what went wrong to standard error.
func logger() zerolog.Logger {
	return zerolog.New(os.Stderr).Level(zerolog.ErrorLevel).With().Timestamp().Logger()
}

func newControlPlane(config string) (*part, error) {
	cfg, err := controlplane.LoadConfig(config)
	if err != nil {
		return nil, err
	}
	c, err := controlplane.New(cfg, controlplane.Options{Log: logger()})
	if err != nil {
		return nil, err
	}
	return &part{ready: c.TunnelAddress(), count: c.Online, run: c.Run}, nil
}

func newAgent(config string, opts agent.Options) (*part, error) {
	cfg, err := agent.LoadConfig(config)
	if err != nil {
		return nil, err
	}
	a, err := agent.New(cfg, opts)
	if err != nil {
		return nil, err
	}
	return &part{ready: "assembled", run: a.Run, agent: a}, nil
}

func newFleet(dir string) *part {
	// Thousands of devices that lose their tunnel have nothing new to say.
	return &part{ready: "assembling", run: func(ctx context.Context) error {
		return Run(ctx, dir, zerolog.Nop())
	}}
}
