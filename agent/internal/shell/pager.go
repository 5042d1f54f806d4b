package shell

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// Bounds of the pager.
const (
	maxPaged = 64 << 20 // bytes of text that it keeps
	pageTab  = 8
)

func less(ctx context.Context, t *task, args []string) error {
	if t.console == nil {
		return t.eachInput(ctx, args, func(_ string, r io.Reader) error { return pour(t.out, r) })
	}
	return t.eachInput(ctx, args, func(name string, r io.Reader) error {
		p := &pager{console: t.console, name: Visible(name), text: bufio.NewReaderSize(r, 64<<10)}
		if name == "-" {
			p.name = "input"
		}
		return p.run(ctx)
	})
}

// pager shows text page by page. It reads no further than it is looked at.
type pager struct {
	console *Console
	name    string
	text    *bufio.Reader
	lines   []string // read so far, as they are shown
	size    int      // of lines
	whole   bool     // all was read
	top     int      // the first line on the screen
	search  *regexp.Regexp
	note    string // instead of the status, once
}

// want reads until there are n lines, if there are.
func (p *pager) want(n int) error {
	for len(p.lines) < n && !p.whole {
		line, err := p.text.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			err = nil
		}
		if len(line) > 0 {
			p.lines = append(p.lines, shownLine(line))
			p.size += len(line)
		}
		if p.size > maxPaged {
			p.note, p.whole = fmt.Sprintf("the first %d MiB; use tail for more", maxPaged>>20), true
		}
		if err == io.EOF {
			p.whole = true
		} else if err != nil {
			return err
		}
	}
	return nil
}

// shownLine is a line as the screen has it.
func shownLine(line []byte) string {
	text := strings.TrimRight(string(visibleText(bytes.TrimRight(line, "\r\n"))), "\n")
	if !strings.Contains(text, "\t") {
		return text
	}
	var b strings.Builder
	column := 0
	for _, r := range text {
		if r == '\t' {
			n := pageTab - column%pageTab
			b.WriteString(strings.Repeat(" ", n))
			column += n
			continue
		}
		b.WriteRune(r)
		column++
	}
	return b.String()
}

func (p *pager) run(ctx context.Context) error {
	defer p.console.show("")
	for {
		columns, rows := p.console.size()
		page := max(1, rows-1)
		if err := p.want(p.top + page + 1); err != nil {
			return err
		}
		if p.whole && len(p.lines) <= page && p.top == 0 && p.search == nil && p.note == "" { // all of it is seen
			p.draw(columns, len(p.lines), false)
			return nil
		}
		p.draw(columns, page, true)
		key, err := p.console.keys.key(ctx)
		if err != nil {
			return err
		}
		over, err := p.press(ctx, key, page)
		if over || err != nil {
			return err
		}
	}
}

// draw shows the page, and a status below it.
func (p *pager) draw(columns, page int, status bool) {
	var b strings.Builder
	if status {
		b.WriteString("\x1b[H\x1b[2J")
	}
	for i := range page {
		line := "~"
		if p.top+i < len(p.lines) {
			line = p.lines[p.top+i]
		}
		if runes := []rune(line); len(runes) > columns {
			line = string(runes[:max(0, columns-1)]) + ">"
		}
		b.WriteString(line + "\r\n")
	}
	if status {
		text := fmt.Sprintf("%s, line %d", p.name, p.top+1)
		if p.whole {
			text += fmt.Sprintf(" of %d", len(p.lines))
			if p.top+page >= len(p.lines) {
				text += " (END)"
			}
		}
		if p.note != "" {
			text, p.note = p.note, ""
		}
		if runes := []rune(text); len(runes) > columns {
			text = "<" + string(runes[len(runes)-max(0, columns-1):]) // where one is stands last
		}
		b.WriteString("\x1b[7m" + text + "\x1b[m")
	}
	io.WriteString(p.console.keys, b.String())
}

// press does what a key says.
func (p *pager) press(ctx context.Context, key byte, page int) (over bool, err error) {
	if key == escape {
		if key, err = p.special(ctx); err != nil {
			return false, err
		}
	}
	switch key {
	case 'q', 'Q':
		return true, nil
	case ' ', 'f':
		return false, p.forward(page, page)
	case '\r', '\n', 'j':
		return false, p.forward(1, page)
	case 'b':
		p.top = max(0, p.top-page)
	case 'k', 'y':
		p.top = max(0, p.top-1)
	case 'g', '<':
		p.top = 0
	case 'G', '>':
		return false, p.forward(1<<40, page)
	case '/':
		return false, p.ask(ctx)
	case 'n':
		return false, p.next(1)
	case 'N':
		return false, p.next(-1)
	case 'h':
		p.note = "space b: page   j k: line   g G: beginning, end   /TEXT n N: search   q: end"
	}
	return false, nil
}

// special reads what arrow and page keys send, and returns the letter that does
// the same.
func (p *pager) special(ctx context.Context) (byte, error) {
	bracket, err := p.console.keys.key(ctx)
	if err != nil || bracket != '[' && bracket != 'O' {
		return 0, err
	}
	key, err := p.console.keys.key(ctx)
	if err != nil {
		return 0, err
	}
	if key == '5' || key == '6' {
		if _, err := p.console.keys.key(ctx); err != nil { // ~
			return 0, err
		}
	}
	return map[byte]byte{'A': 'k', 'B': 'j', '5': 'b', '6': ' ', 'H': 'g', 'F': 'G'}[key], nil
}

// forward goes on by so many lines, to the last page at most.
func (p *pager) forward(n, page int) error {
	if err := p.want(p.top + n + page); err != nil {
		return err
	}
	p.top = max(0, min(p.top+n, len(p.lines)-page))
	return nil
}

// ask reads what to search for, and goes there.
func (p *pager) ask(ctx context.Context) error {
	var text []byte
	for {
		p.console.show("/" + Visible(string(text)))
		key, err := p.console.keys.key(ctx)
		switch {
		case err != nil:
			return err
		case key == escape:
			return nil
		case key == '\r' || key == '\n':
			search, err := regexp.Compile(string(text))
			if err != nil {
				p.note = "this is no regular expression"
				return nil
			}
			p.search = search
			return p.next(1)
		case key == backspace || key == delete7:
			text = text[:max(0, len(text)-1)]
		case key >= 0x20 && len(text) < 200:
			text = append(text, key)
		}
	}
}

// next goes to the next line that was searched for, or with -1 to the one before.
func (p *pager) next(step int) error {
	if p.search == nil {
		p.note = "search with / first"
		return nil
	}
	for i := p.top + step; i >= 0; i += step {
		if err := p.want(i + 1); err != nil {
			return err
		}
		if i >= len(p.lines) {
			break
		}
		if p.search.MatchString(p.lines[i]) {
			p.top = i
			return nil
		}
	}
	p.note = "not found"
	return nil
}
