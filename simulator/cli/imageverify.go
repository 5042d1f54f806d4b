package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/simulator/image"
)

func imageVerifyCommand() *cobra.Command {
	var key keyFlags
	var out output
	c := &cobra.Command{
		Use:   "verify IMAGE",
		Short: "Check all of a volume that can be checked",
		Long: `Check all of a volume that can be checked.

Without a key: each of the three metadata copies by itself, its checksum, and whether all are of one age. With a key also
that it opens each, the hash sealed in each, the copy of the file system's beginning, and that the file system is where
that says. Sectors have no checksum: nobody can tell damage there.

Any damage is exit status 5, also where the volume still opens; changing a key makes damaged metadata copies whole again.`,
		Args: oneImage,
		RunE: func(c *cobra.Command, args []string) error { return imageVerify(c, args[0], &key, out) },
	}
	key.flags(c)
	out.flags(c)
	return c
}

func imageVerify(c *cobra.Command, path string, flags *keyFlags, out output) error {
	if err := out.check(); err != nil {
		return err
	}
	withKey := given(c, "recovery-password-file", "passphrase-file", "bek", "clear-key") > 0
	if withKey {
		if err := flags.check(c); err != nil {
			return err
		}
	}
	f, err := image.Open(path, image.Read)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := image.CheckRedo(path); err != nil {
		return err
	}
	var key bitlocker.Credential
	if withKey {
		if _, key, err = flags.open(c, f); err != nil {
			return err
		}
		defer wipe(key)
	}
	r, err := image.Verify(f, key)
	if err != nil {
		return volumeError{fmt.Errorf("cannot verify %s: %w", path, err)}
	}
	if err := printReport(c.OutOrStdout(), out, path, r); err != nil {
		return err
	}
	if len(r.Problems) > 0 {
		return volumeError{fmt.Errorf("%s: %w: %s", path, bitlocker.ErrDamaged, strings.Join(r.Problems, "; "))}
	}
	return nil
}

// reportView is what came of verifying a volume, as it is printed.
type reportView struct {
	Image      string         `json:"image"`
	ID         string         `json:"id"`
	OK         bool           `json:"ok"`
	Problems   []string       `json:"problems"`
	Metadata   []copyView     `json:"metadata"`
	Opened     *protectorView `json:"openedBy,omitempty"`
	FileSystem string         `json:"fileSystem,omitempty"`
}

type copyView struct {
	Offset    int64  `json:"offset"`
	Whole     bool   `json:"whole"`
	Genuine   *bool  `json:"genuine,omitempty"` // only known with a key
	Problem   string `json:"problem,omitempty"`
	NextNonce uint32 `json:"nextNonce"`
}

func printReport(w io.Writer, out output, path string, r image.Report) error {
	v := reportView{Image: path, ID: r.Info.ID.String(), OK: len(r.Problems) == 0, Problems: append([]string{}, r.Problems...), FileSystem: r.FileSystem}
	for i, c := range r.Copies {
		shown := copyView{Offset: r.Info.Metadata[i], Whole: c.Whole, Problem: c.Problem, NextNonce: c.NextNonce}
		if r.Opened != nil {
			shown.Genuine = &c.Genuine
		}
		v.Metadata = append(v.Metadata, shown)
	}
	if r.Opened != nil {
		p := newProtectorView(*r.Opened)
		v.Opened = &p
	}
	return out.print(w, v, v.text)
}

func (v reportView) text(w io.Writer) {
	fmt.Fprintf(w, "%-14s %s\n", "Volume:", v.ID)
	for i, c := range v.Metadata {
		fmt.Fprintf(w, "Metadata %d:    at %d, %s\n", i+1, c.Offset, printable(c.text()))
	}
	if v.Opened == nil {
		fmt.Fprintln(w, "Not checked:   seals, header copy and file system, which take a key")
	} else {
		fmt.Fprintf(w, "%-14s %s %s\n", "Opened by:", v.Opened.Kind, v.Opened.ID)
		fmt.Fprintf(w, "%-14s %s\n", "File system:", v.fileSystemText())
	}
	if v.OK {
		fmt.Fprintln(w, "No damage found.")
	}
}

func (v reportView) fileSystemText() string {
	if v.FileSystem == "" {
		return "none to be seen"
	}
	return v.FileSystem
}

func (c copyView) text() string {
	switch {
	case c.Problem != "":
		return "DAMAGED: " + c.Problem
	case c.Genuine != nil:
		return "whole and genuine"
	}
	return "whole"
}
