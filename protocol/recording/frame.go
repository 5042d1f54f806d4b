package recording

import "time"

// Version is the format version.
const Version = 1

// FrameKind is what a frame holds.
type FrameKind byte

// The kinds of frame, with the type that each decodes to.
const (
	FrameMeta    FrameKind = 1 // [Meta]
	FrameOpen    FrameKind = 2 // [Open]
	FrameOutput  FrameKind = 3 // [Output]
	FrameResize  FrameKind = 4 // [Resize]
	FrameClose   FrameKind = 5 // [Close]
	FrameCommand FrameKind = 6 // [Command]
	FrameFile    FrameKind = 7 // [FileEvent]
	FrameWatch   FrameKind = 8 // [Watch]
	FrameEnd     FrameKind = 9 // the envelope of an [End]
)

// Limits, in bytes.
const (
	// MaxPayload is the longest payload of a frame.
	MaxPayload = 124 << 10
	// MaxText is the longest text of an event, such as a path.
	MaxText = 4096
	// MaxOutput is the longest piece of output in one frame.
	MaxOutput = 32 << 10
	// MaxPlain is how much output is recorded of a channel without a terminal.
	MaxPlain = 64 << 10

	maxNames = 16 // watchers of one frame
)

// Frame is one entry of a recording.
type Frame struct {
	Kind    FrameKind
	Time    time.Time // to the microsecond; never before the frame before it
	Payload []byte
}

// Body is what a frame holds: [Meta], [Open], [Output], [Resize], [Close],
// [Command], [FileEvent], [Watch] or [End].
type Body interface {
	kind() FrameKind
	check() error
}

// Open says that a channel was opened. Channels have names that no other
// channel of the recording has had.
type Open struct {
	Channel  string `json:"channel"`
	Terminal bool   `json:"terminal"` // false: the output of a command without one
	Columns  int    `json:"columns"`
	Rows     int    `json:"rows"`

	Continued bool `json:"continued,omitempty"` // opened in an earlier part: this is how it stands
}

// Output is what a channel showed. A channel without a terminal is recorded up
// to [MaxPlain] bytes, its [Close] tells the rest.
type Output struct {
	Channel string
	Data    []byte
}

// Resize says that the window of a terminal changed.
type Resize struct {
	Channel string `json:"channel"`
	Columns int    `json:"columns"`
	Rows    int    `json:"rows"`
}

// Close says that a channel was closed, and what went through it in all, in
// earlier parts too.
type Close struct {
	Channel string `json:"channel"`
	Bytes   int64  `json:"bytes"`  // of output, as it was sent
	SHA256  string `json:"sha256"` // hex, of the output as it is recorded, secrets masked, beyond MaxPlain too
}

// Command is a command line, before it runs.
type Command struct {
	Channel string `json:"channel"`
	Line    string `json:"line"`
}

// Watch says who watches from now on.
type Watch struct {
	Names []string `json:"names"`
}

func (Meta) kind() FrameKind      { return FrameMeta }
func (Open) kind() FrameKind      { return FrameOpen }
func (Output) kind() FrameKind    { return FrameOutput }
func (Resize) kind() FrameKind    { return FrameResize }
func (Close) kind() FrameKind     { return FrameClose }
func (Command) kind() FrameKind   { return FrameCommand }
func (FileEvent) kind() FrameKind { return FrameFile }
func (Watch) kind() FrameKind     { return FrameWatch }
