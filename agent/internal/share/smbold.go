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

// madeFiles is which files clients have made, the newest of them: what was made
// before so many others smbd refuses by its time ([graceTime]), and if it does not,
// the server ends.
type madeFiles struct{ newest, older map[fileID]struct{} }

func (m *madeFiles) add(id fileID) {
	if m.newest == nil || len(m.newest) >= maxMade {
		m.newest, m.older = make(map[fileID]struct{}), m.newest
	}
	m.newest[id] = struct{}{}
}

func (m *madeFiles) has(id fileID) bool {
	_, newest := m.newest[id]
	_, older := m.older[id]
	return newest || older
}

// fileID is a file, whatever it is called.
type fileID struct{ device, number uint64 }

// maxMade is how many files are remembered at least, and half of how many at most, at
// some 40 bytes a file.
const maxMade = 1 << 19

func idOf(info os.FileInfo) fileID {
	stat := info.Sys().(*syscall.Stat_t)
	return fileID{stat.Dev, stat.Ino}
}

// remember notes that a client has made a file.
func (t *tracker) remember(s *trackedShare, name string) {
	if t.access != approval.ReadWrite {
		return
	}
	if info, err := s.root.Lstat(name); err == nil {
		t.made.add(idOf(info))
	}
}

// mayChange fails if the approval does not allow that a file is changed which no
// client has made, as far as can be told: nor of one that is not under its name any
// more, for clients cannot rename.
func (t *tracker) mayChange(s *trackedShare, name string) error {
	if t.access != approval.ReadWrite {
		return nil
	}
	info, err := s.root.Lstat(name)
	if err != nil {
		return fmt.Errorf("smbd let a client change %q, and nobody can tell whether that was there: %w", name, err)
	}
	if !t.made.has(idOf(info)) {
		return fmt.Errorf("smbd let a client change %q, which was there: the approval allows adding only", name)
	}
	return nil
}
