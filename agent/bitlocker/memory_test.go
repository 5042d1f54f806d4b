package bitlocker

import (
	"bytes"
	"crypto/aes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

const childVariable = "BITLOCKER_TEST_MEMORY_CHILD"

func TestMain(m *testing.M) {
	if image := os.Getenv(childVariable); image != "" {
		if err := memoryChild(image); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// memoryChild unlocks the image with the key from standard input and works on
// it, locks it, and collects garbage, each when told by a byte on standard input,
// and each acknowledged by one on standard output.
func memoryChild(image string) error {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	v, err := Open(f, testSize)
	if err != nil {
		return err
	}
	raw := make([]byte, keySize)
	if _, err := io.ReadFull(os.Stdin, raw); err != nil {
		return err
	}
	key, err := NewExternalKey(raw)
	if err != nil {
		return err
	}
	clear(raw)
	p, err := v.Unlock(key)
	if err != nil {
		return err
	}
	key.Wipe()
	work(p)
	for _, step := range []func(){func() {}, p.Wipe, runtime.GC} {
		step()
		if _, err := os.Stdout.Write([]byte{'.'}); err != nil {
			return err
		}
		if _, err := io.ReadFull(os.Stdin, make([]byte, 1)); err != nil {
			return nil // nobody wants to know more
		}
	}
	return nil
}

// work reads and writes from many goroutines, all of which are preempted in the
// middle of it, again and again.
func work(p *Plaintext) {
	end := time.Now().Add(time.Second)
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			b := make([]byte, 400_000+n)
			for time.Now().Before(end) {
				_, errRead := p.ReadAt(b, 0x90000+int64(n))
				_, errWrite := p.WriteAt(b, 0x90000+int64(n))
				if err := errors.Join(errRead, errWrite); err != nil {
					panic(err)
				}
			}
		})
	}
	for time.Now().Before(end) {
		runtime.GC()
	}
	wg.Wait()
}

// TestKeysLeaveMemory searches the memory of a process that unlocks and locks a
// volume for the volume's keys.
func TestKeysLeaveMemory(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	if !hasAES {
		t.Skip("needs AES instructions: without, registers leave keys behind")
	}
	for _, method := range []Method{AES128XTS, AES256XTS, AES256CBC} {
		t.Run(method.String(), func(t *testing.T) {
			o := testOptions(t)
			o.Method = method
			m, _ := formatted(t, o)
			image := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(image, m.b, 0o600); err != nil {
				t.Fatal(err)
			}
			keys := volumeKeys(t, m, o)
			child := startMemoryChild(t, image, externalKey(o).Bytes())
			found := searchMemory(t, child.pid, keys)
			if len(found) == 0 {
				t.Error("no key is in the memory of a process that has the volume unlocked: the search is broken")
			}
			t.Logf("unlocked: found %v", found)
			for _, stage := range []string{"locked", "locked, after a garbage collection"} {
				child.next(t)
				if found := searchMemory(t, child.pid, keys); len(found) > 0 {
					t.Errorf("%s: still in memory: %v", stage, found)
				}
			}
		})
	}
}

// volumeKeys returns all keys of a volume, by name.
func volumeKeys(t *testing.T, m *memory, o FormatOptions) map[string][]byte {
	t.Helper()
	v, err := Open(m, testSize)
	if err != nil {
		t.Fatal(err)
	}
	vmk, _, err := v.copies[0].openVMK(externalKey(o))
	if err != nil {
		t.Fatal(err)
	}
	fvek, ok := openContainer(vmk, v.copies[0].fvek, uint32(o.Method))
	if !ok {
		t.Fatal("the volume key does not open")
	}
	return map[string][]byte{
		"external key": externalKey(o).Bytes(), "VMK": vmk, "FVEK": fvek,
		"first half of FVEK": fvek[:len(fvek)/2], "second half of FVEK": fvek[len(fvek)/2:],
	}
}

type memoryProcess struct {
	pid    int
	stdin  io.Writer
	stdout io.Reader
}

func startMemoryChild(t *testing.T, image string, key []byte) *memoryProcess {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+image)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	child := &memoryProcess{cmd.Process.Pid, stdin, stdout}
	if _, err := stdin.Write(key); err != nil {
		t.Fatal(err)
	}
	child.await(t)
	return child
}

func (c *memoryProcess) next(t *testing.T) {
	t.Helper()
	if _, err := c.stdin.Write([]byte{'.'}); err != nil {
		t.Fatal(err)
	}
	c.await(t)
}

func (c *memoryProcess) await(t *testing.T) {
	t.Helper()
	if _, err := io.ReadFull(c.stdout, make([]byte, 1)); err != nil {
		t.Fatal("the child process failed: ", err)
	}
}

// searchMemory returns which of the values are in the memory of a process, and
// where.
func searchMemory(t *testing.T, pid int, values map[string][]byte) (found []string) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("cannot read a child's memory: ", err)
	}
	if err != nil {
		t.Skip("cannot read a child's memory: ", err)
	}
	defer mem.Close()
	buf := make([]byte, 1<<20) // pieces overlap by the longest value
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var access string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &access); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if access[:2] != "rw" || to-from > 1<<30 {
			continue // what cannot be written, and the race detector's shadow, which holds no values
		}
		for ; from < to; from += uint64(len(buf)) - 2*keySize {
			n, _ := mem.ReadAt(buf[:min(uint64(len(buf)), to-from)], int64(from))
			for name, value := range values {
				if i := bytes.Index(buf[:n], value); i >= 0 {
					found = append(found, fmt.Sprintf("%s at %#x in %s", name, from+uint64(i), strings.TrimSpace(line)))
				}
			}
		}
	}
	return found
}

// TestWipeKey guards, among others, against a standard library whose block cipher
// can no longer be overwritten.
func TestWipeKey(t *testing.T) {
	b, err := aes.NewCipher(randomBytes(9, 16))
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]*aesKey{"own": newAESKey(randomBytes(9, 16)), "standard library": {block: b}} {
		isZero := func() bool {
			return k.block == nil && isZero(k.enc) && isZero(k.dec) || k.block != nil && reflect.ValueOf(k.block).Elem().IsZero()
		}
		if isZero() {
			t.Fatalf("%s: a fresh key is zero", name)
		}
		k.wipe()
		if !isZero() {
			t.Errorf("%s: a wiped key still has a schedule", name)
		}
	}
}

func isZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }
