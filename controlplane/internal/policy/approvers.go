package policy

import (
	"slices"
	"strings"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Demand asks for one person of any of its groups.
type Demand []string

// String is d for people, and the form in which it is stored.
func (d Demand) String() string { return strings.Join(d, " or ") }

// ParseDemand reads what [Demand.String] wrote.
func ParseDemand(s string) Demand { return strings.Split(s, " or ") }

// Missing returns the demands that people do not meet, in their order. A person
// counts for one demand only, whatever groups they are in; who is to count for
// which is chosen so that as many as possible are met.
func Missing(demands []Demand, people map[protocol.Person][]string) []Demand {
	m := matching{people: people, demands: demands, by: map[protocol.Person]int{}}
	met := make([]bool, len(demands))
	for i := range demands {
		met[i] = m.meet(i, map[protocol.Person]bool{})
	}
	var out []Demand
	for i, d := range demands {
		if !met[i] {
			out = append(out, d)
		}
	}
	return out
}

// matching says which demand each person counts for.
type matching struct {
	people  map[protocol.Person][]string
	demands []Demand
	by      map[protocol.Person]int
}

// meet finds somebody for demand i. Who counts for another one is taken if
// somebody else can be found for that.
func (m *matching) meet(i int, asked map[protocol.Person]bool) bool {
	for person, groups := range m.people {
		if asked[person] || !m.demands[i].names(groups) {
			continue
		}
		asked[person] = true
		other, taken := m.by[person]
		if !taken || m.meet(other, asked) {
			m.by[person] = i
			return true
		}
	}
	return false
}

// names reports whether any of groups is one of d's. Upper and lower case are the
// same.
func (d Demand) names(groups []string) bool {
	return slices.ContainsFunc(d, func(want string) bool {
		return slices.ContainsFunc(groups, func(g string) bool { return strings.EqualFold(g, want) })
	})
}
