// Package keyvault wraps keys with RSA keys in Azure Key Vaults, over their REST
// interface, version 7.4.
//
//   - A vault knows no associated data. So it wraps a key that is made for the
//     occasion, and that one encrypts, with AES-256-GCM, what was to be wrapped.
//   - Before every use it asks whether the key is enabled and valid: a vault
//     itself unwraps with an expired key.
//   - The client's secret goes to the configured authority only, and requests go
//     only to hosts below those that are configured, whatever a vault or a
//     customer says. Redirects are not followed.
//   - What a vault refuses is told by the published names of Data Box, with
//     advice for the key's owner. What it does not answer is an error without a
//     name. No call outlives its context or [callTimeout].
package keyvault

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/protocol"
)

// Config says who asks, and whom it trusts.
type Config struct {
	Authority string   // of the OAuth2 tokens, as in https://login.microsoftonline.com
	Hosts     []string // vaults lie below these, as in vault.azure.net
	ClientID  string
	Secret    func() ([]byte, error) // reads the client's secret; wiped after use
	Transport http.RoundTripper
	Now       func() time.Time // default time.Now
}

// Client asks vaults. Its methods may be called concurrently.
type Client struct {
	cfg  Config
	http *http.Client

	mu     sync.Mutex
	tokens map[string]token // by vault; guarded by mu
}

// callTimeout bounds one request.
const callTimeout = 5 * time.Second

// New returns a client.
func New(cfg Config) *Client {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Client{
		cfg: cfg,
		http: &http.Client{Transport: cfg.Transport, Timeout: callTimeout, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}},
		tokens: map[string]token{},
	}
}

// Find returns the key at https://<vault>/keys/<name>[/<version>], its newest
// version if none is named. It must be an RSA key of 2,048 bits or more that may
// wrap and unwrap, in a vault with soft delete and purge protection.
func (c *Client) Find(ctx context.Context, raw string) (custody.KeyWrapper, error) {
	at, err := c.parse(raw)
	if err != nil {
		return nil, err
	}
	info, err := c.inspect(ctx, &at)
	if err != nil {
		return nil, err
	}
	return wrapper{c, at}, info.checkLasting()
}

// Key returns the key of an ID that Find returned.
func (c *Client) Key(_ context.Context, id string) (custody.KeyWrapper, error) {
	at, err := c.parse(id)
	if err == nil && at.version == "" {
		err = invalidURL("%q names no version", id)
	}
	if err != nil {
		return nil, err
	}
	return wrapper{c, at}, nil
}

// Service is a key service whose key lies in a vault.
type Service struct {
	client *Client
	key    address
	fixed  bool // to a version
}

// NewService returns the service of the key at an address as in [Client.Find].
// Without a version, the newest is current.
func NewService(c *Client, raw string) (*Service, error) {
	at, err := c.parse(raw)
	if err != nil {
		return nil, err
	}
	return &Service{c, at, at.version != ""}, nil
}

// Current returns the key.
func (s *Service) Current(ctx context.Context) (custody.KeyWrapper, error) {
	return s.client.Find(ctx, s.key.id())
}

// Key returns a version of the key.
func (s *Service) Key(ctx context.Context, id string) (custody.KeyWrapper, error) {
	at, err := s.client.parse(id)
	if err != nil || at.vault != s.key.vault || at.name != s.key.name {
		return nil, custody.ErrForeignKey
	}
	return s.client.Key(ctx, id)
}

// wrapper is one version of a key in a vault.
type wrapper struct {
	c  *Client
	at address
}

func (w wrapper) ID() string { return w.at.id() }

// algorithm is RSAES OAEP with SHA-256.
const algorithm = "RSA-OAEP-256"

// innerKeySize is the size of the keys that a vault wraps, in bytes.
const innerKeySize = 32

// A wrapping is a byte 1, the length of what the vault wrapped as two bytes,
// that, and what the key in it encrypted.
const wrappingVersion = 1

// keyOperation is the body of a request to wrap or unwrap.
type keyOperation struct {
	Algorithm string `json:"alg"`
	Value     string `json:"value"` // base64url without padding
}

// keyResult is the answer to it.
type keyResult struct {
	ID    string `json:"kid"`
	Value string `json:"value"`
}

// Wrap has the vault wrap a new key, under which it encrypts key.
func (w wrapper) Wrap(ctx context.Context, key, aad []byte) ([]byte, error) {
	inner := make([]byte, innerKeySize)
	defer clear(inner)
	rand.Read(inner)
	wrapped, err := w.operate(ctx, "wrapkey", inner)
	if err != nil {
		return nil, err
	}
	aead, err := custody.NewAEAD(inner)
	if err != nil {
		return nil, err
	}
	out := binary.BigEndian.AppendUint16([]byte{wrappingVersion}, uint16(len(wrapped)))
	return aead.Seal(append(out, wrapped...), nil, key, aad), nil
}

// Unwrap undoes Wrap, if the key may be used now.
func (w wrapper) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if len(wrapped) < 3 || wrapped[0] != wrappingVersion {
		return nil, custody.ErrNotWrapped
	}
	size := int(binary.BigEndian.Uint16(wrapped[1:]))
	if len(wrapped) < 3+size {
		return nil, custody.ErrNotWrapped
	}
	at := w.at
	if _, err := w.c.inspect(ctx, &at); err != nil {
		return nil, err
	}
	inner, err := w.operate(ctx, "unwrapkey", wrapped[3:3+size])
	if err != nil {
		return nil, err
	}
	defer clear(inner)
	if len(inner) != innerKeySize {
		return nil, custody.ErrNotWrapped
	}
	aead, err := custody.NewAEAD(inner)
	if err != nil {
		return nil, err
	}
	key, err := aead.Open(nil, nil, wrapped[3+size:], aad)
	if err != nil {
		return nil, custody.ErrNotWrapped
	}
	return key, nil
}

func (w wrapper) operate(ctx context.Context, operation string, value []byte) ([]byte, error) {
	var out keyResult
	in := keyOperation{algorithm, base64.RawURLEncoding.EncodeToString(value)}
	if err := w.c.call(ctx, w.at.vault, http.MethodPost, w.at.path()+"/"+operation, in, &out); err != nil {
		return nil, err
	}
	if out.ID != w.at.id() {
		return nil, fmt.Errorf("%s answered for the key %.200q, not %s", w.at.vault, out.ID, w.at.id())
	}
	result, err := base64.RawURLEncoding.DecodeString(out.Value)
	if err != nil || len(result) == 0 || len(result) > maxResult {
		return nil, fmt.Errorf("%s answered %s with a value of no use", w.at.vault, operation)
	}
	return result, nil
}

// maxResult is more than a wrapped key has, in bytes: 512 with RSA-4096.
const maxResult = 2048

// keyInfo is what a vault tells of a key.
type keyInfo struct {
	Key struct {
		ID         string   `json:"kid"`
		Type       string   `json:"kty"`
		Operations []string `json:"key_ops"`
		Modulus    string   `json:"n"`
	} `json:"key"`
	Attributes struct {
		Enabled       *bool  `json:"enabled"`
		NotBefore     int64  `json:"nbf"` // Unix seconds, 0 if unset
		Expires       int64  `json:"exp"`
		RecoveryLevel string `json:"recoveryLevel"`
	} `json:"attributes"`
}

// inspect asks for a key and refuses one that may not be used now. It completes
// at with the version that the vault named.
func (c *Client) inspect(ctx context.Context, at *address) (keyInfo, error) {
	var info keyInfo
	if err := c.call(ctx, at.vault, http.MethodGet, at.path(), nil, &info); err != nil {
		return info, err
	}
	named, err := c.parse(info.Key.ID)
	if err != nil || named.vault != at.vault || named.name != at.name || named.version == "" || at.version != "" && named.version != at.version {
		return info, fmt.Errorf("%s answered for the key %.200q, not %s", at.vault, info.Key.ID, at.id())
	}
	*at = named
	return info, info.checkNow(c.cfg.Now())
}

func (k keyInfo) checkNow(now time.Time) error {
	a := k.Attributes
	switch {
	case a.Enabled == nil:
		return errors.New("the vault does not say whether the key is enabled")
	case !*a.Enabled:
		return keyDisabled()
	case a.Expires != 0 && !now.Before(time.Unix(a.Expires, 0)):
		return keyExpired(fmt.Sprintf("the customer-managed key expired at %s", protocol.Stamp(time.Unix(a.Expires, 0))))
	case a.NotBefore != 0 && now.Before(time.Unix(a.NotBefore, 0)):
		return keyExpired(fmt.Sprintf("the customer-managed key is not valid before %s", protocol.Stamp(time.Unix(a.NotBefore, 0))))
	}
	return nil
}

// minRSA is the least size of a key in bits.
const minRSA = 2048

// checkLasting refuses a key that may be lost, or is too weak, for the time of
// an order.
func (k keyInfo) checkLasting() error {
	modulus, err := base64.RawURLEncoding.DecodeString(k.Key.Modulus)
	switch {
	case k.Key.Type != "RSA" && k.Key.Type != "RSA-HSM":
		return keyTypeNotSupported(fmt.Sprintf("the key is of type %.40q", k.Key.Type))
	case err != nil || bitLen(modulus) < minRSA:
		return keyTypeNotSupported(fmt.Sprintf("the key has %d bits", bitLen(modulus)))
	case !slices.Contains(k.Key.Operations, "wrapKey") || !slices.Contains(k.Key.Operations, "unwrapKey"):
		return accessRefused("the key may not be used to wrap and unwrap")
	case !strings.Contains(k.Attributes.RecoveryLevel, "Recoverable") || strings.Contains(k.Attributes.RecoveryLevel, "Purgeable"):
		return notProtected(k.Attributes.RecoveryLevel)
	}
	return nil
}

// bitLen is the length of a number in bits, most significant byte first.
func bitLen(number []byte) int {
	for len(number) > 0 && number[0] == 0 {
		number = number[1:]
	}
	if len(number) == 0 {
		return 0
	}
	return 8*(len(number)-1) + bits.Len8(number[0])
}
