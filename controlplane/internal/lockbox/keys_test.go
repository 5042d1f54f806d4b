package lockbox_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// keys gives everybody an SSH key that is made of their name.
type keys struct{}

func (keys) signer(who protocol.Person) ssh.Signer {
	seed := sha256.Sum256([]byte(who))
	s, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		panic(err)
	}
	return s
}

func (k keys) Line(who protocol.Person) string {
	return string(ssh.MarshalAuthorizedKey(k.signer(who).PublicKey()))
}

func (k keys) Sign(t testing.TB, who protocol.Person, keyID string, doc *lockboxv1.Document) []byte {
	t.Helper()
	e := approval.Envelope{PayloadType: approval.Kind(doc.PayloadType), Payload: doc.Payload}
	if err := e.SignSSH(keyID, k.signer(who)); err != nil {
		t.Fatal(err)
	}
	data, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}
