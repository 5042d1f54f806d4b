package nfs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io/fs"
	"net"
	"path"
	"strings"

	"github.com/go-git/go-billy/v5"
	gonfs "github.com/willscott/go-nfs"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// handler is what the library asks for on behalf of one connection. It implements
// [gonfs.Handler] and [gonfs.CachingHandler].
type handler struct {
	*conn
	listings []listing // the latest ones, newest last
}

// listing is what a folder held, so that a client who reads it in pieces sees each
// entry once.
type listing struct {
	verifier uint64
	entries  []fs.FileInfo
}

// maxListings is how many listings a connection keeps.
const maxListings = 4

// Mount implements [gonfs.Handler]: it lets the client have a share, or a folder in
// one. Refused, it still returns a file system, without which the library panics.
func (h *handler) Mount(_ context.Context, _ net.Conn, r gonfs.MountRequest) (gonfs.MountStatus, billy.Filesystem, []gonfs.AuthFlavor) {
	none := h.views[h.volumes[0]]
	name, below, _ := strings.Cut(strings.Trim(path.Clean("/"+string(r.Dirpath)), "/"), "/")
	v := h.volume(name)
	if v == nil {
		return gonfs.MountStatusErrNoEnt, none, nil
	}
	info, err := v.lstat(cmp.Or(below, "."))
	event := recording.FileEvent{Op: recording.OpConnect, Share: v.name, Path: below, Size: -1}
	switch {
	case err != nil:
		h.report(event, err)
		return gonfs.MountStatusErrNoEnt, none, nil
	case !info.IsDir():
		h.report(event, unix.ENOTDIR)
		return gonfs.MountStatusErrNotDir, none, nil
	}
	h.report(event, nil)
	return gonfs.MountStatusOk, &mounted{h.views[v], split(below)}, []gonfs.AuthFlavor{gonfs.AuthFlavorUnix, gonfs.AuthFlavorNull}
}

// mounted is where in a share a client begins.
type mounted struct {
	*view
	top []string
}

// Change implements [gonfs.Handler].
func (h *handler) Change(f billy.Filesystem) billy.Change { return f.(*view) }

// FSStat implements [gonfs.Handler].
func (h *handler) FSStat(_ context.Context, f billy.Filesystem, s *gonfs.FSStat) error {
	top, err := f.(*view).root.Open(".")
	if err != nil {
		return err
	}
	defer top.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(top.Fd()), &st); err != nil {
		return err
	}
	block := uint64(st.Bsize)
	s.TotalSize, s.FreeSize, s.AvailableSize = st.Blocks*block, st.Bfree*block, st.Bavail*block
	s.TotalFiles, s.FreeFiles, s.AvailableFiles = st.Files, st.Ffree, st.Ffree
	if !h.order.writable() {
		s.AvailableSize, s.AvailableFiles = 0, 0
	}
	return nil
}

// ToHandle implements [gonfs.Handler].
func (h *handler) ToHandle(f billy.Filesystem, path []string) []byte {
	if m, ok := f.(*mounted); ok {
		return h.tree.handle(h.tree.at(m.volume, m.top))
	}
	return h.tree.handle(h.tree.at(f.(*view).volume, path))
}

// FromHandle implements [gonfs.Handler].
func (h *handler) FromHandle(handle []byte) (billy.Filesystem, []string, error) {
	n, path, ok := h.tree.lookup(handle)
	if !ok {
		return nil, nil, unix.ESTALE
	}
	return h.views[n.volume], path, nil
}

// InvalidateHandle implements [gonfs.Handler]. The view has done it already.
func (h *handler) InvalidateHandle(billy.Filesystem, []byte) error { return nil }

// HandleLimit implements [gonfs.Handler].
func (h *handler) HandleLimit() int { return maxNodes }

// VerifierFor implements [gonfs.CachingHandler].
func (h *handler) VerifierFor(path string, entries []fs.FileInfo) uint64 {
	sum := sha256.New()
	sum.Write([]byte(path))
	for _, e := range entries {
		sum.Write([]byte("/" + e.Name()))
	}
	verifier := binary.BigEndian.Uint64(sum.Sum(nil))
	h.listings = append(h.listings, listing{verifier, entries})
	h.listings = h.listings[max(0, len(h.listings)-maxListings):]
	return verifier
}

// DataForVerifier implements [gonfs.CachingHandler].
func (h *handler) DataForVerifier(_ string, verifier uint64) []fs.FileInfo {
	for _, l := range h.listings {
		if l.verifier == verifier {
			return l.entries
		}
	}
	return nil
}
