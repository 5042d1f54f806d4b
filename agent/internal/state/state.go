// Package state keeps the few facts that one node must not forget: who it is,
// whose signatures it wants, what is spent, how late it has been, and the last
// activity-log checkpoint it saw.
//
// The rules:
//
//   - The directory belongs to one agent at a time (an exclusive lock) and to
//     nobody else on the machine: wider permissions than 0700 are refused.
//   - A fact is durable when the call that sets it returns: every write is to a
//     temporary file, fsynced, renamed, and the directory fsynced ([WriteFile]).
//   - The node's keys are made here and have no way out but the file system.
//     Keys of disks and credentials of shares are never kept.
//   - The first trust policy is installed once; another one takes an explicit
//     [Dir.ReplaceTrustPolicy].
//   - A full disk is [protocol.CodeStorageFull], so that people know what to do.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Names of the files in a state directory.
const (
	lockFile       = "lock"
	nodeKeyFile    = "node.key"
	hostKeyFile    = "ssh-host.key"
	identityFile   = "identity.json"
	policyFile     = "trust-policy"
	spentFile      = "spent.json"
	clockFile      = "clock"
	checkpointFile = "checkpoint"
)

// maxUnknown bounds the digests that [Dir.SpendUnknown] remembers: many more than a
// device sees requests, and less than a megabyte.
const maxUnknown = 4096

// spentMargin is how long a spent approval is remembered beyond its end.
const spentMargin = 24 * time.Hour

// Dir is one node's open state directory. It is safe for concurrent use.
type Dir struct {
	path string
	lock *os.File

	mu         sync.Mutex // guards what follows, and the writes of it
	identity   *Identity
	policy     []byte
	spent      map[string]spent
	highWater  time.Time
	checkpoint []byte
}

// spent is why a request can never be used again, and until when that matters.
type spent struct {
	Reason  string    `json:"reason"`
	Until   time.Time `json:"until"`
	Unknown bool      `json:"unknown,omitempty"` // no approval of it was ever seen here
}

// Open opens the state directory at path, which is made if it is missing, and
// locks it for this process. It refuses a directory that others may enter, one
// that another agent holds ([protocol.CodeBusy]), and damaged files.
func Open(path string) (*Dir, error) {
	if err := PrivateDir(path); err != nil {
		return nil, err
	}
	lock, err := acquire(filepath.Join(path, lockFile))
	if err != nil {
		return nil, err
	}
	d := &Dir{path: path, lock: lock}
	if err := d.load(); err != nil {
		lock.Close()
		return nil, fmt.Errorf("state directory %s: %w", path, err)
	}
	return d, nil
}

func acquire(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, Coded(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, protocol.Errorf(protocol.CodeBusy, "state directory %s is in use by another agent: stop it first", filepath.Dir(path))
		}
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	return f, nil
}

func (d *Dir) load() error {
	return errors.Join(
		d.loadJSON(identityFile, &d.identity),
		d.loadJSON(spentFile, &d.spent),
		d.loadBytes(policyFile, &d.policy),
		d.loadBytes(checkpointFile, &d.checkpoint),
		d.loadClock(),
	)
}

func (d *Dir) loadBytes(name string, to *[]byte) error {
	data, err := os.ReadFile(d.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	*to = data
	return err
}

func (d *Dir) loadJSON(name string, to any) error {
	var data []byte
	if err := d.loadBytes(name, &data); err != nil || data == nil {
		return err
	}
	if err := json.Unmarshal(data, to); err != nil {
		return fmt.Errorf("%s is damaged: %w", name, err)
	}
	return nil
}

func (d *Dir) loadClock() error {
	var data []byte
	if err := d.loadBytes(clockFile, &data); err != nil || data == nil {
		return err
	}
	ms, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return fmt.Errorf("%s is damaged: %w", clockFile, err)
	}
	d.highWater = time.UnixMilli(ms)
	return nil
}

// Close gives the directory back.
func (d *Dir) Close() error { return d.lock.Close() }

// Path returns the directory, for the parts of the agent that keep files of
// their own below it.
func (d *Dir) Path() string { return d.path }

func (d *Dir) file(name string) string { return filepath.Join(d.path, name) }

// TrustPolicy returns the bytes of the trust policy, nil if none is installed.
func (d *Dir) TrustPolicy() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]byte(nil), d.policy...)
}

// InstallTrustPolicy installs the first trust policy. Installing the same bytes
// again changes nothing; other bytes are refused with [protocol.CodeConflict].
func (d *Dir) InstallTrustPolicy(policy []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case len(policy) == 0:
		return protocol.Errorf(protocol.CodeInvalid, "the trust policy is empty")
	case string(d.policy) == string(policy):
		return nil
	case d.policy != nil:
		return protocol.Errorf(protocol.CodeConflict, "another trust policy is installed: it changes only to a higher version that its customers signed")
	}
	return d.writePolicyLocked(policy)
}

// ReplaceTrustPolicy puts policy in the place of old, which must be the bytes
// installed now, else it refuses with [protocol.CodeConflict]. The caller has
// verified that the signers of old agreed.
func (d *Dir) ReplaceTrustPolicy(old, policy []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(old) == 0 || len(policy) == 0 || string(d.policy) != string(old) {
		return protocol.Errorf(protocol.CodeConflict, "the trust policy to be replaced is not the one installed")
	}
	return d.writePolicyLocked(policy)
}

func (d *Dir) writePolicyLocked(policy []byte) error {
	if err := WriteFile(d.file(policyFile), policy); err != nil {
		return err
	}
	d.policy = append([]byte(nil), policy...)
	return nil
}

// Spend makes the request or consent with that digest unusable for good. until
// is the end of its validity: some time after it, as told by the high-water
// mark of the clock, the entry is forgotten. Spending twice keeps the first
// reason and the later end.
//
// If the disk refuses, Spend returns the error, and the digest still counts as
// spent until the process ends; the next Spend tries again to write it.
func (d *Dir) Spend(digest, reason string, until time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.spendLocked(digest, spent{Reason: reason, Until: until.UTC()})
}

// SpendUnknown is [Dir.Spend] for a digest of which the node has seen no approval,
// as when a request is revoked before it was executed. Whoever makes digests up
// must not fill the disk, nor drive out a real one: of these the node remembers
// 4096, and refuses more with [protocol.CodeLimit].
func (d *Dir) SpendUnknown(digest, reason string, until time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.spent[digest]; !known && d.unknownLocked() >= maxUnknown {
		return protocol.Errorf(protocol.CodeLimit, "%d approvals are remembered as used up that were never seen here: %s is not added", maxUnknown, digest)
	}
	return d.spendLocked(digest, spent{Reason: reason, Until: until.UTC(), Unknown: true})
}

func (d *Dir) unknownLocked() (n int) {
	for _, s := range d.spent {
		if s.Unknown && !d.pastLocked(s) {
			n++
		}
	}
	return n
}

// pastLocked reports whether it does not matter any more that something is spent.
func (d *Dir) pastLocked(s spent) bool { return s.Until.Add(spentMargin).Before(d.highWater) }

func (d *Dir) spendLocked(digest string, entry spent) error {
	if digest == "" {
		return protocol.Errorf(protocol.CodeInvalid, "nothing to spend: the digest is empty")
	}
	if old, ok := d.spent[digest]; ok {
		entry.Reason, entry.Unknown = old.Reason, old.Unknown && entry.Unknown
		if old.Until.After(entry.Until) {
			entry.Until = old.Until
		}
	}
	if d.spent == nil {
		d.spent = make(map[string]spent)
	}
	for digest, s := range d.spent {
		if d.pastLocked(s) {
			delete(d.spent, digest)
		}
	}
	d.spent[digest] = entry
	data, err := json.Marshal(d.spent)
	if err != nil {
		return err
	}
	return WriteFile(d.file(spentFile), data)
}

// Spent reports whether the request or consent with that digest is spent, and
// why.
func (d *Dir) Spent(digest string) (reason string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, ok := d.spent[digest]
	return s.Reason, ok
}

// HighWater returns the latest time that was ever raised, to the millisecond;
// the zero time if there was none. A wall clock below it was set back.
func (d *Dir) HighWater() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.highWater
}

// RaiseHighWater remembers now, if it is later than what is remembered.
func (d *Dir) RaiseHighWater(now time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	now = now.Truncate(time.Millisecond)
	if !now.After(d.highWater) {
		return nil
	}
	if err := WriteFile(d.file(clockFile), strconv.AppendInt(nil, now.UnixMilli(), 10)); err != nil {
		return err
	}
	d.highWater = time.UnixMilli(now.UnixMilli())
	return nil
}

// Checkpoint returns the last activity-log checkpoint this node accepted, as it
// was signed; nil if there was none.
func (d *Dir) Checkpoint() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]byte(nil), d.checkpoint...)
}

// SetCheckpoint remembers a signed checkpoint, which the caller has found
// consistent with the one remembered before.
func (d *Dir) SetCheckpoint(signed []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := WriteFile(d.file(checkpointFile), signed); err != nil {
		return err
	}
	d.checkpoint = append([]byte(nil), signed...)
	return nil
}
