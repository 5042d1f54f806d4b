package notify

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
)

// channel is one way to reach recipients.
type channel struct {
	name  string
	carry carry
	slots chan struct{} // attempts at once
	wake  chan struct{} // 1 slot: there may be something to do

	mu   sync.Mutex
	busy map[string]bool // recipients with an attempt under way; guarded by mu
}

// carry brings a notice to a recipient. It has to return soon when ctx ends. An
// error is a failure to be tried again, unless it is a [finalError].
type carry func(ctx context.Context, n store.Notice, d store.Delivery) error

// finalError is a failure that trying again would only repeat.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

func newChannel(name string, slots int, carry carry) *channel {
	return &channel{name: name, carry: carry, slots: make(chan struct{}, slots), wake: make(chan struct{}, 1), busy: map[string]bool{}}
}

func (c *channel) wakeUp() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// begin takes a recipient, unless an attempt is under way.
func (c *channel) begin(recipient string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy[recipient] {
		return false
	}
	c.busy[recipient] = true
	return true
}

func (c *channel) end(recipient string) {
	c.mu.Lock()
	delete(c.busy, recipient)
	c.mu.Unlock()
	c.wakeUp() // there may be more for them
}

// serve delivers by one channel until ctx ends, and returns when all attempts
// have ended.
func (s *Service) serve(ctx context.Context, c *channel) {
	var all sync.WaitGroup
	defer all.Wait()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := s.startDue(ctx, c, &all); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Error().Err(err).Str("channel", c.name).Msg("cannot read the notices that are due")
		}
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-tick.C:
		}
	}
}

// startDue starts what is due now, as slots become free.
func (s *Service) startDue(ctx context.Context, c *channel, all *sync.WaitGroup) error {
	var due []store.Delivery
	err := s.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		due, err = tx.DueDeliveries(ctx, c.name, s.now(), batch)
		return err
	})
	if err != nil {
		return err
	}
	for _, d := range due {
		if !c.begin(d.Recipient) {
			continue
		}
		select {
		case <-ctx.Done():
			c.end(d.Recipient)
			return nil
		case c.slots <- struct{}{}:
		}
		all.Go(func() {
			defer c.end(d.Recipient)
			defer func() { <-c.slots }()
			s.attempt(ctx, c, d)
		})
	}
	return nil
}

// attempt tries one delivery and notes how that went. Whoever was faster has it.
func (s *Service) attempt(ctx context.Context, c *channel, d store.Delivery) {
	n, err := s.take(ctx, &d)
	if errors.Is(err, store.ErrConflict) {
		return
	}
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, attemptLimit)
		failed := c.carry(limited, n, d)
		cancel()
		err = s.note(context.WithoutCancel(ctx), d, failed)
	}
	if err != nil && ctx.Err() == nil {
		s.cfg.Logger.Error().Err(err).Str("delivery", d.ID).Msg("cannot note how a delivery went, it may be repeated")
	}
}

// take makes a delivery this daemon's for the time of the lease.
func (s *Service) take(ctx context.Context, d *store.Delivery) (n store.Notice, err error) {
	err = s.cfg.Store.Tx(ctx, func(tx *store.Tx) error {
		d.Attempts++
		d.NextAttempt = s.now().Add(lease)
		if err := tx.UpdateDelivery(ctx, d); err != nil {
			return err
		}
		n, err = tx.Notice(ctx, d.Notice)
		return err
	})
	return n, err
}

// maxError bounds what is kept of an error, in bytes.
const maxError = 500

// note writes down how an attempt went.
func (s *Service) note(ctx context.Context, d store.Delivery, failed error) error {
	if failed == nil {
		d.State, d.Sent, d.LastError = store.DeliverySent, s.now(), ""
		return s.update(ctx, d)
	}
	text := oneLine(failed.Error())
	d.LastError = text[:min(len(text), maxError)]
	d.NextAttempt = s.now().Add(pause(int(d.Attempts)))
	_, final := errors.AsType[finalError](failed)
	if final || d.Attempts >= MaxAttempts {
		d.State = store.DeliveryDead
	}
	s.cfg.Logger.Warn().Str("error", d.LastError).Str("delivery", d.ID).Str("channel", d.Channel).
		Int64("attempts", d.Attempts).Bool("given_up", d.State == store.DeliveryDead).Msg("cannot deliver a notice")
	return s.update(ctx, d)
}

func (s *Service) update(ctx context.Context, d store.Delivery) error {
	return s.cfg.Store.Tx(ctx, func(tx *store.Tx) error { return tx.UpdateDelivery(ctx, &d) })
}
