package cli

import (
	"bytes"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// screen passes on to a terminal what somebody else's session wrote. What comes
// out is text, colours, cursor movements and erasures, each built anew from a
// list of what is allowed, so that nothing can hide in what two parsers take
// differently. Left out is all that reads or sets the clipboard, the title or the
// window, that makes a terminal answer, or that switches what its mouse and
// keyboard send.
type screen struct {
	out   io.Writer
	plain bool // text only, for what is no terminal

	rest    []byte // of a rune that was cut
	state   byte   // ground, esc, csi or str
	seq     []byte // the sequence so far, without its introducer
	skipped int    // bytes of the string so far
	escaped bool   // in a string: the last one was ESC
	cr      bool   // in plain text: a carriage return is not written yet
	dirty   bool   // the terminal was given sequences
	midline bool   // what was written last was no end of a line
	buf     bytes.Buffer
}

// States of the parser.
const (
	ground = iota
	esc    // after ESC
	csi    // after ESC [
	str    // in a string that is thrown away: OSC, DCS, APC, PM, SOS
)

const (
	maxSequence = 64      // bytes: longer ones are thrown away
	maxString   = 4 << 10 // bytes: one that does not end hides no more than that
	maxParam    = 9999
)

// Write takes bytes as they were recorded. They may be cut anywhere.
func (s *screen) Write(p []byte) (int, error) {
	data := append(s.rest, p...)
	s.rest = nil
	for len(data) > 0 {
		if !utf8.FullRune(data) {
			s.rest = slices.Clone(data)
			break
		}
		r, n := utf8.DecodeRune(data)
		data = data[n:]
		s.take(r)
	}
	if shown := s.buf.Bytes(); len(shown) > 0 {
		s.midline = shown[len(shown)-1] != '\n'
	}
	_, err := s.out.Write(s.buf.Bytes())
	s.buf.Reset()
	return len(p), err
}

// restore gives a terminal back as it was: colours, cursor, screen, character
// set.
func (s *screen) restore() error {
	if !s.dirty {
		return nil
	}
	s.dirty, s.midline = false, false
	_, err := io.WriteString(s.out, "\x1b[0m\x1b[r\x1b[4l\x1b[?7h\x1b[?25h\x1b[?1049l\x1b(B\r\n")
	return err
}

// c1 are the eight-bit forms of sequences, as runes.
var c1 = map[rune]byte{0x9b: csi, 0x90: str, 0x98: str, 0x9d: str, 0x9e: str, 0x9f: str}

func (s *screen) take(r rune) {
	if s.state == str {
		s.skip(r)
		return
	}
	if next, ok := c1[r]; ok {
		s.enter(next)
		return
	}
	switch {
	case r == 0x1b:
		s.enter(esc)
	case r < 0x20 || r >= 0x7f && r < 0xa0:
		s.state = ground // a control within a sequence ends it
		s.control(r)
	case s.state == ground:
		s.text(r)
	default:
		s.sequence(r)
	}
}

func (s *screen) enter(state byte) {
	s.state, s.seq, s.skipped, s.escaped = state, s.seq[:0], 0, false
}

// skip throws a string away: up to its end, or for so long.
func (s *screen) skip(r rune) {
	s.skipped += utf8.RuneLen(r)
	switch {
	case s.escaped && r != '\\': // ESC ends a string, whatever follows
		s.enter(esc)
		s.take(r)
	case s.escaped, r == 0x07, r == 0x9c, r == 0x18, r == 0x1a, s.skipped > maxString:
		s.state = ground
	default:
		s.escaped = r == 0x1b
	}
}

// control acts on a control character.
func (s *screen) control(r rune) {
	switch {
	case r == '\n' || r == '\t' || r == '\b' && !s.plain || r == '\r' && !s.plain:
		s.cr = false
		s.buf.WriteRune(r)
	case r == '\r':
		s.cr = true
	}
}

func (s *screen) text(r rune) {
	if s.cr { // a line that is written over stays readable
		s.buf.WriteByte('\n')
		s.cr = false
	}
	s.buf.WriteRune(harmless(r))
}

// sequence takes one more character of a sequence.
func (s *screen) sequence(r rune) {
	if r >= 0x80 || len(s.seq) == maxSequence {
		s.state = ground
		return
	}
	b := byte(r)
	first := s.state == esc && len(s.seq) == 0
	switch {
	case first && b == '[':
		s.enter(csi)
		return
	case first && strings.IndexByte("]PX^_", b) >= 0:
		s.enter(str)
		return
	case b < 0x30 || s.state == csi && b < 0x40:
		s.seq = append(s.seq, b)
		return
	}
	var out string
	if s.state == csi {
		out = allowedCSI(string(s.seq), b)
	} else {
		out = allowedESC[string(s.seq)+string(b)]
	}
	s.state = ground
	if !s.plain && out != "" {
		s.dirty = true
		s.buf.WriteString(out)
	}
}

// allowedESC are the sequences without parameters, with what is written for them:
// save and restore the cursor, index, next line, reverse index, line drawing and
// ASCII. A reset clears the screen only.
var allowedESC = map[string]string{
	"7": "\x1b7", "8": "\x1b8", "D": "\x1bD", "E": "\x1bE", "M": "\x1bM", "(0": "\x1b(0", "(B": "\x1b(B",
	"c": "\x1b[0m\x1b[r\x1b[H\x1b[2J",
}

// allowedModes can be set and reset: wrapping, the cursor's being seen, and the
// other screen; and inserting.
var allowedModes = []string{"?7", "?25", "?47", "?1047", "?1048", "?1049", "4"}

// allowedCSI returns what is written for a sequence, "" if it is left out.
func allowedCSI(params string, final byte) string {
	switch {
	case final == 'h' || final == 'l':
		if !slices.Contains(allowedModes, params) {
			return ""
		}
	case final == 'm':
		params = numbers(params, ";:")
	case final == 'J': // 3 would erase what the terminal showed before
		if params != "" && params != "0" && params != "1" && params != "2" {
			return ""
		}
	case final == 's' || final == 'u':
		if params != "" {
			return ""
		}
	case final == 'T' && strings.Contains(params, ";"): // follows the mouse
		return ""
	case strings.IndexByte("ABCDEFGHIKLMPSTXZ@`abdefr", final) >= 0:
		params = numbers(params, ";")
	default:
		return ""
	}
	if params == "?" {
		return ""
	}
	return "\x1b[" + params + string(final)
}

// numbers returns params if they are small numbers between separators, else "?".
func numbers(params, separators string) string {
	fields := strings.FieldsFunc(params, func(r rune) bool { return strings.ContainsRune(separators, r) })
	for _, f := range fields {
		if n, err := strconv.ParseUint(f, 10, 32); err != nil || n > maxParam {
			return "?"
		}
	}
	return params
}
