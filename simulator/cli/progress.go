package cli

import (
	"context"
	"io"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// progress shows how far long work has come, on a terminal only. The nil progress
// shows nothing.
type progress struct {
	bars  *mpb.Progress
	bar   *mpb.Bar
	stage string
	total int64
}

func newProgress(ctx context.Context, w io.Writer) *progress {
	if !isTerminal(w) {
		return nil
	}
	return &progress{bars: mpb.NewWithContext(ctx, mpb.WithOutput(w), mpb.WithWidth(40))}
}

// report says that done of total bytes of a stage are done.
func (p *progress) report(stage string, done, total int64) {
	if p == nil {
		return
	}
	if stage != p.stage {
		p.finish()
		p.stage, p.total = stage, max(total, 1)
		p.bar = p.bars.AddBar(p.total,
			mpb.PrependDecorators(decor.Name(stage, decor.WC{W: 20, C: decor.DindentRight})),
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f of % .1f"), decor.AverageETA(decor.ET_STYLE_MMSS, decor.WC{W: 8})))
	}
	p.bar.SetCurrent(done)
}

// finish fills the bar of a stage that is over.
func (p *progress) finish() {
	if p.bar != nil {
		p.bar.SetCurrent(p.total) // which completes it, as SetTotal would not
	}
}

// end waits until all that is shown is shown. After an error the bar stops where
// it is.
func (p *progress) end(err error) {
	switch {
	case p == nil:
		return
	case err == nil:
		p.finish()
	case p.bar != nil:
		p.bar.Abort(false)
	}
	p.bars.Wait()
}
