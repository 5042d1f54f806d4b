package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// loginFlags are the flags of login.
type loginFlags struct {
	server, tokenFile      string
	sso, device, noBrowser bool
	provider, pin          string
}

func (a *app) loginCommand() *cobra.Command {
	var flags loginFlags
	c := &cobra.Command{
		Use:   "login --server HOST:PORT [--token-file FILE | --sso]",
		Short: "Get a certificate: for a one-time token, or by your identity provider",
		Long: `Get a certificate. Your key is made here and never leaves this machine.

With a one-time login token from an administrator: it also proves which control
plane is the right one. Without --token-file it is asked for, never taken from the
command line, where other users could read it.

With --sso, by your organization's identity provider, in a browser on this machine,
or with --device-code on any other: the certificate lasts an hour and is renewed
while the sign-in lasts. Which control plane is the right one says --pin, which
'lockbox whoami' shows to those who are logged in; it is remembered.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if flags.server == "" {
				return usagef("--server is missing: name the control plane, as in --server lockbox.example:8443")
			}
			login := a.loginByToken
			if flags.sso || flags.device || flags.provider != "" {
				if login = a.loginBySSO; flags.tokenFile != "" {
					return usagef("a token and an identity provider are two ways to log in: choose one")
				}
			}
			id, person, err := login(cmd, flags)
			if err != nil {
				return err
			}
			if err := id.Save(a.home); err != nil {
				return err
			}
			if err := a.rememberServer(id); err != nil {
				return err
			}
			return a.print(cmd, person, func(w io.Writer) {
				fmt.Fprintf(w, "Logged in at %s as %s (%s).\n", flags.server, person.Name, person.Role)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&flags.server, "server", os.Getenv("LOCKBOX_SERVER"), "address of the control plane's API, host:port (LOCKBOX_SERVER)")
	f.StringVar(&flags.tokenFile, "token-file", "", "file that holds the token; - for standard input")
	f.BoolVar(&flags.sso, "sso", false, "sign in by an identity provider")
	f.StringVar(&flags.provider, "provider", "", "which one, if there are several")
	f.BoolVar(&flags.device, "device-code", false, "sign in on another machine, by a code")
	f.BoolVar(&flags.noBrowser, "no-browser", false, "only show the address, do not open a browser")
	f.StringVar(&flags.pin, "pin", os.Getenv("LOCKBOX_PIN"), "the control plane's pin, sha256:… (LOCKBOX_PIN)")
	return c
}

func (a *app) loginByToken(cmd *cobra.Command, flags loginFlags) (*client.Identity, *lockboxv1.Person, error) {
	token, err := readSecret(cmd, flags.tokenFile, "Login token: ")
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
	defer cancel()
	return client.Login(ctx, flags.server, token)
}

// signInTime is how long a person has for signing in.
const signInTime = 10 * time.Minute

func (a *app) loginBySSO(cmd *cobra.Command, flags loginFlags) (*client.Identity, *lockboxv1.Person, error) {
	pin, err := a.pinOf(flags)
	if err != nil {
		return nil, nil, err
	}
	how := client.SignIn{Server: flags.server, Pin: pin, Provider: flags.provider}
	if flags.device {
		how.DeviceCode = func(address, code string) error {
			return tell(cmd, func(w io.Writer) {
				fmt.Fprintf(w, "Open %s on any machine, and type the code %s there.\n", printable(address), printable(code))
			})
		}
	} else {
		how.Browse = func(address string) error {
			if !flags.noBrowser {
				openBrowser(address)
			}
			return tell(cmd, func(w io.Writer) { fmt.Fprintf(w, "Sign in at\n\n%s\n\n", printable(address)) })
		}
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), signInTime)
	defer cancel()
	return how.Run(ctx)
}

// openBrowser opens an address in the person's browser, if there is a desktop. The
// address is shown as well, so nothing depends on it.
func openBrowser(address string) {
	if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
		return
	}
	if program, err := exec.LookPath("xdg-open"); err == nil {
		c := exec.Command(program, address)
		if c.Start() == nil {
			_ = c.Process.Release() // the browser may outlive this command
		}
	}
}

// serverFile holds the control plane that this person last logged in to, with its
// pin. It stays when they log out.
const serverFile = "known-server"

func (a *app) rememberServer(id *client.Identity) error {
	pin, err := id.Pin()
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(a.home, serverFile), []byte(id.Server+" "+pin+"\n"))
}

// pinOf returns the pin of the control plane to log in to: the one given, or the
// one that is remembered. They must not differ.
func (a *app) pinOf(flags loginFlags) (string, error) {
	data, err := os.ReadFile(filepath.Join(a.home, serverFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	server, known, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
	switch {
	case server != flags.server && flags.pin == "":
		return "", usagef("--pin is missing: it says which control plane is the right one; ask somebody who is logged in what 'lockbox whoami' shows")
	case server == flags.server && flags.pin != "" && flags.pin != known:
		return "", fmt.Errorf("%s had the pin %s when you last logged in: do not log in, ask your administrators; if it was made anew, remove %s",
			server, known, filepath.Join(a.home, serverFile))
	case flags.pin != "":
		return flags.pin, nil
	}
	return known, nil
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "End your sign-in, here and at the control plane",
		Long: `End your sign-in: the control plane takes none of its certificates any more, and
your key and certificate are deleted from this machine. What else lies in your home
stays: the trust policies you know, and how far you saw the activity log.

If the control plane cannot be reached, the key is deleted all the same.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ended := a.endSignIn(cmd.Context())
			if err := client.RemoveIdentity(a.home); err != nil {
				return errors.Join(err, ended)
			}
			if ended != nil {
				return fmt.Errorf("the key is deleted here, but the control plane was not told: %w", ended)
			}
			return a.printValue(cmd, struct{}{}, func(w io.Writer) { fmt.Fprintln(w, "Logged out.") })
		},
	}
}

// endSignIn tells the control plane. A sign-in that is over, or none, is no
// failure.
func (a *app) endSignIn(ctx context.Context) error {
	id, err := client.LoadIdentity(a.home)
	if errors.Is(err, client.ErrNotLoggedIn) {
		return nil
	}
	if err != nil {
		return err
	}
	if end, err := id.Expires(); err == nil && time.Now().After(end) {
		return nil
	}
	c, err := client.New(id)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetTimeout(a.timeout)
	_, err = c.Accounts.Logout(ctx, &lockboxv1.LogoutRequest{})
	if protocol.CodeOf(err) == protocol.CodeUnauthenticated {
		return nil
	}
	return err
}

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "whoami",
		Short: "Show who you are and what you may do",
		Long:  "Show who you are to the control plane, how you signed in, your role, and the calls it allows.",
		Args:  args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Accounts.WhoAmI(ctx, &lockboxv1.WhoAmIRequest{})
			if err != nil {
				return err
			}
			id, err := client.LoadIdentity(a.home)
			if err != nil {
				return err
			}
			pin, err := id.Pin()
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				showPerson(w, resp.Person)
				fields(w, "Signed in", strings.TrimSpace(when(resp.SignedIn)+" by "+resp.SignedInBy), "Second factor", yesNo(resp.Mfa),
					"Certificate until", until(resp.CertificateExpires), "Sign-in until", until(resp.SignInEnds),
					"Control plane", id.Server, "Its pin", pin)
				fmt.Fprintln(w, "\nYou may call:")
				for _, p := range resp.May {
					fmt.Fprintln(w, "  "+printable(strings.TrimPrefix(p, "/lockbox.v1.")))
				}
			})
		}),
	}
}

func showPerson(w io.Writer, p *lockboxv1.Person) {
	fields(w, "Name", p.Name, "Role", p.Role, "Tenant", p.Tenant, "Groups", strings.Join(p.Groups, ", "), "SSH keys", strings.Join(p.KeyFingerprints, ", "))
}

func (a *app) personCommand() *cobra.Command {
	return group("person", "People: who they are and what keys they hold", a.personCreate(), a.personList(), a.personRemove(), a.personToken(), a.personAddKey(), a.personRemoveKey(), a.personGroups())
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
tenant-admin (Tenant administrator), owner, approver for a tenant. A tenant
administrator is an owner who also decides requests for the whole tenant. Engineers
and approvers sign and sign in with their own SSH keys: give the public halves.`,
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
	f.StringVar(&req.Role, "role", "", "admin, staff, engineer, internal-approver, auditor, tenant-admin, owner or approver")
	choices(c, "role", "admin", "staff", "engineer", "internal-approver", "auditor", "tenant-admin", "owner", "approver")
	f.StringVar(&req.Tenant, "tenant", "", "tenant of a tenant-admin, owner or approver")
	f.StringArrayVar(&req.Groups, "group", nil, "group of an internal approver; may be given several times; \"Customer support lead\" if not given")
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

func (a *app) personAddKey() *cobra.Command {
	return &cobra.Command{
		Use:   "add-key NAME FILE.pub",
		Short: "Register another SSH key of a person",
		Long: `Register another SSH key of a person. An approver's key counts once the customer
has signed a trust policy that names it: 'lockbox trust-policy sign'.`,
		Args: args("NAME", "FILE.pub"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			line, err := readPublicKey(args[1])
			if err != nil {
				return err
			}
			p, err := c.Accounts.AddKey(ctx, &lockboxv1.AddKeyRequest{Person: args[0], SshKey: line})
			if err != nil {
				return err
			}
			return a.print(cmd, p, func(w io.Writer) { showPerson(w, p) })
		}),
	}
}

func (a *app) personRemoveKey() *cobra.Command {
	return &cobra.Command{
		Use:   "remove-key NAME FINGERPRINT",
		Short: "Remove an SSH key of a person: nothing that it signs counts any more",
		Long: `Remove an SSH key of a person, and end the sessions and requests they have. The
control plane takes nothing more that it signs; devices trust it until the
customer has signed a trust policy without it: 'lockbox trust-policy sign'.`,
		Args: args("NAME", "FINGERPRINT"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			p, err := c.Accounts.RemoveKey(ctx, &lockboxv1.RemoveKeyRequest{Person: args[0], Fingerprint: args[1]})
			if err != nil {
				return err
			}
			return a.print(cmd, p, func(w io.Writer) { showPerson(w, p) })
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
