package shell

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/agent/internal/shell/files"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scene is a node with a share, and a session on it.
type scene struct {
	t       *testing.T
	dir     string
	share   string // folder of contoso_BlockBlob
	job     *devicev1.JobStatus
	shipped int

	mu      sync.Mutex // guards what follows
	lease   *Lease
	records []auditlog.Record
	events  []recording.FileEvent
	broken  bool
}

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{t: t, dir: t.TempDir()}
	s.share = filepath.Join(s.dir, "disk1", "contoso_BlockBlob")
	s.write("photos/a.txt", "alpha")
	s.write("Wrong_Folder/b.txt", "beta")
	s.write("Wrong_Folder/c d.txt", "gamma")
	os.WriteFile(filepath.Join(s.dir, "disk1", "secret"), []byte("secret"), 0o600)
	return s
}

func (s *scene) write(name, content string) {
	s.t.Helper()
	file := filepath.Join(s.share, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)); err != nil {
		s.t.Fatal(err)
	}
}

// unlock gives the session a lease over the share.
func (s *scene) unlock(access approval.Access) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lease = &Lease{
		Request: "LockboxRequest_1", Order: "ORD-1001", Ticket: "SR-2001", Engineer: "erin@provider.example", Access: access,
		End: time.Now().Add(8 * time.Hour), Shares: []files.Share{{Name: "contoso_BlockBlob", Dir: s.share}},
		Address: "127.0.0.1:4450", User: "lease1", Password: "pw-of-this-lease",
	}
}

// Lease implements [Node].
func (s *scene) Lease() (Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease == nil {
		return Lease{}, protocol.Errorf(protocol.CodeLocked, "the disks are locked")
	}
	return *s.lease, nil
}

// Status implements [Node].
func (s *scene) Status() *devicev1.NodeStatus {
	l, err := s.Lease()
	status := &devicev1.NodeStatus{State: "Locked", Job: s.job, Disks: []*devicev1.DiskStatus{{Disk: "disk1", State: "locked", Method: "XTS-AES-128"}}}
	if err == nil {
		status.State, status.Disks[0].State = "Unlocked", "mounted"
		status.Shares = []*devicev1.ShareStatus{{Name: "contoso_BlockBlob", State: "open", Protocol: "smb", Address: l.Address, Access: string(l.Access)},
			{Name: "contoso_BlockBlob", State: "open", Protocol: "nfs", Address: "127.0.0.1:2049", Access: string(l.Access)}}
	}
	return status
}

// Ship implements [Node].
func (s *scene) Ship(context.Context) (string, []Bill, error) {
	s.shipped++
	return "ScanCompletedWithIssues", []Bill{{"contoso_BlockBlob", "disk1", "sha256:new", "sha256:old", "+ photos/a.txt\n", []string{"ERROR_X  Bad/f"}, []string{"WARNING_Y  good/g"}}}, nil
}

// Record implements [Session].
func (s *scene) Record(_ context.Context, op auditlog.Operation, result auditlog.Result, properties map[string]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return protocol.Errorf(protocol.CodeNotRecorded, "not recorded: the file system of the journal is gone")
	}
	r := auditlog.NewRecord(time.Now(), op, result)
	r.Origin, r.Properties = "DBX0001/1", properties
	if _, err := r.Encode(); err != nil {
		return err
	}
	s.records = append(s.records, r)
	return nil
}

// File implements [files.FileLog].
func (s *scene) File(e recording.FileEvent) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
	if s.broken {
		return protocol.Errorf(protocol.CodeNotRecorded, "not recorded: the file system of the recordings is gone")
	}
	return nil
}

func (s *scene) Running(bool) {}
func (s *scene) Hung()        {}

// of returns the records of an operation, as "result property=…".
func (s *scene) of(op auditlog.Operation, properties ...string) (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		if r.Operation != op {
			continue
		}
		text := string(r.Result)
		for _, p := range properties {
			if v, ok := r.Properties[p]; ok {
				text += " " + p + "=" + v
			}
		}
		list = append(list, text)
	}
	return list
}

func (s *scene) shell(out, errOut io.Writer) *Shell {
	return New(Config{Node: s, Session: s, FileLog: s, Client: "ch1", Now: time.Now, Out: out, Err: errOut, Log: zerolog.Nop()})
}

// result is how a line ended.
type result struct {
	code     int
	out, err string
}

// run runs a line in a new shell.
func (s *scene) run(line string) result {
	var out, errOut bytes.Buffer
	code := s.shell(&out, &errOut).Run(s.t.Context(), line)
	return result{code, out.String(), errOut.String()}
}

// wants checks exit status, output and error output of a line.
func (s *scene) wants(line string, code int, out, errOut string) {
	s.t.Helper()
	r := s.run(line)
	if r.code != code || !strings.Contains(r.out, out) || !strings.Contains(r.err, errOut) {
		s.t.Errorf("%s: exit %d\nout: %s\nerr: %s\nwant %d, %q, %q", line, r.code, r.out, r.err, code, out, errOut)
	}
}

func contains(list []string, want string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, want) })
}
