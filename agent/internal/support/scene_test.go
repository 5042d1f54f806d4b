package support

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/agent/internal/recorder"
	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// proxySocket makes the test binary the ProxyCommand of an ssh client.
const proxySocket = "SUPPORT_TEST_PROXY"

func TestMain(m *testing.M) {
	if path := os.Getenv(proxySocket); path != "" {
		proxy(path)
		return
	}
	goleak.VerifyTestMain(m)
}

func proxy(path string) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go func() {
		io.Copy(conn, os.Stdin)
		conn.(*net.UnixConn).CloseWrite()
	}()
	io.Copy(os.Stdout, conn)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newKey() ed25519.PrivateKey { return must(certs.NewKey()) }

func signer(key ed25519.PrivateKey) ssh.Signer { return must(ssh.NewSignerFromKey(key)) }

// fakeLock is a lock that is what the test says.
type fakeLock struct {
	mu    sync.Mutex
	lease *lock.Lease
	stuck <-chan struct{}
}

// hang makes a look at the status hear of no context, until release is closed.
func (f *fakeLock) hang(release <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stuck = release
}

func (f *fakeLock) set(l *lock.Lease) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lease = l
}

func (f *fakeLock) Lease() (lock.Lease, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lease == nil {
		return lock.Lease{}, false
	}
	return *f.lease, true
}

func (f *fakeLock) Status() *devicev1.NodeStatus {
	f.mu.Lock()
	stuck := f.stuck
	f.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
	l, unlocked := f.Lease()
	s := &devicev1.NodeStatus{State: "Locked", Disks: []*devicev1.DiskStatus{{Disk: "disk1", State: "locked", Method: "XTS-AES-128"}}}
	if unlocked {
		s.State, s.Disks[0].State = "Unlocked", "mounted"
		s.Shares = []*devicev1.ShareStatus{{Name: "contoso_BlockBlob", State: "open", Protocol: "smb", Address: l.Address, Access: string(l.Access)}}
	}
	return s
}

// memoryJournal keeps records, until it breaks.
type memoryJournal struct {
	mu      sync.Mutex
	broken  bool
	records []auditlog.Record
}

func (j *memoryJournal) Append(_ context.Context, r auditlog.Record) (int64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken {
		return 0, protocol.Errorf(protocol.CodeNotRecorded, "not recorded: the file system of the journal is gone")
	}
	if _, err := r.Encode(); err != nil {
		return 0, err
	}
	j.records = append(j.records, r)
	return int64(len(j.records)), nil
}

func (j *memoryJournal) breakNow() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.broken = true
}

// of returns the records of an operation, as "result property=…".
func (j *memoryJournal) of(op auditlog.Operation, properties ...string) (list []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range j.records {
		if r.Operation != op {
			continue
		}
		text := string(r.Result)
		for _, p := range properties {
			if v, ok := r.Properties[p]; ok {
				text += " " + p + "=" + v
			}
		}
		list = append(list, text)
	}
	return list
}

// testClock is a clock that can be set.
type testClock struct {
	mu        sync.Mutex
	wall      time.Duration // by how much the wall clock was set forth
	suspended time.Duration // boot time that nobody saw
}

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Round(0).Add(c.wall)
}

func (c *testClock) Boot() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return lock.SystemClock{}.Boot() + c.suspended
}

func (c *testClock) add(wall, suspended time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall += wall
	c.suspended += suspended
}

// scene is a node with one support session, and its engineer at a real ssh.
type scene struct {
	t           *testing.T
	dir         string
	socket      string
	authorities *certs.Authorities
	node        protocol.NodeID
	lock        *fakeLock
	journal     *memoryJournal
	clock       *testClock
	server      *Server
	records     *recorder.Store
	erin        ed25519.PrivateKey
	session     Session
	manifests   []*devicev1.ReportManifestRequest
	share       string       // folder of contoso_BlockBlob
	serving     atomic.Value // the SessionID that the socket serves
	stop        func()
}

func newScene(t *testing.T) *scene {
	t.Helper()
	for _, program := range []string{"ssh"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	s := &scene{
		t: t, dir: t.TempDir(), node: protocol.NodeID{Serial: "DBX0001", Node: 1},
		lock: &fakeLock{}, journal: &memoryJournal{}, clock: &testClock{}, erin: newKey(),
	}
	s.serving.Store(protocol.SessionID("ses-1"))
	s.authorities, _, _ = certs.Open(filepath.Join(s.dir, "authority"))
	host := newKey()
	cert := must(s.authorities.SSHHostCert(signer(host).PublicKey(), s.node, time.Hour))
	s.records = must(recorder.New(recorder.Config{
		Dir: filepath.Join(s.dir, "recordings"), Node: s.node, Key: newKey(), Journal: s.journal, Quota: 4 << 20, Keep: time.Hour, Log: zerolog.Nop(),
	}))
	s.server = must(New(Config{
		Node: s.node, HostKey: host, HostCertificate: cert.Marshal(), Lock: s.lock, Journal: s.journal, Clock: s.clock, Recorder: s.records,
		Manifests: func(m *devicev1.ReportManifestRequest) { s.manifests = append(s.manifests, m) }, Log: zerolog.Nop(),
	}))
	s.session = Session{
		ID: "ses-1", Engineer: "erin@provider.example", Key: ssh.FingerprintSHA256(signer(s.erin).PublicKey()),
		Ticket: "SR-2001", Expires: time.Now().Add(time.Hour),
	}
	s.enable(s.session)
	s.share = filepath.Join(s.dir, "disk1", "contoso_BlockBlob")
	s.write("photos/a.txt", "alpha")
	s.write("Wrong_Folder/b.txt", "beta")
	s.write("Wrong_Folder/c d.txt", "gamma")
	os.WriteFile(filepath.Join(s.dir, "disk1", "secret"), []byte("secret"), 0o600)
	s.listen()
	return s
}

func (s *scene) enable(one Session) {
	s.t.Helper()
	if err := s.server.Enable(s.t.Context(), one, [][]byte{s.authorities.SSHUserAuthority().Marshal()}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) write(name, content string) {
	s.t.Helper()
	file := filepath.Join(s.share, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)); err != nil {
		s.t.Fatal(err)
	}
}

// listen serves a session on a socket, as the tunnel would.
func (s *scene) listen() {
	dir := must(os.MkdirTemp("", "support"))
	s.socket = filepath.Join(dir, "s")
	ln := must(net.Listen("unix", s.socket))
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		if err := s.records.Run(ctx); err != nil {
			s.t.Error(err)
		}
	})
	all.Go(func() {
		if err := s.server.Run(ctx); err != nil {
			s.t.Error(err)
		}
	})
	all.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() { s.server.ServeConn(ctx, conn, s.serving.Load().(protocol.SessionID)) })
		}
	})
	s.stop = sync.OnceFunc(func() {
		cancel()
		ln.Close()
		all.Wait()
		os.RemoveAll(dir)
	})
	s.t.Cleanup(s.stop)
}

// unlock gives the engineer of key a lease over the share.
func (s *scene) unlock(access approval.Access, key string) {
	shares := must(copyjob.Shares("disk1", filepath.Join(s.dir, "disk1")))
	s.lock.set(&lock.Lease{
		Purpose: protocol.SupportAccess, RequestID: "LockboxRequest_1", Order: "ORD-1001", Ticket: "SR-2001",
		Engineer: approval.Engineer{Person: "erin@provider.example", SSHKey: key}, Access: access,
		End: time.Now().Add(8 * time.Hour), Shares: shares, Address: "127.0.0.1:4450", User: "lease1", Password: "pw-of-this-lease",
	})
}

// login is what an ssh client presents.
type login struct {
	key     ed25519.PrivateKey
	cert    *ssh.Certificate
	user    string
	trusted ssh.PublicKey // of host certificates
	host    string
	noCert  bool
	options []string
	stdin   io.Reader
}

func (s *scene) cert(key ed25519.PrivateKey, session protocol.SessionID, node protocol.NodeID) *ssh.Certificate {
	return must(s.authorities.SSHUserCert(signer(key).PublicKey(), "erin@provider.example", session, node, 10*time.Minute))
}

func (s *scene) login() login {
	return login{
		key: s.erin, cert: s.cert(s.erin, "ses-1", s.node), user: "ses-1",
		trusted: s.authorities.SSHHostAuthority(), host: certs.SSHHostName(s.node),
	}
}

// result is how an ssh client ended.
type result struct {
	code     int
	out, err string
}

// options returns what stock clients need to log in.
func (s *scene) options(l login) []string {
	dir := must(os.MkdirTemp(s.dir, "client"))
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			s.t.Fatal(err)
		}
		return path
	}
	key := file("id", pem.EncodeToMemory(must(ssh.MarshalPrivateKey(l.key, ""))))
	argv := []string{"-F", "none"}
	option := func(key, value string) { argv = append(argv, "-o", key+"="+value) }
	option("IdentityFile", key)
	option("User", l.user)
	option("IdentitiesOnly", "yes")
	option("IdentityAgent", "none")
	option("BatchMode", "yes")
	option("StrictHostKeyChecking", "yes")
	option("GlobalKnownHostsFile", "none")
	option("ConnectTimeout", "20")
	option("UserKnownHostsFile", file("known_hosts", []byte(certs.KnownHostsLine(l.trusted))))
	option("ProxyCommand", must(os.Executable()))
	if !l.noCert {
		option("CertificateFile", file("id-cert.pub", ssh.MarshalAuthorizedKey(l.cert)))
	}
	return argv
}

// command makes the stock ssh client run a command, or a shell without one.
func (s *scene) command(l login, args ...string) *exec.Cmd {
	return s.stock("ssh", l, append(append(l.options, l.host), args...)...)
}

// stock is a stock client: ssh, scp, sftp.
func (s *scene) stock(program string, l login, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(s.t.Context(), program, append(s.options(l), args...)...)
	cmd.Env = append(os.Environ(), proxySocket+"="+s.socket)
	cmd.Stdin = l.stdin
	cmd.WaitDelay = 10 * time.Second // for the proxy, on a busy machine
	return cmd
}

func (s *scene) ssh(l login, args ...string) result {
	s.t.Helper()
	return s.end(s.command(l, args...))
}

// end runs a client to its end.
func (s *scene) end(cmd *exec.Cmd) result {
	s.t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		s.t.Fatalf("%v %v", err, exit)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// run runs a command as the session's engineer.
func (s *scene) run(line string) result {
	s.t.Helper()
	return s.ssh(s.login(), line)
}

// wants checks exit status, output and error output of a command.
func (s *scene) wants(line string, code int, out, errOut string) {
	s.t.Helper()
	r := s.run(line)
	if r.code != code || !strings.Contains(r.out, out) || !strings.Contains(r.err, errOut) {
		s.t.Errorf("%s: exit %d\nout: %s\nerr: %s\nwant %d, %q, %q", line, r.code, r.out, r.err, code, out, errOut)
	}
}

// client logs in without OpenSSH, so that it can misbehave.
func (s *scene) client() *ssh.Client {
	s.t.Helper()
	raw := must(net.Dial("unix", s.socket))
	certSigner := must(ssh.NewCertSigner(s.cert(s.erin, "ses-1", s.node), signer(s.erin)))
	conn, channels, requests, err := ssh.NewClientConn(raw, "node", &ssh.ClientConfig{
		User: "ses-1", Auth: []ssh.AuthMethod{ssh.PublicKeys(certSigner)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	c := ssh.NewClient(conn, channels, requests)
	s.t.Cleanup(func() { c.Close() })
	return c
}

// ends fails the test unless the connection ends within the time.
func ends(t *testing.T, c *ssh.Client, within time.Duration) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		c.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(within):
		t.Errorf("the connection is still there after %s", within)
		c.Close()
		<-done
	}
}

func (s *scene) connections() int {
	n := 0
	for _, one := range s.server.Status() {
		n += int(one.Connections)
	}
	return n
}

func contains(list []string, want string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, want) })
}
