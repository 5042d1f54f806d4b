package controlplane_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/controlplane"
	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// asDaemon has this test binary be lockboxd.
const asDaemon = "LOCKBOX_TEST_AS_DAEMON"

func TestMain(m *testing.M) {
	if os.Getenv(asDaemon) != "" {
		os.Exit(controlplane.Main())
	}
	goleak.VerifyTestMain(m)
}

func config(t *testing.T) controlplane.Config {
	t.Helper()
	cfg := controlplane.DefaultConfig()
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	cfg.API.Address, cfg.Tunnel.Address = "127.0.0.1:0", "127.0.0.1:0"
	return cfg
}

// plane is a control plane that runs in this process.
type plane struct {
	*controlplane.ControlPlane
	cfg controlplane.Config
	end func()
}

func run(t *testing.T, cfg controlplane.Config, log zerolog.Logger) *plane {
	t.Helper()
	c, err := controlplane.New(cfg, controlplane.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	over := false
	p := &plane{ControlPlane: c, cfg: cfg}
	p.end = func() {
		t.Helper()
		if over {
			return
		}
		over = true
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run does not end")
		}
	}
	t.Cleanup(p.end)
	return p
}

func (p *plane) server() string { return strings.Replace(p.APIAddress(), "127.0.0.1", "localhost", 1) }

// admin logs the first administrator in.
func (p *plane) admin(t *testing.T) *client.Identity {
	t.Helper()
	token, err := os.ReadFile(filepath.Join(p.cfg.DataDir, "first-admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := client.Login(t.Context(), p.server(), strings.TrimSpace(string(token)))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// as is a client with an identity from this or an earlier start.
func (p *plane) as(t *testing.T, id *client.Identity) *client.Client {
	t.Helper()
	now := *id
	now.Server = p.server()
	c, err := client.New(&now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestFirstStartMakesEverythingPrivate(t *testing.T) {
	cfg := config(t)
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	run(t, cfg, zerolog.Nop()).end()
	files := 0
	err := filepath.WalkDir(cfg.DataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %04o", path, info.Mode().Perm())
		}
		files++
		return nil
	})
	if err != nil || files < 9 {
		t.Errorf("%d files, %v", files, err)
	}
}

func TestSecondStartFindsEverything(t *testing.T) {
	cfg := config(t)
	first := run(t, cfg, zerolog.Nop())
	id := first.admin(t)
	before := checkpoint(t, first.as(t, id))
	first.end()
	second := run(t, cfg, zerolog.Nop())
	c := second.as(t, id)
	who, err := c.Accounts.WhoAmI(t.Context(), &lockboxv1.WhoAmIRequest{})
	if err != nil || who.Person.Role != "admin" {
		t.Fatalf("%v, %v", who, err)
	}
	if after := checkpoint(t, c); after.VerifierKey != before.VerifierKey || !bytes.Equal(after.Checkpoint, before.Checkpoint) {
		t.Errorf("the log was %s and is %s", before.Checkpoint, after.Checkpoint)
	}
}

func checkpoint(t *testing.T, c *client.Client) *lockboxv1.GetCheckpointResponse {
	t.Helper()
	resp, err := c.Audit.GetCheckpoint(t.Context(), &lockboxv1.GetCheckpointRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func TestTheFirstTokenIsMadeAgain(t *testing.T) {
	cfg := config(t)
	token := filepath.Join(cfg.DataDir, "first-admin.token")
	run(t, cfg, zerolog.Nop()).end()
	first, err := os.ReadFile(token)
	if err != nil {
		t.Fatal(err)
	}
	read := func() string {
		t.Helper()
		p := run(t, cfg, zerolog.Nop())
		defer p.end()
		data, err := os.ReadFile(token)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if read() != string(first) {
		t.Error("a start made another token although the first one holds")
	}
	old := time.Now().Add(-25 * time.Hour)
	if err := os.Chtimes(token, old, old); err != nil {
		t.Fatal(err)
	}
	if read() == string(first) {
		t.Error("the token is too old, and was not made again")
	}
	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	p := run(t, cfg, zerolog.Nop())
	p.admin(t) // there is a token, and it works
	p.end()
	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	run(t, cfg, zerolog.Nop()).end()
	if _, err := os.Stat(token); !errors.Is(err, fs.ErrNotExist) {
		t.Error("somebody logged in, and the next start made another token")
	}
}

// refused starts a control plane that must not start, and gives everything back.
func refused(t *testing.T, cfg controlplane.Config) string {
	t.Helper()
	c, err := controlplane.New(cfg, controlplane.Options{Log: zerolog.Nop()})
	if err == nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		c.Run(ctx)
		t.Fatal("it starts")
	}
	return err.Error()
}

func TestLostAndOpenFilesAreRefused(t *testing.T) {
	cfg := config(t)
	run(t, cfg, zerolog.Nop()).end()
	for _, name := range []string{"authority/authorities.pem", "service.key", "log.key", "master.key"} {
		path := filepath.Join(cfg.DataDir, name)
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		if text := refused(t, cfg); !strings.Contains(text, filepath.Base(name)) || strings.Contains(text, "\n") {
			t.Errorf("%s is missing: %s", name, text)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s was lost, and made anew", name)
		}
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"", "authority", "authority/authorities.pem", "service.key", "log.key", "master.key", "store.db"} {
		path := filepath.Join(cfg.DataDir, name)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, info.Mode().Perm()|0o040); err != nil {
			t.Fatal(err)
		}
		if text := refused(t, cfg); !strings.Contains(text, path) || !strings.Contains(text, "chmod") || strings.Contains(text, "\n") {
			t.Errorf("%s is open to others: %s", name, text)
		}
		if err := os.Chmod(path, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
	run(t, cfg, zerolog.Nop()) // control: all is as it was
}

func TestOneProcessPerDirectory(t *testing.T) {
	cfg := config(t)
	p := run(t, cfg, zerolog.Nop())
	if text := refused(t, cfg); !strings.Contains(text, "another lockboxd works in") {
		t.Error(text)
	}
	p.end()
	run(t, cfg, zerolog.Nop())
}

func TestDemoTimersAreWarnedOf(t *testing.T) {
	for _, demo := range []bool{true, false} {
		cfg := config(t)
		cfg.DemoTimers = demo
		var log bytes.Buffer
		run(t, cfg, zerolog.New(&log)).end()
		if got := strings.Contains(log.String(), `"level":"warn"`) && strings.Contains(log.String(), "demo_timers"); got != demo {
			t.Errorf("demo_timers %v: %s", demo, log.String())
		}
	}
}

// daemon is lockboxd as a process of its own.
type daemon struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

func lockboxd(t *testing.T, args ...string) *daemon {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{cmd: exec.CommandContext(t.Context(), self, args...)}
	d.cmd.Env = append(os.Environ(), asDaemon+"=1")
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.out
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return d
}

// wait returns the exit code and what was printed.
func (d *daemon) wait(t *testing.T) (int, string) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- d.cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		d.cmd.Process.Kill()
		<-ended
		t.Error("it does not end")
	}
	return d.cmd.ProcessState.ExitCode(), d.out.String()
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lockboxd.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExitCodes(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	good := func(api string) string {
		return fmt.Sprintf("data_dir: %s/data\napi:\n  address: %s\ntunnel:\n  address: 127.0.0.1:0\n", dir, api)
	}
	for _, tt := range []struct {
		name  string
		args  []string
		code  int
		text  string
		lines int
	}{
		{"missing file", []string{"--config", "/nowhere/lockboxd.yaml", "serve"}, 2, "/nowhere/lockboxd.yaml", 1},
		{"malformed", []string{"--config", writeConfig(t, "data_dir: [\n"), "serve"}, 2, "not valid YAML", 1},
		{"unknown key", []string{"--config", writeConfig(t, good("127.0.0.1:0")+"log:\n  colour: red\n"), "check-config"}, 2, "log.colour", 1},
		{"two problems", []string{"--config", writeConfig(t, "dead_man: 1h\n"), "check-config"}, 2, "dead_man", 3},
		{"port in use", []string{"--config", writeConfig(t, good(taken.Addr().String())), "serve"}, 1, "change api.address or stop what uses it", 1},
		{"good", []string{"--config", writeConfig(t, good("127.0.0.1:0")), "check-config"}, 0, "is fine", 1},
		{"unknown command", []string{"frobnicate"}, 2, `does not know "frobnicate"`, 1},
		{"unknown flag", []string{"serve", "--frobnicate"}, 2, "unknown flag", 1},
		{"no file to back up to", []string{"--config", writeConfig(t, good("127.0.0.1:0")), "backup"}, 2, "--out is missing", 1},
		{"no file to restore", []string{"--config", writeConfig(t, good("127.0.0.1:0")), "restore"}, 2, "--in is missing", 1},
		{"nothing there to restore", []string{"--config", writeConfig(t, good("127.0.0.1:0")), "restore", "--in", "/nowhere/b"}, 1, "cannot read the backup", 1},
		{"version", []string{"version"}, 0, controlplane.Version, 1},
	} {
		code, out := lockboxd(t, tt.args...).wait(t)
		if code != tt.code || !strings.Contains(out, tt.text) || strings.Count(out, "\n") != tt.lines {
			t.Errorf("%s: exit code %d, want %d: %s", tt.name, code, tt.code, out)
		}
	}
}

func TestTheDaemonEndsOnSIGTERM(t *testing.T) {
	port := freePort(t)
	dir := filepath.Join(t.TempDir(), "data")
	d := lockboxd(t, "--config", writeConfig(t, fmt.Sprintf("data_dir: %s\napi:\n  address: %s\ntunnel:\n  address: 127.0.0.1:0\n", dir, port)), "serve")
	var hung net.Conn
	for deadline := time.Now().Add(20 * time.Second); hung == nil; time.Sleep(20 * time.Millisecond) {
		hung, _ = net.Dial("tcp", port)
		if time.Now().After(deadline) {
			d.cmd.Process.Kill()
			t.Fatal("it does not start")
		}
	}
	defer hung.Close()
	hung.Write([]byte("\x16\x03\x01")) // half a handshake
	time.Sleep(300 * time.Millisecond)
	at := time.Now()
	d.cmd.Process.Signal(syscall.SIGTERM)
	code, out := d.wait(t)
	if took := time.Since(at); code != 0 || took > 8*time.Second {
		t.Errorf("exit code %d after %s: %s", code, took, out)
	}
	if strings.Contains(out, "lbxlogin") {
		t.Error("the log holds a token")
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("not root")
		}
		t.Skip("only root mounts a disk that can be filled")
	}
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=8m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(disk, syscall.MNT_DETACH)
	cfg := config(t)
	cfg.DataDir = filepath.Join(disk, "data")
	p := run(t, cfg, zerolog.Nop())
	c := p.as(t, p.admin(t))
	filler := filepath.Join(disk, "filler")
	fill(t, filler)
	failed := false
	for i := range 200 { // what is left within the database is used up first
		at := time.Now()
		_, err := c.Tenants.CreateTenant(t.Context(), &lockboxv1.CreateTenantRequest{Id: fmt.Sprintf("tenant-%d", i), Name: strings.Repeat("n", 100)})
		if took := time.Since(at); took > 5*time.Second {
			t.Fatalf("it took %s", took)
		}
		if err != nil {
			if code := protocol.CodeOf(err); code != protocol.CodeStorageFull {
				t.Fatalf("refused with %v, want %s", err, protocol.CodeStorageFull)
			}
			failed = true
			break
		}
	}
	if !failed {
		t.Fatal("the disk is full, and everything is accepted")
	}
	if _, err := c.Tenants.ListTenants(t.Context(), &lockboxv1.ListTenantsRequest{}); err != nil {
		t.Errorf("reading: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Tenants.CreateTenant(t.Context(), &lockboxv1.CreateTenantRequest{Id: "after", Name: "After"}); err != nil {
		t.Errorf("there is room again: %v", err)
	}
	p.end()
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size > 0; size /= 2 {
		for {
			if _, err := f.Write(make([]byte, size)); err != nil {
				break
			}
		}
	}
}
