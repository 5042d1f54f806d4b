// Package copyjob runs the DataCopy job over the share folders of mounted
// disks, and writes the bills of materials it compares them with.
package copyjob

import (
	"context"
	"errors"
	"io"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

var errDraft = errors.New("copyjob: not written yet")

// ManifestDir is the folder at the root of a disk that holds its bills of
// materials: <share>-BOM.xml is the newest of a share, <share>-BOM.<n>.xml are
// the older ones, from 1 on.
const ManifestDir = "DataBoxManifest"

// Share is one share's folder on one mounted disk.
type Share struct {
	manifest.Share
	Disk protocol.DiskID
	Root string // the mounted disk; the share is <Root>/<Share.String()>
}

// Dir returns the share's folder.
func (s Share) Dir() string { return "" }

// Shares lists the shares of a mounted disk, sorted by name.
func Shares(disk protocol.DiskID, root string) ([]Share, error) { return nil, errDraft }

// State is how a job stands.
type State string

// The states of a job.
const (
	Running             State = "running"
	Halted              State = "halted" // files need repair; the job can be resumed
	Paused              State = "paused" // it was interrupted; the job can be resumed
	Completed           State = "completed"
	CompletedWithErrors State = "completed-with-errors" // what failed cannot be repaired
)

// Progress counts the files of a job.
type Progress struct {
	FilesTotal, FilesDone, FilesErrored int64
	BytesDone                           int64
}

// Result is how a job ended.
type Result struct {
	State    State
	Progress Progress
	Codes    []manifest.ErrorCode // distinct, in order of appearance
	CopyLog  []byte               // XML; nil when Paused
}

// ObjectStore is one destination account.
type ObjectStore interface {
	// Stat returns size and CRC64 of an object, and whether it is there.
	Stat(ctx context.Context, account, container, blob string) (size int64, crc64 uint64, ok bool, err error)
	// Put stores what r yields. On return without error it is durable and has
	// been read back with that size and CRC64; otherwise nothing of it is seen.
	Put(ctx context.Context, account, container, blob string, r io.Reader, size int64, crc64 uint64) error
}

// Config says what a device's jobs may do.
type Config struct {
	BlobRoots []string // folders below which a file:// endpoint must lie
	Parallel  int      // files at once; at least 1
}

// Job runs data-copy jobs.
type Job struct{}

// New returns a Job. It starts nothing.
func New(cfg Config) *Job { return &Job{} }

// Check refuses, with [protocol.CodeAction], destinations this device may not
// write to.
func (j *Job) Check(destinations []approval.Destination) error { return errDraft }

// Run uploads the files of the shares to the consent's destinations, until all
// is done or ctx ends. progress is called from one goroutine at a time.
func (j *Job) Run(ctx context.Context, shares []Share, destinations []approval.Destination, progress func(Progress)) (Result, error) {
	return Result{}, errDraft
}

// Manifest is a new bill of materials of one share.
type Manifest struct {
	Share      Share
	BOM        []byte           // XML
	Digest     string           // of BOM
	Previous   string           // digest of the bill before; "" for the first
	Difference manifest.Changes // from the bill before
}

// PrepareToShip writes a new bill of materials for every share, keeping the old
// one under its number.
func PrepareToShip(ctx context.Context, shares []Share) ([]Manifest, error) { return nil, errDraft }
