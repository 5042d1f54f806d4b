package notify

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// How many deliveries are listed at once.
const (
	defaultList = 100
	maxList     = 1000
)

// ListNotices lists deliveries, newest first. Customers see what their own
// organization was told.
func (s *Service) ListNotices(ctx context.Context, caller auth.Caller, in *lockboxv1.ListNoticesRequest) (*lockboxv1.ListNoticesResponse, error) {
	f := scope(caller, in.Tenant)
	f.Subject, f.State, f.Channel = in.Subject, in.State, in.Channel
	f.Limit = min(cmp.Or(int(max(in.Limit, 0)), defaultList), maxList)
	out := &lockboxv1.ListNoticesResponse{}
	err := s.cfg.Store.View(ctx, func(tx *store.Tx) error {
		list, err := tx.Words(ctx, f)
		for _, w := range list {
			out.Deliveries = append(out.Deliveries, Show(caller, w))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// scope limits customers to what their organization was told.
func scope(caller auth.Caller, tenant string) store.WordFilter {
	f := store.WordFilter{Tenant: protocol.TenantID(tenant)}
	if caller.Role.OfCustomer() {
		f.Tenant, f.Audience = caller.Tenant, store.ToCustomer
	}
	return f
}

// RetryNotices has deliveries that were given up tried again: those named, or all
// that the caller may see.
func (s *Service) RetryNotices(ctx context.Context, caller auth.Caller, in *lockboxv1.RetryNoticesRequest) (*lockboxv1.RetryNoticesResponse, error) {
	if len(in.Ids) > maxList {
		return nil, protocol.Errorf(protocol.CodeInvalid, "%d deliveries: name at most %d, or none for all", len(in.Ids), maxList)
	}
	out := &lockboxv1.RetryNoticesResponse{}
	err := s.cfg.Store.Tx(ctx, func(tx *store.Tx) error {
		list, err := s.dead(ctx, tx, caller, in)
		if err != nil {
			return err
		}
		retried := map[protocol.TenantID][]string{}
		for _, w := range list {
			w.State, w.Attempts, w.NextAttempt = store.DeliveryWaiting, 0, s.now()
			if err := tx.UpdateDelivery(ctx, &w.Delivery); err != nil {
				return err
			}
			retried[w.Tenant] = append(retried[w.Tenant], w.ID)
		}
		out.Retried = int32(len(list))
		for tenant, ids := range retried {
			err := s.record(ctx, tx, caller, auditlog.OpRetryNotice, "/notices", tenant, map[string]string{"deliveries": strings.Join(ids[:min(len(ids), 16)], ", ")})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.wakeUp()
	return out, nil
}

// dead reads what is to be tried again.
func (s *Service) dead(ctx context.Context, tx *store.Tx, caller auth.Caller, in *lockboxv1.RetryNoticesRequest) ([]store.Word, error) {
	f := scope(caller, in.Tenant)
	if len(in.Ids) == 0 {
		f.State, f.Limit = store.DeliveryDead, maxList
		return tx.Words(ctx, f)
	}
	var list []store.Word
	for _, id := range in.Ids {
		w, err := tx.Word(ctx, id)
		unseen := f.Tenant != "" && w.Tenant != f.Tenant || f.Audience != "" && w.Audience != f.Audience
		if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && unseen {
			return nil, protocol.Errorf(protocol.CodeNotFound, "delivery %s not found", id)
		}
		if err != nil {
			return nil, err
		}
		if w.State != store.DeliveryDead {
			return nil, protocol.Errorf(protocol.CodeConflict, "delivery %s is %s: only what was given up is tried again", id, w.State)
		}
		list = append(list, w)
	}
	return list, nil
}

// Show is a delivery as caller may see it. The provider's people do not learn a
// customer's addresses by it.
func Show(caller auth.Caller, w store.Word) *lockboxv1.Delivery {
	d := &lockboxv1.Delivery{
		Id: w.ID, Notice: w.Notice, Kind: w.Kind, Channel: w.Channel, Recipient: w.Recipient, Subject: w.Subject, Number: w.Number,
		Title: w.Title, State: w.State, Attempts: w.Attempts, Created: w.Created.Unix(), LastError: w.LastError, Tenant: string(w.Tenant),
	}
	if !w.Sent.IsZero() {
		d.Sent = w.Sent.Unix()
	}
	if w.State == store.DeliveryWaiting {
		d.NextAttempt = w.NextAttempt.Unix()
	}
	if w.Audience == store.ToCustomer && !caller.Role.OfCustomer() && !caller.Is(auth.System) {
		d.Recipient = auth.Masked(w.Recipient)
		d.LastError = strings.ReplaceAll(w.LastError, w.Recipient, d.Recipient)
	}
	return d
}

// CreateWebhook has what a tenant's people are told sent to a URL as well.
func (s *Service) CreateWebhook(ctx context.Context, caller auth.Caller, in *lockboxv1.CreateWebhookRequest) (*lockboxv1.CreateWebhookResponse, error) {
	tenant := protocol.TenantID(cmp.Or(in.Tenant, string(caller.Scope())))
	if !caller.Sees(tenant) {
		return nil, protocol.Errorf(protocol.CodeNotFound, "tenant %s not found", tenant)
	}
	if err := s.hooks.check(in.Url); err != nil {
		return nil, err
	}
	out := &lockboxv1.CreateWebhookResponse{}
	if in.Secret == "" {
		in.Secret = newSecret()
		out.Secret = in.Secret
	}
	secret, err := parseSecret(in.Secret)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	w := store.Webhook{ID: newID(webhookPrefix), Tenant: tenant, URL: in.Url, CreatedBy: caller.Person, Created: s.now()}
	w.Secret = s.hooks.secret.Seal(nil, nil, secret, []byte(w.ID))
	err = s.cfg.Store.Tx(ctx, func(tx *store.Tx) error {
		if _, err := tx.Tenant(ctx, tenant); err != nil {
			return err
		}
		has, err := tx.Webhooks(ctx, tenant)
		if err != nil {
			return err
		}
		if len(has) >= maxWebhooks {
			return protocol.Errorf(protocol.CodeLimit, "tenant %s has %d webhooks: remove one first", tenant, len(has))
		}
		if err := tx.InsertWebhook(ctx, &w); err != nil {
			return err
		}
		return s.recordWebhook(ctx, tx, caller, auditlog.OpCreateWebhook, w)
	})
	if err != nil {
		return nil, err
	}
	out.Webhook = showWebhook(w)
	return out, nil
}

// ListWebhooks lists the webhooks that the caller may see.
func (s *Service) ListWebhooks(ctx context.Context, caller auth.Caller, in *lockboxv1.ListWebhooksRequest) (*lockboxv1.ListWebhooksResponse, error) {
	out := &lockboxv1.ListWebhooksResponse{}
	err := s.cfg.Store.View(ctx, func(tx *store.Tx) error {
		list, err := tx.Webhooks(ctx, scope(caller, in.Tenant).Tenant)
		for _, w := range list {
			out.Webhooks = append(out.Webhooks, showWebhook(w))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// RemoveWebhook ends a webhook: it is not called any more, also with what waits
// for it.
func (s *Service) RemoveWebhook(ctx context.Context, caller auth.Caller, in *lockboxv1.RemoveWebhookRequest) (*lockboxv1.Webhook, error) {
	var w store.Webhook
	err := s.cfg.Store.Tx(ctx, func(tx *store.Tx) (err error) {
		if w, err = webhook(ctx, tx, caller, in.Id); err != nil {
			return err
		}
		w.Removed, w.Secret = s.now(), []byte{}
		if err := tx.UpdateWebhook(ctx, &w); err != nil {
			return err
		}
		return s.recordWebhook(ctx, tx, caller, auditlog.OpDeleteWebhook, w)
	})
	if err != nil {
		return nil, err
	}
	return showWebhook(w), nil
}

// TestWebhook calls a webhook now, once, with an event of the kind test.
func (s *Service) TestWebhook(ctx context.Context, caller auth.Caller, in *lockboxv1.TestWebhookRequest) (*lockboxv1.TestWebhookResponse, error) {
	var w store.Webhook
	err := s.cfg.Store.Tx(ctx, func(tx *store.Tx) (err error) {
		if w, err = webhook(ctx, tx, caller, in.Id); err != nil {
			return err
		}
		return s.recordWebhook(ctx, tx, caller, auditlog.OpTestWebhook, w)
	})
	if err != nil {
		return nil, err
	}
	n, err := s.render(Event{Kind: TestNotice, Customer: true, Tenant: w.Tenant, Subject: w.ID})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second+webhookLimit)
	defer cancel()
	if err := s.call(ctx, w, n); err != nil {
		return &lockboxv1.TestWebhookResponse{Error: oneLine(err.Error())}, nil
	}
	return &lockboxv1.TestWebhookResponse{Delivered: true}, nil
}

// webhook reads a webhook that caller may see and that was not removed.
func webhook(ctx context.Context, tx *store.Tx, caller auth.Caller, id string) (store.Webhook, error) {
	w, err := tx.Webhook(ctx, id)
	if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && (!caller.Sees(w.Tenant) || !w.Removed.IsZero()) {
		err = protocol.Errorf(protocol.CodeNotFound, "webhook %s not found", id)
	}
	return w, err
}

func showWebhook(w store.Webhook) *lockboxv1.Webhook {
	return &lockboxv1.Webhook{Id: w.ID, Tenant: string(w.Tenant), Url: w.URL, CreatedBy: string(w.CreatedBy), Created: w.Created.Unix()}
}

func (s *Service) recordWebhook(ctx context.Context, tx *store.Tx, caller auth.Caller, op auditlog.Operation, w store.Webhook) error {
	return s.record(ctx, tx, caller, op, "/webhooks/"+w.ID, w.Tenant, nil)
}

func (s *Service) record(ctx context.Context, tx *store.Tx, caller auth.Caller, op auditlog.Operation, resource string, tenant protocol.TenantID, properties map[string]string) error {
	rec := auditlog.NewRecord(s.now(), op, auditlog.Success)
	rec.Caller, rec.ResourceID = string(caller.Person), resource
	rec.Properties = map[string]string{}
	if tenant != "" {
		rec.Properties[audit.PropertyTenant] = string(tenant)
	}
	for k, v := range properties {
		rec.Properties[k] = v
	}
	_, err := s.cfg.Audit.Record(ctx, tx, rec)
	return err
}
