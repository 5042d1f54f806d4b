package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
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
	return group("trust-policy", "Whose signatures a device wants, signed by the customer",
		a.trustPolicySign(), a.trustPolicyShow(), a.trustPolicyAccept(), a.trustPolicyPending(), a.trustPolicyCosign(), a.trustPolicyDelivery(),
		a.trustPolicyDraft(), a.trustPolicyRecoveryKey(), a.trustPolicyRecover(), a.trustPolicySubmit(),
		a.standingSign("auto-approve", approval.Approve), a.standingSign("auto-deny", approval.Deny), a.standingList(), a.standingRevoke())
}

// policyFlags are the flags that say what a trust policy is to be.
type policyFlags struct {
	customer, provider []string
	longest            time.Duration
	recovery           string // a .pub file, or the fingerprint of the present one
	noRecovery         bool
	exclusions         []string
	exclusionAccess    string
	exclusionFor       time.Duration
}

func (p *policyFlags) register(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVar(&p.customer, "customer-group", nil, "NAME:THRESHOLD:PERSON,… of the customer; may be given several times")
	f.StringArrayVar(&p.provider, "provider-group", nil, "NAME:THRESHOLD:PERSON,… of the provider; may be given several times")
	f.DurationVar(&p.longest, "max-duration", 8*time.Hour, "longest access one approval can give")
	f.StringVar(&p.recovery, "recovery-key", "", "your organization's recovery key: its .pub file, or the fingerprint of the present one; any other is refused")
	f.BoolVar(&p.noRecovery, "without-recovery-key", false, "have none: when too few of the keys are left, nobody can ever replace the policy")
	f.StringArrayVar(&p.exclusions, "exclusion", nil, "let the provider in WITHOUT YOUR APPROVAL: lockbox-off, break-glass, inadvertent-exposure or external-legal-demand, by two internal approvers, or KIND=NAME:THRESHOLD:PERSON,…; may be given several times")
	f.StringVar(&p.exclusionAccess, "exclusion-access", "read-write", "furthest access of an exclusion: read-only, read-write or delete")
	f.DurationVar(&p.exclusionFor, "exclusion-for", 2*time.Hour, "longest access of an exclusion")
	choices(c, "exclusion-access", "read-only", "read-write", "delete")
	c.MarkFlagsMutuallyExclusive("recovery-key", "without-recovery-key")
}

// request is what the flags ask for.
func (p *policyFlags) request(order string) (req *lockboxv1.DraftTrustPolicyRequest, err error) {
	if min(p.longest, p.exclusionFor) < time.Second {
		return nil, usagef("--max-duration and --exclusion-for: want more than nothing, as in 8h")
	}
	req = &lockboxv1.DraftTrustPolicyRequest{Order: order, MaxDurationSeconds: int64(p.longest / time.Second), NoRecovery: p.noRecovery}
	if req.CustomerGroups, err = parseGroups(p.customer); err != nil {
		return nil, err
	}
	if req.ProviderGroups, err = parseGroups(p.provider); err != nil {
		return nil, err
	}
	if req.Exclusions, err = p.parseExclusions(); err != nil {
		return nil, err
	}
	if p.recovery != "" && !strings.HasPrefix(p.recovery, "SHA256:") {
		req.RecoveryKey, err = readPublicKey(p.recovery)
	}
	return req, err
}

func (p *policyFlags) parseExclusions() ([]*lockboxv1.PolicyExclusion, error) {
	var out []*lockboxv1.PolicyExclusion
	for _, spec := range p.exclusions {
		kind, named, _ := strings.Cut(spec, "=")
		var groups []*lockboxv1.PolicyGroup
		var err error
		if named != "" {
			if groups, err = parseGroups([]string{named}); err != nil {
				return nil, err
			}
		}
		i := slices.IndexFunc(out, func(x *lockboxv1.PolicyExclusion) bool { return x.Kind == kind })
		if i < 0 {
			out = append(out, &lockboxv1.PolicyExclusion{Kind: kind, Access: p.exclusionAccess, MaxDurationSeconds: int64(p.exclusionFor / time.Second)})
			i = len(out) - 1
		}
		out[i].Groups = append(out[i].Groups, groups...)
	}
	return out, nil
}

// draft has the control plane draft what the flags ask for, shows it, and refuses
// it if it is anything else. current is the policy that it is to replace, the
// draft itself if it is version 1: its keys have to sign.
func (p *policyFlags) draft(ctx context.Context, a *app, c *client.Client, cmd *cobra.Command, order string) (draft, current approval.TrustPolicy, wish policyWish, err error) {
	req, err := p.request(order)
	if err != nil {
		return draft, current, wish, err
	}
	doc, err := c.Orders.DraftTrustPolicy(ctx, req)
	if err != nil {
		return draft, current, wish, err
	}
	if draft, err = approval.ParseTrustPolicy(doc.Payload); err != nil {
		return draft, current, wish, fmt.Errorf("the control plane drafted a trust policy that cannot be read: %w", err)
	}
	if wish, err = a.policyWish(ctx, c, req, p.recovery); err != nil {
		return draft, current, wish, err
	}
	if err := tell(cmd, func(w io.Writer) { showPolicy(w, draft) }); err != nil {
		return draft, current, wish, err
	}
	if err := wish.check(draft); err != nil {
		return draft, current, wish, err
	}
	if draft.PreviousDigest == "" {
		return draft, draft, wish, nil
	}
	if _, err := a.checkPolicy(ctx, c, order, draft.PreviousDigest); err != nil {
		return draft, current, wish, err
	}
	current, err = fetchPolicy(ctx, c, order, draft.PreviousDigest)
	return draft, current, wish, err
}

// recoveryFingerprint is that of the recovery key asked for, "" for none.
func recoveryFingerprint(req *lockboxv1.DraftTrustPolicyRequest, flag string) (string, error) {
	if req.RecoveryKey == "" {
		return flag, nil
	}
	return approval.SSHFingerprint(req.RecoveryKey)
}

func (a *app) trustPolicySign() *cobra.Command {
	var flags policyFlags
	var key string
	var yes bool
	c := &cobra.Command{
		Use:   "sign ORDER (--recovery-key FILE.pub | --without-recovery-key) [--key FILE]",
		Short: "Draft, show, sign and submit the order's trust policy",
		Long: `Draft the order's trust policy, or the next version of it, show it, sign it with
your SSH key and submit it. If others have to sign too, it waits for them:
'lockbox trust-policy cosign'. A new version reaches the devices by itself, and
voids the requests that wait.

Groups are NAME:THRESHOLD:PERSON,PERSON… Without any, one customer group of all
the tenant's owners and approvers and one provider group of all internal
approvers are made, each with threshold 1. Between groups it is AND.

The recovery key may sign a new version alone. Keep it offline: it is for the
day on which too few of the other keys are left. Make it with 'lockbox
trust-policy recovery-key'.

The draft is the control plane's: it is refused if it differs from what you
asked for, if it counts people of another domain than yours for the customer
whom you did not name, or if it names a recovery key or an exclusion that you
did not.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) (err error) {
			policy, current, wish, err := flags.draft(ctx, a, c, cmd, args[0])
			if err != nil {
				return err
			}
			signer, k, done, err := findSigner(ctx, cmd, key, current)
			if err != nil {
				return err
			}
			defer done()
			if isRecovery(current, k) {
				return fmt.Errorf("%s is the recovery key: it signs alone, with 'lockbox trust-policy recover'", k.Fingerprint())
			}
			if err := wish.checkSigner(k); err != nil {
				return err
			}
			envelope, err := sign(cmd, policy, k.ID, signer, yes)
			if err != nil {
				return err
			}
			return a.submitPolicy(ctx, c, cmd, args[0], envelope)
		}),
	}
	flags.register(c)
	f := c.Flags()
	f.StringVar(&key, "key", "", "your SSH private key; without it, the ssh-agent's")
	f.BoolVar(&yes, "yes", false, "do not ask before signing")
	return c
}

func isRecovery(p approval.TrustPolicy, k approval.Key) bool {
	return p.RecoveryKey != nil && k.ID == p.RecoveryKey.ID
}

// submitPolicy submits a signed trust policy, keeps it as the known one once it
// is in force, and says what became of it.
func (a *app) submitPolicy(ctx context.Context, c *client.Client, cmd *cobra.Command, order string, envelope []byte) error {
	e, err := approval.ParseEnvelope(envelope)
	if err != nil {
		return err
	}
	policy, err := approval.ParseTrustPolicy(e.Payload)
	if err != nil {
		return err
	}
	doc, err := c.Orders.SubmitTrustPolicy(ctx, &lockboxv1.SubmitTrustPolicyRequest{Order: order, Envelope: envelope})
	if err != nil {
		return err
	}
	if doc.Missing == "" {
		if err := a.rememberPolicy(order, e.Digest()); err != nil {
			return err
		}
	}
	return a.print(cmd, doc, func(w io.Writer) {
		fields(w, "Trust policy", string(e.Digest()), "Version", strconv.FormatInt(policy.Version, 10))
		showMissing(w, order, doc)
	})
}

// showMissing says who has to sign a document still.
func showMissing(w io.Writer, order string, doc *lockboxv1.Document) {
	if doc.Missing == "" {
		return
	}
	fields(w, "Signed by", strings.Join(doc.Signers, ", "), "In force", "not yet: "+doc.Missing)
	fmt.Fprintf(w, "The others type\n\n    lockbox trust-policy cosign %s %s\n", printable(order), printable(doc.Digest))
}

// policyWish is what the flags ask for, by and for whom.
func (a *app) policyWish(ctx context.Context, c *client.Client, req *lockboxv1.DraftTrustPolicyRequest, recovery string) (policyWish, error) {
	me, err := a.me()
	if err != nil {
		return policyWish{}, err
	}
	resp, err := c.Accounts.WhoAmI(ctx, &lockboxv1.WhoAmIRequest{})
	if err != nil {
		return policyWish{}, err
	}
	fingerprint, err := recoveryFingerprint(req, recovery)
	if err != nil {
		return policyWish{}, err
	}
	return policyWish{
		signer: me, tenant: protocol.TenantID(resp.GetPerson().GetTenant()), order: protocol.OrderID(req.Order),
		customers: req.CustomerGroups, providers: req.ProviderGroups, exclusions: req.Exclusions,
		longest: time.Duration(req.MaxDurationSeconds) * time.Second, recoveryKey: fingerprint, noRecovery: req.NoRecovery,
	}, nil
}

// me is who is logged in, by their certificate.
func (a *app) me() (protocol.Person, error) {
	id, err := a.identity()
	if err != nil {
		return "", err
	}
	return id.Person()
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
	recovery := "none: the policy changes only as its customers sign, and never again if too few of their keys are left"
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
	for _, x := range p.Exclusions {
		fmt.Fprintf(w, "  WITHOUT THE CUSTOMER'S APPROVAL, for %s, %s, at most %s:\n", x.Kind, x.Access, time.Duration(x.MaxDuration)*time.Second)
		for _, g := range x.ProviderGroups {
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
		Short: "Show the order's trust policy; --out writes it for 'databox-agent enroll'",
		Long: `Show the order's trust policy: whose signatures the device wants, for which action.
With --out its signed envelope is written, after those of the versions before it,
for 'databox-agent enroll'.`,
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
				chain := bytes.Join(append(doc.Earlier, doc.Envelope), []byte("\n"))
				if err := renameio.WriteFile(out, append(chain, '\n'), 0o644, renameio.WithTempDir(filepath.Dir(out))); err != nil {
					return err
				}
			}
			return a.print(cmd, doc, func(w io.Writer) {
				showPolicy(w, policy)
				fields(w, "Digest", string(approval.DigestOf(doc.Payload)), "Written to", out)
			})
		}),
	}
	c.Flags().StringVar(&out, "out", "", "write the signed envelopes to this file, one a line")
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

// writeFile replaces a file, whole or not at all.
func writeFile(name string, data []byte) error {
	if err := renameio.WriteFile(name, data, 0o600, renameio.WithTempDir(filepath.Dir(name)), renameio.WithStaticPermissions(0o600)); err != nil {
		return fmt.Errorf("cannot write %s: %w", name, err)
	}
	return nil
}
