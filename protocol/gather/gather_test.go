package gather

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// gated is a connection whose writes wait for the gate, and are counted.
type gated struct {
	net.Conn
	gate   sync.Mutex
	writes atomic.Int64
}

func (g *gated) Write(p []byte) (int, error) {
	g.writes.Add(1)
	g.gate.Lock()
	defer g.gate.Unlock()
	return g.Conn.Write(p)
}

// pair returns a gathering connection over TCP, what it writes to, and its peer.
func pair(t *testing.T, timeout time.Duration) (*Conn, *gated, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	below := &gated{Conn: near}
	c := New(below, timeout)
	t.Cleanup(func() {
		far.Close()
		c.Close()
	})
	return c, below, far.(*net.TCPConn)
}

func TestWhatComesMeanwhileLeavesAsOne(t *testing.T) {
	c, below, far := pair(t, time.Minute)
	var want []byte
	write := func(text string) {
		want = append(want, text...)
		p := []byte(text)
		if n, err := c.Write(p); n != len(p) || err != nil {
			t.Fatalf("Write: %d, %v", n, err)
		}
		clear(p) // it is the caller's again
	}
	write("as it is, ")
	if got := below.writes.Load(); got != 1 {
		t.Fatalf("before Gather a write made %d", got)
	}
	c.Gather()
	below.gate.Lock()
	for i := range 1000 {
		write(fmt.Sprintf("%d ", i))
	}
	below.gate.Unlock()
	if err := c.Close(); err != nil { // what waits still leaves
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(far); !bytes.Equal(got, want) {
		t.Errorf("what arrived is not what was written: %q", got)
	}
	if n := below.writes.Load(); n > 3 {
		t.Errorf("it left in %d pieces", n)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
}

func TestMegabytesArriveInOrder(t *testing.T) {
	c, _, far := pair(t, time.Minute)
	c.Gather()
	want := make([]byte, 8<<20)
	for i := range want {
		want[i] = byte(i * i >> 8)
	}
	go func() {
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 1+rand.IntN(40<<10))
			c.Write(rest[:n])
			rest = rest[n:]
		}
		c.Close()
	}()
	if got, err := io.ReadAll(far); !bytes.Equal(got, want) {
		t.Errorf("what arrived is not what was written: %d bytes, %v", len(got), err)
	}
}

func TestAWriteAloneLeavesAtOnce(t *testing.T) {
	c, _, far := pair(t, time.Minute)
	c.Gather()
	for range 3 {
		if _, err := c.Write([]byte("key")); err != nil {
			t.Fatal(err)
		}
		far.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadFull(far, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
	}
}

// fill writes until the peer, which does not read, has the writer wait; it
// returns what the last write returned.
func fill(c *Conn) <-chan error {
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := c.Write(make([]byte, 16<<10)); err != nil {
				ended <- err
				return
			}
		}
	}()
	return ended
}

func TestAPeerThatDoesNotReadCostsNoMoreThanTheBound(t *testing.T) {
	c, _, _ := pair(t, time.Minute)
	c.Gather()
	ended := fill(c)
	select {
	case err := <-ended:
		t.Fatal(err)
	case <-time.After(300 * time.Millisecond):
	}
	c.mu.Lock()
	waiting := len(c.waiting) + c.leaving
	c.mu.Unlock()
	if waiting < maxWaiting || waiting > maxWaiting+16<<10 {
		t.Errorf("%d bytes wait", waiting)
	}
	began := time.Now()
	c.Close()
	if took := time.Since(began); took > 10*linger {
		t.Errorf("Close took %v", took)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the write that waited: %v", err)
	}
}

func TestAPieceThatDoesNotLeaveEndsTheWriteThatWaits(t *testing.T) {
	c, _, _ := pair(t, 200*time.Millisecond)
	c.Gather()
	if err := <-fill(c); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the write that waited: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read after sending had failed: %v", err)
	}
	began := time.Now()
	c.Close()
	if took := time.Since(began); took > linger {
		t.Errorf("Close took %v after sending had failed", took)
	}
}

// TLS says goodbye like that.
func TestADeadlineThatIsOverHoldsNothingBack(t *testing.T) {
	c, below, far := pair(t, time.Minute)
	c.Gather()
	below.gate.Lock()
	if _, err := c.Write([]byte("goodbye")); err != nil {
		t.Fatal(err)
	}
	if err := c.SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	below.gate.Unlock()
	far.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(far, make([]byte, 7)); err != nil {
		t.Error(err)
	}
	c.SetDeadline(time.Unix(1, 0))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read after its deadline: %v", err)
	}
}

func TestGatherAfterCloseDoesNothing(t *testing.T) {
	c, _, _ := pair(t, time.Minute)
	c.Close()
	c.Gather()
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("a closed connection takes a write")
	}
}
