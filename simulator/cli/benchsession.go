package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/simulator/sessionbench"
)

// benchSession are the flags of the command.
type benchSession struct {
	runs    int
	kills   int
	sizeMiB int64
	dir     string
}

func benchSessionCommand() *cobra.Command {
	var b benchSession
	c := &cobra.Command{
		Use:   "bench-session",
		Short: "Measure support sessions beside OpenSSH",
		Long: `Measure support sessions beside OpenSSH's own sshd and sftp-server on the loopback,
over the same unlocked disk, with the same stock client.

  sftp_up    a file sent to the device through control plane and tunnel, made durable
  sftp_down  the same file fetched again
  smb_read   the same file read over SMB, beside the same smbd over a plain folder
  nfs_read   a file of the disk read over NFS, beside one of a plain folder
  kill_to_closed_p99  from an approver's kill until the last client is cut off:
             sftp and smbclient, which are sending, and a shell

Each but the last is the median of some runs, taken in turns with the peer's. One
line each on standard output; progress on standard error. It needs root, the programs
lockbox and databox-agent beside this one, and the packages openssh-server, whose
service need not run, and libnfs-utils.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return b.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.IntVar(&b.runs, "runs", 5, "of which a figure is the median")
	f.IntVar(&b.kills, "kills", 20, "how often a session is killed; 0: never")
	f.Int64Var(&b.sizeMiB, "size", 256, "size of the file, in MiB, at most 512")
	f.StringVar(&b.dir, "dir", "", "folder to make the disk in; the system's for temporary files if not given")
	return c
}

func (b benchSession) run(ctx context.Context, out, note io.Writer) error {
	switch {
	case b.runs < 1:
		return usageError{fmt.Errorf("--runs %d: want at least 1", b.runs)}
	case b.kills < 0:
		return usageError{fmt.Errorf("--kills %d: want 0 or more", b.kills)}
	case b.sizeMiB < 1 || b.sizeMiB > 512:
		return usageError{fmt.Errorf("--size %d: want 1 to 512", b.sizeMiB)}
	case os.Geteuid() != 0:
		return errors.New("disks are mounted for real, which takes root: run it with sudo")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(b.dir, "databox-bench-session-")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, machine())
	err = sessionbench.Run(ctx, sessionbench.Config{
		Dir: filepath.Join(dir, "session"), Runs: b.runs, Size: b.sizeMiB << 20, Kills: b.kills, Out: out, Note: note,
		Lockbox: filepath.Join(filepath.Dir(self), "lockbox"), Agent: filepath.Join(filepath.Dir(self), "databox-agent"),
	})
	return errors.Join(err, os.RemoveAll(dir))
}
