package rpc

import (
	"encoding/json"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Raw returns m as the API has it, as encoding/json knows it: protojson varies
// its white space on purpose, and people compare what is printed.
func Raw(m proto.Message) (map[string]any, error) {
	data, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	value := map[string]any{}
	return value, json.Unmarshal(data, &value)
}

// Plain is Raw for programs of others: with times in RFC 3339, UTC, and null for
// those that are not.
func Plain(m proto.Message) (map[string]any, error) {
	value, err := Raw(m)
	if err == nil {
		Walk(m.ProtoReflect().Descriptor(), value, plainTime)
	}
	return value, err
}

// Walk replaces each single value of a message as JSON, however deep it stands in
// it, by what f says of it.
func Walk(d protoreflect.MessageDescriptor, message map[string]any, f func(protoreflect.FieldDescriptor, any) any) {
	one := func(field protoreflect.FieldDescriptor, value any) any {
		if m, ok := value.(map[string]any); ok && field.Message() != nil && !field.IsMap() {
			Walk(field.Message(), m, f)
			return m
		}
		return f(field, value)
	}
	for i := range d.Fields().Len() {
		field := d.Fields().Get(i)
		name := string(field.Name())
		if list, ok := message[name].([]any); ok {
			for i := range list {
				list[i] = one(field, list[i])
			}
		} else if message[name] != nil {
			message[name] = one(field, message[name])
		}
	}
}

func plainTime(field protoreflect.FieldDescriptor, value any) any {
	text, ok := value.(string)
	if !ok || !isTime(field) {
		return value
	}
	unix, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err != nil:
		return value
	case unix == 0:
		return nil
	}
	return time.Unix(unix, 0).UTC().Format(time.RFC3339)
}

// times are the names of the fields that hold Unix seconds, 0 for none.
var times = map[protoreflect.Name]bool{
	"access_end": true, "access_start": true, "began": true, "certificate_expires": true, "closed": true, "confirmed_at": true,
	"created": true, "decided": true, "delivered": true, "ended": true, "expires": true, "failing_since": true, "finished": true,
	"last_read": true, "last_seen": true, "lease_end": true, "lock_confirmed": true, "locks_by": true, "next_attempt": true,
	"placed": true, "released": true, "revoked": true, "sent": true, "sign_in_ends": true, "signed_in": true, "since": true,
	"started": true, "time": true, "until": true,
}

func isTime(field protoreflect.FieldDescriptor) bool {
	return field.Kind() == protoreflect.Int64Kind && times[field.Name()] && field.FullName() != "lockbox.v1.Sink.delivered" // counts records
}
