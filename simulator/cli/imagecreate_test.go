package cli

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/simulator/image"
	"github.com/databox-lockbox/lockbox/simulator/simtest"
)

// TestCreate makes volumes, which other people's tools read, before and after a key
// of theirs is changed.
func TestCreate(t *testing.T) {
	simtest.Need(t, "dislocker-file", "cryptsetup", "ntfscat")
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := os.MkdirAll(in("files/folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, in("files/folder/a.txt"), "what is inside")
	const phrase = "correct horse" // dislocker reads ASCII only
	write(t, in("phrase"), phrase+"\n")
	path, recovery := in("disk.img"), in("recovery")
	told := sim(t, "create", path, "--size", "16M", "--label", "DISK1", "--files", in("files"), "--method", "aes-cbc-128-elephant", "--sector-size", "512",
		"--recovery-password-file", recovery, "--passphrase-file", in("phrase"), "--bek-dir", dir, "-o", "json").ok(t)
	var made struct {
		Method string
		Added  []addedView
	}
	if err := json.Unmarshal([]byte(told), &made); err != nil || made.Method != bitlocker.AES128Elephant.String() || len(made.Added) != 3 {
		t.Errorf("%v: %s", err, told)
	}
	password := secretFile(t, recovery)
	bek := made.Added[0].File
	secretFile(t, bek)
	if strings.Contains(told, password) || strings.Contains(told, phrase) {
		t.Errorf("secrets in the output: %s", told)
	}
	view := sim(t, "cat", path, "--bek", bek).ok(t)
	judge(t, path, view, "-p"+password)
	judge(t, path, view, "-u"+phrase)
	judge(t, path, view, "-f"+bek)
	if out, err := exec.CommandContext(t.Context(), "ntfscat", write(t, in("plain"), view), "folder/a.txt").Output(); err != nil || string(out) != "what is inside" {
		t.Errorf("%v: the file in it holds %q", err, out)
	}
	if out := sim(t, "verify", path, "--recovery-password-file", recovery).ok(t); !strings.Contains(out, "NTFS") || strings.Count(out, "genuine") != 3 {
		t.Errorf("verify says %q", out)
	}

	next := in("next")
	sim(t, "add-key", path, "--passphrase-file", in("phrase"), "--new-recovery-password-file", next, "--replace", made.Added[2].ID).ok(t)
	judge(t, path, view, "-p"+secretFile(t, next))
	sim(t, "remove-key", path, "--recovery-password-file", next, "--kind", "passphrase").ok(t)
	judge(t, path, view, "-f"+bek)

	// What was decrypted can be encrypted again, with a key that is there already.
	told = sim(t, "create", in("again.img"), "--from", in("plain"), "--method", "aes-xts-128", "--recovery-password-file", recovery).ok(t)
	if !strings.Contains(told, "read from "+recovery) {
		t.Errorf("create says %q", told)
	}
	judge(t, in("again.img"), sim(t, "cat", in("again.img"), "--recovery-password-file", recovery).ok(t), "-p"+password)
}

// secretFile returns what is in a file that only its owner can read.
func secretFile(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%s: %v, mode %v", path, err, info.Mode())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// judge has dislocker decrypt the volume, and cryptsetup check it and the key.
func judge(t *testing.T, path, view, key string) {
	t.Helper()
	plain := filepath.Join(t.TempDir(), "plain")
	if out, err := exec.CommandContext(t.Context(), "dislocker-file", "-q", "-V", path, key, "--", plain).CombinedOutput(); err != nil {
		t.Errorf("dislocker with a key of kind %s: %v: %s", key[:2], err, out)
		return
	}
	if theirs, err := os.ReadFile(plain); err != nil || len(theirs) < len(view) || string(theirs[:len(view)]) != view {
		t.Errorf("dislocker sees something else (%v)", err)
	}
	cmd := exec.CommandContext(t.Context(), "cryptsetup", "open", "--type", "bitlk", "--test-passphrase", "--readonly", path)
	if file, ok := strings.CutPrefix(key, "-f"); ok {
		cmd.Args = append(cmd.Args, "--key-file", file)
	} else {
		cmd.Stdin = strings.NewReader(key[2:])
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("cryptsetup with a key of kind %s: %v: %s", key[:2], err, out)
	}
}

func TestCreateRefuses(t *testing.T) {
	simtest.Need(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	there := write(t, in("there"), "something else")
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{there, "--size", "16M", "--bek-dir", dir}, exitFailed, "give --force"},
		{[]string{there, "--size", "16M", "--recovery-password-file", there, "--force"}, exitUsage, "both the image and a key"},
		{[]string{dir, "--size", "16M", "--bek-dir", dir, "--force"}, exitFailed, "is a directory"},
		{[]string{in("a"), "--bek-dir", dir}, exitUsage, "no --size"},
		{[]string{in("a"), "--size", "16X", "--bek-dir", dir}, exitUsage, "--size"},
		{[]string{in("a"), "--size", "-1", "--bek-dir", dir}, exitUsage, "--size"},
		{[]string{in("a"), "--size", "1M", "--bek-dir", dir}, exitUsage, "at least"},
		{[]string{in("a"), "--size", "16M"}, exitUsage, "no key"},
		{[]string{in("a"), "--size", "16M", "--clear-key"}, exitUsage, "another key"},
		{[]string{in("a"), "--size", "16M", "--show"}, exitUsage, "for a terminal"},
		{[]string{in("a"), "--size", "16M", "--bek-dir", dir, "--method", "rot13"}, exitUsage, "--method"},
		{[]string{in("a"), "--size", "16M", "--bek-dir", dir, "--sector-size", "1024"}, exitUsage, "--sector-size"},
		{[]string{in("a"), "--size", "16M", "--bek-dir", dir, "--files", dir}, exitUsage, "cannot lie in the folder"},
		{[]string{in("a"), "--size", "16M", "--bek-dir", dir, "--files", there}, exitUsage, "no folder"},
		{[]string{in("a"), "--from", there, "--bek-dir", dir}, exitUsage, "at least"},
		{[]string{in("a"), "--size", "16M", "--from", there, "--bek-dir", dir}, exitFailed, "has 14 bytes"},
		{[]string{in("a"), "--size", "16M", "--bek-dir", in("none")}, exitFailed, "cannot write the key"},
		{[]string{in("none/a"), "--size", "16M", "--bek-dir", dir}, exitFailed, "no such file"},
	} {
		sim(t, append([]string{"create"}, c.args...)...).fails(t, c.code, c.says)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// TestCreateInterrupted sends the signal of Ctrl-C while the image is made: neither
// image nor key is left, and what was there stays.
func TestCreateInterrupted(t *testing.T) {
	simtest.Need(t)
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "disk.img"), "something else")
	var problems bytes.Buffer
	cmd := program(t, "image", "create", path, "--size", "1G", "--bek-dir", dir, "--force")
	cmd.Stderr = &problems
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if made, _ := filepath.Glob(path + ".making-*"); len(made) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not begin")
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != exitFailed || problems.String() != "databox-sim: interrupted\n" {
		t.Errorf("exit status %d: %q", cmd.ProcessState.ExitCode(), problems.String())
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "something else" {
		t.Errorf("what was there is gone: %v", err)
	}
}

// TestShow draws a recovery password that only the terminal gets.
func TestShow(t *testing.T) {
	v := newVolume(t, image.Spec{})
	user, tty := terminal(t)
	cmd := program(t, "image", "add-key", v.path, "--bek", v.bek, "--show")
	cmd.Stdout, cmd.Stderr = tty, tty
	started(t, cmd, user, "Recovery password: ")
	shown := make([]byte, 4096)
	n, err := user.Read(shown)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	simFed(t, string(shown[:n])[:55], "cat", v.path, "--recovery-password-file", "-").ok(t)
}

// TestVerifyFinds damages a volume in each place that verify looks at.
func TestVerifyFinds(t *testing.T) {
	simtest.Need(t)
	dir := t.TempDir()
	path, recovery := filepath.Join(dir, "disk.img"), filepath.Join(dir, "recovery")
	sim(t, "create", path, "--size", "16M", "--recovery-password-file", recovery).ok(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := image.Inspect(path)
	if err != nil {
		t.Fatal(err)
	}
	damage := func(at int64) func(b []byte) { return func(b []byte) { b[at] ^= 1 } }
	for name, c := range map[string]struct {
		change func(b []byte)
		key    bool
		says   string
	}{
		"checksum of a copy": {damage(info.Metadata[1] + 100), false, "metadata copy 2: checksum does not fit"},
		"the boot sector":    {damage(176 + 2), false, "metadata copy 1: the boot sector does not lead to it"},
		"seal of a copy":     {func(b []byte) { reseal(b[info.Metadata[2]:]) }, true, "metadata copy 3: damaged BitLocker volume: the metadata have been altered"},
		"copy of the header": {damage(info.HeaderCopy), true, "file system: the decrypted view begins with no"},
		"the file table":     {func(b []byte) { clear(b[8<<10 : 64<<10]) }, true, "file table"},
	} {
		b := bytes.Clone(whole)
		c.change(b)
		write(t, path, string(b))
		r := sim(t, "verify", path, "-o", "json", "--recovery-password-file", recovery)
		if r.code != exitDamaged || !strings.Contains(r.err, c.says) || strings.Count(r.err, "\n") != 1 || !json.Valid([]byte(r.out)) {
			t.Errorf("%s: exit status %d: %s%s", name, r.code, r.err, r.out)
		}
		if r := sim(t, "verify", path); (r.code == exitOK) != c.key {
			t.Errorf("%s, without a key: exit status %d: %s", name, r.code, r.err)
		}
	}
}

// reseal alters a metadata copy, its creation time, and corrects its checksum.
func reseal(area []byte) {
	le := binary.LittleEndian
	length := 16 * int(le.Uint16(area[8:]))
	area[64+40] ^= 1
	le.PutUint32(area[length+4:], crc32.ChecksumIEEE(area[:length]))
}
