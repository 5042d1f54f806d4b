package diskbench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tools are the programs that figures need, which Debian's packages of
// almost the same names have.
var tools = map[string][]string{
	"xts128_512": {"openssl"}, "xts128_4096": {"openssl"}, "xts256_512": {"openssl"}, "xts128_512_aesni": {"openssl"},
	"mount_read":          {"dd", "mkntfs", "ntfs-3g", "dislocker-fuse", "bdemount"},
	"ntfs_read":           {"dd", "mkntfs", "ntfs-3g", "dislocker-fuse"},
	"unlock_recovery_cpu": {"cryptsetup", "dislocker-file"},
}

// checkTools demands all programs before time is lost.
func (b *bench) checkTools() error {
	var missing []string
	for name, programs := range tools {
		for _, p := range programs {
			if _, err := exec.LookPath(p); b.wants(name) && err != nil {
				missing = append(missing, p)
			}
		}
	}
	if missing != nil {
		slices.Sort(missing)
		return fmt.Errorf("cannot find %s: run 'make deps'", strings.Join(slices.Compact(missing), ", "))
	}
	return nil
}

// Versions says which versions of the peers there are.
func Versions(ctx context.Context) string {
	var all []string
	for _, v := range []struct {
		peer    string
		command []string
		field   int // of the first line that says it
	}{
		{peerOpenSSL, []string{"openssl", "version"}, 1},
		{peerCryptsetup, []string{"cryptsetup", "--version"}, 1},
		{peerDislocker, []string{"dpkg-query", "-W", "-f", "${Version}", "dislocker"}, 0},
		{peerBdemount, []string{"dpkg-query", "-W", "-f", "${Version}", "libbde-utils"}, 0},
		{"ntfs-3g", []string{"dpkg-query", "-W", "-f", "${Version}", "ntfs-3g"}, 0},
	} {
		out, _ := exec.CommandContext(ctx, v.command[0], v.command[1:]...).Output()
		version := "none"
		if fields := strings.Fields(string(out)); len(fields) > v.field {
			version = fields[v.field]
		}
		all = append(all, v.peer+"="+version)
	}
	return strings.Join(all, " ")
}

// spent is what a command took.
type spent struct {
	wall, cpu time.Duration
	out       []byte
}

// run runs a command to its end, with stdin as its input.
func run(ctx context.Context, stdin []byte, name string, args ...string) (spent, error) {
	var out, problems bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = &out, &problems
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return spent{}, fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(problems.String()+out.String()))
	}
	return spent{time.Since(began), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), out.Bytes()}, nil
}

// opensslSpeed returns how fast openssl encrypts pieces of size bytes, in bytes per
// second of CPU time.
func opensslSpeed(ctx context.Context, cipher string, size int) (float64, error) {
	s, err := run(ctx, nil, "openssl", "speed", "-mr", "-evp", cipher, "-bytes", strconv.Itoa(size), "-seconds", "1")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(s.out)) {
		if fields := strings.Split(strings.TrimSpace(line), ":"); fields[0] == "+F" && len(fields) == 4 {
			return strconv.ParseFloat(fields[3], 64)
		}
	}
	return 0, fmt.Errorf("openssl speed says no figure: %q", s.out)
}

// unmountWithin bounds how long a mount may be busy when nobody uses it any more.
const unmountWithin = 10 * time.Second

// withMount runs use while a command has something mounted at dir.
func withMount(ctx context.Context, dir string, mount []string, use func() error) (err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if _, err := run(ctx, nil, mount[0], mount[1:]...); err != nil {
		_ = syscall.Unmount(dir, syscall.MNT_DETACH) // it may have got that far
		return err
	}
	defer func() { err = errors.Join(err, unmount(dir)) }()
	return use()
}

func unmount(dir string) error {
	end := time.Now().Add(unmountWithin)
	err := syscall.Unmount(dir, 0)
	for ; errors.Is(err, syscall.EBUSY) && time.Now().Before(end); err = syscall.Unmount(dir, 0) {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("cannot unmount %s: %w", dir, errors.Join(err, syscall.Unmount(dir, syscall.MNT_DETACH)))
	}
	return nil
}
