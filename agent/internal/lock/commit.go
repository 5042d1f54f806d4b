package lock

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// Commit publishes the shares of the opened disks, or starts the copy job. The
// envelope is an [approval.Commit]: the service's word, with the proof of every
// node that it opened for the same approval in the same attempt, this one under
// the order it has carried out. A refused commit leaves the disks open until their time is up;
// anything that fails later locks them at once.
func (m *Machine) Commit(ctx context.Context, envelope []byte) (leaseEnd time.Time, shares []*devicev1.ShareStatus, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := m.beginCommit(cancel)
	if err != nil {
		return time.Time{}, nil, err
	}
	peers, err := m.verifyCommit(l, envelope)
	if err != nil {
		m.endCommit(l)
		m.recordAfter(m.record(l.scope, auditlog.OpCommitUnlock, auditlog.Refused, "code", string(protocol.CodeOf(err)), "message", text(err)))
		return time.Time{}, nil, err
	}
	if err := m.carryOut(ctx, l, peers); err != nil {
		return time.Time{}, nil, err
	}
	m.recordAfter(m.opening(l))
	return l.endsAt, m.shareStatus(), nil
}

// carryOut records the commit, publishes what it is for, and leads to Unlocked.
// What fails here locks the node.
func (m *Machine) carryOut(ctx context.Context, l *lease, peers []peer) (err error) {
	done := false
	defer func() { // also when something below panics
		if !done {
			err = m.explain(l, err)
			m.relock(UnlockFailed, l.subject, false, l)
		}
	}()
	if err := m.append(m.record(l.scope, auditlog.OpCommitUnlock, auditlog.Start, "disks", diskList(l.diskIDs))); err != nil {
		return protocol.Errorf(protocol.CodeNotRecorded, "nothing was shared, because it could not be recorded: %v", err)
	}
	if err := m.publish(ctx, l); err != nil {
		return err
	}
	if err := m.becomeUnlocked(ctx, l, peers); err != nil {
		return err
	}
	done = true
	return nil
}

// opening is the record that shares are open, or the job runs.
func (m *Machine) opening(l *lease) auditlog.Record {
	op := auditlog.OpOpenShares
	if l.purpose == protocol.DataCopy {
		op = auditlog.OpDataCopyStarted
	}
	names := make([]string, len(l.folders))
	for i, f := range l.folders {
		names[i] = f.Name
	}
	return m.record(l.scope, op, auditlog.Success, "shares", strings.Join(names, " "), "access", string(l.access), "leaseEnd", l.endsAt.UTC().Format(time.RFC3339))
}

// beginCommit takes the opened lease for one commit.
func (m *Machine) beginCommit(cancel context.CancelFunc) (*lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.running || m.state == protocol.Faulted:
		return nil, m.refusalLocked()
	case !m.allowsLocked(committed):
		return nil, protocol.Errorf(protocol.CodeNotOpened, "node %s is %s: there is nothing to commit", m.cfg.Node, m.state)
	case m.lease.committing:
		return nil, protocol.Errorf(protocol.CodeBusy, "node %s is being committed already", m.cfg.Node)
	}
	m.lease.committing = true
	m.lease.onDrop(cancel)
	return m.lease, nil
}

func (m *Machine) endCommit(l *lease) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l.committing = false
}

// verifyCommit verifies the commit and returns the other nodes, whose proofs of
// life are to follow.
func (m *Machine) verifyCommit(l *lease, envelope []byte) ([]peer, error) {
	policy, err := m.cfg.Policy()
	if err != nil {
		return nil, protocol.Errorf(protocol.CodePolicyDigest, "node %s has no valid trust policy: %v", m.cfg.Node, err)
	}
	boot := m.cfg.Clock.Boot()
	c, err := policy.VerifyCommit(approval.CommitRequest{
		Commit: envelope, Subject: l.subject, Nodes: l.nodes, Self: m.cfg.Node,
		OrderDigest: l.orderDigest, IntentDigest: l.intentDigest, Now: l.wallAt(boot),
	})
	if err != nil {
		return nil, err
	}
	var peers []peer
	for _, node := range l.nodes {
		if node == m.self {
			continue
		}
		for _, e := range c.Opened {
			if o, err := approval.VerifyOpened(e, node, l.subject); err == nil {
				peers = append(peers, peer{node, o.OrderDigest, o.OpenedAt, boot, boot})
				break
			}
		}
	}
	return peers, nil
}

// publish mounts the disks and, for support, opens the shares.
func (m *Machine) publish(ctx context.Context, l *lease) error {
	if m.cfg.Bare {
		return nil
	}
	if !m.enter(l) {
		return lockedMeanwhile()
	}
	defer l.work.Done()
	found, err := m.mountAll(ctx, l)
	if err != nil {
		return err
	}
	m.holdShares(l, found)
	if l.purpose == protocol.DataCopy || len(l.folders) == 0 {
		return nil
	}
	server, err := m.cfg.Shares.Start(ctx, m.leaseOf(l), l.folders)
	if err != nil {
		return coded(err, protocol.CodeUnavailable, "cannot open the shares")
	}
	return m.holdServer(l, server)
}

// holdShares gives the lease those of the shares found that it is for.
func (m *Machine) holdShares(l *lease, found []copyjob.Share) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known = make([]knownShare, len(found))
	for i, f := range folders(found) {
		m.known[i] = knownShare{f, found[i].Disk, l.publishes(found[i].String())}
		if m.known[i].published {
			l.shares, l.folders = append(l.shares, found[i]), append(l.folders, f)
		}
	}
}

// coded keeps the code of err, or gives it one.
func coded(err error, code protocol.Code, what string) error {
	if protocol.CodeOf(err) != protocol.CodeInternal {
		return err
	}
	return protocol.Errorf(code, "%s: %v", what, err)
}

// holdServer gives the share server to the lease. If that has ended meanwhile,
// the server is stopped again.
func (m *Machine) holdServer(l *lease, server ShareServer) error {
	m.mu.Lock()
	ended := l.ended
	if !ended {
		l.server = server
	}
	m.mu.Unlock()
	if !ended {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockWithin)
	defer cancel()
	if err := server.Stop(ctx, Unspecified); err != nil {
		return protocol.Errorf(protocol.CodeLocked, "the node was locked meanwhile: %v", err)
	}
	return lockedMeanwhile()
}

// mountAll mounts all disks side by side and lists their shares.
func (m *Machine) mountAll(ctx context.Context, l *lease) ([]copyjob.Share, error) {
	m.mu.Lock()
	disks := slices.Clone(l.disks)
	m.mu.Unlock()
	shares, errs := make([][]copyjob.Share, len(disks)), make([]error, len(disks))
	var all sync.WaitGroup
	for i, d := range disks {
		all.Go(func() { shares[i], errs[i] = m.mount(ctx, l, d) })
	}
	all.Wait()
	for i, err := range errs {
		if err != nil {
			return nil, coded(err, protocol.CodeDisks, fmt.Sprintf("cannot mount disk %s", disks[i].ID()))
		}
	}
	return slices.Concat(shares...), nil
}

func (m *Machine) mount(ctx context.Context, l *lease, d Disk) ([]copyjob.Share, error) {
	root, err := d.Mount(ctx)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	ended := l.ended
	l.mounted = append(l.mounted, d.ID())
	m.mu.Unlock()
	if ended { // Close, which undoes the mount, has been or will be called
		return nil, lockedMeanwhile()
	}
	return copyjob.Shares(d.ID(), root)
}

// knownShare is a share that was found on a disk.
type knownShare struct {
	Folder
	disk      protocol.DiskID
	published bool // by the lease that found it
}

// folders names what is published: each share by its name, and with the disk
// behind it where two disks have a share of that name.
func folders(shares []copyjob.Share) []Folder {
	count := make(map[string]int)
	for _, s := range shares {
		count[s.String()]++
	}
	list := make([]Folder, len(shares))
	for i, s := range shares {
		list[i] = Folder{s.String(), s.Dir()}
		if count[s.String()] > 1 {
			list[i].Name += "-" + string(s.Disk)
		}
	}
	return list
}

// becomeUnlocked begins the lease proper, the watch over what serves it, and the
// copy job.
func (m *Machine) becomeUnlocked(ctx context.Context, l *lease, peers []peer) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.ended {
		return lockedMeanwhile()
	}
	l.peers, l.heard = peers, m.cfg.Clock.Boot()
	m.moveLocked(committed)
	for _, d := range l.disks {
		m.guardLocked(l, d.Done(), DiskEnded, nil)
	}
	if l.server != nil {
		m.guardLocked(l, l.server.Done(), ShareEnded, l.server.Err)
	}
	if l.purpose == protocol.DataCopy && !m.cfg.Bare {
		m.startJobLocked(ctx, l)
	}
	if l.purpose == protocol.SupportAccess && !m.cfg.Bare && m.cfg.Watch != nil {
		m.startWatchLocked(ctx, l)
	}
	return nil
}

// startWatchLocked has somebody watch over the shares until the lease ends.
// Locking does not wait for them.
func (m *Machine) startWatchLocked(ctx context.Context, l *lease) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l.onDrop(cancel)
	view := l.view()
	m.tasks.Go(func() {
		defer cancel()
		m.cfg.Watch(ctx, view)
	})
}

// guardLocked locks the node when done is closed while the lease lasts. Then why,
// unless it is nil, says more.
func (m *Machine) guardLocked(l *lease, done <-chan struct{}, reason Reason, why func() error) {
	m.tasks.Go(func() {
		select {
		case <-done:
			if why != nil {
				m.explainEnd(l, why())
			}
			m.relock(reason, "", false, l)
		case <-l.gone:
		}
	})
}

// explainEnd notes what made a lease end.
func (m *Machine) explainEnd(l *lease, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l.detail = text(err)
}
