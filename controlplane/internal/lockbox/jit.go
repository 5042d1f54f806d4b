package lockbox

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// What the JIT rules demand of a request beyond their yes is written down with
// it when it is made, and holds for it to its end, whatever the rules say later.

// demanded is demands for people.
func demanded(demands []policy.Demand) string { return strings.Join(demandTexts(demands), ", ") }

func demandTexts(demands []policy.Demand) []string {
	var list []string
	for _, d := range demands {
		list = append(list, d.String())
	}
	return list
}

// demandsOf are the approvers that the rules asked for when r was made.
func demandsOf(r store.Request) ([]policy.Demand, error) {
	e := &lockboxv1.Evaluation{}
	if err := proto.Unmarshal(r.Evaluation, e); err != nil {
		return nil, err
	}
	var out []policy.Demand
	for _, text := range e.Approvers {
		out = append(out, policy.ParseDemand(text))
	}
	return out, nil
}

// canBeMet refuses a request of which the provider could never approve as the
// rules demand: only those whom the trust policy names can sign.
func (d *draft) canBeMet(ctx context.Context, tx *store.Tx, trust *approval.Policy, st approval.Statement, e policy.Evaluation) error {
	rule, err := trust.RuleFor(st)
	if err != nil {
		return err
	}
	people, err := signersOf(ctx, tx, trust, rule)
	if err != nil {
		return err
	}
	if missing := policy.Missing(e.Approvers, people); len(missing) > 0 {
		return protocol.Errorf(protocol.CodeJITBlocked, "the request is blocked: the rules demand %s, and the device's trust policy names nobody for %s who could sign: "+
			"have somebody of its internal approvers put into the group, or the trust policy replaced", demanded(e.Approvers), demanded(missing))
	}
	return nil
}

// signersOf are the provider's people whom a rule of the trust policy names, with
// their groups.
func signersOf(ctx context.Context, tx *store.Tx, trust *approval.Policy, rule approval.Rule) (map[protocol.Person][]string, error) {
	out := make(map[protocol.Person][]string)
	for _, k := range trust.Document().Keys {
		if !slices.ContainsFunc(rule.ProviderGroups, func(g approval.Group) bool { return slices.Contains(g.Keys, k.ID) }) {
			continue
		}
		p, err := tx.Person(ctx, k.Person)
		if protocol.CodeOf(err) == protocol.CodeNotFound || err == nil && !p.Removed.IsZero() {
			continue
		}
		if err != nil {
			return nil, err
		}
		out[p.Name] = p.Groups
	}
	return out, nil
}

// demandsUnmet are the demands of the JIT rules that are not met once caller has
// approved too. A person counts for the groups that they were in when the request
// was made, and are in still.
func (j judgement) demandsUnmet(ctx context.Context, tx *store.Tx, caller auth.Caller) ([]policy.Demand, error) {
	demands, err := demandsOf(j.request)
	if err != nil || len(demands) == 0 {
		return nil, err
	}
	noted, err := tx.RequestApprovers(ctx, j.request.ID)
	if err != nil {
		return nil, err
	}
	people := make(map[protocol.Person][]string)
	for _, a := range noted {
		yes := func(d store.Decision) bool {
			return d.Person == a.Person && d.Role == string(approval.Provider) && d.Verdict == string(approval.Approve)
		}
		if a.Person != caller.Person && !slices.ContainsFunc(j.earlier, yes) {
			continue
		}
		p, err := tx.Person(ctx, a.Person)
		if err != nil {
			return nil, err
		}
		people[p.Name] = slices.DeleteFunc(slices.Clone(a.Groups), func(g string) bool { return !auth.InGroup(p.Groups, g) })
	}
	return policy.Missing(demands, people), nil
}

// stillAsked writes down whom the rules ask for still, after a decision that
// completed nothing.
func (s *Service) stillAsked(ctx context.Context, tx *store.Tx, j judgement, event Event) error {
	if event != "" || len(j.unmet) == 0 {
		return nil
	}
	return s.addHistory(ctx, tx, j.request, "Still to decide", demanded(j.unmet))
}

func showEvaluation(e policy.Evaluation, caller auth.Caller, now time.Time) *lockboxv1.Evaluation {
	out := &lockboxv1.Evaluation{
		Passed: e.Passed, Approvers: demandTexts(e.Approvers), MaxDurationSeconds: int64(e.Longest / time.Second), MfaDemanded: e.MFA,
		Rules: e.Rules, PolicyDigest: e.Policy, Time: now.Unix(), Isolated: caller.Isolated, Mfa: caller.MFA,
	}
	for _, f := range e.Factors {
		out.Factors = append(out.Factors, &lockboxv1.Factor{Name: f.Name, Passed: f.Passed, Reason: f.Reason, Rules: f.Rules})
	}
	return out
}
