package lockbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// The states of a support session.
const (
	SessionEnabled  = "enabled"
	SessionDisabled = "disabled"
	SessionKilled   = "killed"
	SessionExpired  = "expired"
)

// EnableSession lets an engineer open SSH connections to a node, for a ticket
// that is theirs or was escalated to them. It opens no disk.
func (s *Service) EnableSession(ctx context.Context, caller auth.Caller, in *lockboxv1.EnableSessionRequest) (*lockboxv1.Session, error) {
	length := DefaultSession
	if in.DurationSeconds != 0 {
		length = time.Duration(in.DurationSeconds) * time.Second
	}
	if in.DurationSeconds < 0 || in.DurationSeconds > int64(MaxSession/time.Second) {
		return nil, invalid("a session lasts at most %s", MaxSession)
	}
	if !caller.Is(auth.Engineer) {
		return nil, forbidden("%s is %s: only an engineer opens a support session", caller.Person, caller.Role)
	}
	now := s.now()
	row := store.Session{
		ID: newSessionID(), Node: protocol.NodeID{Serial: protocol.DeviceSerial(in.Serial), Node: max(int(in.Node), 1)},
		Ticket: protocol.TicketID(in.Ticket), Engineer: caller.Person, State: SessionEnabled, Created: now, Expires: now.Add(length),
	}
	err := s.change(ctx, func(tx *store.Tx) error {
		if err := s.prepareSession(ctx, tx, &row); err != nil {
			return err
		}
		if err := tx.InsertSession(ctx, &row); err != nil {
			return err
		}
		if err := tx.SetTimer(ctx, timerSessionEnd, string(row.ID), row.Expires); err != nil {
			return err
		}
		if err := s.addTicketLine(ctx, tx, row.Ticket, "Session", fmt.Sprintf("%s enabled on %s by %s", row.ID, row.Node, row.Engineer)); err != nil {
			return err
		}
		return s.recordSession(ctx, tx, caller, auditlog.OpEnableSession, auditlog.Success, row, nil)
	})
	if err != nil {
		return nil, err
	}
	if err := s.enableOnNode(ctx, row); err != nil {
		return nil, errors.Join(err, s.neverEnabled(context.WithoutCancel(ctx), caller, row.ID, err))
	}
	return s.GetSession(ctx, caller, &lockboxv1.GetSessionRequest{Id: string(row.ID)})
}

// prepareSession checks that the engineer may have the session, and completes
// its row.
func (s *Service) prepareSession(ctx context.Context, tx *store.Tx, row *store.Session) error {
	n, err := tx.Node(ctx, row.Node)
	if err != nil {
		return notFound("node", row.Node.String())
	}
	if n.KeyFingerprint == "" || !n.Revoked.IsZero() {
		return conflict("node %s is not enrolled", row.Node)
	}
	t, err := tx.Ticket(ctx, row.Ticket)
	switch {
	case protocol.CodeOf(err) == protocol.CodeNotFound:
		return notFound("ticket", string(row.Ticket))
	case err != nil:
		return err
	case t.Order != n.Order:
		return forbidden("ticket %s is about order %s, device %s belongs to %s", t.ID, t.Order, row.Node.Serial, n.Order)
	case t.Owner != row.Engineer && !slices.Contains(t.EscalatedTo, row.Engineer):
		return forbidden("%s neither owns ticket %s nor was it escalated to them", row.Engineer, t.ID)
	}
	open, err := tx.Sessions(ctx, store.SessionFilter{Serial: row.Node.Serial, Engineer: row.Engineer, State: SessionEnabled})
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(open, func(o store.Session) bool { return o.Node == row.Node }); i >= 0 {
		return conflict("%s has session %s on node %s already: use it, or disable it first", row.Engineer, open[i].ID, row.Node)
	}
	keys, err := tx.PersonKeys(ctx, row.Engineer)
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		return conflict("%s has no SSH key: an admin has to register one", row.Engineer)
	}
	row.Order, row.Tenant, row.KeyFingerprint = t.Order, t.Tenant, keys[0].Fingerprint
	return nil
}

func (s *Service) enableOnNode(ctx context.Context, row store.Session) error {
	node, err := s.cfg.Nodes.Node(row.Node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, deviceCall)
	defer cancel()
	resp, err := node.EnableSession(ctx, &devicev1.EnableSessionRequest{
		Session: string(row.ID), Engineer: string(row.Engineer), SshKey: row.KeyFingerprint, Expires: row.Expires.Unix(),
		Ticket: string(row.Ticket), CaKeys: [][]byte{s.cfg.Authority.SSHUserAuthority().Marshal()},
	})
	if err != nil {
		return err
	}
	return s.change(ctx, func(tx *store.Tx) error {
		now, err := tx.Session(ctx, row.ID)
		if err != nil {
			return err
		}
		now.HostKey = resp.HostKey
		return tx.UpdateSession(ctx, &now)
	})
}

// GetSession shows one session.
func (s *Service) GetSession(ctx context.Context, caller auth.Caller, in *lockboxv1.GetSessionRequest) (*lockboxv1.Session, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.Session, error) {
		row, err := session(ctx, tx, caller, in.Id)
		if err != nil {
			return nil, err
		}
		return showSession(row), nil
	})
}

// ListSessions shows the sessions that the caller may see.
func (s *Service) ListSessions(ctx context.Context, caller auth.Caller, in *lockboxv1.ListSessionsRequest) (*lockboxv1.ListSessionsResponse, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.ListSessionsResponse, error) {
		rows, err := tx.Sessions(ctx, store.SessionFilter{
			Tenant: caller.Scope(), Serial: protocol.DeviceSerial(in.Serial), Engineer: protocol.Person(in.Engineer), State: in.State,
		})
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.ListSessionsResponse{}
		for _, row := range rows {
			if caller.Sees(row.Tenant) {
				out.Sessions = append(out.Sessions, showSession(row))
			}
		}
		return out, nil
	})
}

// session reads a session that caller may see.
func session(ctx context.Context, tx *store.Tx, caller auth.Caller, id string) (store.Session, error) {
	row, err := tx.Session(ctx, protocol.SessionID(id))
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && !caller.Sees(row.Tenant) {
		err = notFound("session", id)
	}
	return row, err
}

// DisableSession ends a session for good. An access that its engineer executed
// on the same device ends with it, and the device locks.
func (s *Service) DisableSession(ctx context.Context, caller auth.Caller, in *lockboxv1.DisableSessionRequest) (*lockboxv1.DisableSessionResponse, error) {
	if len(in.Reason) > maxText {
		return nil, invalid("a reason has at most %d bytes", maxText)
	}
	row, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (store.Session, error) { return session(ctx, tx, caller, in.Id) })
	if err != nil {
		return nil, err
	}
	if caller.Person != row.Engineer && !caller.Is(auth.Admin, auth.Staff, auth.TenantAdmin, auth.Owner, auth.Approver) {
		return nil, forbidden("session %s is of %s: they, the customer, staff or an admin can disable it", row.ID, row.Engineer)
	}
	ended, err := s.endSession(context.WithoutCancel(ctx), caller, row.ID, disabling(in.Reason))
	if err != nil {
		return nil, err
	}
	shown, err := s.GetSession(ctx, caller, &lockboxv1.GetSessionRequest{Id: in.Id})
	if err != nil {
		return nil, err
	}
	return &lockboxv1.DisableSessionResponse{Session: shown, Relocked: ended.relocked}, nil
}

// neverEnabled ends a session that did not reach its node, or of which that is
// not known: the node is told to forget it.
func (s *Service) neverEnabled(ctx context.Context, caller auth.Caller, id protocol.SessionID, why error) error {
	var row store.Session
	err := s.change(ctx, func(tx *store.Tx) (err error) {
		row, err = s.closeSession(ctx, tx, caller, id, SessionDisabled, "not enabled on the device: "+why.Error())
		return err
	})
	if err == nil {
		_ = s.sessionOff(ctx, row) // told again by its timer
	}
	return err
}

// sessionEnd is how a session ends, and with it what its engineer was approved
// for on the device.
type sessionEnd struct {
	state  string // that the session gets
	reason string // why, in somebody's words
	event  Event  // what happens to the accesses
	why    string // the reason of that, as devices take it
	all    bool   // also what was approved and not executed yet
}

func disabling(reason string) sessionEnd {
	return sessionEnd{state: SessionDisabled, reason: reason, event: Finished, why: "session-disabled"}
}

// endedSession is what came of it.
type endedSession struct {
	session  store.Session
	relocked []*lockboxv1.RelockResult
	off      error         // why the session's node did not confirm that it has ended
	took     time.Duration // until it did
}

// endSession ends a session, and the accesses that end with it, first in the
// store and then at the device.
func (s *Service) endSession(ctx context.Context, caller auth.Caller, id protocol.SessionID, how sessionEnd) (out endedSession, err error) {
	var accesses []store.Request
	err = s.change(ctx, func(tx *store.Tx) (err error) {
		if out.session, err = s.closeSession(ctx, tx, caller, id, how.state, how.reason); err == nil {
			accesses, err = s.endAccesses(ctx, tx, caller, out.session, how)
		}
		return err
	})
	if err != nil {
		return out, s.offAnyway(ctx, id, how, err)
	}
	// Locking first: it puts everybody out too, and its answer says how long
	// the disks took to be locked.
	cut := time.AfterFunc(bytesWithin, func() { s.cfg.SessionEnded(id) }) // should the node not answer
	defer func(start time.Time) {
		out.off = s.sessionOff(ctx, out.session)
		out.took = time.Since(start)
		cut.Stop()
	}(time.Now())
	for _, r := range accesses {
		relocked, err := s.relock(ctx, caller, r)
		if err != nil {
			return out, err
		}
		out.relocked = append(out.relocked, relocked...)
	}
	return out, nil
}

// offAnyway ends a session on its node when that could not be written: the node
// locks first if it is unlocked for the session's engineer. Here, the end has
// still to be written.
func (s *Service) offAnyway(ctx context.Context, id protocol.SessionID, how sessionEnd, why error) error {
	if !unwritten(why) {
		return why
	}
	row, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (store.Session, error) { return tx.Session(ctx, id) })
	if err != nil || row.State != SessionEnabled {
		return why
	}
	row.State, row.EndReason = how.state, how.reason
	if s.disableOnNode(ctx, row) != nil {
		return why
	}
	return lockedUnwritten(why)
}

// closeSession ends a session in the store, with a timer that sees to it that
// its node hears of it.
func (s *Service) closeSession(ctx context.Context, tx *store.Tx, caller auth.Caller, id protocol.SessionID, state, reason string) (store.Session, error) {
	row, err := tx.Session(ctx, id)
	if err != nil {
		return row, err
	}
	if row.State != SessionEnabled {
		return row, conflict("session %s is %s already", id, row.State)
	}
	row.State, row.Ended, row.EndReason = state, s.now(), reason
	if err := tx.UpdateSession(ctx, &row); err != nil {
		return row, err
	}
	if err := tx.CancelTimer(ctx, timerSessionEnd, string(id)); err != nil {
		return row, err
	}
	if err := tx.SetTimer(ctx, timerSessionOff, string(id), s.now().Add(relockLease)); err != nil {
		return row, err
	}
	op := auditlog.OpDisableSession
	if state == SessionKilled {
		op = auditlog.OpKillSession
	}
	return row, s.recordSession(ctx, tx, caller, op, auditlog.Success, row, map[string]string{"reason": reason, "state": state})
}

// closeSessions ends the sessions that f wants. The caller tells their nodes.
func (s *Service) closeSessions(ctx context.Context, tx *store.Tx, caller auth.Caller, f store.SessionFilter, reason string) ([]store.Session, error) {
	f.State = SessionEnabled
	rows, err := tx.Sessions(ctx, f)
	if err != nil {
		return nil, err
	}
	var closed []store.Session
	for _, row := range rows {
		row, err := s.closeSession(ctx, tx, caller, row.ID, SessionDisabled, reason)
		if err != nil {
			return nil, err
		}
		closed = append(closed, row)
	}
	return closed, nil
}

// sessionsOff tells all nodes at once that sessions have ended.
func (s *Service) sessionsOff(ctx context.Context, closed []store.Session) {
	var all sync.WaitGroup
	for _, row := range closed {
		all.Go(func() { _ = s.sessionOff(ctx, row) }) // told again by its timer
	}
	all.Wait()
}

// endAccesses ends what the session's engineer executed on the device, or all
// that they were approved for there. A request that still waits is left alone.
func (s *Service) endAccesses(ctx context.Context, tx *store.Tx, caller auth.Caller, row store.Session, how sessionEnd) ([]store.Request, error) {
	rows, err := tx.Requests(ctx, store.RequestFilter{Serial: row.Node.Serial, Engineer: row.Engineer, Statuses: []string{string(Approved)}})
	if err != nil {
		return nil, err
	}
	var ended []store.Request
	for _, r := range rows {
		if r.Executed.IsZero() && !how.all {
			continue
		}
		if err := s.end(ctx, tx, caller, &r, how.event, how.why, string(row.ID)); err != nil {
			return nil, err
		}
		ended = append(ended, r)
	}
	return ended, nil
}

// sessionOff tells the node that a session has ended. A node that is away is
// told when it is back, until the session would have expired by itself; its bytes
// are cut here. The error says why the node did not confirm.
func (s *Service) sessionOff(ctx context.Context, row store.Session) error {
	refused := s.disableOnNode(ctx, row)
	if refused != nil {
		s.cfg.SessionEnded(row.ID)
		s.cfg.Logger.Warn().Err(refused).Str("session", string(row.ID)).Stringer("node", row.Node).Msg("a node did not confirm that a session has ended")
	}
	err := s.change(ctx, func(tx *store.Tx) error {
		if refused == nil || !s.now().Before(row.Expires) {
			return tx.CancelTimer(ctx, timerSessionOff, string(row.ID))
		}
		return tx.SetTimer(ctx, timerSessionOff, string(row.ID), s.now().Add(again(s.now(), row.Ended)))
	})
	if err != nil {
		s.cfg.Logger.Error().Err(err).Str("session", string(row.ID)).Msg("cannot note whether a node has ended a session")
	}
	return refused
}

func (s *Service) disableOnNode(ctx context.Context, row store.Session) error {
	node, err := s.cfg.Nodes.Node(row.Node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, deviceCall)
	defer cancel()
	reason := row.EndReason
	if row.State == SessionKilled {
		reason = killed
	}
	_, err = node.DisableSession(ctx, &devicev1.DisableSessionRequest{Session: string(row.ID), Reason: reason})
	return err
}

// sessionExpires ends a session whose time is over.
func (s *Service) sessionExpires(ctx context.Context, t store.Timer) error {
	id := protocol.SessionID(t.Subject)
	row, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (store.Session, error) { return tx.Session(ctx, id) })
	if err != nil {
		return err
	}
	if row.State != SessionEnabled {
		return s.change(ctx, func(tx *store.Tx) error { return tx.FinishTimer(ctx, t) })
	}
	how := disabling("expired")
	how.state = SessionExpired
	_, err = s.endSession(ctx, auth.SystemCaller(), id, how)
	return err
}

// sessionOffAgain tells a node once more.
func (s *Service) sessionOffAgain(ctx context.Context, t store.Timer) error {
	var row store.Session
	err := s.change(ctx, func(tx *store.Tx) (err error) {
		if err := s.take(ctx, tx, t); err != nil {
			return err
		}
		row, err = tx.Session(ctx, protocol.SessionID(t.Subject))
		return err
	})
	if err == nil {
		_ = s.sessionOff(ctx, row) // told again by its timer
	}
	return err
}

// IssueCertificate makes a user certificate, minutes long, over the engineer's
// own registered key: the one the session was enabled for.
func (s *Service) IssueCertificate(ctx context.Context, caller auth.Caller, in *lockboxv1.IssueCertificateRequest) (*lockboxv1.IssueCertificateResponse, error) {
	fingerprint, err := approval.SSHFingerprint(in.PublicKey)
	if err != nil {
		return nil, err
	}
	var out *lockboxv1.IssueCertificateResponse
	err = s.change(ctx, func(tx *store.Tx) error {
		row, err := s.ownSession(ctx, tx, caller, in.Session)
		if err != nil {
			return err
		}
		if fingerprint != row.KeyFingerprint {
			return forbidden("session %s is for key %s of %s, not for %s", row.ID, row.KeyFingerprint, row.Engineer, fingerprint)
		}
		ttl := min(CertificateTTL, row.Expires.Sub(s.now()))
		line, err := s.cfg.Authority.CertifyEngineer(in.PublicKey, row.Engineer, row.ID, row.Node, ttl)
		if err != nil {
			return err
		}
		expires := s.now().Add(ttl)
		out = &lockboxv1.IssueCertificateResponse{
			Certificate: line, KnownHosts: certs.KnownHostsLine(s.cfg.Authority.SSHHostAuthority()),
			Principal: string(row.ID), Expires: expires.Unix(),
		}
		return s.recordSession(ctx, tx, caller, auditlog.OpIssueSSHCert, auditlog.Success, row, map[string]string{
			"key": fingerprint, "expires": expires.Format(time.RFC3339),
		})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Connect admits caller to the bytes of a session, which must be their own, and
// returns the node to connect to. A node forgets its sessions when it restarts:
// it is told again of this one.
func (s *Service) Connect(ctx context.Context, caller auth.Caller, id protocol.SessionID) (protocol.NodeID, error) {
	var row store.Session
	err := s.change(ctx, func(tx *store.Tx) (err error) {
		if row, err = s.ownSession(ctx, tx, caller, string(id)); err != nil {
			return err
		}
		return s.recordSession(ctx, tx, caller, auditlog.OpConnectSession, auditlog.Start, row, nil)
	})
	if err != nil {
		return protocol.NodeID{}, err
	}
	return row.Node, s.remindNode(ctx, row)
}

// remindNode enables a session on its node once more, if the node does not know
// it.
func (s *Service) remindNode(ctx context.Context, row store.Session) error {
	node, err := s.cfg.Nodes.Node(row.Node)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, deviceCall)
	defer cancel()
	resp, err := node.Status(limited, &devicev1.StatusRequest{})
	if err != nil {
		return err
	}
	known := func(one *devicev1.SessionStatus) bool { return one.Session == string(row.ID) }
	if slices.ContainsFunc(resp.GetStatus().GetSessions(), known) {
		return nil
	}
	if err := s.enableOnNode(ctx, row); err != nil {
		return err
	}
	return s.disabledMeanwhile(ctx, row)
}

// disabledMeanwhile ends a session on its node again that was disabled while
// the node was reminded of it.
func (s *Service) disabledMeanwhile(ctx context.Context, row store.Session) error {
	now, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (store.Session, error) { return tx.Session(ctx, row.ID) })
	if err != nil || now.State == SessionEnabled {
		return err
	}
	_ = s.sessionOff(context.WithoutCancel(ctx), now) // told again by its timer
	return conflict("session %s has ended: enable another", row.ID)
}

// ownSession reads a session that caller may use now.
func (s *Service) ownSession(ctx context.Context, tx *store.Tx, caller auth.Caller, id string) (store.Session, error) {
	row, err := session(ctx, tx, caller, id)
	switch {
	case err != nil:
		return row, err
	case caller.Person != row.Engineer || !caller.Is(auth.Engineer):
		return row, forbidden("session %s is of %s: nobody else uses it", row.ID, row.Engineer)
	case row.State != SessionEnabled || !s.now().Before(row.Expires):
		return row, conflict("session %s has ended: enable another", row.ID)
	}
	return row, nil
}

func (s *Service) recordSession(ctx context.Context, tx *store.Tx, caller auth.Caller, op auditlog.Operation, result auditlog.Result, row store.Session, properties map[string]string) error {
	rec := auditlog.NewRecord(s.now(), op, result)
	rec.Caller, rec.CorrelationID = string(caller.Person), string(row.ID)
	rec.ResourceID = fmt.Sprintf("/devices/%s/nodes/%d/sessions/%s", row.Node.Serial, row.Node.Node, row.ID)
	rec.Properties = map[string]string{
		audit.PropertyTenant: string(row.Tenant), audit.PropertySerial: string(row.Node.Serial),
		"node": row.Node.String(), "ticket": string(row.Ticket), "engineer": string(row.Engineer), "key": row.KeyFingerprint,
	}
	for k, v := range properties {
		rec.Properties[k] = v
	}
	_, err := s.cfg.Audit.Record(ctx, tx, rec)
	return err
}

func showSession(row store.Session) *lockboxv1.Session {
	return &lockboxv1.Session{
		Id: string(row.ID), Serial: string(row.Node.Serial), Node: int32(row.Node.Node), Ticket: string(row.Ticket),
		Engineer: string(row.Engineer), KeyFingerprint: row.KeyFingerprint, State: row.State,
		Created: row.Created.Unix(), Expires: row.Expires.Unix(),
	}
}
