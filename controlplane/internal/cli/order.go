package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) orderCommand() *cobra.Command {
	return group("order", "Import orders, from placing to completion",
		a.orderPlace(), a.orderShow(), a.orderList(), a.orderPrepare(), a.orderAdvance(),
		a.orderStartJob(), a.orderLog(), a.orderManifest(), a.orderErase(), a.orderCertificate(), a.orderKeyCommand(), a.orderDestinationCommand())
}

func (a *app) orderPlace() *cobra.Command {
	req := &lockboxv1.PlaceOrderRequest{}
	var destinations, shares []string
	c := &cobra.Command{
		Use:   "place [ORDER] --subscription ID --destination ACCOUNT=URL… [--share NAME]…",
		Short: "Place an import order",
		Long: `Place an import order. Each storage account has up to three shares on the device:
ACCOUNT_BlockBlob, ACCOUNT_PageBlob and ACCOUNT_AzFile. Without --share it has
all that can be copied: nothing is uploaded to Azure Files, so that the third goes
to a folder only. What lets the copy job into an account in the cloud is handed
over with 'lockbox order destination set-credential'.`,
		Args: optional("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				req.Id = args[0]
			}
			for _, d := range destinations {
				account, endpoint, ok := strings.Cut(d, "=")
				if !ok {
					return usagef("--destination %q: want ACCOUNT=URL, as in contosodata=https://contosodata.blob.core.windows.net", d)
				}
				req.Destinations = append(req.Destinations, &lockboxv1.Destination{Account: account, Endpoint: endpoint, Shares: sharesOf(account, endpoint, shares)})
			}
			if err := need(cmd, "subscription"); err != nil {
				return err
			}
			o, err := c.Orders.PlaceOrder(ctx, req)
			return a.showOrder(cmd, o, err)
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Subscription, "subscription", "", "the subscription that orders")
	f.StringVar(&req.Sku, "sku", "databox", "databox or databox-heavy")
	choices(c, "sku", "databox", "databox-heavy")
	f.StringArrayVar(&shares, "share", nil, "only this share, as in contosodata_BlockBlob; may be given several times")
	f.StringArrayVar(&destinations, "destination", nil, "ACCOUNT=URL of a storage account to copy to; may be given several times")
	return c
}

// sharesOf returns those of shares that belong to an account, or all kinds that
// can be copied to its endpoint if none was named at all.
func sharesOf(account, endpoint string, shares []string) []string {
	if len(shares) == 0 {
		shares = []string{account + "_BlockBlob", account + "_PageBlob"}
		if strings.HasPrefix(endpoint, "file:") {
			shares = append(shares, account+"_AzFile")
		}
	}
	return slices.DeleteFunc(slices.Clone(shares), func(s string) bool { return !strings.HasPrefix(s, account+"_") })
}

func (a *app) orderShow() *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use:   "show ORDER [--watch]",
		Short: "Show an order, its job and its history",
		Long: `Show an order: stage, device, destinations, copy job and history. --watch first
prints how far the job is, every two seconds, until it completes, halts or pauses.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if watch {
				o, err := a.watchJob(ctx, c, cmd, args[0])
				return a.showOrder(cmd, o, err)
			}
			o, err := c.Orders.GetOrder(ctx, &lockboxv1.GetOrderRequest{Id: args[0]})
			return a.showOrder(cmd, o, err)
		}),
	}
	c.Flags().BoolVar(&watch, "watch", false, "follow the copy job until it does not run any more")
	return c
}

func (a *app) showOrder(cmd *cobra.Command, o *lockboxv1.Order, err error) error {
	if err != nil {
		return err
	}
	return a.print(cmd, o, func(w io.Writer) {
		shown := []string{"Order", o.Id, "Subscription", o.Subscription, "SKU", o.Sku, "Stage", o.Stage, "Status", o.Status,
			"Device", o.Serial, "Trust policy", o.TrustPolicyDigest, "Consent", o.ConsentDigest,
			"Errors", strings.Join(o.ErrorCodes, ", "), "Job", jobProgress(o)}
		for _, d := range o.Destinations {
			shown = append(shown, "Destination", d.Account+" = "+d.Endpoint, "  Credential", credential(d))
		}
		for _, n := range o.Nodes {
			shown = append(shown, fmt.Sprintf("Node %d", n.Node), strings.TrimSpace("disks "+strings.Join(n.Disks, " ")+"  key "+n.KeyFingerprint))
		}
		fields(w, shown...)
		showHistory(w, o.History)
		if o.Outline {
			showOutline(w, o.Subscription)
		}
	})
}

// showOutline says that there is more, and how to ask for it.
func showOutline(w io.Writer, subscription string) {
	fmt.Fprintf(w, "This is an outline: you work on no ticket about this order. For the rest, ask for access:\n"+
		"  lockbox request create --action access-subscription --subscription %s --ticket TICKET --justification TEXT\n", printable(subscription))
}

func showHistory(w io.Writer, lines []*lockboxv1.HistoryLine) {
	if len(lines) > 0 {
		fmt.Fprintln(w, "History")
	}
	var rows [][]string
	for _, l := range lines {
		rows = append(rows, []string{"  " + when(l.Time), l.What, l.Detail})
	}
	columns(w, rows)
}

func (a *app) orderList() *cobra.Command {
	req := &lockboxv1.ListOrdersRequest{}
	c := &cobra.Command{
		Use:   "list",
		Short: "List orders",
		Long:  "List orders. Customers see their own; engineers see an outline of what they work on no\nticket about and have no access for.",
		Args:  args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Orders.ListOrders(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, o := range resp.Orders {
					rows = append(rows, []string{o.Id, o.Tenant, o.Serial, o.Stage, o.Status})
				}
				table(w, "ORDER TENANT DEVICE STAGE STATUS", rows)
			})
		}),
	}
	c.Flags().StringVar(&req.Tenant, "tenant", "", "only this tenant's")
	return c
}

func (a *app) orderPrepare() *cobra.Command {
	var from string
	c := &cobra.Command{
		Use:   "prepare ORDER --from FILE",
		Short: "Bind a device to an order and take its disks' keys into custody",
		Long: `Bind a device to an order and take its disks' keys into custody. FILE is what
the provisioning of the device wrote: serial, disks, keys, bills of materials.
It holds keys: it must be readable by you alone, and should be destroyed once
this command succeeded.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			req, err := readPrepared(from)
			if err != nil {
				return err
			}
			req.Order = args[0]
			o, err := c.Orders.PrepareDevice(ctx, req)
			return a.showOrder(cmd, o, err)
		}),
	}
	c.Flags().StringVar(&from, "from", "", "the file that provisioning wrote")
	return c
}

func readPrepared(file string) (*lockboxv1.PrepareDeviceRequest, error) {
	if file == "" {
		return nil, usagef("--from is missing: name the file that provisioning wrote")
	}
	if err := mustBePrivate(file); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	req := &lockboxv1.PrepareDeviceRequest{}
	if err := protojson.Unmarshal(data, req); err != nil {
		return nil, fmt.Errorf("cannot read %s: it is not what provisioning writes", file) // the cause could quote a key
	}
	return req, nil
}

func (a *app) orderAdvance() *cobra.Command {
	return &cobra.Command{
		Use:   "advance ORDER STAGE",
		Short: "Record the device's trip: Dispatched, Delivered, PickedUp, AtAzureDC",
		Long: `Record the device's trip, a stage at a time and never back: Dispatched, Delivered,
PickedUp, AtAzureDC.`,
		Args: args("ORDER", "STAGE"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			o, err := c.Orders.AdvanceOrder(ctx, &lockboxv1.AdvanceOrderRequest{Order: args[0], Stage: args[1]})
			return a.showOrder(cmd, o, err)
		}),
	}
}

func (a *app) orderStartJob() *cobra.Command {
	return &cobra.Command{
		Use:     "start-job ORDER",
		Aliases: []string{"resume-job"},
		Short:   "Start or resume the copy job under the signed consent",
		Long: `Unlock the device for its copy job, under the data-copy consent that the customer
signed, and start or resume the job. No share opens and no session enters. The
job goes on by itself; 'lockbox order show --watch' says how far it is.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			stream, err := c.Orders.StartJob(ctx, &lockboxv1.StartJobRequest{Order: args[0]})
			if err != nil {
				return err
			}
			defer stream.Close()
			return a.follow(cmd, stream.Receive)
		}),
	}
}

// follow prints the events of a long operation until it ends.
func (a *app) follow(cmd *cobra.Command, receive func() (*lockboxv1.ProgressEvent, error)) error {
	for {
		e, err := receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		err = a.printLine(cmd, e, func(w io.Writer) {
			where := strings.TrimSpace(e.Node + " " + e.Disk)
			fmt.Fprintf(w, "%-18s %-12s %s", printable(where), printable(e.Phase), printable(e.Message))
			if e.LeaseEnd != 0 {
				fmt.Fprintf(w, "  until %s", until(e.LeaseEnd))
			}
			fmt.Fprintln(w)
		})
		if err != nil {
			return err
		}
	}
}

func (a *app) orderManifest() *cobra.Command {
	var full bool
	c := &cobra.Command{
		Use:   "manifest ORDER",
		Short: "List the bills of materials and what changed between them",
		Long: `List the bills of materials of an order's disks: the customer's own, and those that
'prepare-to-ship' made after a repair, with what changed and under which request.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			resp, err := c.Orders.GetManifest(ctx, &lockboxv1.GetManifestRequest{Order: args[0]})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				if len(resp.Manifests) == 0 {
					fmt.Fprintln(w, "prepare-to-ship: NotStarted")
				}
				for _, m := range resp.Manifests {
					fmt.Fprintf(w, "node %d %s %s  version %d  %s\n", m.Node, printable(m.Disk), printable(m.Share), m.Version, printable(m.Digest))
					fields(w, "  previous", m.PreviousDigest, "  made under", m.Request, "  at", when(m.Time))
					for line := range strings.Lines(m.Difference) {
						fmt.Fprintln(w, "    "+printable(strings.TrimRight(line, "\n")))
					}
					if full {
						fmt.Fprintf(w, "%s\n", m.Bom)
					}
				}
			})
		}),
	}
	c.Flags().BoolVar(&full, "full", false, "print the documents too")
	return c
}
