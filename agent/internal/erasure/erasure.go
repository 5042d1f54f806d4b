// Package erasure ends what a node holds of an order: the keys on its disks are
// destroyed, and the node certifies it.
//
// The rules:
//
//   - The device decides last: it erases only what its own copy job has completed
//     ([Eraser.Completed]), whoever asks, and only while it is locked: each of its
//     disks, with the volume that was copied. Where something could not be copied,
//     it is kept for [approval.UncopiedKept] first.
//   - Recorded before done: no record, nothing is erased.
//   - What was begun is finished, also after a loss of power ([Eraser.Resume]),
//     and the certificate is signed only when every disk was read back. It is kept,
//     and given to whoever asks again.
package erasure

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// Journal is the node's audit chain. A record is durable when Append returns nil.
type Journal interface {
	Append(ctx context.Context, rec auditlog.Record) (index int64, err error)
}

// Config is what an Eraser is made of.
type Config struct {
	Dir     string // of its own
	Node    protocol.NodeID
	Key     crypto.Signer // the node's enrolled Ed25519 key
	Disks   []disk.Disk
	Tool    string // the program
	Version string // of it
	Journal Journal
	Now     func() time.Time
	// Locked reports whether the node is locked.
	Locked func() bool
	Done   func() // is told that disks are erased; nil: nobody is
}

// Eraser erases the disks of one node. It is safe for concurrent use.
type Eraser struct {
	cfg Config
	pub ed25519.PublicKey
	mu  sync.Mutex // held while anything is erased
}

// New returns an eraser. It starts nothing.
func New(cfg Config) (*Eraser, error) {
	pub, ok := cfg.Key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the node's key is a %T: want Ed25519", cfg.Key.Public())
	}
	return &Eraser{cfg: cfg, pub: pub}, state.PrivateDir(cfg.Dir)
}

// Files of an eraser.
const (
	completedFile   = "completed.json"   // what the copy job has completed
	intentFile      = "intent.json"      // what is being erased
	certificateFile = "certificate.json" // that it is
)

// intent is what is known of disks before their keys are destroyed: after that
// nothing can be read of them.
type intent struct {
	Order     protocol.OrderID
	OrderedBy protocol.Person
	Begun     time.Time
	Media     []approval.ErasedMedium
}

func (e *Eraser) path(name string) string { return filepath.Join(e.cfg.Dir, name) }

// completion is what the node's own copy job has completed.
type completion struct {
	Order protocol.OrderID
	Disks map[protocol.DiskID]copied
}

// copied is a disk that the copy job went through.
type copied struct {
	VolumeGUID string    // another volume under the disk's name was not copied
	Kept       time.Time // until then the customer may ask for what was not
}

// Completed remembers that the node's own copy job has completed an order on some
// of its disks; whole says that nothing was left behind that cannot be copied. It
// is durable when it returns nil.
func (e *Eraser) Completed(order protocol.OrderID, disks []protocol.DiskID, whole bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	done, err := e.completion()
	if err != nil {
		return err
	}
	if done.Order != order {
		done = completion{Order: order, Disks: make(map[protocol.DiskID]copied)}
	}
	for _, d := range e.cfg.Disks {
		if !slices.Contains(disks, d.ID) {
			continue
		}
		info, err := d.Inspect()
		if err != nil {
			return err
		}
		c := copied{VolumeGUID: info.ID.String(), Kept: e.cfg.Now()}
		if !whole {
			c.Kept = c.Kept.Add(approval.UncopiedKept)
		}
		done.Disks[d.ID] = c
	}
	data, err := json.Marshal(done)
	if err != nil {
		return err
	}
	return state.WriteFile(e.path(completedFile), data)
}

func (e *Eraser) completion() (done completion, err error) {
	data, err := read(e.path(completedFile))
	if data == nil || err != nil {
		return done, err
	}
	if err := json.Unmarshal(data, &done); err != nil {
		return done, fmt.Errorf("cannot read what the copy job has completed: %w", err)
	}
	return done, nil
}

// Erase destroys the keys on all disks of the node and returns the envelope of an
// [approval.Erasure]. Unless the copy job has completed that order on each of them,
// and while the node is not locked, it refuses with [protocol.CodeForbidden] and
// [protocol.CodeBusy]. What was erased already is certified by the certificate
// made then.
func (e *Eraser) Erase(ctx context.Context, order protocol.OrderID, by protocol.Person) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if done, err := e.certificate(order); done != nil || err != nil {
		return done, err
	}
	in, begun, err := e.intent()
	switch {
	case err != nil:
		return nil, err
	case begun && in.Order != order:
		return nil, protocol.Errorf(protocol.CodeConflict, "the disks of node %s are being erased for order %s", e.cfg.Node, in.Order)
	case !begun:
		if in, err = e.begin(ctx, order, by); err != nil {
			return nil, err
		}
	}
	return e.finish(ctx, in)
}

// Resume finishes what a loss of power interrupted. It is called before anything
// can be unlocked.
func (e *Eraser) Resume(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	in, begun, err := e.intent()
	if err != nil || !begun {
		return err
	}
	if done, err := e.certificate(in.Order); done != nil || err != nil {
		return err
	}
	_, err = e.finish(ctx, in)
	return err
}

// certificate returns the certificate of an order, nil if there is none yet.
func (e *Eraser) certificate(order protocol.OrderID) ([]byte, error) {
	envelope, err := read(e.path(certificateFile))
	if envelope == nil || err != nil {
		return nil, err
	}
	node := approval.NodeRef{Serial: e.cfg.Node.Serial, Node: e.cfg.Node.Node, KeyFingerprint: approval.KeyFingerprint(e.pub)}
	if _, err := approval.VerifyErasure(envelope, node, order); err != nil {
		return nil, protocol.Errorf(protocol.CodeConflict, "the disks of node %s were erased already, and not for order %s: %v", e.cfg.Node, order, err)
	}
	return envelope, nil
}

func (e *Eraser) intent() (in intent, begun bool, err error) {
	data, err := read(e.path(intentFile))
	if data == nil || err != nil {
		return in, false, err
	}
	if err := json.Unmarshal(data, &in); err != nil {
		return in, false, fmt.Errorf("cannot read what is being erased: %w", err)
	}
	return in, true, nil
}

// read returns what is in a file, nil if it is not there.
func read(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// begin checks that the disks may be erased, and makes it durable that they are.
func (e *Eraser) begin(ctx context.Context, order protocol.OrderID, by protocol.Person) (intent, error) {
	done, err := e.completion()
	switch {
	case err != nil:
		return intent{}, err
	case order == "" || done.Order != order:
		return intent{}, protocol.Errorf(protocol.CodeForbidden, "the copy job of node %s has not completed order %q: nothing is erased", e.cfg.Node, order)
	case !e.cfg.Locked():
		return intent{}, protocol.Errorf(protocol.CodeBusy, "node %s is not locked: lock it first", e.cfg.Node)
	}
	in := intent{Order: order, OrderedBy: by, Begun: e.cfg.Now()}
	for _, d := range e.cfg.Disks {
		info, err := d.Inspect()
		if err != nil {
			return intent{}, protocol.Errorf(protocol.CodeDisks, "disk %s cannot be read, so nothing could be certified: %v", d.ID, err)
		}
		medium := approval.ErasedMedium{Disk: d.ID, VolumeGUID: info.ID.String(), Size: info.Size, Encryption: info.Method.String()}
		if err := done.allows(medium, in.Begun); err != nil {
			return intent{}, err
		}
		in.Media = append(in.Media, medium)
	}
	if _, err := e.sign(in); err != nil {
		return intent{}, err // it would be refused after the disks are gone
	}
	data, err := json.Marshal(in)
	if err != nil {
		return intent{}, err
	}
	if err := e.record(ctx, in, auditlog.Start, ""); err != nil {
		return intent{}, protocol.Errorf(protocol.CodeNotRecorded, "nothing was erased, because it could not be recorded: %v", err)
	}
	return in, state.WriteFile(e.path(intentFile), data)
}

// allows refuses to erase what was not copied.
func (c completion) allows(m approval.ErasedMedium, now time.Time) error {
	switch disk, ok := c.Disks[m.Disk]; {
	case !ok || disk.VolumeGUID != m.VolumeGUID:
		return protocol.Errorf(protocol.CodeForbidden, "the copy job of order %s has not copied disk %s with volume %s: nothing is erased", c.Order, m.Disk, m.VolumeGUID)
	case now.Before(disk.Kept):
		return protocol.Errorf(protocol.CodeForbidden, "not all of disk %s could be copied: it is kept until %s", m.Disk, protocol.Stamp(disk.Kept))
	}
	return nil
}

// finish erases the disks, each whether it was before or not, and certifies it.
func (e *Eraser) finish(ctx context.Context, in intent) ([]byte, error) {
	for _, d := range e.cfg.Disks {
		if err := d.Erase(); err != nil {
			return nil, errors.Join(err, e.record(ctx, in, auditlog.Failure, ""))
		}
	}
	if e.cfg.Done != nil {
		e.cfg.Done()
	}
	envelope, err := e.sign(in)
	if err != nil {
		return nil, err
	}
	sealed, err := approval.ParseEnvelope(envelope)
	if err != nil {
		return nil, err
	}
	if err := state.WriteFile(e.path(certificateFile), envelope); err != nil {
		return nil, err
	}
	return envelope, e.record(ctx, in, auditlog.Success, string(sealed.Digest()))
}

// details says what was done, for the certificate.
const details = "all three metadata areas of each BitLocker volume, with every protector, the volume's encrypted keys and their validation, " +
	"were overwritten with zeros and read back; the data stay, encrypted with a key that is nowhere"

func (e *Eraser) sign(in intent) ([]byte, error) {
	return approval.SignEd25519(approval.Erasure{
		Node: approval.NameOf(e.cfg.Node), NodeKey: e.pub, OrderID: in.Order, Media: in.Media,
		Standard: approval.ErasureStandard, Method: approval.ErasurePurge, Technique: approval.ErasureTechnique, Details: details,
		Tool: e.cfg.Tool, ToolVersion: e.cfg.Version, Verification: approval.ErasureVerified,
		OrderedBy: in.OrderedBy, Begun: in.Begun.Unix(), Finished: max(e.cfg.Now().Unix(), in.Begun.Unix()),
	}, e.cfg.Key)
}

func (e *Eraser) record(ctx context.Context, in intent, result auditlog.Result, digest string) error {
	r := auditlog.NewRecord(e.cfg.Now(), auditlog.OpSanitizeDisk, result)
	r.ResourceID = fmt.Sprintf("/devices/%s/nodes/%d", e.cfg.Node.Serial, e.cfg.Node.Node)
	r.Caller, r.Origin, r.CorrelationID = cmp.Or(string(in.OrderedBy), e.cfg.Node.URI().String()), e.cfg.Node.String(), string(in.Order)
	r.Properties = map[string]string{"order": string(in.Order), "method": approval.ErasurePurge + ", " + approval.ErasureTechnique}
	for _, m := range in.Media {
		r.Properties["volume."+string(m.Disk)] = m.VolumeGUID
	}
	if digest != "" {
		r.Properties["digest"] = digest
	}
	_, err := e.cfg.Journal.Append(ctx, r)
	return err
}
