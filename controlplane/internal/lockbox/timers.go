package lockbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
)

// The kinds of timers. Their subject is a request, a session or a standing consent.
const (
	timerExpiry        = "request-expiry"
	timerWarning       = "request-warning"
	timerAccessEnd     = "request-access-end"
	timerAccessWarning = "request-access-warning"
	timerRelock        = "request-relock"
	timerSessionEnd    = "session-end"
	timerSessionOff    = "session-off"
	timerStandingOff   = "standing-off"
)

const (
	// relockLease is how long one daemon has for a relock before it, or another,
	// does it again.
	relockLease = 30 * time.Second
	// lookAgain is how long timers are left alone when none is due: another
	// daemon may have set one.
	lookAgain = time.Minute
	// lookAtClock is how often the clock is looked at while none is due: it may be
	// set. Nothing is decided or executed late by that: both look at the clock.
	lookAtClock = 10 * time.Second
	// lookForLost is how often it is looked for timers that are missing.
	lookForLost = 10 * time.Minute
	// afterError is the pause after a failure, so that it is not repeated in a
	// tight loop.
	afterError = time.Second
	// timerBatch is how many timers fire at a time.
	timerBatch = 32
	// othersWait is how long what is due next waits for what fires now: a device
	// that does not answer must not keep requests from expiring.
	othersWait = 250 * time.Millisecond
)

// RunTimers acts on what is due until ctx ends, and returns its error. What was
// due while no daemon ran is done first.
func (s *Service) RunTimers(ctx context.Context) error {
	var firing sync.WaitGroup
	defer firing.Wait()
	var mended time.Time // when it was last looked for timers that are missing
	for {
		pause, err := s.fireDue(ctx, &firing)
		if err == nil && pause > 0 && time.Since(mended) >= lookForLost {
			var again bool
			if again, err = s.mend(ctx); again {
				pause = 0
			}
			mended = time.Now()
		}
		if err != nil {
			s.cannot(ctx, err)
			pause = afterError
		}
		s.rest(ctx, pause)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// cannot logs a failure, unless the daemon is ending.
func (s *Service) cannot(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		s.cfg.Logger.Error().Err(err).Msg("cannot act on timers")
	}
}

// rest waits until pause is over, by the clock that timers are set by or by that
// of the machine, which nobody sets.
func (s *Service) rest(ctx context.Context, pause time.Duration) {
	until := s.cfg.Now().Add(pause).Round(0) // as the wall clock has it
	over, look := time.NewTimer(pause), time.NewTicker(lookAtClock)
	defer over.Stop()
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			return
		case <-over.C:
			return
		case <-look.C:
			if !s.cfg.Now().Round(0).Before(until) {
				return
			}
		}
	}
}

// mend sets the timers that lead out of states which do not last, where they are
// missing, and reports whether it did: whatever was lost, no request stays in one.
func (s *Service) mend(ctx context.Context) (mended bool, err error) {
	for kind, states := range map[string][]State{timerExpiry: open, timerAccessEnd: {Approved}, timerRelock: ending} {
		lost, err := view(ctx, s.cfg.Store, func(tx *store.Tx) ([]store.Request, error) {
			return tx.RequestsWithoutTimer(ctx, texts(states), kind)
		})
		if err != nil {
			return mended, err
		}
		for _, r := range lost {
			due := map[string]time.Time{timerExpiry: r.Expires, timerAccessEnd: r.AccessEnd, timerRelock: s.now()}[kind]
			err := s.cfg.Store.Tx(ctx, func(tx *store.Tx) error { return tx.SetTimer(ctx, kind, string(r.ID), due) })
			if err != nil {
				return mended, err
			}
			mended = true
		}
	}
	return mended, nil
}

// fireDue fires what is due now, each timer by itself in firing, and returns how
// long nothing else is. It waits a little for them; who takes longer has taken
// their timer by then, or another does it again and finds it done.
func (s *Service) fireDue(ctx context.Context, firing *sync.WaitGroup) (time.Duration, error) {
	var due []store.Timer
	var next time.Time
	err := s.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		if due, err = tx.DueTimers(ctx, s.now(), timerBatch); err == nil {
			next, err = tx.NextTimer(ctx)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	if len(due) == 0 {
		if next.IsZero() {
			return lookAgain, nil
		}
		// A stored time is a whole millisecond and s.now rounds down, so the
		// timer is due at the first moment that is not before it.
		return min(max(next.Sub(s.cfg.Now()), 0), lookAgain), nil
	}
	fired, left := make(chan error), make(chan struct{})
	defer close(left)
	for _, t := range due {
		firing.Go(func() {
			err := s.fire(ctx, t)
			select {
			case fired <- err:
			case <-left:
				s.cannot(ctx, err)
			}
		})
	}
	patience := time.NewTimer(othersWait)
	defer patience.Stop()
	var failures []error
	for range due {
		select {
		case err := <-fired:
			failures = append(failures, err)
		case <-patience.C:
			return 0, errors.Join(failures...)
		}
	}
	return 0, errors.Join(failures...)
}

// fire acts on one timer. Whoever else was faster has done it.
func (s *Service) fire(ctx context.Context, t store.Timer) error {
	err := s.act(ctx, t)
	if errors.Is(err, store.ErrConflict) {
		return nil
	}
	return err
}

func (s *Service) act(ctx context.Context, t store.Timer) error {
	switch t.Kind {
	case timerExpiry:
		return s.expire(ctx, t)
	case timerWarning:
		return s.warn(ctx, t)
	case timerAccessEnd:
		return s.accessEnds(ctx, t)
	case timerAccessWarning:
		return s.warnOfEnd(ctx, t)
	case timerRelock:
		return s.relockAgain(ctx, t)
	case timerSessionEnd:
		return s.sessionExpires(ctx, t)
	case timerSessionOff:
		return s.sessionOffAgain(ctx, t)
	case timerStandingOff:
		return s.standingOffAgain(ctx, t)
	case orders.TimerPendingErasure:
		return s.cfg.Orders.EndPendingErasure(ctx, t)
	}
	return s.change(ctx, func(tx *store.Tx) error { return tx.FinishTimer(ctx, t) })
}

// expire ends a request that nobody answered.
func (s *Service) expire(ctx context.Context, t store.Timer) error {
	return s.change(ctx, func(tx *store.Tx) error {
		if err := tx.FinishTimer(ctx, t); err != nil {
			return err
		}
		r, err := tx.Request(ctx, protocol.RequestID(t.Subject))
		if err != nil || !StateOf(r.Status).Open() {
			return err
		}
		return s.end(ctx, tx, auth.SystemCaller(), &r, Lapsed, "expired", "unanswered until "+protocol.Stamp(r.Expires))
	})
}

func (s *Service) warn(ctx context.Context, t store.Timer) error {
	return s.change(ctx, func(tx *store.Tx) error {
		if err := tx.FinishTimer(ctx, t); err != nil {
			return err
		}
		r, err := tx.Request(ctx, protocol.RequestID(t.Subject))
		if err != nil || !StateOf(r.Status).Open() {
			return err
		}
		if err := s.tellApprovers(ctx, tx, notify.ExpiryWarning, r, ""); err != nil {
			return err
		}
		return s.tellEngineer(ctx, tx, notify.ExpiryWarning, r, "")
	})
}

// warnOfEnd tells both sides that an access ends soon.
func (s *Service) warnOfEnd(ctx context.Context, t store.Timer) error {
	return s.change(ctx, func(tx *store.Tx) error {
		if err := tx.FinishTimer(ctx, t); err != nil {
			return err
		}
		r, err := tx.Request(ctx, protocol.RequestID(t.Subject))
		if err != nil || StateOf(r.Status) != Approved {
			return err
		}
		if err := s.tellCustomer(ctx, tx, notify.AccessEnding, r, ""); err != nil {
			return err
		}
		return s.tellEngineer(ctx, tx, notify.AccessEnding, r, fmt.Sprintf("To ask for more time, type\n\n    lockbox request extend %d", r.Number))
	})
}

// accessEnds completes a request whose window is over.
func (s *Service) accessEnds(ctx context.Context, t store.Timer) error {
	var ended store.Request
	err := s.change(ctx, func(tx *store.Tx) error {
		if err := tx.FinishTimer(ctx, t); err != nil {
			return err
		}
		r, err := tx.Request(ctx, protocol.RequestID(t.Subject))
		if err != nil || StateOf(r.Status) != Approved {
			return err
		}
		err = s.end(ctx, tx, auth.SystemCaller(), &r, Finished, "window-over", "the access ended at "+protocol.Stamp(r.AccessEnd))
		ended = r
		return err
	})
	if err != nil || ended.ID == "" {
		return err
	}
	_, err = s.relock(ctx, auth.SystemCaller(), ended)
	return err
}

// relockAgain does what a process that ended, or a device that was away, left
// undone. Moving the timer on first keeps other daemons from doing the same.
func (s *Service) relockAgain(ctx context.Context, t store.Timer) error {
	var r store.Request
	err := s.change(ctx, func(tx *store.Tx) (err error) {
		if err := s.take(ctx, tx, t); err != nil {
			return err
		}
		r, err = tx.Request(ctx, protocol.RequestID(t.Subject))
		return err
	})
	if err != nil {
		return err
	}
	_, err = s.relock(ctx, auth.SystemCaller(), r)
	return err
}

// take moves a timer on, for whoever was first: it comes back if they fail.
func (s *Service) take(ctx context.Context, tx *store.Tx, t store.Timer) error {
	if err := tx.FinishTimer(ctx, t); err != nil {
		return err
	}
	return tx.SetTimer(ctx, t.Kind, t.Subject, s.now().Add(relockLease))
}
