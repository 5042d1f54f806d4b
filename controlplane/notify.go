package controlplane

import (
	"crypto/ed25519"
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
)

// newNotify makes the service that tells people. Webhooks' secrets are encrypted
// under a key of their own, derived from the service's.
func (c *ControlPlane) newNotify(log *audit.Service, service ed25519.PrivateKey) (*notify.Service, error) {
	n := c.cfg.Notify
	cfg := notify.Config{
		Store: c.store, Audit: log, Dir: c.cfg.Outbox(), From: n.From, BaseURL: n.BaseURL, Now: c.opts.Now, Logger: c.opts.Log,
		Webhooks: notify.Webhooks{Key: service.Seed(), Loopback: n.Webhooks.Loopback},
	}
	defer clear(cfg.Webhooks.Key)
	for _, s := range n.Webhooks.Networks {
		cfg.Webhooks.Networks = append(cfg.Webhooks.Networks, netip.MustParsePrefix(s)) // was checked with the configuration
	}
	var err error
	if cfg.Webhooks.Roots, err = roots("notify.webhooks.ca_file", n.Webhooks.CAFile); err != nil {
		return nil, err
	}
	if n.SMTP.Address != "" {
		cfg.SMTP = &notify.SMTP{
			Address: n.SMTP.Address, Implicit: n.SMTP.TLS == "implicit", Hello: n.SMTP.Hello,
			Username: n.SMTP.Username, PasswordFile: n.SMTP.PasswordFile,
		}
		if cfg.SMTP.Roots, err = roots("notify.smtp.ca_file", n.SMTP.CAFile); err != nil {
			return nil, err
		}
	}
	return notify.New(cfg)
}

// roots reads the certificates of a PEM file, nil if none is named: then the
// system's are meant.
func roots(key, path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s: %s holds no certificate in PEM", key, path)
	}
	return pool, nil
}
