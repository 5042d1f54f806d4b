package scenario

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
	"github.com/databox-lockbox/lockbox/simulator/profile"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

const (
	statusHalted    = "Data copy halted"
	statusCompleted = "Completed"
	errorCode       = string(manifest.NameAlphaNumeric)
)

// watch follows a node's state until it is stopped, and says what it saw.
type watch struct {
	stop   context.CancelFunc
	ended  sync.WaitGroup
	states map[string]bool // "<state> <purpose>"
	open   bool            // a share was open
}

func (s *Story) watch(ctx context.Context, n world.Node) *watch {
	w := &watch{states: make(map[string]bool)}
	ctx, w.stop = context.WithCancel(ctx)
	w.ended.Go(func() {
		for ctx.Err() == nil {
			if status, err := s.status(ctx, n); err == nil {
				w.states[strings.TrimSpace(status.State+" "+status.Purpose)] = true
				for _, sh := range status.Shares {
					w.open = w.open || sh.State == "open"
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	return w
}

func (w *watch) end() {
	w.stop()
	w.ended.Wait()
}

func (s *Story) copyAndHalt(ctx context.Context) {
	watched := s.watch(ctx, s.w.Device.Nodes[0])
	s.ok(ctx, "sam", "order", "start-job", string(s.w.Device.Order))
	s.until(ctx, "the copy job has halted", func() bool { return s.order(ctx).Status == statusHalted })
	watched.end()
	s.hold(!watched.open, "a share was open while the copy job ran")
	s.ok(ctx, "sam", "order", "show", string(s.w.Device.Order))
	o := s.order(ctx)
	s.hold(len(o.ErrorCodes) == 1 && o.ErrorCodes[0] == errorCode, "the job halted with %v, want %s", o.ErrorCodes, errorCode)
	log := s.ok(ctx, "sam", "order", "log", string(s.w.Device.Order))
	s.hold(strings.Contains(log, errorCode) && strings.Contains(log, profile.WrongFolder), "the copy log does not name the misplaced files")
	s.hold(len(s.blobs()) > 0, "nothing was uploaded")
	s.out.held("%d files are in the blob store; no share opened while the job ran (seen: %s)", len(s.blobs()), keysOf(watched.states))
	for _, op := range []string{"Open Shares", "Connect Support Session"} {
		found := &lockboxv1.ListRecordsResponse{}
		s.ask(ctx, found, "admin", "audit", "list", "--operation", op)
		s.hold(len(found.Records) == 0, "the log has %q while the copy job ran", op)
	}
	s.out.held("neither a share nor a session opened, says the activity log too")
	s.out.back(s.agent(ctx, s.w.Device.Nodes[0], "status").out)
	s.provesLocked(ctx)
}

func keysOf(m map[string]bool) string {
	var list []string
	for k := range m {
		list = append(list, k)
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// blobs lists what is in the blob store: account/container/name → content.
func (s *Story) blobs() map[string][]byte {
	found := make(map[string][]byte)
	s.must(filepath.WalkDir(s.w.BlobDir(), func(name string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(name)
		rel, _ := filepath.Rel(s.w.BlobDir(), name)
		found[filepath.ToSlash(rel)] = data
		return err
	}))
	return found
}

func (s *Story) openSession(ctx context.Context) {
	t := &lockboxv1.Ticket{}
	s.tell(ctx, t, "olga", "ticket", "file", string(s.w.Device.Order), "--title", "The copy of our data has halted")
	s.ticket = t.Id
	s.ok(ctx, "sam", "ticket", "assign", s.ticket, string(s.w.People["erin"].Name))
	s.ok(ctx, "erin", "ticket", "show", s.ticket)
	n := s.w.Device.Nodes[0]
	session := &lockboxv1.Session{}
	s.tell(ctx, session, "erin", "session", "enable", "--device", string(n.ID.Serial), "--ticket", s.ticket)
	s.session = session.Id
	s.ok(ctx, "erin", "session", "show", s.session)
	line := s.ok(ctx, "erin", "session", "cert", s.session, "--key", s.w.People["erin"].KeyFile())
	// Nobody's own configuration takes part, and nobody can be asked.
	s.ssh = strings.Replace(strings.TrimSpace(line), "ssh ", "ssh -F none -o BatchMode=yes ", 1)
	cert := filepath.Join(s.w.People["erin"].Home(), "ssh", certs.SSHHostName(n.ID)+"-cert.pub")
	s.out.tried("ssh-keygen -L -f …/%s", filepath.Base(cert))
	c, err := run(ctx, "", "ssh-keygen", "-L", "-f", cert)
	s.must(err)
	s.out.back(c.out)
	disks := s.inSession(ctx, 0, "disks")
	s.hold(strings.Count(disks, "locked") == len(n.Disks) && !strings.Contains(disks, "unlocked"), "disks does not say locked:\n%s", disks)
	shares := s.inSession(ctx, 0, "shares")
	s.hold(strings.Contains(shares, "closed") && !strings.Contains(shares, "open"), "shares does not say closed:\n%s", shares)
	s.inSession(ctx, 1, "ls /shares/"+s.shareName())
	s.inSession(ctx, 127, "cat-everything")
	s.smbRefused(ctx, n)
}

// shareName is a share with misplaced files, on the first node.
func (s *Story) shareName() string { return s.w.Device.Nodes[0].Disks[0].Shares[0].Name }

// inSession runs a command in the support session with stock ssh.
func (s *Story) inSession(ctx context.Context, exit int, line string) string {
	s.out.tried("ssh … '%s'   (erin, stock OpenSSH, as 'session cert' printed it)", line)
	c := s.stockSSH(ctx, line)
	s.out.back(hidePassword(c.out + c.err))
	s.hold(c.code == exit, "ssh exited with %d, want %d: %s%s", c.code, exit, c.out, c.err)
	return c.out + c.err
}

// stockSSH runs the ssh command that 'lockbox session cert' printed, through a
// shell, as somebody who pastes it.
func (s *Story) stockSSH(ctx context.Context, line string) command {
	c, err := run(ctx, "", "sh", "-c", s.ssh+" "+shown([]string{line}))
	s.must(err)
	return c
}

var passwordLine = regexp.MustCompile(`(?m)^(password\s+).*$`)

// hidePassword keeps the lease's credentials out of the report.
func hidePassword(text string) string {
	return passwordLine.ReplaceAllString(text, "${1}(shown in the session only)")
}

// smbRefused shows that nobody serves SMB.
func (s *Story) smbRefused(ctx context.Context, n world.Node) {
	s.out.tried("smbclient -L //127.0.0.1 -p %d", n.SMB)
	c, err := run(ctx, "", "smbclient", "-s", "/dev/null", "-L", "//127.0.0.1", "-p", fmt.Sprint(n.SMB), "-U", "nobody%nothing")
	s.must(err)
	s.out.back(c.out + c.err)
	s.hold(c.code != 0, "an SMB client was let in while the disks are locked")
}

func (s *Story) raiseRequest(ctx context.Context) {
	s.online(ctx, s.w.Device, protocol.Locked) // its last heartbeat says so: the evaluation asks for it
	r := &lockboxv1.Request{}
	s.tell(ctx, r, "erin", "request", "create", "--device", string(s.w.Device.Serial), "--ticket", s.ticket,
		"--reason-code", "copied-to-wrong-folder", "--justification", "Files lie in "+profile.WrongFolder+", which is no valid container name; move them to "+profile.RightFolder)
	s.number, s.requestID = fmt.Sprint(r.Number), r.Id
	s.ok(ctx, "erin", "request", "show", s.number)
	s.hold(r.Evaluation.GetPassed() && len(r.Evaluation.GetFactors()) >= 3, "the evaluation shows %v", r.Evaluation)
	s.refused(ctx, []protocol.Code{protocol.CodeNotApproved}, "erin", "request", "execute", s.number)

	c := s.lockbox(ctx, "erin", "request", "approve", s.number, "--key", s.w.People["erin"].KeyFile(), "--yes")
	s.out.back(c.err)
	s.hold(c.code != 0, "the engineer approved their own request")
	s.selfApproval(ctx, r)

	s.approveByAgent(ctx, "ivan", s.number)
	s.ok(ctx, "olga", "request", "list", "--pending")
	r = s.request(ctx, s.number)
	s.hold(r.ShownStatus == "Customer Notified", "the request is %s (%s)", r.Status, r.ShownStatus)
	s.statement = r.Statement.Payload
	s.provider = r.Decisions[0].Envelope
	s.until(ctx, "the notice is in the outbox", func() bool { return s.notice("lockbox request show "+s.number) != "" })
	s.out.tried("read the outbox")
	s.out.back(s.notice("lockbox request show " + s.number))
}

// selfApproval has the engineer send an approval of their own, past the lockbox
// command.
func (s *Story) selfApproval(ctx context.Context, r *lockboxv1.Request) {
	s.statement = r.Statement.Payload
	s.out.tried("erin signs a decision all the same, and sends it to the API")
	api, err := s.w.Client(ctx, "erin")
	s.must(err)
	defer api.Close()
	for _, role := range []approval.Role{approval.Provider, approval.Customer} {
		envelope := s.sign(s.statement, s.w.People["erin"], s.keyID("erin"), role)
		_, err = api.Requests.Decide(ctx, &lockboxv1.DecideRequest{Id: r.Id, Envelope: envelope})
		s.hold(err != nil, "the control plane took the engineer's own approval, for the %s", role)
		s.out.back(fmt.Sprintf("for the %s: %v", role, err))
	}
}

// approveByAgent approves with the key in an ssh-agent.
func (s *Story) approveByAgent(ctx context.Context, who, number string) {
	p := s.w.People[who]
	socket, stop := s.sshAgent(ctx)
	defer stop()
	s.out.tried("ssh-add …; lockbox request approve %s --yes   (%s, key in an ssh-agent)", number, who)
	for _, args := range [][]string{
		{"ssh-add", "-q", p.KeyFile()},
		{filepath.Join(s.cfg.Bin, "lockbox"), "--home", p.Home(), "request", "approve", number, "--yes"},
	} {
		c, err := run(ctx, "", "env", append([]string{"SSH_AUTH_SOCK=" + socket}, args...)...)
		s.must(err)
		s.hold(c.code == 0, "%s cannot approve with an ssh-agent: %s%s", who, c.out, c.err)
		s.out.back(c.err + c.out)
	}
}

// notice returns the notice that holds text.
func (s *Story) notice(text string) string {
	files, _ := filepath.Glob(filepath.Join(s.w.OutboxDir(), "*"))
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.Contains(string(data), text) && strings.Contains(string(data), "olga@") {
			return string(data)
		}
	}
	return ""
}

func (s *Story) approve(ctx context.Context) {
	s.ok(ctx, "olga", "request", "show", s.number)
	c := s.lockbox(ctx, "olga", "request", "approve", s.number, "--key", s.w.People["olga"].KeyFile(), "--reason", "please repair", "--yes")
	s.out.back(c.err)
	s.hold(c.code == 0, "olga cannot approve: %s", c.err)
	s.hold(strings.Contains(c.err, `"verdict":"approve"`), "the command did not show the bytes it signed")
	r := s.request(ctx, s.number)
	s.hold(r.Status == "Approved", "the request is %s", r.Status)
	s.hold(r.AccessEnd-r.AccessStart == int64(8*time.Hour/time.Second), "access lasts %d s, want eight hours", r.AccessEnd-r.AccessStart)
	s.customer = r.Decisions[len(r.Decisions)-1].Envelope
	s.out.held("eight hours run from the approval: %s to %s", clock(r.AccessStart), clock(r.AccessEnd))
}

func clock(unix int64) string { return protocol.Stamp(time.Unix(unix, 0)) }

func (s *Story) execute(ctx context.Context) {
	s.online(ctx, s.w.Device, protocol.Locked)
	s.ok(ctx, "erin", "request", "execute", s.number)
	s.online(ctx, s.w.Device, protocol.Unlocked)
	s.ok(ctx, "sam", "device", "show", string(s.w.Device.Serial))
	n := s.w.Device.Nodes[0]
	disks := s.inSession(ctx, 0, "disks")
	s.hold(strings.Count(disks, "unlocked") == len(n.Disks), "disks does not say unlocked:\n%s", disks)
	s.readByProtocol(ctx, n)
	s.inSession(ctx, 0, "find /shares/"+s.shareName())
	for _, n := range s.w.Device.Nodes {
		s.keysInMemory(ctx, n)
	}
}

var credential = regexp.MustCompile(`(?m)^(user|password)\s+(\S+)$`)

// readByProtocol reads a file with an SMB client and compares its checksum.
func (s *Story) readByProtocol(ctx context.Context, n world.Node) {
	shares := s.inSession(ctx, 0, "shares")
	login := make(map[string]string)
	for _, m := range credential.FindAllStringSubmatch(shares, -1) {
		login[m[1]] = m[2]
	}
	s.hold(login["user"] != "" && login["password"] != "", "the session shows no credentials of this lease")
	auth := s.secretFile("smb-credentials", fmt.Sprintf("username=%s\npassword=%s\n", login["user"], login["password"]))
	defer os.Remove(auth)
	file := "photos/2026/harbour.jpg"
	target := filepath.Join(s.w.Dir, "harbour.jpg")
	smb := []string{"-s", "/dev/null", "-A", auth, "-p", fmt.Sprint(n.SMB), "--option=client min protocol=SMB3", "--client-protection=encrypt",
		"//127.0.0.1/" + s.shareName(), "-c", "get " + file + " " + target}
	s.out.tried("smbclient //127.0.0.1/%s -p %d -c 'get %s'   (SMB3, encrypted, this lease's credentials)", s.shareName(), n.SMB, file)
	c, err := run(ctx, "", "smbclient", smb...)
	s.must(err)
	s.hold(c.code == 0, "smbclient: %s%s", c.out, c.err)
	data, err := os.ReadFile(target)
	s.must(err)
	want := s.w.Device.Nodes[0].Disks[0].Shares[0].Files[file]
	s.hold(sha256.Sum256(data) == sha256.Sum256([]byte(want)), "%s has another checksum than what was copied in", file)
	s.out.held("%d bytes, SHA-256 %x: the same as what was copied in", len(data), sha256.Sum256(data))

	wrong := s.secretFile("smb-wrong", "username="+login["user"]+"\npassword=wrong\n")
	c, err = run(ctx, "", "smbclient", "-s", "/dev/null", "-A", wrong, "-p", fmt.Sprint(n.SMB), "//127.0.0.1/"+s.shareName(), "-c", "ls")
	s.must(err)
	s.hold(c.code != 0, "smbclient got in with a wrong password")
	s.out.held("with a wrong password: %s", strings.TrimSpace(c.out+c.err))
}

func (s *Story) repair(ctx context.Context) {
	dir := "/shares/" + s.shareName()
	s.inSession(ctx, 0, fmt.Sprintf("mv %s/%s %s/%s && find %s/%s", dir, profile.WrongFolder, dir, profile.RightFolder, dir, profile.RightFolder))
	s.inSession(ctx, 1, "ls "+dir+"/"+profile.WrongFolder)
	s.inSession(ctx, 1, "rm "+dir+"/"+profile.RightFolder+"/quarter-1.csv")
	s.inSession(ctx, 0, "prepare-to-ship")
	s.until(ctx, "the new bill of materials has arrived", func() bool { return s.newBill(ctx) != nil })
	m := s.newBill(ctx)
	s.ok(ctx, "olga", "order", "manifest", string(s.w.Device.Order))
	first := s.firstBill(ctx)
	s.hold(m.PreviousDigest == first.Digest, "the new bill names %s as the one before, want %s", m.PreviousDigest, first.Digest)
	s.hold(strings.Contains(m.Difference, profile.WrongFolder) && strings.Contains(m.Difference, profile.RightFolder), "the difference is not recorded: %q", m.Difference)
	s.out.held("the new bill of materials carries the digest of the old one; the difference is on record")
}

func (s *Story) bills(ctx context.Context) []*lockboxv1.ManifestVersion {
	resp := &lockboxv1.GetManifestResponse{}
	s.ask(ctx, resp, "olga", "order", "manifest", string(s.w.Device.Order))
	return resp.Manifests
}

func (s *Story) firstBill(ctx context.Context) *lockboxv1.ManifestVersion {
	for _, m := range s.bills(ctx) {
		if m.Share == s.shareName() && m.Version == 1 {
			return m
		}
	}
	s.fail("there is no first bill of materials of %s", s.shareName())
	return nil
}

func (s *Story) newBill(ctx context.Context) *lockboxv1.ManifestVersion {
	for _, m := range s.bills(ctx) {
		if m.Share == s.shareName() && m.Version > 1 {
			return m
		}
	}
	return nil
}

func (s *Story) disableSession(ctx context.Context) {
	s.ok(ctx, "erin", "session", "disable", s.session, "--reason", "repaired")
	s.provesLocked(ctx)
	s.smbRefused(ctx, s.w.Device.Nodes[0])
	s.out.tried("ssh … with the same certificate")
	c := s.stockSSH(ctx, "disks")
	s.out.back(c.err)
	s.hold(c.code == 255, "ssh exited with %d: the certificate still opens something", c.code)
	s.refused(ctx, []protocol.Code{protocol.CodeConflict, protocol.CodeNotFound, protocol.CodeForbidden}, "erin", "session", "cert", s.session, "--key", s.w.People["erin"].KeyFile())
	r := s.request(ctx, s.number)
	s.hold(r.Status == "Completed", "the request is %s", r.Status)
}

func (s *Story) resume(ctx context.Context) {
	s.online(ctx, s.w.Device, protocol.Locked)
	s.ok(ctx, "sam", "order", "resume-job", string(s.w.Device.Order))
	s.until(ctx, "the order is completed", func() bool { return s.order(ctx).Stage == statusCompleted })
	s.ok(ctx, "sam", "order", "show", string(s.w.Device.Order))
	log := s.ok(ctx, "sam", "order", "log", string(s.w.Device.Order))
	s.hold(!strings.Contains(log, "ErroredEntity") && !strings.Contains(log, "ERROR_"), "the copy log is not clean")
	blobs, files := s.blobs(), 0
	for _, m := range s.newest(ctx) {
		bom, err := manifest.ParseBOM(m.Bom)
		s.must(err)
		for _, f := range bom.Files {
			object := bom.Share.Classify(f.Path, f.Size)
			name := path.Join(bom.Share.Account, object.Container, object.Name)
			data, ok := blobs[name]
			s.hold(ok, "%s is not in the blob store", name)
			s.hold(manifest.ChecksumCRC64(data) == f.CRC64, "%s has another CRC64 than the bill of materials says", name)
			files++
		}
	}
	s.hold(files > 0, "the bills of materials are empty")
	s.out.held("all %d files of the newest bills of materials are in the blob store, each with the CRC64 that its bill says", files)
	s.provesLocked(ctx)
	s.touched(ctx)
}

// touched shows the device's own answer to what the engineer did.
func (s *Story) touched(ctx context.Context) {
	first := s.w.Device.Nodes[0]
	var want []string
	for name := range first.Disks[0].Shares[0].Files {
		if rest, wrong := strings.CutPrefix(name, profile.WrongFolder+"/"); wrong {
			want = append(want, profile.RightFolder+"/"+rest)
		}
	}
	s.until(ctx, "the device has said what was touched, and closed the answer", func() bool {
		var answers []approval.Changes
		s.must(json.Unmarshal([]byte(s.quietly(ctx, "olga", "--output", "json", "request", "changes", s.number).out), &answers))
		var moved []string
		for _, c := range answers {
			for _, one := range c.List {
				s.hold(one.Kind == approval.Moved, "%s was %s, which nobody did", one.File.Bytes(), one.Kind)
				if c.Node == approval.NameOf(first.ID) && c.Stage == approval.AtReopened {
					moved = append(moved, one.File.Path)
				}
			}
		}
		return !slices.ContainsFunc(want, func(name string) bool { return !slices.Contains(moved, name) })
	})
	s.ok(ctx, "olga", "request", "changes", s.number)
	s.out.held("the device signed that the misplaced files were moved, and that nothing else was touched")
}

// newest returns the newest bill of each share.
func (s *Story) newest(ctx context.Context) map[string]*lockboxv1.ManifestVersion {
	newest := make(map[string]*lockboxv1.ManifestVersion)
	for _, m := range s.bills(ctx) {
		if old := newest[m.Share]; old == nil || m.Version > old.Version {
			newest[m.Share] = m
		}
	}
	return newest
}

func (s *Story) judge(ctx context.Context) {
	n := s.w.Device.Nodes[0]
	d := n.Disks[0]
	file := filepath.Join(s.w.Dir, "recovery-password")
	s.ok(ctx, "admin", "key", "export", string(n.ID.Serial), string(d.ID), "--reason", "judged by dislocker", "--out", file)
	password, err := os.ReadFile(file)
	s.must(err)
	s.password = strings.TrimSpace(string(password))
	s.must(os.Remove(file))
	exported := &lockboxv1.ListRecordsResponse{}
	s.ask(ctx, exported, "admin", "audit", "list", "--operation", "Export Recovery Password")
	s.hold(len(exported.Records) > 0, "the export is not on record")
	s.out.held("the activity log says so: Export Recovery Password")
	plain := filepath.Join(s.w.Dir, "dislocker.ntfs")
	defer os.Remove(plain)
	s.out.tried("dislocker-file -V %s.img -p… -- plain; ntfscat plain %s/…", d.ID, profile.RightFolder)
	// dislocker takes the password on its command line or from a terminal; this
	// one opens a disk that the story destroys.
	c, err := run(ctx, "", "dislocker-file", "-V", d.Image, "-p"+s.password, "--", plain)
	s.must(err)
	s.hold(c.code == 0, "dislocker cannot open the disk: %s%s", c.out, c.err)
	share := d.Shares[0]
	for name, want := range share.Files {
		rest, moved := strings.CutPrefix(name, profile.WrongFolder+"/")
		if !moved {
			continue
		}
		inside := path.Join(share.Name, profile.RightFolder, rest)
		c, err := run(ctx, "", "ntfscat", "-f", plain, inside)
		s.must(err)
		s.hold(c.code == 0 && bytes.Equal([]byte(c.out), []byte(want)), "%s is not what was moved there: %s", inside, c.err)
		s.out.held("%s is where it was moved, byte for byte", inside)
	}
}

// erase ends the order: nothing opens its disks any more.
func (s *Story) erase(ctx context.Context) {
	order := string(s.w.Device.Order)
	s.ok(ctx, "sam", "order", "erase", order, "--yes")
	s.ok(ctx, "olga", "order", "certificate", order)
	resp := &lockboxv1.GetErasureResponse{}
	s.ask(ctx, resp, "olga", "order", "certificate", order)
	s.hold(len(resp.Certificates) == len(s.w.Device.Nodes) && resp.KeysDestroyed, "%d nodes have certified, kept keys destroyed: %v", len(resp.Certificates), resp.KeysDestroyed)
	for _, n := range s.w.Device.Nodes {
		for _, d := range n.Disks {
			plain := filepath.Join(s.w.Dir, "erased.ntfs")
			s.out.tried("dislocker-file -V %s.img -p… -- plain   (node %s)", d.ID, n.ID)
			c, err := run(ctx, "", "dislocker-file", "-V", d.Image, "-p"+s.password, "--", plain)
			s.must(errors.Join(err, os.RemoveAll(plain)))
			s.hold(c.code != 0, "dislocker opens disk %s of node %s after it was erased", d.ID, n.ID)
		}
	}
	s.out.held("no disk opens, with the recovery password that opened the first one a minute ago")
	c := s.lockbox(ctx, "admin", "key", "export", string(s.w.Device.Serial), string(s.w.Device.Nodes[0].Disks[0].ID), "--reason", "after the erasure", "--out", filepath.Join(s.w.Dir, "none"))
	s.out.back(c.err)
	s.hold(c.code != 0, "the service has a key of an erased disk still")
}
