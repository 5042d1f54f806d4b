package wire_test

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/hsm/wire"
)

func FuzzRead(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 6, 0, 0, 0, 2, 'o', 'k'})
	f.Fuzz(func(t *testing.T, data []byte) {
		fields, err := wire.Read(bytes.NewReader(data))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := wire.Write(&b, fields); err != nil || !bytes.HasPrefix(data, b.Bytes()) {
			t.Errorf("%x is read as %q and written as %x, %v", data, fields, b.Bytes(), err)
		}
		if slices.ContainsFunc(fields, func(f []byte) bool { return len(f) > len(data) }) {
			t.Error("a field is longer than the message")
		}
	})
}

func TestRead(t *testing.T) {
	for text, want := range map[string][][]byte{
		"\x00\x00\x00\x00": nil,
		"\x00\x00\x00\x0a\x00\x00\x00\x02ok\x00\x00\x00\x00":        {[]byte("ok"), {}},
		"\x00\x00\x00\x06\x00\x00\x00\x02okand what comes after it": {[]byte("ok")},
	} {
		got, err := wire.Read(strings.NewReader(text))
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: %v %s", text, err, diff)
		}
	}
	for _, text := range []string{
		"\x00\x00\x00", "\x00\x00\x00\x01", "\x00\x00\x00\x03\x00\x00\x00", "\x00\x00\x00\x06\x00\x00\x00\x03ok",
		"\x00\x00\x00\x06\xff\xff\xff\xffok", "\x00\x01\x00\x01" + strings.Repeat("\x00", 1<<17), "\xff\xff\xff\xff",
	} {
		if got, err := wire.Read(strings.NewReader(text)); err == nil {
			t.Errorf("%.20q is read as %q", text, got)
		}
	}
	if _, err := wire.Read(strings.NewReader("")); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	if err := wire.Write(io.Discard, [][]byte{make([]byte, 1<<16)}); err == nil {
		t.Error("a message that nobody reads was written")
	}
}
