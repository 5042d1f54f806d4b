package controlplane

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// The name of the administrator that a new control plane knows, and the files
// of the data directory that no setting names: their login token, and the lock
// that keeps a second process out.
const (
	firstAdminName = "admin@lockbox.local"
	firstAdminFile = "first-admin.token"
	lockFile       = "lock"
)

func authorityFile(cfg Config) string { return filepath.Join(cfg.AuthorityDir(), certs.FileName) }

// privateDir makes a directory that only its owner may enter, or refuses one
// that others may.
func privateDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("cannot make the data directory: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("others may enter the data directory %s (mode %04o): run 'chmod 700 %s'", path, info.Mode().Perm(), path)
	}
	return nil
}

// lockDir makes sure that one process at a time works in a data directory. The
// system gives the lock back when the file is closed or the process ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another lockboxd works in %s: stop it first", dir)
	}
	return f, nil
}

// private refuses a file that is not there, or that others than its owner may
// use.
func private(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("others can read %s (mode %04o): run 'chmod 600 %s', and consider what is in it known", path, info.Mode().Perm(), path)
	}
	return nil
}

// checkOld refuses a store that others can read, or one whose authorities were
// lost: new ones would not know any device or person.
func checkOld(cfg Config) error {
	if err := private(cfg.StorePath()); err != nil {
		return err
	}
	if _, err := os.Lstat(authorityFile(cfg)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is missing although there is a store: restore it from a backup", authorityFile(cfg))
	}
	return nil
}

// openKey reads an Ed25519 key. If there is none and create is set, it makes
// one, durable on return.
func openKey(path string, create bool) (ed25519.PrivateKey, error) {
	err := private(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && create:
		return makeKey(path)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s is missing although there is a store: restore it from a backup", path)
	case err != nil:
		return nil, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	key, err := certs.DecodeKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: restore it from a backup", path, err)
	}
	return key, nil
}

func makeKey(path string) (ed25519.PrivateKey, error) {
	key, err := certs.NewKey()
	if err != nil {
		return nil, err
	}
	data, err := certs.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	return key, writePrivate(path, data)
}

// writePrivate writes a file of mode 0600, durable on return.
func writePrivate(path string, data []byte) error {
	if err := renameio.WriteFile(path, data, 0o600, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600)); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names within a directory durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// firstAdmin makes the first administrator and leaves their login token in the
// data directory. While they have never logged in, the token is made again once
// its file is gone or too old, so that nobody is locked out.
func (c *ControlPlane) firstAdmin(ctx context.Context, people *auth.Service) error {
	path := filepath.Join(c.cfg.DataDir, firstAdminFile)
	token, err := people.FirstAdmin(ctx, firstAdminName)
	if err == nil && token == "" {
		token, err = c.renewFirstToken(ctx, people, path)
	}
	if err != nil || token == "" {
		return err
	}
	if err := writePrivate(path, []byte(token+"\n")); err != nil {
		return fmt.Errorf("cannot leave the first administrator's token: %w", err)
	}
	c.opts.Log.Info().Str("file", path).Msg("the first administrator can log in: lockbox login --server " + advertised(c.cfg.API, c.apiListener) + " --token-file " + path)
	return nil
}

// renewFirstToken makes the first administrator another token if they still
// need one, else it returns "".
func (c *ControlPlane) renewFirstToken(ctx context.Context, people *auth.Service, path string) (string, error) {
	info, err := os.Stat(path)
	if err == nil && c.opts.Now().Sub(info.ModTime()) < auth.TokenTTL {
		return "", nil
	}
	needed := false
	err = c.store.View(ctx, func(tx *store.Tx) error {
		p, err := tx.Person(ctx, firstAdminName)
		if errors.Is(err, store.ErrNotFound) { // restored from elsewhere, with other admins
			return nil
		}
		if err != nil || !p.Removed.IsZero() {
			return err
		}
		logins, err := tx.AuditRows(ctx, store.AuditFilter{Operation: string(auditlog.OpLogin), Caller: firstAdminName, Limit: 1})
		needed = len(logins) == 0
		return err
	})
	if err != nil || !needed {
		return "", err
	}
	resp, err := people.CreateLoginToken(ctx, auth.SystemCaller(), &lockboxv1.CreateLoginTokenRequest{Name: firstAdminName})
	return resp.GetLoginToken(), err
}
