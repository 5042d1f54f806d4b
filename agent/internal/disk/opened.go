package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/protocol"
)

// The timetable of [Opened.Close], counted back from its end.
const (
	closeTime = 2 * time.Second
	undoTime  = time.Second            // left for undoing when syncing has to stop
	wipeTime  = 500 * time.Millisecond // left when the keys are gone, whatever happens
)

// mountTime bounds [Opened.Mount].
const mountTime = 30 * time.Second

// Opened is a disk whose volume is decrypted. All methods may be called
// concurrently.
type Opened struct {
	spec    Spec
	image   *os.File
	volume  *bitlocker.Plaintext
	redo    *redoImage // what is written; nil if the disk is read-only
	overlay *overlay   // what is written, and forgotten; nil unless the disk is read-only

	done     chan struct{}
	markDone func()

	closeOnce   sync.Once
	closeErr    error
	releaseOnce sync.Once

	mu         sync.Mutex
	closing    bool
	mounting   bool          // Mount was called
	mountEnded chan struct{} // closed when Mount has returned
	stopMount  context.CancelFunc
	parts      parts
}

// parts is what a mount is made of, in the order in which they are made.
type parts struct {
	places *places
	export *export
	loop   *loop
	files  *fileSystem
}

// Open unlocks the volume with key, which the caller wipes afterwards; Opened
// keeps nothing of it but the volume's own keys. A key that does not open it is
// refused with [protocol.CodeDiskKey], an image that is open already with
// [protocol.CodeBusy]. Nothing is mounted yet. The caller ends with
// [Opened.Close].
func Open(ctx context.Context, spec Spec, key bitlocker.ExternalKey) (*Opened, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !spec.ID.Valid() {
		return nil, protocol.Errorf(protocol.CodeInvalid, "%q cannot name a disk: want 1 to 32 of a-z, 0-9 and dash", spec.ID)
	}
	if err := spec.Recover(); err != nil {
		return nil, err
	}
	image, err := openImage(spec)
	if err != nil {
		return nil, err
	}
	o := &Opened{spec: spec, image: image, done: make(chan struct{}), mountEnded: make(chan struct{})}
	if err := o.unlock(key); err != nil {
		closeImage(image)
		return nil, err
	}
	o.markDone = sync.OnceFunc(func() { close(o.done) })
	return o, nil
}

// openImage opens the image for this process alone: two mounts of one image
// would destroy the file system in it.
func openImage(spec Spec) (*os.File, error) {
	mode := os.O_RDWR
	if spec.ReadOnly {
		mode = os.O_RDONLY
	}
	image, err := os.OpenFile(spec.Image, mode, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open disk %s: %w", spec.ID, err)
	}
	if err := unix.Flock(int(image.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		image.Close()
		return nil, protocol.Errorf(protocol.CodeBusy, "disk %s is open already, here or in another process", spec.ID)
	}
	return image, nil
}

// unlock sets what depends on the volume.
func (o *Opened) unlock(key bitlocker.ExternalKey) error {
	volume, err := readVolume(o.image)
	if err == nil && !o.spec.ReadOnly {
		o.redo = newRedoImage(o.image, volume.Info().ID)
		volume, err = bitlocker.Open(o.redo, volume.Info().Size)
	}
	if err != nil {
		return fmt.Errorf("cannot open disk %s: %w", o.spec.ID, err)
	}
	o.volume, err = volume.Unlock(key)
	switch {
	case errors.Is(err, bitlocker.ErrWrongKey), errors.Is(err, bitlocker.ErrNoProtector):
		return protocol.Errorf(protocol.CodeDiskKey, "the key does not open disk %s", o.spec.ID)
	case err != nil:
		return fmt.Errorf("cannot unlock disk %s: %w", o.spec.ID, err)
	}
	if o.spec.ReadOnly {
		o.overlay = newOverlay(o.volume)
	}
	return nil
}

// ID returns the disk's name.
func (o *Opened) ID() protocol.DiskID { return o.spec.ID }

// Done is closed when the disk is of no use any more: after Wipe or Close, or
// because the process of its file system has ended by itself.
func (o *Opened) Done() <-chan struct{} { return o.done }

// Wipe ends all access at once: the keys are gone from memory, every read and
// write of the volume fails. It waits for nothing. Data not yet synced is lost;
// Close syncs first.
func (o *Opened) Wipe() {
	o.volume.Wipe()
	if o.overlay != nil {
		o.overlay.wipe()
	}
	o.markDone()
}

// Mount shows the files of the volume below the folder it returns. It may be
// called once. When it fails, or comes too late because Close was called, nothing
// of it stays once Close has returned.
func (o *Opened) Mount(ctx context.Context) (dir string, err error) {
	if o.spec.Bare {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, mountTime)
	defer cancel()
	if err := o.beginMount(cancel); err != nil {
		return "", err
	}
	defer o.endMount()
	if err := o.mount(ctx); err != nil {
		return "", fmt.Errorf("cannot mount disk %s: %w", o.spec.ID, err)
	}
	return o.parts.places.files, nil
}

// VolumeFile returns the file that is the decrypted volume while the disk is
// mounted, else "".
func (o *Opened) VolumeFile() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.parts.export == nil {
		return ""
	}
	return o.parts.export.file
}

func (o *Opened) beginMount(cancel context.CancelFunc) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.closing:
		return protocol.Errorf(protocol.CodeLocked, "disk %s is locked", o.spec.ID)
	case o.mounting:
		return protocol.Errorf(protocol.CodeConflict, "disk %s is mounted already", o.spec.ID)
	}
	o.mounting, o.stopMount = true, cancel
	return nil
}

// endMount leaves undoing to Close, unless that has given up waiting.
func (o *Opened) endMount() {
	o.mu.Lock()
	closing := o.closing
	close(o.mountEnded)
	o.mu.Unlock()
	if closing {
		o.undo()
	}
}

func (o *Opened) mount(ctx context.Context) error {
	places, err := makePlaces(o.spec)
	if err := o.add(err, func(p *parts) { p.places = places }); err != nil {
		return err
	}
	if err := o.spec.Keeper.watch(places.things()...); err != nil {
		return err
	}
	export, err := newExport(o.spec, places.export, o.view(), o.sync)
	if err := o.add(err, func(p *parts) { p.export = export }); err != nil {
		return err
	}
	loop, err := attachLoop(export.file, places.tag)
	if err := o.add(err, func(p *parts) { p.loop = loop }); err != nil {
		return err
	}
	files, err := mountNTFS(ctx, loop.path, places, o.spec)
	if err != nil {
		return err
	}
	go o.attend(files)
	return o.add(nil, func(p *parts) { p.files = files })
}

// attend syncs files from time to time, and says when their file system has ended.
func (o *Opened) attend(files *fileSystem) {
	defer close(files.released)
	if o.redo != nil {
		files.syncRegularly(o.redo.full)
	}
	<-files.child.Done()
	o.markDone()
}

// view returns what is exported of the volume.
func (o *Opened) view() view {
	if o.overlay != nil {
		return o.overlay
	}
	return o.volume
}

// add books a new part of the mount, and fails if err is set or Close was called
// meanwhile. A part that came too late is booked all the same, to be undone.
func (o *Opened) add(err error, book func(*parts)) error {
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	book(&o.parts)
	if o.closing {
		return errors.New("the disk was locked meanwhile")
	}
	return nil
}

// Close cuts off whoever uses the files, syncs for at most a second, wipes the
// keys and undoes the mount. If ctx has a deadline within the next two seconds,
// that ends the timetable; the keys are wiped half a second before the end at the
// latest. It returns within two seconds, or half a second when the deadline is
// past, and waits for no client. Afterwards the disk is locked even if there is
// an error, which says what was lost or left.
func (o *Opened) Close(ctx context.Context) error {
	end := time.Now().Add(closeTime)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	if soonest := time.Now().Add(wipeTime); end.Before(soonest) {
		end = soonest
	}
	o.closeOnce.Do(func() { o.closeErr = o.closeBy(end) })
	if o.closeErr != nil {
		return fmt.Errorf("while locking disk %s: %w", o.spec.ID, o.closeErr)
	}
	return nil
}

func (o *Opened) closeBy(end time.Time) error {
	alarm := time.AfterFunc(time.Until(end.Add(-wipeTime)), o.Wipe)
	defer alarm.Stop()
	syncErr := within(end.Add(-undoTime), "sync in time, so the latest writes are lost", o.quiesce)
	o.Wipe()
	return errors.Join(syncErr, within(end, "undo the mount in time", o.undo))
}

// quiesce ends a running Mount, cuts off the users of the files, lets the file
// system finish, and syncs.
func (o *Opened) quiesce() error {
	o.mu.Lock()
	o.closing = true
	mounting := o.mounting
	if mounting {
		o.stopMount()
	}
	o.mu.Unlock()
	if mounting {
		<-o.mountEnded
	}
	o.mu.Lock()
	p := o.parts
	o.mu.Unlock()
	if p.files != nil {
		p.files.cutOff()
		<-p.files.child.Done()
		if err := p.files.child.Err(); err != nil { // in the midst of something
			return fmt.Errorf("ntfs-3g ended early, so the latest writes are lost: %w", err)
		}
	}
	if p.loop != nil {
		if err := p.loop.sync(); err != nil {
			return err
		}
	}
	if o.redo == nil {
		return nil
	}
	return o.redo.finish()
}

// sync makes what was written durable.
func (o *Opened) sync() error {
	if o.redo == nil {
		return nil
	}
	return o.redo.Sync()
}

// undo takes down whatever parts there are. It may be called more than once.
func (o *Opened) undo() error {
	o.mu.Lock()
	p := o.parts
	o.parts = parts{}
	o.mu.Unlock()

	var errs []error
	if p.files != nil {
		p.files.child.Kill()
		errs = append(errs, p.files.cutOff())
	}
	if p.export != nil {
		errs = append(errs, unmount(p.export.dir)) // from here on, nothing below can block
	}
	if p.files != nil {
		errs = append(errs, p.files.child.wait(undoTime))
	}
	if p.loop != nil {
		errs = append(errs, p.loop.detach(undoTime))
	}
	if p.export != nil {
		errs = append(errs, p.export.wait(undoTime))
	}
	if p.files != nil {
		waitFor(p.files.released, wipeTime, "")
		errs = append(errs, evict(p.files.device), o.spec.Keeper.forget(thing{Cache: p.files.device}))
	}
	if p.places != nil {
		errs = append(errs, p.places.remove(), o.spec.Keeper.forget(p.places.things()...))
	}
	o.releaseOnce.Do(o.release)
	return errors.Join(errs...)
}

// release lets go of the image, and of what is cached of it.
func (o *Opened) release() {
	unix.Fadvise(int(o.image.Fd()), 0, 0, unix.FADV_DONTNEED)
	if o.redo != nil {
		o.redo.close()
	}
	closeImage(o.image)
}
