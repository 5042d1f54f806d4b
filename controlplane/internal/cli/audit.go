package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) auditCommand() *cobra.Command {
	return group("audit", "The activity log: list, export, verify offline", a.auditList(), a.auditExport(), a.auditVerify(),
		a.auditCheckpoint(), a.auditSinks(), a.auditHold(), a.auditApplicability())
}

func (a *app) auditList() *cobra.Command {
	req := &lockboxv1.ListRecordsRequest{}
	var since, until, format string
	c := &cobra.Command{
		Use:   "list [--operation NAME] [--format cef]",
		Short: "List records",
		Long: `List records of the activity log, of both sides, oldest first. Customers see
those of their own tenant.

With --format, all records that match are written, one a line, for another
system: json (in the shape of the Azure activity log), cef (ArcSight Common Event
Format), ocsf (Open Cybersecurity Schema Framework 1.6.0, API Activity) or syslog
(RFC 5424 around json). lockboxd can send the same by itself, see audit.sinks in
its configuration. To prove something, use 'lockbox audit export'.`,
		Example: `  lockbox audit list --operation "Approve Lockbox Request" --since 24h
  lockbox audit list --format cef --since 2026-11-01 --until 2026-12-01`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) (err error) {
			if req.Since, err = moment(since); err != nil {
				return usagef("--since %w", err)
			}
			if req.Until, err = moment(until); err != nil {
				return usagef("--until %w", err)
			}
			if format != "" {
				return writeRecords(ctx, c, cmd.OutOrStdout(), req, format)
			}
			resp, err := c.Audit.ListRecords(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, r := range resp.Records {
					rows = append(rows, recordRow(r))
				}
				table(w, "INDEX TIME ORIGIN OPERATION RESULT CALLER SUBJECT", rows)
				if resp.NextIndex != 0 {
					fmt.Fprintf(w, "more: --from %d\n", resp.NextIndex)
				}
			})
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Operation, "operation", "", `only this operation, as in "Approve Lockbox Request"`)
	f.StringVar(&req.CorrelationId, "correlation", "", "only what belongs to this request, order or session")
	f.StringVar(&req.Caller, "caller", "", "only what this person or node did")
	f.StringVar(&req.Serial, "device", "", "only this device")
	f.StringVar(&since, "since", "", "only from then on: a date or time, UTC unless it says otherwise, or how long ago, as in 36h")
	f.StringVar(&until, "until", "", "only before then")
	f.Int64Var(&req.FromIndex, "from", 0, "first index")
	f.Int32Var(&req.Limit, "limit", 500, "at most so many; with --format, so many at once")
	f.StringVar(&format, "format", "", "for another system: json, cef, ocsf or syslog")
	return c
}

// moment reads a time as Unix seconds, 0 if it is empty.
func moment(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(-ago).Unix(), nil
	}
	for _, form := range []string{time.DateOnly, time.DateTime, time.RFC3339} {
		if t, err := time.Parse(form, strings.TrimSuffix(text, " UTC")); err == nil {
			return t.Unix(), nil
		}
	}
	return 0, fmt.Errorf("%q is no time: write a date (2026-11-21), a time as it is printed (2026-11-21 04:50:55 UTC), an RFC 3339 time, or how long ago (36h)", text)
}

// writeRecords writes all records that req wants, one a line.
func writeRecords(ctx context.Context, c *client.Client, w io.Writer, req *lockboxv1.ListRecordsRequest, format string) error {
	render := auditlog.Format(format).Render
	if format == "syslog" {
		host, _ := os.Hostname() // none is written as "-"
		render = func(index int64, data []byte) ([]byte, error) {
			return auditlog.FormatJSON.Syslog(host, index, data)
		}
	} else if !slices.Contains(auditlog.Formats(), auditlog.Format(format)) {
		return usagef("--format %q is unknown: want json, cef, ocsf or syslog", format)
	}
	out := bufio.NewWriter(w)
	for {
		resp, err := c.Audit.ListRecords(ctx, req)
		if err != nil {
			return err
		}
		for _, r := range resp.Records {
			line, err := render(r.Index, r.Record)
			if err != nil {
				return fmt.Errorf("record %d: %w", r.Index, err)
			}
			out.Write(append(line, '\n'))
		}
		if req.FromIndex = resp.NextIndex; req.FromIndex == 0 {
			return out.Flush()
		}
	}
}

func recordRow(r *lockboxv1.AuditRecord) []string {
	index := fmt.Sprint(r.Index)
	rec, err := auditlog.ParseRecord(r.Record)
	if err != nil {
		return []string{index, "", "", "cannot be read: " + err.Error(), "", "", ""}
	}
	return []string{index, protocol.Stamp(rec.Time), rec.Origin, string(rec.Operation), string(rec.Result), rec.Caller, rec.CorrelationID}
}

func (a *app) auditExport() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "export --out FILE",
		Short: "Write the whole log in the form that is verified offline",
		Long: `Write the whole log to a file, in the form that 'lockbox audit verify' reads
without any control plane. The export is itself on record.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usagef("--out is missing: name the file to write")
			}
			stream, err := c.Audit.ExportLog(ctx, &lockboxv1.ExportLogRequest{})
			if err != nil {
				return err
			}
			defer stream.Close()
			f, err := renameio.NewPendingFile(out, renameio.WithTempDir(filepath.Dir(out)), renameio.WithStaticPermissions(0o600))
			if err != nil {
				return err
			}
			defer f.Cleanup()
			size, err := receiveLog(stream, f)
			if err != nil {
				return err
			}
			if err := f.CloseAtomicallyReplace(); err != nil {
				return err
			}
			return a.printValue(cmd, map[string]any{"file": out, "bytes": size}, func(w io.Writer) {
				fields(w, "Log", out, "Bytes", fmt.Sprint(size))
			})
		}),
	}
	c.Flags().StringVar(&out, "out", "", "file to write")
	return c
}

// receiveLog writes an export as it comes and returns its size in bytes.
func receiveLog(stream lockboxv1.AuditServiceExportLogClientStream, w io.Writer) (size int64, err error) {
	for {
		part, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return size, nil
		}
		if err != nil {
			return size, err
		}
		n, err := w.Write(part.Data)
		size += int64(n)
		if err != nil {
			return size, err
		}
	}
}

func (a *app) auditVerify() *cobra.Command {
	var key, older string
	c := &cobra.Command{
		Use:   "verify FILE --log-key KEY [--older CHECKPOINT]",
		Short: "Verify an exported log offline",
		Long: `Verify an exported log offline: every record, their order, and the signature of
the head. --log-key is the log's key as trust policies name it; 'lockbox audit
checkpoint' prints it, but take it from a source you trust. With --older, a
checkpoint somebody kept, the log must begin with what they saw; your own is
used if you have one.`,
		Args: args("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if key == "" {
				return usagef("--log-key is missing: give the log's key, as the trust policy names it")
			}
			kept, err := a.rememberedCheckpoint()
			if older != "" {
				kept, err = os.ReadFile(older)
			}
			if err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			report, err := auditlog.Verify(f, key, kept)
			if err != nil {
				return fmt.Errorf("%s does not verify: %w", args[0], err)
			}
			return a.printValue(cmd, reportOf(report), func(w io.Writer) { showReport(w, report) })
		},
	}
	c.Flags().StringVar(&key, "log-key", "", "the log's public key")
	c.Flags().StringVar(&older, "older", "", "file with an older checkpoint that somebody kept")
	return c
}

// verified is a report as programs read it.
type verified struct {
	Records    int64            `json:"records"`
	Replayed   int64            `json:"replayed"`
	Pruned     int64            `json:"pruned"`
	Root       string           `json:"root"`
	First      time.Time        `json:"first"`
	Last       time.Time        `json:"last"`
	Older      int64            `json:"older_records"`
	Operations map[string]int64 `json:"operations"`
}

func reportOf(r auditlog.Report) verified {
	out := verified{
		Records: r.Checkpoint.Size, Replayed: r.Replayed, Pruned: r.Pruned, Root: r.Checkpoint.Hash.String(),
		First: r.First, Last: r.Last, Older: r.Older.Size, Operations: map[string]int64{},
	}
	for op, n := range r.Operations {
		out.Operations[string(op)] = int64(n)
	}
	return out
}

func showReport(w io.Writer, r auditlog.Report) {
	fmt.Fprintf(w, "The log is whole: %d records (%d from devices), %s to %s, root %s\n", r.Checkpoint.Size, r.Replayed,
		protocol.Stamp(r.First), protocol.Stamp(r.Last), r.Checkpoint.Hash)
	if r.Pruned > 0 {
		fmt.Fprintf(w, "Of %d records only the hash is left: they were pruned, as the log announces.\n", r.Pruned)
	}
	if r.Older.Size > 0 {
		fmt.Fprintf(w, "It begins with the %d records seen before.\n", r.Older.Size)
	}
	operations := make([]string, 0, len(r.Operations))
	for op := range r.Operations {
		operations = append(operations, string(op))
	}
	slices.Sort(operations)
	for _, op := range operations {
		fmt.Fprintf(w, "  %5d  %s\n", r.Operations[auditlog.Operation(op)], op)
	}
}

func (a *app) auditCheckpoint() *cobra.Command {
	return &cobra.Command{
		Use:   "checkpoint",
		Short: "Print the head of the log, signed, and the log's key",
		Long: `Print the signed head of the log and the log's key. Kept somewhere safe, it proves
later that nothing before it was changed: 'lockbox audit verify --older'.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Audit.GetCheckpoint(ctx, &lockboxv1.GetCheckpointRequest{})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				fmt.Fprintf(w, "%s\nLog key  %s\n", strings.TrimRight(string(resp.Checkpoint), "\n"), resp.VerifierKey)
			})
		}),
	}
}

func (a *app) auditSinks() *cobra.Command {
	return &cobra.Command{
		Use:   "sinks",
		Short: "Show how far the copies for other systems are",
		Long: `Show the syslog servers that get a copy of the activity log, as lockboxd's
configuration names them, and how many records each of them has not got yet.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Audit.ListSinks(ctx, &lockboxv1.ListSinksRequest{})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, s := range resp.Sinks {
					state := "waits for the server"
					switch {
					case s.Connected:
						state = "connected"
					case s.LastError != "":
						state = "failing since " + when(s.FailingSince) + ": " + s.LastError
					}
					network := "tcp"
					if s.Tls {
						network = "tls"
					}
					rows = append(rows, []string{s.Name, network + "://" + s.Address, s.Format, fmt.Sprint(s.Delivered), fmt.Sprint(s.Behind), state})
				}
				table(w, "NAME SERVER FORMAT DELIVERED BEHIND STATE", rows)
			})
		}),
	}
}

func (a *app) auditHold() *cobra.Command {
	return group("hold", "Legal holds: keep records from being pruned", a.holdPlace(), a.holdList(), a.holdRelease())
}

func (a *app) holdPlace() *cobra.Command {
	req := &lockboxv1.PlaceHoldRequest{}
	var all bool
	c := &cobra.Command{
		Use:   "place --reason TEXT [--tenant T] [--device D] [--correlation ID]",
		Short: "Keep records from being pruned",
		Long: `Keep the records of a tenant, a device, or a request, order or session from being
pruned, whatever the retention time; those that are all of these if several are
given. It holds until it is released.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			if all == (req.Tenant+req.Serial+req.CorrelationId != "") {
				return usagef("say what is held: --tenant, --device, --correlation, or --all")
			}
			hold, err := c.Audit.PlaceHold(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, hold, func(w io.Writer) { fields(w, "Legal hold", hold.Id, "Of", heldOf(hold)) })
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Reason, "reason", "", "why, for the log")
	f.StringVar(&req.Tenant, "tenant", "", "records of this tenant")
	f.StringVar(&req.Serial, "device", "", "records of this device")
	f.StringVar(&req.CorrelationId, "correlation", "", "records of this request, order or session")
	f.BoolVar(&all, "all", false, "all records")
	return c
}

func (a *app) holdList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List legal holds, released ones included",
		Long:  "List legal holds, released ones included, and the time after which other records\nare pruned.",
		Args:  args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Audit.ListHolds(ctx, &lockboxv1.ListHoldsRequest{})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, h := range resp.Holds {
					released := ""
					if h.Released != 0 {
						released = when(h.Released) + " by " + h.ReleasedBy
					}
					rows = append(rows, []string{h.Id, heldOf(h), h.Reason, when(h.Placed) + " by " + h.PlacedBy, released})
				}
				table(w, "ID OF REASON PLACED RELEASED", rows)
				if resp.RetentionSeconds == 0 {
					fmt.Fprintln(w, "No retention time is configured: all records are kept.")
				} else {
					fmt.Fprintf(w, "Other records are pruned after %v.\n", time.Duration(resp.RetentionSeconds)*time.Second)
				}
			})
		}),
	}
}

func (a *app) holdRelease() *cobra.Command {
	req := &lockboxv1.ReleaseHoldRequest{}
	c := &cobra.Command{
		Use:   "release ID --reason TEXT",
		Short: "End a legal hold",
		Long:  "End a legal hold. What it kept is pruned when its time comes.",
		Args:  args("ID"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			req.Id = args[0]
			hold, err := c.Audit.ReleaseHold(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, hold, func(w io.Writer) { fields(w, "Released", hold.Id, "Of", heldOf(hold)) })
		}),
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the log")
	return c
}

// heldOf says which records a hold keeps.
func heldOf(h *lockboxv1.LegalHold) string {
	var parts []string
	for _, p := range [][2]string{{"tenant", h.Tenant}, {"device", h.Serial}, {"correlation", h.CorrelationId}} {
		if p[1] != "" {
			parts = append(parts, p[0]+" "+p[1])
		}
	}
	return cmp.Or(strings.Join(parts, ", "), "all records")
}

func (a *app) auditApplicability() *cobra.Command {
	req := &lockboxv1.ReportApplicabilityRequest{}
	c := &cobra.Command{
		Use:   "applicability [--tenant T]",
		Short: "Report what Lockbox protects, and what not and why",
		Long: `Report of each subscription, order and device node whether Lockbox protects it, and
if not, why: what control 3.13 of the cloud security benchmark asks for. Customers
see their own.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Tenants.ReportApplicability(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, r := range resp.Resources {
					on := "off"
					if r.On {
						on = "on"
					}
					rows = append(rows, []string{r.Tenant, r.Type, r.Id, on, r.Reason})
				}
				table(w, "TENANT TYPE RESOURCE LOCKBOX WHY-NOT", rows)
			})
		}),
	}
	c.Flags().StringVar(&req.Tenant, "tenant", "", "only this tenant")
	return c
}
