package audit_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// syslogServer takes messages framed as RFC 6587 and RFC 5425 say.
type syslogServer struct {
	listener net.Listener

	mu    sync.Mutex
	got   []string
	conns map[net.Conn]bool
	err   error
}

func serveSyslog(t *testing.T, listener net.Listener, serve func(*syslogServer, net.Conn) error) *syslogServer {
	t.Helper()
	s := &syslogServer{listener: listener, conns: map[net.Conn]bool{}}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[conn] = true
			s.mu.Unlock()
			running.Go(func() {
				defer conn.Close()
				if err := serve(s, conn); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
					s.mu.Lock()
					s.err = err
					s.mu.Unlock()
				}
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		s.hangUp()
		running.Wait()
	})
	return s
}

func (s *syslogServer) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		conn.Close()
	}
}

// read is a server that behaves.
func (s *syslogServer) read(conn net.Conn) error {
	for in := bufio.NewReader(conn); ; {
		var size int
		if _, err := fmt.Fscanf(in, "%d ", &size); err != nil {
			return err
		}
		message := make([]byte, size)
		if _, err := io.ReadFull(in, message); err != nil {
			return err
		}
		s.mu.Lock()
		s.got = append(s.got, string(message))
		s.mu.Unlock()
	}
}

func (s *syslogServer) messages() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.got...)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// forward runs a log with sinks until the test or the returned function ends it.
func forward(t *testing.T, s *store.Store, sinks ...audit.Sink) (*audit.Service, func()) {
	t.Helper()
	a, err := audit.New(t.Context(), audit.Config{Store: s, Key: key(1), Now: func() time.Time { return now }, Sinks: sinks, Host: "lockbox.example"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx) }()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return a, stop
}

func record(t *testing.T, a *audit.Service, n int) {
	t.Helper()
	if _, err := a.RecordIntent(t.Context(), intent(n)); err != nil {
		t.Fatal(err)
	}
}

func sinkOf(t *testing.T, a *audit.Service) *lockboxv1.Sink {
	t.Helper()
	out, err := a.ListSinks(t.Context(), auditor, nil)
	if err != nil || len(out.Sinks) != 1 {
		t.Fatal(out, err)
	}
	return out.Sinks[0]
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

func TestForward(t *testing.T) {
	pki := httptest.NewUnstartedServer(nil)
	pki.StartTLS()
	defer pki.Close()
	roots := x509.NewCertPool()
	roots.AddCert(pki.Certificate())
	for name, secure := range map[string]bool{"tcp": false, "tls": true} {
		t.Run(name, func(t *testing.T) {
			listener := listen(t)
			sink := audit.Sink{Name: "siem", Address: listener.Addr().String(), Format: auditlog.FormatCEF}
			if secure {
				listener = tls.NewListener(listener, &tls.Config{Certificates: pki.TLS.Certificates})
				sink.TLS = &tls.Config{RootCAs: roots, ServerName: "example.com"}
			}
			server := serveSyslog(t, listener, (*syslogServer).read)
			s := storetest.New(t)
			a, stop := forward(t, s, sink)
			for n := range 300 { // more than a batch
				record(t, a, n)
			}
			eventually(t, "not everything arrived", func() bool { return sinkOf(t, a).Behind == 0 })
			checkMessages(t, server.messages(), 300)

			// Cut in the middle, and across a restart: each arrives, in order.
			server.hangUp()
			record(t, a, 300)
			eventually(t, "nothing arrived after a cut", func() bool { return sinkOf(t, a).Behind == 0 })
			stop()
			record(t, a, 301)
			a, _ = forward(t, s, sink)
			eventually(t, "nothing arrived after a restart", func() bool { return sinkOf(t, a).Behind == 0 })
			checkMessages(t, server.messages(), 302)
		})
	}
}

// checkMessages wants the first n records in order; some may come twice.
func checkMessages(t *testing.T, got []string, n int) {
	t.Helper()
	next := 0
	for _, m := range got {
		if strings.Contains(m, fmt.Sprintf(` index="%d" `, next)) {
			if !strings.HasPrefix(m, "<110>1 2026-11-01T12:00:00.000Z lockbox.example lockboxd - UnlockDataboxIntent [record@") ||
				!strings.Contains(m, "] CEF:0|") {
				t.Fatalf("not as it should be: %s", m)
			}
			next++
		}
	}
	if next != n {
		t.Errorf("record %d did not arrive in order, of %d messages", next, len(got))
	}
}

func TestForwardUntrusted(t *testing.T) {
	pki := httptest.NewUnstartedServer(nil)
	pki.StartTLS()
	defer pki.Close()
	listener := listen(t)
	server := serveSyslog(t, tls.NewListener(listener, &tls.Config{Certificates: pki.TLS.Certificates}), (*syslogServer).read)
	a, _ := forward(t, storetest.New(t), audit.Sink{Name: "siem", Address: listener.Addr().String(), Format: auditlog.FormatJSON,
		TLS: &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "example.com"}})
	record(t, a, 0)
	eventually(t, "nobody complains", func() bool { return strings.Contains(sinkOf(t, a).LastError, "unknown authority") })
	if got := server.messages(); len(got) != 0 {
		t.Errorf("an untrusted server got %d records", len(got))
	}
}

// TestStuckSink has a server that never reads: the log does not care, and says
// how far behind it is.
func TestStuckSink(t *testing.T) {
	listener := listen(t)
	hang := make(chan struct{})
	serveSyslog(t, listener, func(*syslogServer, net.Conn) error { <-hang; return nil })
	t.Cleanup(func() { close(hang) })
	a, stop := forward(t, storetest.New(t), audit.Sink{Name: "siem", Address: listener.Addr().String(), Format: auditlog.FormatOCSF})
	big := strings.Repeat("x", 10_000)
	for n := range 400 { // more than the socket buffers hold
		rec := intent(n)
		rec.Properties = map[string]string{"big": big}
		begin := time.Now()
		if _, err := a.RecordIntent(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 3*time.Second {
			t.Fatalf("a record took %v", took)
		}
	}
	if behind := sinkOf(t, a).Behind; behind == 0 {
		t.Error("nothing is behind a server that does not read")
	}
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("Run took %v to end", took)
	}
}

// TestPruneWaitsForSinks keeps old records until each sink has got them.
func TestPruneWaitsForSinks(t *testing.T) {
	s := storetest.New(t)
	oldLog(t, s, 0)
	listener := listen(t)
	server := serveSyslog(t, listener, (*syslogServer).read)
	cfg := audit.Config{Store: s, Key: key(1), Now: func() time.Time { return now }, Retention: audit.MinRetention,
		Sinks: []audit.Sink{{Name: "siem", Address: listener.Addr().String(), Format: auditlog.FormatJSON}}}
	waiting, err := audit.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	prune(t, waiting, 0)
	a, stop := forward(t, s, cfg.Sinks...)
	eventually(t, "not everything arrived", func() bool { return sinkOf(t, a).Behind == 0 })
	stop()
	prune(t, waiting, 30)
	if got := len(server.messages()); got != 120 {
		t.Errorf("%d records arrived", got)
	}
}
