package files

import (
	"cmp"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// blockSize is that of several disks together, whatever that of each is, in bytes.
const blockSize = 4096

// StatFS says how large the disk of a path is, and how full. Above the shares it
// is all disks with shares together. Blocks are of Frsize bytes.
func (s *System) StatFS(name string) (st unix.Statfs_t, err error) {
	if list, err := s.above(name); err != nil {
		return st, err
	} else if list != nil {
		return s.together()
	}
	p, err := s.find("statfs", name)
	if err != nil {
		return st, err
	}
	defer p.Close()
	st, _, err = statfs(p)
	return st, err
}

// together adds up the disks of all shares, each once.
func (s *System) together() (sum unix.Statfs_t, err error) {
	sum = unix.Statfs_t{Bsize: blockSize, Frsize: blockSize, Namelen: maxName}
	grant, err := s.cfg.Grant()
	if err != nil {
		return sum, err
	}
	seen := map[uint64]bool{}
	for _, share := range grant.Shares {
		p, err := s.find("statfs", Dir+"/"+share.Name)
		if err != nil {
			return sum, err
		}
		st, disk, err := statfs(p)
		p.Close()
		if err != nil {
			return sum, err
		}
		if seen[disk] {
			continue
		}
		seen[disk] = true
		inBlocks := func(n uint64) uint64 { return n * uint64(st.Frsize) / blockSize }
		sum.Blocks, sum.Bfree, sum.Bavail = sum.Blocks+inBlocks(st.Blocks), sum.Bfree+inBlocks(st.Bfree), sum.Bavail+inBlocks(st.Bavail)
		sum.Files, sum.Ffree = sum.Files+st.Files, sum.Ffree+st.Ffree
	}
	return sum, nil
}

// statfs looks at the file system of a place, and says which one it is.
func statfs(p place) (st unix.Statfs_t, disk uint64, err error) {
	dir, err := p.OpenFile(".", os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return st, 0, reason(err)
	}
	defer dir.Close()
	var self unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &self); err != nil {
		return st, 0, reason(err)
	}
	err = again(func() error { return unix.Fstatfs(int(dir.Fd()), &st) })
	st.Frsize = cmp.Or(st.Frsize, st.Bsize) // 0: as blocks, says statvfs(3)
	return st, self.Dev, reason(err)
}
