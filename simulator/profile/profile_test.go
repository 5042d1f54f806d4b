package profile

import (
	"io/fs"
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// fault reports whether the file at path, share folder first, cannot be copied.
func fault(t *testing.T, path string, size int64) bool {
	t.Helper()
	name, rest, _ := strings.Cut(path, "/")
	share, err := manifest.ParseShare(name)
	if err != nil {
		t.Fatal(err)
	}
	return len(share.Classify(rest, size).Codes) > 0
}

func TestProfilesHoldWhatTheStoryNeeds(t *testing.T) {
	for _, name := range Names {
		p, err := Get(name)
		if err != nil {
			t.Fatal(err)
		}
		disks, wrong, right := 0, 0, 0
		for _, n := range p.Nodes {
			for _, d := range n.Disks {
				disks++
				err := fs.WalkDir(d.FS(), ".", func(path string, e fs.DirEntry, err error) error {
					if err != nil || e.IsDir() {
						return err
					}
					info, err := e.Info()
					if err != nil {
						return err
					}
					if fault(t, path, info.Size()) {
						wrong++
					} else {
						right++
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		if disks != 4 || wrong != 3 || right < 10 {
			t.Errorf("%s: %d disks, %d misplaced files, %d right ones", name, disks, wrong, right)
		}
	}
	if _, err := Get("databox-pocket"); err == nil {
		t.Error("an unknown profile was found")
	}
}
