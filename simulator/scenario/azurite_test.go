package scenario

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/protocol/manifest"
	"github.com/databox-lockbox/lockbox/simulator/azurite"
	"github.com/databox-lockbox/lockbox/simulator/profile"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// startAzurite starts a blob service that ends with the test. Where Azurite is not
// installed the test is skipped; under CI=true it fails.
func startAzurite(t *testing.T) (*azurite.Service, world.Blobs) {
	t.Helper()
	const missing = "this test needs Azurite: run 'make deps-azurite'"
	installed := azurite.Installed()
	switch {
	case installed == "" && os.Getenv("CI") == "true":
		t.Fatal(missing)
	case installed == "":
		t.Skip(missing)
	}
	service, err := azurite.Start(t.Context(), installed, filepath.Join(t.TempDir(), "azurite"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := service.End(); err != nil {
			t.Error(err)
		}
	})
	return service, world.Blobs{Endpoint: service.Endpoint, Credential: "AccountKey=" + azurite.Key}
}

// A device copies to a blob service that its customer consented to, halts at what
// lies in the wrong folder, is repaired, and goes on to the end. Then everything that
// the customer put on its disks is in the account, byte for byte.
func TestCopyToBlobService(t *testing.T) {
	needWorld(t)
	service, blobs := startAzurite(t)
	t.Parallel()
	p := smallProfile(t, "databox") // block blobs and page blobs
	p.DiskSize = 32 << 20
	for i, d := range p.Nodes[0].Disks {
		share := &p.Nodes[0].Disks[i].Shares[0]
		_, kind, _ := strings.Cut(d.Shares[0].Name, "_")
		share.Name = azurite.Account + "_" + kind
	}
	p.Nodes[0].Disks[0].Shares[0].Files["photos/in two blocks"] = strings.Repeat("block", 2<<20)

	s := newStage(t, world.Config{Profile: p, Blobs: blobs}, nil)
	s.play("1", "2", "3", "4")
	s.do("the copy job halts", func(ctx context.Context) {
		s.ok(ctx, "sam", "order", "start-job", string(s.w.Device.Order))
		s.until(ctx, "the copy job has halted", func() bool { return s.order(ctx).Status == statusHalted })
		codes := s.order(ctx).ErrorCodes
		s.hold(slices.Equal(codes, []string{errorCode}), "the job halted with %v", codes)
		s.inService(ctx, service, false)
		s.hold(len(s.blobs()) == 0, "something was written to the folder")
	})
	s.play("6", "7", "9", "10", "11", "12")
	s.do("what lets into the account is replaced, and leaves the device when it locks", func(ctx context.Context) {
		query, err := service.Sign()
		s.must(err)
		s.handOver(ctx, s.w.Device.Order, "SharedAccessSignature="+query)
		s.must(service.Hang()) // so that there is time to look
		defer func() { s.must(service.Wake()) }()
		s.online(ctx, s.w.Device, "Locked")
		s.ok(ctx, "sam", "order", "resume-job", string(s.w.Device.Order))
		s.until(ctx, "the agent has the signature, and not the account's key", func() bool { return slices.Equal(s.accessIn(agentName(s.target())), []string{"signature"}) })
		s.locksAgain(ctx)
		found := s.accessIn(agentName(s.target()))
		s.hold(len(found) == 0, "the locked agent has in its memory: %q", found)
		s.until(ctx, "the job pauses", func() bool { return s.order(ctx).JobState == "paused" })
	})
	s.do("the resumed job completes", func(ctx context.Context) {
		s.online(ctx, s.w.Device, "Locked")
		s.ok(ctx, "sam", "order", "resume-job", string(s.w.Device.Order))
		s.until(ctx, "the order is completed", func() bool { return s.order(ctx).Stage == statusCompleted })
		log := s.ok(ctx, "sam", "order", "log", string(s.w.Device.Order))
		s.hold(!strings.Contains(log, "ERROR_"), "the copy log is not clean")
		s.inService(ctx, service, true)
		s.accessIsGone(ctx)
	})
}

// accessIn searches a program's memory for what lets into the accounts.
func (s *Story) accessIn(process string) []string {
	found, err := findInMemory(s.procs.pid(process), s.access)
	s.must(err)
	return found
}

// accessIsGone holds that nothing is left of what lets into the accounts, but in
// the memory of the control plane, which collects its garbage when it likes.
func (s *Story) accessIsGone(ctx context.Context) {
	found := s.accessIn(agentName(s.target()))
	s.hold(len(found) == 0, "the agent still has in its memory: %q", found)
	for _, d := range s.order(ctx).Destinations {
		s.hold(d.Access == nil, "the completed order still has a credential: %v", d.Access)
	}
	s.must(filepath.WalkDir(s.w.Dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || filepath.Ext(path) == ".img" {
			return err
		}
		data, err := os.ReadFile(path)
		for _, one := range s.access {
			s.hold(!bytes.Contains(data, one.value), "%s is in %s", one.name, path)
		}
		return err
	}))
}

// inService holds that the account has every file, those that were misplaced only if
// repaired.
func (s *Story) inService(ctx context.Context, service *azurite.Service, repaired bool) {
	for _, d := range s.w.Device.Nodes[0].Disks {
		share, err := manifest.ParseShare(d.Shares[0].Name)
		s.must(err)
		for name, want := range d.Shares[0].Files {
			rest, misplaced := strings.CutPrefix(name, profile.WrongFolder+"/")
			if misplaced {
				name = profile.RightFolder + "/" + rest
			}
			object := share.Classify(name, int64(len(want)))
			got, err := service.Get(ctx, object.Container, object.Name)
			if misplaced && !repaired {
				s.hold(err != nil, "%s is there before it was repaired", name)
				continue
			}
			s.must(err)
			s.hold(bytes.Equal(got, []byte(want)), "%s has another content in the account", name)
		}
	}
}
