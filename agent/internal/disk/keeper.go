package disk

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// thing is something that must not outlive the agent: exactly one field is set,
// or PID and Start.
type thing struct {
	PID   int    `json:",omitempty"` // a process,
	Start uint64 `json:",omitempty"` // which started at this clock tick
	Mount string `json:",omitempty"` // a mount point
	Loop  string `json:",omitempty"` // the tag of a loop device
	Cache string `json:",omitempty"` // the number of a file system whose files are cached
	Dir   string `json:",omitempty"` // a directory with files
}

// note tells the keeper of a thing.
type note struct {
	Thing  thing
	Forget bool `json:",omitempty"`
}

// noteTime bounds how long a note to the keeper may take. It takes microseconds,
// unless somebody has stopped the keeper.
const noteTime = time.Second

// Keeper is a process that outlives the agent by a moment and undoes what is left
// when the agent was killed. A nil Keeper keeps nothing. All methods may be called
// concurrently.
type Keeper struct {
	done chan struct{}

	mu    sync.Mutex
	notes *os.File
}

// deathSignal tells the keeper that the agent is dying. The end of its standard
// input says so too, but only when the last thread of the agent has closed its
// files, and that one may wait for a file system that the keeper has to end
// first: for dirty pages of the loop device, which only the agent could write.
// The signal comes when the thread that started the keeper ends. If that is the
// one that waits, it does not come either; then the keeper sees that the agent's
// memory is gone, see [dying].
const deathSignal = syscall.SIGUSR1

// lookEvery is how often the keeper looks whether the agent is dying, while there
// is something to undo.
const lookEvery = 100 * time.Millisecond

// dying reports whether a process that started at a clock tick has begun to end,
// or has ended. A process that ends gives up its memory before its files, and
// with it its command line.
func dying(pid int, start uint64) bool {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	gone := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
	return gone || err == nil && len(cmdline) == 0 || startTime(pid) != start
}

// keeperReady is what the keeper writes when it is ready.
const keeperReady = "ready\n"

// StartKeeper starts argv, a program that calls [RunKeeper] on its standard input
// and ends; the agent itself, in a mode of its own. It returns when the keeper is
// ready. The caller ends it with [Keeper.Close], after everything else.
func StartKeeper(argv []string) (*Keeper, error) {
	stdin, notes, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	stdout, ready, err := os.Pipe()
	if err != nil {
		notes.Close()
		return nil, err
	}
	defer stdout.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout = stdin, ready
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: deathSignal}
	k := &Keeper{done: make(chan struct{}), notes: notes}
	started := make(chan error, 1)
	onOwnThread(func() {
		err := cmd.Start()
		ready.Close()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(k.done)
	})
	if err := <-started; err != nil {
		notes.Close()
		return nil, fmt.Errorf("cannot start the keeper: %w", err)
	}
	stdout.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(stdout, make([]byte, len(keeperReady))); err != nil {
		k.Close()
		return nil, fmt.Errorf("the keeper does not start: %w", err)
	}
	return k, nil
}

// Done is closed when the keeper's process has ended. Then nobody undoes anything,
// so the agent had better lock.
func (k *Keeper) Done() <-chan struct{} {
	if k == nil {
		return nil
	}
	return k.done
}

// Close ends the keeper, which undoes what it was not told to forget.
func (k *Keeper) Close() error {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	k.notes.Close()
	k.mu.Unlock()
	return waitFor(k.done, 2*closeTime, "the keeper does not end")
}

// KeepDir makes the keeper remove dir, and what is in it, after the agent's
// death. What is mounted below it stays.
func (k *Keeper) KeepDir(dir string) error { return k.watch(thing{Dir: dir}) }

// ForgetDir undoes [Keeper.KeepDir].
func (k *Keeper) ForgetDir(dir string) error { return k.forget(thing{Dir: dir}) }

// watch makes the keeper undo things if the agent dies, in the order given. An
// error means that it will not, so that they must not come to be.
func (k *Keeper) watch(things ...thing) error { return k.tell(false, things) }

// forget takes back what watch said.
func (k *Keeper) forget(things ...thing) error { return k.tell(true, things) }

func (k *Keeper) tell(forget bool, things []thing) error {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.notes.SetWriteDeadline(time.Now().Add(noteTime))
	for _, t := range things {
		if err := json.NewEncoder(k.notes).Encode(note{t, forget}); err != nil {
			return fmt.Errorf("cannot reach the keeper: %w", err)
		}
	}
	return nil
}

// RunKeeper is all that the keeper's process does. It reads from r, its standard
// input, what to undo, and says on standard output that it is ready. When the
// agent has died or closed its end, it undoes what is left and returns, within two
// seconds.
func RunKeeper(r io.Reader) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	died := make(chan os.Signal, 1)
	signal.Notify(died, deathSignal)
	defer signal.Stop(died)
	// Under its own name nobody kills it along with the agent, and it is the last
	// to go when memory runs out.
	os.WriteFile("/proc/self/comm", []byte("databox-keeper"), 0)
	os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0)
	if _, err := io.WriteString(os.Stdout, keeperReady); err != nil {
		return err
	}
	notes := make(chan note)
	go readNotes(r, notes)
	agent := os.Getppid()
	started := startTime(agent)
	return undoAll(collect(notes, died, func() bool { return dying(agent, started) }))
}

func readNotes(r io.Reader, notes chan<- note) {
	defer close(notes)
	for in := json.NewDecoder(r); ; {
		var n note
		if in.Decode(&n) != nil {
			return
		}
		notes <- n
	}
}

// lastNotes is how long the keeper waits for notes after the agent's death. They
// are in the pipe already.
const lastNotes = 20 * time.Millisecond

// collect returns the things left when the notes end or the agent is dying, in the
// order of arrival.
func collect(notes <-chan note, died <-chan os.Signal, dying func() bool) []thing {
	var left []thing
	var last, look <-chan time.Time
	for {
		if look == nil && len(left) > 0 {
			look = time.After(lookEvery)
		}
		select {
		case n, ok := <-notes:
			if !ok {
				return left
			}
			left = without(left, n.Thing)
			if !n.Forget {
				left = append(left, n.Thing)
			}
		case <-died:
			last = time.After(lastNotes)
		case <-look:
			look = nil
			if last == nil && dying() {
				last = time.After(lastNotes)
			}
		case <-last:
			return left
		}
	}
}

func without(things []thing, t thing) []thing {
	var rest []thing
	for _, other := range things {
		if other != t {
			rest = append(rest, other)
		}
	}
	return rest
}

// undoAll undoes things. Caches come last, because they fill while there is
// access.
func undoAll(things []thing) error {
	var access, caches []thing
	for _, t := range things {
		if t.Cache != "" {
			caches = append(caches, t)
		} else {
			access = append(access, t)
		}
	}
	return errors.Join(undoAtOnce(access), undoAtOnce(caches))
}

// undoAtOnce undoes things, each on its own, because any of them may hang until
// another one is done.
func undoAtOnce(things []thing) error {
	errs := make(chan error, len(things))
	for _, t := range things {
		go func() { errs <- t.undo() }()
	}
	var all []error
	for timeout := time.After(undoTime); len(all) < len(things); {
		select {
		case err := <-errs:
			all = append(all, err)
		case <-timeout:
			return errors.Join(append(all, errors.New("could not undo everything in time"))...)
		}
	}
	return errors.Join(all...)
}

func (t thing) undo() error {
	switch {
	case t.PID != 0:
		return killProcess(t.PID, t.Start)
	case t.Mount != "":
		return unmount(t.Mount)
	case t.Loop != "":
		return releaseLoops(func(tag string) bool { return tag == t.Loop })
	case t.Cache != "":
		return evict(t.Cache)
	case t.Dir != "":
		return removeTree(t.Dir)
	}
	return nil
}
