package certs

import (
	"crypto/sha256"
	"encoding/base64"
)

// SignInNonce is the nonce with which somebody asks an identity provider for an
// ID token that is exchanged for a certificate over the key with this
// SubjectPublicKeyInfo: the token is of use to the holder of that key only.
func SignInNonce(spki []byte) string {
	sum := sha256.Sum256(append([]byte("databox-lockbox sign-in v1\x00"), spki...))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
