package shell

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// in goes to the share first.
const in = "cd /shares/contoso_BlockBlob && "

// isExactly checks all that a line says.
func (s *scene) isExactly(line string, code int, out, errOut string) {
	s.t.Helper()
	r := s.run(in + line)
	if strings.HasPrefix(line, "find") { // lists files as the disk has them
		list := strings.SplitAfter(r.out, "\n")
		slices.Sort(list)
		r.out = strings.Join(list, "")
	}
	if r.code != code || r.out != out || r.err != errOut {
		s.t.Errorf("%s: exit %d\nout: %q\nerr: %q\nwant %d\n     %q\n     %q", line, r.code, r.out, r.err, code, out, errOut)
	}
}

func lines(first, last int) string {
	var b strings.Builder
	for i := first; i <= last; i++ {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	return b.String()
}

func TestReading(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadOnly)
	s.write("t/l", lines(1, 30))
	s.write("t/noend", "a\nb")
	s.write("t/empty", "")
	s.write("t/bin", string([]byte{0, 1, 2, 'A', 'B'})+strings.Repeat("\x00", 64)+"end")
	sum := sha256.Sum256([]byte("alpha"))
	hash := hex.EncodeToString(sum[:])
	s.write("t/sums", hash+"  photos/a.txt\n"+strings.Repeat("0", 64)+"  Wrong_Folder/b.txt\n")
	for _, c := range []struct {
		line      string
		code      int
		out, fail string
	}{
		{"cat photos/a.txt t/noend", 0, "alphaa\nb", ""},
		{"cat nothing photos/a.txt photos", 1, "alpha", "cat: nothing: No such file or directory\ncat: photos: Is a directory\n"},
		{"cat -n t/noend", 0, "     1\ta\n     2\tb", ""},
		{"cat < photos/a.txt", 0, "alpha", ""},
		{"cat nothing 2>/dev/null", 1, "", ""},
		{"cat nothing 2>&1 | cat", 0, "cat: nothing: No such file or directory\n", ""},
		{"cat < nothing", 1, "", "cat: nothing: No such file or directory\n"},
		{"head -n 2 t/l", 0, lines(1, 2), ""},
		{"head -2 t/l", 0, lines(1, 2), ""},
		{"head t/l", 0, lines(1, 10), ""},
		{"head -c 6 t/l", 0, "line 1", ""},
		{"head -qn1 t/l t/noend", 0, "line 1\na\n", ""},
		{"head -n 1 t/l t/noend", 0, "==> t/l <==\nline 1\n\n==> t/noend <==\na\n", ""},
		{"head -n x t/l", 2, "", "head: 'x' is no number\nusage: head [-n [-]LINES | -c [-]BYTES] [-qv] [FILE…]\n"},
		{"head -n -28 t/l", 0, lines(1, 2), ""},
		{"head -n -40 t/l", 0, "", ""},
		{"head -n -1 t/noend", 0, "a\n", ""},
		{"head -c -2 t/noend", 0, "a", ""},
		{"cat t/l | head -n -28", 0, lines(1, 2), ""},
		{"cat t/noend | head -n -1", 0, "a\n", ""},
		{"cat t/l t/l | head -c -1 | tail -c 4", 0, "e 30", ""},
		{"tail -n 2 t/l", 0, lines(29, 30), ""},
		{"tail -n 1 t/noend", 0, "b", ""},
		{"tail -n +29 t/l", 0, lines(29, 30), ""},
		{"tail -c 5 t/l", 0, "e 30\n", ""},
		{"tail -c +228 t/l", 0, " 30\n", ""},
		{"tail -n 100 t/empty t/noend -q", 0, "a\nb", ""},
		{"cat t/l | tail -n 2", 0, lines(29, 30), ""},
		{"cat t/l | tail -n +30", 0, lines(30, 30), ""},
		{"cat t/l | tail -c 3", 0, "30\n", ""},
		{"cat t/l | head -n 25 | tail -n 1", 0, lines(25, 25), ""},
		{"less t/noend", 0, "a\nb", ""},
		{"sha256sum photos/a.txt", 0, hash + "  photos/a.txt\n", ""},
		{"cat photos/a.txt | sha256sum", 0, hash + "  -\n", ""},
		{"sha256sum -c t/sums", 1, "photos/a.txt: OK\nWrong_Folder/b.txt: FAILED\n", "sha256sum: 1 computed checksums did NOT match\n"},
		{"hexdump -C t/bin", 0, "00000000  00 01 02 41 42 00 00 00  00 00 00 00 00 00 00 00  |...AB...........|\n00000010  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|\n*\n00000040  00 00 00 00 00 65 6e 64                           |.....end|\n00000048\n", ""},
		{"hexdump -s 0x45 -n 2 t/bin", 0, "00000045  65 6e                                             |en|\n00000047\n", ""},
		{"file photos t/empty t/noend t/bin", 0, "photos: directory\nt/empty: empty\nt/noend: ASCII text\nt/bin: data, 72 bytes, not a multiple of 512\n", ""},
		{"ls", 0, "Wrong_Folder\nphotos\nt\n", ""},
		{"ls -d photos t -F", 0, "photos/\nt/\n", ""},
		{"ls photos nothing photos/a.txt", 1, "photos/a.txt\n\nphotos:\na.txt\n", "ls: nothing: No such file or directory\n"},
		{"ls -R photos Wrong_Folder", 0, "photos:\na.txt\n\nWrong_Folder:\nb.txt\nc d.txt\n", ""},
		{"ls -S t", 0, "l\nsums\nbin\nnoend\nempty\n", ""},
		{"find . -name '*.txt' -size -2", 0, "./Wrong_Folder/b.txt\n./Wrong_Folder/c d.txt\n./photos/a.txt\n", ""},
		{"find t -type f -size +100c", 0, "t/l\nt/sums\n", ""},
		{"find t -empty", 0, "t/empty\n", ""},
		{"find . -maxdepth 1 -type d", 0, ".\n./Wrong_Folder\n./photos\n./t\n", ""},
		{"find . -iname 'WRONG*' -o -name a.txt -type f -o -name nothing", 0, "./Wrong_Folder\n./photos/a.txt\n", ""},
		{"find . -maxdepth 1 -not -name t -o -empty", 0, ".\n./Wrong_Folder\n./photos\n", ""},
		{"find . -name a.txt -o", 2, "", "find: -o stands between tests\nusage: find [PATH…] [TEST…]\n"},
		{"find . '(' -name a.txt ')'", 2, "", "find: parentheses are not known here\nusage: find [PATH…] [TEST…]\n"},
		{"find . -path '*Folder/*' -not -name 'b*'", 0, "./Wrong_Folder/c d.txt\n", ""},
		{"find . -exec rm x", 2, "", "find: -exec is not for this find: it only lists\nusage: find [PATH…] [TEST…]\n"},
		{"tree photos Wrong_Folder", 0, "photos\n└── a.txt\nWrong_Folder\n├── b.txt\n└── c d.txt\n\n0 folders, 3 files\n", ""},
		{"du -b photos/a.txt", 0, "5\tphotos/a.txt\n", ""},
		{"exit 7; pwd", 7, "", ""},
		{"pwd | exit 3", 3, "", ""},
		{"cd photos | pwd; pwd", 0, "/shares/contoso_BlockBlob\n/shares/contoso_BlockBlob\n", ""},
		{"cat /dev/null", 1, "", "cat: /dev/null: No such file or directory\n"},
		{"cat photos/a.txt >/dev/null 2>&1", 0, "", ""},
	} {
		s.isExactly(c.line, c.code, c.out, c.fail)
	}
	s.wants(in+"ls -la photos", 0, "-rw-r--r--  1            5 ", "")
	s.wants(in+"ls -lh t/l", 0, " 231 ", "")
	s.wants(in+"stat photos/a.txt", 0, "  Size: 5 ", "")
	s.wants(in+"du -sh .", 0, "\t.\n", "")
	s.wants(in+"find . -mtime -1 -newer photos/a.txt -ls", 0, "./t", "")
	s.write("t/big", strings.Repeat("0123456789abcde\n", 200_000)+"the last\n")
	s.isExactly("cat t/big | head -n -1 | tail -c 4", 0, "cde\n", "")
	for name := range commands {
		s.wants("help "+name, 0, commands[name].usage, "")
		s.wants(name+" --help", 2, "", "usage: ")
	}
}

func TestHuman(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 1023: "1023", 1024: "1.0K", 1025: "1.1K", 10 << 10: "10K", 10<<10 + 1: "11K", 1 << 20: "1.0M", 5 << 40: "5.0T", 1<<63 - 1: "8.0E"} {
		if got := human(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// TestPipesStream: what nobody reads is not made, and nothing is kept.
func TestPipesStream(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadOnly)
	f, err := os.Create(filepath.Join(s.share, "big"))
	if err != nil {
		t.Fatal(err)
	}
	f.Truncate(1 << 40) // with nothing in it
	f.Close()
	start := time.Now()
	s.wants(in+"cat big | head -c 4 | hexdump", 0, "00 00 00 00", "")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("a terabyte was read: %s", took)
	}
	if log := s.said("read", "big"); len(log) != 1 || log[0].Size > 16<<20 {
		t.Errorf("read: %v", log)
	}
	// Interrupted, a pipe ends.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var out bytes.Buffer
	if code := s.shell(&out, &out).Run(ctx, in+"cat big | sha256sum"); code != exitInterrupted && code != exitTimeout {
		t.Errorf("exit %d: %s", code, out.String())
	}
	// A reader that is gone ends the writer.
	if code := s.shell(brokenWriter{}, io.Discard).Run(t.Context(), in+"cat big"); code == 0 {
		t.Error("to a client that is gone, everything was written")
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// said returns the events about a file.
func (s *scene) said(op recording.Op, name string) (list []recording.FileEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if e.Op == op && e.Path == name {
			list = append(list, e)
		}
	}
	return list
}

func TestChanging(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadWrite)
	for _, c := range []struct {
		line      string
		code      int
		out, fail string
	}{
		{"cat photos/a.txt > new && cat new", 0, "alpha", ""},
		{"cat photos/a.txt >> new; cat new", 0, "alphaalpha", ""},
		{"pwd > new", 1, "", "pwd: new: /shares/contoso_BlockBlob/new would be replaced, and the approval does not say delete: raise a request with --access delete (forbidden)\n"},
		{"cp photos/a.txt copy && cat copy", 0, "alpha", ""},
		{"cp photos/a.txt copy", 1, "", "cp: photos/a.txt: /shares/contoso_BlockBlob/copy would be replaced, and the approval does not say delete: raise a request with --access delete (forbidden)\n"},
		{"cp -n photos/a.txt copy", 0, "", ""},
		{"cp photos x", 1, "", "cp: photos: -r not specified; omitting folder\n"},
		{"cp -rv photos x", 0, "'photos' -> '/shares/contoso_BlockBlob/x'\n'photos/a.txt' -> '/shares/contoso_BlockBlob/x/a.txt'\n", ""},
		{"cp -r photos photos/y", 1, "", "cp: photos: cannot go into itself, '/shares/contoso_BlockBlob/photos/y'\n"},
		{"cp new copy nowhere", 1, "", "cp: target 'nowhere' is not a folder\n"},
		{"cp 'Wrong_Folder/c d.txt' x/ && ls x", 0, "a.txt\nc d.txt\n", ""},
		{"mkdir x", 1, "", "mkdir: x: File exists\n"},
		{"mkdir p/q", 1, "", "mkdir: p/q: No such file or directory\n"},
		{"mkdir -p p/q/r p/q; find p", 0, "p\np/q\np/q/r\n", ""},
		{"mkdir con", 1, "", "mkdir: con: \"con\" cannot be the name of a file on this disk: CON is a device of Windows (invalid-argument)\n"},
		{"mv -v copy p/q/r", 0, "renamed 'copy' -> '/shares/contoso_BlockBlob/p/q/r/copy'\n", ""},
		{"mv p/q/r/copy p/q/r/copy", 1, "", "mv: p/q/r/copy: cannot go into itself, '/shares/contoso_BlockBlob/p/q/r/copy'\n"},
		{"mv nothing x", 1, "", "mv: nothing: No such file or directory\n"},
		{"mv nothing .", 1, "", "mv: nothing: No such file or directory\n"},
		{"rm -rf x", 1, "", "rm: the approval does not say delete: raise a request with --access delete (forbidden)\n"},
		{"cat photos/a.txt | cat > piped; cat piped", 0, "alpha", ""},
		{"cat nothing > left; ls left", 0, "left\n", "cat: nothing: No such file or directory\n"},
		{"pwd > nowhere/x", 1, "", "pwd: nowhere/x: No such file or directory\n"},
	} {
		s.isExactly(c.line, c.code, c.out, c.fail)
	}
	s.unlock(approval.Delete)
	for _, c := range []struct {
		line string
		code int
		out  string
		fail string
	}{
		{"cat Wrong_Folder/b.txt > new; cat new", 0, "beta", ""},
		{"cat new new > new; cat new", 0, "betabeta", ""},
		{"cp photos/a.txt new; cat new", 0, "alpha", ""},
		{"mv Wrong_Folder/b.txt new; cat new; ls Wrong_Folder", 0, "betac d.txt\n", ""},
		{"rm -rv x photos/a.txt; ls", 0, "removed 'x'\nremoved 'photos/a.txt'\nWrong_Folder\nleft\nnew\np\nphotos\npiped\n", ""},
		{"rm nothing", 1, "", "rm: nothing: No such file or directory\n"},
		{"rm -f nothing", 0, "", ""},
	} {
		s.isExactly(c.line, c.code, c.out, c.fail)
	}
	if left, _ := os.ReadDir(filepath.Join(s.dir, "disk1", ".databox-staging")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for _, e := range s.said("write", "piped") {
		if sum := sha256.Sum256([]byte("alpha")); e.Size != 5 || e.SHA256 != hex.EncodeToString(sum[:]) || e.Via != recording.ViaShell || e.Client != "ch1" {
			t.Errorf("recorded: %+v", e)
		}
	}
}

// TestStandardInput: a client's stdin is what its command reads.
func TestStandardInput(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadWrite)
	sh := New(Config{Node: s, Session: s, FileLog: s, Now: time.Now, In: strings.NewReader("from the client"), Out: io.Discard, Err: io.Discard})
	if code := sh.Run(t.Context(), in+"cat > up"); code != 0 {
		t.Errorf("exit %d", code)
	}
	var out bytes.Buffer
	if code := s.shell(&out, &out).Lines(t.Context(), strings.NewReader(in+"pwd\ncat\nthis is what it reads\nexit 4\n")); code != 0 || out.String() != "/shares/contoso_BlockBlob\nthis is what it reads\nexit 4\n" {
		t.Errorf("exit %d: %q", code, out.String())
	}
	if data, _ := os.ReadFile(filepath.Join(s.share, "up")); string(data) != "from the client" {
		t.Errorf("%q", data)
	}
}

// TestInterruptedRedirectionChangesNothing: what was there stays.
func TestInterruptedRedirectionChangesNothing(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.Delete)
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	sh := New(Config{Node: s, Session: s, FileLog: s, Now: time.Now, In: r, Out: io.Discard, Err: io.Discard})
	done := make(chan int)
	go func() { done <- sh.Run(ctx, in+"cat > photos/a.txt") }()
	io.WriteString(w, "half")
	cancel()
	w.Close()
	if code := <-done; code != exitInterrupted {
		t.Errorf("exit %d", code)
	}
	if data, _ := os.ReadFile(filepath.Join(s.share, "photos/a.txt")); string(data) != "alpha" {
		t.Errorf("%q", data)
	}
}

// TestOutputIsBounded: to a terminal, and nothing in it steers it.
func TestOutputIsBounded(t *testing.T) {
	var b bytes.Buffer
	o := newOutput(&b, true)
	o.left = 100
	fmt.Fprint(o, "a\x1b[2Jb\r\nc\rd\u202e ä")
	o.Write([]byte("\xc3"))
	o.flush(false)
	o.Write([]byte("\xa4\n"))
	o.flush(true)
	if want := "a\uFFFD[2Jb\nc\uFFFDd\uFFFD ää\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
	if _, err := o.Write(make([]byte, 100)); err != errTooMuch {
		t.Error(err)
	}
}

// TestVHD has qemu-img look at what was made.
func TestVHD(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("install qemu-utils: ", err)
	}
	s := newScene(t)
	s.unlock(approval.ReadWrite)
	image := bytes.Repeat([]byte("a raw image "), 300_000)
	s.write("disks/vm.img", string(image))
	s.wants(in+"convert-vhd -n disks/vm.img", 0, "disks/vm.img: 3600000 bytes, 384 of padding, a footer of 512\ndisks/vm.vhd: 3600896 bytes\n", "")
	if _, err := os.Stat(filepath.Join(s.share, "disks/vm.vhd")); err == nil {
		t.Error("a dry run made something")
	}
	s.wants(in+"convert-vhd disks/vm.img && convert-vhd -m disks/vm.img disks/azure.vhd && file disks/vm.vhd", 0, "VHD disk image (fixed), 3600896 bytes, a multiple of 512", "")
	for name, size := range map[string]int{"vm.vhd": 3600384, "azure.vhd": 4 << 20} {
		vhd := filepath.Join(s.share, "disks", name)
		info, err := exec.Command("qemu-img", "info", "-f", "vpc", "--output=json", vhd).CombinedOutput()
		if err != nil || !strings.Contains(string(info), fmt.Sprintf(`"virtual-size": %d,`, size)) {
			t.Errorf("%s: %v: %s", name, err, info)
		}
		raw := filepath.Join(s.dir, "raw")
		if out, err := exec.Command("qemu-img", "convert", "-f", "vpc", "-O", "raw", vhd, raw).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		data, _ := os.ReadFile(raw)
		if len(data) != size || !bytes.Equal(data[:len(image)], image) || len(bytes.TrimRight(data[len(image):], "\x00")) > 0 {
			t.Errorf("%s: what QEMU reads is not the image: %d bytes", name, len(data))
		}
	}
	s.wants(in+"convert-vhd disks/vm.vhd disks/2.vhd", 1, "", "convert-vhd: disks/vm.vhd: is no raw image but a VHD")
	s.wants(in+"convert-vhd disks/vm.vhd", 1, "", "name the VHD")
	s.wants(in+"convert-vhd disks/vm.img", 1, "", "does not say delete")
	s.unlock(approval.ReadOnly)
	s.wants(in+"convert-vhd disks/vm.img disks/3.vhd", 1, "", "nothing can be changed (forbidden)")
}

// TestVHDFooter compares with QEMU's own, field by field.
func TestVHDFooter(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("TestVHD says so")
	}
	for _, size := range []int64{3 << 20, 504 << 20, 600 << 20, 2 << 30, 130 << 30} {
		name := filepath.Join(t.TempDir(), "d.vhd")
		if out, err := exec.Command("qemu-img", "create", "-f", "vpc", "-o", "subformat=fixed", name, fmt.Sprint(size)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		theirs := make([]byte, 512)
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		size = info.Size() - 512 // what its geometry can say
		_, err = f.ReadAt(theirs, size)
		f.Close()
		os.Remove(name)
		if err != nil {
			t.Fatal(err)
		}
		ours := vhdFooter(size, [16]byte(theirs[68:84]), time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC))
		for _, field := range []struct {
			name     string
			from, to int
		}{{"cookie", 0, 8}, {"features", 8, 12}, {"version", 12, 16}, {"offset", 16, 24}, {"sizes", 40, 56}, {"geometry", 56, 60}, {"type", 60, 64}, {"id and the rest", 68, 512}} {
			if !bytes.Equal(ours[field.from:field.to], theirs[field.from:field.to]) {
				t.Errorf("%d bytes: %s is %x, QEMU's %x", size, field.name, ours[field.from:field.to], theirs[field.from:field.to])
			}
		}
	}
}

func TestFollow(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadOnly)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan int)
	go func() {
		done <- s.shell(w, io.Discard).Run(ctx, in+"tail -f photos/a.txt")
		w.Close()
	}()
	buf := make([]byte, 100)
	n, _ := io.ReadAtLeast(r, buf, 5)
	f, _ := os.OpenFile(filepath.Join(s.share, "photos/a.txt"), os.O_APPEND|os.O_WRONLY, 0)
	f.WriteString(" and more")
	f.Close()
	m, _ := io.ReadAtLeast(r, buf[n:], 9)
	if got := string(buf[:n+m]); got != "alpha and more" {
		t.Errorf("%q", got)
	}
	cancel()
	go io.Copy(io.Discard, r)
	if code := <-done; code != exitInterrupted {
		t.Errorf("exit %d", code)
	}
}

func TestSpecialFiles(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.Delete)
	if err := unix.Mkfifo(filepath.Join(s.share, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, line := range []string{"cat pipe", "cat < pipe", "pwd > pipe", "pwd >> pipe", "cp pipe x", "cp photos/a.txt pipe", "sha256sum pipe", "hexdump pipe", "head pipe", "tail -f pipe", "less pipe", "convert-vhd pipe", "cp -r . /shares/contoso_BlockBlob/y"} {
			s.wants(in+line, 1, "", "")
		}
		s.wants(in+"ls -l pipe; find . -name pipe; stat pipe; file pipe; du pipe; mv pipe p; rm p", 0, "prw-------", "")
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("a command waits for a pipe")
	}
}
