package certs

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// IssueServer answers csr with a certificate for the device and API ports, valid
// for ttl and for names: DNS names and IP addresses. The chain (DER) ends in
// the servers' root, so that a first caller can check the root against a pin.
func (a *Authorities) IssueServer(csr []byte, names []string, ttl time.Duration) ([][]byte, error) {
	template := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	if len(names) == 0 {
		return nil, errors.New("cannot issue a server certificate without a name: list the DNS names or addresses that clients dial")
	}
	template.Subject = commonName(names[0])
	return a.issue(a.servers, csr, template, ttl)
}

// IssueDevice answers the request of a device's node with a certificate, valid
// for ttl. The chain (DER) ends in the devices' root.
func (a *Authorities) IssueDevice(csr []byte, node protocol.NodeID, ttl time.Duration) ([][]byte, error) {
	if _, err := protocol.ParseNodeURI(node.URI()); err != nil {
		return nil, fmt.Errorf("cannot issue a device certificate: %w", err)
	}
	return a.issue(a.devices, csr, &x509.Certificate{
		Subject:     commonName(node.String()),
		URIs:        []*url.URL{node.URI()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ttl)
}

// IssuePerson answers a person's request with a certificate, valid for ttl,
// which should be a working day at most. The chain (DER) ends in the people's
// root.
func (a *Authorities) IssuePerson(csr []byte, person protocol.Person, ttl time.Duration) ([][]byte, error) {
	if !validPerson(string(person)) {
		return nil, fmt.Errorf("cannot issue a certificate to %q: want a sign-in name of at most %d printable characters without / and spaces", person, maxPerson)
	}
	return a.issue(a.people, csr, &x509.Certificate{
		Subject:     commonName(string(person)),
		URIs:        []*url.URL{personURI(person)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ttl)
}

func (a *Authorities) issue(by root, csr []byte, template *x509.Certificate, ttl time.Duration) ([][]byte, error) {
	pub, err := requestedKey(csr)
	if err != nil {
		return nil, err
	}
	now := a.Now()
	template.SerialNumber = newSerial()
	template.NotBefore = now.Add(-backdate)
	template.NotAfter = now.Add(ttl)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	if ttl <= 0 || template.NotAfter.After(by.cert.NotAfter) {
		return nil, fmt.Errorf("cannot issue a certificate for %v: want a time above zero that ends before its root does, on %s", ttl, protocol.Stamp(by.cert.NotAfter))
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, by.cert, pub, by.key)
	if err != nil {
		return nil, fmt.Errorf("cannot issue a certificate: %w", err)
	}
	return [][]byte{leaf, by.cert.Raw}, nil
}

// maxCSR bounds a certificate request; one with an Ed25519 key takes about 200 bytes.
const maxCSR = 16 << 10

// requestedKey returns the key of a request that proves to own it.
func requestedKey(csr []byte) (ed25519.PublicKey, error) {
	if len(csr) > maxCSR {
		return nil, fmt.Errorf("the certificate request has %d bytes: want at most %d", len(csr), maxCSR)
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, errors.New("the certificate request cannot be parsed: want PKCS#10 in DER")
	}
	pub, ok := req.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the certificate request is for a key of type %v: want Ed25519", req.PublicKeyAlgorithm)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, errors.New("the certificate request is not signed by the key it is for")
	}
	return pub, nil
}

// commonName is for people who read certificates; nothing here trusts it. X.509
// allows 64 characters.
func commonName(s string) pkix.Name {
	if len(s) > 64 {
		return pkix.Name{}
	}
	return pkix.Name{CommonName: s}
}

const maxPerson = 128

func validPerson(s string) bool {
	bad := func(r rune) bool {
		return r == '/' || r > unicode.MaxASCII || !unicode.IsGraphic(r) || unicode.IsSpace(r)
	}
	return s != "" && s != "." && s != ".." && len(s) <= maxPerson && !strings.ContainsFunc(s, bad)
}

func personURI(p protocol.Person) *url.URL {
	return &url.URL{Scheme: "lockbox", Host: "person", Path: "/" + string(p)}
}

// DeviceFromState names the device at the other end of a verified connection:
// its node, the fingerprint of its key as request statements pin it (see
// [approval.KeyFingerprint]), and its certificate's serial. It fails if the
// peer's certificate was not verified or is not a device's.
func DeviceFromState(state tls.ConnectionState) (node protocol.NodeID, fingerprint, serial string, err error) {
	leaf, uri, err := verifiedURI(state)
	if err != nil {
		return protocol.NodeID{}, "", "", err
	}
	if node, err = protocol.ParseNodeURI(uri); err != nil {
		return protocol.NodeID{}, "", "", fmt.Errorf("the certificate is not a device's: %w", err)
	}
	key, ok := leaf.PublicKey.(ed25519.PublicKey)
	if !ok {
		return protocol.NodeID{}, "", "", fmt.Errorf("the certificate of %s is over a %T: want Ed25519", node, leaf.PublicKey)
	}
	return node, string(approval.KeyFingerprint(key)), Serial(leaf), nil
}

// PersonFromState names the person at the other end of a verified connection
// and their certificate's serial. It fails if the peer's certificate was not
// verified or is not a person's.
func PersonFromState(state tls.ConnectionState) (person protocol.Person, serial string, err error) {
	leaf, uri, err := verifiedURI(state)
	if err != nil {
		return "", "", err
	}
	name, ok := strings.CutPrefix(uri.Path, "/")
	if uri.String() != personURI(protocol.Person(name)).String() || !ok || !validPerson(name) {
		return "", "", fmt.Errorf("the certificate is not a person's: it names %q", uri)
	}
	return protocol.Person(name), Serial(leaf), nil
}

func verifiedURI(state tls.ConnectionState) (*x509.Certificate, *url.URL, error) {
	if len(state.VerifiedChains) == 0 {
		return nil, nil, errors.New("the connection has no verified certificate")
	}
	leaf := state.VerifiedChains[0][0]
	if len(leaf.URIs) != 1 {
		return nil, nil, fmt.Errorf("the certificate names %d URIs: want exactly one", len(leaf.URIs))
	}
	return leaf, leaf.URIs[0], nil
}
