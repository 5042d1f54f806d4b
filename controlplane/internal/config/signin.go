package config

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Provider is an OpenID Connect identity provider by which people may sign in.
type Provider struct {
	// ID is what people and the activity log call it: 1 to 32 of a-z, 0-9 and
	// dash. Required.
	ID string `mapstructure:"id"`
	// Issuer is its address, as it stands in ID tokens. Required.
	Issuer string `mapstructure:"issuer"`
	// ClientID is what it calls this service: a public client with PKCE and a
	// loopback redirect. Required.
	ClientID string `mapstructure:"client_id"`
	// Domains are those of the names for which it speaks, as in
	// provider.example. Required.
	Domains []string `mapstructure:"domains"`
	// NameClaim is the claim that holds a person's sign-in name. Default email,
	// which has to be verified.
	NameClaim string `mapstructure:"name_claim"`
	// AMR are authentication methods that mean a second factor. Default mfa.
	AMR []string `mapstructure:"mfa_amr"`
	// ACR are authentication contexts that mean a second factor. Default none.
	ACR []string `mapstructure:"mfa_acr"`
	// DeviceCode lets people sign in on another machine, by a code. ID tokens of
	// that kind are not bound to a key. Default false.
	DeviceCode bool `mapstructure:"device_code"`
	// Session is how long a sign-in lasts, over all its certificates. 0: 8h.
	Session time.Duration `mapstructure:"session"`
	// CAFile holds the roots (PEM) that its certificate may come from. Absolute.
	// Default the system's.
	CAFile string `mapstructure:"ca_file"`
}

var providerID = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

func (p *problems) providers(list []Provider) {
	ids, domains := map[string]bool{}, map[string]string{}
	for i, o := range list {
		key := func(name string) string { return fmt.Sprintf("sign_in[%d].%s", i, name) }
		p.Check(providerID.MatchString(o.ID) && !ids[o.ID], key("id"), "%q is no id or is used twice: write 1 to 32 of a-z, 0-9 and dash", o.ID)
		ids[o.ID] = true
		u, err := url.Parse(o.Issuer)
		p.Check(err == nil && u.Scheme == "https" && u.Host != "", key("issuer"), "%q is no address: write one, as in https://login.provider.example", o.Issuer)
		p.Check(o.ClientID != "", key("client_id"), "is missing: write what the provider calls this service")
		p.Check(len(o.Domains) > 0, key("domains"), "are missing: list the domains of the names for which it speaks")
		for _, d := range o.Domains {
			d = strings.ToLower(d)
			p.Check(domains[d] == "", key("domains"), "%q is a domain of %s already: one provider speaks for a domain", d, domains[d])
			domains[d] = o.ID
		}
		p.Check(!slices.Contains(o.ACR, ""), key("mfa_acr"), `holds "", which every sign-in without a context would be: remove it`)
		p.Check(!slices.Contains(o.AMR, ""), key("mfa_amr"), `holds "": remove it`)
		if o.Session != 0 {
			p.Between(key("session"), o.Session, 5*time.Minute, 24*time.Hour)
		}
		p.optional(key("ca_file"), o.CAFile)
	}
}
