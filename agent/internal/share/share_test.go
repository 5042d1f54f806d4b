package share

import (
	"sync"

	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// keptLog keeps what is reported, until told to fail.
type keptLog struct {
	mu     sync.Mutex
	events []recording.FileEvent
	err    error
}

func (l *keptLog) File(e recording.FileEvent) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
	return l.err
}

func (l *keptLog) Failed() <-chan struct{} { return nil }
