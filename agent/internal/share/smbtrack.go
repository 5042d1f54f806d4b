package share

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// tracker makes file events of what smbd reports. Reads and writes are summed up
// from the first opening of a file by a client until its last handle is closed.
//
// Not recorded are: opening a file for its attributes only, looking for a name that
// is not there, and attributes that smbd sets by itself. How many bytes were read is
// what the client asked for, up to the end of the file as it is when it is closed.
//
// Only the auditor calls it.
type tracker struct {
	shares map[string]*trackedShare
	access approval.Access
	log    FileLog
	hashes *hasher
	files  map[fileKey]*openFile
	made   madeFiles         // by clients, if they may not change others
	absent map[string]string // by pid: the name that a client has last looked for in vain
}

// trackedShare is a share and its folder.
type trackedShare struct {
	name string
	dir  string // without links
	root *os.Root
}

// fileKey is a file, or a folder, that a client has open.
type fileKey struct{ pid, share, path string }

// openFile is what a client did with a file so far.
type openFile struct {
	handles       int  // of smbd
	shown         bool // to the client
	folder        bool
	changed       bool // its content
	emptied       bool // before the client had it
	attributes    bool // set by the client
	read, written spans
	failure       string
	client        string
}

// maxOpenFiles bounds what clients can have open, and so the tracker's memory:
// smbd allows [maxClients] times [maxFiles].
const maxOpenFiles = 2 * maxClients * maxFiles

// newTracker starts hashing; close ends it. broken is called when something that was
// hashed cannot be recorded.
func newTracker(shares []Share, access approval.Access, log FileLog, broken func(error)) (*tracker, error) {
	t := &tracker{shares: make(map[string]*trackedShare), access: access, log: log, files: make(map[fileKey]*openFile), absent: make(map[string]string)}
	for _, s := range shares {
		dir, err := filepath.EvalSymlinks(s.Dir) // as smbd calls it
		if err == nil {
			t.shares[s.Name] = &trackedShare{name: s.Name, dir: dir}
			t.shares[s.Name].root, err = os.OpenRoot(dir)
		}
		if err != nil {
			t.close()
			return nil, fmt.Errorf("cannot share as %q: %w", s.Name, err)
		}
	}
	t.hashes = newHasher(log, broken)
	return t, nil
}

// close gives back what the tracker holds, and ends hashing without waiting for a
// disk that hangs.
func (t *tracker) close() {
	if t.hashes != nil {
		t.hashes.close()
	}
	for _, s := range t.shares {
		if s.root != nil {
			s.root.Close()
		}
	}
}

// inside returns a path below the share.
func (s *trackedShare) inside(full string) (string, error) {
	if full == s.dir {
		return ".", nil
	}
	rel, ok := strings.CutPrefix(full, s.dir+"/")
	if !ok || path.Clean(rel) != rel || rel == ".." || strings.HasPrefix(rel, "../") {
		return "", fmt.Errorf("smbd reports what is not in the share %s: %.200q", s.name, full)
	}
	return rel, nil
}

// take records one report. An error means that the record has a gap.
func (t *tracker) take(line auditLine) error {
	s := t.shares[line.share]
	if s == nil {
		return fmt.Errorf("smbd reports of an unknown share %.80q", line.share)
	}
	switch line.op {
	case "connect":
		return t.tell(s, recording.FileEvent{Op: recording.OpConnect, Path: ".", Size: -1, Client: line.client})
	case "disconnect":
		return t.leave(s, line)
	case "strict_lock_check":
		return t.transfer(s, line)
	case "openat":
		return t.opened(line)
	case "create_file":
		return t.shown(s, line)
	case "close":
		return t.closed(s, line)
	case "pread_recv", "pwrite_recv":
		t.file(line, line.args).failure = line.failure
		return nil
	case "renameat", "linkat":
		return t.moved(s, line)
	}
	return t.changed(s, line)
}

// tell records an event of the share.
func (t *tracker) tell(s *trackedShare, e recording.FileEvent) error {
	e.Via, e.Share = recording.ViaSMB, s.name
	return t.log.File(e)
}

// file returns what is known of a file that a client has open, or could.
func (t *tracker) file(line auditLine, full string) *openFile {
	key := fileKey{line.pid, line.share, full}
	f := t.files[key]
	if f == nil {
		f = &openFile{client: line.client}
		t.files[key] = f
	}
	return f
}

// opened counts a handle of smbd's own, of which it has several to serve one.
func (t *tracker) opened(line auditLine) error {
	mode, full, ok := strings.Cut(line.args, "|")
	if !ok || mode != "r" && mode != "w" {
		return fmt.Errorf("smbd reports an unknown opening: %.200q", line.args)
	}
	if line.failure != "" {
		if line.failure == notThere {
			t.absent[line.pid] = full
		}
		return nil
	}
	t.file(line, full).handles++
	if len(t.files) > maxOpenFiles {
		return errors.New("smbd has more files open than it may")
	}
	return nil
}

const notThere = "No such file or directory" // ENOENT

// noError is the failure that smbd reports of what a module refuses without saying
// why, and refusal is what is recorded of it.
const noError, refusal = "Success", "not allowed"

// Rights that a client asks for when it opens something (MS-SMB2 2.2.13.1).
const (
	readData     = 0x1
	accessData   = 0x27 // read, write, append, execute
	accessDelete = 0x10000
	accessWide   = 0xf2000000 // generic rights, as many as allowed
)

// shown records that a client opened a file or a folder, or could not.
func (t *tracker) shown(s *trackedShare, line auditLine) error {
	args := strings.SplitN(line.args, "|", 4)
	if len(args) != 4 {
		return fmt.Errorf("smbd reports an unknown opening: %.200q", line.args)
	}
	rights, err := strconv.ParseUint(args[0], 0, 32)
	if err != nil {
		return fmt.Errorf("smbd reports an unknown opening: %.200q", line.args)
	}
	name, err := s.inside(args[3])
	if err != nil {
		return err
	}
	e := recording.FileEvent{Path: name, Size: -1, Client: line.client, Error: line.failure}
	folder, disposition := args[1] == "dir", args[2]
	e.Op = openingOp(rights, folder, disposition, t.absent[line.pid] == args[3])
	delete(t.absent, line.pid)
	if line.failure == "" {
		f := t.file(line, args[3])
		f.shown, f.folder = true, folder
		f.changed = f.changed || e.Op == recording.OpCreate || e.Op == recording.OpTruncate
	} else {
		if e.Error == noError {
			e.Error = refusal
		}
		if e.Op == "" {
			e.Op = recording.OpOpen
			if rights&accessDelete != 0 {
				e.Error = "asked to delete or rename: " + e.Error
			}
		}
	}
	if e.Op == "" || line.failure == "" && e.Op == recording.OpMkdir { // mkdirat says so
		return nil
	}
	if line.failure != "" {
		return t.tell(s, e)
	}
	switch e.Op {
	case recording.OpCreate:
		t.remember(s, name)
	case recording.OpTruncate:
		err = t.mayChange(s, name)
	}
	return errors.Join(err, t.allowed(e), t.tell(s, e))
}

// openingOp says what a client did by opening something; "" if it was to look at
// its attributes, to delete or to rename it.
func openingOp(rights uint64, folder bool, disposition string, absent bool) recording.Op {
	switch {
	case folder && (disposition == "create" || absent):
		return recording.OpMkdir
	case folder && rights&(readData|accessWide) != 0:
		return recording.OpList
	case folder:
		return ""
	case absent && disposition != "open" && disposition != "overwrite", disposition == "create":
		return recording.OpCreate
	case disposition == "supersede", strings.HasPrefix(disposition, "overwrite"):
		return recording.OpTruncate
	case rights&(accessData|accessWide) != 0:
		return recording.OpOpen
	}
	return ""
}

// transfer adds what is read or written of a file. The first write to a file that
// was there is recorded at once.
func (t *tracker) transfer(s *trackedShare, line auditLine) error {
	full, span, err := parseRange(line.args)
	if err != nil {
		return err
	}
	f := t.file(line, full)
	if !span.write {
		f.read.add(span.offset, span.length)
		return nil
	}
	begins := !f.changed
	f.changed = true
	f.written.add(span.offset, span.length)
	if !begins {
		return nil
	}
	name, err := s.inside(full)
	if err != nil {
		return err
	}
	e := recording.FileEvent{Op: recording.OpWrite, Path: name, Size: -1, Client: line.client}
	return errors.Join(t.mayChange(s, name), t.allowed(e), t.tell(s, e))
}

// closed counts a handle of smbd's own, and records what was done when it was the
// last.
func (t *tracker) closed(s *trackedShare, line auditLine) error {
	key := fileKey{line.pid, line.share, line.args}
	f := t.files[key]
	if f == nil {
		return nil
	}
	f.handles--
	if f.handles > 0 {
		return nil
	}
	delete(t.files, key)
	return errors.Join(t.unseen(s, key.path, f), t.sumUp(s, key.path, f))
}

// unseen records that a file was emptied by an opening that then was refused.
func (t *tracker) unseen(s *trackedShare, full string, f *openFile) error {
	if !f.emptied || f.shown {
		return nil
	}
	name, err := s.inside(full)
	if err != nil {
		return err
	}
	e := recording.FileEvent{Op: recording.OpTruncate, Path: name, Size: -1, Client: f.client}
	return errors.Join(t.mayChange(s, name), t.allowed(e), t.tell(s, e))
}

// sumUp records what a client did with a file.
func (t *tracker) sumUp(s *trackedShare, full string, f *openFile) error {
	if f.folder || !f.changed && !f.attributes && f.read.sum == 0 {
		return nil
	}
	name, err := s.inside(full)
	if err != nil {
		return err
	}
	e := recording.FileEvent{Via: recording.ViaSMB, Share: s.name, Path: name, Size: -1, Client: f.client, Error: f.failure}
	info, err := s.root.Lstat(name)
	size := int64(-1)
	if err == nil && info.Mode().IsRegular() {
		size = info.Size()
	}
	var events []recording.FileEvent
	add := func(op recording.Op, size int64) {
		e.Op, e.Size = op, size
		events = append(events, e)
	}
	if f.attributes {
		add(recording.OpSetattr, -1)
	}
	if f.read.sum > 0 {
		add(recording.OpRead, f.read.upTo(size))
	}
	if f.written.sum > 0 {
		add(recording.OpWrite, f.written.sum)
	}
	for _, e := range events {
		if err := errors.Join(t.allowed(e), t.log.File(e)); err != nil {
			return err
		}
	}
	if !f.changed && f.read.sum == 0 {
		return nil
	}
	e.Op, e.Size = recording.OpClose, size
	if size >= 0 && (f.changed || f.read.covers(size)) && t.hashes.take(hashJob{s.root, name, info, e}) {
		return nil
	}
	return t.log.File(e)
}

// moved records a rename or a hard link, whose two paths stand side by side.
func (t *tracker) moved(s *trackedShare, line auditLine) error {
	from, to, err := s.split(line.args)
	if err != nil {
		return err
	}
	e := recording.FileEvent{Op: recording.OpLink, Path: from, To: s.name + "/" + to, Size: -1, Client: line.client, Error: line.failure}
	if line.op == "renameat" {
		e.Op = recording.OpRename
		if line.failure == "" {
			t.rename(line.share, path.Join(s.dir, from), path.Join(s.dir, to))
		}
	}
	return errors.Join(t.allowed(e), t.tell(s, e))
}

// split finds the two paths of a rename. Names can hold what stands between them,
// but hardly the folder of the share as well, which nobody is told: where that
// leaves a choice, nothing is guessed.
func (s *trackedShare) split(args string) (from, to string, err error) {
	between := "|" + s.dir + "/"
	if strings.Count(args, between) != 1 {
		return "", "", fmt.Errorf("smbd reports an unclear rename: %.200q", args)
	}
	first, _, _ := strings.Cut(args, between)
	if from, err = s.inside(first); err == nil {
		to, err = s.inside(args[len(first)+1:])
	}
	return from, to, err
}

// rename carries on what clients have open under its new name.
func (t *tracker) rename(share, from, to string) {
	for _, key := range slices.Collect(maps.Keys(t.files)) {
		if key.share == share && key.path == from {
			t.files[fileKey{key.pid, share, to}] = t.files[key]
			delete(t.files, key)
		}
	}
}

// changed records every other change.
func (t *tracker) changed(s *trackedShare, line auditLine) error {
	e := recording.FileEvent{Size: -1, Client: line.client, Error: line.failure}
	full := line.args
	switch line.op {
	case "mkdirat":
		e.Op = recording.OpMkdir
	case "mknodat":
		e.Op = recording.OpCreate
	case "unlinkat":
		e.Op = recording.OpRemove
		if f := t.files[fileKey{line.pid, line.share, full}]; f != nil && f.folder {
			e.Op = recording.OpRmdir
		}
	case "ftruncate", "fallocate":
		f := t.file(line, full)
		f.changed = true
		if !f.shown { // as part of an opening, which says so
			f.emptied = line.failure == ""
			return nil
		}
		e.Op = recording.OpTruncate
	case "symlinkat":
		return errors.New("smbd reports a symbolic link, which it must not make")
	case "fchmod", "fntimes", "fset_dos_attributes", "fset_nt_acl":
		t.attributes(line)
		return nil
	default:
		return fmt.Errorf("smbd reports an unknown operation %.80q", line.op)
	}
	name, err := s.inside(full)
	if err != nil {
		return err
	}
	e.Path = name
	if e.Op == recording.OpTruncate && e.Error == "" {
		err = t.mayChange(s, name)
	}
	return errors.Join(err, t.allowed(e), t.tell(s, e))
}

// attributes notes that the attributes of a file were set. smbd does so by itself
// for a file that is new, before the client has it, and for one that was written.
func (t *tracker) attributes(line auditLine) {
	full := line.args
	switch line.op {
	case "fchmod": // path|mode
		full = cutLast(full, 1)
	case "fntimes": // path|time|time|time|time
		full = cutLast(full, 4)
	}
	f := t.files[fileKey{line.pid, line.share, full}]
	if f != nil && f.shown && f.written.sum == 0 && line.failure == "" {
		f.attributes = true
	}
}

// cutLast cuts off the last n fields, or as many as there are.
func cutLast(text string, n int) string {
	for range n {
		if at := strings.LastIndexByte(text, '|'); at >= 0 {
			text = text[:at]
		}
	}
	return text
}

// allowed fails if something happened that the approval does not allow: smbd is
// told to refuse it.
func (t *tracker) allowed(e recording.FileEvent) error {
	if e.Error != "" {
		return nil
	}
	change := false
	switch e.Op {
	case recording.OpRemove, recording.OpRmdir, recording.OpRename:
		if t.access != approval.Delete {
			return fmt.Errorf("smbd let a client %s %q, which the approval does not allow", e.Op, e.Path)
		}
	case recording.OpWrite, recording.OpCreate, recording.OpMkdir, recording.OpTruncate, recording.OpLink, recording.OpSetattr:
		change = true
	}
	if change && t.access != approval.ReadWrite && t.access != approval.Delete {
		return fmt.Errorf("smbd let a client %s %q, which the approval does not allow", e.Op, e.Path)
	}
	return nil
}

// leave records that a client left a share, and what it had open.
func (t *tracker) leave(s *trackedShare, line auditLine) error {
	delete(t.absent, line.pid)
	err := t.flushIf(func(k fileKey) bool { return k.pid == line.pid && k.share == line.share })
	return errors.Join(err, t.tell(s, recording.FileEvent{Op: recording.OpLeave, Path: ".", Size: -1, Client: line.client}))
}

// flush records what clients have still open, and then hashes nothing any more.
func (t *tracker) flush() error {
	return errors.Join(t.hashes.close(), t.flushIf(func(fileKey) bool { return true }))
}

func (t *tracker) flushIf(which func(fileKey) bool) error {
	for key, f := range t.files {
		if !which(key) {
			continue
		}
		delete(t.files, key)
		if err := t.sumUp(t.shares[key.share], key.path, f); err != nil {
			return err
		}
	}
	return nil
}

// spans is which bytes of a file were transferred.
type spans struct {
	sum    int64
	end    int64   // everything before it
	beyond []piece // what lies apart, in order
	lost   bool    // there were too many pieces
}

type piece struct{ from, to int64 }

// maxPieces bounds what is remembered of a file that is not read in order.
const maxPieces = 64

func (s *spans) add(offset, length int64) {
	if length <= 0 {
		return
	}
	s.sum += length
	i, _ := slices.BinarySearchFunc(s.beyond, offset, func(p piece, at int64) int { return int(min(max(p.from-at, -1), 1)) })
	s.beyond = slices.Insert(s.beyond, i, piece{offset, offset + length})
	for len(s.beyond) > 0 && s.beyond[0].from <= s.end {
		s.end = max(s.end, s.beyond[0].to)
		s.beyond = s.beyond[1:]
	}
	if len(s.beyond) > maxPieces {
		s.lost, s.beyond = true, s.beyond[:0]
	}
}

// covers reports whether all of a file of this size was transferred.
func (s *spans) covers(size int64) bool { return size > 0 && !s.lost && s.end >= size }

// upTo returns how many bytes it were, if what lies beyond the end of the file was
// asked for in vain. size is -1 if nobody knows the end.
func (s *spans) upTo(size int64) int64 {
	if size < 0 {
		return s.sum
	}
	last := s.end
	if n := len(s.beyond); n > 0 {
		last = s.beyond[n-1].to
	}
	return max(0, s.sum-max(0, last-size))
}
