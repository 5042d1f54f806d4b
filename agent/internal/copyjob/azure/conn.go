package azure

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/protocol/sealing"
)

// placeholder stands in URLs for what lets into an account. It is a parameter of a
// query, and nobody can guess it, so that nothing else in a request is taken for it.
type placeholder struct {
	text   []byte
	access *copyjob.Access
}

func newPlaceholder(access *copyjob.Access) placeholder {
	return placeholder{[]byte("access=" + rand.Text()), access}
}

// errWiped: the lease has ended, and with it what lets into the account.
var errWiped = errors.New("what lets into the account is gone, for the lease has ended")

// conn is a connection to an account, before encryption. A request comes with the
// placeholder, and leaves with what that stands for, which is wiped behind it.
//
// net/http begins a request with an empty buffer and hands over its first line in
// one piece, so that the placeholder is never split, and looked for nowhere else.
type conn struct {
	net.Conn
	placeholder
}

// pieceAfter is how much of a request is written together with what lets in, in
// bytes: the header of most.
const pieceAfter = 16 << 10

// Write implements [net.Conn].
func (c conn) Write(b []byte) (int, error) {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	at := bytes.Index(line, c.text)
	if at < 0 {
		return c.Conn.Write(b)
	}
	before, after := b[:at], b[at+len(c.text):]
	n := min(len(after), pieceAfter)
	out := make([]byte, 0, len(before)+sealing.MaxAccess+n) // which never grows: that would leave a copy
	defer func() { clear(out[:cap(out)]) }()
	out = append(out, before...)
	out, ok := c.access.AppendTo(out)
	if !ok {
		return 0, errWiped
	}
	out = append(out, after[:n]...)
	if _, err := c.Conn.Write(out); err != nil || n == len(after) {
		return len(b), err
	}
	rest, err := c.Conn.Write(after[n:])
	return len(b) - len(after) + n + rest, err
}

// dialer connects to an account.
type dialer struct {
	placeholder placeholder
	roots       *x509.CertPool // nil: the system's
}

func (d dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: connectWithin, KeepAlive: 15 * time.Second}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return conn{c, d.placeholder}, nil
}

func (d dialer) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectWithin)
	defer cancel()
	dial := tls.Dialer{
		NetDialer: &net.Dialer{KeepAlive: 15 * time.Second},
		Config:    &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: d.roots},
	}
	c, err := dial.DialContext(ctx, network, address) // checks the server's name
	if err != nil {
		return nil, err
	}
	return conn{c, d.placeholder}, nil
}
