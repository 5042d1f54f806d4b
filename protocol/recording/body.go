package recording

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Forms of names and bounds of numbers.
var (
	idForm      = regexp.MustCompile(`^REC-[0-9a-f]{32}$`)
	channelForm = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,31}$`)
	wordForm    = regexp.MustCompile(`^[a-z][a-z-]{0,31}$`)
	digestForm  = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	hashForm    = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

const maxWindow = 1 << 16 // columns or rows of a terminal

// ValidID reports whether id can name a recording.
func ValidID(id string) bool { return idForm.MatchString(id) }

// marshalBody returns the payload of b, as a frame holds it.
func marshalBody(b Body) ([]byte, error) {
	b = tidy(b)
	if err := b.check(); err != nil {
		return nil, invalid("%v", err)
	}
	if o, ok := b.(Output); ok {
		payload := append(make([]byte, 0, 1+len(o.Channel)+len(o.Data)), byte(len(o.Channel)))
		return append(append(payload, o.Channel...), o.Data...), nil
	}
	return marshal(b)
}

// tidy brings what comes from clients into a form that can be recorded.
func tidy(b Body) Body {
	switch b := b.(type) {
	case Meta:
		b.V, b.Started = Version, stamp(b.Started)
		return b
	case Command:
		b.Line = text(b.Line)
		return b
	case Watch:
		b.Names = append([]string{}, b.Names...) // a list, even of none
		return b
	case FileEvent:
		b.Time = stamp(b.Time)
		for _, s := range []*string{&b.Share, &b.Path, &b.To, &b.Client, &b.Error} {
			*s = text(*s)
		}
		return b
	}
	return b
}

// stamp is t as it is recorded: in UTC, to the microsecond.
func stamp(t time.Time) time.Time { return time.UnixMicro(t.UnixMicro()).UTC() }

// text returns s as UTF-8 of at most MaxText bytes. A byte that is none becomes
// \xNN; what is cut off leaves an ellipsis.
func text(s string) string {
	if !utf8.ValidString(s) {
		s = escape(s)
	}
	if len(s) <= MaxText {
		return s
	}
	const ellipsis = "…"
	end := MaxText - len(ellipsis)
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + ellipsis
}

func escape(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && size == 1 {
			fmt.Fprintf(&b, `\x%02x`, s[0])
		} else {
			b.WriteString(s[:size])
		}
		s = s[size:]
	}
	return b.String()
}

// Body reads what the frame holds, strictly: the body's own spelling only.
func (f Frame) Body() (Body, error) {
	switch f.Kind {
	case FrameMeta:
		return decode[Meta](f.Payload)
	case FrameOpen:
		return decode[Open](f.Payload)
	case FrameOutput:
		return decodeOutput(f.Payload)
	case FrameResize:
		return decode[Resize](f.Payload)
	case FrameClose:
		return decode[Close](f.Payload)
	case FrameCommand:
		return decode[Command](f.Payload)
	case FrameFile:
		return decode[FileEvent](f.Payload)
	case FrameWatch:
		return decode[Watch](f.Payload)
	case FrameEnd:
		return openEnd(f.Payload)
	}
	return nil, invalid("frames of kind %d are unknown: use a newer program", f.Kind)
}

func decode[T Body](payload []byte) (Body, error) {
	var b T
	if err := unmarshal(payload, &b); err != nil {
		return nil, err
	}
	if err := b.check(); err != nil {
		return nil, invalid("%v", err)
	}
	return b, nil
}

func decodeOutput(payload []byte) (Body, error) {
	if len(payload) == 0 || len(payload) < 1+int(payload[0]) {
		return nil, invalid("output names no channel")
	}
	n := 1 + int(payload[0])
	o := Output{string(payload[1:n]), payload[n:]}
	if err := o.check(); err != nil {
		return nil, invalid("%v", err)
	}
	return o, nil
}

func (m Meta) check() error {
	_, err := protocol.ParseNodeID(m.Node)
	switch {
	case m.V != Version:
		return fmt.Errorf("format version %d is unknown: use a newer program", m.V)
	case !ValidID(m.ID):
		return fmt.Errorf("%q is no recording: want REC- and 32 hexadecimal digits", m.ID)
	case m.Kind != Session && m.Kind != Shares:
		return fmt.Errorf("recordings of kind %q are unknown", m.Kind)
	}
	return cmp.Or(err, checkTime(m.Started), m.Continues.check(m.ID),
		checkTexts(string(m.Session), string(m.Request), string(m.Engineer), m.EngineerKey, string(m.Ticket)))
}

func (c Continues) check(id string) error {
	switch {
	case c == Continues{}:
		return nil
	case !ValidID(c.Recording) || !ValidID(c.Before) || c.Recording == id || c.Before == id:
		return fmt.Errorf("%s cannot be a part of %q that continues %q", id, c.Recording, c.Before)
	case c.Part < 2 || (c.Part == 2) != (c.Before == c.Recording):
		return fmt.Errorf("%s cannot be part %d of %s behind %s", id, c.Part, c.Recording, c.Before)
	}
	return checkForm("digest", string(c.Digest), digestForm)
}

func (o Open) check() error { return cmp.Or(checkChannel(o.Channel), checkWindow(o.Columns, o.Rows)) }

func (o Output) check() error {
	if len(o.Data) == 0 || len(o.Data) > MaxOutput {
		return fmt.Errorf("%d bytes of output: want 1 to %d in a frame", len(o.Data), MaxOutput)
	}
	return checkChannel(o.Channel)
}

func (r Resize) check() error {
	return cmp.Or(checkChannel(r.Channel), checkWindow(r.Columns, r.Rows))
}

func (c Close) check() error {
	return cmp.Or(checkChannel(c.Channel), checkForm("sha256", c.SHA256, hashForm), checkCounts(c.Bytes))
}

func (c Command) check() error { return cmp.Or(checkChannel(c.Channel), checkTexts(c.Line)) }

func (e FileEvent) check() error {
	if e.Size < -1 {
		return fmt.Errorf("%d is no size", e.Size)
	}
	if e.SHA256 != "" && !hashForm.MatchString(e.SHA256) {
		return fmt.Errorf("%q is no SHA-256", e.SHA256)
	}
	return cmp.Or(
		checkForm("via", string(e.Via), wordForm), checkForm("op", string(e.Op), wordForm), checkTime(e.Time),
		checkTexts(e.Share, e.Path, e.To, e.Client, e.Error),
	)
}

func (w Watch) check() error {
	if w.Names == nil || len(w.Names) > maxNames {
		return fmt.Errorf("%d watchers: want a list of at most %d", len(w.Names), maxNames)
	}
	return checkTexts(w.Names...)
}

func checkChannel(name string) error { return checkForm("channel", name, channelForm) }

func checkForm(field, s string, form *regexp.Regexp) error {
	if !form.MatchString(s) {
		return fmt.Errorf("%s is %q: want the form %s", field, s, form)
	}
	return nil
}

func checkWindow(columns, rows int) error {
	if columns < 0 || columns > maxWindow || rows < 0 || rows > maxWindow {
		return fmt.Errorf("a window of %d by %d: want 0 to %d", columns, rows, maxWindow)
	}
	return nil
}

func checkCounts(counts ...int64) error {
	for _, n := range counts {
		if n < 0 {
			return fmt.Errorf("%d is no count", n)
		}
	}
	return nil
}

func checkTexts(texts ...string) error {
	for _, s := range texts {
		if len(s) > MaxText || !utf8.ValidString(s) {
			return fmt.Errorf("%.40q is not UTF-8 of at most %d bytes", s, MaxText)
		}
	}
	return nil
}

func checkTime(t time.Time) error {
	if year := t.Year(); year < 2000 || year > 9999 || !t.Equal(stamp(t)) || t.Location() != time.UTC {
		return fmt.Errorf("time %s is not UTC, to the microsecond, within the years 2000 to 9999", t)
	}
	return nil
}

// marshal writes v as JSON without white space or needless escapes.
func marshal(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, invalid("cannot be written: %v", err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// unmarshal reads JSON into v and refuses every spelling but the one marshal
// writes.
func unmarshal(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return invalid("cannot be read: %v", err)
	}
	again, err := marshal(v)
	if err == nil && !bytes.Equal(again, data) {
		err = errors.New("is not in canonical form: fields must stand in order, once, without spaces")
	}
	if err != nil {
		return invalid("%v", err)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return protocol.Errorf(protocol.CodeInvalid, "%s", "recording: "+fmt.Sprintf(format, args...))
}
