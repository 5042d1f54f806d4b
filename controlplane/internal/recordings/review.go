package recordings

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// Times of [Service.Run].
const (
	reviewEvery = 10 * time.Second
	pruneEvery  = 6 * time.Hour
	idleAfter   = 5 * time.Minute // from then on a growing recording takes no memory
)

// Run compares recordings with the activity log, deletes old ones, and tells
// engineers who watches, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { s.announce(ctx) })
	all.Go(func() { s.settle(ctx) })
	review, prune := time.NewTicker(reviewEvery), time.NewTicker(pruneEvery)
	defer review.Stop()
	defer prune.Stop()
	s.prune(ctx)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-prune.C:
			s.prune(ctx)
		case <-review.C:
			if err := s.Review(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Logger.Error().Err(err).Msg("cannot compare recordings with the activity log")
			}
		}
	}
}

// settle completes the recordings whose signed end is here, though their rows do
// not say so: the daemon was killed in between, or the store restored from a backup
// that was made then.
func (s *Service) settle(ctx context.Context) {
	rows, err := s.list(ctx, store.RecordingFilter{State: store.RecordingGrows})
	for _, row := range rows {
		if ctx.Err() != nil {
			return
		}
		err = errors.Join(err, s.settleOne(ctx, row.ID))
	}
	if err != nil && ctx.Err() == nil {
		s.cfg.Logger.Error().Err(err).Msg("cannot look at recordings that have not ended")
	}
}

func (s *Service) settleOne(ctx context.Context, id string) error {
	g, err := s.grows(id)
	if err != nil {
		return err
	}
	g.appending.Lock()
	defer g.appending.Unlock()
	row, err := s.row(ctx, id) // its node may have brought it by now
	if err != nil || row.State != store.RecordingGrows {
		return err
	}
	f, err := s.openFile(g, id)
	if damage, ok := errors.AsType[*recording.Damage](err); ok {
		return s.broken(ctx, g, row, damage.Error())
	}
	if err != nil {
		return err
	}
	if end := g.check.in.End(); end != nil {
		err = s.end(ctx, g, row, &devicev1.AppendRecordingRequest{}, end)
	}
	g.check = nil // it takes memory: of the rest it is made again when more comes, if any does
	return errors.Join(err, f.Close())
}

// reviewAtOnce bounds how many recordings one review compares: a node may have
// brought any number that it never wrote of.
const reviewAtOnce = 100

// Review compares recordings that are complete with what their nodes wrote of them
// in the activity log, where that was not here before: so many at once, and the
// next ones the next time.
func (s *Service) Review(ctx context.Context) error {
	s.rest()
	s.mu.Lock()
	from := s.reviewed
	s.mu.Unlock()
	rows, err := s.list(ctx, store.RecordingFilter{Unlogged: true, Offset: from, Limit: reviewAtOnce})
	if err != nil {
		return err
	}
	left := 0
	for _, row := range rows {
		stays, err := s.review(ctx, row)
		if err != nil {
			return err
		}
		if stays {
			left++
		}
	}
	if from += left; len(rows) < reviewAtOnce {
		from = 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reviewed = from
	return nil
}

// review compares one recording; stays is true if there is still nothing to compare
// it with.
func (s *Service) review(ctx context.Context, row store.Recording) (stays bool, err error) {
	err = s.cfg.Store.View(ctx, func(tx *store.Tx) error { return s.compare(ctx, tx, &row) })
	if err != nil || row.State == store.RecordingComplete && !row.Logged {
		return true, err
	}
	return false, s.cfg.Store.Tx(ctx, func(tx *store.Tx) error {
		if row.State == store.RecordingBroken {
			return s.keep(ctx, tx, &row)
		}
		return tx.UpdateRecording(ctx, &row)
	})
}

// rest gives back the memory of recordings that have not grown for a while.
func (s *Service) rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, g := range s.growing {
		if g.appending.TryLock() {
			if s.cfg.Now().Sub(g.touched) > idleAfter && !s.followedLocked(id) {
				delete(s.growing, id)
			}
			g.appending.Unlock()
		}
	}
}

// maxEnds bounds how many records are read to find that of a recording's end.
const maxEnds = 1000

// compare looks for the node's own record of a recording's end, and compares the
// digests. Without such a record nothing changes.
func (s *Service) compare(ctx context.Context, tx *store.Tx, row *store.Recording) error {
	rows, err := tx.AuditRows(ctx, store.AuditFilter{
		Operation: string(auditlog.OpEndRecording), Correlation: string(cmp.Or(row.Request, protocol.RequestID(row.Session))),
		Serial: row.Node.Serial, Since: row.Began.Add(-time.Minute), Limit: maxEnds,
	})
	if err != nil {
		return err
	}
	for _, r := range rows {
		rec, err := auditlog.ParseRecord(r.Record)
		if err != nil || rec.Origin != row.Node.String() || rec.Properties[propertyRecording] != row.ID {
			continue
		}
		if rec.Properties[propertyDigest] == row.Digest {
			row.Logged = true
		} else {
			row.State = store.RecordingBroken
			row.Problem = fmt.Sprintf("its digest is %s: the activity log, record %d, has %s", row.Digest, r.Index, rec.Properties[propertyDigest])
		}
		return nil
	}
	return nil
}

// prune deletes old recordings, and says so in the log.
func (s *Service) prune(ctx context.Context) {
	if s.cfg.Retention == 0 {
		return
	}
	if n, err := s.Prune(ctx); err != nil && ctx.Err() == nil {
		s.cfg.Logger.Error().Err(err).Msg("cannot delete old recordings")
	} else if n > 0 {
		s.cfg.Logger.Info().Int("recordings", n).Msg("deleted old recordings")
	}
}

// Prune deletes the recordings that ended before the retention time, except those
// under a legal hold, and returns how many. Each is recorded first. Their rows
// stay.
func (s *Service) Prune(ctx context.Context) (n int, err error) {
	rows, err := s.list(ctx, store.RecordingFilter{Before: s.now().Add(-max(s.cfg.Retention, MinRetention))})
	if err != nil {
		return 0, err
	}
	for _, row := range rows {
		if err := s.remove(ctx, row); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func (s *Service) remove(ctx context.Context, row store.Recording) error {
	rec := s.about(auditlog.OpDeleteRecording, auditlog.Start, "lockboxd", row)
	rec.Properties[propertyDigest], rec.Properties["ended"] = row.Digest, row.Ended.Format(time.RFC3339)
	if _, err := s.cfg.Audit.RecordIntent(ctx, rec); err != nil {
		return err
	}
	size, err := s.sizeOf(row.ID)
	if err != nil {
		return err
	}
	if err := os.Remove(s.path(row.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot delete recording %s: %w", row.ID, err)
	}
	s.mu.Lock()
	s.countLocked(row.Node, -charge(size))
	s.mu.Unlock()
	row.State = store.RecordingDeleted
	return s.cfg.Store.Tx(ctx, func(tx *store.Tx) error { return tx.UpdateRecording(ctx, &row) })
}
