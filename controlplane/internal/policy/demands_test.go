package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/protocol"
)

func TestWhoCountsForWhat(t *testing.T) {
	lead, dev := Demand{"Lead"}, Demand{"DevOps manager"}
	either := Demand{"Lead", "DevOps manager"}
	for _, test := range []struct {
		name    string
		demands []Demand
		people  map[protocol.Person][]string
		missing []Demand
	}{
		{"nobody", []Demand{lead}, nil, []Demand{lead}},
		{"one of either", []Demand{either}, map[protocol.Person][]string{"a": {"devops MANAGER"}}, nil},
		{"other group", []Demand{either}, map[protocol.Person][]string{"a": {"Sales"}, "b": nil}, []Demand{either}},
		{"one person in both", []Demand{lead, dev}, map[protocol.Person][]string{"a": {"Lead", "DevOps manager"}}, []Demand{dev}},
		{"the one who can do both gives way", []Demand{lead, dev}, map[protocol.Person][]string{"a": {"Lead", "DevOps manager"}, "b": {"Lead"}}, nil},
		{"three", []Demand{either, lead, dev}, map[protocol.Person][]string{"a": {"Lead", "DevOps manager"}, "b": {"Lead"}, "c": {"Lead"}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			for range 20 { // maps are walked in any order
				if diff := cmp.Diff(test.missing, Missing(test.demands, test.people)); diff != "" {
					t.Fatal(diff)
				}
			}
		})
	}
}

func TestDemandsOfSeveralRules(t *testing.T) {
	s, err := Load(with(t, `
		@id("long") @approvers("Lead, Duty manager") @max_duration("4h")
		permit (principal, action == Action::"Unlock Databox", resource) when { context.duration > duration("1h") };
		@id("delete") @approvers("Lead") @max_duration("2h") @require_mfa("true")
		permit (principal, action == Action::"Unlock Databox", resource) when { context.access == "delete" };`))
	if err != nil {
		t.Fatal(err)
	}
	in := good()
	in.Duration, in.Access = 3*time.Hour, "delete"
	e := s.Evaluate(in)
	want := []Demand{{"Lead"}, {"Duty manager"}, {"Customer support lead", "DevOps manager"}}
	if diff := cmp.Diff(want, e.Approvers); diff != "" || e.Longest != 2*time.Hour || !e.MFA {
		t.Errorf("longest %s, second factor %v\n%s", e.Longest, e.MFA, diff)
	}
	for _, text := range []string{"max-duration: the rules give 2h0m0s at most, 3h0m0s was asked for", "second-factor: erin@provider.example signed in without"} {
		if !strings.Contains(e.Blocked(), text) {
			t.Errorf("%q does not say %q", e.Blocked(), text)
		}
	}
	in.Flexible, in.Caller.MFA = true, true
	if e = s.Evaluate(in); !e.Passed {
		t.Errorf("blocked: %s", e.Blocked())
	}
	in.Access, in.Flexible, in.Duration = "read-only", false, time.Hour
	if e = s.Evaluate(in); !e.Passed || e.Longest != 0 || e.MFA || len(e.Approvers) != 1 {
		t.Errorf("%+v", e)
	}
}

func TestDemandsAreCheckedAtLoad(t *testing.T) {
	const permit = ` permit (principal, action == Action::"Unlock Databox", resource);`
	for text, want := range map[string]string{
		`@id("x") @approvers("A or ")` + permit:                        "needs @approvers",
		`@id("x") @approvers("A,,B")` + permit:                         "needs @approvers",
		`@id("x") @approvers("A") @max_duration("4")` + permit:         "whole seconds",
		`@id("x") @approvers("A") @max_duration("-4h")` + permit:       "whole seconds",
		`@id("x") @approvers("A") @require_mfa("yes please")` + permit: "true or false",
		`@id("x") @approvers("A") @max_durations("4h")` + permit:       "unknown annotation @max_durations",
	} {
		if _, err := Load(with(t, text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

func TestDigestNamesTheTexts(t *testing.T) {
	a, b := Files{"ab": []byte("c")}, Files{"a": []byte("bc")}
	if a.Digest() == b.Digest() || a.Digest() != (Files{"ab": []byte("c")}).Digest() {
		t.Error("the digest does not name the texts")
	}
}
