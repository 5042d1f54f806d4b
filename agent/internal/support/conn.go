package support

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/agent/internal/shell"
	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

var errLogin = errors.New("permission denied")

// ServeConn serves one SSH connection for a session and returns when it has
// ended. It closes raw.
func (s *Server) ServeConn(ctx context.Context, raw net.Conn, id protocol.SessionID) error {
	defer raw.Close()
	one, err := s.admit(id, raw)
	if err != nil {
		return err
	}
	defer s.leave(id, raw)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()

	raw.SetDeadline(time.Now().Add(handshakeTimeout))
	sc, channels, requests, err := ssh.NewServerConn(raw, s.sshConfig(one))
	if err != nil {
		return fmt.Errorf("SSH login failed: %w", err)
	}
	raw.SetDeadline(time.Now().Add(maxLifetime))
	c := &connection{ServerConn: sc, raw: raw, server: s, session: one, terminals: make(map[*terminal]bool)}
	var answers sync.WaitGroup
	defer answers.Wait()
	defer cancel()
	defer sc.Close()
	answers.Go(func() { c.refuseAll(requests) })

	if err := s.join(c); err != nil {
		return err
	}
	if c.sitting, err = s.sit(ctx, one); err != nil {
		turnAway(ctx, channels, err)
		return err
	}
	defer s.stand(c.sitting)
	answers.Go(func() {
		select {
		case <-c.sitting.Failed():
			s.giveUp(c)
		case <-ctx.Done():
		}
	})
	if err := s.pace(ctx, id); err != nil {
		return err
	}
	rec := s.record(auditlog.OpConnectSession, auditlog.Success, one)
	rec.Properties["client"] = shell.Visible(string(sc.ClientVersion()))
	if err := s.append(ctx, rec); err != nil {
		return fmt.Errorf("cannot record the connection: %w", err)
	}
	c.serve(ctx, channels)
	s.recordAfter(s.record(auditlog.OpEndSession, auditlog.Success, one))
	return nil
}

// Admits returns nil if a connection for a session would be served now, or else
// why not.
func (s *Server) Admits(id protocol.SessionID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.findLocked(id)
	return err
}

// findLocked finds a session that may be entered now.
func (s *Server) findLocked(id protocol.SessionID) (*session, error) {
	one := s.sessions[id]
	switch {
	case s.stopped:
		return nil, protocol.Errorf(protocol.CodeUnavailable, "the agent of node %s is stopping: try again", s.cfg.Node)
	case one == nil || one.ended || s.over(one.Session):
		return nil, protocol.Errorf(protocol.CodeNotFound, "there is no support session %q on node %s: enable one first", id, s.cfg.Node)
	case one.refuse > s.cfg.Clock.Boot():
		wait := (one.refuse - s.cfg.Clock.Boot()).Round(time.Second)
		return nil, protocol.Errorf(protocol.CodeLimit, "%d logins failed: session %s lets nobody in for another %s", maxFailures, id, wait)
	case len(one.conns) >= maxConnections:
		return nil, protocol.Errorf(protocol.CodeLimit, "session %s has %d connections already", id, maxConnections)
	}
	return one, nil
}

// admit adds a connection to a session, or refuses it. The caller leaves.
func (s *Server) admit(id protocol.SessionID, raw net.Conn) (Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one, err := s.findLocked(id)
	if err != nil {
		return Session{}, err
	}
	s.handlers.Add(1)
	one.conns[raw] = nil
	return one.Session, nil
}

// join says that somebody has logged in, unless that came too late.
func (s *Server) join(c *connection) error {
	in := c.session
	lease, unlocked := s.cfg.Lock.Lease()
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.sessions[in.ID]
	switch {
	case one == nil || one.ended || one.Key != in.Key:
		return protocol.Errorf(protocol.CodeNotFound, "session %s has ended", in.ID)
	case unlocked && !letsIn(lease, in):
		return protocol.Errorf(protocol.CodeForbidden, "the node was unlocked for somebody else")
	}
	one.failures = nil
	one.conns[c.raw] = c
	return nil
}

func (s *Server) leave(id protocol.SessionID, raw net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.sessions[id]; one != nil {
		delete(one.conns, raw)
	}
	s.handlers.Done()
}

func (s *Server) sshConfig(one Session) *ssh.ServerConfig {
	c := &ssh.ServerConfig{
		MaxAuthTries:  6, // as OpenSSH has it: clients offer plain keys first
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
	s.failed(one.ID)
	rec := s.record(auditlog.OpRefuseSession, auditlog.Refused, one)
	rec.Properties["reason"] = err.Error()
	rec.Properties["offered"] = ssh.FingerprintSHA256(cert.Key)
	s.recordAfter(rec)
	return nil, errLogin
}

func (s *Server) checkCertificate(one Session, user string, cert *ssh.Certificate) error {
	if user != string(one.ID) && user != certs.SSHUser {
		return errors.New("the user name is neither the session nor " + certs.SSHUser)
	}
	if err := s.checkAuthorities(one, cert); err != nil {
		return err
	}
	if got := ssh.FingerprintSHA256(cert.Key); got != one.Key {
		return errors.New("the certificate is over another key than the session was enabled for")
	}
	if lease, ok := s.cfg.Lock.Lease(); ok && !letsIn(lease, one) {
		return errors.New("the node is unlocked, and not for this engineer and key")
	}
	return nil
}

func (s *Server) checkAuthorities(one Session, cert *ssh.Certificate) error {
	var errs []error
	for _, ca := range one.authorities {
		check := certs.SSHUserCheck{Authority: ca, Person: one.Engineer, Session: one.ID, Node: s.cfg.Node, Now: s.cfg.Clock.Now()}
		_, err := check.Check(cert)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// failed counts a failed login to a session; the fifth within the lock-out time
// locks out whoever wants in there. Other sessions go on.
func (s *Server) failed(id protocol.SessionID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.sessions[id]
	if one == nil {
		return // it ended meanwhile
	}
	now := s.cfg.Clock.Boot()
	one.failures = append(one.failures, now)
	one.failures = slices.DeleteFunc(one.failures, func(at time.Duration) bool { return now-at > lockOut })
	if len(one.failures) >= maxFailures {
		one.refuse, one.failures = now+lockOut, nil
	}
}

// refuseAll refuses global requests: no forwarding of any kind. To a keep-alive,
// with which a client says that it is there, that is an answer as good as any.
func (c *connection) refuseAll(requests <-chan *ssh.Request) {
	for r := range requests {
		if r.Type == "keepalive@openssh.com" {
			c.idle.touch()
		}
		if r.WantReply {
			r.Reply(false, nil)
		}
	}
}

// connection is one SSH connection of a session, logged in.
type connection struct {
	*ssh.ServerConn
	raw     net.Conn // below it
	server  *Server
	session Session
	sitting *sitting

	ended   string    // why; "" while it is served. Guarded by the server's mu
	parting sync.Once // its client has been told

	mu        sync.Mutex // guards what follows
	terminals map[*terminal]bool
	idle      idleTimer
}

// opened remembers an open channel, until what it returns is called.
func (c *connection) opened(t *terminal) (closed func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.terminals[t] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.terminals, t)
	}
}

// serve serves session channels until the connection ends.
func (c *connection) serve(ctx context.Context, channels <-chan ssh.NewChannel) {
	ctx, cancel := context.WithCancel(ctx)
	c.idle.start(func() { c.Close() })
	defer c.idle.stop()
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	slots := make(chan struct{}, maxChannels)
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
			t := &terminal{conn: c, name: c.server.channel(c.sitting), channel: active{ch, &c.idle}, columns: 80, rows: 24}
			defer c.opened(t)()
			t.serve(ctx, requests)
		})
	}
}

// idleTimer ends a connection on which nothing happens.
type idleTimer struct {
	mu    sync.Mutex  // guards what follows
	timer *time.Timer // nil while it does not run
	busy  int         // commands that run
}

func (i *idleTimer) start(end func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.timer = time.AfterFunc(idleTimeout, end)
}

func (i *idleTimer) stop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.timer.Stop()
	i.timer = nil
}

// touch says that something came from the client.
func (i *idleTimer) touch() { i.count(0) }

// count says that a command began (1) or ended (-1).
func (i *idleTimer) count(commands int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.busy += commands
	switch {
	case i.timer == nil: // not begun, or over
	case i.busy > 0:
		i.timer.Stop()
	default:
		i.timer.Reset(idleTimeout)
	}
}

// active is a channel that keeps its connection from being idle.
type active struct {
	ssh.Channel
	idle *idleTimer
}

func (a active) Read(p []byte) (int, error) {
	n, err := a.Channel.Read(p)
	if n > 0 {
		a.idle.touch()
	}
	return n, err
}
