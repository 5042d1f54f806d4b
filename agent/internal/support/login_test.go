package support

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

func TestLogin(t *testing.T) {
	s := newScene(t)
	other := newKey()
	stranger, _, err := certs.Open(filepath.Join(s.dir, "stranger"))
	if err != nil {
		t.Fatal(err)
	}
	changes := map[string]struct {
		change func(*login)
		want   string // in the record; "" if there is none
	}{
		"plain key":     {func(l *login) { l.noCert = true }, ""},
		"another key":   {func(l *login) { l.key, l.cert = other, s.cert(other, "ses-1", s.node) }, "another key"},
		"other session": {func(l *login) { l.cert = s.cert(s.erin, "ses-2", s.node) }, "ses-1"},
		"other session's name": {func(l *login) {
			l.cert, l.user = s.cert(s.erin, "ses-2", s.node), "ses-2"
		}, "user name"},
		"other node": {func(l *login) { l.cert = s.cert(s.erin, "ses-1", protocol.NodeID{Serial: "DBX0001", Node: 2}) }, "DBX0001/2"},
		"other authority": {func(l *login) {
			l.cert = must(stranger.SSHUserCert(signer(s.erin).PublicKey(), "erin@provider.example", "ses-1", s.node, time.Minute))
		}, "session authority"},
		"expired": {func(l *login) {
			old := *s.authorities
			old.Now = func() time.Time { return time.Now().Add(-time.Hour) }
			l.cert = must(old.SSHUserCert(signer(s.erin).PublicKey(), "erin@provider.example", "ses-1", s.node, time.Minute))
		}, "expired"},
		"wrong user name": {func(l *login) { l.user = "root" }, "user name"},
	}
	for name, c := range changes {
		t.Run(name, func(t *testing.T) {
			s.server.forgive()
			before := len(s.journal.of(auditlog.OpRefuseSession))
			l := s.login()
			c.change(&l)
			if r := s.ssh(l, "pwd"); r.code != 255 || !strings.Contains(r.err, "Permission denied") {
				t.Errorf("exit %d: %s%s", r.code, r.out, r.err)
			}
			refused := s.journal.of(auditlog.OpRefuseSession, "reason")[before:]
			if c.want == "" && len(refused) > 0 || c.want != "" && !contains(refused, c.want) {
				t.Errorf("records: %q, want %q", refused, c.want)
			}
			s.wants("pwd", 0, "/\n", "") // with nothing wrong
		})
	}
}

// forgive forgets the failed logins.
func (s *Server) forgive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.sessions {
		one.refuse, one.failures = 0, nil
	}
}

func TestHostKeyIsVerified(t *testing.T) {
	s := newScene(t)
	l := s.login()
	l.trusted = s.authorities.SSHUserAuthority()
	if r := s.ssh(l, "pwd"); r.code != 255 || !strings.Contains(r.err, "Host key verification failed") {
		t.Errorf("a host of another authority: exit %d: %s", r.code, r.err)
	}
	l = s.login()
	l.host = certs.SSHHostName(protocol.NodeID{Serial: "DBX0002", Node: 1})
	if r := s.ssh(l, "pwd"); r.code != 255 {
		t.Errorf("another node's name: exit %d: %s", r.code, r.err)
	}
	s.wants("pwd", 0, "/\n", "")
}

// TestApprovedKeyUnderAnotherName has the control plane name another person for the
// key that the customer approved.
func TestApprovedKeyUnderAnotherName(t *testing.T) {
	s := newScene(t)
	mallory := s.session
	mallory.ID, mallory.Engineer = "ses-2", "mallory@provider.example"
	s.enable(mallory)
	s.serving.Store(mallory.ID)
	l := s.login()
	l.user, l.cert = "ses-2", s.cert(s.erin, "ses-2", s.node)
	if r := s.ssh(l, "pwd"); r.code != 255 {
		t.Errorf("a certificate of erin's opens mallory's session: exit %d, %s", r.code, r.out)
	}
	if list := s.journal.of(auditlog.OpRefuseSession, "reason"); !contains(list, "this is a session of mallory") {
		t.Errorf("records: %q", list)
	}
	l.cert = must(s.authorities.SSHUserCert(signer(s.erin).PublicKey(), mallory.Engineer, "ses-2", s.node, time.Minute))
	if r := s.ssh(l, "pwd"); r.code != 0 { // while it is locked
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	s.unlock(approval.ReadWrite, s.session.Key)
	if r := s.ssh(l, "ls /shares"); r.code != 255 {
		t.Errorf("the approved key under another name: exit %d, %s", r.code, r.out)
	}
	if list := s.journal.of(auditlog.OpRefuseSession, "reason"); !contains(list, "not for this engineer and key") {
		t.Errorf("records: %q", list)
	}
	s.serving.Store(s.session.ID)
	s.wants("pwd", 0, "/\n", "")
}

func TestWhileUnlockedOnlyTheApprovedKeyGetsIn(t *testing.T) {
	s := newScene(t)
	c := s.client() // in before the unlock
	s.unlock(approval.ReadWrite, ssh.FingerprintSHA256(signer(newKey()).PublicKey()))
	if r := s.run("pwd"); r.code != 255 {
		t.Errorf("a certificate of the control plane's beats the statement: exit %d, %s", r.code, r.out)
	}
	if list := s.journal.of(auditlog.OpRefuseSession, "reason"); !contains(list, "not for this engineer and key") {
		t.Errorf("records: %q", list)
	}
	ends(t, c, 2*watchInterval+time.Second)
	s.unlock(approval.ReadWrite, s.session.Key)
	s.wants("ls /shares/contoso_BlockBlob", 0, "photos\n", "")
	s.lock.set(&lock.Lease{Purpose: protocol.DataCopy})
	if r := s.run("pwd"); r.code != 255 {
		t.Errorf("a session during the copy job: exit %d, %s", r.code, r.out)
	}
	s.lock.set(nil)
	s.wants("pwd", 0, "/\n", "")
}

func TestLockOut(t *testing.T) {
	s := newScene(t)
	other := s.session
	other.ID = "ses-2"
	s.enable(other)
	bad := s.login()
	bad.cert = s.cert(s.erin, "ses-2", s.node)
	for range maxFailures - 1 {
		s.ssh(bad, "pwd")
	}
	s.wants("pwd", 0, "/\n", "") // and the counter starts anew
	for range maxFailures {
		s.ssh(bad, "pwd")
	}
	if r := s.run("pwd"); r.code != 255 {
		t.Errorf("not locked out: %s", r.out)
	}
	if err := s.server.Admits("ses-1"); protocol.CodeOf(err) != protocol.CodeLimit {
		t.Errorf("Admits: %v", err)
	}
	if err := s.server.Admits("ses-2"); err != nil {
		t.Errorf("another session is locked out too: %v", err)
	}
	s.clock.add(-24*time.Hour, lockOut-time.Minute) // the wall clock means nothing
	if err := s.server.Admits("ses-1"); protocol.CodeOf(err) != protocol.CodeLimit {
		t.Errorf("after almost 15 minutes: %v", err)
	}
	s.clock.add(24*time.Hour, time.Minute)
	s.wants("pwd", 0, "/\n", "")
}

func TestForwardingIsRefused(t *testing.T) {
	s := newScene(t)
	for _, options := range [][]string{
		{"-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"},
		{"-W", "127.0.0.1:22"},
	} {
		l := s.login()
		l.options = options
		if r := s.ssh(l); r.code != 255 {
			t.Errorf("%v: exit %d: %s", options, r.code, r.err)
		}
	}
	c := s.client()
	for _, kind := range []string{"direct-tcpip", "direct-streamlocal@openssh.com", "x11", "tun@openssh.com"} {
		if _, _, err := c.OpenChannel(kind, nil); err == nil {
			t.Errorf("channel %s was opened", kind)
		}
	}
	one := must(c.NewSession())
	for _, kind := range []string{"auth-agent-req@openssh.com", "x11-req", "env", "signal", "subsystem"} {
		if ok, err := one.SendRequest(kind, true, nil); ok || err != nil {
			t.Errorf("request %s: %v, %v", kind, ok, err)
		}
	}
}

func TestSessionEnds(t *testing.T) {
	ways := map[string]func(*scene){
		"disabled":                func(s *scene) { s.server.Disable("ses-1", "engineer-done") },
		"kicked":                  func(s *scene) { s.server.Kick(recording.EndRevoked) },
		"expired":                 func(s *scene) { s.clock.add(2*time.Hour, 0) },
		"expired, clock set back": func(s *scene) { s.clock.add(-24*time.Hour, time.Hour) },
		"stopped":                 func(s *scene) { go s.stop() },
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.unlock(approval.ReadOnly, s.session.Key)
			release := make(chan struct{})
			s.lock.hang(release)
			s.write("big", strings.Repeat("x", 16<<20))

			idle, stuck, unread := s.client(), s.client(), s.client()
			if err := must(stuck.NewSession()).Start("disks"); err != nil {
				t.Fatal(err)
			}
			if err := must(unread.NewSession()).Start("cat /shares/contoso_BlockBlob/big"); err != nil { // nobody reads it
				t.Fatal(err)
			}
			for end := time.Now().Add(5 * time.Second); s.connections() != 3; time.Sleep(time.Millisecond) {
				if time.Now().After(end) { // a client is in a moment before the server counts it
					t.Fatalf("%d connections", s.connections())
				}
			}
			start := time.Now()
			way(s)
			for _, c := range []*ssh.Client{idle, stuck, unread} {
				ends(t, c, time.Until(start.Add(2*time.Second)))
			}
			close(release)
			s.stop()
			if name == "kicked" || name == "stopped" {
				return
			}
			if list := s.journal.of(auditlog.OpDisableSession, "reason"); len(list) != 1 {
				t.Errorf("records: %q", list)
			}
			if len(s.server.Status()) != 0 {
				t.Error("the session is still listed")
			}
			if who, known := s.server.Engineer("ses-1"); known != strings.HasPrefix(name, "expired") || known && who != s.session.Engineer {
				t.Errorf("Engineer: %q, %v", who, known)
			}
		})
	}
}

func TestHandshakesEndToo(t *testing.T) {
	s := newScene(t)
	silent := must(net.Dial("unix", s.socket))
	defer silent.Close()
	time.Sleep(50 * time.Millisecond)
	start := time.Now()
	s.stop()
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("a silent client held up the end for %s", took)
	}
	if err := s.server.Admits("ses-1"); protocol.CodeOf(err) != protocol.CodeUnavailable {
		t.Errorf("after the end: %v", err)
	}
}

func TestEnable(t *testing.T) {
	s := newScene(t)
	ca := [][]byte{s.authorities.SSHUserAuthority().Marshal()}
	again := s.session
	again.Expires = again.Expires.Add(time.Hour)
	s.enable(again)
	if got := s.server.Status(); len(got) != 1 || got[0].Expires != again.Expires.Unix() {
		t.Errorf("status: %v", got)
	}
	other := again
	other.Key = ssh.FingerprintSHA256(signer(newKey()).PublicKey())
	if err := s.server.Enable(t.Context(), other, ca); protocol.CodeOf(err) != protocol.CodeConflict {
		t.Errorf("another key: %v", err)
	}
	for name, change := range map[string]func(*Session, *[][]byte){
		"no id":        func(o *Session, _ *[][]byte) { o.ID = "" },
		"no engineer":  func(o *Session, _ *[][]byte) { o.Engineer = "" },
		"no key":       func(o *Session, _ *[][]byte) { o.Key = "" },
		"over":         func(o *Session, _ *[][]byte) { o.Expires = time.Now() },
		"no authority": func(_ *Session, ca *[][]byte) { *ca = nil },
		"bad key":      func(_ *Session, ca *[][]byte) { *ca = [][]byte{{1, 2, 3}} },
	} {
		one, keys := s.session, ca
		change(&one, &keys)
		if err := s.server.Enable(t.Context(), one, keys); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.journal.breakNow()
	unrecorded := s.session
	unrecorded.ID = "ses-9"
	if err := s.server.Enable(t.Context(), unrecorded, ca); err == nil || s.server.Admits("ses-9") == nil {
		t.Errorf("a session that is not recorded is enabled: %v", err)
	}
}

func TestTooManyConnections(t *testing.T) {
	s := newScene(t)
	for range maxConnections {
		s.client()
	}
	if err := s.server.Admits("ses-1"); protocol.CodeOf(err) != protocol.CodeLimit {
		t.Errorf("Admits: %v", err)
	}
	if r := s.run("pwd"); r.code != 255 {
		t.Errorf("one more: exit %d", r.code)
	}
}
