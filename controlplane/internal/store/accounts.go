package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// StorageAccount is a place that data may be copied to, and the tenant it
// belongs to.
type StorageAccount struct {
	Account  string
	Endpoint string
	Tenant   protocol.TenantID
	Created  time.Time
}

var storageAccounts = table{"storage_accounts", "storage account", 2, "account, endpoint, tenant, created"}

func (r *StorageAccount) fields() []any {
	return []any{&r.Account, &r.Endpoint, &r.Tenant, ms{&r.Created}}
}

// InsertStorageAccount adds r. An account at an endpoint has one owner.
func (tx *Tx) InsertStorageAccount(ctx context.Context, r *StorageAccount) error {
	return insert(ctx, tx, storageAccounts, r.fields())
}

// StorageAccounts reads all storage accounts, oldest first.
func (tx *Tx) StorageAccounts(ctx context.Context) ([]StorageAccount, error) {
	return list[StorageAccount](ctx, tx, storageAccounts, `ORDER BY created, account, endpoint`)
}
