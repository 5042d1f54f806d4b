// Package nfs serves shares over NFSv3, by go-nfs in a process of its own.
//
// NFS has no login: whoever connects from an allowed address is let in. So it is
// off unless the node's configuration and the approved request both say so.
//
// The rules:
//
//   - The process is this program again ([Main]), confined before it serves anyone:
//     it sees the shared folders and nothing else, has no capabilities and can gain
//     none, no network but the socket it is given, and processes of its own only.
//     What it does wrong, a panic of the library included, costs the share only.
//   - It dies with the agent. [Server.Stop] kills it and waits for no client.
//   - An operation is answered when its event is recorded. If the record stops, so
//     does the share.
//   - go-nfs is asked for little. A front in this package reads the requests, bounds
//     them, refuses names that are no names, answers what the library does not do or
//     does wrong (reading, writing, syncing, creating, listing the exports, every
//     failure), and leaves the rest to it.
//   - Files are reached through [os.Root] only, no link is followed or shown to
//     lead anywhere, and a file handle names nothing outside its share.
package nfs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/agent/internal/share"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// Config says where the server runs.
type Config struct {
	Self    []string       // how to start this program so that it calls [Main]; required
	Address string         // IP address to listen on, and no other; "" is 127.0.0.1
	Port    int            // TCP port, also of the mount protocol; 0 chooses a free one
	Allow   []netip.Prefix // addresses that may connect; none: loopback
	Keeper  *disk.Keeper   // ends the server when the agent is killed; nil only where that does not matter
}

// loopback are the addresses of this machine alone.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// Protocol serves shares over NFSv3. It implements [share.Protocol].
type Protocol struct{ cfg Config }

// New returns the protocol. It starts nothing.
func New(cfg Config) *Protocol {
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1"
	}
	if len(cfg.Allow) == 0 {
		cfg.Allow = loopback
	}
	return &Protocol{cfg}
}

// Name implements [share.Protocol].
func (*Protocol) Name() string { return share.ProtocolNFS }

// Check implements [share.Protocol].
func (p *Protocol) Check() error {
	if len(p.cfg.Self) == 0 {
		return errors.New("this program cannot start itself as an NFS server")
	}
	return nil
}

// Cleanup implements [share.Protocol]. There is nothing to do: the kernel kills the
// server when the agent dies, and it has nothing in any folder.
func (*Protocol) Cleanup(context.Context) error { return nil }

// Start implements [share.Protocol].
func (p *Protocol) Start(ctx context.Context, shares []share.Share, access approval.Access, log share.FileLog) (share.Running, error) {
	s, err := start(ctx, p.cfg, shares, access, log)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Server is a running NFS server of one lease. All methods may be called
// concurrently.
type Server struct {
	address string
	child   *disk.Child
	events  net.Conn
	said    *said

	attended sync.WaitGroup // reads events

	mu  sync.Mutex
	err error // why it was killed
}

const (
	startTime = 10 * time.Second       // until a server answers
	endTime   = 150 * time.Millisecond // for a server to record what it has under way
	stopTime  = 150 * time.Millisecond // until a killed server is gone, unless it waits for a disk
	ackTime   = 5 * time.Second        // for the word that an event is recorded
)

func start(ctx context.Context, cfg Config, shares []share.Share, access approval.Access, log share.FileLog) (*Server, error) {
	if len(shares) == 0 {
		return nil, errors.New("cannot share over NFS: no folder is given")
	}
	listener, err := listen(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	order, err := json.Marshal(order{Shares: shares, Access: access, Allow: cfg.Allow})
	if err != nil {
		return nil, err
	}
	s := &Server{address: listener.Addr().String(), said: new(said)}
	if err := s.start(cfg, listener, order); err != nil {
		return nil, fmt.Errorf("cannot start the NFS server: %w", err)
	}
	ready := make(chan struct{})
	s.attended.Go(func() { s.attend(shares, log, ready) })
	if err := s.awaitReady(ctx, ready); err != nil {
		s.child.Kill()
		<-s.child.Done()
		s.attended.Wait()
		return nil, fmt.Errorf("the NFS server does not start: %w", err)
	}
	return s, nil
}

func (s *Server) awaitReady(ctx context.Context, ready <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	select {
	case <-ready:
		return nil
	case <-s.child.Done():
		s.attended.Wait()
		return s.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func listen(ctx context.Context, cfg Config) (*net.TCPListener, error) {
	address, err := netip.ParseAddr(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("cannot share at %q: want an IP address", cfg.Address)
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(address, uint16(cfg.Port)).String())
	if err != nil {
		return nil, fmt.Errorf("cannot share over NFS: %w", err)
	}
	return listener.(*net.TCPListener), nil
}

// start starts the process, which inherits the listener and one end of a socket for
// its events.
func (s *Server) start(cfg Config, listener *net.TCPListener, order []byte) error {
	socket, err := listener.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	cmd := exec.Command(cfg.Self[0], cfg.Self[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{orderVariable + "=" + string(order)}
	cmd.Stderr = s.said
	cmd.ExtraFiles = []*os.File{socket, theirs}
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Setsid:     true,
	}
	if s.child, err = disk.StartChild(cmd, cfg.Keeper); err != nil {
		ours.Close()
		return err
	}
	s.events = ours
	return nil
}

// socketPair returns two ends of one connection.
func socketPair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	mine := os.NewFile(uintptr(fds[0]), "events")
	defer mine.Close()
	theirs = os.NewFile(uintptr(fds[1]), "events")
	if ours, err = net.FileConn(mine); err != nil {
		theirs.Close()
	}
	return ours, theirs, err
}

// attend records what the server says until it has ended, and kills it if it says
// what it must not, or when there is no record any more.
func (s *Server) attend(shares []share.Share, log share.FileLog, ready chan<- struct{}) {
	defer s.events.Close()
	go func() {
		<-s.child.Done()
		s.events.SetReadDeadline(time.Now())
	}()
	if err := relay(s.events, shares, log, ready); err != nil {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
	}
	s.child.Kill()
}

// maxFrame bounds what the server says at once, in bytes: two paths and more.
const maxFrame = 4 * maxPath

// relay passes events on until they end. An error says why the server must.
func relay(events net.Conn, shares []share.Share, log share.FileLog, ready chan<- struct{}) error {
	known := make(map[string]bool)
	for _, s := range shares {
		known[s.Name] = true
	}
	lines := bufio.NewScanner(events)
	lines.Buffer(nil, maxFrame)
	for lines.Scan() {
		var f frame
		if err := json.Unmarshal(lines.Bytes(), &f); err != nil {
			return fmt.Errorf("the NFS server says what nobody understands: %w", err)
		}
		if f.Ready {
			if ready == nil {
				return errors.New("the NFS server began twice")
			}
			close(ready)
			ready = nil
			continue
		}
		event := f.event()
		if !known[event.Share] {
			return fmt.Errorf("the NFS server reports of a share it does not have: %q", event.Share)
		}
		if err := log.File(event); err != nil {
			return fmt.Errorf("the use of the shares cannot be recorded: %w", err)
		}
		events.SetWriteDeadline(time.Now().Add(ackTime))
		if _, err := events.Write([]byte{acknowledged}); err != nil {
			return nil // it has ended
		}
	}
	return nil
}

// Address returns the host and port at which the server answers.
func (s *Server) Address() string { return s.address }

// Done is closed when the server has ended, by Stop or by itself.
func (s *Server) Done() <-chan struct{} { return s.child.Done() }

// Err says why the server ended by itself. It may be called once Done is closed.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	return fmt.Errorf("the NFS server ended: %w: %s", errors.Join(s.child.Err()), s.said)
}

// Stop ends the server with all its connections: it records what was read and
// written, or is killed. It waits at most 300 ms, less if ctx ends. An error says
// that it still waits for a disk; it is gone once that disk is closed. Stop may be
// called more than once.
func (s *Server) Stop(ctx context.Context) error {
	s.child.Signal(endSignal)
	if s.ended(ctx, endTime) {
		return nil
	}
	s.child.Kill()
	if s.ended(ctx, stopTime) {
		return nil
	}
	return errors.New("the NFS server was killed, but still waits for a disk")
}

// ended waits for the server's end.
func (s *Server) ended(ctx context.Context, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-s.child.Done():
		s.attended.Wait()
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}

// said keeps the first of what the server says before it ends.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements [io.Writer].
func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if room := 1000 - s.text.Len(); room > 0 {
		s.text.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}

// String returns the text as one line.
func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(strings.Fields(s.text.String()), " ")
}
