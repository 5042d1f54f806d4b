package transfer

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/agent/internal/shell/files"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

type forgetful struct{}

func (forgetful) File(recording.FileEvent) error { return nil }

// client is what a client sends, and where its answers go.
type client struct {
	io.Reader
	io.Writer
}

// system is a share with one file, which may be changed in any way.
func system(t testing.TB) (s *files.System, dir string) {
	dir = t.TempDir()
	share := filepath.Join(dir, "share")
	if err := os.Mkdir(share, 0o755); err != nil {
		t.Fatal(err)
	}
	grant := files.Grant{Access: approval.Delete, Shares: []files.Share{{Name: "a_BlockBlob", Dir: share}}}
	return files.New(files.Config{Grant: func() (files.Grant, error) { return grant, nil }, Log: forgetful{}, Via: recording.ViaSFTP}), dir
}

func packet(kind byte, parts ...any) []byte {
	b := []byte{0, 0, 0, 0, kind}
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b = appendString(b, p)
		case int:
			b = binary.BigEndian.AppendUint32(b, uint32(p))
		case int64:
			b = binary.BigEndian.AppendUint64(b, uint64(p))
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

var (
	hello = packet(fxpInit, 3)
	open  = packet(fxpOpen, 1, "/shares/a_BlockBlob/f", openRead|openWrite|openCreate, 0)
	write = packet(fxpWrite, 2, "1", int64(5), "hello")
)

// FuzzSFTP: whatever a client sends ends, makes nothing outside of the share, and
// is answered in whole packets.
func FuzzSFTP(f *testing.F) {
	f.Add(bytes.Join([][]byte{hello, open, write, packet(fxpRead, 3, "1", int64(0), 1<<30), packet(fxpClose, 4, "1")}, nil))
	f.Add(bytes.Join([][]byte{hello, packet(fxpOpendir, 1, "/shares/a_BlockBlob/.."), packet(fxpReaddir, 2, "1"), packet(fxpRealpath, 3, "../x")}, nil))
	f.Add(bytes.Join([][]byte{hello, open, packet(fxpFsetstat, 2, "1", attrSize|attrTimes, int64(3), 1, 2), packet(fxpExtended, 3, "fsync@openssh.com", "1"),
		packet(fxpExtended, 4, "statvfs@openssh.com", "/"), packet(fxpExtended, 5, "posix-rename@openssh.com", "/shares/a_BlockBlob/f", "/shares/../g")}, nil))
	f.Fuzz(func(t *testing.T, sent []byte) {
		s, dir := system(t)
		var answers bytes.Buffer
		_ = ServeSFTP(t.Context(), client{bytes.NewReader(sent), &answers}, io.Discard, s)
		for rest := answers.Bytes(); len(rest) > 0; {
			if len(rest) < 4 || uint64(len(rest)-4) < uint64(binary.BigEndian.Uint32(rest)) {
				t.Fatalf("half an answer: %q", rest)
			}
			rest = rest[4+binary.BigEndian.Uint32(rest):]
		}
		if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
			t.Errorf("beside the share: %v, %v", list, err)
		}
	})
}

// A change of size that was refused fails the close: clients do not look at it.
func TestRefusedTruncateFailsTheClose(t *testing.T) {
	s, _ := system(t)
	var answers bytes.Buffer
	sent := bytes.Join([][]byte{hello, open, write, packet(fxpFsetstat, 3, "1", attrSize, int64(1)<<62), packet(fxpClose, 4, "1")}, nil)
	if err := ServeSFTP(t.Context(), client{bytes.NewReader(sent), &answers}, io.Discard, s); err != nil {
		t.Fatal(err)
	}
	refused := binary.BigEndian.AppendUint32(packet(fxpStatus, 4), fxFailure)[4:]
	if !bytes.Contains(answers.Bytes(), refused) {
		t.Errorf("%q", answers.Bytes())
	}
}

// What a client did not write to its end, because it is gone or there is no room,
// is not left under a new name.
func TestUnfinishedFileIsRemoved(t *testing.T) {
	for name, sent := range map[string][][]byte{
		"gone":    {hello, open, write},
		"no room": {hello, open, write, packet(fxpWrite, 3, "1", int64(1)<<62, "hello"), packet(fxpClose, 4, "1")},
		"synced":  {hello, open, write, packet(fxpExtended, 3, "fsync@openssh.com", "1")},
	} {
		s, dir := system(t)
		var answers, said bytes.Buffer
		if err := ServeSFTP(t.Context(), client{bytes.NewReader(bytes.Join(sent, nil)), &answers}, &said, s); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "share/f")); (err == nil) != (name == "synced") {
			t.Errorf("%s: %v", name, err)
		}
		closed := binary.BigEndian.AppendUint32(packet(fxpStatus, 4), fxFailure)[4:]
		if name == "no room" && (!bytes.Contains(answers.Bytes(), closed) || strings.Count(said.String(), "(storage-full)\n") != 1) {
			t.Errorf("%s: %q, %q", name, answers.Bytes(), said.String())
		}
	}
}

// FuzzSCP: whatever a client of the old protocol sends ends, and makes nothing
// outside of the share.
func FuzzSCP(f *testing.F) {
	f.Add([]byte("T1 0 1 0\nC0644 5 f\nhello\x00D0755 0 d\nC0600 0 ..\nE\n"), true)
	f.Add([]byte("\x00\x00\x00\x01no\n\x00"), false)
	f.Fuzz(func(t *testing.T, sent []byte, to bool) {
		s, dir := system(t)
		mode := "-rpf"
		if to {
			mode = "-rpt"
		}
		c, err := ParseSCP([]string{mode, "/shares/a_BlockBlob"})
		if err != nil {
			t.Fatal(err)
		}
		_ = ServeSCP(t.Context(), client{bytes.NewReader(sent), io.Discard}, s, c)
		if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
			t.Errorf("beside the share: %v, %v", list, err)
		}
	})
}
