package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/simulator/uploadbench"
)

// benchUpload are the flags of the command.
type benchUpload struct {
	runs, files, parallel int
	sizeKiB, largeMiB     int64
	azurite, dir          string
}

func benchUploadCommand() *cobra.Command {
	var b benchUpload
	c := &cobra.Command{
		Use:   "bench-upload --azurite DIR",
		Short: "Measure the upload of the copy job beside Azure's own SDK",
		Long: `Measure the upload of the copy job beside Azure's own SDK, both to Azurite on this
machine. DIR is where it is installed, as .ci/azurite prints it.

  upload_small  many small files, a second
  upload_1g     one large file

Each is the median of some runs, taken in turns with the peer's, each to a service of
its own. One line each on standard output; progress on standard error.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return b.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.StringVar(&b.azurite, "azurite", "", "folder that Azurite is installed in")
	f.IntVar(&b.runs, "runs", 3, "of which a figure is the median")
	f.IntVar(&b.files, "files", 10_000, "how many small files")
	f.Int64Var(&b.sizeKiB, "file-size", 4, "size of each, in KiB")
	f.Int64Var(&b.largeMiB, "large", 1024, "size of the large file, in MiB")
	f.IntVar(&b.parallel, "parallel", 4, "files at once, and blocks of the large one")
	f.StringVar(&b.dir, "dir", "", "folder to make the files in; the system's for temporary files if not given")
	return c
}

func (b benchUpload) run(ctx context.Context, out, note io.Writer) error {
	switch {
	case b.azurite == "":
		return usageError{errors.New("--azurite is missing: run 'make bench-upload', or name the folder it is installed in")}
	case min(b.runs, b.files, b.parallel) < 1 || min(b.sizeKiB, b.largeMiB) < 1:
		return usageError{errors.New("runs, numbers and sizes are at least 1")}
	}
	dir, err := os.MkdirTemp(b.dir, "databox-bench-upload-")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, machine())
	err = uploadbench.Run(ctx, uploadbench.Config{
		Azurite: b.azurite, Dir: filepath.Join(dir, "upload"), Runs: b.runs, Files: b.files, Size: b.sizeKiB << 10, Large: b.largeMiB << 20,
		Parallel: b.parallel, Out: out, Note: note,
	})
	return errors.Join(err, os.RemoveAll(dir))
}
