package cli

import (
	"context"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) catalogueCommand() *cobra.Command {
	return group("catalogue", "What can be done, by whom, and what it takes", a.catalogueList(), a.catalogueShow())
}

func (a *app) catalogueList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the operations on service and device",
		Long: `List the operations on service and device: who may, whether they touch the
customer's data, and whether they make a Lockbox request.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Catalogue.ListOperations(ctx, &lockboxv1.ListOperationsRequest{})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, o := range resp.Operations {
					rows = append(rows, []string{o.Name, o.On, yesNo(o.CustomerData), yesNo(o.LockboxRequest), strings.Join(o.Roles, ",")})
				}
				table(w, "OPERATION ON DATA REQUEST ROLES", rows)
			})
		}),
	}
}

func (a *app) catalogueShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show OPERATION",
		Short: "Show an operation",
		Long:  "Show an operation: what it does, who may, what else it needs, and the calls of the API behind it.",
		Args:  args("OPERATION"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			resp, err := c.Catalogue.ListOperations(ctx, &lockboxv1.ListOperationsRequest{})
			if err != nil {
				return err
			}
			i := slices.IndexFunc(resp.Operations, func(o *lockboxv1.Operation) bool { return strings.EqualFold(o.Name, args[0]) })
			if i < 0 {
				return protocol.Errorf(protocol.CodeNotFound, "there is no operation %q: 'lockbox catalogue list' names them", args[0])
			}
			o := resp.Operations[i]
			return a.print(cmd, o, func(w io.Writer) {
				fields(w, "Operation", o.Name, "What", o.What, "On", o.On, "Roles", strings.Join(o.Roles, ", "), "Needs", o.Right,
					"Customer's data", yesNo(o.CustomerData), "Lockbox request", yesNo(o.LockboxRequest), "Calls", strings.Join(o.Calls, ", "))
			})
		}),
	}
}
