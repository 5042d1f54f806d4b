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
	return group("key", "BitLocker keys in custody, and what wraps them", a.keyList(), a.keyExport(), a.keyShow(), a.keyRotate())
}

func (a *app) keyList() *cobra.Command {
	req := &lockboxv1.ListKeysRequest{}
	c := &cobra.Command{
		Use:   "list ORDER",
		Short: "List an order's keys, without revealing them",
		Long:  "List the disks of which custody holds keys for an order, and what wraps them. No key is shown.",
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
		Long: `Take the recovery password of a disk out of custody, into a new file of mode 0600.
Whoever holds it and the disk reads everything on it, without the customer's
consent. That, who and why is recorded before it is revealed.`,
		Args: args("SERIAL", "DISK"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if out == "" {
				return usagef("--out is missing: a recovery password goes to a file, mode 0600, never to the screen")
			}
			if req.Reason == "" {
				return usagef("--reason is missing: say why, for the record")
			}
			req.Serial, req.Disk = args[0], args[1]
			file, err := newSecretFile(out)
			if err != nil {
				return err
			}
			resp, err := c.Keys.ExportRecoveryPassword(ctx, req)
			if err != nil {
				return file.drop(err)
			}
			if err := file.take(&resp.RecoveryPassword); err != nil {
				return err
			}
			return a.printValue(cmd, map[string]string{"serial": req.Serial, "disk": req.Disk, "file": out}, func(w io.Writer) {
				fmt.Fprintf(w, "The recovery password of %s %s is in %s. Its export is on record.\n", req.Serial, req.Disk, out)
			})
		}),
	}
	f := c.Flags()
	f.Int32Var(&req.Node, "node", 1, "the node: 1, or 2 of a Heavy")
	f.StringVar(&req.Reason, "reason", "", "why, for the record (required)")
	f.StringVar(&out, "out", "", "new file for the recovery password, mode 0600")
	return c
}

func (a *app) keyShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show what wraps the keys of orders, and how a rotation stands",
		Long: `Show which keys wrap the keys of orders, of how many each, and how the newest
rotation stands: how far it is, and what it waits for.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			s, err := c.Keys.GetKeyStatus(ctx, &lockboxv1.GetKeyStatusRequest{})
			return a.showKeyStatus(cmd, s, err)
		}),
	}
}

func (a *app) keyRotate() *cobra.Command {
	return &cobra.Command{
		Use:   "rotate",
		Short: "Wrap the keys of all orders anew, under another key of the service",
		Long: `Make another key at the key service, and wrap the keys of all orders that the
service manages under it. Nothing stands still meanwhile: each order opens with its
old wrapping until it has its new one. It goes on by itself, also after a restart;
'lockbox key show' says how far it is. At its end the old keys are destroyed.

After lockboxd was set to another key service, this moves the orders to it. In
Azure Key Vault, make the new version of the key there first; this moves the orders
to it, and the old version stays with the vault.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			s, err := c.Keys.RotateKey(ctx, &lockboxv1.RotateKeyRequest{})
			return a.showKeyStatus(cmd, s, err)
		}),
	}
}

func (a *app) showKeyStatus(cmd *cobra.Command, s *lockboxv1.KeyStatus, err error) error {
	if err != nil {
		return err
	}
	return a.print(cmd, s, func(w io.Writer) {
		fields(w, "Wraps now", s.Current, "Problem", s.Problem)
		var rows [][]string
		for _, k := range s.Keys {
			rows = append(rows, []string{k.Id, k.KekType, strconv.FormatInt(k.Orders, 10)})
		}
		table(w, "KEY TYPE ORDERS", rows)
		if r := s.Rotation; r != nil {
			state := "under way"
			if r.Finished != 0 {
				state = "ended " + when(r.Finished)
			}
			fields(w, "Rotation", state, "  to", r.Target, "  by", r.Person, "  begun", when(r.Started),
				"  orders", fmt.Sprintf("%d of %d", r.Done, r.Orders), "  waits for", r.Problem)
		}
	})
}
