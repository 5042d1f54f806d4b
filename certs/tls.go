package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Revoked reports whether the certificate with that serial (see [Serial]) was
// revoked. It is called in every handshake and must be quick.
type Revoked func(serial string) bool

// DeviceListener configures the device port: only devices get in. The
// application protocols are set by protocol/tunnel.
func DeviceListener(server *Source, devices *x509.Certificate, revoked Revoked) *tls.Config {
	c := listener(server, devices)
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.VerifyConnection = func(state tls.ConnectionState) error {
		_, _, serial, err := DeviceFromState(state)
		return refuse(serial, err, revoked)
	}
	return c
}

// APIListener configures the API port: a certificate is optional, because login
// and enrolment come without one, but one that is given must be a person's.
func APIListener(server *Source, people *x509.Certificate, revoked Revoked) *tls.Config {
	c := listener(server, people)
	c.ClientAuth = tls.VerifyClientCertIfGiven
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return nil
		}
		_, serial, err := PersonFromState(state)
		return refuse(serial, err, revoked)
	}
	return c
}

func refuse(serial string, err error, revoked Revoked) error {
	if err == nil && revoked != nil && revoked(serial) {
		return fmt.Errorf("the certificate with serial %s is revoked", serial)
	}
	return err
}

// DeviceDialer configures a node's connections to the device port of the server
// that is called serverName.
func DeviceDialer(device *Source, servers *x509.Certificate, serverName string) *tls.Config {
	return dialer(device, servers, serverName)
}

// PersonDialer configures a person's connections to the API port of the server
// that is called serverName.
func PersonDialer(person *Source, servers *x509.Certificate, serverName string) *tls.Config {
	return dialer(person, servers, serverName)
}

// PinnedDialer configures the first connection of somebody who knows nothing but
// a pin, from a join or login token: the server must present a chain that ends
// in the root with that pin, and that holds for serverName now.
func PinnedDialer(pin, serverName string) (*tls.Config, error) {
	if err := CheckPin(pin); err != nil {
		return nil, err
	}
	c := base(time.Now)
	c.ServerName = serverName
	c.InsecureSkipVerify = true // replaced by VerifyConnection, which also runs on resumption
	c.VerifyConnection = func(state tls.ConnectionState) error {
		return verifyPinned(state.PeerCertificates, pin, serverName, c.Time())
	}
	return c, nil
}

func verifyPinned(chain []*x509.Certificate, pin, serverName string, now time.Time) error {
	i := slices.IndexFunc(chain, func(c *x509.Certificate) bool { return Pin(c) == pin })
	if i < 1 {
		return fmt.Errorf("the server's root is not the one the token names (%s): ask for a new token, and if that fails too, suspect the network", pin)
	}
	pool := x509.NewCertPool()
	pool.AddCert(chain[i])
	_, err := chain[0].Verify(x509.VerifyOptions{
		DNSName:     serverName,
		Roots:       pool,
		CurrentTime: now,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return Explain(err, now)
}

func listener(server *Source, clients *x509.Certificate) *tls.Config {
	c := base(server.now)
	c.GetCertificate = server.GetCertificate
	c.ClientCAs = x509.NewCertPool()
	c.ClientCAs.AddCert(clients)
	return c
}

func dialer(client *Source, servers *x509.Certificate, serverName string) *tls.Config {
	c := base(client.now)
	c.ServerName = serverName
	c.GetClientCertificate = client.GetClientCertificate
	c.RootCAs = x509.NewCertPool()
	c.RootCAs.AddCert(servers)
	c.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	return c
}

func base(now func() time.Time) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, Time: now}
}

// Explain turns the errors that a wrong clock causes into text that shows both
// times, and returns any other error as it is. now is what this machine's clock
// says.
func Explain(err error, now time.Time) error {
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return fmt.Errorf("the other end's certificate is valid from %s to %s, but this machine's clock says %s: set the clock, or renew that certificate: %w",
			protocol.Stamp(e.Cert.NotBefore), protocol.Stamp(e.Cert.NotAfter), protocol.Stamp(now), err)
	}
	if err != nil && strings.Contains(err.Error(), "remote error: tls: expired certificate") {
		return fmt.Errorf("the other end says that our certificate is expired or not yet valid; this machine's clock says %s: compare the two clocks, or renew our certificate: %w", protocol.Stamp(now), err)
	}
	return err
}
