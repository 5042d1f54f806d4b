package cli

import (
	"errors"
	"io"
	"testing"
)

// TestProgress has bars end: after the last of several stages, whether or not it
// was told of all bytes, after an error, and before any stage.
func TestProgress(t *testing.T) {
	user, tty := terminal(t)
	go io.Copy(io.Discard, user) // until the test's end closes it
	for _, failed := range []error{nil, errors.New("failed")} {
		p := newProgress(t.Context(), tty)
		p.report("first", 0, 10)
		p.report("second", 3, 10)
		p.end(failed)
		newProgress(t.Context(), tty).end(failed)
	}
	newProgress(t.Context(), io.Discard).report("unseen", 1, 2)
}
