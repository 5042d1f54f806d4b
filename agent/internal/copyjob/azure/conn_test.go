package azure

import (
	"bytes"
	"net"
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
)

// wire is a connection that notes what is written, and the buffers it came in.
type wire struct {
	net.Conn
	got     bytes.Buffer
	buffers [][]byte
}

func (k *wire) Write(b []byte) (int, error) {
	k.buffers = append(k.buffers, b[:cap(b)])
	return k.got.Write(b)
}

// What lets in is put where the placeholder stands, and no buffer of ours has it
// once it is written.
func TestConn(t *testing.T) {
	const secret = "sv=1&sig=c2VjcmV0c2VjcmV0"
	access := copyjob.NewAccess([]byte(secret))
	p := newPlaceholder(access)
	for _, size := range []int{0, 1, pieceAfter, pieceAfter + 1, 300 << 10} {
		body := strings.Repeat("b", size)
		under := &wire{}
		c := conn{under, p}
		request := "PUT /a?comp=block&" + string(p.text) + "&x=1 HTTP/1.1\r\n\r\n" + body
		if n, err := c.Write([]byte(request)); n != len(request) || err != nil {
			t.Fatalf("%d bytes: %d of %d, %v", size, n, len(request), err)
		}
		if want := "PUT /a?comp=block&" + secret + "&x=1 HTTP/1.1\r\n\r\n" + body; under.got.String() != want {
			t.Errorf("%d bytes: %d went out, want %d", size, under.got.Len(), len(want))
		}
		for _, b := range under.buffers {
			if bytes.Contains(b, []byte("c2VjcmV0")) {
				t.Errorf("%d bytes: a buffer keeps it", size)
			}
		}
		if n, err := c.Write([]byte(body)); n != len(body) || err != nil {
			t.Errorf("without placeholder: %d, %v", n, err)
		}
	}
	access.Wipe()
	under := &wire{}
	if _, err := (conn{under, p}).Write(append([]byte("PUT /a?"), p.text...)); err != errWiped || under.got.Len() > 0 {
		t.Errorf("after the end: %v, %q", err, under.got.String())
	}
	if other := newPlaceholder(access); bytes.Equal(other.text, p.text) {
		t.Error("a placeholder can be guessed")
	}
}
