package certs

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/protocol"
)

const session protocol.SessionID = "SES-0123"

func sshKey(t testing.TB) (ssh.PublicKey, ssh.Signer) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer.PublicKey(), signer
}

func TestSSHUserCertOpensItsSessionOnly(t *testing.T) {
	a, other := open(t), open(t)
	pub, _ := sshKey(t)
	good := func() *ssh.Certificate {
		c, err := a.SSHUserCert(pub, erin, session, node, 5*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	resigned := func(change func(*ssh.Certificate)) *ssh.Certificate {
		c := good()
		change(c)
		if err := c.SignCert(rand.Reader, a.users); err != nil {
			t.Fatal(err)
		}
		return c
	}
	check := SSHUserCheck{Authority: a.SSHUserAuthority(), Person: erin, Session: session, Node: node, Now: time.Now()}
	with := func(change func(*SSHUserCheck)) SSHUserCheck { c := check; change(&c); return c }
	foreignCert, err := other.SSHUserCert(pub, erin, session, node, 5*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	hostCert, err := a.SSHHostCert(pub, node, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	tampered := good()
	tampered.ValidBefore += 3600
	tests := []struct {
		name  string
		check SSHUserCheck
		key   ssh.PublicKey
		want  string
	}{
		{"control", check, good(), ""},
		{"plain key", check, pub, "plain key"},
		{"another authority", check, foreignCert, "session authority"},
		{"host certificate", check, hostCert, "session authority"},
		{"host certificate by the user authority", check, resigned(func(c *ssh.Certificate) { c.CertType = ssh.HostCert }), "session authority"},
		{"another person", with(func(c *SSHUserCheck) { c.Person = "mallory@provider.example" }), good(), "a session of mallory"},
		{"another session", with(func(c *SSHUserCheck) { c.Session = "SES-other" }), good(), "does not open session SES-other"},
		{"another node", with(func(c *SSHUserCheck) { c.Node.Node = 1 }), good(), "DBX0001/2"},
		{"expired", with(func(c *SSHUserCheck) { c.Now = c.Now.Add(6 * time.Minute) }), good(), "expired"},
		{"not yet valid", with(func(c *SSHUserCheck) { c.Now = c.Now.Add(-2 * time.Minute) }), good(), "not yet valid"},
		{"tampered", check, tampered, "signature"},
		{"unknown critical option", check, resigned(func(c *ssh.Certificate) { c.CriticalOptions["x@y"] = "1" }), "unsupported critical option"},
		{"no critical options", check, resigned(func(c *ssh.Certificate) { c.CriticalOptions = nil }), `for session ""`},
		{"option of another session", check, resigned(func(c *ssh.Certificate) { c.CriticalOptions[SessionOption] = "SES-other" }), "SES-other"},
		{"no principals", check, resigned(func(c *ssh.Certificate) { c.ValidPrincipals = nil }), "0 principals"},
		{"a second principal", check, resigned(func(c *ssh.Certificate) { c.ValidPrincipals = []string{string(session), "root"} }), "2 principals"},
		{"principal of another session", check, resigned(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"root"} }), "principal"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := tt.check.Check(tt.key)
			if tt.want == "" && (err != nil || c == nil) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestSSHCertsAreRefused(t *testing.T) {
	a := open(t)
	pub, _ := sshKey(t)
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	weakPub, _ := ssh.NewPublicKey(&weak.PublicKey)
	for name, issue := range map[string]func() (*ssh.Certificate, error){
		"RSA":        func() (*ssh.Certificate, error) { return a.SSHUserCert(weakPub, erin, session, node, time.Minute) },
		"too long":   func() (*ssh.Certificate, error) { return a.SSHUserCert(pub, erin, session, node, MaxSSHUserTTL+1) },
		"no time":    func() (*ssh.Certificate, error) { return a.SSHUserCert(pub, erin, session, node, 0) },
		"no session": func() (*ssh.Certificate, error) { return a.SSHUserCert(pub, erin, "", node, time.Minute) },
		"no person":  func() (*ssh.Certificate, error) { return a.SSHUserCert(pub, "", session, node, time.Minute) },
		"host RSA":   func() (*ssh.Certificate, error) { return a.SSHHostCert(weakPub, node, time.Minute) },
		"host never": func() (*ssh.Certificate, error) { return a.SSHHostCert(pub, node, 0) },
	} {
		if _, err := issue(); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
}

func TestSSHKeygenAgrees(t *testing.T) {
	a := open(t)
	pub, _ := sshKey(t)
	user, err := a.SSHUserCert(pub, erin, session, node, 5*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	host, err := a.SSHHostCert(pub, node, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for cert, wants := range map[*ssh.Certificate][]string{
		user: {"user certificate", `Key ID: "erin@provider.example SES-0123"`, "Principals: \n                SES-0123", SessionOption, NodeOption, "Extensions: \n                permit-pty", ssh.FingerprintSHA256(a.SSHUserAuthority())},
		host: {"host certificate", `Key ID: "DBX0001/2"`, "dbx0001-2.databox", "Critical Options: (none)", "Extensions: (none)", ssh.FingerprintSHA256(a.SSHHostAuthority())},
	} {
		path := filepath.Join(t.TempDir(), "x-cert.pub")
		if err := os.WriteFile(path, ssh.MarshalAuthorizedKey(cert), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := foreign(t, "ssh-keygen", "-L", "-f", path)
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("ssh-keygen does not say %q:\n%s", want, out)
			}
		}
		for _, never := range []string{"permit-port-forwarding", "permit-agent-forwarding", "permit-X11-forwarding", "permit-user-rc"} {
			if strings.Contains(out, never) {
				t.Errorf("the certificate has %s", never)
			}
		}
	}
}

func TestKnownHostsLine(t *testing.T) {
	a := open(t)
	line := KnownHostsLine(a.SSHHostAuthority())
	marker, hosts, key, _, rest, err := ssh.ParseKnownHosts([]byte(line))
	if err != nil || marker != "cert-authority" || len(hosts) != 1 || hosts[0] != "*.databox" || !sameKey(key, a.SSHHostAuthority()) || len(rest) != 0 {
		t.Errorf("%q: %v %v, %v", line, marker, hosts, err)
	}
}
