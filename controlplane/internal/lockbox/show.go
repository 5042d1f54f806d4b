package lockbox

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
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
		return showRequest(ctx, tx, r)
	})
}

// ListRequests shows the requests that the caller may see, newest first; with
// pending, those that wait for a decision of their side.
func (s *Service) ListRequests(ctx context.Context, caller auth.Caller, in *lockboxv1.ListRequestsRequest) (*lockboxv1.ListRequestsResponse, error) {
	filter := store.RequestFilter{Tenant: protocol.TenantID(in.Tenant), Order: protocol.OrderID(in.Order)}
	if scope := caller.Scope(); scope != "" {
		filter.Tenant = scope
	}
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.ListRequestsResponse, error) {
		rows, err := tx.Requests(ctx, filter)
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.ListRequestsResponse{}
		for _, r := range rows {
			if !caller.Sees(r.Tenant) || in.Pending && !waitsFor(caller, State(r.Status)) {
				continue
			}
			shown, err := showRequest(ctx, tx, r)
			if err != nil {
				return nil, err
			}
			out.Requests = append(out.Requests, shown)
		}
		return out, nil
	})
}

// waitsFor reports whether a request in state belongs in caller's queue.
func waitsFor(caller auth.Caller, state State) bool {
	if caller.Role.OfCustomer() && state == Initializing {
		return false
	}
	return state.Open()
}

func showRequest(ctx context.Context, tx *store.Tx, r store.Request) (*lockboxv1.Request, error) {
	evaluation := &lockboxv1.Evaluation{}
	if err := proto.Unmarshal(r.Evaluation, evaluation); err != nil {
		return nil, err
	}
	decisions, err := tx.Decisions(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	lines, err := tx.History(ctx, store.RequestHistory, string(r.ID))
	if err != nil {
		return nil, err
	}
	out := &lockboxv1.Request{
		Id: string(r.ID), Number: r.Number, Action: r.Action, Status: r.Status, ShownStatus: shownStatus(r),
		Subscription: string(r.Subscription), Tenant: string(r.Tenant), Order: string(r.Order), Ticket: string(r.Ticket),
		Serial: string(r.Serial), Disks: r.Disks, Engineer: string(r.Engineer), EngineerKey: r.EngineerKey,
		ReasonCode: r.ReasonCode, Justification: r.Justification, Access: r.Access, Purpose: string(r.Purpose),
		DurationSeconds: int64(r.Duration / time.Second), Created: r.Created.Unix(), Expires: r.Expires.Unix(),
		AccessStart: unix(r.AccessStart), AccessEnd: unix(r.AccessEnd), ResourceId: r.ResourceID, Evaluation: evaluation,
		Statement: &lockboxv1.Document{
			Kind: "request", Payload: r.Statement, PayloadType: string(approval.KindRequest), Digest: r.StatementDigest,
		},
		History: history(lines), TrustPolicyDigest: r.TrustPolicyDigest, Notified: slices.Clone(r.Notified),
		Executed: !r.Executed.IsZero(),
	}
	for _, d := range decisions {
		out.Decisions = append(out.Decisions, &lockboxv1.RequestDecision{
			Role: d.Role, Person: string(d.Person), Verdict: d.Verdict, Time: d.Time.Unix(), Reason: d.Reason, Envelope: d.Envelope,
		})
	}
	return out, nil
}

// shownStatus is what people are shown. A request that its engineer withdrew
// was never somebody's to revoke.
func shownStatus(r store.Request) string {
	if State(r.Status) == Revoked && r.AccessEnd.IsZero() && r.CloseReason == "cancelled" {
		return "Cancelled"
	}
	return State(r.Status).Shown()
}
