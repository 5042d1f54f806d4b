package uplink

import (
	"context"
	"crypto/tls"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
)

// office enrols nodes, as the API port does.
type office struct {
	devicev1.UnimplementedEnrolmentServiceHandler
	authorities *certs.Authorities
	change      func(*devicev1.EnrolResponse)
	got         *devicev1.EnrolRequest
	refuse      error
}

func (o *office) Enrol(_ context.Context, r *devicev1.EnrolRequest) (*devicev1.EnrolResponse, error) {
	o.got = r
	if o.refuse != nil {
		return nil, o.refuse
	}
	chain, err := o.authorities.IssueDevice(r.Csr, nodeID, time.Hour)
	resp := &devicev1.EnrolResponse{
		Chain: chain, ServerRoots: [][]byte{o.authorities.Roots().Servers.Raw}, TunnelAddress: "127.0.0.1:1",
		SshHostCertificate: []byte("certificate"), Order: "ORD-1001",
	}
	if o.change != nil {
		o.change(resp)
	}
	return resp, err
}

// open serves the office over TLS and returns its address.
func (o *office) open(t *testing.T, handler http.Handler) string {
	if handler == nil {
		srv := rpc.NewServer(func(context.Context, string, error) {})
		devicev1.RegisterEnrolmentServiceHandler(srv, o)
		mux := http.NewServeMux()
		rpc.Mount(mux, srv)
		handler = mux
	}
	source := (&control{authorities: o.authorities}).source("127.0.0.1")
	ln := tls.NewListener(must(net.Listen("tcp", "127.0.0.1:0")), certs.APIListener(source, o.authorities.Roots().People, func(string) bool { return false }))
	srv := &http.Server{Handler: handler, ErrorLog: log.New(t.Output(), "", 0)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		srv.Serve(ln)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-ended
	})
	return ln.Addr().String()
}

func authority(t *testing.T) *certs.Authorities {
	a, _, err := certs.Open(filepath.Join(t.TempDir(), "authority"))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func token(a *certs.Authorities) string {
	return "lbxjoin.id1.secret." + strings.TrimPrefix(certs.Pin(a.Roots().Servers), "sha256:")
}

func TestEnrol(t *testing.T) {
	o := &office{authorities: authority(t)}
	other := authority(t)
	address := o.open(t, nil)
	good := Enrolment{
		Server: address, Token: token(o.authorities), Node: nodeID, Key: must(certs.NewKey()),
		HostKey: []byte("host"), PolicyHash: "sha256:p", Disks: []*devicev1.DiskStatus{{Disk: "disk1"}},
	}
	for name, c := range map[string]struct {
		change func(*Enrolment)
		answer func(*devicev1.EnrolResponse)
		refuse error
		want   string
		asked  bool // whether the token may have been sent
	}{
		"wrong pin":    {change: func(e *Enrolment) { e.Token = token(other) }, want: "not the one the token names"},
		"no token":     {change: func(e *Enrolment) { e.Token = "lbxlogin.a.b.c" }, want: "not a join token"},
		"bad pin":      {change: func(e *Enrolment) { e.Token = "lbxjoin.a.b.c" }, want: "pin"},
		"no address":   {change: func(e *Enrolment) { e.Server = "localhost" }, want: "want host:port"},
		"other name":   {change: func(e *Enrolment) { e.Server = strings.Replace(address, "127.0.0.1", "localhost", 1) }, want: "localhost"},
		"refused":      {refuse: protocol.Errorf(protocol.CodeTokenUsed, "used"), want: "(join-token-spent)", asked: true},
		"wrong root":   {answer: func(r *devicev1.EnrolResponse) { r.ServerRoots = [][]byte{other.Roots().Servers.Raw} }, want: "another server root", asked: true},
		"two roots":    {answer: func(r *devicev1.EnrolResponse) { r.ServerRoots = append(r.ServerRoots, other.Roots().Servers.Raw) }, want: "2 server roots", asked: true},
		"no root":      {answer: func(r *devicev1.EnrolResponse) { r.ServerRoots = nil }, want: "0 server roots", asked: true},
		"damaged root": {answer: func(r *devicev1.EnrolResponse) { r.ServerRoots = [][]byte{{1}} }, want: "another server root", asked: true},
		"no port":      {answer: func(r *devicev1.EnrolResponse) { r.TunnelAddress = "x" }, want: "device port", asked: true},
	} {
		e := good
		if c.change != nil {
			c.change(&e)
		}
		o.change, o.refuse, o.got = c.answer, c.refuse, nil
		_, err := Enrol(t.Context(), e)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
		if (o.got != nil) != c.asked {
			t.Errorf("%s: the token was sent: %v", name, o.got != nil)
		}
	}
	o.change, o.refuse = nil, nil
	id, err := Enrol(t.Context(), good)
	if err != nil || id.NodeID() != nodeID || id.Order != "ORD-1001" || len(id.Chain) == 0 || string(id.SSHHostCertificate) != "certificate" {
		t.Errorf("%+v, %v", id, err)
	}
	if o.got.TrustPolicyDigest != "sha256:p" || string(o.got.SshHostKey) != "host" || len(o.got.Disks) != 1 || o.got.Serial != "DBX0001" {
		t.Errorf("request: %v", o.got)
	}
}

func TestEnrolFollowsNoRedirect(t *testing.T) {
	target := &office{authorities: authority(t)}
	there := target.open(t, nil)
	o := &office{authorities: target.authorities}
	here := o.open(t, http.RedirectHandler("https://"+there+"/device.v1.EnrolmentService/Enrol", http.StatusTemporaryRedirect))
	_, err := Enrol(t.Context(), Enrolment{Server: here, Token: token(o.authorities), Node: nodeID, Key: must(certs.NewKey())})
	if err == nil || target.got != nil {
		t.Errorf("the token went on to another server: %v", err)
	}
}
