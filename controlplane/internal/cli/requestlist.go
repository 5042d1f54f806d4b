package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) requestList() *cobra.Command {
	req := &lockboxv1.ListRequestsRequest{}
	c := &cobra.Command{
		Use:   "list [--pending] [--state STATE] [--action ACTION] [--device SERIAL] [--requester PERSON] [--ticket TICKET]",
		Short: "List requests; --pending is the organization's queue",
		Long: `List requests, newest first and a page at a time. Customers see those of their own
organization. With --pending, those that wait for a decision of your side.

States: Initializing, Pending (shown as Customer Notified), Approving, Denying,
Approved, Denied, Expired, Revoking, Revoked, Completing, Completed, Error, Unknown.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Requests.ListRequests(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) { writeRequests(w, resp) })
		}),
	}
	f := c.Flags()
	f.BoolVar(&req.Pending, "pending", false, "only what waits for a decision")
	f.StringVar(&req.State, "state", "", "only those in this state")
	f.StringVar(&req.Action, "action", "", "only those for this action: unlock-databox or access-subscription")
	f.StringVar(&req.Serial, "device", "", "only those about this device")
	f.StringVar(&req.Engineer, "requester", "", "only those of this engineer")
	f.StringVar(&req.Ticket, "ticket", "", "only those for this ticket")
	f.StringVar(&req.Tenant, "tenant", "", "only this tenant's")
	f.StringVar(&req.Order, "order", "", "only this order's")
	f.Int64Var(&req.Before, "before", 0, "only requests with a lower number: the next page")
	f.Int32Var(&req.Limit, "limit", 100, "how many, at most 500")
	return c
}

func writeRequests(w io.Writer, resp *lockboxv1.ListRequestsResponse) {
	var rows [][]string
	for _, r := range resp.Requests {
		rows = append(rows, []string{
			strconv.FormatInt(r.Number, 10), shownStatus(r), about(r), r.Ticket, r.Engineer, r.ReasonCode, until(deadline(r)),
		})
	}
	table(w, "N STATE ABOUT TICKET ENGINEER REASON UNTIL", rows)
	if resp.Next != 0 {
		fmt.Fprintf(w, "more: --before %d\n", resp.Next)
	}
}

// about is the device, subscription or tenant that a request is about.
func about(r *lockboxv1.Request) string {
	switch approval.Scope(r.Scope) {
	case approval.OfSubscription:
		return r.Subscription
	case approval.OfTenant:
		return "tenant " + r.Tenant
	}
	return r.Serial
}

// deadline is when a request expires, or the access under it ends.
func deadline(r *lockboxv1.Request) int64 {
	if r.AccessEnd != 0 {
		return r.AccessEnd
	}
	return r.Expires
}
