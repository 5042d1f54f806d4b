package certs

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Critical options of a user certificate. A server that does not know them must
// refuse the certificate, so it opens one session on one node or nothing.
const (
	SessionOption = "session@databox-lockbox"
	NodeOption    = "node@databox-lockbox"
)

// MaxSSHUserTTL is the longest that [Authorities.SSHUserCert] issues: a session
// that has begun does not need its certificate any more.
const MaxSSHUserTTL = 30 * time.Minute

// SSHUser is the login name that every session takes beside its own id, for
// clients that cannot know the id when they name a user. It gives nothing: what
// opens a session is its certificate.
const SSHUser = "support"

// HostDomain ends the host name of every node, see [SSHHostName].
const HostDomain = "databox"

// SSHHostName is the name under which SSH clients know a node, as in
// "dbx0001-1.databox".
func SSHHostName(node protocol.NodeID) string {
	return fmt.Sprintf("%s-%d.%s", strings.ToLower(string(node.Serial)), node.Node, HostDomain)
}

// SSHUserCert certifies an engineer's own key for one support session on one
// node, for ttl, at most [MaxSSHUserTTL]. Its principal is the session; it
// permits a terminal and no forwarding. Keys are ssh-ed25519 or sk-ssh-ed25519.
func (a *Authorities) SSHUserCert(pub ssh.PublicKey, person protocol.Person, session protocol.SessionID, node protocol.NodeID, ttl time.Duration) (*ssh.Certificate, error) {
	if t := pub.Type(); t != ssh.KeyAlgoED25519 && t != ssh.KeyAlgoSKED25519 {
		return nil, fmt.Errorf("cannot certify a key of type %s: want %s or %s", t, ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519)
	}
	if ttl <= 0 || ttl > MaxSSHUserTTL {
		return nil, fmt.Errorf("cannot certify a key for %v: want at most %v", ttl, MaxSSHUserTTL)
	}
	if session == "" || !validPerson(string(person)) {
		return nil, fmt.Errorf("cannot certify a key for person %q in session %q: want both names", person, session)
	}
	return a.sign(a.users, &ssh.Certificate{
		Key:             pub,
		CertType:        ssh.UserCert,
		KeyId:           sshUserID(person, session),
		ValidPrincipals: []string{string(session)},
		Permissions: ssh.Permissions{
			CriticalOptions: map[string]string{SessionOption: string(session), NodeOption: node.String()},
			Extensions:      map[string]string{"permit-pty": ""},
		},
	}, ttl)
}

// sshUserID is the key id of a user certificate: who it is for, and where.
func sshUserID(person protocol.Person, session protocol.SessionID) string {
	return fmt.Sprintf("%s %s", person, session)
}

// SSHHostCert certifies the SSH host key of a node for ttl, under the name
// [SSHHostName].
func (a *Authorities) SSHHostCert(pub ssh.PublicKey, node protocol.NodeID, ttl time.Duration) (*ssh.Certificate, error) {
	if pub.Type() != ssh.KeyAlgoED25519 {
		return nil, fmt.Errorf("cannot certify a host key of type %s: want %s", pub.Type(), ssh.KeyAlgoED25519)
	}
	if ttl <= 0 {
		return nil, fmt.Errorf("cannot certify a host key for %v: want a time above zero", ttl)
	}
	return a.sign(a.hosts, &ssh.Certificate{
		Key:             pub,
		CertType:        ssh.HostCert,
		KeyId:           node.String(),
		ValidPrincipals: []string{SSHHostName(node)},
	}, ttl)
}

func (a *Authorities) sign(by ssh.Signer, cert *ssh.Certificate, ttl time.Duration) (*ssh.Certificate, error) {
	var serial [8]byte
	rand.Read(serial[:]) // never fails, see crypto/rand
	now := a.Now()
	cert.Serial = binary.BigEndian.Uint64(serial[:])
	cert.ValidAfter = uint64(now.Add(-backdate).Unix())
	cert.ValidBefore = uint64(now.Add(ttl).Unix())
	if err := cert.SignCert(rand.Reader, by); err != nil {
		return nil, fmt.Errorf("cannot sign the SSH certificate: %w", err)
	}
	return cert, nil
}

// KnownHostsLine is the line of a known_hosts file that trusts authority for all
// nodes and for nothing else.
func KnownHostsLine(authority ssh.PublicKey) string {
	return "@cert-authority *." + HostDomain + " " + string(ssh.MarshalAuthorizedKey(authority))
}

// SSHUserCheck says which user certificates open one support session.
type SSHUserCheck struct {
	Authority ssh.PublicKey      // see [Authorities.SSHUserAuthority]
	Person    protocol.Person    // whose session it is
	Session   protocol.SessionID // the session being opened
	Node      protocol.NodeID    // the node it is opened on
	Now       time.Time
}

// Check returns the certificate in key if it opens the session: signed by the
// authority, for that person, in time, and for this session and node only.
func (c SSHUserCheck) Check(key ssh.PublicKey) (*ssh.Certificate, error) {
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, errors.New("a plain key opens no session: use the certificate that was issued for it")
	}
	checker := ssh.CertChecker{
		SupportedCriticalOptions: []string{SessionOption, NodeOption},
		IsUserAuthority:          func(auth ssh.PublicKey) bool { return sameKey(auth, c.Authority) },
		Clock:                    func() time.Time { return c.Now },
	}
	if cert.CertType != ssh.UserCert || !checker.IsUserAuthority(cert.SignatureKey) {
		return nil, errors.New("the certificate was not issued to a user by the session authority")
	}
	if len(cert.ValidPrincipals) != 1 { // CheckCert takes none for any
		return nil, fmt.Errorf("the certificate names %d principals: want session %s only", len(cert.ValidPrincipals), c.Session)
	}
	if err := checker.CheckCert(string(c.Session), cert); err != nil {
		return nil, fmt.Errorf("the certificate does not open session %s: %w", c.Session, err)
	}
	if cert.CriticalOptions[SessionOption] != string(c.Session) || cert.CriticalOptions[NodeOption] != c.Node.String() {
		return nil, fmt.Errorf("the certificate is for session %q on node %q: this is %s on %s",
			cert.CriticalOptions[SessionOption], cert.CriticalOptions[NodeOption], c.Session, c.Node)
	}
	if cert.KeyId != sshUserID(c.Person, c.Session) {
		return nil, fmt.Errorf("the certificate names %q: this is a session of %s", cert.KeyId, c.Person)
	}
	return cert, nil
}

func sameKey(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }
