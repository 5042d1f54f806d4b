package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) policyCommand() *cobra.Command {
	return group("policy", "Just-in-time policies: the rules that a request passes first", a.policyShow(), a.policyTest(), a.policyWhy(), a.policyWho())
}

func (a *app) policyShow() *cobra.Command {
	req := &lockboxv1.GetPoliciesRequest{}
	files := false
	c := &cobra.Command{
		Use:   "show [--digest DIGEST] [--files]",
		Short: "Show the JIT policies in force",
		Long: `Show the JIT policies in force: their digest, and of each rule what it demands.
The control plane reads the files in policies_dir again when they change. A set
that does not check is not used; it is shown here why, and the set before stays.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			p, err := c.Policies.GetPolicies(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, p, func(w io.Writer) { showPolicies(w, p, files) })
		}),
	}
	c.Flags().StringVar(&req.Digest, "digest", "", "an earlier set, as 'lockbox policy why' names it")
	c.Flags().BoolVar(&files, "files", false, "show the texts too")
	return c
}

func showPolicies(w io.Writer, p *lockboxv1.Policies, files bool) {
	fields(w, "Policies", p.Digest, "In force", yesNo(p.InForce), "Since", when(p.Since), "Built in", yesNo(p.BuiltIn))
	if r := p.Refused; r != nil {
		fmt.Fprintf(w, "\nThe files were changed at %s and CANNOT BE USED:\n%s\n", when(r.Time), printable(r.Error))
	}
	var rows [][]string
	for _, r := range p.Rules {
		kind := "factor " + r.Factor
		if r.Factor == "" {
			kind = "permit"
		}
		rows = append(rows, []string{r.Id, kind, demandsOf(r.Approvers, r.MaxDurationSeconds, r.RequireMfa), fmt.Sprintf("%s:%d", r.File, r.Line)})
	}
	fmt.Fprintln(w)
	table(w, "RULE KIND DEMANDS FILE", rows)
	if !files {
		return
	}
	for _, f := range p.Files {
		fmt.Fprintf(w, "\n--- %s\n", printable(f.Name))
		for line := range strings.Lines(string(f.Text)) {
			fmt.Fprintln(w, printable(strings.TrimRight(line, "\n")))
		}
	}
}

// demandsOf is what rules demand beyond their yes.
func demandsOf(approvers []string, longest int64, mfa bool) string {
	var list []string
	if len(approvers) > 0 {
		list = append(list, strings.Join(approvers, ", "))
	}
	if longest > 0 {
		list = append(list, "at most "+(time.Duration(longest)*time.Second).String())
	}
	if mfa {
		list = append(list, "a second factor")
	}
	return strings.Join(list, "; ")
}

func (a *app) policyWhy() *cobra.Command {
	return &cobra.Command{
		Use:   "why REQUEST",
		Short: "Show how a request passed the rules, and how it would now",
		Long: `Show how a request was evaluated when it was made: each factor with the rules that
decided it, what the rules demanded, and the digest of the policies; and how the
same request would be evaluated now. The engineer's sign-in counts as it is now.`,
		Args: args("REQUEST"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			resp, err := c.Policies.WhyRequest(ctx, &lockboxv1.WhyRequestRequest{Id: args[0]})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				fmt.Fprintln(w, "Then, at", when(resp.Then.GetTime()))
				showEvaluation(w, resp.Then)
				fmt.Fprintln(w, "\nNow")
				if resp.Now == nil {
					fmt.Fprintln(w, "  it cannot be evaluated:", printable(resp.Problem))
					return
				}
				showEvaluation(w, resp.Now)
			})
		}),
	}
}

func showEvaluation(w io.Writer, e *lockboxv1.Evaluation) {
	for _, f := range e.GetFactors() {
		fmt.Fprintf(w, "  %-7s %-20s %s", passedWord(f.Passed), printable(f.Name), printable(f.Reason))
		if len(f.Rules) > 0 {
			fmt.Fprintf(w, "  [%s]", printable(strings.Join(f.Rules, ", ")))
		}
		fmt.Fprintln(w)
	}
	if d := demandsOf(e.GetApprovers(), e.GetMaxDurationSeconds(), e.GetMfaDemanded()); d != "" {
		fmt.Fprintf(w, "  demands %s  [%s]\n", printable(d), printable(strings.Join(e.Rules, ", ")))
	}
	if e.GetPolicyDigest() != "" {
		fmt.Fprintln(w, "  policies:", printable(e.PolicyDigest))
	}
}

func (a *app) policyWho() *cobra.Command {
	req := &lockboxv1.WhoCouldUnlockRequest{}
	c := &cobra.Command{
		Use:   "who SERIAL",
		Short: "Show who could unlock a device now, and what stands in the way of each",
		Long: `Show of each engineer whether they could open a device now, whether they could
ask to, and what stands in their way: the factors of the rules, evaluated with
what is known of them, a missing key, session, ticket or approval; and whose
approvals the device's trust policy and the rules want.`,
		Args: optional("SERIAL"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				req.Serial = args[0]
			}
			if req.Serial == "" {
				return usagef("of which device? Give its serial: %s ('lockbox device list' shows them)", cmd.UseLine())
			}
			resp, err := c.Policies.WhoCouldUnlock(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) { showWho(w, resp) })
		}),
	}
	c.Flags().StringVar(&req.Serial, "device", "", "the serial, where it is no argument")
	return c
}

func showWho(w io.Writer, resp *lockboxv1.WhoCouldUnlockResponse) {
	fields(w, "Device", resp.Serial, "Provider", strings.Join(resp.ProviderNeeded, "; "), "Customer", strings.Join(resp.CustomerNeeded, "; "))
	for _, b := range resp.Blocked {
		fmt.Fprintln(w, "Nobody:", printable(b))
	}
	for _, e := range resp.Engineers {
		verdict := "cannot ask"
		switch {
		case e.MayExecute:
			verdict = "can open it now, by request " + e.Request
		case e.MayAsk:
			verdict = "can ask, by ticket " + e.Ticket
		}
		fmt.Fprintf(w, "\n%s: %s\n", printable(e.Engineer), printable(verdict))
		for _, o := range e.Obstacles {
			fmt.Fprintln(w, "  "+printable(o))
		}
	}
}
