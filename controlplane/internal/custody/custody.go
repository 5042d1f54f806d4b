// Package custody holds the BitLocker keys of every disk, and hands them to
// devices in one way only: the unlock saga.
//
// Its rules:
//
//   - At rest every key is wrapped, bound to its disk. A key is in memory while
//     it is sealed or deposited, and wiped after.
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
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
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

// Nodes reaches devices.
type Nodes interface {
	// Node returns a client for a node, or an error with
	// [protocol.CodeOffline] at once.
	Node(id protocol.NodeID) (devicev1.NodeServiceClient, error)
}

// Config are the parts of a [Service]. All but Now are needed.
type Config struct {
	Store   *store.Store
	Audit   *audit.Service
	Nodes   Nodes
	Wrapper KeyWrapper
	Signer  crypto.Signer    // the service key, Ed25519, which trust policies name
	DeadMan time.Duration    // after which a node that hears nothing locks by itself
	Now     func() time.Time // default time.Now
	Logger  zerolog.Logger
}

// Service keeps keys and unlocks devices. Its methods may be called
// concurrently.
type Service struct {
	Config
	wake chan struct{} // one slot: an attempt waits for its nodes to be locked

	mu   sync.Mutex
	live map[protocol.DeviceSerial]bool // devices with an attempt under way in this process; guarded by mu
}

// New returns a service.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{Config: cfg, wake: make(chan struct{}, 1), live: map[protocol.DeviceSerial]bool{}}
}

// Run locks the nodes of attempts that failed or were cut off, by an earlier
// process too, until each has confirmed. It returns when ctx ends.
func (s *Service) Run(ctx context.Context) error {
	for {
		left, err := s.Recover(ctx)
		if err != nil && ctx.Err() == nil {
			s.Logger.Error().Err(err).Msg("cannot lock what a failed unlock left open")
		}
		pause := make(<-chan time.Time)
		if left > 0 || err != nil {
			pause = time.After(retryPause)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-pause:
		case <-s.wake:
		}
	}
}

func (s *Service) wakeUp() {
	select {
	case s.wake <- struct{}{}:
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
