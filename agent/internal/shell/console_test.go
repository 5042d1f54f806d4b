package shell

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// terminal is a console with somebody at it.
type terminal struct {
	t      *testing.T
	typing *io.PipeWriter

	mu   sync.Mutex // guards what follows
	data []byte
	seen int
}

// interact runs a shell at a terminal until the test ends it with exit.
func (s *scene) interact() (term *terminal, wait func() int) {
	in, typing := io.Pipe()
	term = &terminal{t: s.t, typing: typing}
	c := NewConsole(struct {
		io.Reader
		io.Writer
	}{in, term}, 80, 24)
	sh := s.shell(nil, nil)
	var work sync.WaitGroup
	status := -1
	work.Go(func() { c.Pump(s.t.Context()) })
	work.Go(func() {
		status = sh.Interact(s.t.Context(), c, func() string { return sh.dir + "> " })
		typing.Close()
	})
	return term, func() int {
		work.Wait()
		return status
	}
}

func (s *terminal) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data = append(s.data, p...)
	return len(p), nil
}

// typed types keys and waits for text that was not awaited before.
func (s *terminal) typed(keys, want string) {
	s.t.Helper()
	if keys != "" {
		io.WriteString(s.typing, keys)
	}
	for range 500 {
		s.mu.Lock()
		i := bytes.Index(s.data[s.seen:], []byte(want))
		if i >= 0 {
			s.seen += i + len(want)
		}
		s.mu.Unlock()
		if i >= 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.t.Fatalf("no %q in %q", want, s.data)
}

func TestInterrupt(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadOnly)
	commands["wait"] = command{usage: "wait", run: func(ctx context.Context, _ *task, _ []string) error {
		<-ctx.Done()
		return ctx.Err()
	}}
	defer delete(commands, "wait")
	term, wait := s.interact()
	term.typed("", "/> ")
	term.typed("not this\x03pwd\r", "\r\n/\r\n") // Ctrl-C empties the line
	term.typed("wait; bash\r", "wait; bash\r\n")
	time.Sleep(100 * time.Millisecond)
	term.typed("\x03", "wait: interrupted\r\n")
	term.typed("cd /shares/contoso_BlockBlob\r", "/shares/contoso_BlockBlob> ") // the line did not go on
	term.typed("exit\r", "exit\r\n")
	if status := wait(); status != 0 {
		t.Errorf("status %d", status)
	}
	if bytes.Contains(term.data, []byte("bash\": no such command")) {
		t.Error("the line went on after Ctrl-C")
	}
}
