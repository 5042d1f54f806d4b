package controlplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/config"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/hsm"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/keyvault"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
)

// wrapping is what wraps the keys of orders.
type wrapping struct {
	current   custody.KeyService
	older     []custody.KeyService
	customers custody.CustomerKeys
}

// openMaster opens the master key file. It is nil if another key service is
// configured and there is none; what it wrapped needs it still.
func openMaster(cfg Config, create bool) (*custody.Local, error) {
	if cfg.Keys.Service != config.LocalKeys {
		if _, err := os.Lstat(cfg.MasterKeyPath()); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		create = false
	}
	return custody.OpenMasterKey(cfg.MasterKeyPath(), create)
}

// openWrapping makes the key services that are configured. None is asked for
// anything yet: one that is out of reach keeps nobody from locking and revoking.
func (c *ControlPlane) openWrapping(ctx context.Context, local *custody.Local) (w wrapping, err error) {
	services := map[string]custody.KeyService{}
	if local != nil {
		services[config.LocalKeys] = local
	}
	if c.cfg.Keys.PKCS11.Module != "" {
		if services[config.PKCS11Keys], err = c.newToken(ctx); err != nil {
			return w, err
		}
	}
	if c.cfg.Keys.KeyVault.ClientID != "" {
		vaults, err := c.newVaults()
		if err != nil {
			return w, err
		}
		w.customers = vaults
		if key := c.cfg.Keys.KeyVault.Key; key != "" {
			if services[config.KeyVaultKeys], err = keyvault.NewService(vaults, key); err != nil {
				return w, fmt.Errorf("keys.key_vault.key: %w", err)
			}
		}
	}
	for name, s := range services {
		if name == c.cfg.Keys.Service {
			w.current = s
		} else {
			w.older = append(w.older, s)
		}
	}
	return w, nil
}

// newToken makes the service of a token. Its first key is made if nothing is
// wrapped by one: else it was lost, and is not to be replaced in silence.
func (c *ControlPlane) newToken(ctx context.Context) (custody.KeyService, error) {
	t := c.cfg.Keys.PKCS11
	cfg := hsm.Config{Helper: t.Helper, Module: t.Module, Token: t.Token, Label: t.Label, PINFile: t.PINFile, Create: true}
	if cfg.Helper == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		cfg.Helper = filepath.Join(filepath.Dir(self), "lockbox-hsm")
	}
	err := c.store.View(ctx, func(tx *store.Tx) error {
		uses, err := tx.WrapperUses(ctx)
		for _, u := range uses {
			cfg.Create = cfg.Create && !strings.HasPrefix(u.Wrapper, hsm.IDPrefix)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	s := hsm.New(cfg)
	c.closers = append(c.closers, s.Close)
	return s, nil
}

// newVaults makes the client for vaults.
func (c *ControlPlane) newVaults() (*keyvault.Client, error) {
	v := c.cfg.Keys.KeyVault
	cas, err := roots("keys.key_vault.ca_file", v.CAFile)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: cas, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 5 * time.Second, IdleConnTimeout: 30 * time.Second, MaxIdleConns: 16, ForceAttemptHTTP2: true,
	}
	c.closers = append(c.closers, func() error { transport.CloseIdleConnections(); return nil })
	return keyvault.New(keyvault.Config{
		Authority: v.Authority, Hosts: v.Hosts, ClientID: v.ClientID, Transport: transport, Now: c.opts.Now,
		Secret: func() ([]byte, error) { return readSecret(v.ClientSecretFile) },
	}), nil
}

// maxSecret is the longest secret in a file, in bytes.
const maxSecret = 4096

// readSecret reads a file of one line that only its owner can use.
func readSecret(path string) ([]byte, error) {
	if err := private(path); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	secret := bytes.TrimRight(data, "\r\n")
	if len(secret) == 0 || len(secret) > maxSecret {
		clear(data)
		return nil, fmt.Errorf("%s does not hold a secret", path)
	}
	return secret, nil
}
