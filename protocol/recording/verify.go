package recording

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// Expect is what a recording must be, as far as the verifier knows.
type Expect struct {
	// Key is the fingerprint of the node's enrolled key, as request statements
	// pin it. "" accepts any: the [Report] says which it was.
	Key approval.Digest
	// Node is the node, the zero value any.
	Node protocol.NodeID
	// Digest is that of the whole recording, as the activity log has it; "" any.
	Digest approval.Digest
	// Heads are heads of its chain that the activity log noted while it grew.
	Heads []Head
}

// Report is what a verified part of a recording is.
type Report struct {
	Meta   Meta
	End    End
	Key    approval.Digest // fingerprint of the key that signed
	Size   int64           // bytes
	Digest approval.Digest // of all bytes, the End included
}

// Verify reads one part of any length and says whether it is whole, closed,
// and signed by the key that is expected. What is wrong is a [*Damage]; any
// other error is that of reading. With Truncated and NotClosed the report tells
// the Meta of what was there, if that was read.
func Verify(r io.Reader, want Expect) (Report, error) {
	in := NewReader(r)
	heads := slices.Clone(want.Heads)
	for {
		_, _, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Report{Meta: in.meta}, err
		}
		heads = slices.DeleteFunc(heads, func(h Head) bool { return h == in.Head() })
		for _, h := range heads {
			if h.Frames <= in.chain.frames {
				return Report{Meta: in.meta}, in.damage(Other, "the activity log noted another beginning of %d frames", h.Frames)
			}
		}
	}
	if in.end == nil {
		return Report{Meta: in.meta}, in.damage(NotClosed, "it stops without a signed end")
	}
	if len(heads) > 0 {
		return Report{Meta: in.meta}, in.damage(Other, "the activity log noted %d frames: some are missing", heads[len(heads)-1].Frames)
	}
	report := in.report()
	return report, in.expect(report, want)
}

// report is what a part is whose end was read.
func (r *Reader) report() Report {
	return Report{
		Meta: r.meta, End: *r.end, Key: approval.KeyFingerprint(ed25519.PublicKey(r.end.NodeKey)), Size: r.chain.size, Digest: r.Digest(),
	}
}

// expect says whether a whole recording is the one that is wanted.
func (r *Reader) expect(got Report, want Expect) error {
	last := func(f Fault, format string, args ...any) error {
		return &Damage{f, r.end.Head.Frames, r.end.Head.Size, fmt.Sprintf(format, args...)}
	}
	switch {
	case want.Key != "" && got.Key != want.Key:
		return last(Signer, "it is signed with key %s: the node's is %s", got.Key, want.Key)
	case want.Node != protocol.NodeID{} && got.Meta.Node != want.Node.String():
		return last(Other, "it is of node %s, not of %s", got.Meta.Node, want.Node)
	case want.Digest != "" && got.Digest != want.Digest:
		return last(Other, "its digest is %s: the activity log has %s", got.Digest, want.Digest)
	}
	return nil
}
