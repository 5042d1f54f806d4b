package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// How fast a recording can be played.
const (
	minSpeed = 0.1
	maxSpeed = 100.0
)

// player shows a recording on a terminal, or as text.
type player struct {
	screen  *screen
	notes   io.Writer // for what is not of the recording
	tty     bool
	channel string        // that is wanted, "" for any
	speed   float64       // 0: as it comes
	maxIdle time.Duration // 0: as long as it was
	keys    <-chan byte   // nil without a keyboard
	paused  bool

	current string          // the channel on the screen
	plain   bool            // it is no terminal
	open    map[string]bool // channels, with whether they have terminals
	seen    []string        // all that were opened
	last    time.Time
	parts   int // that have begun
}

// newPlayer returns a player to the command's output that shows what comes as it
// comes.
func newPlayer(cmd *cobra.Command, channel string) *player {
	tty := isTerminal(cmd.OutOrStdout())
	return &player{screen: &screen{out: cmd.OutOrStdout(), plain: !tty}, notes: cmd.ErrOrStderr(), tty: tty, channel: channel, open: map[string]bool{}}
}

// controls has keys steer the player, if there is a keyboard and a terminal; else
// all is written at once. restore gives the terminal back.
func (p *player) controls(cmd *cobra.Command) (restore func() error) {
	if !p.tty {
		p.speed = 0
		return func() error { return nil }
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return func() error { return nil }
	}
	state, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return func() error { return nil } // plays without keys
	}
	keys := make(chan byte)
	go func() { // ends with the process: a read of a terminal cannot be taken back
		var b [1]byte
		for {
			if _, err := in.Read(b[:]); err != nil {
				return
			}
			keys <- b[0]
		}
	}()
	p.keys = keys
	return func() error { return term.Restore(int(in.Fd()), state) }
}

// errQuit says that somebody pressed q.
var errQuit = errors.New("quit")

// play shows a recording to its end.
func (p *player) play(ctx context.Context, r io.Reader) error {
	in := recording.NewParts(r)
	for {
		f, b, err := in.Next()
		if errors.Is(err, io.EOF) {
			p.line("-- %s", ended(in.Part()))
			return p.missed()
		}
		if err != nil {
			return damaged(err)
		}
		if p.wants(b) {
			if err := p.wait(ctx, f.Time); errors.Is(err, errQuit) {
				return nil
			} else if err != nil {
				return err
			}
		}
		if err := p.show(f, b); err != nil {
			return err
		}
	}
}

// missed is the error of a channel that was wanted and that there was not.
func (p *player) missed() error {
	switch {
	case p.channel == "" || slices.Contains(p.seen, p.channel):
		return nil
	case len(p.seen) == 0:
		return protocol.Errorf(protocol.CodeNotFound, "the recording has no channel %q: it has none", p.channel)
	}
	return protocol.Errorf(protocol.CodeNotFound, "the recording has no channel %q: it has %s", p.channel, strings.Join(p.seen, ", "))
}

// wants reports whether something is shown for b, and so waited for.
func (p *player) wants(b recording.Body) bool {
	switch b := b.(type) {
	case recording.Output:
		return p.onScreen(b.Channel) || p.current == "" && p.wanted(b.Channel)
	case recording.Command:
		return p.current == "" && p.wanted(b.Channel)
	case recording.FileEvent:
		return p.current == "" && p.channel == ""
	}
	return false
}

func (p *player) wanted(channel string) bool { return p.channel == "" || p.channel == channel }

func (p *player) onScreen(channel string) bool { return p.current == channel }

// take puts a channel on the screen if none is there.
func (p *player) take(channel string) {
	if terminal, ok := p.open[channel]; ok && p.current == "" && p.wanted(channel) {
		p.current, p.plain = channel, !terminal
	}
}

// wait lets the time pass that passed before a frame, as fast as is wanted, and
// takes keys meanwhile.
func (p *player) wait(ctx context.Context, at time.Time) error {
	idle := at.Sub(p.last)
	first := p.last.IsZero()
	p.last = at
	if p.maxIdle > 0 {
		idle = min(idle, p.maxIdle)
	}
	if p.speed == 0 || first {
		idle = 0
	}
	for began := time.Now(); ; began = time.Now() {
		var over <-chan time.Time
		if !p.paused {
			left := time.Duration(float64(idle) / max(p.speed, minSpeed))
			if left <= 0 && p.keys == nil {
				return ctx.Err()
			}
			over = time.After(max(0, left))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-over:
			return nil
		case key := <-p.keys:
			if !p.paused {
				idle -= time.Duration(float64(time.Since(began)) * p.speed)
			}
			if step, err := p.key(key); err != nil || step {
				return err
			}
		}
	}
}

// key does what a key says: step reports that the next frame is to be shown.
func (p *player) key(key byte) (step bool, err error) {
	switch key {
	case ' ':
		p.paused = !p.paused
	case '.':
		p.paused = true
		return true, nil
	case '+', '=':
		p.speed = min(maxSpeed, p.speed*2)
	case '-', '_':
		p.speed = max(minSpeed, p.speed/2)
	case 'q', 3: // Ctrl-C
		return false, errQuit
	}
	return false, nil
}

// show shows a frame.
func (p *player) show(f recording.Frame, b recording.Body) error {
	switch b := b.(type) {
	case recording.Meta:
		if p.parts++; p.parts > 1 { // it goes on, whatever is on the screen
			return nil
		}
		if part := b.Part(); part > 1 {
			p.line("-- part %d of recording %s", part, b.Whole())
		}
		p.line("-- %s %s on %s by %s, ticket %s, from %s", b.Kind, b.Session, b.Node, b.Engineer, b.Ticket, protocol.Stamp(b.Started))
	case recording.Open:
		if p.open[b.Channel] = b.Terminal; !slices.Contains(p.seen, b.Channel) {
			p.seen = append(p.seen, b.Channel)
		}
		if p.take(b.Channel); p.onScreen(b.Channel) {
			p.window(b.Columns, b.Rows)
		}
	case recording.Resize:
		if p.onScreen(b.Channel) {
			p.window(b.Columns, b.Rows)
		}
	case recording.Output:
		if p.take(b.Channel); p.onScreen(b.Channel) {
			return p.output(b.Data)
		}
	case recording.Close:
		delete(p.open, b.Channel)
		if p.onScreen(b.Channel) {
			p.current = ""
			err := p.screen.restore()
			p.begin()
			return err
		}
	case recording.Command:
		if (p.current == "" || p.plain && p.onScreen(b.Channel)) && p.wanted(b.Channel) {
			p.line("-- %s %s: %s", protocol.Clock(f.Time), b.Channel, b.Line)
		}
	case recording.FileEvent:
		if (p.current == "" || p.plain) && p.channel == "" {
			p.line("-- %s %s %s %s%s", protocol.Clock(b.Time), b.Via, b.Op, pathOf(b), failed(b))
		}
	case recording.Watch:
		if p.current == "" && len(b.Names) > 0 {
			p.line("-- %s watched by %s", protocol.Clock(f.Time), strings.Join(b.Names, ", "))
		}
	}
	return nil
}

func failed(e recording.FileEvent) string {
	if e.Error == "" {
		return ""
	}
	return ": " + e.Error
}

// output writes what a channel showed. What is no terminal begins lines by itself.
func (p *player) output(data []byte) error {
	if p.plain && p.tty {
		data = newlines(data)
	}
	_, err := p.screen.Write(data)
	return err
}

func newlines(data []byte) []byte {
	out := make([]byte, 0, len(data)+16)
	for _, b := range data {
		if b == '\n' {
			out = append(out, '\r')
		}
		out = append(out, b)
	}
	return out
}

// line writes a line of the player's own, never behind what a channel left in
// the line. A terminal may be raw.
func (p *player) line(format string, args ...any) {
	p.begin()
	fmt.Fprint(p.screen.out, printable(fmt.Sprintf(format, args...))+p.newline())
}

// begin ends a line that a channel left.
func (p *player) begin() {
	if p.screen.midline {
		p.screen.midline = false
		fmt.Fprint(p.screen.out, p.newline())
	}
}

func (p *player) newline() string {
	if p.tty {
		return "\r\n"
	}
	return "\n"
}

// window says so when a recorded window is larger than the one it is shown in.
func (p *player) window(columns, rows int) {
	f, ok := p.screen.out.(*os.File)
	if !ok || !p.tty {
		return
	}
	if w, h, err := term.GetSize(int(f.Fd())); err == nil && (w < columns || h < rows) {
		fmt.Fprintf(p.notes, "-- recorded in a window of %d by %d, yours has %d by %d: make it larger\r\n", columns, rows, w, h)
	}
}
