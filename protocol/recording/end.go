package recording

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ed25519"
	"fmt"
	"slices"
	"time"

	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// End closes a recording: what was recorded, and why it ended. Its frame holds
// it in an envelope that the node has signed, alone.
type End struct {
	V         int       `json:"v"` // format version, always [Version]
	Recording string    `json:"recording"`
	Node      string    `json:"node"`    // "<serial>/<n>"
	NodeKey   []byte    `json:"nodeKey"` // the node's Ed25519 public key, 32 bytes
	Reason    Reason    `json:"reason"`
	Ended     time.Time `json:"ended"` // time of its frame
	Head      Head      `json:"head"`  // of the chain before this frame
	Counts    Counts    `json:"counts"`
	Next      string    `json:"next,omitempty"` // the part that goes on, with [EndContinued] only
}

// Counts says what a recording holds, before its End.
type Counts struct {
	Channels int64 `json:"channels"`
	Commands int64 `json:"commands"`
	Files    int64 `json:"files"`  // operations on files
	Output   int64 `json:"output"` // bytes of output that are recorded
}

func (c *Counts) add(b Body) {
	switch b := b.(type) {
	case Open:
		c.Channels++
	case Command:
		c.Commands++
	case FileEvent:
		c.Files++
	case Output:
		c.Output += int64(len(b.Data))
	}
}

// Kind returns [approval.KindRecording].
func (End) Kind() approval.Kind { return approval.KindRecording }

// Encode returns the canonical bytes of e.
func (e End) Encode() ([]byte, error) {
	e.V = Version
	if err := e.check(); err != nil {
		return nil, invalid("%v", err)
	}
	return marshal(e)
}

func (End) kind() FrameKind { return FrameEnd }

// reasons are those that can be read.
var reasons = []Reason{EndDone, EndKilled, EndDisabled, EndRevoked, EndLease, EndDeadMan, EndAgent, EndFailed, EndContinued}

func (e End) check() error {
	switch {
	case e.V != Version:
		return fmt.Errorf("format version %d is unknown: use a newer program", e.V)
	case len(e.NodeKey) != ed25519.PublicKeySize:
		return fmt.Errorf("nodeKey must have %d bytes, has %d", ed25519.PublicKeySize, len(e.NodeKey))
	case !slices.Contains(reasons, e.Reason):
		return fmt.Errorf("reason %q is unknown: want one of %q", e.Reason, reasons)
	case (e.Reason == EndContinued) != ValidID(e.Next) || e.Next == e.Recording:
		return fmt.Errorf("next is %q with reason %q: a part that goes on, and no other, names the next", e.Next, e.Reason)
	}
	return cmp.Or(
		checkForm("recording", e.Recording, idForm), checkTexts(e.Node), checkTime(e.Ended),
		checkForm("head.hash", e.Head.Hash, hashForm),
		checkCounts(e.Head.Frames, e.Head.Size, e.Counts.Channels, e.Counts.Commands, e.Counts.Files, e.Counts.Output),
	)
}

// sign returns the envelope of e.
func (e End) sign(key crypto.Signer) ([]byte, error) { return approval.SignEd25519(e, key) }

// openEnd reads the envelope of an End and verifies that the key it names
// signed it. Whose key that is, is for [Verify] to say.
func openEnd(envelope []byte) (Body, error) {
	env, err := approval.ParseEnvelope(envelope)
	if err != nil {
		return nil, err
	}
	if env.PayloadType != approval.KindRecording {
		return nil, invalid("the envelope at the end holds a document of another kind")
	}
	b, err := decode[End](env.Payload)
	if err != nil {
		return nil, err
	}
	if again, err := env.Encode(); err != nil || !bytes.Equal(again, envelope) {
		return nil, invalid("the envelope at the end is not in canonical form")
	}
	return b, env.VerifyEd25519(b.(End).NodeKey)
}
