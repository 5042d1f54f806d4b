package orders_test

import (
	"context"
	"testing"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders/orderstest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// certOf returns the serial of the newest certificate of node 1.
func certOf(t *testing.T, w *orderstest.World) string {
	t.Helper()
	var n store.Node
	storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) (err error) {
		n, err = tx.Node(ctx, w.Nodes[0].ID)
		return err
	})
	return n.CertSerial
}

// renew renews the certificate of node 1 and returns its serial.
func renew(t *testing.T, w *orderstest.World) string {
	t.Helper()
	csr, err := certs.NewCSR(w.Nodes[0].Key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Orders.RenewCertificate(t.Context(), w.Nodes[0].ID, &devicev1.RenewCertificateRequest{Csr: csr}); err != nil {
		t.Fatal(err)
	}
	return certOf(t, w)
}

func revoked(t *testing.T, w *orderstest.World, serial string) bool {
	t.Helper()
	var yes bool
	storetest.Tx(t, w.Store, func(ctx context.Context, tx *store.Tx) (err error) {
		yes, err = tx.CertRevoked(ctx, serial)
		return err
	})
	return yes
}
