package controlplane

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	stdlog "log"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
)

// firstAdmin is the name of the administrator that a new control plane knows,
// and the file, in the data directory, with their login token.
const (
	firstAdminName = "admin@lockbox.local"
	firstAdminFile = "first-admin.token"
)

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

// openKey reads an Ed25519 key. If there is none and create is set, it makes
// one, durable on return.
func openKey(path string, create bool) (ed25519.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && create {
		return makeKey(path)
	}
	if err != nil {
		return nil, err
	}
	defer clear(data)
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("others can read %s (mode %04o): run 'chmod 600 %s', and consider the key known", path, info.Mode().Perm(), path)
	}
	return certs.DecodeKey(data)
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
	if err := renameio.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// firstAdmin makes the first administrator and leaves their login token in the
// data directory. The token is made again while nobody has used it and its file
// is gone.
func (c *ControlPlane) firstAdmin(ctx context.Context, people *auth.Service) error {
	token, err := people.FirstAdmin(ctx, firstAdminName)
	if err != nil || token == "" {
		return err
	}
	path := filepath.Join(c.cfg.DataDir, firstAdminFile)
	if err := writePrivate(path, []byte(token+"\n")); err != nil {
		return fmt.Errorf("cannot leave the first administrator's token: %w", err)
	}
	c.opts.Log.Info().Str("file", path).Msg("the first administrator can log in: lockbox login --server " + advertised(c.cfg.API, c.apiListener) + " --token-file " + path)
	return nil
}

// httpLog passes the lines of net/http on to the log: bad handshakes, mostly.
type httpLog struct{ zerolog.Logger }

func newHTTPLog(log zerolog.Logger) *stdlog.Logger { return stdlog.New(httpLog{log}, "", 0) }

func (l httpLog) Write(line []byte) (int, error) {
	l.Debug().Bytes("line", bytes.TrimSpace(line)).Msg("http")
	return len(line), nil
}
