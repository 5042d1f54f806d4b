package sessionbench

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/simulator/azurite"
	"github.com/databox-lockbox/lockbox/simulator/simtest"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "sessionbench-programs-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs = dir
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// programs is the folder of lockbox and databox-agent, once they are built.
var programs string

var build = sync.OnceValue(func() error {
	const ours = "github.com/databox-lockbox/lockbox/"
	out, err := exec.Command("go", "build", "-o", programs, ours+"controlplane/cmd/lockbox", ours+"agent/cmd/databox-agent").CombinedOutput()
	if err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	return nil
})

// needs skips the test where the machine cannot, and builds the lockbox program.
func needs(t *testing.T, names ...string) (lockbox string) {
	t.Helper()
	simtest.Need(t, append(names, "/dev/fuse", "/dev/loop-control")...)
	if err := build(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(programs, "lockbox")
}

// TestRun measures small things once: both figures are there, with their peer.
func TestRun(t *testing.T) {
	lockbox := needs(t, "sftp", sshdProgram, sftpProgram, "mkntfs", "ntfs-3g")
	dir := filepath.Join(t.TempDir(), "bench")
	var out, note bytes.Buffer
	err := Run(t.Context(), Config{Dir: dir, Lockbox: lockbox, Only: []string{"sftp_up", "sftp_down"}, Runs: 1, Size: 2 << 20, Out: &out, Note: &note})
	if err != nil {
		t.Fatalf("%v\n%s", err, &note)
	}
	for _, name := range []string{"sftp_up", "sftp_down"} {
		if !strings.Contains(out.String(), "figure="+name+" value=") || strings.Count(out.String(), "peer=openssh") != 2 {
			t.Errorf("no figure %s: %s", name, &out)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("something is left")
	}
}

// TestUploads measures small uploads once.
func TestUploads(t *testing.T) {
	installed := azurite.Installed()
	switch {
	case installed == "" && os.Getenv("CI") == "true":
		t.Fatal("the test needs Azurite: run 'make deps-azurite'")
	case installed == "":
		t.Skip("the test needs Azurite: run 'make deps-azurite'")
	}
	var out bytes.Buffer
	dir := filepath.Join(t.TempDir(), "bench")
	err := Run(t.Context(), Config{
		Dir: dir, Only: []string{"upload_small", "upload_1g"}, Runs: 1, Out: &out, Note: io.Discard,
		Uploads: Uploads{Azurite: installed, Files: 5, Size: 100, Large: 9 << 20, Parallel: 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^figure=upload_small value=\S+ unit=files/s peer=sdk peer_value=\S+ ratio=\S+
figure=upload_1g value=\S+ unit=MB/s peer=sdk peer_value=\S+ ratio=\S+
$`)
	if !form.Match(out.Bytes()) {
		t.Errorf("got\n%s", &out)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("something is left")
	}
}

// TestStockClients has stock clients do what people do, all the way from the
// command line to the disk.
func TestStockClients(t *testing.T) {
	lockbox := needs(t, "ssh", "scp", "sftp", "smbd", "smbclient", "mkntfs", "ntfs-3g")
	dir := t.TempDir()
	s, err := raise(t.Context(), Config{Dir: dir, Lockbox: lockbox, Size: 1 << 20, Note: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.end(); err != nil {
			t.Error(err)
		}
	})
	erin := s.world.People["erin"]
	run := func(want int, in string, program string, args ...string) (out, errOut string) {
		t.Helper()
		if program == "lockbox" {
			program = lockbox
			args = append([]string{"--home", erin.Home(), args[0], "--key", erin.KeyFile()}, args[1:]...)
		}
		var stdout, stderr bytes.Buffer
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &stdout, &stderr
		err := cmd.Run()
		code := 0
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if code != want {
			t.Errorf("%s %q: exit %d, want %d: %s%s", filepath.Base(program), args, code, want, &stdout, &stderr)
		}
		return stdout.String(), stderr.String()
	}
	device := string(s.world.Device.Serial)
	file := filepath.Join(dir, "local file")
	if err := os.WriteFile(file, []byte("content\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	folder := "/shares/" + share + "/bench"
	stock := func(args ...string) []string {
		return append([]string{"-F", s.client.config, "-o", "BatchMode=yes"}, args...)
	}

	for _, way := range [][]string{{"lockbox", "ssh", device}, append([]string{"ssh"}, stock(device)...), append([]string{"ssh"}, stock(strings.ToLower(device)+"-1")...)} {
		if out, errOut := run(0, "", way[0], append(way[1:], "cat", folder+"/first")...); out != "x" || errOut != "" {
			t.Errorf("%q, %q", out, errOut)
		}
		if out, errOut := run(1, "", way[0], append(way[1:], "cat", folder+"/missing")...); out != "" || errOut == "" {
			t.Errorf("%q, %q", out, errOut)
		}
		run(127, "", way[0], append(way[1:], "-T", "bash")...)
		if out, _ := run(0, "pwd\nexit\n", way[0], append(way[1:], "-T")...); out != "/\n" {
			t.Errorf("a script: %q", out)
		}
	}
	for i, way := range [][]string{{"lockbox", "scp"}, {"lockbox", "scp", "-O"}, append([]string{"scp"}, stock()...), append([]string{"scp"}, stock("-O")...)} {
		there := fmt.Sprintf("%s:%s/copy%d", device, folder, i)
		back := filepath.Join(dir, fmt.Sprint("back", i))
		run(0, "", way[0], append(way[1:], "-p", "-q", file, there)...)
		run(0, "", way[0], append(way[1:], "-p", "-P", "22", there, back)...)
		if err := sameFile(file, back); err != nil {
			t.Error(err)
		}
	}
	if out, _ := run(0, "", "lockbox", "sftp", "-b", os.DevNull, device); out != "" {
		t.Errorf("%q", out)
	}
	if out, _ := run(0, "ls -1\n", "sftp", stock("-b", "-", device+":"+folder)...); !strings.Contains(out, "copy0\ncopy1\ncopy2\ncopy3\nfirst\n") {
		t.Errorf("%q", out)
	}
	repairs(t, s, func(line string) string {
		t.Helper()
		out, _ := run(0, "", "ssh", stock("-T", device, line)...)
		return out
	})
	_, why := run(255, "", "lockbox", "ssh", device+"-2")
	if !strings.Contains(why, "you have no support session on "+device+"/2: enable one: lockbox session enable --device "+device+" --node 2") {
		t.Errorf("%q", why)
	}
	_, why = run(255, "", "ssh", stock(device+"-2")...)
	if !strings.Contains(why, "you have no support session on "+device+"/2: enable one") || strings.Count(why, "enable one") != 1 {
		t.Errorf("%q", why)
	}
}

// repairs does on the unlocked NTFS volume what the three reasons for access need.
func repairs(t *testing.T, s *session, run func(line string) string) {
	t.Helper()
	image := make([]byte, 3<<20+100)
	for i := range image {
		image[i] = byte(i * i >> 8)
	}
	root := filepath.Dir(s.folder)
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "Wrong_Folder/deep"), 0o755), os.WriteFile(filepath.Join(root, "Wrong_Folder/deep/größe & höhe.img"), image, 0o644)); err != nil {
		t.Fatal(err)
	}
	run("cd /shares/" + share + " && mv Wrong_Folder bench/moved && cp -r bench/moved bench/copied && sha256sum bench/*/deep/* > bench/sums")
	if out := run("cd /shares/" + share + " && sha256sum -c bench/sums && convert-vhd bench/moved/deep/*.img bench/disk.vhd && rm -r bench/copied"); strings.Count(out, ": OK\n") != 2 {
		t.Errorf("%s", out)
	}
	vhd, err := os.ReadFile(filepath.Join(s.folder, "disk.vhd"))
	if err != nil || !bytes.HasPrefix(vhd, image) || len(vhd) != 3<<20+1024 || string(vhd[3<<20+512:][:8]) != "conectix" {
		t.Errorf("a VHD of %d bytes: %v", len(vhd), err)
	}
	if out := run("prepare-to-ship"); !strings.HasSuffix(out, "\nprepare-to-ship: Succeeded\n") {
		t.Errorf("%s", out)
	}
	bom, err := os.ReadFile(filepath.Join(filepath.Dir(root), "DataBoxManifest", share+"-BOM.xml"))
	if err != nil || !strings.Contains(string(bom), `<file size="3146752" crc64="0x`) || strings.Contains(string(bom), "Wrong_Folder") {
		t.Errorf("%v: %s", err, bom)
	}
	server, err := s.smbShare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"smb": true, "dot.": false, "con": false} { // as Windows has names
		_, err := server.client(t.Context(), fmt.Sprintf(`put %s "bench\%s"`, filepath.Join(s.dir, "ours.conf"), name))
		if _, missing := os.Lstat(filepath.Join(s.folder, name)); (err == nil) != want || (missing == nil) != want {
			t.Errorf("put over SMB as %s: %v, %v", name, err, missing)
		}
	}
	if left, err := os.ReadDir(filepath.Join(filepath.Dir(root), ".databox-staging")); err == nil && len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
