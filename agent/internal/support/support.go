// Package support is the SSH server of a node's support sessions: a restricted
// shell for one engineer at a time, on record.
//
//   - It listens nowhere. Connections come over the tunnel, each for one session
//     that the control plane enabled.
//   - It lets in a user certificate of that session only, over the key the
//     session was enabled for; while the node is unlocked, only of the engineer and
//     over the key in the request statement, whatever the control plane says. Nobody
//     comes in while the copy job has the disks. Who is in already and may not stay is
//     put out within two seconds, and told why on every channel that they read.
//   - Everything is on record, see [recorder.Store]: what terminals show, command
//     lines before they run, each operation on a file before its answer. If that
//     fails, the connection ends. Who does more than is worth recording waits.
//   - To stock OpenSSH it is an sshd: commands with their exit statuses, signals,
//     terminals, SFTP, the old protocol of scp, many channels on a connection. It
//     forwards nothing and takes no environment.
//   - There is no process behind any of it: the shell is package shell, files are
//     the shares of the lease ([files.System]) and nothing else.
package support

import (
	"cmp"
	"context"
	"crypto"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/agent/internal/recorder"
	"github.com/databox-lockbox/lockbox/agent/internal/shell"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// Limits of sessions.
const (
	handshakeTimeout = 20 * time.Second
	idleTimeout      = 15 * time.Minute // nothing came from the client and no command runs
	maxLifetime      = 24 * time.Hour   // of one connection
	maxSessions      = 256
	maxConnections   = 16 // per session
	maxChannels      = 16 // per connection
	maxFailures      = 5  // failed logins to one session, then
	lockOut          = 15 * time.Minute
	recordEvery      = 50 * time.Millisecond // of one session, commands and connections; more wait
	recordBurst      = 40                    // of which so many may come at once
	watchInterval    = time.Second
	forgetAfter      = 24 * time.Hour  // a session that expired and was never disabled
	stopWithin       = 5 * time.Second // waiting for what hangs when the process ends
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
	Recorder        *recorder.Store
	Manifests       ManifestSink
	Files           FileLog    // told of each operation on a file, once it is recorded; nil: nobody
	Clock           lock.Clock // nil: the system's
	Log             zerolog.Logger
}

// FileLog is told what is done with files. An error ends the operation.
type FileLog interface {
	File(recording.FileEvent) error
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
	until       time.Duration // Expires by the clock that nobody sets
}

// Server serves the support sessions of one node. It is safe for concurrent
// use.
type Server struct {
	cfg  Config
	host ssh.Signer

	beginning sync.Mutex // held while a recording begins; taken before mu

	mu       sync.Mutex // guards what follows
	sessions map[protocol.SessionID]*session
	stopped  bool           // Run has ended: nothing is added to handlers
	handlers sync.WaitGroup // one per connection, and one per close under way
}

type session struct {
	Session
	ended    bool                     // it expired; kept for whoever disables it
	conns    map[net.Conn]*connection // nil before somebody has logged in on it
	sitting  *sitting                 // nil before the first login, and after everybody was put out
	failures []time.Duration          // of the newest failed logins, since boot
	refuse   time.Duration            // nobody may log in before; since boot
	paced    time.Duration            // when the newest thing to be recorded is due; since boot
}

// New returns a server. It starts nothing: connections are served by whoever
// calls [Server.ServeConn].
func New(cfg Config) (*Server, error) {
	if cfg.Clock == nil {
		cfg.Clock = lock.SystemClock{}
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
// again changes its end; that of another engineer or key is refused with
// [protocol.CodeConflict].
func (s *Server) Enable(ctx context.Context, in Session, authorities [][]byte) error {
	now := s.cfg.Clock.Now()
	if in.ID == "" || in.Engineer == "" || in.Key == "" || len(authorities) == 0 || !in.Expires.After(now) {
		return protocol.Errorf(protocol.CodeInvalid, "a session needs an id, an engineer with a key, a user authority and an end in the future")
	}
	in.until = s.cfg.Clock.Boot() + in.Expires.Sub(now)
	for _, wire := range authorities {
		key, err := ssh.ParsePublicKey(wire)
		if err != nil {
			return protocol.Errorf(protocol.CodeInvalid, "a user authority of session %s is no SSH key", in.ID)
		}
		in.authorities = append(in.authorities, key)
	}
	if err := s.mayEnable(in); err != nil {
		return err
	}
	rec := s.record(auditlog.OpEnableSession, auditlog.Success, in)
	rec.Properties["expires"] = in.Expires.UTC().Format(time.RFC3339)
	if err := s.append(ctx, rec); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.mayEnableLocked(in); err != nil {
		return err
	}
	if old := s.sessions[in.ID]; old != nil {
		old.Session, old.ended = in, false
		return nil
	}
	s.sessions[in.ID] = &session{Session: in, conns: make(map[net.Conn]*connection)}
	return nil
}

func (s *Server) mayEnable(in Session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mayEnableLocked(in)
}

func (s *Server) mayEnableLocked(in Session) error {
	old := s.sessions[in.ID]
	switch {
	case old == nil && len(s.sessions) >= maxSessions:
		return protocol.Errorf(protocol.CodeLimit, "node %s has %d support sessions: disable some first", s.cfg.Node, maxSessions)
	case old != nil && (old.Engineer != in.Engineer || old.Key != in.Key):
		return protocol.Errorf(protocol.CodeConflict, "session %s is of another engineer or key: enable a new one", in.ID)
	}
	return nil
}

// Engineer returns whose session it is, and whether it is known: enabled, or
// expired and not yet disabled.
func (s *Server) Engineer(id protocol.SessionID) (protocol.Person, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.sessions[id]
	if one == nil {
		return "", false
	}
	return one.Engineer, true
}

// Disable ends a session and its connections. An unknown session is no error:
// it has ended. It acts first and records after.
func (s *Server) Disable(id protocol.SessionID, reason string) {
	s.mu.Lock()
	one := s.sessions[id]
	delete(s.sessions, id)
	if one == nil {
		s.mu.Unlock()
		return
	}
	end := endOfSession(reason)
	s.endLocked(one, end, partings[end])
	s.mu.Unlock()
	s.recordEnd(one.Session, reason)
}

// recordEnd records that a session has ended.
func (s *Server) recordEnd(one Session, reason string) {
	rec := s.record(auditlog.OpDisableSession, auditlog.Success, one)
	rec.Properties["reason"] = shell.Visible(reason)
	s.recordAfter(rec)
}

// endOfSession says how the recording of a session ends that is disabled.
func endOfSession(reason string) recording.Reason {
	if reason == string(recording.EndKilled) {
		return recording.EndKilled
	}
	return recording.EndDisabled
}

// Kick ends every connection, and the recordings for the reason; the sessions
// stay enabled. It returns at once.
func (s *Server) Kick(reason recording.Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.sessions {
		s.endLocked(one, reason, partings[reason])
	}
}

// endLocked closes the connections of a session, and says why on those that listen.
// Closing the transport frees every channel, whatever its command waits for; it may
// itself wait for a network that is stuck, and nobody waits for that.
func (s *Server) endLocked(one *session, reason recording.Reason, why string) {
	for raw, c := range one.conns { // each holds handlers above zero
		if c == nil {
			s.handlers.Go(func() { raw.Close() })
			continue
		}
		c.ended = cmp.Or(c.ended, why) // the first reason counts
		first := c.ended
		s.handlers.Go(func() { c.part(first) })
	}
	s.closeLocked(one, reason)
}

// Status lists the enabled sessions.
func (s *Server) Status() []*devicev1.SessionStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*devicev1.SessionStatus
	for _, one := range s.sessions {
		if one.ended {
			continue
		}
		n := int32(0)
		for _, c := range one.conns {
			if c != nil {
				n++
			}
		}
		status := &devicev1.SessionStatus{
			Session: string(one.ID), Engineer: string(one.Engineer), Expires: one.Expires.Unix(), Connections: n,
		}
		if one.sitting != nil {
			status.Recording, status.Watchers = one.sitting.ID(), one.sitting.Watchers()
		}
		list = append(list, status)
	}
	slices.SortFunc(list, func(a, b *devicev1.SessionStatus) int { return strings.Compare(a.Session, b.Session) })
	return list
}

// Run ends sessions that expire, puts out whom the lock no longer lets in, and
// ends every connection when ctx ends. It returns an error only if one of them
// hangs.
func (s *Server) Run(ctx context.Context) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return s.stop()
		case <-tick.C:
			s.watch()
		}
	}
}

// stop ends every connection and waits for them.
func (s *Server) stop() error {
	s.mu.Lock()
	s.stopped = true
	for _, one := range s.sessions {
		s.endLocked(one, recording.EndDone, "the agent stops")
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.handlers.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-time.After(stopWithin):
		return errors.New("support: a command that was told to end hangs")
	}
}

// watch ends what has to end.
func (s *Server) watch() {
	lease, unlocked := s.cfg.Lock.Lease()
	now := s.cfg.Clock.Now()
	var expired []Session
	s.mu.Lock()
	for id, one := range s.sessions {
		switch {
		case one.ended:
			if now.Sub(one.Expires) > forgetAfter {
				delete(s.sessions, id)
			}
		case s.over(one.Session):
			one.ended = true
			expired = append(expired, one.Session)
			s.endLocked(one, recording.EndDone, "its time is over")
		case unlocked && !letsIn(lease, one.Session):
			s.endLocked(one, recording.EndDone, "the node was unlocked for somebody else")
		}
	}
	s.mu.Unlock()
	for _, one := range expired {
		s.recordEnd(one, "expired")
	}
}

// over reports whether a session has expired, by the earlier of both clocks.
func (s *Server) over(one Session) bool {
	return !s.cfg.Clock.Now().Before(one.Expires) || s.cfg.Clock.Boot() >= one.until
}

// letsIn reports whether the engineer of a session may come in while a lease is
// held: the statement that the customer signed names a person and their SSH key, and
// beats what the control plane says of either. So nobody is recorded under a name
// that was not approved.
func letsIn(lease lock.Lease, one Session) bool {
	return lease.Purpose == protocol.SupportAccess && lease.Engineer.SSHKey == one.Key && lease.Engineer.Person == one.Engineer
}

// record makes a record about a session.
func (s *Server) record(op auditlog.Operation, result auditlog.Result, one Session) auditlog.Record {
	r := auditlog.NewRecord(s.cfg.Clock.Now(), op, result)
	r.Origin = s.cfg.Node.String()
	r.ResourceID = fmt.Sprintf("/devices/%s/nodes/%d", s.cfg.Node.Serial, s.cfg.Node.Node)
	r.Caller = string(one.Engineer)
	r.CorrelationID = string(one.ID)
	r.Properties = map[string]string{"ticket": string(one.Ticket), "key": one.Key}
	return r
}

// pace waits so that one session cannot fill the journal, without which nothing
// unlocks any more. An error says that ctx or the session has ended.
func (s *Server) pace(ctx context.Context, id protocol.SessionID) error {
	s.mu.Lock()
	one, now := s.sessions[id], s.cfg.Clock.Boot()
	if one == nil {
		s.mu.Unlock()
		return protocol.Errorf(protocol.CodeNotFound, "session %s has ended", id)
	}
	one.paced = max(one.paced, now-recordBurst*recordEvery) + recordEvery
	wait := one.paced - now
	s.mu.Unlock()
	if wait <= 0 {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(wait):
		return nil
	}
}

// append puts a record in the journal, without the secrets that somebody may have
// typed into a command.
func (s *Server) append(ctx context.Context, r auditlog.Record) error {
	for name, value := range r.Properties {
		r.Properties[name] = s.cfg.Recorder.Masked(value)
	}
	_, err := s.cfg.Journal.Append(ctx, r)
	return err
}

// recordAfter records what has already happened: an ending never waits for the
// record.
func (s *Server) recordAfter(r auditlog.Record) {
	if err := s.append(context.Background(), r); err != nil {
		s.cfg.Log.Error().Err(err).Str("operation", string(r.Operation)).Msg("cannot record")
	}
}
