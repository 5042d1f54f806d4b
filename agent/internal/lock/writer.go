package lock

import (
	"errors"
	"time"
)

// errHangs is what a durable write that takes too long counts as.
var errHangs = errors.New("the file system does not answer in time")

// writer does durable writes one after the other, away from those who wait for
// them: a file system that hangs costs a refusal, not the lock.
type writer struct {
	tasks chan func()
	stop  chan struct{}
}

func newWriter() writer {
	return writer{tasks: make(chan func()), stop: make(chan struct{})}
}

// start begins to work, until the returned function is called.
func (w writer) start() (stop func() error) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case f := <-w.tasks:
				f()
			case <-w.stop:
				return
			}
		}
	}()
	return func() error {
		close(w.stop)
		select {
		case <-ended:
			return nil
		case <-time.After(stopWithin):
			return errors.New("lock: a durable write hangs")
		}
	}
}

// do returns the outcome of f, or errHangs when that takes longer than d; f may
// then still happen.
func (w writer) do(d time.Duration, f func() error) error {
	limit := time.NewTimer(d)
	defer limit.Stop()
	done := make(chan error, 1)
	select {
	case w.tasks <- func() { done <- f() }:
	case <-w.stop:
		return errors.New("the agent is stopping")
	case <-limit.C:
		return errHangs
	}
	select {
	case err := <-done:
		return err
	case <-limit.C:
		return errHangs
	}
}

// try does f if nothing else is being written, without waiting for it.
func (w writer) try(f func() error) {
	select {
	case w.tasks <- func() { _ = f() }: // the next one, a minute later, is as good
	default:
	}
}
