// Package copyjob runs the DataCopy job over the share folders of mounted
// disks, and writes the bills of materials that it compares them with.
//
// The rules:
//
//   - What is uploaded is what the newest bill of materials of its share says,
//     byte for byte, to an account that the consent names, under an endpoint
//     that this device's configuration allows.
//   - What is uploaded is not uploaded again: a ledger knows the files of an
//     order that are, and stores know the parts of a file that are. Nothing at a
//     destination is ever overwritten: the same content counts as uploaded,
//     another is an error.
//   - Every upload is confirmed by the store's own checksum.
//   - Files that people can repair halt the job, after all others were uploaded.
//     What cannot be read from its disk is an error that stays.
//   - The disks are somebody else's: no name and no link on them leads out of
//     the folder it is in ([os.Root]).
package copyjob

import (
	"context"
	"errors"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// Codes of what can go wrong beside the upload checks of package manifest.
const (
	NotAsShipped  manifest.ErrorCode = "ERROR_PREPARE_TO_SHIP_NOT_RUN"      // the file is not as the newest bill of materials says
	DuplicateName manifest.ErrorCode = "ERROR_BLOB_OR_FILE_NAME_CONFLICT"   // another file has the same destination
	AlreadyExists manifest.ErrorCode = "ERROR_BLOB_OR_FILE_ALREADY_EXISTS"  // the destination has something else under that name
	AccessDenied  manifest.ErrorCode = "ERROR_UPLOAD_ACCESS_DENIED"         // the account does not let this device in
	Unavailable   manifest.ErrorCode = "ERROR_UPLOAD_UNAVAILABLE"           // the account does not answer
	UploadFailed  manifest.ErrorCode = "ERROR_UPLOAD_FAILED"                // the destination did not take it
	ReadFailed    manifest.ErrorCode = "ERROR_SOURCE_READ_FAILED"           // the disk did not give it
	TimeNotKept   manifest.ErrorCode = "WARNING_MODIFICATION_TIME_NOT_KEPT" // it was copied, without the time of its modification
)

// State is how a job stands.
type State string

// The states of a job.
const (
	Running               State = "running"
	Halted                State = "halted" // files need repair; the job can be resumed
	Paused                State = "paused" // it was interrupted; the job can be resumed
	Completed             State = "completed"
	CompletedWithWarnings State = "completed-with-warnings" // all was copied, not all that is known of it
	CompletedWithErrors   State = "completed-with-errors"   // what failed cannot be repaired
)

// Result is how a job ended.
type Result struct {
	State    State
	Progress Progress
	Codes    []manifest.ErrorCode // distinct, in order of appearance
	CopyLog  []byte               // XML of at most 2 MiB; nil when Paused
	Failure  error                // set by callers for a job that could not run
}

// Config says what this device's jobs may do.
type Config struct {
	BlobRoots []string // folders below which a file:// endpoint must lie
	Blobs     Opener   // of https:// endpoints; nil: none may be written to
	Parallel  int      // files at once; 0 is one
	Dir       string   // where the ledgers are kept; "": nowhere
}

// Job runs data-copy jobs. It is safe for concurrent use.
type Job struct{ cfg Config }

// New returns a Job. It starts nothing.
func New(cfg Config) *Job {
	cfg.Parallel = max(cfg.Parallel, 1)
	return &Job{cfg}
}

// Check refuses, with [protocol.CodeAction], destinations that this device may
// not write to.
func (j *Job) Check(destinations []approval.Destination) error {
	for _, d := range destinations {
		if err := j.check(d); err != nil {
			return err
		}
	}
	return nil
}

// Run uploads the files of the shares to the destinations of a consent, until
// all is done or ctx ends; then the job is Paused. progress is called from one
// goroutine at a time, once a second. Run returns an error if the job
// cannot run at all: with [protocol.CodeAction] if a share is of an account that
// the consent does not name.
func (j *Job) Run(ctx context.Context, order protocol.OrderID, shares []Share, targets []Target, progress func(Progress)) (_ Result, err error) {
	stores, err := j.openStores(shares, targets)
	defer closeAll(stores)
	if err != nil {
		return Result{}, err
	}
	uploaded, err := openLedger(j.cfg.Dir, order)
	if err != nil {
		return Result{}, err
	}
	goesOn := true
	defer func() { err = errors.Join(err, uploaded.close(goesOn)) }()
	files, err := plan(ctx, shares, stores)
	if err != nil {
		return paused(ctx, Progress{}, err)
	}
	r := newRun(files, stores, uploaded)
	if err := r.upload(ctx, j.cfg.Parallel, progress); err != nil {
		return paused(ctx, r.progress(), err)
	}
	result, err := r.result()
	goesOn = err != nil || result.State == Halted
	return result, err
}

// paused returns a paused result if it is ctx that ended the work, else err.
func paused(ctx context.Context, p Progress, err error) (Result, error) {
	if ctx.Err() != nil {
		return Result{State: Paused, Progress: p}, nil
	}
	return Result{}, err
}

// store is an open destination.
type store struct {
	ObjectStore
	endpoint string
}

// openStores opens the store of each account that has a share.
func (j *Job) openStores(shares []Share, targets []Target) (map[string]store, error) {
	stores := make(map[string]store)
	for _, s := range shares {
		if _, ok := stores[s.Account]; ok {
			continue
		}
		t, err := targetOf(s.Account, targets)
		if err != nil {
			return stores, err
		}
		opened, err := j.open(t)
		if err != nil {
			return stores, err
		}
		stores[s.Account] = store{opened, t.Endpoint}
	}
	return stores, nil
}

func targetOf(account string, targets []Target) (Target, error) {
	for _, t := range targets {
		if t.Account == account {
			return t, nil
		}
	}
	return Target{}, protocol.Errorf(protocol.CodeAction,
		"the consent names no destination for account %q, which has a share on the disks", account)
}

func closeAll(stores map[string]store) {
	for _, s := range stores {
		s.Close()
	}
}
