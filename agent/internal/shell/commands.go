package shell

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// command is one command of the shell.
type command struct {
	usage string
	help  string
	run   func(ctx context.Context, s *Shell, args []string) error
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
		"exit":            {"exit", "end this shell", func(_ context.Context, s *Shell, _ []string) error { s.done = true; return nil }},
	}
}

func help(_ context.Context, s *Shell, _ []string) error {
	t := tabwriter.NewWriter(s.cfg.Out, 0, 0, 2, ' ', 0)
	for _, name := range slices.Sorted(maps.Keys(commands)) {
		fmt.Fprintf(t, "%s\t%s\n", commands[name].usage, commands[name].help)
	}
	fmt.Fprintln(t, "\nJoin commands with ; && or ||. Quote names with spaces; * and ? match names.\nEverything is recorded.")
	return t.Flush()
}

func disks(_ context.Context, s *Shell, _ []string) error {
	status := s.cfg.Node.Status()
	t := tabwriter.NewWriter(s.cfg.Out, 0, 0, 2, ' ', 0)
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

func shares(ctx context.Context, s *Shell, _ []string) error {
	status := s.cfg.Node.Status()
	t := tabwriter.NewWriter(s.cfg.Out, 0, 0, 2, ' ', 0)
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
	if lease, err := s.cfg.Node.Lease(); err == nil && lease.Address != "" {
		return s.showCredentials(ctx, lease)
	}
	return nil
}

// showCredentials shows the credentials of this lease's shares, on record.
func (s *Shell) showCredentials(ctx context.Context, lease Lease) error {
	if err := s.record(ctx, auditlog.OpReadShareSecret, auditlog.Success, map[string]string{"request": string(lease.Request)}); err != nil {
		return err
	}
	_, err := fmt.Fprintf(s.cfg.Out, "\nSMB at %s\nuser      %s\npassword  %s\nvalid until the disks are locked again\n", lease.Address, lease.User, lease.Password)
	return err
}

func showLease(_ context.Context, s *Shell, _ []string) error {
	lease, err := s.cfg.Node.Lease()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.cfg.Out, "request   %s\norder     %s\nticket    %s\nengineer  %s\naccess    %s\nuntil     %s (in %s)\n",
		lease.Request, lease.Order, lease.Ticket, lease.Engineer, lease.Access,
		lease.End.UTC().Format(time.RFC3339), lease.End.Sub(s.cfg.Now()).Round(time.Second))
	return err
}

func job(_ context.Context, s *Shell, _ []string) error {
	j := s.cfg.Node.Status().GetJob()
	if j.GetState() == "" {
		_, err := fmt.Fprintln(s.cfg.Out, "no copy job has run since the agent started")
		return err
	}
	_, err := fmt.Fprintf(s.cfg.Out, "state     %s\nfiles     %d of %d copied, %d not\nbytes     %s\n",
		j.State, j.FilesDone, j.FilesTotal, j.FilesErrored, protocol.Transfer(j.BytesDone, j.BytesTotal, j.BytesPerSecond))
	return err
}

func prepareToShip(ctx context.Context, s *Shell, args []string) error {
	if len(args) > 0 {
		return usageError{}
	}
	if _, err := s.mayWrite(); err != nil {
		return err
	}
	made, err := s.cfg.Node.Ship(ctx)
	for _, b := range made {
		s.showBill(b)
	}
	return s.clean(err)
}

func (s *Shell) showBill(b Bill) {
	fmt.Fprintf(s.cfg.Out, "%s on %s\n  %s\n  previous %s\n", b.Share, b.Disk, b.Digest, b.Previous)
	for line := range strings.Lines(b.Difference) {
		fmt.Fprintf(s.cfg.Out, "    %s\n", Visible(strings.TrimSuffix(line, "\n")))
	}
}
