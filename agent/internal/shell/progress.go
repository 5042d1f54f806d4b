package shell

import (
	"fmt"
	"time"
)

// progress shows at a terminal how far a long piece of work is.
type progress struct {
	console *Console // nil: nothing is shown
	name    string
	total   int64 // 0: not known
	done    int64
	began   time.Time
	shown   time.Time
}

// progressTime is how often it is shown, and after how long first.
const progressTime = time.Second

// progress begins a piece of work of so many bytes.
func (t *task) progress(name string, total int64) *progress {
	now := time.Now()
	return &progress{console: t.console, name: Visible(name), total: total, began: now, shown: now}
}

func (p *progress) add(n int64) {
	p.done += n
	now := time.Now()
	if p.console == nil || now.Sub(p.shown) < progressTime {
		return
	}
	p.shown = now
	line := fmt.Sprintf("%s  %s", p.name, human(p.done))
	if p.total > 0 {
		line += fmt.Sprintf(" of %s, %d%%", human(p.total), min(100, 100*p.done/p.total))
	}
	p.console.show(fmt.Sprintf("%s, %s/s", line, human(int64(float64(p.done)/now.Sub(p.began).Seconds()))))
}

// end takes the line away.
func (p *progress) end() {
	if p.console != nil && p.shown != p.began {
		p.console.show("")
	}
}
