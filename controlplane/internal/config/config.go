// Package config holds the control plane's settings: one struct that the file
// configs/lockboxd.yaml documents, its defaults, and its checks.
//
//   - Every field has a default or is named by [Config.Validate] when missing.
//   - No secret is ever a setting. Keys live in files of mode 0600.
//   - Times of the workflow can be changed in a demonstration only, which
//     demo_timers has to announce.
package config

import (
	"cmp"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/configs"
)

// EnvPrefix begins the environment variables that override settings, as in
// LOCKBOXD_DATA_DIR.
const EnvPrefix = "LOCKBOXD"

// Config is everything that can be set for a control plane.
type Config struct {
	// DataDir holds the store, the authorities and the service's keys.
	// Absolute, on a durable file system, used by one process. Required.
	DataDir string `mapstructure:"data_dir"`
	// MasterKeyFile holds the key that wraps the keys of orders, if Keys.Service
	// is local: mode 0600, 32 bytes made at the first start; text once it was
	// rotated. Absolute; best on another file system than DataDir, alone in its
	// directory. Default <data_dir>/master.key.
	MasterKeyFile string `mapstructure:"master_key_file"`
	// Keys configures what wraps the keys of orders.
	Keys Keys `mapstructure:"keys"`
	// PoliciesDir holds JIT policies instead of the built-in ones. Absolute. They
	// are read again when they change.
	// Default none.
	PoliciesDir string `mapstructure:"policies_dir"`
	// API is where people and enrolling devices connect.
	API Listener `mapstructure:"api"`
	// Tunnel is where enrolled devices connect.
	Tunnel Listener `mapstructure:"tunnel"`
	// Notify configures how people are told of what happens.
	Notify Notify `mapstructure:"notify"`
	// SignIn are the identity providers by which people may sign in. Default
	// none: they log in with one-time tokens.
	SignIn []Provider `mapstructure:"sign_in"`
	// DeadMan is how long a node stays unlocked without hearing from the
	// control plane. It must be what the agents are set to. Default 60s.
	DeadMan time.Duration `mapstructure:"dead_man"`
	// DemoTimers allows the times in Timers to be changed. The daemon warns of
	// it at its start. Default false.
	DemoTimers bool `mapstructure:"demo_timers"`
	// Timers are the times of the workflow.
	Timers Timers `mapstructure:"timers"`
	// Audit configures what becomes of the activity log.
	Audit Audit `mapstructure:"audit"`
	// Recordings configures what is kept of support sessions and shares.
	Recordings Recordings `mapstructure:"recordings"`
	// Log configures the daemon's log.
	Log Log `mapstructure:"log"`
}

// Audit configures what becomes of the activity log.
type Audit struct {
	// Retention is how long records are kept. 0 keeps them for ever, else at
	// least 90 days (2160h), and until every sink has them. Default 0.
	Retention time.Duration `mapstructure:"retention"`
	// Sinks are syslog servers that get a copy of the log. Default none.
	Sinks []Sink `mapstructure:"sinks"`
}

// Sink is a syslog server: RFC 5424 messages over TCP or TLS.
type Sink struct {
	// Name names how far the copy is. A new name gets the whole log. Required.
	Name string `mapstructure:"name"`
	// Address is the server's host:port. Required.
	Address string `mapstructure:"address"`
	// Network is tls or tcp. Default tls.
	Network string `mapstructure:"network"`
	// CAFile holds the certificates, in PEM, of those who may sign the
	// server's. Absolute. Default the system's.
	CAFile string `mapstructure:"ca_file"`
	// Format is that of the messages' text: json, cef or ocsf. Default json.
	Format string `mapstructure:"format"`
}

// Listener is a TCP port with a server certificate.
type Listener struct {
	// Address is the host:port to listen on. Port 0 takes a free one.
	Address string `mapstructure:"address"`
	// Names are the DNS names and IP addresses of the server's certificate.
	// The first is the one others are told. Default localhost and 127.0.0.1.
	Names []string `mapstructure:"names"`
}

// Timers are times of the workflow. They differ from their defaults only in
// demonstrations.
type Timers struct {
	// RequestExpiry is how long a request waits for the customer. Default 96h,
	// four days.
	RequestExpiry time.Duration `mapstructure:"request_expiry"`
}

// Log configures the daemon's log, which goes to standard error.
type Log struct {
	// Level is debug, info, warn or error. Default info.
	Level string `mapstructure:"level"`
	// Format is console or json. Default json.
	Format string `mapstructure:"format"`
}

// Default returns the defaults of all settings that have one.
func Default() Config {
	return Config{
		Recordings: defaultRecordings(),
		API:        Listener{Address: "127.0.0.1:8443", Names: []string{"localhost", "127.0.0.1"}},
		Tunnel:     Listener{Address: "127.0.0.1:8444", Names: []string{"localhost", "127.0.0.1"}},
		Keys:       defaultKeys(),
		Notify:     defaultNotify(),
		SignIn:     []Provider{},
		DeadMan:    60 * time.Second,
		Timers:     DefaultTimers(),
		Audit:      Audit{Sinks: []Sink{}},
		Log:        Log{Level: "info", Format: "json"},
	}
}

// DefaultTimers returns the times that hold without demo_timers.
func DefaultTimers() Timers {
	return Timers{RequestExpiry: 4 * 24 * time.Hour}
}

// Load reads the file at path over the defaults, applies the environment, and
// checks the result. All problems are reported at once.
func Load(path string) (Config, error) {
	c, err := configs.LoadFile(path, EnvPrefix, Default())
	if err != nil {
		return c, err
	}
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// StorePath is the file of the store.
func (c Config) StorePath() string { return filepath.Join(c.DataDir, "store.db") }

// AuthorityDir is the directory of the certificate authorities.
func (c Config) AuthorityDir() string { return filepath.Join(c.DataDir, "authority") }

// ServiceKeyPath is the file of the key that signs orders to devices.
func (c Config) ServiceKeyPath() string { return filepath.Join(c.DataDir, "service.key") }

// LogKeyPath is the file of the key that signs the activity log.
func (c Config) LogKeyPath() string { return filepath.Join(c.DataDir, "log.key") }

// RecordingsDir is the directory of the recordings.
func (c Config) RecordingsDir() string { return filepath.Join(c.DataDir, "recordings") }

// MasterKeyPath is the file of the master key.
func (c Config) MasterKeyPath() string {
	return cmp.Or(c.MasterKeyFile, filepath.Join(c.DataDir, "master.key"))
}

// Validate returns a [*configs.Error] with everything that is wrong with c, or
// nil.
func (c Config) Validate() error {
	var p problems
	p.folder("data_dir", c.DataDir)
	p.optional("master_key_file", c.MasterKeyFile)
	p.keys(c.Keys)
	p.optional("policies_dir", c.PoliciesDir)
	p.listener("api", c.API)
	p.listener("tunnel", c.Tunnel)
	_, port, _ := net.SplitHostPort(c.API.Address)
	p.Check(c.API.Address != c.Tunnel.Address || port == "0", "tunnel.address", "%q is the API's address: give the tunnel a port of its own", c.Tunnel.Address)
	p.notify(c.Notify)
	p.providers(c.SignIn)
	p.Between("dead_man", c.DeadMan, time.Second, 10*time.Minute)
	p.timers(c.Timers, c.DemoTimers)
	p.audit(c.Audit)
	p.recordings(c.Recordings)
	p.OneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	p.OneOf("log.format", c.Log.Format, "console", "json")
	return p.Err()
}

// minRetention is the shortest time that records are kept.
const minRetention = 90 * 24 * time.Hour

var sinkName = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

// problems are those of a configuration.
type problems struct{ configs.Problems }

func (p *problems) folder(key, path string) { p.Path(key, path, "/var/lib/lockboxd") }

func (p *problems) optional(key, path string) {
	if path != "" {
		p.folder(key, path)
	}
}

func (p *problems) listener(key string, l Listener) {
	_, _, err := net.SplitHostPort(l.Address)
	p.Check(err == nil, key+".address", "%q is not an address: write host:port", l.Address)
	p.Check(len(l.Names) > 0, key+".names", "no name is given: list the DNS names and IP addresses under which it is reached")
	for i, name := range l.Names {
		valid := net.ParseIP(name) != nil || name != "" && !strings.ContainsAny(name, ":/ ")
		p.Check(valid, fmt.Sprintf("%s.names[%d]", key, i), "%q is neither a DNS name nor an IP address: write one without port", name)
	}
}

func (p *problems) audit(a Audit) {
	p.Check(a.Retention == 0 || a.Retention >= minRetention, "audit.retention", "%v is too short: use 0, or at least %v", a.Retention, minRetention)
	names := map[string]bool{}
	for i, s := range a.Sinks {
		key := fmt.Sprintf("audit.sinks[%d].", i)
		p.Check(sinkName.MatchString(s.Name), key+"name", "%q is no name: write 1 to 32 of a-z, 0-9 and dash", s.Name)
		p.Check(!names[s.Name], key+"name", "%q is the name of another sink", s.Name)
		names[s.Name] = true
		_, _, err := net.SplitHostPort(s.Address)
		p.Check(err == nil, key+"address", "%q is not an address: write host:port", s.Address)
		p.OneOf(key+"network", cmp.Or(s.Network, "tls"), "tls", "tcp")
		p.OneOf(key+"format", cmp.Or(s.Format, "json"), "json", "cef", "ocsf")
		p.optional(key+"ca_file", s.CAFile)
		p.Check(s.CAFile == "" || s.Network != "tcp", key+"ca_file", "is for TLS: remove it, or set network to tls")
	}
}

func (p *problems) timers(t Timers, demo bool) {
	p.Between("timers.request_expiry", t.RequestExpiry, time.Second, 4*24*time.Hour)
	p.Check(demo || t == DefaultTimers(), "timers", "differ from the defaults: remove them, or set demo_timers to true in a demonstration")
}
