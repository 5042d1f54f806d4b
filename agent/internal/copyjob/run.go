package copyjob

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// run is one job under way.
type run struct {
	files    []*file
	stores   map[string]store // by account
	uploaded *ledger
	meter    meter
	underWay atomic.Int64 // bytes of files that are not done

	mu      sync.Mutex // guards what follows, and the codes of files
	count   Progress   // without what is under way
	down    map[string]manifest.ErrorCode
	failure error // the ledger's
}

func newRun(files []*file, stores map[string]store, uploaded *ledger) *run {
	r := &run{files: files, stores: stores, uploaded: uploaded, down: make(map[string]manifest.ErrorCode)}
	r.count.FilesTotal = int64(len(files))
	for _, f := range files {
		if len(f.codes) == 0 {
			r.count.BytesTotal += f.size
		}
	}
	return r
}

// progress returns the present count, with what is under way.
func (r *run) progress() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.count
	p.BytesDone += r.underWay.Load()
	return p
}

// upload uploads all files, several at once, and tells of it meanwhile. It
// returns an error if it ended before the last.
func (r *run) upload(ctx context.Context, parallel int, tell func(Progress)) error {
	var telling sync.WaitGroup
	stop := make(chan struct{})
	telling.Go(func() { r.tell(stop, tell) })
	r.work(ctx, parallel)
	close(stop)
	telling.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.failure
}

// tell tells of progress until stop is closed, and once more then.
func (r *run) tell(stop <-chan struct{}, tell func(Progress)) {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		var ended bool
		select {
		case <-stop:
			ended = true
		case <-tick.C:
		}
		p := r.progress()
		p.BytesPerSecond = r.meter.rate(time.Now())
		tell(p)
		if ended {
			return
		}
	}
}

func (r *run) work(ctx context.Context, parallel int) {
	next := make(chan *file)
	var workers sync.WaitGroup
	for range parallel {
		workers.Go(func() {
			for f := range next {
				r.one(ctx, f)
			}
		})
	}
	for _, f := range r.files {
		if ctx.Err() != nil || r.failed() {
			break
		}
		next <- f
	}
	close(next)
	workers.Wait()
}

func (r *run) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failure != nil
}

// one brings a file to its destination, unless it is there already or cannot be
// copied, and counts it.
func (r *run) one(ctx context.Context, f *file) {
	to := r.stores[f.share.Account]
	key := keyOf(to.endpoint, f)
	down, isDown := r.isDown(f.share.Account)
	switch {
	case len(f.codes) > 0 || r.uploaded.has(key):
		r.done(ctx, f, "", 0)
		return
	case isDown:
		r.done(ctx, f, down, 0)
		return
	}
	var sent atomic.Int64
	err := f.upload(ctx, to, r.uploaded.resumed, func(n int64) {
		sent.Add(n)
		r.underWay.Add(n)
		r.meter.sent.Add(n)
	})
	if err == nil {
		r.note(key)
	}
	r.done(ctx, f, codeOf(err), sent.Load())
}

// codeOf returns the code of why a file was not uploaded, "" if it was.
func codeOf(err error) manifest.ErrorCode {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, errRead):
		return ReadFailed
	case errors.Is(err, ErrContent):
		return NotAsShipped
	case errors.Is(err, ErrExists):
		return AlreadyExists
	case errors.Is(err, ErrDenied):
		return AccessDenied
	case errors.Is(err, ErrUnavailable):
		return Unavailable
	case errors.Is(err, ErrNotKept):
		return TimeNotKept
	}
	return UploadFailed
}

// isDown reports whether an account let nothing in before, and why: then nobody
// tries again for each of a million files.
func (r *run) isDown(account string) (manifest.ErrorCode, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	code, ok := r.down[account]
	return code, ok
}

func (r *run) note(key ledgerKey) {
	if err := r.uploaded.add(key); err != nil {
		r.mu.Lock()
		r.failure = errors.Join(r.failure, err)
		r.mu.Unlock()
	}
}

// done counts a file, of which that many bytes were under way. One that failed
// because ctx ended is not counted.
func (r *run) done(ctx context.Context, f *file, code manifest.ErrorCode, sent int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.underWay.Add(-sent)
	if code != "" {
		if code != TimeNotKept && ctx.Err() != nil {
			return
		}
		f.codes = append(f.codes, code)
	}
	if code == AccessDenied || code == Unavailable {
		r.down[f.share.Account] = code
	}
	if f.copied() {
		r.count.FilesDone++
		r.count.BytesDone += f.size
	} else {
		r.count.FilesErrored++
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
		state = worse(state, f.ending())
	}
	log.Status = statusOf[state]
	data, err := log.EncodeWithin(maxCopyLog)
	if err != nil {
		return Result{}, err
	}
	return Result{State: state, Progress: r.progress(), Codes: log.Codes(), CopyLog: data}, nil
}

// endings are the ends of a job, from the best to that which waits for people.
var endings = []State{Completed, CompletedWithWarnings, CompletedWithErrors, Halted}

func worse(a, b State) State {
	return endings[max(slices.Index(endings, a), slices.Index(endings, b))]
}

var statusOf = map[State]manifest.Status{
	Completed: manifest.Succeeded, CompletedWithWarnings: manifest.CompletedWithWarnings,
	CompletedWithErrors: manifest.CompletedWithErrors, Halted: manifest.Failed,
}
