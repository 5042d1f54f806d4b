package approval

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"

	"github.com/databox-lockbox/lockbox/protocol"
)

// ChangesStage says when a [Changes] was made.
type ChangesStage string

// The stages. At the relock the disks are closed already, so that one tells of
// what was seen while they were open; the one made when they opened again has
// walked all of them, and closes the answer.
const (
	AtRelock   ChangesStage = "relock"
	AtReopened ChangesStage = "reopened"
)

// MaxChangesParts is how many documents one answer may take.
const MaxChangesParts = 64

// maxPath is the longest path of a file, in bytes, as in package manifest.
const maxPath = 32 << 10

// maxWhys bounds the reasons for what a walk did not reach.
const maxWhys = 16

// ChangeKind is what became of a file.
type ChangeKind string

// The kinds of change.
const (
	Added   ChangeKind = "added"
	Removed ChangeKind = "removed"
	Changed ChangeKind = "changed" // same path, other content; see [Change.Unsure]
	Moved   ChangeKind = "moved"   // other path, same content
)

// Changes is what a node says was touched while it was unlocked for a request:
// one part of how its shares differ from what they were when they opened. The
// node signs it with its enrolled key. All parts of an answer agree in everything
// but Part and List.
type Changes struct {
	Header
	Node          NodeName     `json:"node"`
	NodeKey       []byte       `json:"nodeKey"` // the node's Ed25519 public key, 32 bytes
	RequestDigest Digest       `json:"requestDigest"`
	Stage         ChangesStage `json:"stage"`
	Begun         int64        `json:"begun"`  // Unix seconds: the shares opened
	Ended         int64        `json:"ended"`  // Unix seconds: the node locked
	MadeAt        int64        `json:"madeAt"` // Unix seconds: nothing was looked at after
	Part          int          `json:"part"`   // from 1
	Parts         int          `json:"parts"`
	Before        Walk         `json:"before"`
	After         Walk         `json:"after"` // at the relock, of what was touched only
	Added         int64        `json:"added"` // in all parts, and unlisted
	Removed       int64        `json:"removed"`
	Changed       int64        `json:"changed"`
	Moved         int64        `json:"moved"`
	Unlisted      int64        `json:"unlisted"` // of these, in no part
	List          []Change     `json:"list,omitempty"`
}

// Walk says how much of the shares was looked at.
type Walk struct {
	Files     int64    `json:"files"`
	Bytes     int64    `json:"bytes"`
	Summed    int64    `json:"summed"`        // files whose CRC64 was taken
	Unreached int64    `json:"unreached"`     // files and folders that are known and were not looked at; there may be more below
	Why       []string `json:"why,omitempty"` // what was not reached
}

// Change is what became of one file.
type Change struct {
	Kind   ChangeKind `json:"kind"`
	File   FilePath   `json:"file"`             // where it is; where it was, when removed
	From   *FilePath  `json:"from,omitempty"`   // where it was, when moved
	Before *FileState `json:"before,omitempty"` // not when added
	After  *FileState `json:"after,omitempty"`  // not when removed
	// Unsure says why this is not certain; "" if it is.
	Unsure string `json:"unsure,omitempty"`
}

// FilePath names a file of a node. Exactly one of Path and Raw is set: Raw where
// the bytes of the path are no plain text on one line.
type FilePath struct {
	Disk  protocol.DiskID `json:"disk"`
	Share string          `json:"share"`
	Path  string          `json:"path,omitempty"` // below the share, with slashes
	Raw   []byte          `json:"raw,omitempty"`
}

// FileState is what a file was like.
type FileState struct {
	Size     int64  `json:"size"`
	Modified int64  `json:"modified,omitempty"` // Unix seconds; 0: at or before 1970
	CRC64    string `json:"crc64,omitempty"`    // of Azure Storage, 16 hexadecimal digits; "" if it was not taken
}

// NewFilePath returns the name of a file, path being any bytes.
func NewFilePath(disk protocol.DiskID, share, path string) FilePath {
	if checkText([]byte(strings.ReplaceAll(path, `\`, `\\`))) != nil {
		return FilePath{Disk: disk, Share: share, Raw: []byte(path)}
	}
	return FilePath{Disk: disk, Share: share, Path: path}
}

// Bytes returns the path below the share as it is on the disk.
func (p FilePath) Bytes() string { return cmp.Or(p.Path, string(p.Raw)) }

// ParseChanges reads one part of a node's answer.
func ParseChanges(payload []byte) (Changes, error) { return decode[Changes](payload) }

// Encode returns the canonical bytes of c.
func (c Changes) Encode() ([]byte, error) { c.V = Version; return encode(c) }

// Kind returns [KindChanges].
func (Changes) Kind() Kind { return KindChanges }

// VerifyChanges verifies one part of a node's answer: signed by the node's own
// key, for this request.
func VerifyChanges(envelope []byte, node NodeRef, request Digest) (Changes, error) {
	e, err := open[Changes](envelope)
	if err != nil {
		return Changes{}, err
	}
	if err := verifyNode(e.Envelope, node, e.doc.Node, e.doc.NodeKey); err != nil {
		return Changes{}, err
	}
	if e.doc.RequestDigest != request {
		return Changes{}, protocol.Errorf(protocol.CodeInvalid, "the changes that node %s tells of are of another request", e.doc.Node)
	}
	return e.doc, nil
}

func (c Changes) check() error {
	_, err := c.Node.ID()
	return cmp.Or(
		err,
		checkBytes("nodeKey", c.NodeKey, 32),
		checkDigest("requestDigest", c.RequestDigest),
		checkOneOf("stage", c.Stage, AtRelock, AtReopened),
		checkTime("begun", c.Begun),
		checkTime("ended", c.Ended),
		checkTime("madeAt", c.MadeAt),
		checkCount("parts", c.Parts, MaxChangesParts),
		checkCount("part", c.Part, c.Parts),
		c.Before.check("before"),
		c.After.check("after"),
		c.checkCounts(),
		c.checkList(),
	)
}

func (c Changes) checkCounts() error {
	listed := int64(len(c.List))
	if least := min(c.Added, c.Removed, c.Changed, c.Moved, c.Unlisted); least < 0 {
		return fmt.Errorf("a count is %d: want 0 or more", least)
	}
	if all := c.Added + c.Removed + c.Changed + c.Moved; listed+c.Unlisted > all || c.Parts == 1 && listed+c.Unlisted != all {
		return fmt.Errorf("list has %d entries and %d are unlisted, of %d", listed, c.Unlisted, all)
	}
	return nil
}

func (c Changes) checkList() error {
	for _, one := range c.List {
		if err := one.check(); err != nil {
			return err
		}
	}
	return nil
}

func (w Walk) check(field string) error {
	if least := min(w.Files, w.Bytes, w.Summed, w.Unreached); least < 0 {
		return fmt.Errorf("%s has the count %d: want 0 or more", field, least)
	}
	if len(w.Why) > maxWhys {
		return fmt.Errorf("%s.why has %d entries: at most %d are allowed", field, len(w.Why), maxWhys)
	}
	for _, why := range w.Why {
		if err := cmp.Or(checkCount(field+".why", len(why), maxText), checkLength(field+".why", why)); err != nil {
			return err
		}
	}
	return nil
}

func (c Change) check() error {
	err := cmp.Or(
		checkOneOf("list.kind", c.Kind, Added, Removed, Changed, Moved),
		c.File.check("list.file"),
		c.From.check("list.from"),
		c.Before.check("list.before"),
		c.After.check("list.after"),
		checkLength("list.unsure", c.Unsure),
	)
	if err != nil {
		return err
	}
	if (c.From != nil) != (c.Kind == Moved) || (c.Before == nil) != (c.Kind == Added) || (c.After == nil) != (c.Kind == Removed) {
		return fmt.Errorf("list has a file %s with the fields of another kind", c.Kind)
	}
	return nil
}

func (p *FilePath) check(field string) error {
	if p == nil {
		return nil
	}
	path := p.Bytes()
	switch {
	case !p.Disk.Valid():
		return fmt.Errorf("%s.disk is %q: want 1 to 32 of a-z, 0-9 and dash", field, p.Disk)
	case path == "" || len(path) > maxPath || strings.Contains(path, "\x00"):
		return fmt.Errorf("%s must have a path of 1 to %d bytes without NUL", field, maxPath)
	case p.Path != NewFilePath(p.Disk, p.Share, path).Path || p.Path != "" && p.Raw != nil:
		return fmt.Errorf("%s has its path in the wrong field: plain text in path, all else in raw", field)
	}
	return checkForm(field+".share", p.Share, shareForm)
}

var crcForm = regexp.MustCompile(`^([0-9a-f]{16})?$`)

func (s *FileState) check(field string) error {
	if s == nil {
		return nil
	}
	if s.Size < 0 || s.Modified < 0 || s.Modified > maxTime {
		return fmt.Errorf("%s has the size %d and was modified at %d: want what can be", field, s.Size, s.Modified)
	}
	return checkForm(field+".crc64", s.CRC64, crcForm)
}
