package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

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

// readSecret reads a secret from a file, from standard input, or from the
// terminal without echo.
func readSecret(cmd *cobra.Command, file, prompt string) (string, error) {
	var data []byte
	var err error
	stdin, _ := cmd.InOrStdin().(*os.File)
	switch {
	case file != "" && file != "-":
		data, err = os.ReadFile(file)
	case file == "" && stdin != nil && term.IsTerminal(int(stdin.Fd())):
		fmt.Fprint(cmd.ErrOrStderr(), prompt)
		data, err = term.ReadPassword(int(stdin.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
	default:
		data, err = io.ReadAll(io.LimitReader(cmd.InOrStdin(), 4<<10))
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the secret: %w", err)
	}
	defer clear(data)
	return strings.TrimSpace(string(data)), nil
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "Delete the key and certificate of this machine",
		Args:  args(),
		RunE:  func(*cobra.Command, []string) error { return client.RemoveIdentity(a.home) },
	}
}

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "whoami",
		Short: "Show who you are and what you may do",
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
					fmt.Fprintln(w, "  "+strings.TrimPrefix(p, "/lockbox.v1."))
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
			req.Name = args[0]
			for _, f := range keyFiles {
				line, err := readPublicKey(f)
				if err != nil {
					return err
				}
				req.SshKeys = append(req.SshKeys, line)
			}
			resp, err := c.Accounts.CreatePerson(ctx, req)
			if err != nil {
				return err
			}
			if err := a.handOver(cmd, tokenOut, &resp.LoginToken); err != nil {
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
	f.StringVar(&req.Tenant, "tenant", "", "tenant of an owner or approver")
	f.StringArrayVar(&keyFiles, "ssh-key", nil, "file with an SSH public key; may be given several times")
	f.StringVar(&tokenOut, "token-out", "", "write the token to this new file, mode 0600, instead of showing it")
	return c
}

// handOver moves a secret to a new file if one is named, so that it is not
// shown.
func (a *app) handOver(_ *cobra.Command, file string, secret *string) error {
	if file == "" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("cannot store the token: %w", err)
	}
	_, err = f.WriteString(*secret + "\n")
	*secret = ""
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (a *app) personList() *cobra.Command {
	req := &lockboxv1.ListPeopleRequest{}
	c := &cobra.Command{
		Use:   "list",
		Short: "List people",
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
		Args:  args("NAME"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, _ *cobra.Command, args []string) error {
			_, err := c.Accounts.RemovePerson(ctx, &lockboxv1.RemovePersonRequest{Name: args[0]})
			return err
		}),
	}
}

func (a *app) personToken() *cobra.Command {
	var tokenOut string
	c := &cobra.Command{
		Use:   "token NAME",
		Short: "Make a new one-time login token for somebody",
		Args:  args("NAME"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			resp, err := c.Accounts.CreateLoginToken(ctx, &lockboxv1.CreateLoginTokenRequest{Name: args[0]})
			if err != nil {
				return err
			}
			if err := a.handOver(cmd, tokenOut, &resp.LoginToken); err != nil {
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
