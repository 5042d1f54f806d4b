// Package gather sends what is written to a connection in few large pieces.
//
//   - It lies below TLS, which makes a system call of every record of 16 KiB: a
//     stream of megabytes costs a third more processor time that way, most of it for
//     waking up the other end.
//   - Nothing waits to become more: what is written leaves at once unless the piece
//     before is still leaving, and everything that came meanwhile follows as one.
//   - What waits is bounded; then writing waits as it does for a connection that is
//     full. How long a piece may take to leave is said once: deadlines come too early
//     for what waits, as TLS sets one that is over when it has written its last.
//   - Until [Conn.Gather] nothing is gathered, and no goroutine runs.
package gather

import (
	"errors"
	"net"
	"slices"
	"sync"
	"time"
)

// maxWaiting is how much may wait before writing does, in bytes; one write more
// than that may. A piece has up to maxPiece: there is room again as each leaves.
const (
	maxWaiting = 256 << 10
	maxPiece   = 64 << 10
)

// linger is how long Close lets what waits leave.
const linger = 250 * time.Millisecond

// Conn is a connection that gathers what is written to it. An error of sending is
// that of every write after it, and ends reading, too.
type Conn struct {
	net.Conn
	timeout time.Duration

	mu      sync.Mutex // guards what follows
	changed *sync.Cond
	sent    chan struct{} // closed when nothing will be sent any more; nil until Gather
	waiting []byte
	leaving int // bytes that are being sent
	closing bool
	err     error
}

// New returns conn, which does not gather yet. Once it does, a piece may take
// timeout to leave.
func New(conn net.Conn, timeout time.Duration) *Conn {
	c := &Conn{Conn: conn, timeout: timeout}
	c.changed = sync.NewCond(&c.mu)
	return c
}

// Gather begins to gather, until Close. It is called once, at any time if writes
// take turns, as those of TLS do.
func (c *Conn) Gather() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return
	}
	c.sent = make(chan struct{})
	go c.send()
}

func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	if c.sent == nil {
		c.mu.Unlock()
		return c.Conn.Write(p)
	}
	defer c.mu.Unlock()
	for len(c.waiting)+c.leaving >= maxWaiting && !c.closing && c.err == nil {
		c.changed.Wait()
	}
	switch {
	case c.err != nil:
		return 0, c.err
	case c.closing:
		return 0, net.ErrClosed
	}
	c.waiting = append(c.waiting, p...)
	c.changed.Broadcast()
	return len(p), nil
}

// send sends what waits, until the connection closes or fails.
func (c *Conn) send() {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(c.sent)
	var taken []byte
	for {
		for len(c.waiting) == 0 && !c.closing {
			c.changed.Wait()
		}
		if len(c.waiting) == 0 {
			return
		}
		taken, c.waiting = c.waiting, taken[:0]
		c.leaving = len(taken)
		for piece := range slices.Chunk(taken, maxPiece) {
			if c.err = c.sendLocked(piece); c.err != nil {
				c.waiting = nil
				c.Conn.Close()
				return
			}
		}
	}
}

// sendLocked sends a piece, without the lock.
func (c *Conn) sendLocked(piece []byte) error {
	c.mu.Unlock()
	err := c.Conn.SetWriteDeadline(time.Now().Add(c.timeout))
	if err == nil {
		_, err = c.Conn.Write(piece)
	}
	c.mu.Lock()
	c.leaving -= len(piece)
	c.changed.Broadcast()
	return err
}

func (c *Conn) gathers() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent != nil
}

// SetWriteDeadline sets the deadline of writes that are not gathered.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.gathers() {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline sets the deadline of reads, and of writes that are not gathered.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// Close closes the connection. What waits still leaves if the other end takes it
// soon.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.closing = true
	sent := c.sent
	c.changed.Broadcast()
	c.mu.Unlock()
	if sent == nil {
		return c.Conn.Close()
	}
	late := time.NewTimer(linger)
	defer late.Stop()
	select {
	case <-sent:
	case <-late.C:
	}
	err := c.Conn.Close()
	<-sent
	return err
}
