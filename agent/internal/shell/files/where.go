package files

import (
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// Whoever has a file open may rename it meanwhile, or a folder above it, over another
// channel or protocol. What is done with it from then on is recorded under where it
// is, not where it was: the kernel knows, of every open file.

// kernelPath returns the path of an open file; "" if it has none.
func kernelPath(f *os.File) (name string) {
	raw, err := f.SyscallConn()
	if err != nil {
		return ""
	}
	raw.Control(func(fd uintptr) { name, _ = os.Readlink("/proc/self/fd/" + strconv.Itoa(int(fd))) })
	return name
}

// kernelDir returns the path of the share's folder.
func (s *System) kernelDir(p place) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if dir, ok := s.dirs[p.share]; ok {
		return dir
	}
	f, err := p.Open(".")
	if err != nil {
		return ""
	}
	defer f.Close()
	s.dirs[p.share] = kernelPath(f)
	return s.dirs[p.share]
}

// gone is what the kernel appends to the path of a file that was removed.
const gone = " (deleted)"

// where returns the file's place as it is now. What cannot be told, as of a file
// outside the shares, is where it was when it was opened; a file that was removed is
// where it was last.
func (f *File) where() place {
	p := f.place
	now := kernelPath(f.f)
	if f.stage != nil || f.dir == "" || now == path.Join(f.dir, p.name) {
		return p
	}
	for _, sh := range p.shares {
		if filepath.Dir(sh.Dir) != filepath.Dir(p.share.Dir) {
			continue // on another disk
		}
		inside, ok := strings.CutPrefix(now, path.Join(path.Dir(f.dir), filepath.Base(sh.Dir))+"/")
		if !ok {
			continue
		}
		if name, removed := strings.CutSuffix(inside, gone); removed && !f.is(sh, inside) {
			inside = name
		}
		p.share, p.name, p.full = sh, inside, path.Join(Dir, sh.Name, inside)
		break
	}
	return p
}

// is reports whether the file is under a name of a share.
func (f *File) is(sh Share, name string) bool {
	root, err := openShare(sh)
	if err != nil {
		return false
	}
	defer root.Close()
	there, err := root.Lstat(name)
	if err != nil {
		return false
	}
	info, err := f.f.Stat()
	return err == nil && os.SameFile(there, info)
}
