package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) contactCommand() *cobra.Command {
	return group("contact", "A customer's contact address, with a manager's approval", a.contactRequest(),
		a.contactDecide("approve", true), a.contactDecide("deny", false), a.contactShow(), a.contactList())
}

func (a *app) contactRequest() *cobra.Command {
	req := &lockboxv1.AskContactRequest{}
	c := &cobra.Command{
		Use:   "request ORDER|TENANT --reason TEXT",
		Short: "Ask to read a customer's contact address",
		Long: `Ask to read the contact address of the customer behind an order, or of a tenant. A
manager decides within a day: an internal approver in the group Manager, and not
you.`,
		Args: args("ORDER|TENANT"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if err := need(cmd, "reason"); err != nil {
				return err
			}
			_, err := c.Orders.GetOrder(ctx, &lockboxv1.GetOrderRequest{Id: args[0]})
			switch {
			case err == nil:
				req.Order = args[0]
			case protocol.CodeOf(err) == protocol.CodeNotFound:
				req.Tenant = args[0]
			default:
				return err
			}
			r, err := c.Contacts.AskContact(ctx, req)
			return a.showContact(cmd, r, err)
		}),
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "why you need it; the customer reads it")
	return c
}

func (a *app) showContact(cmd *cobra.Command, r *lockboxv1.ContactRequest, err error) error {
	if err != nil {
		return err
	}
	return a.print(cmd, r, func(w io.Writer) { showContactFields(w, r) })
}

func showContactFields(w io.Writer, r *lockboxv1.ContactRequest) {
	fields(w, "Contact request", r.Id, "Tenant", r.Tenant, "Order", r.Order, "Asked by", r.Requester, "Reason", r.Reason, "State", r.State,
		"Until", when(r.Expires), "Decided by", r.DecidedBy, "Last read", when(r.LastRead))
}

func (a *app) contactDecide(verb string, yes bool) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " ID",
		Short: strings.ToUpper(verb[:1]) + verb[1:] + " that a contact address is read",
		Long: `Decide whether a contact address is read. For internal approvers in the group
Manager, about requests of others. Approved, it can be read for an hour.`,
		Args: args("ID"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			r, err := c.Contacts.DecideContact(ctx, &lockboxv1.DecideContactRequest{Id: args[0], Approve: yes})
			return a.showContact(cmd, r, err)
		}),
	}
}

func (a *app) contactShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Read the contact address; the customer is told",
		Long: `Read the address that you asked for, while the manager's approval lasts. It goes to
the activity log, and the customer is told, before it is shown.`,
		Args: args("ID"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			resp, err := c.Contacts.ReadContact(ctx, &lockboxv1.ReadContactRequest{Id: args[0]})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				showContactFields(w, resp.Request)
				for _, address := range resp.Addresses {
					fmt.Fprintln(w, printable(address))
				}
			})
		}),
	}
}

func (a *app) contactList() *cobra.Command {
	req := &lockboxv1.ListContactsRequest{}
	c := &cobra.Command{
		Use:   "list",
		Short: "List contact requests",
		Long:  "List contact requests: your own; for internal approvers, admins and auditors, all; for a customer, those about them.",
		Args:  args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Contacts.ListContacts(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, r := range resp.Requests {
					rows = append(rows, []string{r.Id, r.Tenant, r.Requester, r.State, when(r.Expires), r.Reason})
				}
				table(w, "ID TENANT BY STATE UNTIL REASON", rows)
			})
		}),
	}
	c.Flags().BoolVar(&req.Pending, "pending", false, "only what waits for a manager")
	return c
}
