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
	"regexp"
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
		Long: `Let yourself open SSH sessions on one node of a device, for a ticket that you own
or that was escalated to you. Its disks stay locked: to unlock them takes a
request that the customer approves.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			if err := need(cmd, "device", "ticket"); err != nil {
				return err
			}
			var err error
			if req.DurationSeconds, err = seconds(cmd, lasts); err != nil {
				return err
			}
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
			fields(w, "Next", "lockbox ssh "+s.Id+" --key FILE")
		}
	})
}

func (a *app) sessionShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show SESSION",
		Short: "Show a session",
		Long:  "Show a session: whose it is, on which node, for which ticket, until when.",
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
		Long:  "List sessions. Customers see those on devices of their own orders.",
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
		Long: `End a session for good. If its engineer had executed a request on the device, the
disks are relocked and the approval is spent.`,
		Args: args("SESSION"),
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
			fmt.Fprintf(w, "%s  %s, confirmed at %s after %d ms\n", printable(r.Node), printable(r.State), when(r.ConfirmedAt), r.TookMs)
		} else {
			fmt.Fprintf(w, "%s  could not be reached; it locks by itself by %s\n", printable(r.Node), until(r.LocksBy))
		}
	}
}

// access is what stock ssh needs for one session.
type access struct {
	session               protocol.SessionID // the login name, too
	host                  string
	key, cert, knownHosts string // files
}

// options returns ssh's arguments up to and including the host.
func (s access) options(self, home string) []string {
	return []string{
		"-o", "ProxyCommand=" + noTokens(shellQuote(self)+" --home "+shellQuote(home)+" ssh-proxy "+shellQuote(string(s.session))),
		"-o", "UserKnownHostsFile=" + sshQuote(s.knownHosts), "-o", "GlobalKnownHostsFile=/dev/null",
		"-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes",
		"-o", "IdentityFile=" + sshQuote(s.key), "-o", "CertificateFile=" + sshQuote(s.cert),
		"-l", string(s.session), s.host,
	}
}

// noTokens keeps ssh from replacing what looks like one of its % tokens.
func noTokens(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// sshQuote quotes a file name for the options of ssh.
func sshQuote(file string) string { return `"` + noTokens(file) + `"` }

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
	node := protocol.NodeID{Serial: protocol.DeviceSerial(s.Serial), Node: int(s.Node)}
	if !sessionForm.MatchString(s.Id) || !node.Serial.Valid() || resp.Principal != s.Id {
		return access{}, fmt.Errorf("the control plane's answer about session %q on device %q cannot be given to ssh: tell your security team", s.Id, s.Serial)
	}
	dir, err := filepath.Abs(filepath.Join(a.home, "sessions", s.Id))
	if err != nil {
		return access{}, err
	}
	if key, err = filepath.Abs(key); err != nil {
		return access{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return access{}, err
	}
	out := access{
		session: protocol.SessionID(s.Id), host: fmt.Sprintf("%s-%d.databox", strings.ToLower(s.Serial), s.Node),
		key: key, cert: filepath.Join(dir, "key-cert.pub"), knownHosts: filepath.Join(dir, "known_hosts"),
	}
	return out, errors.Join(
		writeFile(out.cert, []byte(resp.Certificate+"\n")),
		writeFile(out.knownHosts, []byte(resp.KnownHosts+"\n")))
}

// sessionForm is what may stand in a command line of ssh's.
var sessionForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,63}$`)

func (a *app) sessionCert() *cobra.Command {
	var key string
	c := &cobra.Command{
		Use:   "cert SESSION --key FILE",
		Short: "Get a certificate for stock ssh and print the ssh command",
		Long: `Get a certificate over your own SSH key for one session, valid for minutes, and
print the command with which stock ssh uses it. The public half of the key must lie beside it as FILE.pub.`,
		Args: args("SESSION"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			s, err := a.certify(ctx, c, args[0], key)
			if err != nil {
				return err
			}
			self, home, err := a.self()
			if err != nil {
				return err
			}
			command := append([]string{"ssh"}, s.options(self, home)...)
			return a.printValue(cmd, map[string][]string{"command": command}, func(w io.Writer) {
				for i, word := range command {
					if !plainWord.MatchString(word) {
						command[i] = shellQuote(word)
					}
				}
				fmt.Fprintln(w, strings.Join(command, " "))
			})
		}),
	}
	c.Flags().StringVar(&key, "key", "", "your SSH private key")
	return c
}

// plainWord needs no quotes in a shell.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_=./:@-]+$`)

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
		Long: `Get a certificate for the session and run the stock ssh client with it. Without a
command it opens a shell; what stands after -- runs on the device, and its exit
status is that of this command.`,
		Args: first("SESSION"),
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
		Long: `Carry an SSH connection to a session over standard input and output. It is what
'lockbox ssh' and 'lockbox session cert' name as ProxyCommand.`,
		Args: args("SESSION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := a.identity()
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
