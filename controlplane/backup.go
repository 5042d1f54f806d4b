package controlplane

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/config"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/recordings"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// What a backup holds, by name within the archive. The master key is in it, if
// there is one: then a backup opens every disk in custody that is not under a
// customer's key, has what lets into storage accounts, and is to be kept like the
// disks. Keys in a token or a vault cannot be in it.
const (
	backupStore     = "store.db"
	backupAuthority = "authority/" + certs.FileName
	backupService   = "service.key"
	backupLog       = "log.key"
	backupMaster    = "master.key"

	backupRecordings = "recordings/" // of each, "<id>.rec"
)

// maxBackupFile bounds one file of an archive, in bytes.
const maxBackupFile = 64 << 30

// backupFiles says where each part of a backup lies.
func backupFiles(cfg Config) map[string]string {
	return map[string]string{
		backupStore:     cfg.StorePath(),
		backupAuthority: authorityFile(cfg),
		backupService:   cfg.ServiceKeyPath(),
		backupLog:       cfg.LogKeyPath(),
		backupMaster:    cfg.MasterKeyPath(),
	}
}

// BackupOptions say what is left out of a backup. The zero value leaves out nothing.
type BackupOptions struct {
	WithoutRecordings bool
}

// Backup writes the store, all keys and the recordings to a new file, mode 0600,
// durable on return. The daemon may be running: the store is copied as of one
// moment, then the recordings that it lists, straight into the file.
func Backup(ctx context.Context, cfg Config, file string, opts BackupOptions) (err error) {
	fresh, err := isFresh(cfg)
	if err != nil {
		return err
	}
	if fresh {
		return fmt.Errorf("there is nothing to back up: %s does not exist", cfg.StorePath())
	}
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("cannot make the backup: %w", err)
	}
	err = errors.Join(writeBackup(ctx, cfg, opts, out), out.Sync(), out.Close())
	if err != nil {
		return errors.Join(fmt.Errorf("cannot make the backup: %w", err), os.Remove(file))
	}
	return syncDir(filepath.Dir(file))
}

func writeBackup(ctx context.Context, cfg Config, opts BackupOptions, out io.Writer) (err error) {
	dir, err := os.MkdirTemp(cfg.DataDir, ".backup-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	snapshot := filepath.Join(dir, backupStore)
	if err := copyStore(ctx, cfg, snapshot); err != nil {
		return err
	}
	files := backupFiles(cfg)
	files[backupStore] = snapshot
	if files[backupMaster], err = copyMaster(ctx, cfg, dir, snapshot); err != nil {
		return err
	}
	if files[backupMaster] == "" {
		delete(files, backupMaster)
	}
	archive := tar.NewWriter(out)
	for _, name := range sortedNames(files) {
		if err := addFile(archive, name, files[name]); err != nil {
			return err
		}
	}
	if !opts.WithoutRecordings {
		if err := addRecordings(ctx, archive, snapshot, cfg.RecordingsDir()); err != nil {
			return err
		}
	}
	return archive.Close()
}

// addRecordings adds the recordings that a snapshot of the store lists.
func addRecordings(ctx context.Context, archive *tar.Writer, snapshot, dir string) (err error) {
	s, err := store.Open(ctx, snapshot)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return recordings.Archive(ctx, s, dir, func(id string, size int64, r io.Reader) error {
		return addPart(archive, backupRecordings+recordings.FileName(id), size, time.Now(), r)
	})
}

// copyMaster copies the master key file beside a snapshot of the store and makes
// sure that both belong together: a rotation may have ended in between. It
// returns "" if there is no master key, and none is needed.
func copyMaster(ctx context.Context, cfg Config, dir, snapshot string) (string, error) {
	to := filepath.Join(dir, backupMaster)
	data, err := os.ReadFile(cfg.MasterKeyPath())
	switch {
	case errors.Is(err, fs.ErrNotExist) && cfg.Keys.Service != config.LocalKeys:
		to = ""
	case err != nil:
		return "", err
	default:
		defer clear(data)
		if err := os.WriteFile(to, data, 0o600); err != nil {
			return "", err
		}
	}
	return to, checkMaster(ctx, snapshot, to)
}

// checkMaster refuses a store of which keys are wrapped by master keys that are
// not in the file at master, which may be "" for none.
func checkMaster(ctx context.Context, path, master string) (err error) {
	s, err := store.Open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	var there []string
	if master != "" {
		if there, err = custody.MasterKeyIDs(master); err != nil {
			return err
		}
	}
	return s.View(ctx, func(tx *store.Tx) error {
		uses, err := tx.WrapperUses(ctx)
		for _, u := range uses {
			if custody.IsMasterKeyID(u.Wrapper) && !slices.Contains(there, u.Wrapper) {
				return fmt.Errorf("master key %q is missing, which wraps the keys of %d orders: if keys are being rotated, try again", u.Wrapper, u.Orders)
			}
		}
		return err
	})
}

func sortedNames(files map[string]string) []string { return slices.Sorted(maps.Keys(files)) }

func copyStore(ctx context.Context, cfg Config, path string) (err error) {
	s, err := store.Open(ctx, cfg.StorePath())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return s.BackupTo(ctx, path)
}

func addFile(archive *tar.Writer, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return addPart(archive, name, info.Size(), info.ModTime(), f)
}

func addPart(archive *tar.Writer, name string, size int64, modified time.Time, r io.Reader) error {
	header := &tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: time.Unix(modified.Unix(), 0), Format: tar.FormatPAX}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.CopyN(archive, r, size)
	return err
}

// restoring ends the names of parts that are not yet in place.
const restoring = ".restoring"

// Restore unpacks a backup into an empty or missing data directory, whole or
// not at all. It never writes over anything. What it wrote is durable on
// return. Tokens that were open then may have been used since: they are gone.
func Restore(cfg Config, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("cannot read the backup: %w", err)
	}
	defer f.Close()
	files := backupFiles(cfg)
	if err := checkEmpty(cfg.DataDir, files); err != nil {
		return err
	}
	made, err := makeDirs(cfg, files)
	if err == nil {
		err = place(f, files, cfg.RecordingsDir())
	}
	if err == nil {
		return nil
	}
	for _, path := range files {
		for _, of := range []string{"", "-wal", "-shm"} { // what opening the store leaves
			os.Remove(path + restoring + of)
		}
		os.Remove(path) // was not there before, see checkEmpty
	}
	for _, dir := range slices.Backward(made) {
		os.Remove(dir)
	}
	return fmt.Errorf("cannot restore from %s: %w", file, err)
}

// checkEmpty refuses a data directory that holds anything, above all the
// remains of another store, and parts that lie elsewhere and are there already.
func checkEmpty(dir string, files map[string]string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.Name() != "lost+found" { // of the file system's own
			return fmt.Errorf("%s is not empty (%s): restore into an empty data directory", dir, e.Name())
		}
	}
	for _, path := range files {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is there already: a restore writes over nothing, move it away first", path)
		}
	}
	return nil
}

// makeDirs makes the directories of files and returns those that were not
// there, outermost first.
func makeDirs(cfg Config, files map[string]string) (made []string, err error) {
	for _, dir := range []string{cfg.DataDir, cfg.AuthorityDir(), cfg.RecordingsDir(), filepath.Dir(files[backupMaster])} {
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			made = append(made, dir)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return made, err
		}
	}
	return made, privateDir(cfg.DataDir)
}

// place puts every part in its place: first under other names, until all are
// there and durable, then under their own; the store last, for with it the
// control plane is whole.
func place(archive io.Reader, files map[string]string, dir string) error {
	files, err := unpack(archive, files, dir)
	if err != nil {
		return err
	}
	if err := prepareStore(files); err != nil {
		return err
	}
	dirs := make(map[string]bool)
	for _, name := range sortedNames(files) {
		if name != backupStore {
			if err := os.Rename(files[name]+restoring, files[name]); err != nil {
				return err
			}
			dirs[filepath.Dir(files[name])] = true
		}
	}
	for dir := range dirs {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	if err := os.Rename(files[backupStore]+restoring, files[backupStore]); err != nil {
		return err
	}
	return syncDir(filepath.Dir(files[backupStore]))
}

// prepareStore makes sure that a restored store has the master keys it needs, and
// ends its open tokens.
func prepareStore(files map[string]string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	path, master := files[backupStore]+restoring, ""
	if files[backupMaster] != "" {
		master = files[backupMaster] + restoring
	}
	if err := checkMaster(ctx, path, master); err != nil {
		return err
	}
	return closeTokens(ctx, path)
}

// closeTokens ends all tokens of a restored store that nobody had used: each was
// for once, and a backup would make them good again.
func closeTokens(ctx context.Context, path string) (err error) {
	s, err := store.Open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return s.Tx(ctx, func(tx *store.Tx) error { return tx.DeleteOpenTokens(ctx) })
}

// unpack writes the parts of an archive under their temporary names, and returns
// those of files that are in it: all, but for the master key, which the keys may
// not need. The recordings that it finds are added to files.
func unpack(r io.Reader, files map[string]string, dir string) (map[string]string, error) {
	got := make(map[string]string)
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("it is not a whole backup of lockboxd: %w", err)
		}
		if id, ok := recordingOf(h.Name); ok {
			files[h.Name] = filepath.Join(dir, recordings.FileName(id))
		}
		path := files[h.Name]
		if path == "" || got[h.Name] != "" || h.Typeflag != tar.TypeReg || h.Size > maxBackupFile {
			return nil, fmt.Errorf("it is not a backup of lockboxd: unexpected %q", h.Name)
		}
		got[h.Name] = path
		if err := writePart(path+restoring, archive, h.Size); err != nil {
			return nil, err
		}
	}
	var missing []string
	for _, name := range sortedNames(files) {
		if got[name] == "" && name != backupMaster {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("it is not a whole backup of lockboxd: %s missing", strings.Join(missing, ", "))
	}
	return got, nil
}

// recordingOf returns the recording that a part of a backup is.
func recordingOf(name string) (id string, ok bool) {
	file, ok := strings.CutPrefix(name, backupRecordings)
	id = strings.TrimSuffix(file, filepath.Ext(file))
	return id, ok && recording.ValidID(id) && file == recordings.FileName(id)
}

func writePart(path string, r io.Reader, size int64) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.CopyN(f, r, size); err != nil {
		return fmt.Errorf("it is cut short: %w", err)
	}
	return f.Sync()
}
