// Package certs makes and checks every certificate of the product: who is a
// device, who is a server, who is a person.
//
//   - Devices, servers and people have separate Ed25519 X.509 roots, so a
//     certificate of one kind never chains where another is wanted. Support
//     sessions have an SSH user authority and an SSH host authority of their own.
//   - A leaf is made from a certificate request. Its signature and its key type
//     are checked; everything else it asks for is ignored.
//   - Identity is in the subject alternative name only: databox://<serial>/node/<n>
//     for a device node, lockbox://person/<name> for a person, DNS names and
//     addresses for a server.
//   - TLS is 1.3 only, with the standard library's post-quantum hybrid key
//     exchange. Revocation is asked in VerifyConnection, which also runs when a
//     TLS session is resumed.
package certs

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"
)

// backdate is how far before its making a certificate becomes valid, so that a
// peer whose clock is a little behind accepts it.
const backdate = time.Minute

// NewKey makes an Ed25519 key for a leaf.
func NewKey() (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return key, err
}

// NewCSR returns a certificate request (DER) for key. It carries nothing but
// the key: whoever issues the certificate knows for whom.
func NewCSR(key crypto.Signer) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("cannot make a certificate request: %w", err)
	}
	return csr, nil
}

// Pin returns "sha256:<hex>" over root's public key (SubjectPublicKeyInfo). Join
// and login tokens carry it, so that a first connection knows its server.
func Pin(root *x509.Certificate) string {
	sum := sha256.Sum256(root.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// CheckPin returns an error unless pin has the form that [Pin] returns.
func CheckPin(pin string) error {
	digits, ok := strings.CutPrefix(pin, "sha256:")
	sum, err := hex.DecodeString(digits)
	if !ok || err != nil || len(sum) != sha256.Size || digits != strings.ToLower(digits) {
		return fmt.Errorf("%q is not a pin: want sha256: and 64 hex digits, as in the token", pin)
	}
	return nil
}

// Serial returns a certificate's serial number in hex, the form in which
// revocations name it.
func Serial(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

// EncodeChain writes a chain (DER, leaf first) as PEM.
func EncodeChain(chain [][]byte) []byte {
	var out []byte
	for _, der := range chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: der})...)
	}
	return out
}

// DecodeChain reads a chain that [EncodeChain] wrote. Anything but certificates
// is refused.
func DecodeChain(data []byte) ([][]byte, error) {
	var chain [][]byte
	for len(strings.TrimSpace(string(data))) > 0 {
		block, rest := pem.Decode(data)
		if block == nil || block.Type != certificateBlock {
			return nil, errors.New("cannot read the certificate chain: want PEM blocks of type CERTIFICATE only")
		}
		chain, data = append(chain, block.Bytes), rest
	}
	if len(chain) == 0 {
		return nil, errors.New("cannot read the certificate chain: it is empty")
	}
	return chain, nil
}

// EncodeKey writes an Ed25519 key as PKCS#8 PEM. The caller stores it with mode
// 0600 and wipes the bytes.
func EncodeKey(key ed25519.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("cannot encode a private key: %w", err)
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), nil
}

// DecodeKey reads a key that [EncodeKey] wrote.
func DecodeKey(data []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != keyBlock {
		return nil, errors.New("cannot read the private key: want a PEM block of type PRIVATE KEY")
	}
	defer clear(block.Bytes)
	return parseKey(block.Bytes)
}

func parseKey(der []byte) (ed25519.PrivateKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("cannot read the private key: it is not PKCS#8")
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("cannot read the private key: it is %T, want Ed25519", parsed)
	}
	return key, nil
}

const (
	certificateBlock = "CERTIFICATE"
	keyBlock         = "PRIVATE KEY"
)
