package orders

import (
	"context"
	"net/url"
	"regexp"
	"slices"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// nodesOf says how many nodes the devices of each kind have.
var nodesOf = map[string]int{"databox": 1, "databox-heavy": 2}

// maxAccounts is how many storage accounts one order may go to.
const maxAccounts = 10

var orderForm = regexp.MustCompile(`^[A-Z0-9][A-Z0-9-]{2,31}$`)

// numberedForm is the form of ids that are given out here: no customer may take
// one, or they could keep all others from ordering.
var numberedForm = regexp.MustCompile(`^` + store.NumberedOrder + `[0-9]`)

// PlaceOrder makes an import order. The storage accounts it names become the
// tenant's; those of another tenant are refused with [protocol.CodeForbidden].
func (s *Service) PlaceOrder(ctx context.Context, caller auth.Caller, in *lockboxv1.PlaceOrderRequest) (*lockboxv1.Order, error) {
	if in.Id != "" && !orderForm.MatchString(in.Id) {
		return nil, invalid("%q is no order id: want 3 to 32 of A-Z, 0-9 and dash, or leave it out", in.Id)
	}
	if numberedForm.MatchString(in.Id) {
		return nil, invalid("ids like %s are given out by the service: choose another, or leave it out", in.Id)
	}
	if nodesOf[in.Sku] == 0 {
		return nil, invalid("sku %q is unknown: want databox or databox-heavy", in.Sku)
	}
	destinations, err := readDestinations(in.Destinations)
	if err != nil {
		return nil, err
	}
	now := s.now()
	o := store.Order{
		ID: protocol.OrderID(in.Id), Subscription: protocol.SubscriptionID(in.Subscription), SKU: in.Sku,
		Stage: trip[0].stage, Status: trip[0].status, Destinations: destinations, Created: now, Updated: now,
	}
	err = s.change(ctx, string(caller.Person), auditlog.OpPlaceOrder, func(tx *store.Tx, rec *auditlog.Record) error {
		sub, err := tx.Subscription(ctx, o.Subscription)
		if err == nil && !caller.Sees(sub.Tenant) {
			err = notFound("subscription", in.Subscription)
		}
		if err != nil {
			return err
		}
		o.Tenant = sub.Tenant
		if o.ID == "" {
			if o.ID, err = tx.NextOrderID(ctx); err != nil {
				return err
			}
		}
		about(rec, o)
		if err := s.claim(ctx, tx, o); err != nil {
			return err
		}
		if err := tx.InsertOrder(ctx, &o); err != nil {
			return err
		}
		return s.addHistory(ctx, tx, o, trip[0].history, "by "+string(caller.Person))
	})
	if err != nil {
		return nil, err
	}
	return s.GetOrder(ctx, caller, &lockboxv1.GetOrderRequest{Id: string(o.ID)})
}

func readDestinations(list []*lockboxv1.Destination) ([]store.Destination, error) {
	if len(list) == 0 || len(list) > maxAccounts {
		return nil, invalid("an order has 1 to %d destinations, this one %d", maxAccounts, len(list))
	}
	var out []store.Destination
	for _, d := range list {
		if err := checkDestination(d); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(o store.Destination) bool { return o.Account == d.Account }) {
			return nil, invalid("account %s is named twice", d.Account)
		}
		out = append(out, store.Destination{Account: d.Account, Endpoint: d.Endpoint, Shares: d.Shares})
	}
	return out, nil
}

func checkDestination(d *lockboxv1.Destination) error {
	u, err := url.Parse(d.Endpoint)
	folder := err == nil && u.Scheme == "file" && u.Host == "" && u.Path != "" && u.User == nil && u.RawQuery == ""
	if err := manifest.CheckEndpoint(d.Endpoint); !folder && err != nil {
		return invalid("%v, or file:///<folder> of the device", err)
	}
	if len(d.Endpoint) > maxName {
		return invalid("endpoint of account %q is longer than %d bytes", d.Account, maxName)
	}
	if len(d.Shares) == 0 || len(d.Shares) > 3 {
		return invalid("account %q has 1 to 3 shares, as in %s_BlockBlob", d.Account, d.Account)
	}
	for _, name := range d.Shares {
		share, err := manifest.ParseShare(name)
		if err != nil {
			return invalid("%v", err)
		}
		if share.Account != d.Account {
			return invalid("share %s does not belong to account %q", name, d.Account)
		}
		if share.Kind == manifest.AzFile && !folder {
			return invalid("nothing is uploaded to Azure Files, so %s cannot go to %s: have the files put on %s_BlockBlob, or send them to file:///<folder> of the device",
				name, d.Endpoint, d.Account)
		}
	}
	return nil
}

// GetOrder shows one order: to an engineer without a ticket about it, or access to
// its subscription, an outline.
func (s *Service) GetOrder(ctx context.Context, caller auth.Caller, in *lockboxv1.GetOrderRequest) (*lockboxv1.Order, error) {
	o, whole, err := s.seesWhole(ctx, caller, in.Id, readOrder)
	if err != nil {
		return nil, err
	}
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.Order, error) {
		o, err := tx.Order(ctx, o.ID)
		if err != nil {
			return nil, err
		}
		return showOrder(ctx, tx, o, whole)
	})
}

// ListOrders shows the orders that the caller may see, as [Service.GetOrder] does.
func (s *Service) ListOrders(ctx context.Context, caller auth.Caller, in *lockboxv1.ListOrdersRequest) (*lockboxv1.ListOrdersResponse, error) {
	tenant := protocol.TenantID(in.Tenant)
	if scope := caller.Scope(); scope != "" {
		tenant = scope
	}
	v, err := s.sightOf(ctx, caller, readOrders, nil)
	if err != nil {
		return nil, err
	}
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.ListOrdersResponse, error) {
		list, err := tx.Orders(ctx, tenant)
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.ListOrdersResponse{}
		for _, o := range list {
			if !caller.Sees(o.Tenant) {
				continue
			}
			shown, err := showOrder(ctx, tx, o, v.whole(o))
			if err != nil {
				return nil, err
			}
			out.Orders = append(out.Orders, shown)
		}
		return out, nil
	})
}

// AdvanceOrder records the device's trip, one stage at a time.
func (s *Service) AdvanceOrder(ctx context.Context, caller auth.Caller, in *lockboxv1.AdvanceOrderRequest) (*lockboxv1.Order, error) {
	err := s.change(ctx, string(caller.Person), auditlog.OpAdvanceOrder, func(tx *store.Tx, rec *auditlog.Record) error {
		o, err := order(ctx, tx, caller, in.Order)
		if err != nil {
			return err
		}
		i, err := nextStage(o.Stage, in.Stage)
		if err != nil {
			return err
		}
		about(rec, o)
		rec.Properties["from"], rec.Properties["to"] = o.Stage, in.Stage
		o.Stage, o.Status, o.Updated = trip[i].stage, trip[i].status, s.now()
		if err := tx.UpdateOrder(ctx, &o); err != nil {
			return err
		}
		return s.addHistory(ctx, tx, o, trip[i].history, "by "+string(caller.Person))
	})
	if err != nil {
		return nil, err
	}
	return s.GetOrder(ctx, caller, &lockboxv1.GetOrderRequest{Id: in.Order})
}

func showOrder(ctx context.Context, tx *store.Tx, o store.Order, whole bool) (*lockboxv1.Order, error) {
	if !whole {
		return &lockboxv1.Order{
			Id: string(o.ID), Subscription: string(o.Subscription), Tenant: string(o.Tenant), Stage: o.Stage, Sku: o.SKU, Serial: string(o.Serial), Outline: true,
		}, nil
	}
	lines, err := tx.History(ctx, store.OrderHistory, string(o.ID))
	if err != nil {
		return nil, err
	}
	nodes, err := showNodes(ctx, tx, o)
	if err != nil {
		return nil, err
	}
	jobs, err := tx.NodeJobs(ctx, o.ID)
	if err != nil {
		return nil, err
	}
	out := &lockboxv1.Order{
		Id: string(o.ID), Subscription: string(o.Subscription), Tenant: string(o.Tenant), Stage: o.Stage, Status: o.Status,
		Sku: o.SKU, Serial: string(o.Serial), Nodes: nodes, History: history(lines), JobState: o.JobState, ErrorCodes: o.ErrorCodes,
		TrustPolicyVersion: int32(o.TrustPolicyVersion), TrustPolicyDigest: o.TrustPolicyDigest, ConsentDigest: o.ConsentDigest,
		FilesTotal: o.FilesTotal, FilesDone: o.FilesDone, FilesErrored: o.FilesErrored, BytesDone: o.BytesDone,
	}
	for _, j := range jobs {
		out.BytesTotal += j.BytesTotal
		if j.State == JobRunning {
			out.BytesPerSecond += j.Rate
		}
	}
	out.Destinations, err = showDestinations(ctx, tx, o)
	return out, err
}

func showNodes(ctx context.Context, tx *store.Tx, o store.Order) ([]*lockboxv1.OrderNode, error) {
	nodes, err := tx.NodesOfOrder(ctx, o.ID)
	if err != nil {
		return nil, err
	}
	disks, err := tx.DisksOfOrder(ctx, o.ID)
	if err != nil {
		return nil, err
	}
	var out []*lockboxv1.OrderNode
	for _, n := range nodes {
		shown := &lockboxv1.OrderNode{Node: int32(n.ID.Node), KeyFingerprint: n.KeyFingerprint}
		for _, d := range disks {
			if d.Node == n.ID {
				shown.Disks = append(shown.Disks, string(d.ID))
			}
		}
		out = append(out, shown)
	}
	return out, nil
}
