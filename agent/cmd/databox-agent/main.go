// Command databox-agent keeps a Data Box node locked, and unlocks it when the
// customer said yes.
package main

import (
	"os"

	"github.com/databox-lockbox/lockbox/agent"
)

func main() { os.Exit(agent.Main()) }
