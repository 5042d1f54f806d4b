package cli

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/simulator/image"
)

const imageLong = `Make, read, check and re-key BitLocker images.

  create      make a volume with an NTFS in it
  inspect     show what a volume tells without a key
  verify      check all of a volume that can be checked
  cat         write the decrypted view to standard output
  add-key     add a key, replace one, or suspend protection
  remove-key  remove a key

Keys come from files ('-' is standard input) or are asked for at the terminal, never from the command line. One newline
at the end of a file and a byte order mark at its beginning are no part of the key; files are UTF-8 (or UTF-16 with its mark).

Exit status:
  0  done
  1  anything else: files, rights, an image that is open elsewhere, interrupted
  2  wrong use of the command
  3  wrong key: it opens no protector of the volume, or is none
  4  a kind of volume that is refused, such as encrypt-on-write or a running conversion
  5  damaged beyond all copies, truncated, or no BitLocker volume at all; for 'verify', damaged anywhere`

func imageCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "image",
		Short: "Make, read, check and re-key BitLocker images",
		Long:  imageLong,
		Args:  noArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(imageCreateCommand(), imageInspectCommand(), imageVerifyCommand(), imageCatCommand(), imageAddKeyCommand(), imageRemoveKeyCommand())
	return c
}

// oneImage demands exactly one argument, the image.
func oneImage(c *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return usagef("%s needs an image; see '%s --help'", c.CommandPath(), c.CommandPath())
	case len(args) > 1:
		return usagef("%s takes one image, not also %q; see '%s --help'", c.CommandPath(), args[1:], c.CommandPath())
	}
	return nil
}

// output is the form in which a command prints what it has to say.
type output struct{ format string }

func (o *output) flags(c *cobra.Command) {
	c.Flags().StringVarP(&o.format, "output", "o", "text", "form of the output: text or json")
}

func (o output) check() error {
	if o.format != "text" && o.format != "json" {
		return usagef("--output %q: want text or json", o.format)
	}
	return nil
}

// print writes v as JSON, or what text writes.
func (o output) print(w io.Writer, v any, text func(io.Writer)) error {
	if o.format == "json" {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	var b strings.Builder
	text(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// volumeView is what a volume tells, as it is printed. Sizes and offsets are bytes.
type volumeView struct {
	Image       string          `json:"image"`
	Version     int             `json:"version"`
	ID          string          `json:"id"`
	ToGo        bool            `json:"toGo"`
	Description string          `json:"description"`
	Created     time.Time       `json:"created"`
	Size        int64           `json:"size"`
	Encrypted   int64           `json:"encryptedSize"`
	SectorSize  int             `json:"sectorSize"`
	Method      string          `json:"method"`
	Cipher      string          `json:"cipher"` // as Linux names it
	KeyBits     int             `json:"keyBits"`
	KeyData     int             `json:"keyData"`
	State       uint16          `json:"state"`
	NextState   uint16          `json:"nextState"`
	NextNonce   uint32          `json:"nextNonce"`
	Protectors  []protectorView `json:"protectors"`
	Metadata    []areaView      `json:"metadata"`
	Header      areaView        `json:"header"`
	Refused     *refusedView    `json:"refused,omitempty"`
}

type protectorView struct {
	ID       string    `json:"id"`
	Kind     string    `json:"kind"` // as --kind takes it
	Name     string    `json:"name,omitempty"`
	Modified time.Time `json:"modified"`
	Salt     string    `json:"salt,omitempty"`
	KeyData  int       `json:"keyData"`
}

type areaView struct {
	Offset int64  `json:"offset"`
	Size   int64  `json:"size"`
	Damage string `json:"damage,omitempty"`
}

type refusedView struct {
	Kind   bitlocker.Refusal `json:"kind"`
	Reason string            `json:"reason"`
}

// linuxCiphers are the kernel's names, which cryptsetup prints.
var linuxCiphers = map[bitlocker.Method]string{
	bitlocker.AES128Elephant: "aes-cbc-elephant", bitlocker.AES256Elephant: "aes-cbc-elephant",
	bitlocker.AES128CBC: "aes-cbc-eboiv", bitlocker.AES256CBC: "aes-cbc-eboiv",
	bitlocker.AES128XTS: "aes-xts-plain64", bitlocker.AES256XTS: "aes-xts-plain64",
}

// cipherBits is the length of a method's key as cryptsetup counts it: XTS takes
// two keys, and the diffuser's key counts, too.
func cipherBits(m bitlocker.Method) int {
	switch m {
	case bitlocker.AES128CBC:
		return 128
	case bitlocker.AES128Elephant, bitlocker.AES256CBC, bitlocker.AES128XTS:
		return 256
	case bitlocker.AES256Elephant, bitlocker.AES256XTS:
		return 512
	}
	return 0
}

const metadataVersion = 2

func newVolumeView(path string, info bitlocker.Info) volumeView {
	v := volumeView{
		Image: path, Version: metadataVersion, ID: info.ID.String(), ToGo: info.ToGo, Description: info.Description, Created: info.Created.UTC(),
		Size: info.Size, Encrypted: info.EncryptedSize, SectorSize: info.SectorSize,
		Method: info.Method.String(), Cipher: linuxCiphers[info.Method], KeyBits: cipherBits(info.Method), KeyData: info.KeyData,
		State: info.State, NextState: info.NextState, NextNonce: info.NextNonce,
		Protectors: []protectorView{}, Header: areaView{Offset: info.HeaderCopy, Size: info.HeaderSize},
	}
	for _, p := range info.Protectors {
		v.Protectors = append(v.Protectors, newProtectorView(p))
	}
	for i, at := range info.Metadata {
		v.Metadata = append(v.Metadata, areaView{at, image.MetadataSize, info.Damage[i]})
	}
	if info.Refused != nil {
		v.Refused = &refusedView{info.Refused.Kind, info.Refused.Reason}
	}
	return v
}

func newProtectorView(p bitlocker.Protector) protectorView {
	v := protectorView{ID: p.ID.String(), Kind: kindWord(p.Kind), Name: p.Name, Modified: p.Modified.UTC(), KeyData: p.KeyData}
	if p.Salt != [16]byte{} {
		v.Salt = hex.EncodeToString(p.Salt[:])
	}
	return v
}

// kindWord is a kind of protector as one word.
func kindWord(k bitlocker.ProtectorKind) string {
	return strings.ReplaceAll(strings.ToLower(k.String()), " ", "-")
}

// times are printed as Windows keeps them, in UTC.
const timeForm = "2006-01-02 15:04:05 UTC"

func (v volumeView) text(w io.Writer) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-14s %s\n", name+":", printable(fmt.Sprintf(format, args...)))
	}
	line("Image", "%s", v.Image)
	kind := "BitLocker"
	if v.ToGo {
		kind = "BitLocker To Go"
	}
	line("Kind", "%s", kind)
	line("Version", "%d", v.Version)
	line("ID", "%s", v.ID)
	line("Description", "%s", v.Description)
	line("Created", "%s", v.Created.Format(timeForm))
	line("Size", "%d bytes", v.Size)
	line("Encrypted", "%d bytes", v.Encrypted)
	line("Sector size", "%d bytes", v.SectorSize)
	line("Method", "%s", v.Method)
	line("Cipher", "%s, %d bits of key", v.Cipher, v.KeyBits)
	line("State", "%s", v.stateText())
	line("Next nonce", "%d", v.NextNonce)
	if v.Refused != nil {
		line("Refused", "%s: %s", v.Refused.Kind, v.Refused.Reason)
	}
	fmt.Fprintln(w, "\nProtectors:")
	for i, p := range v.Protectors {
		p.text(w, i)
	}
	fmt.Fprintf(w, "  volume key   %d bytes of key data\n", v.KeyData)
	fmt.Fprintln(w, "\nAreas, in bytes:")
	for i, a := range v.Metadata {
		fmt.Fprintf(w, "  metadata %d   at %-12d size %-8d %s\n", i+1, a.Offset, a.Size, printable(a.damageText()))
	}
	fmt.Fprintf(w, "  header       at %-12d size %-8d %s\n", v.Header.Offset, v.Header.Size, v.Cipher)
}

func (v volumeView) stateText() string {
	if v.State == v.NextState {
		return fmt.Sprint(v.State)
	}
	return fmt.Sprintf("%d, going to %d", v.State, v.NextState)
}

func (p protectorView) text(w io.Writer, i int) {
	fmt.Fprintf(w, "  %d  %s  %s\n", i, p.ID, p.Kind)
	if p.Name != "" {
		fmt.Fprintf(w, "     name     %s\n", printable(p.Name))
	}
	fmt.Fprintf(w, "     modified %s\n", p.Modified.Format(timeForm))
	if p.Salt != "" {
		fmt.Fprintf(w, "     salt     %s\n", p.Salt)
	}
	fmt.Fprintf(w, "     key data %d bytes\n", p.KeyData)
}

func (a areaView) damageText() string {
	if a.Damage == "" {
		return "whole"
	}
	return "DAMAGED: " + a.Damage
}

// printable keeps what a volume says of itself from playing with the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069' {
			return '\ufffd'
		}
		return r
	}, s)
}
