// Package lock decides who may unlock a node, for how long, and what is dropped,
// in order, when it locks again.
package lock

import (
	"context"
	"crypto"
	"errors"
	"time"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

var errDraft = errors.New("lock: not written yet")

// Reason says why a node relocked.
type Reason string

// The reasons. Others may come in over the tunnel; they are recorded as they
// stand, and do not spend.
const (
	SessionDisabled Reason = "session-disabled" // spends
	EngineerDone    Reason = "engineer-done"    // spends
	Revoked         Reason = "revoked"          // spends
	WindowOver      Reason = "window-over"      // spends
	Tamper          Reason = "tamper"           // spends
	DeadMan         Reason = "dead-man"
	PeerLost        Reason = "peer-lost"
	Operator        Reason = "operator" // the local lock command
	NotCommitted    Reason = "not-committed"
	JobHalted       Reason = "job-halted"
	JobCompleted    Reason = "job-completed"
	InternalError   Reason = "internal-error"
	ShareEnded      Reason = "share-ended" // the share server died
	DiskEnded       Reason = "disk-ended"  // a disk became unusable
	AgentStopped    Reason = "agent-stopped"
)

// Clock tells the two times a lease is held against.
type Clock interface {
	Now() time.Time      // wall clock; may be set
	Boot() time.Duration // CLOCK_BOOTTIME; cannot
}

// Disks opens the node's disks. It is called concurrently.
type Disks interface {
	// Open decrypts a disk; nothing is mounted. The caller wipes the key. A key
	// that does not fit is refused with [protocol.CodeDiskKey].
	Open(ctx context.Context, id protocol.DiskID, key bitlocker.ExternalKey) (Disk, error)
	// Status says of every configured disk what the machine shows of it.
	Status() []*devicev1.DiskStatus
	// Cleanup undoes what is left of any disk, by this process or another.
	Cleanup(ctx context.Context) error
}

// Disk is an opened disk, as [disk.Opened] is.
type Disk interface {
	ID() protocol.DiskID
	Mount(ctx context.Context) (dir string, err error)
	Done() <-chan struct{}
	Wipe()
	Close(ctx context.Context) error
}

// Folder is one share to be published.
type Folder struct {
	Name string // <account>_<kind>, with -<disk> behind if two disks have it
	Dir  string
}

// Shares starts the share server of a lease.
type Shares interface {
	Start(ctx context.Context, folders []Folder, access approval.Access) (ShareServer, error)
	Cleanup(ctx context.Context) error
}

// ShareServer is a running share server, as [share.Server] is.
type ShareServer interface {
	Credentials() (user, password string)
	Address() string
	Done() <-chan struct{}
	Stop(ctx context.Context) error
}

// Jobs runs the copy job, as [copyjob.Job] does.
type Jobs interface {
	Check(destinations []approval.Destination) error
	Run(ctx context.Context, shares []copyjob.Share, destinations []approval.Destination, progress func(copyjob.Progress)) (copyjob.Result, error)
}

// Journal is the node's own audit chain. A record is durable when Append
// returns nil.
type Journal interface {
	Append(rec auditlog.Record) (index int64, err error)
}

// State is what the node must not forget, as [state.Dir] keeps it.
type State interface {
	TrustPolicy() []byte
	Spent(digest string) (reason string, ok bool)
	Spend(digest, reason string, until time.Time) error
	HighWater() time.Time
	RaiseHighWater(now time.Time) error
	Checkpoint() []byte
	SetCheckpoint(signed []byte) error
}

// Config is what a Machine is made of.
type Config struct {
	Node    protocol.NodeID
	Key     crypto.Signer // the node's enrolled Ed25519 key
	Clock   Clock         // nil: the system's
	State   State
	Journal Journal
	Disks   Disks
	Shares  Shares
	Jobs    Jobs

	DeadMan      time.Duration
	ChallengeTTL time.Duration
	CommitWithin time.Duration
	MaxLease     time.Duration
	Bare         bool // disks are opened but never mounted: nothing is shared or copied
	Version      string

	// EndSessions ends the support sessions. It may hang; nobody waits long.
	EndSessions func(reason Reason)
	// Sessions lists the support sessions for Status; may be nil.
	Sessions func() []*devicev1.SessionStatus
	// JobEvent is told how the copy job goes; it must not block.
	JobEvent func(JobEvent)
}

// JobEvent is one piece of news of the copy job, as [devicev1.ReportJobRequest]
// carries it.
type JobEvent struct {
	Event   string // started | progress | halted | paused | resumed | completed | completed-with-errors
	Order   protocol.OrderID
	Status  *devicev1.JobStatus
	CopyLog []byte
	Codes   []string
}

// Machine is the lock of one node.
type Machine struct{}

// New returns the machine of a node, Locked. It starts nothing.
func New(cfg Config) (*Machine, error) { return nil, errDraft }

// Run cleans up what an earlier process left, keeps the leases' ends, and
// relocks before it returns. Before Run nothing can be unlocked.
func (m *Machine) Run(ctx context.Context) error { return errDraft }

// Challenge returns the signed envelope of a fresh [approval.Challenge].
func (m *Machine) Challenge(ctx context.Context, subject approval.Digest, purpose protocol.Purpose) ([]byte, error) {
	return nil, errDraft
}

// Unlock verifies an order and opens its disks. peer is nil if the other end of
// the tunnel proved to be the control plane, else why not. It returns the signed
// envelope of an [approval.Opened].
func (m *Machine) Unlock(ctx context.Context, peer error, req *devicev1.UnlockRequest, progress func(disk protocol.DiskID, phase string)) ([]byte, error) {
	return nil, errDraft
}

// Commit publishes the shares, or starts the copy job.
func (m *Machine) Commit(ctx context.Context, envelope []byte) (leaseEnd time.Time, shares []*devicev1.ShareStatus, err error) {
	return time.Time{}, nil, errDraft
}

// Lock relocks, if subject is "" or that of what is open. With spend, or a
// reason that spends, the subject can never be used again.
func (m *Machine) Lock(ctx context.Context, reason Reason, subject approval.Digest, spend bool) (took time.Duration, err error) {
	return 0, errDraft
}

// Heard says that the control plane answered just now.
func (m *Machine) Heard() {}

// PeersOpened takes the other nodes' newest proofs.
func (m *Machine) PeersOpened(envelopes [][]byte) {}

// Opened returns a fresh proof for the heartbeat, nil if nothing is open.
func (m *Machine) Opened() []byte { return nil }

// Changed yields a value some time after the status changed.
func (m *Machine) Changed() <-chan struct{} { return nil }

// Status is the node's state, for heartbeats and for staff.
func (m *Machine) Status() *devicev1.NodeStatus { return nil }

// Lease is what is unlocked, for whom and until when.
type Lease struct {
	Purpose   protocol.Purpose
	Subject   approval.Digest
	RequestID protocol.RequestID
	Order     protocol.OrderID
	Ticket    protocol.TicketID
	Engineer  approval.Engineer
	Access    approval.Access
	End       time.Time
	Shares    []copyjob.Share // folders of the mounted disks
	Address   string          // of the share server
	User      string
	Password  string // of the shares; shown inside the engineer's session only
}

// Lease returns the lease, and whether there is one.
func (m *Machine) Lease() (Lease, bool) { return Lease{}, false }
