package share

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// probeTime bounds one probe.
const probeTime = 2 * time.Second

// probe asks the server at address which version of SMB it speaks, and fails if it
// does not answer. A server that lets this machine not in answers by saying so, or
// by hanging up, which is enough if denied.
func probe(ctx context.Context, address string, denied bool) error {
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
	_, err = conn.Write(negotiate())
	if denied {
		return probeDenied(conn)
	}
	if err != nil {
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

// negativeResponse is the type of a session response that refuses (RFC 1002, 4.3.4).
const negativeResponse = 0x83

func probeDenied(conn net.Conn) error {
	answer := make([]byte, 1)
	_, err := conn.Read(answer)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), err == nil && answer[0] == negativeResponse:
		return nil
	case err != nil:
		return fmt.Errorf("no answer: %w", err)
	}
	return errors.New("this machine is let in, although it is not allowed")
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
