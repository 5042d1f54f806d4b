package tunnel

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"
)

// The parts of a yamux frame header that frameConn reads; see yamux's spec.md.
const (
	headerSize = 12
	typeData   = 0
	typePing   = 2
	flagRST    = 8
)

// What a peer may send. Honest ends never ping, and reset next to nothing.
const (
	maxPings       = 64     // over a connection's life: a ping costs a goroutine that waits to answer
	maxResets      = 1024   // over a connection's life: a reset leaks an entry of yamux's in-flight table
	smallFrame     = 256    // bytes; a smaller frame costs more to handle than to send
	maxSmallFrames = 50_000 // per second; requests back to back make about 15,000
	poolFrame      = 16<<10 - headerSize
)

// frameConn is the connection below a yamux session. It looks at every frame
// that comes in and breaks the connection when the peer floods. What goes out
// has a deadline, and a frame's header and body leave in one write.
type frameConn struct {
	net.Conn
	timeout  time.Duration // of a write, and of a pause within a frame
	maxFrame uint32        // bytes of a frame's body

	// Read side, used by yamux's receiving goroutine only.
	header [headerSize]byte
	have   int    // bytes of header
	body   uint32 // bytes of the current frame still to come
	timed  bool   // a read deadline is set, because a frame has begun
	pings  int
	resets int
	small  int       // small frames since second
	second time.Time // when counting them began

	// Write side, used by yamux's sending goroutine only.
	held    [headerSize]byte // the header of a data frame, until its body comes
	holding bool
}

// Read returns an error that wraps [ErrFlood] instead of what breaks the rules.
// It waits for a frame forever, but not for the rest of one: meanwhile yamux
// holds a lock of the stream that the frame is for.
func (c *frameConn) Read(p []byte) (int, error) {
	if err := c.armRead(); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if flood := c.inspect(p[:n]); flood != nil {
		return 0, flood
	}
	return n, err
}

func (c *frameConn) armRead() error {
	inFrame := c.have > 0 || c.body > 0
	if !inFrame && !c.timed {
		return nil
	}
	c.timed = inFrame
	if !inFrame {
		return c.Conn.SetReadDeadline(time.Time{})
	}
	return c.Conn.SetReadDeadline(time.Now().Add(c.timeout))
}

func (c *frameConn) inspect(p []byte) error {
	for len(p) > 0 {
		if c.body > 0 {
			n := min(uint32(len(p)), c.body)
			c.body -= n
			p = p[n:]
			continue
		}
		n := copy(c.header[c.have:], p)
		c.have += n
		p = p[n:]
		if c.have == headerSize {
			c.have = 0
			if err := c.count(c.header[:]); err != nil {
				return err
			}
		}
	}
	return nil
}

// count takes note of a frame by its header.
func (c *frameConn) count(h []byte) error {
	kind, flags, length := h[1], binary.BigEndian.Uint16(h[2:]), binary.BigEndian.Uint32(h[8:])
	if kind == typeData {
		c.body = length
	}
	if c.body > c.maxFrame {
		return fmt.Errorf("%w: a frame of %d bytes, more than the window of %d", ErrFlood, c.body, c.maxFrame)
	}
	if kind == typePing {
		if c.pings++; c.pings > maxPings {
			return fmt.Errorf("%w: more than %d pings", ErrFlood, maxPings)
		}
	}
	if flags&flagRST != 0 && kind != typePing {
		if c.resets++; c.resets > maxResets {
			return fmt.Errorf("%w: more than %d stream resets", ErrFlood, maxResets)
		}
	}
	if c.body < smallFrame {
		return c.countSmall()
	}
	return nil
}

func (c *frameConn) countSmall() error {
	if c.small == 0 {
		c.second = time.Now()
	}
	if c.small++; c.small < maxSmallFrames {
		return nil
	}
	if took := time.Since(c.second); took < time.Second {
		return fmt.Errorf("%w: %d frames of less than %d bytes in %v", ErrFlood, c.small, smallFrame, took)
	}
	c.small = 0
	return nil
}

// frameBuffers hold a frame with its header while it is written, so that an idle
// connection holds none.
var frameBuffers = sync.Pool{New: func() any { b := make([]byte, 0, headerSize+poolFrame); return &b }}

// Write is called by yamux with a header, then with the body if there is one.
func (c *frameConn) Write(p []byte) (int, error) {
	if !c.holding && len(p) == headerSize && p[1] == typeData && binary.BigEndian.Uint32(p[8:]) > 0 {
		copy(c.held[:], p)
		c.holding = true
		return len(p), nil
	}
	if err := c.Conn.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	if !c.holding {
		return c.Conn.Write(p)
	}
	c.holding = false
	buf := frameBuffers.Get().(*[]byte)
	defer frameBuffers.Put(buf)
	frame := append(append((*buf)[:0], c.held[:]...), p...)
	n, err := c.Conn.Write(frame)
	clear(frame)
	return max(0, n-headerSize), err
}

// Close breaks the connection at once. TLS would first try for seconds to say
// goodbye to a peer that does not listen.
func (c *frameConn) Close() error {
	if t, ok := c.Conn.(interface{ NetConn() net.Conn }); ok {
		return t.NetConn().Close()
	}
	return c.Conn.Close()
}
