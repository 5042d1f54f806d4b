package approval

import (
	"cmp"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"strconv"

	"github.com/databox-lockbox/lockbox/protocol"
)

// MaxSignatures and MaxEnvelope bound an envelope: its signatures, of which
// there may be one of every key that a trust policy can name, and its bytes.
const (
	MaxSignatures = maxList
	MaxEnvelope   = 2 * MaxOrder
)

// maxSig bounds one signature in bytes. An assertion of a passkey is the
// largest, below 2 KiB.
const maxSig = 4096

// Envelope is a document with its signatures: DSSE, in canonical JSON.
type Envelope struct {
	PayloadType Kind        `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []Signature `json:"signatures"`
}

// Signature is one signature over the envelope's [PAE]. What Sig holds depends
// on the key: an SSHSIG blob, a passkey's assertion, or 64 bytes of Ed25519.
type Signature struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// PAE returns DSSE's pre-authentication encoding, the bytes that are signed.
func PAE(kind Kind, payload []byte) []byte {
	b := []byte("DSSEv1 ")
	b = strconv.AppendInt(b, int64(len(kind)), 10)
	b = append(b, ' ')
	b = append(b, kind...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(payload)), 10)
	b = append(b, ' ')
	return append(b, payload...)
}

// NewEnvelope encodes doc into an envelope that nobody has signed yet.
func NewEnvelope(doc Document) (Envelope, error) {
	payload, err := doc.Encode()
	if err != nil {
		return Envelope{}, err
	}
	return Envelope{PayloadType: doc.Kind(), Payload: payload}, nil
}

// ParseEnvelope reads an envelope. It verifies no signature and does not read
// the payload.
func ParseEnvelope(data []byte) (Envelope, error) {
	if len(data) > MaxEnvelope {
		return Envelope{}, invalid("envelope is %d bytes: at most %d are allowed", len(data), MaxEnvelope)
	}
	var e Envelope
	if err := unmarshal(data, &e); err != nil {
		return Envelope{}, invalid("envelope: %v", err)
	}
	if err := e.check(); err != nil {
		return Envelope{}, invalid("envelope: %v", err)
	}
	return e, nil
}

// Encode returns the canonical bytes of e. It fails when nobody has signed.
func (e Envelope) Encode() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, invalid("envelope: %v", err)
	}
	return marshal(e)
}

// PAE returns the bytes that signatures of e are over.
func (e Envelope) PAE() []byte { return PAE(e.PayloadType, e.Payload) }

// Digest returns the digest of the payload.
func (e Envelope) Digest() Digest { return DigestOf(e.Payload) }

// PasskeyChallenge returns the challenge for a passkey that is to sign e: the
// 32 bytes SHA-256 of [Envelope.PAE].
func (e Envelope) PasskeyChallenge() []byte {
	sum := sha256.Sum256(e.PAE())
	return sum[:]
}

// AddPasskey adds the assertion of a passkey, the JSON of a browser's
// credential.toJSON(), as the signature of keyID. It verifies nothing.
func (e *Envelope) AddPasskey(keyID string, toJSON []byte) error {
	sig, err := CanonicalAssertion(toJSON)
	if err != nil {
		return err
	}
	return e.add(keyID, sig)
}

// SignEd25519 adds a machine's signature. The key must be an Ed25519 key; its
// fingerprint becomes the key id.
func (e *Envelope) SignEd25519(key crypto.Signer) error {
	pub, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return invalid("cannot sign %s: the key is a %T, want Ed25519", e.PayloadType.name(), key.Public())
	}
	sig, err := key.Sign(rand.Reader, e.PAE(), crypto.Hash(0))
	if err != nil {
		return fmt.Errorf("cannot sign %s: %w", e.PayloadType.name(), err)
	}
	return e.add(string(KeyFingerprint(pub)), sig)
}

// VerifyEd25519 verifies that a machine's key signed e, and that nobody else
// did. Refusals carry [protocol.CodeSignatureInvalid].
func (e Envelope) VerifyEd25519(key ed25519.PublicKey) error {
	alone := len(e.Signatures) == 1 && e.Signatures[0].KeyID == string(KeyFingerprint(key))
	if !alone || machineVerifier(key).verify(e.PayloadType, e.PAE(), e.Signatures[0].Sig) != nil {
		return protocol.Errorf(protocol.CodeSignatureInvalid,
			"the %s is not signed by key %s, and by no other", e.PayloadType.name(), KeyFingerprint(key))
	}
	return nil
}

// SignEd25519 returns the encoded envelope of doc, signed by a machine's key.
func SignEd25519(doc Document, key crypto.Signer) ([]byte, error) {
	e, err := NewEnvelope(doc)
	if err != nil {
		return nil, err
	}
	if err := e.SignEd25519(key); err != nil {
		return nil, err
	}
	return e.Encode()
}

// add appends a signature, unless that would make e invalid.
func (e *Envelope) add(keyID string, sig []byte) error {
	next := *e
	next.Signatures = append(e.Signatures[:len(e.Signatures):len(e.Signatures)], Signature{keyID, sig})
	if err := next.check(); err != nil {
		return invalid("envelope: %v", err)
	}
	*e = next
	return nil
}

func (e Envelope) check() error {
	limit := e.PayloadType.limit()
	if limit == 0 {
		return fmt.Errorf("payloadType is %q, which is none of ours", e.PayloadType)
	}
	err := cmp.Or(
		checkCount("payload", len(e.Payload), limit),
		checkCount("signatures", len(e.Signatures), MaxSignatures),
	)
	if err != nil {
		return err
	}
	for _, s := range e.Signatures {
		err := cmp.Or(checkForm("keyid", s.KeyID, keyIDForm), checkCount("sig", len(s.Sig), maxSig))
		if err != nil {
			return err
		}
	}
	return checkUnique("signatures", e.Signatures, func(s Signature) string { return s.KeyID })
}

// signed is a well-formed envelope and its document. Its signatures still have
// to be verified.
type signed[T document] struct {
	Envelope
	doc T
}

// open reads an envelope that must hold a document of type T.
func open[T document](data []byte) (signed[T], error) {
	var none signed[T]
	e, err := ParseEnvelope(data)
	if err != nil {
		return none, err
	}
	var want T
	if e.PayloadType != want.Kind() {
		return none, invalid("envelope holds a %s: want a %s", e.PayloadType.name(), want.Kind().name())
	}
	doc, err := decode[T](e.Payload)
	if err != nil {
		return none, err
	}
	return signed[T]{e, doc}, nil
}
