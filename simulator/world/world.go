// Package world builds the world of the story in one folder: a control plane,
// simulated devices with real disks, and the people, each with their keys.
//
// A world only lies on disk until somebody starts it: Go tests start its parts
// in their own process ([World.RunControlPlane], [World.RunAgent]); the scenario
// starts the real programs with the configuration files that are here.
package world

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing/fstest"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/databox-lockbox/lockbox/agent/bitlocker"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
	"github.com/databox-lockbox/lockbox/simulator/actor"
	"github.com/databox-lockbox/lockbox/simulator/image"
	"github.com/databox-lockbox/lockbox/simulator/profile"
)

// The names of the story.
const (
	Tenant       protocol.TenantID       = "contoso"
	Subscription protocol.SubscriptionID = "6f1c3f0a-54a1-4c52-9d6e-3c1f0a7b2d11"
	Order        protocol.OrderID        = "ORD-1001"
	OtherOrder   protocol.OrderID        = "ORD-1002"
	Serial       protocol.DeviceSerial   = "DBX0001"
	OtherSerial  protocol.DeviceSerial   = "DBX0002"
)

// Config says what world to build.
type Config struct {
	Dir     string // made if missing
	Profile profile.Profile
	DeadMan time.Duration // 0: 60 s
	Blobs   Blobs         // where all accounts are; zero: a folder of the world
}

// Blobs is a blob service.
type Blobs struct {
	Endpoint   string // of the account
	Credential string // that its owner hands over: SharedAccessSignature=… or AccountKey=…
}

// World is one world.
type World struct {
	Dir     string
	Profile profile.Profile
	API     string // host:port of the control plane's API
	Tunnel  string // host:port of its device port
	Device  Device // of the profile, with real disks
	Other   Device // a second one, bare: it can be opened and verified, no more
	People  map[string]actor.Person
	deadMan time.Duration
	blobs   Blobs
}

// Device is one simulated device.
type Device struct {
	Serial protocol.DeviceSerial
	Order  protocol.OrderID
	SKU    string
	Nodes  []Node
}

// Node is one node of a device.
type Node struct {
	ID    protocol.NodeID
	Dir   string // holds agent.yaml, state, disks
	Run   string // short, for sockets
	Bare  bool
	SMB   int // TCP port of its shares
	Disks []Disk
}

// ConfigFile is the configuration of the node's agent.
func (n Node) ConfigFile() string { return filepath.Join(n.Dir, "agent.yaml") }

// StateDir is the agent's state directory.
func (n Node) StateDir() string { return filepath.Join(n.Dir, "state") }

// Disk is one disk of a node.
type Disk struct {
	profile.Disk
	Image string
}

// Keys open one disk. Only the world knows them beside custody: they are how
// tests recognize a key in a process's memory.
type Keys struct {
	External []byte
	Recovery string
}

// The people of the story, by the part of their name before the @.
var cast = []actor.Person{
	{Name: "sam@datacenter.example", Role: "staff"},
	{Name: "erin@provider.example", Role: "engineer"},
	{Name: "emil@provider.example", Role: "engineer"},
	{Name: "ivan@provider.example", Role: "internal-approver"},
	{Name: "olga@contoso.example", Role: "owner", Tenant: Tenant},
	{Name: "andy@contoso.example", Role: "approver", Tenant: Tenant},
}

// New lays out a world: names, ports, folders and people's keys. Its disks are
// made by [World.PrepareDevices].
func New(cfg Config) (*World, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, err
	}
	w := &World{Dir: dir, Profile: cfg.Profile, People: make(map[string]actor.Person), deadMan: cfg.DeadMan, blobs: cfg.Blobs}
	if w.deadMan == 0 {
		w.deadMan = time.Minute
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for _, p := range cast {
		p.Dir = filepath.Join(dir, "people", p.Short())
		if err := p.MakeKey(); err != nil {
			return nil, err
		}
		w.People[p.Short()] = p
	}
	w.People["admin"] = actor.Person{Name: "admin@lockbox.local", Role: "admin", Dir: filepath.Join(dir, "people", "admin")}
	return w, w.layout()
}

func (w *World) layout() error {
	ports, err := freePorts(3 + len(w.Profile.Nodes))
	if err != nil {
		return err
	}
	w.API = fmt.Sprintf("localhost:%d", ports[0])
	w.Tunnel = fmt.Sprintf("localhost:%d", ports[1])
	w.Device = Device{Serial: Serial, Order: Order, SKU: w.Profile.Name}
	for i, n := range w.Profile.Nodes {
		node := w.node(Serial, i+1, ports[3+i])
		for _, d := range n.Disks {
			node.Disks = append(node.Disks, Disk{d, filepath.Join(node.Dir, "disks", string(d.ID)+".img")})
		}
		w.Device.Nodes = append(w.Device.Nodes, node)
	}
	other := w.node(OtherSerial, 1, ports[2])
	other.Bare = true
	other.Disks = []Disk{{profile.Disk{ID: "disk1"}, filepath.Join(other.Dir, "disks", "disk1.img")}}
	w.Other = Device{Serial: OtherSerial, Order: OtherOrder, SKU: "databox", Nodes: []Node{other}}
	for _, dir := range []string{w.ControlDir(), w.BlobDir(), w.LogDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return w.writeConfigs()
}

func (w *World) node(serial protocol.DeviceSerial, n, smb int) Node {
	id := protocol.NodeID{Serial: serial, Node: n}
	name := fmt.Sprintf("%s-%d", serial, n)
	sum := sha256.Sum256([]byte(w.Dir))
	return Node{
		ID: id, SMB: smb, Dir: filepath.Join(w.Dir, "devices", name),
		// Sockets have short names: the kernel allows 107 bytes.
		Run: filepath.Join(os.TempDir(), "databox-"+hex.EncodeToString(sum[:4]), name),
	}
}

// freePorts finds TCP ports of 127.0.0.1 that nobody listens on.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close() // at the end: so they differ
		ports = append(ports, ln.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// ControlDir holds the control plane's configuration and data.
func (w *World) ControlDir() string { return filepath.Join(w.Dir, "controlplane") }

// ControlConfig is the configuration of lockboxd.
func (w *World) ControlConfig() string { return filepath.Join(w.ControlDir(), "lockboxd.yaml") }

// DataDir is the control plane's data directory.
func (w *World) DataDir() string { return filepath.Join(w.ControlDir(), "data") }

// BlobDir is the folder that plays the storage accounts.
func (w *World) BlobDir() string { return filepath.Join(w.Dir, "blobs") }

// LogDir holds the programs' logs.
func (w *World) LogDir() string { return filepath.Join(w.Dir, "logs") }

// TokenFile is where a person's login token is left for them.
func (w *World) TokenFile(short string) string {
	if short == "admin" {
		return filepath.Join(w.DataDir(), "first-admin.token")
	}
	return filepath.Join(w.People[short].Dir, "login.token")
}

// PreparedFile is what provisioning wrote of a device: with its keys.
func (w *World) PreparedFile(d Device) string {
	return filepath.Join(w.Dir, "devices", string(d.Serial)+"-prepared.json")
}

// Endpoint is the blob service of every account: what was asked for, or a folder, with
// one below it for each account.
func (w *World) Endpoint() string {
	if w.blobs.Endpoint != "" {
		return w.blobs.Endpoint
	}
	return "file://" + w.BlobDir()
}

// Nodes are the nodes of all devices.
func (w *World) Nodes() []Node { return append(append([]Node{}, w.Device.Nodes...), w.Other.Nodes...) }

// PrepareDevices makes the disks of both devices and the files that
// provisioning hands over. progress may be nil.
func (w *World) PrepareDevices(ctx context.Context, progress func(string)) (map[string]Keys, error) {
	keys := make(map[string]Keys)
	for _, d := range []Device{w.Device, w.Other} {
		one, err := w.PrepareDevice(ctx, d, progress)
		if err != nil {
			return nil, err
		}
		maps.Copy(keys, one)
	}
	return keys, nil
}

// PrepareDevice is PrepareDevices for one of them.
func (w *World) PrepareDevice(ctx context.Context, d Device, progress func(string)) (map[string]Keys, error) {
	keys := make(map[string]Keys)
	req := &lockboxv1.PrepareDeviceRequest{Order: string(d.Order), Serial: string(d.Serial)}
	for _, n := range d.Nodes {
		for _, one := range n.Disks {
			if progress != nil {
				progress(fmt.Sprintf("making %s %s", n.ID, one.ID))
			}
			prepared, k, err := w.makeDisk(ctx, n, one)
			if err != nil {
				return nil, fmt.Errorf("cannot make disk %s of %s: %w", one.ID, n.ID, err)
			}
			req.Disks = append(req.Disks, prepared)
			keys[KeyName(n.ID, one.ID)] = k
		}
	}
	data, err := protojson.Marshal(req)
	if err != nil {
		return nil, err
	}
	return keys, os.WriteFile(w.PreparedFile(d), data, 0o600)
}

// KeyName is the name of a disk's keys in what [World.PrepareDevices] returns.
func KeyName(n protocol.NodeID, d protocol.DiskID) string { return n.String() + " " + string(d) }

func (w *World) makeDisk(ctx context.Context, n Node, d Disk) (*lockboxv1.PreparedDisk, Keys, error) {
	if err := os.MkdirAll(filepath.Dir(d.Image), 0o700); err != nil {
		return nil, Keys{}, err
	}
	if err := os.Remove(d.Image); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, Keys{}, err
	}
	content, manifests, err := contentOf(d.Disk)
	if err != nil {
		return nil, Keys{}, err
	}
	spec := image.Spec{Path: d.Image, SizeBytes: w.Profile.DiskSize, Label: string(d.ID), Source: content}
	create := image.Create
	if n.Bare {
		create, spec.SizeBytes, spec.Source = image.CreateBare, image.MinBareSize, nil
	}
	k, err := create(ctx, spec)
	if err != nil {
		return nil, Keys{}, err
	}
	defer k.Wipe()
	info, err := image.Inspect(d.Image)
	if err != nil {
		return nil, Keys{}, err
	}
	keys := Keys{External: externalKey(k.ExternalKey), Recovery: recoveryPassword(k.RecoveryPassword)}
	return &lockboxv1.PreparedDisk{
		Node: int32(n.ID.Node), Disk: string(d.ID), VolumeGuid: info.ID.String(),
		ExternalKey: keys.External, RecoveryPassword: keys.Recovery, Manifests: manifests,
	}, keys, nil
}

// manifestDir is where bills of materials lie on a disk.
const manifestDir = "DataBoxManifest"

// contentOf returns what the customer put on a disk, with the bills of
// materials that their prepare-to-ship wrote.
func contentOf(d profile.Disk) (fs.FS, []*lockboxv1.PreparedManifest, error) {
	tree := fstest.MapFS{}
	err := fs.WalkDir(d.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := fs.ReadFile(d.FS(), name)
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		tree[name] = &fstest.MapFile{Data: data, Mode: 0o644, ModTime: info.ModTime()}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	var manifests []*lockboxv1.PreparedManifest
	for _, s := range d.Shares {
		bom, err := bomOf(s)
		if err != nil {
			return nil, nil, err
		}
		tree[manifestDir+"/"+s.Name+"-BOM.xml"] = &fstest.MapFile{Data: bom, Mode: 0o644, ModTime: time.Now()}
		manifests = append(manifests, &lockboxv1.PreparedManifest{Share: s.Name, Bom: bom})
	}
	return tree, manifests, nil
}

func bomOf(s profile.Share) ([]byte, error) {
	share, err := manifest.ParseShare(s.Name)
	if err != nil {
		return nil, err
	}
	bom := manifest.BOM{Share: share}
	for name, content := range s.Files {
		bom.Files = append(bom.Files, manifest.File{Path: name, Size: int64(len(content)), CRC64: manifest.ChecksumCRC64([]byte(content))})
	}
	slices.SortFunc(bom.Files, func(a, b manifest.File) int { return strings.Compare(a.Path, b.Path) })
	return bom.Encode()
}

func externalKey(k bitlocker.ExternalKey) []byte { return bytes.Clone(k.Bytes()) }

func recoveryPassword(p bitlocker.RecoveryPassword) string { return p.Reveal() }
