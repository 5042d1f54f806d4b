package shell

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// sharesDir is where the shares are seen. Above it is nothing.
const sharesDir = "/shares"

// maxEntries is how many names of one folder are listed. The customer's disks
// may have folders that do not fit in memory.
const maxEntries = 100_000

// place is a path within one share. Its root keeps every access below the
// share's folder, whatever symbolic links say. The caller closes it.
type place struct {
	*os.Root
	name  string // relative to the share; "." is the share itself
	share string
}

// open finds the share that a path lies in.
func (s *Shell) open(name string) (place, error) {
	lease, err := s.cfg.Node.Lease()
	if err != nil {
		return place{}, err
	}
	full := s.resolve(name)
	rest, ok := strings.CutPrefix(full, sharesDir+"/")
	if !ok {
		return place{}, fmt.Errorf("%s: there is nothing but the shares in %s here", full, sharesDir)
	}
	share, inside, _ := strings.Cut(rest, "/")
	for _, sh := range lease.Shares {
		if sh.Name != share {
			continue
		}
		root, err := os.OpenRoot(sh.Dir)
		if err != nil {
			return place{}, s.clean(err)
		}
		if inside == "" {
			inside = "."
		}
		return place{root, inside, share}, nil
	}
	return place{}, fmt.Errorf("%s: no such share", share)
}

// path returns the path that the engineer sees.
func (p place) path(name string) string { return path.Join(sharesDir, p.share, name) }

// entries lists a folder of the place, sorted, without following links.
func (p place) entries(name string) ([]fs.FileInfo, error) {
	f, err := p.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxEntries)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if len(names) == maxEntries {
		return nil, fmt.Errorf("the folder has %d entries or more: use SMB", maxEntries)
	}
	slices.Sort(names)
	list := make([]fs.FileInfo, 0, len(names))
	for _, one := range names {
		info, err := p.Lstat(path.Join(name, one))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		list = append(list, info)
	}
	return list, nil
}

// clean takes the device's own paths out of an error.
func (s *Shell) clean(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: %w", relative(p.Path), p.Err)
	}
	if l, ok := errors.AsType[*os.LinkError](err); ok {
		return fmt.Errorf("%s to %s: %w", relative(l.Old), relative(l.New), l.Err)
	}
	return err
}

func relative(name string) string {
	if path.IsAbs(name) {
		return path.Base(name)
	}
	return name
}

// mayWrite refuses unless the approval lets its engineer change files.
func (s *Shell) mayWrite() (Lease, error) {
	lease, err := s.cfg.Node.Lease()
	if err == nil && lease.Access != approval.ReadWrite && lease.Access != approval.Delete {
		err = protocol.Errorf(protocol.CodeForbidden, "the approval is %s: nothing can be changed", lease.Access)
	}
	return lease, err
}

// mayDelete refuses unless the approval lets its engineer remove files.
func (s *Shell) mayDelete() error {
	lease, err := s.cfg.Node.Lease()
	if err == nil && lease.Access != approval.Delete {
		err = protocol.Errorf(protocol.CodeForbidden, "the approval does not say delete: raise a request with --access delete")
	}
	return err
}

func pwd(_ context.Context, s *Shell, args []string) error {
	if len(args) > 0 {
		return usageError{}
	}
	_, err := fmt.Fprintln(s.cfg.Out, Visible(s.dir))
	return err
}

func cd(_ context.Context, s *Shell, args []string) error {
	if len(args) > 1 {
		return usageError{}
	}
	target := "/"
	if len(args) == 1 {
		target = s.resolve(args[0])
	}
	if target != "/" && target != sharesDir {
		p, err := s.open(target)
		if err != nil {
			return err
		}
		defer p.Close()
		info, err := p.Stat(p.name)
		if err != nil {
			return s.clean(err)
		}
		if !info.IsDir() {
			return fmt.Errorf("%s is not a folder", args[0])
		}
	}
	s.dir = target
	return nil
}

func ls(_ context.Context, s *Shell, args []string) error {
	lease, err := s.cfg.Node.Lease()
	if err != nil {
		return err
	}
	if len(args) == 0 {
		args = []string{s.dir}
	}
	for _, name := range args {
		if err := s.list(lease, s.resolve(name)); err != nil {
			return err
		}
	}
	return nil
}

// list lists what is at an absolute path.
func (s *Shell) list(lease Lease, target string) error {
	switch target {
	case "/":
		_, err := fmt.Fprintln(s.cfg.Out, "shares/")
		return err
	case sharesDir:
		for _, sh := range lease.Shares {
			if _, err := fmt.Fprintln(s.cfg.Out, sh.Name+"/"); err != nil {
				return err
			}
		}
		return nil
	}
	p, err := s.open(target)
	if err != nil {
		return err
	}
	defer p.Close()
	info, err := p.Stat(p.name)
	if err != nil {
		return s.clean(err)
	}
	entries := []fs.FileInfo{info}
	if info.IsDir() {
		if entries, err = p.entries(p.name); err != nil {
			return s.clean(err)
		}
	}
	for _, e := range entries {
		if err := s.listEntry(e); err != nil {
			return err
		}
	}
	return nil
}

func (s *Shell) listEntry(info fs.FileInfo) error {
	name := Visible(info.Name())
	switch {
	case info.IsDir():
		name += "/"
	case info.Mode()&fs.ModeSymlink != 0:
		name += "@"
	}
	_, err := fmt.Fprintf(s.cfg.Out, "%12d  %s  %s\n", info.Size(), info.ModTime().UTC().Format("2006-01-02 15:04"), name)
	return err
}

// Visible keeps names and messages from steering the terminal or hiding in it.
func Visible(name string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return unicode.ReplacementChar
		}
		return r
	}, name)
}

func find(ctx context.Context, s *Shell, args []string) error {
	if len(args) > 1 {
		return usageError{}
	}
	target := s.dir
	if len(args) == 1 {
		target = args[0]
	}
	p, err := s.open(target)
	if err != nil {
		return err
	}
	defer p.Close()
	info, err := p.Stat(p.name)
	if err != nil {
		return s.clean(err)
	}
	return s.clean(s.walk(ctx, p, p.name, info))
}

// walk prints what is at name and, without following links, below it.
func (s *Shell) walk(ctx context.Context, p place, name string, info fs.FileInfo) error {
	if _, err := fmt.Fprintln(s.cfg.Out, Visible(p.path(name))); err != nil || !info.IsDir() {
		return err
	}
	entries, err := p.entries(name)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := s.walk(ctx, p, path.Join(name, e.Name()), e); err != nil {
			return err
		}
	}
	return nil
}

// eachFile opens every named file in turn.
func (s *Shell) eachFile(ctx context.Context, args []string, do func(name string, r io.Reader) error) error {
	if len(args) == 0 {
		return usageError{}
	}
	for _, name := range args {
		if err := s.oneFile(ctx, name, do); err != nil {
			return err
		}
	}
	return nil
}

func (s *Shell) oneFile(ctx context.Context, name string, do func(string, io.Reader) error) error {
	p, err := s.open(name)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := s.isFile(p.Stat(p.name)); err != nil { // to open a device is to act on it
		return err
	}
	f, err := p.OpenFile(p.name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // waits for no pipe
	if err != nil {
		return s.clean(err)
	}
	defer f.Close()
	if err := s.isFile(f.Stat()); err != nil { // it may be another one by now
		return err
	}
	return s.clean(do(name, contextReader{ctx, f}))
}

// isFile refuses what is not a regular file.
func (s *Shell) isFile(info fs.FileInfo, err error) error {
	if err != nil {
		return s.clean(err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", filepath.Base(info.Name()))
	}
	return nil
}

// contextReader ends a long read when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func cat(ctx context.Context, s *Shell, args []string) error {
	return s.eachFile(ctx, args, func(_ string, r io.Reader) error {
		_, err := io.Copy(s.cfg.Out, r)
		return err
	})
}

func sha256sum(ctx context.Context, s *Shell, args []string) error {
	return s.checksums(ctx, args, sha256.New, func(sum []byte) string { return hex.EncodeToString(sum) })
}

func crc64sum(ctx context.Context, s *Shell, args []string) error {
	return s.checksums(ctx, args, func() hash.Hash { return manifest.NewCRC64() }, func(sum []byte) string { return "0x" + hex.EncodeToString(sum) })
}

func (s *Shell) checksums(ctx context.Context, args []string, newHash func() hash.Hash, text func([]byte) string) error {
	return s.eachFile(ctx, args, func(name string, r io.Reader) error {
		h := newHash()
		if _, err := io.Copy(h, r); err != nil {
			return err
		}
		_, err := fmt.Fprintf(s.cfg.Out, "%s  %s\n", text(h.Sum(nil)), Visible(name))
		return err
	})
}

// flag takes one leading flag off args.
func flag(args []string, name string) ([]string, bool) {
	if len(args) > 0 && args[0] == name {
		return args[1:], true
	}
	return args, false
}

func mkdir(_ context.Context, s *Shell, args []string) error {
	args, parents := flag(args, "-p")
	if len(args) == 0 {
		return usageError{}
	}
	if _, err := s.mayWrite(); err != nil {
		return err
	}
	for _, name := range args {
		if err := s.makeFolder(name, parents); err != nil {
			return err
		}
	}
	return nil
}

func (s *Shell) makeFolder(name string, parents bool) error {
	p, err := s.open(name)
	if err != nil {
		return err
	}
	defer p.Close()
	if parents {
		return s.clean(p.MkdirAll(p.name, 0o755))
	}
	return s.clean(p.Mkdir(p.name, 0o755))
}

func mv(ctx context.Context, s *Shell, args []string) error {
	if len(args) < 2 {
		return usageError{}
	}
	if _, err := s.mayWrite(); err != nil {
		return err
	}
	last := len(args) - 1
	to, err := s.open(args[last])
	if err != nil {
		return err
	}
	defer to.Close()
	info, err := to.Stat(to.name)
	into := err == nil && info.IsDir()
	if !into && (last > 1 || strings.HasSuffix(args[last], "/")) {
		return fmt.Errorf("%s is not a folder", args[last])
	}
	for _, from := range args[:last] {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := s.move(from, to, into); err != nil {
			return err
		}
	}
	return nil
}

// move renames one file or folder, to a name or into a folder.
func (s *Shell) move(name string, to place, into bool) error {
	from, err := s.open(name)
	if err != nil {
		return err
	}
	defer from.Close()
	if from.share != to.share {
		return fmt.Errorf("%s and %s are different shares: files move within their share", from.share, to.share)
	}
	if from.name == "." {
		return errors.New("a share itself cannot be moved")
	}
	target := to.name
	if into {
		target = path.Join(target, path.Base(from.name))
	}
	if _, err := to.Lstat(target); err == nil {
		return fmt.Errorf("%s is there already: nothing is overwritten", target)
	}
	return s.clean(to.Rename(from.name, target))
}

func rm(ctx context.Context, s *Shell, args []string) error {
	args, recursive := flag(args, "-r")
	if len(args) == 0 {
		return usageError{}
	}
	if err := s.mayDelete(); err != nil {
		return err
	}
	for _, name := range args {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := s.remove(name, recursive); err != nil {
			return err
		}
	}
	return nil
}

func (s *Shell) remove(name string, recursive bool) error {
	p, err := s.open(name)
	if err != nil {
		return err
	}
	defer p.Close()
	if p.name == "." {
		return errors.New("a share itself cannot be removed")
	}
	info, err := p.Lstat(p.name)
	switch {
	case err != nil:
		return s.clean(err)
	case recursive:
		return s.clean(p.RemoveAll(p.name))
	case info.IsDir():
		return fmt.Errorf("%s is a folder: use rm -r", name)
	}
	return s.clean(p.Remove(p.name))
}
