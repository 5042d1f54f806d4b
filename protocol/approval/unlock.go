package approval

import (
	"cmp"
	"fmt"

	"github.com/databox-lockbox/lockbox/protocol"
)

// NonceSize is the size of a challenge's nonce in bytes.
const NonceSize = 32

// maxKey bounds the public key of a challenge and one sealed key, in bytes.
const maxKey = 4096

// maxProof bounds the hashes of one proof of the log.
const maxProof = 64

// Challenge is a node's answer to "somebody wants to unlock you": a nonce and a
// fresh key to seal to. The node signs it with its enrolled key.
type Challenge struct {
	Header
	Node          NodeName `json:"node"`
	NodeKey       []byte   `json:"nodeKey"`       // the node's Ed25519 public key, 32 bytes
	RequestDigest Digest   `json:"requestDigest"` // of the statement or the consent
	Nonce         []byte   `json:"nonce"`         // NonceSize bytes
	HPKEKey       []byte   `json:"hpkeKey"`       // public key of package sealing
	Expires       int64    `json:"expires"`       // Unix seconds
}

// ParseChallenge reads a challenge.
func ParseChallenge(payload []byte) (Challenge, error) { return decode[Challenge](payload) }

// Encode returns the canonical bytes of c.
func (c Challenge) Encode() ([]byte, error) { c.V = Version; return encode(c) }

// Kind returns [KindChallenge].
func (Challenge) Kind() Kind { return KindChallenge }

func (c Challenge) check() error {
	_, err := c.Node.ID()
	return cmp.Or(
		err,
		checkBytes("nodeKey", c.NodeKey, 32),
		checkDigest("requestDigest", c.RequestDigest),
		checkBytes("nonce", c.Nonce, NonceSize),
		checkCount("hpkeKey", len(c.HPKEKey), maxKey),
		checkTime("expires", c.Expires),
	)
}

// SealedKey is the key of one disk, sealed to one challenge.
type SealedKey struct {
	Disk       protocol.DiskID `json:"disk"`
	KeyType    string          `json:"keyType"` // a key type of package sealing
	Ciphertext []byte          `json:"ciphertext"`
}

// SealedAccess is what lets into one destination of a consent, sealed to one
// challenge.
type SealedAccess struct {
	Account    string `json:"account"`
	Endpoint   string `json:"endpoint"`
	KeyType    string `json:"keyType"` // a key type of package sealing
	Ciphertext []byte `json:"ciphertext"`
}

// Order is the service's order to one node to open disks. It answers one
// challenge; the service signs it, and with it the time.
type Order struct {
	Header
	Purpose         protocol.Purpose `json:"purpose"`
	Node            NodeName         `json:"node"`
	RequestDigest   Digest           `json:"requestDigest"`    // of the statement or the consent
	DecisionsDigest Digest           `json:"decisionsDigest"`  // of a Grant or a CopyGrant
	Nonce           []byte           `json:"nonce"`            // of the challenge
	IssuedAt        int64            `json:"issuedAt"`         // Unix seconds
	Keys            []SealedKey      `json:"keys"`             // one for each disk of the node
	Access          []SealedAccess   `json:"access,omitempty"` // to destinations, for data-copy only
	LogCheckpoint   []byte           `json:"logCheckpoint"`    // signed note
	LogRecord       []byte           `json:"logRecord"`        // the recorded intent
	LogIndex        int64            `json:"logIndex"`         // of LogRecord
	LogProof        [][]byte         `json:"logProof,omitempty"`
	LogConsistency  [][]byte         `json:"logConsistency,omitempty"` // from the last checkpoint the node has seen
}

// ParseOrder reads an unlock order.
func ParseOrder(payload []byte) (Order, error) { return decode[Order](payload) }

// Encode returns the canonical bytes of o.
func (o Order) Encode() ([]byte, error) { o.V = Version; return encode(o) }

// Kind returns [KindOrder].
func (Order) Kind() Kind { return KindOrder }

// IntentDigest is the digest of the recorded intent, which the orders to all
// nodes of one attempt share, and no other order.
func (o Order) IntentDigest() Digest { return DigestOf(o.LogRecord) }

func (o Order) check() error {
	_, err := o.Node.ID()
	return cmp.Or(
		checkOneOf("purpose", o.Purpose, protocol.SupportAccess, protocol.DataCopy),
		err,
		checkDigest("requestDigest", o.RequestDigest),
		checkDigest("decisionsDigest", o.DecisionsDigest),
		checkBytes("nonce", o.Nonce, NonceSize),
		checkTime("issuedAt", o.IssuedAt),
		checkKeys(o.Keys),
		checkAccess(o.Purpose, o.Access),
		checkCount("logCheckpoint", len(o.LogCheckpoint), MaxDocument),
		checkCount("logRecord", len(o.LogRecord), MaxDocument),
		checkIndex(o.LogIndex),
		checkProof("logProof", o.LogProof),
		checkProof("logConsistency", o.LogConsistency),
	)
}

func checkKeys(keys []SealedKey) error {
	if err := checkCount("keys", len(keys), maxDisks); err != nil {
		return err
	}
	for _, k := range keys {
		if !k.Disk.Valid() {
			return fmt.Errorf("keys has disk %q: want 1 to 32 of a-z, 0-9 and dash", k.Disk)
		}
		err := cmp.Or(
			checkForm("keys.keyType", k.KeyType, tokenForm),
			checkCount("keys.ciphertext", len(k.Ciphertext), maxKey),
		)
		if err != nil {
			return err
		}
	}
	return checkUnique("keys", keys, func(k SealedKey) protocol.DiskID { return k.Disk })
}

func checkAccess(purpose protocol.Purpose, list []SealedAccess) error {
	if len(list) == 0 {
		return nil
	}
	if purpose != protocol.DataCopy {
		return fmt.Errorf("access is for %s only, not for %s", protocol.DataCopy, purpose)
	}
	for _, a := range list {
		err := cmp.Or(
			checkName("access.account", a.Account),
			checkName("access.endpoint", a.Endpoint),
			checkForm("access.keyType", a.KeyType, tokenForm),
			checkCount("access.ciphertext", len(a.Ciphertext), maxKey),
		)
		if err != nil {
			return err
		}
	}
	return cmp.Or(
		checkCount("access", len(list), maxList),
		checkUnique("access", list, func(a SealedAccess) string { return a.Account }),
	)
}

func checkIndex(i int64) error {
	if i < 0 {
		return fmt.Errorf("logIndex is %d: want 0 or more", i)
	}
	return nil
}

func checkProof(field string, hashes [][]byte) error {
	if len(hashes) > maxProof {
		return fmt.Errorf("%s has %d hashes: at most %d are allowed", field, len(hashes), maxProof)
	}
	for _, h := range hashes {
		if err := checkBytes(field, h, 32); err != nil {
			return err
		}
	}
	return nil
}

// Opened is a node's proof that it has opened the disks of an order and shares
// nothing yet. The node signs it with its enrolled key.
type Opened struct {
	Header
	Node          NodeName `json:"node"`
	NodeKey       []byte   `json:"nodeKey"`      // the node's Ed25519 public key, 32 bytes
	OrderDigest   Digest   `json:"orderDigest"`  // of the order's payload
	IntentDigest  Digest   `json:"intentDigest"` // of the order's LogRecord: which attempt it is
	RequestDigest Digest   `json:"requestDigest"`
	OpenedAt      int64    `json:"openedAt"` // Unix seconds
}

// ParseOpened reads a node's proof of opening.
func ParseOpened(payload []byte) (Opened, error) { return decode[Opened](payload) }

// Encode returns the canonical bytes of o.
func (o Opened) Encode() ([]byte, error) { o.V = Version; return encode(o) }

// Kind returns [KindOpened].
func (Opened) Kind() Kind { return KindOpened }

func (o Opened) check() error {
	_, err := o.Node.ID()
	return cmp.Or(
		err,
		checkBytes("nodeKey", o.NodeKey, 32),
		checkDigest("orderDigest", o.OrderDigest),
		checkDigest("intentDigest", o.IntentDigest),
		checkDigest("requestDigest", o.RequestDigest),
		checkTime("openedAt", o.OpenedAt),
	)
}

// Commit is the service's word that every node has opened, with their proofs.
// Only then may shares be published. The service signs it.
type Commit struct {
	Header
	RequestDigest Digest   `json:"requestDigest"`
	Opened        [][]byte `json:"opened"`   // one envelope of an Opened for each node
	IssuedAt      int64    `json:"issuedAt"` // Unix seconds
}

// ParseCommit reads a commit.
func ParseCommit(payload []byte) (Commit, error) { return decode[Commit](payload) }

// Encode returns the canonical bytes of c.
func (c Commit) Encode() ([]byte, error) { c.V = Version; return encode(c) }

// Kind returns [KindCommit].
func (Commit) Kind() Kind { return KindCommit }

func (c Commit) check() error {
	return cmp.Or(
		checkDigest("requestDigest", c.RequestDigest),
		checkCount("opened", len(c.Opened), 2),
		checkTime("issuedAt", c.IssuedAt),
	)
}
