package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) requestExtend() *cobra.Command {
	req := &lockboxv1.ExtendRequestRequest{}
	var lasts time.Duration
	c := &cobra.Command{
		Use:   "extend N [--for 2h]",
		Short: "Ask to go on with an access: a new request of the same scope",
		Long: `Ask to go on with an access of yours that is about to end. This raises a new
request of the same scope, to be approved like any other; nothing lengthens the
first one. Executing it ends the first access: the disks lock for a moment and
open again under the new approval. Connect to your session again then.`,
		Args: args("N"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			var err error
			if req.DurationSeconds, err = seconds(cmd, lasts); err != nil {
				return err
			}
			req.Id = args[0]
			r, err := c.Requests.ExtendRequest(ctx, req)
			return a.showRequest(cmd, r, err)
		}),
	}
	c.Flags().DurationVar(&lasts, "for", 0, "how long, from its approval; without it, as long as the first one")
	c.Flags().StringVar(&req.Justification, "justification", "", "why; without it, that of the first one")
	return c
}

func (a *app) requestRaise() *cobra.Command {
	req := &lockboxv1.RaiseRequestAgainRequest{}
	c := &cobra.Command{
		Use:   "raise N",
		Short: "Raise again a request that expired, was voided, withdrawn or completed",
		Long: `Raise a request of yours again, with the same scope: one that expired, was voided
because the trust policy was replaced, was withdrawn, or was completed. What was
denied or revoked is not raised again; ask anew, with another justification.`,
		Args: args("N"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			req.Id = args[0]
			r, err := c.Requests.RaiseRequestAgain(ctx, req)
			return a.showRequest(cmd, r, err)
		}),
	}
	c.Flags().StringVar(&req.Justification, "justification", "", "why; without it, that of the first one")
	return c
}
