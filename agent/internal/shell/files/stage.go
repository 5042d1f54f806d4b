package files

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/databox-lockbox/lockbox/agent/internal/state"
)

// StageDir is the folder at the root of a disk, beside its shares, in which new
// content is made. It holds nothing unless something is being written, or was
// when the agent died: nobody misses that.
const StageDir = ".databox-staging"

// run is what the names of this process in a StageDir begin with.
var run = "part-" + rand.Text() + "-"

// stage is new content on its way into its place.
type stage struct {
	dir  *os.Root
	file *os.File
	name string
}

// newStage makes an empty file on the disk of a place.
func newStage(p place) (*stage, error) {
	disk, err := os.OpenRoot(filepath.Dir(p.share.Dir))
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	if err := disk.Mkdir(StageDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, state.Coded(reason(err))
	}
	info, err := disk.Lstat(StageDir)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, errors.New("something on the disk is where new content is made: move " + StageDir + " away from its root")
	}
	dir, err := disk.OpenRoot(StageDir)
	if err != nil {
		return nil, err
	}
	sweep(dir)
	s := &stage{dir: dir, name: run + rand.Text()}
	if s.file, err = dir.OpenFile(s.name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644); err != nil {
		dir.Close()
		return nil, state.Coded(reason(err))
	}
	return s, nil
}

// sweep removes what agents left that died.
func sweep(dir *os.Root) {
	f, err := dir.OpenFile(".", os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	for _, name := range names {
		if strings.HasPrefix(name, "part-") && !strings.HasPrefix(name, run) {
			dir.Remove(name) // what cannot be removed is in nobody's way
		}
	}
}

// commit puts the content in its place, durably.
func (s *stage) commit(p place) error {
	err := s.rename(p)
	if err != nil {
		s.drop()
		return err
	}
	return s.dir.Close()
}

func (s *stage) rename(p place) error {
	if err := s.file.Sync(); err != nil {
		return err
	}
	from, err := s.dir.OpenFile(".", os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	to, base, err := p.parent()
	if err != nil {
		return err
	}
	defer to.Close()
	if err := renameAt(from, s.name, to, base, p.mayDelete("") == nil); err != nil {
		return err
	}
	return errors.Join(to.Sync(), from.Sync())
}

// drop removes the content.
func (s *stage) drop() {
	s.dir.Remove(s.name)
	s.dir.Close()
}
