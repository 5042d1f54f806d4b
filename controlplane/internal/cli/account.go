package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) loginCommand() *cobra.Command {
	var server, tokenFile string
	c := &cobra.Command{
		Use:   "login --server HOST:PORT [--token-file FILE]",
		Short: "Exchange a one-time login token for a certificate",
		Long: `Exchange a one-time login token for a certificate. Your key is made here and
never leaves this machine; the token proves which control plane is the right
one. Without --token-file the token is asked for, never taken from the command
line, where other users could read it.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if server == "" {
				return usagef("--server is missing: name the control plane, as in --server lockbox.example:8443")
			}
			token, err := readSecret(cmd, tokenFile, "Login token: ")
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
			defer cancel()
			id, person, err := client.Login(ctx, server, token)
			if err != nil {
				return err
			}
			if err := id.Save(a.home); err != nil {
				return err
			}
			return a.print(cmd, person, func(w io.Writer) {
				fmt.Fprintf(w, "Logged in at %s as %s (%s).\n", server, person.Name, person.Role)
			})
		},
	}
	c.Flags().StringVar(&server, "server", os.Getenv("LOCKBOX_SERVER"), "address of the control plane's API, host:port (LOCKBOX_SERVER)")
	c.Flags().StringVar(&tokenFile, "token-file", "", "file that holds the token; - for standard input")
	return c
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "Delete the key and certificate of this machine",
		Long: `Delete your key and certificate from this machine. What else lies in your home
stays: the trust policies you know, and how far you saw the activity log.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := client.RemoveIdentity(a.home); err != nil {
				return err
			}
			return a.printValue(cmd, struct{}{}, func(w io.Writer) { fmt.Fprintln(w, "Logged out.") })
		},
	}
}

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "whoami",
		Short: "Show who you are and what you may do",
		Long:  "Show who you are to the control plane, your role, and the calls it allows.",
		Args:  args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Accounts.WhoAmI(ctx, &lockboxv1.WhoAmIRequest{})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				showPerson(w, resp.Person)
				fields(w, "Certificate until", until(resp.CertificateExpires))
				fmt.Fprintln(w, "\nYou may call:")
				for _, p := range resp.May {
					fmt.Fprintln(w, "  "+printable(strings.TrimPrefix(p, "/lockbox.v1.")))
				}
			})
		}),
	}
}

func showPerson(w io.Writer, p *lockboxv1.Person) {
	fields(w, "Name", p.Name, "Role", p.Role, "Tenant", p.Tenant, "SSH keys", strings.Join(p.KeyFingerprints, ", "))
}

func (a *app) personCommand() *cobra.Command {
	return group("person", "People: who they are and what keys they hold", a.personCreate(), a.personList(), a.personRemove(), a.personToken())
}

func (a *app) personCreate() *cobra.Command {
	req := &lockboxv1.CreatePersonRequest{}
	var keyFiles []string
	var tokenOut string
	c := &cobra.Command{
		Use:   "create NAME --role ROLE [--tenant TENANT] [--ssh-key FILE.pub]…",
		Short: "Register a person and make their one-time login token",
		Long: `Register a person and make their one-time login token (24 hours).

Roles: admin, staff, engineer, internal-approver, auditor for the provider;
owner, approver for a tenant. Engineers and approvers sign and sign in with
their own SSH keys: give the public halves.`,
		Args: args("NAME"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			if err := need(cmd, "role"); err != nil {
				return err
			}
			req.Name = args[0]
			for _, f := range keyFiles {
				line, err := readPublicKey(f)
				if err != nil {
					return err
				}
				req.SshKeys = append(req.SshKeys, line)
			}
			file, err := newSecretFile(tokenOut)
			if err != nil {
				return err
			}
			resp, err := c.Accounts.CreatePerson(ctx, req)
			if err != nil {
				return file.drop(err)
			}
			if err := file.take(&resp.LoginToken); err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				showPerson(w, resp.Person)
				fields(w, "Login token", resp.LoginToken, "Login token in", tokenOut)
			})
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Role, "role", "", "admin, staff, engineer, internal-approver, auditor, owner or approver")
	choices(c, "role", "admin", "staff", "engineer", "internal-approver", "auditor", "owner", "approver")
	f.StringVar(&req.Tenant, "tenant", "", "tenant of an owner or approver")
	f.StringArrayVar(&keyFiles, "ssh-key", nil, "file with an SSH public key; may be given several times")
	f.StringVar(&tokenOut, "token-out", "", "write the token to this new file, mode 0600, instead of showing it")
	return c
}

func (a *app) personList() *cobra.Command {
	req := &lockboxv1.ListPeopleRequest{}
	c := &cobra.Command{
		Use:   "list",
		Short: "List people",
		Long:  "List people with their roles and keys. Customers see those of their own tenant.",
		Args:  args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Accounts.ListPeople(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, p := range resp.People {
					rows = append(rows, []string{p.Name, p.Role, p.Tenant, strings.Join(p.KeyFingerprints, " ")})
				}
				table(w, "NAME ROLE TENANT KEYS", rows)
			})
		}),
	}
	c.Flags().StringVar(&req.Tenant, "tenant", "", "only this tenant's")
	c.Flags().StringVar(&req.Role, "role", "", "only with this role")
	return c
}

func (a *app) personRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "End a person's certificates, keys and roles",
		Long: `End a person's certificates, keys, tokens and role at once. Their name is never
given to anybody else. Nobody can remove themselves.`,
		Args: args("NAME"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			resp, err := c.Accounts.RemovePerson(ctx, &lockboxv1.RemovePersonRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) { fields(w, "Removed", args[0]) })
		}),
	}
}

func (a *app) personToken() *cobra.Command {
	var tokenOut string
	c := &cobra.Command{
		Use:   "token NAME",
		Short: "Make a new one-time login token for somebody",
		Long: `Make a new one-time login token (24 hours) for somebody. It ends the ones made
before, and every certificate they have: do this when one may be stolen.`,
		Args: args("NAME"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			file, err := newSecretFile(tokenOut)
			if err != nil {
				return err
			}
			resp, err := c.Accounts.CreateLoginToken(ctx, &lockboxv1.CreateLoginTokenRequest{Name: args[0]})
			if err != nil {
				return file.drop(err)
			}
			if err := file.take(&resp.LoginToken); err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				fields(w, "Login token", resp.LoginToken, "Login token in", tokenOut)
			})
		}),
	}
	c.Flags().StringVar(&tokenOut, "token-out", "", "write the token to this new file, mode 0600, instead of showing it")
	return c
}
