package lock

import (
	"slices"

	"github.com/databox-lockbox/lockbox/agent/internal/share"
	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// Status is the node's state, for heartbeats and for staff. What it says of open
// disks is what the machine shows, not only what this package believes.
func (m *Machine) Status() *devicev1.NodeStatus {
	disks, able := m.cfg.Disks.Status(), m.shareServices()
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
	s.LastRelockDetail = m.lastDetail
	services := m.servicesLocked(able)
	s.Shares, s.ShareServices = m.shareStatusLocked(services), serviceStatus(services)
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

// shareServices says of each protocol whether this machine can serve it.
func (m *Machine) shareServices() []share.Service {
	if m.cfg.Bare {
		return nil
	}
	return m.cfg.Shares.Services()
}

// shareStatus lists the shares that were last found on the disks. They are open
// while a lease for support lasts; the copy job's nobody else reaches.
func (m *Machine) shareStatus() []*devicev1.ShareStatus {
	able := m.shareServices()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shareStatusLocked(m.servicesLocked(able))
}

// servicesLocked says how each protocol stands: as the lease's server says, or
// else as able says.
func (m *Machine) servicesLocked(able []share.Service) []share.Service {
	if l := m.lease; l != nil && l.server != nil && m.state == protocol.Unlocked {
		return l.server.Services()
	}
	return able
}

// shareStatusLocked lists each share once for each protocol.
func (m *Machine) shareStatusLocked(services []share.Service) []*devicev1.ShareStatus {
	var list []*devicev1.ShareStatus
	for _, k := range m.known {
		for _, service := range services {
			s := &devicev1.ShareStatus{Name: k.Name, Disk: string(k.disk), Protocol: service.Protocol, State: "closed"}
			switch {
			case service.Trouble != "":
				s.State, s.Detail = "unavailable", service.Trouble
			case service.Address != "" && k.published:
				s.State, s.Address, s.Access = "open", service.Address, string(m.lease.access)
			}
			list = append(list, s)
		}
	}
	return list
}

func serviceStatus(services []share.Service) []*devicev1.ShareService {
	list := make([]*devicev1.ShareService, len(services))
	for i, s := range services {
		list[i] = &devicev1.ShareService{Protocol: s.Protocol, State: "ready", Address: s.Address, Detail: s.Trouble}
		switch {
		case s.Trouble != "":
			list[i].State = "unavailable"
		case s.Address != "":
			list[i].State = "open"
		}
	}
	return list
}
