package share

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// probeTime bounds one probe.
const probeTime = 2 * time.Second

// probe asks the server at address which version of SMB it speaks, and fails if it
// does not answer.
func probe(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	if _, err := conn.Write(negotiate()); err != nil {
		return err
	}
	answer := make([]byte, 4+64)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	header := answer[4:]
	if !bytes.HasPrefix(header, smb2Magic) || binary.LittleEndian.Uint32(header[8:]) != 0 {
		return errors.New("the answer is not SMB 3")
	}
	return nil
}

var smb2Magic = []byte("\xfeSMB")

// negotiate returns a NEGOTIATE request for SMB 3.0.2 (MS-SMB2 2.2.1.2, 2.2.3),
// with the length before it that TCP needs (MS-SMB2 2.1).
func negotiate() []byte {
	b := make([]byte, 4+64+36+2)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	header, body := b[4:], b[4+64:]
	copy(header, smb2Magic)
	binary.LittleEndian.PutUint16(header[4:], 64) // size of the header
	binary.LittleEndian.PutUint16(header[14:], 1) // credits asked for
	binary.LittleEndian.PutUint16(body, 36)       // size of the request
	binary.LittleEndian.PutUint16(body[2:], 1)    // dialects
	binary.LittleEndian.PutUint16(body[4:], 1)    // signing enabled
	binary.LittleEndian.PutUint32(body[8:], 1<<6) // able to encrypt
	binary.LittleEndian.PutUint16(body[36:], 0x302)
	return b
}
