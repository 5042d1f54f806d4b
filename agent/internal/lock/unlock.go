package lock

import (
	"context"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
	"github.com/databox-lockbox/lockbox/protocol/sealing"
)

// The phases of an unlock, as progress is told of them.
const (
	phaseVerifying = "verifying"
	phaseRecording = "recording"
	phaseOpening   = "opening"
	phaseOpen      = "open"
)

// Unlock verifies an order and opens its disks, all or none. Nothing is shared
// yet, and after [Config.CommitWithin] without a commit all is locked again.
//
// peer is nil if the other end of the tunnel proved to be the control plane,
// else it says why not. progress may be nil; disk is "" in phases that concern
// them all. The result is the signed envelope of an [approval.Opened]. A refusal
// carries a code of package protocol and has been recorded, if that could be
// done.
func (m *Machine) Unlock(ctx context.Context, peer error, req *devicev1.UnlockRequest, progress func(disk protocol.DiskID, phase string)) ([]byte, error) {
	if progress == nil {
		progress = func(protocol.DiskID, string) {}
	}
	ctx, cancel := context.WithTimeout(ctx, openWithin)
	defer cancel()
	proof, err := m.unlock(ctx, cancel, peer, req, progress)
	if err != nil {
		m.recordRefusal(req, err)
		return nil, err
	}
	return proof, nil
}

func (m *Machine) unlock(ctx context.Context, cancel context.CancelFunc, peer error, req *devicev1.UnlockRequest, progress func(protocol.DiskID, string)) (proof []byte, err error) {
	c, l, err := m.beginAttempt(cancel)
	if err != nil {
		return nil, err
	}
	if c == nil {
		_, err := m.verify(peer, nil, req) // refuses, for want of a nonce at the latest
		return nil, err
	}
	defer c.key.Wipe()
	defer func() { // also when something below panics
		if proof == nil {
			err = m.explain(l, err)
			m.abandon(l)
		}
	}()
	progress("", phaseVerifying)
	v, err := m.verify(peer, c, req)
	if err != nil {
		return nil, err
	}
	if err := m.adopt(l, v); err != nil {
		return nil, err
	}
	progress("", phaseRecording)
	if err := m.settle(v); err != nil {
		return nil, err
	}
	return m.openAll(ctx, l, c, v, progress)
}

// openAll opens all disks of an order, or fails with some of them open.
func (m *Machine) openAll(ctx context.Context, l *lease, c *challenge, v verified, progress func(protocol.DiskID, string)) ([]byte, error) {
	for _, k := range v.order.Keys {
		if ctx.Err() != nil {
			return nil, protocol.Errorf(protocol.CodeTimeout, "the disks were not opened in time, or nobody waits for it any more")
		}
		progress(k.Disk, phaseOpening)
		if err := m.openDisk(ctx, l, c.key, v, k); err != nil {
			return nil, err
		}
		progress(k.Disk, phaseOpen)
	}
	if err := m.openAccess(l, c.key, v); err != nil {
		return nil, err
	}
	if err := m.becomeOpened(l); err != nil {
		return nil, err
	}
	m.recordAfter(m.record(v.scope, auditlog.OpUnlockVolume, auditlog.Success, "disks", diskList(v.diskIDs), "orderDigest", string(v.orderDigest)))
	return m.signOpened(l)
}

// beginAttempt takes the outstanding challenge, which is dead from here on. With
// a challenge, the state is Opening and there is a lease; without one there is
// neither. It fails if something else holds the node.
func (m *Machine) beginAttempt(cancel context.CancelFunc) (*challenge, *lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.running || m.state != protocol.Locked && !m.allowsLocked(attempted) {
		return nil, nil, m.refusalLocked()
	}
	if m.challenge == nil {
		return nil, nil, nil
	}
	c := m.challenge
	m.challenge = nil
	m.lease = &lease{scope: scope{purpose: c.purpose, subject: c.subject}, begun: m.cfg.Clock.Boot(), gone: make(chan struct{})}
	m.lease.onDrop(cancel)
	m.moveLocked(attempted)
	return c, m.lease, nil
}

// adopt gives the lease what the order allows and starts its clocks. Whoever
// spends the approval from here on finds the lease and ends it.
func (m *Machine) adopt(l *lease, v verified) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.ended {
		return lockedMeanwhile()
	}
	for _, digest := range []approval.Digest{v.subject, v.standingDigest} {
		if reason, ok := m.used[digest]; ok {
			return usedUp(string(reason))
		}
	}
	l.scope, l.orderDigest, l.intentDigest = v.scope, v.orderDigest, v.order.IntentDigest()
	l.start(v.now, m.cfg.Clock.Boot(), v.end, m.cfg.MaxLease)
	return nil
}

func lockedMeanwhile() error {
	return protocol.Errorf(protocol.CodeLocked, "the node was locked meanwhile")
}

// explain returns err, unless it came of the lease having ended meanwhile.
func (m *Machine) explain(l *lease, err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil && l.ended {
		return lockedMeanwhile()
	}
	return err
}

// openDisk opens one disk with the key that was sealed for it. The key is wiped
// before it returns.
func (m *Machine) openDisk(ctx context.Context, l *lease, key *sealing.PrivateKey, v verified, sealed approval.SealedKey) error {
	if sealed.KeyType != string(sealing.ExternalKey) {
		return protocol.Errorf(protocol.CodeDiskKey, "the key of disk %s is of type %q: want %s", sealed.Disk, sealed.KeyType, sealing.ExternalKey)
	}
	plain, err := key.Open(sealing.Context{
		RequestDigest: string(v.subject), DecisionsDigest: string(v.decisionsDigest), Nonce: v.order.Nonce,
		Node: m.cfg.Node, Disk: sealed.Disk, Purpose: v.purpose, KeyType: sealing.ExternalKey,
	}, sealed.Ciphertext)
	if err != nil {
		return err
	}
	defer clear(plain)
	external, err := bitlocker.NewExternalKey(plain)
	if err != nil {
		return protocol.Errorf(protocol.CodeDiskKey, "the key of disk %s: %v", sealed.Disk, err)
	}
	defer external.Wipe()
	if !m.enter(l) {
		return lockedMeanwhile()
	}
	defer l.work.Done()
	d, err := m.cfg.Disks.Open(ctx, sealed.Disk, external, v.readOnly())
	if err != nil {
		if protocol.CodeOf(err) != protocol.CodeInternal {
			return err
		}
		return protocol.Errorf(protocol.CodeDisks, "disk %s cannot be opened: %v", sealed.Disk, err)
	}
	return m.hold(l, d)
}

// openAccess gives the lease the destinations of its consent, with what was sealed
// that lets into them.
func (m *Machine) openAccess(l *lease, key *sealing.PrivateKey, v verified) error {
	for _, d := range v.destinations {
		t := copyjob.Target{Destination: d}
		for _, sealed := range v.order.Access {
			if sealed.Account != d.Account {
				continue
			}
			query, err := key.Open(sealing.Context{
				RequestDigest: string(v.subject), DecisionsDigest: string(v.decisionsDigest), Nonce: v.order.Nonce,
				Node: m.cfg.Node, Account: d.Account, Endpoint: d.Endpoint, Purpose: v.purpose, KeyType: sealing.AccessToStorage,
			}, sealed.Ciphertext)
			if err != nil {
				return err
			}
			if err := manifest.CheckSignature(query); err != nil {
				clear(query)
				return protocol.Errorf(protocol.CodeDiskKey, "what lets into account %s: %v", d.Account, err)
			}
			t.Access = copyjob.NewAccess(query)
		}
		if !m.holdTarget(l, t) {
			return lockedMeanwhile()
		}
	}
	return nil
}

// holdTarget gives a destination to the lease. If that has ended, what lets in is
// wiped.
func (m *Machine) holdTarget(l *lease, t copyjob.Target) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.ended && t.Access != nil {
		t.Access.Wipe()
	}
	l.targets = append(l.targets, t)
	return !l.ended
}

// enter says that work for the lease begins, which [Machine.drop] waits for a
// little; it ends with l.work.Done. It reports false if the lease has ended.
func (m *Machine) enter(l *lease) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.ended {
		return false
	}
	l.work.Add(1)
	return true
}

// hold gives an opened disk to the lease. If that has ended meanwhile, the disk
// is closed again.
func (m *Machine) hold(l *lease, d Disk) error {
	m.mu.Lock()
	ended := l.ended
	if !ended {
		l.disks = append(l.disks, d)
	}
	m.mu.Unlock()
	if !ended {
		return nil
	}
	d.Wipe()
	ctx, cancel := context.WithTimeout(context.Background(), lockWithin)
	defer cancel()
	if err := d.Close(ctx); err != nil {
		return protocol.Errorf(protocol.CodeLocked, "the node was locked meanwhile: %v", err)
	}
	return lockedMeanwhile()
}

func (m *Machine) becomeOpened(l *lease) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.ended {
		return lockedMeanwhile()
	}
	l.openedAt = m.cfg.Clock.Boot()
	m.moveLocked(opened)
	return nil
}

// signOpened returns a proof of opening. Its time is that of the unlock and what
// CLOCK_BOOTTIME counted since, so that setting the date changes nothing.
func (m *Machine) signOpened(l *lease) ([]byte, error) {
	return approval.SignEd25519(approval.Opened{
		Node: approval.NameOf(m.cfg.Node), NodeKey: m.pub, OrderDigest: l.orderDigest, IntentDigest: l.intentDigest,
		RequestDigest: l.subject, OpenedAt: l.wallAt(m.cfg.Clock.Boot()).Unix(),
	}, m.cfg.Key)
}

// abandon ends an attempt that failed.
func (m *Machine) abandon(l *lease) {
	m.mu.Lock()
	if m.lease == l && m.state == protocol.Opening && len(l.disks) == 0 {
		l.end()
		m.lease = nil
		m.moveLocked(refused)
	}
	m.mu.Unlock()
	m.relock(UnlockFailed, l.subject, false, l)
}

// Opened returns a fresh proof of opening for the heartbeat, nil if nothing is
// open.
func (m *Machine) Opened() []byte {
	m.mu.Lock()
	l := m.lease
	open := m.state == protocol.Opened || m.state == protocol.Unlocked
	m.mu.Unlock()
	if !open {
		return nil
	}
	proof, err := m.signOpened(l)
	if err != nil {
		return nil // the peers will lock, as they must
	}
	return proof
}
