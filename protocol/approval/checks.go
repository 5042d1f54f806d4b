package approval

import (
	"fmt"
	"regexp"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Bounds of fields.
const (
	maxName     = 128             // bytes of a name or id
	maxText     = 1024            // bytes of what a person wrote
	maxTime     = 253_402_300_799 // 9999-12-31T23:59:59Z
	maxDuration = 366 * 24 * 3600 // seconds
	maxDisks    = 256
	maxList     = 64 // groups, keys, destinations, signatures to consider
)

var (
	personForm      = regexp.MustCompile(`^[a-z0-9][a-z0-9._%+@-]{0,127}$`)
	keyIDForm       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:@/+=-]{0,127}$`)
	tokenForm       = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)
	shareForm       = regexp.MustCompile(`^[a-z0-9]{3,24}_(BlockBlob|PageBlob|AzFile)$`)
	fingerprintForm = regexp.MustCompile(`^SHA256:[A-Za-z0-9+/]{43}$`)
)

func checkName(field, s string) error {
	if s == "" || len(s) > maxName {
		return fmt.Errorf("%s must have 1 to %d bytes, has %d", field, maxName, len(s))
	}
	return nil
}

func checkLength(field, s string) error {
	if len(s) > maxText {
		return fmt.Errorf("%s must have at most %d bytes, has %d", field, maxText, len(s))
	}
	return nil
}

func checkForm(field, s string, form *regexp.Regexp) error {
	if !form.MatchString(s) {
		return fmt.Errorf("%s is %q: want the form %s", field, s, form)
	}
	return nil
}

func checkDigest(field string, d Digest) error { return checkForm(field, string(d), digestForm) }

func checkPerson(field string, p protocol.Person) error {
	return checkForm(field, string(p), personForm)
}

func checkTime(field string, unix int64) error {
	if unix < 1 || unix > maxTime {
		return fmt.Errorf("%s is %d: want Unix seconds between 1 and %d", field, unix, maxTime)
	}
	return nil
}

func checkDuration(field string, seconds int64) error {
	if seconds < 1 || seconds > maxDuration {
		return fmt.Errorf("%s is %d: want seconds between 1 and %d", field, seconds, maxDuration)
	}
	return nil
}

func checkPeriod(from string, start int64, to string, end int64) error {
	if end <= start {
		return fmt.Errorf("%s must be later than %s", to, from)
	}
	return nil
}

func checkBytes(field string, b []byte, size int) error {
	if len(b) != size {
		return fmt.Errorf("%s must have %d bytes, has %d", field, size, len(b))
	}
	return nil
}

func checkCount(field string, n, most int) error {
	if n < 1 || n > most {
		return fmt.Errorf("%s must have 1 to %d entries, has %d", field, most, n)
	}
	return nil
}

// checkOneOf refuses a value that is not among those known.
func checkOneOf[T ~string](field string, got T, known ...T) error {
	for _, k := range known {
		if got == k {
			return nil
		}
	}
	return fmt.Errorf("%s is %q: want one of %q", field, got, known)
}

// checkUnique refuses a list in which two entries have the same key.
func checkUnique[T any, K comparable](field string, list []T, key func(T) K) error {
	seen := make(map[K]bool, len(list))
	for _, entry := range list {
		k := key(entry)
		if seen[k] {
			return fmt.Errorf("%s names %v twice", field, k)
		}
		seen[k] = true
	}
	return nil
}
