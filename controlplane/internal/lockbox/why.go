package lockbox

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// WhyRequest shows how the JIT rules judged a request when it was made, and how
// they would judge it now.
func (s *Service) WhyRequest(ctx context.Context, caller auth.Caller, in *lockboxv1.WhyRequestRequest) (*lockboxv1.WhyRequestResponse, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.WhyRequestResponse, error) {
		r, err := request(ctx, tx, caller, in.Id)
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.WhyRequestResponse{Then: &lockboxv1.Evaluation{}}
		if err := proto.Unmarshal(r.Evaluation, out.Then); err != nil {
			return nil, err
		}
		now, err := s.evaluateAgain(ctx, tx, r)
		if protocol.CodeOf(err) == protocol.CodeInternal {
			return nil, err
		}
		if err != nil {
			out.Problem = err.Error()
			return out, nil
		}
		out.Now = now
		return out, nil
	})
}

// evaluateAgain applies the rules of now to what a request asked for then.
func (s *Service) evaluateAgain(ctx context.Context, tx *store.Tx, r store.Request) (*lockboxv1.Evaluation, error) {
	engineer, _, err := s.standing(ctx, tx, r.Engineer)
	if err != nil {
		return nil, err
	}
	d := &draft{s: s, caller: engineer, access: approval.Access(r.Access), in: &lockboxv1.CreateRequestRequest{
		Action: r.Action, Serial: string(r.Serial), Ticket: string(r.Ticket), ReasonCode: r.ReasonCode,
		DurationSeconds: int64(r.Duration.Seconds()), Scope: string(scopeOf(r)),
	}}
	if err := d.load(ctx, tx); err != nil {
		return nil, err
	}
	e, err := d.evaluate(ctx, tx)
	if err != nil {
		return nil, err
	}
	return showEvaluation(e, engineer, s.now()), nil
}

// standing is somebody as they would call now: by their newest sign-in. in says
// whether that still lasts.
func (s *Service) standing(ctx context.Context, tx *store.Tx, who protocol.Person) (caller auth.Caller, in bool, err error) {
	p, err := tx.Person(ctx, who)
	if err != nil {
		return auth.Caller{}, false, err
	}
	caller = auth.Caller{Person: p.Name, Role: auth.Role(p.Role), Tenant: p.Tenant}
	if !p.Removed.IsZero() {
		caller.Role = ""
		return caller, false, nil
	}
	cert, err := tx.NewestPersonCert(ctx, who)
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && !cert.Ends.IsZero() && !s.now().Before(cert.Ends) {
		return caller, false, nil
	}
	caller.Isolated, caller.MFA = cert.Isolated, cert.MFA
	return caller, true, err
}

// WhoCouldUnlock says of each engineer what stands between them and a device.
func (s *Service) WhoCouldUnlock(ctx context.Context, caller auth.Caller, in *lockboxv1.WhoCouldUnlockRequest) (*lockboxv1.WhoCouldUnlockResponse, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.WhoCouldUnlockResponse, error) {
		q := &inquiry{s: s, tx: tx, out: &lockboxv1.WhoCouldUnlockResponse{Serial: in.Serial}}
		if err := q.load(ctx, caller, protocol.DeviceSerial(in.Serial)); err != nil {
			return nil, err
		}
		engineers, err := tx.People(ctx, "", string(auth.Engineer))
		if err != nil {
			return nil, err
		}
		for _, p := range engineers {
			c, err := q.candidate(ctx, p)
			if err != nil {
				return nil, err
			}
			q.out.Engineers = append(q.out.Engineers, c)
		}
		return q.out, nil
	})
}

// inquiry is what is known of a device while its candidates are looked at.
type inquiry struct {
	s        *Service
	tx       *store.Tx
	order    store.Order
	tenant   store.Tenant
	trust    *approval.Policy // nil without one
	tickets  []store.Ticket   // of the order, newest first
	sessions []store.Session  // open on the device
	requests []store.Request  // for the device that wait or last
	out      *lockboxv1.WhoCouldUnlockResponse
}

func (q *inquiry) load(ctx context.Context, caller auth.Caller, serial protocol.DeviceSerial) (err error) {
	q.order, err = q.tx.OrderOfDevice(ctx, serial)
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && !caller.Sees(q.order.Tenant) {
		err = notFound("device", string(serial))
	}
	if err != nil {
		return err
	}
	if q.tenant, err = q.tx.Tenant(ctx, q.order.Tenant); err != nil {
		return err
	}
	if q.tickets, err = q.tx.Tickets(ctx, "", q.order.ID); err != nil {
		return err
	}
	slices.Reverse(q.tickets)
	if q.sessions, err = q.tx.Sessions(ctx, store.SessionFilter{Serial: serial, State: SessionEnabled}); err != nil {
		return err
	}
	if q.requests, err = q.tx.Requests(ctx, store.RequestFilter{Serial: serial, Statuses: append(texts(open), string(Approved))}); err != nil {
		return err
	}
	if !q.tenant.LockboxEnabled && q.tenant.WithoutLockbox != orders.ProviderApproval {
		q.blocked("Lockbox is off for tenant %s, and without it nobody gets access: have the tenant enable Lockbox", q.tenant.ID)
	}
	return q.loadTrust(ctx)
}

func (q *inquiry) blocked(format string, args ...any) {
	q.out.Blocked = append(q.out.Blocked, fmt.Sprintf(format, args...))
}

// loadTrust says whose approvals the device wants.
func (q *inquiry) loadTrust(ctx context.Context) error {
	trust, err := orders.TrustPolicy(ctx, q.tx, q.order)
	if protocol.CodeOf(err) == protocol.CodeInternal {
		return err
	}
	if err != nil {
		q.blocked("%v", err)
		return nil
	}
	q.trust = trust
	rule, ok := trust.Rule(approval.UnlockDatabox)
	if !q.tenant.LockboxEnabled {
		x, found := trust.Exclusion(approval.LockboxOff)
		rule, ok = approval.Rule{ProviderGroups: x.ProviderGroups}, found
	}
	if !ok {
		q.blocked("the trust policy of the device rules it out: nobody's approval opens it")
	}
	q.out.CustomerNeeded = needed(trust, rule.CustomerGroups)
	q.out.ProviderNeeded = needed(trust, rule.ProviderGroups)
	return nil
}

// needed says of each group how many of whom have to approve.
func needed(trust *approval.Policy, groups []approval.Group) []string {
	var out []string
	for _, g := range groups {
		var people []string
		for _, k := range trust.Document().Keys {
			if slices.Contains(g.Keys, k.ID) {
				people = append(people, string(k.Person))
			}
		}
		slices.Sort(people)
		out = append(out, fmt.Sprintf("%d of %s: %s", g.Threshold, g.Name, strings.Join(slices.Compact(people), ", ")))
	}
	return out
}

// candidate looks at one engineer.
func (q *inquiry) candidate(ctx context.Context, p store.Person) (*lockboxv1.Candidate, error) {
	c := &lockboxv1.Candidate{Engineer: string(p.Name)}
	inTheWay := func(format string, args ...any) { c.Obstacles = append(c.Obstacles, fmt.Sprintf(format, args...)) }
	caller, signedIn, err := q.s.standing(ctx, q.tx, p.Name)
	if err != nil {
		return nil, err
	}
	if !signedIn {
		inTheWay("sign-in: they are not signed in")
	}
	keys, err := q.tx.PersonKeys(ctx, p.Name)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		inTheWay("SSH key: they have none: an admin has to register one")
	}
	if q.trust != nil && slices.ContainsFunc(q.trust.Document().Keys, func(k approval.Key) bool { return k.Person == p.Name }) {
		inTheWay("trust policy: it names them as an approver, and nobody approves what they ask for themselves")
	}
	if err := q.evaluate(ctx, c, caller, inTheWay); err != nil {
		return nil, err
	}
	c.MayAsk = len(c.Obstacles) == 0 && len(q.out.Blocked) == 0
	if !slices.ContainsFunc(q.sessions, func(s store.Session) bool { return s.Engineer == p.Name }) {
		inTheWay("support session: they have none open on the device")
	}
	q.standingRequest(c, inTheWay)
	return c, nil
}

// evaluate applies the rules to the newest ticket by which an engineer could ask.
func (q *inquiry) evaluate(ctx context.Context, c *lockboxv1.Candidate, caller auth.Caller, inTheWay func(string, ...any)) error {
	d := &draft{s: q.s, caller: caller, access: approval.ReadWrite, order: q.order, tenant: q.tenant, in: &lockboxv1.CreateRequestRequest{
		Action: policy.ActionUnlock, Serial: string(q.order.Serial), ReasonCode: "copied-to-wrong-folder",
	}}
	_, d.length = orders.TimesOf(q.tenant)
	mine := func(t store.Ticket) bool {
		return t.Owner == caller.Person || slices.Contains(t.EscalatedTo, caller.Person)
	}
	i := max(slices.IndexFunc(q.tickets, mine), 0) // somebody else's shows the other factors all the same
	if len(q.tickets) == 0 {
		inTheWay("ticket: order %s has none: a request needs one", q.order.ID)
		return nil
	}
	d.ticket = q.tickets[i]
	c.Ticket = string(d.ticket.ID)
	e, err := d.evaluate(ctx, q.tx)
	if err != nil {
		return err
	}
	c.Evaluation = showEvaluation(e, caller, q.s.now())
	for _, f := range e.Factors {
		if !f.Passed {
			inTheWay("%s: %s", f.Name, f.Reason)
		}
	}
	return q.demands(ctx, e, inTheWay)
}

// demands says whom the rules ask for.
func (q *inquiry) demands(ctx context.Context, e policy.Evaluation, inTheWay func(string, ...any)) error {
	for _, text := range demandTexts(e.Approvers) {
		if line := "1 of " + text + ", by the JIT rules"; !slices.Contains(q.out.ProviderNeeded, line) {
			q.out.ProviderNeeded = append(q.out.ProviderNeeded, line)
		}
	}
	if q.trust == nil {
		return nil
	}
	rule, _ := q.trust.Rule(approval.UnlockDatabox)
	people, err := signersOf(ctx, q.tx, q.trust, rule)
	if missing := policy.Missing(e.Approvers, people); err == nil && len(missing) > 0 {
		inTheWay("approvers: the trust policy names nobody for %s, whom the rules demand", demanded(missing))
	}
	return err
}

// standingRequest says what became of what an engineer has asked for already.
func (q *inquiry) standingRequest(c *lockboxv1.Candidate, inTheWay func(string, ...any)) {
	i := slices.IndexFunc(q.requests, func(r store.Request) bool { return string(r.Engineer) == c.Engineer })
	if i < 0 {
		inTheWay("approval: they have not asked")
		return
	}
	r := q.requests[i]
	c.Request = strconv.FormatInt(r.Number, 10)
	if StateOf(r.Status) == Approved && q.s.now().Before(r.AccessEnd) {
		c.MayExecute = true
		return
	}
	inTheWay("approval: request %d is %s", r.Number, cmp.Or(shownStatus(r), r.Status))
}
