package lockbox

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// GetRequest shows a request, by id or short number.
func (s *Service) GetRequest(ctx context.Context, caller auth.Caller, in *lockboxv1.GetRequestRequest) (*lockboxv1.Request, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.Request, error) {
		r, err := request(ctx, tx, caller, in.Id)
		if err != nil {
			return nil, err
		}
		return showRequest(ctx, tx, caller, r)
	})
}

// How many requests are listed at a time.
const (
	defaultPage = 100
	longestPage = 500
)

// ListRequests shows the requests that the caller may see and that fit the
// filters, newest first and a page at a time; with pending, those that wait for a
// decision of the caller's side.
func (s *Service) ListRequests(ctx context.Context, caller auth.Caller, in *lockboxv1.ListRequestsRequest) (*lockboxv1.ListRequestsResponse, error) {
	filter, err := filterOf(caller, in)
	if err != nil || filter == nil {
		return &lockboxv1.ListRequestsResponse{}, err
	}
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.ListRequestsResponse, error) {
		rows, err := tx.Requests(ctx, *filter)
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.ListRequestsResponse{}
		for i, r := range rows {
			if i == filter.Limit-1 { // one more than the page, to know whether there is another
				out.Next = rows[i-1].Number
				break
			}
			shown, err := showRow(caller, r)
			if err != nil {
				return nil, err
			}
			out.Requests = append(out.Requests, shown)
		}
		return out, nil
	})
}

// filterOf says which rows are wanted, one more than the page; nil if none can
// be.
func filterOf(caller auth.Caller, in *lockboxv1.ListRequestsRequest) (*store.RequestFilter, error) {
	page := cmp.Or(in.Limit, defaultPage)
	if page < 1 || page > longestPage || in.Before < 0 {
		return nil, invalid("a page has 1 to %d requests, and goes on before a number", longestPage)
	}
	f := &store.RequestFilter{
		Tenant: protocol.TenantID(in.Tenant), Order: protocol.OrderID(in.Order), Serial: protocol.DeviceSerial(in.Serial),
		Engineer: protocol.Person(in.Engineer), Ticket: protocol.TicketID(in.Ticket), Action: cmp.Or(actions[approval.Action(in.Action)], in.Action), Before: in.Before, Limit: int(page) + 1,
	}
	switch scope := caller.Scope(); {
	case caller.Role == "" || caller.Role.OfCustomer() && scope == "" || scope != "" && f.Tenant != "" && f.Tenant != scope:
		return nil, nil
	case scope != "":
		f.Tenant = scope
	}
	states := States
	if in.Pending {
		states = waitingFor(caller)
	}
	if in.State != "" {
		i := slices.IndexFunc(States, func(s State) bool { return strings.EqualFold(string(s), in.State) })
		switch {
		case i < 0:
			return nil, invalid("there is no state %q: want one of %s", in.State, strings.Join(texts(States), ", "))
		case !slices.Contains(states, States[i]):
			return nil, nil
		}
		states = States[i : i+1]
	}
	if len(states) < len(States) {
		f.Statuses = texts(states)
	}
	return f, nil
}

// waitingFor are the states in which a request belongs in caller's queue: the
// customer's begins when they were notified.
func waitingFor(caller auth.Caller) []State {
	if caller.Role.OfCustomer() {
		return slices.DeleteFunc(slices.Clone(open), func(s State) bool { return s == Initializing })
	}
	return open
}

// showRequest shows a request with all that belongs to it.
func showRequest(ctx context.Context, tx *store.Tx, caller auth.Caller, r store.Request) (*lockboxv1.Request, error) {
	out, err := showRow(caller, r)
	if err != nil {
		return nil, err
	}
	out.Statement = &lockboxv1.Document{
		Kind: "request", Payload: r.Statement, PayloadType: string(approval.KindRequest), Digest: r.StatementDigest,
	}
	decisions, err := tx.Decisions(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	for _, d := range decisions {
		if e, err := approval.ParseEnvelope(d.Envelope); err == nil && e.PayloadType == approval.KindStanding {
			out.StandingConsent = string(d.Person)
		}
		out.Decisions = append(out.Decisions, &lockboxv1.RequestDecision{
			Role: d.Role, Person: string(d.Person), Verdict: d.Verdict, Time: d.Time.Unix(), Reason: d.Reason, Envelope: d.Envelope,
		})
	}
	comments, err := tx.RequestComments(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	out.Comments = showComments(comments)
	told, err := tx.WordsAbout(ctx, string(r.ID))
	if err != nil {
		return nil, err
	}
	for _, w := range told {
		out.Told = append(out.Told, notify.Show(caller, w))
	}
	lines, err := tx.History(ctx, store.RequestHistory, string(r.ID))
	out.History = history(lines)
	return out, err
}

// showRow shows what stands in a request's own row.
func showRow(caller auth.Caller, r store.Request) (*lockboxv1.Request, error) {
	evaluation := &lockboxv1.Evaluation{}
	if err := proto.Unmarshal(r.Evaluation, evaluation); err != nil {
		return nil, err
	}
	st, _ := approval.ParseStatement(r.Statement) // a request whose statement was damaged is shown all the same
	var protocols []string
	for _, p := range st.Protocols {
		protocols = append(protocols, string(p))
	}
	return &lockboxv1.Request{
		Exclusion: string(st.Exclusion), Scope: string(st.Scope), Protocols: protocols, Id: string(r.ID), Number: r.Number, Action: r.Action, Status: string(StateOf(r.Status)), ShownStatus: shownStatus(r),
		Subscription: string(r.Subscription), Tenant: string(r.Tenant), Order: string(r.Order), Ticket: string(r.Ticket),
		Serial: string(r.Serial), Disks: r.Disks, Shares: r.Shares, Engineer: string(r.Engineer), EngineerKey: r.EngineerKey,
		ReasonCode: r.ReasonCode, Justification: r.Justification, Access: r.Access, Purpose: string(r.Purpose),
		DurationSeconds: int64(r.Duration / time.Second), Created: r.Created.Unix(), Expires: r.Expires.Unix(),
		AccessStart: unix(r.AccessStart), AccessEnd: unix(r.AccessEnd), ResourceId: r.ResourceID, Evaluation: evaluation,
		TrustPolicyDigest: r.TrustPolicyDigest, Notified: auth.MaskedFor(caller, slices.Clone(r.Notified)), Executed: !r.Executed.IsZero(),
		Extends: string(r.Extends), RaisedAgain: string(r.RaisedAgain), CloseReason: r.CloseReason, Closed: unix(r.Closed),
		LockConfirmed: unix(r.LockConfirmed), LocksBy: unix(r.LocksBy),
	}, nil
}

// shownStatus is what people are shown. A request that its engineer withdrew
// was never somebody's to revoke.
func shownStatus(r store.Request) string {
	if StateOf(r.Status) == Revoked && r.AccessEnd.IsZero() && r.CloseReason == cancelled {
		return "Cancelled"
	}
	if StateOf(r.Status) == Revoked && r.CloseReason == policyReplaced {
		return "Voided: the trust policy was replaced"
	}
	return StateOf(r.Status).Shown()
}
