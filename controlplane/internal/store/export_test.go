package store

import "context"

// Waiting is how many functions wait to share a transaction.
func (s *Store) Waiting() int {
	s.shares.mu.Lock()
	defer s.shares.mu.Unlock()
	return len(s.shares.waiting)
}

// BreakCommit writes what is refused only when tx commits.
func BreakCommit(ctx context.Context, tx *Tx) error {
	_, err := tx.tx.ExecContext(ctx, `PRAGMA defer_foreign_keys = ON;
		INSERT INTO subscriptions (id, tenant, support_plan, notify, created, rev) VALUES ('x', 'nobody', '', '[]', 0, 0)`)
	return err
}
