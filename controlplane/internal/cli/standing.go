package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// standingTTL is how long a standing consent stands unless --until says otherwise.
const standingTTL = 30 * 24 * time.Hour

func (a *app) standingSign(use string, verdict approval.Verdict) *cobra.Command {
	req := &lockboxv1.DraftStandingConsentRequest{Verdict: string(verdict)}
	var key, end string
	var lasts time.Duration
	var yes bool
	c := &cobra.Command{
		Use:   use + " ORDER --reason-code CODE… [--key FILE]",
		Short: "Decide about requests before anybody asks: draft, show, sign and submit a standing consent",
		Long: `Draft a standing consent, show it, sign it with your SSH key and submit it. It
decides about every request that it covers, until it ends: those of the named
reasons, to approve up to the named access, to deny from the named access on.
As many of your people have to sign it as for one request; if others have to, it
waits for them: 'lockbox trust-policy cosign'. The device verifies it itself.

Where it approves, the provider's own approvers still look at each request, and
you are told of each.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) (err error) {
			if len(req.ReasonCodes) == 0 {
				return usagef("--reason-code is missing: name the reasons that it is for")
			}
			req.Order = args[0]
			if req.Until, err = parseDate(end); err != nil {
				return err
			}
			if verdict == approval.Approve {
				req.MaxDurationSeconds = int64(lasts / time.Second)
			}
			draft, err := c.Standing.DraftStandingConsent(ctx, req)
			if err != nil {
				return err
			}
			doc, err := approval.ParseStanding(draft.Payload)
			if err != nil {
				return fmt.Errorf("the control plane drafted a standing consent that cannot be read: %w", err)
			}
			show := func(w io.Writer, policy string) { showStanding(w, doc, policy) }
			policy, err := a.underPolicy(ctx, c, cmd, args[0], doc.PolicyDigest, doc.OrderID, show)
			if err != nil {
				return err
			}
			if err := checkStanding(doc, policy, req, time.Now()); err != nil {
				return err
			}
			envelope, err := signAs(ctx, cmd, key, policy, doc, yes)
			if err != nil {
				return err
			}
			if err := a.rememberPolicy(args[0], doc.PolicyDigest); err != nil {
				return err
			}
			out, err := c.Standing.SubmitStandingConsent(ctx, &lockboxv1.SubmitStandingConsentRequest{Order: args[0], Envelope: envelope})
			return a.showSigned(cmd, args[0], out, err)
		}),
	}
	f := c.Flags()
	f.StringVar(&key, "key", "", "your SSH private key; without it, the ssh-agent's")
	f.StringArrayVar(&req.ReasonCodes, "reason-code", nil, "prepare-to-ship-not-run, copied-to-wrong-folder or incorrect-data-format; may be given several times")
	f.StringVar(&req.Access, "access", "read-only", "read-only, read-write or delete")
	f.StringVar(&end, "until", "", "last day (UTC), as in 2027-01-31; 30 days if not given")
	f.BoolVar(&yes, "yes", false, "do not ask before signing")
	if verdict == approval.Approve {
		f.DurationVar(&lasts, "for", time.Hour, "longest access that one request gets")
	}
	choices(c, "reason-code", "prepare-to-ship-not-run", "copied-to-wrong-folder", "incorrect-data-format")
	choices(c, "access", "read-only", "read-write", "delete")
	return c
}

// checkStanding refuses the draft of a standing consent that says something else
// than was asked for.
func checkStanding(s approval.Standing, p approval.TrustPolicy, asked *lockboxv1.DraftStandingConsentRequest, now time.Time) error {
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("the control plane drafted another standing consent than you asked for: sign nothing, tell your security team: "+format, args...)
	}
	latest := asked.Until
	if latest == 0 {
		latest = now.Add(standingTTL + time.Hour).Unix() // clocks differ
	}
	switch {
	case s.TenantID != p.TenantID:
		return wrong("it is for tenant %s, the trust policy is for %s", s.TenantID, p.TenantID)
	case string(s.Verdict) != asked.Verdict:
		return wrong("it says %s, not %s", s.Verdict, asked.Verdict)
	case !slices.Equal(s.ReasonCodes, asked.ReasonCodes):
		return wrong("it is for the reasons %v, not %v", s.ReasonCodes, asked.ReasonCodes)
	case string(s.Access) != asked.Access || s.MaxDuration != asked.MaxDurationSeconds:
		return wrong("it is for %s for %s, not %s for %s", s.Access, time.Duration(s.MaxDuration)*time.Second, asked.Access, time.Duration(asked.MaxDurationSeconds)*time.Second)
	case s.Until > latest:
		return wrong("it lasts until %s", when(s.Until))
	}
	return nil
}

func showStanding(w io.Writer, s approval.Standing, policy string) {
	what := "DENIES, before anybody asks, requests for " + string(s.Access) + " access and further"
	if s.Verdict == approval.Approve {
		what = fmt.Sprintf("APPROVES, before anybody asks, requests for up to %s access, for up to %s each", s.Access, time.Duration(s.MaxDuration)*time.Second)
	}
	fields(w, "Standing consent", s.StandingID, "It", what, "Order", string(s.OrderID), "Reasons", strings.Join(s.ReasonCodes, ", "),
		"Until", when(s.Until), "Trust policy", string(s.PolicyDigest), "", policy)
	showNodes(w, s.Nodes, nil)
}

func (a *app) standingList() *cobra.Command {
	return &cobra.Command{
		Use:   "auto-list ORDER",
		Short: "List the standing consents of an order",
		Long:  "List what was decided about requests before anybody asked, and whether it still stands.",
		Args:  args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			resp, err := c.Standing.ListStandingConsents(ctx, &lockboxv1.ListStandingConsentsRequest{Order: args[0]})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, s := range resp.Consents {
					doc, err := approval.ParseStanding(s.GetDocument().GetPayload())
					if err != nil {
						continue // what cannot be read decides nothing
					}
					rows = append(rows, []string{s.Id, s.State, string(doc.Verdict), string(doc.Access), strings.Join(doc.ReasonCodes, ","), when(s.Expires)})
				}
				table(w, "ID STATE VERDICT ACCESS REASONS UNTIL", rows)
			})
		}),
	}
}

func (a *app) standingRevoke() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "auto-revoke ID --reason TEXT",
		Short: "End a standing consent, and every access that it allows",
		Long:  "End a standing consent at once. Requests that it approved are revoked, and their devices lock.",
		Args:  args("ID"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if err := need(cmd, "reason"); err != nil {
				return err
			}
			s, err := c.Standing.RevokeStandingConsent(ctx, &lockboxv1.RevokeStandingConsentRequest{Id: args[0], Reason: reason})
			if err != nil {
				return err
			}
			return a.print(cmd, s, func(w io.Writer) { fields(w, "Standing consent", s.Id, "State", s.State) })
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return c
}
