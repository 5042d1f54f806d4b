package lockbox

import (
	"testing"

	"github.com/databox-lockbox/lockbox/protocol"
)

// table is the whole behaviour, written a second time on purpose: a row per
// state, a column per event, "." for refused.
const table = `
             provider-approved customer-agreed customer-approved denied lapsed  cancelled taken-back finished   relocked
Initializing Pending           .               .                 Denied Expired Revoked   Revoked    .          .
Pending      .                 Approving       Approved          Denied Expired Revoked   Revoked    .          .
Approving    .                 Approving       Approved          Denied Expired Revoked   Revoked    .          .
Approved     .                 .               .                 .      .       .         Revoking   Completing .
Completing   .                 .               .                 .      .       .         .          .          Completed
Revoking     .                 .               .                 .      .       .         .          .          Revoked
Denied       .                 .               .                 .      .       .         .          .          .
Expired      .                 .               .                 .      .       .         .          .          .
Revoked      .                 .               .                 .      .       .         .          .          .
Completed    .                 .               .                 .      .       .         .          .          .
`

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
	terminal := map[State]bool{Denied: true, Expired: true, Revoked: true, Completed: true}
	for _, s := range States {
		if s.Terminal() != terminal[s] {
			t.Errorf("%s: terminal is %v", s, s.Terminal())
		}
		if s.Open() && s.Terminal() {
			t.Errorf("%s is open and terminal", s)
		}
	}
}

// Approved is reached only by the customer's last approval, and only after the
// provider's.
func TestOneWayIntoApproved(t *testing.T) {
	for _, s := range States {
		for _, e := range Events {
			next, err := s.Next(e)
			if err == nil && next == Approved && (e != CustomerApproved || s != Pending && s != Approving) {
				t.Errorf("%s by %s is approved", s, e)
			}
			if err == nil && next == Pending && (e != ProviderApproved || s != Initializing) {
				t.Errorf("%s by %s is pending", s, e)
			}
		}
	}
}
