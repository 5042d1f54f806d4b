package share

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/agent/internal/disk/disktest"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// modeVariable makes this test binary play another part, see [TestMain].
const modeVariable = "SHARE_TEST_MODE"

func TestMain(m *testing.M) {
	switch os.Getenv(modeVariable) {
	case "keeper":
		if disk.RunKeeper(os.Stdin) != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case "agent":
		playAgent()
	}
	goleak.VerifyTestMain(m)
}

// shareTest is a server over a folder of its own.
type shareTest struct {
	cfg    SMBConfig
	folder string
	server *smbServer
	log    *keptLog
}

const shareName = "contosodata_BlockBlob"

func needSamba(t *testing.T) {
	t.Helper()
	disktest.NeedPrograms(t, "smbd", "smbclient", "smbpasswd", "sharesec", "net", "rpcclient")
}

func newShare(t *testing.T) *shareTest {
	t.Helper()
	needSamba(t)
	port, err := freePort("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	st := &shareTest{log: &keptLog{}, cfg: SMBConfig{RunDir: disktest.RunDir(t), Port: port}, folder: t.TempDir()}
	writeFile(t, filepath.Join(st.folder, "file"), "content")
	return st
}

func started(t *testing.T, access approval.Access) *shareTest {
	t.Helper()
	st := newShare(t)
	st.start(t, st.folder, access)
	return st
}

func (st *shareTest) start(t *testing.T, folder string, access approval.Access) {
	t.Helper()
	began := time.Now()
	server, err := startSMB(t.Context(), st.cfg, []Share{{Name: shareName, Dir: folder}}, access, st.log)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %v", time.Since(began))
	st.server = server
	t.Cleanup(func() { server.Stop(context.Background()) })
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// client runs commands in smbclient as the server's own user.
func (st *shareTest) client(commands string, options ...string) (string, error) {
	user, password := st.server.Credentials()
	return smbclient(st.cfg.Port, user, password, commands, options...)
}

func smbclient(port int, user, password, commands string, options ...string) (string, error) {
	return smbclientAt(shareName, port, user, password, commands, options...)
}

func smbclientAt(share string, port int, user, password, commands string, options ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	args := append([]string{"//127.0.0.1/" + share, "-p", strconv.Itoa(port), "-s", "/dev/null", "-c", commands}, options...)
	cmd := exec.CommandContext(ctx, "smbclient", args...)
	cmd.Env = append(os.Environ(), "USER="+user, "PASSWD="+password)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestListGetPut(t *testing.T) {
	st := started(t, approval.Delete)
	local := t.TempDir()
	big := make([]byte, 8<<20+17)
	rand.Read(big)
	writeFile(t, filepath.Join(local, "up"), string(big))

	out, err := st.client("ls")
	if err != nil || !strings.Contains(out, "file") {
		t.Fatalf("ls: %v: %s", err, out)
	}
	commands := fmt.Sprintf(`lcd %s; mkdir folder; put up folder\up; get folder\up down; rename file file2; ls; del folder\up; rmdir folder`, local)
	if out, err = st.client(commands); err != nil || strings.Contains(out, "NT_STATUS") {
		t.Fatalf("%v: %s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(local, "down")); err != nil || !bytes.Equal(got, big) {
		t.Errorf("down: %d bytes, %v", len(got), err)
	}
	if entries, _ := os.ReadDir(st.folder); len(entries) != 1 || entries[0].Name() != "file2" {
		t.Errorf("in the folder: %v", entries)
	}
}

func TestRefusals(t *testing.T) {
	st := started(t, approval.ReadOnly)
	user, password := st.server.Credentials()
	tests := map[string]func() (string, error){
		"wrong password": func() (string, error) { return smbclient(st.cfg.Port, user, password+"x", "ls") },
		"wrong user":     func() (string, error) { return smbclient(st.cfg.Port, "nobody", password, "ls") },
		"guest":          func() (string, error) { return smbclient(st.cfg.Port, "", "", "ls", "-N") },
		"NT1":            func() (string, error) { return st.client("ls", "-m", "NT1", "--option=client min protocol=NT1") },
		"SMB 2.1":        func() (string, error) { return st.client("ls", "-m", "SMB2_10") },
		"other share": func() (string, error) {
			return smbclientAt("root", st.cfg.Port, user, password, "ls")
		},
		"remote procedure": func() (string, error) {
			out, err := exec.CommandContext(t.Context(), "rpcclient", "-s", "/dev/null", "-p", strconv.Itoa(st.cfg.Port),
				"-U", user+"%"+password, "--client-protection=encrypt", "-c", "netshareenum", "127.0.0.1").CombinedOutput()
			return string(out), err
		},
	}
	for name, try := range tests {
		if out, err := try(); err == nil {
			t.Errorf("%s was let in: %s", name, out)
		}
	}
	if out, err := st.client("ls"); err != nil { // the control
		t.Errorf("with everything right: %v: %s", err, out)
	}
}

// TestNothingInClear looks at the wire, also with clients that would rather not
// encrypt.
func TestNothingInClear(t *testing.T) {
	st := started(t, approval.Delete)
	marker := strings.Repeat("MARKER-ON-THE-WIRE", 100)
	writeFile(t, filepath.Join(st.folder, "file"), marker)
	wire, port := tap(t, st.server.Address())
	user, password := st.server.Credentials()
	for _, options := range [][]string{{}, {"--client-protection=sign"}} {
		out, err := smbclient(port, user, password, "get file /dev/null; lcd /etc; put hostname "+marker[:18], options...)
		t.Logf("%v: %v: %s", options, err, out)
		if err != nil {
			t.Error("refused")
		}
	}
	seen := wire()
	if !bytes.Contains(seen, []byte("\xfdSMB")) {
		t.Error("no encrypted message was seen: the test tests nothing")
	}
	utf16 := strings.Join(strings.Split(marker[:18], ""), "\x00")
	if bytes.Contains(seen, []byte(marker[:18])) || bytes.Contains(seen, []byte(utf16)) {
		t.Error("data or names go in clear")
	}
}

// tap listens at port, passes connections on to address, and keeps what it sees.
func tap(t *testing.T, address string) (seen func() []byte, port int) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var wire bytes.Buffer
	var pumps sync.WaitGroup
	pump := func(to, from net.Conn) {
		defer to.Close()
		for buf := make([]byte, 64<<10); ; {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			mu.Lock()
			wire.Write(buf[:n])
			mu.Unlock()
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	pumps.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", address)
			if err != nil {
				client.Close()
				continue
			}
			pumps.Go(func() { pump(server, client) })
			pumps.Go(func() { pump(client, server) })
		}
	})
	t.Cleanup(func() { listener.Close(); pumps.Wait() })
	return func() []byte {
		mu.Lock()
		defer mu.Unlock()
		return bytes.Clone(wire.Bytes())
	}, listener.Addr().(*net.TCPAddr).Port
}

func TestAccess(t *testing.T) {
	tests := []struct {
		access    approval.Access
		put, drop bool
	}{
		{approval.ReadOnly, false, false},
		{approval.ReadWrite, true, false},
		{approval.Delete, true, true},
	}
	for _, tt := range tests {
		t.Run(string(tt.access), func(t *testing.T) {
			st := newShare(t)
			st.cfg.grace = time.Second
			time.Sleep(st.cfg.grace + 100*time.Millisecond)
			st.start(t, st.folder, tt.access)
			for commands, want := range map[string]bool{
				"get file /dev/null":           true,
				"lcd /etc; put hostname new":   tt.put,
				"mkdir folder":                 tt.put,
				"lcd /etc; put hostname file":  tt.drop,
				"del other":                    tt.drop,
				"rename another somewhereelse": tt.drop,
				"rmdir empty":                  tt.drop,
				"rename another other -f":      tt.drop, // over another
				"deltree empty":                tt.drop,
				"hardlink file other":          false, // over another
				"setmode file +r":              tt.drop,
				"get file:stream /dev/null":    false,
				"lcd /etc; put hostname f:s":   false,
				"lcd /etc; put hostname ../x":  tt.put, // the share's root is its own parent
			} {
				writeFile(t, filepath.Join(st.folder, "other"), "")
				writeFile(t, filepath.Join(st.folder, "another"), "")
				os.Mkdir(filepath.Join(st.folder, "empty"), 0o700)
				out, err := st.client(commands)
				if got := err == nil && !strings.Contains(out, "NT_STATUS"); got != want {
					t.Errorf("%s: %v, want %v: %v: %s", commands, got, want, err, out)
				}
			}
		})
	}
}

// TestAccessListStays tries to replace the access list that keeps read-write from
// deleting, over RPC, with that of a server of the client's own.
func TestAccessListStays(t *testing.T) {
	needSamba(t)
	const withRPC = "\n[global]\nrpc start on demand helpers = yes\n"
	own := newShare(t)
	own.cfg.Address = "::1"
	own.startWith(t, approval.Delete, withRPC)
	user, password := own.server.Credentials()
	for name, more := range map[string]string{"as configured": "", "had it RPC": withRPC} {
		t.Run(name, func(t *testing.T) {
			st := newShare(t)
			st.folder, st.cfg.Port = own.folder, own.cfg.Port // what net wants to be the same
			st.startWith(t, approval.ReadWrite, more, user, password)
			migrate := exec.CommandContext(t.Context(), "net", "rpc", "share", "migrate", "security", shareName,
				"-S", "::1", "--destination=127.0.0.1", "-p", strconv.Itoa(st.cfg.Port),
				"-U", user+"%"+password, "--client-protection=encrypt", "-s", "/dev/null")
			out, err := migrate.CombinedOutput()
			t.Logf("migrate: %v: %s", err, out)
			if err == nil {
				t.Error("the access list could be replaced")
			}
			st.client("del file")
			if _, err := os.Stat(filepath.Join(st.folder, "file")); err != nil {
				t.Errorf("deleted: %v", err)
			}
			if out, err := st.client("lcd /etc; put hostname new"); err != nil || strings.Contains(out, "NT_STATUS") { // the control
				t.Errorf("put: %v: %s", err, out)
			}
		})
	}
}

// startWith starts the server with more lines in its configuration and, if given,
// with the user and password of another.
func (st *shareTest) startWith(t *testing.T, access approval.Access, more string, credentials ...string) {
	t.Helper()
	if err := st.cfg.complete(); err != nil {
		t.Fatal(err)
	}
	var err error
	if st.server, err = newServer(st.cfg); err != nil {
		t.Fatal(err)
	}
	if len(credentials) > 0 {
		st.server.user, st.server.password = credentials[0], credentials[1]
	}
	if err := st.server.prepare(t.Context(), st.cfg, []Share{{Name: shareName, Dir: st.folder}}, access); err != nil {
		t.Fatal(err)
	}
	path := st.server.path("smb.conf")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, string(text)+more)
	if err := st.server.start(t.Context(), st.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.server.Stop(context.Background()) })
}

func TestFreePort(t *testing.T) {
	needSamba(t)
	var servers []*smbServer
	for range 2 {
		cfg := SMBConfig{RunDir: disktest.RunDir(t)}
		server, err := startSMB(t.Context(), cfg, []Share{{Name: shareName, Dir: t.TempDir()}}, approval.ReadOnly, &keptLog{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { server.Stop(context.Background()) })
		servers = append(servers, server)
		_, text, _ := net.SplitHostPort(server.Address())
		port, _ := strconv.Atoi(text)
		user, password := server.Credentials()
		if out, err := smbclient(port, user, password, "ls"); err != nil || port == 445 {
			t.Errorf("at port %s: %v: %s", text, err, out)
		}
	}
	if servers[0].Address() == servers[1].Address() {
		t.Errorf("both at %s", servers[0].Address())
	}
}

func TestNoEscape(t *testing.T) {
	st := newShare(t)
	outside := t.TempDir()
	writeFile(t, filepath.Join(outside, "secret"), "secret")
	for name, target := range map[string]string{"dir": outside, "link": filepath.Join(outside, "secret"), "up": ".."} {
		if err := os.Symlink(target, filepath.Join(st.folder, name)); err != nil {
			t.Fatal(err)
		}
	}
	st.start(t, st.folder, approval.Delete)
	for _, commands := range []string{
		`get dir\secret /dev/null`, `get link /dev/null`, `cd dir; ls`, `cd up; ls`, `get ..\..\etc\hostname /dev/null`, `get ..\secret /dev/null`,
	} {
		if out, err := st.client(commands); err == nil && !strings.Contains(out, "NT_STATUS") {
			t.Errorf("%s: %s", commands, out)
		}
	}
}

// occupy connects clients that say nothing, half of what they should, or never read
// the answers to what they ask.
func occupy(t *testing.T, address string) {
	t.Helper()
	for _, text := range [][]byte{nil, negotiate()[:20], bytes.Repeat(negotiate(), 10_000)} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		conn.Write(text)
	}
}

func TestStop(t *testing.T) {
	st := started(t, approval.ReadOnly)
	occupy(t, st.server.Address())
	user, password := st.server.Credentials()
	hung := exec.Command("smbclient", "//127.0.0.1/"+shareName, "-p", strconv.Itoa(st.cfg.Port), "-s", "/dev/null")
	hung.Env = append(os.Environ(), "USER="+user, "PASSWD="+password)
	stdin, err := hung.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := hung.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); hung.Process.Kill(); hung.Wait() })
	waitFor(t, func() bool { return len(serverProcesses(t, st)) > 4 }) // one for the client
	hung.Process.Signal(syscall.SIGSTOP)

	began := time.Now()
	if err := st.server.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	t.Logf("stopped in %v", time.Since(began))
	if took := time.Since(began); took > stopTime+time.Second {
		t.Errorf("Stop took %v", took)
	}
	disktest.NothingLeft(t, st.cfg.RunDir, 0)
	if entries, _ := os.ReadDir(st.cfg.RunDir); len(entries) > 0 {
		t.Errorf("left: %v", entries)
	}
	if _, err := net.Dial("tcp", st.server.Address()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after Stop: %v", err)
	}
	<-st.server.Done()
	if err := st.server.Stop(t.Context()); err != nil {
		t.Errorf("second Stop: %v", err)
	}
	st.start(t, st.folder, approval.ReadOnly) // at the same port, at once
	if _, again := st.server.Credentials(); again == password {
		t.Error("the password is the same as before")
	}
}

func serverProcesses(t *testing.T, st *shareTest) []string {
	t.Helper()
	var processes []string
	for _, left := range disktest.Left(t, st.cfg.RunDir) {
		if strings.Contains(left, "smbd") {
			processes = append(processes, left)
		}
	}
	return processes
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
	}
}

func TestDoneWhenSmbdDies(t *testing.T) {
	st := started(t, approval.ReadOnly)
	select {
	case <-st.server.Done():
		t.Fatal("done at once")
	case <-time.After(50 * time.Millisecond):
	}
	st.server.child.Kill()
	select {
	case <-st.server.Done():
	case <-time.After(10 * time.Second):
		t.Error("not done")
	}
	disktest.NothingLeft(t, st.cfg.RunDir, 10*time.Second)
}

func TestSecretsAreNowhere(t *testing.T) {
	st := started(t, approval.ReadWrite)
	_, password := st.server.Credentials()
	if len(password) < 20 {
		t.Errorf("a password of %d characters", len(password))
	}
	for _, process := range serverProcesses(t, st) {
		if strings.Contains(process, password) {
			t.Error("the password is an argument")
		}
	}
	filepath.WalkDir(st.server.dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		if text, err := os.ReadFile(path); err != nil || bytes.Contains(text, []byte(password)) {
			t.Errorf("%s: %v, or it holds the password", path, err)
		}
		return nil
	})
	for _, dir := range []string{st.cfg.RunDir, st.server.dir} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v", dir, info.Mode(), err)
		}
	}
}

func TestStartFailures(t *testing.T) {
	st := newShare(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	good := []Share{{Name: shareName, Dir: st.folder}}
	tests := map[string]struct {
		change func(*SMBConfig)
		shares []Share
		want   string
	}{
		"no smbd":       {func(c *SMBConfig) { c.SMBD = "/nonexistent/smbd" }, good, "install the package samba"},
		"no smbd named": {func(c *SMBConfig) { c.SMBD = "nosuchsmbd" }, good, "install the package samba"},
		"not smbd":      {func(c *SMBConfig) { c.SMBD = "/bin/true" }, good, "smbd ended"},
		"no address":    {func(c *SMBConfig) { c.Address = "localhost" }, good, "want an IP address"},
		"port taken":    {func(c *SMBConfig) { c.Port = taken.Addr().(*net.TCPAddr).Port }, good, "address already in use"},
		"no folder":     {func(*SMBConfig) {}, []Share{{Name: shareName, Dir: st.folder + "/missing"}}, "no such file"},
		"a file":        {func(*SMBConfig) {}, []Share{{Name: shareName, Dir: st.folder + "/file"}}, "is no folder"},
		"relative":      {func(*SMBConfig) {}, []Share{{Name: shareName, Dir: "."}}, "cannot share the folder"},
		"percent":       {func(*SMBConfig) {}, []Share{{Name: shareName, Dir: "/tmp/%u"}}, "cannot share the folder"},
		"newline":       {func(*SMBConfig) {}, []Share{{Name: shareName, Dir: "/tmp\nguest ok = yes"}}, "cannot share the folder"},
		"bad name":      {func(*SMBConfig) {}, []Share{{Name: "a]\n[b", Dir: st.folder}}, "cannot share as"},
		"homes":         {func(*SMBConfig) {}, []Share{{Name: "Homes", Dir: st.folder}}, "cannot share as"},
		"twice":         {func(*SMBConfig) {}, []Share{{Name: "a", Dir: st.folder}, {Name: "A", Dir: st.folder}}, "two folders"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := st.cfg
			tt.change(&cfg)
			server, err := startSMB(t.Context(), cfg, tt.shares, approval.ReadOnly, &keptLog{})
			if err == nil {
				server.Stop(t.Context())
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if entries, _ := os.ReadDir(cfg.RunDir); len(entries) > 0 {
				t.Errorf("left: %v", entries)
			}
		})
	}
}

func TestStartEndsWithContext(t *testing.T) {
	st := newShare(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := startSMB(ctx, st.cfg, nil, approval.ReadOnly, &keptLog{}); err == nil {
		t.Error("started")
	}
	disktest.NothingLeft(t, st.cfg.RunDir, 0)
}

func TestUnusualFolderNames(t *testing.T) {
	st := newShare(t)
	folder := filepath.Join(st.folder, "a = b; #1, ünï")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(folder, "inside"), "")
	st.start(t, folder, approval.ReadOnly)
	if out, err := st.client("ls"); err != nil || !strings.Contains(out, "inside") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestOnlyFromAllowedAddresses keeps out this machine too, which smbd lets in
// wherever nothing denies it.
func TestOnlyFromAllowedAddresses(t *testing.T) {
	for network, want := range map[string]bool{"127.0.0.1/32": true, "127.0.0.2/32": false, "10.0.0.0/8": false, "::/0": false} {
		st := newShare(t)
		st.cfg.Allow = []netip.Prefix{netip.MustParsePrefix(network)}
		st.start(t, st.folder, approval.ReadOnly)
		if out, err := st.client("ls"); (err == nil) != want {
			t.Errorf("allowed is %s: %v: %s", network, err, out)
		}
	}
}
