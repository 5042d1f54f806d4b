package shell

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/shell/files"
)

// What a fixed VHD is, "Virtual Hard Disk Image Format Specification" 1.0: the
// image of the disk, padded to whole sectors, then a footer of one sector. Page
// blobs have whole sectors and at most 8 TiB; disks of virtual machines in Azure
// have whole MiB.
const (
	vhdSector   = 512
	vhdMachine  = 1 << 20
	vhdMax      = 8 << 40
	vhdFixed    = 2
	vhdReserved = 2       // of the features: always set
	vhdVersion  = 1 << 16 // 1.0
	vhdNoOffset = 1<<64 - 1
)

// vhdEpoch is when the seconds of a VHD begin.
var vhdEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// vhdFooter makes the footer of a fixed disk of so many bytes.
func vhdFooter(size int64, id [16]byte, now time.Time) []byte {
	f := make([]byte, vhdSector)
	be := binary.BigEndian
	copy(f[0:], "conectix")
	be.PutUint32(f[8:], vhdReserved)
	be.PutUint32(f[12:], vhdVersion)
	be.PutUint64(f[16:], vhdNoOffset) // fixed disks have no other header
	be.PutUint32(f[24:], uint32(max(0, now.Sub(vhdEpoch)/time.Second)))
	copy(f[28:], "win ") // whose sizes readers believe; of creators they do not know they take the geometry
	be.PutUint32(f[32:], vhdVersion)
	copy(f[36:], "Wi2k") // the only host but the Mac that there is a name for
	be.PutUint64(f[40:], uint64(size))
	be.PutUint64(f[48:], uint64(size))
	cylinders, heads, sectors := vhdGeometry(size)
	be.PutUint16(f[56:], cylinders)
	f[58], f[59] = heads, sectors
	be.PutUint32(f[60:], vhdFixed)
	copy(f[68:], id[:])
	sum := uint32(0)
	for _, b := range f { // the field of the checksum is zero
		sum += uint32(b)
	}
	be.PutUint32(f[64:], ^sum)
	return f
}

// vhdGeometry is the calculation of the specification's appendix.
func vhdGeometry(size int64) (cylinders uint16, heads, sectors uint8) {
	total := min(size/vhdSector, 65535*16*255)
	spt, h, cth := int64(17), int64(0), int64(0)
	if total >= 65535*16*63 {
		spt, h, cth = 255, 16, total/255
	} else {
		cth = total / 17
		h = max(4, (cth+1023)/1024)
		if cth >= h*1024 || h > 16 {
			spt, h, cth = 31, 16, total/31
		}
		if cth >= h*1024 {
			spt, h, cth = 63, 16, total/63
		}
	}
	return uint16(cth / h), uint8(h), uint8(spt)
}

func convertVHD(ctx context.Context, t *task, args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return usageError("")
	}
	target := strings.TrimSuffix(args[0], path.Ext(args[0])) + ".vhd"
	if len(args) == 2 {
		target = args[1]
		if info, err := t.files.Stat(t.resolve(target)); err == nil && info.IsDir() {
			target = join(target, strings.TrimSuffix(path.Base(args[0]), path.Ext(args[0]))+".vhd")
		}
	}
	if t.resolve(target) == t.resolve(args[0]) {
		return fmt.Errorf("%s: name the VHD: it would be the image itself", target)
	}
	return t.withFile(ctx, args[0], func(f *files.File) error {
		info, err := f.Stat()
		if err != nil {
			return about(args[0], err)
		}
		unit := int64(vhdSector)
		if t.opts.has("m") {
			unit = vhdMachine
		}
		padded := (info.Size() + unit - 1) / unit * unit
		if err := mayConvert(f, info.Size(), padded); err != nil {
			return about(args[0], err)
		}
		fmt.Fprintf(t.out, "%s: %d bytes, %d of padding, a footer of %d\n%s: %d bytes\n",
			Visible(args[0]), info.Size(), padded-info.Size(), vhdSector, Visible(target), padded+vhdSector)
		if t.opts.has("n") {
			return nil
		}
		return t.writeVHD(ctx, f, info, target, padded)
	})
}

// mayConvert refuses what is no raw image.
func mayConvert(f io.ReaderAt, size, padded int64) error {
	if size == 0 {
		return errors.New("is empty")
	}
	if padded+vhdSector > vhdMax {
		return fmt.Errorf("has %d bytes: a page blob has at most %d", size, int64(vhdMax))
	}
	what, err := contentOf(f, size)
	if err == nil && strings.Contains(what, " disk image (") || strings.HasPrefix(what, "VMDK") || strings.HasPrefix(what, "QCOW") {
		return errors.New("is no raw image but a " + what)
	}
	return err
}

// writeVHD writes the image, padding and footer, and makes sure of them.
func (t *task) writeVHD(ctx context.Context, in *files.File, info fs.FileInfo, target string, padded int64) error {
	out, err := t.files.Replace(t.resolve(target))
	if err != nil {
		return about(target, err)
	}
	p := t.progress(target, padded+vhdSector)
	defer p.end()
	if err := fillVHD(ctx, in, out, info, padded, t.cfg.Now(), p); err != nil {
		return errors.Join(about(target, err), out.Abandon())
	}
	return out.Close()
}

func fillVHD(ctx context.Context, in, out *files.File, info fs.FileInfo, padded int64, now time.Time, p *progress) error {
	var id [16]byte
	rand.Read(id[:])
	h := sha256.New()
	all := io.MultiReader(
		contextReader{ctx, in},
		io.LimitReader(zeros{}, padded-info.Size()),
		strings.NewReader(string(vhdFooter(padded, id, now))),
	)
	n, err := io.CopyBuffer(io.MultiWriter(out, h, counter{p}), all, make([]byte, copyBuffer))
	if err != nil {
		return err
	}
	after, err := in.Stat()
	if err != nil {
		return err
	}
	if n != padded+vhdSector || after.Size() != info.Size() || !after.ModTime().Equal(info.ModTime()) {
		return files.ErrChanged
	}
	return out.Check(ctx, h.Sum(nil))
}

// zeros is an endless file of zero bytes.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// counter tells a progress of what is written.
type counter struct{ p *progress }

func (c counter) Write(b []byte) (int, error) {
	c.p.add(int64(len(b)))
	return len(b), nil
}
