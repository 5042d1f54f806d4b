package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
)

// Report is what came of checking a volume.
type Report struct {
	Info   bitlocker.Info
	Copies [3]Copied

	// With a key only:
	Opened     *bitlocker.Protector // which one
	FileSystem string               // in the decrypted view: "NTFS", "FAT" or "exFAT"

	Problems []string // what is damaged, in words; empty if nothing
}

// Copied is one copy of the metadata.
type Copied struct {
	Whole     bool   // its checksum fits, and the volume opens by it alone
	Problem   string // why it does not count, or empty
	NextNonce uint32 // of the newest copy, unless a change of keys was interrupted
	Genuine   bool   // its sealed hash fits; only known with a key
}

// Verify checks all of a volume that can be checked: the metadata copies, each by
// itself; and with a key, which may be nil, their seals, the copy of the file
// system's beginning, and whether the file system is where that says. Sectors have
// no checksum: what else is damaged nobody can tell.
//
// Errors are those of Inspect and, with a key, of Unlock; damage that does not
// keep the volume from opening is in the report.
func Verify(f File, key bitlocker.Credential) (Report, error) {
	var r Report
	var err error
	if r.Info, err = bitlocker.Inspect(f, f.Size); err != nil {
		return r, err
	}
	attempts := make([]bitlocker.Attempt, 0, 1+len(r.Copies))
	var copies []int
	for i := range r.Copies {
		v, err := r.copy(f, i)
		switch {
		case bitlocker.ClassOf(err) == bitlocker.ClassRefused:
			continue // what refuses the volume is no damage
		case err != nil:
			r.Copies[i].Problem = problem(err)
			r.addf("metadata copy %d: %s", i+1, r.Copies[i].Problem)
			continue
		}
		r.Copies[i].Whole, r.Copies[i].NextNonce = true, v.Info().NextNonce
		attempts, copies = append(attempts, bitlocker.Attempt{Volume: v, Credential: key}), append(copies, i)
	}
	r.checkAges()
	volume, err := bitlocker.Open(f, f.Size)
	switch {
	case err != nil:
		return r, err
	case r.Info.Refused != nil:
		return r, r.Info.Refused
	case key == nil:
		return r, nil
	}
	attempts = append(attempts, bitlocker.Attempt{Volume: volume, Credential: key})
	unlocked := bitlocker.UnlockAll(attempts)
	defer func() {
		for _, u := range unlocked {
			if u.Plaintext != nil {
				u.Plaintext.Wipe()
			}
		}
	}()
	for n, i := range copies {
		r.checkSeal(i, unlocked[n].Err)
	}
	last := unlocked[len(copies)]
	if last.Err != nil {
		return r, last.Err
	}
	opened := last.Plaintext.Protector()
	r.Opened = &opened
	if r.FileSystem, err = checkFileSystem(last.Plaintext); err != nil {
		r.addf("file system: %v", err)
	}
	return r, nil
}

func (r *Report) addf(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// copy opens the volume by copy i of its metadata alone.
func (r *Report) copy(f File, i int) (*bitlocker.Volume, error) {
	alone := onlyCopy{f, nil}
	for j, at := range r.Info.Metadata {
		if j != i {
			alone.hidden = append(alone.hidden, at)
		}
	}
	if r.Info.Damage[i] != "" {
		return nil, errors.New(r.Info.Damage[i])
	}
	return bitlocker.Open(alone, f.Size)
}

// problem is what is wrong with one copy; that the others are hidden is no news.
func problem(err error) string {
	if bitlocker.ClassOf(err) == bitlocker.ClassDamaged && !errors.Is(err, bitlocker.ErrTruncated) {
		return "the boot sector does not lead to it"
	}
	return err.Error()
}

// checkAges finds copies that a change of keys did not reach.
func (r *Report) checkAges() {
	for i, c := range r.Copies {
		if c.Problem == "" && c.NextNonce != r.Info.NextNonce {
			r.addf("metadata copy %d: of another age; a change of keys was interrupted", i+1)
		}
	}
}

func (r *Report) checkSeal(i int, err error) {
	switch {
	case err == nil:
		r.Copies[i].Genuine = true
	case bitlocker.ClassOf(err) == bitlocker.ClassWrongKey:
		r.Copies[i].Problem = "the key does not open it"
	default:
		r.Copies[i].Problem = err.Error()
	}
	if err != nil {
		r.addf("metadata copy %d: %s", i+1, r.Copies[i].Problem)
	}
}

// onlyCopy is an image in which all metadata areas but one are hidden.
type onlyCopy struct {
	io.ReaderAt
	hidden []int64
}

// ReadAt implements [io.ReaderAt], with zeros for what is hidden.
func (o onlyCopy) ReadAt(b []byte, off int64) (int, error) {
	n, err := o.ReaderAt.ReadAt(b, off)
	for _, at := range o.hidden {
		start, end := max(at-off, 0), min(at+MetadataSize-off, int64(n))
		if start < end {
			clear(b[start:end])
		}
	}
	return n, err
}

// checkFileSystem looks at a decrypted view's beginning, which lies elsewhere in
// the image than the rest, and whether the rest agrees with it.
func checkFileSystem(p *bitlocker.Plaintext) (string, error) {
	boot := make([]byte, ntfsBootSize)
	if _, err := p.ReadAt(boot, 0); err != nil {
		return "", err
	}
	switch {
	case !bytes.Equal(boot[510:], []byte{0x55, 0xAA}):
	case string(boot[3:11]) == ntfsName:
		return "NTFS", checkNTFS(p, boot)
	case string(boot[54:57]) == "FAT", string(boot[82:85]) == "FAT":
		return "FAT", nil
	case string(boot[3:11]) == "EXFAT   ":
		return "exFAT", nil
	}
	return "", errors.New("the decrypted view begins with no NTFS, FAT or exFAT")
}

// checkNTFS looks for the file table and its copy. Not for the boot sector's copy,
// in the last sector: Windows leaves noise there.
func checkNTFS(p *bitlocker.Plaintext, boot []byte) error {
	ntfs, err := parseNTFS(boot)
	if err != nil {
		return err
	}
	if ntfs.size > p.Size() {
		return fmt.Errorf("it is longer than the volume of %d bytes", p.Size())
	}
	record := make([]byte, 4)
	for _, at := range []int64{ntfs.mft, ntfs.mirror} {
		if at > p.Size()-int64(len(record)) {
			return fmt.Errorf("its file table lies outside, at %d", at)
		}
		if _, err := p.ReadAt(record, at); err != nil {
			return err
		}
		if string(record) != "FILE" {
			return fmt.Errorf("no file table at %d", at)
		}
	}
	return nil
}

// The boot sector of NTFS.
const (
	ntfsBootSize = 512
	ntfsName     = "NTFS    "
)

// ntfs are sizes and places of a file system, in bytes.
type ntfs struct {
	size, clusterSize int64
	mft, mirror       int64 // the file table, and the copy of its beginning
}

func parseNTFS(boot []byte) (ntfs, error) {
	le := binary.LittleEndian
	sector, perCluster := int64(le.Uint16(boot[11:])), int64(boot[13])
	if perCluster > 0x80 {
		perCluster = 1 << min(0x100-perCluster, 31) // 2 to the power of its negative
	}
	cluster := sector * perCluster
	switch {
	case string(boot[3:11]) != ntfsName:
		return ntfs{}, errors.New("it is no NTFS")
	case sector < 256 || sector > 4096 || cluster == 0 || cluster > 2<<20:
		return ntfs{}, fmt.Errorf("NTFS with sectors of %d bytes and %d of them in a cluster", sector, perCluster)
	}
	at := func(field int, unit int64) int64 { return int64(le.Uint64(boot[field:])&(1<<40-1)) * unit }
	return ntfs{size: at(40, sector), clusterSize: cluster, mft: at(48, cluster), mirror: at(56, cluster)}, nil
}
