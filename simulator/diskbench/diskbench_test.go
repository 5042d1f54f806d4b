package diskbench_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/simulator/diskbench"
	"github.com/databox-lockbox/lockbox/simulator/image"
	"github.com/databox-lockbox/lockbox/simulator/simtest"
)

// unlockPart is the argument that makes this test program the process whose CPU
// time is measured.
const unlockPart = "unlock-part"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == unlockPart {
		if err := diskbench.UnlockPart(os.Args[2], os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// TestRun measures small things once: every figure that is asked for is there, once
// for each peer, and has its rows in the table; nothing else is left.
func TestRun(t *testing.T) {
	simtest.Need(t, "/dev/fuse", "openssl", "mkntfs", "ntfs-3g", "dislocker-fuse", "dislocker-file", "bdemount", "cryptsetup")
	for name, peers := range map[string][]string{
		"xts128_512":          {"openssl"},
		"xts128_512_generic":  {""},
		"mount_read":          {"dislocker", "bdemount"},
		"ntfs_read":           {"dislocker"},
		"unlock_recovery_cpu": {"cryptsetup", "dislocker"},
		"unlock_70_external":  {""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "bench")
			var out, note bytes.Buffer
			err := diskbench.Run(t.Context(), diskbench.Config{
				Dir: dir, Runs: 1, Only: name, Volume: 2 * image.MinSize, Self: []string{os.Args[0], unlockPart}, Out: &out, Note: &note,
			})
			if err != nil {
				t.Fatalf("%v\n%s", err, &note)
			}
			figures, table, _ := strings.Cut(out.String(), "\n\n")
			for _, peer := range peers {
				if !strings.Contains(figures, "figure="+name+" value=") || !strings.Contains(figures+"\n", peer) {
					t.Errorf("no figure %s with peer %q in %q", name, peer, figures)
				}
			}
			if got := strings.Count(figures, "figure="); got != len(peers) {
				t.Errorf("%d figures, want %d: %q", got, len(peers), figures)
			}
			if got := strings.Count(table, "\n"); got != 1+len(peers) || !strings.Contains(table, "met") && !strings.Contains(table, "missed") {
				t.Errorf("the table has %d lines, want %d, with targets:\n%s", got, 1+len(peers), table)
			}
			checkGone(t, dir)
		})
	}
}

func TestUnlockPartRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	keys, err := image.CreateBare(t.Context(), image.Spec{Path: path, SizeBytes: image.MinBareSize})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Wipe()
	if err := diskbench.UnlockPart(path, strings.NewReader(keys.RecoveryPassword.Reveal())); err != nil {
		t.Error(err)
	}
	const other = "000000-000011-000000-000000-000000-000000-000000-720885"
	for _, password := range []string{other, "", keys.RecoveryPassword.Reveal() + "\n"} {
		if err := diskbench.UnlockPart(path, strings.NewReader(password)); err == nil {
			t.Errorf("%d bytes that are not the password unlock", len(password))
		}
	}
}

// checkGone fails if dir is there, or anything was mounted below it.
func checkGone(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(dir)) {
		t.Errorf("still mounted:\n%s", mounts)
	}
}
