package bitlocker

// withCleanStack runs f and leaves none of f's dead stack frames behind, in which
// hashes return their results by value.
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
