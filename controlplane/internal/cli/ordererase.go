package cli

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) orderErase() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "erase ORDER --yes",
		Short: "Destroy the keys on the disks of a completed order, and those that are kept",
		Long: `Destroy all that opens the disks of a completed order: the keys on the disks, in
every copy of their metadata, and then those that the service keeps. Nobody can read
the data on the disks ever again. Each node does so only if its own copy job has
completed the order, and signs a certificate (NIST SP 800-88 Rev. 1, cryptographic
erase).

It is refused while a legal hold covers the tenant or the device, and for 14 days
after an order was completed with errors: some of its data are there only. What a
loss of power or of the tunnel interrupted goes on when the command is given again.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if !yes {
				return usagef("this cannot be undone: say --yes if you mean it: lockbox order erase %s --yes", args[0])
			}
			resp, err := c.Orders.EraseOrder(ctx, &lockboxv1.EraseOrderRequest{Order: args[0]})
			return a.showErasure(ctx, c, cmd, resp, err)
		}),
	}
	c.Flags().BoolVar(&yes, "yes", false, "erase: it cannot be undone")
	return c
}

func (a *app) orderCertificate() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "certificate ORDER [--out FILE]",
		Short: "Show and verify the certificates of an order's erasure",
		Long: `Show the certificates of sanitization that the nodes of an order have signed, in
the fields of the sample in NIST SP 800-88 Rev. 1, and verify their signatures with
the nodes' enrolled keys. With --out, the signed envelopes are written to a file,
one a line: DSSE, which anybody can verify with the node's key.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			resp, err := c.Orders.GetErasure(ctx, &lockboxv1.GetErasureRequest{Order: args[0]})
			if err != nil {
				return err
			}
			if len(resp.Certificates) == 0 {
				return protocol.Errorf(protocol.CodeNotFound, "no disk of %[1]s is erased: once the order is completed, staff do that with lockbox order erase %[1]s --yes", resp.Order)
			}
			if out != "" {
				var lines []byte
				for _, one := range resp.Certificates {
					lines = append(append(lines, one.Envelope...), '\n')
				}
				if err := os.WriteFile(out, lines, 0o600); err != nil {
					return err
				}
			}
			return a.showErasure(ctx, c, cmd, resp, err)
		}),
	}
	c.Flags().StringVar(&out, "out", "", "write the signed certificates to this file")
	return c
}

// showErasure verifies the certificates and shows them.
func (a *app) showErasure(ctx context.Context, c *client.Client, cmd *cobra.Command, resp *lockboxv1.GetErasureResponse, err error) error {
	if err != nil {
		return err
	}
	o, err := c.Orders.GetOrder(ctx, &lockboxv1.GetOrderRequest{Id: resp.Order})
	if err != nil {
		return err
	}
	var list []approval.Erasure
	for _, one := range resp.Certificates {
		node := approval.NodeRef{Serial: protocol.DeviceSerial(o.Serial), Node: int(one.Node), KeyFingerprint: approval.Digest(one.KeyFingerprint)}
		e, err := approval.VerifyErasure(one.Envelope, node, protocol.OrderID(resp.Order))
		if err != nil {
			return fmt.Errorf("the certificate of node %d cannot be trusted: %w", one.Node, err)
		}
		list = append(list, e)
	}
	return a.print(cmd, resp, func(w io.Writer) {
		for _, e := range list {
			showCertificate(w, e)
		}
		kept := "destroyed, in the store's files too"
		if !resp.KeysDestroyed {
			kept = "NOT DESTROYED YET: give 'lockbox order erase' again, or wait for the store"
		}
		fields(w, "Kept keys", kept)
	})
}

func showCertificate(w io.Writer, e approval.Erasure) {
	shown := []string{"Certificate of sanitization", e.Standard, "Order", string(e.OrderID), "Node", string(e.Node) + "  signed by its key " + string(approval.KeyFingerprint(e.NodeKey))}
	for _, m := range e.Media {
		shown = append(shown, "Medium", fmt.Sprintf("%s  volume %s, %d bytes, %s", m.Disk, m.VolumeGUID, m.Size, m.Encryption))
	}
	shown = append(shown, "Method", e.Method+", "+e.Technique, "Details", e.Details, "Tool", e.Tool+" "+e.ToolVersion, "Verification", e.Verification,
		"Ordered by", string(e.OrderedBy), "Begun", when(e.Begun), "Finished", when(e.Finished))
	fields(w, shown...)
	fmt.Fprintln(w)
}
