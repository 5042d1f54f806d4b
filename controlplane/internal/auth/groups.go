package auth

import (
	"context"
	"regexp"
	"slices"
	"strings"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// Groups of internal approvers. JIT policies may name any other.
const (
	DefaultGroup = "Customer support lead" // of internal approvers for whom none was named
	ManagerGroup = "Manager"               // who decide whether a customer's contact address is read
)

// maxGroups is how many groups one person may be in.
const maxGroups = 16

// groupForm is the form of a group's name. Commas and “ or ” part them in JIT
// policies.
var groupForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$`)

// SetGroups says which groups of internal approvers somebody is in. What they
// have decided already counts for the groups that they are in still.
func (s *Service) SetGroups(ctx context.Context, caller Caller, in *lockboxv1.SetGroupsRequest) (*lockboxv1.Person, error) {
	var out *lockboxv1.Person
	err := s.Store.Tx(ctx, func(tx *store.Tx) error {
		row, err := s.find(ctx, tx, caller, protocol.Person(in.Person))
		if err != nil {
			return err
		}
		row.Groups = in.Groups
		if err := checkPerson(row, 0); err != nil {
			return err
		}
		if err := tx.UpdatePerson(ctx, &row); err != nil {
			return err
		}
		rec := s.record(caller, auditlog.OpUpdateGroup, row)
		rec.Properties["groups"] = strings.Join(row.Groups, ", ")
		if _, err := s.Audit.Record(ctx, tx, rec); err != nil {
			return err
		}
		out, err = show(ctx, tx, row)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func checkGroups(groups []string) error {
	if len(groups) > maxGroups {
		return protocol.Errorf(protocol.CodeInvalid, "%d groups: at most %d are allowed", len(groups), maxGroups)
	}
	for _, g := range groups {
		if !groupForm.MatchString(g) || strings.Contains(g, " or ") || strings.TrimSpace(g) != g {
			return protocol.Errorf(protocol.CodeInvalid, "%q is no name of a group: want 1 to 64 letters, digits, spaces and ._-, without the word “or”", g)
		}
	}
	return nil
}

// InGroup reports whether groups holds that one. Upper and lower case are the
// same.
func InGroup(groups []string, group string) bool {
	return slices.ContainsFunc(groups, func(g string) bool { return strings.EqualFold(g, group) })
}

// Masked leaves of an address what tells one from another to those who know them.
func Masked(address string) string {
	at := strings.LastIndexByte(address, '@')
	if at < 1 {
		return address
	}
	return address[:1] + "…" + address[at:]
}

// MaskedFor is addresses of a customer as caller may see them: the provider's
// people read them by asking for the contact only.
func MaskedFor(caller Caller, addresses []string) []string {
	if caller.Role.OfCustomer() || caller.Is(System) {
		return addresses
	}
	return MaskedAll(addresses)
}

// MaskedAll is addresses, each [Masked].
func MaskedAll(addresses []string) []string {
	var out []string
	for _, a := range addresses {
		out = append(out, Masked(a))
	}
	return out
}
