package auth

import (
	"context"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// AddKey registers another SSH key of a person. It counts for nothing yet: a
// device knows it once the customers have signed a trust policy that names it.
// Whoever may manage the person may do that.
func (s *Service) AddKey(ctx context.Context, caller Caller, in *lockboxv1.AddKeyRequest) (*lockboxv1.Person, error) {
	var out *lockboxv1.Person
	err := s.Store.Tx(ctx, func(tx *store.Tx) error {
		row, err := s.find(ctx, tx, caller, protocol.Person(in.Person))
		if err != nil {
			return err
		}
		has, err := tx.PersonKeys(ctx, row.Name)
		if err != nil {
			return err
		}
		if len(has) >= maxKeys {
			return protocol.Errorf(protocol.CodeLimit, "%s has %d SSH keys, which is the most: remove one first", row.Name, len(has))
		}
		row.Created = s.Now()
		keys, err := readKeys(row, []string{in.SshKey})
		if err != nil {
			return err
		}
		if err := tx.InsertPersonKey(ctx, &keys[0]); err != nil {
			return err
		}
		if out, err = show(ctx, tx, row); err != nil {
			return err
		}
		rec := s.record(caller, auditlog.OpRegisterApproverKey, row)
		rec.Properties["fingerprint"] = keys[0].Fingerprint
		_, err = s.Audit.Record(ctx, tx, rec)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// RemoveKey ends a key of a person, and what they opened: nothing that it signs
// counts here any more. Devices trust it until the customers have signed a trust
// policy without it.
func (s *Service) RemoveKey(ctx context.Context, caller Caller, in *lockboxv1.RemoveKeyRequest) (*lockboxv1.Person, error) {
	var out *lockboxv1.Person
	var tell func(context.Context)
	err := s.Store.Tx(ctx, func(tx *store.Tx) error {
		row, err := s.find(ctx, tx, caller, protocol.Person(in.Person))
		if err != nil {
			return err
		}
		if err := tx.DeletePersonKey(ctx, row.Name, in.Fingerprint); err != nil {
			return err
		}
		if out, err = show(ctx, tx, row); err != nil {
			return err
		}
		rec := s.record(caller, auditlog.OpRemoveApproverKey, row)
		rec.Properties["fingerprint"] = in.Fingerprint
		if _, err := s.Audit.Record(ctx, tx, rec); err != nil {
			return err
		}
		tell, err = s.EndPerson(ctx, tx, caller, row.Name)
		return err
	})
	if err != nil {
		return nil, err
	}
	tell(ctx)
	return out, nil
}
