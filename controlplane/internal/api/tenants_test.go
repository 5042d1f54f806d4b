package api_test

import (
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/databox-lockbox/lockbox/controlplane/internal/api"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// What Contoso has, and Fabrikam asks for.
const (
	contosoOwner     = "olga@contoso.example"
	contosoRequest   = "LockboxRequest_0d5e7a0c-0000-4000-8000-000000000001"
	contosoAccess    = "LockboxRequest_0d5e7a0c-0000-4000-8000-000000000002"
	contosoSession   = "SES-0001"
	contosoWebhook   = "whk-0001"
	contosoDelivery  = "dlv-0001"
	contosoRecording = "REC-00000000000000000000000000000001"
)

// contosos are values for the fields of requests by their names: all of them
// Contoso's, where that makes a difference.
var contosos = map[string]string{
	"tenant": string(storetest.Tenant), "subscription": string(storetest.Subscription), "order": string(storetest.Order),
	"serial": string(storetest.Serial), "ticket": string(storetest.Ticket), "session": contosoSession, "request": contosoRequest,
	"name": contosoOwner, "person": contosoOwner, "subject": contosoRequest, "correlation_id": contosoRequest, "ids": contosoDelivery,
	"role": "owner", "url": "https://hooks.example.com/", "text": "x", "title": "x", "reason": "x", "justification": "x", "verdict": "approve",
	"action": "Unlock Databox", "access": "read-write", "reason_code": "copied-to-wrong-folder", "sku": "databox",
}

// ids are the values of the field id, by service.
var ids = map[protoreflect.Name]string{
	"TenantService": string(storetest.Tenant), "OrderService": string(storetest.Order), "DeviceService": string(storetest.Serial),
	"TicketService": string(storetest.Ticket), "SessionService": contosoSession, "RequestService": contosoRequest, "NoticeService": contosoWebhook,
	"RecordingService": contosoRecording,
}

// aimed is a request of a method that names what is Contoso's wherever it can.
func aimed(m protoreflect.MethodDescriptor) proto.Message {
	msg := dynamicpb.NewMessage(m.Input())
	for i := range m.Input().Fields().Len() {
		f := m.Input().Fields().Get(i)
		value := contosos[string(f.Name())]
		if f.Name() == "id" {
			value = ids[m.Parent().Name()]
		}
		switch {
		case f.Kind() != protoreflect.StringKind || value == "":
		case f.IsList():
			msg.Mutable(f).List().Append(protoreflect.ValueOfString(value))
		default:
			msg.Set(f, protoreflect.ValueOfString(value))
		}
	}
	return msg
}

// contoso fills the store with all that Contoso has.
func (w *world) contoso() *store.Store {
	w.t.Helper()
	s := storetest.Open(w.t, w.cfg.StorePath())
	now := time.Now()
	storetest.Fill(w.t, s, now, 1)
	storetest.Tx(w.t, s, func(ctx context.Context, tx *store.Tx) error {
		for _, insert := range []func() error{
			func() error {
				return tx.InsertSession(ctx, &store.Session{
					ID: contosoSession, Node: protocol.NodeID{Serial: storetest.Serial, Node: 1}, Order: storetest.Order, Tenant: storetest.Tenant,
					Ticket: storetest.Ticket, Engineer: storetest.Engineer, State: "enabled", Created: now, Expires: now.Add(time.Hour),
				})
			},
			func() error {
				return tx.InsertRequest(ctx, &store.Request{
					ID: contosoRequest, Number: 1, Action: "Unlock Databox", Status: "Pending", Tenant: storetest.Tenant, Subscription: storetest.Subscription,
					Order: storetest.Order, Ticket: storetest.Ticket, Serial: storetest.Serial, Engineer: storetest.Engineer, Access: "read-write",
					Statement: []byte("{}"), StatementDigest: "sha256:1", Created: now, Expires: now.Add(time.Hour),
				})
			},
			func() error {
				return tx.InsertRequest(ctx, &store.Request{
					ID: contosoAccess, Number: 2, Action: "Access Subscription", Status: "Pending", Tenant: storetest.Tenant, Subscription: storetest.Subscription,
					Order: storetest.Order, Ticket: storetest.Ticket, Engineer: storetest.Engineer, Access: "read-only",
					Statement: []byte("{}"), StatementDigest: "sha256:2", Created: now, Expires: now.Add(time.Hour),
				})
			},
			func() error {
				return tx.InsertRecording(ctx, &store.Recording{
					ID: contosoRecording, Kind: "session", Node: protocol.NodeID{Serial: storetest.Serial, Node: 1}, Tenant: storetest.Tenant, Order: storetest.Order,
					Session: contosoSession, Engineer: storetest.Engineer, Ticket: storetest.Ticket, Began: now, State: store.RecordingGrows,
				})
			},
			func() error {
				return tx.InsertWebhook(ctx, &store.Webhook{ID: contosoWebhook, Tenant: storetest.Tenant, URL: "https://contoso.example/", Secret: []byte{1}, CreatedBy: contosoOwner, Created: now})
			},
			func() error {
				return tx.InsertNotice(ctx, &store.Notice{ID: "msg_1", Kind: "customer-notified", Tenant: storetest.Tenant, Audience: store.ToCustomer, Subject: contosoRequest, Title: "for contoso", Created: now})
			},
			func() error {
				return tx.InsertDelivery(ctx, &store.Delivery{ID: contosoDelivery, Notice: "msg_1", Channel: store.ByMail, Recipient: contosoOwner, State: store.DeliveryDead})
			},
		} {
			if err := insert(); err != nil {
				return err
			}
		}
		return nil
	})
	return s
}

// dump is all that is in the store but the activity log, a line a row.
func (w *world) dump() map[string]bool {
	w.t.Helper()
	db, err := sql.Open("sqlite", "file:"+w.cfg.StorePath()+"?_pragma=busy_timeout(5000)")
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	out := map[string]bool{}
	for _, table := range w.column(db, `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'audit_%' AND name NOT LIKE 'sqlite_%'`) {
		rows, err := db.QueryContext(w.t.Context(), "SELECT * FROM "+table)
		if err != nil {
			w.t.Fatal(err)
		}
		columns, err := rows.Columns()
		if err != nil {
			w.t.Fatal(err)
		}
		for rows.Next() {
			row, into := make([]any, len(columns)), make([]any, len(columns))
			for i := range row {
				into[i] = &row[i]
			}
			if err := rows.Scan(into...); err != nil {
				w.t.Fatal(err)
			}
			out[fmt.Sprint(table, row)] = true
		}
		if err := rows.Err(); err != nil {
			w.t.Fatal(err)
		}
		rows.Close()
	}
	return out
}

func (w *world) column(db *sql.DB, query string) (list []string) {
	w.t.Helper()
	rows, err := db.QueryContext(w.t.Context(), query)
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			w.t.Fatal(err)
		}
		list = append(list, s)
	}
	return list
}

// ask calls a method with what is aimed at Contoso.
func (w *world) ask(h *http.Client, procedure string, m protoreflect.MethodDescriptor) answer {
	w.t.Helper()
	body, err := proto.Marshal(aimed(m))
	if err != nil {
		w.t.Fatal(err)
	}
	contentType := "application/proto"
	if m.IsStreamingServer() {
		contentType = "application/connect+proto"
		body = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
	}
	a, err := w.post(h, procedure, contentType, string(body))
	if err != nil {
		w.t.Fatalf("%s: %v", procedure, err)
	}
	return a
}

// TestNothingCrossesTenants calls everything as Fabrikam's owner and approver, with
// what is Contoso's. They learn nothing, and change nothing of Contoso's; Contoso's
// owner, who asks the same, does.
func TestNothingCrossesTenants(t *testing.T) {
	w := newWorld(t)
	w.contoso()
	if _, err := w.admin.Tenants.CreateTenant(t.Context(), &lockboxv1.CreateTenantRequest{Id: "fabrikam", Name: "Fabrikam"}); err != nil {
		t.Fatal(err)
	}
	own := w.httpAs(w.register(contosoOwner, "owner", string(storetest.Tenant)))
	strangers := map[auth.Role]*http.Client{
		auth.TenantAdmin: w.httpAs(w.register("fred@fabrikam.example", "tenant-admin", "fabrikam")),
		auth.Owner:       w.httpAs(w.register("fay@fabrikam.example", "owner", "fabrikam")),
		auth.Approver:    w.httpAs(w.register("finn@fabrikam.example", "approver", "fabrikam")),
	}
	before := w.dump()
	descriptors := map[string]protoreflect.MethodDescriptor{}
	services := lockboxv1.File_lockbox_v1_lockbox_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			descriptors[fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())] = m
		}
	}
	for _, r := range api.Rows() {
		m := descriptors[r.Procedure]
		if m == nil || r.Open || m.Name() == "Logout" {
			continue
		}
		for role, h := range strangers {
			if slices.Contains(r.Roles, role) {
				learnsNothing(t, string(role), r.Procedure, w.ask(h, r.Procedure, m))
			}
		}
	}
	after := w.dump()
	for row := range before {
		if !after[row] {
			t.Errorf("changed or removed by a stranger: %s", row)
		}
	}
	for row := range after {
		if !before[row] && strings.Contains(row, "contoso") {
			t.Errorf("put there by a stranger: %s", row)
		}
	}
	known := 0
	for procedure, m := range descriptors {
		if name := string(m.Name()); strings.HasPrefix(name, "Get") || strings.HasPrefix(name, "List") {
			if a := w.ask(own, procedure, m); a.status == http.StatusOK && (strings.Contains(a.body, "contoso") || strings.Contains(a.body, string(storetest.Order))) {
				known++
			}
		}
	}
	if known < 12 { // control
		t.Errorf("Contoso's own owner learns something from %d calls only", known)
	}
}

// needsMore are the calls that are refused before they come to what is Contoso's:
// they need a document, a key or a list, and have tests of their own.
var needsMore = []string{
	"/lockbox.v1.AccountService/RenewCertificate", "/lockbox.v1.OrderService/PlaceOrder", "/lockbox.v1.OrderService/SubmitTrustPolicy",
	"/lockbox.v1.RequestService/Decide",
}

// learnsNothing fails if an answer holds what is Contoso's. A refusal may repeat
// what was asked for.
func learnsNothing(t *testing.T, role, procedure string, a answer) {
	t.Helper()
	says := func(c protocol.Code) bool { return strings.Contains(a.body, string(c)) }
	if says(protocol.CodeNotFound) || says(protocol.CodeForbidden) || says(protocol.CodeInvalid) && slices.Contains(needsMore, procedure) {
		return
	}
	for _, theirs := range []string{"contoso", string(storetest.Order), string(storetest.Serial), string(storetest.Ticket), contosoRequest, contosoAccess, contosoSession, contosoRecording} {
		if strings.Contains(a.body, theirs) {
			t.Errorf("Fabrikam's %s calls %s and learns of %s: %d %q", role, procedure, theirs, a.status, a.body)
		}
	}
	if a.status != http.StatusOK {
		t.Errorf("Fabrikam's %s calls %s: %d %q", role, procedure, a.status, a.body)
	}
}
