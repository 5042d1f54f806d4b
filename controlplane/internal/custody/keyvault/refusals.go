package keyvault

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
)

// The names that are published for customer-managed keys of Data Box, in "Use
// customer-managed keys in Azure Key Vault for Azure Data Box", section
// "Troubleshoot errors".
const (
	errKeyDisabled      = "SsemUserErrorEncryptionKeyDisabled"
	errKeyExpired       = "SsemUserErrorEncryptionKeyExpired"
	errKeyNotFound      = "SsemUserErrorKeyDetailsNotFound"
	errVaultNotFound    = "SsemUserErrorKeyVaultDetailsNotFound"
	errAccess           = "SsemUserErrorKeyVaultBadRequestException"
	errIdentityNotFound = "SsemUserErrorKekUserIdentityNotFound"
	errKeyType          = "SsemUserErrorEncryptionKeyTypeNotSupported"
	errNotProtected     = "SsemUserErrorSoftDeleteAndPurgeProtectionNotEnabled"
	errURL              = "SsemUserErrorInvalidKeyVaultUrl"
	errScheme           = "SsemUserErrorKeyVaultUrlWithInvalidScheme"
	errHost             = "SsemUserErrorKeyVaultUrlInvalidHost"
)

func refuse(name, reason, advice string) error {
	return &custody.KeyRefusal{Name: name, Reason: reason, Advice: advice}
}

func keyDisabled() error {
	return refuse(errKeyDisabled, "the customer-managed key is disabled", "enable the key version")
}

func keyExpired(reason string) error {
	return refuse(errKeyExpired, reason, "change the dates of the key version, or move the order to another version")
}

func keyNotFound() error {
	return refuse(errKeyNotFound, "the customer-managed key is not in the vault",
		"recover the key, which works while it is soft-deleted; once it is purged, what it wrapped is lost")
}

func vaultNotFound(vault string) error {
	return refuse(errVaultNotFound, "the vault "+vault+" is not found",
		"recover the vault, which works while it is soft-deleted; after a move to another directory, give the service access again")
}

func accessRefused(reason string) error {
	return refuse(errAccess, reason,
		"give the service's identity Get, WrapKey and UnwrapKey on the key for the whole order, and let the vault's firewall pass it")
}

func identityNotFound() error {
	return refuse(errIdentityNotFound, "the service's identity is not in the directory of the vault", "add it there, and give it Get, WrapKey and UnwrapKey on the key")
}

func keyTypeNotSupported(reason string) error {
	return refuse(errKeyType, reason, "use an RSA or RSA-HSM key of 2,048 bits or more")
}

func notProtected(level string) error {
	return refuse(errNotProtected, fmt.Sprintf("the key can be lost for good: its recovery level is %.60q", level),
		"turn on soft delete and purge protection for the vault")
}

func invalidURL(format string, args ...any) error {
	return refuse(errURL, fmt.Sprintf(format, args...), "want https://<vault>/keys/<name>, or with /<version>")
}

func invalidScheme() error {
	return refuse(errScheme, "a vault is asked over HTTPS only", "want https://<vault>/keys/<name>")
}

func invalidHost(host string, hosts []string) error {
	return refuse(errHost, fmt.Sprintf("%.200q is no host of a vault", host), "want a host below "+strings.Join(hosts, ", "))
}

// vaultError is the body of a vault's refusal.
type vaultError struct {
	Error struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Inner   struct {
			Code string `json:"code"`
		} `json:"innererror"`
	} `json:"error"`
}

// meaning turns a vault's answer into an error: a refusal of the key, if it is
// one.
func (e vaultError) meaning(status int) error {
	text := strings.ToLower(e.Error.Inner.Code + " " + e.Error.Message)
	switch {
	case status == http.StatusForbidden && strings.Contains(text, "disabled"):
		return keyDisabled()
	case status == http.StatusForbidden && strings.Contains(text, "expired"):
		return keyExpired("the customer-managed key has expired")
	case status == http.StatusForbidden && strings.Contains(text, "firewall"):
		return accessRefused("the vault's firewall keeps the service out")
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return accessRefused("access to the customer-managed key is not granted, or was revoked")
	case status == http.StatusNotFound, status == http.StatusConflict: // a conflict: deleted, and not purged yet
		return keyNotFound()
	}
	return fmt.Errorf("the vault answered with status %d, code %.60q", status, e.Error.Code)
}
