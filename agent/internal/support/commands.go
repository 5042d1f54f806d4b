package support

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/agent/internal/lock"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// command is one command of the shell.
type command struct {
	usage string
	help  string
	run   func(ctx context.Context, s *shell, args []string) error
}

// commands are all there are. It is filled by init because help lists it.
var commands map[string]command

func init() {
	commands = map[string]command{
		"help":            {"help", "list the commands", help},
		"disks":           {"disks", "the node's disks: locked or unlocked", disks},
		"shares":          {"shares", "the node's shares: closed or open, and how to reach them", shares},
		"lease":           {"lease", "who may do what until when", showLease},
		"job":             {"job", "how the copy job stands", job},
		"pwd":             {"pwd", "print the folder you are in", pwd},
		"cd":              {"cd [FOLDER]", "go to a folder", cd},
		"ls":              {"ls [PATH]", "list a folder", ls},
		"find":            {"find [FOLDER]", "list everything below a folder", find},
		"cat":             {"cat FILE…", "print files", cat},
		"sha256sum":       {"sha256sum FILE…", "print SHA-256 checksums", sha256sum},
		"crc64":           {"crc64 FILE…", "print CRC64 checksums, as in bills of materials", crc64sum},
		"mkdir":           {"mkdir [-p] FOLDER…", "make folders", mkdir},
		"mv":              {"mv FROM… TO", "move files or folders within their share; nothing is overwritten", mv},
		"rm":              {"rm [-r] PATH…", "remove; needs an approval that says delete", rm},
		"prepare-to-ship": {"prepare-to-ship", "write new bills of materials for the copy job", prepareToShip},
		"exit":            {"exit", "end this shell", func(_ context.Context, s *shell, _ []string) error { s.done = true; return nil }},
	}
}

func help(_ context.Context, s *shell, _ []string) error {
	t := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	for _, name := range slices.Sorted(maps.Keys(commands)) {
		fmt.Fprintf(t, "%s\t%s\n", commands[name].usage, commands[name].help)
	}
	fmt.Fprintln(t, "\nJoin commands with ; && or ||. Quote names with spaces; * and ? match names.\nEverything is recorded.")
	return t.Flush()
}

func disks(_ context.Context, s *shell, _ []string) error {
	status := s.conn.server.cfg.Lock.Status()
	t := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "DISK\tSTATE\tMETHOD\tVOLUME")
	for _, d := range status.Disks {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", d.Disk, lockWord(d.State), d.Method, d.VolumeGuid)
	}
	return t.Flush()
}

// lockWord says of a disk what the engineer wants to know.
func lockWord(state string) string {
	if state == "mounted" || state == "open" {
		return "unlocked"
	}
	return state
}

func shares(ctx context.Context, s *shell, _ []string) error {
	status := s.conn.server.cfg.Lock.Status()
	t := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SHARE\tSTATE\tPROTOCOL\tADDRESS\tACCESS")
	for _, sh := range status.Shares {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", sh.Name, sh.State, sh.Protocol, sh.Address, sh.Access)
	}
	if len(status.Shares) == 0 {
		fmt.Fprintln(t, "(all)\tclosed\t\t\t")
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if lease, err := s.lease(); err == nil && lease.Address != "" {
		return s.showCredentials(ctx, lease)
	}
	return nil
}

// showCredentials shows the credentials of this lease's shares, on record.
func (s *shell) showCredentials(ctx context.Context, lease lock.Lease) error {
	rec := s.conn.server.record(auditlog.OpReadShareSecret, auditlog.Success, s.conn.session)
	rec.Properties["request"] = string(lease.RequestID)
	if err := s.record(ctx, rec); err != nil {
		return err
	}
	_, err := fmt.Fprintf(s.out, "\nSMB at %s\nuser      %s\npassword  %s\nvalid until the disks are locked again\n", lease.Address, lease.User, lease.Password)
	return err
}

// lease returns what this session may use: the lease of its own engineer.
func (s *shell) lease() (lock.Lease, error) {
	lease, ok := s.conn.server.cfg.Lock.Lease()
	if !ok || !letsIn(lease, s.conn.session.Key) {
		return lock.Lease{}, protocol.Errorf(protocol.CodeLocked, "the disks are locked and the shares closed: raise a Lockbox request, and execute it once the customer has approved")
	}
	return lease, nil
}

func showLease(_ context.Context, s *shell, _ []string) error {
	lease, err := s.lease()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.out, "request   %s\norder     %s\nticket    %s\nengineer  %s\naccess    %s\nuntil     %s (in %s)\n",
		lease.RequestID, lease.Order, lease.Ticket, lease.Engineer.Person, lease.Access,
		lease.End.UTC().Format(time.RFC3339), lease.End.Sub(s.conn.server.cfg.Clock.Now()).Round(time.Second))
	return err
}

func job(_ context.Context, s *shell, _ []string) error {
	j := s.conn.server.cfg.Lock.Status().GetJob()
	if j.GetState() == "" {
		_, err := fmt.Fprintln(s.out, "no copy job has run since the agent started")
		return err
	}
	_, err := fmt.Fprintf(s.out, "state     %s\nfiles     %d of %d copied, %d not\nbytes     %d\n", j.State, j.FilesDone, j.FilesTotal, j.FilesErrored, j.BytesDone)
	return err
}

func prepareToShip(ctx context.Context, s *shell, args []string) error {
	if len(args) > 0 {
		return usageError{}
	}
	lease, err := s.mayWrite()
	if err != nil {
		return err
	}
	if err := s.record(ctx, s.shipping(auditlog.Start, lease)); err != nil {
		return err
	}
	made, failure := copyjob.PrepareToShip(ctx, lease.Shares)
	report := &devicev1.ReportManifestRequest{Order: string(lease.Order), Request: string(lease.RequestID), State: "Succeeded"}
	rec := s.shipping(auditlog.Success, lease)
	if failure != nil { // what was written until then stays
		report.State = "Failed"
		rec = s.shipping(auditlog.Failure, lease)
	}
	for _, m := range made {
		report.Manifests = append(report.Manifests, &devicev1.Manifest{
			Disk: string(m.Share.Disk), Share: m.Share.Share.String(), Bom: m.BOM,
			Digest: m.Digest, PreviousDigest: m.Previous, Difference: m.Difference.String(),
		})
		rec.Properties["digest."+shareName(lease.Shares, m.Share)] = m.Digest
		s.showManifest(m)
	}
	s.conn.server.cfg.Manifests(report)
	return errors.Join(s.clean(failure), s.record(context.WithoutCancel(ctx), rec))
}

// shipping makes a record about prepare-to-ship.
func (s *shell) shipping(result auditlog.Result, lease lock.Lease) auditlog.Record {
	rec := s.conn.server.record(auditlog.OpPrepareToShip, result, s.conn.session)
	rec.Properties["request"] = string(lease.RequestID)
	return rec
}

func (s *shell) showManifest(m copyjob.Manifest) {
	fmt.Fprintf(s.out, "%s on %s\n  %s\n  previous %s\n", m.Share.Share, m.Share.Disk, m.Digest, m.Previous)
	for line := range strings.Lines(m.Difference.String()) {
		fmt.Fprintf(s.out, "    %s\n", visible(strings.TrimSuffix(line, "\n")))
	}
}
