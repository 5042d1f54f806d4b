package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/simulator/image"
)

// newKeyFlags say which keys a volume gets.
type newKeyFlags struct {
	prefix                       string // of the flags' names
	recovery, passphrase, bekDir string
	clear, show                  bool
}

func (n *newKeyFlags) flags(c *cobra.Command, prefix string) {
	n.prefix = prefix
	f := c.Flags()
	f.StringVar(&n.recovery, prefix+"recovery-password-file", "", "give it the recovery password in this file; if there is no such file, a new one is drawn and written to it, mode 0600")
	f.StringVar(&n.passphrase, prefix+"passphrase-file", "", "give it the passphrase in this file")
	f.StringVar(&n.bekDir, prefix+"bek-dir", "", "give it a new external key, and write its .BEK file into this folder, mode 0600")
	f.BoolVar(&n.clear, prefix+"clear-key", false, "suspend protection: the volume carries its key in clear")
	f.BoolVar(&n.show, "show", false, "show the new recovery password at the terminal; alone, it is kept in no file")
}

// count returns how many keys the flags ask for.
func (n *newKeyFlags) count(c *cobra.Command) int {
	keys := given(c, n.prefix+"recovery-password-file", n.prefix+"passphrase-file", n.prefix+"bek-dir", n.prefix+"clear-key")
	if n.show && n.recovery == "" {
		keys++
	}
	return keys
}

// names lists the flags.
func (n *newKeyFlags) names() string {
	p := "--" + n.prefix
	return fmt.Sprintf("%srecovery-password-file, %spassphrase-file, %sbek-dir, %sclear-key and --show", p, p, p, p)
}

// check refuses what cannot work, or would put a secret into a file or a log by
// way of standard output. An input named "-" can be read only once.
func (n *newKeyFlags) check(out io.Writer, o output, inputs ...string) error {
	stdin := slices.DeleteFunc(append(inputs, n.recovery, n.passphrase), func(s string) bool { return s != "-" })
	switch {
	case len(stdin) > 1:
		return usagef("only one key can come from standard input")
	case n.show && (o.format != "text" || !isTerminal(out)):
		return usagef("--show is for a terminal: write the recovery password to a file with --%srecovery-password-file", n.prefix)
	}
	return nil
}

// newKeys are keys for a volume, and what was made of them.
type newKeys struct {
	protectors []bitlocker.ProtectorKey
	added      []addedView
	files      []string // that were written
	shown      string   // a recovery password, if it is to be shown
}

// addedView is a new protector, as it is printed.
type addedView struct {
	ID      string `json:"id"`
	Kind    string `json:"kind"`
	File    string `json:"file,omitempty"` // that holds the key
	Written bool   `json:"written"`        // the file is new
}

func (k *newKeys) wipe() {
	for _, p := range k.protectors {
		wipe(p.Key)
	}
}

// drop removes the files that were written, of keys that open nothing, after err.
func (k *newKeys) drop(err error) error {
	for _, file := range k.files {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}

// make reads and draws the keys, and writes to files those that are new, before
// any volume depends on them.
func (n *newKeyFlags) make(c *cobra.Command) (_ *newKeys, err error) {
	k := &newKeys{}
	defer func() {
		if err != nil {
			k.wipe()
			err = k.drop(err)
		}
	}()
	if n.bekDir != "" {
		if err := n.addBEK(k); err != nil {
			return nil, err
		}
	}
	if n.passphrase != "" {
		key, err := readPassphrase(n.passphrase, c.InOrStdin())
		if err == nil {
			_, err = k.add(key, bitlocker.PassphraseProtector, n.passphrase, false)
		}
		if err != nil {
			return nil, notNew(err)
		}
	}
	if n.recovery != "" || n.show {
		if err := n.addRecoveryPassword(c, k); err != nil {
			return nil, err
		}
	}
	if n.clear {
		if _, err := k.add(bitlocker.ClearKey{}, bitlocker.ClearKeyProtector, "", false); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// notNew has a key that is to be new, and is none, be no wrong key.
func notNew(err error) error {
	var volume volumeError
	if errors.As(err, &volume) {
		return fmt.Errorf("cannot use the new key: %w", volume.error)
	}
	return err
}

func (k *newKeys) add(key bitlocker.Credential, kind bitlocker.ProtectorKind, file string, written bool) (bitlocker.GUID, error) {
	id, err := bitlocker.NewGUID(rand.Reader)
	if err != nil {
		wipe(key)
		return id, err
	}
	k.protectors = append(k.protectors, bitlocker.ProtectorKey{ID: id, Key: key})
	k.added = append(k.added, addedView{ID: id.String(), Kind: kindWord(kind), File: file, Written: written})
	return id, nil
}

func (n *newKeyFlags) addBEK(k *newKeys) error {
	key, err := bitlocker.GenerateExternalKey(rand.Reader)
	if err != nil {
		return err
	}
	id, err := k.add(key, bitlocker.ExternalKeyProtector, "", true)
	if err != nil {
		return err
	}
	bek := bitlocker.NewBEK(id, key, time.Now())
	file := filepath.Join(n.bekDir, bek.FileName())
	k.added[len(k.added)-1].File = file
	b := bek.Encode()
	defer clear(b)
	return k.write(file, b)
}

func (n *newKeyFlags) addRecoveryPassword(c *cobra.Command, k *newKeys) error {
	_, err := os.Lstat(n.recovery)
	written := n.recovery != "" && n.recovery != "-" && errors.Is(err, fs.ErrNotExist)
	if n.recovery != "" && !written {
		key, err := readRecoveryPassword(n.recovery, c.InOrStdin())
		if err == nil {
			_, err = k.add(key, bitlocker.RecoveryPasswordProtector, n.recovery, false)
		}
		if err != nil {
			return notNew(err)
		}
		return nil
	}
	key, err := bitlocker.GenerateRecoveryPassword(rand.Reader)
	if err != nil {
		return err
	}
	if _, err := k.add(key, bitlocker.RecoveryPasswordProtector, n.recovery, written); err != nil {
		return err
	}
	if n.show {
		k.shown = key.Reveal()
	}
	if !written {
		return nil
	}
	b := []byte(key.Reveal() + "\n")
	defer clear(b)
	return k.write(n.recovery, b)
}

// write makes a file that only its owner can read, durably.
func (k *newKeys) write(file string, b []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("cannot write the key: %w", err)
	}
	k.files = append(k.files, file)
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close(), image.SyncFolder(file)); err != nil {
		return fmt.Errorf("cannot write the key: %w", err)
	}
	return nil
}

// text says what keys were added, and where they are.
func (k *newKeys) text(w io.Writer) {
	for _, a := range k.added {
		fmt.Fprintf(w, "Added %s  %s%s\n", a.ID, a.Kind, a.where())
	}
	if k.shown != "" {
		fmt.Fprintf(w, "\nRecovery password: %s\n", k.shown)
	}
}

func (a addedView) where() string {
	switch {
	case a.File == "":
		return ""
	case a.Written:
		return ", written to " + a.File
	}
	return ", read from " + a.File
}
