package shell

import (
	"bytes"
	"context"
	"io"
	"strings"
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
	for range 1500 {
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
	running := make(chan struct{})
	commands["wait"] = command{usage: "wait", run: func(ctx context.Context, _ *task, _ []string) error {
		close(running)
		<-ctx.Done()
		return ctx.Err()
	}}
	defer delete(commands, "wait")
	term, wait := s.interact()
	term.typed("", "/> ")
	term.typed("not this\x03pwd\r", "\r\n/\r\n") // Ctrl-C empties the line
	term.typed("wait; bash\r", "wait; bash\r\n")
	<-running
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

func TestHistoryAndCompletion(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadOnly)
	s.write("photos/a b's.txt", "spaces")
	s.write("photos/bad\x1bname", "")
	term, wait := s.interact()
	term.typed("", "/> ")
	term.typed("pw\t\r", "pwd \r\n/\r\n")
	term.typed("\x1b[A\r", "pwd \r\n/\r\n")       // arrow up
	term.typed("cd /sh\tco\tph\t\r", "/photos> ") // folders end with a slash
	term.typed("cat a\t", "a b's.txt  a.txt")     // several: they are shown
	term.typed(" \x08\\ \t\r", "spaces")          // and one, with its spaces and quotes
	term.typed("cat 'a.\t\r", "alpha")
	term.typed("cat b\t", "b")
	term.typed("\x15sha256sum a.t\t| hea\t-c 4\r", "8ed3")
	term.typed("\x15ls no\t\r", "No such file")
	term.typed("exit\r", "exit\r\n")
	if status := wait(); status != 1 {
		t.Errorf("status %d", status)
	}
	if bytes.Contains(term.data, []byte("\x1bname")) {
		t.Error("a name steers the terminal")
	}
}

func TestPager(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadOnly)
	s.write("photos/"+strings.Repeat("n", 100), lines(1, 100))
	s.write("l", lines(1, 100)+"needle \x1b[2J\n"+lines(102, 1000))
	term, wait := s.interact()
	term.typed("cd /shares/contoso_BlockBlob\r", "BlockBlob> ")
	term.typed("less photos/a.txt\r", "alpha\r\n")  // short: at once
	term.typed("less l\r", "\x1b[H\x1b[2Jline 1\r") // 24 rows
	term.typed("", "line 23\r\n\x1b[7ml, line 1\x1b[m")
	term.typed(" ", "line 24\r")
	term.typed("b", "line 1\r")
	term.typed("\x1b[B", "line 2\r") // arrow down
	term.typed("k", "line 1\r")
	term.typed("/need[l]e\r", "needle \uFFFD[2J\r")
	term.typed("n", "not found")
	term.typed("G", "line 1000\r")
	term.typed("", "line 978 of 1000 (END)")
	term.typed("g", "line 1\r")
	term.typed("q", "BlockBlob> ")
	term.typed("find . | less\r", "./photos\r\n") // keys are not what it pages
	term.typed("less l\r", "l, line 1")
	term.typed("\x03", "less: interrupted")
	term.typed("less photos/n*\r", "\x1b[7m<"+strings.Repeat("n", 71)+", line 1\x1b[m") // 80 columns
	term.typed("q", "BlockBlob> ")
	term.typed("ls\r", "Wrong_Folder/  l              photos/\r\n")
	term.typed("exit 0\r", "exit 0\r\n")
	if status := wait(); status != 0 {
		t.Errorf("status %d", status)
	}
}

func TestTypedInput(t *testing.T) {
	s := newScene(t)
	s.unlock(approval.ReadWrite)
	term, wait := s.interact()
	term.typed("cd /shares/contoso_BlockBlob\r", "BlockBlob> ")
	term.typed("cat > typed\r", "cat > typed\r\n")
	term.typed("one\x7fe\rtwo\r\x04", "two\r\n")
	term.typed("cat typed\r", "one\r\ntwo\r\n")
	term.typed("cat > never\r", "never\r\n")
	term.typed("half", "half") // it reads
	term.typed("\x03", "cat: interrupted")
	term.typed("ls never\r", "No such file")
	term.typed("exit 0\r", "exit 0\r\n")
	wait()
}
