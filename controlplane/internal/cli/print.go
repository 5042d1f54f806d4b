package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
)

// print writes m as one JSON document if that was asked for, else what text
// writes.
func (a *app) print(cmd *cobra.Command, m proto.Message, text func(w io.Writer)) error {
	return a.write(cmd, "  ", func() (any, error) { return a.plain(m) }, text)
}

// printValue is print for what is no message.
func (a *app) printValue(cmd *cobra.Command, v any, text func(w io.Writer)) error {
	return a.write(cmd, "  ", func() (any, error) { return v, nil }, text)
}

// printLine is print for one of many: in JSON each is a line.
func (a *app) printLine(cmd *cobra.Command, m proto.Message, text func(w io.Writer)) error {
	return a.write(cmd, "", func() (any, error) { return a.plain(m) }, text)
}

func (a *app) write(cmd *cobra.Command, indent string, value func() (any, error), text func(w io.Writer)) error {
	var out bytes.Buffer
	if a.output == "text" {
		text(&out)
		return show(cmd.OutOrStdout(), out.Bytes())
	}
	v, err := value()
	if err != nil {
		return err
	}
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err = cmd.OutOrStdout().Write(escapeJSON(out.Bytes()))
	return err
}

// plain returns m as encoding/json knows it. Documents and times stand in it as
// they read, unless it is to be raw.
func (a *app) plain(m proto.Message) (any, error) {
	if a.output == "raw" {
		return rpc.Raw(m)
	}
	value, err := rpc.Plain(m)
	if err == nil {
		rpc.Walk(m.ProtoReflect().Descriptor(), value, readable)
	}
	return value, err
}

// readable replaces bytes that are documents.
func readable(f protoreflect.FieldDescriptor, value any) any {
	if text, ok := value.(string); ok && f.Kind() == protoreflect.BytesKind {
		return document(text)
	}
	return value
}

// document returns what stands in base64: JSON and XML as they read, an envelope
// with its payload opened, anything else as it is.
func document(in64 string) any {
	data, err := base64.StdEncoding.DecodeString(in64)
	switch {
	case err != nil || len(data) == 0:
		return in64
	case data[0] == '<' && utf8.Valid(data):
		return string(data)
	case data[0] != '{' || !json.Valid(data):
		return in64
	}
	e, err := approval.ParseEnvelope(data)
	if err != nil || !json.Valid(e.Payload) {
		return json.RawMessage(data)
	}
	return struct {
		PayloadType approval.Kind        `json:"payloadType"`
		Payload     json.RawMessage      `json:"payload"`
		Signatures  []approval.Signature `json:"signatures"`
	}{e.PayloadType, e.Payload, e.Signatures}
}

// tell writes what a person has to read before they decide, to standard error.
func tell(cmd *cobra.Command, text func(w io.Writer)) error {
	var out bytes.Buffer
	text(&out)
	return show(cmd.ErrOrStderr(), out.Bytes())
}

// show writes text to a terminal that it cannot steer, whoever wrote it.
func show(w io.Writer, text []byte) error {
	_, err := w.Write(bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return r
		}
		return harmless(r)
	}, text))
	return err
}

// table writes rows under a header, in columns.
func table(w io.Writer, header string, rows [][]string) {
	columns(w, append([][]string{strings.Fields(header)}, rows...))
}

// columns writes rows, each column as wide as what is in it.
func columns(w io.Writer, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		for i := range r {
			r[i] = printable(r[i])
		}
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	t.Flush()
}

// fields writes name and value pairs, one a line; empty values are left out.
func fields(w io.Writer, pairs ...string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(t, "%s\t%s\n", pairs[i], printable(pairs[i+1]))
		}
	}
	t.Flush()
}

// printable keeps what others wrote on its line, and from steering the terminal.
func printable(s string) string { return strings.Map(harmless, s) }

// harmless replaces what is not seen but does something: control and format
// characters, line separators.
func harmless(r rune) rune {
	if steers(r) {
		return '\uFFFD'
	}
	return r
}

func steers(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) }

// escapeJSON writes the characters that steer a terminal and that JSON allows
// within strings as escapes. They mean the same.
func escapeJSON(data []byte) []byte {
	out := make([]byte, 0, len(data))
	for _, r := range string(data) {
		switch {
		case r == '\n' || !steers(r):
			out = utf8.AppendRune(out, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return out
}

// when shows Unix seconds as people read them, "" for 0.
func when(unix int64) string {
	if unix == 0 {
		return ""
	}
	return protocol.Stamp(time.Unix(unix, 0))
}

// until shows Unix seconds as time and what is left of it.
func until(unix int64) string {
	if unix == 0 {
		return ""
	}
	return protocol.Until(time.Unix(unix, 0), time.Now())
}

// since shows Unix seconds as time and how long ago that was.
func since(unix int64) string {
	if unix == 0 {
		return ""
	}
	return protocol.Since(time.Unix(unix, 0), time.Now())
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
