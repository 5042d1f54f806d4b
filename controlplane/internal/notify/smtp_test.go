package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
)

// mailServer is a real SMTP server that takes mail, or does not.
type mailServer struct {
	address string
	roots   *x509.CertPool

	mu       sync.Mutex
	rcpt     []error // answers to RCPT TO, one after the other, then nil
	data     []error // answers to DATA
	drop     bool    // cut the next connection when a mail has arrived whole, before saying so
	password string  // "": nobody has to log in
	conns    map[net.Conn]bool
	mails    [][]byte
}

// serverTLS is the TLS of a server called localhost, and who to trust for it.
func serverTLS(t *testing.T) (*tls.Config, *x509.CertPool) {
	t.Helper()
	authorities, _, err := certs.Open(filepath.Join(t.TempDir(), "authority"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := certs.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := authorities.IssueServer(csr, []string{"localhost", "127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(authorities.Roots().Servers)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: key}}}, roots
}

func newMailServer(t *testing.T, implicit, offersTLS bool) *mailServer {
	t.Helper()
	s := &mailServer{conns: map[net.Conn]bool{}}
	config, roots := serverTLS(t)
	s.roots = roots
	server := smtp.NewServer(s)
	server.Domain = "localhost"
	server.ErrorLog = silent{}
	if offersTLS {
		server.TLSConfig = config
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = strings.Replace(ln.Addr().String(), "127.0.0.1", "localhost", 1)
	if implicit {
		ln = tls.NewListener(ln, config)
	}
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(ln) }()
	t.Cleanup(func() { server.Close(); <-done })
	return s
}

type silent struct{}

func (silent) Printf(string, ...any) {}
func (silent) Println(...any)        {}

func (s *mailServer) NewSession(c *smtp.Conn) (smtp.Session, error) {
	return &mailSession{server: s, conn: c.Conn()}, nil
}

// next takes the next of the answers.
func (s *mailServer) next(list *[]error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(*list) == 0 {
		return nil
	}
	err := (*list)[0]
	*list = (*list)[1:]
	return err
}

func (s *mailServer) received() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([][]byte(nil), s.mails...)
}

type mailSession struct {
	server   *mailServer
	conn     net.Conn
	loggedIn bool
}

func (s *mailSession) Reset()        {}
func (s *mailSession) Logout() error { return nil }

func (s *mailSession) AuthMechanisms() []string {
	if s.server.password == "" {
		return nil
	}
	return []string{sasl.Plain}
}

func (s *mailSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != "lockbox" || password != s.server.password {
			return smtp.ErrAuthFailed
		}
		s.loggedIn = true
		return nil
	}), nil
}

func (s *mailSession) Mail(string, *smtp.MailOptions) error {
	if s.server.password != "" && !s.loggedIn {
		return smtp.ErrAuthRequired
	}
	return nil
}

func (s *mailSession) Rcpt(string, *smtp.RcptOptions) error { return s.server.next(&s.server.rcpt) }

func (s *mailSession) Data(r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if err := s.server.next(&s.server.data); err != nil {
		return err
	}
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	s.server.mails = append(s.server.mails, data)
	if s.server.drop {
		s.server.drop = false
		s.conn.Close()
	}
	return nil
}

// mailing is a service that sends to server, and one notice that waits.
type mailing struct {
	*Service
	t     *testing.T
	store *store.Store
	now   time.Time
}

func newMailing(t *testing.T, c SMTP) *mailing {
	t.Helper()
	m := &mailing{t: t, store: storetest.New(t), now: time.Now()}
	m.Service = newServiceWith(t, Config{Store: m.store, SMTP: &c, Now: func() time.Time { return m.now }})
	tell(t, m.store, m.Service, Event{Kind: CustomerNotified, Number: 7, To: []string{olga}})
	return m
}

// try makes one attempt at what is due and returns the delivery.
func (m *mailing) try() store.Delivery {
	m.t.Helper()
	var all sync.WaitGroup
	if err := m.startDue(m.t.Context(), m.channels[0], &all); err != nil {
		m.t.Fatal(err)
	}
	all.Wait()
	m.now = m.now.Add(longestPause)
	return told(m.t, m.store)[0].Delivery
}

func (m *mailing) want(state, lastError string) {
	m.t.Helper()
	d := m.try()
	if d.State != state || !strings.Contains(d.LastError, lastError) || lastError == "" && d.LastError != "" {
		m.t.Errorf("the delivery is %s (%q), want %s (%q)", d.State, d.LastError, state, lastError)
	}
}

func TestMailBySTARTTLSAndByTLS(t *testing.T) {
	for name, implicit := range map[string]bool{"STARTTLS": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			server := newMailServer(t, implicit, true)
			server.password = "correct horse"
			file := filepath.Join(t.TempDir(), "password")
			if err := os.WriteFile(file, []byte(server.password+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			m := newMailing(t, SMTP{Address: server.address, Implicit: implicit, Roots: server.roots, Username: "lockbox", PasswordFile: file})
			m.want(store.DeliverySent, "")
			got := server.received()
			if len(got) != 1 {
				t.Fatalf("%d mails", len(got))
			}
			mail, err := mail.ReadMessage(bytes.NewReader(got[0]))
			if err != nil {
				t.Fatal(err)
			}
			if to := mail.Header.Get("To"); to != "<"+olga+">" || mail.Header.Get("User-Agent") != "" {
				t.Errorf("header %v", mail.Header)
			}
			if text := parts(t, mail)["text/plain"]; !strings.Contains(text, "lockbox request show 7") {
				t.Errorf("text %q", text)
			}

			// A wrong password is our mistake, and waits for being put right.
			server.mu.Lock()
			server.password = "another"
			server.mu.Unlock()
			m = newMailing(t, SMTP{Address: server.address, Implicit: implicit, Roots: server.roots, Username: "lockbox", PasswordFile: file})
			m.want(store.DeliveryWaiting, "535")
			if d := told(t, m.store)[0]; strings.Contains(d.LastError, "correct horse") {
				t.Errorf("the error holds the password: %s", d.LastError)
			}
			if err := os.WriteFile(file, []byte("another\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			m.want(store.DeliverySent, "")
			if err := os.Chmod(file, 0o644); err != nil {
				t.Fatal(err)
			}
			m = newMailing(t, SMTP{Address: server.address, Implicit: implicit, Roots: server.roots, Username: "lockbox", PasswordFile: file})
			m.want(store.DeliveryWaiting, "0600")
		})
	}
}

func TestMailOnlyToAServerThatProvesItsName(t *testing.T) {
	_, others := serverTLS(t)
	for name, implicit := range map[string]bool{"STARTTLS": false, "TLS": true} {
		server := newMailServer(t, implicit, true)
		newMailing(t, SMTP{Address: server.address, Implicit: implicit, Roots: others}).want(store.DeliveryWaiting, "certificate")
		if n := len(server.received()); n != 0 {
			t.Errorf("%s: %d mails to a server that nobody vouches for", name, n)
		}
	}
	plain := newMailServer(t, false, false)
	newMailing(t, SMTP{Address: plain.address, Roots: plain.roots}).want(store.DeliveryWaiting, "STARTTLS")
	if n := len(plain.received()); n != 0 {
		t.Errorf("%d mails in clear", n)
	}
}

func TestRefusalsByTheMailServer(t *testing.T) {
	later := &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 7, 1}, Message: "greylisted"}
	never := &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such mailbox"}
	for name, set := range map[string]func(*mailServer, []error){
		"recipient": func(s *mailServer, list []error) { s.rcpt = list },
		"content":   func(s *mailServer, list []error) { s.data = list },
	} {
		t.Run(name, func(t *testing.T) {
			server := newMailServer(t, false, true)
			set(server, []error{later, later})
			m := newMailing(t, SMTP{Address: server.address, Roots: server.roots})
			m.want(store.DeliveryWaiting, "451")
			m.want(store.DeliveryWaiting, "451")
			m.want(store.DeliverySent, "")
			set(server, []error{never})
			m = newMailing(t, SMTP{Address: server.address, Roots: server.roots})
			m.want(store.DeliveryDead, "550")
			m.want(store.DeliveryDead, "550") // and is not tried again
			if n := len(server.received()); n != 1 {
				t.Errorf("%d mails, want 1", n)
			}
		})
	}
}

// A connection that is cut after the mail was taken, before that is said, leaves
// in doubt what happened: it is sent again under the same Message-ID, unchanged.
func TestDroppedAfterDATA(t *testing.T) {
	server := newMailServer(t, false, true)
	server.drop = true
	m := newMailing(t, SMTP{Address: server.address, Roots: server.roots})
	m.want(store.DeliveryWaiting, "DATA")
	m.want(store.DeliverySent, "")
	got := server.received()
	if len(got) != 2 || !bytes.Equal(got[0], got[1]) {
		t.Errorf("%d mails:\n%s", len(got), bytes.Join(got, []byte("\n---\n")))
	}
}

// rawServer answers each connection with serve.
func rawServer(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() { defer c.Close(); serve(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); all.Wait() })
	return ln.Addr().String()
}

func TestAHangingMailServerIsLeft(t *testing.T) {
	address := rawServer(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	for _, implicit := range []bool{false, true} {
		m := newMailing(t, SMTP{Address: address, Implicit: implicit})
		d := told(t, m.store)[0].Delivery
		n, err := m.take(t.Context(), &d)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		began := time.Now()
		err = m.toServer(ctx, n, d)
		cancel()
		if took := time.Since(began); err == nil || took > 5*time.Second {
			t.Errorf("%v after %v", err, took)
		}
	}
}

func TestAChatteringMailServerIsLeft(t *testing.T) {
	address := rawServer(t, func(c net.Conn) {
		for line := []byte(strings.Repeat("220-welcome\r\n", 100)); ; {
			if _, err := c.Write(line); err != nil {
				return
			}
		}
	})
	newMailing(t, SMTP{Address: address}).want(store.DeliveryWaiting, "too much")
}

func TestAddressesThatAreNone(t *testing.T) {
	server := newMailServer(t, false, true)
	for _, to := range []string{
		"olga", "", "a@b.example\r\nBcc: all@x.example", "a@b.example, c@d.example", "Olga <olga@contoso.example>",
		"a@b.example>\r\nRCPT TO:<c@d.example", "\"a\r\nb\"@c.example",
	} {
		m := newMailing(t, SMTP{Address: server.address, Roots: server.roots})
		err := m.toServer(t.Context(), store.Notice{Title: "x", Text: "y"}, store.Delivery{ID: "d", Recipient: to})
		if _, final := errors.AsType[finalError](err); !final {
			t.Errorf("%q: %v", to, err)
		}
	}
	if n := len(server.received()); n != 0 {
		t.Errorf("%d mails", n)
	}
}
