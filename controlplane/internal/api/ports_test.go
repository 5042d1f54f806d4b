package api_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/tunnel"
)

const whoami = "/lockbox.v1.AccountService/WhoAmI"

// shake says how a connection with a certificate ends at a port: what the
// server thinks of it comes with the first byte it sends or refuses to send.
func shake(t *testing.T, address string, config *tls.Config, alpn string) error {
	t.Helper()
	config = config.Clone()
	config.NextProtos = []string{alpn}
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if alpn == "http/1.1" {
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	} else {
		conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond)) // a tunnel is silent
	}
	_, err = conn.Read(make([]byte, 1))
	if ne, ok := err.(net.Error); ok && ne.Timeout() && alpn != "http/1.1" {
		return nil
	}
	return err
}

func TestCertificatesAtTheirPorts(t *testing.T) {
	w := newWorld(t)
	w.enrolDevice()
	staff := w.register("sam@x", "staff", "")
	stranger, _, err := certs.Open(t.TempDir() + "/authority")
	if err != nil {
		t.Fatal(err)
	}
	past, _, err := certs.Open(w.cfg.AuthorityDir())
	if err != nil {
		t.Fatal(err)
	}
	past.Now = func() time.Time { return time.Now().Add(-2 * time.Hour) }
	ended := device(t, w.authorities)
	w.revoke(certs.Serial(ended.Leaf()))
	const http, databox = "http/1.1", tunnel.ALPNControl
	apiPort, devicePort := w.control.APIAddress(), w.control.TunnelAddress()
	for _, tt := range []struct {
		name, port, alpn string
		who              *certs.Source
		ok               bool
	}{
		{"control: person at the API port", apiPort, http, staff, true},
		{"control: nobody at the API port", apiPort, http, nil, true},
		{"control: device at the device port", devicePort, databox, device(t, w.authorities), true},
		{"device at the API port", apiPort, http, device(t, w.authorities), false},
		{"person at the device port", devicePort, databox, staff, false},
		{"nobody at the device port", devicePort, databox, nil, false},
		{"device that speaks no tunnel", devicePort, http, device(t, w.authorities), false},
		{"expired person", apiPort, http, person(t, past, "sam@x", time.Hour), false},
		{"expired device", devicePort, databox, device(t, past), false},
		{"person of another root", apiPort, http, person(t, stranger, "sam@x", time.Hour), false},
		{"device of another root", devicePort, databox, device(t, stranger), false},
		{"revoked device", devicePort, databox, ended, false},
	} {
		err := shake(t, tt.port, dialer(w.authorities.Roots().Servers, tt.who), tt.alpn)
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// revoke ends a certificate in the store.
func (w *world) revoke(serial string) {
	w.t.Helper()
	s, err := store.Open(w.t.Context(), w.cfg.StorePath())
	if err != nil {
		w.t.Fatal(err)
	}
	defer s.Close()
	err = s.Tx(w.t.Context(), func(tx *store.Tx) error { return tx.RevokeCert(w.t.Context(), serial, "test", time.Now()) })
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestRemovedPerson(t *testing.T) {
	w := newWorld(t)
	h := w.httpAs(w.register("sam@x", "staff", ""))
	if a := w.call(h, whoami, false); a.status != 200 {
		t.Fatalf("control: %d %s", a.status, a.body)
	}
	if _, err := w.admin.Accounts.RemovePerson(t.Context(), &lockboxv1.RemovePersonRequest{Name: "sam@x"}); err != nil {
		t.Fatal(err)
	}
	if a := w.call(h, whoami, false); a.status != 401 { // on the connection that is open, too
		t.Errorf("removed, and answered %d %s", a.status, a.body)
	}
}

// healthy demands that somebody is answered quickly.
func (w *world) healthy(what string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	w.admin.Close() // so that this call makes a connection, too
	if _, err := w.admin.Accounts.WhoAmI(ctx, &lockboxv1.WhoAmIRequest{}); err != nil {
		w.t.Errorf("%s: a healthy client got %v", what, err)
	}
}

func TestHostileClients(t *testing.T) {
	w := newWorld(t)
	servers := w.authorities.Roots().Servers
	garbage := []byte(strings.Repeat("\x16\x03\x01\xff\xffGET / HTTP/1.1\r\n\x00", 4096))
	for _, port := range []string{w.control.APIAddress(), w.control.TunnelAddress()} {
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() { // garbage before TLS
				conn, err := net.Dial("tcp", port)
				if err != nil {
					return
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(15 * time.Second))
				conn.Write(garbage)
				if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "timeout") {
					t.Errorf("garbage at %s keeps its connection", port)
				}
			})
		}
		for range 200 {
			conn, err := net.Dial("tcp", port) // and silence
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
		w.healthy("garbage and silence at " + port)
		all.Wait()
	}

	// Within TLS, with a certificate.
	as := dialer(servers, w.register("sam@x", "staff", ""))
	for name, request := range map[string]string{
		"garbage":        "\x00\x01\x02 nonsense\r\n\r\n",
		"two lengths":    "POST " + whoami + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"smuggling":      "POST " + whoami + " HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
		"a large header": "GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 64<<10) + "\r\n\r\n",
		"HTTP/2":         "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		conn, err := tls.Dial("tcp", w.control.APIAddress(), as)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(conn, request)
		answer, err := io.ReadAll(conn)
		if err != nil && strings.Contains(err.Error(), "timeout") || strings.Contains(string(answer), " 200 ") {
			t.Errorf("%s: %v %.100q", name, err, answer)
		}
		conn.Close()
	}
	w.healthy("malformed requests")
}

func TestOversizedMessages(t *testing.T) {
	w := newWorld(t)
	h := w.httpAs(w.register("sam@x", "staff", ""))
	nobody := w.httpAs(nil)
	big, medium := strings.Repeat("\x00", 5<<20), strings.Repeat("\x00", 128<<10)
	for _, tt := range []struct {
		name, path, body string
		status           int
	}{
		{"5 MiB to a call", "/lockbox.v1.OrderService/PrepareDevice", big, 429},
		{"128 KiB to login, by nobody", "/lockbox.v1.AccountService/Login", medium, 429},
		{"5 MiB to enrol, by nobody", "/device.v1.EnrolmentService/Enrol", big, 429},
		{"128 KiB of nonsense to a call", "/lockbox.v1.OrderService/PrepareDevice", medium, 400},
	} {
		as := h
		if strings.Contains(tt.name, "nobody") {
			as = nobody
		}
		a, err := w.post(as, tt.path, "application/proto", tt.body)
		if err == nil && a.status != tt.status {
			t.Errorf("%s: answered %d %.200s", tt.name, a.status, a.body)
		}
		if err != nil && !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "broken pipe") { // it may stop reading
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if a, err := w.post(h, whoami, "application/json", `{"unknown": 1`); err != nil || a.status != 400 {
		t.Errorf("half a message: %d %s %v", a.status, a.body, err)
	}
	w.healthy("oversized messages")
}

// What a body that is too large leaves unread is never taken for the next
// request.
func TestUnreadBodyIsNoRequest(t *testing.T) {
	w := newWorld(t)
	as := dialer(w.authorities.Roots().Servers, w.register("sam@x", "staff", ""))
	next := "POST " + whoami + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\nContent-Length: 0\r\n\r\n"
	for _, path := range []string{"/lockbox.v1.OrderService/PrepareDevice", "/lockbox.v1.TenantService/CreateTenant", "/lockbox.v1.AccountService/Login", whoami, "/nothing"} {
		for _, size := range []int{128 << 10, 4<<20 + 10, 4<<20 + 2000, 5 << 20} {
			conn, err := tls.Dial("tcp", w.control.APIAddress(), as)
			if err != nil {
				t.Fatal(err)
			}
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			go func() {
				fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\nContent-Length: %d\r\n\r\n", path, size)
				io.WriteString(conn, strings.Repeat(next, size/len(next)+1)[:size])
				conn.CloseWrite()
			}()
			answer, _ := io.ReadAll(conn)
			conn.Close()
			if n := strings.Count(string(answer), "HTTP/1.1 "); n != 1 {
				t.Errorf("%s with %d bytes: %d answers: %.300s", path, size, n, answer)
			}
		}
	}
}

func TestSSHPathRefusals(t *testing.T) {
	w := newWorld(t)
	engineer, staff := w.register("erin@x", "engineer", ""), w.register("sam@x", "staff", "")
	for _, tt := range []struct {
		name    string
		who     *certs.Source
		upgrade string
		want    protocol.Code
	}{
		{"no upgrade", engineer, "", protocol.CodeInvalid},
		{"another upgrade", engineer, "websocket", protocol.CodeInvalid},
		{"nobody", nil, "databox-ssh", protocol.CodeUnauthenticated},
		{"unknown session", engineer, "databox-ssh", protocol.CodeNotFound},
		{"no engineer", staff, "databox-ssh", protocol.CodeNotFound},
	} {
		conn, err := tls.Dial("tcp", w.control.APIAddress(), dialer(w.authorities.Roots().Servers, tt.who))
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "GET /v1/sessions/SES-00/ssh HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade\r\nUpgrade: %s\r\n\r\n", tt.upgrade)
		answer, _ := io.ReadAll(conn)
		conn.Close()
		if !strings.HasPrefix(string(answer), "HTTP/1.1 403 ") || !strings.Contains(string(answer), "Lockbox-Code: "+string(tt.want)+"\r\n") {
			t.Errorf("%s: %s", tt.name, answer)
		}
	}
}
