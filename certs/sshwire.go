package certs

import (
	"bytes"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/protocol"
)

// CertifyEngineer is [Authorities.SSHUserCert] for a line of authorized_keys. It
// returns the certificate as such a line. A line that is no key is refused with
// [protocol.CodeInvalid].
func (a *Authorities) CertifyEngineer(authorizedKey string, person protocol.Person, session protocol.SessionID, node protocol.NodeID, ttl time.Duration) (string, error) {
	pub, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(authorizedKey))
	if err != nil || len(bytes.TrimSpace(rest)) != 0 {
		return "", protocol.Errorf(protocol.CodeInvalid, "not one SSH public key: want the line of a .pub file")
	}
	cert, err := a.SSHUserCert(pub, person, session, node, ttl)
	if err != nil {
		return "", protocol.Errorf(protocol.CodeInvalid, "%v", err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(cert))), nil
}

// CertifyHost is [Authorities.SSHHostCert] for a host key in SSH wire form. It
// returns the certificate in that form. What is no key is refused with
// [protocol.CodeInvalid].
func (a *Authorities) CertifyHost(hostKey []byte, node protocol.NodeID, ttl time.Duration) ([]byte, error) {
	pub, err := ssh.ParsePublicKey(hostKey)
	if err != nil {
		return nil, protocol.Errorf(protocol.CodeInvalid, "the SSH host key of node %s cannot be read", node)
	}
	cert, err := a.SSHHostCert(pub, node, ttl)
	if err != nil {
		return nil, protocol.Errorf(protocol.CodeInvalid, "%v", err)
	}
	return cert.Marshal(), nil
}
