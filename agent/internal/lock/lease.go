package lock

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/agent/internal/share"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// lease is one attempt and what it opened, from Opening until all is undone.
type lease struct {
	gone chan struct{}  // closed when it has ended
	work sync.WaitGroup // opens, mounts and the job under way; see [Machine.enter]

	// Guarded by Machine.mu. The scope, the digests and base of the clocks do
	// not change once the order was adopted.
	scope
	orderDigest  approval.Digest
	intentDigest approval.Digest // the attempt, of which all nodes' proofs must be
	ended        bool
	cancels      []context.CancelFunc // of what is under way
	disks        []Disk
	targets      []copyjob.Target // of a consent, with what lets into them
	mounted      []protocol.DiskID
	shares       []copyjob.Share
	folders      []Folder
	server       ShareServer
	committing   bool
	detail       string // what went wrong that makes it end
	peers        []peer

	// The clocks. A time.Duration is boot time.
	wall     time.Time     // of the unlock, when it was confirmed by the order
	boot     time.Duration // of the unlock
	begun    time.Duration
	endsAt   time.Time
	openedAt time.Duration
	heard    time.Duration // last word of the control plane
	raised   time.Duration // last time that the high-water mark was raised
}

// peer is another node of the device, held to its own proofs of life.
type peer struct {
	ref         approval.NodeRef
	orderDigest approval.Digest
	openedAt    int64         // Unix seconds by its own clock, in the proof of the commit
	boot        time.Duration // by our clock, when the commit came
	fresh       time.Duration // by our clock, of its newest proof
}

// start sets the clocks of a lease that begins now, and its end: that of the
// window or the longest lease, whichever is earlier.
func (l *lease) start(wall time.Time, boot time.Duration, windowEnd time.Time, longest time.Duration) {
	l.wall, l.boot, l.heard, l.raised = wall, boot, boot, boot
	l.endsAt = wall.Add(longest)
	if windowEnd.Before(l.endsAt) {
		l.endsAt = windowEnd
	}
}

// wallAt returns what the wall clock would show if nobody had set it since the
// unlock.
func (l *lease) wallAt(boot time.Duration) time.Time { return l.wall.Add(boot - l.boot) }

// over reports whether the lease has ended, by the earlier of both clocks. If it
// is the wall clock alone that says so because somebody set it, the reason does
// not spend the approval.
func (l *lease) over(wall time.Time, boot time.Duration) (Reason, bool) {
	steady := l.wallAt(boot)
	switch {
	case !steady.Before(l.endsAt):
		return WindowOver, true
	case wall.Before(l.endsAt):
		return "", false
	case wall.Sub(steady) > maxClockError:
		return ClockSet, true
	}
	return WindowOver, true
}

// lost reports whether a peer's newest proof is older than the dead-man time.
func (l *lease) lost(boot, deadMan time.Duration) bool {
	return slices.ContainsFunc(l.peers, func(p peer) bool { return boot-p.fresh > deadMan })
}

// onDrop has cancel called when the lease ends. The caller holds Machine.mu.
func (l *lease) onDrop(cancel context.CancelFunc) { l.cancels = append(l.cancels, cancel) }

// end stops what is under way, keeps anything new from beginning, and wipes what
// lets into accounts. The caller holds Machine.mu.
func (l *lease) end() {
	l.ended = true
	for _, t := range l.targets {
		if t.Access != nil {
			t.Access.Wipe()
		}
	}
	close(l.gone)
	for _, cancel := range l.cancels {
		cancel()
	}
}

func (l *lease) describe() string {
	if l.correlation == "" {
		return string(l.purpose)
	}
	return string(l.purpose) + " under " + l.correlation
}

// spentBy reports whether the approval is used up when its lease ends for this
// reason. A consent lasts until its date, its revocation or the end of its
// order.
func (l *lease) spentBy(reason Reason) bool {
	if l.purpose == protocol.DataCopy {
		return reason == Revoked || reason == Tamper
	}
	return spends[reason]
}

func diskList(disks []protocol.DiskID) string {
	names := make([]string, len(disks))
	for i, d := range disks {
		names[i] = string(d)
	}
	return strings.Join(names, " ")
}

// Lease is what is unlocked, for whom and until when.
type Lease struct {
	Purpose   protocol.Purpose
	Subject   approval.Digest    // of the request statement or the consent
	RequestID protocol.RequestID // "" for data-copy
	Order     protocol.OrderID
	Ticket    protocol.TicketID
	Engineer  approval.Engineer // who alone may come in; zero for data-copy
	Access    approval.Access
	Begun     time.Time // the disks opened
	End       time.Time
	Protocols []approval.Protocol // over which the shares may be served beside SMB
	Shares    []copyjob.Share     // the share folders of the mounted disks
	Services  []share.Service     // over which the shares are reached, or why not
	Address   string              // of the one that asks for user and password, host:port; "" without one
	User      string              // of the shares
	Password  string              // of the shares; shown inside the engineer's session only
}

// Lease returns the present lease, and whether the node is unlocked.
func (m *Machine) Lease() (Lease, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != protocol.Unlocked {
		return Lease{}, false
	}
	return m.lease.view(), true
}

// leaseOf is what the lease is, before it is unlocked too.
func (m *Machine) leaseOf(l *lease) Lease {
	m.mu.Lock()
	defer m.mu.Unlock()
	return l.view()
}

// view is what others see of the lease. The caller holds Machine.mu.
func (l *lease) view() Lease {
	out := Lease{
		Purpose: l.purpose, Subject: l.subject, Order: l.orderID, Ticket: l.ticket, Engineer: l.engineer,
		Access: l.access, Begun: l.wallAt(l.openedAt), End: l.endsAt, Protocols: slices.Clone(l.protocols), Shares: slices.Clone(l.shares),
	}
	if l.purpose == protocol.SupportAccess {
		out.RequestID = protocol.RequestID(l.correlation)
	}
	if l.server != nil {
		out.Services = l.server.Services()
		out.User, out.Password = l.server.Credentials()
		for _, s := range out.Services {
			if s.Protocol == share.ProtocolSMB {
				out.Address = s.Address
			}
		}
	}
	return out
}

// Holder is whom a node is challenged, opened or unlocked for.
type Holder struct {
	Purpose  protocol.Purpose
	Subject  approval.Digest   // of the request statement or the consent
	Engineer approval.Engineer // zero for data-copy, and until an order was verified
}

// Holder returns whom the node is held for, from the challenge on, and whether it
// is held.
func (m *Machine) Holder() (Holder, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.lease != nil:
		return Holder{m.lease.purpose, m.lease.subject, m.lease.engineer}, true
	case m.challenge != nil:
		return Holder{Purpose: m.challenge.purpose, Subject: m.challenge.subject}, true
	}
	return Holder{}, false
}

// Heard says that the control plane has answered just now, and what time it said
// it was; zero if it said none. When it has not answered for the dead-man time,
// the node locks. A time that agrees with the wall clock raises the high-water
// mark, so that a wall clock that is set back later revives no approval whose
// window is over, even if it was never executed.
func (m *Machine) Heard(theirs time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wall, boot := m.cfg.Clock.Now(), m.cfg.Clock.Boot()
	if m.lease != nil {
		m.lease.heard = boot
	}
	if off := wall.Sub(theirs); theirs.IsZero() || off > maxClockError || off < -maxClockError || boot < m.nextMark {
		return
	}
	m.nextMark = boot + maxClockError // a finer mark says no more
	earlier := theirs
	if wall.Before(theirs) {
		earlier = wall
	}
	m.writer.try(func() error { return m.cfg.State.RaiseHighWater(earlier) })
}

// PeersOpened takes the newest proofs of opening of the device's other nodes.
// What does not verify, or is of another unlock, changes nothing.
func (m *Machine) PeersOpened(envelopes [][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != protocol.Unlocked {
		return
	}
	boot := m.cfg.Clock.Boot()
	for i := range m.lease.peers {
		p := &m.lease.peers[i]
		for _, e := range envelopes {
			o, err := approval.VerifyOpened(e, p.ref, m.lease.subject)
			if err == nil && o.OrderDigest == p.orderDigest {
				p.refresh(o.OpenedAt, boot)
			}
		}
	}
}

// refresh takes a proof that the peer made at that time by its own clock, which
// runs as ours does but may be off: what counts is the time since its first
// proof. A proof that was held back is as old as it is.
func (p *peer) refresh(openedAt int64, boot time.Duration) {
	made := p.boot + time.Duration(openedAt-p.openedAt)*time.Second
	p.fresh = max(p.fresh, min(made, boot))
}

// watch ends whatever has to end, until ctx does. While nothing is open it
// sleeps.
func (m *Machine) watch(ctx context.Context) {
	for {
		var tick <-chan time.Time
		if m.check() {
			tick = time.After(watchInterval)
		}
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
		case <-tick:
		}
	}
}

// check reads the clocks, ends what is due, and reports whether there is
// something to watch.
func (m *Machine) check() bool {
	m.mu.Lock()
	wall, boot := m.cfg.Clock.Now(), m.cfg.Clock.Boot()
	if m.state == protocol.Challenged && boot >= m.challenge.expires {
		m.discardChallengeLocked()
		m.moveLocked(expired)
	}
	reason, due := m.dueLocked(wall, boot)
	l := m.lease
	watching := m.challenge != nil || l != nil
	m.mu.Unlock()
	switch {
	case due:
		m.relock(reason, "", false, l)
	case l != nil:
		m.raiseHighWater(l, boot)
	}
	return watching
}

// dueLocked reports whether the lease has to end now, and why.
func (m *Machine) dueLocked(wall time.Time, boot time.Duration) (Reason, bool) {
	l := m.lease
	if m.state == protocol.Opening {
		return UnlockFailed, boot-l.begun > openWithin
	}
	if m.state != protocol.Opened && m.state != protocol.Unlocked {
		return "", false
	}
	if reason, over := l.over(wall, boot); over {
		return reason, true
	}
	switch {
	case m.state == protocol.Opened && boot-l.openedAt >= m.cfg.CommitWithin:
		return NotCommitted, true
	case boot-l.heard > m.cfg.DeadMan:
		return DeadMan, true
	case l.lost(boot, m.cfg.DeadMan):
		return PeerLost, true
	}
	return "", false
}

// raiseHighWater remembers the time once a minute while something is open, so
// that the wall clock cannot be set back to before. It waits for nothing.
func (m *Machine) raiseHighWater(l *lease, boot time.Duration) {
	m.mu.Lock()
	due := (m.state == protocol.Opened || m.state == protocol.Unlocked) && m.lease == l && boot-l.raised >= time.Minute
	if due {
		l.raised = boot
	}
	m.mu.Unlock()
	if due {
		m.writer.try(func() error { return m.cfg.State.RaiseHighWater(l.wallAt(boot)) })
	}
}
