package lock

import (
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells the two times that a lease is held against.
type Clock interface {
	// Now returns the wall clock's time, without a monotonic reading. It may
	// be set back and forth.
	Now() time.Time
	// Boot returns the time since boot, suspension included. Nothing sets it.
	Boot() time.Duration
}

// SystemClock is the machine's own clock.
type SystemClock struct{}

// Now returns the wall clock's time.
func (SystemClock) Now() time.Time { return time.Now().Round(0) }

// Boot returns what CLOCK_BOOTTIME shows.
func (SystemClock) Boot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("lock: internal error: cannot read CLOCK_BOOTTIME: " + err.Error())
	}
	return time.Duration(t.Nano())
}
