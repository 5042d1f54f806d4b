package uplink

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/state"
	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
)

// Enrolment is what a node says when it enrols.
type Enrolment struct {
	Server      string // host:port of the control plane's API
	Token       string // "lbxjoin.<id>.<secret>.<pin>"
	Node        protocol.NodeID
	Key         ed25519.PrivateKey // made here; only its public half leaves
	HostKey     []byte             // SSH wire form
	PolicyHash  string             // digest of the installed trust policy
	Disks       []*devicev1.DiskStatus
	DialTimeout time.Duration // 0: ten seconds
}

// Enrol asks the control plane for a certificate. It changes nothing here: the
// caller stores the identity.
func Enrol(ctx context.Context, e Enrolment) (state.Identity, error) {
	pin, err := joinPin(e.Token)
	if err != nil {
		return state.Identity{}, err
	}
	host, _, err := net.SplitHostPort(e.Server)
	if err != nil {
		return state.Identity{}, protocol.Errorf(protocol.CodeInvalid, "%q is not the address of a control plane: want host:port", e.Server)
	}
	config, err := certs.PinnedDialer(pin, host)
	if err != nil {
		return state.Identity{}, err
	}
	csr, err := certs.NewCSR(e.Key)
	if err != nil {
		return state.Identity{}, err
	}
	if e.DialTimeout == 0 {
		e.DialTimeout = 10 * time.Second
	}
	transport := &http.Transport{
		TLSClientConfig:        config,
		DialContext:            (&net.Dialer{Timeout: e.DialTimeout}).DialContext,
		TLSHandshakeTimeout:    e.DialTimeout,
		ResponseHeaderTimeout:  30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
	defer transport.CloseIdleConnections()
	client := devicev1.NewEnrolmentServiceClient(rpc.NewClient(&http.Client{Transport: transport, CheckRedirect: noRedirect}, "https://"+e.Server))
	resp, err := client.Enrol(ctx, &devicev1.EnrolRequest{
		Token: e.Token, Serial: string(e.Node.Serial), Node: int32(e.Node.Node), Csr: csr,
		TrustPolicyDigest: e.PolicyHash, SshHostKey: e.HostKey, Disks: e.Disks,
	})
	if err != nil {
		return state.Identity{}, fmt.Errorf("cannot enrol at %s: %w", e.Server, err)
	}
	if err := checkRoot(resp.ServerRoots, pin); err != nil {
		return state.Identity{}, fmt.Errorf("cannot enrol at %s: %w", e.Server, err)
	}
	if _, _, err := net.SplitHostPort(resp.TunnelAddress); err != nil {
		return state.Identity{}, fmt.Errorf("cannot enrol at %s: the answer names %q as the device port: want host:port", e.Server, resp.TunnelAddress)
	}
	return state.Identity{
		Serial: e.Node.Serial, Node: e.Node.Node,
		Chain: resp.Chain, ServerRoots: resp.ServerRoots, TunnelAddress: resp.TunnelAddress,
		SSHHostCertificate: resp.SshHostCertificate, Order: protocol.OrderID(resp.Order),
	}, nil
}

// noRedirect keeps the token from going anywhere else.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// checkRoot refuses roots other than the one the token names.
func checkRoot(roots [][]byte, pin string) error {
	if len(roots) != 1 {
		return fmt.Errorf("the answer has %d server roots: want one", len(roots))
	}
	root, err := x509.ParseCertificate(roots[0])
	if err != nil || certs.Pin(root) != pin {
		return fmt.Errorf("the answer names another server root than the token")
	}
	return nil
}

// joinPin returns the pin within a join token.
func joinPin(token string) (string, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 4 || parts[0] != "lbxjoin" {
		return "", protocol.Errorf(protocol.CodeInvalid, "this is not a join token: it starts with lbxjoin. and has four parts")
	}
	pin := "sha256:" + parts[3]
	return pin, certs.CheckPin(pin)
}
