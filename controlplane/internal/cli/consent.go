package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) consentCommand() *cobra.Command {
	return group("consent", "The customer's consent to copy the data to named places", a.consentSign(), a.consentRevoke())
}

func (a *app) consentSign() *cobra.Command {
	var key, until string
	var yes bool
	c := &cobra.Command{
		Use:   "sign ORDER [--key FILE]",
		Short: "Draft, show, sign and submit the data-copy consent",
		Long: `Draft the data-copy consent, show it, sign it with your SSH key and submit it.
It names the device's keys, its disks and the only places the data may go to.
It is never valid for support.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			end, err := parseDate(until)
			if err != nil {
				return err
			}
			consent, policy, err := draftConsent(ctx, c, args[0], end)
			if err != nil {
				return err
			}
			known, err := a.checkPolicy(ctx, c, args[0], consent.PolicyDigest)
			if err != nil {
				return err
			}
			err = tell(cmd, func(w io.Writer) {
				known.show(w, policy)
				showConsent(w, consent, known.sentence)
			})
			if err != nil {
				return err
			}
			envelope, err := signAs(ctx, cmd, key, policy, consent, yes)
			if err != nil {
				return err
			}
			if err := a.rememberPolicy(args[0], consent.PolicyDigest); err != nil {
				return err
			}
			doc, err := c.Orders.SubmitConsent(ctx, &lockboxv1.SubmitConsentRequest{Order: args[0], Envelope: envelope})
			if err != nil {
				return err
			}
			return a.print(cmd, doc, func(w io.Writer) {
				fields(w, "Consent", doc.Digest)
				showMissing(w, args[0], doc)
			})
		}),
	}
	f := c.Flags()
	f.StringVar(&key, "key", "", "your SSH private key; without it, the ssh-agent's")
	f.StringVar(&until, "until", "", "last day (UTC), as in 2027-01-31; 90 days if not given")
	f.BoolVar(&yes, "yes", false, "do not ask before signing")
	return c
}

// draftConsent has the control plane draft the consent to copy an order's data until
// end (0: as long as is usual), and checks that it says no more. It returns the trust
// policy that it is under, too.
func draftConsent(ctx context.Context, c *client.Client, order string, end int64) (approval.Consent, approval.TrustPolicy, error) {
	draft, err := c.Orders.DraftConsent(ctx, &lockboxv1.DraftConsentRequest{Order: order, Until: end})
	if err != nil {
		return approval.Consent{}, approval.TrustPolicy{}, err
	}
	consent, err := approval.ParseConsent(draft.Payload)
	if err != nil {
		return approval.Consent{}, approval.TrustPolicy{}, fmt.Errorf("the control plane drafted a consent that cannot be read: %w", err)
	}
	policy, err := fetchPolicy(ctx, c, order, consent.PolicyDigest)
	if err != nil {
		return approval.Consent{}, approval.TrustPolicy{}, err
	}
	return consent, policy, checkConsent(consent, policy, order, end, time.Now())
}

// parseDate reads the value of --until, a day in UTC, and returns its end in Unix
// seconds, 0 without one.
func parseDate(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	day, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return 0, usagef("--until %q is not a day: want 2027-01-31", s)
	}
	return day.AddDate(0, 0, 1).Unix(), nil
}

func showConsent(w io.Writer, c approval.Consent, policy string) {
	fields(w, "Consent", string(c.ConsentID), "Order", string(c.OrderID), "Until", when(c.Until),
		"Trust policy", string(c.PolicyDigest), "", policy)
	showNodes(w, c.Nodes, c.Disks)
	for _, d := range c.Destinations {
		fmt.Fprintf(w, "  may copy to %s at %s\n", printable(d.Account), printable(d.Endpoint))
	}
}

func showNodes(w io.Writer, nodes []approval.NodeRef, disks []approval.DiskRef) {
	for _, n := range nodes {
		fmt.Fprintf(w, "  node %s with key %s\n", n.ID(), n.KeyFingerprint)
		for _, d := range disks {
			if d.Node == approval.NameOf(n.ID()) {
				fmt.Fprintf(w, "    disk %s\n", d.Disk)
			}
		}
	}
}

func (a *app) consentRevoke() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "revoke ORDER --reason TEXT",
		Short: "End the data-copy consent at once",
		Long:  "End the data-copy consent at once. A job under way is stopped and the disks are locked.",
		Args:  args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if err := need(cmd, "reason"); err != nil {
				return err
			}
			o, err := c.Orders.RevokeConsent(ctx, &lockboxv1.RevokeConsentRequest{Order: args[0], Reason: reason})
			return a.showOrder(cmd, o, err)
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return c
}
