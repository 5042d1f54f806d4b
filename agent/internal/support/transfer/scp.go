package transfer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/shell"
	"github.com/databox-lockbox/lockbox/agent/internal/shell/files"
)

// Limits of the old protocol of scp.
const (
	maxLine    = 4 << 10
	maxDepth   = 64 // folders within folders
	maxMatches = 10_000
	scpBuffer  = 256 << 10
)

// SCP is a command line of scp's far end.
type SCP struct {
	to        bool // files come to us
	recursive bool
	times     bool
	folder    bool // the target must be a folder
	paths     []string
}

// ParseSCP reads the arguments that clients give to the scp on the other side.
func ParseSCP(args []string) (SCP, error) {
	var c SCP
	from := false
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && args[0] != "--" {
		for _, letter := range args[0][1:] {
			switch letter {
			case 't':
				c.to = true
			case 'f':
				from = true
			case 'r':
				c.recursive = true
			case 'p':
				c.times = true
			case 'd':
				c.folder = true
			case 'v', 'q':
			default:
				return SCP{}, fmt.Errorf("scp: unknown option -%c", letter)
			}
		}
		args = args[1:]
	}
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	c.paths = args
	if c.to == from || len(args) == 0 || c.to && len(args) != 1 {
		return SCP{}, errors.New("scp: this is the far end of scp only: copy with the scp of your own machine")
	}
	return c, nil
}

// ServeSCP copies what c says, to or from the client at rw. The client has been
// told of what was not copied when it returns [ErrIncomplete].
func ServeSCP(ctx context.Context, rw io.ReadWriter, system *files.System, c SCP) error {
	s := &scp{SCP: c, ctx: ctx, r: bufio.NewReaderSize(rw, scpBuffer), w: rw, files: system}
	var err error
	if c.to {
		err = s.receive()
	} else {
		err = s.sendAll()
	}
	if err == nil && s.failed {
		err = ErrIncomplete
	}
	return err
}

// ErrIncomplete says that not everything was copied.
var ErrIncomplete = errors.New("not everything was copied")

// scp is one run of it. Errors that its methods return end it; what concerns one
// file only is told to the client and noted in failed.
type scp struct {
	SCP
	ctx    context.Context
	r      *bufio.Reader
	w      io.Writer
	files  *files.System
	failed bool
}

// tell tells the client what went wrong, which goes on.
func (s *scp) tell(err error) error {
	if errors.Is(err, files.ErrUnrecorded) {
		return err
	}
	s.failed = true
	text := err.Error()
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		text = p.Path + ": " + shell.Because(err)
	}
	_, werr := fmt.Fprintf(s.w, "\x01scp: %s\n", shell.Visible(text))
	return werr
}

func (s *scp) ok() error {
	_, err := s.w.Write([]byte{0})
	return err
}

// answered waits for what the client says to the last message.
func (s *scp) answered() error {
	b, err := s.r.ReadByte()
	if err != nil || b == 0 {
		return err
	}
	text, err := s.line()
	if err != nil {
		return err
	}
	s.failed = true
	if b != 1 {
		return fmt.Errorf("the client gave up: %s", text)
	}
	return errSkipped
}

var errSkipped = errors.New("the client does not want this file")

// line reads the rest of a line.
func (s *scp) line() (string, error) {
	text, err := s.r.ReadSlice('\n')
	if err != nil || len(text) > maxLine {
		return "", firstOf(err, errors.New("the line is too long"))
	}
	return string(bytes.TrimSuffix(text, []byte("\n"))), nil
}

// ------------------------------------------------------------------ sending

func (s *scp) sendAll() error {
	if err := s.answered(); err != nil {
		return err
	}
	for _, name := range s.expand() {
		info, err := s.files.Stat(name)
		if err != nil {
			err = s.tell(err)
		} else {
			err = s.send(name, info, 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// expand returns the paths that are to be sent, patterns replaced by what they
// match. A file that is called like a pattern is that file.
func (s *scp) expand() (list []string) {
	for _, name := range s.paths {
		name = clean(name)
		found := []string{name}
		if _, err := s.files.Lstat(name); err != nil && strings.ContainsAny(name, `*?[`) {
			found = s.glob(name)
		}
		if len(found) == 0 {
			found = []string{name} // which is not there
		}
		list = append(list, found...)
	}
	return list
}

// glob returns the paths that match an absolute pattern, at most maxMatches.
func (s *scp) glob(pattern string) []string {
	found := []string{"/"}
	for segment := range strings.SplitSeq(strings.TrimPrefix(pattern, "/"), "/") {
		var next []string
		for _, dir := range found {
			if !strings.ContainsAny(segment, `*?[`) {
				next = append(next, path.Join(dir, segment))
				continue
			}
			_ = s.files.Each(dir, func(info fs.FileInfo) error { // what cannot be listed has no match
				if ok, _ := path.Match(segment, info.Name()); ok && len(next) < maxMatches {
					next = append(next, path.Join(dir, info.Name()))
				}
				return s.ctx.Err()
			})
		}
		found = next
	}
	slices.Sort(found)
	return found
}

func (s *scp) send(name string, info fs.FileInfo, depth int) error {
	var err error
	switch {
	case info.IsDir() && !s.recursive:
		return s.tell(fmt.Errorf("%s is a folder: use -r", name))
	case info.IsDir() && depth >= maxDepth:
		return s.tell(fmt.Errorf("%s lies too deep", name))
	case info.IsDir():
		err = s.sendFolder(name, info, depth)
	case info.Mode().IsRegular():
		err = s.sendFile(name)
	case depth > 0:
		return nil // links, pipes, devices within a folder
	default:
		return s.tell(fmt.Errorf("%s is not a file", name))
	}
	if err == errSkipped {
		return nil
	}
	return err
}

// header announces something and waits for the client to be ready.
func (s *scp) header(info fs.FileInfo, kind byte, permissions uint32, size int64, name string) error {
	if strings.ContainsAny(name, "\n\r") {
		return fmt.Errorf("%q cannot be named in the protocol of scp -O: leave -O out", name)
	}
	if s.times {
		seconds := max(info.ModTime().Unix(), 0)
		if _, err := fmt.Fprintf(s.w, "T%d 0 %d 0\n", seconds, seconds); err != nil {
			return err
		}
		if err := s.answered(); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(s.w, "%c%04o %d %s\n", kind, permissions, size, name); err != nil {
		return err
	}
	return s.answered()
}

func (s *scp) sendFolder(name string, info fs.FileInfo, depth int) error {
	d, err := openFolder(s.files, name)
	if err != nil {
		return s.tell(err)
	}
	defer d.close()
	if err := s.header(info, 'D', 0o755, 0, path.Base(name)); err != nil {
		return err
	}
	for {
		list, err := d.next(maxNames)
		if err == io.EOF {
			break
		}
		if err != nil {
			if err := s.tell(err); err != nil {
				return err
			}
			break
		}
		for _, one := range list {
			if err := s.send(path.Join(name, one.Name()), one, depth+1); err != nil {
				return err
			}
		}
	}
	if _, err := io.WriteString(s.w, "E\n"); err != nil {
		return err
	}
	return s.answered()
}

// sendFile sends one file. One that becomes shorter meanwhile is filled up with
// zeros, for its size has been announced, and told as an error after.
func (s *scp) sendFile(name string) (err error) {
	f, err := s.files.Open(name)
	if err != nil {
		return s.tell(err)
	}
	defer func() { err = firstOf(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return s.tell(err)
	}
	if err := s.header(info, 'C', 0o644, info.Size(), path.Base(name)); err != nil {
		return err
	}
	var failure error
	buf := make([]byte, scpBuffer)
	for at := int64(0); at < info.Size(); {
		part := buf[:min(int64(len(buf)), info.Size()-at)]
		if failure == nil {
			n, err := f.ReadAt(part, at)
			if n < len(part) {
				failure = fmt.Errorf("%s: %w", name, firstOf(err, io.ErrUnexpectedEOF))
				clear(part[n:])
			}
		} else {
			clear(part)
		}
		if _, err := s.w.Write(part); err != nil {
			return err
		}
		at += int64(len(part))
	}
	if failure != nil {
		err = s.tell(failure)
	} else {
		err = s.ok()
	}
	return firstOf(err, s.answered())
}

// ---------------------------------------------------------------- receiving

// stamp is the time that the next file is to have.
type stamp struct{ access, modified time.Time }

func (s *scp) receive() error {
	target := clean(s.paths[0])
	info, err := s.files.Stat(target)
	into := err == nil && info.IsDir()
	if !into && (s.folder || strings.HasSuffix(s.paths[0], "/")) {
		if err := s.tell(fmt.Errorf("%s is not a folder", target)); err != nil {
			return err
		}
		return errors.New("no target")
	}
	if err := s.ok(); err != nil {
		return err
	}
	return s.receiveInto(target, into, 0)
}

// receiveInto takes what comes, into a folder or under a name, until the folder
// or the input ends.
func (s *scp) receiveInto(target string, into bool, depth int) error {
	var times *stamp
	for {
		kind, err := s.r.ReadByte()
		if err == io.EOF && depth == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		line, err := s.line()
		if err != nil {
			return err
		}
		switch kind {
		case 1:
			s.failed = true // the client could not read one of its files, and goes on
			continue
		case 'E':
			if depth == 0 {
				return errors.New("the end of a folder that never began")
			}
			return s.ok()
		case 'T':
			if times, err = parseTimes(line); err == nil {
				err = s.ok()
			}
		case 'C', 'D':
			err = s.take(kind, line, target, into, depth, times)
			times = nil
		default:
			err = fmt.Errorf("the client sends %q", kind)
		}
		if err != nil {
			return err
		}
	}
}

// take takes one file or folder.
func (s *scp) take(kind byte, line, target string, into bool, depth int, times *stamp) error {
	_, rest, _ := strings.Cut(line, " ") // permissions, of which there are none
	number, name, ok := strings.Cut(rest, " ")
	size, err := strconv.ParseInt(number, 10, 64)
	if !ok || err != nil || size < 0 || name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return s.stop(fmt.Errorf("%q is no file to be copied here", line))
	}
	if into {
		target = path.Join(target, name)
	}
	if kind == 'C' {
		return s.takeFile(target, size, times)
	}
	if !s.recursive || depth >= maxDepth {
		return s.stop(fmt.Errorf("%s: a folder that was not announced, or too deep", target))
	}
	if err := s.makeFolder(target); err != nil {
		return s.stop(err)
	}
	if err := s.ok(); err != nil {
		return err
	}
	if err := s.receiveInto(target, true, depth+1); err != nil || times == nil {
		return err
	}
	if err := s.files.Chtimes(target, times.access, times.modified); err != nil {
		return s.tell(err)
	}
	return nil
}

// stop tells the client of something that cannot be got over.
func (s *scp) stop(err error) error { return firstOf(s.tell(err), err) }

func (s *scp) makeFolder(name string) error {
	if info, err := s.files.Stat(name); err == nil && info.IsDir() {
		return nil
	}
	return s.files.Mkdir(name)
}

func (s *scp) takeFile(name string, size int64, times *stamp) error {
	f, err := s.files.Create(name)
	if err != nil {
		return s.tell(err) // the client goes on with its next file
	}
	if err := s.ok(); err != nil {
		return firstOf(err, f.Abandon())
	}
	failure, err := s.contents(f, size)
	if err != nil {
		return firstOf(err, f.Abandon())
	}
	if failure != nil {
		_ = f.Abandon() // the first failure counts
	} else if failure = f.Close(); failure == nil && times != nil {
		failure = s.files.Chtimes(name, times.access, times.modified)
	}
	theirs := s.answered()
	if theirs != nil && theirs != errSkipped {
		return theirs
	}
	if failure != nil {
		return s.tell(failure)
	}
	return s.ok()
}

// contents takes what is in a file. When it cannot be written, the rest is
// thrown away, and failure says why.
func (s *scp) contents(f *files.File, size int64) (failure, err error) {
	buf := make([]byte, scpBuffer)
	for at := int64(0); at < size; {
		part := buf[:min(int64(len(buf)), size-at)]
		if _, err := io.ReadFull(s.r, part); err != nil {
			return nil, err
		}
		if failure == nil {
			_, failure = f.WriteAt(part, at)
		}
		at += int64(len(part))
	}
	return failure, nil
}

// parseTimes reads "modified 0 accessed 0".
func parseTimes(line string) (*stamp, error) {
	var modified, access, m, a int64
	if n, err := fmt.Sscanf(line, "%d %d %d %d", &modified, &m, &access, &a); n != 4 || err != nil {
		return nil, fmt.Errorf("%q is no time", line)
	}
	return &stamp{time.Unix(access, 0), time.Unix(modified, 0)}, nil
}
