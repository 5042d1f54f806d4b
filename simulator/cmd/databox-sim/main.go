// Command databox-sim plays the product's story on simulated devices with real
// disks.
package main

import (
	"os"

	"github.com/databox-lockbox/lockbox/simulator/cli"
)

func main() { os.Exit(cli.Main()) }
