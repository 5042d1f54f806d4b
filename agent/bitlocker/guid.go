package bitlocker

import (
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"
)

// GUID is an identifier in the byte order of the disk: its first three fields
// are little-endian.
type GUID [16]byte

// guidOrder is the order in which a GUID's bytes are printed.
var guidOrder = [16]int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15}

// String returns the 36-character form in upper case, as Windows prints it.
func (g GUID) String() string {
	var b [16]byte
	for i, from := range guidOrder {
		b[i] = g[from]
	}
	s := strings.ToUpper(hex.EncodeToString(b[:]))
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// ParseGUID reads the form of [GUID.String], in either case.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(g) {
		return GUID{}, fmt.Errorf("%q is not a GUID", s)
	}
	for i, to := range guidOrder {
		g[to] = b[i]
	}
	if g.String() != strings.ToUpper(s) {
		return GUID{}, fmt.Errorf("%q is not a GUID", s)
	}
	return g, nil
}

// MustGUID is [ParseGUID] for constants: it panics on a malformed one.
func MustGUID(s string) GUID {
	g, err := ParseGUID(s)
	if err != nil {
		panic("bitlocker: internal error: " + err.Error())
	}
	return g
}

// NewGUID returns a random GUID (version 4) from rand.
func NewGUID(rand io.Reader) (GUID, error) {
	var g GUID
	if _, err := io.ReadFull(rand, g[:]); err != nil {
		return GUID{}, fmt.Errorf("cannot draw a GUID: %w", err)
	}
	g[7] = g[7]&0x0F | 0x40
	g[8] = g[8]&0x3F | 0x80
	return g, nil
}

// filetime is a point in time as Windows counts: 100 ns ticks since 1601 (UTC).
type filetime uint64

const (
	ticksPerSecond = 10_000_000
	unixEpoch      = 11_644_473_600 // seconds from 1601 to 1970
)

func newFiletime(t time.Time) filetime {
	return filetime(t.Unix()+unixEpoch)*ticksPerSecond + filetime(t.Nanosecond()/100)
}

func (f filetime) time() time.Time {
	return time.Unix(int64(f/ticksPerSecond)-unixEpoch, int64(f%ticksPerSecond)*100).UTC()
}
