package actor

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	_ "modernc.org/sqlite" // the control plane's database, read and written behind its back

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/rpc"
	"github.com/databox-lockbox/lockbox/protocol/sealing"
	"github.com/databox-lockbox/lockbox/protocol/tunnel"
)

// callTimeout bounds one call of a device.
const callTimeout = 30 * time.Second

// Hostile is a control plane in an attacker's hands. It works with what a thief
// of the data directory has: the authorities, the service key, the log's key
// and the database; only customers' keys are missing. It takes the place of
// lockboxd, which must not be running.
type Hostile struct {
	authorities *certs.Authorities
	service     ed25519.PrivateKey
	log         note.Signer
	db          *sql.DB
	server      *tunnel.Server
}

// Seize opens a stolen data directory of lockboxd.
func Seize(dataDir string) (*Hostile, error) {
	h := &Hostile{}
	var err error
	if h.authorities, _, err = certs.Open(filepath.Join(dataDir, "authority")); err != nil {
		return nil, err
	}
	if h.service, err = readKey(filepath.Join(dataDir, "service.key")); err != nil {
		return nil, err
	}
	logKey, err := readKey(filepath.Join(dataDir, "log.key"))
	if err != nil {
		return nil, err
	}
	h.db, err = sql.Open("sqlite", "file:"+filepath.Join(dataDir, "store.db")+"?_pragma=busy_timeout(5000)&_txlock=immediate")
	if err != nil {
		return nil, err
	}
	var instance string
	if err := h.db.QueryRow(`SELECT value FROM meta WHERE key = 'instance'`).Scan(&instance); err != nil {
		return nil, fmt.Errorf("cannot read the stolen database: %w", err)
	}
	if h.log, err = auditlog.NewSigner(auditlog.LogOrigin(instance), logKey); err != nil {
		return nil, err
	}
	h.server, err = h.newServer()
	return h, err
}

func readKey(file string) (ed25519.PrivateKey, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return certs.DecodeKey(data)
}

// newServer makes the server of the device port, with a certificate that the
// stolen authority issued.
func (h *Hostile) newServer() (*tunnel.Server, error) {
	key, err := certs.NewKey()
	if err != nil {
		return nil, err
	}
	csr, err := certs.NewCSR(key)
	if err != nil {
		return nil, err
	}
	chain, err := h.authorities.IssueServer(csr, []string{"localhost", "127.0.0.1"}, time.Hour)
	if err != nil {
		return nil, err
	}
	source, err := certs.NewSource(key, chain, nil, nil)
	if err != nil {
		return nil, err
	}
	handler := HeartbeatOnly()
	return tunnel.NewServer(tunnel.ServerConfig{
		TLS: certs.DeviceListener(source, h.authorities.Roots().Devices, nil),
		Identify: func(state tls.ConnectionState) (protocol.NodeID, string, error) {
			id, fingerprint, _, err := certs.DeviceFromState(state)
			return id, fingerprint, err
		},
		Handler: func(*tunnel.Peer) http.Handler { return handler },
	}), nil
}

// Serve takes the devices' tunnels in on ln until ctx ends. Devices cannot tell
// it from lockboxd, and report to it; it answers their heartbeats and takes
// nothing else, so that they keep their records for later.
func (h *Hostile) Serve(ctx context.Context, ln net.Listener) error {
	defer h.db.Close()
	return h.server.Serve(ctx, ln)
}

// HeartbeatOnly answers heartbeats, so that unlocked devices stay unlocked, and
// refuses records and reports, which devices keep for later.
func HeartbeatOnly() http.Handler {
	s := rpc.NewServer(func(context.Context, string, error) {})
	devicev1.RegisterControlServiceHandler(s, control{})
	mux := http.NewServeMux()
	rpc.Mount(mux, s)
	return mux
}

type control struct {
	devicev1.UnimplementedControlServiceHandler
}

func (control) Heartbeat(context.Context, *devicev1.HeartbeatRequest) (*devicev1.HeartbeatResponse, error) {
	return &devicev1.HeartbeatResponse{Time: time.Now().Unix()}, nil
}

func (control) AppendRecords(context.Context, *devicev1.AppendRecordsRequest) (*devicev1.AppendRecordsResponse, error) {
	return nil, protocol.Errorf(protocol.CodeUnavailable, "not now")
}

func (control) ReportJob(context.Context, *devicev1.ReportJobRequest) (*devicev1.ReportJobResponse, error) {
	return nil, protocol.Errorf(protocol.CodeUnavailable, "not now")
}

func (control) ReportManifest(context.Context, *devicev1.ReportManifestRequest) (*devicev1.ReportManifestResponse, error) {
	return nil, protocol.Errorf(protocol.CodeUnavailable, "not now")
}

func (control) ReportChanges(context.Context, *devicev1.ReportChangesRequest) (*devicev1.ReportChangesResponse, error) {
	return nil, protocol.Errorf(protocol.CodeUnavailable, "not now")
}

// Node waits until a node's tunnel is there and returns a client of the node.
func (h *Hostile) Node(ctx context.Context, id protocol.NodeID) (devicev1.NodeServiceClient, error) {
	for {
		if p, ok := h.server.Peer(id); ok {
			return devicev1.NewNodeServiceClient(rpc.NewClient(p.Client(), tunnel.BaseURL)), nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("node %s did not connect: %w", id, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Attempt is one try to unlock one node.
type Attempt struct {
	Statement   []byte // payload of the request statement
	Decisions   [][]byte
	Policy      []byte                     // envelope of the trust policy the decisions are for
	Keys        map[protocol.DiskID][]byte // external keys, from custody, or wrong ones
	Replay      []byte                     // an order that was captured: sent instead of a fresh one
	Correlation protocol.RequestID
}

// Result is what came of an attempt.
type Result struct {
	Order  []byte // as it was sent
	Opened bool   // the node proved that its disks are open
}

// Try does everything that an unlock by the control plane does, up to the
// node's proof that its disks are open. The error is the node's refusal.
func (h *Hostile) Try(ctx context.Context, id protocol.NodeID, a Attempt) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	node, err := h.Node(ctx, id)
	if err != nil {
		return Result{}, err
	}
	order := a.Replay
	if order == nil {
		if order, err = h.order(ctx, node, id, a); err != nil {
			return Result{}, err
		}
	}
	keys, err := h.nodeKeys(id.Serial)
	if err != nil {
		return Result{}, err
	}
	stream, err := node.Unlock(ctx, &devicev1.UnlockRequest{Order: order, Statement: a.Statement, Decisions: a.Decisions, NodeKeys: keys})
	if err != nil {
		return Result{Order: order}, err
	}
	defer stream.Close()
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return Result{Order: order}, errors.New("the node gave no proof")
		}
		if err != nil {
			return Result{Order: order}, err
		}
		if len(m.Opened) > 0 {
			return Result{Order: order, Opened: true}, nil
		}
	}
}

// Lock relocks what an attempt opened, without spending the approval.
func (h *Hostile) Lock(ctx context.Context, id protocol.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	node, err := h.Node(ctx, id)
	if err != nil {
		return err
	}
	_, err = node.Lock(ctx, &devicev1.LockRequest{Reason: "operator"})
	return err
}

// order makes a fresh, well-signed, well-logged order.
func (h *Hostile) order(ctx context.Context, node devicev1.NodeServiceClient, id protocol.NodeID, a Attempt) ([]byte, error) {
	subject := approval.DigestOf(a.Statement)
	resp, err := node.Challenge(ctx, &devicev1.ChallengeRequest{SubjectDigest: string(subject), Purpose: string(protocol.SupportAccess)})
	if err != nil {
		return nil, err
	}
	env, err := approval.ParseEnvelope(resp.Challenge)
	if err != nil {
		return nil, err
	}
	challenge, err := approval.ParseChallenge(env.Payload)
	if err != nil {
		return nil, err
	}
	decisions := decisionsDigest(a)
	proof, err := h.recordIntent(id, a, subject, challenge.Nonce, resp.LogSize)
	if err != nil {
		return nil, err
	}
	doc := approval.Order{
		Purpose: protocol.SupportAccess, Node: approval.NameOf(id), RequestDigest: subject, DecisionsDigest: decisions,
		Nonce: challenge.Nonce, IssuedAt: time.Now().Unix(),
		LogCheckpoint: proof.checkpoint, LogRecord: proof.record, LogIndex: proof.index,
		LogProof: proof.inclusion, LogConsistency: proof.consistency,
	}
	for disk, key := range a.Keys {
		sealed, err := sealing.Seal(challenge.HPKEKey, sealing.Context{
			RequestDigest: string(subject), DecisionsDigest: string(decisions), Nonce: challenge.Nonce,
			Node: id, Disk: disk, Purpose: protocol.SupportAccess, KeyType: sealing.ExternalKey,
		}, key)
		if err != nil {
			return nil, err
		}
		doc.Keys = append(doc.Keys, approval.SealedKey{Disk: disk, KeyType: string(sealing.ExternalKey), Ciphertext: sealed})
	}
	return approval.SignEd25519(doc, h.service)
}

// decisionsDigest is the digest that the device will compute, if the decisions
// are any good; if not, it does not get that far.
func decisionsDigest(a Attempt) approval.Digest {
	policy, err := approval.VerifyPolicyV1(a.Policy)
	if err == nil {
		if g, err := policy.Authorize(approval.Request{Statement: a.Statement, Decisions: a.Decisions, Now: time.Now()}); err == nil {
			return g.DecisionsDigest
		}
	}
	return approval.DigestOf(nil)
}

// logProof is what an order says about the activity log.
type logProof struct {
	checkpoint, record     []byte
	index                  int64
	inclusion, consistency [][]byte
}

// recordIntent appends the intent to the real log in the stolen database: a
// forged log would be found out by the next honest start.
func (h *Hostile) recordIntent(id protocol.NodeID, a Attempt, subject approval.Digest, nonce []byte, seen int64) (logProof, error) {
	rec := auditlog.NewRecord(time.Now(), auditlog.OpUnlockIntent, auditlog.Start)
	rec.Caller, rec.Origin, rec.CorrelationID = "lockboxd", auditlog.OriginControlPlane, string(a.Correlation)
	rec.ResourceID = "/devices/" + string(id.Serial)
	rec.Properties = map[string]string{
		auditlog.PropertySubjectDigest: string(subject),
		auditlog.PropertyNonce(id):     hex.EncodeToString(nonce),
	}
	data, err := rec.Encode()
	if err != nil {
		return logProof{}, err
	}
	tx, err := h.db.Begin()
	if err != nil {
		return logProof{}, err
	}
	defer tx.Rollback()
	p, err := appendRecord(tx, rec, data, seen, h.log)
	if err != nil {
		return logProof{}, fmt.Errorf("cannot write to the stolen log: %w", err)
	}
	return p, tx.Commit()
}

func appendRecord(tx *sql.Tx, rec auditlog.Record, data []byte, seen int64, signer note.Signer) (logProof, error) {
	p := logProof{record: data}
	if err := tx.QueryRow(`SELECT COALESCE(MAX(idx) + 1, 0) FROM audit_records`).Scan(&p.index); err != nil {
		return p, err
	}
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) { return readHashes(tx, indexes) })
	hashes, err := auditlog.Append(p.index, data, reader)
	if err != nil {
		return p, err
	}
	_, err = tx.Exec(`INSERT INTO audit_records (idx, time, operation, correlation, caller, serial, tenant, record) VALUES ($1, $2, $3, $4, $5, '', '', $6)`,
		p.index, rec.Time.UnixMilli(), string(rec.Operation), rec.CorrelationID, rec.Caller, data)
	if err != nil {
		return p, err
	}
	for i, hash := range hashes {
		if _, err := tx.Exec(`INSERT INTO audit_hashes (idx, hash) VALUES ($1, $2)`, tlog.StoredHashIndex(0, p.index)+int64(i), hash[:]); err != nil {
			return p, err
		}
	}
	size := p.index + 1
	inclusion, err := tlog.ProveRecord(size, p.index, reader)
	if err != nil {
		return p, err
	}
	p.inclusion = bytesOf(inclusion)
	if seen > 0 {
		consistency, err := tlog.ProveTree(size, seen, reader)
		if err != nil {
			return p, err
		}
		p.consistency = bytesOf(consistency)
	}
	root, err := auditlog.TreeHash(size, reader)
	if err != nil {
		return p, err
	}
	p.checkpoint, err = auditlog.Checkpoint{Origin: signer.Name(), Size: size, Hash: root}.Sign(signer)
	return p, err
}

func readHashes(tx *sql.Tx, indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		var b []byte
		if err := tx.QueryRow(`SELECT hash FROM audit_hashes WHERE idx = $1`, index).Scan(&b); err != nil {
			return nil, err
		}
		out[i] = tlog.Hash(b)
	}
	return out, nil
}

func bytesOf(hashes []tlog.Hash) [][]byte {
	out := make([][]byte, len(hashes))
	for i := range hashes {
		out[i] = hashes[i][:]
	}
	return out
}

// nodeKeys reads the public keys of a device's nodes.
func (h *Hostile) nodeKeys(serial protocol.DeviceSerial) ([][]byte, error) {
	rows, err := h.db.Query(`SELECT spki FROM nodes WHERE serial = $1 AND spki IS NOT NULL ORDER BY node`, string(serial))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var keys [][]byte
	for rows.Next() {
		var spki []byte
		if err := rows.Scan(&spki); err != nil {
			return nil, err
		}
		keys = append(keys, spki)
	}
	return keys, rows.Err()
}
