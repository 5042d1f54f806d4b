package shell

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of what one command puts out, in bytes.
const (
	maxScreen = 64 << 20 // to a terminal
	maxStream = 16 << 40 // to a client, another command or a file
)

// Output is gathered so that small writes are no messages of their own, but
// not for longer than anybody notices.
const (
	gather     = 32 << 10
	gatherTime = 50 * time.Millisecond
)

var (
	errPipe    = errors.New("nobody reads the output any more")
	errTooMuch = errors.New("this is too much output: it ends here")
)

// output is what a command writes to. It is safe for concurrent use.
type output struct {
	mu    sync.Mutex // guards what follows
	w     io.Writer
	clean bool // for a terminal, which nothing may steer
	left  int64
	buf   []byte
	timer *time.Timer
	err   error
}

func newOutput(w io.Writer, terminal bool) *output {
	o := &output{w: w, clean: terminal, left: maxStream}
	if terminal {
		o.left = maxScreen
	}
	return o
}

// Write implements [io.Writer].
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.left -= int64(len(p)); o.left < 0 && o.err == nil {
		o.flushLocked(false)
		o.err = errTooMuch
	}
	if o.err != nil {
		return 0, o.err
	}
	if len(o.buf) == 0 && len(p) >= gather && !o.clean { // as it is
		_, o.err = o.w.Write(p)
		return len(p), o.err
	}
	o.buf = append(o.buf, p...)
	if len(o.buf) >= gather {
		o.flushLocked(false)
	} else if o.timer == nil {
		o.timer = time.AfterFunc(gatherTime, func() { o.flush(false) })
	}
	return len(p), o.err
}

// flush passes on what was gathered; the end of a character may still come
// unless it is all.
func (o *output) flush(all bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.flushLocked(all)
	return o.err
}

func (o *output) flushLocked(all bool) {
	if o.timer != nil {
		o.timer.Stop()
		o.timer = nil
	}
	ready, rest := o.buf, []byte(nil)
	if o.clean {
		if !all {
			ready, rest = wholeRunes(o.buf)
		}
		ready = visibleText(ready)
	}
	if len(ready) > 0 && o.err == nil {
		_, o.err = o.w.Write(ready)
	}
	o.buf = append(o.buf[:0], rest...)
}

// wholeRunes splits off the beginning of a character, or of a line end, at the
// end of text.
func wholeRunes(p []byte) (whole, rest []byte) {
	if n := len(p); n > 0 && p[n-1] == '\r' {
		return p[:n-1], []byte("\r")
	}
	for i := max(0, len(p)-utf8.UTFMax+1); i < len(p); i++ {
		if utf8.RuneStart(p[i]) && !utf8.FullRune(p[i:]) {
			return p[:i], append([]byte(nil), p[i:]...)
		}
	}
	return p, nil
}

// visibleText is [Visible] for a text of several lines.
func visibleText(p []byte) []byte {
	out := make([]byte, 0, len(p))
	for len(p) > 0 {
		r, n := utf8.DecodeRune(p)
		p = p[n:]
		if r == '\r' && len(p) > 0 && p[0] == '\n' {
			continue // a line end of Windows
		}
		if r != '\n' && r != '\t' && !unicode.IsGraphic(r) {
			r = utf8.RuneError
		}
		out = utf8.AppendRune(out, r)
	}
	return out
}

// contextReader ends a long read when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
