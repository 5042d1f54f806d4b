package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// readSecret reads a secret from a file, from standard input, or from the
// terminal without echo.
func readSecret(cmd *cobra.Command, file, prompt string) (string, error) {
	var data []byte
	var err error
	stdin, _ := cmd.InOrStdin().(*os.File)
	switch {
	case file != "" && file != "-":
		data, err = readShort(file)
	case file == "" && stdin != nil && term.IsTerminal(int(stdin.Fd())):
		data, err = readHidden(cmd, stdin, prompt)
	default:
		data, err = typed(cmd, func() ([]byte, error) { return io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxSecret+1)) })
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the secret: %w", err)
	}
	defer clear(data)
	if len(data) > maxSecret {
		return "", usagef("the secret has more than %d bytes: give it alone, without anything else", maxSecret)
	}
	return strings.TrimSpace(string(data)), nil
}

// maxSecret is the length of a secret at most, in bytes.
const maxSecret = 4 << 10

// readShort reads a file that may be a pipe, or a device that never ends, as far as
// it takes to see that it is too long.
func readShort(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSecret+1))
}

// mustBePrivate refuses a file of secrets that others can read.
func mustBePrivate(file string) error {
	info, err := os.Stat(file)
	switch {
	case err != nil || info.Mode().Perm()&0o077 == 0:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is no file: name one that you alone can read", file)
	default:
		err = fmt.Errorf("%s holds secrets and others can read it: run 'chmod 600 %s'", file, file)
	}
	return err
}

// readHidden asks at a terminal, without echo.
func readHidden(cmd *cobra.Command, terminal *os.File, prompt string) ([]byte, error) {
	fd := int(terminal.Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	fmt.Fprint(cmd.ErrOrStderr(), prompt)
	data, err := typed(cmd, func() ([]byte, error) { return term.ReadPassword(fd) })
	fmt.Fprintln(cmd.ErrOrStderr())
	if errors.Is(err, errInterrupted) {
		err = errors.Join(err, term.Restore(fd, state))
	}
	return data, err
}

// errInterrupted says that somebody who was asked pressed Ctrl-C.
var errInterrupted = errors.New("interrupted: nothing was done")

// typed returns what read gets of somebody, unless the command is interrupted: a
// read that waits for people cannot be taken back, and ends with the process.
func typed[T any](cmd *cobra.Command, read func() (T, error)) (value T, err error) {
	type answer struct {
		value T
		err   error
	}
	got := make(chan answer, 1)
	go func() {
		value, err := read()
		got <- answer{value, err}
	}()
	select {
	case a := <-got:
		return a.value, a.err
	case <-cmd.Context().Done():
		return value, errInterrupted
	}
}

// secretFile is a new file that waits for a secret. It is made before the secret
// is asked for: one that cannot be stored would be lost. The zero secretFile
// takes none, so that the secret is shown.
type secretFile struct{ file *os.File }

func newSecretFile(name string) (secretFile, error) {
	if name == "" {
		return secretFile{}, nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return secretFile{}, usagef("cannot make the file for the secret: %v", err)
	}
	return secretFile{f}, nil
}

// take writes the secret, durably, and empties it, so that it is not shown too.
func (s secretFile) take(secret *string) error {
	if s.file == nil {
		return nil
	}
	_, err := s.file.WriteString(*secret + "\n")
	*secret = ""
	if err = errors.Join(err, s.file.Sync(), s.file.Close()); err != nil {
		return fmt.Errorf("cannot store the secret, ask for another: %w", err)
	}
	return nil
}

// drop removes the file, if it is there, after err.
func (s secretFile) drop(err error) error {
	if s.file == nil {
		return err
	}
	s.file.Close()
	return errors.Join(err, os.Remove(s.file.Name()))
}
