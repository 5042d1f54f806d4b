package copyjob

import (
	"sync/atomic"
	"time"
)

// Progress counts the files and bytes of a job. Those of earlier runs count as
// done.
type Progress struct {
	FilesTotal, FilesDone, FilesErrored int64
	BytesTotal, BytesDone               int64 // of the files that can be copied
	BytesPerSecond                      int64 // over the last seconds
}

const (
	// tellEvery is how often progress is told of, at most.
	tellEvery = time.Second
	// rateOver is the time over which the rate is measured.
	rateOver = 10 * time.Second
)

// meter measures how fast bytes go out. sent is added to by many; the rest
// belongs to one goroutine.
type meter struct {
	sent    atomic.Int64
	samples []sample // oldest first, over about rateOver
}

type sample struct {
	at   time.Time
	sent int64
}

// rate returns the bytes sent a second, lately.
func (m *meter) rate(now time.Time) int64 {
	for len(m.samples) > 1 && now.Sub(m.samples[0].at) > rateOver {
		m.samples = m.samples[1:]
	}
	m.samples = append(m.samples, sample{now, m.sent.Load()})
	first, last := m.samples[0], m.samples[len(m.samples)-1]
	if seconds := last.at.Sub(first.at).Seconds(); seconds > 0 {
		return int64(float64(last.sent-first.sent) / seconds)
	}
	return 0
}
