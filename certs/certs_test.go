package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var node = protocol.NodeID{Serial: "DBX0001", Node: 2}

const erin protocol.Person = "erin@provider.example"

func open(t testing.TB) *Authorities {
	t.Helper()
	a, created, err := Open(filepath.Join(t.TempDir(), "authorities"))
	if err != nil || !created {
		t.Fatalf("created %v, %v", created, err)
	}
	return a
}

// request makes a key and a certificate request for it.
func request(t testing.TB) (ed25519.PrivateKey, []byte) {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

// issued makes a source from what issue answers to a fresh request.
func issued(t testing.TB, issue func(csr []byte) ([][]byte, error)) *Source {
	t.Helper()
	key, csr := request(t)
	chain, err := issue(csr)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSource(key, chain, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOpenCreatesOnceAndLoads(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	first, created, err := Open(dir)
	if err != nil || !created {
		t.Fatalf("created %v, %v", created, err)
	}
	again, created, err := Open(dir)
	if err != nil || created {
		t.Fatalf("created %v again, %v", created, err)
	}
	a, b := first.Roots(), again.Roots()
	if !a.Devices.Equal(b.Devices) || !a.Servers.Equal(b.Servers) || !a.People.Equal(b.People) ||
		!sameKey(first.SSHUserAuthority(), again.SSHUserAuthority()) || !sameKey(first.SSHHostAuthority(), again.SSHHostAuthority()) {
		t.Error("the authorities changed between two starts")
	}
	for _, pair := range [][2][]byte{
		{a.Devices.RawSubjectPublicKeyInfo, a.Servers.RawSubjectPublicKeyInfo},
		{a.Devices.RawSubjectPublicKeyInfo, a.People.RawSubjectPublicKeyInfo},
		{first.SSHUserAuthority().Marshal(), first.SSHHostAuthority().Marshal()},
	} {
		if bytes.Equal(pair[0], pair[1]) {
			t.Error("two authorities share a key")
		}
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, FileName): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	tests := []struct {
		name string
		harm func(t *testing.T, dir, file string)
		want string // "" for the control
	}{
		{"control", func(*testing.T, string, string) {}, ""},
		{"directory for the group", func(t *testing.T, dir, _ string) { os.Chmod(dir, 0o750) }, "wider than 0700"},
		{"file for the group", func(t *testing.T, _, file string) { os.Chmod(file, 0o640) }, "wider than 0600"},
		{"file is a link", func(t *testing.T, dir, file string) {
			os.Rename(file, dir+".moved")
			os.Symlink(dir+".moved", file)
		}, "wider than 0600"},
		{"file lost", func(t *testing.T, dir, file string) {
			os.Rename(file, filepath.Join(dir, "other"))
		}, "restore it from a backup"},
		{"file empty", func(t *testing.T, _, file string) { os.Truncate(file, 0) }, "missing or damaged"},
		{"file cut short", func(t *testing.T, _, file string) { os.Truncate(file, 1200) }, "restore it from a backup"},
		{"file huge", func(t *testing.T, _, file string) { os.Truncate(file, 1<<20) }, "not a file of authorities"},
		{"certificate of another key", func(t *testing.T, _, file string) {
			data, _ := os.ReadFile(file)
			data = bytes.ReplaceAll(data, []byte("Authority: devices"), []byte("Authority: swapped"))
			data = bytes.ReplaceAll(data, []byte("Authority: servers"), []byte("Authority: devices"))
			os.WriteFile(file, data, 0o600)
		}, "servers is missing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "authorities")
			if _, _, err := Open(dir); err != nil {
				t.Fatal(err)
			}
			tt.harm(t, dir, filepath.Join(dir, FileName))
			_, created, err := Open(dir)
			if created {
				t.Error("new authorities were made")
			}
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestOpenAfterACreationThatWasCutShort(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o700)
	if err := os.WriteFile(filepath.Join(dir, "."+FileName+"123"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, created, err := Open(dir); err != nil || !created {
		t.Errorf("created %v, %v", created, err)
	}
}

func TestLeavesSayWhatTheyAreFor(t *testing.T) {
	a := open(t)
	now := time.Now()
	a.Now = func() time.Time { return now }
	server := issued(t, func(csr []byte) ([][]byte, error) {
		return a.IssueServer(csr, []string{"lockbox.example", "192.0.2.1", "::1"}, 24*time.Hour)
	}).Leaf()
	device := issued(t, func(csr []byte) ([][]byte, error) { return a.IssueDevice(csr, node, 24*time.Hour) }).Leaf()
	person := issued(t, func(csr []byte) ([][]byte, error) { return a.IssuePerson(csr, erin, 24*time.Hour) }).Leaf()
	for _, name := range []string{"lockbox.example", "192.0.2.1", "::1"} {
		if err := server.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if got := device.URIs[0].String(); got != "databox://DBX0001/node/2" {
		t.Errorf("the device is %q", got)
	}
	if got := person.URIs[0].String(); got != "lockbox://person/erin@provider.example" || person.Subject.CommonName != string(erin) {
		t.Errorf("the person is %q, %q", got, person.Subject.CommonName)
	}
	for _, leaf := range []*x509.Certificate{server, device, person} {
		want := x509.ExtKeyUsageClientAuth
		if leaf == server {
			want = x509.ExtKeyUsageServerAuth
		}
		if len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != want || leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
			t.Errorf("%v: usages %v %v, authority %v", leaf.Subject, leaf.ExtKeyUsage, leaf.KeyUsage, leaf.IsCA)
		}
		if got := now.Sub(leaf.NotBefore); got < time.Minute || got > time.Minute+time.Second {
			t.Errorf("%v is valid from %v before now", leaf.Subject, got)
		}
		if got := leaf.NotAfter.Sub(now); got > 24*time.Hour || got < 24*time.Hour-time.Second {
			t.Errorf("%v is valid for %v", leaf.Subject, got)
		}
		if leaf.SerialNumber.BitLen() < 64 || leaf.SerialNumber.BitLen() > 127 {
			t.Errorf("%v has a serial of %d bits", leaf.Subject, leaf.SerialNumber.BitLen())
		}
	}
}

func TestIssueRefuses(t *testing.T) {
	a := open(t)
	_, good := request(t)
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	otherKey, _ := NewCSR(ec)
	tampered := bytes.Clone(good)
	tampered[len(tampered)-1] ^= 1
	tests := []struct {
		name string
		csr  []byte
		node protocol.NodeID
		ttl  time.Duration
		want string
	}{
		{"control", good, node, time.Hour, ""},
		{"other key type", otherKey, node, time.Hour, "want Ed25519"},
		{"signature", tampered, node, time.Hour, "not signed by the key"},
		{"not a request", []byte("x"), node, time.Hour, "cannot be parsed"},
		{"nothing", nil, node, time.Hour, "cannot be parsed"},
		{"huge", make([]byte, maxCSR+1), node, time.Hour, "at most"},
		{"no time", good, node, 0, "above zero"},
		{"longer than the root", good, node, 100 * 365 * 24 * time.Hour, "before its root"},
		{"no serial", good, protocol.NodeID{Node: 1}, time.Hour, "is not a node"},
		{"no node", good, protocol.NodeID{Serial: "DBX0001"}, time.Hour, "is not a node"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := a.IssueDevice(tt.csr, tt.node, tt.ttl)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	for _, person := range []protocol.Person{"", "a b", "a/b", "..", "ä@x", "a\nb", protocol.Person(strings.Repeat("x", 129))} {
		if _, err := a.IssuePerson(good, person, time.Hour); err == nil {
			t.Errorf("issued to %q", person)
		}
	}
	if _, err := a.IssueServer(good, nil, time.Hour); err == nil {
		t.Error("issued to a server without a name")
	}
}

func TestWhatARequestAsksForIsIgnored(t *testing.T) {
	a := open(t)
	key, _ := NewKey()
	admin, _ := url.Parse("lockbox://person/admin")
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "admin"}, DNSNames: []string{"lockbox.example"}, URIs: []*url.URL{admin},
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Value: []byte{0x30, 3, 1, 1, 0xff}}}, // an authority
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.IssuePerson(csr, erin, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(chain[0])
	if leaf.Subject.CommonName != string(erin) || len(leaf.DNSNames) != 0 || len(leaf.URIs) != 1 || leaf.URIs[0].Path != "/"+string(erin) || leaf.IsCA {
		t.Errorf("the certificate is for %v %v %v", leaf.Subject, leaf.DNSNames, leaf.URIs)
	}
}

func TestPin(t *testing.T) {
	a := open(t)
	pin := Pin(a.Roots().Servers)
	if err := CheckPin(pin); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", pin[7:], pin[:70], pin + "0", strings.ToUpper(pin), "sha256:" + strings.Repeat("g", 64)} {
		if CheckPin(bad) == nil {
			t.Errorf("%q is taken for a pin", bad)
		}
	}
}

func TestChainAndKeyFiles(t *testing.T) {
	a := open(t)
	key, csr := request(t)
	chain, err := a.IssueDevice(csr, node, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeChain(EncodeChain(chain))
	if err != nil || len(got) != 2 || !bytes.Equal(got[0], chain[0]) || !bytes.Equal(got[1], chain[1]) {
		t.Errorf("the chain did not come back: %v", err)
	}
	text, err := EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, []byte("x"), text, append(EncodeChain(chain), 'x')} {
		if _, err := DecodeChain(bad); err == nil {
			t.Errorf("%.20q is taken for a chain", bad)
		}
	}
	if back, err := DecodeKey(text); err != nil || !back.Equal(key) {
		t.Errorf("the key did not come back: %v", err)
	}
	for _, bad := range [][]byte{nil, EncodeChain(chain), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: make([]byte, 3)})} {
		if _, err := DecodeKey(bad); err == nil {
			t.Errorf("%.20q is taken for a key", bad)
		}
	}
}

// foreign runs a tool that judges what we made.
func foreign(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing", name)
		}
		t.Skipf("%s is missing", name)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	return string(out), err
}

func TestOpenSSLAgrees(t *testing.T) {
	a := open(t)
	dir := t.TempDir()
	write := func(name string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	roots := map[string]string{
		"devices": write("devices", a.Roots().Devices.Raw), "servers": write("servers", a.Roots().Servers.Raw), "people": write("people", a.Roots().People.Raw),
	}
	leaves := map[string]string{
		"devices": write("device", issued(t, func(c []byte) ([][]byte, error) { return a.IssueDevice(c, node, time.Hour) }).Leaf().Raw),
		"servers": write("server", issued(t, func(c []byte) ([][]byte, error) { return a.IssueServer(c, []string{"lockbox.example"}, time.Hour) }).Leaf().Raw),
		"people":  write("person", issued(t, func(c []byte) ([][]byte, error) { return a.IssuePerson(c, erin, time.Hour) }).Leaf().Raw),
	}
	for root, rootFile := range roots {
		for leaf, leafFile := range leaves {
			for _, purpose := range []string{"sslclient", "sslserver"} {
				want := root == leaf && (purpose == "sslserver") == (leaf == "servers")
				out, err := foreign(t, "openssl", "verify", "-x509_strict", "-CAfile", rootFile, "-purpose", purpose, leafFile)
				if (err == nil) != want {
					t.Errorf("openssl verify -purpose %s: leaf of %s under root of %s: %v, want ok %v\n%s", purpose, leaf, root, err, want, out)
				}
			}
		}
	}
}
