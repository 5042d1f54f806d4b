package nfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	gonfs "github.com/willscott/go-nfs"
)

// Programs and their versions (RFC 1813).
const (
	programNFS   = 100003
	programMount = 100005
	version3     = 3
)

// Bounds of a connection.
const (
	maxData     = 1 << 20          // bytes read or written at once
	maxRequest  = maxData + 4<<10  // bytes of a request
	maxReply    = 4 << 20          // bytes of a reply of the library's
	maxAuth     = 400              // bytes of a credential (RFC 5531, 8.2)
	maxName     = 255              // bytes of a name
	maxPath     = 4096             // bytes of a path below its share
	idleTime    = 15 * time.Minute // without a request
	requestTime = 30 * time.Second // for a request to arrive once it has begun
	replyTime   = 30 * time.Second // for a reply to be taken
)

// conn is one client's connection. Its requests are served one by one.
type conn struct {
	*server
	net    net.Conn
	client string
	in     *bufio.Reader
	inner  net.Conn // to the library
	views  map[*volume]*view
	buffer []byte // for replies to READ

	call request // being served
	err  error   // of the last operation on files that the library asked for
}

// request is one call (RFC 5531, 9).
type request struct {
	xid     uint32
	program uint32
	version uint32
	proc    uint32
	record  []byte // all of it
	body    []byte // its arguments
}

var errMalformed = errors.New("malformed request")

// attend serves one client until it leaves or breaks the rules.
func (s *server) attend(ctx context.Context, client net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ours, theirs := net.Pipe()
	c := &conn{
		server: s, net: client, client: client.RemoteAddr().String(), inner: ours,
		in: bufio.NewReaderSize(client, 64<<10), views: make(map[*volume]*view),
	}
	for _, v := range s.volumes {
		c.views[v] = &view{name: v.name, volume: v, conn: c}
	}
	library := &gonfs.Server{Handler: &handler{conn: c}, Context: ctx}
	listener := newOneShot(theirs)
	var done sync.WaitGroup
	done.Go(func() { library.Serve(listener) })
	c.serve()
	client.Close()
	ours.Close()
	listener.Close()
	done.Wait()
}

func (c *conn) serve() {
	for {
		if err := c.read(); err != nil {
			return
		}
		c.answering.RLock()
		reply, err := c.answer()
		c.answering.RUnlock()
		if err != nil {
			return
		}
		c.net.SetWriteDeadline(time.Now().Add(replyTime))
		if _, err := c.net.Write(reply); err != nil {
			return
		}
	}
}

// lastFragment marks the last fragment of a record (RFC 5531, 11).
const lastFragment = 1 << 31

// read reads the next request.
func (c *conn) read() error {
	c.net.SetReadDeadline(time.Now().Add(idleTime))
	var record []byte
	for last := false; !last; {
		var mark [4]byte
		if _, err := io.ReadFull(c.in, mark[:]); err != nil {
			return err
		}
		c.net.SetReadDeadline(time.Now().Add(requestTime))
		size := binary.BigEndian.Uint32(mark[:])
		last = size&lastFragment != 0
		size &^= lastFragment
		if int(size)+len(record) > maxRequest || size == 0 {
			return errMalformed
		}
		begun := len(record)
		record = append(record, make([]byte, size)...)
		if _, err := io.ReadFull(c.in, record[begun:]); err != nil {
			return err
		}
	}
	return c.parse(record)
}

// parse reads the header of a request.
func (c *conn) parse(record []byte) error {
	d := decoder{rest: record}
	call := request{record: record, xid: d.uint32()}
	if kind, rpc := d.uint32(), d.uint32(); kind != 0 || rpc != 2 {
		return errMalformed
	}
	call.program, call.version, call.proc = d.uint32(), d.uint32(), d.uint32()
	for range 2 { // credential and verifier: nobody is asked who they are
		d.uint32()
		d.opaque(maxAuth)
	}
	call.body = d.rest
	c.call = call
	return d.err
}

// answer returns the reply to the request, with its record mark.
func (c *conn) answer() ([]byte, error) {
	switch {
	case c.call.program != programNFS && c.call.program != programMount:
		return c.refuse(1), nil // PROG_UNAVAIL
	case c.call.version != version3:
		return c.refuse(2, version3, version3), nil // PROG_MISMATCH
	case c.call.program == programMount:
		return c.answerMount()
	}
	return c.answerNFS()
}

// answerMount answers the mount protocol (RFC 1813, 5).
func (c *conn) answerMount() ([]byte, error) {
	switch gonfs.MountProcedure(c.call.proc) {
	case gonfs.MountProcNull, gonfs.MountProcUmntAll:
		return c.reply(nil), nil
	case gonfs.MountProcMount, gonfs.MountProcUmnt:
		d := decoder{rest: c.call.body}
		switch path := d.opaque(gonfs.MntPathLen); {
		case d.err != nil:
			return c.refuse(4), nil // GARBAGE_ARGS
		case len(path) == 0: // which the library takes for garbage
			return c.reply(encode(nil, uint32(gonfs.MountStatusErrNoEnt))), nil
		}
		return c.ask()
	case gonfs.MountProcDump:
		return c.reply(encode(nil, false)), nil
	case gonfs.MountProcExport:
		return c.reply(c.exports()), nil
	}
	return c.refuse(3), nil // PROC_UNAVAIL
}

// answerNFS answers the NFS protocol (RFC 1813, 3).
func (c *conn) answerNFS() ([]byte, error) {
	proc := gonfs.NFSProcedure(c.call.proc)
	if int(proc) >= len(failures) {
		return c.refuse(3), nil
	}
	if proc == gonfs.NFSProcedureNull {
		return c.reply(nil), nil
	}
	if status := c.check(proc); status != gonfs.NFSStatusOk {
		return c.fail(status), nil
	}
	switch proc {
	case gonfs.NFSProcedureRead:
		return c.onRead(), nil
	case gonfs.NFSProcedureWrite:
		return c.onWrite(), nil
	case gonfs.NFSProcedureCommit:
		return c.onCommit(), nil
	case gonfs.NFSProcedureCreate:
		return c.onCreate(), nil
	case gonfs.NFSProcedureFSInfo:
		return c.onFSInfo(), nil
	case gonfs.NFSProcedureReadlink:
		return c.fail(gonfs.NFSStatusAccess), nil
	case gonfs.NFSProcedureSymlink, gonfs.NFSProcedureMkNod, gonfs.NFSProcedureLink:
		return c.fail(gonfs.NFSStatusNotSupp), nil
	}
	c.err = nil
	reply, err := c.ask()
	if err != nil {
		return nil, err
	}
	return c.repair(reply), nil
}

// check looks at the file handles and names that a request begins with.
func (c *conn) check(proc gonfs.NFSProcedure) gonfs.NFSStatus {
	d := decoder{rest: c.call.body}
	status := c.checkHandle(&d)
	switch proc {
	case gonfs.NFSProcedureLookup:
		if status == gonfs.NFSStatusOk {
			status = checkName(&d, true)
		}
	case gonfs.NFSProcedureRename:
		if status == gonfs.NFSStatusOk {
			status = checkName(&d, false)
		}
		if status == gonfs.NFSStatusOk {
			status = c.checkHandle(&d)
		}
		fallthrough
	case gonfs.NFSProcedureCreate, gonfs.NFSProcedureMkDir, gonfs.NFSProcedureRemove, gonfs.NFSProcedureRmDir:
		if status == gonfs.NFSStatusOk {
			status = checkName(&d, false)
		}
	}
	return status
}

func (c *conn) checkHandle(d *decoder) gonfs.NFSStatus {
	handle := d.opaque(gonfs.FHSize)
	if d.err != nil {
		return gonfs.NFSStatusBadHandle
	}
	_, path, ok := c.tree.lookup(handle)
	switch {
	case !ok:
		return gonfs.NFSStatusStale
	case len(strings.Join(path, "/")) > maxPath-maxName-1:
		return gonfs.NFSStatusNameTooLong
	}
	return gonfs.NFSStatusOk
}

// checkName refuses what names nothing within a folder.
func checkName(d *decoder, dots bool) gonfs.NFSStatus {
	name := string(d.opaque(maxPath))
	switch {
	case d.err != nil, name == "", strings.ContainsAny(name, "/\x00"):
		return gonfs.NFSStatusInval
	case len(name) > maxName:
		return gonfs.NFSStatusNameTooLong
	case (name == "." || name == "..") && !dots:
		return gonfs.NFSStatusInval
	}
	return gonfs.NFSStatusOk
}

// ask has the library answer the request.
func (c *conn) ask() ([]byte, error) {
	call := binary.BigEndian.AppendUint32(nil, lastFragment|uint32(len(c.call.record)))
	if _, err := c.inner.Write(append(call, c.call.record...)); err != nil {
		return nil, err
	}
	reply := make([]byte, 4)
	if _, err := io.ReadFull(c.inner, reply); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(reply) &^ lastFragment
	if size > maxReply {
		return nil, errMalformed
	}
	reply = append(reply, make([]byte, size)...)
	_, err := io.ReadFull(c.inner, reply[4:])
	return reply, err
}

// replyHeader is the length of a reply before its results: record mark, transaction,
// kind, acceptance, empty verifier, success.
const replyHeader = 4 + 24

// repair makes a failure of the library's one that says what failed and is
// well-formed.
func (c *conn) repair(reply []byte) []byte {
	status := gonfs.NFSStatusInval // it did not understand the arguments
	if len(reply) >= replyHeader+4 && binary.BigEndian.Uint32(reply[replyHeader-4:]) == 0 {
		status = gonfs.NFSStatus(binary.BigEndian.Uint32(reply[replyHeader:]))
	}
	if status == gonfs.NFSStatusOk {
		return reply
	}
	if c.err != nil {
		status = statusOf(c.err)
	}
	return c.fail(status)
}

// failures say how many empty attributes follow the status of a failed procedure:
// each is one word that says that it is not there.
var failures = [...]int{
	gonfs.NFSProcedureGetAttr: 0, gonfs.NFSProcedureSetAttr: 2, gonfs.NFSProcedureLookup: 1, gonfs.NFSProcedureAccess: 1,
	gonfs.NFSProcedureReadlink: 1, gonfs.NFSProcedureRead: 1, gonfs.NFSProcedureWrite: 2, gonfs.NFSProcedureCreate: 2,
	gonfs.NFSProcedureMkDir: 2, gonfs.NFSProcedureSymlink: 2, gonfs.NFSProcedureMkNod: 2, gonfs.NFSProcedureRemove: 2,
	gonfs.NFSProcedureRmDir: 2, gonfs.NFSProcedureRename: 4, gonfs.NFSProcedureLink: 3, gonfs.NFSProcedureReadDir: 1,
	gonfs.NFSProcedureReadDirPlus: 1, gonfs.NFSProcedureFSStat: 1, gonfs.NFSProcedureFSInfo: 1, gonfs.NFSProcedurePathConf: 1,
	gonfs.NFSProcedureCommit: 2,
}

// fail returns the reply that a procedure of NFS failed.
func (c *conn) fail(status gonfs.NFSStatus) []byte {
	b := encode(nil, uint32(status))
	return c.reply(append(b, make([]byte, 4*failures[c.call.proc])...))
}

// reply returns a reply with results.
func (c *conn) reply(results []byte) []byte {
	return append(c.header(0, len(results)), results...)
}

// header begins a reply to an accepted call, of which size bytes follow.
func (c *conn) header(state uint32, size int) []byte {
	return encode(nil, uint32(lastFragment|(replyHeader-4+size)), c.call.xid, uint32(1), uint32(0), uint32(0), uint32(0), state)
}

// refuse returns a reply that the call itself cannot be served.
func (c *conn) refuse(state uint32, info ...uint32) []byte {
	b := c.header(state, 4*len(info))
	for _, word := range info {
		b = encode(b, word)
	}
	return b
}

// oneShot is a listener with one connection.
type oneShot struct {
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

func newOneShot(c net.Conn) *oneShot {
	l := &oneShot{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
	l.close = sync.OnceFunc(func() { close(l.closed) })
	l.conns <- c
	return l
}

// Accept implements [net.Listener].
func (l *oneShot) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (l *oneShot) Close() error {
	l.close()
	return nil
}

// Addr implements [net.Listener].
func (l *oneShot) Addr() net.Addr { return &net.UnixAddr{} }
