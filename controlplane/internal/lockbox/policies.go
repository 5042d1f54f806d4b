package lockbox

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// policyPoll is how often the policy files are looked at. What is found has to
// look the same twice: files are not written all at once.
const policyPoll = 2 * time.Second

// ruleSet is the set of JIT rules in force.
type ruleSet struct {
	set   *policy.Set
	since time.Time
}

// refusedSet is why what lies in the policy files is not in force.
type refusedSet struct {
	time   time.Time
	digest string // "" if they could not be read
	why    error
}

// RunPolicies puts the policy files in force as they change, until ctx ends. A set
// that does not check is refused, and the one before stays; either is recorded
// first.
func (s *Service) RunPolicies(ctx context.Context) error {
	tick := time.NewTicker(policyPoll)
	defer tick.Stop()
	w := &policyWatch{Service: s}
	for {
		if err := w.look(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Error().Err(err).Msg("cannot look after the JIT policies")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// policyWatch is what RunPolicies remembers from one look to the next.
type policyWatch struct {
	*Service
	begun  bool
	seen   string // digest of the files, or why there is none
	judged string // the one of these that was acted on last
}

// look looks at the files once.
func (w *policyWatch) look(ctx context.Context) error {
	if !w.begun {
		if err := w.begin(ctx); err != nil {
			return err
		}
		w.begun = true
	}
	if w.cfg.PolicyFiles == nil {
		return nil
	}
	files, err := policy.ReadFiles(w.cfg.PolicyFiles)
	found := refusedSet{time: w.now(), why: err}
	if err == nil {
		found.digest = files.Digest()
	}
	id := found.digest
	if err != nil {
		id = err.Error()
	}
	if id != w.seen || id == w.judged {
		w.seen = id
		return nil
	}
	if err := w.judgeFiles(ctx, files, found); err != nil {
		return err
	}
	w.judged = id
	return nil
}

// begin records the set that is in force from the start, if it is another than
// before.
func (w *policyWatch) begin(ctx context.Context) error {
	var last store.JITPolicies
	err := w.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		last, err = tx.JITPolicies(ctx, "")
		return err
	})
	now := w.rules.Load()
	switch {
	case err == nil && last.Digest == now.set.Digest():
		w.rules.Store(&ruleSet{now.set, last.Since})
		return nil
	case err != nil && protocol.CodeOf(err) != protocol.CodeNotFound:
		return err
	}
	return w.adoptPolicies(ctx, now.set, last.Digest)
}

// judgeFiles puts a set in force, or refuses it.
func (w *policyWatch) judgeFiles(ctx context.Context, files policy.Files, found refusedSet) error {
	before := w.rules.Load().set.Digest()
	if found.why == nil && found.digest == before {
		w.unused.Store(nil)
		return nil
	}
	var set *policy.Set
	if found.why == nil {
		set, found.why = policy.Parse(files)
	}
	if found.why == nil {
		return w.adoptPolicies(ctx, set, before)
	}
	w.unused.Store(&found)
	w.cfg.Logger.Error().Err(found.why).Str("digest", found.digest).Str("in_force", before).Msg("the JIT policies were changed and cannot be used: those before stay in force")
	return w.change(ctx, func(tx *store.Tx) error {
		return w.recordPolicies(ctx, tx, auditlog.Refused, map[string]string{"digest": found.digest, "inForce": before, "reason": shorten(found.why.Error())})
	})
}

// adoptPolicies puts set in force, once that is recorded.
func (s *Service) adoptPolicies(ctx context.Context, set *policy.Set, before string) error {
	files, err := json.Marshal(set.Files())
	if err != nil {
		return err
	}
	row := store.JITPolicies{Digest: set.Digest(), Files: files, Since: s.now()}
	err = s.change(ctx, func(tx *store.Tx) error {
		if err := tx.InsertJITPolicies(ctx, &row); err != nil {
			return err
		}
		return s.recordPolicies(ctx, tx, auditlog.Success, map[string]string{"digest": row.Digest, "before": before})
	})
	if err != nil {
		return err
	}
	s.rules.Store(&ruleSet{set, row.Since})
	s.unused.Store(nil)
	s.cfg.Logger.Info().Str("digest", row.Digest).Msg("JIT policies are in force")
	return nil
}

func (s *Service) recordPolicies(ctx context.Context, tx *store.Tx, result auditlog.Result, properties map[string]string) error {
	rec := auditlog.NewRecord(s.now(), auditlog.OpUpdatePolicy, result)
	rec.Caller, rec.ResourceID, rec.Properties = string(auth.SystemCaller().Person), "/policies/jit", properties
	_, err := s.cfg.Audit.Record(ctx, tx, rec)
	return err
}

// shorten bounds what is recorded of a message.
func shorten(s string) string { return s[:min(len(s), maxText)] }

// GetPolicies shows the JIT policies in force, or an earlier set.
func (s *Service) GetPolicies(ctx context.Context, _ auth.Caller, in *lockboxv1.GetPoliciesRequest) (*lockboxv1.Policies, error) {
	now := s.rules.Load()
	if in.Digest == "" || in.Digest == now.set.Digest() {
		out := showPolicies(now.set, now.since)
		out.InForce, out.BuiltIn = true, s.cfg.PolicyFiles == nil
		if r := s.unused.Load(); r != nil {
			out.Refused = &lockboxv1.RefusedPolicies{Time: r.time.Unix(), Digest: r.digest, Error: r.why.Error()}
		}
		return out, nil
	}
	row, err := view(ctx, s.cfg.Store, func(tx *store.Tx) (store.JITPolicies, error) { return tx.JITPolicies(ctx, in.Digest) })
	if err != nil {
		return nil, err
	}
	var files policy.Files
	if err := json.Unmarshal(row.Files, &files); err != nil {
		return nil, err
	}
	set, err := policy.Parse(files)
	if err != nil {
		return nil, err
	}
	return showPolicies(set, row.Since), nil
}

func showPolicies(set *policy.Set, since time.Time) *lockboxv1.Policies {
	out := &lockboxv1.Policies{Digest: set.Digest(), Since: since.Unix()}
	for _, r := range set.Rules() {
		out.Rules = append(out.Rules, &lockboxv1.PolicyRule{
			Id: r.ID, File: r.File, Line: int32(r.Line), Factor: r.Factor, Approvers: demandTexts(r.Approvers),
			MaxDurationSeconds: int64(r.Longest / time.Second), RequireMfa: r.RequireMFA,
		})
	}
	for name, text := range set.Files() {
		out.Files = append(out.Files, &lockboxv1.PolicyFile{Name: name, Text: text})
	}
	slices.SortFunc(out.Files, func(a, b *lockboxv1.PolicyFile) int { return strings.Compare(a.Name, b.Name) })
	return out
}
