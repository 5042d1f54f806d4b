// Package sealing seals the key of one disk, or what lets into one storage
// account, to one unlock of one device, so that what is captured on the wire is
// of no use elsewhere or later.
//
// Its rules:
//
//   - A [PrivateKey] serves one challenge, lives in memory only, and is wiped
//     after the first attempt.
//   - The whole [Context] is bound in: the approval, the decisions, the nonce,
//     the node, the disk or account, the purpose and the type of key. Whatever differs,
//     nothing opens.
//   - Whatever is wrong, there is one error, [ErrOpen].
//
// The cipher is HPKE (RFC 9180) with the hybrid of ML-KEM-768 and X25519, so
// that traffic recorded today stays closed to a quantum computer. SPEC.md
// beside it says the bytes.
package sealing

import (
	"crypto/hpke"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/databox-lockbox/lockbox/protocol"
)

// KeyType is the type of a sealed key.
type KeyType string

// The types of sealed keys.
const (
	ExternalKey     KeyType = "bitlocker-external-key"   // the 256-bit external key of a BitLocker volume
	AccessToStorage KeyType = "azure-storage-credential" // a shared access signature of a storage account: the query, without a question mark
)

// Sizes in bytes.
const (
	KeySize    = 32                 // of a disk's key before it is sealed
	MaxAccess  = 2048               // of an [AccessToStorage] before it is sealed, at most
	NonceSize  = 32                 // of a challenge's nonce
	PublicSize = 1216               // of a public key
	seedSize   = 32                 // of a private key
	encSize    = 1120               // of the encapsulated secret
	overhead   = encSize + 16       // of a sealed key over the key
	SealedSize = overhead + KeySize // of a disk's sealed key
)

// protocolVersion is the first field of the associated data and the HPKE info.
const protocolVersion = "databox-sealing-v1"

// ErrOpen is the one error for whatever does not open. It carries
// [protocol.CodeDiskKey].
var ErrOpen = protocol.Errorf(protocol.CodeDiskKey,
	"the sealed key does not open: it was sealed for another unlock, node or disk, or was changed")

// Context is what a sealed key is for. Every field is needed, of Disk on one hand
// and Account and Endpoint on the other those that the type of key is about.
type Context struct {
	RequestDigest   string // of the statement or the consent, "sha256:…"
	DecisionsDigest string // of the decisions, "sha256:…"
	Nonce           []byte // of the challenge, NonceSize bytes
	Node            protocol.NodeID
	Disk            protocol.DiskID // of an [ExternalKey]
	Account         string          // of an [AccessToStorage]
	Endpoint        string          // of that account
	Purpose         protocol.Purpose
	KeyType         KeyType
}

// associatedData returns every field with its length before it, so that no two
// contexts have the same bytes.
func (c Context) associatedData() []byte {
	var b []byte
	for _, field := range [][]byte{
		[]byte(protocolVersion),
		[]byte(c.RequestDigest),
		[]byte(c.DecisionsDigest),
		c.Nonce,
		[]byte(c.Node.String()),
		[]byte(c.subject()),
		[]byte(c.Purpose),
		[]byte(c.KeyType),
	} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
		b = append(b, field...)
	}
	return b
}

// subject is what the key opens. The type of key says which of both it is.
func (c Context) subject() string {
	if c.KeyType == AccessToStorage {
		return c.Account + " " + c.Endpoint
	}
	return string(c.Disk)
}

// fits reports whether a key of that type has so many bytes.
func (t KeyType) fits(size int) bool {
	if t == AccessToStorage {
		return size > 0 && size <= MaxAccess
	}
	return size == KeySize
}

// check refuses a context that would bind less than it should.
func (c Context) check() error {
	if c.RequestDigest == "" || c.DecisionsDigest == "" || len(c.Nonce) != NonceSize ||
		c.Node == (protocol.NodeID{}) || c.Purpose == "" || c.KeyType == "" || !c.hasSubject() {
		return errors.New("every field of the context is needed, and a nonce of " + strconv.Itoa(NonceSize) + " bytes")
	}
	return nil
}

// hasSubject reports whether it says what the key opens, and nothing else. What
// lets into an account is for the copy job alone.
func (c Context) hasSubject() bool {
	if c.KeyType == AccessToStorage {
		return c.Disk == "" && c.Account != "" && c.Endpoint != "" && c.Purpose == protocol.DataCopy
	}
	return c.Disk != "" && c.Account == "" && c.Endpoint == ""
}

// PrivateKey is the key of one challenge. Only its seed is kept, which Wipe
// overwrites; what crypto/hpke makes of it during Open is left to the garbage
// collector. It is not safe for use by several goroutines at once.
type PrivateKey struct {
	seed   [seedSize]byte
	public []byte
	wiped  bool
}

// GenerateKey makes the key of one challenge.
func GenerateKey() (*PrivateKey, error) {
	k := new(PrivateKey)
	rand.Read(k.seed[:])
	expanded, err := kem().NewPrivateKey(k.seed[:])
	if err != nil {
		return nil, fmt.Errorf("cannot make a key to seal to: %w", err)
	}
	k.public = expanded.PublicKey().Bytes()
	return k, nil
}

// Public returns the public key, [PublicSize] bytes.
func (k *PrivateKey) Public() []byte { return append([]byte(nil), k.public...) }

// Wipe overwrites the key. Nothing opens with it any more.
func (k *PrivateKey) Wipe() {
	clear(k.seed[:])
	k.wiped = true
}

// Format prints no secret, whatever the verb.
func (*PrivateKey) Format(s fmt.State, _ rune) { io.WriteString(s, "sealing.PrivateKey") }

// Seal seals a key to a public key, for one context. That of a disk has [KeySize]
// bytes, and is sealed in [SealedSize].
func Seal(public []byte, ctx Context, key []byte) ([]byte, error) {
	if err := ctx.check(); err != nil {
		return nil, fmt.Errorf("cannot seal: %w", err)
	}
	if !ctx.KeyType.fits(len(key)) {
		return nil, fmt.Errorf("cannot seal: the key has %d bytes, want %d, or up to %d for %s", len(key), KeySize, MaxAccess, AccessToStorage)
	}
	to, err := kem().NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("cannot seal: the public key is not one of %d bytes to seal to", PublicSize)
	}
	enc, sender, err := hpke.NewSender(to, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(protocolVersion))
	if err != nil {
		return nil, fmt.Errorf("cannot seal: %w", err)
	}
	ciphertext, err := sender.Seal(ctx.associatedData(), key)
	if err != nil {
		return nil, fmt.Errorf("cannot seal: %w", err)
	}
	return append(enc, ciphertext...), nil
}

// Open opens what [Seal] sealed for the same context. The caller wipes the
// result. Every failure is [ErrOpen].
func (k *PrivateKey) Open(ctx Context, sealed []byte) ([]byte, error) {
	if k.wiped || !ctx.KeyType.fits(len(sealed)-overhead) || ctx.check() != nil {
		return nil, ErrOpen
	}
	expanded, err := kem().NewPrivateKey(k.seed[:])
	if err != nil {
		return nil, ErrOpen
	}
	receiver, err := hpke.NewRecipient(sealed[:encSize], expanded, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(protocolVersion))
	if err != nil {
		return nil, ErrOpen
	}
	key, err := receiver.Open(ctx.associatedData(), sealed[encSize:])
	if err != nil {
		return nil, ErrOpen
	}
	return key, nil
}

func kem() hpke.KEM { return hpke.MLKEM768X25519() }
