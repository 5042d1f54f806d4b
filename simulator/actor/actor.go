// Package actor plays the people of the story, and the one nobody wants: a
// hostile control plane that holds every service key and the database.
package actor

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// Person is somebody in the story: their folder holds their SSH key and the
// home of their lockbox command.
type Person struct {
	Name   protocol.Person
	Role   string
	Tenant protocol.TenantID // "" for people of the provider
	Dir    string
}

// Short is the name before the @.
func (p Person) Short() string {
	short, _, _ := strings.Cut(string(p.Name), "@")
	return short
}

// Home is the home of the person's lockbox command.
func (p Person) Home() string { return filepath.Join(p.Dir, "home") }

// KeyFile is the person's SSH private key; the public one lies beside it.
func (p Person) KeyFile() string { return filepath.Join(p.Dir, "id_ed25519") }

// MakeKey makes the person's folder and SSH key, unless they exist.
func (p Person) MakeKey() error {
	if _, err := os.Stat(p.KeyFile()); err == nil {
		return nil
	}
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return err
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(key, string(p.Name))
	if err != nil {
		return err
	}
	public, err := ssh.NewPublicKey(pub)
	if err != nil {
		return err
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public))) + " " + string(p.Name) + "\n"
	if err := os.WriteFile(p.KeyFile()+".pub", []byte(line), 0o644); err != nil {
		return err
	}
	return os.WriteFile(p.KeyFile(), pem.EncodeToMemory(block), 0o600)
}

// Signer reads the person's SSH key.
func (p Person) Signer() (ssh.Signer, error) {
	data, err := os.ReadFile(p.KeyFile())
	if err != nil {
		return nil, err
	}
	s, err := ssh.ParsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("cannot read the key of %s: %w", p.Name, err)
	}
	return s, nil
}

// Sign signs a document with the person's key, under the id that a trust policy
// gives the key, whether it does or not: hostile stories need wrong ones too.
func (p Person) Sign(doc approval.Document, keyID string) ([]byte, error) {
	signer, err := p.Signer()
	if err != nil {
		return nil, err
	}
	env, err := approval.NewEnvelope(doc)
	if err != nil {
		return nil, err
	}
	if err := env.SignSSH(keyID, signer); err != nil {
		return nil, err
	}
	return env.Encode()
}

// Fingerprint is the fingerprint of the person's key.
func (p Person) Fingerprint() (string, error) {
	s, err := p.Signer()
	if err != nil {
		return "", err
	}
	return ssh.FingerprintSHA256(s.PublicKey()), nil
}
