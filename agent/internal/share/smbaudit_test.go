package share

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// said lists events as "op path size [to] [error]", without those of connecting.
func said(events []recording.FileEvent) []string {
	var list []string
	for _, e := range events {
		if e.Op == recording.OpConnect || e.Op == recording.OpLeave {
			continue
		}
		text := fmt.Sprintf("%s %s %d", e.Op, e.Path, e.Size)
		if e.To != "" {
			text += " -> " + e.To
		}
		if e.Error != "" {
			text += " (" + e.Error + ")"
		}
		list = append(list, text)
	}
	return list
}

func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// TestRecord holds what clients do against what is recorded of it.
func TestRecord(t *testing.T) {
	st := newShare(t)
	big := strings.Repeat("0123456789abcdef", 1<<18) // 4 MiB
	local := t.TempDir()
	writeFile(t, filepath.Join(local, "big"), big)
	writeFile(t, filepath.Join(local, "empty"), "")
	st.start(t, st.folder, approval.Delete)
	tests := []struct {
		commands string
		want     []string
		hash     string // of the closing
	}{
		{"ls", []string{"list . -1"}, ""},
		{"get file /dev/null", []string{"open file -1", "read file 7", "close file 7"}, hashOf("content")},
		{"put big", []string{"create big -1", fmt.Sprintf("write big %d", len(big)), fmt.Sprintf("close big %d", len(big))}, hashOf(big)},
		{"get big /dev/null", []string{"open big -1", fmt.Sprintf("read big %d", len(big)), fmt.Sprintf("close big %d", len(big))}, hashOf(big)},
		{"put empty big", []string{"truncate big -1", "close big 0"}, hashOf("")},
		{"mkdir folder", []string{"mkdir folder -1"}, ""},
		{`rename file folder\moved`, []string{"rename file -1 -> " + shareName + "/folder/moved"}, ""},
		{"scopy folder/moved copy", []string{"open folder/moved -1", "create copy -1", "read folder/moved 7", "write copy 7", "close folder/moved 7", "close copy 7"}, hashOf("content")},
		{`hardlink copy link`, []string{"link copy -1 -> " + shareName + "/link"}, ""},
		{"setmode copy +r", []string{"setattr copy -1", "setattr copy -1"}, ""},
		{"del big", []string{"list . -1", "remove big -1"}, ""},
		{`del folder\moved`, []string{"list folder -1", "remove folder/moved -1"}, ""},
		{"rmdir folder", []string{"rmdir folder -1"}, ""},
		{"get nothere", []string{"open nothere -1 (No such file or directory)"}, ""},
	}
	for _, tt := range tests {
		st.log.take()
		out, err := st.client("lcd " + local + "; " + tt.commands)
		t.Logf("%s: %v: %s", tt.commands, err, out)
		var got []recording.FileEvent
		waitFor(t, func() bool {
			got = st.log.kept()
			return len(said(got)) >= len(tt.want) && slices.ContainsFunc(got, func(e recording.FileEvent) bool { return e.Op == recording.OpLeave })
		})
		have := said(got)
		slices.Sort(have) // hashing takes its time
		slices.Sort(tt.want)
		if diff := cmp.Diff(tt.want, have); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.commands, diff)
		}
		for _, e := range got {
			if e.Via != recording.ViaSMB || e.Share != shareName || e.Client != "127.0.0.1" {
				t.Errorf("%s: %+v", tt.commands, e)
			}
			if e.Op == recording.OpClose && e.SHA256 != tt.hash {
				t.Errorf("%s: hash of %s is %q, want %q", tt.commands, e.Path, e.SHA256, tt.hash)
			}
		}
	}
}

// TestHostileNames has files on the disk whose names look like reports of smbd.
func TestHostileNames(t *testing.T) {
	st := newShare(t)
	forged := "x\n<173>Nov 22 01:54:57 smbd_audit: 7|10.9.8.7|" + shareName + "|unlinkat|ok|"
	names := []string{
		forged, "a|b", `quo"te`, "tab\there", "ünï", "x:0-9999:1", "end\n", "|", "\x01\x7f", "trail.", " space ", "a:stream",
		`back\slash`, "%d|%I", strings.Repeat("long", 60),
	}
	for _, name := range names {
		writeFile(t, filepath.Join(st.folder, name), "content")
	}
	st.start(t, st.folder, approval.Delete)
	out, err := st.client("lcd " + t.TempDir() + "; prompt; mask *; mget *")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var got, want []string
	waitFor(t, func() bool {
		got = got[:0]
		for _, e := range st.log.kept() {
			if e.Op == recording.OpClose && e.SHA256 == hashOf("content") {
				got = append(got, e.Path)
			}
		}
		return len(got) > len(names)
	})
	want = append(slices.Clone(names), "file")
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, e := range st.log.kept() {
		if e.Op == recording.OpRemove || e.Client != "127.0.0.1" {
			t.Errorf("forged: %+v", e)
		}
	}
}

// TestRecordStops closes the share when what happens cannot be recorded, while a
// client is writing.
func TestRecordStops(t *testing.T) {
	st := started(t, approval.Delete)
	if out, err := st.client("get file /dev/null"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	client := make(chan struct{})
	go func() {
		defer close(client)
		st.client(strings.Repeat("put /bin/bash new; ", 1000))
	}()
	waitFor(t, func() bool { return slices.Contains(said(st.log.kept()), "create new -1") })
	st.log.fail(errors.New("the disk is full"))
	began := time.Now()
	select {
	case <-st.server.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the share stays open")
	}
	t.Logf("closed in %v", time.Since(began))
	if err := st.server.Err(); err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("because: %v", err)
	}
	<-client
	if out, err := st.client("ls"); err == nil {
		t.Errorf("still open: %s", out)
	}
}

// TestReportsInUnknownForm has somebody else than smbd write into its socket.
func TestReportsInUnknownForm(t *testing.T) {
	for name, text := range map[string]string{
		"empty":       "<173>",
		"no stamp":    "<173>smbd_audit: 7|127.0.0.1|" + shareName + "|connect|ok|x\n",
		"other name":  "<173>Nov 22 01:54:57 smbd_audi: 7|127.0.0.1|" + shareName + "|connect|ok|x\n",
		"no end":      "<173>Nov 22 01:54:57 smbd_audit: 7|127.0.0.1|" + shareName + "|connect|ok|x",
		"no client":   "<173>Nov 22 01:54:57 smbd_audit: 7||" + shareName + "|connect|ok|x\n",
		"no result":   "<173>Nov 22 01:54:57 smbd_audit: 7|127.0.0.1|" + shareName + "|connect||x\n",
		"other share": "<173>Nov 22 01:54:57 smbd_audit: 7|127.0.0.1|other|connect|ok|x\n",
		"other op":    "<173>Nov 22 01:54:57 smbd_audit: 7|127.0.0.1|" + shareName + "|frobnicate|ok|x\n",
		"symlink":     "<173>Nov 22 01:54:57 smbd_audit: 7|127.0.0.1|" + shareName + "|symlinkat|ok|x\n",
		"outside":     "<173>Nov 22 01:54:57 smbd_audit: 7|127.0.0.1|" + shareName + "|unlinkat|ok|/etc/passwd\n",
		"no range":    "<173>Nov 22 01:54:57 smbd_audit: 7|127.0.0.1|" + shareName + "|strict_lock_check|ok|x:0-1:2\n",
		"huge":        "<173>Nov 22 01:54:57 smbd_audit: 7|127.0.0.1|" + shareName + "|strict_lock_check|ok|x:99999999999999999999-1:1\n",
		"wrap":        "<173>Nov 22 01:54:57 smbd_audit: 7|127.0.0.1|" + shareName + "|strict_lock_check|ok|x:9223372036854775807-1:1\n",
		"one path":    "<173>Nov 22 01:54:57 smbd_audit: 7|127.0.0.1|" + shareName + "|renameat|ok|x\n",
	} {
		line, ok, err := parseAudit([]byte(text))
		if err == nil && ok {
			err = newTestTracker(t, approval.Delete).take(line)
		}
		if err == nil {
			t.Errorf("%s is taken for a report", name)
		}
	}
	if _, ok, err := parseAudit([]byte("<86>Nov 22 01:54:57 su: hello\n")); ok || err != nil {
		t.Errorf("what another says: %v %v", ok, err)
	}
}

func newTestTracker(t *testing.T, access approval.Access) *tracker {
	t.Helper()
	tr, err := newTracker([]Share{{Name: shareName, Dir: t.TempDir()}}, access, &keptLog{}, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.close)
	return tr
}

// TestNotApproved ends the record when smbd does what it was told to refuse.
func TestNotApproved(t *testing.T) {
	for access, ops := range map[approval.Access]map[string]bool{
		approval.ReadOnly:  {"unlinkat": false, "mkdirat": false, "renameat": false},
		approval.ReadWrite: {"unlinkat": false, "mkdirat": true, "renameat": false},
		approval.Delete:    {"unlinkat": true, "mkdirat": true, "renameat": true},
	} {
		for op, want := range ops {
			tr := newTestTracker(t, access)
			args := tr.shares[shareName].dir + "/x"
			if op == "renameat" {
				args += "|" + tr.shares[shareName].dir + "/y"
			}
			err := tr.take(auditLine{"7", "127.0.0.1", shareName, op, "", args})
			if (err == nil) != want {
				t.Errorf("%s under %s: %v", op, access, err)
			}
			if events := tr.log.(*keptLog).kept(); len(events) != 1 {
				t.Errorf("%s under %s: recorded as %v", op, access, said(events))
			}
		}
	}
}

// TestUnclearRename is a folder whose name ends in what stands between two paths.
func TestUnclearRename(t *testing.T) {
	tr := newTestTracker(t, approval.Delete)
	dir := tr.shares[shareName].dir
	line := auditLine{"7", "127.0.0.1", shareName, "renameat", "", dir + "/a|" + dir + "/b|" + dir + "/c"}
	if err := tr.take(line); err == nil {
		t.Error("something was guessed")
	}
}

func TestSpans(t *testing.T) {
	tests := map[string]struct {
		parts  [][2]int64
		size   int64
		sum    int64
		covers bool
	}{
		"nothing":       {nil, 10, 0, false},
		"whole":         {[][2]int64{{0, 10}}, 10, 10, true},
		"beyond":        {[][2]int64{{0, 100}}, 10, 10, true},
		"in order":      {[][2]int64{{0, 4}, {4, 6}}, 10, 10, true},
		"out of order":  {[][2]int64{{6, 4}, {0, 2}, {2, 4}}, 10, 10, true},
		"a hole":        {[][2]int64{{0, 4}, {5, 5}}, 10, 9, false},
		"the beginning": {[][2]int64{{0, 9}}, 10, 9, false},
		"twice":         {[][2]int64{{0, 10}, {0, 10}}, 10, 20, true},
		"size unknown":  {[][2]int64{{0, 10}}, -1, 10, false},
	}
	for name, tt := range tests {
		var s spans
		for _, p := range tt.parts {
			s.add(p[0], p[1])
		}
		if got := s.upTo(tt.size); got != tt.sum {
			t.Errorf("%s: %d bytes, want %d", name, got, tt.sum)
		}
		if got := s.covers(tt.size); got != tt.covers {
			t.Errorf("%s: covers: %v", name, got)
		}
	}
	var scattered spans
	for i := range int64(100_000) {
		scattered.add(2*i+1, 1)
	}
	if len(scattered.beyond) > maxPieces || scattered.covers(200_000) {
		t.Errorf("%d pieces are kept", len(scattered.beyond))
	}
}

// TestStillOpen records what was done with files that are open when the shares
// close, or their client goes, and under the names that they got meanwhile.
func TestStillOpen(t *testing.T) {
	for name, end := range map[string]func(*tracker) error{
		"shares close": (*tracker).flush,
		"client goes": func(tr *tracker) error {
			return tr.take(auditLine{pid: "7", client: "127.0.0.1", share: shareName, op: "disconnect"})
		},
	} {
		log := &keptLog{}
		folder := t.TempDir()
		tr, err := newTracker([]Share{{Name: shareName, Dir: folder}}, approval.Delete, log, func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(folder, "new"), "content")
		for _, step := range [][2]string{
			{"openat", "w|" + folder + "/old"},
			{"create_file", "0x12019f|file|open|" + folder + "/old"},
			{"strict_lock_check", folder + "/old:0-3:0"},
			{"strict_lock_check", folder + "/old:3-2:1"},
			{"renameat", folder + "/old|" + folder + "/new"},
		} {
			if err := tr.take(auditLine{"7", "127.0.0.1", shareName, step[0], "", step[1]}); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(end(tr), tr.hashes.close()); err != nil {
			t.Error(err)
		}
		tr.close()
		want := []string{"open old -1", "write old -1", "rename old -1 -> " + shareName + "/new", "read new 3", "write new 2", "close new 7"}
		if diff := cmp.Diff(want, said(log.kept())); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if len(tr.files) != 0 {
			t.Errorf("%s: %d files are still looked after", name, len(tr.files))
		}
	}
}

// FuzzAudit: what is taken for a report is that report, to the byte, and whatever it
// says harms nobody.
func FuzzAudit(f *testing.F) {
	const stamp = "Nov 22 01:54:57 "
	for _, text := range []string{
		"7|127.0.0.1|share|renameat|ok|/dir/a|/dir/b\n", "7|::1|share|openat|fail (No such file or directory)|r|/dir/a\n",
		"7|::1|share|strict_lock_check|ok|/dir/a:0-1:1\n", "7|::1|share|create_file|ok|0x81|dir|open|/dir\n", "7|::1|share|fchmod|ok|/dir/a|600\n",
	} {
		f.Add(auditStart + stamp + "smbd_audit: " + text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		line, ok, err := parseAudit([]byte(text))
		if err != nil || !ok {
			return
		}
		result := "ok"
		if line.failure != "" {
			result = "fail (" + line.failure + ")"
		}
		fields := strings.Join([]string{line.pid, line.client, line.share, line.op, result, line.args}, "|")
		at := len(auditStart) + len(stamp)
		if again := text[:at] + "smbd_audit: " + fields + "\n"; again != text {
			t.Errorf("%q is taken for %q", text, again)
		}
		s := &trackedShare{name: "share", dir: "/nonexistent"}
		tr := &tracker{shares: map[string]*trackedShare{"share": s}, access: approval.ReadWrite, log: &keptLog{}, files: map[fileKey]*openFile{}, made: madeFiles{}, absent: map[string]string{}}
		if line.op != "close" && line.op != "disconnect" { // which look at the disk
			tr.take(line)
		}
	})
}
