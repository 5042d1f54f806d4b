package agent

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/agent/internal/changes"
	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/agent/internal/copyjob/azure"
	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/agent/internal/recorder"
	"github.com/databox-lockbox/lockbox/agent/internal/share"
	"github.com/databox-lockbox/lockbox/agent/internal/share/nfs"
	"github.com/databox-lockbox/lockbox/agent/internal/support"
	"github.com/databox-lockbox/lockbox/agent/internal/uplink"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// disks gives the lock its disks.
type disks struct {
	cfg    Config
	keeper *disk.Keeper

	mu   sync.Mutex // guards what follows
	seen map[string]bitlocker.Info
}

func newDisks(cfg Config, keeper *disk.Keeper) *disks {
	return &disks{cfg: cfg, keeper: keeper, seen: make(map[string]bitlocker.Info)}
}

func (d *disks) spec(id protocol.DiskID) (disk.Spec, error) {
	for _, one := range d.cfg.Disks {
		if one.ID == string(id) {
			return disk.Spec{Disk: disk.Disk{ID: id, Image: one.Image}, RunDir: d.cfg.RunDir, Bare: d.cfg.Bare, Keeper: d.keeper}, nil
		}
	}
	return disk.Spec{}, protocol.Errorf(protocol.CodeDisks, "node %s has no disk %s", d.cfg.NodeID(), id)
}

// Open implements [lock.Disks].
func (d *disks) Open(ctx context.Context, id protocol.DiskID, key bitlocker.ExternalKey, readOnly bool) (lock.Disk, error) {
	spec, err := d.spec(id)
	if err != nil {
		return nil, err
	}
	spec.ReadOnly = readOnly
	opened, err := disk.Open(ctx, spec, key)
	if err != nil {
		return nil, err
	}
	return opened, nil
}

// Cleanup implements [lock.Disks]. What was synced before a crash reaches the
// images, so that others who read them find it.
func (d *disks) Cleanup(ctx context.Context) error {
	if err := disk.Cleanup(ctx, d.cfg.RunDir); err != nil {
		return err
	}
	var errs []error
	for _, one := range d.cfg.Disks {
		errs = append(errs, disk.Disk{ID: protocol.DiskID(one.ID), Image: one.Image}.Recover())
	}
	return errors.Join(errs...)
}

// Status implements [lock.Disks]: what the machine shows of each disk, not what
// the agent believes.
func (d *disks) Status() []*devicev1.DiskStatus {
	list := make([]*devicev1.DiskStatus, 0, len(d.cfg.Disks))
	for _, one := range d.cfg.Disks {
		list = append(list, d.statusOf(disk.Disk{ID: protocol.DiskID(one.ID), Image: one.Image}))
	}
	return list
}

func (d *disks) statusOf(one disk.Disk) *devicev1.DiskStatus {
	s := &devicev1.DiskStatus{Disk: string(one.ID), State: "locked"}
	info, err := d.inspect(one)
	if err != nil {
		s.State = "damaged"
		if erased, err := one.Erased(); err == nil && erased {
			s.State = "erased"
		}
		return s
	}
	s.VolumeGuid, s.Method, s.Size = info.ID.String(), info.Method.String(), info.Size
	if d.cfg.Bare {
		return s // nothing is ever mounted
	}
	evidence, err := one.Evidence(d.cfg.RunDir)
	if err != nil {
		s.State = "unknown"
		return s
	}
	s.Exports, s.LoopDevices, s.Mounts = evidence.Exports, evidence.Loops, evidence.Mounts
	switch {
	case len(s.Mounts) > 0:
		s.State = "mounted"
	case !evidence.None():
		s.State = "open"
	}
	return s
}

// forget has every volume read anew.
func (d *disks) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.seen)
}

// inspect reads what a volume says in clear, once: it does not change until it is
// erased.
func (d *disks) inspect(one disk.Disk) (bitlocker.Info, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if info, ok := d.seen[one.Image]; ok {
		return info, nil
	}
	info, err := one.Inspect()
	if err == nil {
		d.seen[one.Image] = info
	}
	return info, err
}

// shares gives the lock its share servers.
type shares struct {
	*share.Set
	changes  *changes.Watcher
	recorder *recorder.Store
}

func newShares(cfg Config, opts Options, keeper *disk.Keeper, changes *changes.Watcher, recorder *recorder.Store) (shares, error) {
	allow, err := cfg.Share.Prefixes()
	if err != nil {
		return shares{}, err
	}
	protocols := []share.Protocol{share.NewSMB(share.SMBConfig{
		RunDir: cfg.RunDir, SMBD: cfg.Share.SMBD, Address: cfg.Share.Address, Port: cfg.Share.Port, Allow: allow, Keeper: keeper,
	})}
	if n := cfg.Share.NFS; n.Enabled {
		allow, err := n.Prefixes()
		if err != nil {
			return shares{}, err
		}
		protocols = append(protocols, nfs.New(nfs.Config{
			Self: opts.NFS, Address: n.Address, Port: n.Port, Allow: allow, Keeper: keeper,
		}))
	}
	return shares{Set: share.New(protocols...), changes: changes, recorder: recorder}, nil
}

// errNotApproved says why a protocol without a login is closed.
var errNotApproved = errors.New("the approved request does not name it, so its approvers did not see it: a request made while the node reports it does")

// allowed says why a lease does not allow a protocol.
func allowed(lease lock.Lease, protocol string) error {
	if protocol == share.ProtocolSMB || slices.Contains(lease.Protocols, approval.Protocol(protocol)) {
		return nil
	}
	return errNotApproved
}

// Start implements [lock.Shares]. What clients do is recorded from the beginning,
// in a recording of the lease's own.
func (s shares) Start(ctx context.Context, lease lock.Lease, folders []lock.Folder) (lock.ShareServer, error) {
	list := make([]share.Share, 0, len(folders))
	for _, f := range folders {
		list = append(list, share.Share{Name: f.Name, Dir: f.Dir})
	}
	log, err := s.recorder.Begin(ctx, recording.Meta{
		Kind: recording.Shares, Request: lease.RequestID, Engineer: lease.Engineer.Person, EngineerKey: lease.Engineer.SSHKey, Ticket: lease.Ticket,
	})
	if err != nil {
		return nil, err
	}
	allowed := func(protocol string) error { return allowed(lease, protocol) }
	server, err := s.Where(allowed).Start(ctx, list, lease.Access, clientLog{log, s.changes})
	if err != nil {
		log.EndSoon(recording.EndDone)
		return nil, err
	}
	_, password := server.Credentials()
	s.recorder.Mask(password)
	return shareServer{server, log}, nil
}

// clientLog records what clients do, and has it looked after.
type clientLog struct {
	*recorder.Recording
	changes *changes.Watcher
}

// File implements [share.FileLog].
func (l clientLog) File(e recording.FileEvent) error {
	if err := l.Recording.File(e); err != nil {
		return err
	}
	return l.changes.File(e)
}

// shareServer is the shares of one lease, with the recording of it.
type shareServer struct {
	*share.Server
	log *recorder.Recording
}

// Stop implements [lock.ShareServer]. The servers still record what clients have
// open.
func (s shareServer) Stop(ctx context.Context, why lock.Reason) error {
	defer s.log.EndSoon(why.Recording())
	return s.Server.Stop(ctx)
}

// sessions gives the uplink the support sessions.
type sessions struct{ *support.Server }

// Enable implements [uplink.Sessions].
func (s sessions) Enable(ctx context.Context, o uplink.SessionOrder) ([]byte, error) {
	err := s.Server.Enable(ctx, support.Session{ID: o.ID, Engineer: o.Engineer, Key: o.Key, Ticket: o.Ticket, Expires: o.Expires}, o.CAs)
	return s.HostKey(), err
}

// jobs gives the lock its copy job. Before a job begins, while nobody can change
// anything, it is found out what was touched since the disks were last open.
type jobs struct {
	*copyjob.Job
	changes *changes.Watcher
}

// Run implements [lock.Jobs].
func (j jobs) Run(ctx context.Context, order protocol.OrderID, shares []copyjob.Share, targets []copyjob.Target, progress func(copyjob.Progress)) (copyjob.Result, error) {
	j.changes.Complete(ctx, changedShares(shares))
	return j.Job.Run(ctx, order, shares, targets, progress)
}

// changedShares are shares as package changes knows them.
func changedShares(list []copyjob.Share) []changes.Share {
	out := make([]changes.Share, len(list))
	for i, s := range list {
		out[i] = changes.Share{Disk: s.Disk, Share: s.String(), Dir: s.Dir()}
	}
	return out
}

// newJobs returns the copy job.
func newJobs(cfg Config) *copyjob.Job {
	accounts := make([]azure.Account, len(cfg.Copy.Accounts))
	for i, a := range cfg.Copy.Accounts {
		accounts[i] = azure.Account{Name: a.Account, Endpoint: a.Endpoint}
	}
	return copyjob.New(copyjob.Config{
		BlobRoots: cfg.BlobRoots,
		Blobs:     azure.New(azure.Config{Accounts: accounts, Parallel: cfg.Copy.Parallel}),
		Parallel:  cfg.Copy.Parallel,
		Dir:       filepath.Join(cfg.StateDir, "copyjob"),
	})
}
