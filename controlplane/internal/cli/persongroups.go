package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) personGroups() *cobra.Command {
	return &cobra.Command{
		Use:   "groups NAME [GROUP]…",
		Short: "Say which groups an internal approver is in",
		Long: `Say which groups an internal approver is in: all of them. JIT policies ask for
approvers of groups; who is in Manager decides whether a customer's contact
address is read. New internal approvers are in "Customer support lead".`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("name the person, and their groups: usage: %s", cmd.UseLine())
			}
			return nil
		},
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			p, err := c.Accounts.SetGroups(ctx, &lockboxv1.SetGroupsRequest{Person: args[0], Groups: args[1:]})
			if err != nil {
				return err
			}
			return a.print(cmd, p, func(w io.Writer) { showPerson(w, p) })
		}),
	}
}
