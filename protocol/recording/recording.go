// Package recording is the format in which a device records a support session
// or the use of its shares: a file of frames, each bound to all before it,
// closed with the signature of the node. A long one has several parts, each such
// a file and bound to the one before.
//
// Its rules:
//
//   - A recording is a magic line and frames ([Frame]); the first is the
//     [Meta], the last the [End]. Each is followed by the hash of the chain up
//     to it, so a changed frame is found and named.
//   - The End is a DSSE envelope (package approval) signed with the node's
//     enrolled key, over the hash of the chain before it, its length, the counts
//     and the reason. Without it a recording is a beginning and nothing more.
//   - A part that goes on is closed as [EndContinued] and names the next, whose
//     Meta names it and its digest: none can be taken out or exchanged unseen.
//   - What is typed is not recorded: terminals show what is meant to be seen,
//     and each command line is a frame of its own.
//   - What is read is bounded, and re-encodes to the same bytes.
//
// The package is pure: it reads no clock, file or network. SPEC.md beside it is
// precise enough to write another verifier from.
package recording

import (
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// Kind is what is recorded.
type Kind string

// The kinds of recording.
const (
	Session Kind = "session" // all SSH channels of one support session on one node
	Shares  Kind = "shares"  // what SMB and NFS clients did during one lease
)

// Reason is why a recording ended.
type Reason string

// The reasons.
const (
	EndDone     Reason = "end"              // the engineer was done, or the session's time was over
	EndKilled   Reason = "killed"           // an approver killed the session
	EndDisabled Reason = "disabled"         // the session was disabled
	EndRevoked  Reason = "revoked"          // the approval was revoked
	EndLease    Reason = "lease-end"        // the lease ended
	EndDeadMan  Reason = "dead-man"         // the control plane was not heard of for too long
	EndAgent    Reason = "agent-died"       // found unclosed when the agent started
	EndFailed   Reason = "recording-failed" // the recording could not go on, so neither could the session

	// EndContinued: nothing ended, it was long enough and goes on in [End].Next.
	EndContinued Reason = "continued"
)

// Meta is the first frame of a recording, or of a part of one: whose it is.
type Meta struct {
	V           int                `json:"v"`           // format version, always [Version]
	ID          string             `json:"id"`          // "REC-" and 32 hexadecimal digits
	Kind        Kind               `json:"kind"`        // session or shares
	Node        string             `json:"node"`        // "<serial>/<n>"
	Session     protocol.SessionID `json:"session"`     // "" if there is none
	Request     protocol.RequestID `json:"request"`     // under which the node was unlocked at the start; "" if it was not
	Engineer    protocol.Person    `json:"engineer"`    // who was let in
	EngineerKey string             `json:"engineerKey"` // fingerprint of their SSH key, "SHA256:…"
	Ticket      protocol.TicketID  `json:"ticket"`
	Started     time.Time          `json:"started"` // to the microsecond, UTC
	Continues   Continues          `json:"continues,omitzero"`
}

// Continues says what a part goes on with. The first part, which may be the only
// one, has none.
type Continues struct {
	Recording string          `json:"recording"` // its first part: what the whole is called
	Part      int             `json:"part"`      // the number of this one, from 2 on
	Before    string          `json:"before"`    // the part before
	Digest    approval.Digest `json:"digest"`    // of all bytes of that, "sha256:…"
}

// Whole returns the id of the first part, which is the name of all parts.
func (m Meta) Whole() string {
	if m.Continues.Part == 0 {
		return m.ID
	}
	return m.Continues.Recording
}

// Part returns the number of the part, from 1 on.
func (m Meta) Part() int { return max(1, m.Continues.Part) }

// Via is the way on which an operation came in.
type Via string

// The ways.
const (
	ViaShell Via = "shell"
	ViaSFTP  Via = "sftp"
	ViaSCP   Via = "scp"
	ViaSMB   Via = "smb"
	ViaNFS   Via = "nfs"
)

// Op is an operation on a file.
type Op string

// The operations.
const (
	OpOpen     Op = "open"
	OpRead     Op = "read"
	OpWrite    Op = "write"
	OpClose    Op = "close"
	OpCreate   Op = "create"
	OpRename   Op = "rename"
	OpRemove   Op = "remove"
	OpMkdir    Op = "mkdir"
	OpRmdir    Op = "rmdir"
	OpTruncate Op = "truncate"
	OpSetattr  Op = "setattr"
	OpList     Op = "list"
	OpStat     Op = "stat"
	OpLink     Op = "link"
	OpSymlink  Op = "symlink"
	OpConnect  Op = "connect"    // a client came to a share
	OpLeave    Op = "disconnect" // and left it
)

// FileEvent is one operation on a file of a share. Bytes of a name that are not
// UTF-8 are written as \xNN, and text longer than [MaxText] is cut, when it is
// recorded.
type FileEvent struct {
	Time   time.Time `json:"time"`             // of the operation; zero: when it was recorded
	Via    Via       `json:"via"`              // the way it came in
	Op     Op        `json:"op"`               // what was done
	Share  string    `json:"share"`            // e.g. contosodata_BlockBlob
	Path   string    `json:"path"`             // below the share, slash separated
	To     string    `json:"to,omitempty"`     // of a rename: "<share>/<path>" it went to
	Size   int64     `json:"size"`             // bytes read or written, or of the file at close; -1 unknown
	SHA256 string    `json:"sha256,omitempty"` // hex, of what was transferred whole; "" unknown
	Client string    `json:"client,omitempty"` // address or channel
	Error  string    `json:"error,omitempty"`  // "" when it succeeded
}
