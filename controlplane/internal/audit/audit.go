// Package audit keeps the activity log: a Merkle log of what both sides did,
// appended to and never changed.
//
// Its rules:
//
//   - What changes state is recorded in the same transaction ([Service.Record]):
//     both are on disk, or neither.
//   - What opens or reveals something is recorded before ([Service.RecordIntent]):
//     when that returns an error, the act does not happen.
//   - A device's own chain is replayed in order, each record once, and only
//     while it agrees with what was replayed before.
//   - Whoever has a checkpoint can demand a proof that later ones continue it.
//   - Other systems get copies ([Sink]), and never hold up the log.
//   - Records that are too old are pruned, after the log says so and only if
//     that is configured; their hashes stay, so that everything still verifies.
//
// A record may say in its properties "tenant" and "serial" what it is about;
// lists are filtered by these.
package audit

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// Properties by which records are found.
const (
	PropertyTenant = "tenant"
	PropertySerial = "serial"
)

// Settings of the instance that the log depends on.
const (
	metaInstance = "instance"
	metaLogKey   = "log_key"
)

// Config are the parts of a [Service].
type Config struct {
	Store *store.Store
	Key   crypto.Signer    // Ed25519, signs checkpoints
	Now   func() time.Time // default time.Now

	Retention time.Duration // older records are pruned; 0 keeps all
	Sinks     []Sink        // each gets a copy of the log
	Host      string        // name that copies come from
	Logger    zerolog.Logger
}

// Service is the activity log. Its methods may be called concurrently.
type Service struct {
	store       *store.Store
	signer      note.Signer
	verifierKey string
	now         func() time.Time
	retention   time.Duration
	forwarders  []*forwarder
	log         zerolog.Logger
}

// New opens the log of a store. On an empty store it gives the instance its
// name. A key other than the one the log was begun with is refused.
func New(ctx context.Context, cfg Config) (*Service, error) {
	s := &Service{store: cfg.Store, now: cfg.Now, retention: cfg.Retention, log: cfg.Logger}
	for _, sink := range cfg.Sinks {
		s.forwarders = append(s.forwarders, &forwarder{s: s, sink: sink, host: cfg.Host})
	}
	if s.now == nil {
		s.now = time.Now
	}
	pub, ok := cfg.Key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("cannot open the activity log: its key is a %T, want Ed25519", cfg.Key.Public())
	}
	err := s.store.Tx(ctx, func(tx *store.Tx) error { return s.claim(ctx, tx, pub) })
	if err != nil {
		return nil, fmt.Errorf("cannot open the activity log: %w", err)
	}
	name, _, _ := strings.Cut(s.verifierKey, "+")
	s.signer, err = auditlog.NewSigner(name, cfg.Key)
	return s, err
}

// Run prunes and sends copies until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.pruneRegularly(ctx) })
	for _, f := range s.forwarders {
		g.Go(func() error { return f.run(ctx) })
	}
	return g.Wait()
}

// claim finds out the log's name and key, or decides on them.
func (s *Service) claim(ctx context.Context, tx *store.Tx, pub ed25519.PublicKey) error {
	instance, err := tx.Meta(ctx, metaInstance)
	if err != nil {
		return err
	}
	if instance == "" {
		instance = newInstance()
	}
	if s.verifierKey, err = auditlog.VerifierKey(auditlog.LogOrigin(instance), pub); err != nil {
		return err
	}
	begun, err := tx.Meta(ctx, metaLogKey)
	if err != nil {
		return err
	}
	if begun != "" && begun != s.verifierKey {
		return fmt.Errorf("the log key is not the one this log was begun with (%s): restore it from the backup", begun)
	}
	if err := tx.SetMeta(ctx, metaInstance, instance); err != nil {
		return err
	}
	return tx.SetMeta(ctx, metaLogKey, s.verifierKey)
}

func newInstance() string {
	b := make([]byte, 8)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// VerifierKey returns the log's public key, as trust policies name it.
func (s *Service) VerifierKey() string { return s.verifierKey }

// Record appends rec within tx and returns its index. It is in the log exactly
// if tx commits.
func (s *Service) Record(ctx context.Context, tx *store.Tx, rec auditlog.Record) (int64, error) {
	return s.append(ctx, tx, rec, about(rec))
}

// RecordIntent appends rec in a transaction of its own, which it shares only with
// other intents. When it returns without error, the record is on disk. Any error
// carries [protocol.CodeNotRecorded] and comes within [store.Limit]: what rec
// announces must not be done then.
func (s *Service) RecordIntent(ctx context.Context, rec auditlog.Record) (int64, error) {
	var index int64
	err := s.store.Shared(ctx, func(ctx context.Context, tx *store.Tx) error {
		i, err := s.Record(ctx, tx, rec)
		index = i
		return err
	})
	if err != nil {
		return 0, protocol.Errorf(protocol.CodeNotRecorded, "nothing was done, because it could not be recorded: %v", err)
	}
	return index, nil
}

// subject is what a record is about.
type subject struct {
	serial protocol.DeviceSerial
	tenant protocol.TenantID
}

func about(rec auditlog.Record) subject {
	return subject{protocol.DeviceSerial(rec.Properties[PropertySerial]), protocol.TenantID(rec.Properties[PropertyTenant])}
}

func (s *Service) append(ctx context.Context, tx *store.Tx, rec auditlog.Record, about subject) (int64, error) {
	data, err := rec.Encode()
	if err != nil {
		return 0, err
	}
	index, err := tx.AuditSize(ctx)
	if err != nil {
		return 0, err
	}
	hashes, err := auditlog.Append(index, data, logHashes(ctx, tx))
	if err != nil {
		return 0, err
	}
	at := rec.Time
	if now := s.now(); at.After(now) { // whatever a device's clock says: what is of the future is never old enough to be pruned
		at = now
	}
	row := store.AuditRow{
		Index: index, Time: at, Operation: string(rec.Operation), Correlation: rec.CorrelationID,
		Caller: rec.Caller, Serial: about.serial, Tenant: about.tenant, Record: data,
	}
	return index, tx.InsertAuditRow(ctx, &row, tlog.StoredHashIndex(0, index), bytesOf(hashes))
}

// Proof is what convinces a device that a record is in the log, and that the
// log continues the one it has seen.
type Proof struct {
	Checkpoint  []byte   // signed note
	Record      []byte   // the record's bytes
	Index       int64    // its number
	Size        int64    // of the log at the checkpoint
	Inclusion   [][]byte // hashes from the record up to the checkpoint
	Consistency [][]byte // hashes from the older size to the checkpoint; empty from 0 or the same size
}

// Proof proves record number index, and that the log continues the one of
// oldSize records. It refuses with [protocol.CodeCheckpoint] if the log is
// shorter than that: then it is not the log that was seen.
func (s *Service) Proof(ctx context.Context, index, oldSize int64) (Proof, error) {
	p := Proof{Index: index}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		size, err := tx.AuditSize(ctx)
		if err != nil {
			return err
		}
		if err := checkOlder(oldSize, size); err != nil {
			return err
		}
		row, err := tx.AuditRow(ctx, index)
		if err != nil {
			return err
		}
		p.Record, p.Size = row.Record, size
		return s.prove(ctx, tx, &p, oldSize)
	})
	return p, err
}

func (s *Service) prove(ctx context.Context, tx *store.Tx, p *Proof, oldSize int64) (err error) {
	r := logHashes(ctx, tx)
	inclusion, err := tlog.ProveRecord(p.Size, p.Index, r)
	if err != nil {
		return fmt.Errorf("cannot prove record %d: %w", p.Index, err)
	}
	p.Inclusion = bytesOf(inclusion)
	if oldSize > 0 {
		consistency, err := tlog.ProveTree(p.Size, oldSize, r)
		if err != nil {
			return fmt.Errorf("cannot prove that the log continues the one of %d records: %w", oldSize, err)
		}
		p.Consistency = bytesOf(consistency)
	}
	p.Checkpoint, err = s.checkpoint(ctx, tx, p.Size)
	return err
}

func checkOlder(old, size int64) error {
	if old < 0 || old > size {
		return protocol.Errorf(protocol.CodeCheckpoint,
			"a checkpoint of %d records was seen, but the log has %d: it was restored from an older backup, or it is another log", old, size)
	}
	return nil
}

// Checkpoint signs the log's present head.
func (s *Service) Checkpoint(ctx context.Context) (signed []byte, err error) {
	err = s.store.View(ctx, func(tx *store.Tx) error {
		size, err := tx.AuditSize(ctx)
		if err == nil {
			signed, err = s.checkpoint(ctx, tx, size)
		}
		return err
	})
	return signed, err
}

func (s *Service) checkpoint(ctx context.Context, tx *store.Tx, size int64) ([]byte, error) {
	hash, err := auditlog.TreeHash(size, logHashes(ctx, tx))
	if err != nil {
		return nil, err
	}
	return auditlog.Checkpoint{Origin: s.signer.Name(), Size: size, Hash: hash}.Sign(s.signer)
}

// logHashes reads the hashes of the activity log.
func logHashes(ctx context.Context, tx *store.Tx) tlog.HashReader {
	return hashReader(func(i int64) ([]byte, error) { return tx.AuditHash(ctx, i) })
}

// hashReader reads stored hashes one by one.
func hashReader(read func(int64) ([]byte, error)) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			h, err := read(index)
			if err != nil {
				return nil, err
			}
			if len(h) != tlog.HashSize {
				return nil, fmt.Errorf("stored hash %d has %d bytes: the store is damaged, restore it from a backup", index, len(h))
			}
			out[i] = tlog.Hash(h)
		}
		return out, nil
	})
}

func bytesOf(hashes []tlog.Hash) [][]byte {
	var out [][]byte
	for _, h := range hashes {
		out = append(out, h[:])
	}
	return out
}
