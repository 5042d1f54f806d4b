package support

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
	"strings"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// sharesDir is where the shares are seen. Above it is nothing.
const sharesDir = "/shares"

// place is a path within one share. Its root keeps every access below the
// share's folder, whatever symbolic links say. The caller closes it.
type place struct {
	*os.Root
	name  string // relative to the share; "." is the share itself
	share string
}

// open finds the share that a path lies in.
func (s *shell) open(name string) (place, error) {
	lease, err := s.lease()
	if err != nil {
		return place{}, err
	}
	full := s.resolve(name)
	rest, ok := strings.CutPrefix(full, sharesDir+"/")
	if !ok {
		return place{}, fmt.Errorf("%s: there is nothing but %s here", full, sharesDir)
	}
	share, inside, _ := strings.Cut(rest, "/")
	for _, sh := range lease.Shares {
		if shareName(lease.Shares, sh) != share {
			continue
		}
		root, err := os.OpenRoot(sh.Dir())
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

// shareName is the folder name of a share: its own, with the disk behind it if
// two disks have it.
func shareName(all []copyjob.Share, sh copyjob.Share) string {
	for _, other := range all {
		if other.Share == sh.Share && other.Disk != sh.Disk {
			return sh.Share.String() + "-" + string(sh.Disk)
		}
	}
	return sh.Share.String()
}

// clean takes the device's own paths out of an error.
func (s *shell) clean(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: %w", path.Base(p.Path), p.Err)
	}
	if l, ok := errors.AsType[*os.LinkError](err); ok {
		return fmt.Errorf("%s to %s: %w", path.Base(l.Old), path.Base(l.New), l.Err)
	}
	return err
}

func readOnly() error {
	return protocol.Errorf(protocol.CodeForbidden, "the approval is read-only: nothing can be changed")
}

// mayWrite refuses unless the approval lets its engineer change files.
func (s *shell) mayWrite() error {
	lease, err := s.lease()
	if err != nil {
		return err
	}
	if lease.Access == approval.ReadOnly {
		return readOnly()
	}
	return nil
}

func pwd(_ context.Context, s *shell, _ []string) error {
	_, err := fmt.Fprintln(s.out, s.dir)
	return err
}

func cd(_ context.Context, s *shell, args []string) error {
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

func ls(_ context.Context, s *shell, args []string) error {
	if len(args) > 1 {
		return usageError{}
	}
	target := s.dir
	if len(args) == 1 {
		target = s.resolve(args[0])
	}
	lease, err := s.lease()
	if err != nil {
		return err
	}
	switch target {
	case "/":
		_, err := fmt.Fprintln(s.out, "shares/")
		return err
	case sharesDir:
		for _, sh := range lease.Shares {
			fmt.Fprintln(s.out, shareName(lease.Shares, sh)+"/")
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
	if !info.IsDir() {
		return s.listEntry(fs.FileInfoToDirEntry(info))
	}
	entries, err := fs.ReadDir(p.FS(), p.name)
	if err != nil {
		return s.clean(err)
	}
	for _, e := range entries {
		if err := s.listEntry(e); err != nil {
			return err
		}
	}
	return nil
}

func (s *shell) listEntry(e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return s.clean(err)
	}
	name := visible(e.Name())
	if e.IsDir() {
		name += "/"
	}
	_, err = fmt.Fprintf(s.out, "%12d  %s  %s\n", info.Size(), info.ModTime().UTC().Format("2006-01-02 15:04"), name)
	return err
}

// visible keeps file names from steering the terminal.
func visible(name string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || (r >= 0x7f && r < 0xa0) {
			return '\uFFFD'
		}
		return r
	}, name)
}

func find(ctx context.Context, s *shell, args []string) error {
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
	return s.clean(fs.WalkDir(p.FS(), p.name, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		_, err = fmt.Fprintln(s.out, visible(path.Join(sharesDir, p.share, name)))
		return err
	}))
}

// eachFile opens every named file in turn.
func (s *shell) eachFile(ctx context.Context, args []string, do func(name string, r io.Reader) error) error {
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

func (s *shell) oneFile(ctx context.Context, name string, do func(string, io.Reader) error) error {
	p, err := s.open(name)
	if err != nil {
		return err
	}
	defer p.Close()
	info, err := p.Stat(p.name)
	if err != nil {
		return s.clean(err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", visible(name))
	}
	f, err := p.Open(p.name)
	if err != nil {
		return s.clean(err)
	}
	defer f.Close()
	return s.clean(do(name, contextReader{ctx, f}))
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

func cat(ctx context.Context, s *shell, args []string) error {
	return s.eachFile(ctx, args, func(_ string, r io.Reader) error {
		_, err := io.Copy(s.out, r)
		return err
	})
}

func sha256sum(ctx context.Context, s *shell, args []string) error {
	return s.checksums(ctx, args, sha256.New, func(sum []byte) string { return hex.EncodeToString(sum) })
}

func crc64sum(ctx context.Context, s *shell, args []string) error {
	return s.checksums(ctx, args, func() hash.Hash { return manifest.NewCRC64() }, func(sum []byte) string { return "0x" + hex.EncodeToString(sum) })
}

func (s *shell) checksums(ctx context.Context, args []string, newHash func() hash.Hash, text func([]byte) string) error {
	return s.eachFile(ctx, args, func(name string, r io.Reader) error {
		h := newHash()
		if _, err := io.Copy(h, r); err != nil {
			return err
		}
		_, err := fmt.Fprintf(s.out, "%s  %s\n", text(h.Sum(nil)), visible(name))
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

func mkdir(_ context.Context, s *shell, args []string) error {
	args, parents := flag(args, "-p")
	if len(args) == 0 {
		return usageError{}
	}
	if err := s.mayWrite(); err != nil {
		return err
	}
	for _, name := range args {
		if err := s.makeFolder(name, parents); err != nil {
			return err
		}
	}
	return nil
}

func (s *shell) makeFolder(name string, parents bool) error {
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

func mv(_ context.Context, s *shell, args []string) error {
	if len(args) != 2 {
		return usageError{}
	}
	if err := s.mayWrite(); err != nil {
		return err
	}
	from, err := s.open(args[0])
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := s.open(args[1])
	if err != nil {
		return err
	}
	defer to.Close()
	if from.share != to.share {
		return fmt.Errorf("%s and %s are different shares: files move within their share", from.share, to.share)
	}
	if from.name == "." {
		return errors.New("a share itself cannot be moved")
	}
	target := to.name
	if info, err := to.Stat(target); err == nil && info.IsDir() {
		target = path.Join(target, path.Base(from.name))
	}
	if _, err := to.Lstat(target); err == nil {
		return fmt.Errorf("%s is there already: nothing is overwritten", visible(target))
	}
	return s.clean(from.Rename(from.name, target))
}

func rm(_ context.Context, s *shell, args []string) error {
	args, recursive := flag(args, "-r")
	if len(args) == 0 {
		return usageError{}
	}
	lease, err := s.lease()
	if err != nil {
		return err
	}
	if lease.Access != approval.Delete {
		return protocol.Errorf(protocol.CodeForbidden, "the approval does not say delete: raise a request with --access delete")
	}
	for _, name := range args {
		if err := s.remove(name, recursive); err != nil {
			return err
		}
	}
	return nil
}

func (s *shell) remove(name string, recursive bool) error {
	p, err := s.open(name)
	if err != nil {
		return err
	}
	defer p.Close()
	if p.name == "." {
		return errors.New("a share itself cannot be removed")
	}
	if recursive {
		return s.clean(p.RemoveAll(p.name))
	}
	return s.clean(p.Remove(p.name))
}
