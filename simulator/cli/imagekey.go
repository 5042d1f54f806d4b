package cli

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/simulator/image"
)

// keyFlags say with what to open a volume.
type keyFlags struct {
	recovery, passphrase, bek string
	clear                     bool
}

func (k *keyFlags) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&k.recovery, "recovery-password-file", "", "open with the recovery password in this file")
	f.StringVar(&k.passphrase, "passphrase-file", "", "open with the passphrase in this file")
	f.StringVar(&k.bek, "bek", "", "open with this .BEK file")
	f.BoolVar(&k.clear, "clear-key", false, "open with the volume's own clear key: protection is suspended")
}

// check refuses more than one key, and none where none can be asked for.
func (k *keyFlags) check(c *cobra.Command) error {
	const names = "--recovery-password-file, --passphrase-file, --bek and --clear-key"
	switch n := given(c, "recovery-password-file", "passphrase-file", "bek", "clear-key"); {
	case n > 1:
		return usagef("give only one of %s", names)
	case n == 0 && !term.IsTerminal(int(os.Stdin.Fd())):
		return usagef("no key: give one of %s", names)
	}
	return nil
}

// given counts the flags of these names that are on the command line.
func given(c *cobra.Command, names ...string) (n int) {
	for _, name := range names {
		if c.Flags().Changed(name) {
			n++
		}
	}
	return n
}

// open opens a volume and reads the key that is to unlock it, for the caller to
// wipe. What kind of volume it is matters before the key.
func (k *keyFlags) open(c *cobra.Command, f image.File) (*bitlocker.Volume, bitlocker.Credential, error) {
	v, err := bitlocker.Open(f, f.Size)
	if err == nil && v.Info().Refused != nil {
		err = v.Info().Refused
	}
	if err != nil {
		return nil, nil, volumeError{fmt.Errorf("cannot open %s: %w", f.Name(), err)}
	}
	key, err := k.read(c, f.Name())
	return v, key, err
}

func (k *keyFlags) read(c *cobra.Command, path string) (bitlocker.Credential, error) {
	in := c.InOrStdin()
	switch {
	case c.Flags().Changed("recovery-password-file"):
		return readRecoveryPassword(k.recovery, in)
	case c.Flags().Changed("passphrase-file"):
		return readPassphrase(k.passphrase, in)
	case c.Flags().Changed("bek"):
		return readBEK(k.bek, in)
	case k.clear:
		return bitlocker.ClearKey{}, nil
	}
	return askKey(c.Context(), path)
}

// wipe overwrites a key that has any.
func wipe(c bitlocker.Credential) {
	if w, ok := c.(interface{ Wipe() }); ok {
		w.Wipe()
	}
}

// noKey is an error about what should have been a key and is none, which counts as
// a wrong one.
func noKey(file string, err error) error {
	return volumeError{fmt.Errorf("%w: %s: %w", bitlocker.ErrWrongKey, file, err)}
}

func readRecoveryPassword(file string, stdin io.Reader) (bitlocker.Credential, error) {
	text, err := readText(file, stdin)
	if err != nil {
		return nil, err
	}
	p, err := bitlocker.ParseRecoveryPassword(strings.TrimSpace(text))
	if err != nil {
		return nil, noKey(file, err)
	}
	return p, nil
}

func readPassphrase(file string, stdin io.Reader) (bitlocker.Credential, error) {
	text, err := readText(file, stdin)
	if err != nil {
		return nil, err
	}
	p, err := bitlocker.NewPassphrase(text)
	if err != nil {
		return nil, noKey(file, err)
	}
	return p, nil
}

func readBEK(file string, stdin io.Reader) (bitlocker.Credential, error) {
	b, err := readKeyFile(file, stdin)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	bek, err := bitlocker.ParseBEK(b)
	if err != nil {
		return nil, noKey(file, err)
	}
	return bek.Key, nil
}

// maxKeyFile is far beyond any key, in bytes.
const maxKeyFile = 64 << 10

// readKeyFile reads a file, or standard input if it is "-".
func readKeyFile(file string, stdin io.Reader) ([]byte, error) {
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("cannot read the key: %w", err)
		}
		defer f.Close()
		stdin = f
	}
	b, err := io.ReadAll(io.LimitReader(stdin, maxKeyFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot read the key: %w", err)
	case len(b) > maxKeyFile:
		clear(b)
		return nil, noKey(file, fmt.Errorf("more than %d bytes", maxKeyFile))
	}
	return b, nil
}

// readText reads a file with a line of text, less the byte order mark and one
// newline.
func readText(file string, stdin io.Reader) (string, error) {
	b, err := readKeyFile(file, stdin)
	if err != nil {
		return "", err
	}
	defer clear(b)
	text, err := decodeText(b)
	if err != nil {
		return "", noKey(file, err)
	}
	text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	if text == "" {
		return "", noKey(file, errors.New("it is empty"))
	}
	return text, nil
}

// decodeText understands UTF-8, and the UTF-16 with a mark that Windows writes.
func decodeText(b []byte) (string, error) {
	if wide, ok := bytes.CutPrefix(b, []byte{0xff, 0xfe}); ok {
		if len(wide)%2 != 0 {
			return "", errors.New("half a character of UTF-16 at its end")
		}
		units := make([]uint16, len(wide)/2)
		defer clear(units)
		for i := range units {
			units[i] = binary.LittleEndian.Uint16(wide[2*i:])
		}
		return string(utf16.Decode(units)), nil
	}
	return string(bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))), nil
}

// askKey asks for a recovery password or a passphrase.
func askKey(ctx context.Context, path string) (bitlocker.Credential, error) {
	text, err := askSecret(ctx, "Recovery password or passphrase of "+path+": ")
	if err != nil {
		return nil, err
	}
	if p, err := bitlocker.ParseRecoveryPassword(strings.TrimSpace(text)); err == nil {
		return p, nil
	}
	p, err := bitlocker.NewPassphrase(text)
	if err != nil {
		return nil, noKey("what was typed", err)
	}
	return p, nil
}

// askSecret reads a line from the terminal, which does not show it. The terminal is
// as it was when it returns, also when ctx is done.
func askSecret(ctx context.Context, prompt string) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("cannot ask for the key: %w", err)
	}
	defer tty.Close()
	restore, err := hideInput(tty)
	if err != nil {
		return "", fmt.Errorf("cannot ask for the key: %w", err)
	}
	defer restore()
	stop := context.AfterFunc(ctx, func() { tty.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	fmt.Fprint(tty, prompt)
	defer fmt.Fprintln(tty)
	line := make([]byte, 0, 4<<10) // a terminal's longest line
	defer clear(line[:cap(line)])
	for !bytes.HasSuffix(line, []byte("\n")) && len(line) < cap(line) {
		n, err := tty.Read(line[len(line):cap(line)])
		line = line[:len(line)+n]
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return "", fmt.Errorf("cannot read the key: %w", err)
		}
	}
	return strings.TrimSuffix(string(line), "\n"), nil
}

// hideInput turns off the echo of a terminal, without making its reads block
// beyond deadlines, as [os.File.Fd] would.
func hideInput(tty *os.File) (restore func(), err error) {
	raw, err := tty.SyscallConn()
	if err != nil {
		return nil, err
	}
	var was unix.Termios
	set := func(change func(t *unix.Termios)) error {
		var inner error
		err := raw.Control(func(fd uintptr) {
			var t *unix.Termios
			if t, inner = unix.IoctlGetTermios(int(fd), unix.TCGETS); inner != nil {
				return
			}
			change(t)
			inner = unix.IoctlSetTermios(int(fd), unix.TCSETS, t)
		})
		return errors.Join(err, inner)
	}
	err = set(func(t *unix.Termios) {
		was = *t
		t.Lflag &^= unix.ECHO
		t.Lflag |= unix.ICANON | unix.ISIG
		t.Iflag |= unix.ICRNL
	})
	return func() { _ = set(func(t *unix.Termios) { *t = was }) }, err
}
