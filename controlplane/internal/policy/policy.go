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
//   - The outcome of every factor is shown, passed ones too, with the rules that
//     it comes from and the digest of the set that they stand in.
//   - What several permitting rules demand is demanded together: every approver
//     of each, the shortest time.
//
// The package is pure: it reads no clock, file or network.
package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go"

	"github.com/databox-lockbox/lockbox/protocol"
)

// The actions that there are rules for.
const (
	ActionUnlock = "Unlock Databox"
	ActionAccess = "Access Subscription" // of its Input.Device, the order's fields alone are looked at
)

// Input is what the rules may look at.
type Input struct {
	Action     string
	Caller     Caller
	Device     Device
	Ticket     Ticket
	ReasonCode string
	Access     string // read-only, read-write or delete
	Duration   time.Duration
	Flexible   bool          // nobody asked for that duration: it may be shortened
	Longest    time.Duration // that the tenant lets one access last
	Scope      string        // of ActionAccess: subscription or tenant
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
	Factors   []Factor      // in the order of the rules
	Passed    bool          // no factor is blocked, and a rule permits it
	Approvers []Demand      // who decides on the provider's side, by the permitting rules
	Longest   time.Duration // by the permitting rules; 0: as the tenant says
	MFA       bool          // a second factor is demanded
	Rules     []string      // ids of the permitting rules
	Policy    string        // digest of the set
}

// Factor is one thing looked at, with its own outcome.
type Factor struct {
	Name   string // e.g. "resource-scope"
	Passed bool
	Reason string   // for people
	Rules  []string // ids of the rules that decided it
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
	entities, request := entities(in), request(in)
	decision, diagnostic := cedar.Authorize(s.policies, entities, request)
	hit, failed := idsOf(diagnostic)
	_, permits := cedar.Authorize(s.permits, entities, request)
	permitted, _ := idsOf(permits)
	e := Evaluation{Factors: s.factors(in.Action, hit, failed, facts(in)), Policy: s.digest}
	for _, r := range s.rules {
		if permitted[r.id] {
			e.demand(r)
		}
	}
	e.Factors = append(e.Factors, e.demanded(in)...)
	e.Passed = decision == cedar.Allow && len(failed) == 0 && e.Blocked() == ""
	if !e.Passed && e.Blocked() == "" {
		e.Factors = append(e.Factors, Factor{Name: "rule", Reason: fmt.Sprintf("no rule permits the action %q", in.Action)})
	}
	return e
}

// idsOf returns which rules applied, and which could not be evaluated.
func idsOf(d cedar.Diagnostic) (hit, failed map[cedar.PolicyID]bool) {
	hit, failed = make(map[cedar.PolicyID]bool), make(map[cedar.PolicyID]bool)
	for _, r := range d.Reasons {
		hit[r.PolicyID] = true
	}
	for _, e := range d.Errors {
		failed[e.PolicyID] = true
	}
	return hit, failed
}

// demand adds what a permitting rule demands.
func (e *Evaluation) demand(r rule) {
	e.Rules = append(e.Rules, string(r.id))
	for _, d := range r.demands.approvers {
		if !slices.ContainsFunc(e.Approvers, func(other Demand) bool { return slices.Equal(other, d) }) {
			e.Approvers = append(e.Approvers, d)
		}
	}
	if longest := r.demands.longest; longest != 0 && (e.Longest == 0 || longest < e.Longest) {
		e.Longest = longest
	}
	e.MFA = e.MFA || r.demands.mfa
}

// demanded are the factors that come from what the permitting rules demand.
func (e *Evaluation) demanded(in Input) []Factor {
	var list []Factor
	if e.Longest != 0 {
		f := Factor{Name: "max-duration", Passed: in.Flexible || in.Duration <= e.Longest, Rules: e.Rules}
		f.Reason = fmt.Sprintf("the rules give %s at most", e.Longest)
		if !f.Passed {
			f.Reason += fmt.Sprintf(", %s was asked for: ask for no more", in.Duration)
		}
		list = append(list, f)
	}
	if e.MFA {
		f := Factor{Name: "second-factor", Passed: in.Caller.MFA, Rules: e.Rules}
		f.Reason = fmt.Sprintf("%s signed in with a second factor, which the rules demand", in.Caller.Person)
		if !f.Passed {
			f.Reason = fmt.Sprintf("%s signed in without the second factor that the rules demand: sign in by an identity provider that asks for one", in.Caller.Person)
		}
		list = append(list, f)
	}
	return list
}

// names are those of the factors of an action, in the order of the rules.
func (s *Set) names(action string) []string {
	var list []string
	for _, r := range s.rules {
		if r.factor != "" && r.about(action) && !slices.Contains(list, r.factor) {
			list = append(list, r.factor)
		}
	}
	return list
}

// factors gathers the outcome of each factor of an action from those of its rules.
func (s *Set) factors(action string, hit, failed map[cedar.PolicyID]bool, facts *strings.Replacer) []Factor {
	var list []Factor
	for _, name := range s.names(action) {
		var passed, blocked, agreed, objected []string
		for _, r := range s.rules {
			switch {
			case r.factor != name || !r.about(action):
			case failed[r.id]:
				blocked, objected = append(blocked, fmt.Sprintf("rule %s could not be evaluated", r.id)), append(objected, string(r.id))
			case hit[r.id]:
				blocked, objected = append(blocked, facts.Replace(r.blocked)), append(objected, string(r.id))
			default:
				passed, agreed = append(passed, facts.Replace(r.passed)), append(agreed, string(r.id))
			}
		}
		if len(objected) > 0 {
			list = append(list, Factor{Name: name, Reason: strings.Join(blocked, "; "), Rules: objected})
		} else {
			list = append(list, Factor{Name: name, Passed: true, Reason: strings.Join(passed, "; "), Rules: agreed})
		}
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
		"{subscription}", orNone(string(in.Device.Subscription)),
		"{ticket-subscription}", orNone(string(in.Ticket.Subscription)),
		"{scope}", orNone(in.Scope),
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
	personType       = cedar.EntityType("Person")
	deviceType       = cedar.EntityType("Device")
	subscriptionType = cedar.EntityType("Subscription")
	actionType       = cedar.EntityType("Action")
)

func person(p protocol.Person) cedar.EntityUID {
	return cedar.NewEntityUID(personType, cedar.String(p))
}

// resource is what is asked for.
func resource(in Input) cedar.EntityUID {
	if in.Action == ActionAccess {
		return cedar.NewEntityUID(subscriptionType, cedar.String(in.Device.Subscription))
	}
	return cedar.NewEntityUID(deviceType, cedar.String(in.Device.Serial))
}

func entities(in Input) cedar.EntityMap {
	caller, asked := person(in.Caller.Person), resource(in)
	return cedar.EntityMap{
		caller: {UID: caller, Attributes: cedar.NewRecord(cedar.RecordMap{
			"role":             cedar.String(in.Caller.Role),
			"isolatedIdentity": cedar.Boolean(in.Caller.IsolatedIdentity),
			"mfa":              cedar.Boolean(in.Caller.MFA),
		})},
		asked: {UID: asked, Attributes: attributes(in)},
	}
}

func attributes(in Input) cedar.Record {
	if in.Action == ActionAccess {
		return cedar.NewRecord(cedar.RecordMap{"subscription": cedar.String(in.Device.Subscription), "tenant": cedar.String(in.Device.Tenant)})
	}
	return cedar.NewRecord(cedar.RecordMap{
		"order":        cedar.String(in.Device.Order),
		"subscription": cedar.String(in.Device.Subscription),
		"tenant":       cedar.String(in.Device.Tenant),
		"stage":        cedar.String(in.Device.Stage),
		"halted":       cedar.Boolean(in.Device.Halted),
		"locked":       cedar.Boolean(in.Device.Locked),
	})
}

func request(in Input) cedar.Request {
	var escalated []cedar.Value
	for _, p := range in.Ticket.EscalatedTo {
		escalated = append(escalated, person(p))
	}
	return cedar.Request{
		Principal: person(in.Caller.Person),
		Action:    cedar.NewEntityUID(actionType, cedar.String(in.Action)),
		Resource:  resource(in),
		Context: cedar.NewRecord(cedar.RecordMap{
			"reasonCode": cedar.String(in.ReasonCode),
			"access":     cedar.String(in.Access),
			"duration":   cedar.NewDuration(in.Duration),
			"longest":    cedar.NewDuration(in.Longest),
			"scope":      cedar.String(in.Scope),
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
