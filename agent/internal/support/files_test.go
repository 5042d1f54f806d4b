package support

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/disk/disktest"
	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

const shareDir = "/shares/contoso_BlockBlob"

// copies runs stock scp. Operands that begin with a colon are on the node.
func (s *scene) copies(args ...string) result {
	s.t.Helper()
	l := s.login()
	for i, a := range args {
		if strings.HasPrefix(a, ":") {
			args[i] = l.host + a
		}
	}
	return s.end(s.stock("scp", l, args...))
}

// batch runs commands with stock sftp.
func (s *scene) batch(commands string) result {
	s.t.Helper()
	l := s.login()
	l.stdin = strings.NewReader(commands)
	return s.end(s.stock("sftp", l, "-b", "-", l.host))
}

func (s *scene) local(name string, data []byte) string {
	s.t.Helper()
	path := filepath.Join(s.dir, "local", name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func random(n int) []byte {
	data := make([]byte, n)
	rand.Read(data)
	return data
}

func (s *scene) same(path string, want []byte) {
	s.t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		s.t.Errorf("%s: %d bytes, %v, want %d", path, len(got), err, len(want))
	}
}

// events returns what the session's recordings say was done with files, as
// "via op path size".
func (s *scene) events() (list []recording.FileEvent) {
	s.t.Helper()
	for _, name := range must(filepath.Glob(filepath.Join(s.dir, "recordings", "*.rec"))) {
		f := must(os.Open(name))
		defer f.Close()
		d := recording.NewReader(f)
		for {
			_, body, err := d.Next()
			if err != nil {
				break
			}
			if e, ok := body.(recording.FileEvent); ok {
				list = append(list, e)
			}
		}
	}
	return list
}

// recorded reports whether an operation is in a recording.
func (s *scene) recorded(via recording.Via, op recording.Op, path string, check func(recording.FileEvent) bool) bool {
	for _, e := range s.events() {
		if e.Via == via && e.Op == op && e.Path == path && (check == nil || check(e)) {
			return true
		}
	}
	return false
}

func TestSFTP(t *testing.T) {
	s := newScene(t)
	if r := s.batch("ls /shares\n"); r.code == 0 || !strings.Contains(r.err, "the disks are locked") {
		t.Errorf("while locked: exit %d: %s%s", r.code, r.out, r.err)
	}
	s.unlock(approval.ReadWrite, s.session.Key)
	big := random(5<<20 + 123)
	up := s.local("big", big)
	down := filepath.Join(s.dir, "down")
	r := s.batch(fmt.Sprintf(`cd %[1]s
pwd
mkdir new
put %[2]s new/big
ls -l new
get new/big %[3]s
rename new/big new/bigger
ls -1 new
df
df -hi /
df -h /shares
chmod 600 new/bigger
ls -1 /
ls -1 /shares
`, shareDir, up, down))
	if r.code != 0 {
		t.Fatalf("exit %d: %s%s", r.code, r.out, r.err)
	}
	for _, want := range []string{"Remote working directory: " + shareDir, "-rw", "new/bigger\n", "/shares\n", "/shares/contoso_BlockBlob\n", "%Capacity"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("no %q in %s", want, r.out)
		}
	}
	if n := len(regexp.MustCompile(`(?m)^ .* [0-9]+%$`).FindAllString(r.out, -1)); n != 3 {
		t.Errorf("%d of 3 are measured: %s", n, r.out)
	}
	s.same(down, big)
	s.same(filepath.Join(s.share, "new/bigger"), big)
	sum := sha256.Sum256(big)
	whole := func(e recording.FileEvent) bool {
		return e.Size == int64(len(big)) && e.SHA256 == hex.EncodeToString(sum[:]) && e.Error == ""
	}
	for _, op := range []recording.Op{recording.OpWrite, recording.OpRead} {
		if !s.recorded(recording.ViaSFTP, op, "new/big", whole) {
			t.Errorf("%s is not recorded: %+v", op, s.events())
		}
	}
	if !s.recorded(recording.ViaSFTP, recording.OpRename, "new/big", func(e recording.FileEvent) bool { return e.To == "contoso_BlockBlob/new/bigger" }) {
		t.Error("the rename is not recorded")
	}
	for _, one := range []string{
		"rm " + shareDir + "/photos/a.txt", "rmdir " + shareDir + "/new", "symlink a " + shareDir + "/b", "ln " + shareDir + "/photos/a.txt " + shareDir + "/c",
		"get /etc/passwd", "get " + shareDir + "/../../secret", "put " + up + " /x", "put " + up + " " + shareDir + "/photos/a.txt",
		"rename " + shareDir + "/photos " + shareDir + "/Wrong_Folder", "chown 5 " + shareDir + "/photos/a.txt", "mkdir /shares/mine",
	} {
		if r := s.batch(one + "\n"); r.code == 0 {
			t.Errorf("%s: done: %s", one, r.out)
		}
	}
	s.same(filepath.Join(s.share, "photos/a.txt"), []byte("alpha"))
	s.unlock(approval.Delete, s.session.Key)
	if r := s.batch("rm " + shareDir + "/new/bigger\nrmdir " + shareDir + "/new\nput " + up + " " + shareDir + "/photos/a.txt\n"); r.code != 0 {
		t.Errorf("with delete: %s", r.err)
	}
	s.same(filepath.Join(s.share, "photos/a.txt"), big)
	s.unlock(approval.ReadOnly, s.session.Key)
	if r := s.batch("put " + up + " " + shareDir + "/another\n"); r.code == 0 || !strings.Contains(r.err, "the approval is read-only: nothing can be changed") || !strings.Contains(r.err, "Permission denied") {
		t.Errorf("written under a read-only approval: exit %d: %s", r.code, r.err)
	}
}

func TestManyEntries(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadOnly, s.session.Key)
	for i := range 2500 {
		s.write(fmt.Sprintf("many/f%04d", i), "")
	}
	s.write("many/\x1b[2J", "")
	r := s.batch("ls -1 " + shareDir + "/many\n")
	if n := strings.Count(r.out, "/many/f"); n != 2500 || strings.Contains(r.out, "\x1b") {
		t.Errorf("%d entries: %.200s", n, r.err)
	}
}

func TestSCP(t *testing.T) {
	for _, kind := range []string{"-s", "-O"} {
		t.Run(kind, func(t *testing.T) {
			s := newScene(t)
			s.unlock(approval.ReadWrite, s.session.Key)
			big := random(3<<20 + 7)
			up := s.local("tree/sub dir/big", big)
			s.local("tree/empty", nil)
			if err := os.Chtimes(up, time.Unix(1e9, 0), time.Unix(1e9, 0)); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(s.dir, "local")
			for _, args := range [][]string{
				{kind, "-rpq", filepath.Join(dir, "tree"), ":" + shareDir + "/"},
				{kind, "-r", "-p", ":" + shareDir + "/tree", dir + "/back"},
				{kind, ":" + shareDir + "/photos/*.txt", dir},
				{kind, up, ":" + shareDir + "/one"},
				{kind, "-P", "2222", ":" + shareDir + "/Wrong_Folder/c?d.txt", dir},
			} {
				if r := s.copies(args...); r.code != 0 {
					t.Fatalf("%v: exit %d: %s%s", args, r.code, r.out, r.err)
				}
			}
			s.same(filepath.Join(s.share, "tree/sub dir/big"), big)
			s.same(filepath.Join(s.share, "one"), big)
			s.same(dir+"/back/sub dir/big", big)
			s.same(dir+"/back/empty", nil)
			s.same(dir+"/a.txt", []byte("alpha"))
			s.same(dir+"/c d.txt", []byte("gamma"))
			for _, name := range []string{filepath.Join(s.share, "tree/sub dir/big"), dir + "/back/sub dir/big"} {
				if info := must(os.Stat(name)); info.ModTime().Unix() != 1e9 {
					t.Errorf("%s is of %s", name, info.ModTime())
				}
			}
			via := map[string]recording.Via{"-s": recording.ViaSFTP, "-O": recording.ViaSCP}[kind]
			for _, op := range []recording.Op{recording.OpWrite, recording.OpRead} {
				if !s.recorded(via, op, "tree/sub dir/big", func(e recording.FileEvent) bool { return e.Size == int64(len(big)) && e.SHA256 != "" }) {
					t.Errorf("%s is not recorded: %+v", op, s.events())
				}
			}
			for _, args := range [][]string{
				{kind, ":" + shareDir + "/photos", dir}, // no -r
				{kind, ":" + shareDir + "/missing", dir},
				{kind, up, ":" + shareDir + "/missing/"},
				{kind, up, ":/etc/"},
				{kind, ":" + shareDir + "/../../../etc/passwd", dir},
			} {
				if r := s.copies(args...); r.code == 0 {
					t.Errorf("%v: done", args)
				}
			}
			// In its old protocol scp replaces a file; with sftp it writes over it, and
			// cuts off what is left.
			if r := s.copies(kind, dir+"/tree/empty", ":"+shareDir+"/photos/a.txt"); r.code == 0 {
				t.Error("a file was emptied under an approval that does not say delete")
			}
			s.same(filepath.Join(s.share, "photos/a.txt"), []byte("alpha"))
		})
	}
}

// What a hostile client of the old protocol sends leads nowhere.
func TestHostileSCP(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.Delete, s.session.Key)
	c := s.client()
	for _, sent := range []string{
		"C0644 5 ../evil\nhello\x00", "D0755 0 ..\nC0644 5 evil\nhello\x00E\n", "C0644 5 \nhello", "C0644 -5 x\n", "C0644 99999999999999999999 x\n",
		"E\nE\n", "T1 2\n", "X\n", "C0644 5 a/b\nhello\x00", strings.Repeat("D0755 0 d\n", 100), "C0644 1000 cut\nshort", strings.Repeat("a", 1<<20),
	} {
		one := must(c.NewSession())
		one.Stdin = strings.NewReader(sent)
		one.Stdout = io.Discard
		if err := one.Run("scp -r -t " + shareDir + "/photos"); err == nil {
			t.Errorf("%.40q: done", sent)
		}
	}
	for _, name := range []string{"evil", "photos/evil"} {
		if _, err := os.Stat(filepath.Join(s.share, name)); err == nil {
			t.Errorf("%s was made", name)
		}
	}
}

// A transfer under way ends with its session, within two seconds, and what was
// to replace a file does not.
func TestTransfersEndWithTheSession(t *testing.T) {
	for name, way := range map[string]func(*scene){
		"disabled": func(s *scene) { s.server.Disable("ses-1", "done") },
		"kicked":   func(s *scene) { s.server.Kick(recording.EndRevoked) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.unlock(approval.Delete, s.session.Key)
			s.write("old", "old")
			s.write("large", strings.Repeat("x", 64<<20))
			l := s.login()
			dir := t.TempDir()
			slow := l
			slow.stdin = strings.NewReader("put " + s.local("up", random(16<<20)) + " " + shareDir + "/old\n")
			up := s.stock("sftp", slow, "-b", "-", "-l", "8000", l.host)
			down := s.stock("scp", l, "-l", "8000", l.host+":"+shareDir+"/large", dir+"/large")
			ended := make(chan error, 2)
			for _, cmd := range []*exec.Cmd{up, down} {
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				go func() { ended <- cmd.Wait() }()
			}
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				info, err := os.Stat(dir + "/large")
				if err == nil && info.Size() > 0 && s.connections() == 2 {
					break
				}
				if time.Now().After(end) {
					t.Fatal("nothing is transferred")
				}
			}
			start := time.Now()
			way(s)
			for range 2 {
				if err := <-ended; err == nil {
					t.Error("a transfer was completed")
				}
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("it took %s", took)
			}
			s.stop()
			s.same(filepath.Join(s.share, "old"), []byte("old"))
			if left := must(filepath.Glob(filepath.Join(s.share, "*"))); len(left) != 4 {
				t.Errorf("left behind: %v", left)
			}
			if !s.recorded(recording.ViaSFTP, recording.OpRead, "large", func(e recording.FileEvent) bool { return e.Size > 0 && e.SHA256 == "" }) {
				t.Errorf("what was read until then is not recorded: %+v", s.events())
			}
		})
	}
}

// sshfs needs more of the server than other clients.
func TestSSHFS(t *testing.T) {
	disktest.NeedMounts(t)
	if _, err := exec.LookPath("sshfs"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	s := newScene(t)
	s.unlock(approval.Delete, s.session.Key)
	mount := t.TempDir()
	l := s.login()
	config := "Host *\n"
	for _, o := range s.options(l) {
		if key, value, ok := strings.Cut(o, "="); ok {
			config += key + " " + value + "\n"
		}
	}
	file := s.local("ssh.conf", []byte(config))
	cmd := exec.CommandContext(t.Context(), "sshfs", l.host+":"+shareDir, mount, "-f", "-F", file)
	cmd.Env = append(os.Environ(), proxySocket+"="+s.socket)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &out, 5*time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := exec.Command("fusermount3", "-u", "-z", mount).Run(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
	}()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(mount + "/photos/a.txt"); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no mount: %s", out.String())
		}
	}
	data := random(1 << 20)
	script := `set -e
cd "$1"
cat photos/a.txt
cp "$2" copy && cmp "$2" copy
echo more >> copy
truncate -s 100 copy
mv copy photos/moved
echo over > photos/moved.tmp && mv photos/moved.tmp photos/moved
cat photos/moved
rm photos/moved
mkdir d && rmdir d
touch -d @1000000000 photos/a.txt && stat -c %Y photos/a.txt
df . | tail -1
sync -f photos/a.txt
! ln -s a photos/link
! ln photos/a.txt photos/hard
`
	done, err := exec.CommandContext(t.Context(), "bash", "-c", script, "bash", mount, s.local("data", data)).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(done), "alphaover\n1000000000\n") {
		t.Errorf("%v: %s", err, done)
	}
}

// One connection carries many channels, as with ControlMaster and editors.
func TestManyChannelsOnOneConnection(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadWrite, s.session.Key)
	l := s.login()
	control := filepath.Join(filepath.Dir(s.socket), "ctl")
	l.options = []string{"-N", "-M", "-S", control}
	master := s.command(l)
	if err := master.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = exec.Command("ssh", "-S", control, "-O", "exit", l.host).Run()
		_ = master.Wait()
	}()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(control); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no master")
		}
	}
	results := make(chan result, 8)
	for i := range cap(results) {
		go func() {
			l := s.login()
			l.options = []string{"-S", control, "-T"}
			line, code := "pwd", 0
			if i%2 == 0 {
				line, code = "bash -lc true", 127
			}
			r := s.ssh(l, line)
			r.code -= code
			results <- r
		}()
	}
	for range cap(results) {
		if r := <-results; r.code != 0 {
			t.Errorf("exit off by %d: %s%s", r.code, r.out, r.err)
		}
	}
	if n := s.connections(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// A certificate opens nothing any more when its session is over.
func TestCertificateOutlivesItsSession(t *testing.T) {
	s := newScene(t)
	l := s.login() // good for ten minutes
	one := s.session
	one.Expires = time.Now().Add(time.Minute)
	s.enable(one)
	if r := s.ssh(l, "pwd"); r.code != 0 {
		t.Fatalf("exit %d: %s", r.code, r.err)
	}
	s.clock.add(time.Minute, 0)
	if r := s.ssh(l, "pwd"); r.code != 255 {
		t.Errorf("expired: exit %d: %s", r.code, r.out)
	}
	s.clock.add(-time.Minute, 0)
	s.server.Disable("ses-1", "done")
	if r := s.ssh(l, "pwd"); r.code != 255 {
		t.Errorf("disabled: exit %d: %s", r.code, r.out)
	}
}

// The common user name opens what the session's own does, and no more.
func TestCommonUserName(t *testing.T) {
	s := newScene(t)
	l := s.login()
	l.user = certs.SSHUser
	if r := s.ssh(l, "pwd"); r.code != 0 {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	l.cert = s.cert(s.erin, "ses-2", s.node)
	if r := s.ssh(l, "pwd"); r.code != 255 {
		t.Errorf("another session: exit %d: %s", r.code, r.out)
	}
}

// What cannot be recorded is not done, and ends the connection.
func TestUnrecordedFilesEndTheSession(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadWrite, s.session.Key)
	c := s.client()
	one := must(c.NewSession())
	if err := one.RequestSubsystem("sftp"); err != nil {
		t.Fatal(err)
	}
	s.server.mu.Lock()
	sit := s.server.sessions["ses-1"].sitting
	s.server.mu.Unlock()
	for sit.File(recording.FileEvent{Via: recording.ViaSFTP, Op: recording.OpList, Path: strings.Repeat("x", 1000)}) == nil { // until the quota is reached
	}
	ends(t, c, 2*time.Second)
}
