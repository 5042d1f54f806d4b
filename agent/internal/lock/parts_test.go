package lock

import (
	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/agent/internal/disk"
	"github.com/databox-lockbox/lockbox/agent/internal/journal"
	"github.com/databox-lockbox/lockbox/agent/internal/state"
)

// The real parts fit.
var (
	_ Disk    = (*disk.Opened)(nil)
	_ Jobs    = (*copyjob.Job)(nil)
	_ Journal = (*journal.Journal)(nil)
	_ State   = (*state.Dir)(nil)
)
