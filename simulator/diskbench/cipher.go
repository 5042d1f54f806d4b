package diskbench

import (
	"context"
	"crypto/rand"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/simulator/figure"
)

// cipherFigure is a cipher to be measured beside openssl's.
type cipherFigure struct {
	name       string
	kernel     bitlocker.Kernel
	method     bitlocker.Method
	sectorSize int
	openssl    string // name of the same there; "" to measure without
}

// cipherFigures are all but those whose kernel this processor cannot run.
func (b *bench) cipherFigures() []cipherFigure {
	fastest := bitlocker.Kernels()[0]
	all := []cipherFigure{
		{"xts128_512", fastest, bitlocker.AES128XTS, 512, "aes-128-xts"},
		{"xts128_4096", fastest, bitlocker.AES128XTS, 4096, "aes-128-xts"},
		{"xts256_512", fastest, bitlocker.AES256XTS, 512, "aes-256-xts"},
		{"xts128_512_aesni", bitlocker.KernelAESNI, bitlocker.AES128XTS, 512, "aes-128-xts"},
		{"xts128_512_generic", bitlocker.KernelGeneric, bitlocker.AES128XTS, 512, ""},
	}
	return slices.DeleteFunc(all, func(f cipherFigure) bool {
		missing := !slices.Contains(bitlocker.Kernels(), f.kernel)
		if missing && b.wants(f.name) {
			b.note("no %s: this processor cannot run the kernel %s", f.name, f.kernel)
		}
		return missing || !b.wants(f.name)
	})
}

// ciphers measures encryption in memory on one core, in GB of sectors per second of
// its time, which is what openssl counts.
func (b *bench) ciphers(ctx context.Context) error {
	figures := b.cipherFigures()
	ours, openssl := map[string][]float64{}, map[string][]float64{}
	for i := range b.Runs {
		for _, f := range figures {
			b.note("%s, run %d of %d", f.name, i+1, b.Runs)
			if f.openssl != "" {
				speed, err := opensslSpeed(ctx, f.openssl, f.sectorSize)
				if err != nil {
					return err
				}
				openssl[f.name] = append(openssl[f.name], speed/1e9)
			}
			speed, err := f.speed()
			if err != nil {
				return err
			}
			ours[f.name] = append(ours[f.name], speed/1e9)
		}
	}
	for _, f := range figures {
		g := figure.Figure{Name: f.name, Value: median(ours, f.name), Unit: "GB/s", More: true}
		if f.openssl != "" {
			g.Peer, g.PeerValue = peerOpenSSL, median(openssl, f.name)
		}
		b.show(g)
	}
	return nil
}

// A cipher is measured for as long as openssl measures its own, on what fits the
// first cache, as there.
const (
	cipherTime   = time.Second
	cipherBuffer = 16 << 10
)

// speed returns how fast our cipher encrypts, in bytes per second of CPU time.
func (f cipherFigure) speed() (float64, error) {
	key := make([]byte, f.method.KeySize())
	rand.Read(key)
	c, err := bitlocker.NewSectorCipher(f.kernel, f.method, key, f.sectorSize)
	if err != nil {
		return 0, err
	}
	defer c.Wipe()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	buf := make([]byte, cipherBuffer)
	began, err := threadTime()
	if err != nil {
		return 0, err
	}
	for pieces := 0; ; pieces += 1000 {
		now, err := threadTime()
		if spent := now - began; err != nil || spent >= cipherTime {
			return float64(pieces*cipherBuffer) / spent.Seconds(), err
		}
		for range 1000 {
			c.Encrypt(buf, 0)
		}
	}
}

// threadTime returns the CPU time of this thread.
func threadTime() (time.Duration, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano()), err
}
