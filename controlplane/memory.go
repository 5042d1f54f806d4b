package controlplane

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// protectMemory keeps the memory of this process, where the service's keys are,
// out of core files, and lets only root trace it.
func protectMemory() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("cannot turn off core files: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot turn off core files: %w", err)
	}
	return nil
}
