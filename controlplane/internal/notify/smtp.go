package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	gomail "github.com/wneessen/go-mail"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
)

// SMTP is the mail server that notices go to. The connection is always
// encrypted, and the server's certificate always checked.
type SMTP struct {
	Address      string         // host:port
	Implicit     bool           // TLS from the first byte, as on port 465; else STARTTLS
	Roots        *x509.CertPool // nil: the system's
	Hello        string         // how this machine calls itself; its host name if empty
	Username     string         // none: the server lets this machine in without
	PasswordFile string         // read for each connection, so that it can be changed
}

// stepLimit is the longest that one step of a connection may take. All of it
// takes at most attemptLimit.
const stepLimit = 15 * time.Second

// maxAnswers bounds what a server may say in one connection, in bytes.
const maxAnswers = 1 << 20

// toServer hands a mail to the server. When it returns nil, the server has taken
// it; after an error that is not final it may have, and gets the same mail again.
func (s *Service) toServer(ctx context.Context, n store.Notice, d store.Delivery) error {
	m, err := s.message(n, d)
	if err != nil {
		return err
	}
	conn, err := s.cfg.SMTP.dial(ctx)
	if err != nil {
		return fmt.Errorf("cannot reach the mail server %s: %w", s.cfg.SMTP.Address, err)
	}
	// The library leaves a connection open whose greeting, TLS or login failed,
	// and has no deadline for the whole.
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	client, err := s.cfg.SMTP.client(conn)
	if err != nil {
		return err
	}
	err = client.DialAndSendWithContext(ctx, m)
	if m.IsDelivered() { // what fails after that, such as the goodbye, does not count
		return nil
	}
	return judge(err)
}

// dial opens a connection, and TLS with it if that comes first.
func (c *SMTP) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", c.Address)
	if err != nil {
		return nil, err
	}
	conn := &boundedConn{Conn: raw, left: maxAnswers}
	if !c.Implicit {
		return conn, nil
	}
	secure := tls.Client(conn, c.tls())
	if err := secure.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return secure, nil
}

func (c *SMTP) tls() *tls.Config {
	return &tls.Config{ServerName: c.host(), RootCAs: c.Roots, MinVersion: tls.VersionTLS12}
}

// host is the server's name without its port.
func (c *SMTP) host() string {
	host, _, _ := net.SplitHostPort(c.Address) // was checked with the configuration
	return host
}

// client speaks over conn.
func (c *SMTP) client(conn net.Conn) (*gomail.Client, error) {
	policy := gomail.TLSMandatory
	if c.Implicit {
		policy = gomail.NoTLS // it is there already
	}
	options := []gomail.Option{
		gomail.WithDialContextFunc(func(context.Context, string, string) (net.Conn, error) { return conn, nil }),
		gomail.WithTimeout(stepLimit), gomail.WithTLSConfig(c.tls()), gomail.WithTLSPolicy(policy),
	}
	if c.Hello != "" {
		options = append(options, gomail.WithHELO(c.Hello))
	}
	if c.Username != "" {
		password, err := c.password()
		if err != nil {
			return nil, err
		}
		options = append(options, gomail.WithUsername(c.Username), gomail.WithPassword(password),
			gomail.WithOpportunisticSMTPAuth(gomail.SMTPAuthPlain, gomail.SMTPAuthLogin))
	}
	return gomail.NewClient(c.host(), options...)
}

// maxPassword bounds a password file, in bytes.
const maxPassword = 1 << 10

// password reads the password of the mail account. Its file is its owner's only.
func (c *SMTP) password() (string, error) {
	info, err := os.Stat(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("cannot read the mail account's password: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 || info.Size() > maxPassword {
		return "", fmt.Errorf("%s has mode %04o and %d bytes: a password file has mode 0600 and one line", c.PasswordFile, info.Mode().Perm(), info.Size())
	}
	data, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("cannot read the mail account's password: %w", err)
	}
	defer clear(data)
	return string(bytes.TrimRight(data, "\r\n")), nil
}

// judge says whether trying again can help: it cannot when the server refuses this
// recipient or this mail for good. A refused sender or login is our own mistake,
// which somebody will put right.
func judge(err error) error {
	e, ok := errors.AsType[*gomail.SendError](err)
	if !ok || e.ErrorCode() < 500 {
		return err
	}
	switch e.Reason {
	case gomail.ErrSMTPRcptTo, gomail.ErrSMTPData, gomail.ErrSMTPDataClose:
		return finalError{err}
	}
	return err
}

// boundedConn ends when the other end has said more than it may.
type boundedConn struct {
	net.Conn
	left int64
}

func (c *boundedConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("the server says too much")
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}
