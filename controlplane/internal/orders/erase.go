package orders

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// eraseTimeout bounds how long a node takes to erase its disks: some hundred
// kilobytes each.
const eraseTimeout = time.Minute

// EraseOrder has every node of a completed order destroy the keys on its disks,
// keeps their certificates, and destroys the keys that custody has. The customer's
// data are at their destination by then, and every device sees to that itself. It
// may be called again, and goes on where it was. While a legal hold covers the
// tenant or the device, nothing is erased.
func (s *Service) EraseOrder(ctx context.Context, caller auth.Caller, in *lockboxv1.EraseOrderRequest) (*lockboxv1.GetErasureResponse, error) {
	o, nodes, err := s.mayErase(ctx, caller, in.Order)
	if err != nil {
		return nil, err
	}
	rec := auditlog.NewRecord(s.now(), auditlog.OpSanitizeDisk, auditlog.Start)
	rec.Caller, rec.Properties = string(caller.Person), map[string]string{"stage": o.Stage}
	about(&rec, o)
	if _, err := s.cfg.Audit.RecordIntent(ctx, rec); err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if err := s.eraseNode(ctx, caller, o, n); err != nil {
			return nil, err
		}
	}
	if err := s.cfg.Custody.DestroyKeys(ctx, caller, o); err != nil {
		return nil, err
	}
	return s.GetErasure(ctx, caller, &lockboxv1.GetErasureRequest{Order: in.Order})
}

// mayErase returns the nodes that have not certified yet.
func (s *Service) mayErase(ctx context.Context, caller auth.Caller, id string) (o store.Order, nodes []store.Node, err error) {
	err = s.cfg.Store.View(ctx, func(tx *store.Tx) error {
		if o, err = order(ctx, tx, caller, id); err != nil {
			return err
		}
		if err := erasable(o); err != nil {
			return err
		}
		if err := noHold(ctx, tx, o); err != nil {
			return err
		}
		if nodes, err = tx.NodesOfOrder(ctx, o.ID); err != nil {
			return err
		}
		done, err := tx.ErasureCertificates(ctx, o.ID)
		nodes = slices.DeleteFunc(nodes, func(n store.Node) bool {
			return slices.ContainsFunc(done, func(c store.ErasureCertificate) bool { return c.Node == n.ID.Node })
		})
		return err
	})
	return o, nodes, err
}

// erasable refuses an order that is not completed, or of which some data are on its
// disks only and the customer's time to ask for them is not over.
func erasable(o store.Order) error {
	switch {
	case !slices.Contains([]string{Completed, CompletedWithErrors, CompletedWithWarnings}, o.Stage):
		return conflict("order %s is at stage %s: disks are erased when their order is completed", o.ID, o.Stage)
	case o.Status == StatusPendingErasure:
		return conflict("order %s was completed with errors: what was not copied is on its disks only, which are kept for %s", o.ID, pendingErasure)
	}
	return nil
}

// noHold refuses while a legal hold covers an order's tenant or device.
func noHold(ctx context.Context, tx *store.Tx, o store.Order) error {
	holds, err := tx.LegalHolds(ctx)
	for _, h := range holds {
		if h.Released.IsZero() && (h.Tenant == "" || h.Tenant == o.Tenant) && (h.Serial == "" || h.Serial == o.Serial) {
			return conflict("legal hold %s (%s) covers order %s: release it first", h.ID, h.Reason, o.ID)
		}
	}
	return err
}

// eraseNode has one node erase its disks and keeps its certificate.
func (s *Service) eraseNode(ctx context.Context, caller auth.Caller, o store.Order, n store.Node) error {
	client, err := s.cfg.Tunnels.Node(n.ID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, eraseTimeout)
	defer cancel()
	resp, err := client.EraseDisks(ctx, &devicev1.EraseDisksRequest{Order: string(o.ID), OrderedBy: string(caller.Person)})
	if err != nil {
		return protocol.Errorf(protocol.CodeOf(err), "node %s did not erase its disks: %v", n.ID, err)
	}
	return s.change(ctx, n.ID.URI().String(), auditlog.OpSanitizeDisk, func(tx *store.Tx, rec *auditlog.Record) error {
		if err := checkCertificate(ctx, tx, o, n, resp.Certificate); err != nil {
			return err
		}
		e, err := approval.ParseEnvelope(resp.Certificate)
		if err != nil {
			return err
		}
		about(rec, o)
		rec.Properties["node"], rec.Properties["digest"], rec.Properties["orderedBy"] = n.ID.String(), string(e.Digest()), string(caller.Person)
		err = tx.InsertErasureCertificate(ctx, &store.ErasureCertificate{
			Order: o.ID, Node: n.ID.Node, KeyFingerprint: n.KeyFingerprint, Digest: string(e.Digest()), Envelope: resp.Certificate, Time: s.now(),
		})
		if err != nil {
			return err
		}
		return s.addHistory(ctx, tx, o, "SecureErase", fmt.Sprintf("%s: %s, %s; node %s, certificate %s", approval.ErasureStandard,
			approval.ErasurePurge, approval.ErasureTechnique, n.ID, e.Digest()))
	})
}

// checkCertificate verifies a certificate against the enrolled key, and that it is
// about all disks of the node as they were prepared.
func checkCertificate(ctx context.Context, tx *store.Tx, o store.Order, n store.Node, envelope []byte) error {
	ref := approval.NodeRef{Serial: n.ID.Serial, Node: n.ID.Node, KeyFingerprint: approval.Digest(n.KeyFingerprint)}
	c, err := approval.VerifyErasure(envelope, ref, o.ID)
	if err != nil {
		return err
	}
	disks, err := tx.DisksOfNode(ctx, n.ID)
	if err != nil {
		return err
	}
	for _, d := range disks {
		if !slices.ContainsFunc(c.Media, func(m approval.ErasedMedium) bool { return m.Disk == d.ID && m.VolumeGUID == d.VolumeGUID }) {
			return conflict("the certificate of node %s says nothing of disk %s with volume %s", n.ID, d.ID, d.VolumeGUID)
		}
	}
	return nil
}

// GetErasure shows the certificates of an order, and whether anything is left of
// its keys.
func (s *Service) GetErasure(ctx context.Context, caller auth.Caller, in *lockboxv1.GetErasureRequest) (*lockboxv1.GetErasureResponse, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.GetErasureResponse, error) {
		o, err := order(ctx, tx, caller, in.Order)
		if err != nil {
			return nil, err
		}
		list, err := tx.ErasureCertificates(ctx, o.ID)
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.GetErasureResponse{Order: string(o.ID)}
		for _, c := range list {
			out.Certificates = append(out.Certificates, &lockboxv1.ErasureCertificate{
				Node: int32(c.Node), Envelope: c.Envelope, KeyFingerprint: c.KeyFingerprint, Time: c.Time.Unix(),
			})
		}
		if len(list) > 0 {
			out.KeysDestroyed, err = s.cfg.Custody.KeysDestroyed(ctx, tx, o)
		}
		return out, err
	})
}
