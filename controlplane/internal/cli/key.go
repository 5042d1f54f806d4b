package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) keyCommand() *cobra.Command {
	return group("key", "BitLocker keys in custody", a.keyList(), a.keyExport())
}

func (a *app) keyList() *cobra.Command {
	req := &lockboxv1.ListKeysRequest{}
	c := &cobra.Command{
		Use:   "list ORDER",
		Short: "List an order's keys, without revealing them",
		Args:  args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			req.Order = args[0]
			resp, err := c.Keys.ListKeys(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, k := range resp.Keys {
					rows = append(rows, []string{k.Serial + "/" + strconv.Itoa(int(k.Node)), k.Disk, k.VolumeGuid, k.WrappedBy, when(k.Created)})
				}
				table(w, "NODE DISK VOLUME WRAPPED-BY SINCE", rows)
			})
		}),
	}
	return c
}

func (a *app) keyExport() *cobra.Command {
	req := &lockboxv1.ExportRecoveryPasswordRequest{}
	var out string
	c := &cobra.Command{
		Use:   "export SERIAL DISK --reason TEXT --out FILE",
		Short: "Take a recovery password out of custody; recorded before it is revealed",
		Args:  args("SERIAL", "DISK"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if out == "" {
				return usagef("--out is missing: a recovery password goes to a file, mode 0600, never to the screen")
			}
			req.Serial, req.Disk = args[0], args[1]
			resp, err := c.Keys.ExportRecoveryPassword(ctx, req)
			if err != nil {
				return err
			}
			if err := a.handOver(cmd, out, &resp.RecoveryPassword); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "The recovery password of %s %s is in %s. Its export is on record.\n", req.Serial, req.Disk, out)
			return nil
		}),
	}
	f := c.Flags()
	f.Int32Var(&req.Node, "node", 1, "the node: 1, or 2 of a Heavy")
	f.StringVar(&req.Reason, "reason", "", "why, for the record (required)")
	f.StringVar(&out, "out", "", "new file for the recovery password, mode 0600")
	return c
}
