package controlplane_test

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/controlplane"
	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

const (
	subscription = "6a0e3c1e-9b0b-4c8e-8d3a-0c6a4a7d9f01"
	recovery     = "000011-000022-000033-000044-000055-000066-000077-000088"
)

// deposit takes an order as far as its disks' keys in custody.
func deposit(t *testing.T, c *client.Client) {
	t.Helper()
	share, err := manifest.ParseShare("contosodata_BlockBlob")
	if err != nil {
		t.Fatal(err)
	}
	bom, err := manifest.BOM{Share: share, Files: []manifest.File{{Path: "a/b", Size: 1}}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	public, _, _ := ed25519.GenerateKey(rand.Reader)
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for _, step := range []func() error{
		func() error {
			_, err := c.Tenants.CreateTenant(ctx, &lockboxv1.CreateTenantRequest{Id: "contoso", Name: "Contoso"})
			return err
		},
		func() error {
			_, err := c.Tenants.CreateSubscription(ctx, &lockboxv1.CreateSubscriptionRequest{Id: subscription, Tenant: "contoso", SupportPlan: "Developer"})
			return err
		},
		func() error {
			_, err := c.Accounts.CreatePerson(ctx, &lockboxv1.CreatePersonRequest{
				Name: "olga@contoso.example", Role: "owner", Tenant: "contoso", SshKeys: []string{string(ssh.MarshalAuthorizedKey(key))},
			})
			return err
		},
		func() error {
			_, err := c.Orders.PlaceOrder(ctx, &lockboxv1.PlaceOrderRequest{Id: "ORD-1001", Subscription: subscription, Sku: "databox",
				Destinations: []*lockboxv1.Destination{{Account: "contosodata", Endpoint: "file:///srv/blobs", Shares: []string{"contosodata_BlockBlob"}}}})
			return err
		},
		func() error {
			_, err := c.Orders.PrepareDevice(ctx, &lockboxv1.PrepareDeviceRequest{Order: "ORD-1001", Serial: "DBX0001", Disks: []*lockboxv1.PreparedDisk{{
				Node: 1, Disk: "disk1", VolumeGuid: "{a}", ExternalKey: make([]byte, 32), RecoveryPassword: recovery,
				Manifests: []*lockboxv1.PreparedManifest{{Share: "contosodata_BlockBlob", Bom: bom}},
			}}})
			return err
		},
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

// backedUp is a running control plane with something in it, and its backup.
func backedUp(t *testing.T) (p *plane, id *client.Identity, file string) {
	t.Helper()
	p = run(t, config(t), zerolog.Nop())
	id = p.admin(t)
	deposit(t, p.as(t, id))
	file = filepath.Join(t.TempDir(), "backup.tar")
	if err := controlplane.Backup(t.Context(), p.cfg, file, controlplane.BackupOptions{}); err != nil {
		t.Fatal(err)
	}
	return p, id, file
}

func TestBackupWhileRunningRestoresElsewhere(t *testing.T) {
	first, id, file := backedUp(t)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup: %v, %v", info, err)
	}
	before := checkpoint(t, first.as(t, id))
	people := names(t, first.as(t, id))
	first.end()

	elsewhere := config(t)
	elsewhere.MasterKeyFile = filepath.Join(t.TempDir(), "keys", "master.key")
	if err := controlplane.Restore(elsewhere, file); err != nil {
		t.Fatal(err)
	}
	second := run(t, elsewhere, zerolog.Nop())
	c := second.as(t, id) // the authorities are the same, so the certificate holds
	if got := checkpoint(t, c); got.VerifierKey != before.VerifierKey || !bytes.Equal(got.Checkpoint, before.Checkpoint) {
		t.Errorf("the log was %s and is %s", before.Checkpoint, got.Checkpoint)
	}
	if got := names(t, c); !slices.Equal(got, people) {
		t.Errorf("people were %v and are %v", people, got)
	}
	if report, err := auditlog.Verify(export(t, c), before.VerifierKey, before.Checkpoint); err != nil || report.Older.Size == 0 {
		t.Errorf("the log does not verify: %v", err)
	}
	key, err := c.Keys.ExportRecoveryPassword(t.Context(), &lockboxv1.ExportRecoveryPasswordRequest{Serial: "DBX0001", Node: 1, Disk: "disk1", Reason: "a test"})
	if err != nil || key.RecoveryPassword != recovery {
		t.Errorf("the disk's key: %v", err)
	}
}

func names(t *testing.T, c *client.Client) (list []string) {
	t.Helper()
	resp, err := c.Accounts.ListPeople(t.Context(), &lockboxv1.ListPeopleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range resp.People {
		list = append(list, p.Name+" "+p.Role+" "+strings.Join(p.KeyFingerprints, " "))
	}
	return list
}

func export(t *testing.T, c *client.Client) io.Reader {
	t.Helper()
	stream, err := c.Audit.ExportLog(t.Context(), &lockboxv1.ExportLogRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var log bytes.Buffer
	for {
		part, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return &log
		}
		if err != nil {
			t.Fatal(err)
		}
		log.Write(part.Data)
	}
}

func TestBackupRefusals(t *testing.T) {
	p, _, file := backedUp(t)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := controlplane.Backup(t.Context(), p.cfg, file, controlplane.BackupOptions{}); err == nil {
		t.Error("a backup was written over")
	}
	if after, _ := os.ReadFile(file); !bytes.Equal(after, before) {
		t.Error("the older backup changed")
	}
	if err := controlplane.Backup(t.Context(), config(t), filepath.Join(t.TempDir(), "b"), controlplane.BackupOptions{}); err == nil || !strings.Contains(err.Error(), "nothing to back up") {
		t.Errorf("nothing was backed up: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(p.cfg.DataDir, ".backup-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestRestoreIntoWhatIsNotEmpty(t *testing.T) {
	_, _, file := backedUp(t)
	for name, spoil := range map[string]func(*controlplane.Config) string{
		"a store's remains": func(c *controlplane.Config) string { return filepath.Join(c.DataDir, "store.db-wal") },
		"any file":          func(c *controlplane.Config) string { return filepath.Join(c.DataDir, "note") },
		"a master key elsewhere": func(c *controlplane.Config) string {
			c.MasterKeyFile = filepath.Join(filepath.Dir(c.DataDir), "keys", "master.key")
			return c.MasterKeyFile
		},
	} {
		cfg := config(t)
		path := spoil(&cfg)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		before := tree(t, filepath.Dir(cfg.DataDir))
		if err := controlplane.Restore(cfg, file); err == nil {
			t.Errorf("%s: restored over it", name)
		}
		if after := tree(t, filepath.Dir(cfg.DataDir)); !slices.Equal(after, before) {
			t.Errorf("%s: there was %v, now there is %v", name, before, after)
		}
	}
	cfg := config(t)
	if err := os.MkdirAll(filepath.Join(cfg.DataDir, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := controlplane.Restore(cfg, file); err != nil {
		t.Errorf("control: %v", err)
	}
}

// tree lists what lies below a directory.
func tree(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		list = append(list, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestBadArchivesLeaveNothing(t *testing.T) {
	_, _, file := backedUp(t)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	archives := map[string][]byte{
		"empty":        {},
		"no archive":   []byte(strings.Repeat("not a tar ", 1000)),
		"foreign":      archive(t, "etc/passwd"),
		"outside":      archive(t, "../store.db"),
		"incomplete":   archive(t, "service.key"),
		"twice":        archive(t, "service.key", "service.key"),
		"a directory":  archive(t, "store.db/"),
		"a recording":  archive(t, "recordings/REC-00000000000000000000000000000001.rec"), // and nothing else
		"no recording": archive(t, "recordings/REC-1.rec"),
		"its folder":   archive(t, "recordings/"),
		"another file": archive(t, "recordings/REC-00000000000000000000000000000001.json"),
		"a way out":    archive(t, "recordings/../REC-00000000000000000000000000000001.rec"),
	}
	for _, cut := range []int{1, 511, 512, 1024, len(whole) / 2, len(whole) - 2048} {
		archives[fmt.Sprint("cut at ", cut)] = whole[:cut]
	}
	for name, data := range archives {
		cfg := config(t)
		cfg.MasterKeyFile = filepath.Join(filepath.Dir(cfg.DataDir), "keys", "master.key")
		path := filepath.Join(t.TempDir(), "b")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := controlplane.Restore(cfg, path); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		if left := tree(t, filepath.Dir(cfg.DataDir)); len(left) != 1 {
			t.Errorf("%s: left behind %v", name, left)
		}
	}
}

func archive(t *testing.T, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		h := &tar.Header{Name: name, Mode: 0o600, Size: 4}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Size = tar.TypeDir, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			w.Write([]byte("data"))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
