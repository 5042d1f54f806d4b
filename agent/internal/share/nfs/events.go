package nfs

import (
	"encoding/json"
	"os"
	"sync"

	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// acknowledged is what the agent answers when an event is recorded.
const acknowledged = '+'

// frame is one line that the server says to the agent. Paths are bytes: names need
// not be UTF-8.
type frame struct {
	recording.FileEvent
	Path  []byte `json:"path"`
	To    []byte `json:"to"`
	Ready bool   `json:"ready,omitempty"`
}

func (f frame) event() recording.FileEvent {
	e := f.FileEvent
	e.Via, e.Path, e.To = recording.ViaNFS, string(f.Path), string(f.To)
	return e
}

// events are the server's end of the way to the record.
type events struct {
	mu   sync.Mutex
	file *os.File
}

// exitUnrecorded is how the server ends when there is no record of what it does.
const exitUnrecorded = 3

// File returns when the event is recorded. Otherwise the process ends: nothing may
// be answered, by any connection.
func (e *events) File(event recording.FileEvent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.say(frame{FileEvent: event, Path: []byte(event.Path), To: []byte(event.To)})
	var answer [1]byte
	if _, err := e.file.Read(answer[:]); err != nil || answer[0] != acknowledged {
		os.Exit(exitUnrecorded)
	}
}

func (e *events) say(f frame) {
	line, err := json.Marshal(f)
	if err == nil {
		_, err = e.file.Write(append(line, '\n'))
	}
	if err != nil {
		os.Exit(exitUnrecorded)
	}
}
