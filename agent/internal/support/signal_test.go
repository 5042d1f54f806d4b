package support

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// A signal ends what runs, whatever it waits for, and the client hears which.
func TestSignals(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadOnly, s.session.Key)
	s.write("big", strings.Repeat("x", 16<<20))
	c := s.client()
	for _, name := range []ssh.Signal{ssh.SIGINT, ssh.SIGTERM, ssh.SIGKILL} {
		one := must(c.NewSession())
		if err := one.Signal(name); err != nil { // nothing runs yet: no answer is asked for
			t.Fatal(err)
		}
		out := must(one.StdoutPipe())
		if err := one.Start("cat /shares/contoso_BlockBlob/big"); err != nil { // nobody reads all of it
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if err := one.Signal("USR1"); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := one.Signal(name); err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, out)
		exit, ok := errors.AsType[*ssh.ExitError](one.Wait())
		if !ok || exit.Signal() != string(name) {
			t.Errorf("%s: %v", name, exit)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("%s took %s", name, took)
		}
	}
	one := must(c.NewSession())
	if out, err := one.Output("pwd"); err != nil || string(out) != "/\n" {
		t.Errorf("the connection after its channels were killed: %q, %v", out, err)
	}
}

// Keep-alives are answered, and keep a connection from being idle.
func TestKeepAlive(t *testing.T) {
	s := newScene(t)
	c := s.client()
	for range 3 {
		if _, _, err := c.SendRequest("keepalive@openssh.com", true, nil); err != nil {
			t.Fatal(err)
		}
	}
	l := s.login()
	l.options = []string{"-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1"}
	l.stdin = slow{}
	if r := s.ssh(l); r.code != 0 {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
}

// slow is a standard input that ends after a while.
type slow struct{}

func (slow) Read([]byte) (int, error) {
	time.Sleep(2500 * time.Millisecond)
	return 0, io.EOF
}

// Ctrl-C at the terminal of one command, as in ssh -t, interrupts it.
func TestInterruptAtTheTerminalOfACommand(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadOnly, s.session.Key)
	one := must(s.client().NewSession())
	if err := one.RequestPty("xterm", 24, 80, nil); err != nil {
		t.Fatal(err)
	}
	in, out := must(one.StdinPipe()), must(one.StdoutPipe())
	if err := one.Start("cat"); err != nil { // waits for what is typed
		t.Fatal(err)
	}
	go io.Copy(io.Discard, out)
	ended := make(chan error, 1)
	go func() { ended <- one.Wait() }()
	var err error
	for over := false; !over; { // what is typed before the command runs is not for it
		in.Write([]byte{3})
		select {
		case err = <-ended:
			over = true
		case <-time.After(200 * time.Millisecond):
		}
	}
	exit, ok := errors.AsType[*ssh.ExitError](err)
	if !ok || exit.ExitStatus() != 130 {
		t.Errorf("%v", exit)
	}
}
