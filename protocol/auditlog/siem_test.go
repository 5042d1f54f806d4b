package auditlog

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/protocol"
)

// awkward is a record with everything in it that some format has to escape.
func awkward(t *testing.T) []byte {
	t.Helper()
	r := NewRecord(time.Date(2026, 11, 21, 18, 30, 0, 5e6, time.UTC), OpApproveRequest, Refused)
	r.Caller, r.CorrelationID, r.ResourceID = `o=wner|x\y]"`, "12", "/requests/12"
	r.Properties = map[string]string{"reason": "line one\nline two = 2 | \"three\" \\", "tenant": "contoso"}
	return encode(t, r)
}

func render(t *testing.T, f Format) string {
	t.Helper()
	out, err := f.Render(7, awkward(t))
	if err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(string(out), "\r\n") {
		t.Errorf("%s is more than one line: %q", f, out)
	}
	return string(out)
}

func TestRenderJSON(t *testing.T) {
	var got struct {
		Index         int64
		Time          string
		OperationName string
		Caller        string
		Properties    map[string]string
	}
	if err := json.Unmarshal([]byte(render(t, FormatJSON)), &got); err != nil {
		t.Fatal(err)
	}
	if got.Index != 7 || got.Time != "2026-11-21T18:30:00.005Z" || got.OperationName != "Approve Lockbox Request" ||
		got.Caller != `o=wner|x\y]"` || got.Properties["reason"] != "line one\nline two = 2 | \"three\" \\" {
		t.Errorf("%+v", got)
	}
}

func TestRenderCEF(t *testing.T) {
	want := `CEF:0|Databox Lockbox|Customer Lockbox for Data Box|1|ApproveLockboxRequest|Approve Lockbox Request|6|` +
		`rt=1795285800005 externalId=7 cat=Security outcome=Refused suser=o\=wner|x\\y]" deviceExternalId=control-plane ` +
		`cs1Label=resourceId cs1=/requests/12 cs2Label=correlationId cs2=12 ` +
		`msg=reason\="line one\\nline two \= 2 | \\"three\\" \\\\" tenant\="contoso"`
	if diff := cmp.Diff(want, render(t, FormatCEF)); diff != "" {
		t.Error(diff)
	}
}

func TestRenderOCSF(t *testing.T) {
	var got map[string]any
	if err := json.Unmarshal([]byte(render(t, FormatOCSF)), &got); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"class_uid": 6003.0, "category_uid": 6.0, "activity_id": 99.0, "type_uid": 600399.0,
		"severity_id": 3.0, "status_id": 2.0, "time": 1795285800005.0,
	} {
		if got[name] != want {
			t.Errorf("%s: %v, want %v", name, got[name], want)
		}
	}
	for _, required := range []string{"actor", "api", "metadata", "src_endpoint"} {
		if got[required] == nil {
			t.Errorf("%s is missing", required)
		}
	}
	create, err := FormatOCSF.Render(0, encode(t, NewRecord(time.Now(), OpCreateRequest, Success)))
	if err != nil || !strings.Contains(string(create), `"activity_id":1,`) || !strings.Contains(string(create), `"type_uid":600301`) {
		t.Errorf("%s, %v", create, err)
	}
}

// syslogForm is the grammar of RFC 5424, section 6, as far as we use it.
var syslogForm = regexp.MustCompile(`^<(\d{1,3})>1 (\S+) ([!-~]{1,255}) ([!-~]{1,48}) - ([!-~]{1,32}) ` +
	`\[record@32473((?: [a-z]+="(?:[^"\\\]]|\\["\\\]])*")+)\] (\{.*\})$`)

func TestRenderSyslog(t *testing.T) {
	out, err := FormatJSON.Syslog("lockbox.example", 7, awkward(t))
	m := syslogForm.FindStringSubmatch(string(out))
	if err != nil || m == nil {
		t.Fatalf("not RFC 5424: %s, %v", out, err)
	}
	want := []string{"108", "2026-11-21T18:30:00.005Z", "lockbox.example", "lockboxd", "ApproveLockboxRequest"}
	if diff := cmp.Diff(want, m[1:6]); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(m[6], ` caller="o=wner|x\\y\]\""`) {
		t.Errorf("caller: %s", m[6])
	}
	for _, op := range Operations() {
		out, err := FormatJSON.Syslog("a b\u00fc", 1, encode(t, NewRecord(time.Now(), op, Success)))
		if m := syslogForm.FindStringSubmatch(string(out)); err != nil || m == nil || m[3] != "ab" || m[5] != slug(op) {
			t.Errorf("%s: %s, %v", op, out, err)
		}
	}
}

func TestRenderRefusals(t *testing.T) {
	if _, err := Format("xml").Render(0, awkward(t)); protocol.CodeOf(err) != protocol.CodeInvalid {
		t.Errorf("unknown format: %v", err)
	}
	for _, f := range Formats() {
		if _, err := f.Syslog("", 0, []byte(`{}`)); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%s of no record: %v", f, err)
		}
	}
}
