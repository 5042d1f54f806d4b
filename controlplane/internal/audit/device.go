package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"fmt"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// MaxBatch is how many records of a chain are taken at once.
const MaxBatch = 256

// AppendDeviceRecords replays records of a node's own chain and returns the
// index of the next one it wants. Records that came before are compared and
// left out, so that a node may send a batch again after a cut. Records after a
// gap are not taken: the node goes back to the returned index.
//
// The checkpoint must be the node's, and cover the records. A chain that
// contradicts what was replayed before is refused with
// [protocol.CodeCheckpoint], and nothing is taken.
func (s *Service) AppendDeviceRecords(ctx context.Context, id protocol.NodeID, records []*devicev1.ChainRecord, checkpoint []byte) (next int64, err error) {
	if len(records) > MaxBatch {
		return 0, protocol.Errorf(protocol.CodeLimit, "%d records at once: send at most %d", len(records), MaxBatch)
	}
	err = s.store.Tx(ctx, func(tx *store.Tx) error {
		node, err := tx.Node(ctx, id)
		if err != nil {
			return err
		}
		r := replay{s: s, tx: tx, node: node, next: node.ChainSize}
		if err := r.run(ctx, records, checkpoint); err != nil {
			return err
		}
		next = r.next
		if next == node.ChainSize {
			return nil
		}
		return tx.AdvanceChain(ctx, id, node.ChainSize, next, checkpoint)
	})
	return next, err
}

// replay takes one batch of a node's chain.
type replay struct {
	s    *Service
	tx   *store.Tx
	node store.Node
	next int64 // first record not replayed yet
}

func (r *replay) run(ctx context.Context, records []*devicev1.ChainRecord, signed []byte) error {
	head, err := r.openCheckpoint(signed)
	if err != nil {
		return err
	}
	order, err := r.tx.Order(ctx, r.node.Order)
	if err != nil {
		return err
	}
	for _, rec := range records {
		if rec.Index < 0 || rec.Index >= head.Size {
			return r.refuse("record %d is not covered by the checkpoint of %d records", rec.Index, head.Size)
		}
		if err := r.take(ctx, rec, order.Tenant); err != nil {
			return err
		}
	}
	return r.checkRoot(ctx, head)
}

// openCheckpoint verifies that the node's enrolled key signed the checkpoint
// of its own chain.
func (r *replay) openCheckpoint(signed []byte) (auditlog.Checkpoint, error) {
	v, err := chainVerifier(r.node)
	if err != nil {
		return auditlog.Checkpoint{}, err
	}
	return auditlog.OpenCheckpoint(signed, v)
}

func chainVerifier(node store.Node) (note.Verifier, error) {
	key, err := x509.ParsePKIXPublicKey(node.SPKI)
	pub, ok := key.(ed25519.PublicKey)
	if err != nil || !ok {
		return nil, protocol.Errorf(protocol.CodeForbidden, "node %s is not enrolled", node.ID)
	}
	return auditlog.NewVerifier(node.ID.URI().String(), pub)
}

func (r *replay) take(ctx context.Context, rec *devicev1.ChainRecord, tenant protocol.TenantID) error {
	switch {
	case rec.Index < r.next:
		return r.compare(ctx, rec)
	case rec.Index > r.next:
		return nil
	}
	replayed, err := auditlog.Replay(r.node.ID, rec.Index, rec.Record)
	if err != nil {
		return err
	}
	hashes, err := auditlog.Append(rec.Index, rec.Record, r.hashes(ctx))
	if err != nil {
		return err
	}
	if err := r.tx.InsertChainHashes(ctx, r.node.ID, tlog.StoredHashIndex(0, rec.Index), bytesOf(hashes)); err != nil {
		return err
	}
	if _, err := r.s.append(ctx, r.tx, replayed, subject{r.node.ID.Serial, tenant}); err != nil {
		return err
	}
	r.next++
	return nil
}

// compare refuses a record that was another one when it was replayed.
func (r *replay) compare(ctx context.Context, rec *devicev1.ChainRecord) error {
	have, err := r.tx.ChainHash(ctx, r.node.ID, tlog.StoredHashIndex(0, rec.Index))
	if err != nil {
		return err
	}
	if h := auditlog.LeafHash(rec.Record); !bytes.Equal(h[:], have) {
		return r.refuse("record %d is not the one that was sent before", rec.Index)
	}
	return nil
}

// checkRoot compares the checkpoint's root with the records replayed. A
// checkpoint that covers more than these is compared once they are here.
func (r *replay) checkRoot(ctx context.Context, head auditlog.Checkpoint) error {
	if head.Size > r.next {
		return nil
	}
	root, err := auditlog.TreeHash(head.Size, r.hashes(ctx))
	if err != nil {
		return err
	}
	if root != head.Hash {
		return r.refuse("its checkpoint of %d records does not fit the records", head.Size)
	}
	return nil
}

func (r *replay) refuse(format string, args ...any) error {
	return protocol.Errorf(protocol.CodeCheckpoint, "the chain of node %s was changed: %s", r.node.ID, fmt.Sprintf(format, args...))
}

func (r *replay) hashes(ctx context.Context) tlog.HashReader {
	return hashReader(func(i int64) ([]byte, error) { return r.tx.ChainHash(ctx, r.node.ID, i) })
}
