package manifest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxPath is the longest path of a file, in bytes.
const maxPath = 32 << 10

// File is one file of a bill of materials.
type File struct {
	Path  string // relative to the share, with slashes; any bytes but NUL
	Size  int64  // bytes
	CRC64 uint64 // of the content; see [NewCRC64]
}

// BOM is the bill of materials of one share.
type BOM struct {
	Share    Share
	Previous string // digest of the bill before this one; "" for the first
	Files    []File // each path once, sorted by path
}

// Digest names a document by its bytes: "sha256:<hex>".
func Digest(document []byte) string {
	sum := sha256.Sum256(document)
	return "sha256:" + hex.EncodeToString(sum[:])
}

const (
	xmlHeader = `<?xml version="1.0" encoding="utf-8"?>` + "\n"
	bomEnd    = "</bom>\n"
)

var (
	bomHead    = regexp.MustCompile(`^<bom version="1" share="([^"]*)" previous="([^"]*)">$`)
	bomLine    = regexp.MustCompile(`^<file size="([0-9]{1,19})" crc64="0x([0-9a-f]{16})"( name_encoding="Base64")?>(.*)</file>$`)
	digestForm = regexp.MustCompile(`^(sha256:[0-9a-f]{64})?$`)
)

// Encode returns the bill as XML. The files need not be sorted; a path that is
// given twice, absolute or not clean is refused.
func (b BOM) Encode() ([]byte, error) {
	if _, err := ParseShare(b.Share.String()); err != nil {
		return nil, err
	}
	if !digestForm.MatchString(b.Previous) {
		return nil, invalid("%.100q is not a digest: want sha256:<64 hex digits>, or nothing", b.Previous)
	}
	var out bytes.Buffer
	out.WriteString(xmlHeader)
	fmt.Fprintf(&out, "<bom version=\"1\" share=\"%s\" previous=\"%s\">\n", b.Share, b.Previous)
	files := sorted(b.Files)
	for i, f := range files {
		if err := checkFile(f); err != nil {
			return nil, err
		}
		if i > 0 && files[i-1].Path == f.Path {
			return nil, invalid("file %.200q is listed twice", f.Path)
		}
		attr, text := encodePath(f.Path)
		fmt.Fprintf(&out, "<file size=\"%d\" crc64=\"0x%016x\"%s>%s</file>\n", f.Size, f.CRC64, attr, text)
	}
	out.WriteString(bomEnd)
	return out.Bytes(), nil
}

// ParseBOM reads what [BOM.Encode] writes, and nothing else.
func ParseBOM(data []byte) (BOM, error) {
	body, ok := strings.CutPrefix(string(data), xmlHeader)
	if !ok {
		return BOM{}, invalid("a bill of materials begins with %q", xmlHeader)
	}
	head, body, _ := strings.Cut(body, "\n")
	m := bomHead.FindStringSubmatch(head)
	if m == nil {
		return BOM{}, invalid("line 2 is not the head of a bill of materials")
	}
	share, err := ParseShare(m[1])
	if err != nil {
		return BOM{}, err
	}
	body, ok = strings.CutSuffix(body, bomEnd)
	if !ok {
		return BOM{}, invalid("the bill of materials does not end with %q: it was cut off", bomEnd)
	}
	b := BOM{Share: share, Previous: m[2]}
	for line := range strings.Lines(body) {
		f, err := parseFile(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return BOM{}, invalid("line %d: %v", len(b.Files)+3, err)
		}
		b.Files = append(b.Files, f)
	}
	return b, sameBytes(b, data)
}

// encoder is a document with one form only.
type encoder interface{ Encode() ([]byte, error) }

// sameBytes refuses data that is not the one form of the document read from it.
func sameBytes(doc encoder, data []byte) error {
	again, err := doc.Encode()
	if err != nil {
		return err
	}
	if !bytes.Equal(again, data) {
		return invalid("the document is not in canonical form")
	}
	return nil
}

func parseFile(line string) (File, error) {
	m := bomLine.FindStringSubmatch(line)
	if m == nil {
		return File{}, fmt.Errorf("%.200q is not a file of the expected form", line)
	}
	size, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return File{}, fmt.Errorf("%s is no size", m[1])
	}
	crc, err := strconv.ParseUint(m[2], 16, 64)
	if err != nil {
		return File{}, fmt.Errorf("%s is no CRC64", m[2])
	}
	path, err := decodePath(m[3] != "", unescape.Replace(m[4]))
	return File{path, size, crc}, err
}

func checkFile(f File) error {
	if f.Size < 0 {
		return invalid("file %.200q has the size %d", f.Path, f.Size)
	}
	return checkPath(f.Path)
}

func checkPath(path string) error {
	if path == "" || len(path) > maxPath || strings.Contains(path, "\x00") || hasOddPart(strings.Split(path, "/")) {
		return invalid("%.200q is not the path of a file: want it relative to the share, clean, at most %d bytes", path, maxPath)
	}
	return nil
}

// encodedAttr marks a path in base64, as the device's own error files do.
const encodedAttr = ` name_encoding="Base64"`

// encodePath returns the text of a path and the attribute that goes with it.
// A path is written with a backslash before each part. One that holds a
// backslash itself, or what XML cannot carry, is base64 of the path with
// slashes instead.
func encodePath(path string) (attr, text string) {
	if !utf8.ValidString(path) || strings.ContainsFunc(path, needsBase64) {
		return encodedAttr, base64.StdEncoding.EncodeToString([]byte("/" + path))
	}
	return "", escape.Replace(`\` + strings.ReplaceAll(path, "/", `\`))
}

func needsBase64(r rune) bool {
	return r == '\\' || r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\ufffe' || r == '\uffff'
}

// decodePath is the inverse of encodePath, text being already unescaped.
func decodePath(encoded bool, text string) (string, error) {
	sep := `\`
	if encoded {
		data, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return "", fmt.Errorf("%.200q is not base64", text)
		}
		sep, text = "/", string(data)
	}
	path, ok := strings.CutPrefix(text, sep)
	if !ok {
		return "", fmt.Errorf("path %.200q does not begin with %s", text, sep)
	}
	return strings.ReplaceAll(path, sep, "/"), nil
}

var (
	escape   = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;")
	unescape = strings.NewReplacer("&amp;", "&", "&lt;", "<", "&gt;", ">", "&quot;", `"`)
)

// Move is a file that has another place or content than before.
type Move struct {
	Old, New File
}

// Changes is how one bill of materials differs from the one before. Each list
// is sorted by the (new) path.
type Changes struct {
	Added   []File
	Removed []File
	Changed []Move // same path, other content
	Moved   []Move // same size and CRC64, other path
}

// String has one line per difference, none if nothing differs, for people. Paths are quoted where they
// hold anything that could deceive.
func (c Changes) String() string {
	var out strings.Builder
	for _, m := range c.Moved {
		fmt.Fprintf(&out, "moved %s to %s\n", quote(m.Old.Path), quote(m.New.Path))
	}
	for _, f := range c.Added {
		fmt.Fprintf(&out, "added %s (%d bytes)\n", quote(f.Path), f.Size)
	}
	for _, f := range c.Removed {
		fmt.Fprintf(&out, "removed %s (%d bytes)\n", quote(f.Path), f.Size)
	}
	for _, m := range c.Changed {
		fmt.Fprintf(&out, "changed %s (%d to %d bytes)\n", quote(m.New.Path), m.Old.Size, m.New.Size)
	}
	return out.String()
}

// quote returns path as it is if strconv.Quote has nothing to change in it.
func quote(path string) string {
	if q := strconv.Quote(path); q != `"`+path+`"` || strings.Contains(path, " ") {
		return q
	}
	return path
}

// Diff says how the files of newer differ from those of older. A file that
// vanished from one path and appeared at another with the same size and CRC64
// was moved; when several could be meant, they pair in order of their paths.
func Diff(older, newer BOM) Changes {
	var c Changes
	before := byPath(older.Files)
	after := byPath(newer.Files)
	for _, f := range sorted(older.Files) {
		now, ok := after[f.Path]
		if !ok {
			c.Removed = append(c.Removed, f)
		} else if now != f {
			c.Changed = append(c.Changed, Move{f, now})
		}
	}
	for _, f := range sorted(newer.Files) {
		if _, ok := before[f.Path]; !ok {
			c.Added = append(c.Added, f)
		}
	}
	c.pairMoves()
	return c
}

// pairMoves turns pairs of Removed and Added into Moved.
func (c *Changes) pairMoves() {
	type content struct {
		size int64
		crc  uint64
	}
	gone := make(map[content][]File)
	for _, f := range c.Removed {
		key := content{f.Size, f.CRC64}
		gone[key] = append(gone[key], f)
	}
	moved := make(map[string]bool)
	c.Added = slices.DeleteFunc(c.Added, func(f File) bool {
		key := content{f.Size, f.CRC64}
		if len(gone[key]) == 0 {
			return false
		}
		c.Moved = append(c.Moved, Move{gone[key][0], f})
		moved[gone[key][0].Path] = true
		gone[key] = gone[key][1:]
		return true
	})
	c.Removed = slices.DeleteFunc(c.Removed, func(f File) bool { return moved[f.Path] })
}

func byPath(files []File) map[string]File {
	m := make(map[string]File, len(files))
	for _, f := range files {
		m[f.Path] = f
	}
	return m
}

func sorted(files []File) []File {
	return slices.SortedFunc(slices.Values(files), func(x, y File) int { return cmp.Compare(x.Path, y.Path) })
}
