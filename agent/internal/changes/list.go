package changes

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// kind is what stands in a list.
type kind byte

const (
	file   kind = 'f'
	other  kind = 'o' // neither file nor folder
	unread kind = 'u' // a folder, or a whole share, that was not read: nothing below it is known
)

// entry is one line of a list: something found in a share.
type entry struct {
	kind  kind
	share int    // index of the share
	path  string // below the share, with slashes; "" for the share itself
	size  int64
	mtime int64 // Unix nanoseconds
	ctime int64 // likewise: no client can set it
	ino   uint64

	crc    uint64
	summed bool // crc was taken, and the file did not change meanwhile
}

// same reports whether nobody has touched the file between two looks at it.
func (e entry) same(o entry) bool {
	return e.kind == o.kind && e.size == o.size && e.mtime == o.mtime && e.ctime == o.ctime
}

// compareKeys is the order of a walk: a folder comes before what lies in it, and
// all that before any other name.
func compareKeys(shareA int, a string, shareB int, b string) int {
	if c := cmp.Compare(shareA, shareB); c != 0 {
		return c
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return cmp.Compare(rank(a[i]), rank(b[i]))
		}
	}
	return cmp.Compare(len(a), len(b))
}

// rank has the slash first of all; no name holds a NUL.
func rank(c byte) byte {
	if c == '/' {
		return 0
	}
	return c
}

// below reports whether path lies in folder, "" being the share.
func below(path, folder string) bool {
	return folder == "" || len(path) > len(folder) && path[len(folder)] == '/' && strings.HasPrefix(path, folder)
}

// errFull says that a list has no room for more.
var errFull = errors.New("there is no room to keep more of the list")

// listWriter writes entries in the order of the walk.
type listWriter struct {
	f       *os.File
	w       *bufio.Writer
	size    int64
	most    int64 // bytes of the list
	minFree int64 // bytes that are left to others on the file system
	checked int64
}

func newListWriter(path string, most, minFree int64) (*listWriter, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return &listWriter{f: f, w: bufio.NewWriter(f), most: most, minFree: minFree, checked: -1}, nil
}

// roomEvery is how many bytes are written between looks at the room left.
const roomEvery = 1 << 20

func (l *listWriter) add(e entry) error {
	if err := l.room(); err != nil {
		return err
	}
	b := []byte{byte(e.kind)}
	b = binary.AppendUvarint(b, uint64(e.share))
	b = binary.AppendUvarint(b, uint64(len(e.path)))
	b = append(b, e.path...)
	for _, n := range []int64{e.size, e.mtime, e.ctime} {
		b = binary.AppendVarint(b, n)
	}
	b = binary.AppendUvarint(b, e.ino)
	l.size += int64(len(b))
	_, err := l.w.Write(b)
	return err
}

// room returns errFull if the list is too long, or leaves too little to others.
func (l *listWriter) room() error {
	if l.size >= l.most {
		return errFull
	}
	if l.checked >= 0 && l.size-l.checked < roomEvery {
		return nil
	}
	l.checked = l.size
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(l.f.Fd()), &fs); err != nil {
		return err
	}
	if int64(fs.Bavail)*int64(fs.Bsize) < l.minFree {
		return errFull
	}
	return nil
}

// close makes the list durable.
func (l *listWriter) close() error { return errors.Join(l.w.Flush(), l.f.Sync(), l.f.Close()) }

// listReader reads entries, and the sums that stand beside them.
type listReader struct {
	f, sums *os.File
	r, s    *bufio.Reader
}

func openList(path string) (*listReader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	l := &listReader{f: f, r: bufio.NewReader(f), s: bufio.NewReader(strings.NewReader(""))}
	if l.sums, err = os.Open(filepath.Join(filepath.Dir(path), sumsFile)); err == nil {
		l.s = bufio.NewReader(l.sums)
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

func (l *listReader) close() {
	l.f.Close()
	if l.sums != nil {
		l.sums.Close()
	}
}

// maxPath bounds what is taken for a path, in bytes.
const maxPath = 32 << 10

// next returns the next entry, or io.EOF. An entry that was cut off ends a list.
func (l *listReader) next() (entry, error) {
	k, err := l.r.ReadByte()
	if err != nil {
		return entry{}, io.EOF
	}
	e := entry{kind: kind(k)}
	share, err1 := binary.ReadUvarint(l.r)
	n, err2 := binary.ReadUvarint(l.r)
	if err1 != nil || err2 != nil {
		return entry{}, io.EOF
	}
	if n > maxPath {
		return entry{}, fmt.Errorf("changes: a list is damaged: a path of %d bytes", n)
	}
	path := make([]byte, n)
	if _, err := io.ReadFull(l.r, path); err != nil {
		return entry{}, io.EOF
	}
	e.share, e.path = int(share), string(path)
	for _, to := range []*int64{&e.size, &e.mtime, &e.ctime} {
		if *to, err = binary.ReadVarint(l.r); err != nil {
			return entry{}, io.EOF
		}
	}
	if e.ino, err = binary.ReadUvarint(l.r); err != nil {
		return entry{}, io.EOF
	}
	var sum [sumSize]byte
	if _, err := io.ReadFull(l.s, sum[:]); err == nil && sum[0] == 1 {
		e.summed, e.crc = true, binary.BigEndian.Uint64(sum[1:])
	}
	return e, nil
}

// sumSize is the size of one sum: whether it was taken, and the CRC64.
const sumSize = 9

func encodeSum(crc uint64, taken bool) []byte {
	b := make([]byte, sumSize)
	if taken {
		b[0] = 1
		binary.BigEndian.PutUint64(b[1:], crc)
	}
	return b
}
