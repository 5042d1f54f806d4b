// Package lockbox keeps Lockbox requests and support sessions: who asked for
// access to a customer's data, who allowed it, for how long, and that it ends.
//
// Its rules:
//
//   - A request changes state only as its one table says ([State.Next]), by
//     compare-and-set, together with the record of it. Nothing leaves Denied,
//     Expired, Revoked and Completed.
//   - What everyone decides over is a statement whose bytes are made once.
//     Decisions are signatures over it; they are verified here as the device
//     verifies them, and again by custody and by the device.
//   - Approving and executing are separate acts of separate people. The engineer
//     who asks never counts as an approver.
//   - Ending access takes effect in the store first, then at the device, and
//     needs nobody's signature.
//   - Whatever happens at a time is a row. [Service.RunTimers] acts on each
//     once, also after a restart and beside other daemons.
package lockbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io/fs"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// Times of requests and sessions.
const (
	RequestExpiry   = orders.RequestExpiry // an unanswered request lives exactly that long, or as the tenant has set
	DefaultDuration = orders.AccessTime    // of access, from the approval, or as the tenant has set
	DefaultSession  = 2 * time.Hour
	MaxSession      = 8 * time.Hour
	CertificateTTL  = 5 * time.Minute  // of an engineer's SSH certificate
	warnBefore      = 24 * time.Hour   // of an expiry, or a quarter of the time if that is less
	warnAccess      = 30 * time.Minute // before an access ends, or a quarter of it if that is less
)

// deviceCall is the deadline of one call to a node. The bytes of a session that
// ends are cut within bytesWithin if the node does not.
const (
	deviceCall  = 10 * time.Second
	bytesWithin = 1500 * time.Millisecond
)

// maxText bounds what a person wrote, in bytes.
const maxText = 1024

// Nodes reaches devices.
type Nodes interface {
	// Node calls a node, or refuses at once with [protocol.CodeOffline].
	Node(id protocol.NodeID) (devicev1.NodeServiceClient, error)
}

// Config are the parts of a [Service]. All but Expiry, SessionEnded and Now are
// needed.
type Config struct {
	Store       *store.Store
	Audit       *audit.Service
	Custody     *custody.Service
	Notify      *notify.Service
	Orders      *orders.Service // for its timers
	Nodes       Nodes
	Authority   *certs.Authorities
	Policies    *policy.Set   // in force from the start
	PolicyFiles fs.FS         // looked at for others, see [Service.RunPolicies]; nil: Policies stay
	Expiry      time.Duration // unanswered requests live no longer, in whole seconds; RequestExpiry if 0, anything else is for demonstrations
	// SessionEnded cuts the bytes of a session whose node did not confirm that it
	// has ended. Default: they are left alone.
	SessionEnded func(protocol.SessionID)
	Now          func() time.Time // default time.Now
	Logger       zerolog.Logger
}

// Service answers RequestService and SessionService. Its methods may be called
// concurrently.
type Service struct {
	cfg    Config
	wake   chan struct{} // one slot: a timer may have been set
	rules  atomic.Pointer[ruleSet]
	unused atomic.Pointer[refusedSet] // what lies in PolicyFiles instead; nil if that is what is in force
}

// New returns a service. Timers wait for [Service.RunTimers].
func New(cfg Config) *Service {
	if cfg.Expiry == 0 {
		cfg.Expiry = RequestExpiry
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.SessionEnded == nil {
		cfg.SessionEnded = func(protocol.SessionID) {}
	}
	s := &Service{cfg: cfg, wake: make(chan struct{}, 1)}
	s.rules.Store(&ruleSet{cfg.Policies, s.now()})
	return s
}

// now is the time as it is stored: in UTC, to the millisecond.
func (s *Service) now() time.Time { return s.cfg.Now().UTC().Truncate(time.Millisecond) }

// request reads a request, by id or short number, that caller may see.
func request(ctx context.Context, tx *store.Tx, caller auth.Caller, name string) (store.Request, error) {
	var r store.Request
	var err error
	var number int64
	if _, scanned := fmt.Sscanf(name+"\n", "%d\n", &number); scanned == nil {
		r, err = tx.RequestByNumber(ctx, number)
	} else {
		r, err = tx.Request(ctx, protocol.RequestID(name))
	}
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && !caller.Sees(r.Tenant) {
		err = notFound("request", name)
	}
	return r, err
}

// record completes and writes a record about a request within tx.
func (s *Service) record(ctx context.Context, tx *store.Tx, caller auth.Caller, op auditlog.Operation, result auditlog.Result, r store.Request, properties map[string]string) error {
	rec := auditlog.NewRecord(s.now(), op, result)
	rec.Caller, rec.ResourceID, rec.CorrelationID = string(caller.Person), r.ResourceID, string(r.ID)
	rec.Properties = map[string]string{
		audit.PropertyTenant: string(r.Tenant), audit.PropertySerial: string(r.Serial),
		"status": r.Status, "ticket": string(r.Ticket),
	}
	for k, v := range properties {
		rec.Properties[k] = v
	}
	_, err := s.cfg.Audit.Record(ctx, tx, rec)
	return err
}

// refusedError is a refusal about a request that exists, made within a
// transaction that is rolled back: it is recorded after.
type refusedError struct {
	why     error
	request store.Request
}

func (e *refusedError) Error() string { return e.why.Error() }
func (e *refusedError) Unwrap() error { return e.why }

// damagedError says that the record of a request cannot be trusted. It is acted
// on after the transaction that found it.
type damagedError struct {
	why     error
	request store.Request
}

func (e *damagedError) Error() string { return e.why.Error() }
func (e *damagedError) Unwrap() error { return e.why }

// refused records a refusal and returns why.
func (s *Service) refused(ctx context.Context, caller auth.Caller, op auditlog.Operation, e *refusedError) error {
	err := s.change(ctx, func(tx *store.Tx) error {
		return s.record(ctx, tx, caller, op, auditlog.Refused, e.request, map[string]string{
			"code": string(protocol.CodeOf(e.why)), "reason": e.why.Error(),
		})
	})
	if err != nil {
		return err
	}
	return e.why
}

// addHistory adds a line to a request's history.
func (s *Service) addHistory(ctx context.Context, tx *store.Tx, r store.Request, what, detail string) error {
	return tx.AddHistory(ctx, store.RequestHistory, string(r.ID), store.HistoryLine{Time: s.now(), What: what, Detail: detail})
}

// addTicketLine adds a line to the history of the ticket that something is done
// for.
func (s *Service) addTicketLine(ctx context.Context, tx *store.Tx, id protocol.TicketID, what, detail string) error {
	return tx.AddHistory(ctx, store.TicketHistory, string(id), store.HistoryLine{Time: s.now(), What: what, Detail: detail})
}

// change runs f in one transaction, and has [Service.RunTimers] look at the
// timers that f may have set.
func (s *Service) change(ctx context.Context, f func(tx *store.Tx) error) error {
	err := s.cfg.Store.Tx(ctx, f)
	s.wakeTimers()
	return err
}

// wakeTimers has [Service.RunTimers] look at the timers now.
func (s *Service) wakeTimers() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// view reads one consistent state.
func view[T any](ctx context.Context, st *store.Store, f func(tx *store.Tx) (T, error)) (T, error) {
	var out T
	err := st.View(ctx, func(tx *store.Tx) (err error) {
		out, err = f(tx)
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return out, nil
}

func notFound(what, id string) error {
	return protocol.Errorf(protocol.CodeNotFound, "%s %s not found", what, id)
}

func invalid(format string, args ...any) error {
	return protocol.Errorf(protocol.CodeInvalid, format, args...)
}

func conflict(format string, args ...any) error {
	return protocol.Errorf(protocol.CodeConflict, format, args...)
}

func forbidden(format string, args ...any) error {
	return protocol.Errorf(protocol.CodeForbidden, format, args...)
}

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// newGUID returns a random GUID (version 4).
func newGUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func newSessionID() protocol.SessionID {
	var b [8]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return protocol.SessionID("SES-" + hex.EncodeToString(b[:]))
}

func history(lines []store.HistoryLine) []*lockboxv1.HistoryLine {
	var out []*lockboxv1.HistoryLine
	for _, l := range lines {
		out = append(out, &lockboxv1.HistoryLine{Time: l.Time.Unix(), What: l.What, Detail: l.Detail})
	}
	return out
}
