package tunnel

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/protocol/gather"
)

// ClientConfig configures a [Client].
type ClientConfig struct {
	// Address is the host:port of the control plane's device port.
	Address string
	// TLS presents the device's certificate and verifies the server's. The
	// client sets its application protocol.
	TLS *tls.Config
	// Handler answers the requests of the control plane, on both connections.
	Handler http.Handler

	// Hooks for the control connection, both optional. They must not block.
	//
	// Connected is told of a finished handshake. A server that refuses our
	// certificate ends the connection right after: TLS 1.3 tells only then.
	Connected func()
	// Disconnected is told that the connection ended or could not be made, and
	// how long the client waits before it tries again.
	Disconnected func(reason error, retry time.Duration)

	BackoffMin time.Duration // longest first wait; default 250 ms
	BackoffMax time.Duration // longest wait; default 15 s
	// Dial makes the network connection; nil for TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	ErrorLog *log.Logger // of net/http: panics of the handler; nil for none
	Limits   Limits
}

// Client is the device's end of the tunnel. It is safe for concurrent use.
type Client struct {
	cfg      ClientConfig
	exchange *exchange
	http     *http.Client
	running  sync.WaitGroup // bulk connections
	dialling chan struct{}  // held by whoever makes a bulk connection

	mu      sync.Mutex
	current *session      // guarded by mu; the control connection, nil while there is none
	changed chan struct{} // guarded by mu; closed and replaced when current is set
	bulk    *session      // guarded by mu; nil while there is none
	started bool          // guarded by mu
	ended   bool          // guarded by mu
}

// NewClient returns a client that starts with [Client.Run].
func NewClient(cfg ClientConfig) *Client {
	cfg.Limits = cfg.Limits.withDefaults()
	cfg.BackoffMin = cmp.Or(cfg.BackoffMin, 250*time.Millisecond)
	cfg.BackoffMax = cmp.Or(cfg.BackoffMax, 15*time.Second)
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
	}
	c := &Client{cfg: cfg, dialling: make(chan struct{}, 1), changed: make(chan struct{})}
	c.exchange = newExchange(&c.cfg.Limits, cfg.ErrorLog)
	c.http = newCaller(&c.cfg.Limits, c.session)
	return c
}

// Run keeps the control connection up until ctx ends, and then returns nil. It
// tries forever, with capped exponential backoff and full jitter. Everything it
// started has ended when it returns. It is called once.
func (c *Client) Run(ctx context.Context) error {
	var answering sync.WaitGroup
	answering.Go(c.exchange.run)
	c.mu.Lock()
	c.started = true
	c.mu.Unlock()
	for attempt := 0; ctx.Err() == nil; attempt++ {
		lived, err := c.connect(ctx)
		if ctx.Err() != nil {
			break
		}
		if lived > c.cfg.BackoffMax { // it was a good one: this is a new outage
			attempt = 0
		}
		retry := backoff(attempt, c.cfg.BackoffMin, c.cfg.BackoffMax)
		if c.cfg.Disconnected != nil {
			c.cfg.Disconnected(err, retry)
		}
		sleep(ctx, retry)
	}
	c.endBulk()
	c.running.Wait()
	c.exchange.close()
	answering.Wait()
	return nil
}

// connect makes the control connection and serves it until it ends. It returns
// how long that was and why it ended.
func (c *Client) connect(ctx context.Context) (lived time.Duration, err error) {
	s, err := c.dial(ctx, control)
	if err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { s.fail(ErrEnded) })
	defer stop()
	began := time.Now()
	c.setCurrent(s)
	if c.cfg.Connected != nil {
		c.cfg.Connected()
	}
	err = s.serve(c.exchange.deliver)
	c.setCurrent(nil)
	return time.Since(began), fmt.Errorf("the tunnel ended: %w", err)
}

func (c *Client) setCurrent(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = s
	if s != nil {
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

// backoff returns a random wait, up to min doubled attempt times, up to max.
func backoff(attempt int, min, max time.Duration) time.Duration {
	longest := max
	if d := min << attempt; attempt < 32 && d > 0 && d < max {
		longest = d
	}
	return rand.N(longest + 1)
}

// dial makes a connection of class c and starts a session on it.
func (c *Client) dial(ctx context.Context, class class) (*session, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.Limits.HandshakeTimeout, errors.New("it did not answer in time"))
	defer cancel()
	conn, err := c.cfg.Dial(ctx, c.cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the control plane at %s: %w", c.cfg.Address, err)
	}
	s, err := c.secure(ctx, conn, class)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot open the tunnel to %s: %w", c.cfg.Address, err)
	}
	return s, nil
}

func (c *Client) secure(ctx context.Context, conn net.Conn, class class) (*session, error) {
	if err := setTimeouts(conn, c.cfg.Limits.Silence); err != nil {
		return nil, err
	}
	config := c.cfg.TLS.Clone()
	config.NextProtos = []string{class.alpn}
	gathered := gather.New(conn, c.cfg.Limits.WriteTimeout)
	secured := tls.Client(gathered, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	started, err := newSession(secured, class, true, &c.cfg.Limits, func() http.Handler { return c.cfg.Handler })
	if err == nil && class == bulk {
		gathered.Gather()
	}
	return started, err
}

// session returns the control connection's session. It waits for one as long as
// ctx lets it.
func (c *Client) session(ctx context.Context) (*session, error) {
	for {
		c.mu.Lock()
		s, changed := c.current, c.changed
		c.mu.Unlock()
		if s != nil && s.reason() == nil {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("there is no tunnel to the control plane: %w", context.Cause(ctx))
		}
	}
}

// HTTP calls the control plane on the control connection: HTTP/1.1, a fresh
// stream per request, URLs below [BaseURL]. While there is no connection a
// request waits for one until its context ends. It is not repeated on another
// connection.
func (c *Client) HTTP() *http.Client { return c.http }

// DialBulk makes the bulk connection if there is none; ctx is for that only. The
// connection lives until it was idle for BulkIdle, or until Run returns.
func (c *Client) DialBulk(ctx context.Context) error {
	select {
	case c.dialling <- struct{}{}:
		defer func() { <-c.dialling }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if live, err := c.hasBulk(); live || err != nil {
		return err
	}
	s, err := c.dial(ctx, bulk)
	if err != nil {
		return err
	}
	return c.startBulk(s)
}

func (c *Client) hasBulk() (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.started || c.ended {
		return false, errors.New("cannot make a bulk connection: the tunnel is not running")
	}
	return c.bulk != nil && c.bulk.reason() == nil, nil
}

func (c *Client) startBulk(s *session) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		s.fail(ErrEnded)
		return ErrEnded
	}
	c.bulk = s
	s.endWhenIdle(c.cfg.Limits.BulkIdle)
	c.running.Go(func() { s.serve(c.exchange.deliver) })
	return nil
}

func (c *Client) endBulk() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.bulk != nil {
		c.bulk.fail(ErrEnded)
	}
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
