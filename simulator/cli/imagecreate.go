package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/simulator/image"
)

// imageCreate are the flags of the command.
type imageCreate struct {
	size, method, label, from, files string
	sector                           int
	force                            bool
	keys                             newKeyFlags
	out                              output
}

// methods are the words for --method, in the order of their numbers on disk.
var methods = []string{"aes-cbc-128-elephant", "aes-cbc-256-elephant", "aes-cbc-128", "aes-cbc-256", "aes-xts-128", "aes-xts-256"}

func imageCreateCommand() *cobra.Command {
	var i imageCreate
	c := &cobra.Command{
		Use:   "create IMAGE",
		Short: "Make a BitLocker volume with an NTFS in it",
		Long: `Make a BitLocker volume with an NTFS in it, laid out as Windows does.

The new file system is mounted for a moment, which takes root, and ntfs-3g. The image appears under its name only when it
is complete and durable; interrupted, nothing is left. Key files are written before it, so that no volume is ever without.

It gets the keys that the flags name, at least one besides --clear-key. dislocker and cryptsetup know all methods,
the libbde of Debian 12 all but aes-xts-256.`,
		Example: `  sudo databox-sim image create disk.img --size 1G --files ./content --recovery-password-file key.txt
  sudo databox-sim image create disk.img --size 64M --method aes-xts-256 --sector-size 4096 --bek-dir . --passphrase-file p.txt`,
		Args: oneImage,
		RunE: func(c *cobra.Command, args []string) error { return i.run(c, args[0]) },
	}
	f := c.Flags()
	f.StringVar(&i.size, "size", "", "of the volume: bytes, or with K, M, G or T for powers of 1024; the file's with --from")
	f.StringVar(&i.method, "method", "aes-xts-128", "of encryption: "+strings.Join(methods, ", "))
	f.IntVar(&i.sector, "sector-size", 512, "in bytes: 512 or 4096; with --from, as in that file system")
	f.StringVar(&i.label, "label", "", "of the file system, up to 32 bytes")
	f.StringVar(&i.files, "files", "", "copy the content of this folder into the file system")
	f.StringVar(&i.from, "from", "", "encrypt a copy of this file, an NTFS in plain, in place of a new file system")
	f.BoolVar(&i.force, "force", false, "replace an image that is there")
	i.keys.flags(c, "")
	i.out.flags(c)
	return c
}

func (i *imageCreate) run(c *cobra.Command, path string) (err error) {
	spec, err := i.spec(c, path)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("the new file system is mounted for a moment, which takes root: run it with sudo")
	}
	free, err := i.claim(path)
	if err != nil {
		return err
	}
	defer free()
	keys, err := i.keys.make(c)
	if err != nil {
		return err
	}
	defer keys.wipe()
	spec.Protectors = keys.protectors
	p := newProgress(c.Context(), c.ErrOrStderr())
	spec.Progress = func(stage image.Stage, done, total int64) { p.report(string(stage), min(done, total), total) }
	_, err = image.Create(c.Context(), spec)
	p.end(err)
	if err != nil {
		return keys.drop(err)
	}
	info, err := image.Inspect(path)
	if err != nil {
		return volumeError{err}
	}
	return i.print(c.OutOrStdout(), newVolumeView(path, info), keys)
}

func (i *imageCreate) print(w io.Writer, v volumeView, keys *newKeys) error {
	all := struct {
		volumeView
		Added []addedView `json:"added"`
	}{v, keys.added}
	return i.out.print(w, all, func(w io.Writer) {
		fmt.Fprintf(w, "Made  %s  %s, %s, sectors of %d bytes, %d bytes\n", v.ID, v.Image, v.Method, v.SectorSize, v.Size)
		keys.text(w)
	})
}

// spec checks the flags.
func (i *imageCreate) spec(c *cobra.Command, path string) (image.Spec, error) {
	s := image.Spec{Path: path, Label: i.label, From: i.from, SectorSize: i.sector, Durable: true, Overwrite: i.force}
	if err := i.out.check(); err != nil {
		return s, err
	}
	n := slices.Index(methods, strings.ToLower(i.method))
	switch {
	case n < 0:
		return s, usagef("--method %q: want one of %s", i.method, strings.Join(methods, ", "))
	case i.sector != 512 && i.sector != 4096:
		return s, usagef("--sector-size %d: want 512 or 4096", i.sector)
	case len(i.label) > 32:
		return s, usagef("--label is longer than 32 bytes")
	case i.from != "" && (i.files != "" || i.label != ""):
		return s, usagef("--from brings its own file system: --files and --label go without it")
	case i.keys.count(c) == 0:
		return s, usagef("no key: give some of %s", i.keys.names())
	case i.keys.clear && i.keys.count(c) == 1:
		return s, usagef("--clear-key opens the volume to anyone: give another key, too, for when it is removed")
	}
	s.Method = bitlocker.AES128Elephant + bitlocker.Method(n)
	if err := i.keys.check(c.OutOrStdout(), i.out); err != nil {
		return s, err
	}
	for _, other := range []string{i.keys.recovery, i.keys.passphrase} {
		if other != "" && filepath.Clean(other) == filepath.Clean(path) {
			return s, usagef("%s cannot be both the image and a key", path)
		}
	}
	if err := i.addFiles(&s); err != nil {
		return s, err
	}
	return s, i.setSize(&s)
}

func (i *imageCreate) addFiles(s *image.Spec) error {
	if i.files == "" {
		return nil
	}
	info, err := os.Stat(i.files)
	if err != nil || !info.IsDir() {
		return usagef("--files %s: it is no folder", i.files)
	}
	dir, errDir := filepath.Abs(i.files)
	path, errPath := filepath.Abs(s.Path)
	if inside, err := filepath.Rel(dir, path); errors.Join(errDir, errPath, err) == nil && filepath.IsLocal(inside) {
		return usagef("the image cannot lie in the folder that is copied into it")
	}
	s.Source = os.DirFS(i.files)
	return nil
}

func (i *imageCreate) setSize(s *image.Spec) error {
	switch {
	case i.size != "":
		n, err := parseSize(i.size)
		if err != nil {
			return err
		}
		s.SizeBytes = n
	case i.from != "":
		f, err := image.Open(i.from, image.Look)
		if err != nil {
			return err
		}
		defer f.Close()
		s.SizeBytes = f.Size
	default:
		return usagef("no --size: give one, such as 64M")
	}
	if s.SizeBytes < image.MinSize || s.SizeBytes%4096 != 0 {
		return usagef("a volume of %d bytes: want a multiple of 4096, at least %d (%dM)", s.SizeBytes, image.MinSize, image.MinSize>>20)
	}
	return nil
}

// parseSize reads a number of bytes such as 512M, 1GiB or 1073741824.
func parseSize(s string) (int64, error) {
	const units = "KMGT"
	number := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(s), "B"), "I")
	factor := int64(1)
	if number != "" {
		if n := strings.IndexByte(units, number[len(number)-1]); n >= 0 {
			number, factor = number[:len(number)-1], 1<<(10*(n+1))
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > 1<<50/factor {
		return 0, usagef("--size %q: want bytes, or a number with K, M, G or T", s)
	}
	return n * factor, nil
}

// claim makes sure that an image that is to be replaced is not open elsewhere,
// until free is called, and that one that is not to be replaced is not there.
func (i *imageCreate) claim(path string) (free func(), err error) {
	_, err = os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return func() {}, nil
	case err == nil && !i.force:
		return nil, fmt.Errorf("%s is there already: give --force to replace it", path)
	case err != nil:
		return nil, err
	}
	f, err := image.Open(path, image.Change)
	if err != nil {
		return nil, err
	}
	return func() { f.Close() }, nil
}
