package policy

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/configs"
	"github.com/databox-lockbox/lockbox/protocol"
)

func builtIn(t testing.TB) *Set {
	t.Helper()
	s, err := Load(configs.JIT())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// good is an input that passes every factor.
func good() Input {
	return Input{
		Action: ActionUnlock,
		Caller: Caller{Person: "erin@provider.example", Role: "engineer", IsolatedIdentity: true},
		Device: Device{
			Serial: "DBX0001", Order: "ORD-1001", Subscription: "sub-1", Tenant: "contoso",
			Stage: "DataCopy", Halted: true, Locked: true,
		},
		Ticket:     Ticket{ID: "SR-2001", Order: "ORD-1001", Subscription: "sub-1", Owner: "erin@provider.example"},
		ReasonCode: "copied-to-wrong-folder",
		Access:     "read-write",
		Duration:   8 * time.Hour,
		Longest:    8 * time.Hour,
	}
}

func TestEachFactorBlocksAlone(t *testing.T) {
	s := builtIn(t)
	for _, test := range []struct {
		name   string
		change func(*Input)
		factor string // the one blocked; "" when all pass
	}{
		{"all good", func(*Input) {}, ""},
		{"second factor instead of isolated identity", func(in *Input) { in.Caller.IsolatedIdentity, in.Caller.MFA = false, true }, ""},
		{"escalated", func(in *Input) {
			in.Ticket.Owner, in.Ticket.EscalatedTo = "someone@provider.example", []protocol.Person{"x@provider.example", in.Caller.Person}
		}, ""},
		{"in the datacenter, not halted", func(in *Input) { in.Device.Stage, in.Device.Halted = "AtAzureDC", false }, ""},
		{"one second", func(in *Input) { in.Duration = time.Second }, ""},
		{"other order", func(in *Input) { in.Ticket.Order = "ORD-1002" }, "resource-scope"},
		{"other subscription", func(in *Input) { in.Ticket.Subscription = "sub-2" }, "resource-scope"},
		{"still at the customer", func(in *Input) { in.Device.Stage, in.Device.Halted = "Delivered", false }, "resource-scope"},
		{"completed", func(in *Input) { in.Device.Stage, in.Device.Halted = "Completed", false }, "resource-scope"},
		{"weak sign-in", func(in *Input) { in.Caller.IsolatedIdentity = false }, "isolated-identity"},
		{"not an engineer", func(in *Input) { in.Caller.Role = "admin" }, "permission-level"},
		{"ticket of another", func(in *Input) { in.Ticket.Owner = "eve@provider.example" }, "ticket-ownership"},
		{"ticket of nobody", func(in *Input) { in.Ticket.Owner = "" }, "ticket-ownership"},
		{"open disks", func(in *Input) { in.Device.Locked = false }, "disks-locked"},
		{"unknown reason", func(in *Input) { in.ReasonCode = "curious" }, "reason-code"},
		{"too long", func(in *Input) { in.Duration = 8*time.Hour + time.Second }, "duration"},
		{"a tenant that allows more", func(in *Input) { in.Duration, in.Longest = 24*time.Hour, 24*time.Hour }, ""},
		{"a tenant that allows less", func(in *Input) { in.Longest = time.Hour }, "duration"},
		{"no time", func(in *Input) { in.Duration = 0 }, "duration"},
		{"negative time", func(in *Input) { in.Duration = -time.Hour }, "duration"},
		{"another action", func(in *Input) { in.Action = "Erase Databox" }, "rule"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := good()
			test.change(&in)
			e := s.Evaluate(in)
			var blocked []string
			for _, f := range e.Factors {
				if f.Reason == "" || strings.ContainsAny(f.Reason, "{}") {
					t.Errorf("factor %s gives the reason %q", f.Name, f.Reason)
				}
				if !f.Passed {
					blocked = append(blocked, f.Name)
				}
			}
			if got := strings.Join(blocked, " "); got != test.factor {
				t.Errorf("blocked: %q, want %q\n%s", got, test.factor, e.Blocked())
			}
			if e.Passed != (test.factor == "") {
				t.Errorf("passed: %v", e.Passed)
			}
			if permitted := test.factor != "rule"; permitted != (len(e.Approvers) > 0) {
				t.Errorf("permitted %v, approvers %q", permitted, e.Approvers)
			}
		})
	}
}

func TestEveryFactorIsShown(t *testing.T) {
	want := []string{
		"resource-scope", "isolated-identity", "permission-level", "ticket-ownership",
		"disks-locked", "reason-code", "duration",
	}
	var got []string
	e := builtIn(t).Evaluate(good())
	for _, f := range e.Factors {
		got = append(got, f.Name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Demand{{"Customer support lead", "DevOps manager"}}, e.Approvers); diff != "" {
		t.Error(diff)
	}
}

// TestActionsAreJudgedApart has each action judged by its own rules alone: what the
// others look at is not even mentioned.
func TestActionsAreJudgedApart(t *testing.T) {
	s, in := builtIn(t), good()
	in.Action, in.Scope, in.Device = ActionAccess, "subscription", Device{Subscription: "sub-1", Tenant: "contoso"}
	in.ReasonCode = "subscription-access"
	e := s.Evaluate(in)
	var got []string
	for _, f := range e.Factors {
		got = append(got, f.Name)
	}
	want := []string{"resource-scope", "isolated-identity", "permission-level", "ticket-ownership", "duration"}
	if diff := cmp.Diff(want, got); diff != "" || !e.Passed {
		t.Errorf("passed %v: %s\n%s", e.Passed, diff, e.Blocked())
	}
	if in.Ticket.Subscription = "sub-2"; s.Evaluate(in).Passed {
		t.Error("a ticket of another subscription passes")
	}
}

func TestSeveralFactorsBlockTogether(t *testing.T) {
	in := good()
	in.Caller.Role, in.ReasonCode, in.Device.Stage, in.Device.Halted, in.Ticket.Order = "staff", "", "PickedUp", false, "ORD-9"
	e := builtIn(t).Evaluate(in)
	for _, want := range []string{"role staff", "reason code (none)", "stage PickedUp", "order ORD-9"} {
		if !strings.Contains(e.Blocked(), want) {
			t.Errorf("%q does not mention %q", e.Blocked(), want)
		}
	}
}

// with returns the built-in files with one more policy file.
func with(t *testing.T, text string) fs.FS {
	t.Helper()
	files := fstest.MapFS{"extra.cedar": {Data: []byte(text)}}
	for _, name := range []string{SchemaFile, "access-subscription.cedar", "unlock-databox.cedar"} {
		data, err := fs.ReadFile(configs.JIT(), name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: data}
	}
	return files
}

// An erroring forbid is skipped by Cedar. Here it must block.
func TestRuleThatFailsToEvaluateBlocks(t *testing.T) {
	s, err := Load(with(t, `@id("overflow") @factor("sum") @passed("p") @blocked("b")
		forbid (principal, action == Action::"Unlock Databox", resource)
		when { context.duration.toMilliseconds() * 9223372036854775807 == 1 };`))
	if err != nil {
		t.Fatal(err)
	}
	e := s.Evaluate(good())
	if e.Passed || !strings.Contains(e.Blocked(), "rule overflow could not be evaluated") {
		t.Errorf("passed %v, blocked %q", e.Passed, e.Blocked())
	}
}

func TestLoadRefuses(t *testing.T) {
	const head = `forbid (principal, action == Action::"Unlock Databox", resource) `
	for _, test := range []struct{ name, text, want string }{
		{"misspelt attribute", `@id("x") @factor("f") @passed("p") @blocked("b") ` + head + `when { resource.lokced };`, "lokced"},
		{"unknown action", `@id("x") @factor("f") @passed("p") @blocked("b") forbid (principal, action == Action::"Unlok", resource);`, "Unlok"},
		{"no id", `@factor("f") @passed("p") @blocked("b") ` + head + `;`, "no @id"},
		{"same id", `@id("duration-limit") @factor("f") @passed("p") @blocked("b") ` + head + `;`, "two policies"},
		{"no factor", `@id("x") ` + head + `;`, "needs @factor"},
		{"permit as factor", `@id("x") @factor("f") permit (principal, action == Action::"Unlock Databox", resource);`, "no @factor"},
		{"permit without approvers", `@id("x") permit (principal, action == Action::"Unlock Databox", resource);`, "@approvers"},
		{"not Cedar", `allow everything;`, "extra.cedar"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := Load(with(t, test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
	if _, err := Load(fstest.MapFS{}); err == nil {
		t.Error("loaded nothing without an error")
	}
	schemaOnly, err := fs.ReadFile(configs.JIT(), SchemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Load(fstest.MapFS{SchemaFile: {Data: schemaOnly}}); err == nil {
		t.Error("loaded no policies without an error")
	}
}

func BenchmarkEvaluate(b *testing.B) {
	s, in := builtIn(b), good()
	for b.Loop() {
		s.Evaluate(in)
	}
}
