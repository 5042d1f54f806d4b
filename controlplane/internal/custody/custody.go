// Package custody holds the BitLocker keys of every disk, and what lets the copy
// job into the customer's storage accounts, and hands them to devices in one way
// only: the unlock saga.
//
// Its rules:
//
//   - At rest every key of a disk is encrypted under a key of its order, bound to
//     its disk, and the key of the order is wrapped by a key service, bound to
//     its order. A key is in memory while it is sealed or deposited, and wiped
//     after.
//   - A key service that is lost, or does not answer within five seconds, means
//     a refusal.
//   - An order moves to its customer's key for good. What the key before it
//     wrapped is erased from the store's files, also after a crash.
//   - What lets into an account is kept like a disk's key. It goes along with an
//     unlock for the copy job only, to the nodes and for the account and endpoint
//     that the customer's consent names. The key of an account never leaves: what
//     goes is a signature made with it, which ends with the lease.
//   - Custody trusts no state of a request: before it unwraps anything it
//     verifies the approvals itself, against the customer's trust policy.
//   - Recorded before opened: the intent is on disk in the activity log before
//     any key is unwrapped.
//   - All nodes of a device open, or none stays open. An attempt that fails or
//     was cut off ends only when every node has confirmed that it is locked;
//     [Service.Run] sees to that.
//   - The recovery password never leaves but by an export of its own, recorded
//     before.
package custody

import (
	"context"
	"crypto"
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// Deadlines of calls to a node.
const (
	callTimeout   = 10 * time.Second
	unlockTimeout = 60 * time.Second
)

// Deadlines of what an attempt writes down, so that a store that hangs means a
// refusal within five seconds: of the intent, and of the failure after it.
const (
	intentTimeout  = 3 * time.Second
	failureTimeout = time.Second
)

// retryPause is how long [Service.Run] waits before it again tells nodes to
// lock that have not confirmed it.
const retryPause = time.Second

// keyPause is how long it waits before it again tries to finish a rotation or
// an erasure.
const keyPause = 5 * time.Second

// Nodes reaches devices.
type Nodes interface {
	// Node returns a client for a node, or an error with
	// [protocol.CodeOffline] at once.
	Node(id protocol.NodeID) (devicev1.NodeServiceClient, error)
}

// Config are the parts of a [Service]. All are needed, if nothing else is said.
type Config struct {
	Store        *store.Store
	Audit        *audit.Service
	Nodes        Nodes
	Keys         KeyService    // wraps the keys of orders
	OlderKeys    []KeyService  // that wrapped them before; may be none
	CustomerKeys CustomerKeys  // may be nil: then customers cannot bring their own
	AllowReturn  bool          // from the customer's key to the service's
	Signer       crypto.Signer // the service key, Ed25519, which trust policies name
	// Exporting tells the customer that a recovery password leaves custody, after
	// that is recorded and before it does: an error keeps it in. May be nil.
	Exporting func(ctx context.Context, caller auth.Caller, k store.DiskKey, reason string) error
	DeadMan   time.Duration    // after which a node that hears nothing locks by itself
	Now       func() time.Time // default time.Now
	Logger    zerolog.Logger
}

// Service keeps keys and unlocks devices. Its methods may be called
// concurrently.
type Service struct {
	Config
	wake     chan struct{} // one slot: an attempt waits for its nodes to be locked
	keysWake chan struct{} // one slot: a rotation or an erasure waits
	rotating sync.Mutex    // held while a rotation begins
	erasing  chan struct{} // one slot: taken while an order's former wrappings are erased

	mu   sync.Mutex
	live map[protocol.DeviceSerial]bool // devices with an attempt under way in this process; guarded by mu
	gone map[protocol.OrderID][][]byte  // what is to be erased, if this process replaced it; guarded by mu
}

// New returns a service.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{
		Config: cfg, wake: make(chan struct{}, 1), keysWake: make(chan struct{}, 1), erasing: make(chan struct{}, 1),
		live: map[protocol.DeviceSerial]bool{}, gone: map[protocol.OrderID][][]byte{},
	}
}

// Run locks the nodes of attempts that failed or were cut off, until each has
// confirmed, and finishes rotations and erasures, all of earlier processes too.
// It returns when ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var all sync.WaitGroup
	all.Go(func() {
		repeat(ctx, s.wake, retryPause, func() bool {
			left, err := s.Recover(ctx)
			if err != nil && ctx.Err() == nil {
				s.Logger.Error().Err(err).Msg("cannot lock what a failed unlock left open")
			}
			return left == 0 && err == nil
		})
	})
	all.Go(func() {
		repeat(ctx, s.keysWake, keyPause, func() bool {
			err := errors.Join(s.ContinueRotation(ctx), s.erase(ctx))
			if err != nil && ctx.Err() == nil {
				s.Logger.Error().Err(err).Msg("cannot finish a change of keys yet")
			}
			return err == nil
		})
	})
	all.Wait()
	return nil
}

// repeat calls f until it is done, and again at each wake, until ctx ends.
func repeat(ctx context.Context, wake <-chan struct{}, pause time.Duration, f func() (done bool)) {
	for {
		again := make(<-chan time.Time)
		if !f() {
			again = time.After(pause)
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-wake:
		}
	}
}

func (s *Service) wakeUp() { signal(s.wake) }

func signal(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// claim takes the one place for an attempt on a device.
func (s *Service) claim(serial protocol.DeviceSerial) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live[serial] {
		return false
	}
	s.live[serial] = true
	return true
}

func (s *Service) release(serial protocol.DeviceSerial) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, serial)
}
