package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/simulator/diskbench"
	"github.com/databox-lockbox/lockbox/simulator/image"
)

// unlockPart is the command as which bench-disk starts this program again.
const unlockPart = "bench-unlock"

// benchDisk are the flags of the command.
type benchDisk struct {
	runs      int
	volumeMiB int64
	only, dir string
}

func benchDiskCommand() *cobra.Command {
	var b benchDisk
	c := &cobra.Command{
		Use:   "bench-disk",
		Short: "Measure the disk engine beside its peers, and print a table of targets",
		Long: `Measure the disk engine beside openssl, cryptsetup, dislocker and libbde.

  xts128_512, xts128_4096, xts256_512   encryption in memory on one core, in sectors of so many bytes
  xts128_512_aesni, xts128_512_generic  the same without AVX-512, and in plain Go
  mount_read                            a volume in the page cache, read through a mount
  ntfs_read                             a file in its file system, through ntfs-3g
  unlock_recovery_cpu                   CPU time of a process that unlocks one volume with its recovery password
  unlock_70_recovery                    70 volumes unlocked together; the peer is one after the other on one core
  unlock_70_external                    70 volumes opened and unlocked together with their external keys

Each is the median of some runs, taken in turns with the peers'. One line each on standard output, then the table;
progress on standard error. A target that is missed is no error. It needs root, and up to twice the volume's size
of disk space.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return b.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.IntVar(&b.runs, "runs", 5, "of which a figure is the median")
	f.Int64Var(&b.volumeMiB, "volume-size", 1024, "size of the volume that is read, in MiB, at most 16384")
	f.StringVar(&b.only, "only", "", "only the figure with this name")
	f.StringVar(&b.dir, "dir", "", "folder to make the images in; the system's for temporary files if not given")
	return c
}

func unlockPartCommand() *cobra.Command {
	return &cobra.Command{
		Use:    unlockPart + " IMAGE",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(c *cobra.Command, args []string) error { return diskbench.UnlockPart(args[0], c.InOrStdin()) },
	}
}

func (b benchDisk) run(ctx context.Context, out, note io.Writer) error {
	switch {
	case b.only != "" && !slices.Contains(diskbench.Names(), b.only):
		return usageError{fmt.Errorf("there is no figure %q: want one of %s", b.only, strings.Join(diskbench.Names(), ", "))}
	case b.runs < 1:
		return usageError{fmt.Errorf("--runs %d: want at least 1", b.runs)}
	case b.volumeMiB < image.MinSize>>20 || b.volumeMiB > 16<<10:
		return usageError{fmt.Errorf("--volume-size %d: want %d to %d", b.volumeMiB, image.MinSize>>20, 16<<10)}
	case os.Geteuid() != 0:
		return errors.New("disks are mounted for real, which takes root: run it with sudo")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(b.dir, "databox-bench-disk-")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, machine(), diskbench.Versions(ctx))
	err = diskbench.Run(ctx, diskbench.Config{
		Dir: filepath.Join(dir, "disks"), Runs: b.runs, Only: b.only, Volume: b.volumeMiB << 20,
		Self: []string{self, unlockPart}, Out: out, Note: note,
	})
	return errors.Join(err, os.RemoveAll(dir))
}
