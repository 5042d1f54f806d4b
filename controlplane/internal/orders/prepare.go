package orders

import (
	"context"
	"fmt"
	"slices"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// maxDisks is how many disks a device has at most.
const maxDisks = 256

// PrepareDevice binds a device with its nodes and disks to an order. The keys
// of the disks go to custody and are wiped from in; the bills of materials
// become version 1.
func (s *Service) PrepareDevice(ctx context.Context, caller auth.Caller, in *lockboxv1.PrepareDeviceRequest) (*lockboxv1.Order, error) {
	defer wipe(in)
	// A key service is asked, which may take its time, before anything is locked.
	k, err := s.cfg.Custody.OpenOrderKey(ctx, protocol.OrderID(in.Order))
	if err != nil {
		return nil, err
	}
	defer k.Wipe()
	err = s.change(ctx, string(caller.Person), auditlog.OpPrepareDevice, func(tx *store.Tx, rec *auditlog.Record) error {
		o, err := order(ctx, tx, caller, in.Order)
		if err != nil {
			return err
		}
		if o.Stage != DeviceOrdered {
			return conflict("order %s is at stage %s: a device is prepared once, at %s", o.ID, o.Stage, DeviceOrdered)
		}
		if err := checkPrepared(o, in); err != nil {
			return err
		}
		o.Serial = protocol.DeviceSerial(in.Serial)
		about(rec, o)
		rec.Properties["disks"] = fmt.Sprint(len(in.Disks))
		if err := s.bindDevice(ctx, tx, o, in.Disks); err != nil {
			return err
		}
		i := stageIndex(DevicePrepared)
		o.Stage, o.Status, o.Updated = trip[i].stage, trip[i].status, s.now()
		if err := tx.UpdateOrder(ctx, &o); err != nil {
			return err
		}
		if err := s.deposit(ctx, tx, caller, k, o, in.Disks); err != nil {
			return err
		}
		return s.addHistory(ctx, tx, o, trip[i].history, "device "+in.Serial)
	})
	if err != nil {
		return nil, err
	}
	return s.GetOrder(ctx, caller, &lockboxv1.GetOrderRequest{Id: in.Order})
}

func wipe(in *lockboxv1.PrepareDeviceRequest) {
	for _, d := range in.Disks {
		clear(d.ExternalKey)
	}
}

func checkPrepared(o store.Order, in *lockboxv1.PrepareDeviceRequest) error {
	if !protocol.DeviceSerial(in.Serial).Valid() {
		return invalid("%q is no serial: want 3 to 32 of A-Z, 0-9 and dash", in.Serial)
	}
	if len(in.Disks) > maxDisks {
		return invalid("%d disks: a device has at most %d", len(in.Disks), maxDisks)
	}
	seen := make(map[string]bool)
	nodes := make(map[int32]bool)
	for _, d := range in.Disks {
		name := fmt.Sprintf("%d/%s", d.Node, d.Disk)
		switch {
		case d.Node < 1 || int(d.Node) > nodesOf[o.SKU]:
			return invalid("disk %s: a %s has %d nodes", name, o.SKU, nodesOf[o.SKU])
		case !protocol.DiskID(d.Disk).Valid():
			return invalid("disk %s: want a name of 1 to 32 of a-z, 0-9 and dash", name)
		case seen[name]:
			return invalid("disk %s is named twice", name)
		}
		seen[name], nodes[d.Node] = true, true
		if err := checkManifests(o, d); err != nil {
			return fmt.Errorf("disk %s: %w", name, err)
		}
	}
	if len(nodes) != nodesOf[o.SKU] {
		return invalid("%d nodes have disks: a %s has %d nodes, each with disks of its own", len(nodes), o.SKU, nodesOf[o.SKU])
	}
	return nil
}

func checkManifests(o store.Order, d *lockboxv1.PreparedDisk) error {
	var seen []string
	for _, m := range d.Manifests {
		bom, err := manifest.ParseBOM(m.Bom)
		switch {
		case err != nil:
			return invalid("bill of materials of %s: %v", m.Share, err)
		case bom.Share.String() != m.Share:
			return invalid("bill of materials of %s is of %s", m.Share, bom.Share)
		case bom.Previous != "":
			return invalid("bill of materials of %s names a previous one: the first has none", m.Share)
		case slices.Contains(seen, m.Share):
			return invalid("two bills of materials of %s", m.Share)
		case !hasShare(o, m.Share):
			return invalid("share %s is not among the order's destinations", m.Share)
		}
		seen = append(seen, m.Share)
	}
	return nil
}

func hasShare(o store.Order, share string) bool {
	return slices.ContainsFunc(o.Destinations, func(d store.Destination) bool { return slices.Contains(d.Shares, share) })
}

// bindDevice writes nodes, disks and first manifests.
func (s *Service) bindDevice(ctx context.Context, tx *store.Tx, o store.Order, disks []*lockboxv1.PreparedDisk) error {
	for n := range nodesOf[o.SKU] {
		node := store.Node{ID: protocol.NodeID{Serial: o.Serial, Node: n + 1}, Order: o.ID}
		if err := tx.InsertNode(ctx, &node); err != nil {
			return err
		}
	}
	for _, d := range disks {
		node := protocol.NodeID{Serial: o.Serial, Node: int(d.Node)}
		disk := store.Disk{Node: node, ID: protocol.DiskID(d.Disk), Order: o.ID, VolumeGUID: d.VolumeGuid, Created: s.now()}
		if err := tx.InsertDisk(ctx, &disk); err != nil {
			return err
		}
		for _, m := range d.Manifests {
			row := store.Manifest{
				Serial: node.Serial, Node: node.Node, Disk: disk.ID, Share: m.Share, Version: 1, Order: o.ID,
				BOM: m.Bom, Digest: manifest.Digest(m.Bom), Time: s.now(),
			}
			if err := tx.InsertManifest(ctx, &row); err != nil {
				return err
			}
		}
	}
	return nil
}

// deposit gives the keys of the disks into custody, which wipes them.
func (s *Service) deposit(ctx context.Context, tx *store.Tx, caller auth.Caller, k *custody.OrderKey, o store.Order, disks []*lockboxv1.PreparedDisk) error {
	var in []custody.Deposit
	for _, d := range disks {
		in = append(in, custody.Deposit{
			Node: protocol.NodeID{Serial: o.Serial, Node: int(d.Node)}, Disk: protocol.DiskID(d.Disk),
			ExternalKey: d.ExternalKey, RecoveryPassword: d.RecoveryPassword,
		})
	}
	return s.cfg.Custody.Deposit(ctx, tx, caller, k, in)
}
