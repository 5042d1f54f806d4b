package shell

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/shell/files"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// copyBuffer is what is read at once of a file, in bytes.
const copyBuffer = 1 << 20

// eachInput opens every named file in turn, or the input if there is none; - is
// the input too.
func (t *task) eachInput(ctx context.Context, names []string, do func(name string, r io.Reader) error) error {
	if len(names) == 0 {
		names = []string{"-"}
	}
	return t.each(ctx, names, func(name string) error {
		if name == "-" {
			return do(name, t.in)
		}
		return t.withFile(ctx, name, func(f *files.File) error { return do(name, contextReader{ctx, f}) })
	})
}

// withFile opens a file and closes it, which records what was read.
func (t *task) withFile(_ context.Context, name string, do func(*files.File) error) error {
	f, err := t.files.Open(t.resolve(name))
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}

// pour copies all that r yields.
func pour(w io.Writer, r io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, copyBuffer))
	return err
}

func cat(ctx context.Context, t *task, args []string) error {
	line := 0
	return t.eachInput(ctx, args, func(_ string, r io.Reader) error {
		if !t.opts.has("n") {
			return pour(t.out, r)
		}
		return eachLine(r, func(text []byte) error {
			line++
			_, err := fmt.Fprintf(t.out, "%6d\t%s", line, text)
			return err
		})
	})
}

// eachLine calls do for each line, with its end. A line may come in pieces of 64
// KiB if it is longer.
func eachLine(r io.Reader, do func([]byte) error) error {
	b := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := b.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			err = nil
		}
		if len(line) > 0 {
			if err := do(line); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// title says which file comes, if there are several.
func (t *task) title(name string, first *bool, several bool) {
	if several && !t.opts.has("q") || t.opts.has("v") {
		if !*first {
			fmt.Fprintln(t.out)
		}
		if name == "-" {
			name = "standard input"
		}
		fmt.Fprintf(t.out, "==> %s <==\n", Visible(name))
	}
	*first = false
}

func head(ctx context.Context, t *task, args []string) error {
	lines, unit := !t.opts.has("c"), "10"
	if text, ok := t.opts['n']; ok {
		unit = text
	}
	if !lines {
		unit = t.opts['c']
	}
	n, err := parseSize(strings.TrimPrefix(unit, "-"))
	if err != nil {
		return err
	}
	first := true
	return t.eachInput(ctx, args, func(name string, r io.Reader) error {
		t.title(name, &first, len(args) > 1)
		switch {
		case strings.HasPrefix(unit, "-"):
			return ending{lines: lines, n: n}.allBut(t.out, r)
		case !lines:
			return pour(t.out, io.LimitReader(r, n))
		}
		return firstLines(t.out, r, n)
	})
}

// firstLines prints the first n lines.
func firstLines(w io.Writer, r io.Reader, n int64) error {
	if n == 0 {
		return nil
	}
	err := eachLine(r, func(text []byte) error {
		if _, err := w.Write(text); err != nil {
			return err
		}
		if text[len(text)-1] == '\n' {
			n--
		}
		if n == 0 {
			return errEnough
		}
		return nil
	})
	if err == errEnough {
		err = nil
	}
	return err
}

// allBut prints what comes before an ending.
func (e ending) allBut(w io.Writer, r io.Reader) error {
	if c, ok := r.(contextReader); ok {
		if f, ok := c.r.(*files.File); ok {
			info, err := f.Stat()
			if err != nil {
				return err
			}
			at, err := e.begin(f, info.Size())
			if err != nil {
				return err
			}
			return pour(w, io.LimitReader(r, at))
		}
	}
	var held []byte
	buf := make([]byte, 64<<10)
	for enough := copyBuffer; ; {
		n, err := r.Read(buf)
		held = append(held, buf[:n]...)
		if err == nil && len(held) < enough {
			continue
		}
		at, _ := e.begin(bytes.NewReader(held), int64(len(held)))
		if _, failed := w.Write(held[:at]); failed != nil {
			return failed
		}
		held = append(held[:0], held[at:]...)
		switch {
		case err != nil:
			return notEOF(err)
		case len(held) > maxTail:
			return fmt.Errorf("what is to be left out has more than %d bytes: name a file instead of a pipe", maxTail)
		}
		enough = 2*len(held) + copyBuffer
	}
}

var errEnough = errors.New("enough")

// maxTail bounds what tail keeps of what it cannot go back in, in bytes.
const maxTail = 64 << 20

// Following a file: how often to look, and for how long at most.
const (
	followEvery = 200 * time.Millisecond
	followTime  = time.Hour
)

func tail(ctx context.Context, t *task, args []string) error {
	letter, unit := byte('n'), "10"
	if t.opts.has("c") {
		letter = 'c'
	}
	if text, ok := t.opts[letter]; ok {
		unit = text
	}
	n, err := parseSize(strings.TrimLeft(unit, "+-"))
	if err != nil {
		return err
	}
	end := ending{lines: letter == 'n', from: strings.HasPrefix(unit, "+"), n: n}
	if t.opts.has("f") && len(args) != 1 {
		return usageError("-f follows one file")
	}
	first := true
	return t.eachInput(ctx, args, func(name string, r io.Reader) error {
		t.title(name, &first, len(args) > 1)
		c, _ := r.(contextReader)
		f, ok := c.r.(*files.File)
		if !ok {
			return end.ofStream(t.out, r)
		}
		if err := end.seek(f); err != nil {
			return err
		}
		if err := pour(t.out, r); err != nil || !t.opts.has("f") {
			return err
		}
		return t.follow(ctx, r)
	})
}

// follow prints what is appended to a file.
func (t *task) follow(ctx context.Context, r io.Reader) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	over := time.After(followTime)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-over:
			return fmt.Errorf("followed for %s: that is enough", followTime)
		case <-tick.C:
			if err := pour(t.out, r); err != nil {
				return err
			}
		}
	}
}

// ending is what tail prints: the last n lines or bytes, or all from the n-th on.
type ending struct {
	lines, from bool
	n           int64
}

// seek goes to where it begins in a file.
func (e ending) seek(f *files.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var at int64
	switch {
	case e.from && e.lines:
		at, err = skipLines(f, e.n-1)
	case e.from:
		at = max(0, e.n-1)
	default:
		at, err = e.begin(f, info.Size())
	}
	if err == nil {
		_, err = f.Seek(at, io.SeekStart)
	}
	return err
}

// begin returns where the last n lines or bytes begin in something of a size.
func (e ending) begin(f io.ReaderAt, size int64) (int64, error) {
	if e.lines {
		return lastLines(f, size, e.n)
	}
	return max(0, size-e.n), nil
}

// skipLines returns where the line after the first n begins.
func skipLines(r io.Reader, n int64) (at int64, err error) {
	if n <= 0 {
		return 0, nil
	}
	err = eachLine(r, func(text []byte) error {
		at += int64(len(text))
		if text[len(text)-1] == '\n' {
			n--
		}
		if n == 0 {
			return errEnough
		}
		return nil
	})
	if err == errEnough {
		err = nil
	}
	return at, err
}

// lastLines returns where the last n lines of a file of a size begin.
func lastLines(f io.ReaderAt, size, n int64) (int64, error) {
	if n == 0 {
		return size, nil
	}
	block := make([]byte, 64<<10)
	for end := size; end > 0; {
		begin := max(0, end-int64(len(block)))
		part := block[:end-begin]
		if _, err := f.ReadAt(part, begin); err != nil && err != io.EOF {
			return 0, err
		}
		for i := len(part) - 1; i >= 0; i-- {
			if part[i] != '\n' || begin+int64(i) == size-1 {
				continue
			}
			if n--; n == 0 {
				return begin + int64(i) + 1, nil
			}
		}
		end = begin
	}
	return 0, nil
}

// ofStream prints the ending of what can be read once only.
func (e ending) ofStream(w io.Writer, r io.Reader) error {
	if e.from {
		b := bufio.NewReaderSize(r, 64<<10)
		if e.lines {
			for left := e.n - 1; left > 0; {
				c, err := b.ReadByte()
				if err != nil {
					return notEOF(err)
				}
				if c == '\n' {
					left--
				}
			}
		} else if _, err := io.CopyN(io.Discard, b, max(0, e.n-1)); err != nil {
			return notEOF(err)
		}
		return pour(w, b)
	}
	var kept []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		kept = append(kept, buf[:n]...)
		if len(kept) > 2*maxTail {
			kept = append(kept[:0], kept[len(kept)-maxTail:]...)
		}
		if err != nil {
			if err != io.EOF {
				return err
			}
			break
		}
	}
	at, _ := e.begin(bytes.NewReader(kept), int64(len(kept)))
	_, err := w.Write(kept[at:])
	return err
}

func notEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

func sha256sum(ctx context.Context, t *task, args []string) error {
	if t.opts.has("c") {
		return t.checkSums(ctx, args)
	}
	return t.checksums(ctx, args, sha256.New, func(sum []byte) string { return hex.EncodeToString(sum) })
}

func crc64sum(ctx context.Context, t *task, args []string) error {
	return t.checksums(ctx, args, func() hash.Hash { return manifest.NewCRC64() }, func(sum []byte) string { return "0x" + hex.EncodeToString(sum) })
}

func (t *task) checksums(ctx context.Context, args []string, newHash func() hash.Hash, text func([]byte) string) error {
	return t.eachInput(ctx, args, func(name string, r io.Reader) error {
		h := newHash()
		if err := pour(h, r); err != nil {
			return err
		}
		_, err := fmt.Fprintf(t.out, "%s  %s\n", text(h.Sum(nil)), Visible(name))
		return err
	})
}

// checkSums compares files with the checksums of a list.
func (t *task) checkSums(ctx context.Context, lists []string) error {
	wrong := 0
	err := t.eachInput(ctx, lists, func(_ string, r io.Reader) error {
		return eachLine(r, func(line []byte) error {
			want, name, ok := strings.Cut(strings.TrimRight(string(line), "\r\n"), " ")
			if !ok || len(want) != 2*sha256.Size || len(name) < 2 {
				return fmt.Errorf("'%.80s' is no line of a list of checksums", line)
			}
			name = name[1:] // a space, or an asterisk
			verdict := "OK"
			err := t.withFile(ctx, name, func(f *files.File) error {
				h := sha256.New()
				err := pour(h, contextReader{ctx, f})
				if err == nil && !strings.EqualFold(hex.EncodeToString(h.Sum(nil)), want) {
					verdict, wrong = "FAILED", wrong+1
				}
				return err
			})
			if err != nil {
				if ends(ctx, err) {
					return err
				}
				t.complain(name, err)
				verdict, wrong = "FAILED open or read", wrong+1
			}
			_, err = fmt.Fprintf(t.out, "%s: %s\n", Visible(name), verdict)
			return err
		})
	})
	if err == nil && wrong > 0 {
		t.say("%s: %d computed checksums did NOT match", t.name, wrong)
		t.failed = true
	}
	return err
}

func hexdump(ctx context.Context, t *task, args []string) error {
	skip, err := t.number('s', 0)
	if err != nil {
		return err
	}
	length, err := t.number('n', 1<<62)
	if err != nil {
		return err
	}
	return t.eachInput(ctx, args, func(_ string, r io.Reader) error {
		if err := skipBytes(r, skip); err != nil {
			return err
		}
		return t.dump(bufio.NewReaderSize(io.LimitReader(r, length), copyBuffer), skip)
	})
}

// skipBytes goes on by so many bytes, without reading them if it can.
func skipBytes(r io.Reader, n int64) error {
	if c, ok := r.(contextReader); ok {
		if f, ok := c.r.(*files.File); ok {
			_, err := f.Seek(n, io.SeekStart)
			return err
		}
	}
	_, err := io.CopyN(io.Discard, r, n)
	return notEOF(err)
}

// dump prints lines as hexdump -C does.
func (t *task) dump(r io.Reader, offset int64) error {
	var line, before [16]byte
	starred := false
	for first := true; ; first = false {
		n, err := io.ReadFull(r, line[:])
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return err
		}
		if n == 0 {
			if !first {
				_, err = fmt.Fprintf(t.out, "%08x\n", offset)
				return err
			}
			return nil
		}
		if n == 16 && !first && line == before && !t.opts.has("v") {
			if !starred {
				fmt.Fprintln(t.out, "*")
			}
			starred = true
		} else {
			starred = false
			if _, err := fmt.Fprintf(t.out, "%08x  %-49s |%s|\n", offset, hexBytes(line[:n]), printable(line[:n])); err != nil {
				return err
			}
		}
		before, offset = line, offset+int64(n)
	}
}

func hexBytes(p []byte) string {
	var b strings.Builder
	for i, c := range p {
		if i == 8 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%02x ", c)
	}
	return b.String()
}

func printable(p []byte) string {
	out := make([]byte, len(p))
	for i, c := range p {
		out[i] = c
		if c < 0x20 || c > 0x7e {
			out[i] = '.'
		}
	}
	return string(out)
}

func fileCommand(ctx context.Context, t *task, args []string) error {
	if len(args) == 0 {
		return usageError("")
	}
	return t.each(ctx, args, func(name string) error {
		what, err := t.identify(t.resolve(name))
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(t.out, "%s: %s\n", Visible(name), what)
		return err
	})
}

// identify says what is in a file.
func (t *task) identify(full string) (string, error) {
	info, err := t.files.Lstat(full)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return kind(info.Mode()), nil
	}
	f, err := t.files.Open(full)
	if err != nil {
		return "", err
	}
	what, err := contentOf(f, info.Size())
	return what, errors.Join(err, f.Close())
}

// magics are what files begin with, by offset.
var magics = []struct {
	at   int64
	text string
	what string
}{
	{0, "vhdxfile", "VHDX disk image (dynamic)"},
	{0, "conectix", "VHD disk image (dynamic, or its footer is doubled)"},
	{0, "KDMV", "VMDK disk image"},
	{0, "QFI\xfb", "QCOW2 disk image"},
	{32769, "CD001", "ISO 9660 image"},
	{3, "-FVE-FS-", "BitLocker volume"},
	{3, "NTFS    ", "NTFS file system"},
	{512, "EFI PART", "raw disk image with a GPT"},
	{510, "\x55\xaa", "raw disk image with an MBR"},
	{0, "%PDF-", "PDF document"},
	{0, "PK\x03\x04", "ZIP archive, or a document of Office"},
	{0, "\x1f\x8b", "gzip compressed data"},
	{0, "7z\xbc\xaf\x27\x1c", "7-zip archive"},
	{0, "\xfd7zXZ\x00", "XZ compressed data"},
	{0, "\x28\xb5\x2f\xfd", "Zstandard compressed data"},
	{257, "ustar", "tar archive"},
	{0, "\x89PNG\r\n", "PNG image"},
	{0, "\xff\xd8\xff", "JPEG image"},
	{0, "GIF8", "GIF image"},
	{0, "MZ", "executable of Windows"},
	{0, "\x7fELF", "ELF executable"},
	{0, "SQLite format 3\x00", "SQLite database"},
}

func contentOf(f io.ReaderAt, size int64) (string, error) {
	if size == 0 {
		return "empty", nil
	}
	if footer := make([]byte, 8); size >= 512 {
		if _, err := f.ReadAt(footer, size-512); err != nil {
			return "", err
		}
		if string(footer) == "conectix" {
			return "VHD disk image (fixed), " + aligned(size), nil
		}
	}
	begin := make([]byte, 64<<10)
	n, err := f.ReadAt(begin, 0)
	if err != nil && err != io.EOF {
		return "", err
	}
	begin = begin[:n]
	for _, m := range magics {
		if int64(n) >= m.at+int64(len(m.text)) && string(begin[m.at:m.at+int64(len(m.text))]) == m.text {
			if strings.Contains(m.what, "image") {
				return m.what + ", " + aligned(size), nil
			}
			return m.what, nil
		}
	}
	return textKind(begin, size), nil
}

func aligned(size int64) string {
	text := strconv.FormatInt(size, 10) + " bytes"
	if size%512 == 0 {
		return text + ", a multiple of 512"
	}
	return text + ", not a multiple of 512"
}

func textKind(begin []byte, size int64) string {
	ends := ""
	if bytes.Contains(begin, []byte("\r\n")) {
		ends = ", with the line ends of Windows"
	}
	whole, _ := wholeRunes(begin)
	switch {
	case bytes.HasPrefix(begin, []byte("\xff\xfe")) || bytes.HasPrefix(begin, []byte("\xfe\xff")):
		return "UTF-16 text"
	case bytes.ContainsFunc(whole, func(r rune) bool { return r < 0x20 && !strings.ContainsRune("\t\n\r\f\x1b\b", r) || r == '\uFFFD' }):
		return "data, " + aligned(size)
	case bytes.HasPrefix(bytes.TrimLeft(begin, "\xef\xbb\xbf \r\n\t"), []byte("<?xml")):
		return "XML document" + ends
	case bytes.ContainsFunc(whole, func(r rune) bool { return r >= 0x80 }):
		return "UTF-8 text" + ends
	}
	return "ASCII text" + ends
}
