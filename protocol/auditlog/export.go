package auditlog

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/databox-lockbox/lockbox/protocol"
)

// exportHeader is the first line of an export.
const exportHeader = "databox-lockbox/export/v1"

// maxLine is the longest line of an export: number, hash and record.
const maxLine = MaxRecord + 128

// pruned stands in an export instead of a record of which only the hash is left.
const pruned = "pruned"

// PropertyBelow is the property of an [OpPruneLog] record that says, as a decimal
// number, below which index records may be gone.
const PropertyBelow = "below"

// Entry is a record of the log as it is kept.
type Entry struct {
	Leaf   tlog.Hash // its leaf hash
	Record []byte    // its bytes; nil if it was pruned
}

// Prunable reports whether records of op may be pruned: all but those that say
// what was pruned, and what had to stay.
func (op Operation) Prunable() bool {
	return op != OpPruneLog && op != OpPlaceHold && op != OpReleaseHold
}

// Export writes a log in the form that [Verify] reads: a signed checkpoint and
// the records below it, of which entries must yield exactly as many, in order.
func Export(w io.Writer, checkpoint []byte, entries iter.Seq2[Entry, error]) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "%s\n%s\n", exportHeader, checkpoint)
	n := int64(0)
	for entry, err := range entries {
		if err != nil {
			return fmt.Errorf("cannot export record %d: %w", n, err)
		}
		data := entry.Record
		if data == nil {
			data = []byte(pruned)
		}
		if _, err := fmt.Fprintf(out, "%d %s %s\n", n, entry.Leaf, data); err != nil {
			return err
		}
		n++
	}
	return out.Flush()
}

// Report is what a verified export holds.
type Report struct {
	Checkpoint Checkpoint          // the head it was verified against
	Older      Checkpoint          // the older head it was found to begin with; zero if none was given
	First      time.Time           // time of the first record that is there; zero if there is none
	Last       time.Time           // time of the last record that is there
	Operations map[Operation]int64 // how many records of each operation
	Replayed   int64               // how many came from devices' own chains
	Pruned     int64               // of how many only the hash is left, as the log itself announces
}

// TamperError says that an export is not the log it claims to be. It carries
// [protocol.CodeCheckpoint].
type TamperError struct {
	Record int64  // number of the first record that is wrong; -1 if it cannot be told
	Reason string // what was found
}

func (e *TamperError) Error() string {
	if e.Record < 0 {
		return "the export is not genuine: " + e.Reason
	}
	return fmt.Sprintf("the export is not genuine: record %d: %s", e.Record, e.Reason)
}

// Unwrap gives the error its code.
func (e *TamperError) Unwrap() error {
	return &protocol.Error{Code: protocol.CodeCheckpoint, Message: e.Reason}
}

// Verify reads an export of any length and reports whether it is the whole log
// that its checkpoint names, signed by the log's key (as [VerifierKey] prints
// it). If older is not nil, it is a signed checkpoint of the same log that
// somebody kept, and the export must begin with it.
//
// What is wrong with the log is a [*TamperError]. Any other error says that r
// could not be read, or that verifierKey or older is no such thing.
func Verify(r io.Reader, verifierKey string, older []byte) (Report, error) {
	v, err := note.NewVerifier(verifierKey)
	if err != nil {
		return Report{}, protocol.Errorf(protocol.CodeInvalid, "the log's key is not of the form <name>+<hash>+<base64>: %v", err)
	}
	x := verifier{in: bufio.NewReaderSize(r, maxLine), report: Report{Operations: map[Operation]int64{}}}
	if older != nil {
		if x.report.Older, err = OpenCheckpoint(older, v); err != nil {
			return Report{}, fmt.Errorf("the older checkpoint: %w", err)
		}
	}
	if err := x.run(v, older != nil); err != nil {
		return Report{}, err
	}
	return x.report, nil
}

type verifier struct {
	in     *bufio.Reader
	tree   frontier
	report Report

	lastPruned int64 // highest number of a pruned record
	announced  int64 // numbers below this may be pruned
}

func (x *verifier) run(v note.Verifier, hasOlder bool) error {
	if err := x.readHeader(v); err != nil {
		return err
	}
	want := x.report.Checkpoint
	if hasOlder && x.report.Older.Size > want.Size {
		return tampered(want.Size, "the log shrank: it held %d records when the older checkpoint was signed", x.report.Older.Size)
	}
	for {
		if hasOlder && x.tree.n == x.report.Older.Size && x.tree.root() != x.report.Older.Hash {
			return tampered(-1, "the first %d records are not those of the older checkpoint: the log was forked", x.tree.n)
		}
		if x.tree.n == want.Size {
			break
		}
		if err := x.readRecord(); err != nil {
			return err
		}
	}
	if x.tree.root() != want.Hash {
		return tampered(-1, "the records do not add up to the signed root hash: at least one of the %d was changed", want.Size)
	}
	if x.report.Pruned > 0 && x.lastPruned >= x.announced {
		return tampered(x.lastPruned, "it is gone, and no record of the log says that it was to be pruned")
	}
	return x.readEnd()
}

// readHeader reads the first line, the checkpoint and the empty line after it.
func (x *verifier) readHeader(v note.Verifier) error {
	var signed []byte
	for empty, first := 0, true; empty < 2; first = false {
		line, err := x.readLine()
		if errors.Is(err, io.EOF) {
			return tampered(-1, "it ends before its first record")
		}
		if err != nil {
			return err
		}
		if first {
			if string(line) != exportHeader {
				return tampered(-1, "it does not begin with %q", exportHeader)
			}
			continue
		}
		if len(line) == 0 {
			empty++
		}
		if empty < 2 {
			signed = append(append(signed, line...), '\n')
		}
		if len(signed) > MaxCheckpoint {
			return tampered(-1, "its checkpoint is too long")
		}
	}
	c, err := OpenCheckpoint(signed, v)
	if err != nil {
		return tampered(-1, "%v", err)
	}
	x.report.Checkpoint = c
	return nil
}

func (x *verifier) readRecord() error {
	n := x.tree.n
	line, err := x.readLine()
	if errors.Is(err, io.EOF) {
		return tampered(n, "it is missing, and so are all after it up to %d", x.report.Checkpoint.Size-1)
	}
	if err != nil {
		return err
	}
	number, rest, _ := bytes.Cut(line, []byte(" "))
	hash, data, _ := bytes.Cut(rest, []byte(" "))
	if string(number) != strconv.FormatInt(n, 10) {
		return tampered(n, "it is missing or out of place: line %.20q is where it should be", number)
	}
	if string(data) == pruned {
		return x.skip(n, string(hash))
	}
	leaf := LeafHash(data)
	if string(hash) != leaf.String() {
		return tampered(n, "it was changed: its hash is not the one noted beside it")
	}
	record, err := ParseRecord(data)
	if err != nil {
		return tampered(n, "it is no record: %v", err)
	}
	x.tree.push(leaf)
	x.count(record)
	return nil
}

// skip takes record n of which only the hash is left.
func (x *verifier) skip(n int64, hash string) error {
	leaf, err := tlog.ParseHash(hash)
	if err != nil {
		return tampered(n, "%.60q is no hash", hash)
	}
	x.tree.push(leaf)
	x.report.Pruned++
	x.lastPruned = n
	return nil
}

func (x *verifier) count(r Record) {
	// A device speaks for its own chain only: it announces nothing here.
	if below, err := strconv.ParseInt(r.Properties[PropertyBelow], 10, 64); err == nil && r.Operation == OpPruneLog && r.Device == nil {
		x.announced = max(x.announced, min(below, x.tree.n))
	}
	if x.report.First.IsZero() {
		x.report.First = r.Time
	}
	x.report.Last = r.Time
	x.report.Operations[r.Operation]++
	if r.Device != nil {
		x.report.Replayed++
	}
}

func (x *verifier) readEnd() error {
	_, err := x.in.ReadByte()
	if err == nil {
		return tampered(x.tree.n, "there is more than the %d records of the checkpoint", x.tree.n)
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// readLine returns the next line without its end. io.EOF means that there is
// none; a last line without an end is tampering.
func (x *verifier) readLine() ([]byte, error) {
	line, err := x.in.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, tampered(x.tree.n, "its line is longer than %d bytes", maxLine)
	case errors.Is(err, io.EOF) && len(line) > 0:
		return nil, tampered(x.tree.n, "the export ends in the middle of a line")
	case err != nil:
		return nil, err
	}
	return line[:len(line)-1], nil
}

func tampered(record int64, format string, args ...any) error {
	return &TamperError{record, fmt.Sprintf(format, args...)}
}

var _ tlog.HashReader = (*Tree)(nil)
