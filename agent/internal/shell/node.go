package shell

import (
	"context"
	"fmt"
	"net"
	"strings"
	"text/tabwriter"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

func none(args []string) error {
	if len(args) > 0 {
		return usageError("too many arguments")
	}
	return nil
}

func disks(_ context.Context, t *task, args []string) error {
	if err := none(args); err != nil {
		return err
	}
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DISK\tSTATE\tMETHOD\tVOLUME")
	for _, d := range t.cfg.Node.Status().GetDisks() {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", d.Disk, lockWord(d.State), d.Method, d.VolumeGuid)
	}
	return w.Flush()
}

// lockWord says of a disk what the engineer wants to know.
func lockWord(state string) string {
	if state == "mounted" || state == "open" {
		return "unlocked"
	}
	return state
}

func shares(ctx context.Context, t *task, args []string) error {
	if err := none(args); err != nil {
		return err
	}
	status := t.cfg.Node.Status()
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SHARE\tSTATE\tPROTOCOL\tADDRESS\tACCESS")
	for _, sh := range status.GetShares() {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", sh.Name, strings.TrimSuffix(sh.State+": "+Visible(sh.Detail), ": "), sh.Protocol, sh.Address, sh.Access)
	}
	if len(status.GetShares()) == 0 {
		fmt.Fprintln(w, "(all)\tclosed\t\t\t")
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, one := range status.GetShareServices() {
		if one.Detail != "" {
			fmt.Fprintf(t.out, "%s is %s: %s\n", strings.ToUpper(one.Protocol), one.State, Visible(one.Detail))
		}
	}
	for _, sh := range status.GetShares() {
		if host, port, err := net.SplitHostPort(sh.Address); err == nil && sh.Protocol == "nfs" && sh.State == "open" { // one is like another
			fmt.Fprintf(t.out, "\nNFS at %[1]s, without login\nmount -t nfs -o vers=3,proto=tcp,nolock,port=%[3]s,mountport=%[3]s %[2]s:/%[4]s /mnt\n", sh.Address, host, port, sh.Name)
			break
		}
	}
	if lease, err := t.cfg.Node.Lease(); err == nil && lease.Address != "" {
		return t.showCredentials(ctx, lease)
	}
	return nil
}

// showCredentials shows the credentials of this lease's shares, on record.
func (t *task) showCredentials(ctx context.Context, lease Lease) error {
	if err := t.record(ctx, auditlog.OpReadShareSecret, auditlog.Success, map[string]string{"request": string(lease.Request)}); err != nil {
		return err
	}
	_, err := fmt.Fprintf(t.out, "\nSMB at %s\nuser      %s\npassword  %s\nvalid until the disks are locked again\n", lease.Address, lease.User, lease.Password)
	return err
}

func showLease(_ context.Context, t *task, args []string) error {
	if err := none(args); err != nil {
		return err
	}
	lease, err := t.cfg.Node.Lease()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(t.out, "request   %s\norder     %s\nticket    %s\nengineer  %s\naccess    %s\nuntil     %s\n",
		lease.Request, lease.Order, lease.Ticket, lease.Engineer, lease.Access,
		protocol.Until(lease.End, t.cfg.Now()))
	return err
}

func job(_ context.Context, t *task, args []string) error {
	if err := none(args); err != nil {
		return err
	}
	j := t.cfg.Node.Status().GetJob()
	if j.GetState() == "" {
		_, err := fmt.Fprintln(t.out, "no copy job has run since the agent started")
		return err
	}
	_, err := fmt.Fprintf(t.out, "state     %s\nfiles     %d of %d copied, %d not\nbytes     %s\n",
		j.State, j.FilesDone, j.FilesTotal, j.FilesErrored, protocol.Transfer(j.BytesDone, j.BytesTotal, j.BytesPerSecond))
	return err
}

func prepareToShip(ctx context.Context, t *task, args []string) error {
	if err := none(args); err != nil {
		return err
	}
	if err := t.mayWrite(); err != nil {
		return err
	}
	state, made, err := t.cfg.Node.Ship(ctx)
	for _, b := range made {
		fmt.Fprintf(t.out, "%s on %s\n  %s\n  previous %s\n", b.Share, b.Disk, b.Digest, b.Previous)
		for line := range strings.Lines(b.Difference) {
			fmt.Fprintf(t.out, "    %s\n", Visible(strings.TrimSuffix(line, "\n")))
		}
		t.showFiles("the copy job will not take these as they are:", b.Issues)
		t.showFiles("of these, not all that is known will be kept:", b.Warnings)
	}
	if state != "" {
		fmt.Fprintf(t.out, "prepare-to-ship: %s\n", state)
	}
	return err
}

// maxNamed is how many files of one share are named that something is wrong with.
const maxNamed = 100

func (t *task) showFiles(what string, files []string) {
	if len(files) > 0 {
		fmt.Fprintf(t.out, "  %s\n", what)
	}
	for i, file := range files {
		if i == maxNamed {
			fmt.Fprintf(t.out, "    … and %d more\n", len(files)-i)
			return
		}
		fmt.Fprintf(t.out, "    %s\n", Visible(file))
	}
}

// mayWrite refuses unless the approval lets its engineer change files. The file
// system asks again for each.
func (t *task) mayWrite() error {
	lease, err := t.cfg.Node.Lease()
	if err == nil && lease.Access != approval.ReadWrite && lease.Access != approval.Delete {
		err = protocol.Errorf(protocol.CodeForbidden, "the approval is %s: nothing can be changed", lease.Access)
	}
	return err
}

// mayDelete refuses unless the approval lets data disappear.
func (t *task) mayDelete() error {
	lease, err := t.cfg.Node.Lease()
	if err == nil && lease.Access != approval.Delete {
		err = protocol.Errorf(protocol.CodeForbidden, "the approval does not say delete: raise a request with --access delete")
	}
	return err
}
