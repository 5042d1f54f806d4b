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
	closed, err := s.closeSessions(ctx, tx, caller, store.SessionFilter{Engineer: name}, removed)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		s.tellOfEnd(context.WithoutCancel(ctx), caller, ended, closed)
	}, nil
}

// tellOfEnd tells the devices: first to lock, whose answer says how long that
// took, then that the sessions have ended.
func (s *Service) tellOfEnd(ctx context.Context, caller auth.Caller, ended []store.Request, closed []store.Session) {
	var locks sync.WaitGroup
	for _, r := range ended {
		locks.Go(func() {
			if _, err := s.relock(ctx, caller, r); err != nil {
				s.cfg.Logger.Error().Err(err).Str("request", string(r.ID)).Msg("cannot note whether a device locked at the end of a request: trying again")
			}
		})
	}
	locks.Wait()
	s.sessionsOff(ctx, closed)
	s.wakeTimers()
}

func (s *Service) endRequestsOf(ctx context.Context, tx *store.Tx, caller auth.Caller, name protocol.Person) ([]store.Request, error) {
	rows, err := tx.Requests(ctx, store.RequestFilter{Engineer: name})
	if err != nil {
		return nil, err
	}
	var ended []store.Request
	for _, r := range rows {
		if state := StateOf(r.Status); !state.Open() && state != Approved {
			continue
		}
		if err := s.end(ctx, tx, caller, &r, TakenBack, removed, string(name)); err != nil {
			return nil, err
		}
		ended = append(ended, r)
	}
	return ended, nil
}
