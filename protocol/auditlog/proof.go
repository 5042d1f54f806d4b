package auditlog

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// maxProof bounds the bytes of an encoded proof: two hashes per level, and the
// line before them.
const maxProof = 2*41*45 + 32

// ProveInclusion proves that record number index is in the log of that size.
// The proof is text: "index <n>" and one hash per line, as in the middle of a
// c2sp.org/tlog-proof.
func ProveInclusion(size, index int64, r tlog.HashReader) ([]byte, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	proof, err := tlog.ProveRecord(size, index, r)
	if err != nil {
		return nil, fmt.Errorf("cannot prove record %d of %d: %w", index, size, err)
	}
	return formatProof("index", index, proof), nil
}

// CheckInclusion verifies that the log of checkpoint c holds a record with that
// leaf hash, and returns its number. Refusals carry [protocol.CodeCheckpoint].
func CheckInclusion(proof []byte, c Checkpoint, leaf tlog.Hash) (index int64, err error) {
	index, hashes, err := parseProof("index", proof)
	if err != nil {
		return 0, err
	}
	if err := checkSize(c.Size); err != nil {
		return 0, err
	}
	if err := tlog.CheckRecord(hashes, c.Size, c.Hash, index, leaf); err != nil {
		return 0, refuse("the record is not proved to be number %d of the %d in %s: %v", index, c.Size, c.Origin, err)
	}
	return index, nil
}

// ProveConsistency proves that the log of newer records begins with its older
// ones. The proof is text: "old <n>" and one hash per line, as in the request
// of c2sp.org/tlog-witness.
func ProveConsistency(older, newer int64, r tlog.HashReader) ([]byte, error) {
	if err := checkSize(newer); err != nil {
		return nil, err
	}
	if older == 0 {
		return formatProof("old", 0, nil), nil
	}
	proof, err := tlog.ProveTree(newer, older, r)
	if err != nil {
		return nil, fmt.Errorf("cannot prove that %d records begin with %d: %w", newer, older, err)
	}
	return formatProof("old", older, proof), nil
}

// CheckConsistency verifies that the log of newer begins with the log of older,
// which somebody kept. A log that forked or shrank cannot pass. Refusals carry
// [protocol.CodeCheckpoint].
func CheckConsistency(proof []byte, older, newer Checkpoint) error {
	if older.Origin != newer.Origin {
		return refuse("the older checkpoint is of log %q, the newer of %q", older.Origin, newer.Origin)
	}
	if older.Size > newer.Size {
		return refuse("the log shrank: it held %d records and now shows %d", older.Size, newer.Size)
	}
	size, hashes, err := parseProof("old", proof)
	if err != nil {
		return err
	}
	if size != older.Size {
		return refuse("the consistency proof is from size %d: want %d", size, older.Size)
	}
	if err := checkSize(newer.Size); err != nil {
		return err
	}
	if older.Size == 0 {
		return checkFromEmpty(hashes, older)
	}
	if err := tlog.CheckTree(hashes, newer.Size, newer.Hash, older.Size, older.Hash); err != nil {
		return refuse("the log of %d records is not proved to begin with the %d seen before: %v", newer.Size, older.Size, err)
	}
	return nil
}

func checkFromEmpty(hashes []tlog.Hash, older Checkpoint) error {
	empty, _ := tlog.TreeHash(0, nil)
	if len(hashes) != 0 || older.Hash != empty {
		return refuse("the older checkpoint is of no records, but its hash is not that of an empty log, or the proof is not empty")
	}
	return nil
}

func formatProof(word string, n int64, hashes []tlog.Hash) []byte {
	text := fmt.Appendf(nil, "%s %d\n", word, n)
	for _, h := range hashes {
		text = fmt.Appendln(text, h)
	}
	return text
}

func parseProof(word string, proof []byte) (int64, []tlog.Hash, error) {
	if len(proof) > maxProof {
		return 0, nil, refuse("the proof is longer than %d bytes", maxProof)
	}
	first, rest, _ := strings.Cut(string(proof), "\n")
	n, err := strconv.ParseInt(strings.TrimPrefix(first, word+" "), 10, 64)
	if err != nil {
		return 0, nil, refuse("the proof does not begin with %q and a number", word)
	}
	var hashes []tlog.Hash
	for line := range strings.Lines(rest) {
		h, err := tlog.ParseHash(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return 0, nil, refuse("line %d of the proof is no hash", len(hashes)+2)
		}
		hashes = append(hashes, h)
	}
	if string(formatProof(word, n, hashes)) != string(proof) {
		return 0, nil, refuse("the proof is not in canonical form")
	}
	return n, hashes, nil
}
