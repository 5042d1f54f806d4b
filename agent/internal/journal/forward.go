package journal

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/protocol"
)

// Limits of one batch of records, and of the pauses between failed ones.
const (
	batchRecords = 64
	batchBytes   = 128 << 10
	sendTimeout  = 30 * time.Second
	firstPause   = 500 * time.Millisecond
	longestPause = time.Minute
)

// Entry is one record of the chain.
type Entry struct {
	Index  int64  // its number, from zero
	Record []byte // its canonical bytes
}

// Read returns records from number from on: as many as fit in one message, none
// if there are no more.
func (j *Journal) Read(from int64) ([]Entry, error) {
	starts, ends := j.batch(from)
	entries := make([]Entry, len(ends))
	for i, end := range ends {
		record := make([]byte, end-starts[i]-1)
		if _, err := j.records.ReadAt(record, starts[i]); err != nil {
			return nil, fmt.Errorf("journal: cannot read record %d: %w", from+int64(i), err)
		}
		entries[i] = Entry{from + int64(i), record}
	}
	return entries, nil
}

// batch returns where the records of one message start and end, line ends
// included.
func (j *Journal) batch(from int64) (starts, ends []int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	start := int64(0)
	if from > 0 && from <= int64(len(j.ends)) {
		start = j.ends[from-1]
	}
	first := start
	for i := max(from, 0); i < int64(len(j.ends)); i++ {
		if len(ends) == batchRecords || len(ends) > 0 && j.ends[i]-first > batchBytes {
			break
		}
		starts, ends = append(starts, start), append(ends, j.ends[i])
		start = j.ends[i]
	}
	return starts, ends
}

// Acked returns how many records the control plane has acknowledged.
func (j *Journal) Acked() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.acked
}

// Unacked returns the oldest records that the control plane has not
// acknowledged, as many as fit in one message.
func (j *Journal) Unacked() ([]Entry, error) { return j.Read(j.Acked()) }

// Ack remembers that the control plane expects record number next. It may go
// back, when the control plane was restored from a backup: what it lost is sent
// again.
func (j *Journal) Ack(next int64) error {
	j.mu.Lock()
	n, old := int64(len(j.ends)), j.acked
	if next < 0 || next > n {
		j.mu.Unlock()
		return protocol.Errorf(protocol.CodeInvalid, "record %d cannot be expected of a journal of %d", next, n)
	}
	j.acked = next
	j.mu.Unlock()
	if next == old {
		return nil
	}
	return state.WriteFile(filepath.Join(j.dir, ackedFile), strconv.AppendInt(nil, next, 10))
}

// notify wakes the forwarder. It never waits.
func (j *Journal) notify() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Forward brings every record to the control plane, in order, until ctx ends;
// then it returns nil. It returns an error only if the journal itself cannot be
// read, or if another Forward is at work.
//
// send delivers records and returns the number of the record that is expected
// next; what it was not told of counts as not delivered. A failed send, or one
// that brings nothing forward, is repeated after a pause that grows to a minute.
// One send lasts at most 30 s. send reports its own errors.
func (j *Journal) Forward(ctx context.Context, send func(context.Context, []Entry) (acked int64, err error)) error {
	if !j.forwarding.CompareAndSwap(false, true) {
		return protocol.Errorf(protocol.CodeConflict, "the journal is being forwarded already")
	}
	defer j.forwarding.Store(false)
	for failures := 0; ctx.Err() == nil; {
		entries, err := j.Unacked()
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			j.waitForRecords(ctx)
			continue
		}
		if j.deliver(ctx, entries, send) {
			failures = 0
			continue
		}
		pause(ctx, failures)
		failures++
	}
	return nil
}

// deliver sends one batch and reports whether it brought anything forward.
func (j *Journal) deliver(ctx context.Context, entries []Entry, send func(context.Context, []Entry) (int64, error)) bool {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	acked, err := send(ctx, entries)
	if err != nil {
		return false
	}
	return j.Ack(acked) == nil && acked > entries[0].Index
}

func (j *Journal) waitForRecords(ctx context.Context) {
	select {
	case <-j.wake:
	case <-ctx.Done():
	}
}

// pause waits for a random part of a time that doubles with each failure.
func pause(ctx context.Context, failures int) {
	longest := min(longestPause, firstPause<<min(failures, 16))
	timer := time.NewTimer(rand.N(longest))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
