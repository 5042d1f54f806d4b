package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) sessionCommand() *cobra.Command {
	return group("session", "Support sessions", a.sessionEnable(), a.sessionShow(), a.sessionList(), a.sessionCert(), a.sessionDisable())
}

func (a *app) sessionEnable() *cobra.Command {
	req := &lockboxv1.EnableSessionRequest{}
	var lasts time.Duration
	c := &cobra.Command{
		Use:   "enable --device SERIAL --ticket TICKET [--for 2h]",
		Short: "Let yourself open SSH sessions on a device; its disks stay locked",
		Args:  args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			req.DurationSeconds = int64(lasts / time.Second)
			s, err := c.Sessions.EnableSession(ctx, req)
			return a.showSession(cmd, s, err)
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Serial, "device", "", "the device's serial")
	f.Int32Var(&req.Node, "node", 1, "the node: 1, or 2 of a Heavy")
	f.StringVar(&req.Ticket, "ticket", "", "the ticket that is the reason")
	f.DurationVar(&lasts, "for", 2*time.Hour, "how long the session lasts")
	return c
}

func (a *app) showSession(cmd *cobra.Command, s *lockboxv1.Session, err error) error {
	if err != nil {
		return err
	}
	return a.print(cmd, s, func(w io.Writer) {
		fields(w, "Session", s.Id, "Device", s.Serial+"/"+strconv.Itoa(int(s.Node)), "Ticket", s.Ticket, "Engineer", s.Engineer,
			"Key", s.KeyFingerprint, "State", s.State, "Until", until(s.Expires))
		if s.State == "enabled" {
			fields(w, "Next", "lockbox ssh "+s.Id)
		}
	})
}

func (a *app) sessionShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show SESSION",
		Short: "Show a session",
		Args:  args("SESSION"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			s, err := c.Sessions.GetSession(ctx, &lockboxv1.GetSessionRequest{Id: args[0]})
			return a.showSession(cmd, s, err)
		}),
	}
}

func (a *app) sessionList() *cobra.Command {
	req := &lockboxv1.ListSessionsRequest{}
	c := &cobra.Command{
		Use:   "list",
		Short: "List sessions",
		Args:  args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			resp, err := c.Sessions.ListSessions(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, s := range resp.Sessions {
					rows = append(rows, []string{s.Id, s.Serial + "/" + strconv.Itoa(int(s.Node)), s.Ticket, s.Engineer, s.State, until(s.Expires)})
				}
				table(w, "SESSION NODE TICKET ENGINEER STATE UNTIL", rows)
			})
		}),
	}
	c.Flags().StringVar(&req.Serial, "device", "", "only this device's")
	return c
}

func (a *app) sessionDisable() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "disable SESSION",
		Short: "End a session for good; the disks it used are relocked",
		Args:  args("SESSION"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			resp, err := c.Sessions.DisableSession(ctx, &lockboxv1.DisableSessionRequest{Id: args[0], Reason: reason})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				fields(w, "Session", resp.Session.Id, "State", resp.Session.State)
				showRelocked(w, resp.Relocked)
			})
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return c
}

// showRelocked says what each node answered to a lock order, or when it locks
// by itself.
func showRelocked(w io.Writer, results []*lockboxv1.RelockResult) {
	for _, r := range results {
		if r.Confirmed {
			fmt.Fprintf(w, "%s  %s, confirmed after %d ms\n", r.Node, r.State, r.TookMs)
		} else {
			fmt.Fprintf(w, "%s  could not be reached; it locks by itself by %s\n", r.Node, until(r.LocksBy))
		}
	}
}

// access is what stock ssh needs for one session.
type access struct {
	session             protocol.SessionID
	user, host          string
	key, cert, hostsDir string
}

func (s access) knownHosts() string { return filepath.Join(s.hostsDir, "known_hosts") }

// options returns ssh's arguments up to and including the host.
func (s access) options(self, home string) []string {
	return []string{
		"-o", "ProxyCommand=" + shellQuote(self) + " --home " + shellQuote(home) + " ssh-proxy " + string(s.session),
		"-o", "UserKnownHostsFile=" + s.knownHosts(), "-o", "GlobalKnownHostsFile=/dev/null",
		"-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes",
		"-o", "IdentityFile=" + s.key, "-o", "CertificateFile=" + s.cert,
		"-l", s.user, s.host,
	}
}

// shellQuote quotes s for the shell with which ssh runs a ProxyCommand.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// certify gets a certificate for the session over the engineer's own key and
// stores it beside what stock ssh needs to know the host.
func (a *app) certify(ctx context.Context, c *client.Client, id, key string) (access, error) {
	if key == "" {
		return access{}, usagef("--key is missing: name your SSH private key; its public half must lie beside it as FILE.pub")
	}
	public, err := readPublicKey(key + ".pub")
	if err != nil {
		return access{}, err
	}
	s, err := c.Sessions.GetSession(ctx, &lockboxv1.GetSessionRequest{Id: id})
	if err != nil {
		return access{}, err
	}
	resp, err := c.Sessions.IssueCertificate(ctx, &lockboxv1.IssueCertificateRequest{Session: s.Id, PublicKey: public})
	if err != nil {
		return access{}, err
	}
	dir := filepath.Join(a.home, "sessions", filepath.Base(s.Id))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return access{}, err
	}
	out := access{
		session: protocol.SessionID(s.Id), user: resp.Principal,
		host: fmt.Sprintf("%s-%d.databox", strings.ToLower(s.Serial), s.Node),
		key:  key, cert: filepath.Join(dir, "key-cert.pub"), hostsDir: dir,
	}
	return out, errors.Join(
		writeFile(out.cert, []byte(resp.Certificate+"\n")),
		writeFile(out.knownHosts(), []byte(resp.KnownHosts+"\n")))
}

func (a *app) sessionCert() *cobra.Command {
	var key string
	c := &cobra.Command{
		Use:   "cert SESSION --key FILE",
		Short: "Get a certificate for stock ssh and print the ssh command",
		Args:  args("SESSION"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			s, err := a.certify(ctx, c, args[0], key)
			if err != nil {
				return err
			}
			self, home, err := a.self()
			if err != nil {
				return err
			}
			words := []string{"ssh"}
			for _, o := range s.options(self, home) {
				if strings.ContainsAny(o, " '") {
					o = shellQuote(o)
				}
				words = append(words, o)
			}
			fmt.Fprintln(cmd.OutOrStdout(), strings.Join(words, " "))
			return nil
		}),
	}
	c.Flags().StringVar(&key, "key", "", "your SSH private key")
	return c
}

// self returns how to call this program again, and its home.
func (a *app) self() (program, home string, err error) {
	program, err = os.Executable()
	if err != nil {
		return "", "", err
	}
	home, err = filepath.Abs(a.home)
	return program, home, err
}

func (a *app) sshCommand() *cobra.Command {
	var key string
	c := &cobra.Command{
		Use:   "ssh SESSION --key FILE [-- COMMAND…]",
		Short: "Open the session with the stock ssh client",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var s access
			get := a.connected(func(ctx context.Context, c *client.Client, _ *cobra.Command, args []string) (err error) {
				s, err = a.certify(ctx, c, args[0], key)
				return err
			})
			if err := get(cmd, args); err != nil {
				return err
			}
			self, home, err := a.self()
			if err != nil {
				return err
			}
			return runSSH(cmd, append(s.options(self, home), args[1:]...))
		},
	}
	c.Flags().StringVar(&key, "key", "", "your SSH private key")
	return c
}

// runSSH runs stock ssh. Its exit status becomes ours.
func runSSH(cmd *cobra.Command, args []string) error {
	ssh := exec.CommandContext(cmd.Context(), "ssh", args...)
	ssh.Stdin, ssh.Stdout, ssh.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	err := ssh.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exitStatus(exit.ExitCode())
	}
	return err
}

func (a *app) sshProxyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ssh-proxy SESSION",
		Short: "Carry an SSH connection over standard input and output (for ProxyCommand)",
		Args:  args("SESSION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := client.LoadIdentity(a.home)
			if err != nil {
				return err
			}
			c, err := client.New(id)
			if err != nil {
				return err
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
			defer cancel()
			conn, err := c.DialSSH(ctx, protocol.SessionID(args[0]))
			if err != nil {
				return err
			}
			return carry(cmd.Context(), conn, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}

// carry copies both ways until the far end closes, or ctx ends. The near end's
// end of file is passed on.
func carry(ctx context.Context, conn net.Conn, in io.Reader, out io.Writer) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go func() { // ends with conn, or with the process
		_, _ = io.Copy(conn, in)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	_, err := io.Copy(out, conn)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
