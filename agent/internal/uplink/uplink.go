// Package uplink is the node's end of the tunnel: it answers the control plane,
// tells it how the node is, and brings it what must not be lost.
//
//   - Nothing here decides: orders go to the lock, connections to the support
//     sessions.
//   - The dead-man time runs from the last heartbeat that was answered.
//   - Records come from the journal, reports from a small outbox on disk: both
//     are delivered in order, however long the control plane was away. What no
//     message can carry stays here, on record, and holds up nothing.
package uplink

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/databox-lockbox/lockbox/agent/internal/journal"
	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/agent/internal/recorder"
	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
	"github.com/databox-lockbox/lockbox/protocol/tunnel"
)

const (
	callTimeout = 15 * time.Second       // of one call of the control plane
	changePause = 100 * time.Millisecond // least time between heartbeats
	maxReport   = 3 << 20                // bytes of one report, below what a call may carry
	maxBill     = maxReport - 64<<10     // bytes of one bill of materials in it
)

// Lock is the node's lock.
type Lock interface {
	Challenge(ctx context.Context, subject approval.Digest, purpose protocol.Purpose) ([]byte, error)
	Unlock(ctx context.Context, peer error, req *devicev1.UnlockRequest, progress func(disk protocol.DiskID, phase string)) ([]byte, error)
	Commit(ctx context.Context, envelope []byte) (leaseEnd time.Time, shares []*devicev1.ShareStatus, err error)
	Lock(ctx context.Context, reason lock.Reason, subject approval.Digest, spend bool) (took time.Duration, err error)
	Status() *devicev1.NodeStatus
	Holder() (lock.Holder, bool)
	Opened() []byte
	Heard(theirs time.Time)
	PeersOpened(envelopes [][]byte)
	Changed() <-chan struct{}
}

// Sessions are the node's support sessions.
type Sessions interface {
	Enable(ctx context.Context, s SessionOrder) (hostKey []byte, err error)
	Disable(id protocol.SessionID, reason string)
	// Engineer returns whose session it is, if it is known here.
	Engineer(id protocol.SessionID) (protocol.Person, bool)
	// Admits returns nil if ServeConn would serve the session now.
	Admits(id protocol.SessionID) error
	// ServeConn serves one SSH connection until it ends, and closes conn.
	ServeConn(ctx context.Context, conn net.Conn, id protocol.SessionID) error
}

// SessionOrder is a session that the control plane asks to enable.
type SessionOrder struct {
	ID       protocol.SessionID
	Engineer protocol.Person
	Key      string // fingerprint of the engineer's own key
	Ticket   protocol.TicketID
	Expires  time.Time
	CAs      [][]byte // SSH wire form
}

// Config is what an Uplink is made of.
type Config struct {
	Node     protocol.NodeID
	Key      crypto.Signer // the node's enrolled key
	Identity state.Identity
	State    *state.Dir
	Journal  *journal.Journal
	Recorder *recorder.Store
	Lock     Lock
	Sessions Sessions
	// ReplacePolicy installs a trust policy of a higher version, if the signers
	// of the present one agreed.
	ReplacePolicy func(ctx context.Context, envelope []byte) (version int64, digest approval.Digest, err error)
	// Erase destroys the keys on the node's disks and returns a certificate, if the
	// node's own copy job has completed the order.
	Erase func(ctx context.Context, order protocol.OrderID, by protocol.Person) (certificate []byte, err error)
	// LogSize is the size of the last activity-log checkpoint the node accepted.
	LogSize func() int64

	Address    string        // of the control plane's device port; "" is the enrolled one
	Heartbeat  time.Duration // between heartbeats
	BackoffMin time.Duration
	BackoffMax time.Duration
	Log        zerolog.Logger
}

// Uplink is the node's end of the tunnel.
type Uplink struct {
	cfg     Config
	source  *certs.Source
	client  *tunnel.Client
	control devicev1.ControlServiceClient
	outbox  *outbox
	news    chan struct{} // holds one: the next heartbeat is due now
}

// New returns an uplink. It starts nothing.
func New(cfg Config) (*Uplink, error) {
	u := &Uplink{cfg: cfg, news: make(chan struct{}, 1)}
	var err error
	if u.outbox, err = openOutbox(cfg.State.Path()); err != nil {
		return nil, err
	}
	key, ok := cfg.Key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the node's key is a %T: want Ed25519", cfg.Key)
	}
	if u.source, err = certs.NewSource(key, cfg.Identity.Chain, u.renew, nil); err != nil {
		return nil, fmt.Errorf("cannot use the node's certificate, enrol again: %w", err)
	}
	u.source.Failed = func(err error, retry time.Duration) {
		cfg.Log.Warn().Err(err).Dur("retry", retry).Msg("cannot renew the certificate")
	}
	address := cfg.Address
	if address == "" {
		address = cfg.Identity.TunnelAddress
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("%q is not the address of a control plane: want host:port", address)
	}
	if len(cfg.Identity.ServerRoots) == 0 {
		return nil, errors.New("the enrolment names no server root: enrol again")
	}
	root, err := x509.ParseCertificate(cfg.Identity.ServerRoots[0])
	if err != nil {
		return nil, fmt.Errorf("cannot read the enrolled server root, enrol again: %w", err)
	}
	u.client = tunnel.NewClient(tunnel.ClientConfig{
		Address:    address,
		TLS:        certs.DeviceDialer(u.source, root, host),
		Handler:    u.handler(),
		Connected:  u.connected,
		BackoffMin: cfg.BackoffMin,
		BackoffMax: cfg.BackoffMax,
		Disconnected: func(err error, retry time.Duration) {
			cfg.Log.Warn().Err(certs.Explain(err, time.Now())).Dur("retry", retry).Msg("the tunnel is down")
		},
	})
	u.control = devicev1.NewControlServiceClient(rpc.NewClient(u.client.HTTP(), tunnel.BaseURL))
	return u, nil
}

func (u *Uplink) connected() {
	u.cfg.Log.Info().Msg("the tunnel is up")
	u.cfg.Recorder.AskAgain()
	u.hurry()
}

// hurry makes the next heartbeat due now.
func (u *Uplink) hurry() {
	select {
	case u.news <- struct{}{}:
	default:
	}
}

// Run keeps the tunnel up and the control plane informed until ctx ends.
func (u *Uplink) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return u.client.Run(ctx) })
	g.Go(func() error { return u.source.Run(ctx) })
	g.Go(func() error { return u.heartbeats(ctx) })
	g.Go(func() error { return u.cfg.Journal.Forward(ctx, u.sendRecords) })
	g.Go(func() error { return u.cfg.Recorder.Upload(ctx, u.sendRecording) })
	g.Go(func() error { return u.outbox.run(ctx, u.deliver) })
	return g.Wait()
}

// heartbeats tells the control plane how the node is, at the latest every
// Heartbeat, and at once when something changed.
func (u *Uplink) heartbeats(ctx context.Context) error {
	due := time.NewTimer(0)
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-due.C:
		case <-u.news:
		case <-u.cfg.Lock.Changed():
		}
		if err := u.heartbeat(ctx); err != nil && ctx.Err() == nil {
			u.cfg.Log.Debug().Err(err).Msg("no answer to a heartbeat")
		}
		due.Reset(u.cfg.Heartbeat)
		select { // changes in quick succession are one
		case <-ctx.Done():
		case <-time.After(min(changePause, u.cfg.Heartbeat)):
		}
	}
}

func (u *Uplink) heartbeat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, min(callTimeout, u.cfg.Heartbeat))
	defer cancel()
	resp, err := u.control.Heartbeat(ctx, &devicev1.HeartbeatRequest{
		Status:  u.cfg.Lock.Status(),
		Opened:  u.cfg.Lock.Opened(),
		LogSize: u.cfg.LogSize(),
	})
	if err != nil {
		return err
	}
	var theirs time.Time
	if resp.Time > 0 {
		theirs = time.Unix(resp.Time, 0)
	}
	u.cfg.Lock.Heard(theirs)
	u.cfg.Lock.PeersOpened(resp.PeersOpened)
	return nil
}

// sendRecords delivers records of the node's own chain.
func (u *Uplink) sendRecords(ctx context.Context, entries []journal.Entry) (int64, error) {
	if len(entries) == 0 {
		return u.cfg.Journal.Acked(), nil
	}
	checkpoint, err := u.cfg.Journal.Checkpoint(entries[len(entries)-1].Index + 1)
	if err != nil {
		return 0, err
	}
	req := &devicev1.AppendRecordsRequest{Checkpoint: checkpoint}
	for _, e := range entries {
		req.Records = append(req.Records, &devicev1.ChainRecord{Index: e.Index, Record: e.Record})
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := u.control.AppendRecords(ctx, req)
	if err != nil {
		u.cfg.Log.Debug().Err(err).Msg("cannot forward records")
		return 0, err
	}
	return resp.Acked, nil
}

// sendRecording delivers a piece of a recording.
func (u *Uplink) sendRecording(ctx context.Context, c recorder.Chunk) (acked int64, confirmed bool, err error) {
	resp, err := u.control.AppendRecording(ctx, &devicev1.AppendRecordingRequest{
		Recording: c.Recording, Offset: c.Offset, Data: c.Data, Closed: c.Closed, Digest: string(c.Digest),
	})
	if err != nil {
		return 0, false, err
	}
	return resp.Acked, resp.Confirmed, nil
}

// renew gets a new certificate over the tunnel and remembers it.
func (u *Uplink) renew(ctx context.Context, csr []byte) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := u.control.RenewCertificate(ctx, &devicev1.RenewCertificateRequest{Csr: csr})
	if err != nil {
		return nil, err
	}
	id, ok := u.cfg.State.Identity()
	if !ok {
		return nil, errors.New("the node is not enrolled")
	}
	id.Chain = resp.Chain
	return resp.Chain, u.cfg.State.SetIdentity(id)
}

// ReportJob brings news of the copy job to the control plane. Progress may be
// lost, everything else is delivered.
func (u *Uplink) ReportJob(e lock.JobEvent) {
	u.put(&devicev1.ReportJobRequest{
		Order: string(e.Order), Event: e.Event, Job: e.Status, CopyLog: e.CopyLog, ErrorCodes: e.Codes,
	})
}

// ReportManifest brings new bills of materials to the control plane, in as many
// reports as their size asks for. A bill that no report can carry stays on its
// disk, which is recorded.
func (u *Uplink) ReportManifest(m *devicev1.ReportManifestRequest) {
	one := proto.CloneOf(m)
	one.Manifests = nil
	for _, bill := range m.Manifests {
		next := fitting(bill)
		if next == nil {
			u.recordUnsent(m.Request, "disk", bill.Disk, "share", bill.Share, "digest", bill.Digest, "bytes", strconv.Itoa(len(bill.Bom)))
			continue
		}
		if len(one.Manifests) > 0 && proto.Size(one)+proto.Size(next) > maxReport {
			u.put(proto.CloneOf(one))
			one.Manifests = nil
		}
		one.Manifests = append(one.Manifests, next)
	}
	u.put(one)
}

// ReportChanges brings one part of what was touched under a request to the
// control plane. It is durable on return.
func (u *Uplink) ReportChanges(envelope []byte) error {
	return u.outbox.put(&devicev1.ReportChangesRequest{Envelope: envelope})
}

// fitting returns what of a bill a report can carry, nil if there is too much of
// it. The difference is left out first: the control plane makes its own.
func fitting(bill *devicev1.Manifest) *devicev1.Manifest {
	if proto.Size(bill) <= maxBill {
		return bill
	}
	short := proto.CloneOf(bill)
	short.Difference = ""
	if proto.Size(short) > maxBill {
		return nil
	}
	return short
}

// recordUnsent records that something stays here because no message can carry it.
// properties are names and values in turn.
func (u *Uplink) recordUnsent(correlation string, properties ...string) {
	r := auditlog.NewRecord(time.Now(), auditlog.OpPrepareToShip, auditlog.Failure)
	r.Origin, r.Caller = u.cfg.Node.String(), u.cfg.Node.URI().String()
	r.ResourceID = fmt.Sprintf("/devices/%s/nodes/%d", u.cfg.Node.Serial, u.cfg.Node.Node)
	r.CorrelationID = correlation
	r.Properties = map[string]string{"unsent": "too large for one message: it stays on the node"}
	for i := 0; i+1 < len(properties); i += 2 {
		r.Properties[properties[i]] = properties[i+1]
	}
	if _, err := u.cfg.Journal.Append(context.Background(), r); err != nil {
		u.cfg.Log.Error().Err(err).Str("operation", string(r.Operation)).Msg("cannot record")
	}
}

func (u *Uplink) put(m report) {
	if err := u.outbox.put(m); err != nil {
		u.cfg.Log.Error().Err(err).Msg("cannot keep a report for the control plane")
	}
}

// deliver sends one report. An answer that will never change is logged and
// counts as delivered, or is errTooLarge, so that one bad report holds up no
// other.
func (u *Uplink) deliver(ctx context.Context, m report) error {
	err := u.send(ctx, m)
	kind := string(m.ProtoReflect().Descriptor().Name())
	switch protocol.CodeOf(err) {
	case protocol.CodeInvalid, protocol.CodeNotFound, protocol.CodeConflict, protocol.CodeForbidden:
		u.cfg.Log.Error().Err(err).Str("report", kind).Msg("the control plane refused a report: dropped")
		return nil
	case protocol.CodeLimit:
		u.cfg.Log.Error().Err(err).Str("report", kind).Msg("no message can carry a report: set aside")
		u.recordUnsent("", "report", kind, "bytes", strconv.Itoa(proto.Size(m)))
		return errTooLarge
	}
	return err
}

func (u *Uplink) send(ctx context.Context, m report) error {
	if size := proto.Size(m); size > rpc.MaxMessage { // Connect would send it empty
		return protocol.Errorf(protocol.CodeLimit, "the report has %d bytes: a message carries %d", size, rpc.MaxMessage)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var err error
	switch m := m.(type) {
	case *devicev1.ReportJobRequest:
		_, err = u.control.ReportJob(ctx, m)
	case *devicev1.ReportManifestRequest:
		_, err = u.control.ReportManifest(ctx, m)
	case *devicev1.ReportChangesRequest:
		_, err = u.control.ReportChanges(ctx, m)
	}
	return err
}
