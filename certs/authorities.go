package certs

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/crypto/ssh"
)

// FileName is the file within the directory of [Open] that holds all
// authorities. It is one file so that it exists whole or not at all, and so
// that a backup of it is a backup of all of them.
const FileName = "authorities.pem"

// rootLifetime is how long a root is valid. Devices stay in the field for years
// and their roots are not exchanged there.
const rootLifetime = 20 * 365 * 24 * time.Hour

// maxFile bounds the authorities file: five keys and three certificates take
// about 4 kB.
const maxFile = 64 << 10

// Authorities are the five keys that everything else is signed with. They are
// safe for concurrent use.
type Authorities struct {
	// Now is the clock that certificates are dated by; time.Now unless changed
	// before first use.
	Now func() time.Time

	devices, servers, people root
	users, hosts             ssh.Signer
}

// Roots are the certificates that the two ends verify each other against. None
// of them is secret.
type Roots struct {
	Devices, Servers, People *x509.Certificate
}

type root struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

// The X.509 authorities with what their leaves may be used for, and the SSH
// authorities: the order in which the file lists them.
var (
	x509Names = []string{"devices", "servers", "people"}
	sshNames  = []string{"ssh-users", "ssh-hosts"}
	usages    = map[string]x509.ExtKeyUsage{
		"devices": x509.ExtKeyUsageClientAuth,
		"servers": x509.ExtKeyUsageServerAuth,
		"people":  x509.ExtKeyUsageClientAuth,
	}
)

// Open loads the authorities in dir, or makes new ones if dir is empty or
// missing; created reports which. What it makes is on disk when it returns. It
// refuses a directory wider than 0700, a file wider than 0600, and a directory
// that holds other things but no authorities: they were lost or dir is wrong.
func Open(dir string) (a *Authorities, created bool, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, false, fmt.Errorf("cannot open the authorities: %w", err)
	}
	if err := checkMode(dir, 0o700); err != nil {
		return nil, false, err
	}
	path := filepath.Join(dir, FileName)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		a, err := create(dir, path)
		return a, err == nil, err
	}
	a, err = load(path)
	return a, false, err
}

func create(dir, path string) (*Authorities, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open the authorities: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "."+FileName) { // left by a creation that was cut short
			return nil, fmt.Errorf("%s is missing but %s is not empty: restore it from a backup, or name an empty directory", FileName, dir)
		}
	}
	data, err := generate(time.Now())
	if err != nil {
		return nil, err
	}
	defer clear(data)
	if err := writeDurably(path, data); err != nil {
		return nil, fmt.Errorf("cannot store the authorities: %w", err)
	}
	return parse(data)
}

func load(path string) (*Authorities, error) {
	if err := checkMode(path, 0o600); err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the authorities: %w", err)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s is not a file of authorities: it has %d bytes", path, info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the authorities: %w", err)
	}
	defer clear(data)
	a, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: restore it from a backup", path, err)
	}
	return a, nil
}

// checkMode refuses a path that others than its owner may use.
func checkMode(path string, widest fs.FileMode) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("cannot open the authorities: %w", err)
	}
	if m := info.Mode(); m.Perm()&^widest != 0 || (!m.IsDir() && !m.IsRegular()) {
		return fmt.Errorf("%s has mode %v, wider than %04o: it holds private keys, so run chmod %04o on it once nobody else can have read it", path, m, widest, widest)
	}
	return nil
}

// writeDurably returns when the file is on disk under its name.
func writeDurably(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := renameio.WriteFile(path, data, 0o600, renameio.WithTempDir(dir), renameio.IgnoreUmask()); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// generate makes all authorities and returns their file.
func generate(now time.Time) ([]byte, error) {
	var out bytes.Buffer
	for _, name := range x509Names {
		key, cert, err := newRoot(name, now)
		if err != nil {
			return nil, err
		}
		if err := appendKey(&out, name, key); err != nil {
			return nil, err
		}
		if err := appendBlock(&out, certificateBlock, name, cert); err != nil {
			return nil, err
		}
	}
	for _, name := range sshNames {
		key, err := NewKey()
		if err != nil {
			return nil, err
		}
		if err := appendKey(&out, name, key); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

func newRoot(name string, now time.Time) (ed25519.PrivateKey, []byte, error) {
	key, err := NewKey()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{Organization: []string{"Databox Lockbox"}, CommonName: "Lockbox authority for " + name},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootLifetime),
		KeyUsage:              x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{usages[name]},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make the authority for %s: %w", name, err)
	}
	return key, cert, nil
}

func appendKey(out *bytes.Buffer, name string, key ed25519.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("cannot store the authority for %s: %w", name, err)
	}
	defer clear(der)
	return appendBlock(out, keyBlock, name, der)
}

// nameHeader is the PEM header that says to which authority a block belongs.
const nameHeader = "Authority"

func appendBlock(out *bytes.Buffer, kind, name string, der []byte) error {
	return pem.Encode(out, &pem.Block{Type: kind, Headers: map[string]string{nameHeader: name}, Bytes: der})
}

// parse reads the file of authorities. Every one must be there once, and every
// certificate must belong to its key.
func parse(data []byte) (*Authorities, error) {
	keys := make(map[string]ed25519.PrivateKey)
	certs := make(map[string]*x509.Certificate)
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		name := block.Headers[nameHeader]
		var err error
		switch block.Type {
		case keyBlock:
			keys[name], err = parseKey(block.Bytes)
			clear(block.Bytes)
		case certificateBlock:
			certs[name], err = x509.ParseCertificate(block.Bytes)
		}
		if err != nil {
			return nil, fmt.Errorf("the authority for %q is damaged: %w", name, err)
		}
	}
	return assemble(keys, certs)
}

func assemble(keys map[string]ed25519.PrivateKey, certs map[string]*x509.Certificate) (*Authorities, error) {
	roots := make(map[string]root)
	for _, name := range x509Names {
		key, cert := keys[name], certs[name]
		if key == nil || cert == nil || !key.Public().(ed25519.PublicKey).Equal(cert.PublicKey) {
			return nil, fmt.Errorf("the authority for %s is missing or damaged", name)
		}
		roots[name] = root{cert: cert, key: key}
	}
	signers := make(map[string]ssh.Signer)
	for _, name := range sshNames {
		if keys[name] == nil {
			return nil, fmt.Errorf("the authority for %s is missing", name)
		}
		signer, err := ssh.NewSignerFromKey(keys[name])
		if err != nil {
			return nil, fmt.Errorf("the authority for %s is damaged: %w", name, err)
		}
		signers[name] = signer
	}
	return &Authorities{
		Now:     time.Now,
		devices: roots["devices"],
		servers: roots["servers"],
		people:  roots["people"],
		users:   signers["ssh-users"],
		hosts:   signers["ssh-hosts"],
	}, nil
}

// Roots returns the three X.509 roots.
func (a *Authorities) Roots() Roots {
	return Roots{Devices: a.devices.cert, Servers: a.servers.cert, People: a.people.cert}
}

// SSHUserAuthority is the key that signs the certificates of engineers.
func (a *Authorities) SSHUserAuthority() ssh.PublicKey { return a.users.PublicKey() }

// SSHHostAuthority is the key that signs the certificates of nodes.
func (a *Authorities) SSHHostAuthority() ssh.PublicKey { return a.hosts.PublicKey() }

// newSerial returns 127 random bits, so that serials never repeat and say nothing.
func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	b[0] &= 0x7f
	b[15] |= 1 // never zero
	return new(big.Int).SetBytes(b[:])
}
