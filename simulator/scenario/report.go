package scenario

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// report prints the story: each step, what was tried and what came back.
type report struct {
	w     io.Writer
	began time.Time
}

func newReport(w io.Writer) *report { return &report{w: w, began: time.Now()} }

func (r *report) step(number, title string) {
	fmt.Fprintf(r.w, "\n── step %s: %s  [%s]\n", number, title, time.Since(r.began).Round(100*time.Millisecond))
}

// tried says what was done, in words that a person could type or do.
func (r *report) tried(format string, args ...any) {
	fmt.Fprintf(r.w, "   tried  %s\n", fmt.Sprintf(format, args...))
}

// back says what came of it: all of it, short of a flood.
func (r *report) back(text string) {
	const most = 60
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i, line := range lines {
		if i == most {
			fmt.Fprintf(r.w, "          … %d more lines\n", len(lines)-most)
			return
		}
		prefix := "          "
		if i == 0 {
			prefix = "   back   "
		}
		fmt.Fprintln(r.w, prefix+line)
	}
}

// held says what was found, beyond what a command printed.
func (r *report) held(format string, args ...any) {
	fmt.Fprintf(r.w, "   held   %s\n", fmt.Sprintf(format, args...))
}

// more adds lines to what was said last.
func (r *report) more(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintln(r.w, "          "+strings.TrimRight(line, "\n"))
	}
}

func (r *report) failed(err error, tails map[string]string) {
	fmt.Fprintf(r.w, "   FAILED %v\n", err)
	for name, tail := range tails {
		fmt.Fprintf(r.w, "\n   the end of %s's log:\n%s\n", name, tail)
	}
}
