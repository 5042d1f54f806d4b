package files

import (
	"strings"
	"unicode/utf8"

	"github.com/databox-lockbox/lockbox/protocol"
)

// maxName is the longest name of a file on NTFS, in UTF-16 units.
const maxName = 255

// reserved are the names that Windows gives to devices, with any extension.
var reserved = strings.Fields(`CON PRN AUX NUL COM0 COM1 COM2 COM3 COM4 COM5 COM6 COM7 COM8 COM9
	LPT0 LPT1 LPT2 LPT3 LPT4 LPT5 LPT6 LPT7 LPT8 LPT9`)

// checkNew refuses a new name that the customer could not use: NTFS knows no
// more than Windows does. Names that are there already can be read, moved and
// removed, whatever they are.
func checkNew(name string) error {
	bad := func(why string) error {
		return protocol.Errorf(protocol.CodeInvalid, "%.300q cannot be the name of a file on this disk: %s", name, why)
	}
	stem, _, _ := strings.Cut(name, ".")
	stem = strings.ToUpper(strings.TrimRight(stem, " "))
	switch {
	case !utf8.ValidString(name):
		return bad("it is not UTF-8")
	case units(name) > maxName:
		return bad("it is longer than 255 characters")
	case strings.ContainsFunc(name, func(r rune) bool { return r < 0x20 || strings.ContainsRune(`"*:<>?\|`, r) }):
		return bad(`it has a control character or one of "*:<>?\|`)
	case strings.HasSuffix(name, ".") || strings.HasSuffix(name, " "):
		return bad("it ends with a dot or a space")
	}
	for _, r := range reserved {
		if stem == r {
			return bad(r + " is a device of Windows")
		}
	}
	return nil
}

// units counts UTF-16 units.
func units(s string) (n int) {
	for _, r := range s {
		n++
		if r > 0xFFFF {
			n++
		}
	}
	return n
}
