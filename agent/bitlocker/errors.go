package bitlocker

import (
	"errors"
	"fmt"
)

// Errors that callers branch on. All but [ErrWrongKey] and [ErrWiped] come
// wrapped, with the details; [ErrUnsupported] always as a [RefusedError].
var (
	ErrNotBitLocker = errors.New("not a BitLocker volume")
	ErrUnsupported  = errors.New("unsupported BitLocker volume")
	ErrDamaged      = errors.New("damaged BitLocker volume")
	ErrTruncated    = errors.New("truncated BitLocker volume")
	ErrNoProtector  = errors.New("no protector of this kind")
	ErrWrongKey     = errors.New("wrong key")
	ErrWiped        = errors.New("volume is locked: its keys were wiped")
	ErrReadOnly     = errors.New("volume was opened read-only")
	ErrReserved     = errors.New("write into an area reserved for BitLocker metadata")
)

// Refusal names a kind of volume that is refused, whole as it may be. The words
// are stable, for output that programs read.
type Refusal string

// The kinds of volumes that are refused.
const (
	RefusedVista          Refusal = "vista"             // metadata of version 1
	RefusedEncryptOnWrite Refusal = "encrypt-on-write"  // used space only, not converted
	RefusedConverting     Refusal = "converting"        // encryption or decryption is running
	RefusedPaused         Refusal = "conversion-paused" // the same, but halted
	RefusedState          Refusal = "state"             // decrypted, or a state unknown
	RefusedSectorSize     Refusal = "sector-size"       // neither 512 nor 4096 bytes
	RefusedMethod         Refusal = "method"            // the sectors' encryption is unknown
	RefusedProtectors     Refusal = "protectors"        // only a TPM or a smart card opens it
)

// RefusedError says which kind of volume was refused, and why. It is
// [ErrUnsupported].
type RefusedError struct {
	Kind   Refusal
	Reason string
}

// Error implements error.
func (e *RefusedError) Error() string { return ErrUnsupported.Error() + ": " + e.Reason }

// Is makes every RefusedError an [ErrUnsupported].
func (e *RefusedError) Is(target error) bool { return target == ErrUnsupported }

func refused(kind Refusal, format string, args ...any) *RefusedError {
	return &RefusedError{kind, fmt.Sprintf(format, args...)}
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// Class sorts errors by what is wrong, for callers that only need an exit code
// or a picture.
type Class int

// The classes of errors.
const (
	ClassOther        Class = iota // input and output, bad options, wiped keys
	ClassNotBitLocker              // something else than a BitLocker volume
	ClassRefused                   // a kind of volume that is not opened here
	ClassDamaged                   // damaged beyond all metadata copies, or truncated
	ClassWrongKey                  // the credential opens no protector of the volume
)

// ClassOf returns the class of an error of this package.
func ClassOf(err error) Class {
	switch {
	case errors.Is(err, ErrNotBitLocker):
		return ClassNotBitLocker
	case errors.Is(err, ErrUnsupported):
		return ClassRefused
	case errors.Is(err, ErrDamaged), errors.Is(err, ErrTruncated):
		return ClassDamaged
	case errors.Is(err, ErrWrongKey), errors.Is(err, ErrNoProtector):
		return ClassWrongKey
	}
	return ClassOther
}
