package lockbox_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/databox-lockbox/lockbox/configs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// demanding are the built-in rules with other annotations on the permit.
func demanding(t testing.TB, annotations string) fstest.MapFS {
	t.Helper()
	files, err := policy.ReadFiles(configs.JIT())
	if err != nil {
		t.Fatal(err)
	}
	out := fstest.MapFS{}
	for name, text := range files {
		text := strings.ReplaceAll(string(text), `@approvers("Customer support lead or DevOps manager")`, annotations)
		out[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return out
}

func withRules(t testing.TB, annotations string) func(*lockbox.Config) {
	set, err := policy.Load(demanding(t, annotations))
	if err != nil {
		t.Fatal(err)
	}
	return func(c *lockbox.Config) { c.Policies = set }
}

// group puts somebody into groups.
func (w *world) group(who auth.Caller, groups ...string) {
	w.t.Helper()
	storetest.Tx(w.t, w.Store, func(ctx context.Context, tx *store.Tx) error {
		p, err := tx.Person(ctx, who.Person)
		if err != nil {
			return err
		}
		p.Groups = groups
		return tx.UpdatePerson(ctx, &p)
	})
}

func TestTheRulesApproversAreEnforced(t *testing.T) {
	w := newWorld(t, 1, time.Now, withRules(t, `@approvers("Customer support lead, DevOps manager")`))
	w.Register(ida)
	w.ToDatacenter()
	w.Halt()
	w.ticket = w.Ticket()
	_, err := w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), w.ask())
	wantCode(t, err, protocol.CodeJITBlocked)
	if !strings.Contains(err.Error(), "names nobody for") {
		t.Errorf("it says %v", err)
	}
	w.group(ida, "Customer support lead", "DevOps manager")
	r := w.create()
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	w.wantStatus(r.Id, lockbox.Initializing) // the trust policy would be content with one
	if h := w.get(r.Id).History; h[len(h)-2].What != "Still to decide" && h[len(h)-1].What != "Still to decide" {
		t.Errorf("history: %v", h)
	}
	w.mustDecide(ida, r.Id, "approve")
	w.wantStatus(r.Id, lockbox.Pending)
}

func TestGroupsAreThoseOfTheRequestsDayAndOfNow(t *testing.T) {
	w := newWorld(t, 1, time.Now, withRules(t, `@approvers("DevOps manager")`))
	w.Register(ida)
	w.ToDatacenter()
	w.Halt()
	w.ticket = w.Ticket()
	w.group(ida, "DevOps manager")
	r := w.create()
	w.group(orderstest.Ian, "DevOps manager") // too late for this one
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	w.wantStatus(r.Id, lockbox.Initializing)
	w.group(ida, "Sales")
	w.mustDecide(ida, r.Id, "approve")
	w.wantStatus(r.Id, lockbox.Initializing)
}

func TestTheRulesShortenOrRefuse(t *testing.T) {
	w := halted(t, 1, time.Now, withRules(t, `@approvers("Customer support lead") @max_duration("2h")`))
	if r := w.create(); r.DurationSeconds != 2*3600 || r.Evaluation.MaxDurationSeconds != 2*3600 {
		t.Errorf("%d seconds", r.DurationSeconds)
	}
	ask := w.ask()
	ask.DurationSeconds = 3 * 3600
	_, err := w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), ask)
	wantCode(t, err, protocol.CodeJITBlocked)
}

func TestTheRulesDemandASecondFactor(t *testing.T) {
	w := halted(t, 1, time.Now, withRules(t, `@approvers("Customer support lead") @require_mfa("true")`))
	_, err := w.lockbox.CreateRequest(t.Context(), w.as(orderstest.Erin), w.ask())
	wantCode(t, err, protocol.CodeJITBlocked)
	erin := w.as(orderstest.Erin)
	erin.MFA = true
	r, err := w.lockbox.CreateRequest(t.Context(), erin, w.ask())
	if err != nil {
		t.Fatal(err)
	}
	if !r.Evaluation.MfaDemanded || !r.Evaluation.Mfa || r.Evaluation.PolicyDigest == "" || len(r.Evaluation.Rules) != 1 {
		t.Errorf("evaluation: %v", r.Evaluation)
	}
}

// TestPoliciesChangeUnderARunningDaemon writes a good set, a bad one, and the
// first again.
func TestPoliciesChangeUnderARunningDaemon(t *testing.T) {
	dir := t.TempDir()
	write := func(files fstest.MapFS) {
		for name, f := range files {
			if err := os.WriteFile(filepath.Join(dir, name), f.Data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	first := demanding(t, `@approvers("Customer support lead")`)
	write(first)
	synctest.Test(t, func(t *testing.T) {
		w := halted(t, 1, time.Now, func(c *lockbox.Config) {
			c.PolicyFiles = os.DirFS(dir)
			set, err := policy.Load(c.PolicyFiles)
			if err != nil {
				t.Fatal(err)
			}
			c.Policies = set
		})
		stop := w.start(w.lockbox.RunPolicies)
		get := func() *lockboxv1.Policies {
			time.Sleep(7 * time.Second)
			synctest.Wait()
			p, err := w.lockbox.GetPolicies(t.Context(), orderstest.Admin, &lockboxv1.GetPoliciesRequest{})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		one := get()
		old := w.create()
		write(demanding(t, `@approvers("DevOps manager")`))
		two := get()
		if two.Digest == one.Digest || two.Refused != nil {
			t.Errorf("after a good change: %s, refused %v", two.Digest, two.Refused)
		}
		why, err := w.lockbox.WhyRequest(t.Context(), orderstest.Olga, &lockboxv1.WhyRequestRequest{Id: old.Id})
		if err != nil {
			t.Fatal(err)
		}
		if why.Then.PolicyDigest != one.Digest || why.Now.PolicyDigest != two.Digest || !slices.Equal(why.Now.Approvers, []string{"DevOps manager"}) {
			t.Errorf("why: %v", why)
		}
		write(demanding(t, `@approver("DevOps manager")`))
		bad := get()
		if bad.Digest != two.Digest || bad.Refused == nil || !strings.Contains(bad.Refused.Error, "@approver") {
			t.Errorf("after a bad change: %s, refused %v", bad.Digest, bad.Refused)
		}
		write(first)
		if again := get(); again.Digest != one.Digest || again.Refused != nil {
			t.Errorf("at the end: %s, refused %v", again.Digest, again.Refused)
		}
		if p, err := w.lockbox.GetPolicies(t.Context(), orderstest.Admin, &lockboxv1.GetPoliciesRequest{Digest: two.Digest}); err != nil || p.InForce || len(p.Files) != 3 {
			t.Errorf("the earlier set: %v, %v", p, err)
		}
		stop()
	})
}

func TestWhoCouldUnlock(t *testing.T) {
	w := halted(t, 1, time.Now)
	who := func() map[string]*lockboxv1.Candidate {
		t.Helper()
		resp, err := w.lockbox.WhoCouldUnlock(t.Context(), w.as(orderstest.Olga), &lockboxv1.WhoCouldUnlockRequest{Serial: orderstest.Serial})
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]*lockboxv1.Candidate{}
		for _, c := range resp.Engineers {
			out[c.Engineer] = c
		}
		return out
	}
	erin, eve := string(orderstest.Erin.Person), string(orderstest.Eve.Person)
	has := func(c *lockboxv1.Candidate, what string) bool {
		return slices.ContainsFunc(c.Obstacles, func(o string) bool { return strings.HasPrefix(o, what+":") })
	}
	if c := who()[erin]; c.MayAsk || !has(c, "sign-in") || !has(c, "isolated-identity") || has(c, "ticket-ownership") || !has(c, "approval") {
		t.Errorf("Erin, signed out: %v", c)
	}
	storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) error {
		return tx.InsertPersonCert(ctx, &store.PersonCert{Serial: "1", Person: orderstest.Erin.Person, SignIn: "1", Method: "login-token", Isolated: true, SignedIn: w.Now()})
	})
	if c := who()[erin]; !c.MayAsk || c.MayExecute || !has(c, "support session") {
		t.Errorf("Erin: %v", c)
	}
	if c := who()[eve]; c.MayAsk || !has(c, "ticket-ownership") {
		t.Errorf("Eve: %v", c)
	}
	w.session()
	r := w.approved()
	if c := who()[erin]; !c.MayExecute || len(c.Obstacles) != 0 || c.Request == "" {
		t.Errorf("Erin with request %d: %v", r.Number, c)
	}
	_, err := w.lockbox.WhoCouldUnlock(t.Context(), orderstest.Mallory, &lockboxv1.WhoCouldUnlockRequest{Serial: orderstest.Serial})
	wantCode(t, err, protocol.CodeNotFound)
}

func TestContactIsReadAfterAManagersApproval(t *testing.T) {
	now := &clock{time.Now().UTC().Truncate(time.Second)}
	w := halted(t, 1, now.Now)
	w.Register(ida)
	read := func(who auth.Caller, id string) ([]string, error) {
		resp, err := w.lockbox.ReadContact(t.Context(), w.as(who), &lockboxv1.ReadContactRequest{Id: id})
		return resp.GetAddresses(), err
	}
	decide := func(who auth.Caller, id string, yes bool) error {
		_, err := w.lockbox.DecideContact(t.Context(), w.as(who), &lockboxv1.DecideContactRequest{Id: id, Approve: yes})
		return err
	}
	ask := func(who auth.Caller) string {
		c, err := w.lockbox.AskContact(t.Context(), w.as(who), &lockboxv1.AskContactRequest{Tenant: orderstest.Tenant, Reason: "the line is dead"})
		if err != nil {
			t.Fatal(err)
		}
		return c.Id
	}
	_, err := w.lockbox.AskContact(t.Context(), w.as(orderstest.Erin), &lockboxv1.AskContactRequest{Tenant: orderstest.Tenant, Reason: "r"})
	wantCode(t, err, protocol.CodeConflict) // nobody could approve
	w.group(ida, auth.ManagerGroup)
	id := ask(orderstest.Erin)
	_, err = read(orderstest.Erin, id)
	wantCode(t, err, protocol.CodeNotApproved)
	wantCode(t, decide(orderstest.Ian, id, true), protocol.CodeForbidden) // no manager
	w.group(orderstest.Ian, auth.ManagerGroup)
	own := ask(orderstest.Ian)
	wantCode(t, decide(orderstest.Ian, own, true), protocol.CodeForbidden)
	if err := decide(orderstest.Ian, id, true); err != nil {
		t.Fatal(err)
	}
	wantCode(t, decide(orderstest.Ian, id, true), protocol.CodeConflict)
	_, err = read(orderstest.Eve, id)
	wantCode(t, err, protocol.CodeForbidden)
	got, err := read(orderstest.Erin, id)
	if err != nil || !slices.Contains(got, string(orderstest.Olga.Person)) {
		t.Errorf("read %q, %v", got, err)
	}
	if kinds := w.kindsAbout(id); !slices.Equal(kinds, []string{"contact-read"}) {
		t.Errorf("told: %v", kinds)
	}
	now.advance(lockbox.ContactAccess)
	_, err = read(orderstest.Erin, id)
	wantCode(t, err, protocol.CodeNotApproved)
	denied := ask(orderstest.Erin)
	if err := decide(orderstest.Ian, denied, false); err != nil {
		t.Fatal(err)
	}
	_, err = read(orderstest.Erin, denied)
	wantCode(t, err, protocol.CodeNotApproved)
	now.advance(lockbox.ContactExpiry)
	wantCode(t, decide(orderstest.Ian, own, true), protocol.CodeForbidden)
}

func TestProvidersSeeNoAddressInRequests(t *testing.T) {
	w := halted(t, 1, time.Now)
	r := w.create()
	w.mustDecide(orderstest.Ian, r.Id, "approve")
	for _, who := range []auth.Caller{orderstest.Erin, orderstest.Ian, orderstest.Admin, orderstest.Staff} {
		got, err := w.lockbox.GetRequest(t.Context(), w.as(who), &lockboxv1.GetRequestRequest{Id: r.Id})
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Notified) == 0 || slices.Contains(got.Notified, string(orderstest.Olga.Person)) {
			t.Errorf("%s reads %q", who.Person, got.Notified)
		}
	}
	got, err := w.lockbox.GetRequest(t.Context(), w.as(orderstest.Adam), &lockboxv1.GetRequestRequest{Id: r.Id})
	if err != nil || !slices.Contains(got.Notified, string(orderstest.Olga.Person)) {
		t.Errorf("Adam reads %q, %v", got.GetNotified(), err)
	}
}

func TestTheTicketTellsTheStory(t *testing.T) {
	w := halted(t, 1, time.Now)
	w.session()
	w.approved()
	for _, who := range []auth.Caller{orderstest.Adam, orderstest.Ian} { // approvers of both sides
		ticket, err := w.Orders.GetTicket(t.Context(), w.as(who), &lockboxv1.GetTicketRequest{Id: w.ticket})
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, l := range ticket.History {
			lines = append(lines, l.What+" "+l.Detail)
		}
		story := strings.Join(lines, "\n")
		for _, want := range []string{"Filed customer", "Session SES-", "Request 1 raised by erin", "Request 1 is Customer Notified", "Request 1 is Approved"} {
			if !strings.Contains(story, want) {
				t.Errorf("%q is not in\n%s", want, story)
			}
		}
	}
	_, err := w.Orders.GetTicket(t.Context(), w.as(orderstest.Mallory), &lockboxv1.GetTicketRequest{Id: w.ticket})
	wantCode(t, err, protocol.CodeNotFound)
}
