package tunnel

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"
)

// ClientConfig configures a [Client].
type ClientConfig struct {
	Address      string                                                   // host:port of the control plane's device port
	TLS          *tls.Config                                              // presents the device certificate; the ALPN is set here
	Handler      http.Handler                                             // answers requests that come from the control plane
	Connected    func()                                                   // optional; must not block
	Disconnected func(err error, retry time.Duration)                     // optional; session ended or dial failed, next try after retry
	BackoffMin   time.Duration                                            // default 250 ms
	BackoffMax   time.Duration                                            // default 15 s
	Dial         func(ctx context.Context, addr string) (net.Conn, error) // optional; default TCP
	Limits       Limits
}

// Client is the device's end of the tunnel.
type Client struct{ cfg ClientConfig }

// NewClient returns a client that starts with [Client.Run].
func NewClient(cfg ClientConfig) *Client { return &Client{cfg: cfg} }

// Run keeps the control connection up until ctx ends.
func (c *Client) Run(ctx context.Context) error { return errUnfinished }

// HTTP calls the control plane over the current session and waits for one up to the request's context; base URL [BaseURL].
func (c *Client) HTTP() *http.Client { return nil }

// DialBulk makes the bulk connection if there is none. It lives until idle or until Run ends.
func (c *Client) DialBulk(ctx context.Context) error { return errUnfinished }
