package uplink

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/agent/internal/journal"
	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/agent/internal/recorder"
	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/recording"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
	"github.com/databox-lockbox/lockbox/protocol/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var nodeID = protocol.NodeID{Serial: "DBX0001", Node: 1}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for range 2000 {
		if holds() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s: not within twenty seconds", what)
}

// control is the control plane at the other end of a real tunnel.
type control struct {
	devicev1.UnimplementedControlServiceHandler
	authorities *certs.Authorities
	server      *tunnel.Server
	address     string
	stop        func()

	mu         sync.Mutex // guards what follows
	refuse     error      // what every call is answered
	connected  int
	heartbeats []*devicev1.HeartbeatRequest
	records    []*devicev1.ChainRecord
	reports    []string
	bad        string // the report that is refused for what it is
	serials    []string
	recorded   []byte
	confirmed  bool
	ttl        time.Duration // of renewed certificates
}

func newControl(t *testing.T) *control {
	a, _, err := certs.Open(filepath.Join(t.TempDir(), "authority"))
	if err != nil {
		t.Fatal(err)
	}
	c := &control{authorities: a, ttl: time.Hour}
	c.serve(t, "127.0.0.1:0")
	t.Cleanup(func() { c.stop() })
	return c
}

func (c *control) source(names ...string) *certs.Source {
	key := must(certs.NewKey())
	return must(certs.NewSource(key, must(c.authorities.IssueServer(must(certs.NewCSR(key)), names, time.Hour)), nil, nil))
}

func (c *control) serve(t *testing.T, address string) {
	c.server = tunnel.NewServer(tunnel.ServerConfig{
		TLS: certs.DeviceListener(c.source("127.0.0.1"), c.authorities.Roots().Devices, func(string) bool { return false }),
		Identify: func(s tls.ConnectionState) (protocol.NodeID, string, error) {
			id, fingerprint, serial, err := certs.DeviceFromState(s)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.serials = append(c.serials, serial)
			return id, fingerprint, err
		},
		Handler: func(*tunnel.Peer) http.Handler {
			srv := rpc.NewServer(func(_ context.Context, procedure string, err error) { t.Logf("%s: %v", procedure, err) })
			devicev1.RegisterControlServiceHandler(srv, c)
			mux := http.NewServeMux()
			rpc.Mount(mux, srv)
			return mux
		},
		Connected: func(*tunnel.Peer) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.connected++
		},
	})
	ln := must(net.Listen("tcp", address))
	c.address = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.server.Serve(ctx, ln) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func locked[T any](c *control, f func() T) T {
	c.mu.Lock()
	defer c.mu.Unlock()
	return f()
}

func (c *control) set(f func()) { locked(c, func() int { f(); return 0 }) }

func (c *control) beats() int { return locked(c, func() int { return len(c.heartbeats) }) }

// got returns the reports. One whose answer was lost comes twice.
func (c *control) got() []string {
	return locked(c, func() []string { return slices.Compact(slices.Clone(c.reports)) })
}

func (c *control) Heartbeat(_ context.Context, r *devicev1.HeartbeatRequest) (*devicev1.HeartbeatResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heartbeats = append(c.heartbeats, r)
	return &devicev1.HeartbeatResponse{Time: 1_800_000_000, PeersOpened: [][]byte{[]byte("peer")}}, c.refuse
}

func (c *control) AppendRecords(_ context.Context, r *devicev1.AppendRecordsRequest) (*devicev1.AppendRecordsResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return nil, c.refuse
	}
	c.records = append(c.records, r.Records...)
	return &devicev1.AppendRecordsResponse{Acked: int64(len(c.records))}, nil
}

func (c *control) AppendRecording(_ context.Context, r *devicev1.AppendRecordingRequest) (*devicev1.AppendRecordingResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return nil, c.refuse
	}
	if int64(len(c.recorded)) == r.Offset {
		c.recorded = append(c.recorded, r.Data...)
		c.confirmed = r.Closed && string(approval.DigestOf(c.recorded)) == r.Digest
	}
	return &devicev1.AppendRecordingResponse{Acked: int64(len(c.recorded)), Confirmed: c.confirmed}, nil
}

func (c *control) RenewCertificate(_ context.Context, r *devicev1.RenewCertificateRequest) (*devicev1.RenewCertificateResponse, error) {
	ttl := locked(c, func() time.Duration { return c.ttl })
	chain, err := c.authorities.IssueDevice(r.Csr, nodeID, ttl)
	return &devicev1.RenewCertificateResponse{Chain: chain}, err
}

func (c *control) report(text string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return c.refuse
	}
	if text == c.bad {
		return protocol.Errorf(protocol.CodeInvalid, "no such order")
	}
	c.reports = append(c.reports, text)
	return nil
}

func (c *control) ReportJob(_ context.Context, r *devicev1.ReportJobRequest) (*devicev1.ReportJobResponse, error) {
	return &devicev1.ReportJobResponse{}, c.report(fmt.Sprint(r.Event, " ", r.Job.GetFilesDone()))
}

func (c *control) ReportManifest(_ context.Context, r *devicev1.ReportManifestRequest) (*devicev1.ReportManifestResponse, error) {
	return &devicev1.ReportManifestResponse{}, c.report(fmt.Sprint("manifest ", len(r.Manifests)))
}

func (c *control) ReportChanges(_ context.Context, r *devicev1.ReportChangesRequest) (*devicev1.ReportChangesResponse, error) {
	return &devicev1.ReportChangesResponse{}, c.report("changes " + string(r.Envelope))
}

// fakeLock records what is asked of the lock, and of the sessions.
type fakeLock struct {
	changed chan struct{}

	mu    sync.Mutex
	calls []string
	heard int
	clock time.Time // of the control plane, as it was last heard
	lease *lock.Holder
	known protocol.Person // whose session "ses-1" is
}

func (f *fakeLock) did(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fakeLock) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	return calls
}

func (f *fakeLock) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.heard
}

func (f *fakeLock) Challenge(_ context.Context, subject approval.Digest, purpose protocol.Purpose) ([]byte, error) {
	f.did("challenge %s %s", subject, purpose)
	return []byte("challenge"), nil
}

func (f *fakeLock) Unlock(_ context.Context, peer error, r *devicev1.UnlockRequest, progress func(protocol.DiskID, string)) ([]byte, error) {
	f.did("unlock %s %v", r.Order, peer)
	if string(r.Order) == "bad" {
		return nil, protocol.Errorf(protocol.CodeSpent, "spent")
	}
	var all sync.WaitGroup
	for _, d := range []protocol.DiskID{"disk1", "disk2", "disk3", "disk4"} {
		all.Go(func() { progress(d, "open") })
	}
	all.Wait()
	return []byte("opened"), nil
}

func (f *fakeLock) Commit(context.Context, []byte) (time.Time, []*devicev1.ShareStatus, error) {
	return time.Unix(1000, 0), []*devicev1.ShareStatus{{Name: "contoso_BlockBlob"}}, nil
}

func (f *fakeLock) Lock(_ context.Context, reason lock.Reason, subject approval.Digest, spend bool) (time.Duration, error) {
	f.did("lock %s %s %v", reason, subject, spend)
	return 7 * time.Millisecond, nil
}

func (f *fakeLock) Status() *devicev1.NodeStatus { return &devicev1.NodeStatus{Serial: "DBX0001"} }

func (f *fakeLock) Holder() (lock.Holder, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lease == nil {
		return lock.Holder{}, false
	}
	return *f.lease, true
}

func (f *fakeLock) Opened() []byte { return []byte("opened") }

func (f *fakeLock) Heard(theirs time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clock = theirs
	f.heard++
}

func (f *fakeLock) PeersOpened([][]byte) {}

func (f *fakeLock) Changed() <-chan struct{} { return f.changed }

func (f *fakeLock) Enable(_ context.Context, o SessionOrder) ([]byte, error) {
	f.did("enable %s %s %s %d", o.ID, o.Engineer, o.Key, len(o.CAs))
	return []byte("host key"), nil
}

func (f *fakeLock) Disable(id protocol.SessionID, reason string) { f.did("disable %s %s", id, reason) }

func (f *fakeLock) Engineer(id protocol.SessionID) (protocol.Person, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known, id == "ses-1"
}

func (f *fakeLock) Admits(id protocol.SessionID) error {
	if id != "ses-1" {
		return protocol.Errorf(protocol.CodeNotFound, "there is no support session %q", id)
	}
	return nil
}

// ServeConn echoes.
func (f *fakeLock) ServeConn(_ context.Context, conn net.Conn, id protocol.SessionID) error {
	defer conn.Close()
	fmt.Fprintln(conn, id)
	_, err := io.Copy(conn, conn)
	return err
}

// node is an enrolled node with its uplink.
type testNode struct {
	t        *testing.T
	dir      string
	control  *control
	state    *state.Dir
	journal  *journal.Journal
	recorder *recorder.Store
	lock     *fakeLock
	uplink   *Uplink
	stop     func()
}

func newNode(t *testing.T, c *control, ttl time.Duration) *testNode {
	n := &testNode{t: t, dir: filepath.Join(t.TempDir(), "state"), control: c, lock: &fakeLock{changed: make(chan struct{}, 1)}}
	n.state = must(state.Open(n.dir))
	key := must(n.state.NodeKey()).(ed25519.PrivateKey)
	if err := n.state.SetIdentity(state.Identity{
		Serial: nodeID.Serial, Node: nodeID.Node, Chain: must(c.authorities.IssueDevice(must(certs.NewCSR(key)), nodeID, ttl)),
		ServerRoots: [][]byte{c.authorities.Roots().Servers.Raw}, TunnelAddress: c.address,
	}); err != nil {
		t.Fatal(err)
	}
	n.journal = must(journal.New(filepath.Join(n.dir, "journal"), nodeID, key))
	n.recorder = must(recorder.New(recorder.Config{
		Dir: filepath.Join(n.dir, "recordings"), Node: nodeID, Key: key, Journal: n.journal, Quota: 16 << 20, Log: zerolog.New(t.Output()),
	}))
	t.Cleanup(func() {
		if n.stop != nil {
			n.stop()
		}
		n.journal.Close()
		n.state.Close()
	})
	return n
}

func (n *testNode) make(heartbeat time.Duration) {
	n.t.Helper()
	id, _ := n.state.Identity()
	u, err := New(Config{
		Node: nodeID, Key: must(n.state.NodeKey()), Identity: id, State: n.state, Journal: n.journal, Recorder: n.recorder, Lock: n.lock, Sessions: n.lock,
		ReplacePolicy: func(context.Context, []byte) (int64, approval.Digest, error) { return 2, "sha256:2", nil },
		LogSize:       func() int64 { return 42 },
		Heartbeat:     heartbeat, BackoffMin: 10 * time.Millisecond, BackoffMax: 50 * time.Millisecond, Log: zerolog.New(n.t.Output()),
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.uplink = u
}

func (n *testNode) run(heartbeat time.Duration) {
	n.t.Helper()
	n.make(heartbeat)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.uplink.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			n.t.Error(err)
		}
	})
}

// service returns the node's service, as the control plane calls it.
func (n *testNode) service() devicev1.NodeServiceClient {
	n.t.Helper()
	eventually(n.t, "connected", func() bool { _, ok := n.control.server.Peer(nodeID); return ok })
	peer, _ := n.control.server.Peer(nodeID)
	return devicev1.NewNodeServiceClient(rpc.NewClient(peer.Client(), tunnel.BaseURL))
}

func TestHeartbeats(t *testing.T) {
	c := newControl(t)
	n := newNode(t, c, time.Hour)
	n.run(time.Hour)
	eventually(t, "a heartbeat when connected", func() bool { return n.lock.count() > 0 })
	time.Sleep(2 * changePause)
	before := c.beats()
	n.lock.changed <- struct{}{}
	eventually(t, "a heartbeat on change", func() bool { return c.beats() == before+1 })
	if got := locked(c, func() *devicev1.HeartbeatRequest { return c.heartbeats[0] }); got.LogSize != 42 || string(got.Opened) != "opened" || got.Status.GetSerial() != "DBX0001" {
		t.Errorf("heartbeat: %v", got)
	}

	eventually(t, "heard", func() bool { return n.lock.count() == c.beats() })
	n.lock.mu.Lock()
	if n.lock.clock.Unix() != 1_800_000_000 {
		t.Errorf("the control plane's clock was passed on as %v", n.lock.clock)
	}
	n.lock.mu.Unlock()
	c.set(func() { c.refuse = protocol.Errorf(protocol.CodeUnavailable, "busy") })
	heard := n.lock.count()
	n.lock.changed <- struct{}{}
	eventually(t, "a heartbeat that fails", func() bool { return c.beats() == before+2 })
	time.Sleep(2 * changePause)
	if n.lock.count() != heard {
		t.Error("a heartbeat that was not answered counts as heard")
	}
}

func TestHeartbeatsArePeriodicAndComeBack(t *testing.T) {
	c := newControl(t)
	n := newNode(t, c, time.Hour)
	n.run(50 * time.Millisecond)
	eventually(t, "periodic heartbeats", func() bool { return n.lock.count() >= 3 })
	address := c.address
	c.stop()
	heard := n.lock.count()
	time.Sleep(200 * time.Millisecond)
	if n.lock.count() > heard+1 {
		t.Error("heard of a control plane that is away")
	}
	c.serve(t, address)
	eventually(t, "heartbeats after the outage", func() bool { return n.lock.count() >= heard+3 })
}

func TestReportsAreDurableAndOrdered(t *testing.T) {
	c := newControl(t)
	c.refuse = protocol.Errorf(protocol.CodeUnavailable, "away")
	n := newNode(t, c, time.Hour)
	n.run(time.Hour)
	job := func(event string, done int64) {
		n.uplink.ReportJob(lock.JobEvent{Event: event, Order: "ORD-1001", Status: &devicev1.JobStatus{FilesDone: done}})
	}
	job("started", 0)
	for i := range 11 {
		job("progress", int64(i))
	}
	n.uplink.ReportManifest(&devicev1.ReportManifestRequest{Order: "ORD-1001", State: "Succeeded", Manifests: []*devicev1.Manifest{{}}})
	if err := n.uplink.ReportChanges([]byte("signed")); err != nil {
		t.Fatal(err)
	}
	job("halted", 11)
	job("resumed", 11)
	n.stop()

	n.run(time.Hour) // after a restart
	job("progress", 12)
	c.set(func() { c.refuse, c.bad = nil, "halted 11" })
	want := []string{"started 0", "manifest 1", "changes signed", "resumed 11", "progress 12"}
	eventually(t, "all reports but the refused one", func() bool { return slices.Equal(c.got(), want) })
	job("completed", 20)
	eventually(t, "the next report", func() bool { return slices.Equal(c.got(), append(want, "completed 20")) })
	eventually(t, "an empty outbox", func() bool { names, err := n.uplink.outbox.list(); return err == nil && len(names) == 0 })
}

func TestLargeManifestsAreSplit(t *testing.T) {
	c := newControl(t)
	n := newNode(t, c, time.Hour)
	n.run(time.Hour)
	m := &devicev1.ReportManifestRequest{Order: "ORD-1001", State: "Succeeded"}
	for range 5 {
		m.Manifests = append(m.Manifests, &devicev1.Manifest{Bom: make([]byte, 1<<20)})
	}
	n.uplink.ReportManifest(m)
	n.uplink.ReportManifest(&devicev1.ReportManifestRequest{State: "Failed"})
	eventually(t, "three reports, and one without bills", func() bool {
		return slices.Equal(c.got(), []string{"manifest 2", "manifest 1", "manifest 0"}) && locked(c, func() int { return len(c.reports) }) == 4
	})
}

// TestTooLargeStays checks that what no message can carry holds up nothing, and
// is on record.
func TestTooLargeStays(t *testing.T) {
	c := newControl(t)
	n := newNode(t, c, time.Hour)
	n.run(time.Hour)
	n.uplink.ReportJob(lock.JobEvent{Event: "halted", CopyLog: make([]byte, rpc.MaxMessage+1)})
	n.uplink.ReportManifest(&devicev1.ReportManifestRequest{State: "Succeeded", Request: "req-1", Manifests: []*devicev1.Manifest{
		{Disk: "disk1", Bom: make([]byte, rpc.MaxMessage+1)},
		{Disk: "disk2", Bom: make([]byte, 2<<20), Difference: strings.Repeat("x", 2<<20)},
		{Disk: "disk3", Bom: make([]byte, 1<<10)},
	}})
	n.uplink.ReportJob(lock.JobEvent{Event: "resumed"})
	eventually(t, "all that can be carried", func() bool { return slices.Equal(c.got(), []string{"manifest 2", "resumed 0"}) })
	eventually(t, "an empty outbox", func() bool { names, err := n.uplink.outbox.list(); return err == nil && len(names) == 0 })
	if kept := must(filepath.Glob(filepath.Join(n.dir, "outbox", "*.job.too-large"))); len(kept) != 1 {
		t.Errorf("set aside: %v", kept)
	}
	var unsent []string
	for _, e := range must(n.journal.Read(0)) {
		if r := must(auditlog.ParseRecord(e.Record)); r.Properties["unsent"] != "" {
			unsent = append(unsent, r.CorrelationID+r.Properties["disk"]+r.Properties["report"])
		}
	}
	slices.Sort(unsent)
	if !slices.Equal(unsent, []string{"ReportJobRequest", "req-1disk1"}) {
		t.Errorf("records: %q", unsent)
	}
}

func TestRecordsAreForwarded(t *testing.T) {
	c := newControl(t)
	c.refuse = protocol.Errorf(protocol.CodeUnavailable, "away")
	n := newNode(t, c, time.Hour)
	record := func() {
		t.Helper()
		r := auditlog.NewRecord(time.Now(), auditlog.OpStartAgent, auditlog.Success)
		r.Caller = "test"
		if _, err := n.journal.Append(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		record()
	}
	n.run(time.Hour)
	time.Sleep(100 * time.Millisecond)
	c.set(func() { c.refuse = nil })
	eventually(t, "100 records", func() bool { return n.journal.Acked() == 100 })
	record()
	eventually(t, "one more", func() bool { return n.journal.Acked() == 101 })
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, r := range c.records {
		if r.Index != int64(i) {
			t.Fatalf("record %d came as number %d", r.Index, i)
		}
	}
}

func TestRenewalWithoutReconnecting(t *testing.T) {
	c := newControl(t)
	n := newNode(t, c, 3*time.Second) // renewed after two thirds, counted from before its issue
	before, _ := n.state.Identity()
	n.run(time.Hour)
	eventually(t, "a renewed certificate", func() bool {
		now, _ := n.state.Identity()
		return string(now.Chain[0]) != string(before.Chain[0])
	})
	if n := locked(c, func() int { return c.connected }); n != 1 {
		t.Errorf("%d connections", n)
	}
	now, _ := n.state.Identity()
	leaf := must(x509.ParseCertificate(now.Chain[0]))
	eventually(t, "a connection with the new certificate", func() bool { // the TLS session may be resumed until the old one expires
		c.server.Disconnect(nodeID, "to see the new certificate")
		time.Sleep(100 * time.Millisecond)
		return locked(c, func() bool { return c.serials[len(c.serials)-1] == certs.Serial(leaf) })
	})
}

func TestNodeService(t *testing.T) {
	c := newControl(t)
	n := newNode(t, c, time.Hour)
	n.run(time.Hour)
	s, ctx := n.service(), t.Context()
	if r, err := s.Challenge(ctx, &devicev1.ChallengeRequest{SubjectDigest: "sha256:1", Purpose: "support-access"}); err != nil || string(r.Challenge) != "challenge" || r.LogSize != 42 {
		t.Errorf("Challenge: %v, %v", r, err)
	}
	stream := must(s.Unlock(ctx, &devicev1.UnlockRequest{Order: []byte("good")}))
	var phases int
	var opened string
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if m.Phase != "" {
			phases++
		}
		opened += string(m.Opened)
	}
	if phases != 4 || opened != "opened" {
		t.Errorf("Unlock: %d phases, %q", phases, opened)
	}
	stream = must(s.Unlock(ctx, &devicev1.UnlockRequest{Order: []byte("bad")}))
	if _, err := stream.Receive(); protocol.CodeOf(err) != protocol.CodeSpent {
		t.Errorf("Unlock refused: %v", err)
	}
	if r, err := s.Commit(ctx, &devicev1.CommitRequest{}); err != nil || r.LeaseEnd != 1000 || len(r.Shares) != 1 {
		t.Errorf("Commit: %v, %v", r, err)
	}
	if r, err := s.Lock(ctx, &devicev1.LockRequest{Reason: "revoked", Spend: true}); err != nil || r.TookMs != 7 || r.Status == nil {
		t.Errorf("Lock: %v, %v", r, err)
	}
	if r, err := s.EnableSession(ctx, &devicev1.EnableSessionRequest{Session: "ses-1", Engineer: "erin", SshKey: "SHA256:x", CaKeys: [][]byte{{1}}}); err != nil || string(r.HostKey) != "host key" {
		t.Errorf("EnableSession: %v, %v", r, err)
	}
	if r, err := s.UpdateTrustPolicy(ctx, &devicev1.UpdateTrustPolicyRequest{}); err != nil || r.Version != 2 || r.Digest != "sha256:2" {
		t.Errorf("UpdateTrustPolicy: %v, %v", r, err)
	}
	want := []string{"challenge sha256:1 support-access", "unlock good <nil>", "unlock bad <nil>", "lock revoked  true", "enable ses-1 erin SHA256:x 1"}
	if got := n.lock.took(); !slices.Equal(got, want) {
		t.Errorf("calls:\n%s", strings.Join(got, "\n"))
	}
}

func TestDisableSession(t *testing.T) {
	c := newControl(t)
	n := newNode(t, c, time.Hour)
	n.run(time.Hour)
	s := n.service()
	lease := &lock.Holder{Purpose: protocol.SupportAccess, Subject: "sha256:s", Engineer: approval.Engineer{Person: "erin"}}
	unsure := &lock.Holder{Purpose: protocol.SupportAccess, Subject: "sha256:s"}
	for _, one := range []struct {
		name    string
		lease   *lock.Holder
		session string
		known   protocol.Person
		want    []string
	}{
		{"locked", nil, "ses-1", "erin", []string{"disable ses-1 x"}},
		{"the engineer's", lease, "ses-1", "erin", []string{"lock session-disabled sha256:s true", "disable ses-1 x"}},
		{"killed", lease, "ses-1", "erin", []string{"lock session-killed sha256:s true", "disable ses-1 killed"}},
		{"another engineer's", lease, "ses-1", "otto", []string{"disable ses-1 x"}},
		{"unknown", lease, "ses-2", "", []string{"lock unknown-session-disabled sha256:s false", "disable ses-2 x"}},
		{"before the order was verified", unsure, "ses-1", "erin", []string{"lock unknown-session-disabled sha256:s false", "disable ses-1 x"}},
		{"during the copy job", &lock.Holder{Purpose: protocol.DataCopy}, "ses-1", "erin", []string{"disable ses-1 x"}},
	} {
		n.lock.mu.Lock()
		n.lock.lease, n.lock.known = one.lease, one.known
		n.lock.mu.Unlock()
		reason := "x"
		if one.name == "killed" {
			reason = "killed"
		}
		if _, err := s.DisableSession(t.Context(), &devicev1.DisableSessionRequest{Session: one.session, Reason: reason}); err != nil {
			t.Errorf("%s: %v", one.name, err)
		}
		if got := n.lock.took(); !slices.Equal(got, one.want) {
			t.Errorf("%s: %q", one.name, got)
		}
	}
}

// TestRecordings: a recording is watched, and brought to the control plane, as it
// grows and however often that is cut.
func TestRecordings(t *testing.T) {
	c := newControl(t)
	n := newNode(t, c, time.Hour)
	c.set(func() { c.refuse = protocol.Errorf(protocol.CodeUnavailable, "busy") })
	n.run(time.Hour)
	r := must(n.recorder.Begin(t.Context(), recording.Meta{Kind: recording.Session, Session: "ses-1", Engineer: "erin"}))
	watched := make(chan []string, 4)
	r.OnWatch(func(names []string) { watched <- names })
	s := n.service()
	stream := must(s.WatchRecording(t.Context(), &devicev1.WatchRecordingRequest{Session: "ses-1", Watcher: "ann"}))
	var seen []byte
	receive := func() *devicev1.WatchRecordingResponse {
		t.Helper()
		m := must(stream.Receive())
		if m.Recording != r.ID() || m.Offset != int64(len(seen)) {
			t.Errorf("%s at %d after %d", m.Recording, m.Offset, len(seen))
		}
		seen = append(seen, m.Data...)
		return m
	}
	receive()
	if got := <-watched; !slices.Equal(got, []string{"ann"}) {
		t.Errorf("watched by %q", got)
	}
	if err := r.Terminal("c1", 80, 24).Output([]byte("hello")); err != nil {
		t.Error(err)
	}
	for !bytes.Contains(seen, []byte("hello")) {
		receive()
	}
	c.set(func() { c.refuse = nil })
	if err := r.End(recording.EndDone); err != nil {
		t.Error(err)
	}
	for !receive().Ended {
	}
	eventually(t, "the recording is confirmed", func() bool { return locked(c, func() bool { return c.confirmed }) })
	if !bytes.Equal(c.recorded, seen) {
		t.Error("what arrived is not what was watched")
	}
	missing, err := s.WatchRecording(t.Context(), &devicev1.WatchRecordingRequest{Session: "ses-2", Watcher: "ann"})
	if err == nil {
		_, err = missing.Receive()
	}
	if protocol.CodeOf(err) != protocol.CodeNotFound {
		t.Errorf("without a recording: %v", err)
	}
}

func TestSSHGoesOverTheBulkConnection(t *testing.T) {
	c := newControl(t)
	n := newNode(t, c, time.Hour)
	n.run(time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := n.service().OpenBulk(ctx, &devicev1.OpenBulkRequest{}); err != nil {
		t.Fatal(err)
	}
	peer := must(c.server.Bulk(ctx, nodeID))
	conn := must(peer.Upgrade(ctx, "/ssh?session=ses-1", nil))
	defer conn.Close()
	fmt.Fprint(conn, "hello")
	buf := make([]byte, len("ses-1\nhello"))
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "ses-1\nhello" {
		t.Errorf("%q, %v", buf, err)
	}
	_, err := peer.Upgrade(ctx, "/ssh?session=ses-9", nil)
	if refused, ok := errors.AsType[*tunnel.UpgradeError](err); !ok || refused.StatusCode != http.StatusForbidden || !strings.Contains(refused.Message, "(not-found)") {
		t.Errorf("an unknown session: %v", err)
	}
}

func TestNewRefusesBadEnrolments(t *testing.T) {
	c := newControl(t)
	n := newNode(t, c, time.Hour)
	n.make(time.Hour)
	good := n.uplink.cfg
	for name, change := range map[string]func(*Config){
		"no root":     func(cfg *Config) { cfg.Identity.ServerRoots = nil },
		"damaged":     func(cfg *Config) { cfg.Identity.ServerRoots = [][]byte{{1}} },
		"no address":  func(cfg *Config) { cfg.Identity.TunnelAddress = "nowhere" },
		"no chain":    func(cfg *Config) { cfg.Identity.Chain = nil },
		"another key": func(cfg *Config) { cfg.Key = must(certs.NewKey()) },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestAnotherControlPlaneIsNoControlPlane: only the enrolled root counts.
func TestAnotherControlPlaneIsNoControlPlane(t *testing.T) {
	c, other := newControl(t), newControl(t)
	n := newNode(t, c, time.Hour)
	n.make(time.Hour)
	cfg := n.uplink.cfg
	cfg.Address = other.address
	u := must(New(cfg))
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := u.Run(ctx); err != nil {
		t.Error(err)
	}
	if n.lock.count() > 0 || locked(other, func() int { return other.connected }) > 0 {
		t.Error("the node spoke to another control plane")
	}
}
