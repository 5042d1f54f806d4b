package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"

	"github.com/databox-lockbox/lockbox/agent/internal/cli"
	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/agent/internal/localapi"
	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/agent/internal/support"
	"github.com/databox-lockbox/lockbox/agent/internal/uplink"
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
	a, err := New(cfg, Options{Log: newLogger(cfg.Log), Self: []string{self, cli.KeeperCommand}})
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// Enroll installs the customer's trust policy, if none is installed, and enrols
// the node with a join token. Enrolling again renews the certificates and
// never replaces the policy.
func Enroll(ctx context.Context, cfg Config, server, token string, policy []byte) (err error) {
	dir, err := state.Open(cfg.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	digest, err := installPolicy(dir, policy)
	if err != nil {
		return err
	}
	signer, err := dir.NodeKey()
	if err != nil {
		return err
	}
	key, ok := signer.(ed25519.PrivateKey)
	if !ok {
		return fmt.Errorf("the node's key is a %T: want Ed25519", signer)
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
		HostKey: hostKey, PolicyHash: digest, Disks: newDisks(cfg, nil).Status(),
	})
	if err != nil {
		return err
	}
	return dir.SetIdentity(id)
}

// installPolicy installs the first trust policy and returns the digest of what
// is installed. Where one is installed already, it must be of the same origin.
func installPolicy(dir *state.Dir, envelope []byte) (string, error) {
	envelope = bytes.TrimSpace(envelope)
	if installed := dir.TrustPolicy(); installed != nil {
		first, _, _ := bytes.Cut(installed, []byte("\n"))
		if !bytes.Equal(first, envelope) {
			return "", errors.New("another trust policy is installed: enrolling never replaces it, a new version must be signed by its own signers")
		}
		envelope = installed
	} else if err := dir.InstallTrustPolicy(envelope); err != nil {
		return "", err
	}
	policy, err := verifyChain(envelope)
	if err != nil {
		return "", err
	}
	return string(policy.Digest()), nil
}
