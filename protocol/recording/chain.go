package recording

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// Magic is the first line of every recording.
const Magic = "databox-lockbox/recording/v1\n"

// Sizes of the parts of a frame around its payload, in bytes.
const (
	headerSize = 4 + 1 + 8
	hashSize   = sha256.Size

	// MaxFrame is the longest frame.
	MaxFrame = headerSize + MaxPayload + hashSize
)

// Head is a chain up to one of its frames.
type Head struct {
	Frames int64  `json:"frames"` // how many
	Size   int64  `json:"size"`   // bytes up to the end of the last of them
	Hash   string `json:"hash"`   // hex, SHA-256
}

// chain is a head that can move on.
type chain struct {
	frames, size int64
	hash         [hashSize]byte
	last         time.Time
}

func newChain() chain {
	return chain{size: int64(len(Magic)), hash: sha256.Sum256([]byte(Magic))}
}

func (c *chain) head() Head { return Head{c.frames, c.size, hex.EncodeToString(c.hash[:])} }

// next returns the hash behind a frame, given without its own.
func (c *chain) next(frame []byte) [hashSize]byte {
	h := sha256.New()
	h.Write(c.hash[:])
	h.Write(frame)
	return [hashSize]byte(h.Sum(nil))
}

func (c *chain) push(length int, hash [hashSize]byte, at time.Time) {
	c.frames, c.size, c.hash, c.last = c.frames+1, c.size+int64(length), hash, at
}

// Encoder encodes one recording. A copy goes on from where it was made: whoever
// cannot write what an encoder returned goes back to a copy from before.
type Encoder struct {
	chain  chain
	meta   Meta
	counts Counts
	ended  bool
}

// NewEncoder returns an encoder and the beginning of its recording.
func NewEncoder(m Meta) (*Encoder, []byte, error) {
	e := &Encoder{chain: newChain(), meta: tidy(m).(Meta)}
	first, err := e.Append(m.Started, e.meta)
	if err != nil {
		return nil, nil, err
	}
	return e, append([]byte(Magic), first...), nil
}

// Meta returns whose recording it is.
func (e *Encoder) Meta() Meta { return e.meta }

// Head returns the head of the chain.
func (e *Encoder) Head() Head { return e.chain.head() }

// Counts returns what was recorded so far.
func (e *Encoder) Counts() Counts { return e.counts }

// Ended reports whether there is an End.
func (e *Encoder) Ended() bool { return e.ended }

// Append returns the bytes of the next frame. A clock that goes back stands
// still in a recording.
func (e *Encoder) Append(now time.Time, b Body) ([]byte, error) {
	if e.ended {
		return nil, protocol.Errorf(protocol.CodeConflict, "recording %s has ended", e.meta.ID)
	}
	if event, ok := b.(FileEvent); ok && event.Time.IsZero() {
		event.Time = now
		b = event
	}
	payload, err := marshalBody(b)
	if err != nil {
		return nil, err
	}
	e.counts.add(b)
	return e.frame(now, b.kind(), payload), nil
}

// End returns the last frame, signed.
func (e *Encoder) End(now time.Time, reason Reason, key crypto.Signer) ([]byte, error) {
	return e.end(now, reason, "", key)
}

// Continue returns the last frame of a part that goes on in the recording next,
// signed.
func (e *Encoder) Continue(now time.Time, next string, key crypto.Signer) ([]byte, error) {
	return e.end(now, EndContinued, next, key)
}

func (e *Encoder) end(now time.Time, reason Reason, next string, key crypto.Signer) ([]byte, error) {
	if e.ended {
		return nil, protocol.Errorf(protocol.CodeConflict, "recording %s has ended", e.meta.ID)
	}
	pub, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, invalid("cannot sign with a %T: want Ed25519", key.Public())
	}
	envelope, err := End{
		Recording: e.meta.ID, Node: e.meta.Node, NodeKey: pub, Reason: reason,
		Ended: e.time(now), Head: e.Head(), Counts: e.counts, Next: next,
	}.sign(key)
	if err != nil {
		return nil, err
	}
	e.ended = true
	return e.frame(now, FrameEnd, envelope), nil
}

// time returns the time of a frame made now.
func (e *Encoder) time(now time.Time) time.Time {
	if now = stamp(now); now.Before(e.chain.last) {
		return e.chain.last
	}
	return now
}

func (e *Encoder) frame(now time.Time, kind FrameKind, payload []byte) []byte {
	at := e.time(now)
	frame := make([]byte, 0, headerSize+len(payload)+hashSize)
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(payload)))
	frame = append(frame, byte(kind))
	frame = binary.BigEndian.AppendUint64(frame, uint64(at.UnixMicro()))
	frame = append(frame, payload...)
	hash := e.chain.next(frame)
	frame = append(frame, hash[:]...)
	e.chain.push(len(frame), hash, at)
	return frame
}

// Fault is what can be wrong with a recording.
type Fault string

// The faults.
const (
	Truncated Fault = "truncated"    // it stops within a frame
	Changed   Fault = "changed"      // a frame does not fit its hash
	Malformed Fault = "malformed"    // a frame is none, or out of place
	NotClosed Fault = "not-closed"   // there is no End
	Trailing  Fault = "trailing"     // something follows the End
	Signer    Fault = "wrong-signer" // the End is not signed by the node's key
	Other     Fault = "another"      // it is not the recording it should be
)

// Damage says what is wrong with a recording, and where. It carries
// [protocol.CodeRecording].
type Damage struct {
	Fault  Fault
	Frame  int64 // number of the first bad frame, from zero
	Offset int64 // where it begins, in bytes
	Reason string
}

func (d *Damage) Error() string {
	return fmt.Sprintf("the recording is %s: frame %d, at byte %d: %s", d.Fault, d.Frame, d.Offset, d.Reason)
}

// Unwrap gives the error its code.
func (d *Damage) Unwrap() error {
	return &protocol.Error{Code: protocol.CodeRecording, Message: d.Reason}
}

// Whole returns how many bytes at the beginning of p are whole frames, whatever is
// in them. The first piece of a recording begins with the [Magic].
func Whole(p []byte) int {
	n := 0
	switch magic := []byte(Magic); {
	case bytes.HasPrefix(p, magic):
		n = len(magic)
	case bytes.HasPrefix(magic, p):
		return 0
	}
	for len(p)-n >= headerSize {
		length := binary.BigEndian.Uint32(p[n:])
		frame := headerSize + int64(length) + hashSize
		if length > MaxPayload {
			frame = headerSize // no frame: for a Reader to refuse
		}
		if frame > int64(len(p)-n) {
			break
		}
		n += int(frame)
	}
	return n
}

// Reader reads the frames of one part of a recording, which may be still growing
// or cut off.
type Reader struct {
	in     *bufio.Reader
	before *Report // the part that it has to continue; nil: any, or none
	chain  chain
	sum    hash.Hash // over all that was read
	meta   Meta
	counts Counts
	end    *End
}

// NewReader returns a reader of a part from its first byte on. What follows its
// end is damage: see [NewParts].
func NewReader(r io.Reader) *Reader { return newReader(bufio.NewReaderSize(r, MaxFrame)) }

func newReader(in *bufio.Reader) *Reader { return &Reader{in: in, sum: sha256.New()} }

// Digest returns that of all bytes up to the last frame that was read.
func (r *Reader) Digest() approval.Digest {
	return approval.Digest("sha256:" + hex.EncodeToString(r.sum.Sum(nil)))
}

// Head returns the head of the chain after the last frame that was read: all
// before its Size is whole.
func (r *Reader) Head() Head { return r.chain.head() }

// Meta returns the first frame, once it was read.
func (r *Reader) Meta() Meta { return r.meta }

// End returns the last frame, nil unless it was read.
func (r *Reader) End() *End { return r.end }

// Next returns the next frame and what it holds. At the end, closed or not, the
// error is io.EOF. What is wrong with a recording is a [*Damage]; any other
// error is that of reading. The payload is valid until the next call.
func (r *Reader) Next() (Frame, Body, error) {
	if r.chain.size == 0 {
		if err := r.magic(); err != nil {
			return Frame{}, nil, err
		}
	}
	header, err := r.in.Peek(headerSize)
	switch {
	case len(header) == 0 && errors.Is(err, io.EOF):
		return Frame{}, nil, io.EOF
	case r.end != nil:
		return Frame{}, nil, r.damage(Trailing, "something follows the end")
	case err != nil:
		return Frame{}, nil, r.short(err)
	}
	length := binary.BigEndian.Uint32(header)
	if length > MaxPayload {
		return Frame{}, nil, r.damage(Malformed, "it says that it has %d bytes: at most %d", length, MaxPayload)
	}
	whole, err := r.in.Peek(headerSize + int(length) + hashSize)
	if err != nil {
		return Frame{}, nil, r.short(err)
	}
	f, b, err := r.open(whole[:headerSize+length], [hashSize]byte(whole[headerSize+length:]))
	if err != nil {
		return Frame{}, nil, err
	}
	r.sum.Write(whole)
	_, err = r.in.Discard(len(whole))
	return f, b, err
}

func (r *Reader) magic() error {
	line, err := r.in.Peek(len(Magic))
	if string(line) == Magic {
		r.chain = newChain()
		r.sum.Write(line)
		_, err = r.in.Discard(len(Magic))
		return err
	}
	if err != nil && Magic[:len(line)] == string(line) {
		return r.short(err)
	}
	return r.damage(Malformed, "it does not begin with %q", Magic)
}

// short says what a read means that ended early.
func (r *Reader) short(err error) error {
	if errors.Is(err, io.EOF) {
		return r.damage(Truncated, "it ends within this frame")
	}
	return err
}

// open checks one frame, and takes it.
func (r *Reader) open(frame []byte, hash [hashSize]byte) (Frame, Body, error) {
	if r.chain.next(frame) != hash {
		return Frame{}, nil, r.damage(Changed, "it does not fit the hash behind it and the frames before it")
	}
	f := Frame{FrameKind(frame[4]), time.UnixMicro(int64(binary.BigEndian.Uint64(frame[5:]))).UTC(), frame[headerSize:]}
	b, err := f.Body()
	if err == nil {
		err = r.place(f, b)
	}
	if err != nil {
		fault := Malformed
		if protocol.CodeOf(err) == protocol.CodeSignatureInvalid {
			fault = Signer
		} else if _, ok := errors.AsType[another](err); ok {
			fault = Other
		}
		return Frame{}, nil, r.damage(fault, "%v", err)
	}
	r.counts.add(b)
	r.chain.push(len(frame)+hashSize, hash, f.Time)
	return f, b, nil
}

// place checks that a frame may stand where it does.
func (r *Reader) place(f Frame, b Body) error {
	if err := checkTime(f.Time); err != nil || f.Time.Before(r.chain.last) {
		return fmt.Errorf("its time %s is before that of the frame before it, or is none", f.Time)
	}
	meta, isMeta := b.(Meta)
	switch first := r.chain.frames == 0; {
	case first != isMeta:
		return errors.New("the first frame, and no other, says whose recording it is")
	case first:
		r.meta = meta
		if r.before != nil {
			return meta.follows(*r.before)
		}
		return nil
	}
	end, ok := b.(End)
	if !ok {
		return nil
	}
	switch {
	case end.Recording != r.meta.ID || end.Node != r.meta.Node:
		return fmt.Errorf("the end is that of recording %s of node %s", end.Recording, end.Node)
	case end.Head != r.Head():
		return fmt.Errorf("the end is signed for %d frames in %d bytes up to hash %s: these are others", end.Head.Frames, end.Head.Size, end.Head.Hash)
	case end.Counts != r.counts:
		return fmt.Errorf("the end counts %+v: these are %+v", end.Counts, r.counts)
	case !end.Ended.Equal(f.Time):
		return errors.New("the end is signed for another time")
	}
	r.end = &end
	return nil
}

func (r *Reader) damage(f Fault, format string, args ...any) error {
	return &Damage{f, r.chain.frames, r.chain.size, fmt.Sprintf(format, args...)}
}

// Resume returns an encoder that goes on behind the last frame that was read.
// It fails before the first.
func (r *Reader) Resume() (*Encoder, error) {
	if r.chain.frames == 0 {
		return nil, r.damage(Truncated, "not even its first frame is there")
	}
	return &Encoder{r.chain, r.meta, r.counts, r.end != nil}, nil
}
