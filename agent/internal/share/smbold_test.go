package share

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/disk/disktest"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// grace is how long the servers of these tests let clients change what is new.
const grace = 2 * time.Second

// TestOldFilesStay changes what was there, and comes back to what is new, under an
// approval to read and write; the control is one to delete.
func TestOldFilesStay(t *testing.T) {
	local := t.TempDir()
	writeFile(t, filepath.Join(local, "new"), "new content")
	for access, may := range map[approval.Access]bool{approval.ReadWrite: false, approval.Delete: true} {
		t.Run(string(access), func(t *testing.T) {
			t.Parallel()
			st := newShare(t)
			for _, name := range []string{"over", "target", "gone", "mode", "linked"} {
				writeFile(t, filepath.Join(st.folder, name), "content")
			}
			time.Sleep(grace + time.Second)
			st.cfg.grace = grace
			st.start(t, st.folder, access)
			for _, tt := range []struct {
				commands string
				want     bool
				event    string // if it is refused
			}{
				{"put new fresh", true, ""},
				{"put new fresh; utimes fresh 2020:01:01-00:00:00 2020:01:01-00:00:00 2020:01:01-00:00:00 -1", true, ""},
				{"put new over", may, "truncate over -1 (not allowed)"},
				{"reput new over", may, "open over -1 (not allowed)"},
				{"rename fresh target -f", may, "open fresh -1 (asked to delete or rename:"},
				{"del gone", may, "open gone -1 (asked to delete or rename:"},
				{"setmode mode +r", may, "open mode -1 (not allowed)"},
				{"hardlink linked another", may, "open linked -1 (not allowed)"},
			} {
				st.log.take()
				out, err := st.client("lcd " + local + "; " + tt.commands)
				if got := err == nil && !strings.Contains(out, "DENIED"); got != tt.want {
					t.Errorf("%s: %v: %v: %s", tt.commands, got, err, out)
				}
				if !tt.want {
					waitFor(t, func() bool { return strings.Contains(strings.Join(said(st.log.kept()), "\n"), tt.event) })
				}
			}
			for name, want := range map[string]string{"over": "content", "target": "content", "gone": "content"} {
				got, err := os.ReadFile(filepath.Join(st.folder, name))
				if same := err == nil && string(got) == want; same == may {
					t.Errorf("%s holds %q, %v", name, got, err)
				}
			}
		})
	}
}

// TestCunningClient empties and overwrites what was there in ways that smbd does not
// refuse: that is recorded as what it was, and the server ends at once.
func TestCunningClient(t *testing.T) {
	const (
		openIf, overwrite, overwriteIf = 3, 4, 5 // dispositions of MS-SMB2 2.2.13
		writeData                      = 0x2
		genericWrite, maximum          = 0x40000000, 0x2000000
	)
	for name, tt := range map[string]struct {
		rights, disposition int
		young               bool // changed by another just now
		want                string
	}{
		"to read":            {readData, overwriteIf, false, "truncate file -1"},
		"only to look at it": {0x80, overwrite, false, "truncate file -1"},
		"by generic rights":  {genericWrite, overwriteIf, false, "truncate file -1"},
		"by all rights":      {maximum, overwriteIf, false, "truncate file -1"},
		"while it is new":    {writeData, openIf, true, "write file -1"},
	} {
		t.Run(name, func(t *testing.T) {
			st := newShare(t)
			st.cfg.Port = smbPort
			st.cfg.grace = time.Second
			time.Sleep(st.cfg.grace + 100*time.Millisecond)
			st.start(t, st.folder, approval.ReadWrite)
			if tt.young {
				writeFile(t, filepath.Join(st.folder, "file"), "content")
			}
			out := st.python(t, fmt.Sprintf("h = c.create('file', DesiredAccess=%d, CreateDisposition=%d); c.write(h, b'x', 0)", tt.rights, tt.disposition))
			select {
			case <-st.server.Done():
			case <-time.After(5 * time.Second):
				t.Fatalf("the share stays open: %s", out)
			}
			if err := st.server.Err(); err == nil || !strings.Contains(err.Error(), `change "file", which was there`) {
				t.Errorf("because: %v", err)
			}
			if events := strings.Join(said(st.log.kept()), "\n"); !strings.Contains(events+"\n", tt.want+"\n") {
				t.Errorf("recorded: %s", events)
			}
		})
	}
}

// TestMadeManyFiles changes a file that was there, and one that was moved away, after
// clients have made as many as are remembered.
func TestMadeManyFiles(t *testing.T) {
	tr := newTestTracker(t, approval.ReadWrite)
	share := tr.shares[shareName]
	for _, name := range []string{"mine", "there"} {
		writeFile(t, filepath.Join(share.dir, name), "content")
	}
	for n := range uint64(maxMade) {
		tr.made.add(fileID{1 << 40, n})
	}
	tr.remember(share, "mine")
	for name, may := range map[string]bool{"mine": true, "there": false, "moved": false} {
		if err := tr.mayChange(share, name); (err == nil) != may {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range uint64(3 * maxMade) {
		tr.made.add(fileID{1 << 41, n})
	}
	if n := len(tr.made.newest) + len(tr.made.older); n > 2*maxMade {
		t.Errorf("%d are remembered", n)
	}
}

// smbPort is the only port that Samba's library for Python knows.
const smbPort = 445

// python runs statements over a connection c of Samba's own library, which asks for
// whatever it is told to.
func (st *shareTest) python(t *testing.T, statements string) string {
	t.Helper()
	disktest.NeedPrograms(t, "/usr/bin/python3")
	conf := filepath.Join(t.TempDir(), "smb.conf")
	writeFile(t, conf, "[global]\nclient min protocol = SMB3\nworkgroup = DATABOX\n")
	user, password := st.server.Credentials()
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", `
import os
from samba import credentials
from samba.samba3 import libsmb_samba_internal as libsmb, param
lp = param.get_context()
lp.load(os.environ["CONF"])
who = credentials.Credentials()
who.guess(lp)
who.set_username(os.environ["WHO"])
who.set_password(os.environ["PASSWORD"])
who.set_smb_encryption(credentials.SMB_ENCRYPTION_REQUIRED)
c = libsmb.Conn("127.0.0.1", "`+shareName+`", lp, who)
`+statements)
	cmd.Env = append(os.Environ(), "CONF="+conf, "WHO="+user, "PASSWORD="+password)
	out, err := cmd.CombinedOutput()
	return fmt.Sprintf("%v: %s", err, out)
}
