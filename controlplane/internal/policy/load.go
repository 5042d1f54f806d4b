package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	expast "github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
)

// SchemaFile is the schema's name among the policy files.
const SchemaFile = "lockbox.cedarschema"

// maxFiles bounds what a set may hold, in bytes.
const maxFiles = 1 << 20

// Files are the texts of a set, by their names: the schema and the rules.
type Files map[string][]byte

// Set is a loaded and checked set of rules.
type Set struct {
	policies *cedar.PolicySet // all
	permits  *cedar.PolicySet // those that permit: what applies of them says what is demanded
	rules    []rule
	files    Files
	digest   string
}

// rule is what the annotations of a policy say.
type rule struct {
	id              cedar.PolicyID
	file            string
	line            int
	actions         []cedar.EntityUID // that it is about; all if empty
	factor          string            // "" for a permitting rule
	passed, blocked string
	demands         demands // of a permitting rule
}

// demands are what a permitting rule asks for beyond its yes.
type demands struct {
	approvers []Demand
	longest   time.Duration // 0: as the tenant says
	mfa       bool
}

// Load reads every *.cedar file at the top of files and [SchemaFile] beside
// them. All that is wrong with them is reported at once.
func Load(files fs.FS) (*Set, error) {
	texts, err := ReadFiles(files)
	if err != nil {
		return nil, err
	}
	return Parse(texts)
}

// ReadFiles reads the files of a set, and does not look into them.
func ReadFiles(files fs.FS) (Files, error) {
	names, err := fs.Glob(files, "*.cedar")
	if err != nil {
		return nil, fmt.Errorf("cannot list the policy files: %w", err)
	}
	out, size := Files{}, 0
	for _, name := range append(names, SchemaFile) {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("cannot read the JIT policies: %w", err)
		}
		out[name] = text
		if size += len(text); size > maxFiles {
			return nil, fmt.Errorf("the JIT policies have more than %d bytes", maxFiles)
		}
	}
	return out, nil
}

// Digest names the very texts, as sha256:<hex>.
func (f Files) Digest() string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(f)) {
		fmt.Fprintf(h, "%d %s %d ", len(name), name, len(f[name]))
		h.Write(f[name])
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// Parse checks the files of a set. All that is wrong with them is reported at
// once.
func Parse(files Files) (*Set, error) {
	validator, err := loadSchema(files[SchemaFile])
	if err != nil {
		return nil, err
	}
	s := &Set{policies: cedar.NewPolicySet(), permits: cedar.NewPolicySet(), files: files, digest: files.Digest()}
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if name != SchemaFile {
			problems = append(problems, s.loadFile(name, files[name], validator)...)
		}
	}
	permits := func(r rule) bool { return r.factor == "" }
	if !slices.ContainsFunc(s.rules, permits) || !slices.ContainsFunc(s.rules, func(r rule) bool { return !permits(r) }) {
		problems = append(problems, errors.New("the policy files need at least one permit and one factor: nothing would ever pass, or everything would"))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("cannot use the JIT policies: %w", err)
	}
	return s, nil
}

// Digest is that of the files that s was made of.
func (s *Set) Digest() string { return s.digest }

// Files are those that s was made of. They are not to be changed.
func (s *Set) Files() Files { return s.files }

func loadSchema(text []byte) (*validate.Validator, error) {
	if len(text) == 0 {
		return nil, fmt.Errorf("the JIT policies need their schema, %s", SchemaFile)
	}
	var s schema.Schema
	s.SetFilename(SchemaFile)
	if err := s.UnmarshalCedar(text); err != nil {
		return nil, fmt.Errorf("%s: %w", SchemaFile, err)
	}
	resolved, err := s.Resolve()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", SchemaFile, err)
	}
	return validate.New(resolved), nil
}

func (s *Set) loadFile(name string, text []byte, validator *validate.Validator) []error {
	list, err := cedar.NewPolicyListFromBytes(name, text)
	if err != nil {
		return []error{fmt.Errorf("%s: %w", name, err)}
	}
	var problems []error
	for _, p := range list {
		if err := s.add(name, p, validator); err != nil {
			problems = append(problems, fmt.Errorf("%s:%d: %w", name, p.Position().Line, err))
		}
	}
	return problems
}

// known are the annotations that a policy may have, by what it does. A misspelt
// one would demand nothing, silently.
var known = map[cedar.Effect][]types.AnnotationKey{
	cedar.Permit: {"id", "approvers", "max_duration", "require_mfa"},
	cedar.Forbid: {"id", "factor", "passed", "blocked"},
}

// add takes one policy in, under its @id: Cedar's own ids say only where it
// stood in the file.
func (s *Set) add(file string, p *cedar.Policy, validator *validate.Validator) error {
	notes := p.Annotations()
	r := rule{
		id: cedar.PolicyID(notes["id"]), file: file, line: p.Position().Line, factor: string(notes["factor"]),
		passed: string(notes["passed"]), blocked: string(notes["blocked"]), actions: actionsOf((*expast.Policy)(p.AST())),
	}
	if r.id == "" {
		return errors.New("the policy has no @id")
	}
	if err := validator.Policy(string(r.id), (*expast.Policy)(p.AST())); err != nil {
		return fmt.Errorf("policy %s: %w", r.id, err)
	}
	if p.Effect() == cedar.Permit && r.factor != "" {
		return fmt.Errorf("policy %s permits and so has no @factor: write the factor as forbid … unless", r.id)
	}
	for name := range notes {
		if !slices.Contains(known[p.Effect()], name) {
			return fmt.Errorf("policy %s has the unknown annotation @%s: want one of %v", r.id, name, known[p.Effect()])
		}
	}
	if p.Effect() == cedar.Forbid && (r.factor == "" || r.passed == "" || r.blocked == "") {
		return fmt.Errorf("policy %s forbids and so needs @factor, @passed and @blocked", r.id)
	}
	if p.Effect() == cedar.Permit {
		var err error
		if r.demands, err = readDemands(notes); err != nil {
			return fmt.Errorf("policy %s: %w", r.id, err)
		}
	}
	if !s.policies.Add(r.id, p) {
		return fmt.Errorf("two policies have the @id %s", r.id)
	}
	if p.Effect() == cedar.Permit {
		s.permits.Add(r.id, p)
	}
	s.rules = append(s.rules, r)
	return nil
}

// actionsOf returns the actions that a policy names, none if it is about all.
func actionsOf(p *expast.Policy) []cedar.EntityUID {
	switch scope := p.Action.(type) {
	case expast.ScopeTypeEq:
		return []cedar.EntityUID{scope.Entity}
	case expast.ScopeTypeIn:
		return []cedar.EntityUID{scope.Entity}
	case expast.ScopeTypeInSet:
		return scope.Entities
	}
	return nil
}

// about reports whether r has anything to say about an action.
func (r rule) about(action string) bool {
	return len(r.actions) == 0 || slices.Contains(r.actions, cedar.NewEntityUID(actionType, cedar.String(action)))
}

// readDemands reads the annotations of a permitting rule.
func readDemands(notes cedar.Annotations) (d demands, err error) {
	for part := range strings.SplitSeq(string(notes["approvers"]), ",") {
		var groups Demand
		for name := range strings.SplitSeq(part, " or ") {
			if name = strings.TrimSpace(name); name == "" {
				return d, errors.New("it permits and so needs @approvers, groups with commas or “or” between them")
			}
			groups = append(groups, name)
		}
		d.approvers = append(d.approvers, groups)
	}
	if text, ok := notes["max_duration"]; ok {
		if d.longest, err = time.ParseDuration(string(text)); err != nil || d.longest < time.Second || d.longest%time.Second != 0 {
			return d, fmt.Errorf("@max_duration is %q: want whole seconds, as in 4h", text)
		}
	}
	if text, ok := notes["require_mfa"]; ok {
		if d.mfa, err = strconv.ParseBool(string(text)); err != nil {
			return d, fmt.Errorf("@require_mfa is %q: want true or false", text)
		}
	}
	return d, nil
}
