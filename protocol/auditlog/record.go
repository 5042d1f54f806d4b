package auditlog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Limits of a record, in bytes.
const (
	// MaxRecord is the longest encoding of any record.
	MaxRecord = 16 << 10
	// MaxOwnRecord is the longest encoding of a record without its device
	// reference, so that the control plane can always replay a device's record.
	MaxOwnRecord = MaxRecord - 256

	maxText       = 1024 // operation, resource, caller, correlation
	maxProperties = 64
)

// recordVersion is the only version of the record format.
const recordVersion = 1

// timeForm is RFC 3339 in UTC with exactly three digits of milliseconds.
const timeForm = "2006-01-02T15:04:05.000Z"

// OriginControlPlane is the origin of the control plane's own records. The
// origin of a device's record is the node's name, "<serial>/<n>".
const OriginControlPlane = "control-plane"

// Level is how grave a record is, as in the Azure activity log.
type Level string

// The levels of records.
const (
	Informational Level = "Informational"
	Warning       Level = "Warning"
	ErrorLevel    Level = "Error"
	Critical      Level = "Critical"
)

// Result is how far an operation got.
type Result string

// The results of operations. Start is recorded before an act that opens or
// reveals something, one of the others after it.
const (
	Start   Result = "Start"
	Success Result = "Success"
	Failure Result = "Failure"
	Refused Result = "Refused"
)

// Record is one event of the activity log. Its members have the names and
// meaning of Azure activity-log events. It never holds a secret.
type Record struct {
	Time          time.Time         // recorded to the millisecond, in UTC
	Operation     Operation         // from the closed vocabulary
	Category      Category          // of the operation
	Level         Level             // how grave
	ResourceID    string            // what it was done to, e.g. "/devices/DBX0001/nodes/1"
	Result        Result            // Start, Success, Failure or Refused
	Caller        string            // who did it: a person, a node's URI, or a service's name
	CorrelationID string            // ties the records of one story together, e.g. a request ID; may be empty
	Origin        string            // OriginControlPlane, or "<serial>/<n>" for a device's record
	Properties    map[string]string // more facts; nil rather than empty
	Device        *DeviceRef        // set only when the control plane replays a device's record
}

// DeviceRef says where a replayed record stands in its node's own chain. The
// node is the record's origin.
type DeviceRef struct {
	Index    int64     // number in the node's chain, from zero
	LeafHash tlog.Hash // leaf hash there, that is of the record without its DeviceRef
}

// wireRecord has the members of the JSON form, in their order.
type wireRecord struct {
	Version       int               `json:"v"`
	Time          string            `json:"time"`
	Operation     Operation         `json:"operationName"`
	Category      Category          `json:"category"`
	Level         Level             `json:"level"`
	ResourceID    string            `json:"resourceId"`
	Result        Result            `json:"resultType"`
	Caller        string            `json:"caller"`
	CorrelationID string            `json:"correlationId"`
	Origin        string            `json:"origin"`
	Properties    map[string]string `json:"properties,omitempty"`
	Device        *wireDevice       `json:"device,omitempty"`
}

type wireDevice struct {
	Index    int64     `json:"index"`
	LeafHash tlog.Hash `json:"leafHash"`
}

// NewRecord returns a record of the control plane's with the fields that
// follow from its operation and result: category, level, origin and time. The
// journal of a device puts its own node as origin.
func NewRecord(now time.Time, op Operation, result Result) Record {
	level := Informational
	switch result {
	case Refused:
		level = Warning
	case Failure:
		level = ErrorLevel
	}
	return Record{
		Time: now.UTC().Truncate(time.Millisecond), Operation: op, Category: op.Category(),
		Level: level, Result: result, Origin: OriginControlPlane,
	}
}

// Encode returns the record's canonical JSON, without a line end. It refuses,
// with [protocol.CodeInvalid], a record that breaks the format: another
// vocabulary, text that is not UTF-8, or too long.
func (r Record) Encode() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	data, err := r.marshal()
	if err != nil {
		return nil, err
	}
	if r.Device == nil {
		return data, checkLength(data, MaxOwnRecord)
	}
	own := r
	own.Device = nil
	ownData, err := own.Encode()
	if err != nil {
		return nil, err
	}
	if LeafHash(ownData) != r.Device.LeafHash {
		return nil, invalid("the record is not the one its device reference names: the leaf hashes differ")
	}
	return data, checkLength(data, MaxRecord)
}

// ParseRecord reads a record's canonical JSON and refuses every other form of
// it, so that Encode gives back the same bytes.
func ParseRecord(data []byte) (Record, error) {
	if err := checkLength(data, MaxRecord); err != nil {
		return Record{}, err
	}
	r, err := unmarshal(data)
	if err != nil {
		return Record{}, err
	}
	again, err := r.Encode()
	if err != nil {
		return Record{}, err
	}
	if !bytes.Equal(again, data) {
		return Record{}, invalid("the record is not in canonical form")
	}
	return r, nil
}

// Replay returns the record that the control plane logs for record number
// index of a node's chain. It refuses bytes that are no record of that node.
func Replay(node protocol.NodeID, index int64, record []byte) (Record, error) {
	r, err := ParseRecord(record)
	if err != nil {
		return Record{}, err
	}
	if r.Origin != node.String() || r.Device != nil {
		return Record{}, invalid("record %d is of %q, not of node %s itself", index, r.Origin, node)
	}
	r.Device = &DeviceRef{Index: index, LeafHash: LeafHash(record)}
	return r, nil
}

func (r Record) marshal() ([]byte, error) {
	w := wireRecord{
		recordVersion, r.Time.UTC().Format(timeForm), r.Operation, r.Category, r.Level, r.ResourceID,
		r.Result, r.Caller, r.CorrelationID, r.Origin, r.Properties, (*wireDevice)(r.Device),
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(w); err != nil {
		return nil, invalid("the record cannot be encoded: %v", err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

func unmarshal(data []byte) (Record, error) {
	var w wireRecord
	if err := json.Unmarshal(data, &w); err != nil {
		return Record{}, invalid("the record is not JSON of the expected form: %v", err)
	}
	t, err := time.Parse(timeForm, w.Time)
	if err != nil {
		return Record{}, invalid("time %q is not of the form %s", w.Time, timeForm)
	}
	if w.Version != recordVersion {
		return Record{}, invalid("record version %d is unknown: use a newer program to read this log", w.Version)
	}
	return Record{
		t, w.Operation, w.Category, w.Level, w.ResourceID, w.Result,
		w.Caller, w.CorrelationID, w.Origin, w.Properties, (*DeviceRef)(w.Device),
	}, nil
}

var propertyForm = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9._-]{0,63}$`)

func (r Record) check() error {
	switch {
	case !ValidOperation(r.Operation):
		return invalid("operation %q is not in the vocabulary", r.Operation)
	case r.Category != r.Operation.Category():
		return invalid("category %q does not fit operation %q: want %q", r.Category, r.Operation, r.Operation.Category())
	case r.Level != Informational && r.Level != Warning && r.Level != ErrorLevel && r.Level != Critical:
		return invalid("level %q is unknown", r.Level)
	case r.Result != Start && r.Result != Success && r.Result != Failure && r.Result != Refused:
		return invalid("result %q is unknown", r.Result)
	case r.Time.UTC().Year() < 2000 || r.Time.UTC().Year() > 9999:
		return invalid("time %s is not within the years 2000 to 9999", r.Time)
	case len(r.Properties) > maxProperties:
		return invalid("%d properties: want at most %d", len(r.Properties), maxProperties)
	}
	if err := r.checkOrigin(); err != nil {
		return err
	}
	return r.checkText()
}

func (r Record) checkOrigin() error {
	if r.Origin == OriginControlPlane {
		if r.Device != nil {
			return invalid("a record of the control plane has no device reference")
		}
		return nil
	}
	if _, err := protocol.ParseNodeID(r.Origin); err != nil {
		return invalid("origin %q is neither %q nor a node", r.Origin, OriginControlPlane)
	}
	if r.Device != nil && (r.Device.Index < 0 || r.Device.Index >= MaxSize) {
		return invalid("device index %d is out of range", r.Device.Index)
	}
	return nil
}

func (r Record) checkText() error {
	for name, text := range map[string]string{"resourceId": r.ResourceID, "caller": r.Caller, "correlationId": r.CorrelationID} {
		if len(text) > maxText || !utf8.ValidString(text) || strings.ContainsFunc(text, isControl) {
			return invalid("%s must be UTF-8 without control characters, at most %d bytes", name, maxText)
		}
	}
	for key, value := range r.Properties {
		if !propertyForm.MatchString(key) {
			return invalid("property name %q: want 1 to 64 letters, digits, dots, dashes and underscores, starting with a letter", key)
		}
		if !utf8.ValidString(value) {
			return invalid("property %s is not UTF-8", key)
		}
	}
	return nil
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

func checkLength(data []byte, limit int) error {
	if len(data) > limit {
		return invalid("the record is %d bytes long: want at most %d", len(data), limit)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return protocol.Errorf(protocol.CodeInvalid, "%s", "audit record: "+fmt.Sprintf(format, args...))
}
