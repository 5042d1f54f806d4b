// Package copyjob runs the DataCopy job over the share folders of mounted
// disks, and writes the bills of materials that it compares them with.
//
// The rules:
//
//   - What is uploaded is what the newest bill of materials of its share says,
//     byte for byte, to an account that the consent names, under an endpoint
//     that this device's configuration allows.
//   - A file that is there already with the same size and CRC64 is not uploaded
//     again, so a job that was interrupted goes on where it was.
//   - Files that people can repair halt the job, after all others were uploaded.
//     What cannot be read from its disk is an error that stays.
//   - The disks are somebody else's: no name and no link on them leads out of
//     the folder it is in ([os.Root]).
package copyjob

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// Codes of what can go wrong beside the upload checks of package manifest.
const (
	NotAsShipped  manifest.ErrorCode = "ERROR_PREPARE_TO_SHIP_NOT_RUN"    // the file is not as the newest bill of materials says
	DuplicateName manifest.ErrorCode = "ERROR_BLOB_OR_FILE_NAME_CONFLICT" // another file has the same destination
	UploadFailed  manifest.ErrorCode = "ERROR_UPLOAD_FAILED"              // the destination did not take it
	ReadFailed    manifest.ErrorCode = "ERROR_SOURCE_READ_FAILED"         // the disk did not give it
)

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

// Progress counts the files of a job, and the bytes of those that are done.
type Progress struct {
	FilesTotal, FilesDone, FilesErrored int64
	BytesDone                           int64
}

// Result is how a job ended.
type Result struct {
	State    State
	Progress Progress
	Codes    []manifest.ErrorCode // distinct, in order of appearance
	CopyLog  []byte               // XML of at most 2 MiB; nil when Paused
	Failure  error                // set by callers for a job that could not run
}

// ErrContent is what [ObjectStore.Put] returns, wrapped, if the content is not
// what it was announced to be.
var ErrContent = errors.New("the content differs from what was announced")

// ObjectStore is one destination account. It is used concurrently.
type ObjectStore interface {
	// Stat returns size and CRC64 of an object, and whether it is there.
	Stat(ctx context.Context, account, container, blob string) (size int64, crc64 uint64, ok bool, err error)
	// Put stores what r yields. When it returns nil, the object is durable and
	// has been read back with that size and CRC64; otherwise nothing of it is
	// to be seen.
	Put(ctx context.Context, account, container, blob string, r io.Reader, size int64, crc64 uint64) error
	Close() error
}

// Config says what this device's jobs may do.
type Config struct {
	BlobRoots []string // folders below which a file:// endpoint must lie
	Parallel  int      // files at once; 0 is one
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
		if _, _, err := j.locate(d); err != nil {
			return err
		}
	}
	return nil
}

// Run uploads the files of the shares to the destinations of the consent, until
// all is done or ctx ends; then the job is Paused. progress is called from one
// goroutine at a time, a few times a second. Run returns an error if the job
// cannot run at all: with [protocol.CodeAction] if a share is of an account that
// the consent does not name.
func (j *Job) Run(ctx context.Context, shares []Share, destinations []approval.Destination, progress func(Progress)) (Result, error) {
	stores, err := j.openStores(shares, destinations)
	defer closeAll(stores)
	if err != nil {
		return Result{}, err
	}
	files, err := plan(ctx, shares)
	if err != nil {
		return paused(ctx, Progress{}, err)
	}
	r := &run{files: files, tell: progress, count: Progress{FilesTotal: int64(len(files))}}
	r.upload(ctx, stores, j.cfg.Parallel)
	if ctx.Err() != nil {
		return Result{State: Paused, Progress: r.count}, nil
	}
	return r.result()
}

// paused returns a paused result if it is ctx that ended the work, else err.
func paused(ctx context.Context, p Progress, err error) (Result, error) {
	if ctx.Err() != nil {
		return Result{State: Paused, Progress: p}, nil
	}
	return Result{}, err
}

func (j *Job) openStores(shares []Share, destinations []approval.Destination) (map[string]ObjectStore, error) {
	stores := make(map[string]ObjectStore)
	for _, s := range shares {
		if stores[s.Account] != nil {
			continue
		}
		d, err := destinationOf(s.Account, destinations)
		if err != nil {
			return stores, err
		}
		if stores[s.Account], err = j.open(d); err != nil {
			return stores, err
		}
	}
	return stores, nil
}

func destinationOf(account string, destinations []approval.Destination) (approval.Destination, error) {
	for _, d := range destinations {
		if d.Account == account {
			return d, nil
		}
	}
	return approval.Destination{}, protocol.Errorf(protocol.CodeAction,
		"the consent names no destination for account %q, which has a share on the disks", account)
}

func closeAll(stores map[string]ObjectStore) {
	for _, s := range stores {
		if s != nil {
			s.Close()
		}
	}
}

// run is one job under way.
type run struct {
	files []*file
	tell  func(Progress)

	mu    sync.Mutex // guards what follows, and the codes of files
	count Progress
	told  time.Time
}

// tellEvery is how often progress is told of, at most.
const tellEvery = 250 * time.Millisecond

func (r *run) upload(ctx context.Context, stores map[string]ObjectStore, parallel int) {
	next := make(chan *file)
	var workers sync.WaitGroup
	for range parallel {
		workers.Go(func() {
			for f := range next {
				r.done(ctx, f, f.upload(ctx, stores[f.share.Account]))
			}
		})
	}
	for _, f := range r.files {
		if ctx.Err() != nil {
			break
		}
		next <- f
	}
	close(next)
	workers.Wait()
	r.tell(r.count)
}

// done counts a file. One that failed because ctx ended is not counted.
func (r *run) done(ctx context.Context, f *file, code manifest.ErrorCode) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if code != "" {
		if ctx.Err() != nil {
			return
		}
		f.codes = append(f.codes, code)
	}
	if len(f.codes) > 0 {
		r.count.FilesErrored++
	} else {
		r.count.FilesDone++
		r.count.BytesDone += f.size
	}
	if now := time.Now(); now.Sub(r.told) >= tellEvery {
		r.told = now
		r.tell(r.count)
	}
}

// maxCopyLog bounds a copy log, in bytes: half of what one message carries.
const maxCopyLog = 2 << 20

// result draws up the copy log, with the first of the files that errored, as many
// as there is room for, and the number of all.
func (r *run) result() (Result, error) {
	log := manifest.CopyLog{Status: manifest.Succeeded, TotalFiles: int64(len(r.files))}
	state := Completed
	for _, f := range r.files {
		if len(f.codes) == 0 {
			continue
		}
		log.Errored = append(log.Errored, manifest.ErroredEntity{Path: f.share.String() + "/" + f.path, Codes: f.codes})
		switch {
		case f.repairable():
			state, log.Status = Halted, manifest.Failed
		case state == Completed:
			state, log.Status = CompletedWithErrors, manifest.CompletedWithErrors
		}
	}
	data, err := log.EncodeWithin(maxCopyLog)
	if err != nil {
		return Result{}, err
	}
	return Result{State: state, Progress: r.count, Codes: log.Codes(), CopyLog: data}, nil
}
