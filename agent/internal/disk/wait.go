package disk

import (
	"errors"
	"time"
)

// pollTime is how often we look for what the kernel does not tell.
const pollTime = 5 * time.Millisecond

// within runs f and returns its error, or, at end, that it could not do what it
// should. Then f goes on, with nobody waiting.
func within(end time.Time, what string, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Until(end)):
		return errors.New("could not " + what)
	}
}

// waitFor waits until done is closed. After limit, text is the error.
func waitFor(done <-chan struct{}, limit time.Duration, text string) error {
	select {
	case <-done:
		return nil
	case <-time.After(limit):
		return errors.New(text)
	}
}
