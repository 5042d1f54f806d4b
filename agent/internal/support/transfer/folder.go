package transfer

import (
	"io"
	"io/fs"
	"iter"

	"github.com/databox-lockbox/lockbox/agent/internal/shell/files"
)

// folder is an open folder, read piece by piece: it may have more entries than
// fit in memory.
type folder struct {
	first fs.FileInfo // read when it was opened; nil once given
	pull  func() (fs.FileInfo, bool)
	stop  func()
	err   error // how reading ended
}

func openFolder(system *files.System, name string) (*folder, error) {
	f := &folder{err: io.EOF}
	f.pull, f.stop = iter.Pull(func(yield func(fs.FileInfo) bool) {
		err := system.Each(name, func(info fs.FileInfo) error {
			if !yield(info) {
				return io.EOF
			}
			return nil
		})
		if err != nil {
			f.err = err
		}
	})
	var ok bool
	if f.first, ok = f.pull(); !ok && f.err != io.EOF {
		f.stop()
		return nil, f.err
	}
	return f, nil
}

// next returns the next entries, at most n, or io.EOF.
func (f *folder) next(n int) (list []fs.FileInfo, err error) {
	if f.first != nil {
		list, f.first = append(list, f.first), nil
	}
	for len(list) < n {
		info, ok := f.pull()
		if !ok {
			break
		}
		list = append(list, info)
	}
	if len(list) == 0 {
		return nil, f.err
	}
	return list, nil
}

func (f *folder) close() { f.stop() }
