// Package share publishes folders of unlocked disks, over every protocol that the
// node is configured for: SMB here, NFS in package nfs below.
//
// The rules:
//
//   - Each protocol is served by a child process of its own. It dies with the
//     agent, and one that hangs is killed, so no client holds up a relock.
//   - What clients do with files is recorded ([FileLog]). A server whose record
//     stops ends at once.
//   - A protocol that this machine cannot serve is said to be so ([Service]) and
//     costs the others nothing.
//
// Of SMB:
//
//   - The server touches nothing of the system's Samba: configuration, users,
//     databases, sockets and logs are in one private directory, which goes with it.
//   - It speaks SMB 3 with encryption only, knows one user with a password made for
//     this lease, no guests and no remote procedures, and follows no links. The user
//     is nobody special to it, and root only on the files of a share.
//   - It lives in a process namespace of its own: whatever it has started dies with
//     it at once, and it dies with the agent.
package share

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// Share is one folder that is published.
type Share struct {
	Name string // e.g. "contosodata_BlockBlob"
	Dir  string // the folder, on a mounted disk
}

// FileLog records what clients do with files, as *recorder.Recording does. It is
// called concurrently.
type FileLog interface {
	// File records an operation. An error means that it is not on record and
	// nothing ever will be again: the server ends at once.
	File(recording.FileEvent) error
	// Failed is closed when nothing can be recorded any more; then Err says why.
	Failed() <-chan struct{}
	Err() error
}

// The protocols.
const (
	ProtocolSMB = "smb"
	ProtocolNFS = "nfs"
)

// Protocol is one way to serve shares. Its methods may be called concurrently.
type Protocol interface {
	// Name is [ProtocolSMB] or [ProtocolNFS].
	Name() string
	// Check says why this machine cannot serve it, as when a program is not
	// installed; nil if it can.
	Check() error
	// Start publishes shares and returns when the server answers. ctx ends the
	// start only. What clients do goes to log.
	Start(ctx context.Context, shares []Share, access approval.Access, log FileLog) (Running, error)
	// Cleanup kills the servers that an earlier agent left and removes what they
	// have in the run directory. The caller makes sure that no agent is running.
	Cleanup(ctx context.Context) error
}

// Running is the server of one protocol during one lease. All methods may be
// called concurrently.
type Running interface {
	// Address is the host and port at which the server answers.
	Address() string
	// Done is closed when the server has ended, by Stop or by itself.
	Done() <-chan struct{}
	// Err says why the server ended by itself. It may be called once Done is closed.
	Err() error
	// Stop kills the server with all its connections, within 300 ms, less if ctx
	// ends. It may be called more than once.
	Stop(ctx context.Context) error
}

// Service is how one protocol stands.
type Service struct {
	Protocol string // smb | nfs
	Address  string // host:port; "" unless it is served
	Trouble  string // why it is not served; "" if it is, or will be with the next lease
}

// Set is the protocols that a node is configured for.
type Set struct{ protocols []Protocol }

// New returns a set of protocols, which are started and listed in this order.
func New(protocols ...Protocol) *Set { return &Set{protocols} }

// Where returns a set of the same protocols, of which those are not served that
// allowed has a reason against.
func (s *Set) Where(allowed func(protocol string) error) *Set {
	out := &Set{slices.Clone(s.protocols)}
	for i, p := range out.protocols {
		if why := allowed(p.Name()); why != nil {
			out.protocols[i] = refused{p, why}
		}
	}
	return out
}

// refused is a protocol that may not be served now.
type refused struct {
	Protocol
	why error
}

// Check implements [Protocol].
func (r refused) Check() error { return r.why }

// Services says of each protocol whether this machine can serve it.
func (s *Set) Services() []Service {
	list := make([]Service, len(s.protocols))
	for i, p := range s.protocols {
		list[i] = Service{Protocol: p.Name(), Trouble: text(p.Check())}
	}
	return list
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Cleanup undoes what an earlier agent left of any protocol.
func (s *Set) Cleanup(ctx context.Context) error {
	errs := make([]error, len(s.protocols))
	for i, p := range s.protocols {
		errs[i] = p.Cleanup(ctx)
	}
	return errors.Join(errs...)
}

// Server is the shares of one lease, over all protocols that this machine can
// serve. All methods may be called concurrently.
type Server struct {
	log  FileLog
	done chan struct{}

	mu       sync.Mutex // guards what follows
	stopped  bool
	services []Service // one for each protocol of the set
	running  []Running // of the same index; nil where there is no server
	err      error
}

// Start publishes shares over every protocol that passes its check, and returns
// when they answer; ctx ends the start only. The caller ends the server with
// [Server.Stop].
func (s *Set) Start(ctx context.Context, shares []Share, access approval.Access, log FileLog) (*Server, error) {
	server := &Server{log: log, done: make(chan struct{}), services: s.Services(), running: make([]Running, len(s.protocols))}
	for i, p := range s.protocols {
		if server.services[i].Trouble != "" {
			continue
		}
		running, err := p.Start(ctx, shares, access, log)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", p.Name(), err), server.Stop(context.WithoutCancel(ctx)))
		}
		server.running[i], server.services[i].Address = running, running.Address()
	}
	server.watch()
	return server, nil
}

// watch notes which servers end by themselves, and ends them all when nothing can
// be recorded any more.
func (s *Server) watch() {
	var all sync.WaitGroup
	for i, r := range s.running {
		if r == nil {
			continue
		}
		all.Go(func() {
			select {
			case <-r.Done():
				s.note(i, r.Err())
				r.Stop(context.Background()) // it gives back what it holds
			case <-s.log.Failed():
				s.note(i, fmt.Errorf("what clients do is not recorded any more: %w", s.log.Err()))
				r.Stop(context.Background())
				<-r.Done()
			}
		})
	}
	if !slices.ContainsFunc(s.running, func(r Running) bool { return r != nil }) {
		return // Stop closes done
	}
	go func() {
		all.Wait()
		close(s.done)
	}()
}

// note writes down why a server ended, unless it was told to.
func (s *Server) note(i int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	if err == nil {
		err = errors.New("the server ended")
	}
	service := &s.services[i]
	service.Address, service.Trouble = "", err.Error()
	s.err = errors.Join(s.err, fmt.Errorf("%s: %w", service.Protocol, err))
}

// Services says how each protocol stands.
func (s *Server) Services() []Service {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.services)
}

// Credentials returns the only user that servers with a login know. They are shown
// inside the support session only, and end with the server. Without such a server
// they are empty.
func (s *Server) Credentials() (user, password string) {
	for _, r := range s.running {
		if c, ok := r.(interface {
			Credentials() (user, password string)
		}); ok {
			return c.Credentials()
		}
	}
	return "", ""
}

// Done is closed when every protocol's server has ended, by Stop or by itself.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err says which servers ended by themselves, and why.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Stop kills all servers with their connections. It waits at most 300 ms, less if
// ctx ends; an error says that one still waits for a disk, or what could not be
// removed. Stop may be called more than once.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	first := !s.stopped
	s.stopped = true
	s.mu.Unlock()
	errs := make([]error, len(s.running))
	var all sync.WaitGroup
	idle := true
	for i, r := range s.running {
		if r != nil {
			idle = false
			all.Go(func() { errs[i] = r.Stop(ctx) })
		}
	}
	all.Wait()
	if idle && first {
		close(s.done)
	}
	return errors.Join(errs...)
}
