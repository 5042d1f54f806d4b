package nfs

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/agent/internal/disk/disktest"
	"github.com/databox-lockbox/lockbox/agent/internal/share"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

func TestTree(t *testing.T) {
	tree, v := newTree(7), &volume{name: shareName}
	tree.addTop(v)
	path := func(handle []byte) string {
		_, path, ok := tree.lookup(handle)
		if !ok {
			return "stale"
		}
		return strings.Join(path, "/")
	}
	file := tree.handle(tree.at(v, []string{"a", "b", "file"}))
	other := tree.handle(tree.at(v, []string{"c", "d"}))
	if again := tree.handle(tree.at(v, []string{"a", "b", "file"})); string(again) != string(file) {
		t.Errorf("the handle changes: %x, %x", file, again)
	}
	tree.move(v, []string{"a", "b"}, []string{"c", "d"})
	if got := path(file); got != "c/d/file" {
		t.Errorf("moved to %s", got)
	}
	if got := path(other); got != "stale" {
		t.Errorf("what was replaced is %s", got)
	}
	tree.remove(v, []string{"c"})
	tree.remove(v, nil)
	if got := path(file); got != "stale" {
		t.Errorf("what was removed is %s", got)
	}
	if got := path(tree.handle(v.top)); got != "" {
		t.Errorf("the top is %s", got)
	}
	if _, _, ok := newTree(8).lookup(tree.handle(v.top)); ok {
		t.Error("another server takes the handle")
	}

	tree.limit = 100
	kept := tree.handle(tree.at(v, []string{"folder", "kept"}))
	for i := range 1000 {
		tree.at(v, []string{"many", fmt.Sprint(i)})
		path(kept)
	}
	if len(tree.nodes) > tree.limit {
		t.Errorf("%d nodes", len(tree.nodes))
	}
	if got := path(kept); got != "folder/kept" {
		t.Errorf("what is used all the time is %s", got)
	}
}

// FuzzRequest has anything answered: the answer is one, of the same transaction, and
// nothing panics.
func FuzzRequest(f *testing.F) {
	dir := f.TempDir()
	if err := os.Mkdir(dir+"/"+shareName, 0o700); err != nil {
		f.Fatal(err)
	}
	ours, theirs, err := socketPair()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { ours.Close(); theirs.Close() })
	go relay(ours, []share.Share{{Name: shareName}}, new(journal), make(chan struct{}))
	s, err := newServer(order{Shares: []share.Share{{Name: shareName}}, Access: approval.Delete, Allow: loopback}, dir, theirs)
	if err != nil {
		f.Fatal(err)
	}
	s.tree.instance = 1
	top := string(s.tree.handle(s.volumes[0].top))
	for proc := range uint32(len(failures)) {
		f.Add(record(1, programNFS, version3, proc, encode(nil, top, "name", top, "other", uint32(0), uint64(0), uint64(0))))
		f.Add(record(1, programNFS, version3, proc, encode(nil, top, uint64(0), uint64(0), uint32(4096), uint32(8192))))
	}
	for proc := range uint32(6) {
		f.Add(record(1, programMount, version3, proc, encode(nil, "/"+shareName)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 40 || len(data) > maxRequest {
			t.Skip()
		}
		here, there := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.attend(t.Context(), there)
		}()
		c := &client{t: t, conn: here}
		here.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := here.Write(append(encode(nil, uint32(lastFragment|len(data))), data...)); err == nil {
			if reply, err := c.receive(); err == nil && (len(reply) < 24 || !slices.Equal(reply[:4], data[:4])) {
				t.Errorf("% x is answered with % x", data, reply)
			}
		}
		here.Close()
		<-done
	})
}

// BenchmarkRead reads a file of a disk, and of a plain folder.
func BenchmarkRead(b *testing.B) {
	const size = 64 << 20
	for _, kind := range []string{"folder", "disk"} {
		b.Run(kind, func(b *testing.B) {
			folder, again := benchFolder(b, kind, random(b, size))
			b.SetBytes(size)
			for b.Loop() {
				b.StopTimer()
				again()
				st := startedAt(b, folder, approval.ReadOnly, Config{})
				c := st.dial(b)
				file := c.must(c.top(), "file")
				b.StartTimer()
				for offset := uint64(0); offset < size; offset += maxData {
					if data, status := c.read(file, offset, maxData); len(data) != maxData {
						b.Fatal(status, len(data))
					}
				}
				b.StopTimer()
				st.server.Stop(b.Context())
				b.StartTimer()
			}
		})
	}
}

// benchFolder returns a folder with a file, and what forgets that it was read.
func benchFolder(b *testing.B, kind string, data []byte) (folder string, forget func()) {
	b.Helper()
	disktest.NeedMounts(b)
	if kind == "folder" {
		folder = b.TempDir()
		writeFile(b, filepath.Join(folder, "file"), data)
		return folder, func() {}
	}
	image, key := disktest.Image(b)
	spec := disk.Spec{Disk: disk.Disk{ID: "disk1", Image: image}, RunDir: disktest.RunDir(b)}
	var opened *disk.Opened
	closeDisk := func() {
		if err := opened.Close(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	open := func() {
		var err error
		if opened, err = disk.Open(b.Context(), spec, key); err == nil {
			folder, err = opened.Mount(b.Context())
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	open()
	writeFile(b, filepath.Join(folder, "file"), data)
	b.Cleanup(closeDisk)
	return folder, func() { closeDisk(); open() }
}
