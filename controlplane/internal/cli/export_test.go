package cli

// NewRoot is the whole command.
var NewRoot = newRoot
