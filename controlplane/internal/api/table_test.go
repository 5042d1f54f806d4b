package api_test

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/controlplane/internal/api"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"google.golang.org/protobuf/reflect/protoreflect"
)

var update = flag.Bool("update", false, "write testdata/roles.txt anew; read the difference as what it is: who may do what")

// methods are the procedures of the services in a .proto file, with whether
// they stream.
func methods(file protoreflect.FileDescriptor, services ...protoreflect.Name) map[string]bool {
	out := map[string]bool{}
	for i := range file.Services().Len() {
		s := file.Services().Get(i)
		if len(services) > 0 && !slices.Contains(services, s.Name()) {
			continue
		}
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			out[fmt.Sprintf("/%s/%s", s.FullName(), m.Name())] = m.IsStreamingServer()
		}
	}
	return out
}

func publicMethods() map[string]bool {
	all := methods(lockboxv1.File_lockbox_v1_lockbox_proto)
	for name, streams := range methods(devicev1.File_device_v1_device_proto, "EnrolmentService") {
		all[name] = streams
	}
	return all
}

func TestEveryProcedureHasOneRow(t *testing.T) {
	declared := publicMethods()
	seen := map[string]bool{}
	for _, r := range api.Rows() {
		if _, ok := declared[r.Procedure]; !ok {
			t.Errorf("%s has a row and is no procedure", r.Procedure)
		}
		if seen[r.Procedure] {
			t.Errorf("%s has two rows", r.Procedure)
		}
		seen[r.Procedure] = true
		if !r.Open && len(r.Roles) == 0 {
			t.Errorf("%s lets nobody in", r.Procedure)
		}
		for _, role := range r.Roles {
			if !slices.Contains(auth.Roles(), role) {
				t.Errorf("%s lets in %q, which nobody can have", r.Procedure, role)
			}
		}
	}
	for name := range declared {
		if !seen[name] {
			t.Errorf("%s has no row", name)
		}
	}
	var nodes []string
	for name := range methods(devicev1.File_device_v1_device_proto, "ControlService") {
		nodes = append(nodes, name)
	}
	got := api.NodeProcedures()
	slices.Sort(nodes)
	slices.Sort(got)
	if !slices.Equal(got, nodes) {
		t.Errorf("the device port answers %v, want %v", got, nodes)
	}
}

// TestRolesAreAsWrittenDown compares the table with a copy that people read: a
// change of who may do what shows there as one line.
func TestRolesAreAsWrittenDown(t *testing.T) {
	var lines []string
	for _, r := range api.Rows() {
		who := "everybody"
		if !r.Open {
			var roles []string
			for _, role := range auth.Roles() {
				if slices.Contains(r.Roles, role) {
					roles = append(roles, string(role))
				}
			}
			who = strings.Join(roles, " ")
		}
		lines = append(lines, fmt.Sprintf("%-48s %s\n", r.Procedure, who))
	}
	slices.Sort(lines)
	got := strings.Join(lines, "")
	if *update {
		if err := os.WriteFile("testdata/roles.txt", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/roles.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the table is now\n%s", got)
	}
}

// TestEveryProcedureForEveryRole calls everything as everybody, over TLS.
func TestEveryProcedureForEveryRole(t *testing.T) {
	w := newWorld(t)
	if _, err := w.admin.Tenants.CreateTenant(t.Context(), &lockboxv1.CreateTenantRequest{Id: "contoso", Name: "Contoso"}); err != nil {
		t.Fatal(err)
	}
	streams := publicMethods()
	nobody := w.httpAs(nil)
	for _, role := range auth.Roles() {
		tenant := ""
		if role.OfCustomer() {
			tenant = "contoso"
		}
		h := w.httpAs(w.register(string(role)+"@x", string(role), tenant))
		for _, r := range api.Rows() {
			a := w.call(h, r.Procedure, streams[r.Procedure])
			refused := strings.Contains(a.body, "which may not call")
			if want := !r.Open && !slices.Contains(r.Roles, role); refused != want {
				t.Errorf("%s calls %s: refused by the table: %v, want %v: %s", role, r.Procedure, refused, want, a.body)
			}
			if strings.Contains(a.body, "unauthenticated") && !r.Open {
				t.Errorf("%s is not known to %s: %s", role, r.Procedure, a.body)
			}
			if strings.Contains(a.body, "unimplemented") || a.status == http.StatusNotFound && a.body == "404 page not found\n" {
				t.Errorf("%s is not there: %s", r.Procedure, a.body)
			}
		}
	}
	for _, r := range api.Rows() {
		a := w.call(nobody, r.Procedure, streams[r.Procedure])
		if known := !strings.Contains(a.body, "log in first"); known != r.Open {
			t.Errorf("nobody calls %s: %s", r.Procedure, a.body)
		}
	}
	for _, path := range []string{"/device.v1.ControlService/Heartbeat", "/device.v1.NodeService/Unlock", "/", "/lockbox.v1.AccountService/", "/lockbox.v1.KeyService/Nothing"} {
		if a := w.call(nobody, path, false); a.status != http.StatusNotFound && a.status != http.StatusNotImplemented {
			t.Errorf("%s answers %d %s", path, a.status, a.body)
		}
	}
}

func (w *world) call(h *http.Client, procedure string, stream bool) answer {
	w.t.Helper()
	contentType, body := "application/proto", ""
	if stream {
		contentType, body = "application/connect+proto", "\x00\x00\x00\x00\x00"
	}
	a, err := w.post(h, procedure, contentType, body)
	if err != nil {
		w.t.Fatalf("%s: %v", procedure, err)
	}
	return a
}

func TestWhoAmINamesWhatTheTableAllows(t *testing.T) {
	w := newWorld(t)
	resp, err := w.admin.Accounts.WhoAmI(t.Context(), &lockboxv1.WhoAmIRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range api.Rows() {
		if want := r.Open || slices.Contains(r.Roles, auth.Admin); slices.Contains(resp.May, r.Procedure) != want {
			t.Errorf("%s: want %v", r.Procedure, want)
		}
	}
}

// TestEveryProcedureIsCatalogued holds the catalogue against the table: an
// operation is one row's or several rows', and no row is missing.
func TestEveryProcedureIsCatalogued(t *testing.T) {
	calls := api.Catalogued()
	for _, r := range api.Rows() {
		n := 0
		for _, c := range calls {
			if c == r.Procedure {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s stands behind %d operations of the catalogue, want one", r.Procedure, n)
		}
	}
	if len(calls) != len(api.Rows()) {
		t.Errorf("the catalogue names %d procedures, the table has %d", len(calls), len(api.Rows()))
	}
}

func TestWhatTouchesDataTakesARequest(t *testing.T) {
	w := newWorld(t)
	resp, err := w.admin.Catalogue.ListOperations(t.Context(), &lockboxv1.ListOperationsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range resp.Operations {
		if o.LockboxRequest && !o.CustomerData {
			t.Errorf("%s makes a Lockbox request and touches no data", o.Name)
		}
		if o.Name == "" || o.What == "" || o.On != "device" && len(o.Calls) == 0 {
			t.Errorf("%v is not whole", o)
		}
	}
	for _, name := range []string{"Unlock Databox", "Access Subscription"} {
		i := slices.IndexFunc(resp.Operations, func(o *lockboxv1.Operation) bool { return o.Name == name })
		if i < 0 || !resp.Operations[i].LockboxRequest || !slices.Equal(resp.Operations[i].Roles, []string{"engineer"}) {
			t.Errorf("%s is %v", name, resp.Operations)
		}
	}
}
