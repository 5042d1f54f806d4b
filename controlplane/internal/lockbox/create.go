package lockbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// CreateRequest raises a just-in-time request. The rules are evaluated first; a
// request that they block is refused with [protocol.CodeJITBlocked] and every
// factor in the message. One that passes waits for the provider's own
// approvals.
func (s *Service) CreateRequest(ctx context.Context, caller auth.Caller, in *lockboxv1.CreateRequestRequest) (*lockboxv1.Request, error) {
	return s.raise(ctx, &draft{s: s, caller: caller, in: in})
}

// raise makes a request of a draft.
func (s *Service) raise(ctx context.Context, d *draft) (*lockboxv1.Request, error) {
	var id protocol.RequestID
	err := s.change(ctx, func(tx *store.Tx) error {
		r, err := d.create(ctx, tx)
		id = r.ID
		return err
	})
	if blocked, ok := errors.AsType[*blockedError](err); ok {
		return nil, s.refusedDraft(ctx, d.caller, blocked)
	}
	if err != nil {
		return nil, err
	}
	if d.denied {
		if err := s.tellDenied(context.WithoutCancel(ctx), d.caller, id); err != nil {
			return nil, err
		}
	}
	return s.GetRequest(ctx, d.caller, &lockboxv1.GetRequestRequest{Id: string(id)})
}

// draft is a request being made.
type draft struct {
	s      *Service
	caller auth.Caller
	in     *lockboxv1.CreateRequestRequest
	follow *follow // of another request; nil if it stands alone
	denied bool    // by a standing consent, as soon as it was made

	tenant store.Tenant
	order  store.Order
	ticket store.Ticket
	access approval.Access
	length time.Duration
}

// blockedError is a refusal that is recorded: by a rule, or because Lockbox is
// off.
type blockedError struct {
	why        error
	order      store.Order
	ticket     protocol.TicketID
	evaluation policy.Evaluation
}

func (e *blockedError) Error() string { return e.why.Error() }
func (e *blockedError) Unwrap() error { return e.why }

func (d *draft) check() error {
	d.in.Action = cmp.Or(actions[approval.Action(d.in.Action)], d.in.Action)
	if d.ofSubscription() {
		if err := d.checkAccess(); err != nil {
			return err
		}
	}
	d.access = cmp.Or(approval.Access(d.in.Access), approval.ReadWrite)
	d.in.ReasonCode = cmp.Or(d.in.ReasonCode, d.in.Exclusion)
	switch {
	case d.in.Action != policy.ActionUnlock && d.in.Action != policy.ActionAccess:
		return invalid("action %q is unknown: want %q or %q", d.in.Action, policy.ActionUnlock, policy.ActionAccess)
	case d.in.Action == policy.ActionUnlock && d.in.Subscription+d.in.Scope != "":
		return invalid("%s is about a device: leave out subscription and scope, or ask for %s", policy.ActionUnlock, policy.ActionAccess)
	case d.in.Ticket == "":
		return invalid("name the ticket (service request) that this is for")
	case d.in.Justification == "" || len(d.in.Justification) > maxText:
		return invalid("a justification has 1 to %d bytes", maxText)
	case !slices.Contains([]approval.Access{approval.ReadOnly, approval.ReadWrite, approval.Delete}, d.access):
		return invalid("access %q is unknown: want read-only, read-write or delete", d.in.Access)
	case d.in.DurationSeconds < 0 || d.in.DurationSeconds > int64(1000*time.Hour/time.Second):
		return invalid("a duration of %d seconds makes no sense", d.in.DurationSeconds)
	}
	return d.checkExclusion()
}

func (d *draft) create(ctx context.Context, tx *store.Tx) (store.Request, error) {
	if d.follow != nil {
		if err := d.follow.adopt(ctx, tx, d); err != nil {
			return store.Request{}, err
		}
	}
	if err := d.check(); err != nil {
		return store.Request{}, err
	}
	if err := d.load(ctx, tx); err != nil {
		return store.Request{}, err
	}
	evaluation, err := d.evaluate(ctx, tx)
	if err != nil {
		return store.Request{}, err
	}
	exclusion, err := d.mayAsk(evaluation)
	if err != nil {
		return store.Request{}, err
	}
	if d.in.DurationSeconds == 0 && evaluation.Longest != 0 {
		d.length = min(d.length, evaluation.Longest)
	}
	trust, err := orders.TrustPolicy(ctx, tx, d.order)
	if err != nil {
		return store.Request{}, err
	}
	statement, err := d.statement(ctx, tx, trust, exclusion)
	if err == nil {
		err = d.decidedByTenant(ctx, tx, trust, statement)
	}
	if err == nil {
		err = d.canBeMet(ctx, tx, trust, statement, evaluation)
	}
	if slices.Contains([]protocol.Code{protocol.CodeAction, protocol.CodeNotEnabled, protocol.CodeJITBlocked}, protocol.CodeOf(err)) {
		err = &blockedError{err, d.order, d.ticket.ID, evaluation}
	}
	if err != nil {
		return store.Request{}, err
	}
	r, err := d.row(ctx, tx, statement, evaluation)
	if err != nil {
		return store.Request{}, err
	}
	if err := tx.InsertRequest(ctx, &r); err != nil {
		return store.Request{}, err
	}
	if err := d.recordEvaluation(ctx, tx, r, evaluation); err != nil {
		return store.Request{}, err
	}
	if err := d.s.created(ctx, tx, d.caller, r, trust); err != nil {
		return store.Request{}, err
	}
	return r, d.ask(ctx, tx, r, trust, statement, evaluation)
}

// ask tells those who decide first, unless the customer has decided before.
func (d *draft) ask(ctx context.Context, tx *store.Tx, r store.Request, trust *approval.Policy, st approval.Statement, e policy.Evaluation) (err error) {
	if st.Exclusion != "" {
		return d.s.askWithoutCustomer(ctx, tx, d.caller, r, st.Exclusion, e.Approvers)
	}
	if d.denied, err = d.s.deniedByStanding(ctx, tx, trust, r, st); d.denied || err != nil {
		return err
	}
	if rule, _ := trust.Rule(approval.UnlockDatabox); len(rule.ProviderGroups) == 0 {
		return d.s.providerDone(ctx, tx, d.caller, r)
	}
	if err := d.s.addHistory(ctx, tx, r, Initializing.Shown(), demanded(e.Approvers)); err != nil {
		return err
	}
	return d.s.askProvider(ctx, tx, r, e.Approvers)
}

func (d *draft) load(ctx context.Context, tx *store.Tx) error {
	var err error
	if !d.ofSubscription() {
		d.order, err = tx.OrderOfDevice(ctx, protocol.DeviceSerial(d.in.Serial))
		if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && !d.caller.Sees(d.order.Tenant) {
			err = notFound("device", d.in.Serial)
		}
		if err != nil {
			return err
		}
	}
	d.ticket, err = tx.Ticket(ctx, protocol.TicketID(d.in.Ticket))
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && !d.caller.Sees(d.ticket.Tenant) {
		err = notFound("ticket", d.in.Ticket)
	}
	if err == nil && d.ofSubscription() {
		err = d.loadSubscription(ctx, tx)
	}
	if err != nil {
		return err
	}
	if d.tenant, err = tx.Tenant(ctx, d.order.Tenant); err != nil {
		return err
	}
	_, longest := orders.TimesOf(d.tenant)
	d.length = cmp.Or(time.Duration(d.in.DurationSeconds)*time.Second, d.follow.usual(longest), longest)
	return nil
}

// evaluate applies the JIT rules to what is known now.
func (d *draft) evaluate(ctx context.Context, tx *store.Tx) (policy.Evaluation, error) {
	locked, err := d.locked(ctx, tx)
	if err != nil {
		return policy.Evaluation{}, err
	}
	ticketOrder, err := tx.Order(ctx, d.ticket.Order)
	if err != nil {
		return policy.Evaluation{}, err
	}
	_, longest := orders.TimesOf(d.tenant)
	return d.s.rules.Load().set.Evaluate(policy.Input{
		Action: d.in.Action,
		Caller: policy.Caller{Person: d.caller.Person, Role: string(d.caller.Role), IsolatedIdentity: d.caller.Isolated, MFA: d.caller.MFA},
		Device: policy.Device{
			Serial: d.order.Serial, Order: d.order.ID, Tenant: d.order.Tenant,
			Subscription: cmp.Or(protocol.SubscriptionID(d.in.Subscription), d.order.Subscription),
			Stage:        d.order.Stage, Halted: orders.Halted(d.order), Locked: locked,
		},
		Ticket: policy.Ticket{
			ID: d.ticket.ID, Order: d.ticket.Order, Subscription: ticketOrder.Subscription,
			Owner: d.ticket.Owner, EscalatedTo: d.ticket.EscalatedTo,
		},
		ReasonCode: d.in.ReasonCode, Scope: d.in.Scope, Access: string(d.access), Duration: d.length, Flexible: d.in.DurationSeconds == 0, Longest: longest,
	}), nil
}

// locked reports whether every node of the device last reported its disks
// locked, or open for the very access that this request is to go on with.
func (d *draft) locked(ctx context.Context, tx *store.Tx) (bool, error) {
	nodes, err := tx.NodesOfOrder(ctx, d.order.ID)
	if err != nil {
		return false, err
	}
	for _, n := range nodes {
		status, err := orders.Status(n)
		if err != nil {
			return false, err
		}
		if protocol.LockState(status.State) != protocol.Locked && !d.follow.opened(status.RequestDigest) {
			return false, nil
		}
	}
	return len(nodes) > 0, nil
}

// mayAsk refuses what the rules block, and what a tenant without Lockbox does
// not allow. It returns why the customer is not to be asked, "" if they are.
func (d *draft) mayAsk(e policy.Evaluation) (approval.Exclusion, error) {
	exclusion, err := d.exclusion()
	if !e.Passed {
		err = protocol.Errorf(protocol.CodeJITBlocked, "the request is blocked:\n%s", factorLines(e))
	}
	if err != nil {
		return "", &blockedError{err, d.order, d.ticket.ID, e}
	}
	return exclusion, nil
}
func factorLines(e policy.Evaluation) string {
	var lines []string
	for _, f := range e.Factors {
		word := "passed "
		if !f.Passed {
			word = "BLOCKED"
		}
		lines = append(lines, fmt.Sprintf("  %s  %s: %s", word, f.Name, f.Reason))
	}
	return strings.Join(lines, "\n")
}

func factorProperties(e policy.Evaluation) map[string]string {
	out := make(map[string]string)
	for _, f := range e.Factors {
		word := "passed: "
		if !f.Passed {
			word = "blocked: "
		}
		out["factor."+f.Name] = word + f.Reason
	}
	out["policy"], out["rules"] = e.Policy, strings.Join(e.Rules, ", ")
	return out
}

// refusedDraft records a request that never came to be.
func (s *Service) refusedDraft(ctx context.Context, caller auth.Caller, b *blockedError) error {
	err := s.change(ctx, func(tx *store.Tx) error {
		rec := auditlog.NewRecord(s.now(), auditlog.OpEvaluateJIT, auditlog.Refused)
		rec.Caller, rec.ResourceID, rec.CorrelationID = string(caller.Person), resourceID(b.order), string(b.ticket)
		rec.Properties = factorProperties(b.evaluation)
		rec.Properties[audit.PropertyTenant], rec.Properties[audit.PropertySerial] = string(b.order.Tenant), string(b.order.Serial)
		rec.Properties["code"] = string(protocol.CodeOf(b.why))
		_, err := s.cfg.Audit.Record(ctx, tx, rec)
		return err
	})
	if err != nil {
		return err
	}
	return b.why
}

func resourceID(o store.Order) string {
	return "/subscriptions/" + string(o.Subscription) + "/orders/" + string(o.ID) + "/devices/" + string(o.Serial)
}

// statement makes what everyone decides over.
func (d *draft) statement(ctx context.Context, tx *store.Tx, trust *approval.Policy, exclusion approval.Exclusion) (approval.Statement, error) {
	key, err := engineerKey(ctx, tx, d.caller.Person, d.in.SshKey)
	if err != nil {
		return approval.Statement{}, err
	}
	created := d.s.now()
	st := approval.Statement{
		RequestID: protocol.RequestID("LockboxRequest_" + newGUID()),
		TenantID:  d.order.Tenant, SubscriptionID: d.order.Subscription, OrderID: d.order.ID,
		Purpose: protocol.SupportAccess, Access: d.access,
		ReasonCode: d.in.ReasonCode, Ticket: d.ticket.ID, Engineer: approval.Engineer{Person: d.caller.Person, SSHKey: key},
		PolicyDigest: trust.Digest(),
		Created:      created.Unix(), Expires: created.Truncate(time.Second).Add(d.expiry()).Unix(),
		Exclusion: exclusion,
	}
	if err := d.scoped(ctx, tx, &st); err != nil {
		return approval.Statement{}, err
	}
	rule, err := d.allowed(trust, st)
	if err != nil {
		return approval.Statement{}, err
	}
	err = d.fit(rule)
	st.MaxDuration = int64(d.length / time.Second)
	return st, err
}

// device has st ask for the disks and shares that were named.
func (d *draft) device(ctx context.Context, tx *store.Tx, st *approval.Statement) (err error) {
	st.Action = approval.UnlockDatabox
	if st.Nodes, st.Disks, err = orders.Place(ctx, tx, d.order); err != nil {
		return err
	}
	if st.Disks, err = choose(st.Disks, d.in.Disks); err != nil {
		return err
	}
	if st.Shares, err = d.shares(ctx, tx); err != nil {
		return err
	}
	st.Protocols, err = d.protocols(ctx, tx, st.Exclusion)
	return err
}

// protocols are those beside SMB that a node of the device says it serves shares
// over. Who is not asked cannot agree to them.
func (d *draft) protocols(ctx context.Context, tx *store.Tx, exclusion approval.Exclusion) ([]approval.Protocol, error) {
	if exclusion != "" {
		return nil, nil
	}
	return orders.Protocols(ctx, tx, d.order)
}

// expiry is how long the request waits to be decided.
func (d *draft) expiry() time.Duration {
	expiry, _ := orders.TimesOf(d.tenant)
	return min(expiry, d.s.cfg.Expiry)
}

// fit keeps the duration within what the device's trust policy gives, whoever
// approves: who named a longer one is told.
func (d *draft) fit(rule approval.Rule) error {
	most := time.Duration(rule.MaxDuration) * time.Second
	if d.in.DurationSeconds != 0 && d.length > most {
		return invalid("the trust policy of the device gives %s at most: ask for no more", most)
	}
	d.length = min(d.length, most)
	return nil
}

// shares returns the shares that were named, sorted; none means all. A name that
// the order does not know would open nothing.
func (d *draft) shares(ctx context.Context, tx *store.Tx) ([]string, error) {
	if len(d.in.Shares) == 0 {
		return nil, nil
	}
	manifests, err := tx.Manifests(ctx, d.order.ID)
	if err != nil {
		return nil, err
	}
	var known []string
	for _, m := range manifests {
		known = append(known, m.Share)
	}
	for _, to := range d.order.Destinations {
		known = append(known, to.Shares...)
	}
	for _, name := range d.in.Shares {
		if !slices.Contains(known, name) {
			slices.Sort(known)
			return nil, invalid("order %s has no share %q: it has %s", d.order.ID, name, strings.Join(slices.Compact(known), ", "))
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(d.in.Shares))), nil
}

// engineerKey returns the fingerprint of the key that the engineer will come in
// with: the one named, or the only one they have.
func engineerKey(ctx context.Context, tx *store.Tx, who protocol.Person, named string) (string, error) {
	keys, err := tx.PersonKeys(ctx, who)
	if err != nil {
		return "", err
	}
	switch {
	case len(keys) == 0:
		return "", conflict("%s has no SSH key: an admin has to register one", who)
	case named == "" && len(keys) > 1:
		return "", invalid("%s has %d SSH keys: name the fingerprint of one", who, len(keys))
	case named == "":
		return keys[0].Fingerprint, nil
	}
	for _, k := range keys {
		if k.Fingerprint == named {
			return named, nil
		}
	}
	return "", invalid("%s has no SSH key with fingerprint %s", who, named)
}

// choose returns the disks that were named as "<node>/<disk>"; all if none was.
func choose(all []approval.DiskRef, named []string) ([]approval.DiskRef, error) {
	if len(named) == 0 {
		return all, nil
	}
	var out []approval.DiskRef
	for _, name := range named {
		i := slices.IndexFunc(all, func(r approval.DiskRef) bool {
			_, node, _ := strings.Cut(string(r.Node), "/")
			return node+"/"+string(r.Disk) == name
		})
		if i < 0 {
			return nil, invalid("the device has no disk %q: want <node>/<disk>, as in 1/disk1", name)
		}
		out = append(out, all[i])
	}
	return out, nil
}

func (d *draft) row(ctx context.Context, tx *store.Tx, st approval.Statement, e policy.Evaluation) (store.Request, error) {
	payload, err := st.Encode()
	if err != nil {
		return store.Request{}, err
	}
	evaluation, err := proto.Marshal(showEvaluation(e, d.caller, d.s.now()))
	if err != nil {
		return store.Request{}, err
	}
	number, err := tx.NextRequestNumber(ctx)
	if err != nil {
		return store.Request{}, err
	}
	r := store.Request{
		ID: st.RequestID, Number: number, Action: d.in.Action, Status: string(Initializing), Tenant: st.TenantID,
		Subscription: st.SubscriptionID, Order: st.OrderID, Ticket: st.Ticket, Serial: d.serial(),
		Engineer: st.Engineer.Person, EngineerKey: st.Engineer.SSHKey, ReasonCode: st.ReasonCode,
		Justification: d.in.Justification, Access: string(st.Access), Shares: st.Shares, Purpose: st.Purpose, Duration: d.length,
		ResourceID: d.resource(), Evaluation: evaluation, Statement: payload,
		StatementDigest: string(approval.DigestOf(payload)), TrustPolicyDigest: string(st.PolicyDigest),
		Created: time.Unix(st.Created, 0).UTC(), Expires: time.Unix(st.Expires, 0).UTC(),
	}
	for _, disk := range st.Disks {
		r.Disks = append(r.Disks, string(disk.Node)+" "+string(disk.Disk))
	}
	if d.follow != nil {
		d.follow.link(&r)
	}
	return r, nil
}

// serial is that of the device that d asks for, "" if it asks for none.
func (d *draft) serial() protocol.DeviceSerial {
	if d.ofSubscription() {
		return ""
	}
	return d.order.Serial
}

func (d *draft) recordEvaluation(ctx context.Context, tx *store.Tx, r store.Request, e policy.Evaluation) error {
	properties := factorProperties(e)
	properties["approverGroups"] = demanded(e.Approvers)
	return d.s.record(ctx, tx, d.caller, auditlog.OpEvaluateJIT, auditlog.Success, r, properties)
}

// created does what the birth of a request brings with it: its record, its
// timers, and who may decide about it.
func (s *Service) created(ctx context.Context, tx *store.Tx, caller auth.Caller, r store.Request, trust *approval.Policy) error {
	// A statement that can never be approved under this policy is refused here:
	// without decisions the only thing missing may be decisions.
	_, err := authorize(trust, r, approval.Request{Statement: r.Statement, Now: s.now()})
	if protocol.CodeOf(err) != protocol.CodeDecisionMissing {
		return err
	}
	err = s.record(ctx, tx, caller, auditlog.OpCreateRequest, auditlog.Success, r, map[string]string{
		"statement": r.StatementDigest, "reasonCode": r.ReasonCode, "justification": r.Justification,
		"duration": r.Duration.String(), "access": r.Access, "expires": r.Expires.Format(time.RFC3339),
		"disks": strings.Join(r.Disks, ", "), "shares": strings.Join(r.Shares, ", "), "follows": string(cmp.Or(r.Extends, r.RaisedAgain)),
	})
	if err != nil {
		return err
	}
	if err := s.addHistory(ctx, tx, r, "Created", fmt.Sprintf("by %s: %s", r.Engineer, r.Justification)); err != nil {
		return err
	}
	if err := s.addTicketLine(ctx, tx, r.Ticket, "Request", fmt.Sprintf("%d raised by %s: %s", r.Number, r.Engineer, r.Justification)); err != nil {
		return err
	}
	if err := noteApprovers(ctx, tx, r); err != nil {
		return err
	}
	if err := tx.SetTimer(ctx, timerExpiry, string(r.ID), r.Expires); err != nil {
		return err
	}
	return tx.SetTimer(ctx, timerWarning, string(r.ID), before(r.Created, r.Expires, warnBefore))
}

// before is when to warn of an end: so long before it, or a quarter of the time
// since start if that is less.
func before(start, end time.Time, long time.Duration) time.Time {
	return end.Add(-min(long, end.Sub(start)/4))
}
