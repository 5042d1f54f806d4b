package audit

import (
	"bufio"
	"context"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// Bounds of a list.
const (
	defaultLimit = 500
	maxLimit     = 2000
	maxBytes     = 2 << 20 // of records in one answer
)

// ListRecords lists the records that the caller may see. A customer sees those
// of their tenant.
func (s *Service) ListRecords(ctx context.Context, caller auth.Caller, in *lockboxv1.ListRecordsRequest) (*lockboxv1.ListRecordsResponse, error) {
	limit := int(in.Limit)
	switch {
	case limit < 0 || in.FromIndex < 0:
		return nil, protocol.Errorf(protocol.CodeInvalid, "limit and from_index must not be negative")
	case limit == 0:
		limit = defaultLimit
	}
	limit = min(limit, maxLimit)
	var rows []store.AuditRow
	err := s.store.View(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.AuditRows(ctx, store.AuditFilter{
			Operation: in.Operation, Correlation: in.CorrelationId, Caller: in.Caller,
			Serial: protocol.DeviceSerial(in.Serial), Tenant: caller.Scope(), From: in.FromIndex, Limit: limit + 1,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return page(rows, limit), nil
}

// page makes an answer of at most limit rows and about maxBytes.
func page(rows []store.AuditRow, limit int) *lockboxv1.ListRecordsResponse {
	out := &lockboxv1.ListRecordsResponse{}
	bytes := 0
	for _, r := range rows {
		if len(out.Records) == limit || bytes > maxBytes {
			out.NextIndex = r.Index
			break
		}
		out.Records = append(out.Records, &lockboxv1.AuditRecord{Index: r.Index, Record: r.Record})
		bytes += len(r.Record)
	}
	return out
}

// exportChunk is how much of an export is sent at once, in bytes.
const exportChunk = 64 << 10

// ExportLog sends the whole log in the form that [auditlog.Verify] reads. It is
// recorded first. Customers see only part of the log and cannot export it.
func (s *Service) ExportLog(ctx context.Context, caller auth.Caller, _ *lockboxv1.ExportLogRequest, send func([]byte) error) error {
	if caller.Scope() != "" {
		return protocol.Errorf(protocol.CodeForbidden, "the log holds the records of all tenants: ask an auditor for an export, or list your own records")
	}
	rec := auditlog.NewRecord(s.now(), auditlog.OpExportLog, auditlog.Start)
	rec.Caller, rec.ResourceID = string(caller.Person), "/activity-log"
	if _, err := s.RecordIntent(ctx, rec); err != nil {
		return err
	}
	signed, size, err := s.head(ctx)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(sender(send), exportChunk)
	if err := auditlog.Export(out, signed, s.store.AuditRecords(ctx, size)); err != nil {
		return err
	}
	return out.Flush()
}

func (s *Service) head(ctx context.Context) (signed []byte, size int64, err error) {
	err = s.store.View(ctx, func(tx *store.Tx) error {
		n, err := tx.AuditSize(ctx)
		if err != nil {
			return err
		}
		size = n
		signed, err = s.checkpoint(ctx, tx, n)
		return err
	})
	return signed, size, err
}

// sender is a writer that sends what it is given.
type sender func([]byte) error

func (f sender) Write(p []byte) (int, error) {
	if err := f(append([]byte(nil), p...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// GetCheckpoint signs the log's present head, with a proof that it continues
// the checkpoint that the caller remembers.
func (s *Service) GetCheckpoint(ctx context.Context, _ auth.Caller, in *lockboxv1.GetCheckpointRequest) (*lockboxv1.GetCheckpointResponse, error) {
	out := &lockboxv1.GetCheckpointResponse{VerifierKey: s.verifierKey}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		size, err := tx.AuditSize(ctx)
		if err != nil {
			return err
		}
		if err := checkOlder(in.ConsistentWith, size); err != nil {
			return err
		}
		if in.ConsistentWith > 0 {
			if out.Consistency, err = auditlog.ProveConsistency(in.ConsistentWith, size, logHashes(ctx, tx)); err != nil {
				return err
			}
		}
		out.Checkpoint, err = s.checkpoint(ctx, tx, size)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
