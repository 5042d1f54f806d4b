package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) tenantCommand() *cobra.Command {
	create := &lockboxv1.CreateTenantRequest{}
	createCmd := &cobra.Command{
		Use:   "create TENANT --name NAME",
		Short: "Register a customer's organization",
		Long:  "Register a customer's organization. Lockbox is off for it until it is enabled.",
		Args:  args("TENANT"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if err := need(cmd, "name"); err != nil {
				return err
			}
			create.Id = args[0]
			t, err := c.Tenants.CreateTenant(ctx, create)
			return a.showTenant(cmd, t, err)
		}),
	}
	createCmd.Flags().StringVar(&create.Name, "name", "", "the organization's name")
	return group("tenant", "Customers' organizations, and whether Lockbox is on for them",
		createCmd,
		&cobra.Command{
			Use:   "show TENANT",
			Short: "Show one tenant",
			Long:  "Show a tenant, its subscriptions, and whether Lockbox is on.",
			Args:  args("TENANT"),
			RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
				t, err := c.Tenants.GetTenant(ctx, &lockboxv1.GetTenantRequest{Id: args[0]})
				return a.showTenant(cmd, t, err)
			}),
		},
		a.tenantList(), a.tenantSet(),
		&cobra.Command{
			Use:   "enable-lockbox TENANT",
			Short: "Turn Lockbox on; needs support plan Developer or higher",
			Long: `Turn Lockbox on for a tenant: from now on nobody of support looks at its data
unless it says yes. A subscription with support plan Developer or higher is
needed.`,
			Args: args("TENANT"),
			RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
				t, err := c.Tenants.EnableLockbox(ctx, &lockboxv1.EnableLockboxRequest{Tenant: args[0]})
				return a.showTenant(cmd, t, err)
			}),
		},
		a.tenantDisable(),
	)
}

func (a *app) tenantDisable() *cobra.Command {
	req := &lockboxv1.DisableLockboxRequest{}
	c := &cobra.Command{
		Use:   "disable-lockbox TENANT [--without deny|provider-approval]",
		Short: "Turn Lockbox off; devices keep the trust policy they have",
		Long: `Turn Lockbox off for a tenant. Devices keep the trust policy they have, and go on
demanding the signatures it names.

--without says what holds then: 'deny', which is the default, lets nobody in;
'provider-approval' lets the provider in by two approvals of its own, and the
customer is told at once. That takes a trust policy that allows it too: see
--exclusion lockbox-off of 'lockbox trust-policy sign'.`,
		Args: args("TENANT"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			req.Tenant = args[0]
			t, err := c.Tenants.DisableLockbox(ctx, req)
			return a.showTenant(cmd, t, err)
		}),
	}
	c.Flags().StringVar(&req.WithoutLockbox, "without", "", "what holds without Lockbox: deny or provider-approval; without this, what did before")
	choices(c, "without", "deny", "provider-approval")
	return c
}

func (a *app) tenantSet() *cobra.Command {
	var expiry, access time.Duration
	c := &cobra.Command{
		Use:   "set TENANT [--request-expiry 96h] [--access-time 8h]",
		Short: "Set how long requests wait and accesses last",
		Long: `Set how long a tenant's requests wait to be decided, one hour to four days, and
how long an access lasts that asks for no other time, which is also the most one
may ask for: 15 minutes to 24 hours. It holds for requests raised from now on.
Approvers may give less each time. A device never gives more than its trust policy
says.`,
		Args: args("TENANT"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if expiry < 0 || access < 0 || expiry+access < time.Second {
				return usagef("set --request-expiry or --access-time: usage: %s", cmd.UseLine())
			}
			t, err := c.Tenants.SetTenant(ctx, &lockboxv1.SetTenantRequest{
				Tenant: args[0], RequestExpirySeconds: int64(expiry / time.Second), AccessSeconds: int64(access / time.Second),
			})
			return a.showTenant(cmd, t, err)
		}),
	}
	c.Flags().DurationVar(&expiry, "request-expiry", 0, "how long a request waits, 1h to 96h")
	c.Flags().DurationVar(&access, "access-time", 0, "how long an access lasts, 15m to 24h")
	return c
}

func (a *app) tenantList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List tenants",
		Long:  "List tenants, and whether Lockbox is on for them. Customers see their own.",
		Args:  args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Tenants.ListTenants(ctx, &lockboxv1.ListTenantsRequest{})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, t := range resp.Tenants {
					rows = append(rows, []string{t.Id, yesNo(t.LockboxEnabled), t.Name})
				}
				table(w, "TENANT LOCKBOX NAME", rows)
			})
		}),
	}
}

func (a *app) showTenant(cmd *cobra.Command, t *lockboxv1.Tenant, err error) error {
	if err != nil {
		return err
	}
	return a.print(cmd, t, func(w io.Writer) {
		fields(w, "Tenant", t.Id, "Name", t.Name, "Lockbox", yesNo(t.LockboxEnabled), "Without Lockbox", t.WithoutLockbox,
			"Requests wait", (time.Duration(t.RequestExpirySeconds) * time.Second).String(),
			"Access lasts", (time.Duration(t.AccessSeconds) * time.Second).String())
		for _, s := range t.Subscriptions {
			fmt.Fprintf(w, "Subscription  %s  support plan %s\n", printable(s.Id), printable(s.SupportPlan))
		}
	})
}

func (a *app) subscriptionCommand() *cobra.Command {
	req := &lockboxv1.CreateSubscriptionRequest{}
	create := &cobra.Command{
		Use:   "create [ID] --tenant TENANT --support-plan PLAN",
		Short: "Register a subscription; without ID one is made",
		Long:  "Register a subscription of a tenant, a GUID, with its support plan. Without ID one is made.",
		Args:  optional("ID"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if err := need(cmd, "tenant"); err != nil {
				return err
			}
			if len(args) == 1 {
				req.Id = args[0]
			}
			s, err := c.Tenants.CreateSubscription(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, s, func(w io.Writer) {
				fields(w, "Subscription", s.Id, "Tenant", s.Tenant, "Support plan", s.SupportPlan)
			})
		}),
	}
	f := create.Flags()
	f.StringVar(&req.Tenant, "tenant", "", "its tenant")
	f.StringVar(&req.SupportPlan, "support-plan", "Basic", "Basic, Developer, Standard or ProfessionalDirect")
	choices(create, "support-plan", "Basic", "Developer", "Standard", "ProfessionalDirect")
	f.StringArrayVar(&req.Notify, "notify", nil, "alternate address to notify; being told never gives a right to approve")
	return group("subscription", "Subscriptions", create)
}
