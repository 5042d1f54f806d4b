package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/agent/internal/localapi"
	"github.com/databox-lockbox/lockbox/agent/internal/share/nfs"
	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
	"github.com/databox-lockbox/lockbox/protocol/tunnel"
)

// modeVariable makes this test binary the agent's NFS server.
const modeVariable = "AGENT_TEST_MODE"

func TestMain(m *testing.M) {
	if os.Getenv(modeVariable) == "nfs" {
		fmt.Fprintln(os.Stderr, nfs.Main())
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// image makes a small BitLocker volume.
func image(t *testing.T, path string) {
	t.Helper()
	const size = 1 << 20
	f := must(os.Create(path))
	defer f.Close()
	if err := errors.Join(f.Truncate(size), bitlocker.Format(f, size, bitlocker.FormatOptions{
		Metadata: [3]int64{128 << 10, 256 << 10, 384 << 10}, HeaderCopy: 512 << 10, ID: must(bitlocker.NewGUID(rand.Reader)),
		Protectors: []bitlocker.ProtectorKey{{ID: must(bitlocker.NewGUID(rand.Reader)), Key: must(bitlocker.GenerateExternalKey(rand.Reader))}},
		HeaderOnly: true, Rand: rand.Reader, Now: time.Now(),
	})); err != nil {
		t.Fatal(err)
	}
}

// plane is the control plane: it enrols every node and listens to it.
type plane struct {
	devicev1.UnimplementedControlServiceHandler
	devicev1.UnimplementedEnrolmentServiceHandler
	authorities *certs.Authorities
	server      *tunnel.Server
	tunnel, api string
	refuse      error // of enrolments

	mu       sync.Mutex // guards what follows
	statuses []*devicev1.NodeStatus
	records  []string
	enrolled *devicev1.EnrolRequest
}

func (p *plane) source(t *testing.T) *certs.Source {
	key := must(certs.NewKey())
	return must(certs.NewSource(key, must(p.authorities.IssueServer(must(certs.NewCSR(key)), []string{"127.0.0.1"}, time.Hour)), nil, nil))
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	a, _, err := certs.Open(filepath.Join(t.TempDir(), "authority"))
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{authorities: a}
	device, api := must(net.Listen("tcp", "127.0.0.1:0")), must(net.Listen("tcp", "127.0.0.1:0"))
	p.tunnel, p.api = device.Addr().String(), api.Addr().String()
	none := func(string) bool { return false }
	p.server = tunnel.NewServer(tunnel.ServerConfig{
		TLS: certs.DeviceListener(p.source(t), a.Roots().Devices, none),
		Identify: func(s tls.ConnectionState) (protocol.NodeID, string, error) {
			id, fingerprint, _, err := certs.DeviceFromState(s)
			return id, fingerprint, err
		},
		Handler: func(*tunnel.Peer) http.Handler { return p.handler(t) },
	})
	srv := &http.Server{Handler: p.handler(t), ReadHeaderTimeout: time.Second}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		if err := p.server.Serve(ctx, device); err != nil {
			t.Error(err)
		}
	})
	all.Go(func() { srv.Serve(tls.NewListener(api, certs.APIListener(p.source(t), a.Roots().People, none))) })
	t.Cleanup(func() {
		cancel()
		srv.Close()
		all.Wait()
	})
	return p
}

func (p *plane) handler(t *testing.T) http.Handler {
	srv := rpc.NewServer(func(_ context.Context, procedure string, err error) { t.Logf("%s: %v", procedure, err) })
	devicev1.RegisterControlServiceHandler(srv, p)
	devicev1.RegisterEnrolmentServiceHandler(srv, p)
	mux := http.NewServeMux()
	rpc.Mount(mux, srv)
	return mux
}

func (p *plane) Enrol(_ context.Context, r *devicev1.EnrolRequest) (*devicev1.EnrolResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enrolled = r
	if p.refuse != nil {
		return nil, p.refuse
	}
	node := protocol.NodeID{Serial: protocol.DeviceSerial(r.Serial), Node: int(r.Node)}
	chain, err := p.authorities.IssueDevice(r.Csr, node, time.Hour)
	if err != nil {
		return nil, err
	}
	host, err := p.authorities.CertifyHost(r.SshHostKey, node, time.Hour)
	return &devicev1.EnrolResponse{
		Chain: chain, ServerRoots: [][]byte{p.authorities.Roots().Servers.Raw}, TunnelAddress: p.tunnel, SshHostCertificate: host, Order: "ORD-1001",
	}, err
}

func (p *plane) Heartbeat(_ context.Context, r *devicev1.HeartbeatRequest) (*devicev1.HeartbeatResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.statuses = append(p.statuses, r.Status)
	return &devicev1.HeartbeatResponse{}, nil
}

func (p *plane) AppendRecords(_ context.Context, r *devicev1.AppendRecordsRequest) (*devicev1.AppendRecordsResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, one := range r.Records {
		p.records = append(p.records, string(must(auditlog.ParseRecord(one.Record)).Operation))
	}
	return &devicev1.AppendRecordsResponse{Acked: int64(len(p.records))}, nil
}

func (p *plane) has(operation auditlog.Operation) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.records, string(operation))
}

func (p *plane) token() string {
	return "lbxjoin.id1.secret." + strings.TrimPrefix(certs.Pin(p.authorities.Roots().Servers), "sha256:")
}

// config is that of a node with one bare disk.
func nodeConfig(t *testing.T, serial string) Config {
	t.Helper()
	dir := must(os.MkdirTemp("", "agent")) // short, for the socket
	t.Cleanup(func() { os.RemoveAll(dir) })
	image(t, filepath.Join(dir, "disk1.img"))
	c := DefaultConfig()
	c.Serial, c.StateDir, c.RunDir, c.Bare = serial, filepath.Join(dir, "state"), filepath.Join(dir, "run"), true
	c.Disks = []DiskConfig{{ID: "disk1", Image: filepath.Join(dir, "disk1.img")}}
	c.Lock.DeadMan = 2 * time.Second
	c.Reconnect = ReconnectConfig{Min: 10 * time.Millisecond, Max: 50 * time.Millisecond}
	return c
}

// alice is the customer of all trust policies.
var alice, service, logKey = must(certs.NewKey()), must(certs.NewKey()), must(certs.NewKey())

// trustPolicy signs a trust policy: version 1, or the successor of old.
func trustPolicy(t *testing.T, order protocol.OrderID, old *approval.Policy) []byte {
	t.Helper()
	signer := must(ssh.NewSignerFromKey(alice))
	p := approval.TrustPolicy{
		TenantID: "contoso", OrderID: order, Version: 1,
		Keys: []approval.Key{must(approval.NewSSHKey("alice-laptop", "alice@contoso.example", string(ssh.MarshalAuthorizedKey(signer.PublicKey()))))},
		Rules: []approval.Rule{{
			Action: approval.UnlockDatabox, Service: true, MaxDuration: 12 * 3600,
			CustomerGroups: []approval.Group{{Name: "owners", Threshold: 1, Keys: []string{"alice-laptop"}}},
		}},
		ServiceKeys: [][]byte{service.Public().(ed25519.PublicKey)},
		LogKey:      must(auditlog.VerifierKey("databox-lockbox/test", logKey.Public().(ed25519.PublicKey))), NoRecovery: true,
	}
	if old != nil {
		p.Version, p.PreviousDigest = old.Document().Version+1, old.Digest()
	}
	e := must(approval.NewEnvelope(p))
	if err := e.SignSSH("alice-laptop", signer); err != nil {
		t.Fatal(err)
	}
	return must(e.Encode())
}

// start runs an agent until the test, or stop, ends it.
func start(t *testing.T, cfg Config) (a *Agent, stop func()) {
	t.Helper()
	a, err := New(cfg, Options{Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return a, stop
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for range 1000 {
		if holds() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s: not within ten seconds", what)
}

func TestEnrolAndRun(t *testing.T) {
	p := newPlane(t)
	cfg := nodeConfig(t, "DBX0001")
	policy := trustPolicy(t, "ORD-1001", nil)
	if err := Enroll(t.Context(), cfg, p.api, p.token(), policy); err != nil {
		t.Fatal(err)
	}
	if d := p.enrolled.Disks; len(d) != 1 || d[0].State != "locked" || d[0].Method != bitlocker.AES128XTS.String() || d[0].VolumeGuid == "" {
		t.Errorf("disks told at enrolment: %v", d)
	}
	a, stop := start(t, cfg)
	eventually(t, "a heartbeat", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.statuses) > 0 })
	s := a.Status()
	if s.State != string(protocol.Locked) || s.Serial != "DBX0001" || s.TrustPolicyVersion != 1 || s.Disks[0].State != "locked" || s.AgentVersion != Version {
		t.Errorf("status: %v", s)
	}
	peer, ok := p.server.Peer(cfg.NodeID())
	if !ok {
		t.Fatal("not connected")
	}
	node := devicev1.NewNodeServiceClient(rpc.NewClient(peer.Client(), tunnel.BaseURL))
	digest := "sha256:" + strings.Repeat("0", 64)
	var challenge *devicev1.ChallengeResponse
	eventually(t, "a challenge", func() bool { // refused while the agent is still starting
		var err error
		challenge, err = node.Challenge(t.Context(), &devicev1.ChallengeRequest{SubjectDigest: digest, Purpose: string(protocol.SupportAccess)})
		return err == nil
	})
	stream := must(node.Unlock(t.Context(), &devicev1.UnlockRequest{Order: challenge.Challenge}))
	var refusal error
	for refusal == nil {
		_, refusal = stream.Receive()
	}
	if err := refusal; protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Errorf("what is no order: %v", err)
	}
	if s, err := localapi.NewClient(cfg.Socket()).Lock(t.Context()); err != nil || s.State != string(protocol.Locked) {
		t.Errorf("the local lock command: %v, %v", s, err)
	}
	ca := [][]byte{p.authorities.SSHUserAuthority().Marshal()}
	enabled, err := node.EnableSession(t.Context(), &devicev1.EnableSessionRequest{
		Session: "ses-1", Engineer: "erin@provider.example", SshKey: "SHA256:x", Ticket: "SR-2001", Expires: time.Now().Add(time.Hour).Unix(), CaKeys: ca,
	})
	if err != nil || len(enabled.HostKey) == 0 || len(a.Status().Sessions) != 1 {
		t.Errorf("EnableSession: %v, %v", enabled, err)
	}
	if r, err := node.DisableSession(t.Context(), &devicev1.DisableSessionRequest{Session: "ses-1"}); err != nil || len(r.Status.Sessions) != 0 {
		t.Errorf("DisableSession: %v, %v", r, err)
	}
	for _, op := range []auditlog.Operation{auditlog.OpInstallTrustPolicy, auditlog.OpStartAgent, auditlog.OpRefuseUnlock, auditlog.OpEnableSession, auditlog.OpDisableSession} {
		eventually(t, string(op)+" in the activity log", func() bool { return p.has(op) })
	}
	stop()
	if _, err := os.Stat(cfg.Socket()); err == nil {
		t.Error("the local socket is left behind")
	}
	if _, err := localapi.NewClient(cfg.Socket()).Status(t.Context()); err == nil {
		t.Error("the agent still answers")
	}
	start(t, cfg) // everything was given back
	eventually(t, "the end, recorded", func() bool { return p.has(auditlog.OpStopAgent) })
}

func TestNewRefuses(t *testing.T) {
	p := newPlane(t)
	cfg := nodeConfig(t, "DBX0001")
	if _, err := New(cfg, Options{}); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("not enrolled: %v", err)
	}
	if err := Enroll(t.Context(), cfg, p.api, p.token(), trustPolicy(t, "ORD-1001", nil)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"another serial": {func(c *Config) { c.Serial = "DBX0002" }, "belongs to node DBX0001/1"},
		"another node":   {func(c *Config) { c.Node = 2 }, "belongs to node DBX0001/1"},
		"no disks":       {func(c *Config) { c.Disks = nil }, "no disk is given"},
		"bad address":    {func(c *Config) { c.ControlPlane.TunnelAddress = "nowhere" }, "nowhere"},
	} {
		other := cfg
		c.change(&other)
		if _, err := New(other, Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	a, stop := start(t, cfg)
	if _, err := New(cfg, Options{}); protocol.CodeOf(err) != protocol.CodeBusy {
		t.Errorf("a second agent: %v", err)
	}
	eventually(t, "ready", func() bool { return a.Status().State == string(protocol.Locked) })
	stop()

	if err := os.WriteFile(filepath.Join(cfg.StateDir, "trust-policy"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg, Options{}); err == nil || !strings.Contains(err.Error(), "trust policy") {
		t.Errorf("a damaged trust policy: %v", err)
	}
}

func TestEnrolmentThatFailsInstallsNothing(t *testing.T) {
	p, other := newPlane(t), newPlane(t)
	cfg := nodeConfig(t, "DBX0001")
	policy := trustPolicy(t, "ORD-1001", nil)
	nothing := func(name string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		dir := must(state.Open(cfg.StateDir))
		defer dir.Close()
		if _, ok := dir.Identity(); ok || dir.TrustPolicy() != nil {
			t.Errorf("%s: something was installed", name)
		}
	}
	nothing("unsigned policy", Enroll(t.Context(), cfg, p.api, p.token(), []byte(`{}`)))
	nothing("wrong pin", Enroll(t.Context(), cfg, p.api, other.token(), policy))
	p.refuse = protocol.Errorf(protocol.CodeTokenUsed, "used")
	nothing("used token", Enroll(t.Context(), cfg, p.api, p.token(), policy))
	p.refuse = nil
	if err := Enroll(t.Context(), cfg, p.api, p.token(), append(policy, '\n')); err != nil {
		t.Fatal(err)
	}
	if err := Enroll(t.Context(), cfg, p.api, p.token(), trustPolicy(t, "ORD-1002", nil)); protocol.CodeOf(err) != protocol.CodeConflict {
		t.Errorf("another policy: %v", err)
	}
	if err := Enroll(t.Context(), cfg, p.api, p.token(), policy); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestTrustPolicyIsReplacedByItsSuccessorOnly(t *testing.T) {
	p := newPlane(t)
	cfg := nodeConfig(t, "DBX0001")
	first := trustPolicy(t, "ORD-1001", nil)
	if err := Enroll(t.Context(), cfg, p.api, p.token(), first); err != nil {
		t.Fatal(err)
	}
	a, stop := start(t, cfg)
	second := trustPolicy(t, "ORD-1001", must(approval.VerifyPolicyV1(first)))
	for name, bad := range map[string][]byte{
		"the same": first, "another": trustPolicy(t, "ORD-1002", nil), "nonsense": []byte("x"), "empty": nil,
		"on two lines": append(second, append([]byte("\n"), second...)...),
	} {
		if _, _, err := a.replacePolicy(t.Context(), bad); err == nil {
			t.Errorf("%s was installed", name)
		}
	}
	version, digest, err := a.replacePolicy(t.Context(), second)
	if err != nil || version != 2 {
		t.Fatalf("version %d, %v", version, err)
	}
	if s := a.Status(); s.TrustPolicyVersion != 2 || s.TrustPolicyDigest != string(digest) {
		t.Errorf("status: %v", s)
	}
	eventually(t, "in the activity log", func() bool { return p.has(auditlog.OpReplaceTrustPolicy) })
	stop()
	if err := Enroll(t.Context(), cfg, p.api, p.token(), first); err != nil || p.enrolled.TrustPolicyDigest != string(digest) {
		t.Errorf("enrolling again with version 1: %v, %s", err, p.enrolled.TrustPolicyDigest)
	}
	a, _ = start(t, cfg)
	if a.Status().TrustPolicyVersion != 2 {
		t.Error("the policy went back to version 1")
	}
}

// A policy that was replaced before its device enrols comes as the chain that led
// to it; the recovery key's use is recorded by the device itself.
func TestAChainOfPoliciesIsInstalled(t *testing.T) {
	p := newPlane(t)
	cfg := nodeConfig(t, "DBX0001")
	first := trustPolicy(t, "ORD-1001", nil)
	second := trustPolicy(t, "ORD-1001", must(approval.VerifyPolicyV1(first)))
	chain := slices.Concat(first, []byte("\n"), second, []byte("\n"))
	last := must(approval.VerifyPolicies(first, second))
	digest, text, err := describePolicy(chain)
	if err != nil || digest != string(last.Digest()) || !strings.Contains(text, "version 2") {
		t.Errorf("%s, %v:\n%s", digest, err, text)
	}
	for name, bad := range map[string][]byte{
		"the wrong way round": slices.Concat(second, []byte("\n"), first), "without the first": second,
		"of two orders": slices.Concat(trustPolicy(t, "ORD-1002", nil), []byte("\n"), second),
	} {
		if err := Enroll(t.Context(), cfg, p.api, p.token(), bad); err == nil {
			t.Errorf("%s: it was installed", name)
		}
	}
	if err := Enroll(t.Context(), cfg, p.api, p.token(), chain); err != nil || p.enrolled.TrustPolicyDigest != string(last.Digest()) {
		t.Fatalf("%v, %s", err, p.enrolled.TrustPolicyDigest)
	}
	a, _ := start(t, cfg)
	third := last.Document()
	third.Version, third.PreviousDigest, third.NoRecovery = 3, last.Digest(), false
	safe := must(ssh.NewSignerFromKey(must(certs.NewKey())))
	recovery := must(approval.NewSSHKey("safe", "safe@contoso.example", string(ssh.MarshalAuthorizedKey(safe.PublicKey()))))
	third.RecoveryKey = &recovery
	sign := func(doc approval.TrustPolicy, id string, signer ssh.Signer) []byte {
		e := must(approval.NewEnvelope(doc))
		if err := e.SignSSH(id, signer); err != nil {
			t.Fatal(err)
		}
		return must(e.Encode())
	}
	if _, _, err := a.replacePolicy(t.Context(), sign(third, "safe", safe)); protocol.CodeOf(err) != protocol.CodeSignerUnknown {
		t.Errorf("a recovery key named itself: %v", err)
	}
	_, named, err := a.replacePolicy(t.Context(), sign(third, "alice-laptop", must(ssh.NewSignerFromKey(alice))))
	if err != nil {
		t.Fatal(err)
	}
	fourth := third
	fourth.Version, fourth.PreviousDigest = 4, named
	if version, _, err := a.replacePolicy(t.Context(), sign(fourth, "safe", safe)); err != nil || version != 4 {
		t.Fatalf("version %d, %v", version, err)
	}
	eventually(t, "the recovery is in the activity log", func() bool { return p.has(auditlog.OpRecoverTrustPolicy) })
}

func TestDescribePolicy(t *testing.T) {
	policy := trustPolicy(t, "ORD-1001", nil)
	digest, text, err := describePolicy(policy)
	if err != nil || digest != string(must(approval.VerifyPolicyV1(policy)).Digest()) {
		t.Errorf("%s, %v", digest, err)
	}
	if !strings.HasPrefix(text, "No recovery key") {
		t.Errorf("it is not the first thing to read:\n%s", text)
	}
	for _, want := range []string{"version 1", "ORD-1001", "1 of customer group owners: alice@contoso.example"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if _, _, err := describePolicy([]byte("{}")); err == nil {
		t.Error("an unsigned policy is described")
	}
}

// TestDescribeShowsAllThatIsTrusted: whoever compares must see a key that somebody
// slipped in.
func TestDescribeShowsAllThatIsTrusted(t *testing.T) {
	doc := must(approval.VerifyPolicyV1(trustPolicy(t, "ORD-1001", nil))).Document()
	spki := []byte("a passkey's SubjectPublicKeyInfo")
	vault := doc.Keys[0]
	vault.ID, vault.Person = "vault", "mallory@example.com"
	doc.RecoveryKey = &vault
	doc.Keys = append(doc.Keys, approval.Key{
		ID: "bob-passkey", Person: "bob@contoso.example", Kind: approval.WebAuthnKey,
		PublicKey: base64.StdEncoding.EncodeToString(spki), RPID: "contoso.example", Origins: []string{"https://portal.contoso.example"},
	})
	doc.Exclusions = []approval.ExclusionRule{{
		Kind: approval.BreakGlass, Access: approval.Delete, MaxDuration: 3600,
		ProviderGroups: []approval.Group{{Name: "duty managers", Threshold: 1, Keys: []string{"bob-passkey"}}},
	}}
	text := describe(doc)
	first, _, _ := strings.Cut(text, "Trust policy version")
	for what, where := range map[string]string{"MAY REPLACE THIS POLICY ALONE": first, "mallory@example.com, ssh SHA256:": first} {
		if !strings.Contains(where, what) {
			t.Errorf("no %q at the beginning of:\n%s", what, text)
		}
	}
	for _, want := range []string{
		"alice@contoso.example, ssh " + doc.Keys[0].Fingerprint(),
		"bob@contoso.example, webauthn " + string(approval.DigestOf(spki)), "https://portal.contoso.example by contoso.example",
		"WITHOUT THE CUSTOMER, for break-glass, delete, at most 1h0m0s", "1 of provider group duty managers: bob@contoso.example",
		"Service key " + string(approval.KeyFingerprint(doc.ServiceKeys[0])), "Log key " + doc.LogKey,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
}

// TestManyInOneProcess: the simulator's fleets run so.
func TestManyInOneProcess(t *testing.T) {
	p := newPlane(t)
	for _, serial := range []string{"DBX0001", "DBX0002", "DBX0003"} {
		cfg := nodeConfig(t, serial)
		if err := Enroll(t.Context(), cfg, p.api, p.token(), trustPolicy(t, protocol.OrderID("ORD-"+serial), nil)); err != nil {
			t.Fatal(err)
		}
		start(t, cfg)
	}
	eventually(t, "three devices", func() bool { return len(p.server.Peers()) == 3 })
}
