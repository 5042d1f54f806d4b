// Package support is the SSH server of a node's support sessions: a restricted
// shell for one engineer at a time, on record.
//
//   - It listens nowhere. Connections come over the tunnel, each for one session
//     that the control plane enabled.
//   - It lets in a user certificate of that session only, over the key the
//     session was enabled for; while the node is unlocked, only over the key in
//     the request statement, whatever the control plane says.
//   - Every command is recorded before it runs. If that fails, the connection
//     ends.
//   - There is no process behind the shell: its commands are this package's own,
//     they see the share folders of the lease and nothing else.
package support

import (
	"context"
	"crypto"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// Limits of sessions.
const (
	handshakeTimeout = 20 * time.Second
	idleTimeout      = 15 * time.Minute // nothing came from the client
	maxLifetime      = 24 * time.Hour
	maxConnections   = 16 // per session
	maxChannels      = 16 // per connection
	maxFailures      = 5  // failed logins, then
	lockOut          = 15 * time.Minute
)

// Lock is what the sessions see and use of the node's lock.
type Lock interface {
	Status() *devicev1.NodeStatus
	Lease() (lock.Lease, bool)
}

// Journal is the node's audit chain. A record is durable when Append returns.
type Journal interface {
	Append(ctx context.Context, r auditlog.Record) (int64, error)
}

// Config is what a Server is made of.
type Config struct {
	Node            protocol.NodeID
	HostKey         crypto.Signer // Ed25519
	HostCertificate []byte        // SSH wire form; empty: the plain host key
	Lock            Lock
	Journal         Journal
	Manifests       ManifestSink
	Now             func() time.Time // nil: time.Now
	Log             zerolog.Logger
}

// ManifestSink is told of the bills of materials that prepare-to-ship made. It
// must not wait for the network.
type ManifestSink func(*devicev1.ReportManifestRequest)

// Session is one support session, as the control plane enabled it.
type Session struct {
	ID       protocol.SessionID
	Engineer protocol.Person
	Key      string // fingerprint of the engineer's own key, "SHA256:…"
	Ticket   protocol.TicketID
	Expires  time.Time

	authorities []ssh.PublicKey
}

// Server serves the support sessions of one node. It is safe for concurrent
// use.
type Server struct {
	cfg  Config
	host ssh.Signer

	mu       sync.Mutex // guards what follows
	sessions map[protocol.SessionID]*session
	failures []time.Time // of the newest failed logins
	lockedAt time.Time
	handlers sync.WaitGroup // one per connection
}

type session struct {
	Session
	conns map[*ssh.ServerConn]net.Conn
}

// New returns a server. It starts nothing: connections are served by whoever
// calls [Server.ServeConn].
func New(cfg Config) (*Server, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	host, err := ssh.NewSignerFromSigner(cfg.HostKey)
	if err != nil {
		return nil, fmt.Errorf("cannot use the SSH host key: %w", err)
	}
	if len(cfg.HostCertificate) > 0 {
		pub, err := ssh.ParsePublicKey(cfg.HostCertificate)
		cert, ok := pub.(*ssh.Certificate)
		if err != nil || !ok {
			return nil, fmt.Errorf("cannot use the SSH host certificate, enrol again: it is not a certificate")
		}
		if host, err = ssh.NewCertSigner(cert, host); err != nil {
			return nil, fmt.Errorf("cannot use the SSH host certificate, enrol again: %w", err)
		}
	}
	return &Server{cfg: cfg, host: host, sessions: make(map[protocol.SessionID]*session)}, nil
}

// HostKey returns the public host key in wire form.
func (s *Server) HostKey() []byte { return s.host.PublicKey().Marshal() }

// WireKey returns the public half of an SSH host key in wire form.
func WireKey(host crypto.Signer) ([]byte, error) {
	pub, err := ssh.NewPublicKey(host.Public())
	if err != nil {
		return nil, fmt.Errorf("cannot use the SSH host key: %w", err)
	}
	return pub.Marshal(), nil
}

// Enable lets a session in until it expires or is disabled. authorities (SSH
// wire form) are the keys that may certify its engineer. Enabling a session
// again changes its end.
func (s *Server) Enable(ctx context.Context, in Session, authorities [][]byte) error {
	if in.ID == "" || in.Key == "" || len(authorities) == 0 || !in.Expires.After(s.cfg.Now()) {
		return protocol.Errorf(protocol.CodeInvalid, "a session needs an id, the engineer's key, a user authority and an end in the future")
	}
	for _, wire := range authorities {
		key, err := ssh.ParsePublicKey(wire)
		if err != nil {
			return protocol.Errorf(protocol.CodeInvalid, "a user authority of session %s is no SSH key", in.ID)
		}
		in.authorities = append(in.authorities, key)
	}
	rec := s.record(auditlog.OpEnableSession, auditlog.Success, in)
	if _, err := s.cfg.Journal.Append(ctx, rec); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.sessions[in.ID]; old != nil {
		old.Session = in
		return nil
	}
	s.sessions[in.ID] = &session{Session: in, conns: make(map[*ssh.ServerConn]net.Conn)}
	return nil
}

// Disable ends a session and its connections for good. An unknown session is
// no error: it has ended.
func (s *Server) Disable(id protocol.SessionID, reason string) {
	s.mu.Lock()
	ended := s.sessions[id]
	delete(s.sessions, id)
	s.mu.Unlock()
	if ended == nil {
		return
	}
	s.end(ended)
	rec := s.record(auditlog.OpDisableSession, auditlog.Success, ended.Session)
	rec.Properties["reason"] = reason
	s.recordAfter(rec)
}

// Kick ends every connection; the sessions stay enabled. It returns at once.
func (s *Server) Kick() {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.sessions))
	s.mu.Unlock()
	for _, one := range all {
		s.end(one)
	}
}

// end closes the connections of a session. Closing the transport frees every
// channel, whatever its command waits for.
func (s *Server) end(one *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, raw := range one.conns {
		raw.Close()
	}
}

// Status lists the enabled sessions.
func (s *Server) Status() []*devicev1.SessionStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*devicev1.SessionStatus
	for _, one := range s.sessions {
		list = append(list, &devicev1.SessionStatus{
			Session: string(one.ID), Engineer: string(one.Engineer),
			Expires: one.Expires.Unix(), Connections: int32(len(one.conns)),
		})
	}
	slices.SortFunc(list, func(a, b *devicev1.SessionStatus) int { return strings.Compare(a.Session, b.Session) })
	return list
}

// Run ends sessions that expire, and every connection when ctx ends.
func (s *Server) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.Kick()
			s.handlers.Wait()
			return nil
		case <-tick.C:
			for _, id := range s.expired() {
				s.Disable(id, "expired")
			}
		}
	}
}

func (s *Server) expired() (ids []protocol.SessionID) {
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, one := range s.sessions {
		if !now.Before(one.Expires) {
			ids = append(ids, id)
		}
	}
	return ids
}

// record makes a record about a session.
func (s *Server) record(op auditlog.Operation, result auditlog.Result, one Session) auditlog.Record {
	r := auditlog.NewRecord(s.cfg.Now(), op, result)
	r.Origin = s.cfg.Node.String()
	r.ResourceID = fmt.Sprintf("/devices/%s/nodes/%d", s.cfg.Node.Serial, s.cfg.Node.Node)
	r.Caller = string(one.Engineer)
	r.CorrelationID = string(one.ID)
	r.Properties = map[string]string{"ticket": string(one.Ticket), "key": one.Key}
	return r
}

// recordAfter records what has already happened: an ending never waits for the
// record.
func (s *Server) recordAfter(r auditlog.Record) {
	if _, err := s.cfg.Journal.Append(context.Background(), r); err != nil {
		s.cfg.Log.Error().Err(err).Str("operation", string(r.Operation)).Msg("cannot record")
	}
}
