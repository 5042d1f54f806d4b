package keyvault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// token lets the client in to one vault.
type token struct {
	value   string
	expires time.Time
}

// tokenMargin is how long before its end a token is not used any more.
const tokenMargin = 2 * time.Minute

// token returns a token for a vault, and whether it was had before.
func (c *Client) token(ctx context.Context, vault string) (value string, cached bool, err error) {
	c.mu.Lock()
	t, ok := c.tokens[vault]
	c.mu.Unlock()
	if ok && c.cfg.Now().Add(tokenMargin).Before(t.expires) {
		return t.value, true, nil
	}
	ch, err := c.challenge(ctx, vault)
	if err != nil {
		return "", false, err
	}
	if t, err = c.login(ctx, ch); err != nil {
		return "", false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.tokens) >= maxTokens {
		clear(c.tokens)
	}
	c.tokens[vault] = t
	return t.value, false, nil
}

// maxTokens bounds how many vaults' tokens are kept.
const maxTokens = 1024

func (c *Client) forget(vault string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.tokens, vault)
}

// challenge is what a vault wants of those who come without a token.
type challenge struct {
	directory string // of the vault's tenant
	resource  string // that the token is for
}

var (
	challengeParts = regexp.MustCompile(`(\w+)="([^"]*)"`)
	directoryForm  = regexp.MustCompile(`^/([0-9A-Za-z.-]{1,64})/?$`)
)

// challenge asks a vault which directory it belongs to.
func (c *Client) challenge(ctx context.Context, vault string) (challenge, error) {
	a, err := c.send(ctx, http.MethodGet, vault+"/keys"+apiVersion, nil, http.Header{})
	if err != nil {
		return challenge{}, vaultGone(vault, err)
	}
	parts := map[string]string{}
	if kind, rest, _ := strings.Cut(a.header.Get("WWW-Authenticate"), " "); a.status == http.StatusUnauthorized && strings.EqualFold(kind, "Bearer") {
		for _, p := range challengeParts.FindAllStringSubmatch(rest, -1) {
			parts[p[1]] = p[2]
		}
	}
	authority, resource := parts["authorization"], parts["resource"]
	return c.checkChallenge(vault, authority, resource)
}

// checkChallenge makes sure that the secret goes nowhere but to the authority,
// and that the token is good for nothing but vaults.
func (c *Client) checkChallenge(vault, authority, resource string) (challenge, error) {
	path, ours := strings.CutPrefix(authority, c.authority())
	directory := directoryForm.FindStringSubmatch(path)
	if !ours || directory == nil {
		return challenge{}, fmt.Errorf("%s belongs to the authority %.200q, not to %s", vault, authority, c.cfg.Authority)
	}
	what, err := url.Parse(resource)
	if err != nil || what.Scheme != "https" || !c.allowed(what.Host) || !below(hostOf(vault), what.Host) {
		return challenge{}, fmt.Errorf("%s asks for a token for %.200q, which is no vault", vault, resource)
	}
	return challenge{directory[1], "https://" + what.Host}, nil
}

func (c *Client) authority() string { return strings.TrimSuffix(c.cfg.Authority, "/") }

// login gets a token from the authority, by OAuth2 client credentials.
func (c *Client) login(ctx context.Context, ch challenge) (token, error) {
	secret, err := c.cfg.Secret()
	if err != nil {
		return token{}, fmt.Errorf("cannot read the secret of the service's identity: %w", err)
	}
	defer clear(secret)
	body := []byte(url.Values{
		"grant_type": {"client_credentials"}, "client_id": {c.cfg.ClientID}, "client_secret": {string(secret)}, "scope": {ch.resource + "/.default"},
	}.Encode())
	defer clear(body)
	begin := c.cfg.Now()
	a, err := c.send(ctx, http.MethodPost, c.authority()+"/"+ch.directory+"/oauth2/v2.0/token", body,
		http.Header{"Content-Type": {"application/x-www-form-urlencoded"}})
	if err != nil {
		return token{}, err
	}
	defer clear(a.body)
	var out struct {
		Token     string `json:"access_token"`
		ExpiresIn int64  `json:"expires_in"`
		Error     string `json:"error"`
		Codes     []int  `json:"error_codes"`
	}
	if err := json.Unmarshal(a.body, &out); err != nil {
		return token{}, errors.New("the authority's answer is not JSON of the expected form") // the cause could quote a token
	}
	for _, code := range out.Codes {
		if code == appNotInDirectory {
			return token{}, identityNotFound()
		}
	}
	if a.status != http.StatusOK || out.Token == "" || strings.ContainsAny(out.Token, "\r\n") {
		return token{}, fmt.Errorf("the authority gives the service's identity no token: status %d, %.60q: check keys.key_vault", a.status, out.Error)
	}
	return token{out.Token, begin.Add(time.Duration(min(max(out.ExpiresIn, 0), maxTokenSeconds)) * time.Second)}, nil
}

// appNotInDirectory is the authority's code for an application that a directory
// does not know, AADSTS700016.
const appNotInDirectory = 700016

// maxTokenSeconds bounds how long a token is kept.
const maxTokenSeconds = 24 * 60 * 60

// hostOf is the host of an address of ours.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return u.Host
}
