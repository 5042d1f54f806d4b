package approval

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// document is what every document of this package is.
type document interface {
	Kind() Kind
	version() int
	check() error // of the fields, beyond what JSON types say
}

// Document is a document that can be signed.
type Document interface {
	Kind() Kind
	// Encode returns the canonical bytes. It fails for a document that its
	// own Parse function would refuse.
	Encode() ([]byte, error)
}

// Header opens every document. Encode sets it.
type Header struct {
	V int `json:"v"` // format version, always [Version]
}

func (h Header) version() int { return h.V }

// encode returns the canonical bytes of doc, having read them back.
func encode[T document](doc T) ([]byte, error) {
	payload, err := marshal(doc)
	if err != nil {
		return nil, invalid("%s: %v", doc.Kind().name(), err)
	}
	if _, err := decode[T](payload); err != nil {
		return nil, err
	}
	return payload, nil
}

// decode reads a document, and only the canonical bytes of a valid one.
func decode[T document](payload []byte) (T, error) {
	var doc, none T
	kind := doc.Kind().name()
	if limit := doc.Kind().limit(); len(payload) > limit {
		return none, invalid("%s is %d bytes: at most %d are allowed", kind, len(payload), limit)
	}
	if err := unmarshal(payload, &doc); err != nil {
		return none, invalid("%s: %v", kind, err)
	}
	if v := doc.version(); v != Version {
		return none, invalid("%s has format version %d: this program knows %d", kind, v, Version)
	}
	if err := doc.check(); err != nil {
		return none, invalid("%s: %v", kind, err)
	}
	return doc, nil
}

// unmarshal reads JSON into v and refuses every spelling but the one marshal
// writes: unknown, repeated, reordered or null fields, white space, needless
// escapes, and text that could look like something else on a screen.
func unmarshal(data []byte, v any) error {
	if err := checkText(data); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("cannot be read: %v", err)
	}
	again, err := marshal(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, data) {
		return errors.New("is not in canonical form: fields must stand in order, once, without spaces")
	}
	return nil
}

// marshal writes v as JSON without white space or needless escapes.
func marshal(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("cannot be written: %v", err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// checkText refuses what could make signed text look different from what it
// is: bytes that are not UTF-8, control characters, line separators and
// characters that change the direction of writing. Since no control character
// is left, the only escapes are \" and \\.
func checkText(data []byte) error {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size <= 1:
			return fmt.Errorf("byte %d is not UTF-8", i)
		case forbiddenRune(r):
			return fmt.Errorf("byte %d: the character U+%04X is not allowed: write plain text on one line", i, r)
		case r == '\\':
			if i+1 == len(data) || data[i+1] != '"' && data[i+1] != '\\' {
				return fmt.Errorf("byte %d: only \\\" and \\\\ may be escaped: write plain text on one line", i)
			}
			size = 2
		}
		i += size
	}
	return nil
}

// forbiddenRune reports whether r is a control character (Unicode category
// Cc), a line or paragraph separator, or a bidirectional control.
func forbiddenRune(r rune) bool {
	switch {
	case r < 0x20, r >= 0x7f && r <= 0x9f:
		return true
	case r == 0x061c, r == 0x200e, r == 0x200f:
		return true
	case r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
		return true
	}
	return false
}
