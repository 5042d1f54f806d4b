package approval

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// maxAssertion bounds the JSON of a browser's assertion, in bytes.
const maxAssertion = 16 << 10

// Flags of WebAuthn authenticator data.
const (
	flagUserPresent   = 0x01
	flagUserVerified  = 0x04
	flagBackupAble    = 0x08
	flagBackedUp      = 0x10
	flagAttested      = 0x40
	flagExtensions    = 0x80
	authenticatorSize = 37 // RP id hash, flags, counter
)

// assertion is a passkey's signature: the part of credential.toJSON() that
// matters, in canonical JSON. All values are base64url without padding.
type assertion struct {
	ID       string `json:"id"`
	RawID    string `json:"rawId"`
	Type     string `json:"type"`
	Response struct {
		ClientDataJSON    string `json:"clientDataJSON"`
		AuthenticatorData string `json:"authenticatorData"`
		Signature         string `json:"signature"`
	} `json:"response"`
}

// CanonicalAssertion turns the JSON of a browser's credential.toJSON() into
// the bytes that an envelope stores as signature. It verifies nothing.
func CanonicalAssertion(toJSON []byte) ([]byte, error) {
	if len(toJSON) > maxAssertion {
		return nil, invalid("passkey assertion is %d bytes: at most %d are allowed", len(toJSON), maxAssertion)
	}
	var a assertion
	if err := json.Unmarshal(toJSON, &a); err != nil {
		return nil, invalid("passkey assertion cannot be read: %v", err)
	}
	sig, err := marshal(a)
	if err != nil {
		return nil, invalid("passkey assertion: %v", err)
	}
	return sig, nil
}

// passkey verifies the assertions of one WebAuthn credential.
type passkey struct {
	credential string
	rpID       string
	origins    []string
	pub        crypto.PublicKey // *ecdsa.PublicKey on P-256, or ed25519.PublicKey
}

// verify follows WebAuthn level 3, section 7.2, for a challenge that is the
// SHA-256 of the pre-authentication encoding.
func (k passkey) verify(_ Kind, pae, sig []byte) error {
	var a assertion
	if err := unmarshal(sig, &a); err != nil {
		return fmt.Errorf("not a passkey assertion: %w", err)
	}
	if a.Type != "public-key" || a.ID != k.credential || a.RawID != k.credential {
		return errors.New("made by another passkey")
	}
	clientData, err1 := decodeURL(a.Response.ClientDataJSON)
	authData, err2 := decodeURL(a.Response.AuthenticatorData)
	signature, err3 := decodeURL(a.Response.Signature)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	if err := k.checkClientData(clientData, sha256.Sum256(pae)); err != nil {
		return err
	}
	if err := k.checkAuthenticator(authData); err != nil {
		return err
	}
	hash := sha256.Sum256(clientData)
	return k.checkSignature(slices.Concat(authData, hash[:]), signature)
}

// checkClientData checks what the browser says it asked, and where.
func (k passkey) checkClientData(data []byte, challenge [32]byte) error {
	fields, err := objectFields(data)
	if err != nil {
		return err
	}
	var typ, asked, origin string
	var cross bool
	err = errors.Join(
		json.Unmarshal(fields["type"], &typ),
		json.Unmarshal(fields["challenge"], &asked),
		json.Unmarshal(fields["origin"], &origin),
	)
	if raw, ok := fields["crossOrigin"]; ok {
		err = errors.Join(err, json.Unmarshal(raw, &cross))
	}
	switch {
	case err != nil:
		return errors.New("the client data cannot be read")
	case typ != "webauthn.get":
		return fmt.Errorf("the client data has type %q, want webauthn.get", typ)
	case asked != base64.RawURLEncoding.EncodeToString(challenge[:]):
		return errors.New("the passkey signed something else")
	case !slices.Contains(k.origins, origin):
		return fmt.Errorf("the passkey was used at origin %q, which the trust policy does not name", origin)
	case cross || fields["topOrigin"] != nil:
		return errors.New("the passkey was used inside a page of another origin")
	}
	return nil
}

// checkAuthenticator checks what the authenticator says of itself.
func (k passkey) checkAuthenticator(data []byte) error {
	if len(data) < authenticatorSize {
		return errors.New("the authenticator data is too short")
	}
	rp, flags := sha256.Sum256([]byte(k.rpID)), data[32]
	switch {
	case !bytes.Equal(data[:32], rp[:]):
		return fmt.Errorf("the passkey was used for another site than %s", k.rpID)
	case flags&flagUserPresent == 0:
		return errors.New("the passkey did not see a user")
	case flags&flagUserVerified == 0:
		return errors.New("the passkey did not verify its user: use PIN or biometrics")
	case flags&flagBackedUp != 0 && flags&flagBackupAble == 0:
		return errors.New("the backup flags contradict each other")
	case flags&flagAttested != 0:
		return errors.New("the authenticator data carries a new credential")
	case flags&flagExtensions == 0 && len(data) != authenticatorSize:
		return errors.New("the authenticator data has trailing bytes")
	}
	return nil
}

func (k passkey) checkSignature(message, signature []byte) error {
	ok := false
	switch pub := k.pub.(type) {
	case *ecdsa.PublicKey:
		hash := sha256.Sum256(message)
		ok = ecdsa.VerifyASN1(pub, hash[:], signature)
	case ed25519.PublicKey:
		ok = ed25519.Verify(pub, message, signature)
	}
	if !ok {
		return errors.New("the passkey's signature is wrong")
	}
	return nil
}

// objectFields reads a JSON object, which may have fields that are not known
// but none twice. Names are compared exactly.
func objectFields(data []byte) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("the client data is not a JSON object")
	}
	fields := make(map[string]json.RawMessage)
	for dec.More() {
		name, err := dec.Token()
		key, ok := name.(string)
		if err != nil || !ok || fields[key] != nil {
			return nil, errors.New("the client data has a bad or repeated field")
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, errors.New("the client data has a bad value")
		}
		fields[key] = value
	}
	if _, err := dec.Token(); err != nil || dec.InputOffset() != int64(len(data)) {
		return nil, errors.New("the client data has trailing bytes")
	}
	return fields, nil
}

func decodeURL(s string) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, errors.New("the passkey assertion is not base64url without padding")
	}
	return b, nil
}
