package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) orderKeyCommand() *cobra.Command {
	set := &lockboxv1.SetOrderKeyRequest{}
	setCmd := &cobra.Command{
		Use:   "set ORDER --vault-key URL",
		Short: "Move an order to a key in your own vault; for good",
		Long: `Move an order to a key in your own Azure Key Vault, at any stage of the order. The
keys of its disks are then stored under that key, and what was stored before is
destroyed. The order never goes back to the service's key; with this command it
goes to another key or version of yours.

The key is RSA of 2,048 bits or more, in a vault with soft delete and purge
protection. The service's identity needs Get, WrapKey and UnwrapKey on it until the
order is completed: while the key is disabled, expired, deleted or out of reach,
nothing of the order is unlocked, copied or exported. If it is lost for good, so is
what is on the disks.

URL is https://VAULT/keys/NAME, for the newest version, or with /VERSION.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if err := need(cmd, "vault-key"); err != nil {
				return err
			}
			set.Order = args[0]
			k, err := c.Keys.SetOrderKey(ctx, set)
			return a.showOrderKey(cmd, k, err)
		}),
	}
	setCmd.Flags().StringVar(&set.VaultKey, "vault-key", "", "the key's address")
	return group("key", "The key under which the keys of an order's disks are stored",
		setCmd,
		&cobra.Command{
			Use:   "show ORDER",
			Short: "Show which key it is, and whether older wrappings are destroyed",
			Long:  "Show which key wraps the keys of an order's disks, who manages it, and whether what\nkeys before it wrapped is destroyed.",
			Args:  args("ORDER"),
			RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
				k, err := c.Keys.GetOrderKey(ctx, &lockboxv1.GetOrderKeyRequest{Order: args[0]})
				return a.showOrderKey(cmd, k, err)
			}),
		},
		&cobra.Command{
			Use:   "reset ORDER",
			Short: "Move an order back to the service's key, where that is allowed",
			Long: `Move an order from your key back to the service's. It is refused unless the service
is set to allow it (keys.allow_return): by the usual rule there is no way back.`,
			Args: args("ORDER"),
			RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
				k, err := c.Keys.SetOrderKey(ctx, &lockboxv1.SetOrderKeyRequest{Order: args[0], ServiceManaged: true})
				return a.showOrderKey(cmd, k, err)
			}),
		},
	)
}

func (a *app) showOrderKey(cmd *cobra.Command, k *lockboxv1.OrderKey, err error) error {
	if err != nil {
		return err
	}
	return a.print(cmd, k, func(w io.Writer) {
		old := "destroyed"
		if !k.OldDestroyed {
			old = "being destroyed"
		}
		fields(w, "Order", k.Order, "Encryption type", k.KekType, "Key", k.Key, "Since", when(k.Since), "Older wrappings", old)
	})
}
