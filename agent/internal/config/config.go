// Package config holds the agent's settings: one struct that the file
// configs/agent.yaml documents, its defaults, and its checks.
//
//   - Every field has a default or is named by [Config.Validate] when missing.
//   - No secret is ever a setting. Keys and tokens live in files of the state
//     directory or come sealed to one unlock.
package config

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"github.com/databox-lockbox/lockbox/configs"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// EnvPrefix begins the environment variables that override settings, as in
// DATABOX_AGENT_STATE_DIR.
const EnvPrefix = "DATABOX_AGENT"

// Config is everything that can be set for one node's agent.
type Config struct {
	// Serial is the device's serial number. Required.
	Serial string `mapstructure:"serial"`
	// Node is the node's number within its device, 1 or 2. Default 1.
	Node int `mapstructure:"node"`
	// StateDir holds what must survive a restart: key, certificates, trust
	// policy, journal. Absolute, on a durable file system. Required.
	StateDir string `mapstructure:"state_dir"`
	// RunDir holds what must not survive: mount points, the share servers'
	// files. Absolute. Required.
	RunDir string `mapstructure:"run_dir"`
	// Order is the order the device was sent out for, for display only; what
	// the control plane said at enrolment counts. Default none.
	Order string `mapstructure:"order"`
	// Bare opens and verifies volumes without mounting them, for fleets of
	// simulated devices. Nothing can be shared or copied. Default false.
	Bare bool `mapstructure:"bare"`
	// Disks are the node's disks. At least one.
	Disks []Disk `mapstructure:"disks"`
	// BlobRoots are the folders below which a consent's file:// endpoint must
	// lie. Absolute. Default none: no folder may be written to.
	BlobRoots []string `mapstructure:"blob_roots"`
	// LocalSocket is the Unix socket for datacenter staff. Default
	// <run_dir>/agent.sock.
	LocalSocket string `mapstructure:"local_socket"`

	ControlPlane ControlPlane `mapstructure:"control_plane"`
	Lock         Lock         `mapstructure:"lock"`
	Share        Share        `mapstructure:"share"`
	Copy         Copy         `mapstructure:"copy"`
	Recording    Recording    `mapstructure:"recording"`
	Reconnect    Reconnect    `mapstructure:"reconnect"`
	Log          Log          `mapstructure:"log"`
}

// Disk is one disk of the node.
type Disk struct {
	// ID names the disk within its node, e.g. "disk1".
	ID string `mapstructure:"id"`
	// Image is the file or block device with the BitLocker volume. Absolute.
	Image string `mapstructure:"image"`
}

// ControlPlane says where the control plane is.
type ControlPlane struct {
	// TunnelAddress overrides the host:port learnt at enrolment. Default none.
	TunnelAddress string `mapstructure:"tunnel_address"`
}

// Lock bounds every unlock. These are upper bounds of this device's own; the
// trust policy and the approval may be stricter, never wider.
type Lock struct {
	// DeadMan is how long the node stays unlocked without an answer from the
	// control plane, or without a proof of life of its peer node. Default 60s.
	DeadMan time.Duration `mapstructure:"dead_man"`
	// ChallengeTTL is how long a challenge can be answered. Default 60s.
	ChallengeTTL time.Duration `mapstructure:"challenge_ttl"`
	// CommitWithin is how long disks stay open before they must be committed.
	// Default 30s.
	CommitWithin time.Duration `mapstructure:"commit_within"`
	// MaxLease is the longest lease. Default 8h.
	MaxLease time.Duration `mapstructure:"max_lease"`
}

// Share configures the share servers.
type Share struct {
	// SMBD is the program that serves SMB. Absolute. Default /usr/sbin/smbd.
	SMBD string `mapstructure:"smbd"`
	// Address is the IP address on which shares are served. Default 127.0.0.1.
	Address string `mapstructure:"address"`
	// Port is the TCP port of the SMB shares; 0 chooses a free one. Default 0.
	Port int `mapstructure:"port"`
	// Allow are the addresses of SMB clients, as in 10.1.2.0/24. Default loopback.
	Allow []string `mapstructure:"allow"`
	// NFS serves shares over NFSv3 too.
	NFS NFS `mapstructure:"nfs"`
}

// NFS configures the NFSv3 server. NFS has no login: whoever is at an allowed
// address is let in. So it also takes an approved request that says so.
type NFS struct {
	// Enabled serves NFS. Default false.
	Enabled bool `mapstructure:"enabled"`
	// Address is the IP address on which it is served. Default 127.0.0.1.
	Address string `mapstructure:"address"`
	// Port is the TCP port, of NFS and of its mount protocol; 0 chooses a free
	// one. Default 2049.
	Port int `mapstructure:"port"`
	// Allow are the addresses of clients, as in 10.1.2.0/24. Default loopback.
	Allow []string `mapstructure:"allow"`
}

// Prefixes returns Allow as addresses.
func (s Share) Prefixes() ([]netip.Prefix, error) { return prefixes(s.Allow) }

// Prefixes returns Allow as addresses.
func (n NFS) Prefixes() ([]netip.Prefix, error) { return prefixes(n.Allow) }

func prefixes(texts []string) ([]netip.Prefix, error) {
	list := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err == nil && prefix != prefix.Masked() {
			err = fmt.Errorf("netip.ParsePrefix(%q): bits are set beyond the network", text)
		}
		if err != nil {
			return nil, err
		}
		list[i] = prefix
	}
	return list, nil
}

// Copy configures the copy job.
type Copy struct {
	// Parallel is how many files are uploaded at once, and how many blocks of 8
	// MiB are in memory for it, 1 to 64. Default 4.
	Parallel int `mapstructure:"parallel"`
	// Accounts are the storage accounts whose blob service may be written to. What
	// lets into them comes with an unlock. Default none: no https:// endpoint may be
	// written to.
	Accounts []Account `mapstructure:"accounts"`
}

// Account is a storage account that may be written to.
type Account struct {
	// Account is its name, 3 to 24 of a-z and 0-9.
	Account string `mapstructure:"account"`
	// Endpoint is the URL of its blob service, as the consent has it. Plain
	// http:// only on the loopback interface.
	Endpoint string `mapstructure:"endpoint"`
}

// Recording configures the recordings of support sessions and shares, which are
// kept in <state_dir>/recordings.
type Recording struct {
	// Quota is how many MiB they may have together, 16 to 1048576. When it is
	// used up, nothing can be recorded, so no session can begin. Default 4096.
	Quota int `mapstructure:"quota_mib"`
	// Part is how many MiB one file of them has at most, 1 to 65536, and never
	// more than half of Quota, so that one can go while the next grows: a longer
	// recording goes on in another. The control plane takes none above its
	// recordings.max_mib. Default 256.
	Part int `mapstructure:"part_mib"`
	// MinFree is how many MiB stay free on their file system, 16 to 1048576.
	// Default 256.
	MinFree int `mapstructure:"min_free_mib"`
	// Keep is how long a recording is kept here that the control plane has
	// confirmed. It goes earlier when the quota is used up. Default 168h.
	Keep time.Duration `mapstructure:"keep"`
}

// PartMiB is how many MiB one file has at most.
func (r Recording) PartMiB() int { return min(r.Part, r.Quota/2) }

// Reconnect bounds the waiting time before the tunnel is dialled again. It
// grows from Min to Max, with full jitter, forever.
type Reconnect struct {
	// Min is the first bound. Default 1s.
	Min time.Duration `mapstructure:"min"`
	// Max is the last bound. Default 60s.
	Max time.Duration `mapstructure:"max"`
}

// Log configures the agent's log, which goes to standard error.
type Log struct {
	// Level is debug, info, warn or error. Default info.
	Level string `mapstructure:"level"`
	// Format is console or json. Default json.
	Format string `mapstructure:"format"`
}

// Default returns the defaults of all settings that have one.
func Default() Config {
	return Config{
		Node: 1,
		Lock: Lock{DeadMan: 60 * time.Second, ChallengeTTL: 60 * time.Second, CommitWithin: 30 * time.Second, MaxLease: 8 * time.Hour},
		Share: Share{
			SMBD: "/usr/sbin/smbd", Address: "127.0.0.1", Allow: []string{"127.0.0.0/8", "::1/128"},
			NFS: NFS{Address: "127.0.0.1", Port: 2049, Allow: []string{"127.0.0.0/8", "::1/128"}},
		},
		Copy:      Copy{Parallel: 4},
		Recording: Recording{Quota: 4096, Part: 256, MinFree: 256, Keep: 7 * 24 * time.Hour},
		Reconnect: Reconnect{Min: time.Second, Max: time.Minute},
		Log:       Log{Level: "info", Format: "json"},
	}
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

// NodeID returns the name of the node.
func (c Config) NodeID() protocol.NodeID {
	return protocol.NodeID{Serial: protocol.DeviceSerial(c.Serial), Node: c.Node}
}

// Socket returns the path of the local socket.
func (c Config) Socket() string {
	return cmp.Or(c.LocalSocket, filepath.Join(c.RunDir, "agent.sock"))
}

// Validate returns a [*configs.Error] with everything that is wrong with c, or
// nil.
func (c Config) Validate() error {
	var p problems
	p.Check(c.NodeID().Serial.Valid(), "serial", "%q is not a serial: write 3 to 32 of A-Z, 0-9 and dash, as printed on the device", c.Serial)
	p.Check(c.Node == 1 || c.Node == 2, "node", "%d is not a node: write 1 or 2", c.Node)
	p.folder("state_dir", c.StateDir)
	p.folder("run_dir", c.RunDir)
	p.Check(c.StateDir == "" || c.StateDir != c.RunDir, "run_dir", "must not be the state directory: its content is removed at start")
	p.disks(c.Disks)
	for i, root := range c.BlobRoots {
		p.folder(fmt.Sprintf("blob_roots[%d]", i), root)
	}
	if c.LocalSocket != "" {
		p.folder("local_socket", c.LocalSocket)
	}
	// The kernel's limit for the path of a Unix socket.
	p.Check(len(c.Socket()) < 108, "local_socket", "%q is too long for a socket: write a path of at most 107 bytes", c.Socket())
	if c.ControlPlane.TunnelAddress != "" {
		_, _, err := net.SplitHostPort(c.ControlPlane.TunnelAddress)
		p.Check(err == nil, "control_plane.tunnel_address", "%q is not an address: write host:port", c.ControlPlane.TunnelAddress)
	}
	p.lock(c.Lock)
	p.Check(filepath.IsAbs(c.Share.SMBD), "share.smbd", "%q is not absolute: write the full path of the program", c.Share.SMBD)
	p.Check(net.ParseIP(c.Share.Address) != nil, "share.address", "%q is not an IP address: write one, as in 127.0.0.1", c.Share.Address)
	p.Check(c.Share.Port >= 0 && c.Share.Port <= 65535, "share.port", "%d is not a port: write 0 to 65535", c.Share.Port)
	_, err := c.Share.Prefixes()
	p.Check(err == nil, "share.allow", "%v: write networks, as in 10.1.2.0/24", err)
	p.Check(len(c.Share.Allow) > 0, "share.allow", "no address is given, so nobody could connect: list networks, as in 10.1.2.0/24")
	p.nfs(c.Share.NFS)
	p.Check(c.Copy.Parallel >= 1 && c.Copy.Parallel <= 64, "copy.parallel", "%d is out of range: write 1 to 64", c.Copy.Parallel)
	p.accounts(c.Copy.Accounts)
	p.Check(c.Recording.Quota >= 16 && c.Recording.Quota <= 1<<20, "recording.quota_mib", "%d is out of range: write 16 to 1048576", c.Recording.Quota)
	p.Check(c.Recording.Part >= 1 && c.Recording.Part <= 1<<16, "recording.part_mib", "%d is out of range: write 1 to 65536, and no more than recordings.max_mib of the control plane", c.Recording.Part)
	p.Check(c.Recording.MinFree >= 16 && c.Recording.MinFree <= 1<<20, "recording.min_free_mib", "%d is out of range: write 16 to 1048576", c.Recording.MinFree)
	p.Between("recording.keep", c.Recording.Keep, 0, 10*365*24*time.Hour)
	p.Between("reconnect.min", c.Reconnect.Min, 10*time.Millisecond, time.Hour)
	p.Between("reconnect.max", c.Reconnect.Max, c.Reconnect.Min, 24*time.Hour)
	p.OneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	p.OneOf("log.format", c.Log.Format, "console", "json")
	return p.Err()
}

// problems are those of a configuration.
type problems struct{ configs.Problems }

func (p *problems) folder(key, path string) { p.Path(key, path, "/var/lib/databox-agent") }

func (p *problems) disks(disks []Disk) {
	p.Check(len(disks) > 0, "disks", "no disk is given: list at least one with id and image")
	ids, images := make(map[string]bool), make(map[string]bool)
	for i, d := range disks {
		key := "disks[" + strconv.Itoa(i) + "]"
		p.Check(protocol.DiskID(d.ID).Valid(), key+".id", "%q is not a disk: write 1 to 32 of a-z, 0-9 and dash", d.ID)
		p.Check(!ids[d.ID], key+".id", "%q is listed twice: give each disk a name of its own", d.ID)
		p.folder(key+".image", d.Image)
		p.Check(!images[d.Image], key+".image", "%q is listed twice: list each image once", d.Image)
		ids[d.ID], images[d.Image] = true, true
	}
}

func (p *problems) nfs(n NFS) {
	p.Check(net.ParseIP(n.Address) != nil, "share.nfs.address", "%q is not an IP address: write one, as in 127.0.0.1", n.Address)
	p.Check(n.Port >= 0 && n.Port <= 65535, "share.nfs.port", "%d is not a port: write 0 to 65535", n.Port)
	_, err := n.Prefixes()
	p.Check(err == nil, "share.nfs.allow", "%v: write networks, as in 10.1.2.0/24", err)
	p.Check(!n.Enabled || len(n.Allow) > 0, "share.nfs.allow", "no address is given, so nobody could connect: list networks, as in 10.1.2.0/24")
}

func (p *problems) accounts(accounts []Account) {
	seen := make(map[string]bool)
	for i, a := range accounts {
		key := "copy.accounts[" + strconv.Itoa(i) + "]"
		_, err := manifest.ParseShare(a.Account + "_BlockBlob")
		p.Check(err == nil, key+".account", "%q is not an account: write 3 to 24 of a-z and 0-9", a.Account)
		p.Check(!seen[a.Account], key+".account", "%q is listed twice: give each account one endpoint", a.Account)
		err = manifest.CheckEndpoint(a.Endpoint)
		p.Check(err == nil, key+".endpoint", "%v", err)
		seen[a.Account] = true
	}
}

func (p *problems) lock(l Lock) {
	p.Between("lock.dead_man", l.DeadMan, time.Second, 10*time.Minute)
	p.Between("lock.challenge_ttl", l.ChallengeTTL, time.Second, 5*time.Minute)
	p.Between("lock.commit_within", l.CommitWithin, time.Second, 5*time.Minute)
	p.Between("lock.max_lease", l.MaxLease, time.Second, 7*24*time.Hour)
}
