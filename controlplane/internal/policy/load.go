package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go"
	expast "github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
)

// SchemaFile is the schema's name among the policy files.
const SchemaFile = "lockbox.cedarschema"

// Set is a loaded and checked set of rules.
type Set struct {
	policies *cedar.PolicySet
	rules    []rule
	names    []string // of the factors, in the order of the rules
}

// rule is what the annotations of a policy say.
type rule struct {
	id              cedar.PolicyID
	factor          string // "" for a permitting rule
	passed, blocked string
	approvers       []string
}

// Load reads every *.cedar file at the top of files and [SchemaFile] beside
// them. All that is wrong with them is reported at once.
func Load(files fs.FS) (*Set, error) {
	validator, err := loadSchema(files)
	if err != nil {
		return nil, err
	}
	names, err := fs.Glob(files, "*.cedar")
	if err != nil {
		return nil, fmt.Errorf("cannot list the policy files: %w", err)
	}
	s := &Set{policies: cedar.NewPolicySet()}
	var problems []error
	for _, name := range names {
		problems = append(problems, s.loadFile(files, name, validator)...)
	}
	if len(s.names) == 0 || !slices.ContainsFunc(s.rules, func(r rule) bool { return r.factor == "" }) {
		problems = append(problems, errors.New("the policy files need at least one permit and one factor: nothing would ever pass, or everything would"))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("cannot use the JIT policies: %w", err)
	}
	return s, nil
}

func loadSchema(files fs.FS) (*validate.Validator, error) {
	text, err := fs.ReadFile(files, SchemaFile)
	if err != nil {
		return nil, fmt.Errorf("cannot read the schema of the JIT policies: %w", err)
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

func (s *Set) loadFile(files fs.FS, name string, validator *validate.Validator) []error {
	text, err := fs.ReadFile(files, name)
	if err != nil {
		return []error{fmt.Errorf("cannot read policy file %s: %w", name, err)}
	}
	list, err := cedar.NewPolicyListFromBytes(name, text)
	if err != nil {
		return []error{fmt.Errorf("%s: %w", name, err)}
	}
	var problems []error
	for _, p := range list {
		if err := s.add(p, validator); err != nil {
			problems = append(problems, fmt.Errorf("%s:%d: %w", name, p.Position().Line, err))
		}
	}
	return problems
}

// add takes one policy in, under its @id: Cedar's own ids say only where it
// stood in the file.
func (s *Set) add(p *cedar.Policy, validator *validate.Validator) error {
	notes := p.Annotations()
	r := rule{
		id: cedar.PolicyID(notes["id"]), factor: string(notes["factor"]),
		passed: string(notes["passed"]), blocked: string(notes["blocked"]),
	}
	if r.id == "" {
		return errors.New("the policy has no @id")
	}
	if err := validator.Policy(string(r.id), (*expast.Policy)(p.AST())); err != nil {
		return fmt.Errorf("policy %s: %w", r.id, err)
	}
	if p.Effect() == cedar.Forbid && (r.factor == "" || r.passed == "" || r.blocked == "") {
		return fmt.Errorf("policy %s forbids and so needs @factor, @passed and @blocked", r.id)
	}
	if p.Effect() == cedar.Permit {
		if r.factor != "" {
			return fmt.Errorf("policy %s permits and so has no @factor: write the factor as forbid … unless", r.id)
		}
		if r.approvers = splitList(string(notes["approvers"])); len(r.approvers) == 0 {
			return fmt.Errorf("policy %s permits and so needs @approvers", r.id)
		}
	}
	if !s.policies.Add(r.id, p) {
		return fmt.Errorf("two policies have the @id %s", r.id)
	}
	s.rules = append(s.rules, r)
	if r.factor != "" && !slices.Contains(s.names, r.factor) {
		s.names = append(s.names, r.factor)
	}
	return nil
}

func splitList(s string) []string {
	var list []string
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			list = append(list, part)
		}
	}
	return list
}
