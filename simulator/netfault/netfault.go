// Package netfault is a network that fails on command: a TCP proxy on loopback
// that cuts, black-holes, holds or delays what passes between two programs.
//
// Its rules:
//
//   - Nothing is changed in what passes: bytes arrive as they were sent and in
//     order, late, or not at all.
//   - A fault holds for all connections of a [Proxy], also those that come
//     later, until [Proxy.Heal]; [Conn] does the same to one of them.
//   - A fault can be set to the byte: [Proxy.After] runs a function between two
//     bytes, so that a test can break every step of an exchange in turn.
package netfault

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// dialTimeout bounds the connection to the target.
const dialTimeout = 5 * time.Second

// Direction is a direction of bytes.
type Direction int

// The directions, as the one who dialled sees them.
const (
	Out Direction = iota // from the client to the target
	In                   // from the target to the client
)

// fault is what happens to a connection.
type fault struct {
	cut   bool          // it is closed, and so are new ones
	hole  bool          // nothing arrives any more, and nobody is told
	hold  bool          // what comes waits until it is released
	delay time.Duration // of every piece
}

func (f fault) and(g fault) fault {
	return fault{f.cut || g.cut, f.hole || g.hole, f.hold || g.hold, max(f.delay, g.delay)}
}

// trigger is a function that runs after so many more bytes.
type trigger struct {
	dir  Direction
	left int64
	run  func()
}

// Proxy is one faulty way to one target. Its methods may be called concurrently,
// also by the function that [Proxy.After] runs.
type Proxy struct {
	ln     net.Listener
	target string

	mu      sync.Mutex // guards what follows
	fault   fault
	conns   map[*Conn]bool
	passed  [2]int64
	trigger *trigger
	changed chan struct{} // closed and replaced when a fault changes
}

// New takes a port of 127.0.0.1 that leads to target, host:port. Nothing passes
// until [Proxy.Run], which must be called, for it also closes the port.
func New(target string) (*Proxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &Proxy{ln: ln, target: target, conns: make(map[*Conn]bool), changed: make(chan struct{})}, nil
}

// Addr is the address to dial instead of the target's, host:port.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// Run passes connections on until ctx ends. Everything it started has ended when
// it returns.
func (p *Proxy) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		p.ln.Close()
		p.Cut()
	})
	defer stop()
	var all sync.WaitGroup
	defer all.Wait()
	for {
		client, err := p.ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		all.Go(func() { p.serve(ctx, client) })
	}
}

// Cut closes all connections and every new one at once, until [Proxy.Heal].
func (p *Proxy) Cut() { p.set(func(f *fault) { f.cut = true }) }

// Blackhole swallows everything from now on: connections stay up and nothing
// arrives, until [Proxy.Heal], which ends the connections that lost bytes.
func (p *Proxy) Blackhole() { p.set(func(f *fault) { f.hole = true }) }

// Delay keeps every piece that passes for d, until [Proxy.Heal].
func (p *Proxy) Delay(d time.Duration) { p.set(func(f *fault) { f.delay = d }) }

// Heal ends all faults of the proxy. Faults of single connections stay.
func (p *Proxy) Heal() {
	p.set(func(f *fault) { *f = fault{} })
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if c.lost {
			c.close()
		}
	}
}

// After runs f, once, as soon as n more bytes have passed in a direction, and
// lets no further byte pass before f has returned. A later call replaces it.
func (p *Proxy) After(dir Direction, n int64, f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trigger = &trigger{dir, n, f}
}

// Passed returns how many bytes have passed in a direction, ever.
func (p *Proxy) Passed(dir Direction) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.passed[dir]
}

// Conns returns the connections there are.
func (p *Proxy) Conns() []*Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]*Conn, 0, len(p.conns))
	for c := range p.conns {
		list = append(list, c)
	}
	return list
}

func (p *Proxy) set(change func(*fault)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.fault)
	p.changedLocked()
}

// changedLocked wakes what waits, and closes what is cut.
func (p *Proxy) changedLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
	for c := range p.conns {
		if p.fault.cut || c.fault.cut {
			c.close()
		}
	}
}

// Conn is one connection through a proxy.
type Conn struct {
	p              *Proxy
	client, target net.Conn

	fault fault // guarded by p.mu
	lost  bool  // some bytes were swallowed; guarded by p.mu
}

// Cut closes the connection.
func (c *Conn) Cut() { c.set(func(f *fault) { f.cut = true }) }

// Blackhole swallows everything from now on.
func (c *Conn) Blackhole() { c.set(func(f *fault) { f.hole = true }) }

// Hold keeps everything that comes until [Conn.Release].
func (c *Conn) Hold() { c.set(func(f *fault) { f.hold = true }) }

// Release delivers what was held.
func (c *Conn) Release() { c.set(func(f *fault) { f.hold = false }) }

func (c *Conn) set(change func(*fault)) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	change(&c.fault)
	c.p.changedLocked()
}

func (c *Conn) close() {
	c.client.Close()
	c.target.Close()
}

// serve passes one connection on.
func (p *Proxy) serve(ctx context.Context, client net.Conn) {
	defer client.Close()
	dialer := net.Dialer{Timeout: dialTimeout}
	target, err := dialer.DialContext(ctx, "tcp", p.target)
	if err != nil {
		return
	}
	defer target.Close()
	c := &Conn{p: p, client: client, target: target}
	if !p.add(ctx, c) {
		return
	}
	defer p.remove(c)
	var both sync.WaitGroup
	both.Go(func() { c.pipe(ctx, Out, target, client) })
	both.Go(func() { c.pipe(ctx, In, client, target) })
	both.Wait()
}

func (p *Proxy) add(ctx context.Context, c *Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault.cut || ctx.Err() != nil {
		return false
	}
	p.conns[c] = true
	return true
}

func (p *Proxy) remove(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// pipe passes one direction on until it ends, and ends the other with it: the
// programs here close whole connections.
func (c *Conn) pipe(ctx context.Context, dir Direction, to io.Writer, from io.Reader) {
	defer c.close()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		for rest := buf[:n]; len(rest) > 0; {
			passed, passErr := c.pass(ctx, dir, to, rest)
			if passErr != nil {
				return
			}
			rest = rest[passed:]
		}
		if err != nil {
			return
		}
	}
}

var errCut = errors.New("netfault: the connection was cut")

// pass passes some bytes on, after the faults that hold now, and runs the
// trigger if that comes to it. It returns how many were dealt with.
func (c *Conn) pass(ctx context.Context, dir Direction, to io.Writer, data []byte) (int, error) {
	if err := c.await(ctx); err != nil {
		return 0, err
	}
	n, swallow, due := c.p.count(c, dir, int64(len(data)))
	if !swallow && n > 0 {
		if _, err := to.Write(data[:n]); err != nil {
			return 0, err
		}
	}
	if due != nil {
		due()
	}
	return int(n), nil
}

// await waits while the connection is held or delayed.
func (c *Conn) await(ctx context.Context) error {
	for late := false; ; {
		c.p.mu.Lock()
		f, changed := c.p.fault.and(c.fault), c.p.changed
		c.p.mu.Unlock()
		var delayed <-chan time.Time
		switch {
		case f.cut:
			return errCut
		case f.hold:
		case f.delay > 0 && !late:
			delayed = time.After(f.delay)
		default:
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-delayed:
			late = true
		case <-changed:
		}
	}
}

// count counts up to n bytes: fewer if the trigger stands before their end. due
// is the trigger's function when it is reached.
func (p *Proxy) count(c *Conn, dir Direction, n int64) (pass int64, swallow bool, due func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault.hole || c.fault.hole {
		c.lost = true
		return n, true, nil
	}
	if t := p.trigger; t != nil && t.dir == dir {
		if t.left <= n {
			n, due, p.trigger = t.left, t.run, nil
		} else {
			t.left -= n
		}
	}
	p.passed[dir] += n
	return n, false, due
}
