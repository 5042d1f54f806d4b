package controlplane

import (
	"fmt"

	"github.com/databox-lockbox/lockbox/controlplane/internal/api"
	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
)

// newAuth makes the service that knows who is calling.
func (c *ControlPlane) newAuth(log *audit.Service) (*auth.Service, error) {
	cfg := auth.Config{
		Store: c.store, Audit: log, Authority: c.authorities, Now: c.opts.Now, May: api.Procedures, EndPerson: c.endPerson,
	}
	for _, p := range c.cfg.SignIn {
		pool, err := roots(fmt.Sprintf("sign_in %s: ca_file", p.ID), p.CAFile)
		if err != nil {
			return nil, err
		}
		cfg.Providers = append(cfg.Providers, auth.Provider{
			ID: p.ID, Issuer: p.Issuer, ClientID: p.ClientID, Domains: p.Domains, NameClaim: p.NameClaim, AMR: p.AMR, ACR: p.ACR,
			DeviceCode: p.DeviceCode, Session: p.Session, Roots: pool,
		})
	}
	return auth.New(cfg), nil
}
