package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) deviceCommand() *cobra.Command {
	return group("device", "Devices, their nodes, disks and shares", a.deviceList(), a.deviceShow(), a.deviceJoinToken(), a.deviceRevoke())
}

func (a *app) deviceList() *cobra.Command {
	req := &lockboxv1.ListDevicesRequest{}
	c := &cobra.Command{
		Use:   "list",
		Short: "List devices",
		Long:  "List the nodes of devices: whether their tunnel is up, and the state of their lock.",
		Args:  args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Devices.ListDevices(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, d := range resp.Devices {
					if d.Outline {
						rows = append(rows, []string{d.Serial, d.Order, "(outline)", "", ""})
					}
					for _, n := range d.Nodes {
						rows = append(rows, []string{d.Serial + "/" + strconv.Itoa(int(n.Node)), d.Order, onlineWord(n), n.State, since(n.LastSeen)})
					}
				}
				table(w, "NODE ORDER TUNNEL LOCK LAST-SEEN", rows)
			})
		}),
	}
	c.Flags().StringVar(&req.Order, "order", "", "only this order's")
	return c
}

func onlineWord(n *lockboxv1.DeviceNode) string {
	switch {
	case n.Revoked:
		return "revoked"
	case !n.Enrolled:
		return "not-enrolled"
	case n.Online:
		return "online"
	}
	return "offline"
}

func (a *app) deviceShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show SERIAL",
		Short: "Show a device: tunnel, lock, lease, disks, shares",
		Long: `Show a device as it last reported: tunnel, lock, lease, disks and shares of each
node. A node that is offline locks by itself within its dead-man time.`,
		Args: args("SERIAL"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			d, err := c.Devices.GetDevice(ctx, &lockboxv1.GetDeviceRequest{Serial: args[0]})
			return a.showDevice(cmd, d, err)
		}),
	}
}

func (a *app) showDevice(cmd *cobra.Command, d *lockboxv1.Device, err error) error {
	if err != nil {
		return err
	}
	return a.print(cmd, d, func(w io.Writer) {
		fields(w, "Device", d.Serial, "Order", d.Order, "SKU", d.Sku)
		if d.Outline {
			fmt.Fprintln(w, "This is an outline: you work on no ticket about its order. How to ask for the rest:\n  lockbox order show "+printable(d.Order))
		}
		for _, n := range d.Nodes {
			fmt.Fprintf(w, "\nNode %d\n", n.Node)
			fields(w, "  Tunnel", onlineWord(n), "  Last seen", since(n.LastSeen), "  Key", n.KeyFingerprint,
				"  Certificate until", when(n.CertificateExpires), "  Lock", lockWords(n),
				"  Lease ends", until(n.LeaseEnd), "  Last relock", n.LastRelockReason, "  Copy job", n.JobState, "  Fault", n.Fault)
			var rows [][]string
			for _, disk := range n.Disks {
				rows = append(rows, []string{"  disk", disk.Disk, disk.State, disk.Method, disk.VolumeGuid})
			}
			if len(n.Shares) == 0 && n.Enrolled {
				rows = append(rows, []string{"  share", "(all)", "closed"})
			}
			for _, s := range n.Shares {
				rows = append(rows, []string{"  share", s.Name, s.State, s.Protocol, s.Address})
			}
			columns(w, rows)
		}
	})
}

// lockWords says how a node's lock is, and whether that is only what it said
// last.
func lockWords(n *lockboxv1.DeviceNode) string {
	words := strings.TrimSpace(n.State + " " + n.Purpose)
	if words == "" || n.Online {
		return words
	}
	words += ", as last reported"
	if n.State != string(protocol.Locked) {
		words += "; it locks by itself within the dead-man time"
	}
	return words
}

func (a *app) deviceJoinToken() *cobra.Command {
	req := &lockboxv1.CreateJoinTokenRequest{}
	var tokenOut string
	c := &cobra.Command{
		Use:   "join-token ORDER SERIAL",
		Short: "Make a one-time token with which a node enrols (15 minutes)",
		Long: `Make a one-time token with which one node of one device enrols, within 15
minutes. Take it to the device in a file, for 'databox-agent enroll'.`,
		Args: args("ORDER", "SERIAL"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			req.Order, req.Serial = args[0], args[1]
			file, err := newSecretFile(tokenOut)
			if err != nil {
				return err
			}
			resp, err := c.Orders.CreateJoinToken(ctx, req)
			if err != nil {
				return file.drop(err)
			}
			if err := file.take(&resp.Token); err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				fields(w, "Join token", resp.Token, "Join token in", tokenOut, "Valid until", until(resp.Expires))
			})
		}),
	}
	f := c.Flags()
	f.Int32Var(&req.Node, "node", 1, "the node: 1, or 2 of a Heavy")
	f.BoolVar(&req.Replace, "replace", false, "the node enrols again: its first certificate ends (admins only)")
	f.StringVar(&tokenOut, "token-out", "", "write the token to this new file, mode 0600, instead of showing it")
	return c
}

func (a *app) deviceRevoke() *cobra.Command {
	req := &lockboxv1.RevokeDeviceRequest{}
	c := &cobra.Command{
		Use:   "revoke SERIAL --reason TEXT [--node N]",
		Short: "End a node's certificates and close its tunnel",
		Long: `End a node's certificates and close its tunnel. It cannot come back but by
enrolling again, which takes an admin; unlocked, it locks within its dead-man
time.`,
		Args: args("SERIAL"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if err := need(cmd, "reason"); err != nil {
				return err
			}
			req.Serial = args[0]
			d, err := c.Devices.RevokeDevice(ctx, req)
			return a.showDevice(cmd, d, err)
		}),
	}
	c.Flags().Int32Var(&req.Node, "node", 1, "the node: 1, or 2 of a Heavy")
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the record")
	return c
}
