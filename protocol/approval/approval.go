// Package approval holds the documents with which people let a device unlock,
// the envelopes that carry their signatures, and the one verification of both
// that the device and the key custody share.
//
// Its rules:
//
//   - A document is canonical JSON: what parses re-encodes to the same bytes, so
//     a digest names a meaning and not merely a spelling.
//   - An envelope is verified for exactly one kind of document, one role and the
//     keys a trust policy names for them.
//   - One person counts once, whatever number of keys they hold, and the
//     engineer who asks never counts.
//   - Anything not understood is refused, with a code of package protocol.
//
// The package is pure: it reads no clock, file or network. SPEC.md beside it
// is precise enough to write another verifier from.
package approval

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Version is the format version of every document here, its field "v".
const Version = 1

// Skew is how far two honest clocks may differ: a decision may be dated this
// much before its statement or after the reader's clock.
const Skew = 2 * time.Minute

// MaxDocument and MaxOrder bound the payload of a document in bytes. An [Order]
// carries sealed keys, and a [Changes] names of files: these may be larger than
// the rest.
const (
	MaxDocument = 64 << 10
	MaxOrder    = 256 << 10
)

// Kind is the kind of a document, which is the payload type of its envelope.
type Kind string

// The kinds of document.
const (
	KindRequest    Kind = "application/vnd.databox.request+json"
	KindDecision   Kind = "application/vnd.databox.decision+json"
	KindRevocation Kind = "application/vnd.databox.revocation+json"
	KindConsent    Kind = "application/vnd.databox.consent+json"
	KindStanding   Kind = "application/vnd.databox.standing+json"
	KindPolicy     Kind = "application/vnd.databox.policy+json"
	KindChallenge  Kind = "application/vnd.databox.challenge+json"
	KindOrder      Kind = "application/vnd.databox.order+json"
	KindOpened     Kind = "application/vnd.databox.opened+json"
	KindCommit     Kind = "application/vnd.databox.commit+json"
	KindErasure    Kind = "application/vnd.databox.erasure+json"
	KindChanges    Kind = "application/vnd.databox.changes+json"
	KindRecording  Kind = "application/vnd.databox.recording+json" // the end of a recording, see package recording
)

var kindForm = regexp.MustCompile(`^application/vnd\.databox\.([a-z]+)\+json$`)

// name returns the word that tells k from the other kinds.
func (k Kind) name() string {
	if m := kindForm.FindStringSubmatch(string(k)); m != nil {
		return m[1]
	}
	return "unknown"
}

// Namespace returns the SSHSIG namespace of signatures over a document of this
// kind, as in "databox-decision@lockbox".
func (k Kind) Namespace() string { return "databox-" + k.name() + "@lockbox" }

// limit returns the largest payload of this kind, in bytes; 0 if the kind is
// not one of ours.
func (k Kind) limit() int {
	switch k {
	case KindOrder, KindChanges:
		return MaxOrder
	case KindRequest, KindDecision, KindRevocation, KindConsent, KindStanding, KindPolicy,
		KindChallenge, KindOpened, KindCommit, KindErasure, KindRecording:
		return MaxDocument
	}
	return 0
}

// Digest names bytes: "sha256:" and 64 lower-case hexadecimal digits.
type Digest string

// DigestOf returns the digest of data. The digest of a document is that of its
// payload bytes, never of its envelope.
func DigestOf(data []byte) Digest {
	sum := sha256.Sum256(data)
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Valid reports whether d has the form of a digest.
func (d Digest) Valid() bool { return digestForm.MatchString(string(d)) }

// KeyFingerprint names a machine's Ed25519 key, a device node's or the
// service's: the digest of its 32 bytes. It is the key id of signatures made
// with that key.
func KeyFingerprint(key ed25519.PublicKey) Digest { return DigestOf(key) }

// invalid refuses malformed input.
func invalid(format string, args ...any) error {
	return protocol.Errorf(protocol.CodeInvalid, format, args...)
}
