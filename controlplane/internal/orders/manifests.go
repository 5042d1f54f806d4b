package orders

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// ReportManifest takes the bills of materials that a node's prepare-to-ship
// made. Each continues the newest one of its share, whose digest it carries.
func (s *Service) ReportManifest(ctx context.Context, node protocol.NodeID, in *devicev1.ReportManifestRequest) (*devicev1.ReportManifestResponse, error) {
	if in.State == "" || len(in.State) > maxName || len(in.Manifests) > maxDisks {
		return nil, invalid("a report of prepare-to-ship has a state of 1 to %d bytes and at most %d bills of materials", maxName, maxDisks)
	}
	err := s.change(ctx, node.URI().String(), auditlog.OpPrepareToShip, func(tx *store.Tx, rec *auditlog.Record) error {
		o, err := s.orderOfNode(ctx, tx, node, in.Order)
		if err != nil {
			return err
		}
		request, err := requestOf(ctx, tx, o, in.Request)
		if err != nil {
			return err
		}
		known, err := tx.Manifests(ctx, o.ID)
		if err != nil {
			return err
		}
		about(rec, o)
		rec.CorrelationID = string(request)
		rec.Properties["node"], rec.Properties["state"] = node.String(), in.State
		for _, m := range in.Manifests {
			if err := s.takeManifest(ctx, tx, o, node, request, known, m); err != nil {
				return err
			}
		}
		return s.addHistory(ctx, tx, o, "PrepareToShip", fmt.Sprintf("%s on node %s", in.State, node))
	})
	if err != nil {
		return nil, err
	}
	return &devicev1.ReportManifestResponse{}, nil
}

// requestOf returns the id of the request under which a report was made. A node
// names it by its id or by the digest of its statement.
func requestOf(ctx context.Context, tx *store.Tx, o store.Order, name string) (protocol.RequestID, error) {
	if name == "" {
		return "", nil
	}
	r, err := tx.Request(ctx, protocol.RequestID(name))
	if protocol.CodeOf(err) == protocol.CodeNotFound {
		r, err = tx.RequestByDigest(ctx, name)
	}
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && r.Serial != o.Serial {
		return "", invalid("%q is no request about device %s", name, o.Serial)
	}
	return r.ID, err
}

// maxVersions bounds how often prepare-to-ship can change a share: a node that
// reports without end does not fill the store.
const maxVersions = 100

func (s *Service) takeManifest(ctx context.Context, tx *store.Tx, o store.Order, node protocol.NodeID, request protocol.RequestID, known []store.Manifest, m *devicev1.Manifest) error {
	newest := store.Manifest{Serial: node.Serial, Node: node.Node, Disk: protocol.DiskID(m.Disk), Share: m.Share}
	for _, k := range known {
		if k.Serial == newest.Serial && k.Node == newest.Node && k.Disk == newest.Disk && k.Share == newest.Share {
			newest = k // ordered by version
		}
	}
	if newest.Digest == m.Digest && newest.Version > 0 {
		return nil
	}
	bom, err := manifest.ParseBOM(m.Bom)
	switch {
	case err != nil:
		return invalid("bill of materials of %s on disk %s: %v", m.Share, m.Disk, err)
	case manifest.Digest(m.Bom) != m.Digest:
		return invalid("bill of materials of %s on disk %s: its digest is %s, not %s", m.Share, m.Disk, manifest.Digest(m.Bom), m.Digest)
	case bom.Share.String() != m.Share || !hasShare(o, m.Share):
		return invalid("bill of materials of %s on disk %s: the order has no such share", m.Share, m.Disk)
	case newest.Version >= maxVersions:
		return conflict("bill of materials of %s on disk %s: there are %d versions already", m.Share, m.Disk, newest.Version)
	case bom.Previous != newest.Digest || m.PreviousDigest != newest.Digest:
		return conflict("bill of materials of %s on disk %s continues %s, the newest is %s", m.Share, m.Disk, orNone(bom.Previous), orNone(newest.Digest))
	}
	if err := checkDisk(ctx, tx, node, newest.Disk); err != nil {
		return err
	}
	difference, err := differenceOf(newest, bom)
	if err != nil {
		return err
	}
	row := store.Manifest{
		Serial: node.Serial, Node: node.Node, Disk: newest.Disk, Share: m.Share, Version: newest.Version + 1, Order: o.ID,
		BOM: m.Bom, Digest: m.Digest, PreviousDigest: newest.Digest, Difference: difference, Request: request, Time: s.now(),
	}
	if err := s.recordManifest(ctx, tx, o, row); err != nil {
		return err
	}
	return tx.InsertManifest(ctx, &row)
}

// maxDifference bounds how much of a difference goes into the activity log; all
// of it is kept with the bill of materials.
const maxDifference = 4 << 10

func (s *Service) recordManifest(ctx context.Context, tx *store.Tx, o store.Order, m store.Manifest) error {
	node := protocol.NodeID{Serial: m.Serial, Node: m.Node}
	rec := auditlog.NewRecord(s.now(), auditlog.OpPrepareToShip, auditlog.Success)
	rec.Caller, rec.Properties = node.URI().String(), map[string]string{
		"node": node.String(), "disk": string(m.Disk), "share": m.Share, "version": fmt.Sprint(m.Version),
		"digest": m.Digest, "previousDigest": m.PreviousDigest,
		"difference": strings.ToValidUTF8(m.Difference[:min(len(m.Difference), maxDifference)], ""),
	}
	about(&rec, o)
	rec.CorrelationID = string(m.Request)
	_, err := s.cfg.Audit.Record(ctx, tx, rec)
	return err
}

func checkDisk(ctx context.Context, tx *store.Tx, node protocol.NodeID, disk protocol.DiskID) error {
	disks, err := tx.DisksOfNode(ctx, node)
	if err == nil && !slices.ContainsFunc(disks, func(d store.Disk) bool { return d.ID == disk }) {
		err = invalid("node %s has no disk %q", node, disk)
	}
	return err
}

// differenceOf says for people how a bill of materials differs from the one
// before. It is made here, from what is kept here, not taken from the node.
func differenceOf(older store.Manifest, newer manifest.BOM) (string, error) {
	if older.Version == 0 {
		return "", nil
	}
	before, err := manifest.ParseBOM(older.BOM)
	if err != nil {
		return "", err
	}
	return manifest.Diff(before, newer).String(), nil
}

// GetManifest shows every version of an order's bills of materials to who may
// know the names of the customer's files.
func (s *Service) GetManifest(ctx context.Context, caller auth.Caller, in *lockboxv1.GetManifestRequest) (*lockboxv1.GetManifestResponse, error) {
	o, err := s.orderWithFiles(ctx, caller, in.Order, readManifest)
	if err != nil {
		return nil, err
	}
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.GetManifestResponse, error) {
		list, err := tx.Manifests(ctx, o.ID)
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.GetManifestResponse{}
		for _, m := range list {
			out.Manifests = append(out.Manifests, &lockboxv1.ManifestVersion{
				Node: int32(m.Node), Disk: string(m.Disk), Share: m.Share, Version: int32(m.Version), Bom: m.BOM, Digest: m.Digest,
				PreviousDigest: m.PreviousDigest, Difference: m.Difference, Request: string(m.Request), Time: m.Time.Unix(),
			})
		}
		return out, nil
	})
}
