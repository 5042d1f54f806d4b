package shell

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

func TestExitStatusAndStreams(t *testing.T) {
	s := newScene(t)
	for _, c := range []struct {
		line     string
		code     int
		out, err string
	}{
		{"disks", 0, "disk1  locked  XTS-AES-128", ""},
		{"shares", 0, "closed", ""},
		{"job", 0, "no copy job", ""},
		{"help", 0, "prepare-to-ship", ""},
		{"pwd", 0, "/\n", ""},
		{"ls", 1, "", "(disks-locked)"},
		{"ls /shares", 1, "", "(disks-locked)"},
		{"cat /shares/contoso_BlockBlob/photos/a.txt", 1, "", "(disks-locked)"},
		{"lease", 1, "", "(disks-locked)"},
		{"prepare-to-ship", 1, "", "(disks-locked)"},
		{"mv a b", 1, "", "(disks-locked)"},
		{"rm a", 1, "", "(disks-locked)"},
		{"cat -z", 2, "", "cat: unrecognized option '-z'\nusage: cat [-n] [FILE…]"},
		{"cat /etc/passwd | sort", 127, "", "no such command"},
		{"cat $HOME", 2, "", "no variables"},
		{"cat `pwd`", 2, "", "no command substitutions"},
		{"a=1", 2, "", "no variables"},
		{"pwd > /tmp/x", 1, "", "(disks-locked)"},
		{"pwd &", 2, "", "no background commands"},
		{"for i in 1; do pwd; done", 2, "", "no loops"},
		{"pwd; if true; then pwd; fi", 2, "", "no conditions"},
		{"(pwd)", 2, "", "no subshells"},
		{"{ pwd; }", 2, "", "no groups"},
		{"f() { pwd; }", 2, "", "no functions"},
		{"case x in x) pwd;; esac", 2, "", "no choices"},
		{"[[ a ]]", 2, "", "no tests"},
		{"((1))", 2, "", "no arithmetics"},
		{"! pwd", 2, "", "no negations"},
		{"pwd |& cat", 2, "", "no pipes of errors"},
		{"cat <(pwd)", 2, "", "no process substitutions"},
		{"cat <<x\nx\n", 2, "", "no here-documents"},
		{"pwd &> x", 2, "", "no redirections of this kind (&>)"},
		{"pwd 7> x", 2, "", "no such file descriptors (7>)"},
		{"echo $'a'", 2, "", "no escapes"},
		{"> x", 2, "", "needs a command"},
		{"time pwd", 2, "", "no measurements"},
		{strings.Repeat("pwd|", 16) + "pwd", 2, "", "at most 16"},
		{"'", 2, "", "cannot read the line"},
		{strings.Repeat("x", maxLine+1), 2, "", "too long"},
		{"pwd \x1b[2J", 2, "", "control characters"},
		{"bash", 127, "", "no such command"},
		{"/bin/sh", 127, "", "no such command"},
		{"ls && pwd", 1, "", "(disks-locked)"},
		{"ls || pwd", 0, "/\n", "(disks-locked)"},
		{"bash; pwd", 0, "/\n", "no such command"},
		{"pwd; bash", 127, "/\n", "no such command"},
		{"pwd; exit; bash", 0, "/\n", ""},
	} {
		s.wants(c.line, c.code, c.out, c.err)
	}
	if r := s.run("ls; pwd"); strings.Contains(r.out, "locked") || strings.Contains(r.err, "/\n") {
		t.Errorf("the streams are mixed: %q, %q", r.out, r.err)
	}
	if r := s.run("cat /etc/passwd"); strings.Contains(r.out+r.err, "root") {
		t.Error(r)
	}
}

func TestWhileUnlocked(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadOnly)
	s.wants("disks", 0, "disk1  unlocked", "")
	s.wants("shares", 0, "pw-of-this-lease", "")
	s.wants("shares", 0, "NFS at 127.0.0.1:2049, without login\nmount -t nfs -o vers=3,proto=tcp,nolock,port=2049,mountport=2049 127.0.0.1:/contoso_BlockBlob /mnt\n", "")
	if n := len(s.of(auditlog.OpReadShareSecret)); n != 2 {
		t.Errorf("%d records of shown credentials", n)
	}
	s.wants("lease", 0, "LockboxRequest_1", "")
	s.wants("ls -F /", 0, "shares/", "")
	s.wants("cd /shares && ls", 0, "contoso_BlockBlob\n", "")
	s.wants("cd /shares/contoso_BlockBlob/photos && pwd && cat a.txt", 0, "/shares/contoso_BlockBlob/photos\nalpha", "")
	s.wants("find /shares/contoso_BlockBlob", 0, "/shares/contoso_BlockBlob/Wrong_Folder/c d.txt\n", "")
	s.wants("sha256sum /shares/contoso_BlockBlob/photos/a.txt", 0, "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8", "")
	s.wants("crc64 /shares/contoso_BlockBlob/photos/a.txt", 0, "0x", "")
	s.wants("ls /shares/nothing", 1, "", "No such file or directory")
	s.wants("cat /shares/contoso_BlockBlob/photos", 1, "", "cat: /shares/contoso_BlockBlob/photos: Is a directory")
	s.wants("cd /shares/contoso_BlockBlob/photos/a.txt", 1, "", "Not a directory")

	for _, line := range []string{"mkdir /shares/contoso_BlockBlob/x", "mv /shares/contoso_BlockBlob/photos /shares/contoso_BlockBlob/y", "prepare-to-ship", "rm /shares/contoso_BlockBlob/photos/a.txt"} {
		s.wants(line, 1, "", "(forbidden)")
	}
	s.unlock("everything") // an access this version does not know
	s.wants("mkdir /shares/contoso_BlockBlob/x", 1, "", "(forbidden)")
	if s.shipped > 0 {
		t.Error("a refused prepare-to-ship was begun")
	}
}

func TestRepair(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadWrite)
	s.wants("cd /shares/contoso_BlockBlob; mkdir reports; mv Wrong_Folder/* reports/; ls reports", 0, "c d.txt", "")
	for _, name := range []string{"reports/b.txt", "reports/c d.txt"} {
		if _, err := os.Stat(filepath.Join(s.share, name)); err != nil {
			t.Error(err)
		}
	}
	moves := s.of(auditlog.OpRunCommand, "command", "arguments", "status")
	if !contains(moves, `Start command=mv Wrong_Folder/* reports/ arguments=Wrong_Folder/b.txt "Wrong_Folder/c d.txt" reports/`) ||
		!contains(moves, "Success command=mv Wrong_Folder/* reports/ status=0") {
		t.Errorf("records: %q", moves)
	}
	s.write("photos/b.txt", "other")
	in := "cd /shares/contoso_BlockBlob; "
	s.wants(in+"mv reports/b.txt photos", 1, "", "does not say delete")
	s.wants(in+"mv reports/b.txt nowhere/", 1, "", "not a folder")
	s.wants(in+"mv reports/* photos/a.txt", 1, "", "not a folder")
	s.wants(in+"mv nothing* photos", 1, "", "matches nothing")
	s.wants(in+"mv . photos", 1, "", "cannot go into itself")
	s.wants("mv /shares/contoso_BlockBlob /shares/x", 1, "", "mv: ")
	s.wants(in+"mv photos photos/x", 1, "", "cannot go into itself")
	s.wants(in+"rm photos/b.txt", 1, "", "(forbidden)")
	s.wants("prepare-to-ship", 0, "contoso_BlockBlob on disk1\n  sha256:new\n  previous sha256:old\n    + photos/a.txt\n  the copy job will not take these as they are:\n    ERROR_X  Bad/f\n  of these, not all that is known will be kept:\n    WARNING_Y  good/g\nprepare-to-ship: ScanCompletedWithIssues\n", "")

	s.unlock(approval.Delete)
	s.wants(in+"rm photos", 1, "", "rm: photos: Is a directory")
	s.wants(in+"rm -r .", 1, "", "refusing to remove")
	s.wants(in+"cd photos; rm -r ..", 1, "", "refusing to remove")
	s.wants("rm -r /shares/contoso_BlockBlob /shares /", 1, "", "cannot be changed")
	s.wants(in+"rm photos/b.txt", 0, "", "")
	s.wants(in+"rm -r reports; ls", 0, "photos\n", "")
	if _, err := os.Stat(filepath.Join(s.share, "reports")); err == nil {
		t.Error("reports is still there")
	}
}

func TestNothingLeadsOutOfTheShare(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.Delete)
	for name, target := range map[string]string{
		"abs": "/etc", "up": "../", "file": "../secret", "deep": "photos/../../secret", "passwd": "/etc/passwd",
	} {
		if err := os.Symlink(target, filepath.Join(s.share, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("photos", filepath.Join(s.share, "inside")); err != nil {
		t.Fatal(err)
	}
	in := "cd /shares/contoso_BlockBlob; "
	for _, line := range []string{
		"cat abs/passwd", "cat passwd", "cat file", "cat deep", "cat up/secret", "ls abs/", "ls up", "cd abs",
		"ls abs/*", "cat up/s*", "mkdir abs/x", "mkdir -p up/x/y", "mv photos/a.txt up/stolen", "mv photos/a.txt up/",
		"mv up/secret photos/", "rm up/secret", "rm -r up/secret", "cat ../../secret", "cat ../../../../../etc/passwd", "cat /etc/passwd",
		"cat '../../secret'", "ls ..*",
	} {
		r := s.run(in + line)
		if r.code != 1 || strings.Contains(r.out, "secret") || strings.Contains(r.out, "root:") || strings.Contains(r.err, s.dir) {
			t.Errorf("%s: exit %d\n%s%s", line, r.code, r.out, r.err)
		}
	}
	s.wants(in+"cat inside/a.txt", 0, "alpha", "")
	s.wants(in+"ls -F", 0, "abs@", "")
	s.wants(in+"rm passwd && ls -F", 0, "abs@", "") // the link, not its target
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(s.dir, "disk1", "secret")); string(data) != "secret" {
		t.Errorf("the file beside the share: %q, %v", data, err)
	}
	s.wants(in+"rm -r up; find .", 0, "photos/a.txt", "")
}

func TestHostileNames(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadWrite)
	for _, name := range []string{"\x1b[2Jclear", "two\nlines", "right\u202eleft", "bad\xff", "-r", "*", "$HOME", "back\\slash", "quo'te", "[a]", ".hidden"} {
		s.write("odd/"+name, "odd")
	}
	in := "cd /shares/contoso_BlockBlob/odd; "
	for _, line := range []string{"ls", "find .", "sha256sum *", "cat *x", "cat \x27*lines/x\x27", "cat two*/x"} {
		r := s.run(in + line)
		if all := r.out + r.err; strings.Contains(all, "\x1b") || strings.Contains(all, "\xff") || strings.Contains(all, "\u202e") || strings.Contains(all, "two\nlines") {
			t.Errorf("%s: %q", line, all)
		}
	}
	s.wants(in+"cat '*'", 0, "odd", "")
	s.wants(in+`cat \*`, 0, "odd", "")
	s.wants(in+`cat '$HOME' "\$HOME" back\\slash "quo'te" [a] "[a]" ./-r`, 0, strings.Repeat("odd", 7), "")
	s.wants(in+"sha256sum *", 0, "[a]", "")
	if r := s.run(in + "sha256sum *"); strings.Contains(r.out, "hidden") || strings.Count(r.out, "\n") != 10 {
		t.Errorf("* matched: %s", r.out)
	}
	s.wants(in+"sha256sum .h*", 0, ".hidden", "")
	s.wants(in+"mkdir ../new; mv bad? ??2Jclear ../new/ && ls ../new/*", 0, "bad\uFFFD", "")
}

// TestPatternsAreRecorded: as many matches as a record holds.
func TestPatternsAreRecorded(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadWrite)
	for i := range 200 {
		s.write("many/"+strings.Repeat("n", 40)+string(rune('a'+i%26))+strings.Repeat("m", i/26), "")
	}
	s.wants("cd /shares/contoso_BlockBlob; mv many/* photos/", 0, "", "")
	if entries, _ := os.ReadDir(filepath.Join(s.share, "photos")); len(entries) != 201 {
		t.Errorf("%d files were moved", len(entries)-1)
	}
	if list := s.of(auditlog.OpRunCommand, "arguments"); !contains(list, "… and ") {
		t.Errorf("records: %q", list)
	}
	s.wants("cd /shares; ls /*", 0, "contoso_BlockBlob\n", "")
	s.wants("ls -d /shares/*/photos", 0, "/shares/contoso_BlockBlob/photos\n", "")
	s.wants("cd /shares/contoso_BlockBlob; ls -d ph[a-o]tos [!a-p]*", 0, "Wrong_Folder\nphotos\n", "")
}

func TestPipesAndDevicesAreNoFiles(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadOnly)
	mkfifo(t, filepath.Join(s.share, "pipe"))
	s.wants("cat /shares/contoso_BlockBlob/pipe", 1, "", "not a regular file")
}

// TestRenameRace swaps a folder for a link out of the share while it is used.
func TestRenameRace(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadWrite)
	outside := filepath.Join(s.dir, "outside")
	link, folder := filepath.Join(s.share, "link"), filepath.Join(s.share, "swap")
	for _, err := range []error{os.Mkdir(outside, 0o755), os.WriteFile(filepath.Join(outside, "f"), []byte("OUTSIDE"), 0o600), os.Symlink(outside, link)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.write("swap/f", "inside")
	stop := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		aside := filepath.Join(s.share, "aside")
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
	out := new(bytes.Buffer)
	sh := s.shell(out, out)
	for i := range 2000 {
		sh.Run(t.Context(), "cat /shares/contoso_BlockBlob/swap/f")
		if i%10 == 0 {
			sh.Run(t.Context(), "mkdir /shares/contoso_BlockBlob/swap/made; ls /shares/contoso_BlockBlob/swap; find /shares/contoso_BlockBlob/swap; cat /shares/contoso_BlockBlob/s*/f")
		}
	}
	close(stop)
	swapper.Wait()
	if strings.Contains(out.String(), "OUTSIDE") {
		t.Error("a file outside the share was read")
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		t.Errorf("something was made outside: %v", entries)
	}
	if !strings.Contains(out.String(), "inside") {
		t.Error("nothing was ever read: the test shows nothing")
	}
}

func TestRecordedBeforeItRuns(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadWrite)
	var before []string
	commands["look"] = command{usage: "look", run: func(context.Context, *task, []string) error {
		before = s.of(auditlog.OpRunCommand, "command", "directory", "status")
		return nil
	}}
	defer delete(commands, "look")
	s.wants(`cd /shares; look 'one  two' three; bash -c id; ls /shares/x`, 1, "", "")
	if want := `Start command=look "one  two" three directory=/shares`; len(before) != 3 || before[2] != want {
		t.Errorf("when the command ran, the records were %q", before)
	}
	after := s.of(auditlog.OpRunCommand, "command", "status")
	for _, want := range []string{`Success command=look "one  two" three status=0`, "Refused command=bash -c id", "Failure command=ls /shares/x status=1"} {
		if !contains(after, want) {
			t.Errorf("no record %q in %q", want, after)
		}
	}
}

func TestPanicEndsTheCommandOnly(t *testing.T) {
	s := newScene(t)
	commands["crash"] = command{usage: "crash", run: func(context.Context, *task, []string) error { panic("crash") }}
	defer delete(commands, "crash")
	s.wants("crash; pwd", 0, "/\n", "crash: internal error")
}

func TestJobStatus(t *testing.T) {
	s := newScene(t)
	s.job = &devicev1.JobStatus{State: "halted", FilesTotal: 5, FilesDone: 3, FilesErrored: 2}
	s.wants("job", 0, "3 of 5 copied, 2 not", "")
}

func FuzzLine(f *testing.F) {
	for _, line := range []string{"pwd", "ls && cd /shares || help; job", `cat 'a b' "c\"d" e\ f`, "$(x)", "`x`", "a=b", "<<x\ny\nx", "! a", "{ a; }", "(((((", "a && b && c", "* ?[a] \\*", "\\", "cat * | head -n 2 | tail -n +1", "ls -laR /shares > x 2>&1", "cd /shares/contoso_BlockBlob; find . -name '*.txt' -size +1k; cat < f.txt; hexdump -s 1 f.txt; tail -c 2 f.txt; tree; du -ah"} {
		f.Add(line)
	}
	share := f.TempDir()
	if err := os.WriteFile(filepath.Join(share, "f.txt"), []byte("one\ntwo\n"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, line string) {
		s := &scene{t: t, share: share}
		s.unlock(approval.ReadOnly)
		var out bytes.Buffer
		sh := s.shell(&out, &out)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // tail -f goes on
		defer cancel()
		status := sh.Run(ctx, line)
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("took %s", took)
		}
		if status < 0 || status > 255 || sh.Unrecorded() {
			t.Errorf("status %d, unrecorded %v", status, sh.Unrecorded())
		}
		if strings.Contains(out.String(), "internal error") {
			t.Errorf("a command panicked: %s", out.String())
		}
		for _, r := range out.String() {
			if r != '\n' && r != '\t' && r < 0x20 {
				t.Errorf("control character in %q", out.String())
			}
		}
	})
}
