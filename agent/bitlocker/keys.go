package bitlocker

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Credential unlocks a volume: an [ExternalKey], a [RecoveryPassword], a
// [Passphrase] or [ClearKey].
type Credential interface {
	// protects returns the kind of protector that this credential opens.
	protects() ProtectorKind
	// key fills dst with the key of protector p.
	key(p protector, dst []byte)
}

// keySize is the size of an external key, a VMK and a stretched key, in bytes.
const keySize = 32

// secret holds key bytes in one heap buffer that all copies of it share, so that
// wiping one wipes all. A function holds the buffer, because that is the one thing
// package fmt never looks into; it also keeps secrets from comparing with ==.
type secret struct{ get func() []byte }

func newSecret(b []byte) secret {
	own := make([]byte, len(b))
	copyKey(own, b)
	return secret{func() []byte { return own }}
}

// bytes returns the secret itself, not a copy; nil if there is none.
func (s secret) bytes() []byte {
	if s.get == nil {
		return nil
	}
	return s.get()
}

// IsZero reports whether there is no key at all.
func (s secret) IsZero() bool { return s.get == nil }

// Wipe overwrites the key, in every copy of this value.
func (s secret) Wipe() { clear(s.bytes()) }

// Format prints "[redacted]" whatever the verb.
func (s secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// String returns "[redacted]".
func (s secret) String() string { return redacted }

const redacted = "[redacted]"

func (s secret) equal(t secret) bool {
	return subtle.ConstantTimeCompare(s.bytes(), t.bytes()) == 1
}

// ExternalKey is the 32-byte key of a .BEK file. It does not print, compares
// with [ExternalKey.Equal] only, and should be wiped after use.
type ExternalKey struct{ secret }

// NewExternalKey copies the 32 bytes of b, which remains the caller's to clear.
func NewExternalKey(b []byte) (ExternalKey, error) {
	if len(b) != keySize {
		return ExternalKey{}, fmt.Errorf("external key of %d bytes: want %d", len(b), keySize)
	}
	return ExternalKey{newSecret(b)}, nil
}

// GenerateExternalKey draws a key from rand.
func GenerateExternalKey(rand io.Reader) (ExternalKey, error) {
	k := ExternalKey{newSecret(make([]byte, keySize))}
	if _, err := io.ReadFull(rand, k.bytes()); err != nil {
		return ExternalKey{}, fmt.Errorf("cannot draw an external key: %w", err)
	}
	return k, nil
}

// Bytes returns the key's own bytes, not a copy: they become zero with
// [ExternalKey.Wipe] and must not be changed.
func (k ExternalKey) Bytes() []byte { return k.bytes() }

// Equal compares in constant time.
func (k ExternalKey) Equal(other ExternalKey) bool { return k.equal(other.secret) }

func (k ExternalKey) protects() ProtectorKind     { return ExternalKeyProtector }
func (k ExternalKey) key(_ protector, dst []byte) { copyKey(dst, k.bytes()) }

// RecoveryPassword is the 48-digit password of a volume. It does not print
// except by [RecoveryPassword.Reveal], compares with [RecoveryPassword.Equal]
// only, and should be wiped after use.
type RecoveryPassword struct{ secret }

// A recovery password is eight groups of six digits, each 11 times a u16.
const (
	passwordGroups = 8
	passwordSize   = 2 * passwordGroups
	groupDigits    = 6
	groupFactor    = 11
)

var errRecoveryPassword = errors.New("not a recovery password: want eight groups of six digits with dashes between, each group a multiple of 11 and below 720896")

// ParseRecoveryPassword reads the form that [RecoveryPassword.Reveal] returns,
// and no other.
func ParseRecoveryPassword(s string) (RecoveryPassword, error) {
	p := RecoveryPassword{newSecret(make([]byte, passwordSize))}
	for i := range passwordGroups {
		group, rest, found := strings.Cut(s, "-")
		v, ok := parseGroup(group)
		if !ok || found != (i < passwordGroups-1) {
			p.Wipe()
			return RecoveryPassword{}, errRecoveryPassword
		}
		le.PutUint16(p.bytes()[2*i:], v)
		s = rest
	}
	return p, nil
}

func parseGroup(s string) (v uint16, ok bool) {
	if len(s) != groupDigits {
		return 0, false
	}
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return uint16(n / groupFactor), n%groupFactor == 0 && n < groupFactor<<16
}

// GenerateRecoveryPassword draws a password from rand.
func GenerateRecoveryPassword(rand io.Reader) (RecoveryPassword, error) {
	p := RecoveryPassword{newSecret(make([]byte, passwordSize))}
	if _, err := io.ReadFull(rand, p.bytes()); err != nil {
		return RecoveryPassword{}, fmt.Errorf("cannot draw a recovery password: %w", err)
	}
	return p, nil
}

// Reveal returns the printed form, 55 characters. A string cannot be wiped, so
// call it only to show the password to somebody.
func (p RecoveryPassword) Reveal() string {
	var groups []string
	for b := p.bytes(); len(b) > 0; b = b[2:] {
		groups = append(groups, fmt.Sprintf("%06d", groupFactor*int(le.Uint16(b))))
	}
	return strings.Join(groups, "-")
}

// Equal compares in constant time.
func (p RecoveryPassword) Equal(other RecoveryPassword) bool { return p.equal(other.secret) }

func (p RecoveryPassword) protects() ProtectorKind { return RecoveryPasswordProtector }

func (p RecoveryPassword) initial(dst []byte) {
	h := sha256.Sum256(p.bytes())
	defer clear(h[:])
	copyKey(dst, h[:])
}

func (p RecoveryPassword) key(to protector, dst []byte) { stretchOne(p, to.salt, dst) }

// Passphrase is a user's password, kept as the hash that BitLocker stretches.
type Passphrase struct{ secret }

// maxPassphrase is the longest passphrase that Windows takes, in UTF-16 units.
const maxPassphrase = 256

// NewPassphrase takes any passphrase of 1 to 256 UTF-16 units, as it is: Windows
// neither trims nor normalizes.
func NewPassphrase(s string) (Passphrase, error) {
	if !utf8.ValidString(s) {
		return Passphrase{}, errors.New("the passphrase is not UTF-8")
	}
	units := utf16.Encode([]rune(s))
	if len(units) == 0 || len(units) > maxPassphrase {
		return Passphrase{}, fmt.Errorf("passphrase of %d characters: want 1 to %d", len(units), maxPassphrase)
	}
	text := make([]byte, 0, 2*len(units))
	for _, u := range units {
		text = le.AppendUint16(text, u)
	}
	once := sha256.Sum256(text)
	twice := sha256.Sum256(once[:])
	p := Passphrase{newSecret(twice[:])}
	clear(units)
	clear(text)
	clear(once[:])
	clear(twice[:])
	return p, nil
}

// Equal compares in constant time.
func (p Passphrase) Equal(other Passphrase) bool { return p.equal(other.secret) }

func (p Passphrase) protects() ProtectorKind      { return PassphraseProtector }
func (p Passphrase) initial(dst []byte)           { copyKey(dst, p.bytes()) }
func (p Passphrase) key(to protector, dst []byte) { stretchOne(p, to.salt, dst) }

// ClearKey opens a volume whose protection is suspended: it then carries its own
// key in clear.
type ClearKey struct{}

func (ClearKey) protects() ProtectorKind     { return ClearKeyProtector }
func (ClearKey) key(p protector, dst []byte) { copyKey(dst, p.clearKey) }
