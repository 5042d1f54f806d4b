package store

import (
	"cmp"
	"context"
	"database/sql"
	"slices"
	"sync"
)

// share is one function that waits for a transaction.
type share struct {
	f    func(context.Context, *Tx) error
	done chan error // gets its outcome; holds one
}

// shares are the functions that wait, first come, first served.
type shares struct {
	mu      sync.Mutex
	waiting []*share
}

// Shared is [Store.Tx] for many small writes at once: those that wait while a
// transaction is under way share the next, and with it the cost of bringing
// it to the disk. Each returns only when that is done. An error of f undoes f
// alone; if the transaction does not commit, all who shared it are refused.
// The context that f gets is that of the transaction: whoever gives up must not
// interrupt the others.
func (s *Store) Shared(ctx context.Context, f func(context.Context, *Tx) error) error {
	return s.bounded(ctx, func(ctx context.Context) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		mine := s.shares.add(f)
		select {
		case s.writing <- struct{}{}:
			s.commitShares(ctx)
			<-s.writing
		case err := <-mine.done:
			return err
		case <-ctx.Done():
			if s.shares.withdraw(mine) {
				return ctx.Err()
			}
		}
		return <-mine.done
	})
}

// commitShares does all that waits. The caller may have given up meanwhile: that
// must not cost the others their turn.
func (s *Store) commitShares(ctx context.Context) {
	all := s.shares.take()
	if len(all) == 0 {
		return // somebody else has done it
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Limit)
	defer cancel()
	errs := make([]error, len(all))
	err := s.run(ctx, &sql.TxOptions{}, func(tx *Tx) (err error) {
		for i, one := range all {
			if errs[i], err = tx.alone(ctx, one.f); err != nil {
				return err
			}
		}
		return nil
	})
	for i, one := range all {
		one.done <- cmp.Or(errs[i], err)
	}
}

// alone runs f so that its error undoes only what f did. A second error means
// that the transaction is of no use any more.
func (tx *Tx) alone(ctx context.Context, f func(context.Context, *Tx) error) (failed, broken error) {
	if _, err := tx.tx.ExecContext(ctx, `SAVEPOINT share`); err != nil {
		return nil, refine(err)
	}
	if failed = f(ctx, tx); failed != nil {
		if _, err := tx.tx.ExecContext(ctx, `ROLLBACK TO share`); err != nil {
			return failed, refine(err)
		}
	}
	_, err := tx.tx.ExecContext(ctx, `RELEASE share`)
	return failed, refine(err)
}

func (q *shares) add(f func(context.Context, *Tx) error) *share {
	one := &share{f: f, done: make(chan error, 1)}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, one)
	return one
}

// take returns all that wait, in their order; they wait no more.
func (q *shares) take() []*share {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.waiting
	q.waiting = nil
	return all
}

// withdraw reports whether one was still waiting; it waits no more.
func (q *shares) withdraw(one *share) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting, one)
	if i >= 0 {
		q.waiting = slices.Delete(q.waiting, i, i+1)
	}
	return i >= 0
}
