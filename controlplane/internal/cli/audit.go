package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) auditCommand() *cobra.Command {
	return group("audit", "The activity log: list, export, verify offline", a.auditList(), a.auditExport(), a.auditVerify(), a.auditCheckpoint())
}

func (a *app) auditList() *cobra.Command {
	req := &lockboxv1.ListRecordsRequest{}
	c := &cobra.Command{
		Use:   "list [--operation NAME]",
		Short: "List records",
		Long: `List records of the activity log, of both sides, oldest first. Customers see
those of their own tenant.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
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
	f.Int64Var(&req.FromIndex, "from", 0, "first index")
	f.Int32Var(&req.Limit, "limit", 500, "at most so many")
	return c
}

func recordRow(r *lockboxv1.AuditRecord) []string {
	index := fmt.Sprint(r.Index)
	rec, err := auditlog.ParseRecord(r.Record)
	if err != nil {
		return []string{index, "", "", "cannot be read: " + err.Error(), "", "", ""}
	}
	return []string{index, rec.Time.Local().Format(time.DateTime), rec.Origin, string(rec.Operation), string(rec.Result), rec.Caller, rec.CorrelationID}
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
			f, err := renameio.NewPendingFile(out, renameio.WithStaticPermissions(0o600))
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
	Root       string           `json:"root"`
	First      time.Time        `json:"first"`
	Last       time.Time        `json:"last"`
	Older      int64            `json:"older_records"`
	Operations map[string]int64 `json:"operations"`
}

func reportOf(r auditlog.Report) verified {
	out := verified{
		Records: r.Checkpoint.Size, Replayed: int64(r.Replayed), Root: r.Checkpoint.Hash.String(),
		First: r.First, Last: r.Last, Older: r.Older.Size, Operations: map[string]int64{},
	}
	for op, n := range r.Operations {
		out.Operations[string(op)] = int64(n)
	}
	return out
}

func showReport(w io.Writer, r auditlog.Report) {
	fmt.Fprintf(w, "The log is whole: %d records (%d from devices), %s to %s, root %s\n", r.Checkpoint.Size, r.Replayed,
		r.First.Local().Format(time.DateTime), r.Last.Local().Format(time.DateTime), r.Checkpoint.Hash)
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
