package cli

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) orderDestinationCommand() *cobra.Command {
	var from string
	set := &cobra.Command{
		Use:   "set-credential ORDER ACCOUNT [--from FILE]",
		Short: "Hand over what lets the copy job into your storage account",
		Long: `Hand over what lets the copy job into a storage account of an order. FILE has one
line, and must be readable by you alone; '-', or no file, is standard input:

  SharedAccessSignature=sv=…&sig=…   made with 'az storage container generate-sas'
                                     or in the portal; the prefix may be left out
  AccountKey=…                       the key of the account, in base64

The job needs to create, read and write blobs, to delete them where a page blob was
begun and its file has changed since, and to create the containers that are not
there. A signature for these containers, with an end, is the better choice.

It is kept like the keys of the disks, under the order's key. It goes to the device
only with an unlock for copying under the consent that you signed, only if that
names this account and endpoint, sealed to that one unlock. The key of an account
never goes: what goes is a signature made with it, which ends with the unlock.
Handing over another replaces it, from the next unlock on. When the order is
completed, it is destroyed.`,
		Args: args("ORDER", "ACCOUNT"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if from != "" && from != "-" {
				if err := mustBePrivate(from); err != nil {
					return err
				}
			}
			text, err := readSecret(cmd, from, "Credential of "+args[1]+": ")
			if err != nil {
				return err
			}
			credential := []byte(text)
			defer clear(credential)
			o, err := c.Orders.SetDestinationAccess(ctx, &lockboxv1.SetDestinationAccessRequest{Order: args[0], Account: args[1], Credential: credential})
			return a.showDestinations(cmd, o, err)
		}),
	}
	set.Flags().StringVar(&from, "from", "", "the file with the credential, or - for standard input")
	return group("destination", "The storage accounts of an order, and what lets the copy job into them",
		set,
		&cobra.Command{
			Use:   "show ORDER",
			Short: "List the accounts, and what was handed over for them",
			Long:  "List the storage accounts of an order with their endpoints, and what was handed over\nthat lets the copy job in: of which kind, what it allows, by whom and until when.",
			Args:  args("ORDER"),
			RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
				o, err := c.Orders.GetOrder(ctx, &lockboxv1.GetOrderRequest{Id: args[0]})
				return a.showDestinations(cmd, o, err)
			}),
		},
		&cobra.Command{
			Use:   "remove-credential ORDER ACCOUNT",
			Short: "Have what was handed over destroyed",
			Long: `Have what lets the copy job into a storage account destroyed. A job that runs has it
until it pauses: 'lockbox consent revoke' ends that at once.`,
			Args: args("ORDER", "ACCOUNT"),
			RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
				o, err := c.Orders.RemoveDestinationAccess(ctx, &lockboxv1.RemoveDestinationAccessRequest{Order: args[0], Account: args[1]})
				return a.showDestinations(cmd, o, err)
			}),
		},
	)
}

func (a *app) showDestinations(cmd *cobra.Command, o *lockboxv1.Order, err error) error {
	if err != nil {
		return err
	}
	return a.print(cmd, o, func(w io.Writer) {
		for _, d := range o.Destinations {
			fields(w, "Account", d.Account, "Endpoint", d.Endpoint, "Shares", strings.Join(d.Shares, " "), "Credential", credential(d))
		}
	})
}

// credential says what lets into an account, "" if it needs nothing.
func credential(d *lockboxv1.Destination) string {
	x := d.Access
	switch {
	case x == nil && strings.HasPrefix(d.Endpoint, "file:"):
		return ""
	case x == nil:
		return "none yet: 'lockbox order destination set-credential'"
	}
	text := x.Kind + " (" + x.Allows + ")"
	if x.Expires != 0 {
		text += ", until " + when(x.Expires)
	}
	return text + ", handed over by " + x.Person + " at " + when(x.Created)
}
