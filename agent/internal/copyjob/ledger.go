package copyjob

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/databox-lockbox/lockbox/protocol"
)

// A ledger remembers which files of an order's job are uploaded, so that a job
// that goes on asks nobody about them. It holds a digest of each file, not its
// name. An entry that got lost costs a question to the store, no more: a job
// that has a ledger asks before it uploads what is not in it.
type ledger struct {
	resumed bool // the job ran before

	mu   sync.Mutex // guards what follows
	file *os.File   // nil: nothing is kept
	done map[ledgerKey]bool
}

// ledgerKey is the beginning of a digest.
type ledgerKey [16]byte

const ledgerSuffix = ".uploaded"

// openLedger opens the ledger of an order in dir, and removes those of others:
// a device serves one order at a time. Without dir nothing is kept, and every
// job counts as one that goes on.
func openLedger(dir string, order protocol.OrderID) (*ledger, error) {
	l := &ledger{done: make(map[ledgerKey]bool), resumed: true}
	if dir == "" {
		return l, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(order))
	name := filepath.Join(dir, hex.EncodeToString(sum[:16])+ledgerSuffix)
	others, err := filepath.Glob(filepath.Join(dir, "*"+ledgerSuffix))
	for _, other := range others {
		if other != name {
			err = errors.Join(err, os.Remove(other))
		}
	}
	if err != nil {
		return nil, err
	}
	_, err = os.Lstat(name)
	l.resumed = err == nil
	if l.file, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if err := l.read(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot read what is uploaded already: %w", err), l.file.Close())
	}
	return l, nil
}

// read takes up all whole entries, and leaves the file at the end of the last.
func (l *ledger) read() error {
	data, err := io.ReadAll(l.file)
	if err != nil {
		return err
	}
	var key ledgerKey
	for len(data) >= len(key) {
		data = data[copy(key[:], data):]
		l.done[key] = true
	}
	_, err = l.file.Seek(int64(len(l.done)*len(key)), io.SeekStart)
	return err
}

func keyOf(endpoint string, f *file) (key ledgerKey) {
	h := sha256.New()
	for _, part := range []string{endpoint, f.share.String(), string(f.share.Disk), f.path} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	_ = binary.Write(h, binary.BigEndian, []uint64{uint64(f.size), f.crc64, uint64(f.modified.Unix()), uint64(f.modified.Nanosecond())})
	copy(key[:], h.Sum(nil))
	return key
}

func (l *ledger) has(key ledgerKey) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.done[key]
}

// add notes that a file is uploaded. The end of the process loses no note.
func (l *ledger) add(key ledgerKey) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil || l.done[key] {
		return nil
	}
	l.done[key] = true
	_, err := l.file.Write(key[:])
	return err
}

// close ends the ledger; what it holds stays if the job is to go on.
func (l *ledger) close(goesOn bool) error {
	if l.file == nil {
		return nil
	}
	var err error
	if goesOn {
		err = l.file.Sync()
	} else {
		err = os.Remove(l.file.Name())
	}
	return errors.Join(err, l.file.Close())
}
