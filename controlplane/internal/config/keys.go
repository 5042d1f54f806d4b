package config

import (
	"net/url"
	"strings"
)

// The key services.
const (
	LocalKeys    = "local"
	PKCS11Keys   = "pkcs11"
	KeyVaultKeys = "azure-key-vault"
)

// Keys configures what wraps the keys of orders.
type Keys struct {
	// Service is where the service's own wrapping key is: local, in
	// MasterKeyFile; pkcs11, in a token; or azure-key-vault. Another service
	// begins to wrap at once; what the one before it wrapped needs it, as it was
	// configured, until 'lockbox key rotate' has ended. Default local.
	Service string `mapstructure:"service"`
	// PKCS11 is a token.
	PKCS11 PKCS11 `mapstructure:"pkcs11"`
	// KeyVault is the service's identity for vaults: of customers, who bring
	// keys of their own, and its own.
	KeyVault KeyVault `mapstructure:"key_vault"`
	// AllowReturn lets customers move an order back from their key to the
	// service's. Default false.
	AllowReturn bool `mapstructure:"allow_return"`
}

// PKCS11 is a token that keys are made in.
type PKCS11 struct {
	// Helper is the program lockbox-hsm. Absolute. Default beside lockboxd.
	Helper string `mapstructure:"helper"`
	// Module is the token's PKCS#11 library. Absolute. Default none: no token.
	Module string `mapstructure:"module"`
	// Token is the token's label. Required with a module.
	Token string `mapstructure:"token"`
	// Label is that of the keys, which nothing else may have. Default
	// lockbox-master.
	Label string `mapstructure:"label"`
	// PINFile holds the user's PIN, mode 0600. Absolute. Required with a module.
	PINFile string `mapstructure:"pin_file"`
}

// KeyVault is an identity for Azure Key Vaults.
type KeyVault struct {
	// ClientID is the identity's application id. Default none: customers cannot
	// bring keys.
	ClientID string `mapstructure:"client_id"`
	// ClientSecretFile holds its secret, mode 0600, read for each token.
	// Absolute. Required with a client id.
	ClientSecretFile string `mapstructure:"client_secret_file"`
	// Authority gives the tokens. Default https://login.microsoftonline.com.
	Authority string `mapstructure:"authority"`
	// Hosts are the domains below which vaults lie. Default vault.azure.net.
	Hosts []string `mapstructure:"hosts"`
	// CAFile holds the roots (PEM) that certificates may come from. Absolute.
	// Default the system's.
	CAFile string `mapstructure:"ca_file"`
	// Key is the address of the service's own key. Required with service
	// azure-key-vault.
	Key string `mapstructure:"key"`
}

func defaultKeys() Keys {
	return Keys{
		Service: LocalKeys, PKCS11: PKCS11{Label: "lockbox-master"},
		KeyVault: KeyVault{Authority: "https://login.microsoftonline.com", Hosts: []string{"vault.azure.net"}},
	}
}

func (p *problems) keys(k Keys) {
	p.OneOf("keys.service", k.Service, LocalKeys, PKCS11Keys, KeyVaultKeys)
	p.Check(k.Service != PKCS11Keys || k.PKCS11.Module != "", "keys.pkcs11.module", "is missing: name the token's library, as in /usr/lib/softhsm/libsofthsm2.so")
	p.Check(k.Service != KeyVaultKeys || k.KeyVault.Key != "", "keys.key_vault.key", "is missing: write the key's address, as in https://lockbox.vault.azure.net/keys/orders")
	if k.PKCS11.Module != "" {
		p.token(k.PKCS11)
	}
	if k.KeyVault.ClientID != "" || k.KeyVault.Key != "" {
		p.vault(k.KeyVault)
	}
}

func (p *problems) token(t PKCS11) {
	p.optional("keys.pkcs11.helper", t.Helper)
	p.folder("keys.pkcs11.module", t.Module)
	p.folder("keys.pkcs11.pin_file", t.PINFile)
	p.Check(t.Token != "", "keys.pkcs11.token", "is missing: write the token's label")
	p.Check(t.Label != "", "keys.pkcs11.label", "is missing: write a label for the keys")
}

func (p *problems) vault(v KeyVault) {
	p.Check(v.ClientID != "", "keys.key_vault.client_id", "is missing: write the application id of the service's identity")
	p.folder("keys.key_vault.client_secret_file", v.ClientSecretFile)
	p.optional("keys.key_vault.ca_file", v.CAFile)
	u, err := url.Parse(v.Authority)
	p.Check(err == nil && u.Scheme == "https" && u.Host != "" && strings.Trim(u.Path, "/") == "" && u.User == nil && u.RawQuery == "",
		"keys.key_vault.authority", "%q is no authority: write one, as in https://login.microsoftonline.com", v.Authority)
	p.Check(len(v.Hosts) > 0, "keys.key_vault.hosts", "none is given: list the domains of vaults, as in vault.azure.net")
	for _, h := range v.Hosts {
		p.Check(h != "" && !strings.ContainsAny(h, "/ @"), "keys.key_vault.hosts", "%q is no host: write one, as in vault.azure.net", h)
	}
}
