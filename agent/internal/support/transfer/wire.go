package transfer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent/internal/shell"
	"github.com/databox-lockbox/lockbox/protocol"
)

// Types of packets, draft-ietf-secsh-filexfer-02 section 3.
const (
	fxpInit          = 1
	fxpVersion       = 2
	fxpOpen          = 3
	fxpClose         = 4
	fxpRead          = 5
	fxpWrite         = 6
	fxpLstat         = 7
	fxpFstat         = 8
	fxpSetstat       = 9
	fxpFsetstat      = 10
	fxpOpendir       = 11
	fxpReaddir       = 12
	fxpRemove        = 13
	fxpMkdir         = 14
	fxpRmdir         = 15
	fxpRealpath      = 16
	fxpStat          = 17
	fxpRename        = 18
	fxpReadlink      = 19
	fxpSymlink       = 20
	fxpStatus        = 101
	fxpHandle        = 102
	fxpData          = 103
	fxpName          = 104
	fxpAttrs         = 105
	fxpExtended      = 200
	fxpExtendedReply = 201
)

// Status codes, section 7.
const (
	fxOK          = 0
	fxEOF         = 1
	fxNoSuchFile  = 2
	fxDenied      = 3
	fxFailure     = 4
	fxBadMessage  = 5
	fxUnsupported = 8
)

// Flags of open, section 6.3.
const (
	openRead      = 1
	openWrite     = 2
	openAppend    = 4
	openCreate    = 8
	openTruncate  = 16
	openExclusive = 32
)

// Flags of attributes, section 5.
const (
	attrSize        = 1
	attrOwner       = 2
	attrPermissions = 4
	attrTimes       = 8
	attrExtended    = 0x80000000
)

// coded is an error with a status code of its own.
type coded struct {
	code uint32
	error
}

func (c coded) Unwrap() error { return c.error }

// status appends to b, an answer begun, the status of an error.
func status(b []byte, err error) []byte {
	code, text := uint32(fxFailure), "done"
	own, isCoded := errors.AsType[coded](err)
	switch {
	case err == nil:
		code = fxOK
	case err == io.EOF:
		code = fxEOF
	case isCoded:
		code = own.code
	case errors.Is(err, fs.ErrNotExist):
		code = fxNoSuchFile
	case errors.Is(err, fs.ErrPermission), protocol.CodeOf(err) == protocol.CodeForbidden:
		code = fxDenied
	}
	if err != nil {
		text = shell.Visible(err.Error())
	}
	b = binary.BigEndian.AppendUint32(b, code)
	return appendString(appendString(b, text), "en")
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// mode returns permissions and type as POSIX has them.
func mode(info fs.FileInfo) uint32 {
	m := uint32(info.Mode().Perm())
	switch {
	case info.Mode().IsRegular():
		return m | syscall.S_IFREG
	case info.IsDir():
		return m | syscall.S_IFDIR
	case info.Mode()&fs.ModeSymlink != 0:
		return m | syscall.S_IFLNK
	case info.Mode()&fs.ModeNamedPipe != 0:
		return m | syscall.S_IFIFO
	case info.Mode()&fs.ModeSocket != 0:
		return m | syscall.S_IFSOCK
	case info.Mode()&fs.ModeCharDevice != 0:
		return m | syscall.S_IFCHR
	}
	return m | syscall.S_IFBLK
}

func appendAttributes(b []byte, info fs.FileInfo) []byte {
	b = binary.BigEndian.AppendUint32(b, attrSize|attrOwner|attrPermissions|attrTimes)
	b = binary.BigEndian.AppendUint64(b, uint64(info.Size()))
	b = binary.BigEndian.AppendUint32(b, 0) // owner
	b = binary.BigEndian.AppendUint32(b, 0) // group
	b = binary.BigEndian.AppendUint32(b, mode(info))
	seconds := uint32(min(max(info.ModTime().Unix(), 0), math.MaxUint32))
	b = binary.BigEndian.AppendUint32(b, seconds)
	return binary.BigEndian.AppendUint32(b, seconds)
}

// longName is the line of an entry in a long listing.
func longName(info fs.FileInfo) string {
	kind := "-"
	switch {
	case info.IsDir():
		kind = "d"
	case info.Mode()&fs.ModeSymlink != 0:
		kind = "l"
	}
	return fmt.Sprintf("%s%s    1 root     root     %12d %s %s", kind, info.Mode().Perm().String()[1:], info.Size(),
		info.ModTime().UTC().Format("Jan _2  2006"), shell.Visible(info.Name()))
}

// appendStatVFS appends what OpenSSH's PROTOCOL, section 4.4, lists. Ids and flags
// are nobody's business.
func appendStatVFS(b []byte, st unix.Statfs_t) []byte {
	for _, n := range []uint64{
		uint64(st.Bsize), uint64(st.Frsize), st.Blocks, st.Bfree, st.Bavail,
		st.Files, st.Ffree, st.Ffree, 0, 0, uint64(st.Namelen),
	} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

// parser takes a packet apart. What is too short is not ok.
type parser struct{ b []byte }

func (p *parser) byte() byte { // of a packet that is not empty
	c := p.b[0]
	p.b = p.b[1:]
	return c
}

func (p *parser) uint32() (uint32, bool) {
	if len(p.b) < 4 {
		return 0, false
	}
	n := binary.BigEndian.Uint32(p.b)
	p.b = p.b[4:]
	return n, true
}

func (p *parser) uint64() (uint64, bool) {
	if len(p.b) < 8 {
		return 0, false
	}
	n := binary.BigEndian.Uint64(p.b)
	p.b = p.b[8:]
	return n, true
}

// bytes returns a string of at most most bytes, as part of the packet.
func (p *parser) bytes(most int) ([]byte, bool) {
	n, ok := p.uint32()
	if !ok || uint64(n) > uint64(len(p.b)) || int64(n) > int64(most) {
		return nil, false
	}
	s := p.b[:n]
	p.b = p.b[n:]
	return s, true
}

// slash reports whether the path that comes next ends with a slash.
func (p parser) slash() bool {
	s, ok := p.bytes(maxName)
	return ok && strings.HasSuffix(string(s), "/")
}

// path returns a path, absolute and clean.
func (p *parser) path() (string, bool) {
	s, ok := p.bytes(maxName)
	name := string(s)
	return clean(name), ok && !strings.ContainsRune(name, 0)
}

// attributes are those that a client can set.
type attributes struct {
	flags        uint32
	size         int64
	atime, mtime uint32
}

func (p *parser) attributes() (a attributes, ok bool) {
	if a.flags, ok = p.uint32(); !ok {
		return a, false
	}
	if a.flags&attrSize != 0 {
		size, ok := p.uint64()
		if !ok || size > math.MaxInt64 {
			return a, false
		}
		a.size = int64(size)
	}
	for range 2 { // user, group
		if a.flags&attrOwner != 0 {
			if _, ok = p.uint32(); !ok {
				return a, false
			}
		}
	}
	if a.flags&attrPermissions != 0 {
		if _, ok = p.uint32(); !ok {
			return a, false
		}
	}
	if a.flags&attrTimes != 0 {
		var ok2 bool
		a.atime, ok = p.uint32()
		a.mtime, ok2 = p.uint32()
		if !ok || !ok2 {
			return a, false
		}
	}
	return a, a.flags&attrExtended == 0
}
