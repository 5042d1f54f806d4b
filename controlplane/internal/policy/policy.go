// Package policy decides which just-in-time requests may go on to people: it
// evaluates Cedar rules over what is known of the request and says, factor by
// factor, what passed and what blocked.
//
// Its rules:
//
//   - Rules are checked against their schema when they are loaded; a rule that
//     could not be evaluated is never loaded.
//   - A factor is blocked when any forbidding rule of it applies, or fails to
//     evaluate; the request passes only when no factor is blocked and a
//     permitting rule applies.
//   - The outcome of every factor is shown, passed ones too.
//
// The package is pure: it reads no clock, file or network.
package policy

import (
	"fmt"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go"

	"github.com/databox-lockbox/lockbox/protocol"
)

// ActionUnlock is the only action there are rules for.
const ActionUnlock = "Unlock Databox"

// Input is what the rules may look at.
type Input struct {
	Action     string
	Caller     Caller
	Device     Device
	Ticket     Ticket
	ReasonCode string
	Access     string // read-only, read-write or delete
	Duration   time.Duration
	Longest    time.Duration // that the tenant lets one access last
}

// Caller is who asks, and how they signed in.
type Caller struct {
	Person           protocol.Person
	Role             string
	IsolatedIdentity bool // by an identity of the control plane alone: a login token, not an identity provider
	MFA              bool // with a second factor, as the identity provider says
}

// Device is the device asked for, with its order.
type Device struct {
	Serial       protocol.DeviceSerial
	Order        protocol.OrderID
	Subscription protocol.SubscriptionID
	Tenant       protocol.TenantID
	Stage        string
	Halted       bool // the copy job stopped with errors
	Locked       bool // every node last reported its disks locked
}

// Ticket is the service request the engineer names.
type Ticket struct {
	ID           protocol.TicketID
	Order        protocol.OrderID
	Subscription protocol.SubscriptionID
	Owner        protocol.Person
	EscalatedTo  []protocol.Person
}

// Evaluation is the outcome, to be shown and recorded whole.
type Evaluation struct {
	Factors        []Factor `json:"factors"` // in the order of the rules
	Passed         bool     `json:"passed"`
	ApproverGroups []string `json:"approverGroups,omitempty"` // who decides on the provider's side, by the permitting rule
}

// Factor is one thing looked at, with its own outcome.
type Factor struct {
	Name   string `json:"name"` // e.g. "resource-scope"
	Passed bool   `json:"passed"`
	Reason string `json:"reason"` // for people
}

// Blocked returns one line per blocked factor, "" when none is.
func (e Evaluation) Blocked() string {
	var lines []string
	for _, f := range e.Factors {
		if !f.Passed {
			lines = append(lines, f.Name+": "+f.Reason)
		}
	}
	return strings.Join(lines, "\n")
}

// Evaluate applies the rules to in. It may be called concurrently.
func (s *Set) Evaluate(in Input) Evaluation {
	decision, diagnostic := cedar.Authorize(s.policies, entities(in), request(in))
	hit := make(map[cedar.PolicyID]bool)
	for _, r := range diagnostic.Reasons {
		hit[r.PolicyID] = true
	}
	failed := make(map[cedar.PolicyID]bool)
	for _, e := range diagnostic.Errors {
		failed[e.PolicyID] = true
	}
	e := Evaluation{Factors: s.factors(hit, failed, facts(in))}
	e.Passed = decision == cedar.Allow && len(failed) == 0
	for _, r := range s.rules {
		if e.Passed && hit[r.id] {
			e.ApproverGroups = append(e.ApproverGroups, r.approvers...)
		}
	}
	if !e.Passed && e.Blocked() == "" {
		e.Factors = append(e.Factors, Factor{Name: "rule", Reason: fmt.Sprintf("no rule permits the action %q", in.Action)})
	}
	return e
}

// factors gathers the outcome of each factor from those of its rules.
func (s *Set) factors(hit, failed map[cedar.PolicyID]bool, facts *strings.Replacer) []Factor {
	var list []Factor
	for _, name := range s.names {
		f := Factor{Name: name, Passed: true}
		var passed, blocked []string
		for _, r := range s.rules {
			switch {
			case r.factor != name:
			case failed[r.id]:
				f.Passed = false
				blocked = append(blocked, fmt.Sprintf("rule %s could not be evaluated", r.id))
			case hit[r.id]:
				f.Passed = false
				blocked = append(blocked, facts.Replace(r.blocked))
			default:
				passed = append(passed, facts.Replace(r.passed))
			}
		}
		f.Reason = strings.Join(passed, "; ")
		if !f.Passed {
			f.Reason = strings.Join(blocked, "; ")
		}
		list = append(list, f)
	}
	return list
}

// facts fills the words in braces of a rule's texts.
func facts(in Input) *strings.Replacer {
	return strings.NewReplacer(
		"{engineer}", string(in.Caller.Person),
		"{role}", orNone(in.Caller.Role),
		"{serial}", string(in.Device.Serial),
		"{order}", orNone(string(in.Device.Order)),
		"{stage}", orNone(in.Device.Stage),
		"{ticket}", orNone(string(in.Ticket.ID)),
		"{ticket-order}", orNone(string(in.Ticket.Order)),
		"{reason}", orNone(in.ReasonCode),
		"{duration}", in.Duration.String(),
		"{longest}", in.Longest.String(),
	)
}

func orNone(s string) string {
	if s == "" {
		return "(none)"
	}
	return s
}

const (
	personType = cedar.EntityType("Person")
	deviceType = cedar.EntityType("Device")
	actionType = cedar.EntityType("Action")
)

func person(p protocol.Person) cedar.EntityUID {
	return cedar.NewEntityUID(personType, cedar.String(p))
}

func entities(in Input) cedar.EntityMap {
	caller, device := person(in.Caller.Person), cedar.NewEntityUID(deviceType, cedar.String(in.Device.Serial))
	return cedar.EntityMap{
		caller: {UID: caller, Attributes: cedar.NewRecord(cedar.RecordMap{
			"role":             cedar.String(in.Caller.Role),
			"isolatedIdentity": cedar.Boolean(in.Caller.IsolatedIdentity),
			"mfa":              cedar.Boolean(in.Caller.MFA),
		})},
		device: {UID: device, Attributes: cedar.NewRecord(cedar.RecordMap{
			"order":        cedar.String(in.Device.Order),
			"subscription": cedar.String(in.Device.Subscription),
			"tenant":       cedar.String(in.Device.Tenant),
			"stage":        cedar.String(in.Device.Stage),
			"halted":       cedar.Boolean(in.Device.Halted),
			"locked":       cedar.Boolean(in.Device.Locked),
		})},
	}
}

func request(in Input) cedar.Request {
	var escalated []cedar.Value
	for _, p := range in.Ticket.EscalatedTo {
		escalated = append(escalated, person(p))
	}
	return cedar.Request{
		Principal: person(in.Caller.Person),
		Action:    cedar.NewEntityUID(actionType, cedar.String(in.Action)),
		Resource:  cedar.NewEntityUID(deviceType, cedar.String(in.Device.Serial)),
		Context: cedar.NewRecord(cedar.RecordMap{
			"reasonCode": cedar.String(in.ReasonCode),
			"access":     cedar.String(in.Access),
			"duration":   cedar.NewDuration(in.Duration),
			"longest":    cedar.NewDuration(in.Longest),
			"ticket": cedar.NewRecord(cedar.RecordMap{
				"id":           cedar.String(in.Ticket.ID),
				"order":        cedar.String(in.Ticket.Order),
				"subscription": cedar.String(in.Ticket.Subscription),
				"owner":        person(in.Ticket.Owner),
				"escalatedTo":  cedar.NewSet(escalated...),
			}),
		}),
	}
}
