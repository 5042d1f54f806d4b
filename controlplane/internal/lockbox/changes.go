package lockbox

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// Bounds of what nodes say was touched.
const (
	maxChanges    = 2000    // parts about one request from one node
	changesBytes  = 2 << 20 // of envelopes in one message, or one envelope
	changesAtOnce = 8       // parts of 512 KiB at most
)

// ReportChanges takes one part of what a node says was touched under a request.
// The node signed it, with the key that the request's statement pins. The same
// part twice changes nothing.
func (s *Service) ReportChanges(ctx context.Context, node protocol.NodeID, in *devicev1.ReportChangesRequest) (*devicev1.ReportChangesResponse, error) {
	e, err := approval.ParseEnvelope(in.Envelope)
	if err != nil {
		return nil, err
	}
	said, err := approval.ParseChanges(e.Payload)
	if err != nil {
		return nil, err
	}
	err = s.change(ctx, func(tx *store.Tx) error {
		r, err := tx.RequestByDigest(ctx, string(said.RequestDigest))
		if err != nil {
			return err
		}
		c, err := verifyChanges(r, node, in.Envelope)
		if err != nil {
			return err
		}
		return s.takeChanges(ctx, tx, r, node, c, e, in.Envelope)
	})
	if err != nil {
		return nil, err
	}
	return &devicev1.ReportChangesResponse{}, nil
}

// verifyChanges verifies one part against the bytes that were approved.
func verifyChanges(r store.Request, node protocol.NodeID, envelope []byte) (approval.Changes, error) {
	statement, err := approval.ParseStatement(r.Statement)
	if err != nil {
		return approval.Changes{}, err
	}
	i := slices.IndexFunc(statement.Nodes, func(n approval.NodeRef) bool { return n.ID() == node })
	if i < 0 {
		return approval.Changes{}, forbidden("request %d is not about node %s", r.Number, node)
	}
	return approval.VerifyChanges(envelope, statement.Nodes[i], approval.Digest(r.StatementDigest))
}

func (s *Service) takeChanges(ctx context.Context, tx *store.Tx, r store.Request, node protocol.NodeID, c approval.Changes, e approval.Envelope, envelope []byte) error {
	row := store.RequestChanges{
		Request: r.ID, Node: node.Node, Begun: time.Unix(c.Begun, 0), Stage: string(c.Stage), Part: c.Part,
		Digest: string(e.Digest()), Envelope: envelope, Time: s.now(),
	}
	known, err := tx.RequestChangesPart(ctx, row)
	switch {
	case err == nil && known.Digest == row.Digest:
		return nil
	case err == nil:
		return conflict("node %s said something else of what was touched under request %d", node, r.Number)
	case !errors.Is(err, store.ErrNotFound):
		return err
	}
	n, err := tx.CountRequestChanges(ctx, r.ID, node.Node)
	if err != nil {
		return err
	}
	if n >= maxChanges {
		return conflict("node %s has sent %d parts of what was touched under request %d: no more are kept", node, n, r.Number)
	}
	if err := tx.InsertRequestChanges(ctx, &row); err != nil {
		return err
	}
	if err := s.recordChanges(ctx, tx, r, node, c, row.Digest); err != nil || c.Part != 1 {
		return err
	}
	return s.addHistory(ctx, tx, r, "Changes Reported", changesLine(node, c))
}

// changesLine says for people what a node said.
func changesLine(node protocol.NodeID, c approval.Changes) string {
	when := "as seen when it locked"
	if c.Stage == approval.AtReopened {
		when = "found when it opened again"
	}
	return "node " + node.String() + ", " + when + ": " + countsOf(c)
}

func countsOf(c approval.Changes) string {
	return count(c.Added, "added") + ", " + count(c.Removed, "removed") + ", " + count(c.Changed, "changed") + ", " + count(c.Moved, "moved")
}

func count(n int64, what string) string { return strconv.FormatInt(n, 10) + " " + what }

func (s *Service) recordChanges(ctx context.Context, tx *store.Tx, r store.Request, node protocol.NodeID, c approval.Changes, digest string) error {
	rec := auditlog.NewRecord(s.now(), auditlog.OpReportChanges, auditlog.Success)
	rec.Caller, rec.ResourceID, rec.CorrelationID = node.URI().String(), r.ResourceID, string(r.ID)
	rec.Properties = map[string]string{
		audit.PropertyTenant: string(r.Tenant), audit.PropertySerial: string(r.Serial), "node": node.String(), "stage": string(c.Stage),
		"part": count(int64(c.Part), "of "+strconv.Itoa(c.Parts)), "digest": digest, "changes": countsOf(c),
	}
	_, err := s.cfg.Audit.Record(ctx, tx, rec)
	return err
}

// GetChanges shows what the nodes said was touched under a request to the
// customer, the engineer who worked under it, those who were given access to its
// subscription, and admins: there are names of the customer's files in it.
func (s *Service) GetChanges(ctx context.Context, caller auth.Caller, in *lockboxv1.GetChangesRequest) (*lockboxv1.GetChangesResponse, error) {
	if in.After < 0 {
		return nil, invalid("parts are counted from 0")
	}
	r, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (store.Request, error) { return request(ctx, tx, caller, in.Id) })
	if err != nil {
		return nil, err
	}
	if !caller.Role.OfCustomer() && !caller.Is(auth.Admin) && caller.Person != r.Engineer {
		o, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (store.Order, error) { return tx.Order(ctx, r.Order) })
		if err != nil {
			return nil, err
		}
		if reach, err := s.Reach(ctx, caller, "changes", &o); err != nil || !reach.Covers(o) {
			return nil, cmp.Or(err, orders.AskForAccess(caller, o))
		}
	}
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.GetChangesResponse, error) {
		rows, err := tx.RequestChanges(ctx, r.ID, in.After, changesAtOnce+1)
		if err != nil {
			return nil, err
		}
		return showChanges(rows, in.After), nil
	})
}

// showChanges shows as many parts as one message carries.
func showChanges(rows []store.RequestChanges, after int64) *lockboxv1.GetChangesResponse {
	out := &lockboxv1.GetChangesResponse{}
	size := 0
	for i, c := range rows {
		size += len(c.Envelope)
		if i == changesAtOnce || i > 0 && size > changesBytes {
			out.Next = after + int64(i)
			break
		}
		out.Parts = append(out.Parts, &lockboxv1.ChangesPart{Node: int32(c.Node), Envelope: c.Envelope, Time: c.Time.Unix()})
	}
	return out
}
