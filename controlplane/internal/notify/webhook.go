package notify

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
)

// Webhooks says where webhooks may lead, and holds what their secrets are
// encrypted with.
type Webhooks struct {
	// Key is what the key over stored secrets is derived from: at least 32
	// secret bytes that stay the same. It is not kept.
	Key []byte
	// Networks may be reached although they are private.
	Networks []netip.Prefix
	// Loopback allows this machine, also without TLS. For development.
	Loopback bool
	// Roots are trusted instead of the system's, if not nil.
	Roots *x509.CertPool
}

// Limits of webhooks.
const (
	maxWebhooks   = 8    // of a tenant
	maxURL        = 1024 // bytes
	maxAnswer     = 4 << 10
	webhookLimit  = 10 * time.Second // of one call
	minSecret     = 24               // bytes, see the Standard Webhooks specification
	maxSecret     = 64
	secretPrefix  = "whsec_"
	webhookUser   = "databox-lockbox"
	webhookPrefix = "whk-"
)

// hooks sends to webhooks.
type hooks struct {
	cfg    Webhooks
	secret cipher.AEAD
	client *http.Client
}

func newHooks(cfg Webhooks) (*hooks, error) {
	key, err := hkdf.Key(sha256.New, cfg.Key, nil, "lockbox webhook secrets v1", 32)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	cfg.Key = nil
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	h := &hooks{cfg: cfg, secret: aead}
	dialer := &net.Dialer{Timeout: webhookLimit, ControlContext: h.mayDial}
	h.client = &http.Client{
		Timeout: webhookLimit,
		Transport: &http.Transport{
			DialContext:            dialer.DialContext, // and no proxy, which would dial for us
			TLSClientConfig:        &tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    webhookLimit,
			MaxResponseHeaderBytes: maxAnswer,
			DisableKeepAlives:      true, // calls are rare, and nobody keeps a connection of ours
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return h, nil
}

// special are the networks that are nobody's on the internet: what answers there
// is ours. 168.63.129.16 is the host under every virtual machine in Azure.
var special = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
	"192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
)

// global is what IPv6 gives out. Within it lie ways into the networks above.
var (
	global   = netip.MustParsePrefix("2000::/3")
	tunnels6 = prefixes("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func within(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// mayReach reports whether a webhook may lead to an address.
func (h *hooks) mayReach(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	switch {
	case within(h.cfg.Networks, a) || h.cfg.Loopback && a.IsLoopback():
		return true
	case a.Is4():
		return !within(special, a)
	}
	return global.Contains(a) && !within(tunnels6, a)
}

// mayDial is asked for the address itself, after names were resolved: whoever
// changes what a name means between a check and its use gains nothing.
func (h *hooks) mayDial(_ context.Context, _, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err == nil && h.mayReach(a.Addr()) {
		return nil
	}
	return errors.New("its host is not on the internet: webhooks may not lead into private networks")
}

// check refuses a URL to which nothing would be sent.
func (h *hooks) check(text string) error {
	refuse := func(format string, args ...any) error { return protocol.Errorf(protocol.CodeInvalid, format, args...) }
	u, err := url.Parse(text)
	if err != nil || len(text) > maxURL || u.Hostname() == "" || u.Opaque != "" || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return refuse("this is no URL for a webhook: want https://host/path of at most %d bytes", maxURL)
	}
	if u.User != nil || u.Fragment != "" {
		return refuse("a webhook's URL holds neither a user nor a fragment: calls are signed instead")
	}
	if u.Scheme != "https" && !(u.Scheme == "http" && h.cfg.Loopback && onLoopback(u.Hostname())) {
		return refuse("a webhook is called by https only")
	}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil && !h.mayReach(a) {
		return refuse("%s is not on the internet: webhooks may not lead into private networks", a)
	}
	return nil
}

func onLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// payload is what a webhook is told: ids, a state and a link. Who wants more asks
// the API, as somebody who may.
type payload struct {
	Type      string `json:"type"` // "lockbox." and the kind
	Timestamp string `json:"timestamp"`
	Data      data   `json:"data"`
}

type data struct {
	ID     string `json:"id"`
	Number int64  `json:"number,omitempty"`
	State  string `json:"state,omitempty"`
	Tenant string `json:"tenant"`
	Link   string `json:"link,omitempty"`
}

// body is made of the row alone: every attempt sends the same.
func body(n store.Notice) ([]byte, error) {
	return json.Marshal(payload{
		Type: "lockbox." + n.Kind, Timestamp: n.Created.UTC().Format(time.RFC3339Nano),
		Data: data{ID: n.Subject, Number: n.Number, State: n.State, Tenant: string(n.Tenant), Link: n.Link},
	})
}

// sign returns the webhook-signature of a call by the Standard Webhooks
// specification, version 1.
func sign(secret []byte, id string, at time.Time, body []byte) string {
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "%s.%d.%s", id, at.Unix(), body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// toWebhook calls the webhook that a delivery names.
func (s *Service) toWebhook(ctx context.Context, n store.Notice, d store.Delivery) error {
	var w store.Webhook
	err := s.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		w, err = tx.Webhook(ctx, d.Recipient)
		return err
	})
	if err != nil {
		return err
	}
	if !w.Removed.IsZero() {
		return finalError{errors.New("the webhook was removed")}
	}
	return s.call(ctx, w, n)
}

// call sends a notice to a webhook, once.
func (s *Service) call(ctx context.Context, w store.Webhook, n store.Notice) error {
	if err := s.hooks.check(w.URL); err != nil { // the configuration may have changed
		return finalError{err}
	}
	secret, err := s.hooks.secret.Open(nil, nil, w.Secret, []byte(w.ID))
	if err != nil {
		return finalError{errors.New("the webhook's secret cannot be decrypted: add the webhook again")}
	}
	defer clear(secret)
	text, err := body(n)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL, bytes.NewReader(text))
	if err != nil {
		return finalError{err}
	}
	now := s.cfg.Now()
	req.Header = http.Header{
		"Content-Type":      {"application/json"},
		"User-Agent":        {webhookUser},
		"Webhook-Id":        {n.ID},
		"Webhook-Timestamp": {strconv.FormatInt(now.Unix(), 10)},
		"Webhook-Signature": {sign(secret, n.ID, now, text)},
	}
	resp, err := s.hooks.client.Do(req)
	if err != nil {
		return withoutURL(err)
	}
	defer resp.Body.Close()
	io.CopyN(io.Discard, resp.Body, maxAnswer) // what it says is of no interest
	switch {
	case resp.StatusCode/100 == 2:
		return nil
	case resp.StatusCode == http.StatusGone: // "I want no more of this"
		return finalError{errors.New("the webhook answered 410 Gone")}
	case resp.StatusCode/100 == 3:
		return fmt.Errorf("the webhook answered %d: redirects are not followed", resp.StatusCode)
	}
	return fmt.Errorf("the webhook answered %d", resp.StatusCode)
}

// withoutURL leaves out the URL, in which some services keep a secret, and every
// address: a customer learns nothing of our networks by what a name means here.
func withoutURL(err error) error {
	e, ok := errors.AsType[*url.Error](err)
	if !ok {
		return err
	}
	err = e.Err
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		err = errors.New("its host's name cannot be resolved")
	}
	return fmt.Errorf("the webhook cannot be called: %w", err)
}

// newSecret makes a secret as the specification writes it.
func newSecret() string {
	var b [32]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return secretPrefix + base64.StdEncoding.EncodeToString(b[:])
}

// parseSecret returns the bytes of a secret.
func parseSecret(text string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(text, secretPrefix)
	secret, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(secret) < minSecret || len(secret) > maxSecret {
		return nil, protocol.Errorf(protocol.CodeInvalid, "this is no secret of a webhook: want %s and the base64 of %d to %d bytes", secretPrefix, minSecret, maxSecret)
	}
	return secret, nil
}
