package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
)

// The files that own BitLocker's areas inside the file system, named as Windows
// names them, with their sizes in bytes.
const (
	areaFolder     = "System Volume Information"
	metadataFile   = "FVE2.{e40ad34d-dae9-4bc7-95bd-b16218c10f72}."
	headerFile     = "FVE2.{24e6f0ae-6a00-4f73-984b-75ce9942852d}"
	headerCopySize = 8 << 10
)

// MetadataSize is the size of a metadata area, in bytes.
const MetadataSize = 64 << 10

// makeNTFS makes a file system that spans the whole image.
func makeNTFS(ctx context.Context, s Spec, image string) error {
	sector := s.SectorSize
	if sector == 0 {
		sector = 512
	}
	_, err := run(ctx, "mkntfs", "--force", "--quick", "--quiet", "--label", s.Label,
		"--sector-size", strconv.Itoa(sector), "--cluster-size", strconv.Itoa(sizeUnit),
		"--partition-start", "0", "--heads", "255", "--sectors-per-track", "63", image)
	return err
}

// fill makes the files of BitLocker's areas and copies the content in.
func fill(ctx context.Context, s Spec, image string) error {
	return withMount(ctx, image, func(root string) error {
		if err := makeAreaFiles(filepath.Join(root, areaFolder)); err != nil {
			return fmt.Errorf("cannot make room for the BitLocker metadata: %w", err)
		}
		if s.Source == nil || s.From != "" {
			return nil
		}
		if err := copyTree(ctx, s, root); err != nil {
			return fmt.Errorf("cannot copy the content: %w", err)
		}
		return nil
	})
}

// copyFrom copies an existing file system.
func copyFrom(ctx context.Context, s Spec, file *os.File) error {
	in, err := os.Open(s.From)
	if err != nil {
		return err
	}
	defer in.Close()
	var done int64
	counted := readerFunc(func(b []byte) (int, error) {
		n, err := in.Read(b)
		done += int64(n)
		s.report(StageFileSystem, min(done, s.SizeBytes), s.SizeBytes)
		return n, err
	})
	buf := make([]byte, 1<<20)
	n, err := io.CopyBuffer(struct{ io.Writer }{file}, stoppable(ctx, counted), buf)
	if err == nil && n != s.SizeBytes {
		err = fmt.Errorf("%s has %d bytes: want %d", s.From, n, s.SizeBytes)
	}
	return err
}

// makeAreaFiles must come before anything else is written: on an empty file
// system each file is one contiguous run. Files that are there, as in what was a
// BitLocker volume before, keep their places.
func makeAreaFiles(folder string) error {
	if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for n := range 3 {
		if err := makeAreaFile(filepath.Join(folder, metadataFile+strconv.Itoa(n+1)), MetadataSize); err != nil {
			return err
		}
	}
	return makeAreaFile(filepath.Join(folder, headerFile), headerCopySize)
}

func makeAreaFile(name string, size int) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, size))
	return errors.Join(err, f.Close())
}

// findAreas sets where the file system put the areas' files.
func findAreas(ctx context.Context, image *os.File, opts *bitlocker.FormatOptions) error {
	boot := make([]byte, ntfsBootSize)
	if _, err := image.ReadAt(boot, 0); err != nil {
		return err
	}
	ntfs, err := parseNTFS(boot)
	if err != nil {
		return err
	}
	for n := range opts.Metadata {
		name := metadataFile + strconv.Itoa(n+1)
		if opts.Metadata[n], err = findRun(ctx, image.Name(), name, MetadataSize, ntfs.clusterSize); err != nil {
			return err
		}
	}
	opts.HeaderCopy, err = findRun(ctx, image.Name(), headerFile, headerCopySize, ntfs.clusterSize)
	return err
}

// runLine is a line of ntfsinfo's run list: virtual cluster, logical cluster and
// number of clusters.
var runLine = regexp.MustCompile(`(?m)^\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s*$`)

// findRun returns the offset of a file that is one contiguous run, in bytes.
func findRun(ctx context.Context, image, name string, size, cluster int64) (int64, error) {
	out, err := run(ctx, "ntfsinfo", "--verbose", "--file", areaFolder+"/"+name, image)
	if err != nil {
		return 0, err
	}
	return parseRun(out, name, size, cluster)
}

// parseRun reads what ntfsinfo says of a file, on a file system of the given
// cluster size. The file may own more clusters than its size takes.
func parseRun(out []byte, name string, size, cluster int64) (int64, error) {
	_, list, _ := bytes.Cut(out, []byte("Runlist:"))
	runs := runLine.FindAllSubmatch(list, -1)
	if len(runs) != 1 {
		return 0, fmt.Errorf("file %s has %d runs of clusters: want 1", name, len(runs))
	}
	start, errStart := strconv.ParseInt(string(runs[0][2]), 16, 48)
	count, errCount := strconv.ParseInt(string(runs[0][3]), 16, 48)
	if errStart != nil || errCount != nil || count*cluster < size || count > size/cluster+1 {
		return 0, fmt.Errorf("file %s has an unreadable run of clusters %q", name, runs[0][0])
	}
	return start * cluster, nil
}

// copyTree copies s.Source into the folder root.
func copyTree(ctx context.Context, s Spec, root string) error {
	total, err := treeSize(s.Source)
	if err != nil {
		return err
	}
	var done int64
	return fs.WalkDir(s.Source, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || name == "." {
			return err
		}
		to := filepath.Join(root, filepath.FromSlash(name))
		if d.IsDir() {
			return os.Mkdir(to, 0o700)
		}
		n, err := copyFile(ctx, s.Source, name, to)
		done += n
		s.report(StageCopy, done, total)
		return err
	})
}

// treeSize returns the number of bytes to copy, and refuses what cannot be.
func treeSize(source fs.FS) (total int64, err error) {
	err = fs.WalkDir(source, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s is neither a folder nor a regular file", name)
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}

func copyFile(ctx context.Context, source fs.FS, name, to string) (n int64, err error) {
	in, err := source.Open(name)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return 0, err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	n, err = io.Copy(out, stoppable(ctx, in))
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err == nil && !info.ModTime().IsZero() {
		err = os.Chtimes(to, info.ModTime(), info.ModTime())
	}
	return n, err
}

// readerFunc is a function as an [io.Reader].
type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// stoppable reads from r until ctx is done.
func stoppable(ctx context.Context, r io.Reader) io.Reader {
	return readerFunc(func(b []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(b)
	})
}

// run runs one of the tools of Debian's ntfs-3g and returns what it printed.
func run(ctx context.Context, name string, args ...string) ([]byte, error) {
	path, err := tool(name)
	if err != nil {
		return nil, err
	}
	var out, problems bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(problems.Bytes()))
	}
	return out.Bytes(), nil
}

// tool finds an executable, also where only root looks.
func tool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	path, err := exec.LookPath("/usr/sbin/" + name)
	if err != nil {
		return "", fmt.Errorf("%s is missing: install the Debian package ntfs-3g", name)
	}
	return path, nil
}
