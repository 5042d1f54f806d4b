package client

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// Identity is who calls, and whom.
type Identity struct {
	Server     string // host:port of the API
	Key        ed25519.PrivateKey
	Chain      [][]byte // DER, leaf first
	ServerRoot []byte   // DER
}

// Pin returns the pin of the server's root, see [certs.Pin].
func (id *Identity) Pin() (string, error) {
	root, err := x509.ParseCertificate(id.ServerRoot)
	if err != nil {
		return "", fmt.Errorf("cannot read the stored server root, log in again: %w", err)
	}
	return certs.Pin(root), nil
}

// Expires returns when the identity's certificate ends.
func (id *Identity) Expires() (time.Time, error) {
	leaf, err := x509.ParseCertificate(id.Chain[0])
	if err != nil {
		return time.Time{}, fmt.Errorf("cannot read the stored certificate, log in again: %w", err)
	}
	return leaf.NotAfter, nil
}

// Ages reports whether the identity's certificate should be renewed: less than an
// hour is left of it, and less than half.
func (id *Identity) Ages(now time.Time) bool {
	leaf, err := x509.ParseCertificate(id.Chain[0])
	if err != nil {
		return false
	}
	left := leaf.NotAfter.Sub(now)
	return left < min(time.Hour, leaf.NotAfter.Sub(leaf.NotBefore)/2)
}

// Person returns the name that the identity's certificate was issued for.
func (id *Identity) Person() (protocol.Person, error) {
	leaf, err := x509.ParseCertificate(id.Chain[0])
	if err != nil {
		return "", fmt.Errorf("cannot read the stored certificate, log in again: %w", err)
	}
	return protocol.Person(leaf.Subject.CommonName), nil
}

// The files of an identity in its directory.
const (
	serverFile = "server"
	keyFile    = "key.pem"
	chainFile  = "certificate.pem"
	rootFile   = "server-root.pem"
)

// ErrNotLoggedIn is returned by [LoadIdentity] for a directory without one.
var ErrNotLoggedIn = errors.New("not logged in: run 'lockbox login --server HOST:PORT' with the token you were given")

// LoadIdentity reads the identity in dir.
func LoadIdentity(dir string) (*Identity, error) {
	files := map[string][]byte{}
	for _, name := range []string{serverFile, keyFile, chainFile, rootFile} { // without the first there is no identity
		data, err := readPrivate(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, ErrNotLoggedIn
		}
		if err != nil {
			return nil, err
		}
		files[name] = data
	}
	key, err := certs.DecodeKey(files[keyFile])
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", filepath.Join(dir, keyFile), err)
	}
	clear(files[keyFile])
	chain, err := certs.DecodeChain(files[chainFile])
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", filepath.Join(dir, chainFile), err)
	}
	root, err := certs.DecodeChain(files[rootFile])
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", filepath.Join(dir, rootFile), err)
	}
	return &Identity{Server: strings.TrimSpace(string(files[serverFile])), Key: key, Chain: chain, ServerRoot: root[0]}, nil
}

// readPrivate reads a file that its owner alone may use.
func readPrivate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("others can use %s (mode %04o): run 'chmod 600 %s', and log in again if others were on this machine", path, info.Mode().Perm(), path)
	}
	return os.ReadFile(path)
}

// Save writes the identity to dir, mode 0700, its files 0600. The server's name
// is written last: without it there is no identity, so that one over another key
// replaces the old one whole or takes it away.
func (id *Identity) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	key, err := certs.EncodeKey(id.Key)
	if err != nil {
		return err
	}
	defer clear(key)
	old, err := os.ReadFile(filepath.Join(dir, keyFile))
	defer clear(old)
	if err != nil || !bytes.Equal(old, key) {
		if err := os.Remove(filepath.Join(dir, serverFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot replace the identity: %w", err)
		}
	}
	for _, f := range []struct {
		name string
		data []byte
	}{
		{keyFile, key},
		{chainFile, certs.EncodeChain(id.Chain)},
		{rootFile, certs.EncodeChain([][]byte{id.ServerRoot})},
		{serverFile, []byte(id.Server + "\n")},
	} {
		if err := renameio.WriteFile(filepath.Join(dir, f.name), f.data, 0o600, renameio.WithTempDir(dir), renameio.WithStaticPermissions(0o600)); err != nil {
			return fmt.Errorf("cannot store the identity: %w", err)
		}
	}
	return nil
}

// RemoveIdentity deletes the identity in dir and nothing else.
func RemoveIdentity(dir string) error {
	var errs []error
	for _, name := range []string{serverFile, keyFile, chainFile, rootFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Login exchanges a one-time login token for an identity. The token pins the
// server's root, so nobody else can take it; the key is made here.
func Login(ctx context.Context, server, token string) (*Identity, *lockboxv1.Person, error) {
	host, err := splitServer(server)
	if err != nil {
		return nil, nil, err
	}
	pin, err := tokenPin(token)
	if err != nil {
		return nil, nil, err
	}
	config, err := certs.PinnedDialer(pin, host)
	if err != nil {
		return nil, nil, err
	}
	key, err := certs.NewKey()
	if err != nil {
		return nil, nil, err
	}
	csr, err := certs.NewCSR(key)
	if err != nil {
		return nil, nil, err
	}
	c := open(server, config)
	defer c.Close()
	resp, err := c.Accounts.Login(ctx, &lockboxv1.LoginRequest{Token: token, Csr: csr})
	if err != nil {
		return nil, nil, fmt.Errorf("cannot log in at %s: %w", server, err)
	}
	id, err := newIdentity(server, pin, key, resp)
	return id, resp.GetPerson(), err
}

// tokenPin returns the pin within "lbxlogin.<id>.<secret>.<pin>".
func tokenPin(token string) (string, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 4 || parts[0] != "lbxlogin" {
		return "", protocol.Errorf(protocol.CodeInvalid, "this is not a login token: it starts with lbxlogin. and has four parts")
	}
	pin := "sha256:" + parts[3]
	return pin, certs.CheckPin(pin)
}

// Renew returns id with a fresh certificate over the same key.
func (c *Client) Renew(ctx context.Context, id *Identity) (*Identity, error) {
	csr, err := certs.NewCSR(id.Key)
	if err != nil {
		return nil, err
	}
	resp, err := c.Accounts.RenewCertificate(ctx, &lockboxv1.RenewCertificateRequest{Csr: csr})
	if err != nil {
		return nil, fmt.Errorf("cannot renew the certificate: %w", err)
	}
	if _, err := certs.NewSource(id.Key, resp.Chain, nil, nil); err != nil {
		return nil, fmt.Errorf("cannot renew the certificate: the answer does not fit: %w", err)
	}
	fresh := *id
	fresh.Chain = resp.Chain
	return &fresh, nil
}
