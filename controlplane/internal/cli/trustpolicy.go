package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) trustPolicyCommand() *cobra.Command {
	return group("trust-policy", "Whose signatures a device wants, signed by the customer", a.trustPolicySign(), a.trustPolicyShow(), a.trustPolicyAccept())
}

func (a *app) trustPolicySign() *cobra.Command {
	req := &lockboxv1.DraftTrustPolicyRequest{}
	var key, recovery string
	var yes bool
	var customer, provider []string
	var longest time.Duration
	c := &cobra.Command{
		Use:   "sign ORDER [--key FILE]",
		Short: "Draft, show, sign and submit the order's trust policy",
		Long: `Draft the order's trust policy, show it, sign it with your SSH key and submit it.

Groups are NAME:THRESHOLD:PERSON,PERSON… Without any, one customer group of all
the tenant's owners and approvers and one provider group of all internal
approvers are made, each with threshold 1. Between groups it is AND.

The draft is the control plane's: it is refused if it differs from what you
asked for, if it counts people of another domain than yours for the customer
whom you did not name, or if it names a recovery key that you did not.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) (err error) {
			req.Order = args[0]
			req.MaxDurationSeconds = int64(longest / time.Second)
			if longest < time.Second {
				return usagef("--max-duration is %s: want more than nothing, as in 8h", longest)
			}
			if req.CustomerGroups, err = parseGroups(customer); err != nil {
				return err
			}
			if req.ProviderGroups, err = parseGroups(provider); err != nil {
				return err
			}
			draft, err := c.Orders.DraftTrustPolicy(ctx, req)
			if err != nil {
				return err
			}
			policy, err := approval.ParseTrustPolicy(draft.Payload)
			if err != nil {
				return fmt.Errorf("the control plane drafted a trust policy that cannot be read: %w", err)
			}
			wish, err := a.policyWish(ctx, c, req, recovery)
			if err != nil {
				return err
			}
			if err := tell(cmd, func(w io.Writer) { showPolicy(w, policy) }); err != nil {
				return err
			}
			if err := wish.check(policy); err != nil {
				return err
			}
			if policy.PreviousDigest != "" {
				if _, err := a.checkPolicy(args[0], policy.PreviousDigest); err != nil {
					return err
				}
			}
			signer, k, done, err := findSigner(ctx, cmd, key, policy)
			if err != nil {
				return err
			}
			defer done()
			if err := wish.checkSigner(policy, k); err != nil {
				return err
			}
			envelope, err := sign(cmd, policy, k.ID, signer, yes)
			if err != nil {
				return err
			}
			doc, err := c.Orders.SubmitTrustPolicy(ctx, &lockboxv1.SubmitTrustPolicyRequest{Order: args[0], Envelope: envelope})
			if err != nil {
				return err
			}
			digest := approval.DigestOf(draft.Payload)
			if err := a.rememberPolicy(args[0], digest); err != nil {
				return err
			}
			return a.print(cmd, doc, func(w io.Writer) {
				fields(w, "Trust policy", string(digest), "Version", strconv.FormatInt(policy.Version, 10))
			})
		}),
	}
	f := c.Flags()
	f.StringVar(&key, "key", "", "your SSH private key; without it, the ssh-agent's")
	f.BoolVar(&yes, "yes", false, "do not ask before signing")
	f.StringArrayVar(&customer, "customer-group", nil, "NAME:THRESHOLD:PERSON,… of the customer; may be given several times")
	f.StringArrayVar(&provider, "provider-group", nil, "NAME:THRESHOLD:PERSON,… of the provider; may be given several times")
	f.DurationVar(&longest, "max-duration", 8*time.Hour, "longest access one approval can give")
	f.StringVar(&recovery, "recovery-key", "", "fingerprint of your organization's recovery key; any other, or any at all without this, is refused")
	return c
}

// policyWish is what the flags ask for, by and for whom.
func (a *app) policyWish(ctx context.Context, c *client.Client, req *lockboxv1.DraftTrustPolicyRequest, recovery string) (policyWish, error) {
	id, err := a.identity()
	if err != nil {
		return policyWish{}, err
	}
	me, err := id.Person()
	if err != nil {
		return policyWish{}, err
	}
	resp, err := c.Accounts.WhoAmI(ctx, &lockboxv1.WhoAmIRequest{})
	if err != nil {
		return policyWish{}, err
	}
	return policyWish{
		signer: me, tenant: protocol.TenantID(resp.GetPerson().GetTenant()), order: protocol.OrderID(req.Order),
		customers: req.CustomerGroups, providers: req.ProviderGroups,
		longest: time.Duration(req.MaxDurationSeconds) * time.Second, recoveryKey: recovery,
	}, nil
}

func parseGroups(specs []string) ([]*lockboxv1.PolicyGroup, error) {
	var groups []*lockboxv1.PolicyGroup
	for _, s := range specs {
		parts := strings.SplitN(s, ":", 3)
		if len(parts) != 3 {
			return nil, usagef("group %q: want NAME:THRESHOLD:PERSON,PERSON, as in owners:1:olga@contoso.example", s)
		}
		n, err := strconv.ParseInt(parts[1], 10, 32)
		if err != nil || n < 1 {
			return nil, usagef("group %q: the threshold %q is not a number above 0", s, parts[1])
		}
		groups = append(groups, &lockboxv1.PolicyGroup{Name: parts[0], Threshold: int32(n), People: strings.Split(parts[2], ",")})
	}
	return groups, nil
}

// showPolicy shows all that a trust policy trusts, first who could replace it
// alone.
func showPolicy(w io.Writer, p approval.TrustPolicy) {
	recovery := "none: the policy changes only as its customers sign"
	if k := p.RecoveryKey; k != nil {
		recovery = fmt.Sprintf("%s of %s (%s) MAY REPLACE THIS POLICY ALONE", keyFingerprint(*k), k.Person, k.Kind)
	}
	fields(w, "Recovery key", recovery, "Trust policy", "version "+strconv.FormatInt(p.Version, 10), "Replaces", string(p.PreviousDigest),
		"Tenant", string(p.TenantID), "Order", string(p.OrderID))
	for _, k := range p.Keys {
		fmt.Fprintf(w, "  key of %-32s %s %s\n", printable(string(k.Person)), k.Kind, keyFingerprint(k))
		if k.Kind != approval.SSHKey {
			fmt.Fprintf(w, "    used at %s by %s\n", printable(strings.Join(k.Origins, ", ")), printable(k.RPID))
		}
	}
	for _, r := range p.Rules {
		fmt.Fprintf(w, "  %s, at most %s:\n", r.Action, time.Duration(r.MaxDuration)*time.Second)
		for _, g := range r.CustomerGroups {
			showGroup(w, p, "customer", g)
		}
		for _, g := range r.ProviderGroups {
			showGroup(w, p, "provider", g)
		}
	}
	for _, k := range p.ServiceKeys {
		fields(w, "Service key", string(approval.KeyFingerprint(k)))
	}
	fields(w, "Log key", p.LogKey)
}

func showGroup(w io.Writer, p approval.TrustPolicy, side string, g approval.Group) {
	var people []string
	for _, who := range peopleOf(p, g) {
		people = append(people, string(who))
	}
	fmt.Fprintf(w, "    %s group %s: %d of %s\n", side, printable(g.Name), g.Threshold, printable(strings.Join(people, ", ")))
}

func (a *app) trustPolicyShow() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "show ORDER [--out FILE]",
		Short: "Show the order's trust policy; --out writes the signed envelope for 'databox-agent enroll'",
		Long: `Show the order's trust policy: whose signatures the device wants, for which action.
With --out its signed envelope is written, for 'databox-agent enroll'.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			doc, err := c.Orders.GetTrustPolicy(ctx, &lockboxv1.GetTrustPolicyRequest{Order: args[0]})
			if err != nil {
				return err
			}
			policy, err := approval.ParseTrustPolicy(doc.Payload)
			if err != nil {
				return err
			}
			if out != "" {
				if err := renameio.WriteFile(out, doc.Envelope, 0o644); err != nil {
					return err
				}
			}
			return a.print(cmd, doc, func(w io.Writer) {
				showPolicy(w, policy)
				fields(w, "Digest", string(approval.DigestOf(doc.Payload)), "Written to", out)
			})
		}),
	}
	c.Flags().StringVar(&out, "out", "", "write the signed envelope to this file")
	return c
}

func (a *app) trustPolicyAccept() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "accept ORDER",
		Short: "Keep the order's trust policy as the one you know",
		Long: `Show the order's trust policy and keep its digest in your home as the one you
know, instead of the one kept before. From then on 'lockbox request approve' and
'lockbox consent sign' refuse any other. Compare the digest with somebody who
signed the policy before you say yes.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			doc, err := c.Orders.GetTrustPolicy(ctx, &lockboxv1.GetTrustPolicyRequest{Order: args[0]})
			if err != nil {
				return err
			}
			policy, err := approval.ParseTrustPolicy(doc.Payload)
			if err != nil {
				return fmt.Errorf("the control plane's trust policy cannot be read: %w", err)
			}
			if err := checkOrder(policy, args[0]); err != nil {
				return err
			}
			digest := approval.DigestOf(doc.Payload)
			err = tell(cmd, func(w io.Writer) {
				showPolicy(w, policy)
				fields(w, "Digest", string(digest))
			})
			if err != nil {
				return err
			}
			if !yes {
				if err := confirm(cmd, "Keep it?"); err != nil {
					return err
				}
			}
			if err := a.rememberPolicy(args[0], digest); err != nil {
				return err
			}
			return a.print(cmd, doc, func(w io.Writer) { fields(w, "Kept", string(digest)) })
		}),
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

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
			draft, err := c.Orders.DraftConsent(ctx, &lockboxv1.DraftConsentRequest{Order: args[0], Until: end})
			if err != nil {
				return err
			}
			consent, err := approval.ParseConsent(draft.Payload)
			if err != nil {
				return fmt.Errorf("the control plane drafted a consent that cannot be read: %w", err)
			}
			policy, err := fetchPolicy(ctx, c, args[0], consent.PolicyDigest)
			if err != nil {
				return err
			}
			if err := checkConsent(consent, policy, args[0], end, time.Now()); err != nil {
				return err
			}
			known, err := a.checkPolicy(args[0], consent.PolicyDigest)
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
			signer, k, done, err := findSigner(ctx, cmd, key, policy)
			if err != nil {
				return err
			}
			defer done()
			envelope, err := sign(cmd, consent, k.ID, signer, yes)
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
			return a.print(cmd, doc, func(w io.Writer) { fields(w, "Consent", doc.Digest) })
		}),
	}
	f := c.Flags()
	f.StringVar(&key, "key", "", "your SSH private key; without it, the ssh-agent's")
	f.StringVar(&until, "until", "", "last day, as in 2027-01-31; 90 days if not given")
	f.BoolVar(&yes, "yes", false, "do not ask before signing")
	return c
}

func parseDate(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	day, err := time.ParseInLocation(time.DateOnly, s, time.Local)
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

// writeFile replaces a file, whole or not at all.
func writeFile(name string, data []byte) error {
	if err := renameio.WriteFile(name, data, 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
		return fmt.Errorf("cannot write %s: %w", name, err)
	}
	return nil
}
