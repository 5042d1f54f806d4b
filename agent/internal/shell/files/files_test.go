package files

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// scene is a disk with two shares and a file beside them.
type scene struct {
	*System
	t     *testing.T
	disk  string
	share string // folder of one_BlockBlob

	mu     sync.Mutex // guards what follows
	grant  *Grant
	events []recording.FileEvent
	broken error
}

func newScene(t *testing.T, access approval.Access) *scene {
	s := &scene{t: t, disk: t.TempDir()}
	s.share = filepath.Join(s.disk, "one_BlockBlob")
	two := filepath.Join(s.disk, "two_AzFile")
	for _, err := range []error{os.Mkdir(s.share, 0o755), os.Mkdir(two, 0o755), os.WriteFile(filepath.Join(s.disk, "secret"), []byte("SECRET"), 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.grant = &Grant{access, []Share{{"one_BlockBlob", s.share}, {"two_AzFile", two}}}
	s.System = New(Config{Grant: s.now, Log: s, Via: recording.ViaSFTP, Client: "ch1"})
	return s
}

func (s *scene) now() (Grant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.grant == nil {
		return Grant{}, protocol.Errorf(protocol.CodeLocked, "the disks are locked")
	}
	return *s.grant, nil
}

// File implements [FileLog].
func (s *scene) File(e recording.FileEvent) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
	return s.broken
}

// said returns the events since it was last asked.
func (s *scene) said() (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		text := fmt.Sprintf("%s %s/%s", e.Op, e.Share, e.Path)
		if e.To != "" {
			text += " to " + e.To
		}
		if e.Size >= 0 {
			text += fmt.Sprintf(" %d %.8s", e.Size, e.SHA256)
		}
		if e.Error != "" {
			text += ": " + e.Error
		}
		list = append(list, text)
	}
	s.events = nil
	return list
}

func (s *scene) wantEvents(want ...string) {
	s.t.Helper()
	if diff := cmp.Diff(want, s.said()); diff != "" {
		s.t.Errorf("events (-want +got):\n%s", diff)
	}
}

func (s *scene) put(name, content string) {
	s.t.Helper()
	file := filepath.Join(s.disk, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) content(name string) string {
	data, err := os.ReadFile(filepath.Join(s.disk, name))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func write(f *File, err error) func(string) error {
	return func(text string) error {
		if err != nil {
			return err
		}
		_, err := io.WriteString(f, text)
		return errors.Join(err, f.Close())
	}
}

func read(f *File, err error) (string, error) {
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(f)
	return string(data), errors.Join(err, f.Close())
}

func sum(text string) string {
	h := sha256.Sum256([]byte(text))
	return hex.EncodeToString(h[:])[:8]
}

func TestEveryOperationIsRecorded(t *testing.T) {
	s := newScene(t, approval.Delete)
	const one = "/shares/one_BlockBlob"
	steps := []struct {
		do   func() error
		want []string
	}{
		{func() error { return s.Mkdir(one + "/c") }, []string{"mkdir one_BlockBlob/c"}},
		{func() error { return write(s.Create(one + "/c/f"))("alpha") }, []string{"create one_BlockBlob/c/f", "write one_BlockBlob/c/f 5 " + sum("alpha")}},
		{func() error { _, err := read(s.Open(one + "/c/f")); return err }, []string{"open one_BlockBlob/c/f", "read one_BlockBlob/c/f 5 " + sum("alpha")}},
		{func() error { return write(s.Create(one + "/c/f"))("beta") }, []string{"create one_BlockBlob/c/f", "write one_BlockBlob/c/f 4 " + sum("beta")}},
		{func() error { return write(s.OpenFile(one+"/c/f", os.O_WRONLY|os.O_APPEND, 0))("!") }, []string{"open one_BlockBlob/c/f", "write one_BlockBlob/c/f", "write one_BlockBlob/c/f 1 "}},
		{func() error { return s.Rename(one+"/c/f", "/shares/two_AzFile/g", false) }, []string{"rename one_BlockBlob/c/f to two_AzFile/g"}},
		{func() error { return s.Truncate("/shares/two_AzFile/g", 2) }, []string{"open two_AzFile/g", "truncate two_AzFile/g 2 ", "write two_AzFile/g 0 "}},
		{func() error { return s.Chtimes("/shares/two_AzFile/g", time.Time{}, time.Unix(1, 0)) }, []string{"setattr two_AzFile/g"}},
		{func() error { _, err := s.ReadDir("/shares/two_AzFile"); return err }, []string{"list two_AzFile/."}},
		{func() error { _, err := s.Lstat("/shares/two_AzFile/g"); return err }, []string{"stat two_AzFile/g"}},
		{func() error { return s.Remove("/shares/two_AzFile/g") }, []string{"remove two_AzFile/g"}},
		{func() error { return s.RemoveAll(t.Context(), one+"/c") }, []string{"stat one_BlockBlob/c", "list one_BlockBlob/c", "rmdir one_BlockBlob/c"}},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			t.Error(err)
		}
		s.wantEvents(step.want...)
	}
	if _, err := s.Open(one + "/nothing"); !errors.Is(err, fs.ErrNotExist) || err.Error() != "open /shares/one_BlockBlob/nothing: no such file or directory" {
		t.Errorf("opening nothing: %v", err)
	}
	s.wantEvents("open one_BlockBlob/nothing: no such file or directory")
}

// TestNoRecordNoAct: what cannot be recorded does not happen.
func TestNoRecordNoAct(t *testing.T) {
	s := newScene(t, approval.Delete)
	s.put("one_BlockBlob/f", "alpha")
	s.broken = errors.New("the disk of the recordings is full")
	const f = "/shares/one_BlockBlob/f"
	for name, do := range map[string]func() error{
		"open":    func() error { _, err := s.Open(f); return err },
		"replace": func() error { return write(s.Create(f))("beta") },
		"mkdir":   func() error { return s.Mkdir("/shares/one_BlockBlob/d") },
		"rename":  func() error { return s.Rename(f, f+"2", true) },
		"remove":  func() error { return s.Remove(f) },
		"cut":     func() error { return s.Truncate(f, 1) },
		"chtimes": func() error { return s.Chtimes(f, time.Time{}, time.Unix(1, 0)) },
		"list":    func() error { _, err := s.ReadDir("/shares/one_BlockBlob"); return err },
		"stat":    func() error { _, err := s.Stat(f); return err },
	} {
		if err := do(); !errors.Is(err, ErrUnrecorded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	entries, _ := os.ReadDir(s.share)
	if s.content("one_BlockBlob/f") != "alpha" || len(entries) != 1 {
		t.Errorf("something happened: %q, %v", s.content("one_BlockBlob/f"), entries)
	}
}

func TestAccess(t *testing.T) {
	const f, g = "/shares/one_BlockBlob/f", "/shares/one_BlockBlob/g"
	for name, c := range map[string]struct {
		do      func(*scene) error
		allowed string // by which approvals
	}{
		"read":        {func(s *scene) error { _, err := read(s.Open(f)); return err }, "read-only read-write delete"},
		"list":        {func(s *scene) error { _, err := s.ReadDir("/shares/one_BlockBlob"); return err }, "read-only read-write delete"},
		"mkdir":       {func(s *scene) error { return s.Mkdir("/shares/one_BlockBlob/d") }, "read-write delete"},
		"create":      {func(s *scene) error { return write(s.Create("/shares/one_BlockBlob/new"))("x") }, "read-write delete"},
		"append":      {func(s *scene) error { return write(s.OpenFile(f, os.O_WRONLY|os.O_APPEND, 0))("x") }, "read-write delete"},
		"change":      {func(s *scene) error { return write(s.OpenFile(f, os.O_RDWR, 0))("x") }, "read-write delete"},
		"grow":        {func(s *scene) error { return s.Truncate(f, 100) }, "read-write delete"},
		"chtimes":     {func(s *scene) error { return s.Chtimes(f, time.Time{}, time.Unix(1, 0)) }, "read-write delete"},
		"move":        {func(s *scene) error { return s.Rename(f, "/shares/two_AzFile/f", false) }, "read-write delete"},
		"fill":        {func(s *scene) error { return write(s.Create("/shares/one_BlockBlob/empty"))("x") }, "read-write delete"},
		"replace":     {func(s *scene) error { return write(s.Create(f))("x") }, "delete"},
		"move over":   {func(s *scene) error { return s.Rename(f, g, true) }, "delete"},
		"cut":         {func(s *scene) error { return s.Truncate(f, 1) }, "delete"},
		"remove":      {func(s *scene) error { return s.Remove(f) }, "delete"},
		"remove all":  {func(s *scene) error { return s.RemoveAll(t.Context(), f) }, "delete"},
		"no such one": {func(s *scene) error { return s.Mkdir("/shares/three/d") }, ""},
	} {
		for _, access := range []approval.Access{approval.ReadOnly, approval.ReadWrite, approval.Delete, "everything"} {
			s := newScene(t, access)
			s.put("one_BlockBlob/f", "alpha")
			s.put("one_BlockBlob/g", "gamma")
			s.put("one_BlockBlob/empty", "")
			err := c.do(s)
			if allowed := strings.Contains(c.allowed+" everything", string(access)); access == "everything" {
				if name != "read" && name != "list" && err == nil {
					t.Errorf("%s under an access that is not known", name)
				}
			} else if allowed != (err == nil) {
				t.Errorf("%s under %s: %v", name, access, err)
			} else if err != nil && c.allowed != "" && protocol.CodeOf(err) != protocol.CodeForbidden {
				t.Errorf("%s under %s: %v", name, access, err)
			}
			if err != nil && (s.content("one_BlockBlob/f") != "alpha" || s.content("one_BlockBlob/g") != "gamma") {
				t.Errorf("%s under %s was refused and happened", name, access)
			}
			s.grant = nil
			if err := c.do(s); protocol.CodeOf(err) != protocol.CodeLocked {
				t.Errorf("%s while locked: %v", name, err)
			}
		}
	}
}

func TestMovesDoNotReplace(t *testing.T) {
	s := newScene(t, approval.Delete)
	s.put("one_BlockBlob/f", "alpha")
	s.put("one_BlockBlob/g", "gamma")
	if err := s.Rename("/shares/one_BlockBlob/f", "/shares/one_BlockBlob/g", false); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if got := s.content("one_BlockBlob/g"); got != "gamma" {
		t.Errorf("%q", got)
	}
	if err := s.Rename("/shares/one_BlockBlob/f", "/shares/one_BlockBlob/g", true); err != nil || s.content("one_BlockBlob/g") != "alpha" {
		t.Error(err, s.content("one_BlockBlob/g"))
	}
	if err := s.Rename("/shares/one_BlockBlob", "/shares/one_BlockBlob/x", true); err == nil {
		t.Error("a share was moved")
	}
}

// TestRacedMoveReplacesNothing puts a file where another is about to be moved,
// under an approval that does not say delete.
func TestRacedMoveReplacesNothing(t *testing.T) {
	const f, victim, target = "/shares/one_BlockBlob/f", "/shares/one_BlockBlob/victim", "/shares/one_BlockBlob/target"
	s := newScene(t, approval.ReadWrite)
	s.put("one_BlockBlob/f", "mine")
	s.put("one_BlockBlob/victim", "the customer's")
	var raced error
	other := New(Config{Grant: s.now, Via: recording.ViaSFTP, Log: meddler{func(e recording.FileEvent) {
		if e.Op == recording.OpRename && e.Error == "" {
			raced = s.Rename(victim, target, false)
		}
	}}})
	if err := other.Rename(f, target, true); !errors.Is(err, fs.ErrExist) {
		t.Errorf("moved over another file: %v", err)
	}
	if got := s.content("one_BlockBlob/target"); raced != nil || got != "the customer's" {
		t.Errorf("%v: there is %q", raced, got)
	}
}

// TestRacedRemovalTakesNothingElse moves another file to where one is about to be
// removed that was made and given up, under an approval that does not say delete.
func TestRacedRemovalTakesNothingElse(t *testing.T) {
	const f, victim = "/shares/one_BlockBlob/f", "/shares/one_BlockBlob/victim"
	s := newScene(t, approval.ReadWrite)
	s.put("one_BlockBlob/victim", "the customer's")
	var raced sync.WaitGroup
	mine := New(Config{Grant: s.now, Via: recording.ViaSFTP, Log: meddler{func(e recording.FileEvent) {
		if e.Op == recording.OpRemove {
			raced.Go(func() {
				s.Rename(f, f+"-aside", false)
				s.Rename(victim, f, false)
			})
			time.Sleep(50 * time.Millisecond)
		}
	}}})
	file, err := mine.OpenFile(f, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Abandon(); err != nil {
		t.Error(err)
	}
	raced.Wait()
	if got := s.content("one_BlockBlob/f"); got != "the customer's" {
		t.Errorf("%q: the customer's file is gone", got)
	}
}

// TestWritesAreRecorded takes the disk away from a file in which something was
// written.
func TestWritesAreRecorded(t *testing.T) {
	s := newScene(t, approval.ReadWrite)
	s.put("one_BlockBlob/f", "alpha")
	f, err := s.OpenFile("/shares/one_BlockBlob/f", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("b"), 1); err != nil {
		t.Fatal(err)
	}
	s.wantEvents("open one_BlockBlob/f", "write one_BlockBlob/f") // at once
	f.f.Close()
	if err := f.Abandon(); err == nil {
		t.Error("no error")
	}
	s.wantEvents("write one_BlockBlob/f 1 : file already closed")
	if f, err = s.OpenFile("/shares/one_BlockBlob/f", os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	s.broken = errors.New("full")
	if _, err := f.WriteAt([]byte("c"), 2); !errors.Is(err, ErrUnrecorded) || s.content("one_BlockBlob/f") != "abpha" {
		t.Errorf("written without a record: %v, %q", err, s.content("one_BlockBlob/f"))
	}
}

// TestNewContentIsMadeAside looks at a file while it is replaced.
func TestNewContentIsMadeAside(t *testing.T) {
	s := newScene(t, approval.Delete)
	s.put("one_BlockBlob/f", "alpha")
	s.put(StageDir+"/part-OLDRUN-x", "left by an agent that died")
	s.put(StageDir+"/mine", "of the customer")
	f, err := s.Create("/shares/one_BlockBlob/f")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(f, "beta")
	if got := s.content("one_BlockBlob/f"); got != "alpha" {
		t.Errorf("before it was closed: %q", got)
	}
	other, err := s.Replace("/shares/one_BlockBlob/other")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(other, "half")
	if err := other.Abandon(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if got := s.content("one_BlockBlob/f"); got != "beta" {
		t.Errorf("after it was closed: %q", got)
	}
	if err := f.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	left, _ := os.ReadDir(filepath.Join(s.disk, StageDir))
	if len(left) != 1 || left[0].Name() != "mine" {
		t.Errorf("left: %v", left)
	}
	if _, err := os.Stat(filepath.Join(s.share, "other")); err == nil {
		t.Error("what was abandoned is there")
	}
}

// TestAbandonedNewFile: what was not written to its end is not left under a new
// name, unless it is somebody's by now.
func TestAbandonedNewFile(t *testing.T) {
	s := newScene(t, approval.ReadWrite)
	begin := func(name string) *File {
		t.Helper()
		f, err := s.Create("/shares/one_BlockBlob/" + name)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(f, "half")
		return f
	}
	if err := begin("gone").Abandon(); err != nil {
		t.Error(err)
	}
	s.wantEvents("create one_BlockBlob/gone", "write one_BlockBlob/gone 4 "+sum("half")[:8], "remove one_BlockBlob/gone")
	synced := begin("synced")
	moved := begin("moved")
	if err := errors.Join(synced.Sync(), s.Rename("/shares/one_BlockBlob/moved", "/shares/one_BlockBlob/elsewhere", false)); err != nil {
		t.Fatal(err)
	}
	s.put("one_BlockBlob/moved", "another")
	s.put("one_BlockBlob/there", "alpha")
	there, err := s.OpenFile("/shares/one_BlockBlob/there", os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := there.WriteAt([]byte("AL"), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(synced.Abandon(), moved.Abandon(), there.Abandon()); err != nil {
		t.Error(err)
	}
	unrecorded := begin("unrecorded")
	s.mu.Lock()
	s.broken = errors.New("disk full")
	s.mu.Unlock()
	if err := unrecorded.Abandon(); !errors.Is(err, ErrUnrecorded) {
		t.Error(err)
	}
	for name, want := range map[string]string{"synced": "half", "moved": "another", "elsewhere": "half", "there": "ALpha", "unrecorded": "half"} {
		if got := s.content("one_BlockBlob/" + name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if left, _ := os.ReadDir(s.share); len(left) != 5 {
		t.Errorf("left: %v", left)
	}
}

func TestHashOfPiecesOutOfOrder(t *testing.T) {
	s := newScene(t, approval.ReadWrite)
	text := strings.Repeat("0123456789abcdef", 4096)
	f, err := s.OpenFile("/shares/one_BlockBlob/f", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{1, 0, 3, 2} {
		part := len(text) / 4
		if _, err := f.WriteAt([]byte(text[i*part:(i+1)*part]), int64(i*part)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s.wantEvents("create one_BlockBlob/f", fmt.Sprintf("write one_BlockBlob/f %d %s", len(text), sum(text)))
	for name, do := range map[string]func(*File){
		"twice": func(f *File) { f.WriteAt([]byte("x"), 0); f.WriteAt([]byte("y"), 0) },
		"hole":  func(f *File) { f.WriteAt([]byte("x"), 10) },
		"part":  func(f *File) { f.WriteAt([]byte("x"), 0) },
	} {
		f, _ := s.OpenFile("/shares/one_BlockBlob/f", os.O_RDWR, 0)
		do(f)
		f.Close()
		if last := s.said(); !strings.HasSuffix(last[len(last)-1], " ") {
			t.Errorf("%s: %q", name, last)
		}
	}
}

func TestOnlyFilesAreOpened(t *testing.T) {
	s := newScene(t, approval.Delete)
	if err := unix.Mkfifo(filepath.Join(s.share, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Mkdir(filepath.Join(s.share, "folder"), 0o755)
	os.Symlink("pipe", filepath.Join(s.share, "link"))
	os.Symlink("folder/new", filepath.Join(s.share, "dangling"))
	if os.Geteuid() == 0 {
		if err := unix.Mknod(filepath.Join(s.share, "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
			t.Log(err)
		}
	}
	for _, name := range []string{"pipe", "folder", "link", "null", "."} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for _, flag := range []int{os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_CREATE} {
				if f, err := s.OpenFile("/shares/one_BlockBlob/"+name, flag, 0o644); err == nil {
					t.Errorf("%s was opened with flags %x", name, flag)
					f.Close()
				}
			}
			if _, err := s.Replace("/shares/one_BlockBlob/" + name); err == nil {
				t.Errorf("%s was replaced", name)
			}
		}()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			t.Fatalf("opening %s waits", name)
		}
	}
}

func TestNothingLeadsOut(t *testing.T) {
	s := newScene(t, approval.Delete)
	for name, target := range map[string]string{"abs": "/etc", "up": "../", "file": "../secret", "two": "../two_AzFile"} {
		if err := os.Symlink(target, filepath.Join(s.share, name)); err != nil {
			t.Fatal(err)
		}
	}
	s.put("two_AzFile/x", "two")
	s.put("one_BlockBlob/f", "alpha")
	const one = "/shares/one_BlockBlob/"
	for _, name := range []string{
		one + "file", one + "abs/passwd", one + "up/secret", one + "two/x", "/etc/passwd", "/shares/../etc/passwd", "/shares/one_BlockBlob/../secret",
		"/shares/../../secret", "/shares/secret", "/shares/" + StageDir, "/shares/one_BlockBlob/../../secret", "/shares//..//secret", "/shares/one_BlockBlob\x00/../secret",
	} {
		if text, err := read(s.Open(name)); err == nil {
			t.Errorf("%q was read: %q", name, text)
		} else if strings.Contains(err.Error(), s.disk) {
			t.Errorf("%q tells a path of the device: %v", name, err)
		}
		for what, do := range map[string]func() error{
			"written": func() error { return write(s.OpenFile(name, os.O_WRONLY, 0))("x") },
			"moved":   func() error { return s.Rename(one+"f", name+"/f", true) },
			"listed":  func() error { _, err := s.ReadDir(name + "/"); return err },
		} {
			if do() == nil {
				t.Errorf("%q was %s", name, what)
			}
		}
	}
	if s.content("secret") != "SECRET" || s.content("two_AzFile/x") != "two" || s.content("one_BlockBlob/f") != "alpha" {
		t.Error("something changed")
	}
	// What links are, they may be moved and removed as.
	if err := errors.Join(s.Rename(one+"file", one+"file2", false), s.Remove(one+"file2"), s.RemoveAll(t.Context(), one+"up")); err != nil {
		t.Error(err)
	}
	if target, err := s.Readlink(one + "two"); err != nil || target != "../two_AzFile" {
		t.Error(target, err)
	}
	if s.content("secret") != "SECRET" {
		t.Error("the target of a link was removed")
	}
	// A link in the place of a share is no share.
	os.Rename(s.share, s.share+".away")
	os.Symlink("/etc", s.share)
	if _, err := s.ReadDir("/shares/one_BlockBlob"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a share that is a link: %v", err)
	}
}

func TestNewNamesAreOfWindows(t *testing.T) {
	s := newScene(t, approval.Delete)
	s.put("one_BlockBlob/f", "alpha")
	for _, name := range []string{"a:b", `a\b`, "a*", "a?", "a|b", "a<b", `a"b`, "a\nb", "a\x1b", "a\x7f\xff", "a.", "a ", "con", "Nul.txt", "lpt1", strings.Repeat("a", 256), strings.Repeat("😀", 128)} {
		to := "/shares/one_BlockBlob/" + name
		for what, err := range map[string]error{
			"made": s.Mkdir(to), "created": write(s.Create(to))("x"), "moved": s.Rename("/shares/one_BlockBlob/f", to, false),
		} {
			if err == nil {
				t.Errorf("%q was %s", name, what)
			}
		}
	}
	for _, name := range []string{"ä", "a b", ".a", "console", "con1", "$x", strings.Repeat("a", 255), "it's", "[1]"} {
		if err := s.Mkdir("/shares/one_BlockBlob/" + name); err != nil {
			t.Error(err)
		}
	}
	// What has such a name already is not stuck with it.
	s.put("one_BlockBlob/a:b", "colon")
	if err := errors.Join(s.Rename("/shares/one_BlockBlob/a:b", "/shares/two_AzFile/a:b", false), s.Rename("/shares/two_AzFile/a:b", "/shares/two_AzFile/ab", false)); err != nil {
		t.Error(err)
	}
}

// TestMovedWhileMade: a new file is whole, though the folder above it was moved
// before it was closed.
func TestMovedWhileMade(t *testing.T) {
	s := newScene(t, approval.ReadWrite)
	s.put("one_BlockBlob/dir/other", "")
	f, err := s.Create("/shares/one_BlockBlob/dir/new")
	if err == nil {
		err = s.Rename("/shares/one_BlockBlob/dir", "/shares/two_AzFile/dir", false)
	}
	if err := errors.Join(err, write(f, err)("content")); err != nil {
		t.Error(err)
	}
	if got := s.content("two_AzFile/dir/new"); got != "content" {
		t.Error(got)
	}
}

// TestRenamedWhileOpen: what is done with an open file is recorded under where it is
// by then, whoever moved it, and whatever it is called.
func TestRenamedWhileOpen(t *testing.T) {
	const one, two = "/shares/one_BlockBlob/", "/shares/two_AzFile/"
	for name, tt := range map[string]struct {
		move func(shell *System) error
		want string
	}{
		"not at all":       {func(*System) error { return nil }, "one_BlockBlob/dir/sub/file"},
		"the file":         {func(s *System) error { return s.Rename(one+"dir/sub/file", one+"other", false) }, "one_BlockBlob/other"},
		"a folder above":   {func(s *System) error { return s.Rename(one+"dir", one+"moved", false) }, "one_BlockBlob/moved/sub/file"},
		"to another share": {func(s *System) error { return s.Rename(one+"dir/sub", two+"sub", false) }, "two_AzFile/sub/file"},
		"twice": {func(s *System) error {
			return errors.Join(s.Rename(one+"dir", one+"x", false), s.Rename(one+"x", two+"y", false))
		}, "two_AzFile/y/sub/file"},
		"like one removed": {func(s *System) error { return s.Rename(one+"dir/sub/file", one+"dir/sub/file (deleted)", false) }, "one_BlockBlob/dir/sub/file (deleted)"},
		"and another there": {func(s *System) error {
			return errors.Join(s.Rename(one+"dir", one+"x", false), s.Mkdir(one+"dir"), s.Mkdir(one+"dir/sub"), write(s.Create(one+"dir/sub/file"))("new"))
		}, "one_BlockBlob/x/sub/file"},
		"and removed": {func(s *System) error {
			return errors.Join(s.Rename(one+"dir/sub/file", one+"last", false), s.Remove(one+"last"))
		}, "one_BlockBlob/last"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, approval.Delete)
			s.put("one_BlockBlob/dir/sub/file", "content")
			f, err := s.OpenFile(one+"dir/sub/file", os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(f); err != nil {
				t.Fatal(err)
			}
			shell := New(Config{Grant: s.now, Log: s, Via: recording.ViaShell, Client: "ch2"})
			if err := tt.move(shell); err != nil {
				t.Fatal(err)
			}
			s.said()
			if got := f.Name(); got != "/shares/"+tt.want {
				t.Errorf("it is called %s", got)
			}
			if _, err := f.WriteAt([]byte("more"), 7); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Truncate(20), f.Close()); err != nil {
				t.Fatal(err)
			}
			s.wantEvents("write "+tt.want, "truncate "+tt.want+" 20 ", "read "+tt.want+" 7 ", "write "+tt.want+" 4 ")
		})
	}
}
