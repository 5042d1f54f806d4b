// Package lock decides who may unlock a node, for how long, and what is dropped,
// in order, when it locks again.
//
// The rules:
//
//   - The device decides last. An order opens nothing unless the device itself
//     finds every signature its trust policy asks for, over this node and these
//     disks, in time, not revoked, not spent, answering its own fresh challenge
//     ([Machine.Unlock]). Each thing that can be wrong has a code of its own.
//   - Recorded before opened: no record, no unlock.
//   - All or none: the disks of a statement open together, and nothing is shared
//     before every node of the device has proved that it opened ([Machine.Commit]).
//   - A lease ends at the earlier of what the wall clock and CLOCK_BOOTTIME give,
//     when the control plane or a peer node was not heard of for the dead-man
//     time, on every word to lock, on every internal error and with the process.
//   - Locking acts first and records after. It waits for no client, no network
//     and no hook: after 1.5 s the keys are gone, after 2 s it is over.
//   - What is spent or revoked stays so, across restarts.
//
// The states and what leads from one to the next are one table, [transitions].
// DESIGN.md, sections 3 and 4, is the specification.
package lock

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/agent/internal/share"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// Bounds that are not settings.
const (
	recordWithin  = 4 * time.Second        // what must be durable before an act
	afterWithin   = 400 * time.Millisecond // waiting for the record of what is over; with the above, less than 5 s
	openWithin    = time.Minute            // all of Unlock, however a disk hangs
	cleanWithin   = 30 * time.Second       // undoing what an earlier process left
	goneWithin    = time.Second            // after cleaning, until nothing is seen of it
	lookAgain     = 20 * time.Millisecond  // for what is still there
	maxUsed       = 10_000                 // approvals that count as used up before that is durable
	watchInterval = 250 * time.Millisecond // how often the clocks are read while anything is open
	stopWithin    = 5 * time.Second        // waiting for what hangs when the process ends
)

// Disks opens the node's disks.
type Disks interface {
	// Open decrypts one disk; nothing is mounted. The caller wipes the key. A
	// key that does not fit is refused with [protocol.CodeDiskKey].
	Open(ctx context.Context, id protocol.DiskID, key bitlocker.ExternalKey, readOnly bool) (Disk, error)
	// Status says of every disk what the machine shows of it, not what the
	// books say. It may be called concurrently with everything else.
	Status() []*devicev1.DiskStatus
	// Cleanup undoes what is left of any disk, by this process or an earlier one.
	Cleanup(ctx context.Context) error
}

// Disk is an opened disk, as *disk.Opened is.
type Disk interface {
	ID() protocol.DiskID
	// Mount shows the files below the folder it returns. What comes too late,
	// after Close, is undone by the disk itself.
	Mount(ctx context.Context) (dir string, err error)
	// Done is closed when the disk is of no use any more.
	Done() <-chan struct{}
	// Wipe ends all access at once and waits for nothing.
	Wipe()
	// Close syncs, wipes and undoes the mount, by the deadline of ctx.
	Close(ctx context.Context) error
}

// Folder is one share to be published.
type Folder struct {
	Name string // <account>_<kind>, with -<disk> behind if two disks have it
	Dir  string
}

// Shares starts the share servers of leases.
type Shares interface {
	// Start publishes the folders of a lease and returns when they can be reached.
	// ctx ends the start only.
	Start(ctx context.Context, lease Lease, folders []Folder) (ShareServer, error)
	// Services says of each protocol whether this machine can serve it. It may be
	// called concurrently with everything else.
	Services() []share.Service
	// Cleanup undoes what an earlier process left.
	Cleanup(ctx context.Context) error
}

// ShareServer is the shares of one lease, over every protocol that can serve them.
type ShareServer interface {
	Credentials() (user, password string)
	Services() []share.Service
	// Done is closed when no protocol serves them any more, after Stop or without.
	Done() <-chan struct{}
	// Err says which protocols ended by themselves, and why.
	Err() error
	// Stop ends all connections.
	Stop(ctx context.Context, reason Reason) error
}

// Jobs runs the copy job, as *copyjob.Job does.
type Jobs interface {
	Check(destinations []approval.Destination) error
	Run(ctx context.Context, order protocol.OrderID, shares []copyjob.Share, targets []copyjob.Target, progress func(copyjob.Progress)) (copyjob.Result, error)
}

// Journal is the node's own audit chain. A record is durable when Append
// returns nil; otherwise what it was to precede must not happen.
type Journal interface {
	Append(ctx context.Context, rec auditlog.Record) (index int64, err error)
}

// State is what the node must not forget, as *state.Dir keeps it. What a method
// sets is durable when it returns nil.
type State interface {
	Spent(digest string) (reason string, ok bool)
	Spend(digest, reason string, until time.Time) error
	// SpendUnknown is Spend for a digest of which the node has seen no approval.
	// It remembers a bounded number of them and refuses more with
	// [protocol.CodeLimit].
	SpendUnknown(digest, reason string, until time.Time) error
	HighWater() time.Time
	RaiseHighWater(now time.Time) error
	Checkpoint() []byte
	SetCheckpoint(signed []byte) error
}

// Config is what a Machine is made of. What has no default is required.
type Config struct {
	Node    protocol.NodeID
	Key     crypto.Signer     // the node's enrolled Ed25519 key
	DiskIDs []protocol.DiskID // the node's disks
	Version string            // of the agent, for Status

	Clock   Clock // nil: [SystemClock]
	Policy  func() (*approval.Policy, error)
	State   State
	Journal Journal
	Disks   Disks
	Shares  Shares // unused when Bare
	Jobs    Jobs   // unused when Bare

	// Bare opens and verifies disks and mounts nothing, so that nothing can be
	// shared or copied.
	Bare bool

	DeadMan      time.Duration // without word of the control plane, or of a peer node
	ChallengeTTL time.Duration
	CommitWithin time.Duration // disks open and nothing shared
	MaxLease     time.Duration

	// EndSessions ends the support sessions. It may hang: nobody waits long.
	// nil: there are none.
	EndSessions func(reason Reason)
	// Sessions lists the support sessions for Status. nil: there are none.
	Sessions func() []*devicev1.SessionStatus
	// Watch looks after the shares of a lease for support from when they are open
	// until ctx ends, which is when locking begins; it waits for nothing of Watch.
	// nil: nobody does.
	Watch func(ctx context.Context, l Lease)
	// JobEvent is told how the copy job goes. It must not block. nil: nobody.
	JobEvent func(JobEvent)
}

// JobEvent is one piece of news of the copy job, as [devicev1.ReportJobRequest]
// carries it.
type JobEvent struct {
	Event   string // started | progress | halted | paused | resumed | completed | completed-with-errors
	Order   protocol.OrderID
	Disks   []protocol.DiskID // that it goes through
	Status  *devicev1.JobStatus
	CopyLog []byte   // XML, when halted or completed
	Codes   []string // distinct error codes
}

// Machine is the lock of one node. All methods may be called concurrently.
type Machine struct {
	cfg      Config
	self     approval.NodeRef
	pub      ed25519.PublicKey
	changed  chan struct{} // news for Changed; holds one
	wake     chan struct{} // news for Run; holds one
	writer   writer
	refusals limiter
	tasks    sync.WaitGroup // everything that Run waits for

	mu         sync.Mutex // guards what follows; never held while anything is waited for
	running    bool
	state      protocol.LockState
	challenge  *challenge // set exactly in Challenged
	lease      *lease     // set exactly in Opening, Opened, Unlocked and Locking
	ending     *ending    // set exactly in Locking
	lastEnding *ending    // the one that led to the present Locked or Faulted
	lastReason Reason
	lastDetail string       // what went wrong that made the node lock
	fault      string       // why the state is Faulted
	known      []knownShare // found on the disks when they were last mounted
	job        *devicev1.JobStatus
	jobsSeen   map[approval.Digest]bool   // consents under which a job has run
	used       map[approval.Digest]Reason // spent by this process, durably or about to be
	nextMark   time.Duration              // when a heartbeat may raise the high-water mark again, since boot
}

// New returns the machine of a node, Locked. It starts nothing.
func New(cfg Config) (*Machine, error) {
	if cfg.Key == nil || cfg.Policy == nil || cfg.State == nil || cfg.Journal == nil || cfg.Disks == nil {
		return nil, errors.New("lock: key, policy, state, journal and disks are needed")
	}
	if !cfg.Bare && (cfg.Shares == nil || cfg.Jobs == nil) {
		return nil, errors.New("lock: shares and jobs are needed, unless bare")
	}
	if min(cfg.DeadMan, cfg.ChallengeTTL, cfg.CommitWithin, cfg.MaxLease) <= 0 {
		return nil, errors.New("lock: every time bound must be positive")
	}
	pub, ok := cfg.Key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("lock: the node's key is a %T: want Ed25519", cfg.Key.Public())
	}
	if cfg.Clock == nil {
		cfg.Clock = SystemClock{}
	}
	return &Machine{
		cfg:      cfg,
		self:     approval.NodeRef{Serial: cfg.Node.Serial, Node: cfg.Node.Node, KeyFingerprint: approval.KeyFingerprint(pub)},
		pub:      pub,
		changed:  make(chan struct{}, 1),
		wake:     make(chan struct{}, 1),
		writer:   newWriter(),
		state:    protocol.Locked,
		jobsSeen: make(map[approval.Digest]bool),
		used:     make(map[approval.Digest]Reason),
	}, nil
}

// Run undoes what an earlier process left, then ends whatever has to end, and
// relocks before it returns. Before Run is ready, and after it, nothing can be
// unlocked. It returns an error only if something of it hangs.
func (m *Machine) Run(ctx context.Context) error {
	stopWriter := m.writer.start()
	m.cleanAtStart(ctx)
	m.watch(ctx)
	m.mu.Lock()
	m.running = false
	m.mu.Unlock()
	m.relock(AgentStopped, "", false, nil)
	return errors.Join(m.awaitTasks(), stopWriter())
}

// cleanAtStart leads to Locked or, if something of an earlier process cannot be
// undone, to Faulted.
func (m *Machine) cleanAtStart(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanWithin)
	defer cancel()
	err := m.clean(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running = true
	if err != nil {
		m.faultLocked("cannot undo what an earlier process left: " + err.Error())
	}
	m.noticeLocked()
}

// clean undoes what is left of shares and disks, and looks whether it is gone.
func (m *Machine) clean(ctx context.Context) error {
	var err error
	if !m.cfg.Bare {
		err = m.cfg.Shares.Cleanup(ctx)
	}
	return errors.Join(err, m.cfg.Disks.Cleanup(ctx), m.awaitGone(time.Now().Add(goneWithin)))
}

// awaitGone waits until the machine shows no more of any disk, which may lag a
// moment behind closing it, and returns what is still there at the end.
func (m *Machine) awaitGone(until time.Time) error {
	for {
		err := m.leftovers()
		if err == nil || !time.Now().Before(until) {
			return err
		}
		time.Sleep(lookAgain)
	}
}

// leftovers returns an error that names what is still open of a disk.
func (m *Machine) leftovers() error {
	var errs []error
	for _, d := range m.cfg.Disks.Status() {
		if n := len(d.Exports) + len(d.LoopDevices) + len(d.Mounts); n > 0 {
			errs = append(errs, fmt.Errorf("disk %s is still open: %v %v %v", d.Disk, d.Exports, d.LoopDevices, d.Mounts))
		}
	}
	return errors.Join(errs...)
}

// awaitTasks waits for what this machine started. Only what hangs in a system
// call can outlast it.
func (m *Machine) awaitTasks() error {
	done := make(chan struct{})
	go func() {
		m.tasks.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-time.After(stopWithin):
		return errors.New("lock: something that was told to end hangs")
	}
}

// Changed yields a value some time after the status has changed. Changes in
// quick succession are one.
func (m *Machine) Changed() <-chan struct{} { return m.changed }

// noticeLocked tells Run and the readers of Changed that something changed.
func (m *Machine) noticeLocked() {
	for _, c := range []chan struct{}{m.changed, m.wake} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// faultLocked leads to Faulted.
func (m *Machine) faultLocked(why string) {
	m.moveLocked(failed)
	m.fault = why
}

// refusalLocked says why the present state does not allow an event.
func (m *Machine) refusalLocked() error {
	switch {
	case !m.running:
		return protocol.Errorf(protocol.CodeUnavailable, "the agent of node %s is starting or stopping: try again", m.cfg.Node)
	case m.state == protocol.Faulted:
		return protocol.Errorf(protocol.CodeFaulted, "node %s is faulted and stays locked until staff run databox-agent lock: %s", m.cfg.Node, m.fault)
	case m.lease != nil:
		return protocol.Errorf(protocol.CodeBusy, "node %s is %s for %s: lock it first", m.cfg.Node, m.state, m.lease.describe())
	}
	return protocol.Errorf(protocol.CodeBusy, "node %s is %s", m.cfg.Node, m.state)
}
