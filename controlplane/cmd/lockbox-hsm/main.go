//go:build cgo

// Command lockbox-hsm wraps keys in a hardware security module for lockboxd.
package main

import (
	"os"

	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/hsm/token"
)

func main() { os.Exit(token.Main()) }
