package recordings

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// FileName returns the name of a recording's file within its folder.
func FileName(id string) string { return id + ".rec" }

// Archive calls add with the file of every recording that a store lists, and how
// many bytes of it belong to it: all of one that has ended; of one that grows the
// whole frames that are there. A service may be running over the same folder: what
// its files get beyond the store is not in the way of a restore, for nodes are asked
// for what follows. What is not there any more is left out.
func Archive(ctx context.Context, s *store.Store, dir string, add func(id string, size int64, r io.Reader) error) error {
	var rows []store.Recording
	err := s.View(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.Recordings(ctx, store.RecordingFilter{})
		return err
	})
	if err != nil {
		return err
	}
	for _, row := range rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		if row.State == store.RecordingDeleted {
			continue
		}
		if err := archive(row, filepath.Join(dir, FileName(row.ID)), add); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot copy recording %s: %w", row.ID, err)
		}
	}
	return nil
}

func archive(row store.Recording, path string, add func(id string, size int64, r io.Reader) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := min(row.Size, info.Size())
	if row.State == store.RecordingGrows {
		size = 0
		if err := wholeFrames(f, func(frames []byte) error { size += int64(len(frames)); return nil }); err != nil {
			return err
		}
	}
	return add(row.ID, size, io.NewSectionReader(f, 0, size))
}

// wholeFrames reads a recording and calls take with the whole frames in it, piece by
// piece. What is left of one that is not whole is not told.
func wholeFrames(r io.Reader, take func(frames []byte) error) error {
	var rest []byte
	for {
		piece := make([]byte, maxPiece)
		n, err := io.ReadFull(r, piece)
		rest = append(rest, piece[:n]...)
		whole := recording.Whole(rest)
		if err := take(rest[:whole]); err != nil {
			return err
		}
		rest = rest[whole:]
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
