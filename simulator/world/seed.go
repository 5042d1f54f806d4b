package world

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/databox-lockbox/lockbox/agent"
	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/simulator/actor"
)

// Crew are the people of a world, logged in, by the part of their name before
// the @. What they do here goes through the public API, as it would from the
// command line.
type Crew struct {
	people  map[string]actor.Person
	clients map[string]*client.Client
}

// Register makes the tenant, its subscription and everybody in the world, at a
// control plane that was just started for the first time. The caller closes
// the crew.
func (w *World) Register(ctx context.Context) (_ *Crew, err error) {
	c := &Crew{people: w.People, clients: make(map[string]*client.Client)}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	admin, err := w.Client(ctx, "admin")
	if err != nil {
		return nil, err
	}
	c.clients["admin"] = admin
	if err := makeTenant(ctx, admin); err != nil {
		return nil, err
	}
	for short, p := range w.People {
		if short == "admin" {
			continue
		}
		if err := w.hire(ctx, admin, p); err != nil {
			return nil, fmt.Errorf("cannot register %s: %w", p.Name, err)
		}
		if c.clients[short], err = w.Client(ctx, short); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func makeTenant(ctx context.Context, admin *client.Client) error {
	if _, err := admin.Tenants.CreateTenant(ctx, &lockboxv1.CreateTenantRequest{Id: string(Tenant), Name: "Contoso Ltd."}); err != nil {
		return err
	}
	_, err := admin.Tenants.CreateSubscription(ctx, &lockboxv1.CreateSubscriptionRequest{
		Id: string(Subscription), Tenant: string(Tenant), SupportPlan: "Developer",
	})
	if err != nil {
		return err
	}
	_, err = admin.Tenants.EnableLockbox(ctx, &lockboxv1.EnableLockboxRequest{Tenant: string(Tenant)})
	return err
}

// hire registers a person and leaves their login token for them.
func (w *World) hire(ctx context.Context, admin *client.Client, p actor.Person) error {
	key, err := os.ReadFile(p.KeyFile() + ".pub")
	if err != nil {
		return err
	}
	resp, err := admin.Accounts.CreatePerson(ctx, &lockboxv1.CreatePersonRequest{
		Name: string(p.Name), Role: p.Role, Tenant: string(p.Tenant), SshKeys: []string{strings.TrimSpace(string(key))},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(w.TokenFile(p.Short()), []byte(resp.LoginToken), 0o600)
}

// As returns the API as somebody sees it. Asking for one who is not in the world
// is a mistake of the caller.
func (c *Crew) As(short string) *client.Client {
	one, ok := c.clients[short]
	if !ok {
		panic("world: internal error: there is no " + short)
	}
	return one
}

// Close drops everybody's connections.
func (c *Crew) Close() {
	for _, one := range c.clients {
		one.Close()
	}
}

// Prepared reads what provisioning wrote of a device, see [World.PrepareDevices].
func (w *World) Prepared(d Device) (*lockboxv1.PrepareDeviceRequest, error) {
	data, err := os.ReadFile(w.PreparedFile(d))
	if err != nil {
		return nil, err
	}
	defer clear(data)
	req := &lockboxv1.PrepareDeviceRequest{}
	return req, protojson.Unmarshal(data, req)
}

// Destinations are the storage accounts of the profile, for an order.
func (w *World) Destinations() []*lockboxv1.Destination {
	var out []*lockboxv1.Destination
	for _, account := range w.Profile.Accounts() {
		shares := []string{account + "_BlockBlob", account + "_PageBlob"}
		if w.blobs.Endpoint == "" { // nothing is uploaded to Azure Files
			shares = append(shares, account+"_AzFile")
		}
		out = append(out, &lockboxv1.Destination{Account: account, Endpoint: w.Endpoint(), Shares: shares})
	}
	return out
}

// Credential is what lets into the storage accounts, "" if they are folders.
func (w *World) Credential() string { return w.blobs.Credential }

// Order places an order with the device of prepared, whose keys go into custody,
// and has the customer sign its trust policy, which it returns.
func (c *Crew) Order(ctx context.Context, sku string, to []*lockboxv1.Destination, prepared *lockboxv1.PrepareDeviceRequest) (policy []byte, err error) {
	order := prepared.Order
	_, err = c.As("olga").Orders.PlaceOrder(ctx, &lockboxv1.PlaceOrderRequest{
		Id: order, Subscription: string(Subscription), Sku: sku, Destinations: to,
	})
	if err != nil {
		return nil, err
	}
	if _, err := c.As("sam").Orders.PrepareDevice(ctx, prepared); err != nil {
		return nil, err
	}
	draft, err := c.As("olga").Orders.DraftTrustPolicy(ctx, &lockboxv1.DraftTrustPolicyRequest{Order: order, NoRecovery: true})
	if err != nil {
		return nil, err
	}
	doc, err := approval.ParseTrustPolicy(draft.Payload)
	if err != nil {
		return nil, err
	}
	envelope, err := c.sign("olga", doc)
	if err != nil {
		return nil, err
	}
	signed, err := c.As("olga").Orders.SubmitTrustPolicy(ctx, &lockboxv1.SubmitTrustPolicyRequest{Order: order, Envelope: envelope})
	if err != nil {
		return nil, err
	}
	return signed.Envelope, nil
}

// Ship takes the device of an order to the customer and to the datacenter.
func (c *Crew) Ship(ctx context.Context, order protocol.OrderID) error {
	for _, stage := range []string{"Dispatched", "Delivered", "PickedUp", "AtAzureDC"} {
		_, err := c.As("sam").Orders.AdvanceOrder(ctx, &lockboxv1.AdvanceOrderRequest{Order: string(order), Stage: stage})
		if err != nil {
			return err
		}
	}
	return nil
}

// Enrol enrols a node, whose settings are cfg, at the API of server with a join
// token that staff asked for.
func (c *Crew) Enrol(ctx context.Context, server string, order protocol.OrderID, cfg agent.Config, policy []byte) error {
	resp, err := c.As("sam").Orders.CreateJoinToken(ctx, &lockboxv1.CreateJoinTokenRequest{
		Order: string(order), Serial: cfg.Serial, Node: int32(cfg.Node),
	})
	if err != nil {
		return err
	}
	return agent.Enroll(ctx, cfg, server, resp.Token, policy)
}

// Request raises a request to unlock a device, as its engineer with a ticket
// that is theirs.
func (c *Crew) Request(ctx context.Context, serial protocol.DeviceSerial, ticket string) (*lockboxv1.Request, error) {
	return c.As("erin").Requests.CreateRequest(ctx, &lockboxv1.CreateRequestRequest{
		Action: "Unlock Databox", Serial: string(serial), Ticket: ticket,
		ReasonCode: "copied-to-wrong-folder", Justification: "files are in the wrong folder",
	})
}

// Execute executes a request, as its engineer, to its end.
func (c *Crew) Execute(ctx context.Context, request string) error {
	progress, err := c.As("erin").Requests.ExecuteRequest(ctx, &lockboxv1.ExecuteRequestRequest{Id: request})
	if err != nil {
		return err
	}
	defer progress.Close()
	for {
		if _, err := progress.Receive(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// Approval signs, as somebody, that they approve a request.
func (c *Crew) Approval(ctx context.Context, short, request string) (envelope []byte, err error) {
	return c.Decision(ctx, short, request, approval.Approve, 0)
}

// Decision signs, as somebody, what they decide about a request: for how long at
// most, as long as is asked for if 0.
func (c *Crew) Decision(ctx context.Context, short, request string, verdict approval.Verdict, longest time.Duration) (envelope []byte, err error) {
	key, err := c.people[short].Fingerprint()
	if err != nil {
		return nil, err
	}
	draft, err := c.As(short).Requests.DraftDecision(ctx, &lockboxv1.DraftDecisionRequest{
		Id: request, Verdict: string(verdict), KeyFingerprint: key, MaxDurationSeconds: int64(longest / time.Second),
	})
	if err != nil {
		return nil, err
	}
	doc, err := approval.ParseDecision(draft.Payload)
	if err != nil {
		return nil, err
	}
	return c.sign(short, doc)
}

func (c *Crew) sign(short string, doc approval.Document) ([]byte, error) {
	key, err := c.people[short].Fingerprint()
	if err != nil {
		return nil, err
	}
	return c.people[short].Sign(doc, key)
}

// EnrolNode enrols a node of the world, see [Crew.Enrol].
func (c *Crew) EnrolNode(ctx context.Context, w *World, order protocol.OrderID, n Node, policy []byte) error {
	cfg, err := agent.LoadConfig(n.ConfigFile())
	if err != nil {
		return err
	}
	return c.Enrol(ctx, w.API, order, cfg, policy)
}

// RemoveRun removes what the world keeps outside its folder, once nothing of it
// runs any more: the folders of its nodes' sockets. It leaves one in which
// something is still mounted, and says so.
func (w *World) RemoveRun() error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range w.Nodes() {
		if strings.Contains(string(mounts), " "+n.Run+"/") {
			errs = append(errs, fmt.Errorf("something is still mounted in %s", n.Run))
			continue
		}
		errs = append(errs, os.RemoveAll(n.Run))
	}
	os.Remove(filepath.Dir(w.Device.Nodes[0].Run)) // if it is empty
	return errors.Join(errs...)
}
