package notify

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

var (
	owner   = auth.Caller{Person: olga, Role: auth.Owner, Tenant: storetest.Tenant}
	other   = auth.Caller{Person: "oscar@fabrikam.example", Role: auth.Owner, Tenant: "fabrikam"}
	admin   = auth.Caller{Person: "adam@provider.example", Role: auth.Admin}
	auditor = auth.Caller{Person: "audrey@provider.example", Role: auth.Auditor}
	erin    = auth.Caller{Person: storetest.Engineer, Role: auth.Engineer}
)

// The example of the Standard Webhooks specification's own libraries.
func TestSignatureIsTheStandard(t *testing.T) {
	secret, err := parseSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	got := sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("signed %s, want %s", got, want)
	}
}

// receiver is a program that webhooks call. It believes what is signed only.
type receiver struct {
	*httptest.Server
	roots  *x509.CertPool
	secret []byte

	mu      sync.Mutex
	answers []int // one after the other, then 200
	calls   []call
	forged  int
}

type call struct {
	id   string
	body []byte
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewUnstartedServer(r)
	r.Config.ErrorLog = log.New(io.Discard, "", 0)
	r.TLS, r.roots = serverTLS(t)
	r.StartTLS()
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	r.mu.Lock()
	defer r.mu.Unlock()
	id := req.Header.Get("webhook-id")
	at, parsed := strconv.ParseInt(req.Header.Get("webhook-timestamp"), 10, 64)
	if err != nil || parsed != nil || req.Header.Get("webhook-signature") != sign(r.secret, id, time.Unix(at, 0), body) {
		r.forged++
	}
	r.calls = append(r.calls, call{id, body})
	status := http.StatusOK
	if len(r.answers) > 0 {
		status, r.answers = r.answers[0], r.answers[1:]
	}
	w.Header().Set("Location", "https://127.0.0.1:1/elsewhere")
	w.WriteHeader(status)
}

// at is the receiver's address, by a name.
func (r *receiver) at() string { return strings.Replace(r.URL, "127.0.0.1", "localhost", 1) + "/hook" }

// hooked is a service with a webhook of a tenant that leads to a receiver.
type hooked struct {
	*mailing
	receiver *receiver
	hook     *lockboxv1.Webhook
}

func newHooked(t *testing.T) *hooked {
	t.Helper()
	h := &hooked{mailing: &mailing{t: t, store: storetest.New(t), now: time.Now()}, receiver: newReceiver(t)}
	storetest.Fill(t, h.store, h.now, 1)
	config := Webhooks{Loopback: true, Roots: h.receiver.roots}
	h.Service = newServiceWith(t, Config{Store: h.store, Dir: t.TempDir(), Webhooks: config, Now: func() time.Time { return h.now }})
	resp, err := h.CreateWebhook(t.Context(), owner, &lockboxv1.CreateWebhookRequest{Url: h.receiver.at()})
	if err != nil {
		t.Fatal(err)
	}
	h.hook = resp.Webhook
	if h.receiver.secret, err = parseSecret(resp.Secret); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *hooked) happen() { tell(h.t, h.store, h.Service, requestEvent()) }

func requestEvent() Event {
	e := event()
	e.Tenant, e.Device = storetest.Tenant, "DBX0001"
	return e
}

// try makes one attempt at what is due for webhooks and returns the delivery.
func (h *hooked) try() store.Word {
	h.t.Helper()
	var all sync.WaitGroup
	if err := h.startDue(h.t.Context(), h.channels[1], &all); err != nil {
		h.t.Fatal(err)
	}
	all.Wait()
	h.now = h.now.Add(longestPause)
	for _, w := range told(h.t, h.store) {
		if w.Channel == store.ByWebhook {
			return w
		}
	}
	h.t.Fatal("no webhook was told")
	return store.Word{}
}

func (h *hooked) want(state, lastError string) {
	h.t.Helper()
	if d := h.try(); d.State != state || !strings.Contains(d.LastError, lastError) || lastError == "" && d.LastError != "" {
		h.t.Errorf("the delivery is %s (%q), want %s (%q)", d.State, d.LastError, state, lastError)
	}
}

func TestAWebhookIsToldIdsAStateAndALink(t *testing.T) {
	h := newHooked(t)
	h.receiver.answers = []int{503, 302}
	h.happen()
	h.want(store.DeliveryWaiting, "503")
	h.want(store.DeliveryWaiting, "redirects are not followed")
	h.want(store.DeliverySent, "")
	calls := h.receiver.calls
	if len(calls) != 3 || h.receiver.forged != 0 {
		t.Fatalf("%d calls, %d of them with a wrong signature", len(calls), h.receiver.forged)
	}
	for _, c := range calls {
		if c.id != calls[0].id || !bytes.Equal(c.body, calls[0].body) {
			t.Errorf("an attempt sent %s %s, the first %s %s", c.id, c.body, calls[0].id, calls[0].body)
		}
	}
	var got struct {
		Type string
		Data map[string]any
	}
	if err := json.Unmarshal(calls[0].body, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"id": "LockboxRequest_1", "number": 7.0, "state": "Pending", "tenant": "contoso", "link": "https://lockbox.example/requests/7"}
	if got.Type != "lockbox.customer-notified" || len(got.Data) != len(want) {
		t.Errorf("told %s", calls[0].body)
	}
	for k, v := range want {
		if got.Data[k] != v {
			t.Errorf("%s is %v, want %v", k, got.Data[k], v)
		}
	}
}

func TestDeadWebhooksAreListedAndRedelivered(t *testing.T) {
	h := newHooked(t)
	h.receiver.answers = []int{410}
	h.happen()
	h.want(store.DeliveryDead, "410")
	list := func(caller auth.Caller, in *lockboxv1.ListNoticesRequest) []*lockboxv1.Delivery {
		t.Helper()
		resp, err := h.ListNotices(t.Context(), caller, in)
		if err != nil {
			t.Fatal(err)
		}
		return resp.Deliveries
	}
	dead := list(owner, &lockboxv1.ListNoticesRequest{State: "dead"})
	if len(dead) != 1 || dead[0].Recipient != h.hook.Id {
		t.Fatalf("dead: %v", dead)
	}
	if n := len(list(other, &lockboxv1.ListNoticesRequest{Tenant: "contoso"})); n != 0 {
		t.Errorf("another tenant sees %d notices", n)
	}
	_, err := h.RetryNotices(t.Context(), other, &lockboxv1.RetryNoticesRequest{Ids: []string{dead[0].Id}})
	if protocol.CodeOf(err) != protocol.CodeNotFound {
		t.Errorf("another tenant retries: %v", err)
	}
	if resp, err := h.RetryNotices(t.Context(), other, &lockboxv1.RetryNoticesRequest{}); err != nil || resp.Retried != 0 {
		t.Errorf("another tenant retries all: %v, %v", resp, err)
	}
	if resp, err := h.RetryNotices(t.Context(), owner, &lockboxv1.RetryNoticesRequest{}); err != nil || resp.Retried != 1 {
		t.Fatalf("retried %v, %v", resp, err)
	}
	h.want(store.DeliverySent, "")
	_, err = h.RetryNotices(t.Context(), admin, &lockboxv1.RetryNoticesRequest{Ids: []string{dead[0].Id}})
	if protocol.CodeOf(err) != protocol.CodeConflict {
		t.Errorf("what was sent is sent again: %v", err)
	}

	// What the provider's people see of a customer's addresses.
	for caller, want := range map[auth.Caller]string{admin: "o…@contoso.example", auditor: "o…@contoso.example", owner: olga, erin: "o…@contoso.example"} {
		var to []string
		for _, d := range list(caller, &lockboxv1.ListNoticesRequest{Channel: "mail"}) {
			to = append(to, d.Recipient)
		}
		if !strings.Contains(strings.Join(to, " "), want) || caller != owner && strings.Contains(strings.Join(to, " "), olga) {
			t.Errorf("%s sees %v", caller.Person, to)
		}
	}
}

func TestWebhooksOfOneTenant(t *testing.T) {
	h := newHooked(t)
	for _, err := range []error{
		second(h.CreateWebhook(t.Context(), other, &lockboxv1.CreateWebhookRequest{Tenant: "contoso", Url: h.receiver.at()})),
		second(h.RemoveWebhook(t.Context(), other, &lockboxv1.RemoveWebhookRequest{Id: h.hook.Id})),
		second(h.TestWebhook(t.Context(), other, &lockboxv1.TestWebhookRequest{Id: h.hook.Id})),
	} {
		if protocol.CodeOf(err) != protocol.CodeNotFound {
			t.Errorf("another tenant: %v", err)
		}
	}
	if resp, err := h.ListWebhooks(t.Context(), other, &lockboxv1.ListWebhooksRequest{Tenant: "contoso"}); err != nil || len(resp.Webhooks) != 0 {
		t.Errorf("another tenant sees %v, %v", resp, err)
	}
	// What another tenant, or the provider alone, is told, is not for this webhook.
	e := requestEvent()
	e.Customer = false
	tell(t, h.store, h.Service, e)
	e.Customer, e.Tenant = true, "fabrikam"
	tell(t, h.store, h.Service, e)
	for _, w := range told(t, h.store) {
		if w.Channel == store.ByWebhook {
			t.Errorf("told of %+v", w)
		}
	}
	for range maxWebhooks - 1 {
		if _, err := h.CreateWebhook(t.Context(), owner, &lockboxv1.CreateWebhookRequest{Url: h.receiver.at()}); err != nil {
			t.Fatal(err)
		}
	}
	if err := second(h.CreateWebhook(t.Context(), owner, &lockboxv1.CreateWebhookRequest{Url: h.receiver.at()})); protocol.CodeOf(err) != protocol.CodeLimit {
		t.Errorf("one webhook more: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestTestingAndRemovingAWebhook(t *testing.T) {
	h := newHooked(t)
	resp, err := h.TestWebhook(t.Context(), owner, &lockboxv1.TestWebhookRequest{Id: h.hook.Id})
	if err != nil || !resp.Delivered || h.receiver.forged != 0 || !bytes.Contains(h.receiver.calls[0].body, []byte("lockbox.test")) {
		t.Errorf("test: %v, %v", resp, err)
	}
	h.receiver.answers = []int{500}
	if resp, err = h.TestWebhook(t.Context(), owner, &lockboxv1.TestWebhookRequest{Id: h.hook.Id}); err != nil || resp.Delivered || !strings.Contains(resp.Error, "500") {
		t.Errorf("test: %v, %v", resp, err)
	}
	h.happen()
	before := len(h.receiver.calls)
	if _, err := h.RemoveWebhook(t.Context(), owner, &lockboxv1.RemoveWebhookRequest{Id: h.hook.Id}); err != nil {
		t.Fatal(err)
	}
	h.want(store.DeliveryDead, "removed")
	if n := len(h.receiver.calls) - before; n != 0 {
		t.Errorf("a removed webhook was called %d times", n)
	}
}

func TestAWebhooksSecretIsNotInTheStore(t *testing.T) {
	h := newHooked(t)
	for _, name := range []string{h.store.Path(), h.store.Path() + "-wal"} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, h.receiver.secret) || bytes.Contains(data, []byte(base64.StdEncoding.EncodeToString(h.receiver.secret))) {
			t.Errorf("%s holds the secret", name)
		}
	}
	given := "whsec_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 24))
	resp, err := h.CreateWebhook(t.Context(), owner, &lockboxv1.CreateWebhookRequest{Url: h.receiver.at(), Secret: given})
	if err != nil || resp.Secret != "" {
		t.Errorf("a given secret came back: %v, %v", resp, err)
	}
	for _, bad := range []string{"x", "whsec_", "whsec_!!!", "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 23)), "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 65))} {
		if err := second(h.CreateWebhook(t.Context(), owner, &lockboxv1.CreateWebhookRequest{Url: h.receiver.at(), Secret: bad})); protocol.CodeOf(err) != protocol.CodeInvalid || strings.Contains(err.Error(), bad) && len(bad) > 6 {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Where webhooks may not lead, by the address that is really dialled.
func TestWebhooksStayOnTheInternet(t *testing.T) {
	h, err := newHooks(Webhooks{Key: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{
		"127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1",
		"198.18.0.1", "192.0.0.8", "168.63.129.16", "224.0.0.1", "240.0.0.1", "255.255.255.255",
		"::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1",
		"64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::", "2001::1", "2001:db8::1", "fec0::1",
	} {
		if h.mayReach(netip.MustParseAddr(a)) {
			t.Errorf("%s may be reached", a)
		}
	}
	for _, a := range []string{"93.184.216.34", "172.32.0.1", "100.128.0.1", "::ffff:93.184.216.34", "2606:2800:220:1::1"} {
		if !h.mayReach(netip.MustParseAddr(a)) {
			t.Errorf("%s may not be reached", a)
		}
	}
	for _, u := range []string{
		"", "http://example.com/", "ftp://example.com/", "https://", "https:///x", "https:example.com", "//example.com", "https://u:p@example.com/",
		"https://example.com/#x", "https://127.0.0.1/", "https://[::1]/", "https://10.1.2.3/x", "http://localhost/", "https://exa mple.com/",
		"https://example.com/\r\nHost: x", "https://example.com/" + strings.Repeat("x", maxURL), "https://[::ffff:10.0.0.1]/",
	} {
		if err := h.check(u); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%q: %v", u, err)
		}
	}
	if err := h.check("https://hooks.example.com/x?y=z"); err != nil {
		t.Error(err)
	}
	h.cfg.Networks = prefixes("10.1.2.0/24")
	if !h.mayReach(netip.MustParseAddr("10.1.2.3")) || h.mayReach(netip.MustParseAddr("10.1.3.3")) {
		t.Error("the configured network is not what may be reached")
	}
}

// A name that means a private address passes the look at the URL, and is stopped
// when it is dialled.
func TestANameOfAPrivateAddressIsNotDialled(t *testing.T) {
	h := newHooked(t)
	h.hooks.cfg.Loopback = false // the receiver's URL has a name
	h.happen()
	h.want(store.DeliveryWaiting, "private networks")
	if n := len(h.receiver.calls); n != 0 {
		t.Errorf("%d calls", n)
	}
}

// What a failed call says is shown to customers: no address behind our resolver.
func TestAFailedCallTellsNoAddress(t *testing.T) {
	h := newHooked(t)
	private := &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 443}
	for name, cause := range map[string]error{
		"refused":     &net.OpError{Op: "dial", Net: "tcp", Addr: private, Err: h.hooks.mayDial(t.Context(), "", private.String(), nil)},
		"reset":       &net.OpError{Op: "read", Net: "tcp", Source: private, Addr: private, Err: syscall.ECONNRESET},
		"no such":     &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "db.corp", Server: "10.1.2.3:53"}},
		"no resolver": &net.DNSError{Err: "timeout", Name: "db.corp", Server: "10.1.2.3:53"},
	} {
		err := withoutURL(&url.Error{Op: "Post", URL: "https://db.corp/secret", Err: cause})
		if text := err.Error(); strings.Contains(text, "10.1.2.3") || strings.Contains(text, "db.corp") || !strings.Contains(text, "cannot be called: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAHangingOrChatteringWebhookIsLeft(t *testing.T) {
	h := newHooked(t)
	for name, serve := range map[string]func(net.Conn){
		"hanging":    func(c net.Conn) { io.Copy(io.Discard, c) },
		"chattering": func(c net.Conn) { chatter(c) },
	} {
		w := store.Webhook{ID: "whk-1", URL: "http://" + rawServer(t, serve) + "/"}
		w.Secret = h.hooks.secret.Seal(nil, nil, make([]byte, 32), []byte(w.ID))
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		began := time.Now()
		err := h.call(ctx, w, store.Notice{ID: "msg_1"})
		cancel()
		if took := time.Since(began); took > 3*time.Second || name == "hanging" && err == nil {
			t.Errorf("%s: %v after %v", name, err, took)
		}
	}
}

// chatter answers 200 and never ends.
func chatter(c net.Conn) {
	if _, err := c.Write([]byte("HTTP/1.1 200 OK\r\n\r\n")); err != nil {
		return
	}
	for {
		if _, err := c.Write(bytes.Repeat([]byte("x"), 1<<10)); err != nil {
			return
		}
	}
}
