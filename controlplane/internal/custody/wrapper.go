package custody

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// KeyWrapper is one wrapping key. Implementations may be called concurrently,
// keep nothing of what they are given, and return in time when ctx ends.
type KeyWrapper interface {
	// ID names the key. It is stored with everything wrapped by it.
	ID() string
	// Wrap encrypts key and binds aad to it.
	Wrap(ctx context.Context, key, aad []byte) ([]byte, error)
	// Unwrap returns the key that Wrap was given, if aad is the same. The
	// caller wipes it.
	Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error)
}

// KeyService is where wrapping keys live. What was said of [KeyWrapper] holds
// for it. An error is a [*KeyRefusal] if the service answered that a key may not
// be used; any other means that it cannot be reached, or is set up wrong.
type KeyService interface {
	// Current returns the key that wraps now.
	Current(ctx context.Context) (KeyWrapper, error)
	// Key returns the key of that ID, which is or was current. It is
	// [ErrForeignKey] if keys of another service have such IDs.
	Key(ctx context.Context, id string) (KeyWrapper, error)
}

// ErrForeignKey says that an ID names a key of another service.
var ErrForeignKey = errors.New("the key is of another key service")

// Rotator is a [KeyService] that makes its keys itself.
type Rotator interface {
	// Rotate makes another key. When it returns, that is durable and current.
	Rotate(ctx context.Context) error
	// Retire destroys all keys but the current one. The caller has made sure
	// that they wrap nothing any more.
	Retire(ctx context.Context) error
}

// CustomerKeys are keys in the vaults of customers.
type CustomerKeys interface {
	// Find returns the key at an address that a customer gave, its newest
	// version if the address names none, and refuses one that cannot be relied
	// upon for the time of an order.
	Find(ctx context.Context, address string) (KeyWrapper, error)
	// Key returns a key that Find returned before.
	Key(ctx context.Context, id string) (KeyWrapper, error)
}

// KeyRefusal is the answer of a key service that does not let a key be used.
type KeyRefusal struct {
	Name   string // the published name of the error
	Reason string // what is wrong
	Advice string // what its owner can do
}

func (e *KeyRefusal) Error() string { return e.Name + ": " + e.Reason + ": " + e.Advice }

// keyTimeout bounds everything that a key service is asked for at once: one
// that does not answer means a refusal.
const keyTimeout = 5 * time.Second

// keyError gives a failure of a key service its code. Errors that have one keep
// it.
func keyError(customer bool, err error) error {
	if err == nil || protocol.CodeOf(err) != protocol.CodeInternal {
		return err
	}
	if refusal, ok := errors.AsType[*KeyRefusal](err); ok && customer {
		return protocol.Errorf(protocol.CodeCustomerKey, "%v", refusal)
	}
	if errors.Is(err, ErrNotWrapped) {
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s", keyTimeout)
	}
	return protocol.Errorf(protocol.CodeKeyService, "the key service cannot be used, so nothing is opened or stored: %v", err)
}

// ErrNotWrapped is what a [KeyWrapper] says of all that it did not wrap with
// that aad.
var ErrNotWrapped = errors.New("it was wrapped by another key or for another disk, or was changed: restore the store and the keys from one backup")

// NewAEAD is AES-256-GCM with random nonces, which precede the ciphertext.
func NewAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
