package orders

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// joinWord begins every join token: "lbxjoin.<id>.<secret>.<pin>".
const joinWord = "lbxjoin"

const (
	maxToken    = 256 // bytes of a join token
	maxRefusals = 20  // that are recorded of one token: whoever has it could fill the log
)

// CreateJoinToken makes a token with which one node may enrol, once, within
// [JoinTokenTTL]. For a node that is enrolled it must say that it replaces, and
// only an admin may.
func (s *Service) CreateJoinToken(ctx context.Context, caller auth.Caller, in *lockboxv1.CreateJoinTokenRequest) (*lockboxv1.CreateJoinTokenResponse, error) {
	id, secret := randomHex(8), randomHex(32)
	hash := sha256.Sum256([]byte(secret))
	node := protocol.NodeID{Serial: protocol.DeviceSerial(in.Serial), Node: max(int(in.Node), 1)}
	row := store.JoinToken{
		ID: id, SecretHash: hash[:], Node: node, Replaces: in.Replace, CreatedBy: caller.Person,
		Created: s.now(), Expires: s.now().Add(JoinTokenTTL),
	}
	err := s.change(ctx, string(caller.Person), auditlog.OpCreateJoinToken, func(tx *store.Tx, rec *auditlog.Record) error {
		o, err := order(ctx, tx, caller, in.Order)
		if err != nil {
			return err
		}
		n, err := tx.Node(ctx, node)
		if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && n.Order != o.ID {
			err = invalid("node %s was not prepared for order %s", node, o.ID)
		}
		if err != nil {
			return err
		}
		if err := mayEnrol(caller, n, in.Replace); err != nil {
			return err
		}
		row.Order = o.ID
		about(rec, o)
		rec.Properties["node"], rec.Properties["token"], rec.Properties["replaces"] = node.String(), id, fmt.Sprint(in.Replace)
		return tx.InsertJoinToken(ctx, &row)
	})
	if err != nil {
		return nil, err
	}
	pin := strings.TrimPrefix(certs.Pin(s.cfg.Authority.Roots().Servers), "sha256:")
	return &lockboxv1.CreateJoinTokenResponse{
		Token: strings.Join([]string{joinWord, id, secret, pin}, "."), Expires: row.Expires.Unix(),
	}, nil
}

func mayEnrol(caller auth.Caller, n store.Node, replace bool) error {
	enrolled := n.KeyFingerprint != ""
	switch {
	case enrolled && !replace:
		return conflict("node %s is enrolled already: to end its certificate and enrol it anew, an admin asks for a replacing token", n.ID)
	case replace && !caller.Is(auth.Admin):
		return protocol.Errorf(protocol.CodeForbidden, "only an admin may have a node enrol again")
	}
	return nil
}

// Enrol gives a node its first certificate. The join token authenticates it;
// the key in the certificate request becomes the node's identity, which
// statements and consents pin. Refusals are recorded; after as many wrong secrets
// as for a login token the token is locked for as long.
func (s *Service) Enrol(ctx context.Context, in *devicev1.EnrolRequest) (*devicev1.EnrolResponse, error) {
	node := protocol.NodeID{Serial: protocol.DeviceSerial(in.Serial), Node: int(in.Node)}
	if _, err := protocol.ParseNodeID(node.String()); err != nil {
		return nil, invalid("%v", err)
	}
	var out *devicev1.EnrolResponse
	var replaced bool
	err := s.change(ctx, node.URI().String(), auditlog.OpEnrolDevice, func(tx *store.Tx, rec *auditlog.Record) error {
		e := enrolment{s: s, tx: tx, in: in, node: node, rec: rec}
		answer, err := e.run(ctx)
		out, replaced = answer, e.replaced
		return err
	})
	if refusal, ok := errors.AsType[*refusedToken](err); ok {
		return nil, s.refusedEnrolment(ctx, node, refusal)
	}
	if err != nil {
		return nil, err
	}
	if replaced {
		s.cfg.Tunnels.Disconnect(node, "the node enrolled again")
	}
	return out, nil
}

// refusedToken is the refusal of somebody who holds a token that is known here:
// it is recorded.
type refusedToken struct {
	token string // its id
	guess bool   // the secret was wrong
	why   error
}

func (r *refusedToken) Error() string { return r.why.Error() }
func (r *refusedToken) Unwrap() error { return r.why }

// refusedEnrolment counts and records a refusal, and returns why.
func (s *Service) refusedEnrolment(ctx context.Context, node protocol.NodeID, r *refusedToken) error {
	err := s.cfg.Store.Tx(ctx, func(tx *store.Tx) error {
		token, err := tx.JoinToken(ctx, r.token)
		if err != nil {
			return err
		}
		if r.guess {
			token.Failures++
		}
		if token.Failures >= auth.MaxFailures {
			token.Failures, token.LockedUntil = 0, s.now().Add(auth.LockOut)
		}
		if token.Refusals < maxRefusals {
			token.Refusals++
			if err := s.recordRefusal(ctx, tx, node, r); err != nil {
				return err
			}
		}
		return tx.UpdateJoinToken(ctx, &token)
	})
	if err != nil {
		return err
	}
	return r.why
}

func (s *Service) recordRefusal(ctx context.Context, tx *store.Tx, node protocol.NodeID, r *refusedToken) error {
	rec := auditlog.NewRecord(s.now(), auditlog.OpRefuseEnrolment, auditlog.Refused)
	rec.Caller, rec.ResourceID = node.URI().String(), "/devices/"+string(node.Serial)
	rec.Properties = map[string]string{
		"serial": string(node.Serial), "node": node.String(), "token": r.token,
		"code": string(protocol.CodeOf(r.why)), "reason": r.why.Error(),
	}
	_, err := s.cfg.Audit.Record(ctx, tx, rec)
	return err
}

// enrolment is one call of [Service.Enrol].
type enrolment struct {
	s    *Service
	tx   *store.Tx
	in   *devicev1.EnrolRequest
	node protocol.NodeID
	rec  *auditlog.Record

	replaced bool // the node had a certificate, which has ended
}

func (e *enrolment) run(ctx context.Context) (*devicev1.EnrolResponse, error) {
	token, err := e.token(ctx)
	if err != nil {
		return nil, err
	}
	out, err := e.admit(ctx, token)
	if err != nil && protocol.CodeOf(err) != protocol.CodeInternal {
		return nil, &refusedToken{token: token.ID, why: err}
	}
	return out, err
}

// token finds the token and checks its secret. What is wrong up to there says
// nothing about any token and is not recorded: anybody can send garbage.
func (e *enrolment) token(ctx context.Context) (store.JoinToken, error) {
	unknown := protocol.Errorf(protocol.CodeUnauthenticated, "the join token is not valid: have a new one made")
	parts := strings.Split(e.in.Token, ".")
	if len(e.in.Token) > maxToken || len(parts) != 4 || parts[0] != joinWord {
		return store.JoinToken{}, unknown
	}
	token, err := e.tx.JoinToken(ctx, parts[1])
	if protocol.CodeOf(err) == protocol.CodeNotFound {
		return store.JoinToken{}, unknown
	}
	if err != nil {
		return store.JoinToken{}, err
	}
	if e.s.now().Before(token.LockedUntil) {
		return store.JoinToken{}, protocol.Errorf(protocol.CodeLimit, "too many wrong join tokens: this one is locked until %s, have a new one made", protocol.Stamp(token.LockedUntil))
	}
	hash := sha256.Sum256([]byte(parts[2]))
	if subtle.ConstantTimeCompare(hash[:], token.SecretHash) != 1 {
		return store.JoinToken{}, &refusedToken{token: token.ID, guess: true, why: unknown}
	}
	return token, nil
}

func (e *enrolment) admit(ctx context.Context, token store.JoinToken) (*devicev1.EnrolResponse, error) {
	now := e.s.now()
	switch {
	case !token.Used.IsZero():
		return nil, protocol.Errorf(protocol.CodeTokenUsed, "the join token was used at %s: have a new one made", protocol.Stamp(token.Used))
	case token.Node != e.node:
		return nil, protocol.Errorf(protocol.CodeTokenSerial, "the join token is not for node %s: have one made for it", e.node)
	case !now.Before(token.Expires):
		return nil, protocol.Errorf(protocol.CodeTokenExpired, "the join token expired at %s: have a new one made", protocol.Stamp(token.Expires))
	}
	o, err := e.tx.Order(ctx, token.Order)
	if err != nil {
		return nil, err
	}
	if err := e.checkDevice(ctx, o); err != nil {
		return nil, err
	}
	n, err := e.tx.Node(ctx, e.node)
	if err != nil {
		return nil, err
	}
	if n.KeyFingerprint != "" && !token.Replaces {
		return nil, conflict("node %s enrolled meanwhile: an admin has to ask for a replacing token", e.node)
	}
	token.Used = now
	if err := e.tx.UpdateJoinToken(ctx, &token); err != nil {
		return nil, err
	}
	about(e.rec, o)
	e.rec.Properties["node"], e.rec.Properties["token"] = e.node.String(), token.ID
	return e.issue(ctx, o, n)
}

// checkDevice refuses a node that installed another trust policy than one of the
// order's, or lacks a disk that was prepared. One that was replaced meanwhile will
// do: the node takes the successors when it is there.
func (e *enrolment) checkDevice(ctx context.Context, o store.Order) error {
	signed, err := e.tx.TrustPolicies(ctx, o.ID)
	if err != nil {
		return err
	}
	switch {
	case len(signed) == 0:
		return conflict("order %s has no trust policy yet: the customer has to sign one before its device is enrolled", o.ID)
	case !slices.ContainsFunc(signed, func(p store.TrustPolicy) bool { return p.Digest == e.in.TrustPolicyDigest }):
		return protocol.Errorf(protocol.CodePolicyDigest, "the node has trust policy %s, the customer signed %s", orNone(e.in.TrustPolicyDigest), o.TrustPolicyDigest)
	}
	disks, err := e.tx.DisksOfNode(ctx, e.node)
	if err != nil {
		return err
	}
	for _, d := range disks {
		i := slices.IndexFunc(e.in.Disks, func(found *devicev1.DiskStatus) bool { return found.Disk == string(d.ID) })
		if i < 0 {
			return protocol.Errorf(protocol.CodeDisks, "node %s does not have disk %s, which was prepared for it: is this the right device?", e.node, d.ID)
		}
		if found := e.in.Disks[i].VolumeGuid; found != "" && !strings.EqualFold(found, d.VolumeGUID) {
			return protocol.Errorf(protocol.CodeDisks, "disk %s of node %s holds volume %s, not %s, with which it was prepared: was it exchanged?", d.ID, e.node, found, d.VolumeGUID)
		}
	}
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "(none)"
	}
	return s
}

// issue makes the certificates and writes the node. The certificate it had
// before, if any, ends.
func (e *enrolment) issue(ctx context.Context, o store.Order, n store.Node) (*devicev1.EnrolResponse, error) {
	key, err := keyOf(e.in.Csr)
	if err != nil {
		return nil, err
	}
	chain, err := e.s.cfg.Authority.IssueDevice(e.in.Csr, e.node, DeviceCertTTL)
	if err != nil {
		return nil, invalid("the certificate request of node %s is refused: %v", e.node, err)
	}
	hostCert, err := e.s.cfg.Authority.CertifyHost(e.in.SshHostKey, e.node, HostCertTTL)
	if err != nil {
		return nil, err
	}
	if n.KeyFingerprint != "" {
		if err := e.tx.EndDeviceCerts(ctx, e.node, e.s.now()); err != nil {
			return nil, err
		}
		e.replaced, e.rec.Properties["replaced"] = true, n.KeyFingerprint
	}
	if err := enrolled(&n, key, chain, e.s.now()); err != nil {
		return nil, err
	}
	if err := e.tx.InsertDeviceCert(ctx, e.node, n.CertSerial); err != nil {
		return nil, err
	}
	n.SSHHostKey = e.in.SshHostKey
	e.rec.Properties["keyFingerprint"] = n.KeyFingerprint
	if err := e.tx.ResetNode(ctx, &n); err != nil {
		return nil, err
	}
	if err := e.s.addHistory(ctx, e.tx, o, "DeviceBoot", fmt.Sprintf("node %s enrolled with key %s", e.node, n.KeyFingerprint)); err != nil {
		return nil, err
	}
	if err := e.s.addHistory(ctx, e.tx, o, "AnomalyDetection", fmt.Sprintf("none on node %s: trust policy and disks are as prepared", e.node)); err != nil {
		return nil, err
	}
	return &devicev1.EnrolResponse{
		Chain: chain, ServerRoots: [][]byte{e.s.cfg.Authority.Roots().Servers.Raw}, TunnelAddress: e.s.cfg.TunnelAddress,
		SshHostCertificate: hostCert, Order: string(o.ID),
	}, nil
}

// enrolled notes a node's key and its new certificate.
func enrolled(n *store.Node, key ed25519.PublicKey, chain [][]byte, now time.Time) error {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return err
	}
	n.KeyFingerprint, n.SPKI = string(approval.KeyFingerprint(key)), spki
	n.CertSerial, n.CertExpires = certs.Serial(leaf), leaf.NotAfter
	n.Enrolled, n.Revoked, n.Status = now, time.Time{}, nil
	return nil
}

// RenewCertificate replaces a node's certificate before it expires. The key
// stays: approvals pin it.
func (s *Service) RenewCertificate(ctx context.Context, node protocol.NodeID, in *devicev1.RenewCertificateRequest) (*devicev1.RenewCertificateResponse, error) {
	key, err := keyOf(in.Csr)
	if err != nil {
		return nil, err
	}
	var chain [][]byte
	err = s.change(ctx, node.URI().String(), auditlog.OpRenewCertificate, func(tx *store.Tx, rec *auditlog.Record) error {
		n, err := tx.Node(ctx, node)
		if err != nil {
			return err
		}
		if !n.Revoked.IsZero() || n.KeyFingerprint != string(approval.KeyFingerprint(key)) {
			return protocol.Errorf(protocol.CodeForbidden, "node %s may renew for the key it enrolled with only: enrol it again for another", node)
		}
		o, err := tx.Order(ctx, n.Order)
		if err != nil {
			return err
		}
		about(rec, o)
		rec.Properties["node"] = node.String()
		fresh, err := s.cfg.Authority.IssueDevice(in.Csr, node, DeviceCertTTL)
		if err != nil {
			return invalid("the certificate request of node %s is refused: %v", node, err)
		}
		leaf, err := x509.ParseCertificate(fresh[0])
		if err != nil {
			return err
		}
		chain = fresh
		n.CertSerial, n.CertExpires = certs.Serial(leaf), leaf.NotAfter
		if err := tx.InsertDeviceCert(ctx, node, n.CertSerial); err != nil {
			return err
		}
		return tx.UpdateNode(ctx, &n)
	})
	if err != nil {
		return nil, err
	}
	return &devicev1.RenewCertificateResponse{Chain: chain}, nil
}
