package tunnel

import (
	"container/list"
	"net"
	"sync"
)

// gatedConn is a connection during its handshake. It holds a slot of gate while
// the handshake computes, and none while it waits for the other end, so that
// slow peers do not keep others from computing and many at once do not keep
// established sessions from running.
type gatedConn struct {
	net.Conn
	gate    chan struct{} // nil once the handshake is over
	waiting *waitlist
}

// enter takes the slot for the first part of the handshake.
func (c *gatedConn) enter() { c.gate <- struct{}{} }

// leave gives the slot back for good.
func (c *gatedConn) leave() {
	<-c.gate
	c.gate = nil
}

func (c *gatedConn) Read(p []byte) (int, error) {
	if c.gate == nil {
		return c.Conn.Read(p)
	}
	<-c.gate
	defer func() { c.gate <- struct{}{} }()
	defer c.waiting.add(c.Conn)()
	return c.Conn.Read(p)
}

func (c *gatedConn) Write(p []byte) (int, error) {
	if c.gate == nil {
		return c.Conn.Write(p)
	}
	<-c.gate
	defer func() { c.gate <- struct{}{} }()
	return c.Conn.Write(p)
}

// waitlist bounds the connections whose handshake waits for the other end. When
// it is full the one that waited longest goes: an honest peer answers at once,
// and however many of them come they wait for a slot of the gate, not here.
type waitlist struct {
	max   int
	mu    sync.Mutex
	conns list.List // of net.Conn, longest first; guarded by mu
}

// add puts conn on the list until the returned function is called.
func (w *waitlist) add(conn net.Conn) (remove func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conns.Len() >= w.max {
		w.conns.Remove(w.conns.Front()).(net.Conn).Close()
	}
	e := w.conns.PushBack(conn)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.conns.Remove(e)
	}
}
