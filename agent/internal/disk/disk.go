// Package disk turns one BitLocker image into a mounted folder and back.
package disk

import (
	"context"
	"errors"
	"io"
	"os/exec"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/protocol"
)

var errDraft = errors.New("disk: not written yet")

// Disk is one configured disk of the node.
type Disk struct {
	ID    protocol.DiskID
	Image string // path of the image file
}

// Inspect reads what the volume says in clear. It needs no key.
func (d Disk) Inspect() (bitlocker.Info, error) { return bitlocker.Info{}, errDraft }

// Evidence is what of a disk is open on this machine.
type Evidence struct {
	Exports []string // mount points of the decrypted volume as a file
	Loops   []string // loop devices over the decrypted volume or the image
	Mounts  []string // mount points of the file system inside
}

// None reports whether nothing is open.
func (e Evidence) None() bool { return len(e.Exports)+len(e.Loops)+len(e.Mounts) == 0 }

// Evidence looks at the machine, not at the agent's own books.
func (d Disk) Evidence(runDir string) (Evidence, error) { return Evidence{}, errDraft }

// Spec says which disk is opened, and how.
type Spec struct {
	Disk
	RunDir   string  // the agent's private run directory; what belongs to the disk lies in <RunDir>/disks/<ID>
	ReadOnly bool    // nothing is written to the image
	Bare     bool    // no folder: Mount does nothing and returns ""
	Keeper   *Keeper // undoes the mount when the agent dies; may be nil in tests
}

// Opened is a disk whose volume is decrypted.
type Opened struct{}

// Open unlocks the volume with key, which the caller wipes afterwards. A key that
// does not open it is refused with [protocol.CodeDiskKey]. Nothing is mounted yet.
func Open(ctx context.Context, spec Spec, key bitlocker.ExternalKey) (*Opened, error) {
	return nil, errDraft
}

// ID returns the disk's name.
func (o *Opened) ID() protocol.DiskID { return "" }

// Mount shows the volume's files below the returned folder.
func (o *Opened) Mount(ctx context.Context) (dir string, err error) { return "", errDraft }

// Done is closed when the disk is no longer usable: after Wipe or Close, or
// because its file system's process ended by itself.
func (o *Opened) Done() <-chan struct{} { return nil }

// Wipe ends all access at once: the keys are gone from memory, and reads and
// writes fail. Unsynced data is lost, unless Close ran before. It does not wait.
func (o *Opened) Wipe() {}

// Close syncs for at most a second, wipes the keys half a second before ctx's
// deadline at the latest (1.5 s from now if it has none or a later one) and
// undoes the mount. It returns within 2 s.
func (o *Opened) Close(ctx context.Context) error { return errDraft }

// Cleanup undoes what an earlier agent left of runDir: processes, mounts, loops.
func Cleanup(ctx context.Context, runDir string) error { return errDraft }

// ProtectMemory keeps this process's memory out of core files.
func ProtectMemory() error { return errDraft }

// Keeper is a process that outlives the agent by a moment and undoes what the
// agent left when it was killed.
type Keeper struct{}

// StartKeeper runs argv, a program that calls [RunKeeper] on its standard input.
func StartKeeper(argv []string) (*Keeper, error) { return nil, errDraft }

// RunKeeper is the keeper's main function: it returns when the agent has died
// and all is undone, within 2 s, or when the agent has closed its keeper.
func RunKeeper(r io.Reader) error { return errDraft }

// Done is closed when the keeper's process has ended.
func (k *Keeper) Done() <-chan struct{} { return nil }

// Close ends the keeper.
func (k *Keeper) Close() error { return errDraft }

// Child is a process that never outlives the agent.
type Child struct{}

// StartChild starts cmd.
func StartChild(cmd *exec.Cmd, keeper *Keeper) (*Child, error) { return nil, errDraft }
