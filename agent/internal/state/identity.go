package state

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Identity is what enrolment gave to the node.
type Identity struct {
	Serial             protocol.DeviceSerial `json:"serial"`
	Node               int                   `json:"node"`
	Chain              [][]byte              `json:"chain"`              // DER, leaf first; the leaf is for the node's key
	ServerRoots        [][]byte              `json:"serverRoots"`        // DER; who may be the control plane
	TunnelAddress      string                `json:"tunnelAddress"`      // host:port to dial
	SSHHostCertificate []byte                `json:"sshHostCertificate"` // SSH wire form
	Order              protocol.OrderID      `json:"order"`
}

// NodeID returns the node that was enrolled.
func (i Identity) NodeID() protocol.NodeID { return protocol.NodeID{Serial: i.Serial, Node: i.Node} }

// Identity returns the node's identity, and whether it is enrolled.
func (d *Dir) Identity() (Identity, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.identity == nil {
		return Identity{}, false
	}
	return *d.identity, true
}

// SetIdentity remembers the outcome of an enrolment or of a renewal. It refuses
// a certificate for another key than the node's, and, with
// [protocol.CodeConflict], another node than the one enrolled before.
func (d *Dir) SetIdentity(id Identity) error {
	key, err := d.NodeKey()
	if err != nil {
		return err
	}
	if err := checkChain(id.Chain, key); err != nil {
		return err
	}
	data, err := json.Marshal(id)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if old := d.identity; old != nil && old.NodeID() != id.NodeID() {
		return protocol.Errorf(protocol.CodeConflict, "this directory belongs to node %s: enrol %s with a directory of its own", old.NodeID(), id.NodeID())
	}
	if err := WriteFile(d.file(identityFile), data); err != nil {
		return err
	}
	d.identity = &id
	return nil
}

func checkChain(chain [][]byte, key crypto.Signer) error {
	if len(chain) == 0 {
		return protocol.Errorf(protocol.CodeInvalid, "the enrolment brought no certificate")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return protocol.Errorf(protocol.CodeInvalid, "the node's certificate cannot be read: %v", err)
	}
	if !key.Public().(ed25519.PublicKey).Equal(leaf.PublicKey) {
		return protocol.Errorf(protocol.CodeInvalid, "the certificate is not for this node's key")
	}
	return nil
}

// NodeKey returns the Ed25519 key that is the node. The first call makes it.
func (d *Dir) NodeKey() (crypto.Signer, error) { return d.key(nodeKeyFile) }

// HostKey returns the Ed25519 key of the node's SSH server. The first call
// makes it.
func (d *Dir) HostKey() (crypto.Signer, error) { return d.key(hostKeyFile) }

func (d *Dir) key(name string) (crypto.Signer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key, err := loadKey(d.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(d.file(name))
	}
	return key, err
}

func loadKey(path string) (crypto.Signer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key file %s may be read by others (%v): replace the key, and set 0600", path, info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("key file %s holds no PEM", path)
	}
	defer clear(block.Bytes)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("key file %s cannot be read: %w", path, err)
	}
	signer, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key file %s holds no Ed25519 key", path)
	}
	return signer, nil
}

func makeKey(path string) (crypto.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	data := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	defer clear(data)
	if err := WriteFile(path, data); err != nil {
		return nil, err
	}
	return key, nil
}
