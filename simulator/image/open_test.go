package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// failingReader cannot read from an offset on.
type failingReader struct {
	*bytes.Reader
	from int64
}

var errBadSector = errors.New("bad sector")

func (f failingReader) ReadAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) > f.from {
		return 0, errBadSector
	}
	return f.Reader.ReadAt(b, off)
}

// TestCopy copies more pieces than are under way at a time, in order, up to where
// something fails.
func TestCopy(t *testing.T) {
	const size = 20*copyPiece + 12345
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(content)
	r := bytes.NewReader(content)
	var out bytes.Buffer
	var told int64
	if err := Copy(t.Context(), &out, r, size, func(n int64) { told += n }); err != nil || !bytes.Equal(out.Bytes(), content) || told != size {
		t.Errorf("%v: %d bytes of %d, %d of them told", err, out.Len(), size, told)
	}
	nothing := func(int64) {}
	out.Reset()
	if err := Copy(t.Context(), &out, failingReader{r, 15 * copyPiece}, size, nothing); !errors.Is(err, errBadSector) || !bytes.Equal(out.Bytes(), content[:15*copyPiece]) {
		t.Errorf("behind a bad sector: %v, %d bytes", err, out.Len())
	}
	if err := Copy(t.Context(), io.Discard, r, size+1, nothing); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an image that became shorter: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := Copy(ctx, io.Discard, r, size, func(int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}
