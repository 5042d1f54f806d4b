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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const (
	childVariable  = "BITLOCKER_TEST_MEMORY_CHILD"
	kernelVariable = "BITLOCKER_TEST_MEMORY_KERNEL"
)

func TestMain(m *testing.M) {
	if image := os.Getenv(childVariable); image != "" {
		if err := memoryChild(image); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// memoryChild unlocks the image with the external key or, if it is shorter, the
// recovery password from standard input and works on it, locks it, and collects garbage, each when told by a byte on standard input,
// and each acknowledged by one on standard output.
func memoryChild(image string) error {
	only := Kernel(os.Getenv(kernelVariable))
	kernels = slices.DeleteFunc(kernels, func(k kernel) bool { return k.name != only })
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	v, err := Open(f, testSize)
	if err != nil {
		return err
	}
	size := make([]byte, 1)
	if _, err := io.ReadFull(os.Stdin, size); err != nil {
		return err
	}
	raw := make([]byte, size[0])
	if _, err := io.ReadFull(os.Stdin, raw); err != nil {
		return err
	}
	var p *Plaintext
	if len(raw) == keySize {
		key := ExternalKey{newSecret(raw)}
		p, err = v.Unlock(key)
		key.Wipe()
	} else {
		password := RecoveryPassword{newSecret(raw)}
		p, err = unlockOften(v, password)
		password.Wipe()
	}
	clear(raw)
	if err != nil {
		return err
	}
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

// unlockOften unlocks v with the password so often at once that every way of
// stretching is used, while everybody is preempted again and again.
func unlockOften(v *Volume, password RecoveryPassword) (*Plaintext, error) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				runtime.GC()
			}
		}
	})
	all := UnlockAll(slices.Repeat([]Attempt{{v, password}}, 16*runtime.GOMAXPROCS(0)+1))
	close(done)
	wg.Wait()
	for _, u := range all[1:] {
		if u.Err != nil {
			return nil, u.Err
		}
		u.Plaintext.Wipe()
	}
	return all[0].Plaintext, all[0].Err
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
	methods := map[Kernel][]Method{
		KernelVAES:  {AES128XTS, AES256XTS, AES256Elephant},
		KernelAESNI: {AES256XTS, AES128Elephant},
	}
	fastest := Kernels()[0]
	if methods[fastest] == nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("registers hold round keys in kernel ", fastest)
		}
		t.Skip("registers hold round keys in kernel ", fastest)
	}
	password := recoveryPassword(t, goodPassword)
	test := func(kernel Kernel, method Method, key []byte) {
		t.Run(fmt.Sprintf("%s/%v/%d", kernel, method, len(key)), func(t *testing.T) {
			o := testOptions(t)
			o.Method = method
			o.Protectors = append(o.Protectors, ProtectorKey{GUID{1}, password})
			m, _ := formatted(t, o)
			image := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(image, m.b, 0o600); err != nil {
				t.Fatal(err)
			}
			keys := volumeKeys(t, m, o)
			child := startMemoryChild(t, image, kernel, key)
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
	external := externalKey(testOptions(t)).Bytes()
	for _, kernel := range Kernels() {
		for _, method := range methods[kernel] {
			test(kernel, method, external)
		}
	}
	test(fastest, AES128XTS, password.bytes())
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
	fvek, _, ok := openContainer(vmk, v.copies[0].fvek)
	if !ok {
		t.Fatal("the volume key does not open")
	}
	password := v.copies[0].protectors[1]
	initial, stretched := make([]byte, keySize), make([]byte, keySize)
	o.Protectors[1].Key.(RecoveryPassword).initial(initial)
	o.Protectors[1].Key.key(password, stretched)
	keys := map[string][]byte{
		"recovery password": o.Protectors[1].Key.(RecoveryPassword).bytes(),
		"hash of it":        initial, "key stretched from it": stretched,
		"external key": externalKey(o).Bytes(), "VMK": vmk, "FVEK": fvek,
	}
	for i := 0; i < len(fvek); i += blockSize { // round keys lie apart, see keyStride
		keys[fmt.Sprintf("FVEK[%d:%d]", i, i+blockSize)] = fvek[i : i+blockSize]
	}
	return keys
}

type memoryProcess struct {
	pid    int
	stdin  io.Writer
	stdout io.Reader
}

func startMemoryChild(t *testing.T, image string, kernel Kernel, key []byte) *memoryProcess {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+image, kernelVariable+"="+string(kernel))
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
	if _, err := stdin.Write(append([]byte{byte(len(key))}, key...)); err != nil {
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

// Where the race detector has its shadow on amd64: what it knows of each word of
// memory, never the word.
const shadowFrom, shadowTo = 0x2000_0000_0000, 0x3200_0000_0000

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
		if access[:2] != "rw" || to-from > 1<<30 || from >= shadowFrom && to <= shadowTo {
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
