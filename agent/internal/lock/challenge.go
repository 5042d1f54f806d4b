package lock

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/sealing"
)

// challenge is the one challenge outstanding. It lives in memory only and is
// dead after any attempt.
type challenge struct {
	subject approval.Digest
	purpose protocol.Purpose
	nonce   []byte
	key     *sealing.PrivateKey
	expires time.Duration // boot time
}

// Challenge starts an unlock of subject, which is the digest of a request
// statement or of a consent: it returns the envelope of an [approval.Challenge],
// signed by the node's key. It replaces the challenge before it. A node that
// something holds refuses with [protocol.CodeBusy].
func (m *Machine) Challenge(_ context.Context, subject approval.Digest, purpose protocol.Purpose) ([]byte, error) {
	if !subject.Valid() {
		return nil, protocol.Errorf(protocol.CodeInvalid, "%.100q is not a digest: want sha256: and 64 hexadecimal digits", subject)
	}
	if purpose != protocol.SupportAccess && purpose != protocol.DataCopy {
		return nil, protocol.Errorf(protocol.CodeInvalid, "%.100q is not a purpose: want %s or %s", purpose, protocol.SupportAccess, protocol.DataCopy)
	}
	key, err := sealing.GenerateKey()
	if err != nil {
		return nil, err
	}
	c := &challenge{
		subject: subject, purpose: purpose, key: key, nonce: make([]byte, approval.NonceSize),
		expires: m.cfg.Clock.Boot() + m.cfg.ChallengeTTL,
	}
	rand.Read(c.nonce)
	envelope, err := approval.SignEd25519(approval.Challenge{
		Node: approval.NameOf(m.cfg.Node), NodeKey: m.pub, RequestDigest: subject, Nonce: c.nonce, HPKEKey: key.Public(),
		Expires: m.cfg.Clock.Now().Add(m.cfg.ChallengeTTL).Unix(),
	}, m.cfg.Key)
	if err != nil {
		key.Wipe()
		return nil, err
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.running || !m.allowsLocked(challenged) {
		key.Wipe()
		return nil, m.refusalLocked()
	}
	m.discardChallengeLocked()
	m.challenge = c
	m.moveLocked(challenged)
	return envelope, nil
}

func (m *Machine) discardChallengeLocked() {
	if m.challenge != nil {
		m.challenge.key.Wipe()
		m.challenge = nil
	}
}
