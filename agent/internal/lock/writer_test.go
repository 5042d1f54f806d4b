package lock

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestWriterEnds checks that nobody who asks for a write while the writer ends
// waits for one that will not happen.
func TestWriterEnds(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			w := newWriter()
			stop := w.start()
			var askers sync.WaitGroup
			began := time.Now()
			for range 8 {
				askers.Go(func() {
					wrote := false
					err := w.do(time.Hour, func() error { wrote = true; return nil })
					if err != nil && !errors.Is(err, errStopping) || (err == nil) != wrote {
						t.Errorf("written %v: %v", wrote, err)
					}
				})
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
			askers.Wait()
			if took := time.Since(began); took != 0 {
				t.Fatalf("somebody waited %v", took)
			}
		})
	}
}

// TestWriterHasEnded asks between the two moments in which a writer ends.
func TestWriterHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWriter()
		close(w.ended)
		began := time.Now()
		err := w.do(time.Hour, func() error { return nil })
		if !errors.Is(err, errStopping) || time.Since(began) != 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}
