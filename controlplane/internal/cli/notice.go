package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) noticeCommand() *cobra.Command {
	return group("notice", "Notices: who was told of what, and what could not be delivered", a.noticeList(), a.noticeRetry())
}

func (a *app) noticeList() *cobra.Command {
	req := &lockboxv1.ListNoticesRequest{}
	var dead bool
	c := &cobra.Command{
		Use:   "list [--dead] [--about REQUEST]",
		Short: "List notices by mail and webhook, newest first",
		Long: `List notices by mail and webhook, newest first. Each is tried again with growing
pauses for about a day, and is dead then: 'lockbox notice retry' has it tried
again. Customers see what their organization was told.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			if dead {
				req.State = "dead"
			}
			resp, err := c.Notices.ListNotices(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, d := range resp.Deliveries {
					rows = append(rows, []string{d.Id, when(d.Created), d.Kind, orSubject(d), d.Channel, d.Recipient, d.State, strconv.FormatInt(d.Attempts, 10), d.LastError})
				}
				table(w, "ID TIME KIND ABOUT BY TO STATE TRIES ERROR", rows)
			})
		}),
	}
	f := c.Flags()
	f.BoolVar(&dead, "dead", false, "only what was given up")
	f.StringVar(&req.Subject, "about", "", "only about this, by its id")
	f.StringVar(&req.Channel, "by", "", "only by mail or webhook")
	f.StringVar(&req.Tenant, "tenant", "", "only about this tenant")
	f.Int32Var(&req.Limit, "limit", 100, "at most so many")
	choices(c, "by", "mail", "webhook")
	return c
}

// orSubject names what a notice is about as people do.
func orSubject(d *lockboxv1.Delivery) string {
	if d.Number != 0 {
		return "request " + strconv.FormatInt(d.Number, 10)
	}
	return d.Subject
}

func (a *app) noticeRetry() *cobra.Command {
	req := &lockboxv1.RetryNoticesRequest{}
	var all bool
	c := &cobra.Command{
		Use:   "retry ID… | --all",
		Short: "Have notices that were given up tried again",
		Long:  "Have notices that were given up tried again: those named, or all.",
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usagef("name notices, or say --all: usage: %s", cmd.UseLine())
			}
			req.Ids = args
			resp, err := c.Notices.RetryNotices(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) { fmt.Fprintf(w, "%d will be tried again.\n", resp.Retried) })
		}),
	}
	c.Flags().BoolVar(&all, "all", false, "all that were given up")
	c.Flags().StringVar(&req.Tenant, "tenant", "", "only about this tenant")
	return c
}

// showTold says who was told of a request, and when.
func showTold(w io.Writer, told []*lockboxv1.Delivery) {
	if len(told) == 0 {
		return
	}
	fmt.Fprintln(w, "Told")
	var rows [][]string
	for _, d := range told {
		how := when(d.Sent)
		if how == "" {
			how = d.State + " since " + when(d.Created)
		}
		rows = append(rows, []string{"  " + how, d.Kind, d.Channel, d.Recipient})
	}
	columns(w, rows)
}

func (a *app) webhookCommand() *cobra.Command {
	return group("webhook", "Webhooks: have other programs told of what happens", a.webhookAdd(), a.webhookList(), a.webhookRemove(), a.webhookTest())
}

func (a *app) webhookAdd() *cobra.Command {
	req := &lockboxv1.CreateWebhookRequest{}
	var secretFile, secretOut string
	c := &cobra.Command{
		Use:   "add URL [--secret-file FILE]",
		Short: "Have a URL called for whatever your organization is told",
		Long: `Have a URL called for whatever your organization is told. Calls are signed by the
Standard Webhooks specification; what they say is an id, a state and a link, never
more. The secret (whsec_…) is made by the control plane and shown once, unless you
give one by a file; - is standard input.

What cannot be delivered within a day is in 'lockbox notice list --dead'.`,
		Args: args("URL"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			req.Url = args[0]
			var err error
			if secretFile != "" {
				if req.Secret, err = readSecret(cmd, secretFile, ""); err != nil {
					return err
				}
			}
			file, err := newSecretFile(secretOut)
			if err != nil {
				return err
			}
			resp, err := c.Notices.CreateWebhook(ctx, req)
			if err != nil {
				return file.drop(err)
			}
			if err := file.take(&resp.Secret); err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				showWebhook(w, resp.Webhook)
				fields(w, "Secret", resp.Secret, "Secret in", secretOut)
			})
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Tenant, "tenant", "", "whose events; your own tenant's without it")
	f.StringVar(&secretFile, "secret-file", "", "file that holds a secret of yours; - for standard input")
	f.StringVar(&secretOut, "secret-out", "", "write the new secret to this file instead of showing it")
	return c
}

func showWebhook(w io.Writer, h *lockboxv1.Webhook) {
	fields(w, "Webhook", h.Id, "Tenant", h.Tenant, "URL", h.Url, "Made", when(h.Created)+" by "+h.CreatedBy)
}

func (a *app) webhookList() *cobra.Command {
	req := &lockboxv1.ListWebhooksRequest{}
	c := &cobra.Command{
		Use:   "list",
		Short: "List webhooks",
		Long:  "List webhooks. Customers see those of their own organization.",
		Args:  args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Notices.ListWebhooks(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, h := range resp.Webhooks {
					rows = append(rows, []string{h.Id, h.Tenant, h.Url, h.CreatedBy, when(h.Created)})
				}
				table(w, "ID TENANT URL BY MADE", rows)
			})
		}),
	}
	c.Flags().StringVar(&req.Tenant, "tenant", "", "only this tenant's")
	return c
}

func (a *app) webhookRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "remove ID",
		Short: "Call a webhook no more",
		Long:  "Call a webhook no more, also not with what still waits for it.",
		Args:  args("ID"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			h, err := c.Notices.RemoveWebhook(ctx, &lockboxv1.RemoveWebhookRequest{Id: args[0]})
			if err != nil {
				return err
			}
			return a.print(cmd, h, func(w io.Writer) { fmt.Fprintln(w, "Removed "+printable(h.Id)+".") })
		}),
	}
}

func (a *app) webhookTest() *cobra.Command {
	return &cobra.Command{
		Use:   "test ID",
		Short: "Call a webhook now and say how that went",
		Long:  "Call a webhook now, once, with an event of the type lockbox.test, and say how that went.",
		Args:  args("ID"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			resp, err := c.Notices.TestWebhook(ctx, &lockboxv1.TestWebhookRequest{Id: args[0]})
			if err != nil {
				return err
			}
			if err := a.print(cmd, resp, func(w io.Writer) {
				if resp.Delivered {
					fmt.Fprintln(w, "It took the call.")
				} else {
					fields(w, "Not delivered", resp.Error)
				}
			}); err != nil {
				return err
			}
			if !resp.Delivered {
				return exitStatus(ExitFailed)
			}
			return nil
		}),
	}
}
