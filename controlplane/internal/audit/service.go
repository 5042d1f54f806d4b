package audit

import (
	"bufio"
	"context"
	"fmt"
	"iter"
	"time"

	"golang.org/x/mod/sumdb/tlog"

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
	since, until := unix(in.Since), unix(in.Until)
	if !until.IsZero() && !since.Before(until) {
		return nil, protocol.Errorf(protocol.CodeInvalid, "until must be later than since")
	}
	var rows []store.AuditRow
	err := s.store.View(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.AuditRows(ctx, store.AuditFilter{
			Operation: in.Operation, Correlation: in.CorrelationId, Caller: in.Caller,
			Serial: protocol.DeviceSerial(in.Serial), Tenant: caller.Scope(), Since: since, Until: until,
			From: in.FromIndex, Limit: limit + 1,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return page(rows, limit), nil
}

// unix returns the time of so many seconds since 1970, the zero time for 0.
func unix(seconds int64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0)
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
	if err := auditlog.Export(out, signed, s.entries(ctx, size)); err != nil {
		return err
	}
	return out.Flush()
}

// entriesPage is how many entries are read in one transaction.
const entriesPage = 512

// entries yields the first size entries of the log in order. They are read in
// pages, so that a slow reader holds no transaction open.
func (s *Service) entries(ctx context.Context, size int64) iter.Seq2[auditlog.Entry, error] {
	return func(yield func(auditlog.Entry, error) bool) {
		for from := int64(0); from < size; {
			page, err := s.entriesFrom(ctx, from, int(min(entriesPage, size-from)))
			if err == nil && len(page) == 0 {
				err = fmt.Errorf("the activity log ends before record %d", from)
			}
			if err != nil {
				yield(auditlog.Entry{}, err)
				return
			}
			for _, e := range page {
				if !yield(e, nil) {
					return
				}
			}
			from += int64(len(page))
		}
	}
}

func (s *Service) entriesFrom(ctx context.Context, from int64, limit int) (page []auditlog.Entry, err error) {
	err = s.store.View(ctx, func(tx *store.Tx) error {
		rows, err := tx.AuditRows(ctx, store.AuditFilter{From: from, Limit: limit, Pruned: true})
		if err != nil {
			return err
		}
		for _, r := range rows {
			if !r.Pruned {
				page = append(page, auditlog.Entry{Leaf: auditlog.LeafHash(r.Record), Record: r.Record})
				continue
			}
			hashes, err := logHashes(ctx, tx).ReadHashes([]int64{tlog.StoredHashIndex(0, r.Index)})
			if err != nil {
				return err
			}
			page = append(page, auditlog.Entry{Leaf: hashes[0]})
		}
		return nil
	})
	return page, err
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
