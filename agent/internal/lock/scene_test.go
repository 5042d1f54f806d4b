package lock

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/agent/internal/journal"
	"github.com/databox-lockbox/lockbox/agent/internal/share"
	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/sealing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// key returns the Ed25519 key of that name, always the same one.
func key(name string) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return ed25519.NewKeyFromSeed(seed)
}

func public(name string) ed25519.PublicKey { return key(name).Public().(ed25519.PublicKey) }

func sshKey(name string) ssh.Signer { return must(ssh.NewSignerFromKey(key("ssh of " + name))) }

func authorized(name string) string {
	return string(ssh.MarshalAuthorizedKey(sshKey(name).PublicKey()))
}

// diskKey is the external key of a disk of a node.
func diskKey(node protocol.NodeID, disk protocol.DiskID) []byte {
	sum := make([]byte, sealing.KeySize)
	copy(sum, node.String()+" "+string(disk))
	return sum
}

// testClock is a clock that can be set, over the bubble's time.
type testClock struct {
	start time.Time
	mu    sync.Mutex
	set   time.Duration // by how much the wall clock was set forth
	slept time.Duration // by how much boot time is ahead: time in suspension
}

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Round(0).Add(c.set + c.slept)
}

func (c *testClock) Boot() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Hour + time.Since(c.start) + c.slept
}

func (c *testClock) setBy(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set += d
}

// fakeDisks are disks that know their keys and keep a book of what is open.
type fakeDisks struct {
	node protocol.NodeID
	ids  []protocol.DiskID
	root func(protocol.DiskID) string // where a mounted disk is

	mu      sync.Mutex
	open    map[protocol.DiskID]*fakeDisk
	opened  int // ever
	cleaned int

	openErr, mountErr, cleanErr error
	hangOpen, hangMount         chan struct{} // block until closed, whatever the context says
	hangClose, hangWipe         chan struct{}
	sticky                      bool // a closed disk leaves its mount behind
}

type fakeDisk struct {
	all      *fakeDisks
	id       protocol.DiskID
	readOnly bool
	done     chan struct{}
	once     sync.Once

	mu             sync.Mutex
	mounted, wiped bool
	closed         bool
	wipedAt        time.Time
}

func hang(c chan struct{}) {
	if c != nil {
		<-c
	}
}

func (f *fakeDisks) Open(_ context.Context, id protocol.DiskID, k bitlocker.ExternalKey, readOnly bool) (Disk, error) {
	hang(f.hangOpen)
	if f.openErr != nil {
		return nil, f.openErr
	}
	if string(k.Bytes()) != string(diskKey(f.node, id)) {
		return nil, protocol.Errorf(protocol.CodeDiskKey, "the key does not open disk %s", id)
	}
	d := &fakeDisk{all: f, id: id, readOnly: readOnly, done: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open[id] = d
	f.opened++
	return d, nil
}

func (f *fakeDisks) Status() []*devicev1.DiskStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []*devicev1.DiskStatus
	for _, id := range f.ids {
		s := &devicev1.DiskStatus{Disk: string(id), State: "locked"}
		if d := f.open[id]; d != nil && d.isMounted() {
			s.Mounts, s.LoopDevices = []string{"/mnt/" + string(id)}, []string{"/dev/loop0"}
		}
		list = append(list, s)
	}
	return list
}

func (f *fakeDisks) Cleanup(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cleaned++
	if f.cleanErr == nil {
		clear(f.open)
	}
	return f.cleanErr
}

// held returns the disks that are neither wiped nor closed.
func (f *fakeDisks) held() (ids []protocol.DiskID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, d := range f.open {
		d.mu.Lock()
		if !d.wiped && !d.closed {
			ids = append(ids, id)
		}
		d.mu.Unlock()
	}
	slices.Sort(ids)
	return ids
}

func (f *fakeDisks) get(id protocol.DiskID) *fakeDisk {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open[id]
}

func (d *fakeDisk) isMounted() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mounted
}

func (d *fakeDisk) ID() protocol.DiskID   { return d.id }
func (d *fakeDisk) Done() <-chan struct{} { return d.done }

func (d *fakeDisk) Mount(context.Context) (string, error) {
	hang(d.all.hangMount)
	if d.all.mountErr != nil {
		return "", d.all.mountErr
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return "", errors.New("too late: it is undone")
	}
	d.mounted = true
	return d.all.root(d.id), nil
}

func (d *fakeDisk) Wipe() {
	hang(d.all.hangWipe)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.wiped {
		d.wiped, d.wipedAt = true, time.Now()
	}
	d.once.Do(func() { close(d.done) })
}

func (d *fakeDisk) Close(context.Context) error {
	hang(d.all.hangClose)
	d.Wipe()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed, d.mounted = true, d.mounted && d.all.sticky
	return nil
}

// fakeShares is a share server that keeps a book of itself.
type fakeShares struct {
	mu                  sync.Mutex
	started, stopped    int
	last                *fakeServer
	folders             []Folder
	startErr, cleanErr  error
	hangStart, hangStop chan struct{}
}

type fakeServer struct {
	all  *fakeShares
	done chan struct{}
	once sync.Once
}

func (f *fakeShares) Start(_ context.Context, _ Lease, folders []Folder) (ShareServer, error) {
	hang(f.hangStart)
	if f.startErr != nil {
		return nil, f.startErr
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started++
	f.folders = folders
	f.last = &fakeServer{all: f, done: make(chan struct{})}
	return f.last, nil
}

func (f *fakeShares) Services() []share.Service { return []share.Service{{Protocol: "smb"}} }

func (f *fakeShares) Cleanup(context.Context) error { return f.cleanErr }

func (f *fakeShares) running() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.started - f.stopped
}

func (s *fakeServer) Credentials() (user, password string) { return "lease", "secret of this lease" }
func (s *fakeServer) Done() <-chan struct{}                { return s.done }
func (s *fakeServer) Err() error                           { return errors.New("smb: it ended") }

func (s *fakeServer) Services() []share.Service {
	return []share.Service{{Protocol: "smb", Address: "127.0.0.1:4445"}}
}

func (s *fakeServer) Stop(context.Context, Reason) error {
	hang(s.all.hangStop)
	s.once.Do(func() {
		s.all.mu.Lock()
		s.all.stopped++
		s.all.mu.Unlock()
		close(s.done)
	})
	return nil
}

// fakeJobs is a copy job that ends when told to.
type fakeJobs struct {
	end chan copyjob.Result
	bad error // of Check
	got chan []copyjob.Target
}

func (f *fakeJobs) Check([]approval.Destination) error { return f.bad }

func (f *fakeJobs) Run(ctx context.Context, _ protocol.OrderID, _ []copyjob.Share, targets []copyjob.Target, tell func(copyjob.Progress)) (copyjob.Result, error) {
	select {
	case f.got <- targets:
	default:
	}
	tell(copyjob.Progress{FilesTotal: 2, FilesDone: 1})
	select {
	case r := <-f.end:
		return r, nil
	case <-ctx.Done():
		return copyjob.Result{State: copyjob.Paused}, nil
	}
}

// fakeJournal wraps the real journal.
type fakeJournal struct {
	Journal
	mu      sync.Mutex
	err     error
	hang    chan struct{}
	records []auditlog.Record
}

func (f *fakeJournal) Append(ctx context.Context, r auditlog.Record) (int64, error) {
	f.mu.Lock()
	err, h := f.err, f.hang
	f.mu.Unlock()
	hang(h)
	if err != nil {
		return 0, err
	}
	n, err := f.Journal.Append(ctx, r)
	if err == nil {
		f.mu.Lock()
		f.records = append(f.records, r)
		f.mu.Unlock()
	}
	return n, err
}

func (f *fakeJournal) breaks(err error, hang chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.hang = err, hang
}

// count returns how many records there are of an operation and a result.
func (f *fakeJournal) count(op auditlog.Operation, result auditlog.Result) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.records {
		if r.Operation == op && r.Result == result {
			n++
		}
	}
	return n
}

// scene is a device with one customer, an engineer and a control plane.
type scene struct {
	t       testing.TB
	clock   *testClock
	nodes   []protocol.NodeID // of the device; the first is the machine's
	disks   *fakeDisks
	shares  *fakeShares
	jobs    *fakeJobs
	state   *state.Dir
	journal *fakeJournal
	dir     string
	cfg     Config
	*Machine

	policyEnvelope []byte
	policy         *approval.Policy
	log            *auditlog.Tree
	requests       int
	stop           func() error

	mu       sync.Mutex
	sessions []Reason
	events   []JobEvent
}

const logName = "databox-lockbox/test"

func newScene(t testing.TB, change ...func(*scene)) *scene {
	t.Helper()
	s := &scene{
		t: t, clock: &testClock{start: time.Now()}, dir: t.TempDir(), log: new(auditlog.Tree),
		nodes:  []protocol.NodeID{{Serial: "DBX0001", Node: 1}},
		shares: &fakeShares{}, jobs: &fakeJobs{end: make(chan copyjob.Result), got: make(chan []copyjob.Target, 1)},
	}
	for range 3 {
		s.logRecord(auditlog.NewRecord(time.Now(), auditlog.OpStartService, auditlog.Success))
	}
	s.disks = &fakeDisks{
		node: s.nodes[0], ids: []protocol.DiskID{"disk1", "disk2"}, open: make(map[protocol.DiskID]*fakeDisk),
		root: func(id protocol.DiskID) string { return filepath.Join(s.dir, string(id)) },
	}
	s.writePolicy(nil)
	s.state = must(state.Open(filepath.Join(s.dir, "state")))
	s.journal = &fakeJournal{Journal: must(journal.New(filepath.Join(s.dir, "state", "journal"), s.nodes[0], key("node 1")))}
	s.cfg = Config{
		Node: s.nodes[0], Key: key("node 1"), DiskIDs: s.disks.ids, Clock: s.clock, Version: "test",
		Policy: func() (*approval.Policy, error) { return s.policy, nil },
		State:  s.state, Journal: s.journal, Disks: s.disks, Shares: s.shares, Jobs: s.jobs,
		DeadMan: time.Minute, ChallengeTTL: time.Minute, CommitWithin: 30 * time.Second, MaxLease: 8 * time.Hour,
		EndSessions: func(r Reason) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.sessions = append(s.sessions, r)
		},
		JobEvent: func(e JobEvent) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.events = append(s.events, e)
		},
	}
	for _, id := range s.disks.ids {
		makeShare(t, s.disks.root(id))
	}
	for _, f := range change {
		f(s)
	}
	s.run()
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		s.state.Close()
		s.journal.Journal.(*journal.Journal).Close()
	})
	return s
}

// run starts the machine and waits until it is ready.
func (s *scene) run() {
	s.Machine = must(New(s.cfg))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	s.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	<-s.Changed()
}

// writePolicy has the trust policy signed: by alice, or as change says, who
// changes it first.
func (s *scene) writePolicy(change func(*approval.TrustPolicy) (signers []string)) {
	p := approval.TrustPolicy{
		TenantID: "contoso", OrderID: "ORD-1001", Version: 1,
		Keys: []approval.Key{
			must(approval.NewSSHKey("alice-laptop", "alice@contoso.example", authorized("alice"))),
			must(approval.NewSSHKey("petra-laptop", "petra@provider.example", authorized("petra"))),
		},
		Rules: []approval.Rule{
			{
				Action: approval.UnlockDatabox, Service: true, MaxDuration: 12 * 3600,
				CustomerGroups: []approval.Group{{Name: "owners", Threshold: 1, Keys: []string{"alice-laptop"}}},
				ProviderGroups: []approval.Group{{Name: "support", Threshold: 1, Keys: []string{"petra-laptop"}}},
			},
			{
				Action: approval.CopyData, Service: true, MaxDuration: 24 * 3600,
				CustomerGroups: []approval.Group{{Name: "owners", Threshold: 1, Keys: []string{"alice-laptop"}}},
			},
		},
		ServiceKeys: [][]byte{public("service")},
		LogKey:      must(auditlog.VerifierKey(logName, public("log"))), NoRecovery: true,
	}
	signers := []string{"alice"}
	if change != nil {
		signers = change(&p)
	}
	e := must(approval.NewEnvelope(p))
	for _, who := range signers {
		if err := e.SignSSH(who+"-laptop", sshKey(who)); err != nil {
			s.t.Fatal(err)
		}
	}
	s.policyEnvelope = must(e.Encode())
	s.policy = must(approval.VerifyPolicyV1(s.policyEnvelope))
}

func (s *scene) logRecord(r auditlog.Record) ([]byte, int64) {
	data := must(r.Encode())
	return data, must(s.log.Append(data))
}

func nodeKey(node protocol.NodeID) ed25519.PrivateKey {
	return key("node " + node.String()[len(node.Serial)+1:])
}

func (s *scene) nodeRefs() (refs []approval.NodeRef) {
	for _, n := range s.nodes {
		pub := nodeKey(n).Public().(ed25519.PublicKey)
		refs = append(refs, approval.NodeRef{Serial: n.Serial, Node: n.Node, KeyFingerprint: approval.KeyFingerprint(pub)})
	}
	return refs
}

func (s *scene) diskRefs() (refs []approval.DiskRef) {
	for _, n := range s.nodes {
		for _, d := range s.disks.ids {
			refs = append(refs, approval.DiskRef{Node: approval.NameOf(n), Disk: d})
		}
	}
	return refs
}

// vote is a decision before it is signed.
type vote struct {
	approval.Decision
	signer string // whose SSH key signs
	id     string // under which key id, if not the signer's own
}

// attempt is one unlock before anything of it is signed, so that a test can make
// one thing of it wrong.
type attempt struct {
	s         *scene
	purpose   protocol.Purpose
	statement approval.Statement
	consent   approval.Consent
	votes     []vote
	standing  *approval.Standing // comes with the decisions, signed by standers
	standers  []string
	consenter string // whose SSH key signs the consent
	peer      error
	service   string // whose key signs the order
	logKey    string // whose key signs the checkpoint
	subject   approval.Digest
	intent    approval.Digest // that the order was logged with

	challengeFor approval.Digest        // in place of the subject
	challengeAs  protocol.Purpose       // in place of the purpose
	wait         time.Duration          // between challenge and order
	onRecord     func(*auditlog.Record) // before the intent is logged
	onSeal       func(*sealing.Context) // before a key is sealed
	onAccess     func(*sealing.Context) // before access is sealed
	onOrder      func(*approval.Order)  // before it is signed
	onRequest    func(*devicev1.UnlockRequest)
	key          func(protocol.DiskID) []byte
	access       string // to each destination of the consent

	requestBytes []byte // of the statement
	consentBytes []byte // envelope
	decisions    [][]byte
}

func (s *scene) newAttempt(purpose protocol.Purpose) *attempt {
	now := s.clock.Now()
	s.requests++
	id := fmt.Sprintf("%08d", s.requests)
	a := &attempt{
		s: s, purpose: purpose, service: "service", logKey: "log", consenter: "alice",
		key:    func(d protocol.DiskID) []byte { return diskKey(s.nodes[0], d) },
		access: "sv=1&sig=c2VjcmV0",
		statement: approval.Statement{
			RequestID: protocol.RequestID("LockboxRequest_" + id), Action: approval.UnlockDatabox, TenantID: "contoso",
			SubscriptionID: "sub", OrderID: "ORD-1001", Nodes: s.nodeRefs(), Disks: s.diskRefs(),
			Purpose: protocol.SupportAccess, Access: approval.ReadWrite, ReasonCode: "copied-to-wrong-folder", Ticket: "SR-2001",
			Engineer:    approval.Engineer{Person: "erin@provider.example", SSHKey: must(approval.SSHFingerprint(authorized("erin")))},
			MaxDuration: 8 * 3600, PolicyDigest: s.policy.Digest(), Created: now.Unix(), Expires: now.Add(96 * time.Hour).Unix(),
		},
		consent: approval.Consent{
			ConsentID: protocol.ConsentID("CON-" + id), TenantID: "contoso", SubscriptionID: "sub", OrderID: "ORD-1001",
			Nodes: s.nodeRefs(), Disks: s.diskRefs(),
			Destinations: []approval.Destination{{Account: "contosodata", Endpoint: "file:///srv/blobs"}},
			PolicyDigest: s.policy.Digest(), Created: now.Unix(), Until: now.Add(30 * 24 * time.Hour).Unix(),
		},
	}
	for role, who := range map[approval.Role]string{approval.Customer: "alice", approval.Provider: "petra"} {
		a.votes = append(a.votes, vote{Decision: approval.Decision{
			Role: role, Verdict: approval.Approve, MaxDuration: 8 * 3600, DecidedAt: now.Unix(),
		}, signer: who})
	}
	return a
}

// sign makes the bytes that people sign, once.
func (a *attempt) sign() {
	if a.subject != "" {
		return
	}
	if a.purpose == protocol.DataCopy {
		e := must(approval.NewEnvelope(a.consent))
		if err := e.SignSSH(a.consenter+"-laptop", sshKey(a.consenter)); err != nil {
			a.s.t.Fatal(err)
		}
		a.consentBytes, a.subject = must(e.Encode()), e.Digest()
		return
	}
	a.requestBytes = must(a.statement.Encode())
	a.subject = approval.DigestOf(a.requestBytes)
	for _, v := range a.votes {
		if v.id == "" {
			v.id = v.signer + "-laptop"
		}
		v.RequestDigest, v.Signer = a.subject, v.id
		e := must(approval.NewEnvelope(v.Decision))
		if err := e.SignSSH(v.id, sshKey(v.signer)); err != nil {
			a.s.t.Fatal(err)
		}
		a.decisions = append(a.decisions, must(e.Encode()))
	}
	if a.standing == nil {
		return
	}
	e := must(approval.NewEnvelope(*a.standing))
	for _, who := range a.standers {
		if err := e.SignSSH(who+"-laptop", sshKey(who)); err != nil {
			a.s.t.Fatal(err)
		}
	}
	a.decisions = append(a.decisions, must(e.Encode()))
}

// challenge asks the machine for a challenge.
func (a *attempt) challenge() (approval.Challenge, error) {
	a.sign()
	subject, purpose := a.subject, a.purpose
	if a.challengeFor != "" {
		subject = a.challengeFor
	}
	if a.challengeAs != "" {
		purpose = a.challengeAs
	}
	envelope, err := a.s.Challenge(context.Background(), subject, purpose)
	if err != nil {
		return approval.Challenge{}, err
	}
	return approval.VerifyChallenge(envelope, a.s.nodeRefs()[0], subject, a.s.clock.Now())
}

// order answers a challenge as custody does.
func (a *attempt) order(c approval.Challenge) *devicev1.UnlockRequest {
	s, node := a.s, a.s.nodes[0]
	decided := approval.Digest("sha256:" + strings.Repeat("0", 64))
	if a.purpose == protocol.DataCopy {
		if g, err := s.policy.AuthorizeCopy(approval.CopyRequest{Consent: a.consentBytes, Now: s.clock.Now()}); err == nil {
			decided = g.DecisionsDigest
		}
	} else if g, err := s.policy.Authorize(approval.Request{Statement: a.requestBytes, Decisions: a.decisions, Now: s.clock.Now()}); err == nil {
		decided = g.DecisionsDigest
	}

	correlation := string(a.statement.RequestID)
	disks := a.statement.DisksOf(node)
	if a.purpose == protocol.DataCopy {
		correlation, disks = string(a.consent.ConsentID), a.consent.DisksOf(node)
	}
	if len(disks) == 0 { // an approval of another node: the order is for this one
		disks = s.disks.ids
	}
	r := auditlog.NewRecord(time.Now(), auditlog.OpUnlockIntent, auditlog.Start)
	r.CorrelationID = correlation
	r.Properties = map[string]string{
		auditlog.PropertySubjectDigest: string(a.subject), auditlog.PropertyNonce(node): hex.EncodeToString(c.Nonce),
	}
	if x := a.statement.Exclusion; x != "" {
		r.Properties[auditlog.PropertyExclusion] = string(x)
	}
	if a.onRecord != nil {
		a.onRecord(&r)
	}
	record, index := s.logRecord(r)
	a.intent = approval.DigestOf(record)
	signer := must(auditlog.NewSigner(logName, key(a.logKey)))
	o := approval.Order{
		Purpose: a.purpose, Node: approval.NameOf(node), RequestDigest: a.subject, DecisionsDigest: decided, Nonce: c.Nonce,
		IssuedAt: time.Now().Unix(), LogRecord: record, LogIndex: index, LogCheckpoint: must(s.log.Checkpoint(signer)),
		LogProof: hashes(must(auditlog.ProveInclusion(s.log.Size(), index, s.log))),
	}
	if seen := s.state.Checkpoint(); len(seen) > 0 {
		verifier := must(auditlog.NewVerifier(logName, public("log")))
		last := must(auditlog.OpenCheckpoint(seen, verifier))
		o.LogConsistency = hashes(must(auditlog.ProveConsistency(last.Size, s.log.Size(), s.log)))
	}
	for _, d := range disks {
		ctx := sealing.Context{
			RequestDigest: string(a.subject), DecisionsDigest: string(decided), Nonce: c.Nonce,
			Node: node, Disk: d, Purpose: a.purpose, KeyType: sealing.ExternalKey,
		}
		if a.onSeal != nil {
			a.onSeal(&ctx)
		}
		o.Keys = append(o.Keys, approval.SealedKey{
			Disk: d, KeyType: string(sealing.ExternalKey), Ciphertext: must(sealing.Seal(c.HPKEKey, ctx, a.key(d))),
		})
	}
	if a.purpose == protocol.DataCopy {
		for _, d := range a.consent.Destinations {
			ctx := sealing.Context{
				RequestDigest: string(a.subject), DecisionsDigest: string(decided), Nonce: c.Nonce,
				Node: node, Account: d.Account, Endpoint: d.Endpoint, Purpose: a.purpose, KeyType: sealing.AccessToStorage,
			}
			if a.onAccess != nil {
				a.onAccess(&ctx)
			}
			o.Access = append(o.Access, approval.SealedAccess{
				Account: d.Account, Endpoint: d.Endpoint, KeyType: string(sealing.AccessToStorage), Ciphertext: must(sealing.Seal(c.HPKEKey, ctx, []byte(a.access))),
			})
		}
	}
	if a.onOrder != nil {
		a.onOrder(&o)
	}
	req := &devicev1.UnlockRequest{
		Order: must(approval.SignEd25519(o, key(a.service))), Statement: a.requestBytes, Decisions: a.decisions, Consent: a.consentBytes,
	}
	for _, n := range s.nodes {
		req.NodeKeys = append(req.NodeKeys, must(x509.MarshalPKIXPublicKey(nodeKey(n).Public())))
	}
	if a.onRequest != nil {
		a.onRequest(req)
	}
	return req
}

// hashes reads the hashes of a proof in text form.
func hashes(proof []byte) (list [][]byte) {
	for _, line := range strings.Split(strings.TrimSpace(string(proof)), "\n")[1:] {
		list = append(list, must(base64.StdEncoding.DecodeString(line)))
	}
	return list
}

// unlock runs the whole of an attempt, up to Opened.
func (a *attempt) unlock() ([]byte, error) {
	c, err := a.challenge()
	if err != nil {
		return nil, err
	}
	req := a.order(c)
	time.Sleep(a.wait)
	return a.s.Unlock(context.Background(), a.peer, req, nil)
}

// commitEnvelope makes the service's commit over proofs.
func (a *attempt) commitEnvelope(proofs ...[]byte) []byte {
	return must(approval.SignEd25519(approval.Commit{
		RequestDigest: a.subject, Opened: proofs, IssuedAt: time.Now().Unix(),
	}, key("service")))
}

// open runs an attempt up to Unlocked, or fails the test.
func (a *attempt) open() time.Time {
	a.s.t.Helper()
	proof, err := a.unlock()
	if err != nil {
		a.s.t.Fatalf("unlock: %v", err)
	}
	end, _, err := a.s.Commit(context.Background(), a.commitEnvelope(proof))
	if err != nil {
		a.s.t.Fatalf("commit: %v", err)
	}
	return end
}

// open unlocks for a purpose with nothing wrong.
func (s *scene) open(purpose protocol.Purpose) *attempt {
	s.t.Helper()
	a := s.newAttempt(purpose)
	a.open()
	return a
}

func (s *scene) stateIs(want protocol.LockState) {
	s.t.Helper()
	if got := protocol.LockState(s.Status().State); got != want {
		s.t.Errorf("the state is %s, want %s", got, want)
	}
}

// lockedBecause checks that nothing is open any more, and why.
func (s *scene) lockedBecause(want Reason) {
	s.t.Helper()
	s.stateIs(protocol.Locked)
	if got := Reason(s.Status().LastRelockReason); got != want {
		s.t.Errorf("locked because of %q, want %q", got, want)
	}
	if held := s.disks.held(); len(held) > 0 {
		s.t.Errorf("disks %v are still open", held)
	}
	if n := s.shares.running(); n != 0 {
		s.t.Errorf("%d share servers still run", n)
	}
	if _, ok := s.Lease(); ok {
		s.t.Error("there is still a lease")
	}
}
