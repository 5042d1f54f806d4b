package custody

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
	"github.com/databox-lockbox/lockbox/protocol/sealing"
)

// accessMargin is by how much what is signed for an unlock outlives it: clocks
// may differ by two minutes, and the lease begins a little later.
const accessMargin = 5 * time.Minute

// PutAccess takes into custody what lets the copy job of an order into one of its
// accounts, in the place of what was there before, which is erased. The credential
// is
//
//	SharedAccessSignature=sv=…&sig=…     the prefix may be left out
//	AccountKey=<base64>
//
// and wiped whatever happens. No error quotes it. The caller has checked who asks;
// still is called in the transaction that takes it, and refuses what has changed
// since.
func (s *Service) PutAccess(ctx context.Context, caller auth.Caller, o store.Order, d store.Destination, credential []byte, still func(*store.Tx) error) (store.DestinationAccess, error) {
	defer clear(credential)
	row := store.DestinationAccess{
		Order: o.ID, Account: d.Account, Endpoint: d.Endpoint, Tenant: o.Tenant, Person: caller.Person, Created: s.Now(),
	}
	secret, err := readCredential(credential, &row)
	if err != nil {
		return row, err
	}
	defer clear(secret)
	if !row.Expires.IsZero() && !row.Expires.After(s.Now()) {
		return row, protocol.Errorf(protocol.CodeInvalid, "the signature for account %s ended at %s: make a new one", d.Account, row.Expires.Format(time.RFC3339))
	}
	k, err := s.OpenOrderKey(ctx, o.ID)
	if err != nil {
		return row, err
	}
	defer k.Wipe()
	row.Wrapped = k.sealAccess(secret, row)
	var gone [][]byte
	err = s.Store.Tx(ctx, func(tx *store.Tx) error {
		gone = nil
		if err := errors.Join(still(tx), k.put(ctx, tx)); err != nil {
			return err
		}
		before, err := accessOf(ctx, tx, o.ID, d.Account)
		if err != nil {
			return err
		}
		if row.Rev = before.Rev; before.Order == "" {
			err = tx.InsertDestinationAccess(ctx, &row)
		} else {
			gone = [][]byte{before.Wrapped}
			err = errors.Join(tx.UpdateDestinationAccess(ctx, &row), tx.AddErasure(ctx, o.ID, s.Now()))
		}
		if err != nil {
			return err
		}
		_, err = s.Audit.Record(ctx, tx, s.accessRecord(auditlog.OpStoreAccess, caller, o, row))
		return err
	})
	if err == nil && len(gone) > 0 {
		s.eraseNow(ctx, o.ID, gone)
	}
	return row, err
}

// RemoveAccess destroys what lets the copy job of an order into one account, in
// the store's files too.
func (s *Service) RemoveAccess(ctx context.Context, caller auth.Caller, o store.Order, account string) error {
	var rows []store.DestinationAccess
	err := s.Store.Tx(ctx, func(tx *store.Tx) error {
		row, err := accessOf(ctx, tx, o.ID, account)
		if err == nil && row.Order == "" {
			err = protocol.Errorf(protocol.CodeNotFound, "order %s has no credential for account %q", o.ID, account)
		}
		if err != nil {
			return err
		}
		rows = []store.DestinationAccess{row}
		return s.dropAccess(ctx, tx, caller, o, rows)
	})
	if err == nil {
		s.eraseNow(ctx, o.ID, wrappedAccess(rows))
	}
	return err
}

// DropAccess destroys within tx all that lets the copy job of an order into
// accounts. Once that is committed the caller calls erase, for which nobody waits:
// [Service.Run] erases it from the store's files too.
func (s *Service) DropAccess(ctx context.Context, tx *store.Tx, caller auth.Caller, o store.Order) (erase func(), err error) {
	rows, err := tx.DestinationAccess(ctx, o.ID)
	if err != nil || len(rows) == 0 {
		return func() {}, err
	}
	return func() { s.eraseSoon(o.ID, wrappedAccess(rows)) }, s.dropAccess(ctx, tx, caller, o, rows)
}

func (s *Service) dropAccess(ctx context.Context, tx *store.Tx, caller auth.Caller, o store.Order, rows []store.DestinationAccess) error {
	for _, row := range rows {
		if err := tx.DeleteDestinationAccess(ctx, row); err != nil {
			return err
		}
		if _, err := s.Audit.Record(ctx, tx, s.accessRecord(auditlog.OpDeleteAccess, caller, o, row)); err != nil {
			return err
		}
	}
	return tx.AddErasure(ctx, o.ID, s.Now())
}

// accessOf reads what lets into one account, the zero value if there is nothing.
func accessOf(ctx context.Context, tx *store.Tx, order protocol.OrderID, account string) (store.DestinationAccess, error) {
	rows, err := tx.DestinationAccess(ctx, order)
	if i := slices.IndexFunc(rows, func(r store.DestinationAccess) bool { return r.Account == account }); i >= 0 {
		return rows[i], err
	}
	return store.DestinationAccess{}, err
}

func wrappedAccess(rows []store.DestinationAccess) (wrapped [][]byte) {
	for _, r := range rows {
		wrapped = append(wrapped, r.Wrapped)
	}
	return wrapped
}

func accountsOf(rows []store.DestinationAccess) string {
	var names []string
	for _, r := range rows {
		names = append(names, r.Account)
	}
	return strings.Join(names, " ")
}

func (s *Service) accessRecord(op auditlog.Operation, caller auth.Caller, o store.Order, row store.DestinationAccess) auditlog.Record {
	rec := auditlog.NewRecord(s.Now(), op, auditlog.Success)
	rec.Caller, rec.CorrelationID, rec.ResourceID = string(caller.Person), string(o.ID), "/orders/"+string(o.ID)+"/destinations/"+row.Account
	rec.Properties = map[string]string{
		audit.PropertyTenant: string(o.Tenant), audit.PropertySerial: string(o.Serial),
		"account": row.Account, "endpoint": row.Endpoint, "kind": row.Kind, "allows": row.Detail,
	}
	if !row.Expires.IsZero() {
		rec.Properties["expires"] = row.Expires.Format(time.RFC3339)
	}
	return rec
}

// readCredential reads what a customer handed over, and completes the row with
// what may be known of it. The caller wipes the secret.
func readCredential(text []byte, row *store.DestinationAccess) (secret []byte, err error) {
	text = bytes.TrimSpace(text)
	if encoded, ok := bytes.CutPrefix(text, []byte(store.AccountKey+"=")); ok {
		row.Kind, row.Detail = store.AccountKey, "a signature for each unlock: create, read, write and delete containers and blobs while it lasts"
		secret = make([]byte, base64.StdEncoding.DecodedLen(len(encoded)))
		n, err := base64.StdEncoding.Decode(secret, encoded)
		if err != nil || n < 16 || n > sealing.MaxAccess { // those of Azure have 64 bytes
			clear(secret)
			return nil, protocol.Errorf(protocol.CodeInvalid, "the key of account %s is not %s=<base64>", row.Account, store.AccountKey)
		}
		return secret[:n], nil
	}
	text = bytes.TrimPrefix(bytes.TrimPrefix(text, []byte(store.SharedAccessSignature+"=")), []byte("?"))
	q, err := url.ParseQuery(string(text))
	if err != nil || q.Get("sig") == "" || manifest.CheckSignature(text) != nil || len(text) > sealing.MaxAccess {
		return nil, protocol.Errorf(protocol.CodeInvalid, "what lets into account %s is neither %s=sv=…&sig=… of at most %d bytes, nor %s=<base64>",
			row.Account, store.SharedAccessSignature, sealing.MaxAccess, store.AccountKey)
	}
	row.Kind, row.Detail, row.Expires = store.SharedAccessSignature, allows(q), expiry(q.Get("se"))
	return bytes.Clone(text), nil
}

// allows says what a shared access signature allows: those of its parameters that
// are no secret.
func allows(q url.Values) string {
	var list []string
	for _, name := range []string{"sp", "ss", "srt", "sr", "si", "sip", "spr"} {
		if v := q.Get(name); v != "" && len(v) <= 64 {
			list = append(list, name+"="+v)
		}
	}
	return strings.Join(list, " ")
}

// expiry reads the end of a shared access signature; zero if it says none, as one
// with a stored policy does.
func expiry(se string) time.Time {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04Z", time.DateOnly} {
		if t, err := time.Parse(layout, se); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}

// accessFor reads what lets into the destinations of a grant.
func (s *Service) accessFor(ctx context.Context, order protocol.OrderID, g grant) (access []store.DestinationAccess, err error) {
	if len(g.destinations) == 0 {
		return nil, nil
	}
	err = s.Store.View(ctx, func(tx *store.Tx) error {
		rows, err := tx.DestinationAccess(ctx, order)
		access = slices.DeleteFunc(rows, func(r store.DestinationAccess) bool {
			return !slices.ContainsFunc(g.destinations, func(d approval.Destination) bool { return d.Account == r.Account && d.Endpoint == r.Endpoint })
		})
		return err
	})
	return access, err
}

// sealAccess seals to a node what lets into the destinations of a consent.
func (g *saga) sealAccess(ctx context.Context, n *sagaNode, k *OrderKey) (out []approval.SealedAccess, err error) {
	for _, row := range g.access {
		ciphertext, err := g.sealOne(n, k, row)
		if err != nil {
			return nil, err
		}
		out = append(out, approval.SealedAccess{Account: row.Account, Endpoint: row.Endpoint, KeyType: string(sealing.AccessToStorage), Ciphertext: ciphertext})
	}
	return out, ctx.Err()
}

// sealOne is the one place where a customer's credential is in clear again.
func (g *saga) sealOne(n *sagaNode, k *OrderKey, row store.DestinationAccess) ([]byte, error) {
	secret, err := k.openAccess(row)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	if row.Kind == store.AccountKey {
		signature := signAccess(row, secret, g.grant.end.Add(accessMargin))
		defer clear(signature)
		secret = signature
	}
	return sealing.Seal(n.challenge.HPKEKey, sealing.Context{
		RequestDigest: string(g.subject.digest), DecisionsDigest: string(g.grant.decisions), Nonce: n.challenge.Nonce, Node: n.ref.ID(),
		Account: row.Account, Endpoint: row.Endpoint, Purpose: g.subject.purpose, KeyType: sealing.AccessToStorage,
	}, secret)
}

// accessVersion is the version of the storage services whose form of a shared
// access signature is made here.
const accessVersion = "2023-11-03"

// signAccess makes a shared access signature for the containers and blobs of an
// account: to create, read, write and delete them, which a page blob that was
// begun of another file needs.
func signAccess(row store.DestinationAccess, key []byte, until time.Time) []byte {
	const permissions, services, kinds = "rwdc", "b", "co"
	protocols := "https"
	if strings.HasPrefix(row.Endpoint, "http://") { // of the loopback interface
		protocols = "https,http"
	}
	end := until.UTC().Format("2006-01-02T15:04:05Z")
	// Start, addresses and encryption scope are left out.
	signed := strings.Join([]string{row.Account, permissions, services, kinds, "", end, "", protocols, accessVersion, "", ""}, "\n")
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(signed))
	return []byte(url.Values{
		"sv": {accessVersion}, "ss": {services}, "srt": {kinds}, "sp": {permissions}, "se": {end}, "spr": {protocols},
		"sig": {base64.StdEncoding.EncodeToString(mac.Sum(nil))},
	}.Encode())
}

func (k *OrderKey) sealAccess(secret []byte, row store.DestinationAccess) []byte {
	return k.aead.Seal(nil, nil, secret, accessData(row))
}

// openAccess returns what lets into an account in clear. k is nil if the order has
// no key. The caller wipes the result.
func (k *OrderKey) openAccess(row store.DestinationAccess) ([]byte, error) {
	if k == nil || row.Order != k.row.Order {
		return nil, ErrNotWrapped
	}
	secret, err := k.aead.Open(nil, nil, row.Wrapped, accessData(row))
	if err != nil {
		return nil, ErrNotWrapped
	}
	return secret, nil
}

// accessData binds what lets into an account to its place.
func accessData(r store.DestinationAccess) []byte {
	return fields("databox-custody-access-v1", string(r.Tenant), string(r.Order), r.Account, r.Endpoint, r.Kind)
}
