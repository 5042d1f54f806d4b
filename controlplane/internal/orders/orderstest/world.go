// Package orderstest gives tests a control plane as far up as orders, with a
// device that has no disks but verifies everything with the real code.
package orderstest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// What the world is made of.
const (
	Tenant       = "contoso"
	Subscription = "6a0e3c1e-9b0b-4c8e-8d3a-0c6a4a7d9f01"
	Order        = "ORD-1001"
	Serial       = "DBX0001"
	Share        = "contosodata_BlockBlob"
	Endpoint     = "file:///srv/blobs"
	Password     = "000011-000022-000033-000044-000055-000066-000077-000088"
)

// Keys are the SSH keys of people. Only tests may make them.
type Keys interface {
	// Line is a person's public key as a line of authorized_keys.
	Line(who protocol.Person) string
	// Sign returns doc's envelope, signed by that person under that key id.
	Sign(t testing.TB, who protocol.Person, keyID string, doc *lockboxv1.Document) []byte
}

// World is a control plane and one device.
type World struct {
	T         testing.TB
	Store     *store.Store
	Audit     *audit.Service
	Custody   *custody.Service
	Authority *certs.Authorities
	Orders    *orders.Service
	Keys      Keys
	Nodes     []*Node
	More      []*lockboxv1.Destination // that the order goes to, beside Endpoint
	Now       func() time.Time
	Service   ed25519.PrivateKey // the service key

	// PolicyReplaced is what follows when a trust policy is replaced; nil: nothing.
	PolicyReplaced func(context.Context, *store.Tx, auth.Caller, store.Order, *approval.Policy) (func(context.Context), error)
	// Reach is what an engineer was given access to; nil: nothing.
	Reach func(context.Context, auth.Caller, string, *store.Order) (store.Reach, error)

	mu           sync.Mutex
	disconnected []protocol.NodeID
}

// The people of the world. Ian approves for the provider; Olga and Adam of
// Contoso for the customer; Erin and Eve are engineers; Mallory is of another
// customer.
var (
	Admin   = auth.Caller{Person: "ada@provider.example", Role: auth.Admin}
	Staff   = auth.Caller{Person: "sam@provider.example", Role: auth.Staff}
	Erin    = auth.Caller{Person: "erin@provider.example", Role: auth.Engineer}
	Eve     = auth.Caller{Person: "eve@provider.example", Role: auth.Engineer}
	Ian     = auth.Caller{Person: "ian@provider.example", Role: auth.InternalApprover}
	Olga    = auth.Caller{Person: "olga@contoso.example", Role: auth.Owner, Tenant: Tenant}
	Adam    = auth.Caller{Person: "adam@contoso.example", Role: auth.Approver, Tenant: Tenant}
	Mallory = auth.Caller{Person: "mallory@fabrikam.example", Role: auth.Owner, Tenant: "fabrikam"}
)

// SignedIn is c as they come in by the API: with a certificate for a login token.
func SignedIn(c auth.Caller, now time.Time) auth.Caller {
	c.Expires, c.Isolated = now.Add(12*time.Hour), true
	return c
}

// New makes a world of people, without tenants and orders. The device has so
// many nodes, of two disks each.
func New(t testing.TB, nodes int, keys Keys, now func() time.Time) *World {
	t.Helper()
	w := &World{T: t, Store: storetest.New(t), Keys: keys, Now: now}
	_, logKey, _ := ed25519.GenerateKey(rand.Reader)
	_, w.Service, _ = ed25519.GenerateKey(rand.Reader)
	w.Audit = must(audit.New(t.Context(), audit.Config{Store: w.Store, Key: logKey, Now: now}))(t)
	w.Custody = custody.New(custody.Config{
		Store: w.Store, Audit: w.Audit, Nodes: w, Signer: w.Service, DeadMan: time.Minute, Now: now, Logger: zerolog.Nop(),
		Keys: must(custody.OpenMasterKey(filepath.Join(t.TempDir(), "master.key"), true))(t),
	})
	var err error
	if w.Authority, _, err = certs.Open(filepath.Join(t.TempDir(), "authority")); err != nil {
		t.Fatal(err)
	}
	w.Authority.Now = now
	w.Orders = orders.New(orders.Config{
		Store: w.Store, Audit: w.Audit, Tunnels: w, Authority: w.Authority, Custody: w.Custody,
		ServiceKey: w.Service.Public().(ed25519.PublicKey), TunnelAddress: "127.0.0.1:7443", Heartbeat: 15 * time.Second,
		Now: now, Logger: zerolog.Nop(),
		PolicyReplaced: func(ctx context.Context, tx *store.Tx, caller auth.Caller, o store.Order, next *approval.Policy) (func(context.Context), error) {
			if w.PolicyReplaced == nil {
				return nil, nil
			}
			return w.PolicyReplaced(ctx, tx, caller, o, next)
		},
		Reach: func(ctx context.Context, caller auth.Caller, operation string, of *store.Order) (store.Reach, error) {
			if w.Reach == nil {
				return store.Reach{}, nil
			}
			return w.Reach(ctx, caller, operation, of)
		},
	})
	for n := range nodes {
		w.Nodes = append(w.Nodes, newNode(protocol.NodeID{Serial: Serial, Node: n + 1}, now, "disk1", "disk2"))
	}
	return w
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// Node implements the way to devices.
func (w *World) Node(id protocol.NodeID) (devicev1.NodeServiceClient, error) {
	if !w.Online(id) {
		return nil, protocol.Errorf(protocol.CodeOffline, "node %s is not connected", id)
	}
	return w.node(id).client, nil
}

// Online implements the way to devices.
func (w *World) Online(id protocol.NodeID) bool {
	n := w.node(id)
	if n == nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.offline
}

// Disconnect implements the way to devices.
func (w *World) Disconnect(id protocol.NodeID, _ string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.disconnected = append(w.disconnected, id)
}

// Disconnected are the nodes whose tunnels were closed, in order.
func (w *World) Disconnected() []protocol.NodeID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]protocol.NodeID(nil), w.disconnected...)
}

func (w *World) node(id protocol.NodeID) *Node {
	for _, n := range w.Nodes {
		if n.ID == id {
			return n
		}
	}
	return nil
}

// People registers tenants and people, Lockbox still off.
func (w *World) People() {
	w.T.Helper()
	ctx := w.T.Context()
	for _, id := range []string{Tenant, "fabrikam"} {
		must(w.Orders.CreateTenant(ctx, Admin, &lockboxv1.CreateTenantRequest{Id: id, Name: strings.ToUpper(id)}))(w.T)
	}
	w.Register(Admin, Staff, Erin, Eve, Ian, Olga, Adam, Mallory)
}

// Register registers people, each with the key that [Keys] has for them.
func (w *World) Register(people ...auth.Caller) {
	w.T.Helper()
	storetest.Tx(w.T, w.Store, func(ctx context.Context, tx *store.Tx) error {
		for _, c := range people {
			now := w.Now()
			p := store.Person{Name: c.Person, Role: string(c.Role), Tenant: c.Tenant, Created: now}
			if c.Is(auth.InternalApprover) {
				p.Groups = []string{auth.DefaultGroup}
			}
			if err := tx.InsertPerson(ctx, &p); err != nil {
				return err
			}
			line := w.Keys.Line(c.Person)
			fingerprint, err := approval.SSHFingerprint(line)
			if err != nil {
				return err
			}
			if err := tx.InsertPersonKey(ctx, &store.PersonKey{Fingerprint: fingerprint, Tenant: c.Tenant, Person: c.Person, PublicKey: line, Created: now}); err != nil {
				return err
			}
		}
		return nil
	})
}

// Sign returns a document's envelope, signed by that person.
func (w *World) Sign(who auth.Caller, doc *lockboxv1.Document) []byte {
	w.T.Helper()
	return w.Keys.Sign(w.T, who.Person, w.KeyID(who), doc)
}

// KeyID is what trust policies drafted here call a person's key.
func (w *World) KeyID(who auth.Caller) string {
	w.T.Helper()
	return must(approval.SSHFingerprint(w.Keys.Line(who.Person)))(w.T)
}

// Enable makes the subscription and turns Lockbox on.
func (w *World) Enable() {
	w.T.Helper()
	ctx := w.T.Context()
	must(w.Orders.CreateSubscription(ctx, Admin, &lockboxv1.CreateSubscriptionRequest{
		Id: Subscription, Tenant: Tenant, SupportPlan: "Developer", Notify: []string{"security@contoso.example"},
	}))(w.T)
	must(w.Orders.EnableLockbox(ctx, Olga, &lockboxv1.EnableLockboxRequest{Tenant: Tenant}))(w.T)
}

// Place places the order and prepares its device.
func (w *World) Place() {
	w.T.Helper()
	ctx := w.T.Context()
	sku := "databox"
	if len(w.Nodes) == 2 {
		sku = "databox-heavy"
	}
	must(w.Orders.PlaceOrder(ctx, Olga, &lockboxv1.PlaceOrderRequest{
		Id: Order, Subscription: Subscription, Sku: sku,
		Destinations: append([]*lockboxv1.Destination{{Account: "contosodata", Endpoint: Endpoint, Shares: []string{Share}}}, w.More...),
	}))(w.T)
	must(w.Orders.PrepareDevice(ctx, Staff, w.Prepared()))(w.T)
}

// Prepared is the device as it is prepared.
func (w *World) Prepared() *lockboxv1.PrepareDeviceRequest {
	w.T.Helper()
	in := &lockboxv1.PrepareDeviceRequest{Order: Order, Serial: Serial}
	for _, n := range w.Nodes {
		for _, d := range []protocol.DiskID{"disk1", "disk2"} {
			in.Disks = append(in.Disks, &lockboxv1.PreparedDisk{
				Node: int32(n.ID.Node), Disk: string(d), VolumeGuid: "{" + string(d) + "}",
				ExternalKey: append([]byte(nil), n.Disks[d]...), RecoveryPassword: Password,
				Manifests: []*lockboxv1.PreparedManifest{{Share: Share, Bom: w.BOM("", "Wrong_Folder/a.bin")}},
			})
		}
	}
	return in
}

// BOM is a bill of materials of files of 8 bytes.
func (w *World) BOM(previous string, paths ...string) []byte {
	w.T.Helper()
	share := must(manifest.ParseShare(Share))(w.T)
	b := manifest.BOM{Share: share, Previous: previous}
	for _, p := range paths {
		b.Files = append(b.Files, manifest.File{Path: p, Size: 8, CRC64: manifest.ChecksumCRC64([]byte("contents"))})
	}
	return must(b.Encode())(w.T)
}

// Trust has the customer sign the trust policy, and installs it on the nodes as
// staff would.
func (w *World) Trust(in *lockboxv1.DraftTrustPolicyRequest, signers ...auth.Caller) {
	w.T.Helper()
	ctx := w.T.Context()
	in.Order, in.NoRecovery = Order, in.RecoveryKey == ""
	doc := must(w.Orders.DraftTrustPolicy(ctx, Olga, in))(w.T)
	signed := must(w.Orders.SubmitTrustPolicy(ctx, Olga, &lockboxv1.SubmitTrustPolicyRequest{Order: Order, Envelope: w.SignAll(doc, signers...)}))(w.T)
	for _, n := range w.Nodes {
		n.policy = must(approval.VerifyPolicyV1(signed.Envelope))(w.T)
	}
}

// SignAll returns a document's envelope with the signatures of several people.
func (w *World) SignAll(doc *lockboxv1.Document, signers ...auth.Caller) []byte {
	w.T.Helper()
	var all approval.Envelope
	for _, who := range signers {
		e := must(approval.ParseEnvelope(w.Sign(who, doc)))(w.T)
		e.Signatures, all.Signatures = append(all.Signatures, e.Signatures...), nil
		all = e
	}
	return must(all.Encode())(w.T)
}

// EnrolRequest is what a node sends to enrol with a token.
func (w *World) EnrolRequest(n *Node, token string) *devicev1.EnrolRequest {
	w.T.Helper()
	o := w.Order()
	in := &devicev1.EnrolRequest{
		Token: token, Serial: string(n.ID.Serial), Node: int32(n.ID.Node), Csr: must(certs.NewCSR(n.Key))(w.T),
		TrustPolicyDigest: o.TrustPolicyDigest, SshHostKey: n.hostKey(),
	}
	for d := range n.Disks {
		in.Disks = append(in.Disks, &devicev1.DiskStatus{Disk: string(d)})
	}
	return in
}

// Token makes a join token for a node.
func (w *World) Token(n *Node) string {
	w.T.Helper()
	return must(w.Orders.CreateJoinToken(w.T.Context(), Admin, &lockboxv1.CreateJoinTokenRequest{
		Order: Order, Serial: string(n.ID.Serial), Node: int32(n.ID.Node),
	}))(w.T).Token
}

// Enrol enrols all nodes and has each report once.
func (w *World) Enrol() {
	w.T.Helper()
	for _, n := range w.Nodes {
		must(w.Orders.Enrol(w.T.Context(), w.EnrolRequest(n, w.Token(n))))(w.T)
	}
	w.Heartbeat()
}

// Heartbeat has all nodes report.
func (w *World) Heartbeat() {
	w.T.Helper()
	for _, n := range w.Nodes {
		must(w.Orders.Heartbeat(w.T.Context(), n.ID, n.Report()))(w.T)
	}
}

// Arrive takes the device through its trip to the datacenter.
func (w *World) Arrive() {
	w.T.Helper()
	for _, stage := range []string{"Dispatched", "Delivered", "PickedUp", "AtAzureDC"} {
		must(w.Orders.AdvanceOrder(w.T.Context(), Staff, &lockboxv1.AdvanceOrderRequest{Order: Order, Stage: stage}))(w.T)
	}
}

// Consent has the customer sign the data-copy consent.
func (w *World) Consent(signers ...auth.Caller) {
	w.T.Helper()
	ctx := w.T.Context()
	doc := must(w.Orders.DraftConsent(ctx, Olga, &lockboxv1.DraftConsentRequest{Order: Order}))(w.T)
	must(w.Orders.SubmitConsent(ctx, Olga, &lockboxv1.SubmitConsentRequest{Order: Order, Envelope: w.SignAll(doc, signers...)}))(w.T)
}

// ToDatacenter is all of it, up to the enrolled device in the datacenter with
// everything signed by Olga.
func (w *World) ToDatacenter() {
	w.T.Helper()
	w.People()
	w.Enable()
	w.Place()
	w.Trust(&lockboxv1.DraftTrustPolicyRequest{}, Olga)
	w.Arrive()
	w.Enrol()
	w.Consent(Olga)
}

// Halt starts the copy job and has it halt on every node, as the story goes.
func (w *World) Halt() {
	w.T.Helper()
	ctx := w.T.Context()
	if err := w.Orders.StartJob(ctx, Staff, &lockboxv1.StartJobRequest{Order: Order}, func(*lockboxv1.ProgressEvent) {}); err != nil {
		w.T.Fatal(err)
	}
	for _, n := range w.Nodes {
		n.Relock()
		must(w.Orders.ReportJob(ctx, n.ID, &devicev1.ReportJobRequest{
			Order: Order, Event: "halted", Job: &devicev1.JobStatus{State: "halted", FilesTotal: 2, FilesDone: 1, FilesErrored: 1},
			ErrorCodes: []string{string(manifest.NameAlphaNumeric)}, CopyLog: w.CopyLog(),
		}))(w.T)
	}
	w.Heartbeat()
}

// CopyLog is the log of a job that could not copy one of two files.
func (w *World) CopyLog() []byte {
	w.T.Helper()
	return must(manifest.CopyLog{
		Status: manifest.CompletedWithErrors, TotalFiles: 2,
		Errored: []manifest.ErroredEntity{{Path: Share + "/Wrong_Folder/a.bin", Codes: []manifest.ErrorCode{manifest.NameAlphaNumeric}}},
	}.Encode())(w.T)
}

// Ticket has Olga file a ticket about the order, and staff give it to Erin.
func (w *World) Ticket() string {
	w.T.Helper()
	id := must(w.Orders.FileTicket(w.T.Context(), Olga, &lockboxv1.FileTicketRequest{Order: Order, Title: "upload halted"}))(w.T).Id
	must(w.Orders.AssignTicket(w.T.Context(), Staff, &lockboxv1.AssignTicketRequest{Id: id, Engineer: string(Erin.Person)}))(w.T)
	return id
}

// Order reads the order.
func (w *World) Order() store.Order {
	w.T.Helper()
	var o store.Order
	storetest.Tx(w.T, w.Store, func(ctx context.Context, tx *store.Tx) (err error) {
		o, err = tx.Order(ctx, Order)
		return err
	})
	return o
}

// Timers are those that are due by then.
func (w *World) Timers(by time.Time) []store.Timer {
	w.T.Helper()
	var due []store.Timer
	storetest.Tx(w.T, w.Store, func(ctx context.Context, tx *store.Tx) (err error) {
		due, err = tx.DueTimers(ctx, by, 100)
		return err
	})
	return due
}

// Records are the activity log's records of an operation, in order; all if op is
// "".
func (w *World) Records(op auditlog.Operation) []auditlog.Record {
	w.T.Helper()
	var out []auditlog.Record
	storetest.Tx(w.T, w.Store, func(ctx context.Context, tx *store.Tx) error {
		rows, err := tx.AuditRows(ctx, store.AuditFilter{Operation: string(op), Limit: 10_000})
		for _, row := range rows {
			rec, err := auditlog.ParseRecord(row.Record)
			if err != nil {
				return err
			}
			out = append(out, rec)
		}
		return err
	})
	return out
}
