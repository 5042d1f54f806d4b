package audit

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// MinRetention is the shortest time that records are kept, as in the Azure
// activity log.
const MinRetention = 90 * 24 * time.Hour

const (
	pruneEvery = 6 * time.Hour
	pruneBatch = 2000 // records emptied in one transaction
	maxReason  = 1000 // bytes of a hold's reason
)

// kept are the operations whose records are never pruned.
var kept = func() (ops []string) {
	for _, op := range auditlog.Operations() {
		if !op.Prunable() {
			ops = append(ops, string(op))
		}
	}
	return ops
}()

func (s *Service) pruneRegularly(ctx context.Context) error {
	if s.retention == 0 {
		return nil
	}
	for tick := time.NewTicker(pruneEvery); ; {
		if n, err := s.Prune(ctx); err != nil && ctx.Err() == nil {
			s.log.Error().Err(err).Msg("cannot prune the activity log")
		} else if n > 0 {
			s.log.Info().Int64("records", n).Msg("pruned the activity log")
		}
		select {
		case <-ctx.Done():
			tick.Stop()
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Prune empties the records that are older than the retention time, except those
// under a legal hold and those that a sink has not got yet, and returns how many.
// That they will be gone is recorded first; if there are none, nothing is.
func (s *Service) Prune(ctx context.Context) (n int64, err error) {
	cutoff := s.now().Add(-max(s.retention, MinRetention))
	delivered, err := s.delivered(ctx)
	if err != nil {
		return 0, err
	}
	var below int64
	err = s.store.View(ctx, func(tx *store.Tx) (err error) {
		if below, err = tx.AuditIndexAt(ctx, cutoff); err == nil {
			below = min(below, delivered)
			n, err = tx.CountPrunable(ctx, 0, below, kept)
		}
		return err
	})
	if err != nil || n == 0 {
		return 0, err
	}
	rec := auditlog.NewRecord(s.now(), auditlog.OpPruneLog, auditlog.Start)
	rec.Caller, rec.ResourceID = "lockboxd", "/activity-log"
	rec.Properties = map[string]string{
		auditlog.PropertyBelow: strconv.FormatInt(below, 10),
		"before":               cutoff.UTC().Format(time.RFC3339),
		"records":              strconv.FormatInt(n, 10),
	}
	if _, err := s.RecordIntent(ctx, rec); err != nil {
		return 0, err
	}
	n = 0
	for first := int64(0); first < below; first += pruneBatch {
		err := s.store.Tx(ctx, func(tx *store.Tx) error {
			count, err := tx.PruneAudit(ctx, first, min(first+pruneBatch, below), kept)
			n += count
			return err
		})
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// PlaceHold keeps records from being pruned: those of a tenant, a device, a
// request, or what is all of these; all records if nothing is named.
func (s *Service) PlaceHold(ctx context.Context, caller auth.Caller, in *lockboxv1.PlaceHoldRequest) (*lockboxv1.LegalHold, error) {
	if in.Reason == "" || len(in.Reason) > maxReason {
		return nil, protocol.Errorf(protocol.CodeInvalid, "a legal hold needs a reason of 1 to %d bytes", maxReason)
	}
	hold := store.LegalHold{
		ID: newInstance(), Tenant: protocol.TenantID(in.Tenant), Serial: protocol.DeviceSerial(in.Serial),
		Correlation: in.CorrelationId, Reason: in.Reason, PlacedBy: caller.Person, Placed: s.now(),
	}
	err := s.store.Tx(ctx, func(tx *store.Tx) error {
		if _, err := s.Record(ctx, tx, s.aboutHold(auditlog.OpPlaceHold, caller, hold, in.Reason)); err != nil {
			return err
		}
		return tx.InsertLegalHold(ctx, &hold)
	})
	return showHold(hold), err
}

// ReleaseHold ends a legal hold.
func (s *Service) ReleaseHold(ctx context.Context, caller auth.Caller, in *lockboxv1.ReleaseHoldRequest) (*lockboxv1.LegalHold, error) {
	if in.Reason == "" || len(in.Reason) > maxReason {
		return nil, protocol.Errorf(protocol.CodeInvalid, "releasing a legal hold needs a reason of 1 to %d bytes", maxReason)
	}
	var hold store.LegalHold
	err := s.store.Tx(ctx, func(tx *store.Tx) (err error) {
		if hold, err = tx.LegalHold(ctx, in.Id); err != nil {
			return err
		}
		if !hold.Released.IsZero() {
			return protocol.Errorf(protocol.CodeConflict, "legal hold %s was released by %s already", hold.ID, hold.ReleasedBy)
		}
		hold.ReleasedBy, hold.Released = caller.Person, s.now()
		if _, err := s.Record(ctx, tx, s.aboutHold(auditlog.OpReleaseHold, caller, hold, in.Reason)); err != nil {
			return err
		}
		return tx.UpdateLegalHold(ctx, &hold)
	})
	return showHold(hold), err
}

func (s *Service) aboutHold(op auditlog.Operation, caller auth.Caller, hold store.LegalHold, reason string) auditlog.Record {
	rec := auditlog.NewRecord(s.now(), op, auditlog.Success)
	rec.Caller, rec.ResourceID = string(caller.Person), "/activity-log/holds/"+hold.ID
	rec.Properties = map[string]string{
		"reason": reason, "of": cmp.Or(hold.Correlation, "all"), "ofTenant": cmp.Or(string(hold.Tenant), "all"),
		"ofDevice": cmp.Or(string(hold.Serial), "all"),
	}
	return rec
}

// ListHolds lists all legal holds, released ones included.
func (s *Service) ListHolds(ctx context.Context, _ auth.Caller, _ *lockboxv1.ListHoldsRequest) (*lockboxv1.ListHoldsResponse, error) {
	out := &lockboxv1.ListHoldsResponse{RetentionSeconds: int64(s.retention / time.Second)}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		holds, err := tx.LegalHolds(ctx)
		for _, hold := range holds {
			out.Holds = append(out.Holds, showHold(hold))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list legal holds: %w", err)
	}
	return out, nil
}

func showHold(h store.LegalHold) *lockboxv1.LegalHold {
	out := &lockboxv1.LegalHold{
		Id: h.ID, Tenant: string(h.Tenant), Serial: string(h.Serial), CorrelationId: h.Correlation, Reason: h.Reason,
		PlacedBy: string(h.PlacedBy), Placed: h.Placed.Unix(), ReleasedBy: string(h.ReleasedBy),
	}
	if !h.Released.IsZero() {
		out.Released = h.Released.Unix()
	}
	return out
}
