// Command lockbox is the command line of Customer Lockbox for Data Box.
package main

import (
	"os"

	"github.com/databox-lockbox/lockbox/controlplane/internal/cli"
)

func main() { os.Exit(cli.Main()) }
