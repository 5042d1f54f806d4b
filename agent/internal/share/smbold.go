package share

import (
	"fmt"
	"os"
	"syscall"

	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// Under an approval to read and write, clients add files and change none that was
// there. smbd's module worm refuses them what was last changed a while ago ([keepOld]),
// but judges by the time alone and by the rights that they ask for: it lets through
// what was changed a moment ago, has a time to come, or is emptied by opening it to
// read. So the tracker knows which files clients have made, and ends the server at
// the first change of another.

// madeFiles is which files clients have made.
type madeFiles map[fileID]struct{}

// fileID is a file, whatever it is called.
type fileID struct{ device, number uint64 }

// maxMade bounds what is remembered, at some 40 bytes a file. From there on only
// smbd judges.
const maxMade = 1 << 20

func idOf(info os.FileInfo) fileID {
	stat := info.Sys().(*syscall.Stat_t)
	return fileID{stat.Dev, stat.Ino}
}

// remember notes that a client has made a file.
func (t *tracker) remember(s *trackedShare, name string) {
	if t.access != approval.ReadWrite || len(t.made) >= maxMade {
		return
	}
	if info, err := s.root.Lstat(name); err == nil {
		t.made[idOf(info)] = struct{}{}
	}
}

// mayChange fails if the approval does not allow that a file is changed which no
// client has made. A file that is not under its name any more is not judged.
func (t *tracker) mayChange(s *trackedShare, name string) error {
	if t.access != approval.ReadWrite || len(t.made) >= maxMade {
		return nil
	}
	info, err := s.root.Lstat(name)
	if err != nil {
		return nil
	}
	if _, ok := t.made[idOf(info)]; !ok {
		return fmt.Errorf("smbd let a client change %q, which was there: the approval allows adding only", name)
	}
	return nil
}
