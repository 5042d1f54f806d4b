package share

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// Bounds of the work of hashing. What is beyond them is recorded without a hash.
const (
	maxHashSize  = 8 << 30 // of a file, in bytes
	maxHashQueue = 1024    // files that wait
)

// hashJob is a file as it was when it was closed.
type hashJob struct {
	root  *os.Root
	name  string
	info  os.FileInfo
	event recording.FileEvent // of the closing, still without a hash
}

// hasher records the closing of files with the SHA-256 of what is in them, one file
// after the other. A file that is changed meanwhile gets none: its next closing will.
type hasher struct {
	log    FileLog
	broken func(error) // called when something cannot be recorded
	wake   chan struct{}
	quit   chan struct{}
	ended  chan struct{}

	mu      sync.Mutex // guards what follows
	queue   []hashJob
	current *hashJob
	closed  bool
}

// newHasher starts the work; close ends it.
func newHasher(log FileLog, broken func(error)) *hasher {
	h := &hasher{log: log, broken: broken, wake: make(chan struct{}, 1), quit: make(chan struct{}), ended: make(chan struct{})}
	go h.run()
	return h
}

// take takes over the event of a closing, unless that is too much work.
func (h *hasher) take(job hashJob) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || job.info.Size() > maxHashSize || len(h.queue) >= maxHashQueue {
		return false
	}
	h.queue = append(h.queue, job)
	select {
	case h.wake <- struct{}{}:
	default:
	}
	return true
}

func (h *hasher) run() {
	defer close(h.ended)
	for {
		select {
		case <-h.quit:
			return
		case <-h.wake:
		}
		for h.next() {
		}
	}
}

// next hashes one file, and reports whether there was one.
func (h *hasher) next() bool {
	h.mu.Lock()
	if h.closed || len(h.queue) == 0 {
		h.mu.Unlock()
		return false
	}
	job := h.queue[0]
	h.queue, h.current = h.queue[1:], &job
	h.mu.Unlock()

	sum := job.hash(h.quit)

	h.mu.Lock()
	mine := !h.closed
	h.current = nil
	h.mu.Unlock()
	if mine {
		job.event.SHA256 = sum
		if err := h.log.File(job.event); err != nil {
			h.broken(err)
		}
	}
	return mine
}

// hash returns the hash of the file in hex; "" if it is not what was closed, or quit
// was closed meanwhile.
func (j hashJob) hash(quit <-chan struct{}) string {
	f, err := j.root.OpenFile(j.name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.CopyBuffer(sum, struct{ io.Reader }{untilQuit{f, quit}}, make([]byte, 1<<20))
	after, statErr := f.Stat()
	if errors.Join(err, statErr) != nil || n != j.info.Size() || !os.SameFile(after, j.info) ||
		after.Size() != n || !after.ModTime().Equal(j.info.ModTime()) {
		return ""
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// untilQuit reads r until quit is closed.
type untilQuit struct {
	r    io.Reader
	quit <-chan struct{}
}

var errQuit = errors.New("told to end")

func (u untilQuit) Read(p []byte) (int, error) {
	select {
	case <-u.quit:
		return 0, errQuit
	default:
		return u.r.Read(p)
	}
}

// hasherEnds is how long the end of hashing is waited for. It is longer only where
// a disk hangs.
const hasherEnds = 50 * time.Millisecond

// close ends the work. What was taken over is recorded without a hash. It may be
// called more than once.
func (h *hasher) close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	rest := h.queue
	if h.current != nil {
		rest = append([]hashJob{*h.current}, rest...)
	}
	h.queue = nil
	h.mu.Unlock()
	close(h.quit)
	select {
	case <-h.ended:
	case <-time.After(hasherEnds):
	}
	for _, job := range rest {
		if err := h.log.File(job.event); err != nil {
			return err
		}
	}
	return nil
}
