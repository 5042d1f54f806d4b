package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// The kinds of what lets into a storage account, named as in connection strings.
const (
	SharedAccessSignature = "SharedAccessSignature"
	AccountKey            = "AccountKey"
)

// DestinationAccess is what lets the copy job of an order into one of its storage
// accounts, encrypted under the key of the order.
type DestinationAccess struct {
	Order    protocol.OrderID
	Account  string
	Endpoint string
	Tenant   protocol.TenantID
	Kind     string    // SharedAccessSignature or AccountKey
	Detail   string    // what it allows, for people
	Expires  time.Time // zero: it does not
	Person   protocol.Person
	Created  time.Time
	Wrapped  []byte
	Rev      int64
}

var destinationAccess = table{"destination_access", "credential", 2, "order_id, account, endpoint, tenant, kind, detail, expires, person, created, wrapped, rev"}

func (r *DestinationAccess) fields() []any {
	return []any{&r.Order, &r.Account, &r.Endpoint, &r.Tenant, &r.Kind, &r.Detail, ms{&r.Expires}, &r.Person, ms{&r.Created}, &r.Wrapped, &r.Rev}
}

// InsertDestinationAccess adds r.
func (tx *Tx) InsertDestinationAccess(ctx context.Context, r *DestinationAccess) error {
	return insert(ctx, tx, destinationAccess, r.fields())
}

// UpdateDestinationAccess writes r if nobody changed it since it was read.
func (tx *Tx) UpdateDestinationAccess(ctx context.Context, r *DestinationAccess) error {
	return update(ctx, tx, destinationAccess, &r.Rev, r.fields())
}

// DestinationAccess reads what lets into the accounts of an order, by account.
func (tx *Tx) DestinationAccess(ctx context.Context, order protocol.OrderID) ([]DestinationAccess, error) {
	return list[DestinationAccess](ctx, tx, destinationAccess, `WHERE order_id = $1 ORDER BY account`, order)
}

// DeleteDestinationAccess deletes r if nobody changed it since it was read.
func (tx *Tx) DeleteDestinationAccess(ctx context.Context, r DestinationAccess) error {
	n, err := exec(ctx, tx, `DELETE FROM destination_access WHERE order_id = $1 AND account = $2 AND rev = $3`, r.Order, r.Account, r.Rev)
	if err == nil && n == 0 {
		err = changed(destinationAccess.what, r.Order, r.Account)
	}
	return err
}
