package certs

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// ends are everything that two ends of a connection may present.
type ends struct {
	a                      *Authorities
	server, device, person *Source
	revoked                atomic.Value // string, a serial
}

func newEnds(t testing.TB) *ends {
	e := &ends{a: open(t)}
	e.revoked.Store("")
	e.server = issued(t, func(c []byte) ([][]byte, error) { return e.a.IssueServer(c, []string{"lockbox.example"}, time.Hour) })
	e.device = issued(t, func(c []byte) ([][]byte, error) { return e.a.IssueDevice(c, node, time.Hour) })
	e.person = issued(t, func(c []byte) ([][]byte, error) { return e.a.IssuePerson(c, erin, time.Hour) })
	return e
}

func (e *ends) isRevoked(serial string) bool { return e.revoked.Load() == serial }

func (e *ends) devicePort() *tls.Config {
	return DeviceListener(e.server, e.a.Roots().Devices, e.isRevoked)
}

func (e *ends) apiPort() *tls.Config {
	return APIListener(e.server, e.a.Roots().People, e.isRevoked)
}

// result is how a handshake ended at both ends, after a byte each way.
type result struct {
	server, client error
	state          tls.ConnectionState // at the server
	resumed        bool
}

func (r result) ok() bool { return r.server == nil && r.client == nil }

// shake connects client to server and exchanges a byte each way, so that the
// client learns what the server thinks of its certificate.
func shake(t testing.TB, server, client *tls.Config) result {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan result, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			done <- result{server: err}
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		secured := tls.Server(conn, server)
		err = swap(secured)
		done <- result{server: err, state: secured.ConnectionState()}
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	secured := tls.Client(conn, client)
	clientErr := swap(secured)
	conn.Close()
	r := <-done
	r.client, r.resumed = clientErr, secured.ConnectionState().DidResume
	return r
}

func swap(c *tls.Conn) error {
	if err := c.HandshakeContext(context.Background()); err != nil {
		return err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func TestWrongCertificatesAtWrongPorts(t *testing.T) {
	e, other := newEnds(t), newEnds(t)
	roots := e.a.Roots()
	const name = "lockbox.example"
	later := func(s *Source) *Source { // an end whose clock is a day ahead
		moved, err := NewSource(s.key, s.current.Load().Certificate, nil, func() time.Time { return time.Now().Add(24 * time.Hour) })
		if err != nil {
			t.Fatal(err)
		}
		return moved
	}
	anonymous := func(c *tls.Config) *tls.Config { c.GetClientCertificate = nil; return c }
	noRoot := func(s *Source) *tls.Config { c := DeviceDialer(s, roots.Servers, name); return c }
	expiredDevice := func() *Source {
		e.a.Now = func() time.Time { return time.Now().Add(-2 * time.Hour) }
		defer func() { e.a.Now = time.Now }()
		return issued(t, func(c []byte) ([][]byte, error) { return e.a.IssueDevice(c, node, time.Hour) })
	}
	tests := []struct {
		name           string
		server, client *tls.Config
		want           string // in the error of the end that refuses; "" for the control
	}{
		{"control: device at the device port", e.devicePort(), DeviceDialer(e.device, roots.Servers, name), ""},
		{"control: person at the API port", e.apiPort(), PersonDialer(e.person, roots.Servers, name), ""},
		{"control: nobody at the API port", e.apiPort(), anonymous(PersonDialer(e.person, roots.Servers, name)), ""},
		{"person at the device port", e.devicePort(), noRoot(e.person), "unknown authority"},
		{"device at the API port", e.apiPort(), noRoot(e.device), "unknown authority"},
		{"server as client at the device port", e.devicePort(), noRoot(e.server), "unknown authority"},
		{"server as client at the API port", e.apiPort(), noRoot(e.server), "unknown authority"},
		{"nobody at the device port", e.devicePort(), anonymous(noRoot(e.device)), "didn't provide a certificate"},
		{"device of another installation", e.devicePort(), noRoot(other.device), "unknown authority"},
		{"person of another installation", e.apiPort(), noRoot(other.person), "unknown authority"},
		{"server of another installation", other.devicePort(), DeviceDialer(e.device, roots.Servers, name), "unknown authority"},
		{"server of another name", e.devicePort(), DeviceDialer(e.device, roots.Servers, "other.example"), "not other.example"},
		{"device as server", DeviceListener(e.device, roots.Devices, nil), DeviceDialer(e.device, roots.Servers, name), "not valid for any names"},
		{"expired device", e.devicePort(), noRoot(expiredDevice()), "expired"},
		{"server whose clock is ahead", DeviceListener(later(e.server), roots.Devices, nil), noRoot(e.device), "expired"},
		{"device whose clock is ahead", e.devicePort(), noRoot(later(e.device)), "expired"},
		{"TLS 1.2", e.devicePort(), func() *tls.Config {
			c := noRoot(e.device)
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return c
		}(), "version"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := shake(t, tt.server, tt.client)
			if tt.want == "" {
				if !r.ok() {
					t.Errorf("server: %v; client: %v", r.server, r.client)
				}
				return
			}
			if r.server == nil || r.client == nil {
				t.Fatalf("server: %v; client: %v; want both to fail", r.server, r.client)
			}
			if both := errors.Join(r.server, r.client).Error(); !strings.Contains(both, tt.want) {
				t.Errorf("got %s, want %q", both, tt.want)
			}
		})
	}
}

// The roots keep the kinds apart; were one trusted by mistake, the names would.
func TestKindsAreKeptApartByNameToo(t *testing.T) {
	e := newEnds(t)
	roots := e.a.Roots()
	r := shake(t, DeviceListener(e.server, roots.People, nil), PersonDialer(e.person, roots.Servers, "lockbox.example"))
	if r.server == nil || !strings.Contains(r.server.Error(), "not a device's") {
		t.Errorf("a person at the device port: %v", r.server)
	}
	r = shake(t, APIListener(e.server, roots.Devices, nil), DeviceDialer(e.device, roots.Servers, "lockbox.example"))
	if r.server == nil || !strings.Contains(r.server.Error(), "not a person's") {
		t.Errorf("a device at the API port: %v", r.server)
	}
}

func TestRevocationIsAskedOnResumptionToo(t *testing.T) {
	for _, kind := range []string{"device", "person"} {
		t.Run(kind, func(t *testing.T) {
			e := newEnds(t)
			server, source := e.devicePort(), e.device
			if kind == "person" {
				server, source = e.apiPort(), e.person
			}
			client := DeviceDialer(source, e.a.Roots().Servers, "lockbox.example")
			if r := shake(t, server, client); !r.ok() || r.resumed {
				t.Fatalf("first: %+v", r)
			}
			if r := shake(t, server, client); !r.ok() || !r.resumed {
				t.Fatalf("second: server %v, client %v, resumed %v", r.server, r.client, r.resumed)
			}
			e.revoked.Store(Serial(source.Leaf()))
			r := shake(t, server, client)
			if r.server == nil || r.client == nil || !strings.Contains(r.server.Error(), "is revoked") {
				t.Errorf("revoked: server %v, client %v", r.server, r.client)
			}
			if !r.state.DidResume && !r.resumed {
				t.Log("the refused handshake was not a resumption")
			}
			client.ClientSessionCache = nil
			if r := shake(t, server, client); r.server == nil {
				t.Error("revoked, without resumption: no error")
			}
			e.revoked.Store("")
			if r := shake(t, server, client); !r.ok() {
				t.Errorf("no longer revoked: server %v, client %v", r.server, r.client)
			}
		})
	}
}

func TestWhoIsAtTheOtherEnd(t *testing.T) {
	e := newEnds(t)
	r := shake(t, e.devicePort(), DeviceDialer(e.device, e.a.Roots().Servers, "lockbox.example"))
	id, fingerprint, serial, err := DeviceFromState(r.state)
	want := string(approval.KeyFingerprint(e.device.Leaf().PublicKey.(ed25519.PublicKey)))
	if err != nil || id != node || fingerprint != want || serial != Serial(e.device.Leaf()) {
		t.Errorf("got %v %v %v, %v", id, fingerprint, serial, err)
	}
	if _, _, err := PersonFromState(r.state); err == nil {
		t.Error("a device is taken for a person")
	}
	r = shake(t, e.apiPort(), PersonDialer(e.person, e.a.Roots().Servers, "lockbox.example"))
	who, serial, err := PersonFromState(r.state)
	if err != nil || who != erin || serial != Serial(e.person.Leaf()) {
		t.Errorf("got %v %v, %v", who, serial, err)
	}
	if _, _, _, err := DeviceFromState(r.state); err == nil {
		t.Error("a person is taken for a device")
	}
	unverified := tls.ConnectionState{PeerCertificates: []*x509.Certificate{e.person.Leaf()}}
	if _, _, err := PersonFromState(unverified); err == nil {
		t.Error("an unverified certificate has a name")
	}
}

func TestPostQuantumKeyExchangeIsUsed(t *testing.T) {
	e := newEnds(t)
	r := shake(t, e.devicePort(), DeviceDialer(e.device, e.a.Roots().Servers, "lockbox.example"))
	if r.state.CurveID != tls.X25519MLKEM768 || r.state.Version != tls.VersionTLS13 {
		t.Errorf("got %v with version %x", r.state.CurveID, r.state.Version)
	}
}

func TestPinnedDialer(t *testing.T) {
	e, other := newEnds(t), newEnds(t)
	pin := Pin(e.a.Roots().Servers)
	appended := func() *tls.Config { // a hostile server that appends the right root to its own chain
		s, err := NewSource(other.server.key, append(other.server.current.Load().Certificate[:1:1], e.a.Roots().Servers.Raw), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return APIListener(s, e.a.Roots().People, nil)
	}
	rootOnly := func() *tls.Config {
		c := e.apiPort()
		c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: [][]byte{e.a.Roots().Servers.Raw}, PrivateKey: e.a.servers.key}, nil
		}
		return c
	}
	device := issued(t, func(c []byte) ([][]byte, error) { return e.a.IssueDevice(c, node, time.Hour) })
	tests := []struct {
		name      string
		server    *tls.Config
		pin, host string
		want      string
	}{
		{"control", e.apiPort(), pin, "lockbox.example", ""},
		{"another root", other.apiPort(), pin, "lockbox.example", "not the one the token names"},
		{"another root with ours appended", appended(), pin, "lockbox.example", "unknown authority"},
		{"another name", e.apiPort(), pin, "other.example", "not other.example"},
		{"a device under the pinned root of devices", APIListener(device, e.a.Roots().People, nil), Pin(e.a.Roots().Devices), "lockbox.example", "certificate"},
		{"the root itself as leaf", rootOnly(), pin, "lockbox.example", "not the one the token names"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			client, err := PinnedDialer(tt.pin, tt.host)
			if err != nil {
				t.Fatal(err)
			}
			r := shake(t, tt.server, client)
			if tt.want == "" && !r.ok() || tt.want != "" && (r.client == nil || !strings.Contains(r.client.Error(), tt.want)) {
				t.Errorf("got %v, want %q", r.client, tt.want)
			}
		})
	}
	if _, err := PinnedDialer("sha256:00", "x"); err == nil {
		t.Error("half a pin is taken")
	}
}

func TestExplainShowsBothTimes(t *testing.T) {
	e := newEnds(t)
	ahead := time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC)
	late, err := NewSource(e.device.key, e.device.current.Load().Certificate, nil, func() time.Time { return ahead })
	if err != nil {
		t.Fatal(err)
	}
	r := shake(t, e.devicePort(), DeviceDialer(late, e.a.Roots().Servers, "lockbox.example"))
	text := Explain(r.client, ahead).Error()
	leaf := e.server.Leaf()
	for _, want := range []string{"2031-02-03 04:05:06 UTC", protocol.Stamp(leaf.NotBefore), protocol.Stamp(leaf.NotAfter), "set the clock"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q does not say %q", text, want)
		}
	}
	serverAhead, _ := NewSource(e.server.key, e.server.current.Load().Certificate, nil, func() time.Time { return ahead })
	r = shake(t, DeviceListener(serverAhead, e.a.Roots().Devices, nil), DeviceDialer(e.device, e.a.Roots().Servers, "lockbox.example"))
	if text := Explain(r.client, time.Now()).Error(); !strings.Contains(text, "compare the two clocks") {
		t.Errorf("the refused end is told %q", text)
	}
	plain := errors.New("something else")
	if Explain(plain, ahead) != plain || Explain(nil, ahead) != nil {
		t.Error("other errors change")
	}
}
