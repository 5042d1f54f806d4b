package auditlog

import (
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/databox-lockbox/lockbox/protocol"
)

// MaxCheckpoint is the longest signed checkpoint that is read, in bytes.
const MaxCheckpoint = 4 << 10

// Checkpoint is the head of a log at one size (c2sp.org/tlog-checkpoint).
type Checkpoint struct {
	Origin string    // names the log; also the name of the key that signs
	Size   int64     // number of records
	Hash   tlog.Hash // root hash over them
}

// Sign returns the checkpoint as a signed note. The signer's name must be the
// checkpoint's origin.
func (c Checkpoint) Sign(s note.Signer) ([]byte, error) {
	if s.Name() != c.Origin {
		return nil, fmt.Errorf("the key of %q cannot sign a checkpoint of %q", s.Name(), c.Origin)
	}
	if err := checkSize(c.Size); err != nil {
		return nil, err
	}
	return note.Sign(&note.Note{Text: c.text()}, s)
}

func (c Checkpoint) text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, c.Hash)
}

// OpenCheckpoint verifies a signed checkpoint and reads it. The checkpoint must
// be signed by v, under the origin that is v's name. Signatures of others, as
// of witnesses, are left aside. Refusals carry [protocol.CodeCheckpoint].
func OpenCheckpoint(signed []byte, v note.Verifier) (Checkpoint, error) {
	if len(signed) > MaxCheckpoint {
		return Checkpoint{}, refuse("the checkpoint is longer than %d bytes", MaxCheckpoint)
	}
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, refuse("the checkpoint is not signed by %s: %v", v.Name(), err)
	}
	// The note package reads base64 leniently: some bits at the end of a
	// signature could be changed unseen.
	if _, err := base64.StdEncoding.Strict().DecodeString(n.Sigs[0].Base64); err != nil {
		return Checkpoint{}, refuse("the checkpoint's signature is not canonical base64")
	}
	c, err := parseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != v.Name() {
		return Checkpoint{}, refuse("the checkpoint is of log %q, not of %q", c.Origin, v.Name())
	}
	return c, nil
}

func parseCheckpoint(text string) (Checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return Checkpoint{}, refuse("a checkpoint has three lines: origin, size and root hash")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return Checkpoint{}, refuse("%q is no log size", lines[1])
	}
	if err := checkSize(size); err != nil {
		return Checkpoint{}, err
	}
	hash, err := tlog.ParseHash(lines[2])
	c := Checkpoint{lines[0], size, hash}
	if err != nil || c.text() != text {
		return Checkpoint{}, refuse("the checkpoint is not in canonical form")
	}
	return c, nil
}

// NewSigner returns a signer of checkpoints with an Ed25519 key, which may live
// elsewhere. The name is the origin of the log.
func NewSigner(name string, key crypto.Signer) (note.Signer, error) {
	pub, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the key of %q is not an Ed25519 key", name)
	}
	v, err := NewVerifier(name, pub)
	if err != nil {
		return nil, err
	}
	return signer{v, key}, nil
}

type signer struct {
	note.Verifier
	key crypto.Signer
}

func (s signer) Sign(msg []byte) ([]byte, error) { return s.key.Sign(nil, msg, crypto.Hash(0)) }

// NewVerifier returns the verifier of the log named name.
func NewVerifier(name string, key ed25519.PublicKey) (note.Verifier, error) {
	text, err := VerifierKey(name, key)
	if err != nil {
		return nil, err
	}
	return note.NewVerifier(text)
}

// VerifierKey returns a log's public key in the text form that people pass
// around and [Verify] takes: "<name>+<hash>+<base64>" (c2sp.org/signed-note).
func VerifierKey(name string, key ed25519.PublicKey) (string, error) {
	text, err := note.NewEd25519VerifierKey(name, key)
	if err != nil {
		return "", err
	}
	if _, err := note.NewVerifier(text); err != nil {
		return "", fmt.Errorf("%q cannot name a log: it must hold no space and no plus", name)
	}
	return text, nil
}

func refuse(format string, args ...any) error {
	return protocol.Errorf(protocol.CodeCheckpoint, "%s", "audit log: "+fmt.Sprintf(format, args...))
}
