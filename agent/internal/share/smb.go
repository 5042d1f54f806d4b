package share

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// SMBConfig says where the SMB server runs.
type SMBConfig struct {
	RunDir  string         // private directory of the agent, made if missing; the server's own lies below
	SMBD    string         // path of smbd; "" looks it up
	Address string         // IP address to listen on, and no other; "" is 127.0.0.1
	Port    int            // TCP port; 0 chooses a free one
	Allow   []netip.Prefix // where clients may come from; none: this machine
	Keeper  *disk.Keeper   // ends the server when the agent is killed; nil only where that does not matter

	grace time.Duration // instead of graceTime, in tests
}

// SMB serves shares by a Debian smbd.
type SMB struct {
	cfg SMBConfig

	mu      sync.Mutex
	modules string // smbd's folder of modules, once it is known
}

// NewSMB returns the protocol. It starts nothing.
func NewSMB(cfg SMBConfig) *SMB { return &SMB{cfg: cfg} }

// Name implements [Protocol].
func (*SMB) Name() string { return ProtocolSMB }

// Check implements [Protocol].
func (p *SMB) Check() error {
	smbd, err := findProgram(cmp.Or(p.cfg.SMBD, "smbd"))
	if err != nil {
		return err
	}
	dir, err := p.moduleDir(smbd)
	if err != nil {
		return err
	}
	for module, use := range map[string]string{"full_audit": "nothing could be recorded", "worm": "changing files could not be refused"} {
		if _, err := os.Stat(filepath.Join(dir, "vfs", module+".so")); err != nil {
			return fmt.Errorf("smbd has no module %s, so %s: install the package samba-vfs-modules", module, use)
		}
	}
	return nil
}

// moduleDir returns the folder in which smbd looks for modules.
func (p *SMB) moduleDir(smbd string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.modules != "" {
		return p.modules, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, smbd, "--build-options")
	cmd.Env = environment
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s does not start: %w", smbd, err)
	}
	for line := range strings.Lines(string(out)) {
		if dir, ok := strings.CutPrefix(strings.TrimSpace(line), "MODULESDIR: "); ok {
			p.modules = dir
			return dir, nil
		}
	}
	return "", fmt.Errorf("%s does not say where its modules are: is it smbd?", smbd)
}

// smbServer is a running SMB server of one lease.
type smbServer struct {
	dir      string // its private directory
	address  string // host and port
	user     string
	password string
	keeper   *disk.Keeper
	audit    *auditor

	mu    sync.Mutex // guards what follows
	child *disk.Child
	err   error // why the record stopped
}

// startTime bounds how long a server may take until it answers.
const startTime = 20 * time.Second

// Start implements [Protocol].
func (p *SMB) Start(ctx context.Context, shares []Share, access approval.Access, log FileLog) (Running, error) {
	s, err := startSMB(ctx, p.cfg, shares, access, log)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func startSMB(ctx context.Context, cfg SMBConfig, shares []Share, access approval.Access, log FileLog) (*smbServer, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if err := checkShares(shares); err != nil {
		return nil, err
	}
	if err := checkFree(ctx, cfg.address()); err != nil {
		return nil, err
	}
	s, err := newServer(cfg)
	if err != nil {
		return nil, err
	}
	if err = s.prepare(ctx, cfg, shares, access); err == nil {
		err = s.listen(shares, access, log)
	}
	if err == nil {
		err = s.start(ctx, cfg)
	}
	if err != nil {
		return nil, errors.Join(err, s.giveBack())
	}
	return s, nil
}

// complete fills in what is not set.
func (c *SMBConfig) complete() (err error) {
	if c.Address == "" {
		c.Address = "127.0.0.1"
	}
	if net.ParseIP(c.Address) == nil {
		return fmt.Errorf("cannot share at %q: want an IP address", c.Address)
	}
	if len(c.Allow) == 0 {
		c.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	}
	if c.Port == 0 {
		if c.Port, err = freePort(c.Address); err != nil {
			return err
		}
	}
	if c.SMBD == "" {
		c.SMBD = "smbd"
	}
	if c.SMBD, err = findProgram(c.SMBD); err != nil {
		return err
	}
	if err := os.MkdirAll(c.RunDir, 0o700); err != nil {
		return err
	}
	if c.RunDir, err = filepath.Abs(c.RunDir); err != nil {
		return err
	}
	c.RunDir, err = filepath.EvalSymlinks(c.RunDir)
	return err
}

// allows reports whether the server lets this machine in, whose address is then
// the server's own.
func (c *SMBConfig) allows() bool {
	own, err := netip.ParseAddr(c.Address)
	if err != nil || own.IsUnspecified() {
		own = netip.MustParseAddr("127.0.0.1")
	}
	return slices.ContainsFunc(c.Allow, func(p netip.Prefix) bool { return p.Contains(own.Unmap()) })
}

func (c *SMBConfig) address() string { return net.JoinHostPort(c.Address, strconv.Itoa(c.Port)) }

// freePort returns a port of address that nobody listens at.
func freePort(address string) (int, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return 0, fmt.Errorf("cannot share at %s: %w", address, err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// findProgram finds a program of the package samba. Programs for administrators
// need not be on everybody's path.
func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil && !strings.Contains(name, "/") {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	if err != nil {
		return "", fmt.Errorf("%s is not installed: install the package samba", name)
	}
	return path, nil
}

// checkFree fails if the address is taken: smbd would say so in its log only.
func checkFree(ctx context.Context, address string) error {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("cannot share at %s: %w", address, err)
	}
	return listener.Close()
}

// listen prepares to hear what clients do.
func (s *smbServer) listen(shares []Share, access approval.Access, log FileLog) error {
	t, err := newTracker(shares, access, log, s.fail)
	if err != nil {
		return err
	}
	if s.audit, err = listenAudit(s.path("dev", "log"), t, s.fail); err != nil {
		t.close()
	}
	return err
}

// fail ends the server because the record of what clients do has stopped.
func (s *smbServer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = fmt.Errorf("what clients do is not recorded any more: %w", err)
	}
	if s.child != nil {
		s.child.Kill()
	}
}

// start starts smbd and waits until it answers.
func (s *smbServer) start(ctx context.Context, cfg SMBConfig) error {
	cmd := exec.Command(cfg.SMBD, "--foreground", "--no-process-group",
		"--configfile="+s.path("smb.conf"), "--log-basename="+s.path("log"))
	cmd.Dir = "/"
	cmd.Env = environment
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Setsid: true}
	child, err := disk.StartChildApart(cmd, cfg.Keeper, func() error { return coverDev(s.path("dev")) })
	if err != nil {
		return fmt.Errorf("cannot start smbd: %w", err)
	}
	s.mu.Lock()
	s.child = child
	s.mu.Unlock()
	if err := s.waitReady(ctx, !cfg.allows()); err != nil {
		s.child.Kill()
		<-s.child.Done()
		return fmt.Errorf("cannot share at %s: %w: %s", s.address, err, s.lastLog())
	}
	return nil
}

func (s *smbServer) waitReady(ctx context.Context, denied bool) error {
	for {
		err := probe(ctx, s.address, denied)
		if err == nil {
			return nil
		}
		select {
		case <-s.child.Done():
			return errors.New("smbd ended")
		case <-ctx.Done():
			return fmt.Errorf("smbd does not answer: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// lastLog returns the end of smbd's log as one line.
func (s *smbServer) lastLog() string {
	const most = 1000
	text, err := os.ReadFile(s.path("log", "log.smbd"))
	if err != nil {
		return "it left no log"
	}
	return strings.Join(strings.Fields(string(text[max(0, len(text)-most):])), " ")
}

// Credentials returns the only user that the server knows. They are shown inside
// the support session only, and end with the server.
func (s *smbServer) Credentials() (user, password string) { return s.user, s.password }

// Address implements [Running].
func (s *smbServer) Address() string { return s.address }

// Done implements [Running].
func (s *smbServer) Done() <-chan struct{} { return s.child.Done() }

// Err implements [Running].
func (s *smbServer) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	return fmt.Errorf("smbd ended: %s", s.lastLog())
}

// stopTime bounds [smbServer.Stop]. A server that waits for a disk that hangs ends
// only when the disk is closed, but it answers nobody from the moment it is killed.
const stopTime = 200 * time.Millisecond

// Stop implements [Running]: it also removes the server's directory, with the
// password in it. An error says that a process still waits for a disk; it was killed
// and is gone once that disk is closed.
func (s *smbServer) Stop(ctx context.Context) error {
	s.child.Kill()
	var err error
	select {
	case <-s.child.Done():
	case <-ctx.Done():
		err = errDying
	case <-time.After(stopTime):
		err = errDying
	}
	return errors.Join(err, s.giveBack())
}

var errDying = errors.New("smbd was killed, but still waits for a disk")

// giveBack records what is left to record and removes the server's directory.
func (s *smbServer) giveBack() error {
	var unrecorded error
	if s.audit != nil {
		unrecorded = s.audit.close()
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return errors.Join(unrecorded, err)
	}
	return errors.Join(unrecorded, s.keeper.ForgetDir(s.dir))
}

func (s *smbServer) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// Cleanup implements [Protocol].
func (p *SMB) Cleanup(ctx context.Context) error {
	dirs, err := filepath.Glob(filepath.Join(p.cfg.RunDir, dirPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		real, err := filepath.EvalSymlinks(dir)
		if err == nil {
			err = disk.KillUsers(real, "smbd")
		}
		if err == nil {
			err = os.RemoveAll(dir)
		}
		if err != nil {
			return fmt.Errorf("cannot undo what an earlier agent shares: %w", err)
		}
	}
	return ctx.Err()
}
