package configs

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Problems collects what is wrong with a configuration, so that all of it is
// reported at once. Each check names the key and what to write instead.
type Problems []string

// Check adds a problem with key unless ok.
func (p *Problems) Check(ok bool, key, format string, args ...any) {
	if !ok {
		*p = append(*p, key+": "+fmt.Sprintf(format, args...))
	}
}

// Path wants a clean absolute path other than "/". example is one.
func (p *Problems) Path(key, path, example string) {
	p.Check(filepath.IsAbs(path) && filepath.Clean(path) == path && path != "/", key, "%q is not a clean absolute path: write one, as in %s", path, example)
}

// OneOf wants one of the known words.
func (p *Problems) OneOf(key, value string, known ...string) {
	p.Check(slices.Contains(known, value), key, "%q is unknown: write one of %s", value, strings.Join(known, ", "))
}

// Between wants a duration from low to high.
func (p *Problems) Between(key string, d, low, high time.Duration) {
	p.Check(d >= low && d <= high, key, "%s is out of range: write %s to %s", d, low, high)
}

// Err returns an [*Error] with all problems, or nil if there are none.
func (p Problems) Err() error {
	if len(p) == 0 {
		return nil
	}
	return &Error{Problems: p}
}
