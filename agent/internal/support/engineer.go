package support

import (
	"context"
	"errors"
	"maps"
	"regexp"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/agent/internal/shell"
	"github.com/databox-lockbox/lockbox/agent/internal/shell/files"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// Status implements [shell.Node].
func (c *connection) Status() *devicev1.NodeStatus { return c.server.cfg.Lock.Status() }

// Lease implements [shell.Node]: the lease of this session's own engineer.
func (c *connection) Lease() (shell.Lease, error) {
	l, err := c.lease()
	if err != nil {
		return shell.Lease{}, err
	}
	out := shell.Lease{
		Request: l.RequestID, Order: l.Order, Ticket: l.Ticket, Engineer: l.Engineer.Person, Access: l.Access, End: l.End,
		Address: l.Address, User: l.User, Password: l.Password,
	}
	c.server.cfg.Recorder.Mask(l.Password) // it may be shown, and is not to be recorded
	for _, sh := range l.Shares {
		out.Shares = append(out.Shares, files.Share{Name: shareName(l.Shares, sh), Dir: sh.Dir()})
	}
	return out, nil
}

// grant returns what this session may do with which files.
func (c *connection) grant() (files.Grant, error) {
	l, err := c.lease()
	if err != nil {
		return files.Grant{}, err
	}
	g := files.Grant{Access: l.Access}
	for _, sh := range l.Shares {
		g.Shares = append(g.Shares, files.Share{Name: shareName(l.Shares, sh), Dir: sh.Dir()})
	}
	return g, nil
}

func (c *connection) lease() (lock.Lease, error) {
	lease, ok := c.server.cfg.Lock.Lease()
	if !ok || !letsIn(lease, c.session) {
		return lock.Lease{}, protocol.Errorf(protocol.CodeLocked, "the disks are locked and the shares closed: raise a Lockbox request, and execute it once the customer has approved")
	}
	return lease, nil
}

// shareName is the folder name of a share: its own, with the disk behind it if
// two disks have it.
func shareName(all []copyjob.Share, sh copyjob.Share) string {
	for _, other := range all {
		if other.Share == sh.Share && other.Disk != sh.Disk {
			return sh.Share.String() + "-" + string(sh.Disk)
		}
	}
	return sh.Share.String()
}

// Ship implements [shell.Node].
func (c *connection) Ship(ctx context.Context) (state string, bills []shell.Bill, err error) {
	lease, err := c.lease()
	if err != nil {
		return "", nil, err
	}
	properties := map[string]string{"request": string(lease.RequestID), "state": "InProgress"}
	if err := c.Record(ctx, auditlog.OpPrepareToShip, auditlog.Start, properties); err != nil {
		return "", nil, err
	}
	made, failure := copyjob.PrepareToShip(ctx, lease.Shares)
	report := &devicev1.ReportManifestRequest{Order: string(lease.Order), Request: string(lease.RequestID)}
	issues, warnings := 0, 0
	for _, m := range made {
		b := shell.Bill{
			Share: m.Share.Share.String(), Disk: m.Share.Disk, Digest: m.Digest, Previous: m.Previous, Difference: m.Difference.String(),
			Issues: uncopied(m), Warnings: unkept(m),
		}
		bills = append(bills, b)
		issues += len(b.Issues)
		warnings += len(b.Warnings)
		properties["digest."+shareName(lease.Shares, m.Share)] = m.Digest
		report.Manifests = append(report.Manifests, &devicev1.Manifest{
			Disk: string(b.Disk), Share: b.Share, Bom: m.BOM, Digest: b.Digest, PreviousDigest: b.Previous, Difference: b.Difference,
		})
	}
	result := auditlog.Success
	if failure != nil { // what was written until then stays
		result = auditlog.Failure
	}
	report.State = shipState(ctx, failure, issues, warnings)
	properties["state"] = report.State
	c.server.cfg.Manifests(report)
	return report.State, bills, errors.Join(failure, c.Record(context.WithoutCancel(ctx), auditlog.OpPrepareToShip, result, properties))
}

// shipState names how prepare-to-ship ended, as devices do: with issues if the
// copy job would halt, with warnings if it would complete with warnings.
func shipState(ctx context.Context, failure error, issues, warnings int) string {
	switch {
	case failure != nil && ctx.Err() != nil:
		return "Canceled"
	case failure != nil:
		return "Failed"
	case issues > 0:
		return "ScanCompletedWithIssues"
	case warnings > 0:
		return "SucceededWithWarnings"
	}
	return "Succeeded"
}

// removedForm is the name that ntfs-3g gives a file which is removed while it is
// open. It is gone when that is closed, and the copy job would miss it.
var removedForm = regexp.MustCompile(`(^|/)\.fuse_hidden[0-9a-f]{16}$`)

// uncopied lists the files of a bill that the copy job will not take as they
// are, with its codes for why.
func uncopied(m copyjob.Manifest) (list []string) {
	bom, err := manifest.ParseBOM(m.BOM)
	if err != nil {
		return nil // it was just made, and is reported as it is
	}
	for _, f := range bom.Files {
		for _, code := range m.Share.Classify(f.Path, f.Size).Codes {
			list = append(list, string(code)+"  "+f.Path)
		}
		if removedForm.MatchString(f.Path) {
			list = append(list, string(copyjob.NotAsShipped)+"  "+f.Path+" (it was removed while a client had it open: once that is closed, prepare-to-ship again)")
		}
	}
	for _, path := range m.Left {
		list = append(list, string(manifest.TypeUnsupported)+"  "+path)
	}
	return list
}

// unkept lists the files of a bill that will be copied without all that is known
// of them, with the copy job's codes.
func unkept(m copyjob.Manifest) (list []string) {
	for _, path := range m.Timeless {
		list = append(list, string(copyjob.TimeNotKept)+"  "+path)
	}
	return list
}

// Record implements [shell.Session]. What begins waits its turn, how it ended is
// recorded at once.
func (c *connection) Record(ctx context.Context, op auditlog.Operation, result auditlog.Result, properties map[string]string) error {
	if result == auditlog.Start || result == auditlog.Refused {
		if err := c.server.pace(ctx, c.session.ID); err != nil {
			return err
		}
	}
	rec := c.server.record(op, result, c.session)
	maps.Copy(rec.Properties, properties)
	return c.server.append(ctx, rec)
}

// Running implements [shell.Session].
func (c *connection) Running(begins bool) {
	if begins {
		c.idle.count(1)
	} else {
		c.idle.count(-1)
	}
}

// Hung implements [shell.Session].
func (c *connection) Hung() { c.Close() }
