package approval

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"

	"github.com/databox-lockbox/lockbox/protocol"
)

// KeyKind is the kind of a person's key.
type KeyKind string

// The kinds of key.
const (
	SSHKey      KeyKind = "ssh"      // ssh-ed25519, or sk-ssh-ed25519@openssh.com with application "ssh:"
	WebAuthnKey KeyKind = "webauthn" // a passkey: ES256 or Ed25519
)

// Key is one key of one person.
type Key struct {
	ID           string          `json:"id"`
	Person       protocol.Person `json:"person"`
	Kind         KeyKind         `json:"kind"`
	PublicKey    string          `json:"publicKey"`              // ssh: "<type> <base64>"; webauthn: base64 of the SPKI
	CredentialID string          `json:"credentialId,omitempty"` // webauthn: base64url without padding
	RPID         string          `json:"rpId,omitempty"`         // webauthn
	Origins      []string        `json:"origins,omitempty"`      // webauthn: where the key may be used, "https://host[:port]"
}

// NewSSHKey makes a key of a line of authorized_keys; its comment is dropped.
func NewSSHKey(id string, person protocol.Person, authorizedKey string) (Key, error) {
	pub, err := parseAuthorizedKey(authorizedKey)
	if err != nil {
		return Key{}, invalid("key %q: %v", id, err)
	}
	k := Key{ID: id, Person: person, Kind: SSHKey, PublicKey: authorizedForm(pub)}
	if _, err := k.verifier(); err != nil {
		return Key{}, invalid("%v", err)
	}
	return k, nil
}

// SSHFingerprint returns the fingerprint of a line of authorized_keys,
// "SHA256:…" as ssh-keygen -l prints it. The key may be of any type.
func SSHFingerprint(authorizedKey string) (string, error) {
	pub, err := parseAuthorizedKey(authorizedKey)
	if err != nil {
		return "", invalid("%v", err)
	}
	return ssh.FingerprintSHA256(pub), nil
}

func parseAuthorizedKey(line string) (ssh.PublicKey, error) {
	pub, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(options) != 0 || len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("not one SSH public key: want a line as in a .pub file")
	}
	return pub, nil
}

func authorizedForm(pub ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub)))
}

// Fingerprint returns the fingerprint of an SSH key, "SHA256:…"; "" for other
// kinds.
func (k Key) Fingerprint() string {
	if k.Kind != SSHKey {
		return ""
	}
	fingerprint, err := SSHFingerprint(k.PublicKey)
	if err != nil {
		return ""
	}
	return fingerprint
}

// Group is a number of people of whom some must agree.
type Group struct {
	Name      string   `json:"name"`
	Threshold int      `json:"threshold"` // people, not keys
	Keys      []string `json:"keys"`      // key ids
}

// Rule says whose approval an action needs: the threshold of every group.
type Rule struct {
	Action         Action  `json:"action"`
	CustomerGroups []Group `json:"customerGroups"`
	ProviderGroups []Group `json:"providerGroups,omitempty"` // none for CopyData: a consent is the customer's alone
	Service        bool    `json:"service"`                  // the order must be signed by a service key; always true in version 1
	MaxDuration    int64   `json:"maxDuration"`              // seconds, of one lease
}

// groups returns the groups of both roles.
func (r Rule) groups() []Group { return slices.Concat(r.CustomerGroups, r.ProviderGroups) }

// TrustPolicy is the document that says whose signatures a device wants. A
// verified one is a [Policy].
type TrustPolicy struct {
	Header
	TenantID       protocol.TenantID `json:"tenantId"`
	OrderID        protocol.OrderID  `json:"orderId,omitempty"` // valid for this order only
	Version        int64             `json:"version"`           // 1, then rising
	PreviousDigest Digest            `json:"previousDigest,omitempty"`
	Keys           []Key             `json:"keys"`
	Rules          []Rule            `json:"rules"`
	ServiceKeys    [][]byte          `json:"serviceKeys"`           // Ed25519, 32 bytes each
	LogKey         string            `json:"logKey"`                // of the activity log: verifier of golang.org/x/mod/sumdb/note
	RecoveryKey    *Key              `json:"recoveryKey,omitempty"` // may sign any successor alone, but none with another recovery key
	NoRecovery     bool              `json:"noRecovery,omitempty"`  // there is no recovery key, and the customer knows
	Exclusions     []ExclusionRule   `json:"exclusions,omitempty"`  // when the customer need not be asked; none: never
}

// ParseTrustPolicy reads a trust policy without verifying who signed it.
func ParseTrustPolicy(payload []byte) (TrustPolicy, error) { return decode[TrustPolicy](payload) }

// Encode returns the canonical bytes of t.
func (t TrustPolicy) Encode() ([]byte, error) { t.V = Version; return encode(t) }

// Kind returns [KindPolicy].
func (TrustPolicy) Kind() Kind { return KindPolicy }

// KeyByFingerprint returns the SSH key with a fingerprint, "SHA256:…", and
// whether there is one.
func (t TrustPolicy) KeyByFingerprint(fingerprint string) (Key, bool) {
	for _, k := range t.allKeys() {
		if k.Kind == SSHKey && k.Fingerprint() == fingerprint {
			return k, true
		}
	}
	return Key{}, false
}

// allKeys returns the keys of people, the recovery key among them.
func (t TrustPolicy) allKeys() []Key {
	if t.RecoveryKey == nil {
		return t.Keys
	}
	return append(slices.Clone(t.Keys), *t.RecoveryKey)
}

// Validate reports the first thing that makes t nonsense: a group that nobody
// or not enough people can satisfy, a person in two groups of one rule or in
// both roles, a key that is unknown, malformed or named twice.
func (t TrustPolicy) Validate() error {
	t.V = Version
	if err := t.check(); err != nil {
		return invalid("policy: %v", err)
	}
	return nil
}

func (t TrustPolicy) check() error {
	return cmp.Or(
		checkName("tenantId", string(t.TenantID)),
		checkLength("orderId", string(t.OrderID)),
		t.checkVersion(),
		t.checkKeys(),
		t.checkRules(),
		t.checkServiceKeys(),
		t.checkLogKey(),
		t.checkRecovery(),
	)
}

func (t TrustPolicy) checkVersion() error {
	switch {
	case t.Version < 1 || t.Version > 1<<31:
		return fmt.Errorf("version is %d: want 1 or more", t.Version)
	case t.Version == 1 && t.PreviousDigest != "":
		return errors.New("previousDigest must be left out of version 1")
	case t.Version > 1:
		return checkDigest("previousDigest", t.PreviousDigest)
	}
	return nil
}

func (t TrustPolicy) checkKeys() error {
	if err := checkCount("keys", len(t.Keys), maxList); err != nil {
		return err
	}
	keys := t.allKeys()
	for _, k := range keys {
		err := cmp.Or(
			checkForm("keys.id", k.ID, keyIDForm),
			checkPerson("keys.person", k.Person),
		)
		if err != nil {
			return err
		}
		if _, err := k.verifier(); err != nil {
			return err
		}
	}
	return cmp.Or(
		checkUnique("keys", keys, func(k Key) string { return k.ID }),
		checkUnique("keys", keys, func(k Key) string { return k.PublicKey }),
	)
}

func (t TrustPolicy) checkRules() error {
	if err := checkCount("rules", len(t.Rules), 2); err != nil {
		return err
	}
	roles := make(map[protocol.Person]Role)
	for _, r := range t.Rules {
		if err := t.checkRule(r, roles); err != nil {
			return fmt.Errorf("rule %q: %w", r.Action, err)
		}
	}
	for _, x := range t.Exclusions {
		if err := t.checkExclusion(x, roles); err != nil {
			return fmt.Errorf("exclusion %q: %w", x.Kind, err)
		}
	}
	return cmp.Or(
		checkUnique("rules", t.Rules, func(r Rule) Action { return r.Action }),
		checkUnique("exclusions", t.Exclusions, func(x ExclusionRule) Exclusion { return x.Kind }),
	)
}

// checkRule checks one rule. roles collects what each person is over all rules.
func (t TrustPolicy) checkRule(r Rule, roles map[protocol.Person]Role) error {
	err := cmp.Or(
		checkOneOf("action", r.Action, UnlockDatabox, CopyData),
		checkCount("customerGroups", len(r.CustomerGroups), maxList),
		checkDuration("maxDuration", r.MaxDuration),
		checkUnique("groups", r.groups(), func(g Group) string { return g.Name }),
	)
	switch {
	case err != nil:
		return err
	case !r.Service:
		return errors.New("service must be true: there is no unlock without the service's order")
	case r.Action == CopyData && len(r.ProviderGroups) != 0:
		return errors.New("providerGroups must be left out: a consent is the customer's alone")
	}
	return t.checkGroups(r, roles)
}

// checkGroups checks the groups of one rule.
func (t TrustPolicy) checkGroups(r Rule, roles map[protocol.Person]Role) error {
	group := make(map[protocol.Person]string)
	for i, g := range r.groups() {
		role := Customer
		if i >= len(r.CustomerGroups) {
			role = Provider
		}
		if err := t.checkGroup(g, role, group, roles); err != nil {
			return fmt.Errorf("group %q: %w", g.Name, err)
		}
	}
	return nil
}

// checkGroup checks one group. group collects which group of the rule each
// person is in.
func (t TrustPolicy) checkGroup(g Group, role Role, group map[protocol.Person]string, roles map[protocol.Person]Role) error {
	err := cmp.Or(
		checkName("name", g.Name),
		checkCount("keys", len(g.Keys), maxList),
		checkUnique("keys", g.Keys, func(id string) string { return id }),
	)
	if err != nil {
		return err
	}
	people := make(map[protocol.Person]bool)
	for _, id := range g.Keys {
		i := slices.IndexFunc(t.Keys, func(k Key) bool { return k.ID == id })
		if i < 0 {
			return fmt.Errorf("key %q is not among the policy's keys", id)
		}
		person := t.Keys[i].Person
		if other, ok := group[person]; ok && other != g.Name {
			return fmt.Errorf("%s is in group %q already: one person counts once", person, other)
		}
		if other, ok := roles[person]; ok && other != role {
			return fmt.Errorf("%s is %s elsewhere in the policy: nobody speaks for both sides", person, other)
		}
		group[person], roles[person], people[person] = g.Name, role, true
	}
	if g.Threshold < 1 || g.Threshold > len(people) {
		return fmt.Errorf("threshold is %d: want 1 to %d, the number of its people", g.Threshold, len(people))
	}
	return nil
}

func (t TrustPolicy) checkRecovery() error {
	switch {
	case t.RecoveryKey == nil && !t.NoRecovery:
		return errors.New("recoveryKey is missing: without one the policy is lost when too few keys are left to replace it; if that is meant, say so with noRecovery")
	case t.RecoveryKey != nil && t.NoRecovery:
		return errors.New("noRecovery must be left out where there is a recoveryKey")
	}
	return nil
}

func (t TrustPolicy) checkServiceKeys() error {
	if err := checkCount("serviceKeys", len(t.ServiceKeys), maxList); err != nil {
		return err
	}
	for _, k := range t.ServiceKeys {
		if err := checkBytes("serviceKeys", k, ed25519.PublicKeySize); err != nil {
			return err
		}
	}
	return checkUnique("serviceKeys", t.ServiceKeys, func(k []byte) string { return string(KeyFingerprint(k)) })
}

func (t TrustPolicy) checkLogKey() error {
	if _, err := note.NewVerifier(t.LogKey); err != nil {
		return errors.New("logKey is not the verifier key of a log: want <name>+<hash>+<key>")
	}
	return nil
}

// verifier verifies signatures of one key.
type verifier interface {
	// verify returns an error unless sig is this key's signature over pae,
	// made for documents of this kind.
	verify(kind Kind, pae, sig []byte) error
}

// sshVerifier verifies SSHSIG blobs.
type sshVerifier struct{ pub ssh.PublicKey }

func (v sshVerifier) verify(kind Kind, pae, sig []byte) error {
	return verifySSH(v.pub, kind.Namespace(), pae, sig)
}

// machineVerifier verifies plain Ed25519 signatures.
type machineVerifier ed25519.PublicKey

func (v machineVerifier) verify(_ Kind, pae, sig []byte) error {
	if !ed25519.Verify(ed25519.PublicKey(v), pae, sig) {
		return errors.New("the signature is wrong")
	}
	return nil
}

// verifier checks the key's fields and returns what verifies its signatures.
func (k Key) verifier() (verifier, error) {
	var v verifier
	var err error
	switch k.Kind {
	case SSHKey:
		v, err = k.sshVerifier()
	case WebAuthnKey:
		v, err = k.passkey()
	default:
		err = checkOneOf("kind", k.Kind, SSHKey, WebAuthnKey)
	}
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", k.ID, err)
	}
	return v, nil
}

func (k Key) sshVerifier() (verifier, error) {
	if k.CredentialID != "" || k.RPID != "" || k.Origins != nil {
		return nil, errors.New("credentialId, rpId and origins are for webauthn keys")
	}
	pub, err := parseAuthorizedKey(k.PublicKey)
	if err != nil {
		return nil, err
	}
	if authorizedForm(pub) != k.PublicKey {
		return nil, errors.New("publicKey must be the type and the base64, without comment")
	}
	if err := acceptSSH(pub); err != nil {
		return nil, err
	}
	return sshVerifier{pub}, nil
}

func (k Key) passkey() (verifier, error) {
	pub, err := k.parseSPKI()
	if err != nil {
		return nil, err
	}
	if id, err := decodeURL(k.CredentialID); err != nil || len(id) == 0 || len(id) > 1023 {
		return nil, errors.New("credentialId must be 1 to 1023 bytes in base64url without padding")
	}
	if err := checkCount("origins", len(k.Origins), maxList); err != nil {
		return nil, err
	}
	for _, o := range k.Origins {
		if err := checkOrigin(o, k.RPID); err != nil {
			return nil, err
		}
	}
	return passkey{k.CredentialID, k.RPID, k.Origins, pub}, nil
}

// parseSPKI reads a public key that is in the one form DER has for it.
func (k Key) parseSPKI() (crypto.PublicKey, error) {
	der, err := base64.StdEncoding.Strict().DecodeString(k.PublicKey)
	if err != nil {
		return nil, errors.New("publicKey must be the SPKI in standard base64")
	}
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, errors.New("publicKey is not an SPKI")
	}
	again, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil || base64.StdEncoding.EncodeToString(again) != k.PublicKey {
		return nil, errors.New("publicKey is not in canonical form")
	}
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		if pub.Curve == elliptic.P256() {
			return pub, nil
		}
	case ed25519.PublicKey:
		return pub, nil
	}
	return nil, errors.New("publicKey must be of P-256 (ES256) or Ed25519")
}

// checkOrigin refuses an origin at which a credential of rpID cannot be used.
func checkOrigin(origin, rpID string) error {
	u, err := url.Parse(origin)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || "https://"+u.Host != origin:
		return fmt.Errorf("origin %q must be https://host or https://host:port", origin)
	case rpID == "" || u.Hostname() != rpID && !strings.HasSuffix(u.Hostname(), "."+rpID):
		return fmt.Errorf("origin %q does not belong to rpId %q", origin, rpID)
	}
	return nil
}
