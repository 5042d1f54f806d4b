package recording

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

var (
	testKey  = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	otherKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, ed25519.SeedSize))
	epoch    = time.Date(2026, 11, 22, 10, 0, 0, 123_456_000, time.UTC)
)

func fingerprint(key ed25519.PrivateKey) approval.Digest {
	return approval.KeyFingerprint(key.Public().(ed25519.PublicKey))
}

func testMeta() Meta {
	return Meta{
		V: Version, ID: "REC-" + strings.Repeat("0123456789abcdef", 2), Kind: Session, Node: "DBX0001/1", Session: "SES-1", Request: "LockboxRequest_1",
		Engineer: "erin@provider.example", EngineerKey: "SHA256:x", Ticket: "SR-2001", Started: epoch,
	}
}

// testBodies are those of a short session.
func testBodies() []Body {
	sha := strings.Repeat("ab", 32)
	return []Body{
		Open{"c1", true, 80, 24, false},
		Output{"c1", []byte("DBX0001> \xe2\x82")},
		Output{"c1", []byte("\xac\xff\x1b[0m<&>\u2028")},
		Resize{"c1", 120, 40},
		Command{"c1", "ls 'a b'"},
		Watch{[]string{"ann@contoso.example"}},
		Open{"c2", false, 0, 0, false},
		Output{"c2", []byte("out")},
		FileEvent{epoch, ViaSFTP, OpRename, "contosodata_BlockBlob", "a\nb/\"ü\"", "contosodata_BlockBlob/c", -1, sha, "c3", "no such file"},
		Close{"c2", 3, sha},
		Output{"c1", []byte("bye\r\n")},
		Close{"c1", 30, sha},
	}
}

// record returns a recording of bodies, a frame every half second.
func record(t testing.TB, bodies ...Body) (data []byte, frames []int) {
	t.Helper()
	e, data, err := NewEncoder(testMeta())
	if err != nil {
		t.Fatal(err)
	}
	frames = []int{len(Magic)}
	now := epoch
	for _, b := range bodies {
		now = now.Add(500 * time.Millisecond)
		frame, err := e.Append(now, b)
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, len(data))
		data = append(data, frame...)
	}
	end, err := e.End(now.Add(time.Second), EndKilled, testKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Append(now, Command{"c1", "more"}); protocol.CodeOf(err) != protocol.CodeConflict {
		t.Errorf("a frame after the end: %v", err)
	}
	frames = append(frames, len(data))
	return append(data, end...), frames
}

func readAll(t testing.TB, data []byte) (bodies []Body) {
	t.Helper()
	r := NewReader(bytes.NewReader(data))
	for {
		_, b, err := r.Next()
		if errors.Is(err, io.EOF) {
			return bodies
		}
		if err != nil {
			t.Fatal(err)
		}
		if o, ok := b.(Output); ok {
			o.Data = bytes.Clone(o.Data)
			b = o
		}
		bodies = append(bodies, b)
	}
}

func TestRoundTrip(t *testing.T) {
	data, frames := record(t, testBodies()...)
	got := readAll(t, data)
	if diff := cmp.Diff(append([]Body{testMeta()}, testBodies()...), got[:len(got)-1]); diff != "" {
		t.Error(diff)
	}
	report, err := Verify(bytes.NewReader(data), Expect{
		Key: fingerprint(testKey), Node: protocol.NodeID{Serial: "DBX0001", Node: 1}, Digest: approval.DigestOf(data), Heads: []Head{got[len(got)-1].(End).Head},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Report{
		Meta: testMeta(), Key: fingerprint(testKey), Size: int64(len(data)), Digest: approval.DigestOf(data),
		End: End{
			V: Version, Recording: testMeta().ID, Node: "DBX0001/1", NodeKey: testKey.Public().(ed25519.PublicKey), Reason: EndKilled, Ended: epoch.Add(7 * time.Second),
			Head: Head{13, int64(frames[len(frames)-1]), report.End.Head.Hash}, Counts: Counts{Channels: 2, Commands: 1, Files: 1, Output: 31},
		},
	}
	if diff := cmp.Diff(want, report); diff != "" {
		t.Error(diff)
	}
}

// TestNamesFromDisks: what is not UTF-8, or too long, is recorded readably.
func TestNamesFromDisks(t *testing.T) {
	event := FileEvent{Via: ViaSMB, Op: OpCreate, Path: "a\xffb", Error: strings.Repeat("ä", MaxText)}
	data, _ := record(t, event)
	got := readAll(t, data)[1].(FileEvent)
	if got.Path != `a\xffb` || len(got.Error) > MaxText || !strings.HasSuffix(got.Error, "ä…") || !got.Time.Equal(epoch.Add(500*time.Millisecond)) {
		t.Errorf("recorded as %q, %d bytes, %s", got.Path, len(got.Error), got.Time)
	}
}

// TestTampering changes a recording in every way there is.
func TestTampering(t *testing.T) {
	data, at := record(t, testBodies()...)
	last := len(at) - 1
	noted := readAll(t, data)[last].(End).Head
	forged := func(key ed25519.PrivateKey, change func([]Body) []Body) []byte {
		e, out, err := NewEncoder(testMeta())
		for _, b := range change(testBodies()) {
			frame, err := e.Append(epoch, b)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, frame...)
		}
		end, err2 := e.End(epoch, EndDone, key)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		return append(out, end...)
	}
	same := func(b []Body) []Body { return b }
	tests := map[string]struct {
		data  []byte
		want  Expect
		fault Fault
		frame int
	}{
		"empty":                       {nil, Expect{}, Truncated, 0},
		"another file":                {[]byte("PK\x03\x04" + strings.Repeat("x", 99)), Expect{}, Malformed, 0},
		"a bit of a payload":          {flip(data, at[3]+headerSize), Expect{}, Changed, 3},
		"a bit of a time":             {flip(data, at[4]+7), Expect{}, Changed, 4},
		"the kind":                    {flip(data, at[5]+4), Expect{}, Changed, 5},
		"a hash":                      {flip(data, at[6]-1), Expect{}, Changed, 5},
		"a length":                    {flip(data, at[7]+3), Expect{}, Changed, 7},
		"a huge length":               {flip(data, at[7]), Expect{}, Malformed, 7},
		"a frame dropped":             {cut(data, at[3], at[4]), Expect{}, Changed, 3},
		"two frames swapped":          {swap(data, at[2], at[3], at[4]), Expect{}, Changed, 2},
		"cut within a frame":          {data[:at[8]+20], Expect{}, Truncated, 8},
		"cut within a header":         {data[:at[8]+3], Expect{}, Truncated, 8},
		"cut between frames":          {data[:at[8]], Expect{}, NotClosed, 8},
		"no end":                      {data[:at[last]], Expect{}, NotClosed, last},
		"more after the end":          {append(bytes.Clone(data), data[at[1]:at[2]]...), Expect{}, Trailing, last + 1},
		"a byte after the end":        {append(bytes.Clone(data), 0), Expect{}, Trailing, last + 1},
		"another's end":               {append(bytes.Clone(data[:at[2]]), data[at[last]:]...), Expect{}, Changed, 2},
		"made anew with another key":  {forged(otherKey, same), Expect{Key: fingerprint(testKey)}, Signer, last},
		"another digest":              {forged(testKey, same), Expect{Digest: approval.DigestOf(data)}, Other, last},
		"of another node":             {data, Expect{Node: protocol.NodeID{Serial: "DBX0002", Node: 1}}, Other, last},
		"made anew without a frame":   {forged(testKey, func(b []Body) []Body { return b[1:] }), Expect{Heads: []Head{noted}}, Other, last},
		"shorter than was noted":      {forged(testKey, func(b []Body) []Body { return b[:2] }), Expect{Heads: []Head{noted}}, Other, 4},
		"the end's signature changed": {resign(t, data, at[last]), Expect{}, Signer, last},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Verify(bytes.NewReader(test.data), test.want)
			damage, ok := errors.AsType[*Damage](err)
			if !ok || damage.Fault != test.fault || damage.Frame != int64(test.frame) || protocol.CodeOf(err) != protocol.CodeRecording {
				t.Errorf("%v: want %s at frame %d", err, test.fault, test.frame)
			}
		})
	}
	if _, err := Verify(bytes.NewReader(data), Expect{Key: fingerprint(testKey)}); err != nil {
		t.Errorf("control: %v", err)
	}
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1 << (i % 8)
		if _, err := Verify(bytes.NewReader(bad), Expect{}); err == nil {
			t.Fatalf("bit %d of byte %d can be flipped", i%8, i)
		}
	}
}

func flip(data []byte, at int) []byte {
	bad := bytes.Clone(data)
	bad[at] ^= 1
	return bad
}

func cut(data []byte, from, to int) []byte {
	return append(bytes.Clone(data[:from]), data[to:]...)
}

func swap(data []byte, a, b, c int) []byte {
	out := append(bytes.Clone(data[:a]), data[b:c]...)
	return append(append(out, data[a:b]...), data[c:]...)
}

// resign replaces the signature of the end, and makes its hash fit.
func resign(t *testing.T, data []byte, at int) []byte {
	t.Helper()
	r := NewReader(bytes.NewReader(data[:at]))
	for {
		if _, _, err := r.Next(); err != nil {
			break
		}
	}
	e, err := r.Resume()
	if err != nil {
		t.Fatal(err)
	}
	env, err := approval.ParseEnvelope(data[at+headerSize : len(data)-hashSize])
	if err != nil {
		t.Fatal(err)
	}
	env.Signatures[0].Sig[0] ^= 1
	payload, err := env.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return append(bytes.Clone(data[:at]), e.frame(epoch.Add(7*time.Second), FrameEnd, payload)...)
}

// TestResume: whoever finds a recording cut off closes it where it was whole.
func TestResume(t *testing.T) {
	data, at := record(t, testBodies()...)
	for _, size := range []int{at[1], at[5] + 1, at[5] + 40, at[len(at)-1] + 200} {
		r := NewReader(bytes.NewReader(data[:size]))
		var err error
		for err == nil {
			_, _, err = r.Next()
		}
		e, err := r.Resume()
		if err != nil {
			t.Fatal(err)
		}
		whole := data[:e.Head().Size]
		end, err := e.End(epoch.Add(time.Hour), EndAgent, testKey)
		if err != nil {
			t.Fatal(err)
		}
		report, err := Verify(bytes.NewReader(append(bytes.Clone(whole), end...)), Expect{Key: fingerprint(testKey)})
		if err != nil || report.End.Reason != EndAgent {
			t.Errorf("cut at %d: %v", size, err)
		}
	}
	if _, err := NewReader(strings.NewReader("")).Resume(); err == nil {
		t.Error("nothing was resumed")
	}
}

// A recording that comes in pieces is cut where frames end, and nowhere else.
func TestWhole(t *testing.T) {
	data, frames := record(t, testBodies()...)
	frames = append(frames, len(data))
	for n := range len(data) + 1 {
		want := 0
		for _, end := range frames {
			if end <= n {
				want = end
			}
		}
		if got := Whole(data[:n]); got != want {
			t.Fatalf("of %d bytes %d are whole, want %d", n, got, want)
		}
	}
	if got := Whole(bytes.Repeat([]byte{0xff}, 20)); got != headerSize {
		t.Errorf("of no frames %d bytes are given to a reader to refuse", got)
	}
}

func TestAsciicast(t *testing.T) {
	data, at := record(t, testBodies()...)
	var out bytes.Buffer
	if err := Asciicast(&out, bytes.NewReader(data), ""); err != nil {
		t.Fatal(err)
	}
	want := `{"version":2,"width":80,"height":24,"timestamp":1795341600,"title":"SES-1 on DBX0001/1 by erin@provider.example, SR-2001, channel c1"}
[0.500000,"o","DBX0001> "]
[1.000000,"o","€\ufffd\u001b[0m<&>\u2028"]
[1.500000,"r","120x40"]
[2.000000,"m","ls 'a b'"]
[5.000000,"o","bye\r\n"]
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	for line := range strings.Lines(out.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("%q is no JSON", line)
		}
	}
	out.Reset()
	if err := Asciicast(&out, bytes.NewReader(data[:at[3]+9]), "c1"); err != nil || !strings.HasSuffix(out.String(), "[0.500000,\"o\",\"DBX0001> \"]\n[0.500000,\"o\",\"\\ufffd\\ufffd\"]\n") {
		t.Errorf("cut off: %v\n%s", err, out.String())
	}
	if err := Asciicast(io.Discard, bytes.NewReader(data), "c2"); protocol.CodeOf(err) != protocol.CodeNotFound {
		t.Errorf("a channel without a terminal: %v", err)
	}
	if err := Asciicast(io.Discard, bytes.NewReader(flip(data, at[3]+headerSize)), ""); protocol.CodeOf(err) != protocol.CodeRecording {
		t.Errorf("damaged: %v", err)
	}
}

func FuzzReader(f *testing.F) {
	data, at := record(f, testBodies()...)
	f.Add(data)
	f.Add(data[:at[4]])
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewReader(bytes.NewReader(data))
		for {
			_, _, err := r.Next()
			if err == nil {
				continue
			}
			if !errors.Is(err, io.EOF) && protocol.CodeOf(err) != protocol.CodeRecording {
				t.Errorf("%v is no damage", err)
			}
			return
		}
	})
}

// FuzzBody: whatever is read is written again as it was.
func FuzzBody(f *testing.F) {
	for _, b := range append(testBodies(), testMeta()) {
		payload, err := marshalBody(b)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(byte(b.kind()), payload)
	}
	f.Fuzz(func(t *testing.T, kind byte, payload []byte) {
		b, err := Frame{Kind: FrameKind(kind), Payload: payload}.Body()
		if err != nil || FrameKind(kind) == FrameEnd {
			return
		}
		if again, err := marshalBody(b); err != nil || !bytes.Equal(again, payload) {
			t.Errorf("%q is read as %+v, which is written as %q (%v)", payload, b, again, err)
		}
	})
}

// FuzzFrames: frames of any content, in a chain that fits, are read or damage.
func FuzzFrames(f *testing.F) {
	for _, b := range testBodies() {
		payload, err := marshalBody(b)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(byte(b.kind()), payload, byte(FrameEnd), []byte("{}"))
	}
	f.Fuzz(func(t *testing.T, kind byte, payload []byte, kind2 byte, payload2 []byte) {
		e, data, err := NewEncoder(testMeta())
		if err != nil || len(payload) > MaxPayload || len(payload2) > MaxPayload {
			return
		}
		data = append(data, e.frame(epoch, FrameKind(kind), payload)...)
		data = append(data, e.frame(epoch, FrameKind(kind2), payload2)...)
		if _, err := Verify(bytes.NewReader(data), Expect{}); protocol.CodeOf(err) != protocol.CodeRecording {
			t.Errorf("%v: want damage, for nobody signed it", err)
		}
		if err := Asciicast(io.Discard, bytes.NewReader(data), ""); err != nil && protocol.CodeOf(err) != protocol.CodeRecording && protocol.CodeOf(err) != protocol.CodeNotFound {
			t.Errorf("%v is no damage", err)
		}
	})
}
