package sessionbench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent"
)

// readNFS measures nfs-cat reading a file of the unlocked disk, beside the same
// server over a plain folder. Neither file is in the page cache of its file system.
func (s *session) readNFS(ctx context.Context, cfg Config) (err error) {
	folders := [2]string{s.folder, filepath.Join(s.dir, "plain")}
	if err := os.MkdirAll(folders[1], 0o700); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(s.dir, "up"))
	if err != nil {
		return err
	}
	var took [2][]float64
	for run := range cfg.Runs {
		for i, folder := range folders {
			fmt.Fprintf(cfg.Note, "run %d, nfs, %s\n", run+1, []string{"disk", "plain folder"}[i])
			d, err := readOverNFS(ctx, cfg.Agent, folder, data)
			if err != nil {
				return err
			}
			took[i] = append(took[i], d.Seconds())
		}
	}
	return cfg.printReads("nfs_read", took)
}

// readOverNFS puts a file into a folder and returns how long it takes to read it
// over NFS.
func readOverNFS(ctx context.Context, program, folder string, data []byte) (took time.Duration, err error) {
	path := filepath.Join(folder, "nfs")
	defer os.Remove(path)
	if err := writeUncached(path, data); err != nil {
		return 0, err
	}
	server, err := agent.ServeFolder(ctx, program, share, folder)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, server.Close(context.WithoutCancel(ctx))) }()
	host, port, err := net.SplitHostPort(server.Address())
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, "nfs-cat", fmt.Sprintf("nfs://%s/%s/nfs?nfsport=%s&mountport=%s&version=3", host, share, port, port))
	read, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("%w: install the package libnfs-utils", err)
	}
	n, copyErr := io.Copy(io.Discard, read)
	if err := errors.Join(copyErr, cmd.Wait()); err != nil {
		return 0, fmt.Errorf("nfs-cat: %w", err)
	}
	took = time.Since(began)
	if n != int64(len(data)) {
		return 0, fmt.Errorf("nfs-cat read %d bytes of %d", n, len(data))
	}
	return took, nil
}

// writeUncached writes a file that is on its disk afterwards and not in the page
// cache.
func writeUncached(path string, data []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync())
	if err == nil {
		err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	return errors.Join(err, f.Close())
}
