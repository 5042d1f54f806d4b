package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/configs"
	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/controlplane/internal/policy"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// policyExamples is a file of examples.
type policyExamples struct {
	Examples []policyExample `mapstructure:"examples"`
}

// policyExample is what the rules look at, and what they have to say.
type policyExample struct {
	Name  string       `mapstructure:"name"`
	Facts exampleFacts `mapstructure:"facts"`
	Want  exampleWant  `mapstructure:"want"`
}

type exampleFacts struct {
	Action             string        `mapstructure:"action"` // "Unlock Databox" by default
	Engineer           string        `mapstructure:"engineer"`
	Role               string        `mapstructure:"role"`
	Isolated           bool          `mapstructure:"isolated"`
	MFA                bool          `mapstructure:"mfa"`
	Serial             string        `mapstructure:"serial"`
	Order              string        `mapstructure:"order"`
	Subscription       string        `mapstructure:"subscription"`
	Tenant             string        `mapstructure:"tenant"`
	Stage              string        `mapstructure:"stage"`
	Halted             bool          `mapstructure:"halted"`
	Locked             bool          `mapstructure:"locked"`
	Ticket             string        `mapstructure:"ticket"`
	TicketOrder        string        `mapstructure:"ticket_order"`
	TicketSubscription string        `mapstructure:"ticket_subscription"`
	TicketOwner        string        `mapstructure:"ticket_owner"`
	EscalatedTo        []string      `mapstructure:"escalated_to"`
	Scope              string        `mapstructure:"scope"` // of "Access Subscription"
	ReasonCode         string        `mapstructure:"reason_code"`
	Access             string        `mapstructure:"access"`
	Duration           time.Duration `mapstructure:"duration"`
	Longest            time.Duration `mapstructure:"longest"` // that the tenant allows; eight hours by default
}

type exampleWant struct {
	Passed      bool          `mapstructure:"passed"`
	Blocked     []string      `mapstructure:"blocked"`   // exactly these factors
	Approvers   []string      `mapstructure:"approvers"` // exactly these, as "A or B"; not compared if left out
	MaxDuration time.Duration `mapstructure:"max_duration"`
}

func (e policyExample) input() policy.Input {
	f := e.Facts
	in := policy.Input{
		Action: f.Action, ReasonCode: f.ReasonCode, Access: f.Access, Duration: f.Duration, Longest: f.Longest, Scope: f.Scope,
		Caller: policy.Caller{Person: protocol.Person(f.Engineer), Role: f.Role, IsolatedIdentity: f.Isolated, MFA: f.MFA},
		Device: policy.Device{
			Serial: protocol.DeviceSerial(f.Serial), Order: protocol.OrderID(f.Order), Subscription: protocol.SubscriptionID(f.Subscription),
			Tenant: protocol.TenantID(f.Tenant), Stage: f.Stage, Halted: f.Halted, Locked: f.Locked,
		},
		Ticket: policy.Ticket{
			ID: protocol.TicketID(f.Ticket), Order: protocol.OrderID(f.TicketOrder), Subscription: protocol.SubscriptionID(f.TicketSubscription),
			Owner: protocol.Person(f.TicketOwner),
		},
	}
	for _, p := range f.EscalatedTo {
		in.Ticket.EscalatedTo = append(in.Ticket.EscalatedTo, protocol.Person(p))
	}
	if in.Action == "" {
		in.Action = policy.ActionUnlock
	}
	if in.Longest == 0 {
		in.Longest = 8 * time.Hour
	}
	if in.Duration == 0 {
		in.Duration, in.Flexible = in.Longest, true
	}
	return in
}

// check says what the rules say otherwise than the example wants, "" if nothing.
func (e policyExample) check(set *policy.Set) string {
	got := set.Evaluate(e.input())
	var blocked, approvers []string
	for _, f := range got.Factors {
		if !f.Passed {
			blocked = append(blocked, f.Name)
		}
	}
	for _, d := range got.Approvers {
		approvers = append(approvers, d.String())
	}
	slices.Sort(blocked)
	switch want := slices.Sorted(slices.Values(e.Want.Blocked)); {
	case got.Passed != e.Want.Passed || !slices.Equal(blocked, want):
		return fmt.Sprintf("passed %v, blocked %q; want passed %v, blocked %q\n%s", got.Passed, blocked, e.Want.Passed, want, got.Blocked())
	case len(e.Want.Approvers) > 0 && !slices.Equal(approvers, e.Want.Approvers):
		return fmt.Sprintf("the approvers are %q, want %q", approvers, e.Want.Approvers)
	case e.Want.MaxDuration != 0 && got.Longest != e.Want.MaxDuration:
		return fmt.Sprintf("the longest time is %s, want %s", got.Longest, e.Want.MaxDuration)
	}
	return ""
}

func (a *app) policyTest() *cobra.Command {
	dir, server := "", false
	c := &cobra.Command{
		Use:   "test FILE… [--dir DIR | --server]",
		Short: "Try the rules with examples",
		Long: `Try the rules with examples: files in YAML or JSON, each a list of facts with what
the rules have to say about them. It needs no control plane: the rules are those
of --dir, or the built-in ones; with --server, those in force.

    examples:
      - name: a ticket of somebody else's
        facts: {engineer: erin@provider.example, role: engineer, isolated: true, …}
        want: {passed: false, blocked: [ticket-ownership]}

configs/jit/examples has a file with all facts.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("name at least one file of examples")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := policySet(dir)
			if err == nil && server {
				set, err = a.serverSet(cmd)
			}
			if err != nil {
				return err
			}
			return testPolicies(cmd.OutOrStdout(), set, args)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "directory with *.cedar files and their schema")
	c.Flags().BoolVar(&server, "server", false, "the rules that are in force at the control plane")
	c.MarkFlagsMutuallyExclusive("dir", "server")
	return c
}

// policySet reads the rules of a directory, or the built-in ones.
func policySet(dir string) (*policy.Set, error) {
	if dir == "" {
		return policy.Load(configs.JIT())
	}
	return policy.Load(os.DirFS(dir))
}

// serverSet fetches the rules in force.
func (a *app) serverSet(cmd *cobra.Command) (set *policy.Set, err error) {
	err = a.connected(func(ctx context.Context, c *client.Client, _ *cobra.Command, _ []string) error {
		p, err := c.Policies.GetPolicies(ctx, &lockboxv1.GetPoliciesRequest{})
		if err != nil {
			return err
		}
		files := policy.Files{}
		for _, f := range p.Files {
			files[f.Name] = f.Text
		}
		set, err = policy.Parse(files)
		return err
	})(cmd, nil)
	return set, err
}

// testPolicies runs every example of the files.
func testPolicies(w io.Writer, set *policy.Set, files []string) error {
	fmt.Fprintln(w, "policies", set.Digest())
	ran, failed := 0, 0
	for _, file := range files {
		list, err := configs.LoadFile(file, "LOCKBOX_EXAMPLE", policyExamples{})
		if err != nil {
			return err
		}
		if len(list.Examples) == 0 {
			return fmt.Errorf("%s holds no examples", file)
		}
		for _, e := range list.Examples {
			ran++
			word := "ok    "
			why := e.check(set)
			if why != "" {
				failed++
				word = "FAILED"
			}
			fmt.Fprintf(w, "%s  %s: %s\n", word, printable(file), printable(e.Name))
			if why != "" {
				fmt.Fprintln(w, why)
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d examples failed", failed, ran)
	}
	return nil
}
