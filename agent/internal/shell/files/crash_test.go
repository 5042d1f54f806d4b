package files

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// The child of a crash test is this program again, told by these what to do.
const (
	crashWork  = "FILES_TEST_WORK"  // "move" or "replace"
	crashDisks = "FILES_TEST_DISKS" // two folders, separated by a colon
	crashAt    = "FILES_TEST_AT"    // the event at which it kills itself; 0: it is killed from outside
)

func TestMain(m *testing.M) {
	if work := os.Getenv(crashWork); work != "" {
		crashing(work)
		return
	}
	goleak.VerifyTestMain(m)
}

// killer is a FileLog that kills its process at an event.
type killer struct {
	mu    sync.Mutex
	left  int
	never bool
}

func (k *killer) File(recording.FileEvent) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.left--; k.left == 0 && !k.never {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Minute)
	}
	return nil
}

func disks(list string) (shares []Share) {
	for i, dir := range strings.Split(list, ":") {
		shares = append(shares, Share{fmt.Sprintf("s%d", i), filepath.Join(dir, fmt.Sprintf("s%d", i))})
	}
	return shares
}

// crashing moves a tree to the other disk, or replaces a file.
func crashing(work string) {
	at, _ := strconv.Atoi(os.Getenv(crashAt))
	grant := Grant{approval.Delete, disks(os.Getenv(crashDisks))}
	s := New(Config{Grant: func() (Grant, error) { return grant, nil }, Log: &killer{left: at, never: at == 0}})
	var err error
	switch work {
	case "move":
		err = s.Move(context.Background(), "/shares/s0/tree", "/shares/s1/tree", false, nil)
	case "replace":
		err = s.Copy(context.Background(), "/shares/s0/tree/a", "/shares/s0/tree/b/c", true, nil)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(3)
	}
}

// content is the tree of the crash tests.
func content() map[string][]byte {
	big := bytes.Repeat([]byte("some bytes "), 100_000)
	return map[string][]byte{"a": big, "b/c": []byte("small"), "b/d/e": bytes.Repeat([]byte("x"), 70_000), "f": nil}
}

// twoDisks returns two folders on different file systems, with the tree in the
// first.
func twoDisks(t *testing.T) (first, second string) {
	t.Helper()
	first = t.TempDir()
	without := t.Skip
	if os.Getenv("CI") == "true" {
		without = t.Fatal
	}
	second, err := os.MkdirTemp("/dev/shm", "files")
	if err != nil {
		without("there is no second file system: ", err)
	}
	t.Cleanup(func() { os.RemoveAll(second) })
	var a, b syscall.Stat_t
	if err := errors.Join(syscall.Stat(first, &a), syscall.Stat(second, &b)); err != nil || a.Dev == b.Dev {
		without("there is no second file system: ", err)
	}
	fill(t, first, second)
	return first, second
}

func fill(t *testing.T, first, second string) {
	for _, dir := range []string{filepath.Join(first, "s0"), filepath.Join(second, "s1")} {
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range content() {
		file := filepath.Join(first, "s0", "tree", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// child runs the work, killed at an event or, with at zero, after a time.
func child(t *testing.T, work, dirs string, at int, after time.Duration) (killed bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashWork+"="+work, crashDisks+"="+dirs, crashAt+"="+strconv.Itoa(at))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if at == 0 {
		time.AfterFunc(after, func() { cmd.Process.Kill() })
	}
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 3 {
		t.Errorf("the work failed: %s", out.String())
	}
	return err != nil
}

// TestKilledMove kills a move between disks at every event of it, and at random
// moments: each file is whole on one disk at least, whatever its name says on the
// other.
func TestKilledMove(t *testing.T) {
	first, second := twoDisks(t)
	check := func(when string) {
		t.Helper()
		for name, want := range content() {
			from, err1 := os.ReadFile(filepath.Join(first, "s0", "tree", name))
			to, err2 := os.ReadFile(filepath.Join(second, "s1", "tree", name))
			if err1 == nil && !bytes.Equal(from, want) {
				t.Errorf("%s: the source of %s is damaged", when, name)
			}
			if err2 == nil && !bytes.Equal(to, want) {
				t.Errorf("%s: the copy of %s is not whole", when, name)
			}
			if err1 != nil && err2 != nil {
				t.Errorf("%s: %s is lost", when, name)
			}
		}
	}
	events := 1
	for ; child(t, "move", first+":"+second, events, 0); events++ {
		check(fmt.Sprintf("killed at event %d", events))
		fill(t, first, second)
	}
	check("not killed")
	if _, err := os.Stat(filepath.Join(first, "s0", "tree")); !errors.Is(err, fs.ErrNotExist) || events < 20 {
		t.Errorf("after %d events the source is there: %v", events, err)
	}
	for range 8 {
		fill(t, first, second)
		child(t, "move", first+":"+second, 0, time.Duration(rand.Int64N(int64(40*time.Millisecond))))
		check("killed at some moment")
	}
	// What dead processes left is swept when the next one writes.
	fill(t, first, second)
	child(t, "move", first+":"+second, -1, 0)
	if left, _ := os.ReadDir(filepath.Join(second, StageDir)); len(left) > 0 {
		t.Errorf("left in the staging folder: %v", left)
	}
}

// TestKilledReplace: at any moment there is the old content or the new.
func TestKilledReplace(t *testing.T) {
	first, second := twoDisks(t)
	want := map[[32]byte]string{sha256.Sum256(content()["a"]): "new", sha256.Sum256(content()["b/c"]): "old"}
	seen := map[string]int{}
	try := func(at int, after time.Duration) bool {
		fill(t, first, second)
		killed := child(t, "replace", first+":"+second, at, after)
		data, err := os.ReadFile(filepath.Join(first, "s0", "tree", "b/c"))
		which := want[sha256.Sum256(data)]
		if err != nil || which == "" {
			t.Errorf("event %d: neither the old content nor the new: %d bytes, %v", at, len(data), err)
		}
		seen[which]++
		return killed
	}
	for at := 1; try(at, 0); at++ {
	}
	for range 6 {
		try(0, time.Duration(rand.Int64N(int64(50*time.Millisecond))))
	}
	if seen["old"] == 0 || seen["new"] == 0 {
		t.Errorf("seen: %v", seen)
	}
}

// failing is a FileLog that fails from an event on.
type failing struct{ left int }

func (f *failing) File(recording.FileEvent) error {
	if f.left--; f.left < 0 {
		return errors.New("the disk of the recordings is full")
	}
	return nil
}

// TestFailedMove ends a move between disks at every step of it.
func TestFailedMove(t *testing.T) {
	first, second := twoDisks(t)
	grant := Grant{approval.ReadWrite, disks(first + ":" + second)}
	for at := 0; ; at++ {
		fill(t, first, second)
		s := New(Config{Grant: func() (Grant, error) { return grant, nil }, Log: &failing{at}})
		err := s.Move(t.Context(), "/shares/s0/tree", "/shares/s1/tree", false, nil)
		for name, want := range content() {
			from, err1 := os.ReadFile(filepath.Join(first, "s0", "tree", name))
			to, err2 := os.ReadFile(filepath.Join(second, "s1", "tree", name))
			if (err1 != nil || !bytes.Equal(from, want)) && (err2 != nil || !bytes.Equal(to, want)) {
				t.Errorf("failed at event %d: %s is lost", at, name)
			}
		}
		if err == nil {
			if at < 20 {
				t.Errorf("a move of %d events", at)
			}
			break
		}
		if !errors.Is(err, ErrUnrecorded) {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(second, "s1", "tree", "a"))
	if err != nil || time.Since(info.ModTime()) > time.Minute {
		t.Error(info, err)
	}
}

// TestMoveLeavesWhatChanged: what somebody changes or adds while it is moved stays.
func TestMoveLeavesWhatChanged(t *testing.T) {
	first, second := twoDisks(t)
	grant := Grant{approval.ReadWrite, disks(first + ":" + second)}
	source := filepath.Join(first, "s0", "tree")
	meddle := meddler{func(e recording.FileEvent) {
		if e.Op == recording.OpRemove { // all is copied, and nothing removed yet
			os.WriteFile(filepath.Join(source, "f"), []byte("changed"), 0o644)
			os.WriteFile(filepath.Join(source, "b", "new"), []byte("added"), 0o644)
		}
	}}
	s := New(Config{Grant: func() (Grant, error) { return grant, nil }, Log: meddle})
	if err := s.Move(t.Context(), "/shares/s0/tree", "/shares/s1/tree", false, nil); !errors.Is(err, ErrChanged) && !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("moved: %v", err)
	}
	for name, want := range map[string]string{"f": "changed", "b/new": "added"} {
		if data, err := os.ReadFile(filepath.Join(source, name)); string(data) != want {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
}

type meddler struct{ do func(recording.FileEvent) }

func (m meddler) File(e recording.FileEvent) error {
	m.do(e)
	return nil
}

// TestRaces swaps a folder for links out of the share while everything is tried
// there.
func TestRaces(t *testing.T) {
	s := newScene(t, approval.Delete)
	outside := filepath.Join(s.disk, "outside")
	s.put("outside/f", "OUTSIDE")
	s.put("one_BlockBlob/swap/f", "inside")
	link, folder, aside := filepath.Join(s.share, "link"), filepath.Join(s.share, "swap"), filepath.Join(s.share, "aside")
	os.Symlink("../outside", link)
	stop := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			os.Rename(folder, aside)
			os.Rename(link, folder)
			os.Rename(folder, link)
			os.Rename(aside, folder)
		}
	})
	const at = "/shares/one_BlockBlob/swap"
	seen := 0
	for i := range 500 {
		if text, err := read(s.Open(at + "/f")); err == nil && text == "inside" {
			seen++
		} else if strings.Contains(text, "OUTSIDE") {
			t.Fatal("a file outside the share was read")
		}
		write(s.Create(at + "/g"))("from inside")
		s.Mkdir(at + "/d")
		s.Rename(at+"/g", at+"/h", true)
		s.Rename(at+"/h", "/shares/two_AzFile/h", true)
		s.Chtimes(at+"/f", time.Time{}, time.Unix(int64(i), 0))
		s.Remove(at + "/d")
		if i%50 == 0 {
			s.RemoveAll(t.Context(), at+"/d")
			s.Each(at, func(info fs.FileInfo) error {
				if info.Name() == "only-outside" {
					t.Error("a folder outside was listed")
				}
				return nil
			})
		}
		os.WriteFile(filepath.Join(outside, "only-outside"), nil, 0o600)
	}
	close(stop)
	swapper.Wait()
	entries, _ := os.ReadDir(outside)
	info, err := os.Stat(filepath.Join(outside, "f"))
	if len(entries) != 2 || s.content("outside/f") != "OUTSIDE" || err != nil || info.ModTime().Year() < 2000 {
		t.Errorf("something happened outside: %v, %v", entries, info)
	}
	if seen == 0 {
		t.Error("nothing was ever read: the test shows nothing")
	}
}
