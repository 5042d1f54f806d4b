package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/databox-lockbox/lockbox/simulator/image"
)

func imageCatCommand() *cobra.Command {
	var key keyFlags
	c := &cobra.Command{
		Use:   "cat IMAGE",
		Short: "Write the decrypted view of a volume to standard output",
		Long: `Write the whole decrypted view of a volume to standard output: what the unlocked disk would show, byte for byte.

Where BitLocker keeps its metadata there are zeros. Without a key among the flags it asks at the terminal. If it cannot
go on to the end it says why in one line on standard error; see 'databox-sim image --help' for the exit status.`,
		Example: `  databox-sim image cat --recovery-password-file key.txt disk.img > plain.img
  databox-sim image cat --bek 4381F759-C4F8-4DE0-BB61-FC33A831BDA5.BEK disk.img | sha256sum`,
		Args: oneImage,
		RunE: func(c *cobra.Command, args []string) error { return imageCat(c, args[0], &key) },
	}
	key.flags(c)
	return c
}

func imageCat(c *cobra.Command, path string, key *keyFlags) error {
	if err := key.check(c); err != nil {
		return err
	}
	out := c.OutOrStdout()
	if isTerminal(out) {
		return usagef("the decrypted view is no text for a terminal: redirect standard output")
	}
	f, err := image.Open(path, image.Read)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := image.CheckRedo(path); err != nil {
		return err
	}
	v, secret, err := key.open(c, f)
	if err != nil {
		return err
	}
	defer wipe(secret)
	plain, err := v.Unlock(secret)
	if err != nil {
		return volumeError{fmt.Errorf("cannot unlock %s: %w", path, err)}
	}
	defer plain.Wipe()
	widenPipe(out)
	p := newProgress(c.Context(), c.ErrOrStderr())
	var done int64
	err = image.Copy(c.Context(), out, plain, plain.Size(), func(n int64) {
		done += n
		p.report("decrypting", done, plain.Size())
	})
	p.end(err)
	if err != nil {
		return volumeError{fmt.Errorf("cannot write all of %s: %w", path, err)}
	}
	return nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// widenPipe lets a reader at the other end of a pipe take large pieces at a time.
func widenPipe(w io.Writer) {
	if f, ok := w.(*os.File); ok {
		_, _ = unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, 1<<20) // it need not be a pipe
	}
}
