// Package journal is the audit chain that a node keeps of itself: what it was
// asked, what it opened, what it refused and when it locked again.
//
// The rules:
//
//   - Record before act: when [Journal.Append] returns nil, the record survives
//     a loss of power. When it returns an error, the act must not happen; the
//     record may still land.
//   - Append never waits longer than its bound. A file system that hangs costs
//     one goroutine and a refusal, not the agent.
//   - The chain is a Merkle log (protocol/auditlog) in two append-only files:
//     "records" has one canonical record per line, "hashes" the stored hashes
//     of the tree, 32 bytes each. A record is synced before its hashes are
//     written, so a crash leaves at most one record without hashes, and [New]
//     completes it, or half a record, and New cuts it off. Anything else is
//     damage, and New refuses: a chain with a hole is never continued.
//   - The control plane gets every record, in order, however long it was away
//     ([Journal.Forward]). The number it has acknowledged is kept in "acked";
//     a chain shorter than that was rolled back, and New refuses it.
package journal

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// Names of the files of a journal.
const (
	recordsFile = "records"
	hashesFile  = "hashes"
	ackedFile   = "acked"
)

// appendBound is how long Append may take. It leaves room within the five
// seconds after which an unlock must have been refused.
const appendBound = 4 * time.Second

// file is what the journal needs of an open file.
type file interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Truncate(size int64) error
	Close() error
}

// Journal is a node's own audit chain. It is safe for concurrent use.
type Journal struct {
	node    protocol.NodeID
	signer  note.Signer
	dir     string
	records file
	hashes  file

	slot       chan struct{} // held by the one who writes the files
	torn       bool          // the files end in an unfinished write; guarded by slot
	wake       chan struct{} // says that there is something to forward
	forwarding atomic.Bool

	mu    sync.Mutex // guards what follows; never held while a file is used
	ends  []int64    // where in the records file each record ends
	acked int64      // how many records the control plane has
}

// New opens the journal of a node in dir, which is made if it is missing. It
// repairs what a crash left unfinished and verifies every record against the
// stored hashes. Checkpoints are signed with key, the node's Ed25519 key.
func New(dir string, node protocol.NodeID, key crypto.Signer) (*Journal, error) {
	signer, err := auditlog.NewSigner(node.URI().String(), key)
	if err != nil {
		return nil, err
	}
	if err := state.PrivateDir(dir); err != nil {
		return nil, err
	}
	j := &Journal{
		node: node, signer: signer, dir: dir,
		slot: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
	if err := j.open(); err != nil {
		return nil, fmt.Errorf("journal %s: %w", dir, err)
	}
	return j, nil
}

func (j *Journal) open() (err error) {
	var files [2]*os.File
	defer func() {
		if err != nil {
			closeAll(files[:])
		}
	}()
	for i, name := range []string{recordsFile, hashesFile} {
		files[i], err = os.OpenFile(filepath.Join(j.dir, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return state.Coded(err)
		}
	}
	j.records, j.hashes = files[0], files[1]
	if err := state.SyncDir(j.dir); err != nil {
		return err
	}
	return j.load()
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// Close closes the files. It waits for a write under way, but not longer than
// an Append would.
func (j *Journal) Close() error {
	select {
	case j.slot <- struct{}{}: // kept: a closed journal takes no record
		return errors.Join(j.records.Close(), j.hashes.Close())
	case <-time.After(appendBound):
		return errors.New("the journal cannot be closed: a write hangs")
	}
}

// Size returns the number of records.
func (j *Journal) Size() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return int64(len(j.ends))
}

// Append records r as the node's own and returns its number, from zero. It
// returns within five seconds whatever the file system does: with
// [protocol.CodeStorageFull] if there is no room, [protocol.CodeNotRecorded] if
// the record could not be made durable in time, [protocol.CodeInvalid] if it is
// no valid record. After an error the record may still land.
func (j *Journal) Append(ctx context.Context, r auditlog.Record) (int64, error) {
	r.Origin, r.Device = j.node.String(), nil
	record, err := r.Encode()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, appendBound)
	defer cancel()
	select {
	case j.slot <- struct{}{}:
	case <-ctx.Done():
		return 0, notRecorded("an earlier write to the journal hangs, or the journal is closed")
	}
	done := make(chan outcome, 1)
	go func() { // ends when the file system answers; the slot allows one of them
		index, err := j.write(record)
		<-j.slot
		done <- outcome{index, err}
	}()
	select {
	case o := <-done:
		return o.index, o.err
	case <-ctx.Done():
		return 0, notRecorded("the file system of the journal did not answer in time")
	}
}

type outcome struct {
	index int64
	err   error
}

func notRecorded(format string, args ...any) error {
	return protocol.Errorf(protocol.CodeNotRecorded, "%s", "not recorded: "+fmt.Sprintf(format, args...))
}

// write makes a record durable. The caller holds the slot.
func (j *Journal) write(record []byte) (int64, error) {
	n, end := j.head()
	if j.torn {
		if err := j.cut(n, end); err != nil {
			return 0, writeError(err)
		}
	}
	hashes, err := auditlog.Append(n, record, j)
	if err != nil {
		return 0, writeError(err)
	}
	line := append(record, '\n')
	j.torn = true
	if err := writeSync(j.records, line, end); err != nil {
		return 0, j.undo(n, end, err)
	}
	if err := writeSync(j.hashes, encodeHashes(hashes), hashesEnd(n)); err != nil {
		return 0, j.undo(n, end, err)
	}
	j.torn = false
	j.mu.Lock()
	j.ends = append(j.ends, end+int64(len(line)))
	j.mu.Unlock()
	j.notify()
	return n, nil
}

// undo tries to take back a write that failed. If that fails too, the next
// write tries again, and New would after a restart.
func (j *Journal) undo(n, end int64, cause error) error {
	_ = j.cut(n, end)
	return writeError(cause)
}

// cut shortens the files to n records. The hashes go first: hashes without
// their record would count as damage.
func (j *Journal) cut(n, end int64) error {
	if err := truncateSync(j.hashes, hashesEnd(n)); err != nil {
		return err
	}
	if err := truncateSync(j.records, end); err != nil {
		return err
	}
	j.torn = false
	return nil
}

func writeError(err error) error {
	if err := state.Coded(err); protocol.CodeOf(err) == protocol.CodeStorageFull {
		return err
	}
	return notRecorded("%v", err)
}

func writeSync(f file, data []byte, at int64) error {
	if _, err := f.WriteAt(data, at); err != nil {
		return err
	}
	return f.Sync()
}

func truncateSync(f file, size int64) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Sync()
}

// head returns the number of records and where the last of them ends.
func (j *Journal) head() (n, end int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.ends) > 0 {
		end = j.ends[len(j.ends)-1]
	}
	return int64(len(j.ends)), end
}

// hashesEnd returns where the hashes of the first n records end in their file.
func hashesEnd(n int64) int64 { return tlog.StoredHashCount(n) * tlog.HashSize }

func encodeHashes(hashes []tlog.Hash) []byte {
	data := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		data = append(data, h[:]...)
	}
	return data
}

// ReadHashes returns stored hashes of the chain, for proofs about it.
func (j *Journal) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if _, err := j.hashes.ReadAt(out[i][:], index*tlog.HashSize); err != nil {
			return nil, fmt.Errorf("cannot read stored hash %d: %w", index, err)
		}
	}
	return out, nil
}

// Checkpoint signs the head of the chain as it was after the first size
// records. Its origin is the node's URI.
func (j *Journal) Checkpoint(size int64) ([]byte, error) {
	if now := j.Size(); size < 0 || size > now {
		return nil, protocol.Errorf(protocol.CodeInvalid, "the journal has %d records, not %d", now, size)
	}
	hash, err := auditlog.TreeHash(size, j)
	if err != nil {
		return nil, err
	}
	return auditlog.Checkpoint{Origin: j.signer.Name(), Size: size, Hash: hash}.Sign(j.signer)
}
