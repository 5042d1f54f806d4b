package hostile

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/agent"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/simulator/image"
)

// diskID is the one disk of a device.
const diskID protocol.DiskID = "disk1"

// device is a real agent without mounts, in this process, that is attacked.
type device struct {
	id       protocol.NodeID
	cfg      agent.Config
	key      []byte // external key of its disk: custody is in the attacker's hands
	clock    *clock
	agent    *agent.Agent
	node     devicev1.NodeServiceClient
	ref      approval.NodeRef // set when it is known
	spki     []byte
	first    []byte // envelope of the installed trust policy, version 1
	policy   *approval.Policy
	captured []byte // the last order that opened it
}

// clock is the device's clock, which somebody sets.
type clock struct {
	start time.Time
	mu    sync.Mutex
	off   time.Duration
}

// Now is what the wall clock was set to.
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Round(0).Add(c.off)
}

// Boot is the time since boot, which nobody sets.
func (c *clock) Boot() time.Duration { return time.Hour + time.Since(c.start) }

func (c *clock) set(off time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off = off
}

// newDevice makes a device with a disk, and enrols it with a trust policy.
func newDevice(ctx context.Context, dir string, serial protocol.DeviceSerial, p *plane, policy []byte) (_ *device, err error) {
	cfg := agent.DefaultConfig()
	cfg.Serial, cfg.Bare = string(serial), true
	cfg.StateDir, cfg.RunDir = filepath.Join(dir, "state"), filepath.Join(dir, "run")
	cfg.Disks = []agent.DiskConfig{{ID: string(diskID), Image: filepath.Join(dir, "disk.img")}}
	d := &device{id: protocol.NodeID{Serial: serial, Node: 1}, cfg: cfg, clock: &clock{start: time.Now()}, first: policy}
	if d.policy, err = approval.VerifyPolicyV1(policy); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	keys, err := image.CreateBare(ctx, image.Spec{Path: cfg.Disks[0].Image, SizeBytes: image.MinBareSize, NoRecoveryPassword: true})
	if err != nil {
		return nil, err
	}
	defer keys.Wipe()
	d.key = bytes.Clone(keys.ExternalKey.Bytes())
	if err := agent.Enroll(ctx, cfg, p.api.Addr().String(), p.token(), policy); err != nil {
		return nil, err
	}
	d.agent, err = agent.New(cfg, agent.Options{Log: zerolog.Nop(), Clock: d.clock})
	return d, err
}

// meet waits for the device's tunnel and learns its key.
func (d *device) meet(ctx context.Context, p *plane) (err error) {
	if d.node, err = p.node(ctx, d.id); err != nil {
		return err
	}
	nothing := &devicev1.ChallengeRequest{SubjectDigest: string(approval.DigestOf(nil)), Purpose: string(protocol.SupportAccess)}
	resp, err := d.node.Challenge(ctx, nothing)
	for protocol.CodeOf(err) == protocol.CodeUnavailable && ctx.Err() == nil { // its tunnel is up before its lock
		time.Sleep(10 * time.Millisecond)
		resp, err = d.node.Challenge(ctx, nothing)
	}
	if err != nil {
		return err
	}
	c, err := parseChallenge(resp.Challenge)
	if err != nil {
		return err
	}
	d.ref = approval.NodeRef{Serial: d.id.Serial, Node: d.id.Node, KeyFingerprint: approval.KeyFingerprint(c.NodeKey)}
	d.spki, err = x509.MarshalPKIXPublicKey(ed25519.PublicKey(c.NodeKey))
	return err
}

func parseChallenge(envelope []byte) (approval.Challenge, error) {
	e, err := approval.ParseEnvelope(envelope)
	if err != nil {
		return approval.Challenge{}, err
	}
	return approval.ParseChallenge(e.Payload)
}

// locked reports whether nothing of the device is open.
func (d *device) locked() bool {
	s := protocol.LockState(d.agent.Status().State)
	return s == protocol.Locked || s == protocol.Challenged
}
