package lockbox_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"mime"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/configs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func TestMain(m *testing.M) {
	// Every random story has a store and a device of its own.
	if err := flag.Set("rapid.checks", "8"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// clock is a clock that tests set.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func (c *clock) advance(d time.Duration) { c.now = c.now.Add(d) }

// world is a control plane as far up as lockbox, with a device whose copy job
// has halted and a ticket of Erin's about it.
type world struct {
	*orderstest.World
	t       testing.TB
	lockbox *lockbox.Service
	notify  *notify.Service
	outbox  string
	ticket  string
	config  lockbox.Config
}

func newWorld(t testing.TB, nodes int, now func() time.Time, change ...func(*lockbox.Config)) *world {
	t.Helper()
	w := &world{World: orderstest.New(t, nodes, keys{}, now), t: t, outbox: filepath.Join(t.TempDir(), "outbox")}
	rules, err := policy.Load(configs.JIT())
	if err != nil {
		t.Fatal(err)
	}
	if w.notify, err = notify.New(notify.Config{Store: w.Store, Audit: w.Audit, Webhooks: notify.Webhooks{Key: make([]byte, 32)}, Dir: w.outbox, Now: now, Logger: zerolog.Nop()}); err != nil {
		t.Fatal(err)
	}
	w.config = lockbox.Config{
		Store: w.Store, Audit: w.Audit, Custody: w.Custody, Notify: w.notify, Orders: w.Orders, Nodes: w.World, Authority: w.Authority,
		Policies: rules, Now: now, Logger: zerolog.Nop(),
	}
	for _, f := range change {
		f(&w.config)
	}
	w.lockbox = lockbox.New(w.config)
	w.PolicyReplaced, w.Reach = w.lockbox.PolicyReplaced, w.lockbox.Reach
	return w
}

// halted is a world in which the story has come to the ticket.
func halted(t testing.TB, nodes int, now func() time.Time, change ...func(*lockbox.Config)) *world {
	t.Helper()
	w := newWorld(t, nodes, now, change...)
	w.ToDatacenter()
	w.Halt()
	w.ticket = w.Ticket()
	return w
}

// as is c, signed in.
func (w *world) as(c auth.Caller) auth.Caller { return orderstest.SignedIn(c, w.Now()) }

func (w *world) ask() *lockboxv1.CreateRequestRequest {
	return &lockboxv1.CreateRequestRequest{
		Action: policy.ActionUnlock, Serial: orderstest.Serial, Ticket: w.ticket,
		ReasonCode: "copied-to-wrong-folder", Justification: "move the misplaced files",
	}
}

func (w *world) create() *lockboxv1.Request {
	w.t.Helper()
	r, err := w.lockbox.CreateRequest(w.t.Context(), w.as(orderstest.Erin), w.ask())
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// decide drafts, signs and submits a decision.
func (w *world) decide(who auth.Caller, id, verdict string) (*lockboxv1.Request, error) {
	w.t.Helper()
	doc, err := w.lockbox.DraftDecision(w.t.Context(), w.as(who), &lockboxv1.DraftDecisionRequest{Id: id, Verdict: verdict})
	if err != nil {
		return nil, err
	}
	return w.lockbox.Decide(w.t.Context(), w.as(who), &lockboxv1.DecideRequest{Id: id, Envelope: w.Sign(who, doc)})
}

func (w *world) mustDecide(who auth.Caller, id, verdict string) *lockboxv1.Request {
	w.t.Helper()
	r, err := w.decide(who, id, verdict)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// approved is a request that everybody approved.
func (w *world) approved() *lockboxv1.Request {
	w.t.Helper()
	r := w.create()
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	return w.mustDecide(orderstest.Olga, r.Id, "approve")
}

func (w *world) execute(who auth.Caller, id string) error {
	return w.lockbox.ExecuteRequest(w.t.Context(), w.as(who), &lockboxv1.ExecuteRequestRequest{Id: id}, func(*lockboxv1.ProgressEvent) {})
}

func (w *world) get(id string) *lockboxv1.Request {
	w.t.Helper()
	r, err := w.lockbox.GetRequest(context.Background(), orderstest.Admin, &lockboxv1.GetRequestRequest{Id: id})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// wantStatus fails unless the request is in that state.
func (w *world) wantStatus(id string, want lockbox.State) {
	w.t.Helper()
	if got := w.get(id).Status; got != string(want) {
		w.t.Errorf("the request is %s, want %s", got, want)
	}
}

// wantNodes fails unless all nodes are in that state.
func (w *world) wantNodes(want protocol.LockState) {
	w.t.Helper()
	for _, n := range w.Nodes {
		if got := n.State(); got != want {
			w.t.Errorf("node %s is %s, want %s", n.ID, got, want)
		}
	}
}

func (w *world) session() *lockboxv1.Session {
	w.t.Helper()
	s, err := w.lockbox.EnableSession(w.t.Context(), w.as(orderstest.Erin), &lockboxv1.EnableSessionRequest{Serial: orderstest.Serial, Ticket: w.ticket})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// run runs the timers until stop is called.
func (w *world) run() (stop func()) {
	w.t.Helper()
	return w.start(w.lockbox.RunTimers)
}

func (w *world) start(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	return func() {
		w.t.Helper()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			w.t.Errorf("stopped with %v", err)
		}
	}
}

// deliver has the outbox delivered, within the test's bubble.
func (w *world) deliver() {
	w.t.Helper()
	stop := w.start(w.notify.Run)
	time.Sleep(time.Minute)
	synctest.Wait()
	stop()
}

// mails are the titles and texts of the mails to somebody.
func (w *world) mails(to string) []string {
	w.t.Helper()
	files, err := filepath.Glob(filepath.Join(w.outbox, "*.eml"))
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			w.t.Fatal(err)
		}
		m, err := mail.ReadMessage(bytes.NewReader(data))
		if err != nil {
			w.t.Fatal(err)
		}
		if strings.Contains(m.Header.Get("To"), to) {
			title, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
			if err != nil {
				w.t.Fatal(err)
			}
			out = append(out, title+"\n"+string(data))
		}
	}
	return out
}

func wantCode(t testing.TB, err error, code protocol.Code) {
	t.Helper()
	if protocol.CodeOf(err) != code {
		t.Errorf("got %v, want code %q", err, code)
	}
}

func twoGroups() *lockboxv1.DraftTrustPolicyRequest {
	return &lockboxv1.DraftTrustPolicyRequest{CustomerGroups: []*lockboxv1.PolicyGroup{
		{Name: "owners", Threshold: 1, People: []string{string(orderstest.Olga.Person)}},
		{Name: "security", Threshold: 1, People: []string{string(orderstest.Adam.Person)}},
	}}
}

// document wraps a decision made by hand for signing.
func document(t testing.TB, d approval.Decision) *lockboxv1.Document {
	t.Helper()
	payload, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return &lockboxv1.Document{Payload: payload, PayloadType: string(approval.KindDecision)}
}
