package bitlocker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestPlaintext does the same random reads and writes, of any range, to a volume
// and to a plain slice, for all methods and sector sizes; then opens the volume
// once more.
func TestPlaintext(t *testing.T) {
	for method := range methods {
		for _, sectorSize := range []int{512, 4096} {
			t.Run(fmt.Sprintf("%v/%d", method, sectorSize), func(t *testing.T) {
				o := testOptions(t)
				o.Method, o.SectorSize = method, sectorSize
				m, view := formatted(t, o)
				p := unlocked(t, m, testSize, externalKey(o))
				compare(t, p, view)
				rnd := rand.New(rand.NewPCG(1, 2))
				for range 400 {
					off := rnd.Int64N(testSize)
					n := rnd.Int64N(min(testSize-off, 1<<rnd.IntN(18))) + 1
					if rnd.IntN(2) == 0 {
						readSame(t, p, view, off, n)
					} else {
						writeSame(t, p, o, view, off, n)
					}
				}
				compare(t, unlocked(t, m, testSize, externalKey(o)), view)
			})
		}
	}
}

func compare(t *testing.T, p *Plaintext, view []byte) {
	t.Helper()
	if p.Size() != int64(len(view)) {
		t.Fatalf("the view has %d bytes, want %d", p.Size(), len(view))
	}
	b := make([]byte, len(view))
	if _, err := p.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	for i := 0; !bytes.Equal(b[i:], view[i:]); i++ {
		if b[i] != view[i] {
			t.Fatalf("the view differs from %#x on", i)
		}
	}
}

func readSame(t *testing.T, p *Plaintext, view []byte, off, n int64) {
	t.Helper()
	b := make([]byte, n)
	if _, err := p.ReadAt(b, off); err != nil {
		t.Fatalf("read of %d bytes at %#x: %v", n, off, err)
	}
	if !bytes.Equal(b, view[off:off+n]) {
		t.Fatalf("read of %d bytes at %#x is wrong", n, off)
	}
}

// writeSame expects a write to fail exactly if it touches a reserved area, and to
// have written what lies before it.
func writeSame(t *testing.T, p *Plaintext, o FormatOptions, view []byte, off, n int64) {
	t.Helper()
	b := randomBytes(byte(off), int(n))
	want := n
	for _, area := range append(o.Metadata[:], o.HeaderCopy) {
		size := int64(areaSize)
		if area == o.HeaderCopy {
			size = headerSize
		}
		if off < area+size && area < off+n {
			want = min(want, max(area-off, 0))
		}
	}
	got, err := p.WriteAt(b, off)
	if int64(got) != want || (want < n) != errors.Is(err, ErrReserved) || want == n && err != nil {
		t.Fatalf("write of %d bytes at %#x: %d, %v; want %d", n, off, got, err, want)
	}
	copy(view[off:], b[:want])
}

func TestPlaintextEnds(t *testing.T) {
	o := testOptions(t)
	m, view := formatted(t, o)
	p := unlocked(t, m, testSize, externalKey(o))
	b := make([]byte, 100)
	for _, v := range []struct {
		off  int64
		n    int
		read error
	}{{testSize - 10, 10, io.EOF}, {testSize, 0, io.EOF}, {testSize + 1, 0, io.EOF}, {1<<63 - 1, 0, io.EOF}} {
		if n, err := p.ReadAt(b, v.off); n != v.n || err != v.read {
			t.Errorf("read at %#x: %d, %v", v.off, n, err)
		}
		if n, err := p.WriteAt(b, v.off); n != v.n || err != io.ErrShortWrite {
			t.Errorf("write at %#x: %d, %v", v.off, n, err)
		}
	}
	copy(view[testSize-10:], b)
	for _, off := range []int64{-1, -1 << 63} {
		if _, err := p.ReadAt(b, off); err == nil {
			t.Errorf("a read at %d is accepted", off)
		}
		if _, err := p.WriteAt(b, off); err == nil {
			t.Errorf("a write at %d is accepted", off)
		}
	}
	if n, err := p.ReadAt(nil, 0); n != 0 || err != nil {
		t.Errorf("an empty read: %d, %v", n, err)
	}
	compare(t, p, append(b[:0:0], view...))
}

// TestLongerImage has an image that goes on behind the encrypted part: what is
// there is shown as it is, and never written, which would put plaintext on disk.
func TestLongerImage(t *testing.T) {
	o := testOptions(t)
	m, view := formatted(t, o)
	tail := randomBytes(9, 5000)
	m.b = append(m.b, tail...)
	p := unlocked(t, m, testSize+5000, externalKey(o))
	compare(t, p, append(view, tail...))
	if n, err := p.WriteAt(make([]byte, 1000), testSize-512); n != 512 || !errors.Is(err, ErrReserved) {
		t.Errorf("a write across the end of the encrypted part: %d, %v", n, err)
	}
	if !bytes.Equal(m.b[testSize:], tail) {
		t.Error("the tail was written")
	}
}

func TestReadOnly(t *testing.T) {
	o := testOptions(t)
	m, _ := formatted(t, o)
	p := unlocked(t, bytes.NewReader(m.b), testSize, externalKey(o))
	if n, err := p.WriteAt(make([]byte, 1), 0); n != 0 || !errors.Is(err, ErrReadOnly) {
		t.Errorf("a write to a volume opened read-only: %d, %v", n, err)
	}
}

// slow is a volume that lets others go first.
type slow struct{ *memory }

func (s slow) ReadAt(b []byte, off int64) (int, error) {
	defer time.Sleep(time.Microsecond)
	return s.memory.ReadAt(b, off)
}

// TestConcurrentWrites has many goroutines write the bytes of the same sectors,
// each its own ones: none may be lost.
func TestConcurrentWrites(t *testing.T) {
	o := testOptions(t)
	m, view := formatted(t, o)
	p := unlocked(t, slow{m}, testSize, externalKey(o))
	const writers, base = 8, 0x90000
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for at := base + w*100; at < base+0x1000; at += writers * 100 {
				if _, err := p.WriteAt(bytes.Repeat([]byte{byte(w)}, 100), int64(at)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for w := range writers {
		for at := base + w*100; at < base+0x1000; at += writers * 100 {
			copy(view[at:], bytes.Repeat([]byte{byte(w)}, 100))
		}
	}
	compare(t, p, view)
}

func TestWipe(t *testing.T) {
	o := testOptions(t)
	m, _ := formatted(t, o)
	p := unlocked(t, m, testSize, externalKey(o))
	if p.Wiped() {
		t.Error("wiped at once")
	}
	p.Wipe()
	p.Wipe()
	if !p.Wiped() {
		t.Error("not wiped")
	}
	before := bytes.Clone(m.b)
	for _, off := range []int64{0, o.Metadata[0], testSize - 1, testSize + 1} {
		b := bytes.Repeat([]byte{7}, 600)
		if n, err := p.ReadAt(b, off); n != 0 || !errors.Is(err, ErrWiped) {
			t.Errorf("a read at %#x after the wipe: %d, %v", off, n, err)
		}
		if n, err := p.WriteAt(b, off); n != 0 || !errors.Is(err, ErrWiped) {
			t.Errorf("a write at %#x after the wipe: %d, %v", off, n, err)
		}
	}
	if !bytes.Equal(m.b, before) {
		t.Error("something was written after the wipe")
	}
}

// hanging is a volume whose reads and writes wait until released, once hang is
// set.
type hanging struct {
	*memory
	hang    bool
	release chan struct{}
}

func (h *hanging) wait() {
	if h.hang {
		<-h.release
	}
}

func (h *hanging) ReadAt(b []byte, off int64) (int, error) { h.wait(); return h.memory.ReadAt(b, off) }
func (h *hanging) WriteAt(b []byte, off int64) (int, error) {
	h.wait()
	return h.memory.WriteAt(b, off)
}

// TestWipeDuringHang wipes while reads and writes hang in the backing storage:
// Wipe does not wait for them, and none of them gets or stores anything when it
// comes back. In a bubble, waiting for them would be a deadlock.
func TestWipeDuringHang(t *testing.T) {
	o := testOptions(t)
	m, _ := formatted(t, o)
	synctest.Test(t, func(t *testing.T) {
		h := &hanging{memory: m, release: make(chan struct{})}
		p := unlocked(t, h, testSize, externalKey(o))
		h.hang = true
		const at, size = 0x90000, 3 * cryptChunk
		before := bytes.Clone(m.b)
		var wg sync.WaitGroup
		for _, off := range []int64{at, at + 1} { // whole sectors, and parts
			wg.Go(func() {
				if n, err := p.ReadAt(make([]byte, size), off); n != 0 || !errors.Is(err, ErrWiped) {
					t.Errorf("a read that hung: %d, %v", n, err)
				}
			})
		}
		wg.Go(func() {
			if n, err := p.WriteAt(make([]byte, 100), at+1); n != 0 || !errors.Is(err, ErrWiped) {
				t.Errorf("a write of part of a sector that hung: %d, %v", n, err)
			}
		})
		synctest.Wait() // all of them hang
		p.Wipe()
		if _, err := p.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrWiped) {
			t.Errorf("a read after the wipe: %v", err)
		}
		close(h.release)
		wg.Wait()
		if !bytes.Equal(m.b, before) {
			t.Error("a write that hung changed the volume")
		}
	})
}

// failing is a volume that fails at one offset.
type failing struct {
	*memory
	at int64
}

var errDisk = errors.New("disk error")

func (f failing) fails(b []byte, off int64) bool { return off <= f.at && f.at < off+int64(len(b)) }

func (f failing) ReadAt(b []byte, off int64) (int, error) {
	if f.fails(b, off) {
		return 0, errDisk
	}
	return f.memory.ReadAt(b, off)
}

func (f failing) WriteAt(b []byte, off int64) (int, error) {
	if f.fails(b, off) {
		return 0, errDisk
	}
	return f.memory.WriteAt(b, off)
}

func TestBackingErrors(t *testing.T) {
	o := testOptions(t)
	m, _ := formatted(t, o)
	p := unlocked(t, failing{m, 0xA0000}, testSize, externalKey(o))
	for _, off := range []int64{0xA0000, 0xA0001} {
		if _, err := p.ReadAt(make([]byte, 100), off); !errors.Is(err, errDisk) {
			t.Errorf("a read at %#x: %v, want the disk's error", off, err)
		}
		if _, err := p.WriteAt(make([]byte, 100), off); !errors.Is(err, errDisk) {
			t.Errorf("a write at %#x: %v, want the disk's error", off, err)
		}
	}
	if _, err := p.WriteAt(make([]byte, 512), 0xA0000); !errors.Is(err, errDisk) {
		t.Errorf("a write of a sector: %v, want the disk's error", err)
	}
}
