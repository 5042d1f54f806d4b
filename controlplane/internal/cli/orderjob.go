package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// watchEvery is how often an order is looked at while its job runs.
const watchEvery = 2 * time.Second

// watchJob prints a line each time that an order's job has come further, until it
// does not run any more, and returns the order then.
func (a *app) watchJob(ctx context.Context, c *client.Client, cmd *cobra.Command, id string) (*lockboxv1.Order, error) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var last *lockboxv1.Order
	for {
		o, err := c.Orders.GetOrder(ctx, &lockboxv1.GetOrderRequest{Id: id})
		if err != nil || o.JobState != "running" {
			return o, err
		}
		if !proto.Equal(o, last) {
			err := a.printLine(cmd, o, func(w io.Writer) {
				fmt.Fprintf(w, "%s  %s  %s\n", protocol.Clock(time.Now()), printable(o.Status), jobProgress(o))
			})
			if err != nil {
				return nil, err
			}
		}
		last = o
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// jobProgress tells how far an order's job is, "" if it never ran.
func jobProgress(o *lockboxv1.Order) string {
	if o.FilesTotal == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d files copied, %d not; %s", o.FilesDone, o.FilesTotal, o.FilesErrored, protocol.Transfer(o.BytesDone, o.BytesTotal, o.BytesPerSecond))
}

func (a *app) orderLog() *cobra.Command {
	var onlyErrors, asXML bool
	c := &cobra.Command{
		Use:   "log ORDER [--errors | --xml]",
		Short: "Show the copy log of the newest run, one per node",
		Long: `Show the copy log of the newest run, one per node: how it ended, and each file that
was not copied, with the codes that say why. --xml prints the logs as the device
wrote them; --output json has them too.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if onlyErrors && asXML {
				return usagef("--errors and --xml exclude each other")
			}
			resp, err := c.Orders.GetCopyLog(ctx, &lockboxv1.GetCopyLogRequest{Order: args[0]})
			if err != nil {
				return err
			}
			logs := make([]manifest.CopyLog, len(resp.CopyLogs))
			for i, data := range resp.CopyLogs {
				if logs[i], err = manifest.ParseCopyLog(data); err != nil {
					return err
				}
			}
			return a.print(cmd, resp, func(w io.Writer) {
				for i, l := range logs {
					if asXML {
						fmt.Fprintf(w, "%s\n", resp.CopyLogs[i])
					} else {
						showCopyLog(w, l, onlyErrors)
					}
				}
			})
		}),
	}
	c.Flags().BoolVar(&onlyErrors, "errors", false, "only the files that were not copied")
	c.Flags().BoolVar(&asXML, "xml", false, "the documents themselves")
	return c
}

func showCopyLog(w io.Writer, l manifest.CopyLog, onlyErrors bool) {
	errored := int64(len(l.Errored)) + l.Unlisted
	if !onlyErrors {
		fields(w, "Status", string(l.Status), "Files", fmt.Sprintf("%d, of which %d errored", l.TotalFiles, errored))
	}
	var rows [][]string
	for _, e := range l.Errored {
		codes := make([]string, len(e.Codes))
		for i, c := range e.Codes {
			codes[i] = string(c)
		}
		rows = append(rows, []string{e.Path, strings.Join(codes, " ")})
	}
	if len(rows) > 0 {
		table(w, "FILE CODES", rows)
	}
	if l.Unlisted > 0 {
		fmt.Fprintf(w, "and %d more, for which the log had no room\n", l.Unlisted)
	}
}
