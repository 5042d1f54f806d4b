package lockbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// StandingTTL is how long a standing consent stands unless its draft says
// otherwise.
const StandingTTL = 30 * 24 * time.Hour

// maxStanding is how many standing consents of an order there may be.
const maxStanding = 64

// DraftStandingConsent makes a standing consent for the customer to sign. It
// names every node with its key, so all nodes must be enrolled.
func (s *Service) DraftStandingConsent(ctx context.Context, caller auth.Caller, in *lockboxv1.DraftStandingConsentRequest) (*lockboxv1.Document, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.Document, error) {
		o, err := orderOf(ctx, tx, caller, in.Order)
		if err != nil {
			return nil, err
		}
		trust, err := orders.TrustPolicy(ctx, tx, o)
		if err != nil {
			return nil, err
		}
		nodes, _, err := orders.Place(ctx, tx, o)
		if err != nil {
			return nil, err
		}
		now := s.now()
		doc := approval.Standing{
			StandingID: "STC-" + newGUID(), Verdict: approval.Verdict(in.Verdict), TenantID: o.Tenant, OrderID: o.ID, Nodes: nodes,
			ReasonCodes: in.ReasonCodes, Access: approval.Access(in.Access), MaxDuration: in.MaxDurationSeconds,
			PolicyDigest: trust.Digest(), Created: now.Unix(), Until: now.Add(StandingTTL).Unix(),
		}
		if in.Until != 0 {
			doc.Until = in.Until
		}
		if rule, _ := trust.Rule(approval.UnlockDatabox); doc.Verdict == approval.Approve && len(rule.ProviderGroups) == 0 {
			return nil, conflict("the trust policy asks nobody of the provider, so nobody would look at what a standing consent approves: name a provider group in it first")
		}
		payload, err := doc.Encode()
		if err != nil {
			return nil, err
		}
		return &lockboxv1.Document{
			Kind: "standing-consent", Payload: payload, PayloadType: string(doc.Kind()), Digest: string(approval.DigestOf(payload)),
		}, nil
	})
}

// SubmitStandingConsent takes a signed standing consent. While signatures are
// missing it is kept with those that came, and the document says whose are.
func (s *Service) SubmitStandingConsent(ctx context.Context, caller auth.Caller, in *lockboxv1.SubmitStandingConsentRequest) (*lockboxv1.Document, error) {
	var out *lockboxv1.Document
	err := s.change(ctx, func(tx *store.Tx) error {
		o, err := orderOf(ctx, tx, caller, in.Order)
		if err != nil {
			return err
		}
		trust, err := orders.TrustPolicy(ctx, tx, o)
		if err != nil {
			return err
		}
		var doc approval.Standing
		g, err := orders.Gather(ctx, tx, caller, o, in.Envelope, s.now(), func(all []byte) error {
			held, err := orders.WithoutRemovedKeys(ctx, tx, trust, all)
			if err == nil {
				doc, err = trust.VerifyStanding(held)
			}
			if err == nil {
				err = s.checkStanding(o, doc)
			}
			return err
		})
		if err != nil {
			return err
		}
		if out, err = orders.Pending("standing-consent", trust, g); err != nil {
			return err
		}
		if g.Missing != nil {
			return s.recordStanding(ctx, tx, caller, auditlog.OpCoSign, o, out.Digest, map[string]string{"kind": out.Kind, "missing": out.Missing})
		}
		return s.keepStanding(ctx, tx, caller, o, doc, out)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// orderOf reads an order that caller may see.
func orderOf(ctx context.Context, tx *store.Tx, caller auth.Caller, id string) (store.Order, error) {
	o, err := tx.Order(ctx, protocol.OrderID(id))
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && !caller.Sees(o.Tenant) {
		err = notFound("order", id)
	}
	return o, err
}

// checkStanding refuses a standing consent of another order, or one that is over.
func (s *Service) checkStanding(o store.Order, doc approval.Standing) error {
	now := s.now()
	switch until := time.Unix(doc.Until, 0); {
	case doc.OrderID != o.ID:
		return protocol.Errorf(protocol.CodePolicyDigest, "the standing consent is for order %s, this is %s", doc.OrderID, o.ID)
	case !now.Before(until) || time.Unix(doc.Created, 0).After(now.Add(approval.Skew)):
		return protocol.Errorf(protocol.CodeWindow, "the standing consent stands from %s until %s, now is %s",
			protocol.Stamp(time.Unix(doc.Created, 0)), protocol.Stamp(until), protocol.Stamp(now))
	}
	return nil
}

func (s *Service) keepStanding(ctx context.Context, tx *store.Tx, caller auth.Caller, o store.Order, doc approval.Standing, signed *lockboxv1.Document) error {
	rows, err := tx.StandingConsents(ctx, o.ID)
	if err != nil {
		return err
	}
	if len(rows) >= maxStanding {
		return protocol.Errorf(protocol.CodeLimit, "order %s has had %d standing consents, which is the most", o.ID, len(rows))
	}
	row := store.StandingConsent{
		ID: doc.StandingID, Order: o.ID, Digest: signed.Digest, Envelope: signed.Envelope, Person: caller.Person,
		Created: time.Unix(doc.Created, 0).UTC(), Expires: time.Unix(doc.Until, 0).UTC(),
	}
	if err := tx.InsertStandingConsent(ctx, &row); err != nil {
		return err
	}
	return s.recordStanding(ctx, tx, caller, auditlog.OpSignStanding, o, row.Digest, map[string]string{
		"standingConsent": row.ID, "verdict": string(doc.Verdict), "access": string(doc.Access),
		"reasonCodes": strings.Join(doc.ReasonCodes, " "), "until": row.Expires.Format(time.RFC3339),
	})
}

func (s *Service) recordStanding(ctx context.Context, tx *store.Tx, caller auth.Caller, op auditlog.Operation, o store.Order, digest string, properties map[string]string) error {
	rec := auditlog.NewRecord(s.now(), op, auditlog.Success)
	rec.Caller, rec.ResourceID = string(caller.Person), resourceID(o)
	rec.Properties = map[string]string{audit.PropertyTenant: string(o.Tenant), audit.PropertySerial: string(o.Serial), "digest": digest}
	for k, v := range properties {
		rec.Properties[k] = v
	}
	_, err := s.cfg.Audit.Record(ctx, tx, rec)
	return err
}

// ListStandingConsents shows the standing consents of an order.
func (s *Service) ListStandingConsents(ctx context.Context, caller auth.Caller, in *lockboxv1.ListStandingConsentsRequest) (*lockboxv1.ListStandingConsentsResponse, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.ListStandingConsentsResponse, error) {
		o, err := orderOf(ctx, tx, caller, in.Order)
		if err != nil {
			return nil, err
		}
		rows, err := tx.StandingConsents(ctx, o.ID)
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.ListStandingConsentsResponse{}
		for _, row := range rows {
			shown, err := s.showStanding(o, row)
			if err != nil {
				return nil, err
			}
			out.Consents = append(out.Consents, shown)
		}
		return out, nil
	})
}

func (s *Service) showStanding(o store.Order, row store.StandingConsent) (*lockboxv1.StandingConsent, error) {
	e, err := approval.ParseEnvelope(row.Envelope)
	if err != nil {
		return nil, err
	}
	doc, err := approval.ParseStanding(e.Payload)
	if err != nil {
		return nil, err
	}
	state := "standing"
	switch {
	case !row.Revoked.IsZero():
		state = "revoked"
	case string(doc.PolicyDigest) != o.TrustPolicyDigest:
		state = "voided"
	case !s.now().Before(row.Expires):
		state = "expired"
	}
	return &lockboxv1.StandingConsent{
		Id: row.ID, Order: string(row.Order), Expires: unix(row.Expires), Revoked: unix(row.Revoked), State: state,
		Document: &lockboxv1.Document{
			Kind: "standing-consent", Payload: e.Payload, PayloadType: string(e.PayloadType), Digest: row.Digest, Envelope: row.Envelope,
		},
	}, nil
}

// RevokeStandingConsent ends a standing consent, and every access that it has
// allowed: those requests are revoked, and their devices lock. The device of the
// consent is told of it too, and heeds it no more, whoever brings it.
func (s *Service) RevokeStandingConsent(ctx context.Context, caller auth.Caller, in *lockboxv1.RevokeStandingConsentRequest) (*lockboxv1.StandingConsent, error) {
	if len(in.Reason) > maxText {
		return nil, invalid("a reason has at most %d bytes", maxText)
	}
	var shown *lockboxv1.StandingConsent
	var ended []store.Request
	err := s.change(ctx, func(tx *store.Tx) error {
		row, err := tx.StandingConsent(ctx, in.Id)
		if err != nil {
			return err
		}
		o, err := orderOf(ctx, tx, caller, string(row.Order))
		if err != nil {
			return notFound("standing consent", in.Id)
		}
		if !row.Revoked.IsZero() {
			return conflict("standing consent %s was revoked at %s", row.ID, protocol.Stamp(row.Revoked))
		}
		row.Revoked = s.now()
		if err := tx.UpdateStandingConsent(ctx, &row); err != nil {
			return err
		}
		if err := tx.SetTimer(ctx, timerStandingOff, row.ID, row.Revoked.Add(relockLease)); err != nil {
			return err
		}
		if ended, err = s.endUnder(ctx, tx, caller, row, in.Reason); err != nil {
			return err
		}
		if shown, err = s.showStanding(o, row); err != nil {
			return err
		}
		return s.recordStanding(ctx, tx, caller, auditlog.OpRevokeStanding, o, row.Digest, map[string]string{
			"standingConsent": row.ID, "reason": in.Reason, "ended": fmt.Sprint(len(ended)),
		})
	})
	if err != nil {
		return nil, err
	}
	s.tellOfEnd(context.WithoutCancel(ctx), caller, ended, nil)
	if err := s.standingOff(context.WithoutCancel(ctx), caller, in.Id); err != nil {
		s.cfg.Logger.Error().Err(err).Str("standingConsent", in.Id).Msg("cannot note whether a device knows that a standing consent was revoked: trying again")
	}
	return shown, nil
}

// standingOff tells the device of a standing consent that it was revoked. A node
// that does not confirm is told again, until the consent is over anyway.
func (s *Service) standingOff(ctx context.Context, caller auth.Caller, id string) error {
	row, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (store.StandingConsent, error) { return tx.StandingConsent(ctx, id) })
	if err != nil {
		return err
	}
	e, err := approval.ParseEnvelope(row.Envelope)
	if err != nil {
		return err
	}
	doc, err := approval.ParseStanding(e.Payload)
	if err != nil {
		return err
	}
	in := custody.LockIn{
		Caller: caller, Reason: "revoked", Subject: approval.Digest(row.Digest), Spend: true, Tenant: doc.TenantID, Correlation: row.ID,
	}
	for _, n := range doc.Nodes {
		in.Nodes = append(in.Nodes, n.ID())
	}
	results := s.cfg.Custody.Lock(ctx, in)
	unheard := slices.ContainsFunc(results, func(r *lockboxv1.RelockResult) bool { return !r.Confirmed })
	return s.change(ctx, func(tx *store.Tx) error {
		if !unheard || !s.now().Before(row.Expires) {
			return tx.CancelTimer(ctx, timerStandingOff, id)
		}
		return tx.SetTimer(ctx, timerStandingOff, id, s.now().Add(again(s.now(), row.Revoked)))
	})
}

func (s *Service) standingOffAgain(ctx context.Context, t store.Timer) error {
	if err := s.change(ctx, func(tx *store.Tx) error { return s.take(ctx, tx, t) }); err != nil {
		return err
	}
	return s.standingOff(ctx, auth.SystemCaller(), t.Subject)
}

// endUnder ends the approved requests for which a standing consent decided.
func (s *Service) endUnder(ctx context.Context, tx *store.Tx, caller auth.Caller, row store.StandingConsent, detail string) ([]store.Request, error) {
	rows, err := tx.Requests(ctx, store.RequestFilter{Order: row.Order, Statuses: []string{string(Approved)}})
	if err != nil {
		return nil, err
	}
	var ended []store.Request
	for _, r := range rows {
		decisions, err := tx.Decisions(ctx, r.ID)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(decisions, func(d store.Decision) bool { return d.Person == protocol.Person(row.ID) }) {
			continue
		}
		if err := s.end(ctx, tx, caller, &r, TakenBack, "revoked", detail); err != nil {
			return nil, err
		}
		ended = append(ended, r)
	}
	return ended, nil
}
