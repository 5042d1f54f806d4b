package cli

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) ticketCommand() *cobra.Command {
	return group("ticket", "Support tickets", a.ticketFile(), a.ticketShow(), a.ticketList(), a.ticketComment(), a.ticketAssign())
}

func (a *app) ticketFile() *cobra.Command {
	req := &lockboxv1.FileTicketRequest{}
	c := &cobra.Command{
		Use:   "file ORDER --title TEXT [--owner ENGINEER]",
		Short: "File a ticket for an order",
		Long: `File a support ticket for an order: by the customer, or for a problem that the
provider detected. Staff say which engineer works on it, here with --owner or
later with 'lockbox ticket assign'.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if err := need(cmd, "title"); err != nil {
				return err
			}
			req.Order = args[0]
			t, err := c.Tickets.FileTicket(ctx, req)
			return a.showTicket(cmd, t, err)
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Title, "title", "", "what is wrong")
	f.StringVar(&req.Origin, "origin", "", "customer or provider-detected; by who you are if not given")
	choices(c, "origin", "customer", "provider-detected")
	f.StringVar(&req.Owner, "owner", "", "the engineer who owns it; for staff only")
	return c
}

func (a *app) showTicket(cmd *cobra.Command, t *lockboxv1.Ticket, err error) error {
	if err != nil {
		return err
	}
	return a.print(cmd, t, func(w io.Writer) {
		fields(w, "Ticket", t.Id, "Order", t.Order, "Title", t.Title, "Origin", t.Origin, "Owner", t.Owner,
			"Escalated to", strings.Join(t.EscalatedTo, ", "), "Created", when(t.Created))
		showHistory(w, t.History)
	})
}

func (a *app) ticketShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show TICKET",
		Short: "Show a ticket and its history",
		Long:  "Show a ticket and its history: comments, owners, sessions and requests.",
		Args:  args("TICKET"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			t, err := c.Tickets.GetTicket(ctx, &lockboxv1.GetTicketRequest{Id: args[0]})
			return a.showTicket(cmd, t, err)
		}),
	}
}

func (a *app) ticketList() *cobra.Command {
	req := &lockboxv1.ListTicketsRequest{}
	c := &cobra.Command{
		Use:   "list",
		Short: "List tickets",
		Long:  "List tickets. Customers see those of their own orders.",
		Args:  args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Tickets.ListTickets(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, t := range resp.Tickets {
					rows = append(rows, []string{t.Id, t.Order, t.Origin, t.Owner, t.Title})
				}
				table(w, "TICKET ORDER ORIGIN OWNER TITLE", rows)
			})
		}),
	}
	c.Flags().StringVar(&req.Order, "order", "", "only this order's")
	return c
}

func (a *app) ticketComment() *cobra.Command {
	return &cobra.Command{
		Use:   "comment TICKET TEXT",
		Short: "Add a comment to a ticket's history",
		Long:  "Add a comment to a ticket's history, which the customer reads.",
		Args:  args("TICKET", "TEXT"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			t, err := c.Tickets.CommentTicket(ctx, &lockboxv1.CommentTicketRequest{Id: args[0], Text: args[1]})
			return a.showTicket(cmd, t, err)
		}),
	}
}

func (a *app) ticketAssign() *cobra.Command {
	req := &lockboxv1.AssignTicketRequest{}
	c := &cobra.Command{
		Use:   "assign TICKET ENGINEER",
		Short: "Make an engineer the ticket's owner; --escalate adds them",
		Long: `Make an engineer the ticket's owner. With --escalate the owner stays, and the
engineer may open sessions and raise requests for it too.`,
		Args: args("TICKET", "ENGINEER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			req.Id, req.Engineer = args[0], args[1]
			t, err := c.Tickets.AssignTicket(ctx, req)
			return a.showTicket(cmd, t, err)
		}),
	}
	c.Flags().BoolVar(&req.Escalate, "escalate", false, "the owner stays; the engineer may work on it too")
	return c
}
