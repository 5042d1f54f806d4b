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

	"github.com/databox-lockbox/lockbox/simulator/sessionbench"
)

// benchSession are the flags of the command.
type benchSession struct {
	only                         []string
	runs, kills, files, parallel int
	sizeMiB, diskMiB             int64
	fileKiB, largeMiB            int64
	azurite, dir                 string
}

func benchSessionCommand() *cobra.Command {
	var b benchSession
	c := &cobra.Command{
		Use:   "bench-session",
		Short: "Measure support sessions, shares and the upload beside their peers",
		Long: `Measure support sessions, shares and the upload beside their peers.

  sftp_up    a file sent to the device through control plane and tunnel, made durable,
             beside OpenSSH's own sshd and sftp-server on the loopback, over the same
             unlocked disk, with the same stock client; the peer with OpenSSH's own
             defaults, ciphers too, ours with what 'lockbox config ssh' prints
  sftp_down  the same file fetched again
  smb_read   the same file read over SMB, beside the same smbd over a plain folder
  nfs_read   a file of the disk read over NFS, beside one of a plain folder
  kill_to_closed_p99  from an approver's kill until the last client is cut off:
             sftp and smbclient, which are sending, and a shell
  upload_small  small files uploaded by the copy job, a second, beside Azure's SDK alone
  upload_1g  one large file uploaded by the copy job, beside Azure's SDK alone; both
             to Azurite, in blocks of 8 MiB. The SDK sends the checksum of each block,
             as the job does: the service has the same to verify

Each but the kills is the median of some runs, taken in turns with the peer's. One
line each on standard output; progress on standard error. It needs root, the programs
lockbox and databox-agent beside this one, the packages openssh-server, whose service
need not run, samba and libnfs-utils, and Azurite: --azurite names the folder it is
installed in, as .ci/azurite prints it.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return b.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.StringSliceVar(&b.only, "only", nil, "figures that are wanted, with commas between; all if not given")
	f.IntVar(&b.runs, "runs", 5, "of which a figure is the median")
	f.IntVar(&b.kills, "kills", 20, "how often a session is killed")
	f.Int64Var(&b.sizeMiB, "size", 1024, "size of the file that is sent and read, in MiB, at most 1024")
	f.Int64Var(&b.diskMiB, "disk", 5120, "size of the device's disk, in MiB; ntfs-3g writes 4 KiB at a time on one of less than 4096")
	f.IntVar(&b.files, "files", 10_000, "how many small files are uploaded")
	f.Int64Var(&b.fileKiB, "file-size", 4, "size of each, in KiB")
	f.Int64Var(&b.largeMiB, "large", 1024, "size of the large file that is uploaded, in MiB")
	f.IntVar(&b.parallel, "parallel", 4, "files uploaded at once, and blocks of the large one")
	f.StringVar(&b.azurite, "azurite", "", "folder that Azurite is installed in")
	f.StringVar(&b.dir, "dir", "", "folder to make disks and files in; the system's for temporary files if not given")
	return c
}

func (b benchSession) check(cfg sessionbench.Config) error {
	for _, name := range b.only {
		if !slices.Contains(sessionbench.Figures, name) {
			return fmt.Errorf("--only %q: want some of %s", name, strings.Join(sessionbench.Figures, ", "))
		}
	}
	switch {
	case min(b.runs, b.kills, b.files, b.parallel) < 1 || min(b.sizeMiB, b.diskMiB, b.fileKiB, b.largeMiB) < 1:
		return errors.New("runs, numbers and sizes are at least 1")
	case b.sizeMiB > 1024:
		return fmt.Errorf("--size %d: want at most 1024", b.sizeMiB)
	case b.azurite == "" && cfg.Wants("upload_small", "upload_1g"):
		return errors.New("--azurite is missing: run 'make bench-session', or name the folder it is installed in")
	}
	return nil
}

func (b benchSession) run(ctx context.Context, out, note io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cfg := sessionbench.Config{
		Only: b.only, Runs: b.runs, Size: b.sizeMiB << 20, Disk: b.diskMiB << 20, Kills: b.kills, Out: out, Note: note,
		Lockbox: filepath.Join(filepath.Dir(self), "lockbox"), Agent: filepath.Join(filepath.Dir(self), "databox-agent"),
		Uploads: sessionbench.Uploads{
			Azurite: b.azurite, Files: b.files, Size: b.fileKiB << 10, Large: b.largeMiB << 20, Parallel: b.parallel,
		},
	}
	if err := b.check(cfg); err != nil {
		return usageError{err}
	}
	if os.Geteuid() != 0 {
		return errors.New("disks are mounted for real, which takes root: run it with sudo")
	}
	dir, err := os.MkdirTemp(b.dir, "databox-bench-session-")
	if err != nil {
		return err
	}
	cfg.Dir = filepath.Join(dir, "bench")
	fmt.Fprintln(out, machine())
	return errors.Join(sessionbench.Run(ctx, cfg), os.RemoveAll(dir))
}
