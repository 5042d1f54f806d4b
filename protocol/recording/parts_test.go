package recording

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// goesOn records parts of one recording, each with an output of its number in a
// terminal that stays open; change may spoil the Meta of one, before it is written.
func goesOn(t testing.TB, n int, change func(part int, m *Meta)) (parts [][]byte) {
	t.Helper()
	id := func(part int) string { return "REC-" + strings.Repeat(string(rune('0'+part)), 32) }
	m := testMeta()
	m.ID = id(1)
	for part := 1; part <= n; part++ {
		if part > 1 {
			m = testMeta()
			m.ID = id(part)
			m.Continues = Continues{Recording: id(1), Part: part, Before: id(part - 1), Digest: approval.DigestOf(parts[part-2])}
		}
		if change != nil {
			change(part, &m)
		}
		e, data, err := NewEncoder(m)
		if err != nil {
			t.Fatal(err)
		}
		now := epoch.Add(time.Duration(part) * time.Second)
		for _, b := range []Body{Open{"c1", true, 80, 24, part > 1}, Output{"c1", []byte{byte('0' + part)}}} {
			frame, err := e.Append(now, b)
			if err != nil {
				t.Fatal(err)
			}
			data = append(data, frame...)
		}
		finish := func() ([]byte, error) { return e.Continue(now, id(part+1), testKey) }
		if part == n {
			finish = func() ([]byte, error) { return e.End(now, EndDone, testKey) }
		}
		end, err := finish()
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, append(data, end...))
	}
	return parts
}

// TestOldRecordings: a recording of one part has the bytes that it had before there
// were parts.
func TestOldRecordings(t *testing.T) {
	data, _ := record(t, testBodies()...)
	if got := approval.DigestOf(data); got != "sha256:ee72d31b09b3f9d1594f3d026a26525ad80c9c4abaf283e0fdeb846c3d49a841" {
		t.Errorf("its digest is %s", got)
	}
}

// TestParts: parts verify one by one, one behind the other, and together in any
// order; a player of the second starts with the terminal that is open.
func TestParts(t *testing.T) {
	parts := goesOn(t, 3, nil)
	var reports []Report
	for i, data := range parts {
		report, err := Verify(bytes.NewReader(data), Expect{Key: fingerprint(testKey), Digest: approval.DigestOf(data)})
		if err != nil || report.Meta.Part() != i+1 || report.Meta.Whole() != "REC-"+strings.Repeat("1", 32) {
			t.Errorf("part %d: %v, %+v", i+1, err, report.Meta)
		}
		reports = append(reports, report)
	}
	all, err := VerifyParts(bytes.NewReader(slices.Concat(parts...)), fingerprint(testKey))
	if diff := cmp.Diff(reports, all); diff != "" || err != nil {
		t.Errorf("one behind the other: %v\n%s", err, diff)
	}
	joined, err := Join([]Report{reports[2], reports[0], reports[1]})
	if diff := cmp.Diff(reports, joined); diff != "" || err != nil {
		t.Errorf("joined: %v\n%s", err, diff)
	}
	if rest, err := VerifyParts(bytes.NewReader(slices.Concat(parts[1], parts[2])), ""); err != nil || len(rest) != 2 || rest[0].Meta.Continues.Before != reports[0].Meta.ID {
		t.Errorf("from the second on: %v", err)
	}
	if begin, err := VerifyParts(bytes.NewReader(slices.Concat(parts[0], parts[1])), ""); err != nil || len(begin) != 2 || begin[1].End.Next != reports[2].Meta.ID {
		t.Errorf("up to the second: %v", err)
	}
	var cast bytes.Buffer
	if err := Asciicast(&cast, bytes.NewReader(slices.Concat(parts...)), ""); err != nil || strings.Count(cast.String(), `"o"`) != 3 || strings.Count(cast.String(), `"width"`) != 1 {
		t.Errorf("as one cast: %v\n%s", err, cast.String())
	}
	cast.Reset()
	if err := Asciicast(&cast, bytes.NewReader(parts[1]), ""); err != nil || !strings.Contains(cast.String(), `"width":80,"height":24`) || !strings.Contains(cast.String(), `"o","2"`) {
		t.Errorf("the second alone: %v\n%s", err, cast.String())
	}
}

// TestPartsThatDoNotFit: a part that is missing, exchanged or of another recording
// is found, in a file and among several.
func TestPartsThatDoNotFit(t *testing.T) {
	good := goesOn(t, 4, nil)
	made := func(change func(part int, m *Meta)) [][]byte { return goesOn(t, 4, change) }
	anew := made(func(_ int, m *Meta) { m.Ticket = "SR-9" }) // signed by the node, of the same names
	later := func(change func(m *Meta)) [][]byte {
		return made(func(part int, m *Meta) {
			if part == 3 {
				change(m)
			}
		})
	}
	for name, parts := range map[string][][]byte{
		"one is missing":      {good[0], good[2]},
		"two are missing":     {good[0], good[3]},
		"one is another":      {good[0], anew[1], good[2]},
		"the first is":        {anew[0], good[1]},
		"twice":               {good[0], good[0], good[1]},
		"of another engineer": later(func(m *Meta) { m.Engineer = "eve@provider.example" }),
		"of another session":  later(func(m *Meta) { m.Session = "SES-2" }),
		"of another node":     later(func(m *Meta) { m.Node = "DBX0001/2" }),
		"another number":      later(func(m *Meta) { m.Continues.Part = 4 }),
		"another whole":       later(func(m *Meta) { m.Continues.Recording = "REC-" + strings.Repeat("9", 32) }),
	} {
		var reports []Report
		for _, data := range parts {
			report, err := Verify(bytes.NewReader(data), Expect{})
			if err != nil {
				t.Fatal(err)
			}
			reports = append(reports, report)
		}
		if _, err := Join(reports); protocol.CodeOf(err) != protocol.CodeRecording {
			t.Errorf("%s, among several: %v", name, err)
		}
		_, err := VerifyParts(bytes.NewReader(slices.Concat(parts...)), "")
		if damage, ok := errors.AsType[*Damage](err); !ok || damage.Fault != Other && name != "twice" {
			t.Errorf("%s, in a file: %v", name, err)
		}
	}
	file := slices.Concat(good...)
	if _, err := VerifyParts(bytes.NewReader(file), fingerprint(otherKey)); err == nil {
		t.Error("signed by another: verified")
	}
	if _, err := VerifyParts(bytes.NewReader(append(file, good[0]...)), ""); err == nil {
		t.Error("something behind the last: verified")
	}
	if parts, err := VerifyParts(bytes.NewReader(file[:len(good[0])+len(good[1])+200]), ""); err == nil || len(parts) != 2 {
		t.Errorf("cut off within the third: %v", err)
	}
	for i := range file {
		bad := bytes.Clone(file)
		bad[i] ^= 1 << (i % 8)
		if _, err := VerifyParts(bytes.NewReader(bad), ""); err == nil {
			t.Fatalf("bit %d of byte %d can be flipped", i%8, i)
		}
	}
	if _, err := Verify(bytes.NewReader(file), Expect{}); err == nil {
		t.Error("several parts were verified as one")
	}
}

// TestContinues: what names no part, or an impossible one, is not recorded.
func TestContinues(t *testing.T) {
	a, b, own := "REC-"+strings.Repeat("a", 32), "REC-"+strings.Repeat("b", 32), testMeta().ID
	sum := approval.DigestOf(nil)
	for _, c := range []Continues{
		{a, 1, a, sum}, {a, 0, a, sum}, {a, 2, b, sum}, {a, 3, a, sum}, {own, 3, a, sum}, {a, 3, own, sum}, {"", 3, b, sum}, {a, 3, "", sum}, {a, 2, a, ""},
	} {
		m := testMeta()
		m.Continues = c
		if _, _, err := NewEncoder(m); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
	e, _, err := NewEncoder(testMeta())
	if err != nil {
		t.Fatal(err)
	}
	for _, next := range []string{"", own, "REC-1"} {
		if _, err := e.Continue(epoch, next, testKey); err == nil {
			t.Errorf("it goes on in %q", next)
		}
	}
	if _, err := e.End(epoch, EndContinued, testKey); err == nil {
		t.Error("it goes on in nothing")
	}
	r := NewParts(bytes.NewReader(goesOn(t, 2, nil)[0]))
	for err == nil {
		_, _, err = r.Next()
	}
	if !errors.Is(err, io.EOF) || r.Part().End().Next == "" {
		t.Errorf("a part whose next is not here: %v", err)
	}
}
