// Package client is the Go client of the control plane's public API, used by
// the command line, the simulator, and anyone else.
//
// A person is known to the control plane by a certificate over a key that was
// made here and never leaves: [Login] gets it once for a one-time token, [New]
// uses it, [Client.Renew] replaces it before it expires.
package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/gather"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
)

// How long one part of a connection may take. A whole call is bounded by its
// context.
const (
	dialTimeout   = 10 * time.Second
	sshStall      = 15 * time.Minute
	headerTimeout = 2 * time.Minute // the longest unary call: a relock of devices that do not answer
)

// Client calls one control plane as one person. It is safe for concurrent use.
type Client struct {
	Accounts   lockboxv1.AccountServiceClient
	Tenants    lockboxv1.TenantServiceClient
	Orders     lockboxv1.OrderServiceClient
	Devices    lockboxv1.DeviceServiceClient
	Tickets    lockboxv1.TicketServiceClient
	Sessions   lockboxv1.SessionServiceClient
	Recordings lockboxv1.RecordingServiceClient
	Requests   lockboxv1.RequestServiceClient
	Standing   lockboxv1.StandingServiceClient
	Keys       lockboxv1.KeyServiceClient
	Audit      lockboxv1.AuditServiceClient
	Notices    lockboxv1.NoticeServiceClient
	Policies   lockboxv1.PolicyServiceClient
	Contacts   lockboxv1.ContactServiceClient
	Catalogue  lockboxv1.CatalogueServiceClient

	server string // host:port
	tls    *tls.Config
	http   *http.Client
}

// New returns a client that calls as id. It connects on the first call.
func New(id *Identity) (*Client, error) {
	host, err := splitServer(id.Server)
	if err != nil {
		return nil, err
	}
	source, err := certs.NewSource(id.Key, id.Chain, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot use the stored certificate, log in again: %w", err)
	}
	root, err := x509.ParseCertificate(id.ServerRoot)
	if err != nil {
		return nil, fmt.Errorf("cannot use the stored server root, log in again: %w", err)
	}
	return open(id.Server, certs.PersonDialer(source, root, host)), nil
}

func open(server string, config *tls.Config) *Client {
	h := &http.Client{
		Transport: explaining{&http.Transport{
			TLSClientConfig:        config,
			DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout:    dialTimeout,
			ResponseHeaderTimeout:  headerTimeout,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	c := rpc.NewClient(h, "https://"+server)
	return &Client{
		Accounts:   lockboxv1.NewAccountServiceClient(c),
		Tenants:    lockboxv1.NewTenantServiceClient(c),
		Orders:     lockboxv1.NewOrderServiceClient(c),
		Devices:    lockboxv1.NewDeviceServiceClient(c),
		Tickets:    lockboxv1.NewTicketServiceClient(c),
		Sessions:   lockboxv1.NewSessionServiceClient(c),
		Recordings: lockboxv1.NewRecordingServiceClient(c),
		Requests:   lockboxv1.NewRequestServiceClient(c),
		Standing:   lockboxv1.NewStandingServiceClient(c),
		Keys:       lockboxv1.NewKeyServiceClient(c),
		Audit:      lockboxv1.NewAuditServiceClient(c),
		Notices:    lockboxv1.NewNoticeServiceClient(c),
		Policies:   lockboxv1.NewPolicyServiceClient(c),
		Contacts:   lockboxv1.NewContactServiceClient(c),
		Catalogue:  lockboxv1.NewCatalogueServiceClient(c),
		server:     server,
		tls:        config,
		http:       h,
	}
}

// explaining is a transport whose errors say so when a clock is wrong, or a
// certificate was ended.
type explaining struct{ *http.Transport }

func (t explaining) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.Transport.RoundTrip(r)
	if err != nil && strings.Contains(err.Error(), "remote error: tls: bad certificate") {
		return nil, protocol.Errorf(protocol.CodeUnauthenticated, "the control plane takes your certificate no more: you logged out, or somebody ended it")
	}
	return resp, certs.Explain(err, time.Now())
}

// SetTimeout bounds every call from now on, until its answer is read. Without it
// only the context of a call does. It must not be called during a call.
func (c *Client) SetTimeout(d time.Duration) { c.http.Timeout = d }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// splitServer checks host:port and returns the host.
func splitServer(server string) (string, error) {
	host, port, err := net.SplitHostPort(server)
	if err != nil || host == "" || port == "" {
		return "", protocol.Errorf(protocol.CodeInvalid, "%q is not an address of a control plane: want host:port, as in lockbox.example:8443", server)
	}
	return host, nil
}

// SSHProtocol is the Upgrade token for the bytes of an SSH connection.
const SSHProtocol = "databox-ssh"

// SSHPath returns the path at which the API upgrades to a session's SSH bytes.
func SSHPath(session protocol.SessionID) string {
	return "/v1/sessions/" + url.PathEscape(string(session)) + "/ssh"
}

// DialSSH connects to the SSH server of a support session, through the control
// plane and the device's tunnel. ctx bounds the dialling only.
func (c *Client) DialSSH(ctx context.Context, session protocol.SessionID) (net.Conn, error) {
	conn, gathered, err := c.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the control plane at %s: %w", c.server, certs.Explain(err, time.Now()))
	}
	up, err := upgrade(ctx, conn, SSHPath(session), c.server)
	if err != nil {
		conn.Close()
		return nil, err
	}
	gathered.Gather()
	return up, nil
}

// dial connects, and returns what is below TLS, too.
func (c *Client) dial(ctx context.Context) (*tls.Conn, *gather.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", c.server)
	if err != nil {
		return nil, nil, err
	}
	gathered := gather.New(raw, sshStall)
	conn := tls.Client(gathered, c.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, nil, err
	}
	return conn, gathered, nil
}

func upgrade(ctx context.Context, conn net.Conn, path, host string) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn.SetDeadline(time.Now().Add(headerTimeout))
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", path, host, SSHProtocol)
	if err != nil {
		return nil, fmt.Errorf("cannot ask for the session: %w", err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot read the control plane's answer: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		return nil, refusal(resp)
	}
	if !stop() {
		return nil, ctx.Err()
	}
	conn.SetDeadline(time.Time{})
	return bufferedConn{conn, r}, nil
}

// refusal reads the plain-text error of a request that was not upgraded: its
// code is in a header.
func refusal(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	code := protocol.Code(resp.Header.Get(CodeHeader))
	if code == "" {
		return fmt.Errorf("the control plane answered %s", resp.Status)
	}
	return &protocol.Error{Code: code, Message: strings.TrimSpace(string(text))}
}

// CodeHeader carries the [protocol.Code] of a refused upgrade.
const CodeHeader = "Lockbox-Code"

// bufferedConn reads first what the response reader already took.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// CloseWrite ends the sending side, so that the peer reads an end of file.
func (c bufferedConn) CloseWrite() error {
	if t, ok := c.Conn.(*tls.Conn); ok {
		return t.CloseWrite()
	}
	return errors.ErrUnsupported
}
