package orders

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// maxPending is how many documents of an order that one person brought may wait
// for signatures at once. Nobody's push out another's.
const maxPending = 8

// Gathered is a document with all the signatures that have come for it.
type Gathered struct {
	Envelope []byte
	Missing  error // whose are missing still, with [protocol.CodeDecisionMissing]; nil when it is complete
}

// Gather adds the signatures of an envelope to those that came before for the
// same bytes, and has verify judge all of them together, as a device would. What
// lacks nothing but more signatures is kept until they come; each is verified
// before it is. Anything else that verify says is returned.
func Gather(ctx context.Context, tx *store.Tx, caller auth.Caller, o store.Order, envelope []byte, now time.Time, verify func([]byte) error) (Gathered, error) {
	e, err := approval.ParseEnvelope(envelope)
	if err != nil {
		return Gathered{}, err
	}
	row, err := tx.PendingDocument(ctx, string(e.Digest()))
	known := err == nil && row.Order == o.ID
	if err != nil && protocol.CodeOf(err) != protocol.CodeNotFound {
		return Gathered{}, err
	}
	all, missing := envelope, verify(envelope) // alone first: a recovery key signs alone
	if known && protocol.CodeOf(missing) == protocol.CodeDecisionMissing {
		if all, err = merge(row.Envelope, e); err != nil {
			return Gathered{}, err
		}
		missing = verify(all)
	}
	switch {
	case missing == nil:
		return Gathered{Envelope: all}, tx.DeletePendingDocument(ctx, string(e.Digest()))
	case protocol.CodeOf(missing) != protocol.CodeDecisionMissing:
		return Gathered{}, missing
	case known:
		row.Envelope = all
		return Gathered{all, missing}, tx.UpdatePendingDocument(ctx, &row)
	default:
		return Gathered{all, missing}, keepPending(ctx, tx, caller, o, e, all, now)
	}
}

// WithoutRemovedKeys returns a consent without the signatures of SSH keys that
// are no longer their person's, or an error with [protocol.CodeSignerUnknown] if
// there are no others. The trust policy alone says whose a passkey is.
func WithoutRemovedKeys(ctx context.Context, tx *store.Tx, policy *approval.Policy, envelope []byte) ([]byte, error) {
	e, err := approval.ParseEnvelope(envelope)
	if err != nil {
		return nil, err
	}
	var removed error
	for _, k := range policy.Document().Keys {
		if k.Kind != approval.SSHKey {
			continue
		}
		held, err := HasKey(ctx, tx, k.Person, k.Fingerprint())
		if err != nil {
			return nil, err
		}
		before := len(e.Signatures)
		e.Signatures = slices.DeleteFunc(e.Signatures, func(s approval.Signature) bool { return !held && s.KeyID == k.ID })
		if len(e.Signatures) < before {
			removed = protocol.Errorf(protocol.CodeSignerUnknown, "key %s of %s was removed: nothing that it signs counts any more", k.Fingerprint(), k.Person)
		}
	}
	if removed != nil && len(e.Signatures) == 0 {
		return nil, removed
	}
	return e.Encode()
}

func keepPending(ctx context.Context, tx *store.Tx, caller auth.Caller, o store.Order, e approval.Envelope, all []byte, now time.Time) error {
	rows, err := tx.PendingDocuments(ctx, o.ID)
	if err != nil {
		return err
	}
	own := slices.DeleteFunc(rows, func(r store.PendingDocument) bool { return r.Person != caller.Person })
	if len(own) >= maxPending { // they forgot the oldest
		if err := tx.DeletePendingDocument(ctx, own[0].Digest); err != nil {
			return err
		}
	}
	return tx.InsertPendingDocument(ctx, &store.PendingDocument{
		Digest: string(e.Digest()), Order: o.ID, Kind: string(e.PayloadType), Envelope: all, Person: caller.Person, Created: now,
	})
}

// merge adds the signatures of e to an envelope of the same payload. A new
// signature of a key takes the place of its old one.
func merge(before []byte, e approval.Envelope) ([]byte, error) {
	old, err := approval.ParseEnvelope(before)
	if err != nil {
		return nil, err
	}
	for _, s := range old.Signatures {
		if !slices.ContainsFunc(e.Signatures, func(n approval.Signature) bool { return n.KeyID == s.KeyID }) {
			e.Signatures = append(e.Signatures, s)
		}
	}
	return e.Encode()
}

// Pending shows a document that waits for more signatures.
func Pending(kind string, policy *approval.Policy, g Gathered) (*lockboxv1.Document, error) {
	e, err := approval.ParseEnvelope(g.Envelope)
	if err != nil {
		return nil, err
	}
	out := &lockboxv1.Document{
		Kind: kind, Payload: e.Payload, PayloadType: string(e.PayloadType), Digest: string(e.Digest()), Envelope: g.Envelope,
	}
	if g.Missing == nil {
		return out, nil
	}
	out.Missing = message(g.Missing)
	for _, s := range e.Signatures {
		out.Signers = append(out.Signers, signerOf(e, policy, s.KeyID))
	}
	return out, nil
}

// signerOf names the person behind a signature, in the policy in force or, while
// there is none, in the one that is signed.
func signerOf(e approval.Envelope, policy *approval.Policy, keyID string) string {
	var doc approval.TrustPolicy
	if policy != nil {
		doc = policy.Document()
	} else if own, err := approval.ParseTrustPolicy(e.Payload); err == nil {
		doc = own
	}
	for _, k := range doc.Keys {
		if k.ID == keyID {
			return string(k.Person)
		}
	}
	return keyID
}

// message is what an error says, without its code.
func message(err error) string {
	if e, ok := errors.AsType[*protocol.Error](err); ok {
		return e.Message
	}
	return err.Error()
}

// documentKinds are the kinds of documents that several people sign, as they are
// shown.
var documentKinds = map[approval.Kind]string{
	approval.KindPolicy: "trust-policy", approval.KindConsent: "consent", approval.KindStanding: "standing-consent",
}

// ListPendingDocuments shows what waits for more signatures of the customer's.
func (s *Service) ListPendingDocuments(ctx context.Context, caller auth.Caller, in *lockboxv1.ListPendingDocumentsRequest) (*lockboxv1.ListPendingDocumentsResponse, error) {
	return view(ctx, s.cfg.Store, func(tx *store.Tx) (*lockboxv1.ListPendingDocumentsResponse, error) {
		o, err := order(ctx, tx, caller, in.Order)
		if err != nil {
			return nil, err
		}
		rows, err := tx.PendingDocuments(ctx, o.ID)
		if err != nil {
			return nil, err
		}
		policy, err := policyIfAny(ctx, tx, o)
		if err != nil {
			return nil, err
		}
		out := &lockboxv1.ListPendingDocumentsResponse{}
		for _, row := range rows {
			kind := approval.Kind(row.Kind)
			missing := verifyPending(kind, policy, row.Envelope, s.now())
			if missing == nil {
				missing = protocol.Errorf(protocol.CodeDecisionMissing, "nothing: submit it again")
			}
			doc, err := Pending(documentKinds[kind], policy, Gathered{row.Envelope, missing})
			if err != nil {
				return nil, err
			}
			out.Documents = append(out.Documents, doc)
		}
		return out, nil
	})
}

// verifyPending verifies a document with the signatures it has.
func verifyPending(kind approval.Kind, policy *approval.Policy, envelope []byte, now time.Time) error {
	var err error
	switch {
	case policy == nil:
		_, err = approval.VerifyPolicyV1(envelope)
	case kind == approval.KindPolicy:
		_, err = policy.VerifySuccessor(envelope)
	case kind == approval.KindConsent:
		_, err = policy.AuthorizeCopy(approval.CopyRequest{Consent: envelope, Now: now})
	default:
		_, err = policy.VerifyStanding(envelope)
	}
	return err
}

// policyIfAny is [TrustPolicy], nil while an order has none.
func policyIfAny(ctx context.Context, tx *store.Tx, o store.Order) (*approval.Policy, error) {
	if o.TrustPolicyVersion == 0 {
		return nil, nil
	}
	return TrustPolicy(ctx, tx, o)
}

// cosigned makes the record of a signature that completes nothing yet.
func cosigned(rec *auditlog.Record, g Gathered) error {
	e, err := approval.ParseEnvelope(g.Envelope)
	if err != nil {
		return err
	}
	rec.Operation, rec.Category = auditlog.OpCoSign, auditlog.OpCoSign.Category()
	rec.Properties["kind"], rec.Properties["digest"] = documentKinds[e.PayloadType], string(e.Digest())
	rec.Properties["signatures"], rec.Properties["missing"] = fmt.Sprint(len(e.Signatures)), message(g.Missing)
	return nil
}
