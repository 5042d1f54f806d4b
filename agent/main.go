package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/cli"
	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/agent/internal/journal"
	"github.com/databox-lockbox/lockbox/agent/internal/localapi"
	"github.com/databox-lockbox/lockbox/agent/internal/share/nfs"
	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/agent/internal/support"
	"github.com/databox-lockbox/lockbox/agent/internal/uplink"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// Main is the databox-agent program. It returns the exit code.
func Main() int {
	return cli.Main(cli.Program{
		Run:        run,
		ReadPolicy: describePolicy,
		Enroll:     Enroll,
		Status: func(ctx context.Context, cfg Config) (*devicev1.NodeStatus, error) {
			return localapi.NewClient(cfg.Socket()).Status(ctx)
		},
		Lock: func(ctx context.Context, cfg Config) (*devicev1.NodeStatus, error) {
			return localapi.NewClient(cfg.Socket()).Lock(ctx)
		},
		Keeper: func() error { return disk.RunKeeper(os.Stdin) },
		NFS:    nfs.Main,
	})
}

// run runs the agent as a daemon of its own.
func run(ctx context.Context, cfg Config) error {
	if err := disk.ProtectMemory(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	a, err := New(cfg, Options{Log: newLogger(cfg.Log), Self: []string{self, cli.KeeperCommand}, NFS: []string{self, cli.NFSCommand}})
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// Enroll enrols the node with a join token and installs the customer's trust
// policy. If it fails, nothing was installed. Enrolling again renews the
// certificates and never replaces the policy.
func Enroll(ctx context.Context, cfg Config, server, token string, policy []byte) (err error) {
	dir, err := state.Open(cfg.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	chain, err := chainToInstall(dir, policy)
	if err != nil {
		return err
	}
	verified, err := verifyChain(chain)
	if err != nil {
		return fmt.Errorf("cannot use the trust policy: %w", err)
	}
	key, err := nodeKey(dir)
	if err != nil {
		return err
	}
	host, err := dir.HostKey()
	if err != nil {
		return err
	}
	hostKey, err := support.WireKey(host)
	if err != nil {
		return err
	}
	id, err := uplink.Enrol(ctx, uplink.Enrolment{
		Server: server, Token: token, Node: cfg.NodeID(), Key: key,
		HostKey: hostKey, PolicyHash: string(verified.Digest()), Disks: newDisks(cfg, nil).Status(),
	})
	if err != nil {
		return err
	}
	if err := recordPolicy(ctx, cfg, key, verified); err != nil {
		return err
	}
	return errors.Join(dir.InstallTrustPolicy(chain), dir.SetIdentity(id))
}

// chainToInstall returns what is to be the installed trust policy: what is
// installed, which must have come of the same one, or else the one given.
func chainToInstall(dir *state.Dir, policy []byte) ([]byte, error) {
	policy = bytes.TrimSpace(policy)
	installed := dir.TrustPolicy()
	switch {
	case installed == nil:
		return policy, nil
	case !bytes.HasPrefix(append(installed, '\n'), append(bytes.Clone(policy), '\n')):
		return nil, protocol.Errorf(protocol.CodeConflict, "another trust policy is installed: enrolling never replaces it, a new version must be signed by the old one's signers")
	}
	return dir.TrustPolicy(), nil
}

// recordPolicy makes the first record of a node's journal: whose signatures it
// will want.
func recordPolicy(ctx context.Context, cfg Config, key ed25519.PrivateKey, policy *approval.Policy) (err error) {
	j, err := journal.New(journalDir(cfg), cfg.NodeID(), key)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	r := newRecord(cfg, time.Now(), auditlog.OpInstallTrustPolicy, auditlog.Success)
	r.Properties = map[string]string{
		"digest": string(policy.Digest()), "version": strconv.FormatInt(policy.Document().Version, 10),
	}
	_, err = j.Append(ctx, r)
	return err
}
