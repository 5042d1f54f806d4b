package nfs

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// openKey is whose open file it is.
type openKey struct {
	node   uint64
	write  bool
	client string
}

// openFile is a file that a client reads or writes. NFS does not say when that
// begins and ends; here it begins with the first time and ends when the client
// leaves it alone.
type openFile struct {
	*os.File
	key   openKey
	inode uint64

	users int       // guarded by the mutex of openFiles, as is
	last  time.Time // when it was used

	mu    sync.Mutex // guards what follows
	share string     // where it was last used
	path  string
	moved int64     // bytes since they were last reported
	next  int64     // where a transfer in order goes on; -1: it was not in order
	sum   hash.Hash // of what was transferred in order, from the start
}

// found takes down where the file is now.
func (f *openFile) found(t target) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.share, f.path = t.name, t.path
}

// transferred counts data that was read or written.
func (f *openFile) transferred(offset int64, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.moved += int64(len(data))
	if len(data) == 0 {
		return
	}
	if offset == 0 {
		f.next = 0
		f.sum.Reset()
	}
	if offset != f.next {
		f.next = -1
		return
	}
	f.sum.Write(data)
	f.next += int64(len(data))
}

// readAheadSize is how far a file is read ahead of its client, in bytes.
const readAheadSize = 4 << 20

// readAhead has the system read on after a read from offset to end, once a MiB and
// while the client reads in order: the disk works while the client takes what it has.
func (f *openFile) readAhead(offset, end int64) {
	f.mu.Lock()
	inOrder := f.next == end
	f.mu.Unlock()
	if inOrder && offset/maxData != end/maxData {
		unix.Fadvise(int(f.Fd()), end, readAheadSize, unix.FADV_WILLNEED)
	}
}

// event returns what was not yet reported of the file, with the hash of the whole
// when it is known. Nothing is to be reported if ok is false.
func (f *openFile) event() (e recording.FileEvent, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.moved == 0 {
		return e, false
	}
	e = recording.FileEvent{Time: time.Now(), Op: recording.OpRead, Share: f.share, Path: f.path, Size: f.moved, Client: f.key.client}
	if f.key.write {
		e.Op = recording.OpWrite
	}
	if i, err := f.Stat(); err == nil && f.next == i.Size() {
		e.SHA256 = hex.EncodeToString(f.sum.Sum(nil))
	}
	f.moved = 0
	return e, true
}

// openFiles are all files open, a bounded number.
type openFiles struct {
	events *events

	mu    sync.Mutex
	files map[openKey]*openFile
}

func newOpenFiles(e *events) *openFiles {
	return &openFiles{events: e, files: make(map[openKey]*openFile)}
}

// get returns the target, open. The caller ends with put.
func (o *openFiles) get(t target, write bool) (*openFile, error) {
	key := openKey{t.node.id, write, t.conn.client}
	o.mu.Lock()
	f := o.files[key]
	if f != nil && f.inode != t.info.number() { // the path leads to another file now
		delete(o.files, key)
		if f.users == 0 {
			defer o.close(f)
		}
		f = nil
	}
	if f != nil {
		f.users++
		f.last = time.Now()
	}
	o.mu.Unlock()
	if f != nil {
		f.found(t)
		return f, nil
	}
	return o.add(t, key)
}

func (o *openFiles) add(t target, key openKey) (*openFile, error) {
	flag := os.O_RDONLY
	if key.write {
		flag = os.O_RDWR
	}
	file, err := t.openRegular(t.path, flag)
	e := recording.FileEvent{Op: recording.OpOpen, Share: t.name, Path: t.path, Size: t.info.Size()}
	if key.write { // it begins: how much it was comes later, unless the process is killed
		e.Op, e.Size = recording.OpWrite, -1
	}
	t.conn.report(e, err)
	if err != nil {
		return nil, err
	}
	f := &openFile{
		File: file, key: key, share: t.name, path: t.path, inode: t.info.number(),
		users: 1, last: time.Now(), sum: sha256.New(),
	}
	o.mu.Lock()
	o.files[key] = f // a client's requests come one by one, so there is none yet
	over := o.takeLocked(func(*openFile) bool { return len(o.files) > maxOpen })
	o.mu.Unlock()
	o.close(over...)
	return f, nil
}

// put takes a file back that get gave.
func (o *openFiles) put(f *openFile) {
	o.mu.Lock()
	f.users--
	gone := f.users == 0 && o.files[f.key] != f
	o.mu.Unlock()
	if gone {
		o.close(f)
	}
}

// takeLocked removes files that nobody uses and that are over, the longest unused
// first.
func (o *openFiles) takeLocked(over func(*openFile) bool) []*openFile {
	var idle, taken []*openFile
	for _, f := range o.files {
		if f.users == 0 {
			idle = append(idle, f)
		}
	}
	slices.SortFunc(idle, func(a, b *openFile) int { return a.last.Compare(b.last) })
	for _, f := range idle {
		if over(f) {
			delete(o.files, f.key)
			taken = append(taken, f)
		}
	}
	return taken
}

func (o *openFiles) close(files ...*openFile) {
	for _, f := range files {
		o.report(f)
		f.Close()
	}
}

func (o *openFiles) report(f *openFile) {
	if e, ok := f.event(); ok {
		o.events.File(e)
	}
}

// drop closes the file of a node that is to be removed: the file system keeps, under
// another name, what is removed while it is open.
func (o *openFiles) drop(node uint64) {
	o.mu.Lock()
	taken := o.takeLocked(func(f *openFile) bool { return f.key.node == node })
	o.mu.Unlock()
	o.close(taken...)
}

// closeAll closes all files, when nobody uses any.
func (o *openFiles) closeAll() {
	o.mu.Lock()
	taken := o.takeLocked(func(*openFile) bool { return true })
	o.mu.Unlock()
	o.close(taken...)
}

// tend reports what is read and written, and closes what nobody uses. It does not
// return.
func (o *openFiles) tend() {
	for {
		time.Sleep(sayEvery)
		o.mu.Lock()
		taken := o.takeLocked(func(f *openFile) bool { return time.Since(f.last) > keepOpen })
		var active []*openFile
		for _, f := range o.files {
			active = append(active, f)
		}
		o.mu.Unlock()
		o.close(taken...)
		for _, f := range active {
			o.report(f)
		}
	}
}
