// Package controlplane assembles lockboxd: the daemon that keeps orders,
// requests and keys, and reaches devices through the tunnels they dial.
//
// Everything meets here and nowhere else: the services know what lies below
// them, not each other.
package controlplane

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/configs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/api"
	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/broker"
	"github.com/databox-lockbox/lockbox/controlplane/internal/config"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
	"github.com/databox-lockbox/lockbox/controlplane/internal/recordings"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/tunnel"
)

// Version is what the daemon calls itself.
const Version = "0.1.0"

// Config is everything that can be set, see configs/lockboxd.yaml.
type Config = config.Config

// Parts of a [Config].
type (
	ListenerConfig = config.Listener
	TimersConfig   = config.Timers
	ProviderConfig = config.Provider
)

// DefaultConfig returns the defaults of all settings that have one.
func DefaultConfig() Config { return config.Default() }

// LoadConfig reads a configuration file strictly.
func LoadConfig(path string) (Config, error) { return config.Load(path) }

// Options are what a program gives the control plane beside its settings.
type Options struct {
	Log zerolog.Logger
	Now func() time.Time // nil: time.Now
}

// serverCertTTL is how long a server certificate lives. It is renewed after two
// thirds of it, without a restart.
const serverCertTTL = 7 * 24 * time.Hour

// ControlPlane is the daemon.
type ControlPlane struct {
	cfg  Config
	opts Options

	store       *store.Store
	authorities *certs.Authorities
	server      *certs.Source
	broker      *broker.Broker
	services    api.Services
	notify      *notify.Service
	api         *api.Server
	lock        *os.File
	streams     streams
	closers     []func() error // of what the key services hold open

	apiListener, tunnelListener net.Listener
}

// New opens the store, the authorities and the keys, making what is missing on
// an empty directory, and takes both ports. Nothing runs until
// [ControlPlane.Run], which must be called, for it also closes what New opened.
func New(cfg Config, opts Options) (_ *ControlPlane, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	c := &ControlPlane{cfg: cfg, opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if err := privateDir(cfg.DataDir); err != nil {
		return nil, err
	}
	if c.lock, err = lockDir(cfg.DataDir); err != nil {
		return nil, err
	}
	keys, err := c.open()
	if err != nil {
		return nil, err
	}
	if err := c.listen(); err != nil {
		return nil, err
	}
	return c, c.assemble(keys)
}

// keys are the service's own.
type keys struct {
	service, log ed25519.PrivateKey
	wrapping     wrapping
}

// open opens what lies on disk.
func (c *ControlPlane) open() (k keys, err error) {
	fresh, err := isFresh(c.cfg)
	if err != nil {
		return k, err
	}
	if !fresh {
		if err := checkOld(c.cfg); err != nil {
			return k, err
		}
	}
	if c.authorities, _, err = certs.Open(c.cfg.AuthorityDir()); err != nil {
		return k, err
	}
	if k.service, err = openKey(c.cfg.ServiceKeyPath(), fresh); err != nil {
		return k, fmt.Errorf("cannot open the service key: %w", err)
	}
	if k.log, err = openKey(c.cfg.LogKeyPath(), fresh); err != nil {
		return k, fmt.Errorf("cannot open the log's key: %w", err)
	}
	local, err := openMaster(c.cfg, fresh)
	if err != nil {
		return k, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if c.store, err = store.Open(ctx, c.cfg.StorePath()); err != nil {
		return k, err
	}
	k.wrapping, err = c.openWrapping(ctx, local)
	return k, err
}

// isFresh reports whether there is no store yet, so that keys may be made. A
// key that is missing beside a store was lost, and is not to be replaced in
// silence.
func isFresh(cfg Config) (bool, error) {
	_, err := os.Stat(cfg.StorePath())
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

// listen takes both ports.
func (c *ControlPlane) listen() (err error) {
	if c.apiListener, err = net.Listen("tcp", c.cfg.API.Address); err != nil {
		return fmt.Errorf("cannot listen for the API, change api.address or stop what uses it: %w", err)
	}
	if c.tunnelListener, err = net.Listen("tcp", c.cfg.Tunnel.Address); err != nil {
		return fmt.Errorf("cannot listen for devices, change tunnel.address or stop what uses it: %w", err)
	}
	return nil
}

// APIAddress is the address of the API port, host:port.
func (c *ControlPlane) APIAddress() string { return c.apiListener.Addr().String() }

// TunnelAddress is the address of the device port, host:port.
func (c *ControlPlane) TunnelAddress() string { return c.tunnelListener.Addr().String() }

// Online returns how many nodes are connected now.
func (c *ControlPlane) Online() int { return c.broker.Count() }

func (c *ControlPlane) assemble(k keys) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	sinks, err := sinks(c.cfg.Audit.Sinks)
	if err != nil {
		return err
	}
	log, err := audit.New(ctx, audit.Config{
		Store: c.store, Key: k.log, Now: c.opts.Now, Retention: c.cfg.Audit.Retention, Sinks: sinks,
		Host: c.cfg.API.Names[0], Logger: c.opts.Log,
	})
	if err != nil {
		return err
	}
	if c.server, err = c.serverSource(); err != nil {
		return err
	}
	people, err := c.newAuth(log)
	if err != nil {
		return err
	}
	tunnels := c.newTunnels(log)
	c.broker = broker.New(tunnels)
	keeper := custody.New(custody.Config{
		Store: c.store, Audit: log, Nodes: c.broker, Signer: k.service,
		Keys: k.wrapping.current, OlderKeys: k.wrapping.older, CustomerKeys: k.wrapping.customers, AllowReturn: c.cfg.Keys.AllowReturn,
		Exporting: func(ctx context.Context, caller auth.Caller, k store.DiskKey, reason string) error {
			return c.services.Lockbox.TellExport(ctx, caller, k, reason)
		},
		DeadMan: c.cfg.DeadMan, Now: c.opts.Now, Logger: c.opts.Log,
	})
	if c.notify, err = c.newNotify(log, k.service); err != nil {
		return err
	}
	kept, err := recordings.New(ctx, recordings.Config{
		Store: c.store, Audit: log, Nodes: c.broker, Dir: c.cfg.RecordingsDir(), Limits: limitsOf(c.cfg.Recordings), Reach: c.reach,
		Retention: c.cfg.Recordings.Retention, Now: c.opts.Now, Logger: c.opts.Log,
	})
	if err != nil {
		return err
	}
	files := c.policies()
	rules, err := policy.Load(files)
	if err != nil {
		return err
	}
	order := orders.New(orders.Config{
		Store: c.store, Audit: log, Tunnels: c.broker, Authority: c.authorities, Custody: keeper,
		ServiceKey:    k.service.Public().(ed25519.PublicKey),
		TunnelAddress: advertised(c.cfg.Tunnel, c.tunnelListener),
		Heartbeat:     c.cfg.DeadMan / 4, Now: c.opts.Now, Logger: c.opts.Log,
		PolicyReplaced: func(ctx context.Context, tx *store.Tx, caller auth.Caller, o store.Order, next *approval.Policy) (func(context.Context), error) {
			return c.services.Lockbox.PolicyReplaced(ctx, tx, caller, o, next)
		},
		Reach: c.reach,
	})
	requests := lockbox.New(lockbox.Config{
		Store: c.store, Audit: log, Custody: keeper, Notify: c.notify, Orders: order, Nodes: c.broker, Authority: c.authorities,
		Policies: rules, PolicyFiles: c.watched(files), Expiry: c.cfg.Timers.RequestExpiry, SessionEnded: c.streams.endSession,
		Now: c.opts.Now, Logger: c.opts.Log,
	})
	c.services = api.Services{Accounts: people, Orders: order, Lockbox: requests, Custody: keeper, Audit: log, Notices: c.notify, Recordings: kept}
	c.api = c.newAPI(people)
	return c.firstAdmin(ctx, people)
}

// reach says what an engineer was given access to.
func (c *ControlPlane) reach(ctx context.Context, caller auth.Caller, operation string, of *store.Order) (store.Reach, error) {
	return c.services.Lockbox.Reach(ctx, caller, operation, of)
}

// limitsOf are the limits of recordings in bytes.
func limitsOf(r config.Recordings) recordings.Limits {
	const mib = 1 << 20
	return recordings.Limits{Recording: int64(r.MaxMiB) * mib, Node: int64(r.NodeMiB) * mib, Total: int64(r.TotalMiB) * mib}
}

// sinks are the copies of the activity log that are configured.
func sinks(configured []config.Sink) ([]audit.Sink, error) {
	var out []audit.Sink
	for _, s := range configured {
		sink := audit.Sink{Name: s.Name, Address: s.Address, Format: auditlog.Format(cmp.Or(s.Format, string(auditlog.FormatJSON)))}
		if s.Network != "tcp" {
			sink.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		if s.CAFile != "" {
			pem, err := os.ReadFile(s.CAFile)
			if err != nil {
				return nil, fmt.Errorf("audit.sinks: cannot read the certificates of %s: %w", s.Name, err)
			}
			sink.TLS.RootCAs = x509.NewCertPool()
			if !sink.TLS.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("audit.sinks: %s holds no certificate in PEM", s.CAFile)
			}
		}
		out = append(out, sink)
	}
	return out, nil
}

// serverSource makes a key and a certificate for both ports. They live in
// memory: the next start makes others.
func (c *ControlPlane) serverSource() (*certs.Source, error) {
	key, err := certs.NewKey()
	if err != nil {
		return nil, err
	}
	names := append(append([]string{}, c.cfg.API.Names...), c.cfg.Tunnel.Names...)
	issue := func(_ context.Context, csr []byte) ([][]byte, error) {
		return c.authorities.IssueServer(csr, names, serverCertTTL)
	}
	csr, err := certs.NewCSR(key)
	if err != nil {
		return nil, err
	}
	chain, err := issue(context.Background(), csr)
	if err != nil {
		return nil, err
	}
	source, err := certs.NewSource(key, chain, issue, nil)
	if err != nil {
		return nil, err
	}
	source.Failed = func(err error, retry time.Duration) {
		c.opts.Log.Error().Err(err).Dur("retry", retry).Msg("cannot renew the server's certificate")
	}
	return source, nil
}

// advertised is the address that devices are told to dial: the first name of
// the certificate, with the port that is really open.
func advertised(l config.Listener, ln net.Listener) string {
	_, port, _ := net.SplitHostPort(ln.Addr().String()) // of a TCP listener
	return net.JoinHostPort(l.Names[0], port)
}

// policies are the built-in JIT rules, or those of policies_dir.
func (c *ControlPlane) policies() fs.FS {
	if c.cfg.PoliciesDir != "" {
		return os.DirFS(c.cfg.PoliciesDir)
	}
	return configs.JIT()
}

// watched are files if they can change under a running daemon.
func (c *ControlPlane) watched(files fs.FS) fs.FS {
	if c.cfg.PoliciesDir == "" {
		return nil
	}
	return files
}

// newTunnels makes the server of the device port. Its handler reaches the
// services through c, which are assembled before anything is served.
func (c *ControlPlane) newTunnels(log *audit.Service) *tunnel.Server {
	handlers := api.NewNodeHandler(api.NodeServices{
		Heartbeat: func(ctx context.Context, n protocol.NodeID, in *devicev1.HeartbeatRequest) (*devicev1.HeartbeatResponse, error) {
			return c.services.Orders.Heartbeat(ctx, n, in)
		},
		AppendRecords: func(ctx context.Context, n protocol.NodeID, in *devicev1.AppendRecordsRequest) (*devicev1.AppendRecordsResponse, error) {
			next, err := log.AppendDeviceRecords(ctx, n, in.Records, in.Checkpoint)
			return &devicev1.AppendRecordsResponse{Acked: next}, err
		},
		RenewCertificate: func(ctx context.Context, n protocol.NodeID, in *devicev1.RenewCertificateRequest) (*devicev1.RenewCertificateResponse, error) {
			return c.services.Orders.RenewCertificate(ctx, n, in)
		},
		ReportJob: func(ctx context.Context, n protocol.NodeID, in *devicev1.ReportJobRequest) (*devicev1.ReportJobResponse, error) {
			return c.services.Orders.ReportJob(ctx, n, in)
		},
		ReportManifest: func(ctx context.Context, n protocol.NodeID, in *devicev1.ReportManifestRequest) (*devicev1.ReportManifestResponse, error) {
			return c.services.Orders.ReportManifest(ctx, n, in)
		},
		AppendRecording: func(ctx context.Context, n protocol.NodeID, in *devicev1.AppendRecordingRequest) (*devicev1.AppendRecordingResponse, error) {
			return c.services.Recordings.Append(ctx, n, in)
		},
		ReportChanges: func(ctx context.Context, n protocol.NodeID, in *devicev1.ReportChangesRequest) (*devicev1.ReportChangesResponse, error) {
			return c.services.Lockbox.ReportChanges(ctx, n, in)
		},
	}, c.opts.Log)
	return tunnel.NewServer(tunnel.ServerConfig{
		TLS:      certs.DeviceListener(c.server, c.authorities.Roots().Devices, c.revoked),
		Identify: c.identifyNode,
		Handler:  func(p *tunnel.Peer) http.Handler { return handlers(p.ID()) },
		Connected: func(p *tunnel.Peer) {
			c.opts.Log.Info().Str("node", p.ID().String()).Msg("a device connected")
		},
		Disconnected: func(p *tunnel.Peer, err error) {
			c.opts.Log.Info().Str("node", p.ID().String()).AnErr("cause", err).Msg("a device is gone")
		},
		Refused: func(remote net.Addr, err error) {
			c.opts.Log.Warn().Stringer("remote", remote).Err(certs.Explain(err, c.opts.Now())).Msg("a device was refused")
		},
	})
}

// identifyNode names the node at the other end of a tunnel: one that is
// enrolled, with the key it enrolled with. A certificate alone, even of our own
// authority, is not enough.
func (c *ControlPlane) identifyNode(state tls.ConnectionState) (protocol.NodeID, string, error) {
	id, fingerprint, _, err := certs.DeviceFromState(state)
	if err != nil {
		return id, "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var node store.Node
	err = c.store.View(ctx, func(tx *store.Tx) (err error) {
		node, err = tx.Node(ctx, id)
		return err
	})
	if err != nil {
		return id, "", fmt.Errorf("cannot look up node %s: %w", id, err)
	}
	if node.KeyFingerprint != fingerprint {
		return id, "", fmt.Errorf("node %s is enrolled with another key than %s", id, fingerprint)
	}
	return id, fingerprint, nil
}

// revoked asks the store whether a certificate was ended. When the store does
// not answer, nobody gets in. It takes about a tenth of the handshake's own time
// (40 µs), so there is nothing in memory that could be out of date.
func (c *ControlPlane) revoked(serial string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	ended := true
	err := c.store.View(ctx, func(tx *store.Tx) (err error) {
		ended, err = tx.CertRevoked(ctx, serial)
		return err
	})
	return err != nil || ended
}

// newAPI makes the server of the API port.
func (c *ControlPlane) newAPI(people *auth.Service) *api.Server {
	return api.NewServer(api.ServerConfig{
		Handler: api.NewHandler(api.Config{
			Services: c.services, Identify: people.Identify, DialSession: c.dialSession, Log: c.opts.Log,
		}),
		TLS: certs.APIListener(c.server, c.authorities.Roots().People, c.revoked),
		Log: c.opts.Log,
	})
}

// endPerson ends what a person who is removed has opened: in the store, then
// their streams, then at the devices.
func (c *ControlPlane) endPerson(ctx context.Context, tx *store.Tx, caller auth.Caller, name protocol.Person) (func(context.Context), error) {
	tell, err := c.services.Lockbox.EndPerson(ctx, tx, caller, name)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		c.streams.end(name)
		tell(ctx)
	}, nil
}

// dialSession opens the byte stream to the SSH server of a support session, if
// the caller is its engineer. It ends with the caller's removal, also if that
// comes while it is being opened.
func (c *ControlPlane) dialSession(ctx context.Context, caller auth.Caller, id protocol.SessionID) (net.Conn, error) {
	node, err := c.services.Lockbox.Connect(ctx, caller, id)
	if err != nil {
		return nil, err
	}
	conn, err := c.broker.SSH(ctx, node, id)
	if refused, ok := errors.AsType[*tunnel.UpgradeError](err); ok {
		return nil, protocol.Errorf(protocol.CodeConflict, "node %s does not open session %s: %s", node, id, refused.Message)
	}
	if err != nil && protocol.CodeOf(err) == protocol.CodeInternal {
		return nil, protocol.Errorf(protocol.CodeOffline, "the connection to node %s was lost while the session was opened: %v", node, err)
	}
	if err != nil {
		return nil, err
	}
	conn = c.streams.add(caller.Person, id, conn)
	now, err := c.services.Lockbox.GetSession(ctx, auth.SystemCaller(), &lockboxv1.GetSessionRequest{Id: string(id)})
	if err == nil && now.State != lockbox.SessionEnabled {
		err = protocol.Errorf(protocol.CodeConflict, "session %s has ended: enable another", id)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// Run serves until ctx ends.
func (c *ControlPlane) Run(ctx context.Context) error {
	if c.cfg.DemoTimers {
		c.opts.Log.Warn().Dur("request_expiry", c.cfg.Timers.RequestExpiry).
			Msg("demo_timers is on: requests expire when this configuration says, not after four days. Never use it with a customer's data")
	}
	c.opts.Log.Info().Str("api", c.APIAddress()).Str("tunnel", c.TunnelAddress()).Msg("control plane started")
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return ignoreEnd(ctx, c.server.Run(ctx)) })
	g.Go(func() error { return ignoreEnd(ctx, c.services.Custody.Run(ctx)) })
	g.Go(func() error { return ignoreEnd(ctx, c.services.Orders.Run(ctx)) })
	g.Go(func() error { return ignoreEnd(ctx, c.services.Lockbox.RunTimers(ctx)) })
	g.Go(func() error { return ignoreEnd(ctx, c.services.Lockbox.RunPolicies(ctx)) })
	g.Go(func() error { return ignoreEnd(ctx, c.services.Recordings.Run(ctx)) })
	g.Go(func() error { return ignoreEnd(ctx, c.notify.Run(ctx)) })
	g.Go(func() error { return ignoreEnd(ctx, c.services.Audit.Run(ctx)) })
	g.Go(func() error { return ignoreEnd(ctx, c.broker.Serve(ctx, c.tunnelListener)) })
	g.Go(func() error { return c.api.Serve(ctx, c.apiListener) })
	return errors.Join(g.Wait(), c.close())
}

// ignoreEnd takes the end of ctx for what it is: no failure.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// close gives back what New opened.
func (c *ControlPlane) close() error {
	var errs []error
	for _, ln := range []net.Listener{c.apiListener, c.tunnelListener} {
		if ln != nil {
			if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	for _, closeIt := range c.closers {
		errs = append(errs, closeIt())
	}
	if c.store != nil {
		errs = append(errs, c.store.Close())
	}
	if c.lock != nil {
		errs = append(errs, c.lock.Close()) // which gives the lock back
	}
	return errors.Join(errs...)
}
