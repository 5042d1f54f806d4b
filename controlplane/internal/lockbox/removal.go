package lockbox

import (
	"context"
	"sync"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
)

// removed is the reason for which everything of a removed person ends.
const removed = "engineer-removed"

// EndPerson ends, within the transaction that removes a person, what they
// opened: their support sessions, and their requests, approved or not. What they
// decided about the requests of others stays.
//
// The function it returns tells the devices; it is to be called once the
// transaction is committed. What it does not get done, timers do.
func (s *Service) EndPerson(ctx context.Context, tx *store.Tx, caller auth.Caller, name protocol.Person) (tell func(context.Context), err error) {
	ended, err := s.endRequestsOf(ctx, tx, caller, name)
	if err != nil {
		return nil, err
	}
	closed, err := s.closeSessionsOf(ctx, tx, caller, name)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		s.tellOfRemoval(context.WithoutCancel(ctx), caller, ended, closed)
	}, nil
}

// tellOfRemoval tells the devices: first to lock, whose answer says how long that
// took, then that the sessions have ended.
func (s *Service) tellOfRemoval(ctx context.Context, caller auth.Caller, ended []store.Request, closed []store.Session) {
	var locks, offs sync.WaitGroup
	for _, r := range ended {
		locks.Go(func() {
			if _, err := s.relock(ctx, caller, r); err != nil {
				s.cfg.Logger.Error().Err(err).Str("request", string(r.ID)).Msg("cannot note whether a device locked after a removal: trying again")
			}
		})
	}
	locks.Wait()
	for _, row := range closed {
		offs.Go(func() { s.sessionOff(ctx, row) })
	}
	offs.Wait()
	s.wakeTimers()
}

func (s *Service) endRequestsOf(ctx context.Context, tx *store.Tx, caller auth.Caller, name protocol.Person) ([]store.Request, error) {
	rows, err := tx.Requests(ctx, store.RequestFilter{Engineer: name})
	if err != nil {
		return nil, err
	}
	var ended []store.Request
	for _, r := range rows {
		if state := State(r.Status); !state.Open() && state != Approved {
			continue
		}
		if err := s.end(ctx, tx, caller, &r, TakenBack, removed, string(name)); err != nil {
			return nil, err
		}
		ended = append(ended, r)
	}
	return ended, nil
}

func (s *Service) closeSessionsOf(ctx context.Context, tx *store.Tx, caller auth.Caller, name protocol.Person) ([]store.Session, error) {
	rows, err := tx.Sessions(ctx, store.SessionFilter{Engineer: name, State: SessionEnabled})
	if err != nil {
		return nil, err
	}
	var closed []store.Session
	for _, row := range rows {
		row, err := s.closeSession(ctx, tx, caller, row.ID, SessionDisabled, removed)
		if err != nil {
			return nil, err
		}
		closed = append(closed, row)
	}
	return closed, nil
}
