package journal

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// hanging is a file whose writes wait until it is let go.
type hanging struct {
	file
	letGo chan struct{}
}

func (h hanging) WriteAt(p []byte, at int64) (int, error) {
	<-h.letGo
	return h.file.WriteAt(p, at)
}

// TestHungFileSystem: appends are refused within five seconds, one after the
// other and at the same time, and the journal goes on when the disk does.
func TestHungFileSystem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := open(t, newDir(t))
		fill(t, j, 2)
		h := hanging{j.records, make(chan struct{})}
		j.records = h
		start := time.Now()
		refusals := make(chan error, 5)
		for range 5 {
			go func() {
				_, err := j.Append(t.Context(), testRecord(2))
				refusals <- err
			}()
		}
		for range 5 {
			if err := <-refusals; protocol.CodeOf(err) != protocol.CodeNotRecorded {
				t.Errorf("hung: %v", err)
			}
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("refused after %v", took)
		}
		start = time.Now()
		if _, err := j.Append(t.Context(), testRecord(2)); protocol.CodeOf(err) != protocol.CodeNotRecorded || time.Since(start) > 5*time.Second {
			t.Errorf("still hung: %v after %v", err, time.Since(start))
		}
		if err := j.Close(); err == nil {
			t.Error("a journal with a hanging write was closed")
		}
		close(h.letGo)
		synctest.Wait()
		check(t, j, 3) // the first of them landed late
		fill(t, j, 4)
		check(t, j, 4)
		closeJournal(t, j)
	})
}

func TestAppendEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := open(t, newDir(t))
		h := hanging{j.records, make(chan struct{})}
		j.records = h
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := j.Append(ctx, testRecord(0)); protocol.CodeOf(err) != protocol.CodeNotRecorded || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		close(h.letGo)
		synctest.Wait()
		closeJournal(t, j)
	})
}

// controlPlane keeps what it is sent, as long as it is in order.
type controlPlane struct {
	t  *testing.T
	mu sync.Mutex // guards what follows

	records  []Entry
	sends    int
	sentAt   []time.Time
	fail     bool // refuse to answer
	loseAcks bool // take the records, and fail to say so
}

func (c *controlPlane) send(_ context.Context, entries []Entry) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sends++
	c.sentAt = append(c.sentAt, time.Now())
	if c.fail {
		return 0, errors.New("no answer")
	}
	for _, e := range entries {
		switch {
		case e.Index == int64(len(c.records)):
			c.records = append(c.records, e)
		case e.Index > int64(len(c.records)):
			return int64(len(c.records)), nil
		case string(c.records[e.Index].Record) != string(e.Record):
			c.t.Errorf("record %d changed", e.Index)
		}
	}
	if c.loseAcks {
		return 0, errors.New("cut")
	}
	return int64(len(c.records)), nil
}

// become changes how the control plane behaves from now on.
func (c *controlPlane) become(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// forward runs the forwarder within the bubble of a test, and returns a
// function that ends it.
func forward(t *testing.T, j *Journal, c *controlPlane) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- j.Forward(ctx, c.send) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := open(t, newDir(t))
		fill(t, j, batchRecords*2+5)
		c := &controlPlane{t: t}
		stop := forward(t, j, c)
		synctest.Wait()
		if len(c.records) != batchRecords*2+5 || c.sends != 3 || j.Acked() != batchRecords*2+5 {
			t.Errorf("%d records in %d sends, %d acknowledged", len(c.records), c.sends, j.Acked())
		}
		fill(t, j, batchRecords*2+6)
		synctest.Wait()
		if len(c.records) != batchRecords*2+6 {
			t.Errorf("a new record did not wake the forwarder: %d", len(c.records))
		}
		if err := j.Forward(t.Context(), c.send); protocol.CodeOf(err) != protocol.CodeConflict {
			t.Errorf("a second forwarder: %v", err)
		}
		stop()
		closeJournal(t, j)
		if j := open(t, j.dir); j.Acked() != batchRecords*2+6 {
			t.Errorf("after a restart %d are acknowledged", j.Acked())
		}
	})
}

// TestForwardOutlastsAnOutage: nothing is lost in a long outage, the pauses are
// bounded, and records whose acknowledgement was lost are not sent twice over.
func TestForwardOutlastsAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := open(t, newDir(t))
		fill(t, j, 3)
		c := &controlPlane{t: t, fail: true}
		stop := forward(t, j, c)
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		for i := 1; i < len(c.sentAt); i++ {
			if d := c.sentAt[i].Sub(c.sentAt[i-1]); d > longestPause {
				t.Errorf("a pause of %v", d)
			}
		}
		if c.sends < 24*60 || c.sends > 24*60*4 {
			t.Errorf("%d sends in a day", c.sends)
		}
		c.become(func() { c.fail, c.loseAcks = false, true })
		time.Sleep(longestPause)
		synctest.Wait()
		c.become(func() { c.loseAcks = false })
		time.Sleep(longestPause)
		synctest.Wait()
		if len(c.records) != 3 || j.Acked() != 3 {
			t.Errorf("%d records, %d acknowledged", len(c.records), j.Acked())
		}
		stop()
		closeJournal(t, j)
	})
}

// TestForwardAgainAfterARestore: a control plane that lost records gets them
// again.
func TestForwardAgainAfterARestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := open(t, newDir(t))
		fill(t, j, 10)
		c := &controlPlane{t: t}
		stop := forward(t, j, c)
		synctest.Wait()
		c.become(func() { c.records = c.records[:4] })
		fill(t, j, 11)
		time.Sleep(longestPause)
		synctest.Wait()
		if len(c.records) != 11 || j.Acked() != 11 {
			t.Errorf("%d records, %d acknowledged", len(c.records), j.Acked())
		}
		stop()
		closeJournal(t, j)
	})
}

// TestForwardSurvivesNonsense: an answer that no record fits is no progress.
func TestForwardSurvivesNonsense(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := open(t, newDir(t))
		fill(t, j, 2)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var sends atomic.Int64
		err := j.Forward(ctx, func(context.Context, []Entry) (int64, error) {
			return []int64{-1, 99, 0}[sends.Add(1)%3], nil
		})
		if err != nil || j.Acked() != 0 || sends.Load() < 60 || sends.Load() > 240 {
			t.Errorf("%v, %d acknowledged, %d sends", err, j.Acked(), sends.Load())
		}
		closeJournal(t, j)
	})
}

// TestSendHasADeadline: a control plane that never answers does not stop the
// forwarder for good.
func TestSendHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := open(t, newDir(t))
		fill(t, j, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		sends := 0
		_ = j.Forward(ctx, func(ctx context.Context, _ []Entry) (int64, error) {
			sends++
			<-ctx.Done()
			return 0, ctx.Err()
		})
		if sends < 6 {
			t.Errorf("%d sends in ten minutes", sends)
		}
		closeJournal(t, j)
	})
}

func TestBatchesAreSmall(t *testing.T) {
	j := open(t, newDir(t))
	for i := range 20 {
		r := testRecord(i)
		r.Properties["filler"] = string(make([]byte, 2000)) // six bytes each, escaped
		if _, err := j.Append(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for from := int64(0); from < 20; {
		entries, err := j.Read(from)
		if err != nil || len(entries) == 0 {
			t.Fatal(err)
		}
		size := 0
		for _, e := range entries {
			size += len(e.Record)
		}
		if size > batchBytes {
			t.Errorf("a batch of %d bytes", size)
		}
		from += int64(len(entries))
	}
	if entries, err := j.Read(99); err != nil || len(entries) != 0 {
		t.Errorf("beyond the end: %v, %v", entries, err)
	}
}
