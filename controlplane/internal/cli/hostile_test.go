package cli_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/controlplane/internal/cli"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
)

// liar is a control plane that holds every key of the real one. It asks that
// one, and changes what it likes in the answers.
type liar struct {
	lockboxv1.UnimplementedRequestServiceHandler
	lockboxv1.UnimplementedOrderServiceHandler
	lockboxv1.UnimplementedAuditServiceHandler
	lockboxv1.UnimplementedAccountServiceHandler
	truth *client.Client

	request    func(*lockboxv1.Request)
	policy     func(*lockboxv1.Document)
	checkpoint func(*lockboxv1.GetCheckpointRequest, *lockboxv1.GetCheckpointResponse)
	draft      func(*approval.TrustPolicy)
	pending    func(*lockboxv1.Document)
	decided    [][]byte
	signed     [][]byte // trust policies
}

func (l *liar) GetRequest(ctx context.Context, in *lockboxv1.GetRequestRequest) (*lockboxv1.Request, error) {
	r, err := l.truth.Requests.GetRequest(ctx, in)
	if err == nil && l.request != nil {
		l.request(r)
	}
	return r, err
}

func (l *liar) DraftDecision(context.Context, *lockboxv1.DraftDecisionRequest) (*lockboxv1.Document, error) {
	return &lockboxv1.Document{Payload: []byte("what nobody must sign")}, nil
}

func (l *liar) Decide(ctx context.Context, in *lockboxv1.DecideRequest) (*lockboxv1.Request, error) {
	l.decided = append(l.decided, in.Envelope)
	return l.truth.Requests.GetRequest(ctx, &lockboxv1.GetRequestRequest{Id: in.Id})
}

func (l *liar) GetTrustPolicy(ctx context.Context, in *lockboxv1.GetTrustPolicyRequest) (*lockboxv1.Document, error) {
	d, err := l.truth.Orders.GetTrustPolicy(ctx, in)
	if err == nil && l.policy != nil {
		l.policy(d)
	}
	return d, err
}

func (l *liar) GetCheckpoint(ctx context.Context, in *lockboxv1.GetCheckpointRequest) (*lockboxv1.GetCheckpointResponse, error) {
	c, err := l.truth.Audit.GetCheckpoint(ctx, in)
	if err == nil && l.checkpoint != nil {
		l.checkpoint(in, c)
	}
	return c, err
}

// lie serves l under the real server's root, and has short's home name it.
func (w *world) lie(t *testing.T, l *liar, short string) {
	t.Helper()
	home := filepath.Join(w.dir, short)
	id, err := client.LoadIdentity(home)
	if err != nil {
		t.Fatal(err)
	}
	if l.truth, err = client.New(id); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.truth.Close)
	s := rpc.NewServer(func(context.Context, string, error) {})
	lockboxv1.RegisterRequestServiceHandler(s, l)
	lockboxv1.RegisterOrderServiceHandler(s, l)
	lockboxv1.RegisterAuditServiceHandler(s, l)
	lockboxv1.RegisterAccountServiceHandler(s, l)
	mux := http.NewServeMux()
	rpc.Mount(mux, s)
	config := certs.APIListener(w.serverCert(t), w.authorities(t).Roots().People, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux}
	go server.Serve(tls.NewListener(ln, config))
	t.Cleanup(func() { server.Close() })
	away := *id
	away.Server = strings.Replace(ln.Addr().String(), "127.0.0.1", "localhost", 1)
	if err := away.Save(home); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := id.Save(home); err != nil {
			t.Error(err)
		}
	})
}

func (w *world) authorities(t *testing.T) *certs.Authorities {
	t.Helper()
	a, _, err := certs.Open(w.cfg.AuthorityDir())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (w *world) serverCert(t *testing.T) *certs.Source {
	t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := certs.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := w.authorities(t).IssueServer(csr, []string{"localhost"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s, err := certs.NewSource(key, chain, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// result is how a command ended.
type result struct {
	code     int
	out, err string
}

// lockbox runs a command as somebody, in this process.
func (w *world) lockbox(t *testing.T, short, input string, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	code := cli.Run(t.Context(), append([]string{"--home", filepath.Join(w.dir, short)}, args...), strings.NewReader(input), &out, &errOut)
	return result{code, out.String(), errOut.String()}
}

func (w *world) must(t *testing.T, short string, args ...string) string {
	t.Helper()
	r := w.lockbox(t, short, "", args...)
	if r.code != 0 {
		t.Fatalf("%v exited with %d: %s", args, r.code, r.err)
	}
	return r.out
}

func (w *world) key(short string) string { return filepath.Join(w.dir, short+".key") }

// waiting is a world in which request 1 waits for the customer. Olga signed the
// trust policy and denied an earlier request, so she has seen the log; Oscar has
// seen nothing.
func waiting(t *testing.T) *world {
	t.Helper()
	w, err := start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.stop)
	w.must(t, "admin", "tenant", "create", "contoso", "--name", "Contoso")
	w.must(t, "admin", "subscription", "create", "6a0e3c1e-9b0b-4c8e-8d3a-0c6a4a7d9f01", "--tenant", "contoso", "--support-plan", "Developer")
	w.must(t, "admin", "tenant", "enable-lockbox", "contoso")
	for _, p := range [][3]string{
		{"olga@contoso.example", "owner", "contoso"}, {"oscar@contoso.example", "approver", "contoso"},
		{"ian@provider.example", "internal-approver", ""}, {"erin@provider.example", "engineer", ""},
	} {
		if err := w.person(p[0], p[1], p[2]); err != nil {
			t.Fatal(err)
		}
	}
	w.must(t, "olga", "order", "place", order, "--subscription", "6a0e3c1e-9b0b-4c8e-8d3a-0c6a4a7d9f01", "--destination", "contosodata=file:///srv/blobs", "--share", share)
	file := filepath.Join(w.dir, "device.json")
	if err := w.prepared(file); err != nil {
		t.Fatal(err)
	}
	w.must(t, "admin", "order", "prepare", order, "--from", file)
	w.must(t, "olga", "trust-policy", "sign", order, "--without-recovery-key", "--key", w.key("olga"), "--yes")
	for _, stage := range []string{"Dispatched", "Delivered", "PickedUp", "AtAzureDC"} {
		w.must(t, "admin", "order", "advance", order, stage)
	}
	token := filepath.Join(w.dir, "join")
	w.must(t, "admin", "device", "join-token", order, serial, "--token-out", token)
	data, err := os.ReadFile(token)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.device(strings.TrimSpace(string(data))); err != nil {
		t.Fatal(err)
	}
	w.must(t, "olga", "ticket", "file", order, "--title", "upload halted")
	w.must(t, "admin", "ticket", "assign", "SR-2001", "erin@provider.example")
	for _, n := range []string{"1", "2"} {
		w.must(t, "erin", "request", "create", "--device", serial, "--ticket", "SR-2001", "--reason-code", "copied-to-wrong-folder", "--justification", "wrong folder")
		w.must(t, "ian", "request", "approve", n, "--key", w.key("ian"), "--yes")
		if n == "1" {
			w.must(t, "olga", "request", "deny", "1", "--key", w.key("olga"), "--yes")
		}
	}
	return w
}

func TestAControlPlaneThatLiesIsFoundOut(t *testing.T) {
	w := waiting(t)
	logKey, err := os.ReadFile(w.cfg.LogKeyPath())
	if err != nil {
		t.Fatal(err)
	}
	key, err := certs.DecodeKey(logKey)
	if err != nil {
		t.Fatal(err)
	}
	resign := func(out *lockboxv1.GetCheckpointResponse, change func(*auditlog.Checkpoint)) {
		name, _, _ := strings.Cut(out.VerifierKey, "+")
		s, err := auditlog.NewSigner(name, key)
		if err != nil {
			t.Error(err)
			return
		}
		c := auditlog.Checkpoint{Origin: name, Size: 1000, Hash: tlog.Hash{1}}
		change(&c)
		if out.Checkpoint, err = c.Sign(s); err != nil {
			t.Error(err)
		}
	}
	for _, tt := range []struct {
		name string
		who  string
		lies liar
		want string // in the message; "" for the control
	}{
		{name: "control", who: "olga"},
		{"another statement's words beside the true bytes", "olga", liar{request: func(r *lockboxv1.Request) { r.Engineer, r.Access = "nobody@x", "read-only" }}, ""},
		{"a statement that cannot be read", "olga", liar{request: func(r *lockboxv1.Request) { r.Statement.Payload[10] ^= 1 }}, "tell your security team"},
		{"a statement under another trust policy", "olga", liar{
			request: func(r *lockboxv1.Request) {
				s, err := approval.ParseStatement(r.Statement.Payload)
				if err != nil {
					t.Error(err)
				}
				s.PolicyDigest = approval.DigestOf([]byte("another"))
				if r.Statement.Payload, err = s.Encode(); err != nil {
					t.Error(err)
				}
			},
			policy: func(d *lockboxv1.Document) { d.Digest = string(approval.DigestOf([]byte("another"))) },
		}, ""},
		{"another trust policy for the same digest", "oscar", liar{policy: func(d *lockboxv1.Document) {
			p, err := approval.ParseTrustPolicy(d.Payload)
			if err != nil {
				t.Error(err)
			}
			p.Rules[0].MaxDuration--
			if d.Payload, err = p.Encode(); err != nil {
				t.Error(err)
			}
		}}, "do not sign anything"},
		{"a fork of the log", "olga", liar{checkpoint: func(_ *lockboxv1.GetCheckpointRequest, out *lockboxv1.GetCheckpointResponse) {
			resign(out, func(*auditlog.Checkpoint) {})
		}}, "not the one you saw before"},
		{"a shorter log", "olga", liar{checkpoint: func(_ *lockboxv1.GetCheckpointRequest, out *lockboxv1.GetCheckpointResponse) {
			out.Consistency = nil
			resign(out, func(c *auditlog.Checkpoint) { c.Size = 3 })
		}}, "not the one you saw before"},
		{"the log of another key", "olga", liar{checkpoint: func(_ *lockboxv1.GetCheckpointRequest, out *lockboxv1.GetCheckpointResponse) {
			out.Checkpoint = bytes.Replace(out.Checkpoint, []byte("— databox"), []byte("— Databox"), 1)
		}}, "not signed by the log's key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := tt.lies
			w.lie(t, &l, tt.who)
			r := w.lockbox(t, tt.who, "", "request", "approve", "2", "--key", w.key(tt.who), "--yes")
			switch {
			case tt.name == "a statement under another trust policy":
				if r.code == 0 || len(l.decided) > 0 {
					t.Errorf("signed: %+v", r)
				}
			case tt.want == "":
				if r.code != 0 || len(l.decided) != 1 {
					t.Errorf("not signed: %+v", r)
				}
				if strings.Contains(r.err, "nobody@x") {
					t.Errorf("before signing, the words of the control plane were shown: %s", r.err)
				}
			case r.code == 0 || len(l.decided) > 0 || !strings.Contains(r.err, tt.want):
				t.Errorf("signed %d, said %+v", len(l.decided), r)
			}
		})
	}
}

// What is shown before signing holds the bytes that are signed, and nothing else
// is signed.
func TestTheBytesShownAreTheBytesSigned(t *testing.T) {
	w := waiting(t)
	l := &liar{}
	w.lie(t, l, "olga")
	r := w.lockbox(t, "olga", "yes\n", "request", "approve", "2", "--key", w.key("olga"), "--for", "2h", "--reason", "fine")
	if r.code != 0 || len(l.decided) != 1 {
		t.Fatalf("%+v", r)
	}
	e, err := approval.ParseEnvelope(l.decided[0])
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.err, "\n\n"+string(e.Payload)+"\n\n") {
		t.Errorf("signed %s, shown %s", e.Payload, r.err)
	}
	d, err := approval.ParseDecision(e.Payload)
	truth, err2 := l.truth.Requests.GetRequest(t.Context(), &lockboxv1.GetRequestRequest{Id: "2"})
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	if d.RequestDigest != approval.DigestOf(truth.Statement.Payload) || d.MaxDuration != 7200 || d.Verdict != approval.Approve || d.Reason != "fine" {
		t.Errorf("signed %+v", d)
	}
	for _, shown := range []string{"erin@provider.example", serial + "/1", "disk1", "read-write", "8h0m0s", string(d.RequestDigest)} {
		if !strings.Contains(r.err, shown) {
			t.Errorf("%s is not shown: %s", shown, r.err)
		}
	}
}

func TestAChangedTrustPolicyIsAcceptedByHand(t *testing.T) {
	w := waiting(t)
	kept := filepath.Join(w.dir, "olga", "trust-policies", order)
	if err := os.WriteFile(kept, []byte("sha256:"+strings.Repeat("0", 64)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	approve := []string{"request", "approve", "2", "--key", w.key("olga"), "--yes"}
	if r := w.lockbox(t, "olga", "", approve...); r.code != 1 || !strings.Contains(r.err, "lockbox trust-policy accept "+order) {
		t.Errorf("%+v", r)
	}
	if r := w.lockbox(t, "olga", "no\n", "trust-policy", "accept", order); r.code != 1 {
		t.Errorf("%+v", r)
	}
	if r := w.lockbox(t, "olga", "", approve...); r.code != 1 {
		t.Errorf("said no, and it was kept: %+v", r)
	}
	if r := w.lockbox(t, "olga", "yes\n", "--output", "json", "trust-policy", "accept", order); r.code != 0 || !json.Valid([]byte(r.out)) {
		t.Errorf("%+v", r)
	}
	w.must(t, "olga", approve...)
}
