package uplink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/databox-lockbox/lockbox/agent/internal/state"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// report is a message that must reach the control plane.
type report interface{ proto.Message }

// outbox keeps reports, one file each, until the control plane has taken them.
// One whose answer was lost is delivered again: the control plane takes a report
// that it knows for what it is.
// Progress of the job is not worth a file: the newest waits in memory.
type outbox struct {
	dir string

	mu       sync.Mutex // guards what follows
	next     int64
	progress *devicev1.ReportJobRequest
	news     chan struct{} // holds one
}

// The kinds of report, which are the endings of the files.
const (
	jobReport      = ".job"
	manifestReport = ".manifest"
	changesReport  = ".changes"
)

func openOutbox(stateDir string) (*outbox, error) {
	o := &outbox{dir: filepath.Join(stateDir, "outbox"), news: make(chan struct{}, 1)}
	if err := state.PrivateDir(o.dir); err != nil {
		return nil, err
	}
	names, err := o.list()
	if err != nil {
		return nil, err
	}
	if len(names) > 0 {
		o.next = number(names[len(names)-1]) + 1
		o.news <- struct{}{}
	}
	return o, nil
}

// list returns the files, oldest first.
func (o *outbox) list() ([]string, error) {
	entries, err := os.ReadDir(o.dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read the outbox: %w", err)
	}
	var names []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext == jobReport || ext == manifestReport || ext == changesReport {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names) // numbers have leading zeros
	return names, nil
}

func number(name string) int64 {
	n, _ := strconv.ParseInt(strings.TrimSuffix(name, filepath.Ext(name)), 10, 64)
	return n
}

// put keeps a report. It is durable on return, unless it is progress.
func (o *outbox) put(m report) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	ext := manifestReport
	switch job := m.(type) {
	case *devicev1.ReportChangesRequest:
		ext = changesReport
	case *devicev1.ReportJobRequest:
		ext = jobReport
		if job.Event == "progress" {
			o.progress = job
			o.wakeLocked()
			return nil
		}
		o.progress = nil // overtaken
	}
	data, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if err := state.WriteFile(filepath.Join(o.dir, fmt.Sprintf("%019d%s", o.next, ext)), data); err != nil {
		return err
	}
	o.next++
	o.wakeLocked()
	return nil
}

func (o *outbox) wakeLocked() {
	select {
	case o.news <- struct{}{}:
	default:
	}
}

// The pauses between tries, doubling.
const (
	pauseMin = 500 * time.Millisecond
	pauseMax = 30 * time.Second
)

// errTooLarge is what deliver returns for a report that no call can carry: it is
// set aside.
var errTooLarge = errors.New("the report is too large")

// run delivers reports in order until ctx ends, each until deliver returns nil or
// errTooLarge.
func (o *outbox) run(ctx context.Context, deliver func(context.Context, report) error) error {
	pause := pauseMin
	for {
		err := o.flush(ctx, deliver)
		if err == nil {
			pause = pauseMin
			select {
			case <-ctx.Done():
				return nil
			case <-o.news:
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, pauseMax)
	}
}

// flush delivers everything there is.
func (o *outbox) flush(ctx context.Context, deliver func(context.Context, report) error) error {
	for {
		names, progress, err := o.waiting()
		if err != nil {
			return err
		}
		if progress != nil {
			return deliver(ctx, progress)
		}
		if len(names) == 0 {
			return nil
		}
		for _, name := range names {
			if err := o.deliverFile(ctx, name, deliver); err != nil {
				return err
			}
		}
	}
}

// waiting returns the files that wait, or the progress if there are none: it is
// the newer news.
func (o *outbox) waiting() ([]string, *devicev1.ReportJobRequest, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	names, err := o.list()
	if err != nil || len(names) > 0 {
		return names, nil, err
	}
	progress := o.progress
	o.progress = nil
	return nil, progress, nil
}

func (o *outbox) deliverFile(ctx context.Context, name string, deliver func(context.Context, report) error) error {
	file := filepath.Join(o.dir, name)
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	m := report(&devicev1.ReportManifestRequest{})
	switch filepath.Ext(name) {
	case jobReport:
		m = &devicev1.ReportJobRequest{}
	case changesReport:
		m = &devicev1.ReportChangesRequest{}
	}
	if proto.Unmarshal(data, m) != nil {
		return os.Rename(file, file+".damaged") // kept for people, out of the way of others
	}
	if err := deliver(ctx, m); errors.Is(err, errTooLarge) {
		return os.Rename(file, file+".too-large")
	} else if err != nil {
		return err
	}
	return errors.Join(os.Remove(file), state.SyncDir(o.dir))
}
