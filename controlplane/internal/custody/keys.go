package custody

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// ExternalKeySize is the size of a disk's external key in bytes.
const ExternalKeySize = 32

// maxReason is the longest reason for an export, in bytes.
const maxReason = 512

// Deposit is the keys of one disk, given into custody.
type Deposit struct {
	Tenant           protocol.TenantID
	Order            protocol.OrderID
	Node             protocol.NodeID
	Disk             protocol.DiskID
	ExternalKey      []byte // 32 bytes; wiped by [Service.Deposit]
	RecoveryPassword string // 48 digits in eight groups
}

// Deposit takes the keys of a disk into custody within tx, where the disk is
// known already, and wipes the external key whatever happens.
func (s *Service) Deposit(ctx context.Context, tx *store.Tx, caller auth.Caller, in Deposit) error {
	defer clear(in.ExternalKey)
	if err := in.check(); err != nil {
		return err
	}
	password := []byte(in.RecoveryPassword)
	defer clear(password)
	if err := s.deposit(ctx, tx, in, store.ExternalKey, in.ExternalKey); err != nil {
		return err
	}
	if err := s.deposit(ctx, tx, in, store.RecoveryPassword, password); err != nil {
		return err
	}
	rec := s.record(auditlog.OpStoreDiskKeys, auditlog.Success, caller, in.Node, in.Tenant)
	rec.ResourceID += "/disks/" + string(in.Disk)
	rec.CorrelationID = string(in.Order)
	rec.Properties["wrappedBy"] = s.Wrapper.ID()
	_, err := s.Audit.Record(ctx, tx, rec)
	return err
}

func (s *Service) deposit(ctx context.Context, tx *store.Tx, in Deposit, kind string, key []byte) error {
	row := store.DiskKey{
		Node: in.Node, Disk: in.Disk, Kind: kind, Order: in.Order, Tenant: in.Tenant,
		Wrapper: s.Wrapper.ID(), Created: s.Now(),
	}
	var err error
	if row.Wrapped, err = s.Wrapper.Wrap(ctx, key, associatedData(row)); err != nil {
		return fmt.Errorf("cannot wrap the %s of disk %s of %s: %w", kind, in.Disk, in.Node, err)
	}
	return tx.InsertDiskKey(ctx, &row)
}

var passwordForm = regexp.MustCompile(`^[0-9]{6}(-[0-9]{6}){7}$`)

func (d Deposit) check() error {
	if len(d.ExternalKey) != ExternalKeySize {
		return protocol.Errorf(protocol.CodeInvalid, "the external key of disk %s of %s has %d bytes: want %d", d.Disk, d.Node, len(d.ExternalKey), ExternalKeySize)
	}
	if !validPassword(d.RecoveryPassword) {
		return protocol.Errorf(protocol.CodeInvalid, "the recovery password of disk %s of %s is malformed: want eight groups of six digits, each a multiple of 11 below 720896", d.Disk, d.Node)
	}
	return nil
}

func validPassword(password string) bool {
	if !passwordForm.MatchString(password) {
		return false
	}
	for group := range strings.SplitSeq(password, "-") {
		if n, err := strconv.Atoi(group); err != nil || n%11 != 0 || n >= 11<<16 {
			return false
		}
	}
	return true
}

// unwrap returns a key in clear. The caller wipes it.
func (s *Service) unwrap(ctx context.Context, row store.DiskKey) ([]byte, error) {
	if row.Wrapper != s.Wrapper.ID() {
		return nil, fmt.Errorf("the %s of disk %s of %s is wrapped by %q, which is not at hand", row.Kind, row.Disk, row.Node, row.Wrapper)
	}
	key, err := s.Wrapper.Unwrap(ctx, row.Wrapped, associatedData(row))
	if err != nil {
		return nil, fmt.Errorf("cannot unwrap the %s of disk %s of %s: %w", row.Kind, row.Disk, row.Node, err)
	}
	return key, nil
}

// ListKeys lists the keys of an order's disks without revealing any.
func (s *Service) ListKeys(ctx context.Context, caller auth.Caller, in *lockboxv1.ListKeysRequest) (*lockboxv1.ListKeysResponse, error) {
	out := &lockboxv1.ListKeysResponse{}
	err := s.Store.View(ctx, func(tx *store.Tx) error {
		order, err := tx.Order(ctx, protocol.OrderID(in.Order))
		if err == nil && !caller.Sees(order.Tenant) {
			err = protocol.Errorf(protocol.CodeNotFound, "order %s not found", in.Order)
		}
		if err != nil {
			return err
		}
		out.Keys, err = keyInfos(ctx, tx, order.ID)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func keyInfos(ctx context.Context, tx *store.Tx, order protocol.OrderID) ([]*lockboxv1.KeyInfo, error) {
	disks, err := tx.DisksOfOrder(ctx, order)
	if err != nil {
		return nil, err
	}
	var out []*lockboxv1.KeyInfo
	for _, d := range disks {
		key, err := tx.DiskKey(ctx, d.Node, d.ID, store.ExternalKey)
		if err != nil {
			return nil, err
		}
		out = append(out, &lockboxv1.KeyInfo{
			Serial: string(d.Node.Serial), Node: int32(d.Node.Node), Disk: string(d.ID),
			VolumeGuid: d.VolumeGUID, WrappedBy: key.Wrapper, Created: key.Created.Unix(),
		})
	}
	return out, nil
}

// ExportRecoveryPassword reveals the recovery password of one disk to an
// admin, for a reason, recorded before.
func (s *Service) ExportRecoveryPassword(ctx context.Context, caller auth.Caller, in *lockboxv1.ExportRecoveryPasswordRequest) (*lockboxv1.ExportRecoveryPasswordResponse, error) {
	reason := strings.TrimSpace(in.Reason)
	switch {
	case !caller.Is(auth.Admin):
		return nil, protocol.Errorf(protocol.CodeForbidden, "only an admin can export a recovery password")
	case reason == "" || len(reason) > maxReason:
		return nil, protocol.Errorf(protocol.CodeInvalid, "give a reason of 1 to %d bytes: it is recorded", maxReason)
	}
	node := protocol.NodeID{Serial: protocol.DeviceSerial(in.Serial), Node: int(in.Node)}
	var row store.DiskKey
	err := s.Store.View(ctx, func(tx *store.Tx) (err error) {
		row, err = tx.DiskKey(ctx, node, protocol.DiskID(in.Disk), store.RecoveryPassword)
		return err
	})
	if err != nil {
		return nil, err
	}
	rec := s.record(auditlog.OpExportRecoveryPassword, auditlog.Start, caller, node, row.Tenant)
	rec.Level = auditlog.Critical
	rec.ResourceID += "/disks/" + string(row.Disk)
	rec.CorrelationID = string(row.Order)
	rec.Properties["reason"] = reason
	if _, err := s.Audit.RecordIntent(ctx, rec); err != nil {
		return nil, err
	}
	password, err := s.unwrap(ctx, row)
	if err != nil {
		return nil, err
	}
	defer clear(password)
	return &lockboxv1.ExportRecoveryPasswordResponse{RecoveryPassword: string(password)}, nil
}

// record begins a record about a node.
func (s *Service) record(op auditlog.Operation, result auditlog.Result, caller auth.Caller, node protocol.NodeID, tenant protocol.TenantID) auditlog.Record {
	rec := auditlog.NewRecord(s.Now(), op, result)
	rec.Caller = string(caller.Person)
	rec.ResourceID = fmt.Sprintf("/devices/%s/nodes/%d", node.Serial, node.Node)
	rec.Properties = map[string]string{audit.PropertySerial: string(node.Serial), audit.PropertyTenant: string(tenant)}
	return rec
}
