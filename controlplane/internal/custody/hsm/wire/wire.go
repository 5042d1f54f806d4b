// Package wire is what lockboxd and its helper for tokens say to each other.
package wire

import (
	"encoding/binary"
	"errors"
	"io"
)

// What a helper can be asked. A request is the operation and its fields, a reply
// a status and fields.
const (
	OpVersions = "versions" // → the id of each key
	OpGenerate = "generate" // version →
	OpDestroy  = "destroy"  // version →
	OpWrap     = "wrap"     // version, key, associated data → wrapped
	OpUnwrap   = "unwrap"   // version, wrapped, associated data → key
)

// The statuses of a reply.
const (
	StatusOK       = "ok"       // with what was asked for
	StatusMismatch = "mismatch" // it was not wrapped by that key with that associated data
	StatusPIN      = "pin"      // the token refuses the PIN
	StatusFailed   = "failed"   // with a text
)

// maxMessage bounds a message, in bytes.
const maxMessage = 64 << 10

// Write writes fields as one message: its length, then each field after
// its own length, all lengths in four bytes.
func Write(w io.Writer, fields [][]byte) error {
	b := make([]byte, 4)
	for _, f := range fields {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
	}
	defer clear(b)
	if len(b)-4 > maxMessage {
		return errors.New("the message is too long")
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	_, err := w.Write(b)
	return err
}

// Read reads what [Write] wrote. It is [io.EOF] if nothing comes
// any more.
func Read(r io.Reader) (fields [][]byte, err error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxMessage {
		return nil, errors.New("the message is too long")
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, errors.New("the message is cut short")
	}
	for len(b) > 0 {
		if len(b) < 4 || uint64(len(b)-4) < uint64(binary.BigEndian.Uint32(b)) {
			return nil, errors.New("the message is malformed")
		}
		end := 4 + int(binary.BigEndian.Uint32(b))
		fields = append(fields, b[4:end:end])
		b = b[end:]
	}
	return fields, nil
}
