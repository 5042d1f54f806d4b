package shell

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"golang.org/x/term"
)

// Keys, as a terminal sends them.
const (
	ctrlC     = 0x03
	ctrlD     = 0x04
	backspace = 0x08
	ctrlU     = 0x15 // empties the line
	escape    = 0x1b
	delete7   = 0x7f
)

// Console is a terminal with a line editor, which remembers the lines of its
// session. Its keys are read ahead, so that Ctrl-C ends the command that runs;
// at the prompt it empties the line.
type Console struct {
	editor  *term.Terminal
	keys    *keyboard
	columns atomic.Int32
	rows    atomic.Int32
}

// NewConsole returns the console of a terminal of so many columns and rows.
// Somebody must run [Console.Pump].
func NewConsole(rw io.ReadWriter, columns, rows int) *Console {
	keys := &keyboard{ReadWriter: rw, typed: make(chan []byte, 64)}
	c := &Console{editor: term.NewTerminal(keys, ""), keys: keys}
	c.SetSize(columns, rows)
	return c
}

// SetSize says that the window has changed. It may be called at any time.
func (c *Console) SetSize(columns, rows int) {
	c.columns.Store(int32(columns))
	c.rows.Store(int32(rows))
	c.editor.SetSize(columns, rows)
}

func (c *Console) size() (columns, rows int) { return int(c.columns.Load()), int(c.rows.Load()) }

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

// show writes a line over the one the cursor is in, and stays there.
func (c *Console) show(line string) {
	columns, _ := c.size()
	if runes := []rune(line); len(runes) >= columns {
		line = string(runes[:max(0, columns-1)])
	}
	fmt.Fprintf(c.keys, "\r\x1b[K%s", line)
}

// input is what a command reads that is typed, line by line, until Ctrl-D.
func (c *Console) input(ctx context.Context) io.Reader { return &typedInput{ctx, c, nil, false} }

type typedInput struct {
	ctx     context.Context // of the command, whose reads it is for
	console *Console
	line    []byte
	ended   bool
}

func (t *typedInput) Read(p []byte) (int, error) {
	for len(t.line) == 0 {
		if t.ended {
			return 0, io.EOF
		}
		if err := t.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, t.line)
	t.line = t.line[n:]
	return n, nil
}

// fill reads a line, showing what is typed.
func (t *typedInput) fill() error {
	var line []byte
	for {
		key, err := t.console.keys.key(t.ctx)
		switch {
		case err == io.EOF, err == nil && key == ctrlD:
			t.line, t.ended = line, true
			return nil
		case err != nil:
			return err
		case key == '\r' || key == '\n':
			t.console.keys.Write([]byte("\r\n"))
			t.line = append(line, '\n')
			return nil
		case key == backspace || key == delete7:
			if _, n := utf8.DecodeLastRune(line); n > 0 {
				line = line[:len(line)-n]
				t.console.keys.Write([]byte("\b \b"))
			}
		case key >= 0x20 || key == '\t':
			line = append(line, key)
			t.console.keys.Write([]byte{key})
		}
	}
}

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

// key reads one key, or one byte of what a special key sends.
func (k *keyboard) key(ctx context.Context) (byte, error) {
	for len(k.rest) == 0 {
		select {
		case chunk, ok := <-k.typed:
			if !ok {
				return 0, io.EOF
			}
			k.rest = chunk
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	key := k.rest[0]
	k.rest = k.rest[1:]
	return key, nil
}

// running says what Ctrl-C ends, nil for nothing.
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

// pump reads ahead until the end of input or of ctx.
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
