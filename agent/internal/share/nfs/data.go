package nfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path"

	gonfs "github.com/willscott/go-nfs"

	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// How a WRITE wants its data kept (RFC 1813, 3.3.7).
const (
	unstable = 0
	fileSync = 2
)

// How a CREATE treats a file that is there (RFC 1813, 3.3.8).
const (
	unchecked = 0
	guarded   = 1
	exclusive = 2
)

// target is the file that a request is about.
type target struct {
	*view
	node *node
	path string
	info info // as it was before
}

// target returns the file of a handle.
func (c *conn) target(d *decoder) (target, error) {
	n, names, ok := c.tree.lookup(d.opaque(gonfs.FHSize))
	if !ok {
		return target{}, os.ErrNotExist
	}
	t := target{view: c.views[n.volume], node: n, path: join(names)}
	var err error
	t.info, err = t.stat(t.path)
	return t, err
}

// attributes returns post_op_attr of a file, "not there" if it cannot be seen.
func (v *view) attributes(name string) []byte {
	var b bytes.Buffer
	if i, err := v.stat(name); err == nil {
		gonfs.WritePostOpAttrs(&b, gonfs.ToFileAttribute(i, name))
	} else {
		gonfs.WritePostOpAttrs(&b, nil)
	}
	return b.Bytes()
}

// change returns wcc_data of the target: how it was and is.
func (t target) change() []byte {
	var b bytes.Buffer
	var now *gonfs.FileAttribute
	if i, err := t.stat(t.path); err == nil {
		now = gonfs.ToFileAttribute(i, t.path)
	}
	gonfs.WriteWcc(&b, gonfs.ToFileAttribute(t.info, t.path).AsCache(), now)
	return b.Bytes()
}

// onRead answers READ (RFC 1813, 3.3.6).
func (c *conn) onRead() []byte {
	d := decoder{rest: c.call.body}
	t, err := c.target(&d)
	offset, count := d.uint64(), min(d.uint32(), maxData)
	if d.err != nil || offset > 1<<62 {
		return c.fail(gonfs.NFSStatusInval)
	}
	if err != nil {
		return c.failHandle(err)
	}
	f, err := c.open.get(t, false)
	if err != nil {
		return c.failHandle(err)
	}
	defer c.open.put(f)
	var attributes bytes.Buffer
	gonfs.WritePostOpAttrs(&attributes, gonfs.ToFileAttribute(t.info, t.path))
	before := 4 + attributes.Len() + 12
	if c.buffer == nil {
		c.buffer = make([]byte, replyHeader+before+maxData+3)
	}
	data := c.buffer[replyHeader+before:][:count]
	n, err := f.ReadAt(data, int64(offset))
	if err != nil && !errors.Is(err, io.EOF) {
		return c.fail(statusOf(err))
	}
	f.transferred(int64(offset), data[:n])
	f.readAhead(int64(offset), int64(offset)+int64(n))
	padded := (n + 3) &^ 3
	clear(c.buffer[replyHeader+before+n:][:padded-n])
	b := append(c.buffer[:0], c.header(0, before+padded)...)
	b = append(encode(b, uint32(gonfs.NFSStatusOk)), attributes.Bytes()...)
	b = encode(b, uint32(n), err != nil || int64(offset)+int64(n) >= t.info.Size(), uint32(n))
	return b[:len(b)+padded]
}

// onWrite answers WRITE (RFC 1813, 3.3.7). Data that must be stable is synced; for
// the rest the answer says that it is not yet.
func (c *conn) onWrite() []byte {
	d := decoder{rest: c.call.body}
	t, err := c.target(&d)
	offset, count, how, data := d.uint64(), d.uint32(), d.uint32(), d.opaque(maxData)
	switch {
	case d.err != nil, offset > 1<<62, how > fileSync:
		return c.fail(gonfs.NFSStatusInval)
	case err != nil:
		return c.failHandle(err)
	case !c.order.writable():
		return c.fail(gonfs.NFSStatusROFS)
	}
	f, err := c.open.get(t, true)
	if err != nil {
		return c.failHandle(err)
	}
	defer c.open.put(f)
	data = data[:min(len(data), int(count))]
	n, err := f.WriteAt(data, int64(offset))
	f.transferred(int64(offset), data[:n])
	if err == nil && how != unstable {
		how = fileSync
		err = f.Sync()
	}
	if err != nil {
		return c.fail(statusOf(err))
	}
	b := append(encode(nil, uint32(gonfs.NFSStatusOk)), t.change()...)
	return c.reply(encode(b, uint32(n), how, c.tree.instance))
}

// onCommit answers COMMIT (RFC 1813, 3.3.21).
func (c *conn) onCommit() []byte {
	d := decoder{rest: c.call.body}
	t, err := c.target(&d)
	switch {
	case err != nil:
		return c.failHandle(err)
	case !c.order.writable():
		return c.fail(gonfs.NFSStatusROFS)
	}
	f, err := c.open.get(t, true)
	if err != nil {
		return c.failHandle(err)
	}
	defer c.open.put(f)
	if err := f.Sync(); err != nil {
		return c.fail(statusOf(err))
	}
	b := append(encode(nil, uint32(gonfs.NFSStatusOk)), t.change()...)
	return c.reply(encode(b, c.tree.instance))
}

// failHandle answers that the file of a handle cannot be had: one that is gone has
// a stale handle.
func (c *conn) failHandle(err error) []byte {
	if errors.Is(err, os.ErrNotExist) {
		return c.fail(gonfs.NFSStatusStale)
	}
	return c.fail(statusOf(err))
}

// onCreate answers CREATE (RFC 1813, 3.3.8).
func (c *conn) onCreate() []byte {
	d := decoder{rest: c.call.body}
	dir, err := c.target(&d)
	name, how := string(d.opaque(maxName)), d.uint32()
	var attributes *gonfs.SetFileAttributes
	var verifier uint64
	switch {
	case how == exclusive:
		verifier = d.uint64() | 1 // 0 is none
	case how <= guarded && d.err == nil:
		attributes, d.err = gonfs.ReadSetFileAttributes(bytes.NewReader(d.rest))
	default:
		return c.fail(gonfs.NFSStatusInval)
	}
	switch {
	case d.err != nil:
		return c.fail(gonfs.NFSStatusInval)
	case err != nil:
		return c.failHandle(err)
	case !dir.info.IsDir():
		return c.fail(gonfs.NFSStatusNotDir)
	case !c.order.writable():
		return c.fail(gonfs.NFSStatusROFS)
	}
	file := path.Join(dir.path, name)
	if err := dir.create(file, how, verifier); err != nil {
		return c.fail(statusOf(err))
	}
	if attributes != nil {
		c.err = nil
		if err := attributes.Apply(dir.view, dir.view, file); err != nil {
			return c.fail(statusOf(errors.Join(c.err, err)))
		}
	}
	n := c.tree.at(dir.volume, split(file))
	n.verifier = verifier
	b := encode(nil, uint32(gonfs.NFSStatusOk), true, string(c.tree.handle(n)))
	b = append(b, dir.attributes(file)...)
	return c.reply(append(b, dir.change()...))
}

// create makes a file, or finds that it is there and may be.
func (t target) create(name string, how uint32, verifier uint64) error {
	t.conn.naming.Lock()
	defer t.conn.naming.Unlock()
	f, err := t.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if errors.Is(err, os.ErrExist) {
		switch i, statErr := t.lstat(name); {
		case statErr != nil || !i.Mode().IsRegular() || how == guarded:
			return err
		case how == exclusive && t.conn.tree.at(t.volume, split(name)).verifier != verifier:
			return err
		}
		return nil
	}
	return t.done(recording.OpCreate, name, err)
}

// onFSInfo answers FSINFO (RFC 1813, 3.3.19).
func (c *conn) onFSInfo() []byte {
	d := decoder{rest: c.call.body}
	t, err := c.target(&d)
	if err != nil {
		return c.failHandle(err)
	}
	const data, multiple, listing = uint32(maxData), uint32(4096), uint32(64 << 10)
	const homogeneous, canSetTime = uint32(0x8), uint32(0x10)
	b := append(encode(nil, uint32(gonfs.NFSStatusOk)), t.attributes(t.path)...)
	return c.reply(encode(b, data, data, multiple, data, data, multiple, listing,
		uint64(1<<62), uint32(0), uint32(100), homogeneous|canSetTime))
}

// exports lists the shares (RFC 1813, 5.2.5), for everybody who may connect.
func (c *conn) exports() []byte {
	var b []byte
	for _, v := range c.volumes {
		b = encode(b, true, "/"+v.name, false)
	}
	return binary.BigEndian.AppendUint32(b, 0)
}
