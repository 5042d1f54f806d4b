package custody

import (
	"context"
	"errors"
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
	Node             protocol.NodeID
	Disk             protocol.DiskID
	ExternalKey      []byte // 32 bytes; wiped by [Service.Deposit]
	RecoveryPassword string // 48 digits in eight groups
}

// Deposit takes the keys of an order's disks into custody within tx, where the
// disks are known already, under the order's key. It wipes the external keys
// whatever happens.
func (s *Service) Deposit(ctx context.Context, tx *store.Tx, caller auth.Caller, k *OrderKey, disks []Deposit) error {
	defer func() {
		for _, d := range disks {
			clear(d.ExternalKey)
		}
	}()
	if err := k.put(ctx, tx); err != nil {
		return err
	}
	for _, d := range disks {
		if err := s.deposit(ctx, tx, caller, k, d); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) deposit(ctx context.Context, tx *store.Tx, caller auth.Caller, k *OrderKey, in Deposit) error {
	if err := in.check(); err != nil {
		return err
	}
	password := []byte(in.RecoveryPassword)
	defer clear(password)
	for kind, key := range map[string][]byte{store.ExternalKey: in.ExternalKey, store.RecoveryPassword: password} {
		row := store.DiskKey{
			Node: in.Node, Disk: in.Disk, Kind: kind, Order: k.row.Order, Tenant: k.row.Tenant, Wrapper: underOrderKey, Created: s.Now(),
		}
		row.Wrapped = k.seal(key, row)
		if err := tx.InsertDiskKey(ctx, &row); err != nil {
			return err
		}
	}
	rec := s.record(auditlog.OpStoreDiskKeys, auditlog.Success, caller, in.Node, k.row.Tenant)
	rec.ResourceID += "/disks/" + string(in.Disk)
	rec.CorrelationID = string(k.row.Order)
	rec.Properties["wrappedBy"] = k.row.Wrapper
	_, err := s.Audit.Record(ctx, tx, rec)
	return err
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

// ListKeys lists the keys of an order's disks without revealing any.
func (s *Service) ListKeys(ctx context.Context, caller auth.Caller, in *lockboxv1.ListKeysRequest) (*lockboxv1.ListKeysResponse, error) {
	out := &lockboxv1.ListKeysResponse{}
	err := s.Store.View(ctx, func(tx *store.Tx) error {
		order, err := visibleOrder(ctx, tx, caller, in.Order)
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
	current, err := tx.OrderKey(ctx, order)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	var out []*lockboxv1.KeyInfo
	for _, d := range disks {
		key, err := tx.DiskKey(ctx, d.Node, d.ID, store.ExternalKey)
		if err != nil {
			return nil, err
		}
		if key.Wrapper == underOrderKey {
			key.Wrapper = current.Wrapper
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
	if s.Exporting != nil {
		if err := s.Exporting(ctx, caller, row, reason); err != nil {
			return nil, err
		}
	}
	k, err := s.storedOrderKey(ctx, row.Order)
	if err != nil {
		return nil, err
	}
	defer k.Wipe()
	password, err := s.openDiskKey(ctx, k, row)
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
