package auth

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// maxKeys is how many SSH keys one person may have.
const maxKeys = 8

// nameForm is the form of sign-in names in documents that are signed.
var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._%+@-]{0,127}$`)

// WhoAmI tells the caller who they are to the service.
func (s *Service) WhoAmI(ctx context.Context, caller Caller, _ *lockboxv1.WhoAmIRequest) (*lockboxv1.WhoAmIResponse, error) {
	var p *lockboxv1.Person
	err := s.Store.View(ctx, func(tx *store.Tx) error {
		row, err := tx.Person(ctx, caller.Person)
		if err != nil {
			return err
		}
		p, err = show(ctx, tx, row)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &lockboxv1.WhoAmIResponse{
		Person: p, CertificateExpires: caller.Expires.Unix(), May: s.May(caller.Role),
		SignedInBy: caller.Method, SignedIn: unix(caller.SignedIn), SignInEnds: unix(caller.Ends), Mfa: caller.MFA, Isolated: caller.Isolated,
	}, nil
}

// CreatePerson registers somebody and returns a login token for them. Admins
// register anyone; an owner registers owners and approvers of their own tenant,
// and a tenant administrator other administrators too, by names of the domain of
// their own.
func (s *Service) CreatePerson(ctx context.Context, caller Caller, in *lockboxv1.CreatePersonRequest) (*lockboxv1.CreatePersonResponse, error) {
	row := store.Person{Name: protocol.Person(in.Name), Role: in.Role, Tenant: protocol.TenantID(in.Tenant), Groups: in.Groups, Created: s.Now()}
	if len(row.Groups) == 0 && Role(row.Role) == InternalApprover {
		row.Groups = []string{DefaultGroup}
	}
	if err := checkPerson(row, len(in.SshKeys)); err != nil {
		return nil, err
	}
	if err := mayManage(caller, row); err != nil {
		return nil, err
	}
	if err := mayName(caller, row.Name); err != nil {
		return nil, err
	}
	keys, err := readKeys(row, in.SshKeys)
	if err != nil {
		return nil, err
	}
	out := &lockboxv1.CreatePersonResponse{}
	err = s.Store.Tx(ctx, func(tx *store.Tx) error {
		if err := insertPerson(ctx, tx, row, keys); err != nil {
			return err
		}
		rec := s.record(caller, auditlog.OpCreateUser, row)
		if _, err := s.Audit.Record(ctx, tx, rec); err != nil {
			return err
		}
		if out.LoginToken, err = s.newToken(ctx, tx, row.Name); err != nil {
			return err
		}
		out.Person, err = show(ctx, tx, row)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func insertPerson(ctx context.Context, tx *store.Tx, row store.Person, keys []store.PersonKey) error {
	if row.Tenant != "" {
		if _, err := tx.Tenant(ctx, row.Tenant); err != nil {
			return err
		}
	}
	if err := tx.InsertPerson(ctx, &row); err != nil {
		return err
	}
	for _, k := range keys {
		if err := tx.InsertPersonKey(ctx, &k); err != nil {
			return err
		}
	}
	return nil
}

// ListPeople lists the people that the caller may see. A customer's name is an
// address by which they can be reached: of the provider's people, only those who
// manage people and those who audit them read it there.
func (s *Service) ListPeople(ctx context.Context, caller Caller, in *lockboxv1.ListPeopleRequest) (*lockboxv1.ListPeopleResponse, error) {
	tenant := protocol.TenantID(in.Tenant)
	if scope := caller.Scope(); scope != "" {
		tenant = scope
	}
	out := &lockboxv1.ListPeopleResponse{}
	err := s.Store.View(ctx, func(tx *store.Tx) error {
		rows, err := tx.People(ctx, tenant, in.Role)
		if err != nil {
			return err
		}
		for _, row := range rows {
			p, err := show(ctx, tx, row)
			if err != nil {
				return err
			}
			if row.Tenant != "" && caller.Is(Staff, Engineer, InternalApprover) {
				p.Name, p.SshKeys = Masked(p.Name), nil // a key's comment is often an address
			}
			out.People = append(out.People, p)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// RemovePerson ends a person's rights, certificates, keys and tokens at once, and
// whatever they have opened. Nobody removes themselves, so that an admin remains.
func (s *Service) RemovePerson(ctx context.Context, caller Caller, in *lockboxv1.RemovePersonRequest) (*lockboxv1.RemovePersonResponse, error) {
	name := protocol.Person(in.Name)
	if name == caller.Person {
		return nil, protocol.Errorf(protocol.CodeForbidden, "nobody can remove themselves: ask another admin")
	}
	var tell func(context.Context)
	err := s.Store.Tx(ctx, func(tx *store.Tx) error {
		row, err := s.find(ctx, tx, caller, name)
		if err != nil {
			return err
		}
		row.Removed = s.Now()
		if err := tx.UpdatePerson(ctx, &row); err != nil {
			return err
		}
		if err := tx.DeletePersonKeys(ctx, name); err != nil {
			return err
		}
		if err := tx.DeleteLoginTokens(ctx, name); err != nil {
			return err
		}
		if _, err := s.Audit.Record(ctx, tx, s.record(caller, auditlog.OpDeleteUser, row)); err != nil {
			return err
		}
		tell, err = s.EndPerson(ctx, tx, caller, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	tell(ctx)
	return &lockboxv1.RemovePersonResponse{}, nil
}

// CreateLoginToken makes a token for somebody who is registered. It ends the
// ones made before, every certificate they have, and what binds them to an account
// at an identity provider: whoever stole one is out.
func (s *Service) CreateLoginToken(ctx context.Context, caller Caller, in *lockboxv1.CreateLoginTokenRequest) (*lockboxv1.CreateLoginTokenResponse, error) {
	out := &lockboxv1.CreateLoginTokenResponse{}
	err := s.Store.Tx(ctx, func(tx *store.Tx) error {
		row, err := s.find(ctx, tx, caller, protocol.Person(in.Name))
		if err != nil {
			return err
		}
		if err := tx.EndPersonCerts(ctx, row.Name, s.Now()); err != nil {
			return err
		}
		if err := tx.DeletePersonSubject(ctx, row.Name); err != nil {
			return err
		}
		if _, err := s.Audit.Record(ctx, tx, s.record(caller, auditlog.OpCreateLoginToken, row)); err != nil {
			return err
		}
		out.LoginToken, err = s.newToken(ctx, tx, row.Name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// find reads a person whom the caller may manage. Whom they may not see is not
// found.
func (s *Service) find(ctx context.Context, tx *store.Tx, caller Caller, name protocol.Person) (store.Person, error) {
	row, err := tx.Person(ctx, name)
	if err == nil && (!row.Removed.IsZero() || !caller.Sees(row.Tenant)) {
		err = protocol.Errorf(protocol.CodeNotFound, "person %s not found", name)
	}
	if err != nil {
		return store.Person{}, err
	}
	return row, mayManage(caller, row)
}

func mayManage(caller Caller, p store.Person) error {
	ofTheirs := Role(p.Role).OfCustomer() && caller.Sees(p.Tenant) &&
		(caller.Is(TenantAdmin) || caller.Is(Owner) && Role(p.Role) != TenantAdmin)
	if caller.Is(Admin, System) || ofTheirs {
		return nil
	}
	return protocol.Errorf(protocol.CodeForbidden, "%s may not manage a person with role %s: ask an admin, or an owner or administrator of their tenant", caller.Person, p.Role)
}

// mayName keeps owners from taking names that others will want: a name is given
// once in the whole service.
func mayName(caller Caller, name protocol.Person) error {
	if caller.Is(Owner, TenantAdmin) && domainOf(name) != domainOf(caller.Person) {
		return protocol.Errorf(protocol.CodeForbidden, "%s may give names of %s only: for %q ask an admin", caller.Person, domainOf(caller.Person), name)
	}
	return nil
}

// domainOf is the part of a name after its last @; the name of who has none is
// their domain.
func domainOf(name protocol.Person) string {
	return string(name)[strings.LastIndex(string(name), "@")+1:]
}

func checkPerson(p store.Person, keys int) error {
	refuse := func(format string, args ...any) error { return protocol.Errorf(protocol.CodeInvalid, format, args...) }
	switch role := Role(p.Role); {
	case !nameForm.MatchString(string(p.Name)):
		return refuse("%q is no sign-in name: want 1 to 128 of a-z, 0-9 and ._%%+@-, as in erin@provider.example", p.Name)
	case !slices.Contains(Roles(), role):
		return refuse("role %q is unknown: want one of %v", p.Role, Roles())
	case role.OfCustomer() && p.Tenant == "":
		return refuse("role %s belongs to a tenant: name one", p.Role)
	case !role.OfCustomer() && p.Tenant != "":
		return refuse("role %s belongs to the provider: leave the tenant out", p.Role)
	case len(p.Groups) > 0 && role != InternalApprover:
		return refuse("role %s is in no group: groups are for internal approvers", p.Role)
	case keys > maxKeys:
		return refuse("%d SSH keys: at most %d are allowed", keys, maxKeys)
	}
	return checkGroups(p.Groups)
}

func readKeys(p store.Person, lines []string) ([]store.PersonKey, error) {
	var keys []store.PersonKey
	for _, line := range lines {
		k, err := approval.NewSSHKey("key", p.Name, line) // refuses kinds of key that cannot sign decisions
		if err != nil {
			return nil, err
		}
		keys = append(keys, store.PersonKey{Fingerprint: k.Fingerprint(), Tenant: p.Tenant, Person: p.Name, PublicKey: k.PublicKey, Created: p.Created})
	}
	return keys, nil
}

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// show returns a person as others may see them.
func show(ctx context.Context, tx *store.Tx, p store.Person) (*lockboxv1.Person, error) {
	keys, err := tx.PersonKeys(ctx, p.Name)
	if err != nil {
		return nil, err
	}
	out := &lockboxv1.Person{Name: string(p.Name), Role: p.Role, Tenant: string(p.Tenant), Groups: p.Groups, Created: p.Created.Unix()}
	for _, k := range keys {
		out.SshKeys = append(out.SshKeys, k.PublicKey)
		out.KeyFingerprints = append(out.KeyFingerprints, k.Fingerprint)
	}
	return out, nil
}

func (s *Service) record(caller Caller, op auditlog.Operation, p store.Person) auditlog.Record {
	rec := auditlog.NewRecord(s.Now(), op, auditlog.Success)
	rec.Caller = string(caller.Person)
	rec.ResourceID = "/people/" + string(p.Name)
	rec.Properties = map[string]string{"role": p.Role}
	if p.Tenant != "" {
		rec.Properties["tenant"] = string(p.Tenant)
	}
	return rec
}

// FirstAdmin registers the first admin and returns a login token for them. It
// returns "" if there is an admin already. While that one has never logged in,
// [Service.CreateLoginToken] with [SystemCaller] makes another token.
func (s *Service) FirstAdmin(ctx context.Context, name protocol.Person) (token string, err error) {
	row := store.Person{Name: name, Role: string(Admin), Created: s.Now().UTC().Truncate(time.Millisecond)}
	if err := checkPerson(row, 0); err != nil {
		return "", err
	}
	err = s.Store.Tx(ctx, func(tx *store.Tx) error {
		admins, err := tx.People(ctx, "", string(Admin))
		if err != nil || len(admins) > 0 {
			return err
		}
		if err := tx.InsertPerson(ctx, &row); err != nil {
			return err
		}
		if _, err := s.Audit.Record(ctx, tx, s.record(SystemCaller(), auditlog.OpCreateUser, row)); err != nil {
			return err
		}
		token, err = s.newToken(ctx, tx, name)
		return err
	})
	return token, err
}
