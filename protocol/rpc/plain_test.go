package rpc

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"

	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func TestPlain(t *testing.T) {
	m := &lockboxv1.ListSessionsResponse{Sessions: []*lockboxv1.Session{{Id: "SES-1", Created: 1795323055}}}
	raw, err := Raw(m)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := Plain(m)
	if err != nil {
		t.Fatal(err)
	}
	of := func(m map[string]any) any {
		session := m["sessions"].([]any)[0].(map[string]any)
		return []any{session["id"], session["created"], session["expires"]}
	}
	if diff := cmp.Diff([]any{"SES-1", "1795323055", "0"}, of(raw)); diff != "" {
		t.Errorf("raw (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]any{"SES-1", "2026-11-22T04:50:55Z", nil}, of(plain)); diff != "" {
		t.Errorf("plain (-want +got):\n%s", diff)
	}
	sink, err := Plain(&lockboxv1.Sink{Delivered: 7})
	if err != nil || sink["delivered"] != "7" {
		t.Errorf("a sink's records: %v, %v", sink["delivered"], err)
	}
}

// Every number of 64 bits is known as a time or as something else.
func TestTimesAreKnown(t *testing.T) {
	others := map[protoreflect.Name]bool{}
	for _, name := range []protoreflect.Name{
		"access_seconds", "acked", "after", "attempts", "before", "behind", "bytes_done", "bytes_per_second", "bytes_total",
		"consistent_with", "done", "duration_seconds", "files_done", "files_errored", "files_total", "from_index", "index", "log_size",
		"max_duration_seconds", "next", "next_index", "number", "offset", "orders", "reply_to", "request_expiry_seconds",
		"retention_seconds", "size", "took_ms", "version",
	} {
		others[name] = true
	}
	for _, file := range []protoreflect.FileDescriptor{(&lockboxv1.Request{}).ProtoReflect().Descriptor().ParentFile(), (&devicev1.NodeStatus{}).ProtoReflect().Descriptor().ParentFile()} {
		for i := range file.Messages().Len() {
			fields := file.Messages().Get(i).Fields()
			for i := range fields.Len() {
				if f := fields.Get(i); f.Kind() == protoreflect.Int64Kind && times[f.Name()] == others[f.Name()] {
					t.Errorf("is %s Unix seconds? Then it belongs in times, else in the list above", f.FullName())
				}
			}
		}
	}
}
