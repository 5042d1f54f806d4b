package orders

import (
	"bytes"
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// writeEvery is how often a node that reports nothing new is written down. In
// between only memory knows that it was seen.
const writeEvery = 5 * time.Minute

// Limits of a report, in bytes.
const (
	maxOpened = 16 << 10  // of the proof of opening
	maxStatus = 256 << 10 // of the whole status
)

// report is what a node last said.
type report struct {
	seen    time.Time
	written time.Time // when it was last written to the store
	status  []byte    // NodeStatus without its time
	logSize int64
	opened  []byte // newest proof of opening, nil while no lease is held
}

// Heartbeat takes a node's report and returns the newest proofs of its peers.
func (s *Service) Heartbeat(ctx context.Context, node protocol.NodeID, in *devicev1.HeartbeatRequest) (*devicev1.HeartbeatResponse, error) {
	status := in.Status
	if status == nil || status.Serial != string(node.Serial) || int(status.Node) != node.Node {
		return nil, invalid("the report is not of node %s itself", node)
	}
	if len(in.Opened) > maxOpened {
		return nil, invalid("the proof of opening is longer than %d bytes", maxOpened)
	}
	now := s.now()
	full, err := proto.Marshal(status)
	if err != nil {
		return nil, err
	}
	if len(full) > maxStatus {
		return nil, invalid("the report is longer than %d bytes", maxStatus)
	}
	if s.note(node, in, now) {
		err := s.cfg.Store.Tx(ctx, func(tx *store.Tx) error {
			n, err := tx.Node(ctx, node)
			if err != nil {
				return err
			}
			if !n.Revoked.IsZero() {
				return protocol.Errorf(protocol.CodeForbidden, "node %s was revoked", node)
			}
			if err := s.noticePolicy(ctx, tx, n, status.TrustPolicyDigest); err != nil {
				return err
			}
			return tx.NodeSeen(ctx, node, now, full, in.LogSize)
		})
		if err != nil {
			s.forget(node)
			return nil, err
		}
	}
	if s.isWaiting(node) {
		s.wakeRun()
	}
	return &devicev1.HeartbeatResponse{
		Time: now.Unix(), PeersOpened: s.peers(node), IntervalSeconds: int32(s.cfg.Heartbeat / time.Second),
	}, nil
}

// note keeps a report in memory and reports whether it is to be written down.
func (s *Service) note(node protocol.NodeID, in *devicev1.HeartbeatRequest, now time.Time) bool {
	quiet := proto.CloneOf(in.Status)
	quiet.Time = 0
	status, err := proto.MarshalOptions{Deterministic: true}.Marshal(quiet)
	if err != nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.seen[node]
	next := report{seen: now, written: last.written, status: status, logSize: in.LogSize, opened: in.Opened}
	news := !bytes.Equal(last.status, status) || last.logSize != in.LogSize || now.Sub(last.written) >= writeEvery
	if news {
		next.written = now
	}
	s.seen[node] = next
	return news
}

// forget drops what memory knows of a node, so that its next report is written.
func (s *Service) forget(node protocol.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.seen, node)
}

// peers returns the newest proofs of the other nodes of a device.
func (s *Service) peers(node protocol.NodeID) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var proofs [][]byte
	for n := range 2 {
		id := protocol.NodeID{Serial: node.Serial, Node: n + 1}
		if id != node && len(s.seen[id].opened) > 0 {
			proofs = append(proofs, s.seen[id].opened)
		}
	}
	return proofs
}

// lastSeen returns when a node last reported.
func (s *Service) lastSeen(n store.Node) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seen := s.seen[n.ID].seen; seen.After(n.LastSeen) {
		return seen
	}
	return n.LastSeen
}

// Status returns what a node last reported; the zero status if it never did.
func Status(n store.Node) (*devicev1.NodeStatus, error) {
	status := &devicev1.NodeStatus{}
	return status, proto.Unmarshal(n.Status, status)
}

// ListDevices shows the devices of an order, or all that the caller may see, as
// [Service.GetDevice] does.
func (s *Service) ListDevices(ctx context.Context, caller auth.Caller, in *lockboxv1.ListDevicesRequest) (*lockboxv1.ListDevicesResponse, error) {
	v, err := s.sightOf(ctx, caller, readDevices, nil)
	if err != nil {
		return nil, err
	}
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.ListDevicesResponse, error) {
		list, err := tx.Orders(ctx, caller.Scope())
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.ListDevicesResponse{}
		for _, o := range list {
			if o.Serial == "" || in.Order != "" && in.Order != string(o.ID) || !caller.Sees(o.Tenant) {
				continue
			}
			d, err := s.showDevice(ctx, tx, o, v.whole(o))
			if err != nil {
				return nil, err
			}
			out.Devices = append(out.Devices, d)
		}
		return out, nil
	})
}

// GetDevice shows one device: to an engineer without a ticket about its order, or
// access to the subscription, an outline.
func (s *Service) GetDevice(ctx context.Context, caller auth.Caller, in *lockboxv1.GetDeviceRequest) (*lockboxv1.Device, error) {
	o, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (store.Order, error) { return device(ctx, tx, caller, in.Serial) })
	if err != nil {
		return nil, err
	}
	v, err := s.sightOf(ctx, caller, readDevice, &o)
	if err != nil {
		return nil, err
	}
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.Device, error) { return s.showDevice(ctx, tx, o, v.whole(o)) })
}

// device reads the order of a device that caller may see.
func device(ctx context.Context, tx *store.Tx, caller auth.Caller, serial string) (store.Order, error) {
	o, err := tx.OrderOfDevice(ctx, protocol.DeviceSerial(serial))
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && !caller.Sees(o.Tenant) {
		err = notFound("device", serial)
	}
	return o, err
}

// RevokeDevice ends the certificates of a node, or of all nodes of a device if
// node is 0, and closes their tunnels. Without a tunnel a node locks within its
// dead-man time.
func (s *Service) RevokeDevice(ctx context.Context, caller auth.Caller, in *lockboxv1.RevokeDeviceRequest) (*lockboxv1.Device, error) {
	if len(in.Reason) > maxText {
		return nil, invalid("a reason has at most %d bytes", maxText)
	}
	var ended []protocol.NodeID
	err := s.change(ctx, string(caller.Person), auditlog.OpRevokeDevice, func(tx *store.Tx, rec *auditlog.Record) error {
		o, err := device(ctx, tx, caller, in.Serial)
		if err != nil {
			return err
		}
		about(rec, o)
		rec.ResourceID, rec.Properties["reason"] = "/devices/"+in.Serial, in.Reason
		nodes, err := tx.NodesOfDevice(ctx, o.Serial)
		if err != nil {
			return err
		}
		var done []protocol.NodeID
		for _, n := range nodes {
			if in.Node != 0 && int(in.Node) != n.ID.Node {
				continue
			}
			n.Revoked = s.now()
			if err := tx.EndDeviceCerts(ctx, n.ID, s.now()); err != nil {
				return err
			}
			if err := tx.UpdateNode(ctx, &n); err != nil {
				return err
			}
			done = append(done, n.ID)
		}
		if len(done) == 0 {
			return notFound("node", protocol.NodeID{Serial: o.Serial, Node: int(in.Node)}.String())
		}
		ended = done
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, id := range ended {
		s.forget(id)
		s.cfg.Tunnels.Disconnect(id, "the node was revoked")
	}
	return s.GetDevice(ctx, caller, &lockboxv1.GetDeviceRequest{Serial: in.Serial})
}

func (s *Service) showDevice(ctx context.Context, tx *store.Tx, o store.Order, whole bool) (*lockboxv1.Device, error) {
	out := &lockboxv1.Device{Serial: string(o.Serial), Order: string(o.ID), Sku: o.SKU, Outline: !whole}
	if !whole {
		return out, nil
	}
	nodes, err := tx.NodesOfDevice(ctx, o.Serial)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		shown, err := s.showNode(ctx, tx, n)
		if err != nil {
			return nil, err
		}
		out.Nodes = append(out.Nodes, shown)
	}
	return out, nil
}

func (s *Service) showNode(ctx context.Context, tx *store.Tx, n store.Node) (*lockboxv1.DeviceNode, error) {
	status, err := Status(n)
	if err != nil {
		return nil, err
	}
	disks, err := tx.DisksOfNode(ctx, n.ID)
	if err != nil {
		return nil, err
	}
	return &lockboxv1.DeviceNode{
		Node: int32(n.ID.Node), Enrolled: n.KeyFingerprint != "", Revoked: !n.Revoked.IsZero(),
		Online: s.cfg.Tunnels.Online(n.ID), LastSeen: unix(s.lastSeen(n)), KeyFingerprint: n.KeyFingerprint,
		CertificateExpires: unix(n.CertExpires), State: status.State, Purpose: status.Purpose, LeaseEnd: status.LeaseEnd,
		Disks: showDisks(disks, status.Disks), Shares: showShares(status.Shares),
		LastRelockReason: status.LastRelockReason, JobState: status.GetJob().GetState(), Fault: status.Fault,
	}, nil
}

// showDisks shows the disks that were prepared, with what the node says of them.
func showDisks(disks []store.Disk, said []*devicev1.DiskStatus) []*lockboxv1.DeviceDisk {
	var out []*lockboxv1.DeviceDisk
	for _, d := range disks {
		shown := &lockboxv1.DeviceDisk{Disk: string(d.ID), VolumeGuid: d.VolumeGUID}
		for _, r := range said {
			if r.Disk == shown.Disk {
				shown.State, shown.Method, shown.Size = r.State, r.Method, r.Size
			}
		}
		out = append(out, shown)
	}
	return out
}

func showShares(said []*devicev1.ShareStatus) []*lockboxv1.DeviceShare {
	var out []*lockboxv1.DeviceShare
	for _, r := range said {
		out = append(out, &lockboxv1.DeviceShare{Name: r.Name, Disk: r.Disk, State: r.State, Protocol: r.Protocol, Address: r.Address})
	}
	return out
}
