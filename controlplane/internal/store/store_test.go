package store_test

import (
	"testing"
	"time"
	"context"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
)

func TestSmoke(t *testing.T) {
	s := storetest.New(t)
	now := time.UnixMilli(1790000000123).UTC()
	want := store.Tenant{ID: "contoso", Name: "Contoso", LockboxEnabled: true, WithoutLockbox: "deny", Created: now}
	err := s.Tx(t.Context(), func(tx *store.Tx) error { return tx.InsertTenant(t.Context(), &want) })
	if err != nil {
		t.Fatal(err)
	}
	var got store.Tenant
	err = s.View(t.Context(), func(tx *store.Tx) (err error) { got, err = tx.Tenant(context.Background(), "contoso"); return })
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Fatal(d, err)
	}
	err = s.View(t.Context(), func(tx *store.Tx) (err error) { _, err = tx.Tenant(context.Background(), "nn"); return })
	t.Log(err)
	err = s.Tx(t.Context(), func(tx *store.Tx) error { return tx.InsertTenant(t.Context(), &want) })
	t.Log(err)
}
