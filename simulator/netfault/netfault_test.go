package netfault

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is a proxy in front of a server that sends back what it gets.
func echo(t *testing.T) *Proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() { defer c.Close(); io.Copy(c, c) })
		}
	})
	all.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); ln.Close(); all.Wait() })
	return p
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// answers reports whether what is said comes back soon.
func answers(t *testing.T, c net.Conn, text string) error {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	buf := make([]byte, len(text))
	if _, err := io.ReadFull(c, buf); err != nil {
		return err
	}
	if string(buf) != text {
		t.Errorf("%q came back as %q", text, buf)
	}
	return nil
}

func TestFaults(t *testing.T) {
	silent := func(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
	closed := func(err error) bool { return err != nil && !silent(err) }
	for _, test := range []struct {
		name   string
		fault  func(*Proxy)
		want   func(error) bool // of a connection that was there before
		later  func(error) bool // of one that comes while the fault lasts
		healed func(error) bool // of the first, after it was healed
	}{
		{"cut", (*Proxy).Cut, closed, closed, closed},
		{"black hole", (*Proxy).Blackhole, silent, silent, closed},
		{"cut one", func(p *Proxy) { p.Conns()[0].Cut() }, closed, func(err error) bool { return err == nil }, closed},
		{"black hole one", func(p *Proxy) { p.Conns()[0].Blackhole() }, silent, func(err error) bool { return err == nil }, closed},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := echo(t)
			c := dial(t, p)
			if err := answers(t, c, "before"); err != nil {
				t.Fatal(err)
			}
			test.fault(p)
			if err := answers(t, c, "meanwhile"); !test.want(err) {
				t.Errorf("a connection under the fault: %v", err)
			}
			if err := answers(t, dial(t, p), "later"); !test.later(err) {
				t.Errorf("a new connection under the fault: %v", err)
			}
			p.Heal()
			if err := answers(t, c, "after"); !test.healed(err) {
				t.Errorf("the connection after the fault: %v", err)
			}
			if err := answers(t, dial(t, p), "new"); err != nil {
				t.Errorf("a new connection after the fault: %v", err)
			}
		})
	}
}

func TestHoldDeliversInOrder(t *testing.T) {
	p := echo(t)
	c := dial(t, p)
	if err := answers(t, c, "before"); err != nil {
		t.Fatal(err)
	}
	p.Conns()[0].Hold()
	if err := answers(t, c, "one "); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("held: %v", err)
	}
	io.WriteString(c, "two")
	p.Conns()[0].Release()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 7)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "one two" {
		t.Fatalf("%q, %v", buf, err)
	}
}

func TestDelay(t *testing.T) {
	p := echo(t)
	c := dial(t, p)
	p.Delay(60 * time.Millisecond)
	began := time.Now()
	if err := answers(t, c, "slowly"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 120*time.Millisecond {
		t.Errorf("there and back took %s", took)
	}
}

func TestAfterIsExact(t *testing.T) {
	p := echo(t)
	c := dial(t, p)
	fired := make(chan int64, 1)
	p.After(In, 5, func() { fired <- p.Passed(In); p.Cut() })
	io.WriteString(c, "0123456789")
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	got, _ := io.ReadAll(c)
	if string(got) != "01234" {
		t.Errorf("%q came through, want the first five bytes", got)
	}
	if n := <-fired; n != 5 {
		t.Errorf("it ran after %d bytes", n)
	}
}
