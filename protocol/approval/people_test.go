package approval_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/protocol"
	. "github.com/databox-lockbox/lockbox/protocol/approval"
)

// All keys of the tests come from names, so that vectors are reproducible.

func seed(name string) []byte {
	sum := sha256.Sum256([]byte("databox approval test key " + name))
	return sum[:]
}

func machineKey(name string) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(seed(name)) }

func machinePublic(name string) ed25519.PublicKey {
	return machineKey(name).Public().(ed25519.PublicKey)
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func sshSigner(t testing.TB, name string) ssh.Signer {
	t.Helper()
	return must[ssh.Signer](t)(ssh.NewSignerFromSigner(machineKey(name)))
}

func authorized(pub ssh.PublicKey) string { return string(ssh.MarshalAuthorizedKey(pub)) }

// securityKey is a FIDO key in software, for what a test needs of it.
type securityKey struct {
	key         ed25519.PrivateKey
	application string
	flags       byte
}

func newSecurityKey(name string) securityKey { return securityKey{machineKey(name), "ssh:", 0x01} }

func (k securityKey) PublicKey() ssh.PublicKey {
	pub, err := ssh.ParsePublicKey(ssh.Marshal(struct {
		Type        string
		Key         []byte
		Application string
	}{ssh.KeyAlgoSKED25519, k.key.Public().(ed25519.PublicKey), k.application}))
	if err != nil {
		panic(err)
	}
	return pub
}

func (k securityKey) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	app, sum := sha256.Sum256([]byte(k.application)), sha256.Sum256(data)
	rest := binary.BigEndian.AppendUint32([]byte{k.flags}, 7)
	signed := append(append(app[:], rest...), sum[:]...)
	return &ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: ed25519.Sign(k.key, signed), Rest: rest}, nil
}

// sshsig makes an SSHSIG blob without any of the checks of SignSSH.
type sshsig struct {
	magic     string
	version   uint32
	public    []byte // the signer's own if nil
	namespace string
	reserved  string
	hash      string
	show      func(*sshsig) // changes the blob after signing
}

func plainSSHSig(kind Kind) sshsig {
	return sshsig{magic: "SSHSIG", version: 1, namespace: kind.Namespace(), hash: "sha512"}
}

func (s sshsig) sign(t testing.TB, signer ssh.Signer, message []byte) []byte {
	t.Helper()
	sum := sha512.Sum512(message)
	hash := sum[:]
	if s.hash == "sha256" {
		sum := sha256.Sum256(message)
		hash = sum[:]
	}
	sig := must[*ssh.Signature](t)(signer.Sign(nil, append([]byte(s.magic), ssh.Marshal(struct {
		Namespace, Reserved, Hash string
		Sum                       []byte
	}{s.namespace, s.reserved, s.hash, hash})...)))
	if s.public == nil {
		s.public = signer.PublicKey().Marshal()
	}
	if s.show != nil {
		s.show(&s)
	}
	return append([]byte(s.magic), ssh.Marshal(struct {
		Version                   uint32
		Public                    []byte
		Namespace, Reserved, Hash string
		Sig                       []byte
	}{s.version, s.public, s.namespace, s.reserved, s.hash, ssh.Marshal(sig)})...)
}

// authenticator is a passkey in software.
type authenticator struct {
	key        crypto.Signer // *ecdsa.PrivateKey on P-256, or ed25519.PrivateKey
	credential []byte
	rpID       string
	origin     string
	ceremony   string
	flags      byte
	extra      map[string]any // more fields of the client data
	trailing   []byte         // after the authenticator data
	cut        int            // bytes cut off the authenticator data
	tail       string         // after the client data
	outer      map[string]any // replaces fields of the credential's JSON
}

func newAuthenticator(t testing.TB, name string) authenticator {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.ParseRawPrivateKey(elliptic.P256(), seed(name)))
	return authenticator{
		key: key, credential: seed("credential " + name)[:16],
		rpID: "lockbox.example", origin: "https://portal.lockbox.example",
		ceremony: "webauthn.get", flags: 0x05, extra: map[string]any{"crossOrigin": false},
	}
}

func b64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (a authenticator) policyKey(t testing.TB, id string, person protocol.Person) Key {
	t.Helper()
	spki := must[[]byte](t)(x509.MarshalPKIXPublicKey(a.key.Public()))
	return Key{
		ID: id, Person: person, Kind: WebAuthnKey, PublicKey: base64.StdEncoding.EncodeToString(spki),
		CredentialID: b64url(a.credential), RPID: a.rpID, Origins: []string{a.origin},
	}
}

// assert returns what a browser's credential.toJSON() gives for a challenge.
func (a authenticator) assert(t testing.TB, challenge []byte) []byte {
	t.Helper()
	return a.wrap(t, a.clientData(t, challenge))
}

// clientData returns the client data as a browser writes it.
func (a authenticator) clientData(t testing.TB, challenge []byte) []byte {
	t.Helper()
	text := `{"type":` + quote(t, a.ceremony) + `,"challenge":` + quote(t, b64url(challenge)) + `,"origin":` + quote(t, a.origin)
	for _, name := range []string{"crossOrigin", "topOrigin", "other_keys_can_be_added_here"} {
		if v, ok := a.extra[name]; ok {
			text += `,` + quote(t, name) + `:` + quote(t, v)
		}
	}
	return []byte(text + "}" + a.tail)
}

func quote(t testing.TB, v any) string {
	t.Helper()
	return string(must[[]byte](t)(json.Marshal(v)))
}

// wrap signs client data and returns the credential's JSON.
func (a authenticator) wrap(t testing.TB, clientData []byte) []byte {
	t.Helper()
	rp, hash := sha256.Sum256([]byte(a.rpID)), sha256.Sum256(clientData)
	authData := append(append(rp[:], a.flags, 0, 0, 0, 9), a.trailing...)
	authData = authData[:len(authData)-a.cut]
	message := append(append([]byte(nil), authData...), hash[:]...)
	var sig []byte
	switch key := a.key.(type) {
	case *ecdsa.PrivateKey: // without randomness: deterministic, RFC 6979
		sum := sha256.Sum256(message)
		sig = must[[]byte](t)(key.Sign(nil, sum[:], crypto.SHA256))
	case ed25519.PrivateKey:
		sig = ed25519.Sign(key, message)
	default:
		t.Fatal(errors.New("no such key"))
	}
	credential := map[string]any{
		"id": b64url(a.credential), "rawId": b64url(a.credential), "type": "public-key",
		"authenticatorAttachment": "platform", "clientExtensionResults": map[string]any{},
		"response": map[string]any{
			"clientDataJSON": b64url(clientData), "authenticatorData": b64url(authData),
			"signature": b64url(sig), "userHandle": "dXNlcg",
		},
	}
	maps.Copy(credential, a.outer)
	return must[[]byte](t)(json.Marshal(credential))
}
