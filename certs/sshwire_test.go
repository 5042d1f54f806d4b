package certs

import (
	"crypto/ed25519"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/protocol"
)

func TestCertifyInWireForm(t *testing.T) {
	a, _, err := Open(filepath.Join(t.TempDir(), "authority"))
	if err != nil {
		t.Fatal(err)
	}
	raw, _, _ := ed25519.GenerateKey(nil)
	pub, err := ssh.NewPublicKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	node := protocol.NodeID{Serial: "DBX0001", Node: 1}

	wire, err := a.CertifyHost(pub.Marshal(), node, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	host, err := ssh.ParsePublicKey(wire)
	if err != nil || !sameKey(host.(*ssh.Certificate).Key, pub) || !sameKey(host.(*ssh.Certificate).SignatureKey, a.SSHHostAuthority()) {
		t.Errorf("host certificate %v, %v", host, err)
	}

	line, err := a.CertifyEngineer(string(ssh.MarshalAuthorizedKey(pub)), "erin@provider.example", "SES-1", node, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	user, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	check := SSHUserCheck{Authority: a.SSHUserAuthority(), Person: "erin@provider.example", Session: "SES-1", Node: node, Now: time.Now()}
	if _, err := check.Check(user); err != nil {
		t.Error(err)
	}

	for _, bad := range []string{"", "ssh-ed25519", "ssh-rsa AAAA", line + "\n" + line} {
		if _, err := a.CertifyEngineer(bad, "erin@provider.example", "SES-1", node, time.Minute); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := a.CertifyHost([]byte("no key"), node, time.Hour); protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Error(err)
	}
}
