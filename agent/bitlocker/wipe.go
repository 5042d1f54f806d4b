package bitlocker

import (
	"crypto/cipher"
	"reflect"
)

// wipeBlock overwrites the key schedule inside an AES block, which begins with
// the key itself. The standard library has no way to do so; the pointed-to value
// as a whole is settable by reflection, although its fields are not.
func wipeBlock(b cipher.Block) {
	if v := reflect.ValueOf(b); v.Kind() == reflect.Pointer && !v.IsNil() {
		v.Elem().SetZero()
	}
}

// withCleanStack runs f and leaves none of f's dead stack frames behind: they
// can hold registers with keys, saved when the runtime preempted the goroutine.
// The stack is grown first, so that no half-used one is given back while f runs.
func withCleanStack(f func()) {
	clearStack()
	defer clearStack()
	f()
}

// clearStack overwrites the stack below the caller's frame, deeper than
// anything in this package reaches.
//
//go:noinline
func clearStack() {
	var frames [8 << 10]byte
	overwrite(frames[:])
}

//go:noinline
func overwrite(b []byte) { clear(b) }
