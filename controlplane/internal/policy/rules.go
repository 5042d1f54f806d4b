package policy

import "time"

// Rule describes one rule of a set.
type Rule struct {
	ID         string
	File       string
	Line       int
	Factor     string        // "" of a permitting rule
	Approvers  []Demand      // the rest of a permitting rule only
	Longest    time.Duration // 0: as the tenant says
	RequireMFA bool
}

// Rules describes the rules of s, in their order.
func (s *Set) Rules() []Rule {
	var out []Rule
	for _, r := range s.rules {
		out = append(out, Rule{
			ID: string(r.id), File: r.file, Line: r.line, Factor: r.factor,
			Approvers: r.demands.approvers, Longest: r.demands.longest, RequireMFA: r.demands.mfa,
		})
	}
	return out
}
