package files

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// StatFS says how large the disk of a path is, and how full.
func (s *System) StatFS(name string) (st unix.Statfs_t, err error) {
	if list, err := s.above(name); list != nil || err != nil {
		return unix.Statfs_t{Bsize: 4096, Frsize: 4096, Namelen: maxName}, err
	}
	p, err := s.find("statfs", name)
	if err != nil {
		return st, err
	}
	defer p.Close()
	dir, err := p.OpenFile(".", os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err == nil {
		defer dir.Close()
		err = again(func() error { return unix.Fstatfs(int(dir.Fd()), &st) })
	}
	return st, reason(err)
}
