// Package recordings keeps what nodes record of support sessions and shares, and
// shows it to whom it concerns.
//
// Its rules:
//
//   - A recording is a file that only grows. What a node sends is checked frame by
//     frame, on disk before it is acknowledged, and compared if it comes again.
//   - A node brings recordings of its own only, of its own sessions. What one node
//     can fill is bounded, so that the others have room.
//   - One is complete when its node has signed its end. That the node's record of
//     it, in the activity log, has the same digest is found out when both are
//     here. What contradicts itself is broken: kept, recorded, and shown.
//   - Customers see those of their tenant, an engineer their own, an admin all that
//     have ended. Each look is recorded before anything is shown, and while a
//     session goes on its engineer is told who watches.
//   - A long one has parts, each a recording by itself and a row; which follows
//     which is compared when both are here.
//   - Old ones go when that is configured, unless a legal hold names them; the row
//     stays.
package recordings

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// MinRetention is the shortest time that recordings are kept.
const MinRetention = 90 * 24 * time.Hour

// Log is the activity log.
type Log interface {
	// Record writes a record within tx.
	Record(ctx context.Context, tx *store.Tx, rec auditlog.Record) (index int64, err error)
	// RecordIntent writes a record that is on disk when it returns without error.
	RecordIntent(ctx context.Context, rec auditlog.Record) (index int64, err error)
}

// Nodes reaches devices.
type Nodes interface {
	// Node calls a node, or refuses at once with [protocol.CodeOffline].
	Node(id protocol.NodeID) (devicev1.NodeServiceClient, error)
}

// Limits bound what is kept, in bytes.
type Limits struct {
	Recording int64 // one
	Node      int64 // those of one node
	Total     int64
}

// Config are the parts of a [Service]. All but Retention and Now are needed.
type Config struct {
	Store     *store.Store
	Audit     Log
	Nodes     Nodes
	Dir       string // of the files; made with mode 0700
	Limits    Limits
	Retention time.Duration // older ones are deleted; 0 keeps all
	// Reach says what an engineer was given access to, once it is on record that they
	// read a list of it. nil: nobody was given any.
	Reach  func(ctx context.Context, caller auth.Caller, operation string, of *store.Order) (store.Reach, error)
	Now    func() time.Time // default time.Now
	Logger zerolog.Logger
}

// Service answers RecordingService, and the nodes that bring recordings. Its
// methods may be called concurrently.
type Service struct {
	cfg  Config
	wake chan struct{} // one slot: somebody began to watch

	mu      sync.Mutex
	growing map[string]*growing       // guarded by mu
	used    map[protocol.NodeID]int64 // guarded by mu
	total   int64                     // guarded by mu
	looks   map[look]*looking         // guarded by mu

	reviewed int // guarded by mu: how many of those that wait for the activity log this round is past
}

// New opens the recordings of a store. Nothing is checked or deleted, and no
// engineer told who watches, before [Service.Run].
func New(ctx context.Context, cfg Config) (*Service, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Reach == nil {
		cfg.Reach = func(context.Context, auth.Caller, string, *store.Order) (store.Reach, error) {
			return store.Reach{}, nil
		}
	}
	s := &Service{
		cfg: cfg, wake: make(chan struct{}, 1),
		growing: make(map[string]*growing), used: make(map[protocol.NodeID]int64), looks: make(map[look]*looking),
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot keep recordings: %w", err)
	}
	rows, err := s.list(ctx, store.RecordingFilter{})
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		if r.State == store.RecordingDeleted {
			continue
		}
		size, err := s.sizeOf(r.ID)
		if err != nil {
			return nil, err
		}
		s.countLocked(r.Node, charge(size)) // nobody else knows s yet
	}
	return s, nil
}

// minCharge is what a recording counts at least, so that many small ones are
// bounded too.
const minCharge = 16 << 10

func charge(size int64) int64 { return max(size, minCharge) }

func (s *Service) countLocked(node protocol.NodeID, n int64) {
	s.used[node] += n
	s.total += n
}

// now is the time as it is stored: in UTC, to the millisecond.
func (s *Service) now() time.Time { return s.cfg.Now().UTC().Truncate(time.Millisecond) }

// path is the file of a recording; ids have been checked.
func (s *Service) path(id string) string { return filepath.Join(s.cfg.Dir, FileName(id)) }

// sizeOf is how much of a recording is there. A file that is missing has nothing.
func (s *Service) sizeOf(id string) (int64, error) {
	info, err := os.Stat(s.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("cannot look at recording %s: %w", id, err)
	}
	return info.Size(), nil
}

func (s *Service) list(ctx context.Context, f store.RecordingFilter) (rows []store.Recording, err error) {
	err = s.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.Recordings(ctx, f)
		return err
	})
	return rows, err
}

func (s *Service) row(ctx context.Context, id string) (row store.Recording, err error) {
	err = s.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		row, err = tx.Recording(ctx, id)
		return err
	})
	return row, err
}

// about begins a record about a recording.
func (s *Service) about(op auditlog.Operation, result auditlog.Result, caller string, r store.Recording) auditlog.Record {
	rec := auditlog.NewRecord(s.now(), op, result)
	rec.Caller, rec.ResourceID = caller, fmt.Sprintf("/devices/%s/nodes/%d/recordings/%s", r.Node.Serial, r.Node.Node, r.ID)
	rec.CorrelationID = string(r.Session)
	if rec.CorrelationID == "" {
		rec.CorrelationID = string(r.Request)
	}
	rec.Properties = map[string]string{
		propertyTenant: string(r.Tenant), propertySerial: string(r.Node.Serial), "node": r.Node.String(), propertyRecording: r.ID,
		"kind": r.Kind, "session": string(r.Session), "request": string(r.Request), "engineer": string(r.Engineer), "ticket": string(r.Ticket),
	}
	return rec
}

// Properties of records: whose they are, and of which recording.
const (
	propertyTenant    = "tenant"
	propertySerial    = "serial"
	propertyRecording = "recording"
	propertyDigest    = "digest"
)

func notFound(id string) error {
	return protocol.Errorf(protocol.CodeNotFound, "recording %s not found, or nothing is recorded yet: lockbox session recordings lists what is", id)
}

func invalid(format string, args ...any) error {
	return protocol.Errorf(protocol.CodeInvalid, format, args...)
}

func forbidden(format string, args ...any) error {
	return protocol.Errorf(protocol.CodeForbidden, format, args...)
}
