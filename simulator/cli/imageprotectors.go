package cli

import (
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/simulator/image"
)

func imageAddKeyCommand() *cobra.Command {
	var key keyFlags
	var add newKeyFlags
	var out output
	var replace string
	c := &cobra.Command{
		Use:   "add-key IMAGE",
		Short: "Add a key to a volume, replace one, or suspend protection",
		Long: `Add a key to a volume, or replace one, without encrypting it again: give a key that opens it, and one --new- key.

Power loss at any moment leaves a volume that opens with the old keys or the new ones. A new key is in its file before the
volume depends on it. --new-clear-key suspends protection until 'remove-key --kind clear-key'. Replacing a key does not
change the one that the sectors are encrypted with.`,
		Example: `  databox-sim image add-key disk.img --recovery-password-file key.txt --new-bek-dir .
  databox-sim image add-key disk.img --recovery-password-file key.txt --new-recovery-password-file next.txt \
      --replace 294BC732-F82F-404C-A2CE-D1094ED59506`,
		Args: oneImage,
		RunE: func(c *cobra.Command, args []string) error {
			return addKey(c, args[0], &key, &add, replace, out)
		},
	}
	key.flags(c)
	add.flags(c, "new-")
	c.Flags().StringVar(&replace, "replace", "", "remove the protector with this ID in the same step")
	out.flags(c)
	return c
}

func addKey(c *cobra.Command, path string, key *keyFlags, add *newKeyFlags, replace string, out output) error {
	switch n := add.count(c); {
	case n == 0:
		return usagef("no new key: give one of %s", add.names())
	case n > 1:
		return usagef("give only one of %s", add.names())
	}
	if err := add.check(c.OutOrStdout(), out, key.recovery, key.passphrase, key.bek); err != nil {
		return err
	}
	var change bitlocker.ProtectorChange
	if replace != "" {
		id, err := bitlocker.ParseGUID(strings.Trim(replace, "{}"))
		if err != nil {
			return usagef("--replace: %v", err)
		}
		change.Remove = []bitlocker.GUID{id}
	}
	return changeKeys(c, path, key, out, func(v *bitlocker.Volume) (bitlocker.ProtectorChange, *newKeys, error) {
		keys, err := add.make(c)
		if err == nil {
			change.Add = keys.protectors
		}
		return change, keys, err
	})
}

func imageRemoveKeyCommand() *cobra.Command {
	var key keyFlags
	var out output
	var id, kind string
	c := &cobra.Command{
		Use:   "remove-key IMAGE",
		Short: "Remove a key from a volume",
		Long: `Remove a key from a volume: give one that opens it, and which to remove. The last one that can open it stays.

Who had the key of the volume itself keeps that: what was encrypted is not encrypted again.`,
		Example: `  databox-sim image remove-key disk.img --recovery-password-file key.txt --kind external-key
  databox-sim image remove-key disk.img --bek 294BC732-F82F-404C-A2CE-D1094ED59506.BEK --id 4F6AE327-F4CF-470B-A6F6-9DE8FDB7C051`,
		Args: oneImage,
		RunE: func(c *cobra.Command, args []string) error {
			remove, err := parseRemove(c, id, kind)
			if err != nil {
				return err
			}
			return changeKeys(c, args[0], &key, out, func(v *bitlocker.Volume) (bitlocker.ProtectorChange, *newKeys, error) {
				id, err := remove(v.Info().Protectors)
				return bitlocker.ProtectorChange{Remove: []bitlocker.GUID{id}}, &newKeys{}, err
			})
		},
	}
	key.flags(c)
	c.Flags().StringVar(&id, "id", "", "remove the protector with this ID; 'inspect' shows them")
	c.Flags().StringVar(&kind, "kind", "", "remove the only protector of this kind, such as recovery-password, passphrase, external-key, clear-key, tpm")
	out.flags(c)
	return c
}

// parseRemove returns what finds the protector to remove.
func parseRemove(c *cobra.Command, id, kind string) (func([]bitlocker.Protector) (bitlocker.GUID, error), error) {
	switch n := given(c, "id", "kind"); {
	case n != 1:
		return nil, usagef("give one of --id and --kind")
	case kind != "":
		return func(all []bitlocker.Protector) (bitlocker.GUID, error) { return onlyOfKind(all, kind) }, nil
	}
	want, err := bitlocker.ParseGUID(strings.Trim(id, "{}"))
	if err != nil {
		return nil, usagef("--id: %v", err)
	}
	return func([]bitlocker.Protector) (bitlocker.GUID, error) { return want, nil }, nil
}

func onlyOfKind(all []bitlocker.Protector, kind string) (bitlocker.GUID, error) {
	var kinds []string
	var found []bitlocker.Protector
	for _, p := range all {
		kinds = append(kinds, kindWord(p.Kind))
		if kindWord(p.Kind) == strings.ToLower(kind) {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		slices.Sort(kinds)
		return bitlocker.GUID{}, fmt.Errorf("no protector of kind %q: there are %s", kind, strings.Join(slices.Compact(kinds), ", "))
	case 1:
		return found[0].ID, nil
	}
	return bitlocker.GUID{}, fmt.Errorf("%d protectors of kind %q: say which with --id; 'databox-sim image inspect' shows them", len(found), kind)
}

// changeKeys opens a volume for itself, changes its protectors as plan says, and
// prints what there is then.
func changeKeys(c *cobra.Command, path string, key *keyFlags, out output, plan func(*bitlocker.Volume) (bitlocker.ProtectorChange, *newKeys, error)) error {
	if err := out.check(); err != nil {
		return err
	}
	if err := key.check(c); err != nil {
		return err
	}
	f, err := image.Open(path, image.Change)
	if err != nil {
		return err
	}
	defer f.Close()
	v, secret, err := key.open(c, f)
	if err != nil {
		return err
	}
	defer wipe(secret)
	change, keys, err := plan(v)
	if err != nil {
		return err
	}
	defer keys.wipe()
	change.Rand, change.Now = rand.Reader, time.Now()
	if err := v.ChangeProtectors(secret, change); err != nil {
		if !onVolume(f, keys) {
			err = keys.drop(err)
		}
		return volumeError{fmt.Errorf("%s: %w", path, err)}
	}
	info, err := bitlocker.Inspect(f, f.Size)
	if err != nil {
		return volumeError{err}
	}
	return printChange(c.OutOrStdout(), out, newVolumeView(path, info), keys, change.Remove)
}

// onVolume reports whether a change that failed may have put keys on the volume.
func onVolume(f image.File, keys *newKeys) bool {
	info, err := bitlocker.Inspect(f, f.Size)
	return err != nil || slices.ContainsFunc(info.Protectors, func(p bitlocker.Protector) bool {
		return slices.ContainsFunc(keys.protectors, func(k bitlocker.ProtectorKey) bool { return k.ID == p.ID })
	})
}

func printChange(w io.Writer, out output, v volumeView, keys *newKeys, removed []bitlocker.GUID) error {
	all := struct {
		Image      string          `json:"image"`
		ID         string          `json:"id"`
		Added      []addedView     `json:"added"`
		Removed    []string        `json:"removed"`
		Protectors []protectorView `json:"protectors"`
	}{v.Image, v.ID, append([]addedView{}, keys.added...), []string{}, v.Protectors}
	for _, id := range removed {
		all.Removed = append(all.Removed, id.String())
	}
	return out.print(w, all, func(w io.Writer) {
		for _, id := range all.Removed {
			fmt.Fprintf(w, "Removed %s\n", id)
		}
		keys.text(w)
		fmt.Fprintln(w, "\nProtectors:")
		for i, p := range v.Protectors {
			p.text(w, i)
		}
	})
}
