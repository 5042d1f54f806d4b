package recorder

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"slices"
	"sync"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// minSecret is the shortest secret that is masked, in bytes: shorter ones would
// mask what is none.
const minSecret = 6

// Terminal records what one channel shows. It is safe for concurrent use.
type Terminal struct {
	recording *Recording
	channel   string
	plain     bool // not a terminal: recorded up to recording.MaxPlain

	mu       sync.Mutex // guards what follows
	masker   masker
	sum      hash.Hash
	bytes    int64 // of output
	recorded int64 // of them
	closed   bool
	err      error
}

// Terminal begins to record a channel with a terminal, of a name that no other
// channel of the recording has had. If that fails, so does its first Output.
func (r *Recording) Terminal(channel string, columns, rows int) *Terminal {
	return r.channel(recording.Open{Channel: channel, Terminal: true, Columns: columns, Rows: rows})
}

// Plain begins to record a channel without a terminal, as of `ssh host command`:
// the beginning of its output, and at the end the length and hash of all of it.
func (r *Recording) Plain(channel string) *Terminal {
	return r.channel(recording.Open{Channel: channel})
}

func (r *Recording) channel(o recording.Open) *Terminal {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := &Terminal{recording: r, channel: o.Channel, plain: !o.Terminal, sum: sha256.New()}
	if r.channels[o.Channel] {
		t.err = protocol.Errorf(protocol.CodeConflict, "the recording has a channel %q already", o.Channel)
		return t
	}
	r.channels[o.Channel] = true
	t.err = r.appendLocked(o)
	return t
}

// Output records what is about to be shown.
func (t *Terminal) Output(p []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil && t.closed {
		t.err = protocol.Errorf(protocol.CodeConflict, "channel %q is closed", t.channel)
	}
	if t.err != nil {
		return t.err
	}
	t.bytes += int64(len(p))
	return t.recordLocked(t.masker.write(p, t.recording.store.hidden()))
}

// recordLocked records output in which the secrets are masked.
func (t *Terminal) recordLocked(p []byte) error {
	t.sum.Write(p)
	if t.plain {
		p = p[:min(int64(len(p)), recording.MaxPlain-t.recorded)]
	}
	t.recorded += int64(len(p))
	for chunk := range slices.Chunk(p, recording.MaxOutput) {
		if t.err = t.recording.append(recording.Output{Channel: t.channel, Data: chunk}); t.err != nil {
			return t.err
		}
	}
	return nil
}

// Command records a command line of this channel, before it runs.
func (t *Terminal) Command(line string) error { return t.recording.Command(t.channel, line) }

// Resize records that the window changed.
func (t *Terminal) Resize(columns, rows int) error {
	return t.recording.append(recording.Resize{Channel: t.channel, Columns: columns, Rows: rows})
}

// Close records the end of the channel. Closing again does nothing.
func (t *Terminal) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.err != nil {
		return t.err
	}
	t.closed = true
	if err := t.recordLocked(t.masker.rest()); err != nil {
		return err
	}
	return t.recording.append(recording.Close{Channel: t.channel, Bytes: t.bytes, SHA256: hex.EncodeToString(t.sum.Sum(nil))})
}

// Masked returns text with the secrets masked, for what is recorded elsewhere.
func (s *Store) Masked(text string) string {
	var m masker
	return string(append(m.write([]byte(text), s.hidden()), m.rest()...))
}

// masker masks secrets in what is written piece by piece. It keeps back the
// beginning of a secret until it is known whether it is one.
type masker struct{ held []byte }

func (m *masker) write(p []byte, secrets []string) []byte {
	p = append(m.held, p...)
	for _, secret := range secrets {
		mask(p, secret)
	}
	keep := 0
	for _, secret := range secrets {
		keep = max(keep, begun(p, secret))
	}
	m.held = slices.Clone(p[len(p)-keep:])
	return p[:len(p)-keep]
}

// rest returns what was kept back: it is no secret.
func (m *masker) rest() []byte {
	rest := m.held
	m.held = nil
	return rest
}

// mask overwrites every place of secret in p with asterisks.
func mask(p []byte, secret string) {
	for at := 0; ; {
		i := bytes.Index(p[at:], []byte(secret))
		if i < 0 {
			return
		}
		for j := range len(secret) {
			p[at+i+j] = '*'
		}
		at += i + len(secret)
	}
}

// begun returns how many bytes at the end of p are a beginning of secret.
func begun(p []byte, secret string) int {
	for n := min(len(p), len(secret)-1); n > 0; n-- {
		if string(p[len(p)-n:]) == secret[:n] {
			return n
		}
	}
	return 0
}
