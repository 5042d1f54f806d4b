package controlplane_test

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/controlplane"
	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/keyvault/keyvaulttest"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// keyConfigs set another key service than the master key file up, and return how
// to lose it.
var keyConfigs = map[string]func(*testing.T, *controlplane.Config) (lose func()){
	"azure-key-vault": func(t *testing.T, cfg *controlplane.Config) func() {
		s := keyvaulttest.New(t)
		id := s.AddKey("service", 2048)
		dir := t.TempDir()
		v := &cfg.Keys.KeyVault
		cfg.Keys.Service = "azure-key-vault"
		v.Key, v.ClientID, v.Authority, v.Hosts = keyvaulttest.Address(id), keyvaulttest.ClientID, s.URL, []string{s.Host()}
		v.CAFile, v.ClientSecretFile = filepath.Join(dir, "roots"), filepath.Join(dir, "secret")
		if err := errors.Join(os.WriteFile(v.CAFile, s.Certificate(), 0o600), os.WriteFile(v.ClientSecretFile, []byte(keyvaulttest.Secret), 0o600)); err != nil {
			t.Fatal(err)
		}
		return s.Close
	},
}

func exported(t *testing.T, c *client.Client) error {
	t.Helper()
	resp, err := c.Keys.ExportRecoveryPassword(t.Context(), &lockboxv1.ExportRecoveryPasswordRequest{Serial: "DBX0001", Node: 1, Disk: "disk1", Reason: "a test"})
	if err == nil && resp.RecoveryPassword != recovery {
		t.Errorf("exported %q", resp.RecoveryPassword)
	}
	return err
}

// rotated rotates the service's key, and waits until that has ended.
func rotated(t *testing.T, c *client.Client) *lockboxv1.KeyStatus {
	t.Helper()
	s, err := c.Keys.RotateKey(t.Context(), &lockboxv1.RotateKeyRequest{})
	for deadline := time.Now().Add(20 * time.Second); err == nil && s.Rotation.Finished == 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		s, err = c.Keys.GetKeyStatus(t.Context(), &lockboxv1.GetKeyStatusRequest{})
	}
	if err != nil || s.Rotation.Finished == 0 {
		t.Fatalf("%v, %v", s, err)
	}
	return s
}

func backup(t *testing.T, cfg controlplane.Config) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "backup.tar")
	if err := controlplane.Backup(t.Context(), cfg, file, controlplane.BackupOptions{}); err != nil {
		t.Fatal(err)
	}
	return file
}

// parts lists what is in a backup.
func parts(t *testing.T, file string) (names []string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
}

// With each key service: keys are kept, backed up and restored, and shut while it
// is lost; the rest of the control plane goes on.
func TestEveryKeyService(t *testing.T) {
	for name, configure := range keyConfigs {
		t.Run(name, func(t *testing.T) {
			cfg := config(t)
			lose := configure(t, &cfg)
			first := run(t, cfg, zerolog.Nop())
			id := first.admin(t)
			c := first.as(t, id)
			deposit(t, c)
			if err := exported(t, c); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(cfg.MasterKeyPath()); err == nil {
				t.Error("a master key was made for nothing")
			}
			rotated(t, c)
			file := backup(t, cfg)
			if names := parts(t, file); slices.Contains(names, "master.key") || len(names) != 4 {
				t.Errorf("the backup holds %v", names)
			}
			first.end()
			restored := cfg
			restored.DataDir = filepath.Join(t.TempDir(), "data")
			if err := controlplane.Restore(restored, file); err != nil {
				t.Fatal(err)
			}
			second := run(t, restored, zerolog.Nop())
			c = second.as(t, id)
			if err := exported(t, c); err != nil {
				t.Errorf("restored: %v", err)
			}
			second.end()
			lose()
			begin := time.Now()
			third := run(t, restored, zerolog.Nop())
			c = third.as(t, id)
			if err := exported(t, c); protocol.CodeOf(err) != protocol.CodeKeyService || time.Since(begin) > 8*time.Second {
				t.Errorf("lost: %v after %s", err, time.Since(begin))
			}
			if _, err := c.Orders.GetOrder(t.Context(), &lockboxv1.GetOrderRequest{Id: "ORD-1001"}); err != nil {
				t.Errorf("the rest: %v", err)
			}
			if s, err := c.Keys.GetKeyStatus(t.Context(), &lockboxv1.GetKeyStatusRequest{}); err != nil || s.Problem == "" || s.Current != "" {
				t.Errorf("status %v, %v", s, err)
			}
		})
	}
}

// From the master key file to another service, without a moment in which the keys
// are shut; then the file may go.
func TestAnotherKeyServiceTakesOver(t *testing.T) {
	for name, configure := range keyConfigs {
		t.Run(name, func(t *testing.T) {
			cfg := config(t)
			first := run(t, cfg, zerolog.Nop())
			id := first.admin(t)
			deposit(t, first.as(t, id))
			first.end()
			configure(t, &cfg)
			second := run(t, cfg, zerolog.Nop())
			c := second.as(t, id)
			if err := exported(t, c); err != nil {
				t.Errorf("before it is moved: %v", err)
			}
			if names := parts(t, backup(t, cfg)); !slices.Contains(names, "master.key") {
				t.Errorf("the backup holds %v", names)
			}
			if s := rotated(t, c); len(s.Keys) != 1 || s.Keys[0].Id != s.Current || strings.HasPrefix(s.Current, "service-key") {
				t.Errorf("status %v", s)
			}
			second.end()
			if err := os.Remove(cfg.MasterKeyPath()); err != nil {
				t.Fatal(err)
			}
			third := run(t, cfg, zerolog.Nop())
			if err := exported(t, third.as(t, id)); err != nil {
				t.Errorf("without the file: %v", err)
			}
		})
	}
}

func TestABackupBelongsToItsMasterKey(t *testing.T) {
	p := run(t, config(t), zerolog.Nop())
	id := p.admin(t)
	c := p.as(t, id)
	deposit(t, c)
	old, err := os.ReadFile(p.cfg.MasterKeyPath())
	if err != nil {
		t.Fatal(err)
	}
	before := backup(t, p.cfg)
	rotated(t, c)
	after := backup(t, p.cfg)
	p.end()
	for name, file := range map[string]string{"before the rotation": before, "after it": after} {
		cfg := config(t)
		if err := controlplane.Restore(cfg, file); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		q := run(t, cfg, zerolog.Nop())
		if err := exported(t, q.as(t, id)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		q.end()
	}
	// The key of before does not open the store of after: no such backup is made,
	// and none is restored.
	now, err := os.ReadFile(p.cfg.MasterKeyPath())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.cfg.MasterKeyPath(), old, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := controlplane.Backup(t.Context(), p.cfg, filepath.Join(t.TempDir(), "b"), controlplane.BackupOptions{}); err == nil || !strings.Contains(err.Error(), "service-key/2") {
		t.Errorf("a backup with the wrong key: %v", err)
	}
	if err := os.WriteFile(p.cfg.MasterKeyPath(), now, 0o600); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(after)
	if err != nil {
		t.Fatal(err)
	}
	spoilt := filepath.Join(t.TempDir(), "spoilt")
	if err := os.WriteFile(spoilt, without(t, data, "master.key"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config(t)
	if err := controlplane.Restore(cfg, spoilt); err == nil || !strings.Contains(err.Error(), "service-key/2") {
		t.Errorf("a backup without its master key: %v", err)
	}
	if _, err := os.Stat(cfg.StorePath()); err == nil {
		t.Error("it was restored in part")
	}
}

// without is an archive that lacks a part.
func without(t *testing.T, data []byte, part string) []byte {
	t.Helper()
	var b strings.Builder
	w := tar.NewWriter(&b)
	for r := tar.NewReader(strings.NewReader(string(data))); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == part {
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return []byte(b.String())
}
