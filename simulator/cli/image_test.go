package cli

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf16"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/simulator/image"
)

const childVariable = "DATABOX_SIM_TEST_CHILD"

// TestMain is the program itself where a test runs it.
func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		os.Exit(Main())
	}
	goleak.VerifyTestMain(m)
}

// program is databox-sim with these arguments, to be started.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	// It leaves nothing running: it need not wait a second for races when it ends.
	cmd.Env = append(os.Environ(), childVariable+"=1", "TZ=Asia/Tokyo", "GORACE=atexit_sleep_ms=0")
	return cmd
}

// result is what came of a command.
type result struct {
	code     int
	out, err string
}

func sim(t *testing.T, args ...string) result { t.Helper(); return simFed(t, "", args...) }

// simFed runs 'databox-sim image' with something at its standard input.
func simFed(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	var out, problems bytes.Buffer
	cmd := program(t, append([]string{"image"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &problems
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), problems.String()}
}

// ok demands success, without a word on standard error.
func (r result) ok(t *testing.T) string {
	t.Helper()
	if r.code != exitOK || r.err != "" {
		t.Fatalf("exit status %d: %s", r.code, r.err)
	}
	return r.out
}

// fails demands an exit status, one line that says why, and nothing else.
func (r result) fails(t *testing.T, code int, says string) {
	t.Helper()
	if r.code != code || strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, says) || r.out != "" {
		t.Errorf("exit status %d, %d bytes of output, %q: want %d, none, and a line with %q", r.code, len(r.out), r.err, code, says)
	}
}

func write(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// volume is a small volume without a file system, which takes no root to make.
type volume struct {
	dir, path, recovery, passphrase, bek string
	keys                                 image.Keys
}

const phrase = "pässwörd 密码"

func newVolume(t *testing.T, spec image.Spec) volume {
	t.Helper()
	v := volume{dir: t.TempDir()}
	v.path = filepath.Join(v.dir, "disk.img")
	spec.Path, spec.SizeBytes = v.path, image.MinBareSize
	var err error
	if v.keys, err = image.CreateBare(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	v.recovery = write(t, filepath.Join(v.dir, "recovery"), v.keys.RecoveryPassword.Reveal()+"\n")
	v.passphrase = write(t, filepath.Join(v.dir, "passphrase"), phrase)
	v.bek = write(t, filepath.Join(v.dir, v.keys.BEK.FileName()), string(v.keys.BEK.Encode()))
	return v
}

// windows is where volumes made by Windows are, with their keys in an index.
const windows = "../../../shared/bitlocker-images"

// windowsRow is a line of the index: a volume and a key of it.
type windowsRow struct{ file, kind, key, sum string }

func windowsRows(t *testing.T) []windowsRow {
	t.Helper()
	index, err := os.ReadFile(filepath.Join(windows, "index.tsv"))
	if err != nil {
		t.Skipf("no volumes made by Windows: %v", err)
	}
	var rows []windowsRow
	for line := range strings.Lines(string(index)) {
		f := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if f[0] != "file" {
			rows = append(rows, windowsRow{f[0], f[9], f[10], f[11]})
		}
	}
	return rows
}

// flag returns how the row's key is given.
func (r windowsRow) flag(t *testing.T, dir string) []string {
	t.Helper()
	switch r.kind {
	case "bek":
		return []string{"--bek", filepath.Join(windows, r.key)}
	case "recovery":
		return []string{"--recovery-password-file", write(t, filepath.Join(dir, "key"), r.key)}
	}
	return []string{"--passphrase-file", write(t, filepath.Join(dir, "key"), r.key)}
}

func unpack(t *testing.T, file, to string) {
	t.Helper()
	packed, err := os.Open(filepath.Join(windows, file+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	content, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestWindowsVolumes reads and verifies volumes made by Windows with all their
// keys, and compares what it shows of them with what cryptsetup shows.
func TestWindowsVolumes(t *testing.T) {
	dir := t.TempDir()
	path, last := filepath.Join(dir, "disk.img"), ""
	for _, row := range windowsRows(t) {
		t.Run(row.file+" by "+row.kind, func(t *testing.T) {
			if row.file != last {
				unpack(t, row.file, path)
				last = row.file
				if strings.Contains(row.file, "crc") {
					t.Log("cryptsetup reads a damaged copy of the metadata")
				} else {
					compareDump(t, path)
				}
			}
			flag := row.flag(t, dir)
			if row.sum == "" {
				sim(t, append([]string{"cat", path}, flag...)...).fails(t, exitRefused, "encrypt-on-write")
				sim(t, append([]string{"verify", path}, flag...)...).fails(t, exitRefused, "encrypt-on-write")
				return
			}
			hash := sha256.New()
			cmd := program(t, append([]string{"image", "cat", path}, flag...)...)
			cmd.Stdout = hash
			if err := cmd.Run(); err != nil || hex.EncodeToString(hash.Sum(nil)) != row.sum {
				t.Errorf("%v, the view's hash is %x, want %s", err, hash.Sum(nil), row.sum)
			}
			if r := sim(t, append([]string{"verify", path}, flag...)...); strings.Contains(row.file, "crc") {
				if r.code != exitDamaged || !strings.Contains(r.out, "Metadata 3:    at 57909248, whole and genuine") ||
					!strings.Contains(r.err, "metadata copy 1: checksum does not fit; metadata copy 2: checksum does not fit\n") {
					t.Errorf("exit status %d: %s%s", r.code, r.out, r.err)
				}
			} else {
				r.ok(t)
			}
		})
	}
}

// dumpField is a line of cryptsetup's output with a fact in it.
var dumpField = regexp.MustCompile(`(?m)^\s*([A-Z][A-Za-z ]+):[ \t]+(.*?)(?: \[bytes\]| bits)?$`)

// compareDump demands that every fact that bitlkDump prints is in what inspect
// prints, as text and as JSON.
func compareDump(t *testing.T, path string) {
	t.Helper()
	if _, err := exec.LookPath("cryptsetup"); err != nil {
		t.Skip("cryptsetup is missing")
	}
	dump, err := exec.CommandContext(t.Context(), "cryptsetup", "bitlkDump", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	text, data := sim(t, "inspect", path).ok(t), sim(t, "inspect", "--output", "json", path).ok(t)
	if !json.Valid([]byte(data)) {
		t.Errorf("no JSON: %s", data)
	}
	fields := dumpField.FindAllStringSubmatch(string(dump), -1)
	if len(fields) < 20 {
		t.Fatalf("only %d facts in\n%s", len(fields), dump)
	}
	for _, f := range fields {
		name, inText, inData := f[1], f[2], f[2]
		switch {
		case name == "Created":
			at, err := time.Parse(time.ANSIC, f[2])
			if err != nil {
				t.Fatal(err)
			}
			inText, inData = at.Format("2006-01-02 15:04:05 UTC"), at.Format("2006-01-02T15:04:05")
		case name == "GUID":
			inText, inData = strings.ToUpper(f[2]), strings.ToUpper(f[2])
		case name == "Protection":
			word := strings.TrimPrefix(f[2], "VMK protected with ")
			inText = map[string]string{"recovery passphrase": "recovery-password", "startup key": "external-key"}[word]
			if inText == "" {
				inText = word
			}
			inData = inText
		case name == "Salt" && strings.Trim(f[2], "0") == "":
			continue
		}
		if !strings.Contains(text, inText) || !strings.Contains(data, inData) {
			t.Errorf("%s %q is missing in\n%s%s", name, f[2], text, data)
		}
	}
	if strings.Contains(string(dump), "To Go") != strings.Contains(text, "To Go") {
		t.Error("kind of volume differs")
	}
}

// TestInspectMethods compares with cryptsetup for all methods that are ours to make.
func TestInspectMethods(t *testing.T) {
	for method := bitlocker.AES128Elephant; method <= bitlocker.AES256XTS; method++ {
		t.Run(method.String(), func(t *testing.T) { compareDump(t, newVolume(t, image.Spec{Method: method}).path) })
	}
}

// TestCatRefuses has cat fail in all ways.
func TestCatRefuses(t *testing.T) {
	v := newVolume(t, image.Spec{})
	other := newVolume(t, image.Spec{})
	whole, err := os.ReadFile(v.path)
	if err != nil {
		t.Fatal(err)
	}
	// changed is the image with something done to it.
	changed := func(name string, change func(b []byte) []byte) string {
		return write(t, filepath.Join(v.dir, name), string(change(bytes.Clone(whole))))
	}
	noCopies := func(b []byte) []byte {
		for _, at := range []int{128 << 10, 256 << 10, 384 << 10} {
			clear(b[at : at+64<<10])
		}
		return b
	}
	altered := func(b []byte) []byte { b[160] = 0; return b }
	typo := write(t, filepath.Join(v.dir, "typo"), strings.Replace(v.keys.RecoveryPassword.Reveal(), "-", "-1", 1))
	empty := write(t, filepath.Join(v.dir, "empty"), "")
	huge := write(t, filepath.Join(v.dir, "huge"), strings.Repeat("x", 65<<10))
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"another recovery password":  {[]string{v.path, "--recovery-password-file", other.recovery}, exitWrongKey, "wrong key"},
		"another external key":       {[]string{v.path, "--bek", other.bek}, exitWrongKey, "wrong key"},
		"no such protector":          {[]string{v.path, "--passphrase-file", v.passphrase}, exitWrongKey, "no protector of this kind: passphrase"},
		"not suspended":              {[]string{v.path, "--clear-key"}, exitWrongKey, "no protector of this kind: clear key"},
		"mistyped recovery password": {[]string{v.path, "--recovery-password-file", typo}, exitWrongKey, "not a recovery password"},
		"no .BEK file":               {[]string{v.path, "--bek", v.recovery}, exitWrongKey, "not a .BEK file"},
		"empty key":                  {[]string{v.path, "--passphrase-file", empty}, exitWrongKey, "empty"},
		"huge key":                   {[]string{v.path, "--passphrase-file", huge}, exitWrongKey, "more than"},
		"missing key":                {[]string{v.path, "--bek", filepath.Join(v.dir, "none")}, exitFailed, "no such file"},
		"missing image":              {[]string{filepath.Join(v.dir, "none"), "--bek", v.bek}, exitFailed, "no such file"},
		"folder":                     {[]string{v.dir, "--bek", v.bek}, exitFailed, "neither a file nor a disk"},
		"truncated":                  {[]string{changed("a", func(b []byte) []byte { return b[:len(b)-4096] }), "--bek", v.bek}, exitDamaged, "truncated"},
		"truncated a lot":            {[]string{changed("b", func(b []byte) []byte { return b[:8192] }), "--bek", v.bek}, exitDamaged, "truncated"},
		"all copies damaged":         {[]string{changed("c", noCopies), "--bek", v.bek}, exitDamaged, "no metadata copy is whole"},
		"no BitLocker":               {[]string{changed("d", altered), "--bek", v.bek}, exitDamaged, "not a BitLocker volume"},
		"nothing":                    {[]string{empty, "--bek", v.bek}, exitDamaged, "not a BitLocker volume"},
		"no key":                     {[]string{v.path}, exitUsage, "no key: give one of --recovery-password-file"},
		"two keys":                   {[]string{v.path, "--bek", v.bek, "--clear-key"}, exitUsage, "only one"},
		"no image":                   {nil, exitUsage, "needs an image"},
		"two images":                 {[]string{v.path, v.path}, exitUsage, "one image"},
		"unknown flag":               {[]string{v.path, "--password", "x"}, exitUsage, "unknown flag"},
	} {
		t.Run(name, func(t *testing.T) { sim(t, append([]string{"cat"}, c.args...)...).fails(t, c.code, c.says) })
	}
}

// TestCatOutputs has the reader of the view fail, or go.
func TestCatOutputs(t *testing.T) {
	v := newVolume(t, image.Spec{})
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	for out, says := range map[*os.File]string{full: "no space left", w: ""} {
		var problems bytes.Buffer
		cmd := program(t, "image", "cat", "--bek", v.bek, v.path)
		cmd.Stdout, cmd.Stderr = out, &problems
		if err := cmd.Run(); err == nil || !strings.Contains(problems.String(), says) || says == "" && problems.Len() > 0 {
			t.Errorf("to %s: %v, %q", out.Name(), err, problems.String())
		}
	}
}

// TestKeyFiles gives keys in all the forms that editors and Windows leave.
func TestKeyFiles(t *testing.T) {
	v := newVolume(t, image.Spec{})
	want := sim(t, "cat", v.path, "--bek", v.bek).ok(t)
	if sim(t, "add-key", v.path, "--bek", v.bek, "--new-passphrase-file", v.passphrase).ok(t) == "" {
		t.Error("add-key says nothing")
	}
	var wide []byte
	for _, u := range utf16.Encode([]rune("\ufeff" + phrase + "\r\n")) {
		wide = append(wide, byte(u), byte(u>>8))
	}
	for _, text := range []string{phrase, phrase + "\n", phrase + "\r\n", "\ufeff" + phrase + "\n", string(wide)} {
		if got := simFed(t, text, "cat", v.path, "--passphrase-file", "-").ok(t); got != want {
			t.Errorf("%q shows another view", text)
		}
	}
	for _, text := range []string{phrase + " ", phrase + "\n\n", strings.ToUpper(phrase)} {
		simFed(t, text, "cat", v.path, "--passphrase-file", "-").fails(t, exitWrongKey, "wrong key")
	}
	bek, err := os.ReadFile(v.bek)
	if err != nil {
		t.Fatal(err)
	}
	if got := simFed(t, string(bek), "cat", v.path, "--bek", "-").ok(t); got != want {
		t.Error("the .BEK file at standard input shows another view")
	}
}

// TestChangeKeys rotates, suspends, resumes and removes.
func TestChangeKeys(t *testing.T) {
	v := newVolume(t, image.Spec{})
	want := sim(t, "cat", v.path, "--bek", v.bek).ok(t)
	opens := func(flag ...string) {
		t.Helper()
		if got := sim(t, append([]string{"cat", v.path}, flag...)...).ok(t); got != want {
			t.Errorf("%v shows another view", flag)
		}
	}
	next := filepath.Join(v.dir, "next")
	old := protectorID(t, v.path, "recovery-password")
	told := sim(t, "add-key", v.path, "--recovery-password-file", v.recovery, "--new-recovery-password-file", next, "--replace", old, "-o", "json").ok(t)
	text, err := os.ReadFile(next)
	if err != nil || !json.Valid([]byte(told)) || strings.Contains(told, strings.TrimSpace(string(text))) {
		t.Errorf("%v, or no JSON, or with the password in it: %s", err, told)
	}
	if info, err := os.Stat(next); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, the password's file has mode %v", err, info.Mode())
	}
	opens("--recovery-password-file", next)
	sim(t, "cat", v.path, "--recovery-password-file", v.recovery).fails(t, exitWrongKey, "wrong key")

	sim(t, "add-key", v.path, "--bek", v.bek, "--new-clear-key").ok(t)
	opens("--clear-key")
	sim(t, "add-key", v.path, "--clear-key", "--new-passphrase-file", v.passphrase).ok(t)
	sim(t, "remove-key", v.path, "--passphrase-file", v.passphrase, "--kind", "clear-key").ok(t)
	sim(t, "cat", v.path, "--clear-key").fails(t, exitWrongKey, "no protector")

	sim(t, "add-key", v.path, "--bek", v.bek, "--new-bek-dir", v.dir).ok(t)
	sim(t, "remove-key", v.path, "--bek", v.bek, "--kind", "external-key").fails(t, exitFailed, "2 protectors")
	sim(t, "remove-key", v.path, "--bek", v.bek, "--id", v.keys.BEK.ID.String()).ok(t)
	sim(t, "cat", v.path, "--bek", v.bek).fails(t, exitWrongKey, "wrong key")
	added := protectorID(t, v.path, "external-key")
	opens("--bek", filepath.Join(v.dir, added+".BEK"))

	sim(t, "remove-key", v.path, "--passphrase-file", v.passphrase, "--kind", "recovery-password").ok(t)
	sim(t, "remove-key", v.path, "--passphrase-file", v.passphrase, "--kind", "external-key").ok(t)
	sim(t, "remove-key", v.path, "--passphrase-file", v.passphrase, "--kind", "passphrase").fails(t, exitFailed, "no protector would be left")
	opens("--passphrase-file", v.passphrase)
	compareDump(t, v.path)
}

// protectorID returns the only protector of a kind, as inspect shows it.
func protectorID(t *testing.T, path, kind string) string {
	t.Helper()
	var shown volumeView
	if err := json.Unmarshal([]byte(sim(t, "inspect", path, "-o", "json").ok(t)), &shown); err != nil {
		t.Fatal(err)
	}
	for _, p := range shown.Protectors {
		if p.Kind == kind {
			return p.ID
		}
	}
	t.Fatalf("no %s", kind)
	return ""
}

// TestChangeRefused makes sure that a change that is refused changes nothing, and
// leaves no key file.
func TestChangeRefused(t *testing.T) {
	v := newVolume(t, image.Spec{})
	before, err := os.ReadFile(v.path)
	if err != nil {
		t.Fatal(err)
	}
	other, gone := newVolume(t, image.Spec{}), filepath.Join(v.dir, "gone")
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--bek", other.bek, "--new-recovery-password-file", gone}, exitWrongKey, "wrong key"},
		{[]string{"--bek", v.bek, "--new-recovery-password-file", gone, "--replace", other.keys.BEK.ID.String()}, exitFailed, "no protector " + other.keys.BEK.ID.String()},
		{[]string{"--bek", v.bek, "--new-recovery-password-file", gone, "--replace", "x"}, exitUsage, "--replace"},
		{[]string{"--bek", v.bek, "--new-recovery-password-file", filepath.Join(gone, "a")}, exitFailed, "no such file"},
		{[]string{"--bek", v.bek, "--new-recovery-password-file", v.passphrase}, exitFailed, "cannot use the new key"},
		{[]string{"--bek", v.bek}, exitUsage, "no new key"},
		{[]string{"--bek", v.bek, "--new-clear-key", "--new-bek-dir", v.dir}, exitUsage, "only one"},
		{[]string{"--bek", v.bek, "--show"}, exitUsage, "--show is for a terminal"},
		{[]string{"--bek", "-", "--new-passphrase-file", "-"}, exitUsage, "standard input"},
		{[]string{"--new-clear-key"}, exitUsage, "no key"},
	} {
		sim(t, append([]string{"add-key", v.path}, c.args...)...).fails(t, c.code, c.says)
	}
	sim(t, "remove-key", v.path, "--bek", v.bek).fails(t, exitUsage, "--id and --kind")
	sim(t, "remove-key", v.path, "--bek", v.bek, "--kind", "tpm").fails(t, exitFailed, "there are external-key, recovery-password")
	if _, err := os.Stat(gone); err == nil {
		t.Error("a key that opens nothing was left")
	}
	if after, err := os.ReadFile(v.path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the volume was changed, or %v", err)
	}
}

// TestBusy has another process hold the image, as an agent does.
func TestBusy(t *testing.T) {
	v := newVolume(t, image.Spec{})
	f, err := os.Open(v.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	sim(t, "add-key", v.path, "--bek", v.bek, "--new-clear-key").fails(t, exitFailed, "open elsewhere")
	sim(t, "cat", v.path, "--bek", v.bek).fails(t, exitFailed, "open elsewhere")
	sim(t, "inspect", v.path).ok(t)
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	sim(t, "cat", v.path, "--bek", v.bek).ok(t)
	sim(t, "remove-key", v.path, "--bek", v.bek, "--kind", "recovery-password").fails(t, exitFailed, "open elsewhere")
	write(t, v.path+".redo", "writes")
	sim(t, "cat", v.path, "--bek", v.bek).fails(t, exitFailed, "have an agent open the disk first")
}

// terminal is a pseudo terminal: what a user types into and reads, and its other
// end for a program.
func terminal(t *testing.T) (user, tty *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminals: %v", err)
	}
	t.Cleanup(func() { user.Close() })
	raw, err := user.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	var errUnlock, errName error
	if err := raw.Control(func(fd uintptr) {
		errUnlock = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		n, errName = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
	}); errors.Join(err, errUnlock, errName) != nil {
		t.Fatal(err, errUnlock, errName)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return user, tty
}

// started starts a program at a terminal, and returns when that shows a prompt.
func started(t *testing.T, cmd *exec.Cmd, user *os.File, prompt string) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	user.SetReadDeadline(time.Now().Add(20 * time.Second))
	var said []byte
	for b := make([]byte, 1); !strings.Contains(string(said), prompt); {
		if _, err := user.Read(b); err != nil {
			t.Fatalf("%v, after %q", err, said)
		}
		said = append(said, b...)
	}
}

// TestPrompt types the key at a terminal, which does not show it, or leaves.
func TestPrompt(t *testing.T) {
	v := newVolume(t, image.Spec{})
	want := sim(t, "cat", v.path, "--bek", v.bek).ok(t)
	user, tty := terminal(t)
	password := v.keys.RecoveryPassword.Reveal()
	out := filepath.Join(v.dir, "plain")
	for _, c := range []struct {
		typed string
		code  int
	}{{password + "\n", exitOK}, {"something else\n", exitWrongKey}, {"half of it\x03", exitFailed}} {
		f, err := os.Create(out)
		if err != nil {
			t.Fatal(err)
		}
		cmd := program(t, "image", "cat", v.path)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, f, tty
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
		started(t, cmd, user, "disk.img: ")
		if _, err := user.WriteString(c.typed); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // the code says more
		f.Close()
		if got := cmd.ProcessState.ExitCode(); got != c.code {
			t.Errorf("%q: exit status %d, want %d", c.typed, got, c.code)
		}
		echo := make([]byte, 4096)
		n, _ := user.Read(echo)
		if strings.Contains(string(echo[:n]), strings.TrimSpace(c.typed)) || strings.Contains(string(echo[:n]), "half") {
			t.Errorf("the terminal shows the key: %q", echo[:n])
		}
		settings, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		if err != nil || settings.Lflag&unix.ECHO == 0 {
			t.Errorf("the terminal is left without echo: %v", err)
		}
		if got, err := os.ReadFile(out); c.code == exitOK && (err != nil || string(got) != want) {
			t.Errorf("another view, or %v", err)
		}
	}
}
