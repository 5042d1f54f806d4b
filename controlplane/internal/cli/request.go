package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) requestCommand() *cobra.Command {
	return group("request", "Lockbox requests: raise, discuss, decide, execute, extend, revoke",
		a.requestCreate(), a.requestShow(), a.requestList(), a.requestComment(), a.requestExtend(), a.requestRaise(), a.requestChanges(),
		a.requestDecide("approve", approval.Approve), a.requestDecide("deny", approval.Deny),
		a.requestCancel(), a.requestExecute(), a.requestRevoke("revoke", "End an approved request: sessions closed, disks relocked",
			"End an approved request at once: sessions closed, disks relocked, the approval spent.\nA device that cannot be reached locks within its dead-man time."),
		a.requestRevoke("done", "Say that the work is done: disks relocked, the approval spent",
			"Say that the work is done: sessions closed, disks relocked, the approval spent."))
}

func (a *app) requestCreate() *cobra.Command {
	req := &lockboxv1.CreateRequestRequest{}
	var lasts time.Duration
	c := &cobra.Command{
		Use: "create --device SERIAL --ticket TICKET (--reason-code CODE | --exclusion KIND) --justification TEXT\n" +
			"  lockbox request create --action access-subscription --subscription ID --ticket TICKET --justification TEXT",
		Short: "Raise a just-in-time request to unlock a device, or to see a subscription",
		Long: `Raise a just-in-time request to unlock a device. It is evaluated at once and
every factor is shown. Nothing is granted yet: internal approvers decide, then
the customer. Ask for the least that will do: --access, --disk, --share, --for. The
device enforces each.

With --action access-subscription, ask to see in full what the service knows of the
orders and devices of the ticket's subscription (jobs, copy logs, manifests, what was
changed, the list of recordings); with --scope tenant, of all subscriptions of the
tenant, which its tenant administrators decide. No disk is opened and there is
nothing to execute: the access lasts from the approval, and what is read is recorded.
The trust policy of the order that the ticket is about says who has to approve.

Reason codes: prepare-to-ship-not-run, copied-to-wrong-folder, incorrect-data-format.

With --exclusion the customer is told, at once and before anything is opened, and
not asked: two internal approvers decide. It is only for work outside of standard
procedure to restore service (break-glass), data that was seen while something
else was troubleshot (inadvertent-exposure) and demands by law
(external-legal-demand), and only where the device's trust policy, which the
customer signed, allows it.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			err := needForRequest(cmd, req)
			if err != nil {
				return err
			}
			if accessAction(req.Action) && !cmd.Flags().Changed("access") {
				req.Access = string(approval.ReadOnly)
			}
			if req.DurationSeconds, err = seconds(cmd, lasts); err != nil {
				return err
			}
			r, err := c.Requests.CreateRequest(ctx, req)
			return a.showRequest(cmd, r, err)
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Action, "action", "Unlock Databox", "what to do: unlock-databox or access-subscription")
	f.StringVar(&req.Serial, "device", "", "the device's serial")
	f.StringVar(&req.Subscription, "subscription", "", "the subscription to see")
	f.StringVar(&req.Scope, "scope", "", "subscription, or tenant: all of the tenant's; subscription if not given")
	f.StringVar(&req.Ticket, "ticket", "", "the ticket that is the reason")
	f.StringVar(&req.ReasonCode, "reason-code", "", "prepare-to-ship-not-run, copied-to-wrong-folder or incorrect-data-format")
	f.StringVar(&req.Justification, "justification", "", "why, in your words; the customer reads it")
	f.StringVar(&req.Access, "access", "read-write", "read-only, read-write or delete; a subscription is only read")
	f.DurationVar(&lasts, "for", 0, "how long, from the approval; without it, as long as the tenant has set")
	f.StringArrayVar(&req.Disks, "disk", nil, "only this disk, as NODE/DISK; may be given several times")
	f.StringArrayVar(&req.Shares, "share", nil, "only this share, as contosodata_BlockBlob; may be given several times")
	choices(c, "reason-code", "prepare-to-ship-not-run", "copied-to-wrong-folder", "incorrect-data-format")
	f.StringVar(&req.Exclusion, "exclusion", "", "WITHOUT ASKING THE CUSTOMER: break-glass, inadvertent-exposure or external-legal-demand")
	choices(c, "action", string(approval.UnlockDatabox), string(approval.AccessSubscription))
	choices(c, "scope", string(approval.OfSubscription), string(approval.OfTenant))
	choices(c, "access", "read-only", "read-write", "delete")
	choices(c, "exclusion", "break-glass", "inadvertent-exposure", "external-legal-demand")
	f.StringVar(&req.SshKey, "ssh-key", "", "fingerprint of the key you will use, if you have several")
	return c
}

// needForRequest demands the flags that such a request cannot do without.
func needForRequest(cmd *cobra.Command, req *lockboxv1.CreateRequestRequest) error {
	names := []string{"ticket", "justification"}
	switch {
	case accessAction(req.Action):
		names = append(names, "subscription")
	case req.Exclusion != "":
		names = append(names, "device")
	default:
		names = append(names, "device", "reason-code")
	}
	return need(cmd, names...)
}

// accessAction reports whether an action is access to a subscription, by either of
// its names.
func accessAction(action string) bool {
	return action == string(approval.AccessSubscription) || action == "Access Subscription"
}

func (a *app) showRequest(cmd *cobra.Command, r *lockboxv1.Request, err error) error {
	if err != nil {
		return err
	}
	return a.print(cmd, r, func(w io.Writer) { writeRequest(w, r) })
}

func writeRequest(w io.Writer, r *lockboxv1.Request) {
	fields(w, "Request", strconv.FormatInt(r.Number, 10)+"  "+r.Id, "Exclusion", r.Exclusion, "Standing consent", r.StandingConsent, "Action", r.Action, "Scope", shownScope(approval.Scope(r.Scope), r.Subscription, r.Tenant), "State", shownStatus(r),
		"Ticket", r.Ticket+"  (lockbox ticket show "+r.Ticket+")", "Order", r.Order, "Device", r.Serial, "Engineer", r.Engineer, "Engineer's key", r.EngineerKey,
		"Reason", r.ReasonCode, "Justification", r.Justification, "Access", r.Access,
		"Duration", (time.Duration(r.DurationSeconds) * time.Second).String(),
		"Created", when(r.Created), "Decide before", until(r.Expires),
		"Access from", when(r.AccessStart), "Access until", until(r.AccessEnd),
		"Trust policy", r.TrustPolicyDigest, "Notified", strings.Join(r.Notified, ", "),
		"Shares", openedShares(r.Scope, r.Shares), "Also over", shownProtocols(r.Protocols), "Extends", r.Extends, "Raises again", r.RaisedAgain,
		"Ended", closedBy(r), "Locked", lockedBy(r))
	for _, d := range r.Disks {
		fmt.Fprintln(w, "  disk "+printable(d))
	}
	if r.Evaluation != nil {
		fmt.Fprintln(w, "Evaluation")
		showEvaluation(w, r.Evaluation)
	}
	for _, d := range r.Decisions {
		fmt.Fprintf(w, "Decision      %s by %s for the %s, %s %s\n", printable(d.Verdict), printable(d.Person), printable(d.Role), when(d.Time), printable(d.Reason))
	}
	showComments(w, r.Comments)
	showTold(w, r.Told)
	showHistory(w, r.History)
}

// shownScope says how far an access to a subscription reaches, "" for what opens a
// device.
func shownScope[S, T ~string](scope approval.Scope, subscription S, tenant T) string {
	switch scope {
	case approval.OfSubscription:
		return "subscription " + string(subscription) + ": what the service knows of its orders and devices; NO DISK IS OPENED"
	case approval.OfTenant:
		return "ALL SUBSCRIPTIONS of tenant " + string(tenant) + ": what the service knows of their orders and devices; NO DISK IS OPENED"
	}
	return string(scope)
}

// openedShares names the shares that are opened, "" where none are.
func openedShares[S ~string](scope S, names []string) string {
	if scope != "" {
		return ""
	}
	return shownShares(names)
}

// shownShares names the shares that are opened.
func shownShares(names []string) string {
	if len(names) == 0 {
		return "all of the disks"
	}
	return strings.Join(names, ", ")
}

// shownProtocols shows over what shares are reached beside SMB, and what that means.
func shownProtocols[P ~string](names []P) string {
	var shown []string
	for _, name := range names {
		text := string(name)
		if text == string(approval.NFS) {
			text = "NFS, WHICH HAS NO LOGIN: whoever is at an address the device allows gets in"
		}
		shown = append(shown, text)
	}
	return strings.Join(shown, ", ")
}

// closedBy says when and why a request ended.
func closedBy(r *lockboxv1.Request) string {
	if r.Closed == 0 {
		return r.CloseReason
	}
	return when(r.Closed) + "  " + r.CloseReason
}

// lockedBy says that the device has confirmed that the access is over, or by when
// it locks by itself.
func lockedBy(r *lockboxv1.Request) string {
	switch {
	case r.LockConfirmed != 0:
		return "confirmed by the device at " + when(r.LockConfirmed)
	case r.LocksBy != 0:
		return "the device could not be reached; it locks by itself by " + until(r.LocksBy)
	}
	return ""
}

func shownStatus(r *lockboxv1.Request) string {
	if r.ShownStatus != "" && r.ShownStatus != r.Status {
		return r.ShownStatus + " (" + r.Status + ")"
	}
	return r.Status
}

func passedWord(passed bool) string {
	if passed {
		return "passed"
	}
	return "BLOCKED"
}

func (a *app) requestShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show N",
		Short: "Show a request: who, why, which disks, for how long, and its history",
		Long: `Show a request as the control plane tells it. N is its number or its id. What is
signed by 'lockbox request approve' is shown there again, from the bytes that
are signed.`,
		Args: args("N"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			r, err := c.Requests.GetRequest(ctx, &lockboxv1.GetRequestRequest{Id: args[0]})
			return a.showRequest(cmd, r, err)
		}),
	}
}

// decideFlags are the flags of approve and deny.
type decideFlags struct {
	key, reason string
	shorten     time.Duration
	yes         bool
}

func (a *app) requestDecide(use string, verdict approval.Verdict) *cobra.Command {
	var flags decideFlags
	c := &cobra.Command{
		Use:   use + " N [--key FILE]",
		Short: strings.ToUpper(use[:1]) + use[1:] + " a request with your SSH key",
		Long: `Decide about a request with your SSH key, from a file or an ssh-agent.

What you see is read from the request statement itself, whose digest you sign;
the trust policy is compared with the one you signed or decided under before (the
first time it is shown whole, and kept), and the activity log with what you saw
of it before. Customers decide for the customer, internal
approvers for the provider.`,
		Args: args("N"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if _, err := seconds(cmd, flags.shorten); err != nil {
				return err
			}
			return a.decide(ctx, c, cmd, args[0], verdict, flags)
		}),
	}
	f := c.Flags()
	f.StringVar(&flags.key, "key", "", "your SSH private key; without it, the ssh-agent's")
	f.StringVar(&flags.reason, "reason", "", "why, for the record")
	f.BoolVar(&flags.yes, "yes", false, "do not ask before signing")
	if verdict == approval.Approve {
		f.DurationVar(&flags.shorten, "for", 0, "give less time than was asked for")
	}
	return c
}

func (a *app) decide(ctx context.Context, c *client.Client, cmd *cobra.Command, id string, verdict approval.Verdict, flags decideFlags) error {
	r, err := c.Requests.GetRequest(ctx, &lockboxv1.GetRequestRequest{Id: id})
	if err != nil {
		return err
	}
	statement, err := approval.ParseStatement(r.GetStatement().GetPayload())
	if err != nil {
		return fmt.Errorf("cannot read the request statement: do not approve, tell your security team: %w", err)
	}
	policy, err := fetchPolicy(ctx, c, string(statement.OrderID), statement.PolicyDigest)
	if err != nil {
		return err
	}
	known, err := a.checkPolicy(ctx, c, string(statement.OrderID), statement.PolicyDigest)
	if err != nil {
		return err
	}
	log, err := a.checkLog(ctx, c, policy.LogKey)
	if err != nil {
		return err
	}
	if err := mayDecide(ctx, c, r.Id, verdict); err != nil {
		return err
	}
	signer, key, done, err := findSigner(ctx, cmd, flags.key, policy)
	if err != nil {
		return err
	}
	defer done()
	err = tell(cmd, func(w io.Writer) {
		known.show(w, policy)
		showStatement(w, statement, known.sentence)
		fields(w, "Activity log", log)
		showOpenQuestions(w, r)
	})
	if err != nil {
		return err
	}
	decision, err := newDecision(r.Statement.Payload, statement, roleOf(policy, key.ID), verdict, key.ID, flags)
	if err != nil {
		return err
	}
	envelope, err := sign(cmd, decision, key.ID, signer, flags.yes)
	if err != nil {
		return err
	}
	if err := a.rememberPolicy(string(statement.OrderID), statement.PolicyDigest); err != nil {
		return err
	}
	r, err = c.Requests.Decide(ctx, &lockboxv1.DecideRequest{Id: r.Id, Envelope: envelope})
	return a.showRequest(cmd, r, err)
}

// mayDecide returns the refusal of a decision that could not be taken now, before
// anybody reads and signs in vain. What it would have signed is not looked at; of
// keys, the trust policy says more.
func mayDecide(ctx context.Context, c *client.Client, id string, verdict approval.Verdict) error {
	_, err := c.Requests.DraftDecision(ctx, &lockboxv1.DraftDecisionRequest{Id: id, Verdict: string(verdict)})
	if protocol.CodeOf(err) == protocol.CodeSignerUnknown {
		return nil
	}
	return err
}

func newDecision(payload []byte, s approval.Statement, role approval.Role, verdict approval.Verdict, keyID string, flags decideFlags) (approval.Decision, error) {
	d := approval.Decision{
		RequestDigest: approval.DigestOf(payload),
		Role:          role,
		Verdict:       verdict,
		DecidedAt:     time.Now().Unix(),
		Signer:        keyID,
		Reason:        flags.reason,
	}
	if verdict == approval.Deny {
		return d, nil
	}
	d.MaxDuration = s.MaxDuration
	if shorter := int64(flags.shorten / time.Second); shorter > s.MaxDuration {
		return d, usagef("--for %s is longer than the %s asked for: it can only be shortened", flags.shorten, time.Duration(s.MaxDuration)*time.Second)
	} else if shorter > 0 {
		d.MaxDuration = shorter
	}
	return d, nil
}

// roleOf returns the side for which a key decides: the provider's if no customer
// group names it.
func roleOf(p approval.TrustPolicy, keyID string) approval.Role {
	for _, r := range p.Rules {
		if slices.ContainsFunc(r.CustomerGroups, func(g approval.Group) bool { return slices.Contains(g.Keys, keyID) }) {
			return approval.Customer
		}
	}
	return approval.Provider
}

// showStatement shows what is decided on, from the bytes that are decided on.
func showStatement(w io.Writer, s approval.Statement, policy string) {
	if s.Exclusion != "" {
		fields(w, "EXCLUSION", string(s.Exclusion)+": THE CUSTOMER IS TOLD, AND NOT ASKED")
	}
	fields(w, "Request", string(s.RequestID), "Action", string(s.Action), "Scope", shownScope(s.Scope, s.SubscriptionID, s.TenantID), "Purpose", string(s.Purpose), "Ticket", string(s.Ticket),
		"Order", string(s.OrderID), "Engineer", string(s.Engineer.Person), "Engineer's key", s.Engineer.SSHKey,
		"Reason", s.ReasonCode, "Access", string(s.Access), "Shares", openedShares(s.Scope, s.Shares), "Also over", shownProtocols(s.Protocols), "Duration", (time.Duration(s.MaxDuration) * time.Second).String(),
		"Created", when(s.Created), "Decide before", until(s.Expires),
		"Trust policy", string(s.PolicyDigest), "", policy)
	showNodes(w, s.Nodes, s.Disks)
}

func (a *app) requestCancel() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "cancel N",
		Short: "Withdraw your own request",
		Long:  "Withdraw a request of your own that nobody has decided yet.",
		Args:  args("N"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			r, err := c.Requests.CancelRequest(ctx, &lockboxv1.CancelRequestRequest{Id: args[0], Reason: reason})
			return a.showRequest(cmd, r, err)
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return c
}

func (a *app) requestExecute() *cobra.Command {
	return &cobra.Command{
		Use:   "execute N",
		Short: "Unlock the device under an approved request",
		Long: `Unlock the device under an approved request of yours. The device verifies the
approvals itself. It goes on when this command is interrupted.`,
		Args: args("N"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			stream, err := c.Requests.ExecuteRequest(ctx, &lockboxv1.ExecuteRequestRequest{Id: args[0]})
			if err != nil {
				return err
			}
			defer stream.Close()
			return a.follow(cmd, stream.Receive)
		}),
	}
}

func (a *app) requestRevoke(use, short, long string) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   use + " N",
		Short: short,
		Long:  long,
		Args:  args("N"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			resp, err := c.Requests.RevokeRequest(ctx, &lockboxv1.RevokeRequestRequest{Id: args[0], Reason: reason})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				fields(w, "Request", strconv.FormatInt(resp.Request.Number, 10), "State", shownStatus(resp.Request))
				for _, one := range resp.Sessions {
					fmt.Fprintf(w, "Session %s of %s is closed\n", printable(one.Id), printable(one.Engineer))
				}
				showRelocked(w, resp.Relocked)
			})
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return c
}
