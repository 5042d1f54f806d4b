package support

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

var errLogin = errors.New("permission denied")

// ServeConn serves one SSH connection for a session and returns when it has
// ended. It closes conn.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn, id protocol.SessionID) error {
	s.handlers.Add(1)
	defer s.handlers.Done()
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	one, err := s.admit(id)
	if err != nil {
		return err
	}
	conn.SetDeadline(time.Now().Add(handshakeTimeout))
	sc, channels, requests, err := ssh.NewServerConn(conn, s.sshConfig(one))
	if err != nil {
		return fmt.Errorf("SSH login failed: %w", err)
	}
	defer sc.Close()
	conn.SetDeadline(time.Now().Add(maxLifetime))

	if err := s.join(id, sc, conn); err != nil {
		return err
	}
	defer s.leave(id, sc)
	connect := s.record(auditlog.OpConnectSession, auditlog.Success, one)
	connect.Properties["client"] = string(sc.ClientVersion())
	if _, err := s.cfg.Journal.Append(ctx, connect); err != nil {
		return fmt.Errorf("cannot record the connection: %w", err)
	}
	go discard(requests) // ends with the connection
	s.serveChannels(ctx, one, sc, channels)
	s.recordAfter(s.record(auditlog.OpEndSession, auditlog.Success, one))
	return nil
}

// admit finds the session, unless too many logins failed.
func (s *Server) admit(id protocol.SessionID) (Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	if until := s.lockedAt.Add(lockOut); !s.lockedAt.IsZero() && now.Before(until) {
		return Session{}, protocol.Errorf(protocol.CodeLimit, "%d logins failed: locked out until %s", maxFailures, until.UTC().Format(time.RFC3339))
	}
	one := s.sessions[id]
	if one == nil || !now.Before(one.Expires) {
		return Session{}, protocol.Errorf(protocol.CodeNotFound, "there is no support session %s on node %s: enable one first", id, s.cfg.Node)
	}
	if len(one.conns) >= maxConnections {
		return Session{}, protocol.Errorf(protocol.CodeLimit, "session %s has %d connections already", id, maxConnections)
	}
	return one.Session, nil
}

// join adds a connection to a session that may have ended meanwhile.
func (s *Server) join(id protocol.SessionID, sc *ssh.ServerConn, conn net.Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures = nil
	one := s.sessions[id]
	if one == nil {
		return protocol.Errorf(protocol.CodeNotFound, "session %s has ended", id)
	}
	one.conns[sc] = conn
	return nil
}

func (s *Server) leave(id protocol.SessionID, sc *ssh.ServerConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.sessions[id]; one != nil {
		delete(one.conns, sc)
	}
}

func (s *Server) sshConfig(one Session) *ssh.ServerConfig {
	c := &ssh.ServerConfig{
		MaxAuthTries:  3,
		ServerVersion: "SSH-2.0-databox",
		PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			return s.login(one, meta, key)
		},
	}
	// aes128-gcm first: 1.7 times what chacha20-poly1305 carries here.
	c.Ciphers = []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305}
	c.AddHostKey(s.host)
	return c
}

// login decides about one offered key. The client learns nothing of why not.
// Clients offer their plain key before its certificate: only a wrong
// certificate counts as a failed login.
func (s *Server) login(one Session, meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, errLogin
	}
	err := s.checkCertificate(one, meta.User(), cert)
	if err == nil {
		return &ssh.Permissions{}, nil
	}
	s.failed()
	rec := s.record(auditlog.OpRefuseSession, auditlog.Refused, one)
	rec.Properties["reason"] = err.Error()
	rec.Properties["offered"] = ssh.FingerprintSHA256(cert.Key)
	s.recordAfter(rec)
	return nil, errLogin
}

func (s *Server) checkCertificate(one Session, user string, cert *ssh.Certificate) error {
	if user != string(one.ID) {
		return errors.New("the user name is not the session")
	}
	if err := s.checkAuthorities(one, cert); err != nil {
		return err
	}
	if got := ssh.FingerprintSHA256(cert.Key); got != one.Key {
		return errors.New("the certificate is over another key than the session was enabled for")
	}
	// The statement the customer signed beats what the control plane says.
	if lease, ok := s.cfg.Lock.Lease(); ok && lease.Purpose == protocol.SupportAccess && lease.Engineer.SSHKey != ssh.FingerprintSHA256(cert.Key) {
		return errors.New("the node is unlocked for another key")
	}
	return nil
}

func (s *Server) checkAuthorities(one Session, cert *ssh.Certificate) error {
	var errs []error
	for _, ca := range one.authorities {
		check := certs.SSHUserCheck{Authority: ca, Session: one.ID, Node: s.cfg.Node, Now: s.cfg.Now()}
		_, err := check.Check(cert)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// failed counts a failed login; the fifth within the lock-out time locks out.
func (s *Server) failed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	s.failures = append(s.failures, now)
	for len(s.failures) > 0 && now.Sub(s.failures[0]) > lockOut {
		s.failures = s.failures[1:]
	}
	if len(s.failures) >= maxFailures {
		s.lockedAt, s.failures = now, nil
	}
}

// discard refuses global requests: no forwarding of any kind. Keep-alives are
// answered, as OpenSSH expects.
func discard(requests <-chan *ssh.Request) {
	for r := range requests {
		if r.WantReply {
			r.Reply(false, nil)
		}
	}
}

// serveChannels serves session channels until the connection ends.
func (s *Server) serveChannels(ctx context.Context, one Session, sc *ssh.ServerConn, channels <-chan ssh.NewChannel) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	slots := make(chan struct{}, maxChannels)
	idle := time.AfterFunc(idleTimeout, func() { sc.Close() })
	defer idle.Stop()
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	for nc := range channels {
		if nc.ChannelType() != "session" {
			nc.Reject(ssh.Prohibited, "forwarding is not allowed: this is a support session")
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			nc.Reject(ssh.ResourceShortage, "too many channels")
			continue
		}
		ch, requests, err := nc.Accept()
		if err != nil {
			<-slots
			continue
		}
		all.Go(func() {
			defer func() { <-slots }()
			t := &terminal{server: s, session: one, channel: active{ch, idle}, columns: 80, rows: 24}
			t.serve(ctx, requests)
		})
	}
}

// active is a channel that keeps its connection from being idle.
type active struct {
	ssh.Channel
	idle *time.Timer
}

func (a active) Read(p []byte) (int, error) {
	n, err := a.Channel.Read(p)
	if n > 0 {
		a.idle.Reset(idleTimeout)
	}
	return n, err
}
