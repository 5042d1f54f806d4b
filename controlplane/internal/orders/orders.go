// Package orders keeps import orders from the first click to the last copied
// file: tenants and tickets around them, the devices that serve them, whose
// signatures those devices want, and the copy job.
//
// Its rules:
//
//   - An order's stage goes forward only, one stage at a time.
//   - Nothing here can open a disk: trust policies and consents are documents
//     that customers sign; they are verified here as the device verifies them.
//   - A customer sees what belongs to their tenant; everything else is not
//     found.
//   - Every change is recorded in the transaction that makes it.
package orders

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// Lifetimes of what is handed out.
const (
	JoinTokenTTL   = 15 * time.Minute
	DeviceCertTTL  = 30 * 24 * time.Hour
	HostCertTTL    = 2 * 365 * 24 * time.Hour
	ConsentTTL     = 90 * 24 * time.Hour // unless the draft says otherwise
	MaxConsentTTL  = 366 * 24 * time.Hour
	DefaultMaxTime = 8 * time.Hour // of one lease, unless the trust policy says otherwise
)

// Tunnels are the live connections of devices.
type Tunnels interface {
	// Online reports whether the node's tunnel is up.
	Online(id protocol.NodeID) bool
	// Disconnect closes the node's tunnel, if it is up. reason is for people.
	Disconnect(id protocol.NodeID, reason string)
	// Node calls the node, or refuses with [protocol.CodeOffline].
	Node(id protocol.NodeID) (devicev1.NodeServiceClient, error)
}

// Config are the parts of a [Service]. All but PolicyReplaced, Reach and Now are
// needed.
type Config struct {
	Store         *store.Store
	Audit         *audit.Service
	Tunnels       Tunnels
	Authority     *certs.Authorities
	Custody       *custody.Service
	ServiceKey    ed25519.PublicKey // goes into trust policies
	TunnelAddress string            // host:port that devices dial
	Heartbeat     time.Duration     // how often nodes are to report; a quarter of the dead-man time
	// PolicyReplaced is told, within the transaction that does it, that a trust
	// policy was replaced. What it returns, if anything, is called once that is
	// committed. nil: nobody is told.
	PolicyReplaced func(ctx context.Context, tx *store.Tx, caller auth.Caller, o store.Order, next *approval.Policy) (after func(context.Context), err error)
	// Reach says what an engineer was given access to, once it is on record that they
	// read that order, or if it is nil a list. nil: nobody was given any.
	Reach  func(ctx context.Context, caller auth.Caller, operation string, of *store.Order) (store.Reach, error)
	Now    func() time.Time // default time.Now
	Logger zerolog.Logger
}

// Service answers TenantService, OrderService, DeviceService, TicketService,
// and what devices report. Its methods may be called concurrently.
type Service struct {
	cfg Config

	wake chan struct{} // one slot: a trust policy may be deliverable

	mu      sync.Mutex                 // guards what follows
	seen    map[protocol.NodeID]report // newest report of each node
	waiting map[protocol.NodeID]bool   // for a trust policy, as far as is known here
	handing map[protocol.NodeID]bool   // a trust policy, just now
}

// New returns a service.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Reach == nil {
		cfg.Reach = func(context.Context, auth.Caller, string, *store.Order) (store.Reach, error) {
			return store.Reach{}, nil
		}
	}
	return &Service{
		cfg: cfg, wake: make(chan struct{}, 1), seen: make(map[protocol.NodeID]report),
		waiting: make(map[protocol.NodeID]bool), handing: make(map[protocol.NodeID]bool),
	}
}

// now is the time as it is stored: in UTC, to the millisecond.
func (s *Service) now() time.Time { return s.cfg.Now().UTC().Truncate(time.Millisecond) }

// change runs f in one transaction with the record of it, which f completes.
func (s *Service) change(ctx context.Context, caller string, op auditlog.Operation, f func(tx *store.Tx, rec *auditlog.Record) error) error {
	return s.cfg.Store.Tx(ctx, func(tx *store.Tx) error {
		rec := auditlog.NewRecord(s.now(), op, auditlog.Success)
		rec.Caller, rec.Properties = caller, map[string]string{}
		if err := f(tx, &rec); err != nil {
			return err
		}
		_, err := s.cfg.Audit.Record(ctx, tx, rec)
		return err
	})
}

// refused records that something was refused, and returns why.
func (s *Service) refused(ctx context.Context, caller string, op auditlog.Operation, resource string, properties map[string]string, why error) error {
	err := s.cfg.Store.Tx(ctx, func(tx *store.Tx) error {
		rec := auditlog.NewRecord(s.now(), op, auditlog.Refused)
		rec.Caller, rec.ResourceID, rec.Properties = caller, resource, map[string]string{}
		for k, v := range properties {
			rec.Properties[k] = v
		}
		rec.Properties["code"], rec.Properties["reason"] = string(protocol.CodeOf(why)), why.Error()
		_, err := s.cfg.Audit.Record(ctx, tx, rec)
		return err
	})
	if err != nil {
		return err
	}
	return why
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

// order reads an order that caller may see.
func order(ctx context.Context, tx *store.Tx, caller auth.Caller, id string) (store.Order, error) {
	o, err := tx.Order(ctx, protocol.OrderID(id))
	if err == nil && !caller.Sees(o.Tenant) {
		err = notFound("order", id)
	}
	return o, err
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

// about completes a record with the order it is about.
func about(rec *auditlog.Record, o store.Order) {
	rec.ResourceID = "/subscriptions/" + string(o.Subscription) + "/orders/" + string(o.ID)
	rec.CorrelationID = string(o.ID)
	rec.Properties[audit.PropertyTenant] = string(o.Tenant)
	if o.Serial != "" {
		rec.Properties[audit.PropertySerial] = string(o.Serial)
	}
}

// addHistory adds a line to an order's history.
func (s *Service) addHistory(ctx context.Context, tx *store.Tx, o store.Order, what, detail string) error {
	return tx.AddHistory(ctx, store.OrderHistory, string(o.ID), store.HistoryLine{Time: s.now(), What: what, Detail: detail})
}

func history(lines []store.HistoryLine) []*lockboxv1.HistoryLine {
	var out []*lockboxv1.HistoryLine
	for _, l := range lines {
		out = append(out, &lockboxv1.HistoryLine{Time: l.Time.Unix(), What: l.What, Detail: l.Detail})
	}
	return out
}

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b) // never fails, see crypto/rand
	return hex.EncodeToString(b)
}

// newGUID returns a random GUID (version 4).
func newGUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// keyOf returns the Ed25519 key that a certificate request is for.
func keyOf(csr []byte) (ed25519.PublicKey, error) {
	r, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, invalid("the certificate request cannot be read")
	}
	key, ok := r.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, invalid("the certificate request is for a %T: want an Ed25519 key", r.PublicKey)
	}
	return key, nil
}
