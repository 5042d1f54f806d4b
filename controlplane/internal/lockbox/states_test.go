package lockbox

import (
	"slices"
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/protocol"
)

// table is the whole behaviour, written a second time on purpose: a row per
// state, a column per event, "." for refused.
const table = `
             provider-approved customer-agreed customer-approved granted  denied  lapsed  cancelled taken-back voided   finished   relocked  failed
Initializing Pending           .               .                 Approved Denying Expired Revoked   Revoked    Revoked  .          .         Error
Pending      .                 Approving       Approved          .        Denying Expired Revoked   Revoked    Revoked  .          .         Error
Approving    .                 Approving       Approved          .        Denying Expired Revoked   Revoked    Revoked  .          .         Error
Denying      .                 .               .                 .        .       .       .         .          .        .          Denied    Error
Approved     .                 .               .                 .        .       .       .         Revoking   Revoking Completing .         Error
Completing   .                 .               .                 .        .       .       .         .          .        .          Completed Error
Revoking     .                 .               .                 .        .       .       .         .          .        .          Revoked   Error
Denied       .                 .               .                 .        .       .       .         .          .        .          .         .
Expired      .                 .               .                 .        .       .       .         .          .        .          .         .
Revoked      .                 .               .                 .        .       .       .         .          .        .          .         .
Completed    .                 .               .                 .        .       .       .         .          .        .          .         .
Error        .                 .               .                 .        .       .       .         .          .        .          .         .
Unknown      .                 .               .                 .        .       .       .         .          .        .          .         .
`

// The states are those of the public Lockbox API, no more and no fewer.
func TestStatesAreThoseOfThePublicAPI(t *testing.T) {
	want := strings.Fields("Approved Approving Completed Completing Denied Denying Error Expired Initializing Pending Revoked Revoking Unknown")
	if got := slices.Sorted(slices.Values(texts(States))); !slices.Equal(got, want) {
		t.Errorf("the states are %q, want %q", got, want)
	}
	for _, s := range States {
		if StateOf(string(s)) != s {
			t.Errorf("%s is read as %s", s, StateOf(string(s)))
		}
	}
	for _, text := range []string{"", "pending", "Escalated"} {
		if StateOf(text) != Unknown {
			t.Errorf("%q is read as %s", text, StateOf(text))
		}
	}
	for s, want := range map[State]string{Pending: "Customer Notified", Approved: "Approved", Denying: "Denying", Unknown: "Unknown"} {
		if s.Shown() != want {
			t.Errorf("people are shown %q for %s, want %q", s.Shown(), s, want)
		}
	}
}

// Every state that does not last waits for a decision, for the end of an access,
// or for a device: each of these has a timer.
func TestStatesLastOnlyWhereTheyEnd(t *testing.T) {
	for _, s := range States {
		waits := s.Open() || s == Approved || slices.Contains(ending, s)
		if waits == s.Terminal() {
			t.Errorf("%s: waits %v, terminal %v", s, waits, s.Terminal())
		}
	}
}

func TestEveryStateAndEvent(t *testing.T) {
	rows := parseTable(table)
	if len(rows) != len(States)*len(Events) {
		t.Fatalf("the table has %d cells, want %d", len(rows), len(States)*len(Events))
	}
	for _, s := range States {
		for _, e := range Events {
			want := rows[cell{s, e}]
			got, err := s.Next(e)
			switch {
			case want == ".":
				if err == nil || got != s || protocol.CodeOf(err) != protocol.CodeConflict {
					t.Errorf("%s by %s: got %s, %v; want a refusal", s, e, got, err)
				}
			case err != nil || got != State(want):
				t.Errorf("%s by %s: got %s, %v; want %s", s, e, got, err, want)
			}
		}
	}
}

func TestTerminalStates(t *testing.T) {
	terminal := map[State]bool{Denied: true, Expired: true, Revoked: true, Completed: true, Error: true, Unknown: true}
	for _, s := range States {
		if s.Terminal() != terminal[s] {
			t.Errorf("%s: terminal is %v", s, s.Terminal())
		}
		if s.Open() && s.Terminal() {
			t.Errorf("%s is open and terminal", s)
		}
	}
}

// Approved is reached only by the customer's last approval after the provider's,
// or by the provider's where the customer has decided before.
func TestTwoWaysIntoApproved(t *testing.T) {
	for _, s := range States {
		for _, e := range Events {
			next, err := s.Next(e)
			asked := e == CustomerApproved && (s == Pending || s == Approving)
			before := e == Granted && s == Initializing
			if err == nil && next == Approved && !asked && !before {
				t.Errorf("%s by %s is approved", s, e)
			}
			if err == nil && next == Pending && (e != ProviderApproved || s != Initializing) {
				t.Errorf("%s by %s is pending", s, e)
			}
		}
	}
}
