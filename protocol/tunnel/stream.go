package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
)

// stream is a yamux stream with the semantics of [net.Conn]: Close ends pending
// reads and writes, a deadline in the past fails at once, and deadline errors
// are [os.ErrDeadlineExceeded]. Without a deadline of the caller's a write may
// wait for StallTimeout, and a read until nothing moved for StreamIdle.
type stream struct {
	y       *yamux.Stream
	session *session
	slot    <-chan struct{} // emptied by one on Close

	writing sync.Mutex // held while a write is cut into frames

	mu            sync.Mutex
	readDeadline  time.Time     // guarded by mu; zero for none
	writeDeadline time.Time     // guarded by mu; zero for none
	moved         time.Time     // guarded by mu; when bytes last went either way
	stall         time.Duration // guarded by mu; how long a write without deadline may wait
	closed        bool          // guarded by mu
}

func (s *session) newStream(y *yamux.Stream, slot <-chan struct{}) *stream {
	s.count(1)
	return &stream{y: y, session: s, slot: slot, moved: time.Now(), stall: s.limits.StallTimeout}
}

var past = time.Unix(1, 0)

func (t *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if err := t.armRead(); err != nil {
			return 0, err
		}
		n, err := t.y.Read(p)
		if n > 0 {
			t.touch()
			if err != nil { // the window could not be announced
				t.session.fail(err)
			}
			return n, nil
		}
		if err = t.translate(err); !errors.Is(err, os.ErrDeadlineExceeded) || !t.mayWait() {
			return 0, err
		}
	}
}

// armRead sets the deadline of the next read.
func (t *stream) armRead() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return net.ErrClosed
	case !t.readDeadline.IsZero() && !time.Now().Before(t.readDeadline):
		return os.ErrDeadlineExceeded
	case t.readDeadline.IsZero():
		return t.y.SetReadDeadline(t.moved.Add(t.session.limits.StreamIdle))
	}
	return nil
}

// mayWait reports whether a read that timed out may go on: its deadline was
// moved meanwhile, or there is none and bytes went the other way.
func (t *stream) mayWait() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.readDeadline.IsZero() {
		return time.Since(t.moved) < t.session.limits.StreamIdle
	}
	return time.Now().Before(t.readDeadline)
}

// upgrade makes the stream one of bytes, whose reader may pause: a person holds
// the output of a terminal.
func (t *stream) upgrade() {
	t.mu.Lock()
	t.stall = t.session.limits.StreamIdle
	t.mu.Unlock()
}

func (t *stream) touch() {
	t.mu.Lock()
	t.moved = time.Now()
	t.mu.Unlock()
}

func (t *stream) Write(p []byte) (n int, err error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	for n < len(p) {
		if err := t.armWrite(); err != nil {
			return n, err
		}
		m, err := t.y.Write(p[n:min(len(p), n+t.session.class.chunk)])
		n += m
		if err != nil {
			return n, t.translate(err)
		}
		t.touch()
	}
	return n, nil
}

// armWrite sets the deadline of the next frame.
func (t *stream) armWrite() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return net.ErrClosed
	case !t.writeDeadline.IsZero() && !time.Now().Before(t.writeDeadline):
		return os.ErrDeadlineExceeded
	case t.writeDeadline.IsZero():
		return t.y.SetWriteDeadline(time.Now().Add(t.stall))
	}
	return nil
}

// translate turns an error of yamux into one of package net, and ends the
// session if it is now unclear which frames the peer got.
func (t *stream) translate(err error) error {
	t.mu.Lock()
	closed := t.closed
	t.mu.Unlock()
	switch {
	case err == nil:
		return nil
	case closed:
		return net.ErrClosed
	case err == yamux.ErrTimeout:
		return os.ErrDeadlineExceeded
	case err == yamux.ErrConnectionReset:
		return fmt.Errorf("stream reset by the peer: %w", syscall.ECONNRESET)
	}
	if reason := t.session.reason(); reason != nil { // yamux reports io.EOF then, as if the peer had finished
		return fmt.Errorf("the tunnel ended: %w", reason)
	}
	switch err {
	case io.EOF:
		return io.EOF
	case yamux.ErrConnectionWriteTimeout:
		err = errSlow // the frame is still queued
	}
	return fmt.Errorf("the tunnel ended: %w", t.session.fail(err))
}

func (t *stream) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	t.y.SetReadDeadline(past) // yamux would go on waiting for the peer
	t.mu.Unlock()
	err := t.y.Close()
	<-t.slot
	t.session.count(-1)
	return err
}

func (t *stream) LocalAddr() net.Addr  { return t.y.LocalAddr() }
func (t *stream) RemoteAddr() net.Addr { return t.y.RemoteAddr() }

func (t *stream) SetDeadline(d time.Time) error {
	return errors.Join(t.SetReadDeadline(d), t.SetWriteDeadline(d))
}

func (t *stream) SetReadDeadline(d time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return net.ErrClosed
	}
	t.readDeadline = d
	if d.IsZero() {
		d = t.moved.Add(t.session.limits.StreamIdle)
	}
	return t.y.SetReadDeadline(d)
}

func (t *stream) SetWriteDeadline(d time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return net.ErrClosed
	}
	t.writeDeadline = d
	if d.IsZero() {
		d = time.Now().Add(t.stall)
	}
	return t.y.SetWriteDeadline(d)
}
