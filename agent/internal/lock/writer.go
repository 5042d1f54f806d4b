package lock

import (
	"errors"
	"time"
)

// errHangs is what a durable write that takes too long counts as.
var errHangs = errors.New("the file system does not answer in time")

// errStopping is what a durable write meets after the end of Run.
var errStopping = errors.New("the agent is stopping")

// queued is how many durable writes may wait for one that hangs.
const queued = 64

// writer does durable writes one after the other, away from those who wait for
// them: a file system that hangs costs a refusal, not the lock. What was asked
// for is done in order, also when nobody waits for it any more.
type writer struct {
	tasks chan func()
	stop  chan struct{} // closed when it is to end
	ended chan struct{} // closed when nothing is done any more
}

func newWriter() writer {
	return writer{tasks: make(chan func(), queued), stop: make(chan struct{}), ended: make(chan struct{})}
}

// start begins to work, until the returned function is called.
func (w writer) start() (stop func() error) {
	go func() {
		defer close(w.ended)
		for {
			select {
			case f := <-w.tasks:
				f()
			case <-w.stop:
				w.drain()
				return
			}
		}
	}()
	return func() error {
		close(w.stop)
		select {
		case <-w.ended:
			return nil
		case <-time.After(stopWithin):
			return errors.New("lock: a durable write hangs")
		}
	}
}

func (w writer) drain() {
	for {
		select {
		case f := <-w.tasks:
			f()
		default:
			return
		}
	}
}

// do returns the outcome of f, or errHangs when that takes longer than d; f may
// then still happen.
func (w writer) do(d time.Duration, f func() error) error {
	select {
	case <-w.stop:
		return errStopping
	default:
	}
	limit := time.NewTimer(d)
	defer limit.Stop()
	done := make(chan error, 1)
	select {
	case w.tasks <- func() { done <- f() }:
	case <-limit.C:
		return errHangs
	}
	select {
	case err := <-done:
		return err
	case <-limit.C:
		return errHangs
	case <-w.ended:
	}
	select {
	case err := <-done: // among the last
		return err
	default:
		return errStopping
	}
}

// try has f done without waiting for it, unless too much is waiting already.
func (w writer) try(f func() error) {
	select {
	case w.tasks <- func() { _ = f() }: // if it fails, the next one is as good
	default:
	}
}
