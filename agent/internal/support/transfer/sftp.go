// Package transfer serves files over a channel of SSH: as a server of the SSH file
// transfer protocol, version 3, and as the far end of the scp before it.
//
//   - Of SFTP it speaks draft-ietf-secsh-filexfer-02 and these extensions of
//     OpenSSH's (PROTOCOL, section 4): posix-rename, statvfs, fstatvfs, fsync and
//     limits. With limits, clients ask for 255 KiB at a time instead of 32.
//   - Requests are answered one after the other, in order, as sftp-server does.
//     Deciphering what comes next goes on meanwhile, in SSH below.
//   - What a client sends is bounded: packets, open files, names, lines.
//   - A file that was written is durable when its close is answered. One that is new
//     and was not written to its end, because the disk is full or the client is gone,
//     is removed again, unless the client had it synced.
//   - Links are not made. [files.System] keeps paths where they belong.
package transfer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/shell"
	"github.com/databox-lockbox/lockbox/agent/internal/shell/files"
	"github.com/databox-lockbox/lockbox/protocol"
)

// Limits of what a client may ask for; those of OpenSSH's sftp-server.
const (
	maxPacket  = 256 << 10
	maxData    = maxPacket - 1024 // of one read or write
	maxHandles = 256
	maxNames   = 100 // in one answer to a readdir
	maxName    = 4 << 10
)

// ServeSFTP answers one client until it says goodbye or ctx ends, and closes what
// it left open. Whoever ends ctx makes reads of rw return, too. To say it gets why
// something is refused, a line at a time: clients show people the code alone.
func ServeSFTP(ctx context.Context, rw io.ReadWriter, say io.Writer, files *files.System) error {
	s := &server{ctx: ctx, r: bufio.NewReaderSize(rw, 16<<10), w: rw, say: say, files: files, handles: make(map[string]*handle)}
	defer s.closeAll()
	for ctx.Err() == nil {
		err := s.one()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

type server struct {
	ctx     context.Context
	r       *bufio.Reader
	w       io.Writer
	say     io.Writer
	said    []string // to say: what was said once is not said again
	files   *files.System
	in, out []byte // buffers of one request and one answer
	begun   bool
	handles map[string]*handle
	last    uint64 // handle given
}

// handle is an open file or an open folder.
type handle struct {
	file   *files.File
	dir    *folder
	failed error // a change of size or a write that failed: clients do not always look, so the close fails
	broken bool  // a write failed: what is there is not what the client has
}

// closeAll closes what the client left open. What is not whole takes nobody's
// place, and is not left under a new name.
func (s *server) closeAll() {
	for _, h := range s.handles {
		if h.dir != nil {
			h.dir.close()
		} else {
			_ = h.file.Abandon() // nobody is left to be told
		}
	}
}

// one answers one request.
func (s *server) one() error {
	var head [4]byte
	if _, err := io.ReadFull(s.r, head[:]); err != nil {
		return ended(err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 1 || n > maxPacket {
		return fmt.Errorf("sftp: a packet of %d bytes: want 1 to %d", n, maxPacket)
	}
	if cap(s.in) < int(n) {
		s.in = make([]byte, n)
	}
	s.in = s.in[:n]
	if _, err := io.ReadFull(s.r, s.in); err != nil {
		return ended(err)
	}
	p := parser{s.in}
	kind := p.byte()
	if kind == fxpInit {
		if s.begun {
			return errors.New("sftp: a second init")
		}
		s.begun = true
		return s.send(s.version())
	}
	id, ok := p.uint32()
	if !ok || !s.begun {
		return fmt.Errorf("sftp: a packet of type %d that is too short or came before init", kind)
	}
	answer, err := s.answer(kind, &p)
	if errors.Is(err, files.ErrUnrecorded) {
		return err
	}
	if err != nil || answer == nil {
		s.explain(err)
		answer = status(s.begin(fxpStatus), err)
	}
	binary.BigEndian.PutUint32(answer[5:], id)
	return s.send(answer)
}

// maxSaid bounds what is said to one client, which may not listen.
const maxSaid = 20

// explain says what a person should know about a refusal, and do.
func (s *server) explain(err error) {
	refusal, ok := errors.AsType[*protocol.Error](err)
	if !ok || len(s.said) == maxSaid || slices.Contains(s.said, refusal.Message) {
		return
	}
	s.said = append(s.said, refusal.Message)
	fmt.Fprintln(s.say, shell.Visible(refusal.Error())) // who cannot be told has the code
}

// ended makes a connection that ended within a packet look like one that ended.
func ended(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return io.EOF
	}
	return err
}

// begin begins an answer: length and id are put in when it is sent.
func (s *server) begin(kind byte) []byte {
	return append(s.out[:0], 0, 0, 0, 0, kind, 0, 0, 0, 0)
}

func (s *server) send(answer []byte) error {
	s.out = answer[:0] // for the next
	binary.BigEndian.PutUint32(answer, uint32(len(answer)-4))
	_, err := s.w.Write(answer)
	return err
}

// extensions are those of OpenSSH's that are understood, with their versions.
var extensions = [][2]string{
	{"posix-rename@openssh.com", "1"}, {"statvfs@openssh.com", "2"}, {"fstatvfs@openssh.com", "2"},
	{"fsync@openssh.com", "1"}, {"limits@openssh.com", "1"},
}

func (s *server) version() []byte {
	b := append(s.out[:0], 0, 0, 0, 0, fxpVersion)
	b = binary.BigEndian.AppendUint32(b, 3)
	for _, e := range extensions {
		b = appendString(appendString(b, e[0]), e[1])
	}
	return b
}

var (
	errMalformed   = coded{fxBadMessage, errors.New("the request is malformed")}
	errUnsupported = coded{fxUnsupported, errors.New("this is not supported")}
	errNoLinks     = coded{fxUnsupported, errors.New("links are not made here")}
	errHandle      = errors.New("no such handle")
)

// answer does what a request asks for. Without an answer of its own, a request is
// answered with the status of the error, nil for done.
func (s *server) answer(kind byte, p *parser) ([]byte, error) {
	switch kind {
	case fxpRead:
		return s.read(p)
	case fxpWrite:
		return nil, s.write(p)
	case fxpOpen:
		return s.open(p)
	case fxpOpendir:
		return s.opendir(p)
	case fxpReaddir:
		return s.readdir(p)
	case fxpClose:
		return nil, s.close(p)
	case fxpStat, fxpLstat, fxpFstat:
		return s.stat(kind, p)
	case fxpSetstat, fxpFsetstat:
		return nil, s.setstat(kind, p)
	case fxpRemove, fxpRmdir, fxpMkdir:
		return nil, s.change(kind, p)
	case fxpRename:
		return nil, s.rename(p, false)
	case fxpRealpath, fxpReadlink:
		return s.name(kind, p)
	case fxpSymlink:
		return nil, errNoLinks
	case fxpExtended:
		return s.extended(p)
	}
	return nil, errUnsupported
}

func (s *server) read(p *parser) ([]byte, error) {
	h, err := s.file(p)
	offset, ok1 := p.uint64()
	length, ok2 := p.uint32()
	if err != nil || !ok1 || !ok2 || int64(offset) < 0 {
		return nil, firstOf(err, errMalformed)
	}
	length = min(length, maxData)
	const head = 13 // length, type, id, length of the data
	if cap(s.out) < head+int(length) {
		s.out = make([]byte, head+maxData)
	}
	b := append(s.begin(fxpData), 0, 0, 0, 0)[:head+length]
	n, err := h.file.ReadAt(b[head:], int64(offset))
	if n == 0 && err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint32(b[9:], uint32(n))
	return b[:head+n], nil
}

func (s *server) write(p *parser) error {
	h, err := s.file(p)
	offset, ok1 := p.uint64()
	data, ok2 := p.bytes(maxPacket)
	if err != nil || !ok1 || !ok2 || int64(offset) < 0 {
		return firstOf(err, errMalformed)
	}
	if _, err = h.file.WriteAt(data, int64(offset)); err != nil {
		h.failed, h.broken = err, true
	}
	return err
}

func (s *server) open(p *parser) ([]byte, error) {
	folder := p.slash()
	name, ok1 := p.path()
	pflags, ok2 := p.uint32()
	switch {
	case !ok1 || !ok2: // the attributes that follow have nothing that could be kept
		return nil, errMalformed
	case folder:
		return nil, fmt.Errorf("%s/ can only be a folder", name)
	}
	flag := os.O_RDONLY
	switch pflags & (openRead | openWrite) {
	case openRead | openWrite:
		flag = os.O_RDWR
	case openWrite:
		flag = os.O_WRONLY
	case 0:
		return nil, errMalformed
	}
	flag |= when(pflags&openCreate, os.O_CREATE) | when(pflags&openTruncate, os.O_TRUNC) |
		when(pflags&openExclusive, os.O_EXCL) | when(pflags&openAppend, os.O_APPEND)
	if err := s.room(); err != nil {
		return nil, err
	}
	f, err := s.files.OpenFile(name, flag, 0o644)
	if err != nil {
		return nil, err
	}
	return s.give(&handle{file: f}), nil
}

// when returns flag if any of the bits is set.
func when(bits uint32, flag int) int {
	if bits == 0 {
		return 0
	}
	return flag
}

func (s *server) opendir(p *parser) ([]byte, error) {
	name, ok := p.path()
	if !ok {
		return nil, errMalformed
	}
	if err := s.room(); err != nil {
		return nil, err
	}
	d, err := openFolder(s.files, name)
	if err != nil {
		return nil, err
	}
	return s.give(&handle{dir: d}), nil
}

func (s *server) room() error {
	if len(s.handles) >= maxHandles {
		return fmt.Errorf("%d files are open already", maxHandles)
	}
	return nil
}

func (s *server) give(h *handle) []byte {
	s.last++
	name := strconv.FormatUint(s.last, 10)
	s.handles[name] = h
	return appendString(s.begin(fxpHandle), name)
}

func (s *server) handle(p *parser) (string, *handle, error) {
	name, ok := p.bytes(256)
	if !ok {
		return "", nil, errMalformed
	}
	h := s.handles[string(name)]
	if h == nil {
		return "", nil, errHandle
	}
	return string(name), h, nil
}

// file returns the handle of an open file.
func (s *server) file(p *parser) (*handle, error) {
	_, h, err := s.handle(p)
	if err == nil && h.file == nil {
		err = errHandle
	}
	return h, err
}

func (s *server) close(p *parser) error {
	name, h, err := s.handle(p)
	if err != nil {
		return err
	}
	delete(s.handles, name)
	if h.dir != nil {
		h.dir.close()
		return nil
	}
	if h.broken {
		return firstOf(h.failed, h.file.Abandon())
	}
	return firstOf(h.failed, h.file.Close())
}

func (s *server) readdir(p *parser) ([]byte, error) {
	_, h, err := s.handle(p)
	if err != nil || h.dir == nil {
		return nil, firstOf(err, errHandle)
	}
	list, err := h.dir.next(maxNames)
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint32(s.begin(fxpName), uint32(len(list)))
	for _, info := range list {
		b = appendAttributes(appendString(appendString(b, info.Name()), longName(info)), info)
	}
	return b, nil
}

func (s *server) stat(kind byte, p *parser) ([]byte, error) {
	var info fs.FileInfo
	var err error
	if kind == fxpFstat {
		var h *handle
		if h, err = s.file(p); err == nil {
			info, err = h.file.Stat()
		}
	} else {
		name, ok := p.path()
		switch {
		case !ok:
			err = errMalformed
		case kind == fxpStat:
			info, err = s.files.Stat(name)
		default:
			info, err = s.files.Lstat(name)
		}
	}
	if err != nil {
		return nil, err
	}
	return appendAttributes(s.begin(fxpAttrs), info), nil
}

// setstat changes size and times. Files of shares have no owner and permissions
// of their own: who sets permissions is told that it is done, as on other file
// systems without them; who sets an owner, that it cannot be.
func (s *server) setstat(kind byte, p *parser) error {
	name, truncate := "", s.files.Truncate
	if kind == fxpFsetstat {
		h, err := s.file(p)
		if err != nil {
			return err
		}
		name, truncate = h.file.Name(), func(_ string, size int64) error {
			err := h.file.Truncate(size)
			if !h.broken {
				h.failed = err
			}
			return err
		}
	} else {
		var ok bool
		if name, ok = p.path(); !ok {
			return errMalformed
		}
	}
	a, ok := p.attributes()
	switch {
	case !ok:
		return errMalformed
	case a.flags&attrOwner != 0:
		return errUnsupported
	}
	if a.flags&attrSize != 0 {
		if err := truncate(name, a.size); err != nil {
			return err
		}
	}
	if a.flags&attrTimes != 0 {
		return s.files.Chtimes(name, time.Unix(int64(a.atime), 0), time.Unix(int64(a.mtime), 0))
	}
	return nil
}

func (s *server) change(kind byte, p *parser) error {
	name, ok := p.path()
	switch {
	case !ok:
		return errMalformed
	case kind == fxpMkdir:
		return s.files.Mkdir(name)
	}
	info, err := s.files.Lstat(name)
	switch {
	case err != nil:
		return err
	case info.IsDir() && kind == fxpRemove:
		return errors.New("this is a folder")
	case !info.IsDir() && kind == fxpRmdir:
		return errors.New("this is no folder")
	}
	return s.files.Remove(name)
}

func (s *server) rename(p *parser, replace bool) error {
	from, ok1 := p.path()
	to, ok2 := p.path()
	if !ok1 || !ok2 {
		return errMalformed
	}
	return s.files.Rename(from, to, replace)
}

// name answers with one name.
func (s *server) name(kind byte, p *parser) ([]byte, error) {
	name, ok := p.path()
	if !ok {
		return nil, errMalformed
	}
	if kind == fxpReadlink {
		var err error
		if name, err = s.files.Readlink(name); err != nil {
			return nil, err
		}
	}
	b := binary.BigEndian.AppendUint32(s.begin(fxpName), 1)
	return binary.BigEndian.AppendUint32(appendString(appendString(b, name), name), 0), nil // no attributes
}

func (s *server) extended(p *parser) ([]byte, error) {
	request, ok := p.bytes(maxName)
	if !ok {
		return nil, errMalformed
	}
	switch string(request) {
	case "posix-rename@openssh.com":
		return nil, s.rename(p, true)
	case "statvfs@openssh.com":
		name, ok := p.path()
		if !ok {
			return nil, errMalformed
		}
		st, err := s.files.StatFS(name)
		return appendStatVFS(s.begin(fxpExtendedReply), st), err
	case "fstatvfs@openssh.com":
		h, err := s.file(p)
		if err != nil {
			return nil, err
		}
		st, err := s.files.StatFS(h.file.Name())
		return appendStatVFS(s.begin(fxpExtendedReply), st), err
	case "fsync@openssh.com":
		h, err := s.file(p)
		if err != nil {
			return nil, err
		}
		return nil, h.file.Sync()
	case "limits@openssh.com":
		b := s.begin(fxpExtendedReply)
		for _, n := range []uint64{maxPacket, maxData, maxData, maxHandles} {
			b = binary.BigEndian.AppendUint64(b, n)
		}
		return b, nil
	case "hardlink@openssh.com":
		return nil, errNoLinks
	}
	return nil, errUnsupported
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// clean makes a path absolute; relative ones begin at the root.
func clean(name string) string { return path.Clean("/" + name) }
