package recording

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/databox-lockbox/lockbox/protocol"
)

// castHeader is the first line of an asciicast v2.
type castHeader struct {
	Version   int    `json:"version"`
	Width     int    `json:"width"`
	Height    int    `json:"height"`
	Timestamp int64  `json:"timestamp"` // Unix seconds
	Title     string `json:"title"`
}

// Asciicast writes one terminal of a recording as asciicast v2: "o" events for
// output, "r" for a resize, "m" for a command line. channel "" is the first
// terminal. Parts may follow each other, as [Parts] reads them. It refuses a
// recording that is damaged, but not one that is unclosed or cut off: what was
// shown until then is written. Signatures are for [Verify].
func Asciicast(w io.Writer, r io.Reader, channel string) error {
	c := &caster{w: bufio.NewWriter(w), channel: channel}
	in := NewParts(r)
	for {
		f, b, err := in.Next()
		if damage, ok := errors.AsType[*Damage](err); errors.Is(err, io.EOF) || ok && damage.Fault == Truncated {
			break
		}
		if err != nil {
			return err
		}
		if err := c.take(in.Part().meta, f.Time, b); err != nil {
			return err
		}
	}
	if !c.open {
		return c.missing()
	}
	c.event(c.last, "o", c.text(nil, true))
	return c.w.Flush()
}

// caster writes the cast of one channel.
type caster struct {
	w       *bufio.Writer
	channel string
	open    bool
	started time.Time
	last    time.Time
	rest    []byte   // the beginning of a character that the next output completes
	others  []string // terminals that were not wanted
}

// missing is the error of a terminal that there was not.
func (c *caster) missing() error {
	if len(c.others) == 0 {
		return protocol.Errorf(protocol.CodeNotFound, "the recording has no terminal: what was done is in its events")
	}
	return protocol.Errorf(protocol.CodeNotFound, "the recording has no terminal %q: it has %s", c.channel, strings.Join(c.others, ", "))
}

func (c *caster) take(m Meta, at time.Time, b Body) error {
	if o, ok := b.(Open); ok && !c.open && o.Terminal {
		if c.channel != "" && c.channel != o.Channel {
			c.others = append(c.others, o.Channel)
			return nil
		}
		c.open, c.channel, c.started, c.last = true, o.Channel, at, at
		return c.line(castHeader{2, o.Columns, o.Rows, at.Unix(), title(m, o.Channel)})
	}
	if !c.open || channelOf(b) != c.channel {
		return nil
	}
	c.last = at
	switch b := b.(type) {
	case Output:
		return c.event(at, "o", c.text(b.Data, false))
	case Resize:
		return c.event(at, "r", fmt.Sprintf("%dx%d", b.Columns, b.Rows))
	case Command:
		return c.event(at, "m", b.Line)
	}
	return nil
}

func title(m Meta, channel string) string {
	return fmt.Sprintf("%s on %s by %s, %s, channel %s", m.Session, m.Node, m.Engineer, m.Ticket, channel)
}

// channelOf returns the channel that a body is about, "" if none.
func channelOf(b Body) string {
	switch b := b.(type) {
	case Output:
		return b.Channel
	case Resize:
		return b.Channel
	case Command:
		return b.Channel
	case Close:
		return b.Channel
	}
	return ""
}

// text returns the output so far as UTF-8. A character whose end is missing
// waits for it, unless this was all; bytes that are none become U+FFFD in JSON.
func (c *caster) text(data []byte, all bool) string {
	data = append(c.rest, data...)
	end := len(data)
	if !all {
		end -= unfinished(data)
	}
	c.rest = append([]byte(nil), data[end:]...)
	return string(data[:end])
}

// unfinished returns how many bytes at the end of p begin a character that they
// do not complete.
func unfinished(p []byte) int {
	for n := 1; n <= min(len(p), utf8.UTFMax-1); n++ {
		if b := p[len(p)-n:]; utf8.RuneStart(b[0]) {
			if utf8.FullRune(b) {
				return 0
			}
			return n
		}
	}
	return 0
}

func (c *caster) event(at time.Time, code, data string) error {
	if data == "" {
		return nil
	}
	seconds := json.Number(fmt.Sprintf("%.6f", at.Sub(c.started).Seconds()))
	return c.line([]any{seconds, code, data})
}

func (c *caster) line(v any) error {
	data, err := marshal(v)
	if err != nil {
		return err
	}
	_, err = c.w.Write(append(data, '\n'))
	return err
}
