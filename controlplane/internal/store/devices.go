package store

import (
	"context"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Node is one node of a device, as enrolled and as it last reported.
type Node struct {
	ID              protocol.NodeID
	Order           protocol.OrderID
	KeyFingerprint  string // approval.KeyFingerprint, as statements name it; "" until enrolled
	SPKI            []byte // DER of the node's public key
	CertSerial      string // of its newest certificate
	CertExpires     time.Time
	SSHHostKey      []byte // wire form
	Enrolled        time.Time
	Revoked         time.Time
	LastSeen        time.Time
	Status          []byte // device.v1.NodeStatus
	LogSize         int64  // of the last activity-log checkpoint the node saw
	ChainSize       int64  // records of the node's own chain that were replayed
	ChainCheckpoint []byte // its last signed checkpoint
	Rev             int64
}

var nodes = table{"nodes", "node", 2, "serial, node, order_id, key_fingerprint, spki, cert_serial, cert_expires, ssh_host_key, " +
	"enrolled, revoked, last_seen, status, log_size, chain_size, chain_checkpoint, rev"}

func (r *Node) fields() []any {
	return []any{
		&r.ID.Serial, &r.ID.Node, &r.Order, &r.KeyFingerprint, &r.SPKI, &r.CertSerial, ms{&r.CertExpires}, &r.SSHHostKey,
		ms{&r.Enrolled}, ms{&r.Revoked}, ms{&r.LastSeen}, &r.Status, &r.LogSize, &r.ChainSize, &r.ChainCheckpoint, &r.Rev,
	}
}

// InsertNode adds r.
func (tx *Tx) InsertNode(ctx context.Context, r *Node) error {
	return insert(ctx, tx, nodes, r.fields())
}

// UpdateNode writes r if nobody changed it since it was read.
func (tx *Tx) UpdateNode(ctx context.Context, r *Node) error {
	return update(ctx, tx, nodes, &r.Rev, r.fields())
}

// Node reads one node.
func (tx *Tx) Node(ctx context.Context, id protocol.NodeID) (Node, error) {
	r, err := get[Node](ctx, tx, nodes, `WHERE serial = $1 AND node = $2`, id.Serial, id.Node)
	return r, err
}

// NodesOfDevice reads the nodes of a device.
func (tx *Tx) NodesOfDevice(ctx context.Context, serial protocol.DeviceSerial) ([]Node, error) {
	return list[Node](ctx, tx, nodes, `WHERE serial = $1 ORDER BY node`, serial)
}

// NodesOfOrder reads the nodes bound to an order; all nodes if order is "".
func (tx *Tx) NodesOfOrder(ctx context.Context, order protocol.OrderID) ([]Node, error) {
	return list[Node](ctx, tx, nodes, `WHERE $1 = '' OR order_id = $1 ORDER BY serial, node`, order)
}

// NodeSeen notes what a node reported in a heartbeat. It leaves Rev alone: the
// newest report wins, and none disturbs another change. Log sizes never shrink.
func (tx *Tx) NodeSeen(ctx context.Context, id protocol.NodeID, at time.Time, status []byte, logSize int64) error {
	n, err := exec(ctx, tx, `UPDATE nodes SET last_seen = $3, status = $4, log_size = MAX(log_size, $5) WHERE serial = $1 AND node = $2`,
		id.Serial, id.Node, millis(at), status, logSize)
	if err == nil && n == 0 {
		err = notFound("node", id)
	}
	return err
}

// NodeSawLog notes that a node was given a checkpoint of the activity log of
// that size and accepted it.
func (tx *Tx) NodeSawLog(ctx context.Context, id protocol.NodeID, logSize int64) error {
	_, err := exec(ctx, tx, `UPDATE nodes SET log_size = MAX(log_size, $3) WHERE serial = $1 AND node = $2`, id.Serial, id.Node, logSize)
	return err
}

// ResetNode forgets the chain of a node that enrols anew, and the log size it
// had seen. r is the row as read; its other fields are written too.
func (tx *Tx) ResetNode(ctx context.Context, r *Node) error {
	r.ChainSize, r.ChainCheckpoint, r.LogSize = 0, nil, 0
	if _, err := exec(ctx, tx, `DELETE FROM chain_hashes WHERE serial = $1 AND node = $2`, r.ID.Serial, r.ID.Node); err != nil {
		return err
	}
	return tx.UpdateNode(ctx, r)
}

// AdvanceChain notes that a node's chain was replayed from record from up to
// size, under checkpoint. It is [ErrConflict] if somebody else replayed.
func (tx *Tx) AdvanceChain(ctx context.Context, id protocol.NodeID, from, size int64, checkpoint []byte) error {
	n, err := exec(ctx, tx, `UPDATE nodes SET chain_size = $4, chain_checkpoint = $5 WHERE serial = $1 AND node = $2 AND chain_size = $3`,
		id.Serial, id.Node, from, size, checkpoint)
	if err == nil && n == 0 {
		err = changed("the chain of node", id)
	}
	return err
}

// RevokeCert ends a certificate before its time. Doing it twice changes
// nothing.
func (tx *Tx) RevokeCert(ctx context.Context, certSerial, subject string, at time.Time) error {
	_, err := exec(ctx, tx, `INSERT INTO revoked_certs (cert_serial, subject, time) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, certSerial, subject, millis(at))
	return err
}

// CertRevoked reports whether a certificate was ended before its time.
func (tx *Tx) CertRevoked(ctx context.Context, certSerial string) (bool, error) {
	var n int
	err := tx.tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM revoked_certs WHERE cert_serial = $1`, certSerial).Scan(&n)
	return n > 0, refine(err)
}

// Disk is a disk of a node, bound to an order.
type Disk struct {
	Node       protocol.NodeID
	ID         protocol.DiskID
	Order      protocol.OrderID
	VolumeGUID string
	Created    time.Time
}

var disks = table{"disks", "disk", 3, "serial, node, disk, order_id, volume_guid, created"}

func (r *Disk) fields() []any {
	return []any{&r.Node.Serial, &r.Node.Node, &r.ID, &r.Order, &r.VolumeGUID, ms{&r.Created}}
}

// InsertDisk adds r.
func (tx *Tx) InsertDisk(ctx context.Context, r *Disk) error {
	return insert(ctx, tx, disks, r.fields())
}

// DisksOfNode reads a node's disks by id.
func (tx *Tx) DisksOfNode(ctx context.Context, id protocol.NodeID) ([]Disk, error) {
	return list[Disk](ctx, tx, disks, `WHERE serial = $1 AND node = $2 ORDER BY disk`, id.Serial, id.Node)
}

// DisksOfOrder reads an order's disks by node and id.
func (tx *Tx) DisksOfOrder(ctx context.Context, order protocol.OrderID) ([]Disk, error) {
	return list[Disk](ctx, tx, disks, `WHERE order_id = $1 ORDER BY serial, node, disk`, order)
}

// The kinds of keys of a disk.
const (
	ExternalKey      = "external-key"      // 32 bytes
	RecoveryPassword = "recovery-password" // 48 digits in eight groups
)

// DiskKey is a key of a disk, wrapped.
type DiskKey struct {
	Node    protocol.NodeID
	Disk    protocol.DiskID
	Kind    string // ExternalKey or RecoveryPassword
	Order   protocol.OrderID
	Tenant  protocol.TenantID
	Wrapper string // who wrapped it, e.g. "service-key"
	Wrapped []byte
	Created time.Time
}

var diskKeys = table{"disk_keys", "key", 4, "serial, node, disk, kind, order_id, tenant, wrapper, wrapped, created"}

func (r *DiskKey) fields() []any {
	return []any{&r.Node.Serial, &r.Node.Node, &r.Disk, &r.Kind, &r.Order, &r.Tenant, &r.Wrapper, &r.Wrapped, ms{&r.Created}}
}

// InsertDiskKey adds r.
func (tx *Tx) InsertDiskKey(ctx context.Context, r *DiskKey) error {
	return insert(ctx, tx, diskKeys, r.fields())
}

// DiskKey reads one key.
func (tx *Tx) DiskKey(ctx context.Context, id protocol.NodeID, disk protocol.DiskID, kind string) (DiskKey, error) {
	return get[DiskKey](ctx, tx, diskKeys, `WHERE serial = $1 AND node = $2 AND disk = $3 AND kind = $4`, id.Serial, id.Node, disk, kind)
}

// DiskKeys reads the keys of an order's disks.
func (tx *Tx) DiskKeys(ctx context.Context, order protocol.OrderID) ([]DiskKey, error) {
	return list[DiskKey](ctx, tx, diskKeys, `WHERE order_id = $1 ORDER BY serial, node, disk, kind`, order)
}

// JoinToken lets one node enrol once. Only a hash of its secret is kept.
type JoinToken struct {
	ID          string
	SecretHash  []byte
	Order       protocol.OrderID
	Node        protocol.NodeID
	Replaces    bool // the node enrols again: its first certificate ends
	CreatedBy   protocol.Person
	Created     time.Time
	Expires     time.Time
	Used        time.Time
	Failures    int64     // wrong secrets since the last lock-out
	LockedUntil time.Time // after too many of them
	Refusals    int64     // recorded so far
	Rev         int64
}

var joinTokens = table{"join_tokens", "join token", 1, "id, secret_hash, order_id, serial, node, replaces, created_by, created, expires, used, " +
	"failures, locked_until, refusals, rev"}

func (r *JoinToken) fields() []any {
	return []any{
		&r.ID, &r.SecretHash, &r.Order, &r.Node.Serial, &r.Node.Node, &r.Replaces, &r.CreatedBy, ms{&r.Created}, ms{&r.Expires}, ms{&r.Used},
		&r.Failures, ms{&r.LockedUntil}, &r.Refusals, &r.Rev,
	}
}

// InsertJoinToken adds r.
func (tx *Tx) InsertJoinToken(ctx context.Context, r *JoinToken) error {
	return insert(ctx, tx, joinTokens, r.fields())
}

// UpdateJoinToken writes r if nobody changed it since it was read.
func (tx *Tx) UpdateJoinToken(ctx context.Context, r *JoinToken) error {
	return update(ctx, tx, joinTokens, &r.Rev, r.fields())
}

// JoinToken reads one token.
func (tx *Tx) JoinToken(ctx context.Context, id string) (JoinToken, error) {
	return get[JoinToken](ctx, tx, joinTokens, `WHERE id = $1`, id)
}
