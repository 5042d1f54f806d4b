// Package auditlog is the activity log as both sides understand it: what a
// record is, how records form a Merkle log, and how anyone checks one offline.
//
// The rules:
//
//   - A record is canonical JSON on one line ([Record]). What [ParseRecord]
//     accepts, [Record.Encode] gives back byte for byte.
//   - Records are the leaves of an RFC 6962 tree. A log is named by its
//     origin: [LogOrigin] for the activity log, the node's URI for the chain
//     of a device.
//   - A checkpoint ([Checkpoint]) is a C2SP signed note over origin, size and
//     root hash. Whoever keeps one can later demand a consistency proof, so a
//     log that forks or shrinks is found by everyone who looked before.
//   - An export ([Export], [Verify]) is a checkpoint and every record below
//     it. One flipped bit, or one record dropped, moved or cut off, is found.
//
// The package does no input or output of its own. SPEC.md beside it is enough
// to write another verifier.
package auditlog

import (
	"golang.org/x/mod/sumdb/tlog"

	"github.com/databox-lockbox/lockbox/protocol"
)

// MaxSize is the largest number of records a log may hold. Sizes above it are
// refused wherever they are read, since tree arithmetic on an absurd size
// never ends.
const MaxSize = 1 << 40

// LogOrigin returns the origin of an instance's activity log:
// "databox-lockbox/<instance>". The instance may hold no space, plus or
// control character.
func LogOrigin(instance string) string { return "databox-lockbox/" + instance }

// LeafHash returns the RFC 6962 leaf hash of a record's bytes.
func LeafHash(record []byte) tlog.Hash { return tlog.RecordHash(record) }

// Append returns the hashes to be stored when record becomes number n (from
// zero) of a log whose earlier hashes are read with r. They belong at the
// indexes from tlog.StoredHashIndex(0, n) on, one after the other.
func Append(n int64, record []byte, r tlog.HashReader) ([]tlog.Hash, error) {
	if err := checkSize(n); err != nil {
		return nil, err
	}
	return tlog.StoredHashes(n, record, r)
}

// TreeHash returns the root hash over the first n records of the log whose
// hashes are read with r.
func TreeHash(n int64, r tlog.HashReader) (tlog.Hash, error) {
	if err := checkSize(n); err != nil {
		return tlog.Hash{}, err
	}
	return tlog.TreeHash(n, r)
}

func checkSize(n int64) error {
	if n < 0 || n > MaxSize {
		return protocol.Errorf(protocol.CodeCheckpoint, "%d is no log size: want 0 to %d", n, int64(MaxSize))
	}
	return nil
}
