package lock

import (
	"slices"

	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// Status is the node's state, for heartbeats and for staff. What it says of open
// disks is what the machine shows, not only what this package believes.
func (m *Machine) Status() *devicev1.NodeStatus {
	disks := m.cfg.Disks.Status()
	var sessions []*devicev1.SessionStatus
	if m.cfg.Sessions != nil {
		sessions = m.cfg.Sessions()
	}
	s := &devicev1.NodeStatus{
		Serial: string(m.cfg.Node.Serial), Node: int32(m.cfg.Node.Node), AgentVersion: m.cfg.Version,
		Time: m.cfg.Clock.Now().Unix(), Disks: disks, Sessions: sessions,
	}
	if p, err := m.cfg.Policy(); err == nil {
		s.TrustPolicyVersion, s.TrustPolicyDigest = int32(p.Document().Version), string(p.Digest())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.State, s.LastRelockReason, s.Fault, s.Job = string(m.state), string(m.lastReason), m.fault, m.job
	s.Shares = m.shareStatusLocked()
	if l := m.lease; l != nil {
		s.Purpose, s.RequestDigest = string(l.purpose), string(l.subject)
		if m.state == protocol.Unlocked {
			s.LeaseEnd = l.endsAt.Unix()
		}
		for _, d := range disks {
			d.State = l.diskState(protocol.DiskID(d.Disk), d.State)
		}
	}
	return s
}

// diskState returns how a disk of the lease stands, or else what was seen of it.
func (l *lease) diskState(id protocol.DiskID, seen string) string {
	switch {
	case slices.Contains(l.mounted, id):
		return "mounted"
	case slices.ContainsFunc(l.disks, func(d Disk) bool { return d.ID() == id }):
		return "open"
	case slices.Contains(l.diskIDs, id) && seen == "locked" && !l.ended:
		return "opening"
	}
	return seen
}

// shareStatus lists the shares that were last found on the disks. They are open
// while a lease for support lasts; the copy job's nobody else reaches.
func (m *Machine) shareStatus() []*devicev1.ShareStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shareStatusLocked()
}

func (m *Machine) shareStatusLocked() []*devicev1.ShareStatus {
	list := make([]*devicev1.ShareStatus, len(m.known))
	for i, k := range m.known {
		s := &devicev1.ShareStatus{Name: k.Name, Disk: string(k.disk), Protocol: "smb", State: "closed"}
		if l := m.lease; l != nil && l.server != nil && k.published && m.state == protocol.Unlocked {
			s.State, s.Address, s.Access = "open", l.server.Address(), string(l.access)
		}
		list[i] = s
	}
	return list
}
