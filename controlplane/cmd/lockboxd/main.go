// Command lockboxd is the control plane of Customer Lockbox for Data Box.
package main

import (
	"os"

	"github.com/databox-lockbox/lockbox/controlplane"
)

func main() { os.Exit(controlplane.Main()) }
