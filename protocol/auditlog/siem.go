package auditlog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Format is a form in which other systems take records. Unlike an export, what
// they get proves nothing.
type Format string

// The formats.
const (
	FormatJSON Format = "json" // a JSON object per record, in the shape of the Azure activity log
	FormatCEF  Format = "cef"  // ArcSight Common Event Format, version 0, revision 25
	FormatOCSF Format = "ocsf" // Open Cybersecurity Schema Framework 1.6.0, class API Activity (6003)
)

// Formats lists the formats.
func Formats() []Format { return []Format{FormatJSON, FormatCEF, FormatOCSF} }

// product is what records say they come from.
var product = struct{ vendor, name, version, app string }{"Databox Lockbox", "Customer Lockbox for Data Box", "1", "lockboxd"}

// Render returns record number index of the log, of which data is the canonical
// form, in one line without a line end. A format that is not one of [Formats] is
// refused with [protocol.CodeInvalid].
func (f Format) Render(index int64, data []byte) ([]byte, error) {
	record, err := ParseRecord(data)
	if err != nil {
		return nil, err
	}
	return f.render(index, record, data)
}

// Syslog returns the same as the text of a message of RFC 5424 that comes from
// host.
func (f Format) Syslog(host string, index int64, data []byte) ([]byte, error) {
	record, err := ParseRecord(data)
	if err != nil {
		return nil, err
	}
	message, err := f.render(index, record, data)
	if err != nil {
		return nil, err
	}
	return syslog(host, index, record, message), nil
}

func (f Format) render(index int64, record Record, data []byte) ([]byte, error) {
	switch f {
	case FormatJSON:
		return numbered(index, data), nil
	case FormatCEF:
		return cef(index, record), nil
	case FormatOCSF:
		return ocsf(index, record)
	}
	return nil, protocol.Errorf(protocol.CodeInvalid, "unknown format %q: want one of %v", f, Formats())
}

// numbered puts a record's number before its other members.
func numbered(index int64, data []byte) []byte {
	return append(fmt.Appendf(nil, `{"index":%d,`, index), data[1:]...)
}

// severity is how grave a level is in each of the formats that have a scale.
type severity struct{ cef, ocsf, syslog int }

var severities = map[Level]severity{
	Informational: {3, 1, 6},
	Warning:       {6, 3, 4},
	ErrorLevel:    {8, 4, 3},
	Critical:      {10, 5, 2},
}

// slug names an operation without spaces.
func slug(op Operation) string { return strings.ReplaceAll(string(op), " ", "") }

var (
	cefHeader = strings.NewReplacer(`\`, `\\`, `|`, `\|`)
	cefValue  = strings.NewReplacer(`\`, `\\`, `=`, `\=`, "\n", `\n`, "\r", `\r`)
)

// cef renders a record with keys of the extension dictionary only.
func cef(index int64, r Record) []byte {
	var b bytes.Buffer
	b.WriteString("CEF:0")
	op := string(r.Operation)
	for _, field := range []string{product.vendor, product.name, product.version, slug(r.Operation), op, strconv.Itoa(severities[r.Level].cef)} {
		b.WriteString("|" + cefHeader.Replace(field))
	}
	b.WriteByte('|')
	extension := []struct{ key, value string }{
		{"rt", strconv.FormatInt(r.Time.UnixMilli(), 10)},
		{"externalId", strconv.FormatInt(index, 10)},
		{"cat", string(r.Category)},
		{"outcome", string(r.Result)},
		{"suser", r.Caller},
		{"deviceExternalId", r.Origin},
		{"cs1Label", "resourceId"}, {"cs1", r.ResourceID},
		{"cs2Label", "correlationId"}, {"cs2", r.CorrelationID},
		{"msg", properties(r.Properties)},
	}
	separator := ""
	for _, e := range extension {
		if e.value != "" {
			b.WriteString(separator + e.key + "=" + cefValue.Replace(e.value))
			separator = " "
		}
	}
	return b.Bytes()
}

// properties renders them as text, sorted.
func properties(p map[string]string) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(p)) {
		out = append(out, fmt.Sprintf("%s=%q", name, p[name]))
	}
	return strings.Join(out, " ")
}

// The activities of OCSF's class API Activity, by an operation's first word.
var ocsfActivities = map[string]int{
	"Create": 1, "Place": 1, "File": 1, "Register": 1,
	"Read": 2, "Export": 2,
	"Update": 3, "Replace": 3, "Advance": 3, "Rotate": 3,
	"Delete": 4, "Remove": 4, "Prune": 4,
}

const (
	ocsfCategory      = 6    // Application Activity
	ocsfClass         = 6003 // API Activity
	ocsfOtherActivity = 99
)

// ocsf renders a record as API Activity.
func ocsf(index int64, r Record) ([]byte, error) {
	activity := ocsfOtherActivity
	if verb, _, _ := strings.Cut(string(r.Operation), " "); ocsfActivities[verb] != 0 {
		activity = ocsfActivities[verb]
	}
	status := map[Result]int{Success: 1, Failure: 2, Refused: 2}[r.Result]
	if status == 0 {
		status = 99
	}
	type object = map[string]any
	return json.Marshal(object{
		"category_uid":  ocsfCategory,
		"class_uid":     ocsfClass,
		"activity_id":   activity,
		"activity_name": string(r.Operation),
		"type_uid":      ocsfClass*100 + activity,
		"time":          r.Time.UnixMilli(),
		"severity_id":   severities[r.Level].ocsf,
		"status_id":     status,
		"status":        string(r.Result),
		"metadata": object{
			"version":         "1.6.0",
			"uid":             strconv.FormatInt(index, 10),
			"original_time":   r.Time.Format(timeForm),
			"correlation_uid": r.CorrelationID,
			"log_name":        "activity-log",
			"product":         object{"vendor_name": product.vendor, "name": product.name, "version": product.version},
		},
		"actor":        object{"user": object{"name": r.Caller}},
		"api":          object{"operation": string(r.Operation), "service": object{"name": string(r.Category)}},
		"src_endpoint": object{"name": r.Origin},
		"resources":    []object{{"uid": r.ResourceID}},
		"unmapped":     r.Properties,
	})
}

// syslogFacility is "log audit" of RFC 5424, table 1.
const syslogFacility = 13

// syslogNumber is the enterprise number that RFC 5612 reserves for examples.
// The project has none of its own.
const syslogNumber = 32473

var syslogValue = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`)

// syslog renders a record as a message of RFC 5424, section 6, with message as
// its text.
func syslog(host string, index int64, r Record, message []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "<%d>1 %s %s %s - %s [record@%d", syslogFacility*8+severities[r.Level].syslog,
		r.Time.Format(timeForm), header(host, 255), product.app, header(slug(r.Operation), 32), syslogNumber)
	for _, p := range []struct{ name, value string }{
		{"index", strconv.FormatInt(index, 10)}, {"operation", string(r.Operation)}, {"result", string(r.Result)},
		{"caller", r.Caller}, {"origin", r.Origin}, {"resource", r.ResourceID}, {"correlation", r.CorrelationID},
	} {
		fmt.Fprintf(&b, ` %s="%s"`, p.name, syslogValue.Replace(p.value))
	}
	b.WriteString("] ")
	b.Write(message)
	return b.Bytes()
}

// header makes text a header field: printable ASCII without spaces, not empty,
// at most limit bytes.
func header(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, text)
	if text == "" {
		return "-"
	}
	return text[:min(len(text), limit)]
}
