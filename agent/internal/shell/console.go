package shell

import (
	"bytes"
	"context"
	"io"
	"sync"

	"golang.org/x/term"
)

// Keys, as a terminal sends them.
const (
	ctrlC = 0x03
	ctrlU = 0x15 // empties the line
)

// Console is a terminal with a line editor. Its keys are read ahead, so that
// Ctrl-C ends the command that runs; at the prompt it empties the line.
type Console struct {
	editor *term.Terminal
	keys   *keyboard
}

// NewConsole returns the console of a terminal of so many columns and rows.
// Somebody must run [Console.Pump].
func NewConsole(rw io.ReadWriter, columns, rows int) *Console {
	keys := &keyboard{ReadWriter: rw, typed: make(chan []byte, 64)}
	c := &Console{term.NewTerminal(keys, ""), keys}
	c.SetSize(columns, rows)
	return c
}

// SetSize says that the window has changed. It may be called at any time.
func (c *Console) SetSize(columns, rows int) { c.editor.SetSize(columns, rows) }

// Write writes text, with the line ends of a terminal.
func (c *Console) Write(p []byte) (int, error) { return c.editor.Write(p) }

// Interrupt is Ctrl-C. It may be called at any time.
func (c *Console) Interrupt() { c.keys.interruptNow() }

// Pump reads keys ahead until the end of input or of ctx. A read under way ends
// with the input only.
func (c *Console) Pump(ctx context.Context) { c.keys.pump(ctx) }

func (c *Console) readLine(prompt string) (string, error) {
	c.editor.SetPrompt(prompt)
	return c.editor.ReadLine()
}

// running says what Ctrl-C ends, nil for nothing.
func (c *Console) running(cancel context.CancelFunc) { c.keys.running(cancel) }

// keyboard is what is typed, read ahead.
type keyboard struct {
	io.ReadWriter
	typed chan []byte // closed at the end of input
	rest  []byte      // of the reader

	mu        sync.Mutex
	interrupt context.CancelFunc // guarded by mu; nil while no command runs
}

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

func (k *keyboard) running(cancel context.CancelFunc) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.interrupt = cancel
}

// interruptNow reports whether there was something to interrupt.
func (k *keyboard) interruptNow() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.interrupt == nil {
		return false
	}
	k.interrupt()
	return true
}

func (k *keyboard) pump(ctx context.Context) {
	defer close(k.typed)
	for {
		chunk := make([]byte, 256)
		n, err := k.ReadWriter.Read(chunk)
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
	if k.interruptNow() {
		return chunk[i+1:]
	}
	chunk[i] = ctrlU
	return chunk[i:]
}
