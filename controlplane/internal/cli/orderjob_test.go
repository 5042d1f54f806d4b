package cli_test

import (
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/controlplane/internal/cli"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

func TestShowCopyLog(t *testing.T) {
	l := manifest.CopyLog{Status: manifest.Failed, TotalFiles: 9, Unlisted: 3, Errored: []manifest.ErroredEntity{
		{Path: "contosodata_BlockBlob/photos/\x1b[2J.jpg", Codes: []manifest.ErrorCode{manifest.NameLength, manifest.SizeLimit}},
	}}
	for onlyErrors, lines := range map[bool]int{false: 5, true: 3} {
		var out strings.Builder
		cli.ShowCopyLog(&out, l, onlyErrors)
		got := out.String()
		if strings.Count(got, "\n") != lines || strings.Contains(got, "\x1b") || strings.Contains(got, "9, of which 4 errored") == onlyErrors ||
			!strings.Contains(got, string(manifest.NameLength)+" "+string(manifest.SizeLimit)) || !strings.Contains(got, "and 3 more") {
			t.Errorf("only errors %v:\n%s", onlyErrors, got)
		}
	}
}

func TestJobProgress(t *testing.T) {
	o := &lockboxv1.Order{FilesTotal: 10, FilesDone: 4, FilesErrored: 1, BytesDone: 1 << 20, BytesTotal: 2 << 20, BytesPerSecond: 1 << 18}
	if got, want := cli.JobProgress(o), "4 of 10 files copied, 1 not; 1.0 MiB of 2.0 MiB (50 %), 256.0 KiB/s, 4s left"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := cli.JobProgress(&lockboxv1.Order{}); got != "" {
		t.Errorf("%q", got)
	}
}
