package nfs

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	gonfs "github.com/willscott/go-nfs"
)

// client speaks to a server as no decent client would.
type client struct {
	t    testing.TB
	conn net.Conn
	xid  uint32
}

func dial(t testing.TB, address string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &client{t: t, conn: conn}
}

func (st *shareTest) dial(t testing.TB) *client {
	t.Helper()
	return dial(t, st.server.Address())
}

// record returns a request of any content.
func record(xid, program, version, proc uint32, args []byte) []byte {
	b := encode(nil, xid, uint32(0), uint32(2), program, version, proc, uint32(1), "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", uint32(0), uint32(0))
	return append(b, args...)
}

func (c *client) send(program, proc uint32, args []byte) error {
	c.xid++
	r := record(c.xid, program, version3, proc, args)
	c.conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, err := c.conn.Write(append(binary.BigEndian.AppendUint32(nil, lastFragment|uint32(len(r))), r...))
	return err
}

func (c *client) receive() ([]byte, error) {
	var mark [4]byte
	if _, err := io.ReadFull(c.conn, mark[:]); err != nil {
		return nil, err
	}
	reply := make([]byte, binary.BigEndian.Uint32(mark[:])&^lastFragment)
	_, err := io.ReadFull(c.conn, reply)
	return reply, err
}

// call returns the results of a call.
func (c *client) call(program, proc uint32, args []byte) *decoder {
	c.t.Helper()
	if err := c.send(program, proc, args); err != nil {
		c.t.Fatal(err)
	}
	reply, err := c.receive()
	if err != nil {
		c.t.Fatal(err)
	}
	d := decoder{rest: reply}
	if xid := d.uint32(); xid != c.xid {
		c.t.Fatalf("the answer to %d answers %d", c.xid, xid)
	}
	for _, want := range []uint32{1, 0, 0, 0, 0} {
		if got := d.uint32(); got != want {
			c.t.Fatalf("refused: % x", reply)
		}
	}
	return &d
}

// nfs calls a procedure of NFS and returns its status.
func (c *client) nfs(proc gonfs.NFSProcedure, args []byte) (gonfs.NFSStatus, *decoder) {
	c.t.Helper()
	d := c.call(programNFS, uint32(proc), args)
	return gonfs.NFSStatus(d.uint32()), d
}

// mount returns the handle of a share or a folder in one.
func (c *client) mount(path string) (handle string, status gonfs.MountStatus) {
	c.t.Helper()
	d := c.call(programMount, uint32(gonfs.MountProcMount), encode(nil, path))
	if status = gonfs.MountStatus(d.uint32()); status == gonfs.MountStatusOk {
		handle = string(d.opaque(gonfs.FHSize))
	}
	return handle, status
}

func (c *client) top() string {
	c.t.Helper()
	handle, status := c.mount("/" + shareName)
	if status != gonfs.MountStatusOk {
		c.t.Fatalf("mounting: %d", status)
	}
	return handle
}

func (c *client) lookup(dir, name string) (string, gonfs.NFSStatus) {
	c.t.Helper()
	status, d := c.nfs(gonfs.NFSProcedureLookup, encode(nil, dir, name))
	return string(d.opaque(gonfs.FHSize)), status
}

// must looks up what is there.
func (c *client) must(dir, name string) string {
	c.t.Helper()
	handle, status := c.lookup(dir, name)
	if status != gonfs.NFSStatusOk {
		c.t.Fatalf("looking up %q: %v", name, status)
	}
	return handle
}

// noAttributes is a sattr3 that sets nothing.
var noAttributes = make([]byte, 6*4)

func (c *client) create(dir, name string, how uint32, rest []byte) (string, gonfs.NFSStatus) {
	c.t.Helper()
	status, d := c.nfs(gonfs.NFSProcedureCreate, append(encode(nil, dir, name, how), rest...))
	d.uint32()
	return string(d.opaque(gonfs.FHSize)), status
}

func (c *client) read(file string, offset uint64, count uint32) (string, gonfs.NFSStatus) {
	c.t.Helper()
	status, d := c.nfs(gonfs.NFSProcedureRead, encode(nil, file, offset, count))
	if status != gonfs.NFSStatusOk {
		return "", status
	}
	d.take(4 + 84 + 8)
	return string(d.opaque(maxData)), status
}

func (c *client) write(file string, offset uint64, data string, how uint32) (committed uint32, status gonfs.NFSStatus) {
	c.t.Helper()
	status, d := c.nfs(gonfs.NFSProcedureWrite, encode(nil, file, offset, uint32(len(data)), how, data))
	if status == gonfs.NFSStatusOk {
		d.take(4 + 24 + 4 + 84 + 4)
		committed = d.uint32()
	}
	return committed, status
}

func (c *client) commit(file string) gonfs.NFSStatus {
	c.t.Helper()
	status, _ := c.nfs(gonfs.NFSProcedureCommit, encode(nil, file, uint64(0), uint32(0)))
	return status
}

// status calls a procedure with a folder and a name.
func (c *client) status(proc gonfs.NFSProcedure, dir, name string, rest ...byte) gonfs.NFSStatus {
	c.t.Helper()
	status, _ := c.nfs(proc, append(encode(nil, dir, name), rest...))
	return status
}

// list reads a folder in pieces.
func (c *client) list(dir string, between func()) []string {
	c.t.Helper()
	var names []string
	var cookie, verifier uint64
	for {
		status, d := c.nfs(gonfs.NFSProcedureReadDir, encode(nil, dir, cookie, verifier, uint32(8192)))
		if status != gonfs.NFSStatusOk {
			c.t.Fatalf("listing after %d names: %v", len(names), status)
		}
		d.take(4 + 84)
		verifier = d.uint64()
		for d.uint32() == 1 {
			d.uint64()
			names = append(names, string(d.opaque(maxName)))
			cookie = d.uint64()
		}
		if d.uint32() == 1 || d.err != nil {
			return names
		}
		between()
	}
}
