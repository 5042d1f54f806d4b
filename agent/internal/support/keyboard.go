package support

import (
	"bytes"
	"context"
	"io"
	"sync"
)

// Keys, as a terminal sends them.
const (
	ctrlC = 0x03
	ctrlU = 0x15 // empties the line
)

// keyboard is a terminal that is read ahead, so that Ctrl-C ends the command
// that runs. At the prompt it empties the line.
type keyboard struct {
	active
	typed chan []byte // closed at the end of input
	rest  []byte      // of the reader

	mu        sync.Mutex
	interrupt context.CancelFunc // guarded by mu; nil while no command runs
}

func newKeyboard(c active) *keyboard { return &keyboard{active: c, typed: make(chan []byte, 64)} }

// Read is for one reader.
func (k *keyboard) Read(p []byte) (int, error) {
	for len(k.rest) == 0 {
		chunk, ok := <-k.typed
		if !ok {
			return 0, io.EOF
		}
		k.rest = chunk
	}
	n := copy(p, k.rest)
	k.rest = k.rest[n:]
	return n, nil
}

// running says what Ctrl-C ends, nil for nothing.
func (k *keyboard) running(cancel context.CancelFunc) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.interrupt = cancel
}

// pump reads ahead until the end of input or of ctx.
func (k *keyboard) pump(ctx context.Context) {
	defer close(k.typed)
	for {
		chunk := make([]byte, 256)
		n, err := k.active.Read(chunk)
		if chunk = k.filter(chunk[:n]); len(chunk) > 0 {
			select {
			case k.typed <- chunk:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (k *keyboard) filter(chunk []byte) []byte {
	i := bytes.LastIndexByte(chunk, ctrlC)
	if i < 0 {
		return chunk
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.interrupt != nil {
		k.interrupt()
		return chunk[i+1:]
	}
	chunk[i] = ctrlU
	return chunk[i:]
}

// lineEnds ends lines as a terminal wants them.
type lineEnds struct{ w io.Writer }

func (l lineEnds) Write(p []byte) (int, error) {
	if _, err := l.w.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}
