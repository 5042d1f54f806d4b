package lockbox

import (
	"slices"

	"github.com/databox-lockbox/lockbox/protocol"
)

// State is the state of a request: the names of the public Lockbox API.
type State string

// The states of a request. Denying, Error and Unknown belong to the public API
// too; here a denial takes effect at once and a fault changes no state, so no
// request is ever in them.
const (
	Initializing State = "Initializing" // the provider's own approvals are outstanding
	Pending      State = "Pending"      // the customer was notified and has not answered
	Approving    State = "Approving"    // some of the customer's approvals are there, not all
	Approved     State = "Approved"     // may be executed until the access ends
	Completing   State = "Completing"   // done; the device is being locked
	Revoking     State = "Revoking"     // taken back; the device is being locked
	Denied       State = "Denied"
	Expired      State = "Expired"
	Revoked      State = "Revoked"
	Completed    State = "Completed"
)

// States are all states of a request.
var States = []State{Initializing, Pending, Approving, Approved, Completing, Revoking, Denied, Expired, Revoked, Completed}

// Event is what happens to a request.
type Event string

// The events. They are facts that were verified before, not wishes.
const (
	ProviderApproved Event = "provider-approved" // the last approval needed on the provider's side
	CustomerAgreed   Event = "customer-agreed"   // an approval of the customer's, and more are needed
	CustomerApproved Event = "customer-approved" // the last approval needed on the customer's side
	Refused          Event = "denied"            // by anyone who was asked
	Lapsed           Event = "lapsed"            // nobody answered in time
	Cancelled        Event = "cancelled"         // by the engineer, before it was approved
	TakenBack        Event = "taken-back"        // revoked by an approver or the engineer
	Finished         Event = "finished"          // session disabled, or the window is over
	Relocked         Event = "relocked"          // the device was told to lock and to forget the approval
)

// Events are all events.
var Events = []Event{ProviderApproved, CustomerAgreed, CustomerApproved, Refused, Lapsed, Cancelled, TakenBack, Finished, Relocked}

// transitions is the one table of what follows from what. What is not in it is
// refused. Nothing leaves Denied, Expired, Revoked and Completed.
var transitions = map[State]map[Event]State{
	Initializing: {
		ProviderApproved: Pending, Refused: Denied, Lapsed: Expired, Cancelled: Revoked, TakenBack: Revoked,
	},
	Pending: {
		CustomerAgreed: Approving, CustomerApproved: Approved,
		Refused: Denied, Lapsed: Expired, Cancelled: Revoked, TakenBack: Revoked,
	},
	Approving: {
		CustomerAgreed: Approving, CustomerApproved: Approved,
		Refused: Denied, Lapsed: Expired, Cancelled: Revoked, TakenBack: Revoked,
	},
	Approved:   {TakenBack: Revoking, Finished: Completing},
	Revoking:   {Relocked: Revoked},
	Completing: {Relocked: Completed},
}

// Next returns the state that follows from s by e, or refuses.
func (s State) Next(e Event) (State, error) {
	if next, ok := transitions[s][e]; ok {
		return next, nil
	}
	return s, protocol.Errorf(protocol.CodeConflict, "the request is %s: it cannot be %s any more", s, e)
}

// Terminal reports whether nothing can change s any more.
func (s State) Terminal() bool { return len(transitions[s]) == 0 }

// Open reports whether a request in s waits for somebody's decision.
func (s State) Open() bool { return slices.Contains([]State{Initializing, Pending, Approving}, s) }

// shown are the words people are shown where they differ from the state.
var shown = map[State]string{
	Initializing: "Awaiting internal approval",
	Pending:      "Customer Notified",
	Approving:    "Customer Notified, more approvals needed",
}

// Shown returns what people are shown for s.
func (s State) Shown() string {
	if text, ok := shown[s]; ok {
		return text
	}
	return string(s)
}
