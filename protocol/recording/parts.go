package recording

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// Parts reads a recording whose parts stand one behind the other, as an export
// has them. A recording of one part is read as by [Reader].
type Parts struct{ part *Reader }

// NewParts returns a reader of parts from the first byte of one on.
func NewParts(r io.Reader) *Parts { return &Parts{NewReader(r)} }

// Part returns the reader of the part that is being read.
func (p *Parts) Part() *Reader { return p.part }

// Next returns the next frame and what it holds, as [Reader.Next] does. Behind the
// end of a part that goes on comes the Meta of the next, if there is more; one that
// does not continue what was read is [*Damage] with the fault [Other].
func (p *Parts) Next() (Frame, Body, error) {
	if end := p.part.End(); end != nil && end.Next != "" {
		in := p.part.in
		if _, err := in.Peek(1); err != nil {
			return Frame{}, nil, err
		}
		before := p.part.report()
		p.part = newReader(in)
		p.part.before = &before
	}
	return p.part.Next()
}

// VerifyParts reads a recording of one part or several, one behind the other, and
// says of each what [Verify] says with that key expected, and that each continues
// the one before it. The parts that were whole are told with an error, too.
func VerifyParts(r io.Reader, key approval.Digest) (parts []Report, err error) {
	in := NewParts(r)
	for {
		_, b, err := in.Next()
		switch _, ended := b.(End); {
		case errors.Is(err, io.EOF) && in.Part().End() == nil:
			return parts, in.Part().damage(NotClosed, "it stops without a signed end")
		case errors.Is(err, io.EOF):
			return parts, nil
		case err != nil:
			return parts, err
		case ended:
			report := in.Part().report()
			if len(parts) > 0 {
				key = parts[0].Key
			}
			if err := in.Part().expect(report, Expect{Key: key}); err != nil {
				return parts, err
			}
			parts = append(parts, report)
		}
	}
}

// another says why a part is not the one that should be here.
type another string

func (a another) Error() string { return string(a) }

// follows says whether a part is the one behind another.
func (m Meta) follows(before Report) error {
	c, b := m.Continues, before.Meta
	var what string
	switch {
	case c.Before != b.ID:
		what = fmt.Sprintf("it continues %q", c.Before)
	case before.End.Next != m.ID:
		what = fmt.Sprintf("that goes on in %q", before.End.Next)
	case c.Digest != before.Digest:
		what = fmt.Sprintf("it continues one of digest %s, this has %s", c.Digest, before.Digest)
	case c.Recording != b.Whole() || c.Part != b.Part()+1:
		what = fmt.Sprintf("it is part %d of %s behind part %d of %s", c.Part, c.Recording, b.Part(), b.Whole())
	case m.Kind != b.Kind || m.Node != b.Node || m.Session != b.Session || m.Engineer != b.Engineer:
		what = "it is of another session, node or engineer"
	default:
		return nil
	}
	return another(fmt.Sprintf("%s does not continue %s: %s", m.ID, b.ID, what))
}

// Join puts verified parts of one recording in order, and says whether each
// continues the one before: none is missing between them, exchanged, or there
// twice. What is wrong has [protocol.CodeRecording]. Whether there are parts before
// the first and behind the last is in its Meta and its End.
func Join(parts []Report) ([]Report, error) {
	parts = slices.SortedStableFunc(slices.Values(parts), func(a, b Report) int { return cmp.Compare(a.Meta.Part(), b.Meta.Part()) })
	for i := 1; i < len(parts); i++ {
		before, m := parts[i-1], parts[i].Meta
		if m.Whole() == before.Meta.Whole() && m.Part() > before.Meta.Part()+1 {
			return parts, protocol.Errorf(protocol.CodeRecording, "a part is missing between part %d, %s, and part %d, %s: it goes on in %s",
				before.Meta.Part(), before.Meta.ID, m.Part(), m.ID, before.End.Next)
		}
		if parts[i].Key != before.Key {
			return parts, protocol.Errorf(protocol.CodeRecording, "part %d, %s, is signed with another key than part %d", m.Part(), m.ID, before.Meta.Part())
		}
		if err := m.follows(before); err != nil {
			return parts, protocol.Errorf(protocol.CodeRecording, "%v", err)
		}
	}
	return parts, nil
}
