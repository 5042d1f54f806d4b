package share

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// smbd reports what clients do by its module full_audit, which writes to syslog. In
// smbd's mount table /dev is a folder of ours ([coverDev]), where log is a socket
// that the agent reads: one datagram is one operation, whatever is in a file's name.
// A queue that is full makes smbd wait, so nothing is lost while the agent lives;
// killing the agent loses at most what is in the queue, and kills smbd.

// auditConf makes smbd report what clients do in a share, with what modules below
// refuse. "fail" of openat tells a file that is new from one that was there.
const auditConf = `	vfs objects = full_audit {more}
	full_audit:prefix = %d|%I|%S
	full_audit:facility = LOCAL5
	full_audit:priority = NOTICE
	full_audit:success = connect disconnect openat create_file close strict_lock_check mkdirat renameat unlinkat linkat symlinkat mknodat ftruncate fallocate fchmod fntimes fset_dos_attributes fset_nt_acl
	full_audit:failure = openat create_file pread_recv pwrite_recv mkdirat renameat unlinkat linkat symlinkat mknodat ftruncate fallocate fchmod fntimes fset_dos_attributes fset_nt_acl
`

// auditStart is how the datagrams of full_audit begin: facility LOCAL5, NOTICE.
const auditStart = "<173>"

// auditLine is what full_audit says of one operation.
type auditLine struct {
	pid     string // of the smbd that serves the client, in its own namespace
	client  string // IP address
	share   string
	op      string // e.g. "openat"
	failure string // "" if it succeeded
	args    string // of the operation; anything can be in a name
}

// parseAudit reads one datagram. ok is false for what comes from somewhere else.
// An error means that the format is not the known one.
func parseAudit(datagram []byte) (line auditLine, ok bool, err error) {
	text, ours := bytes.CutPrefix(datagram, []byte(auditStart))
	if !ours {
		return auditLine{}, false, nil
	}
	const stamp = len("Jan _2 15:04:05 ")
	if len(text) < stamp {
		return auditLine{}, false, unknownLine(datagram)
	}
	rest, named := strings.CutPrefix(string(text[stamp:]), "smbd_audit: ")
	rest, ended := strings.CutSuffix(rest, "\n")
	parts := strings.SplitN(rest, "|", 6)
	if !named || !ended || len(parts) != 6 {
		return auditLine{}, false, unknownLine(datagram)
	}
	line = auditLine{parts[0], parts[1], parts[2], parts[3], "", parts[5]}
	if result := parts[4]; result != "ok" {
		why, opened := strings.CutPrefix(result, "fail (")
		why, closed := strings.CutSuffix(why, ")")
		if !opened || !closed || why == "" {
			return auditLine{}, false, unknownLine(datagram)
		}
		line.failure = why
	}
	if _, err := strconv.ParseUint(line.pid, 10, 32); err != nil || net.ParseIP(line.client) == nil {
		return auditLine{}, false, unknownLine(datagram)
	}
	return line, true, nil
}

func unknownLine(datagram []byte) error {
	return fmt.Errorf("smbd reports in an unknown form: %.200q", datagram)
}

// checkedRange is what full_audit says of strict_lock_check, which precedes every
// read and write: the file, and which bytes of it. All but the name is digits, so
// that no name can be taken for it.
var checkedRange = regexp.MustCompile(`(?s)^(.*):(\d{1,20})-(\d{1,20}):([01])$`)

// span is bytes of a file that a client reads or writes.
type span struct {
	offset, length int64
	write          bool
}

func parseRange(args string) (path string, s span, err error) {
	m := checkedRange.FindStringSubmatch(args)
	if m == nil {
		return "", span{}, fmt.Errorf("smbd reports an unknown range: %.200q", args)
	}
	s.write = m[4] == "1"
	if s.offset, err = strconv.ParseInt(m[2], 10, 64); err == nil {
		s.length, err = strconv.ParseInt(m[3], 10, 64)
	}
	if err == nil && s.offset+s.length < s.offset {
		err = errors.New("its end is out of range")
	}
	return m[1], s, err
}

// auditor takes down what smbd reports, until it is closed or something cannot be
// taken down.
type auditor struct {
	conn    *net.UnixConn
	tracker *tracker
	broken  func(error) // called when the record has stopped
	ended   chan struct{}
}

// maxDatagram is longer than any report: two paths of at most 4 KiB each.
const maxDatagram = 16 << 10

// listenAudit makes the socket and takes down what comes. broken is called when the
// record has stopped.
func listenAudit(path string, t *tracker, broken func(error)) (*auditor, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("cannot hear from smbd: %w", err)
	}
	a := &auditor{conn: conn, tracker: t, broken: broken, ended: make(chan struct{})}
	go a.run()
	return a, nil
}

func (a *auditor) run() {
	defer close(a.ended)
	err := a.read()
	if errors.Is(err, os.ErrDeadlineExceeded) { // told to end
		err = a.tracker.flush()
	}
	if err != nil {
		a.broken(err)
	}
}

func (a *auditor) read() error {
	for datagram := make([]byte, maxDatagram); ; {
		n, err := a.conn.Read(datagram)
		if err != nil {
			return err
		}
		if n == len(datagram) {
			return errors.New("smbd reports something that is too long")
		}
		line, ok, err := parseAudit(datagram[:n])
		if err == nil && ok {
			err = a.tracker.take(line)
		}
		if err != nil {
			return err
		}
	}
}

// lastReports is how long reports are waited for when smbd is dead. They are in the
// queue already.
const lastReports = 30 * time.Millisecond

// lastRecord is how long it may take until all of them are recorded.
const lastRecord = 100 * time.Millisecond

// close takes down what smbd has still reported, and what is open of files. It
// waits a moment only. It may be called more than once.
func (a *auditor) close() error {
	a.conn.SetReadDeadline(time.Now().Add(lastReports))
	var err error
	select {
	case <-a.ended:
	case <-time.After(lastRecord):
		err = errors.New("the end of what SMB clients did is not recorded: recording takes too long")
	}
	a.conn.Close()
	a.tracker.close()
	return err
}

// coverDev covers /dev in the calling thread's own mount table with dev, where
// there is what smbd needs of it, and log.
func coverDev(dev string) error {
	for _, name := range []string{"null", "urandom"} {
		if err := os.WriteFile(dev+"/"+name, nil, 0o600); err != nil {
			return err
		}
		if err := unix.Mount("/dev/"+name, dev+"/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cannot give smbd a /dev/%s: %w", name, err)
		}
	}
	if err := unix.Mount(dev, "/dev", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("cannot give smbd a /dev of its own: %w", err)
	}
	return nil
}
