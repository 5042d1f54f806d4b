package lockbox

import (
	"slices"

	"github.com/databox-lockbox/lockbox/protocol"
)

// State is the state of a request: the names of the public Lockbox API.
type State string

// The states of a request.
const (
	Initializing State = "Initializing" // the provider's own approvals are outstanding
	Pending      State = "Pending"      // the customer was notified and has not answered
	Approving    State = "Approving"    // some of the customer's approvals are there, not all
	Denying      State = "Denying"      // denied; the device is being told never to take it
	Approved     State = "Approved"     // may be executed until the access ends
	Completing   State = "Completing"   // done; the device is being locked
	Revoking     State = "Revoking"     // taken back; the device is being locked
	Denied       State = "Denied"
	Expired      State = "Expired"
	Revoked      State = "Revoked"
	Completed    State = "Completed"
	Error        State = "Error"   // its own record cannot be read any more: nothing is done with it
	Unknown      State = "Unknown" // a state that this version does not know, and leaves alone
)

// States are all states of a request.
var States = []State{
	Initializing, Pending, Approving, Denying, Approved, Completing, Revoking, Denied, Expired, Revoked, Completed, Error, Unknown,
}

// StateOf reads a stored status.
func StateOf(status string) State {
	if s := State(status); slices.Contains(States, s) {
		return s
	}
	return Unknown
}

// Event is what happens to a request.
type Event string

// The events. They are facts that were verified before, not wishes.
const (
	ProviderApproved Event = "provider-approved" // the last approval needed on the provider's side
	CustomerAgreed   Event = "customer-agreed"   // an approval of the customer's, and more are needed
	CustomerApproved Event = "customer-approved" // the last approval needed on the customer's side
	Granted          Event = "granted"           // the last approval needed, where the customer has decided before
	Refused          Event = "denied"            // by anyone who was asked
	Lapsed           Event = "lapsed"            // nobody answered in time
	Cancelled        Event = "cancelled"         // by the engineer, before it was approved
	TakenBack        Event = "taken-back"        // revoked by an approver or the engineer
	Voided           Event = "voided"            // what it was made under holds no more
	Finished         Event = "finished"          // session disabled, or the window is over
	Relocked         Event = "relocked"          // the device was told to lock and to forget the approval
	Failed           Event = "failed"            // its own record cannot be read
)

// Events are all events.
var Events = []Event{
	ProviderApproved, CustomerAgreed, CustomerApproved, Granted, Refused, Lapsed, Cancelled, TakenBack, Voided, Finished, Relocked, Failed,
}

// transitions is the one table of what follows from what. What is not in it is
// refused. Nothing leaves Denied, Expired, Revoked, Completed and Error.
var transitions = map[State]map[Event]State{
	Initializing: {
		ProviderApproved: Pending, Granted: Approved,
		Refused: Denying, Lapsed: Expired, Cancelled: Revoked, TakenBack: Revoked, Voided: Revoked, Failed: Error,
	},
	Pending: {
		CustomerAgreed: Approving, CustomerApproved: Approved,
		Refused: Denying, Lapsed: Expired, Cancelled: Revoked, TakenBack: Revoked, Voided: Revoked, Failed: Error,
	},
	Approving: {
		CustomerAgreed: Approving, CustomerApproved: Approved,
		Refused: Denying, Lapsed: Expired, Cancelled: Revoked, TakenBack: Revoked, Voided: Revoked, Failed: Error,
	},
	Approved:   {TakenBack: Revoking, Voided: Revoking, Finished: Completing, Failed: Error},
	Denying:    {Relocked: Denied, Failed: Error},
	Revoking:   {Relocked: Revoked, Failed: Error},
	Completing: {Relocked: Completed, Failed: Error},
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

// open are the states in which a request waits for somebody's decision.
var open = []State{Initializing, Pending, Approving}

// Open reports whether a request in s waits for somebody's decision.
func (s State) Open() bool { return slices.Contains(open, s) }

// ending are the states in which a request waits for the device to be told.
var ending = []State{Denying, Revoking, Completing}

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

func texts(states []State) []string {
	var out []string
	for _, s := range states {
		out = append(out, string(s))
	}
	return out
}
