package diskbench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/simulator/figure"
	"github.com/databox-lockbox/lockbox/simulator/image"
)

// bareSize is the size of the volumes that are only unlocked, in bytes: little to
// decrypt for tools that cannot stop there.
const bareSize = image.MinBareSize

// disksOfHeavy is how many disks are unlocked together.
const disksOfHeavy = 70

// unlockOne measures the CPU time of a whole process that unlocks a volume with
// its recovery password.
func (b *bench) unlockOne(ctx context.Context) error {
	if !b.wants("unlock_recovery_cpu") {
		return nil
	}
	img, plain := b.path("one.img"), b.path("one.plain")
	keys, err := image.CreateBare(ctx, image.Spec{Path: img, SizeBytes: bareSize})
	if err != nil {
		return err
	}
	defer keys.Wipe()
	password := []byte(keys.RecoveryPassword.Reveal())
	defer clear(password)
	all := map[string][]float64{}
	for range 3 * b.Runs { // they are short
		for name, command := range map[string][]string{
			ours:           append(b.Self, img),
			peerCryptsetup: {"cryptsetup", "open", "--type", "bitlk", "--test-passphrase", "--readonly", img},
			// dislocker takes the password from its command line or a terminal only.
			peerDislocker: {"dislocker-file", "-q", "-V", img, "-p" + string(password), "--", plain},
		} {
			s, err := run(ctx, password, command[0], command[1:]...)
			if err != nil {
				return err
			}
			all[name] = append(all[name], s.cpu.Seconds())
			os.Remove(plain) // dislocker refuses to write into what is there
		}
	}
	for _, peer := range []string{peerCryptsetup, peerDislocker} {
		b.show(figure.Figure{Name: "unlock_recovery_cpu", Value: median(all, ours), Unit: "s", Peer: peer, PeerValue: median(all, peer)})
	}
	return nil
}

// UnlockPart is all that the process does whose CPU time is measured: it unlocks
// the image with the recovery password from in.
func UnlockPart(path string, in io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(in, 100))
	if err != nil {
		return err
	}
	password, err := bitlocker.ParseRecoveryPassword(string(text))
	clear(text)
	if err != nil {
		return err
	}
	defer password.Wipe()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	v, err := openVolume(f)
	if err != nil {
		return err
	}
	p, err := v.Unlock(password)
	if err != nil {
		return err
	}
	p.Wipe()
	return nil
}

func openVolume(f *os.File) (*bitlocker.Volume, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return bitlocker.Open(f, info.Size())
}

// unlockMany measures how long it takes to open and unlock the disks of a Data Box
// Heavy together, and with recovery passwords, one after the other on one core.
func (b *bench) unlockMany(ctx context.Context) (err error) {
	if !b.wants("unlock_70_recovery", "unlock_70_external") {
		return nil
	}
	b.note("making %d volumes", disksOfHeavy)
	var disks []*heavyDisk
	defer func() {
		for _, d := range disks {
			err = errors.Join(err, d.close())
		}
	}()
	for i := range disksOfHeavy {
		d, err := newHeavyDisk(ctx, image.Spec{
			Path: b.path(fmt.Sprintf("heavy-%d.img", i)), SizeBytes: bareSize, NoRecoveryPassword: !b.wants("unlock_70_recovery"),
		})
		if err != nil {
			return err
		}
		disks = append(disks, d)
	}
	var external, together, inTurn []time.Duration
	for i := range b.Runs {
		b.note("unlocking %d volumes, run %d of %d", disksOfHeavy, i+1, b.Runs)
		if b.wants("unlock_70_external") {
			if err := timed(&external, disks, func(d *heavyDisk) bitlocker.Credential { return d.keys.ExternalKey }); err != nil {
				return err
			}
		}
		if b.wants("unlock_70_recovery") {
			recovery := func(d *heavyDisk) bitlocker.Credential { return d.keys.RecoveryPassword }
			if err := errors.Join(timed(&together, disks, recovery), timedInTurn(&inTurn, disks, recovery)); err != nil {
				return err
			}
		}
	}
	if b.wants("unlock_70_recovery") {
		b.show(figure.Figure{Name: "unlock_70_recovery", Value: figure.Percentile(together, 50).Seconds(), Unit: "s", Peer: peerInTurn, PeerValue: figure.Percentile(inTurn, 50).Seconds()})
	}
	if b.wants("unlock_70_external") {
		b.show(figure.Figure{Name: "unlock_70_external", Value: figure.Milliseconds(figure.Percentile(external, 50)), Unit: "ms"})
	}
	return nil
}

// heavyDisk is one disk of many.
type heavyDisk struct {
	file *os.File
	keys image.Keys
}

func newHeavyDisk(ctx context.Context, spec image.Spec) (*heavyDisk, error) {
	keys, err := image.CreateBare(ctx, spec)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(spec.Path)
	if err != nil {
		keys.Wipe()
		return nil, err
	}
	return &heavyDisk{f, keys}, nil
}

func (d *heavyDisk) close() error {
	d.keys.Wipe()
	return d.file.Close()
}

// timed books how long it takes to unlock the disks together.
func timed(times *[]time.Duration, disks []*heavyDisk, key func(*heavyDisk) bitlocker.Credential) error {
	began := time.Now()
	var attempts []bitlocker.Attempt
	for _, d := range disks {
		v, err := openVolume(d.file)
		if err != nil {
			return err
		}
		attempts = append(attempts, bitlocker.Attempt{Volume: v, Credential: key(d)})
	}
	for _, u := range bitlocker.UnlockAll(attempts) {
		if u.Err != nil {
			return u.Err
		}
		defer u.Plaintext.Wipe()
	}
	*times = append(*times, time.Since(began))
	return nil
}

// timedInTurn books how long it takes to unlock one after the other on one core.
func timedInTurn(times *[]time.Duration, disks []*heavyDisk, key func(*heavyDisk) bitlocker.Credential) error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	began := time.Now()
	for _, d := range disks {
		var alone []time.Duration
		if err := timed(&alone, []*heavyDisk{d}, key); err != nil {
			return err
		}
	}
	*times = append(*times, time.Since(began))
	return nil
}
