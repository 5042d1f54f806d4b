package cli_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/cli"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
)

// sshAgent starts a real ssh-agent and puts it into the environment.
func sshAgent(t *testing.T, keys ...string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	cmd := exec.CommandContext(t.Context(), "ssh-agent", "-D", "-a", socket)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.RemoveAll(dir)
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil { // its file is there a moment before it listens
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("ssh-agent does not start")
		}
	}
	t.Setenv("SSH_AUTH_SOCK", socket)
	for _, key := range keys {
		if out, err := exec.CommandContext(t.Context(), "ssh-add", "-q", key).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

func TestSigningWithAnAgent(t *testing.T) {
	w := waiting(t)
	approve := []string{"request", "approve", "2", "--yes"}

	t.Setenv("SSH_AUTH_SOCK", "")
	if r := w.lockbox(t, "olga", "", approve...); r.code != 2 || !strings.Contains(r.err, "give --key FILE, or start an ssh-agent") {
		t.Errorf("no agent: %+v", r)
	}
	t.Setenv("SSH_AUTH_SOCK", "/nowhere")
	if r := w.lockbox(t, "olga", "", approve...); r.code != 1 || !strings.Contains(r.err, "cannot reach the ssh-agent") {
		t.Errorf("an agent that is gone: %+v", r)
	}
	sshAgent(t)
	if r := w.lockbox(t, "olga", "", approve...); r.code != 1 || !strings.Contains(r.err, "add one with ssh-add") {
		t.Errorf("an empty agent: %+v", r)
	}
	sshAgent(t, w.key("erin"))
	if r := w.lockbox(t, "olga", "", approve...); r.code != 1 || !strings.Contains(r.err, "does not name your key") {
		t.Errorf("an agent with another's key: %+v", r)
	}
	sshAgent(t, w.key("erin"), w.key("olga"))
	if r := w.lockbox(t, "olga", "", approve...); r.code != 0 || !strings.Contains(r.out, "Approved") {
		t.Errorf("the right key among others: %+v", r)
	}
}

func TestAnEncryptedKeyWithoutATerminal(t *testing.T) {
	w := waiting(t)
	file := filepath.Join(w.dir, "encrypted")
	if _, err := makeKey(file, []byte("a passphrase")); err != nil {
		t.Fatal(err)
	}
	r := w.lockbox(t, "olga", "a passphrase\n", "request", "approve", "2", "--yes", "--key", file)
	if r.code != 1 || !strings.Contains(r.err, "is encrypted and there is no terminal") || !strings.Contains(r.err, "ssh-agent") {
		t.Errorf("%+v", r)
	}
}

func TestACertificateIsRenewedInTime(t *testing.T) {
	w, err := start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer w.stop()
	home := filepath.Join(w.dir, "admin")
	lasts := func(ttl time.Duration) (before time.Time) {
		t.Helper()
		id, err := client.LoadIdentity(home)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := certs.NewCSR(id.Key)
		if err != nil {
			t.Fatal(err)
		}
		a := w.authorities(t)
		past := time.Now().Add(ttl - auth.CertificateTTL)
		a.Now = func() time.Time { return past }
		if id.Chain, err = a.IssuePerson(csr, "admin@lockbox.local", auth.CertificateTTL); err != nil {
			t.Fatal(err)
		}
		w.note(t, id.Chain[0])
		if err := id.Save(home); err != nil {
			t.Fatal(err)
		}
		return expires(t, home)
	}
	before := lasts(50 * time.Minute)
	w.must(t, "admin", "whoami")
	if after := expires(t, home); after.Sub(before) < 10*time.Hour {
		t.Errorf("ended %s, renewed until %s", before, after)
	}
	before = lasts(2 * time.Hour)
	w.must(t, "admin", "whoami")
	if after := expires(t, home); !after.Equal(before) {
		t.Error("renewed without need")
	}
	lasts(-time.Hour)
	if r := w.lockbox(t, "admin", "", "whoami"); r.code != 3 || !strings.Contains(r.err, "your certificate expired at") || !strings.Contains(r.err, "lockbox login") {
		t.Errorf("expired: %+v", r)
	}
}

// note has the control plane know a certificate of its admin's that the test made.
func (w *world) note(t *testing.T, der []byte) {
	t.Helper()
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	cert := store.PersonCert{Serial: certs.Serial(leaf), Person: "admin@lockbox.local", SignIn: certs.Serial(leaf)}
	storetest.Tx(t, storetest.Open(t, w.cfg.StorePath()), func(ctx context.Context, tx *store.Tx) error { return tx.InsertPersonCert(ctx, &cert) })
}

func expires(t *testing.T, home string) time.Time {
	t.Helper()
	id, err := client.LoadIdentity(home)
	if err != nil {
		t.Fatal(err)
	}
	end, err := id.Expires()
	if err != nil {
		t.Fatal(err)
	}
	return end
}

// TestHelp walks every command.
func TestHelp(t *testing.T) {
	n := 0
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		n++
		if c.Short == "" || c.Long == "" {
			t.Errorf("%s has no help", c.CommandPath())
		}
		if strings.HasSuffix(c.Short, ".") || len(c.Short) > 90 {
			t.Errorf("%s: %q is not a short line", c.CommandPath(), c.Short)
		}
		for line := range strings.Lines(c.Long) {
			if len(line) > 130 {
				t.Errorf("%s: a line of %d characters", c.CommandPath(), len(line))
			}
		}
		for line := range strings.Lines(c.LocalFlags().FlagUsages()) {
			if _, usage, _ := strings.Cut(strings.TrimSpace(line), "  "); strings.TrimSpace(usage) == "" {
				t.Errorf("%s: %s has no help", c.CommandPath(), strings.TrimSpace(line))
			}
		}
		var out bytes.Buffer
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		if code := cli.Run(t.Context(), args, strings.NewReader(""), &out, &out); code != 0 || !strings.Contains(out.String(), c.Long) {
			t.Errorf("%v exits with %d: %s", args, code, out.String())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(cli.NewRoot())
	if n < 50 {
		t.Errorf("only %d commands", n)
	}
}
