package cli

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) sessionCommand() *cobra.Command {
	return group("session", "Support sessions", a.sessionEnable(), a.sessionShow(), a.sessionList(), a.sessionCert(), a.sessionDisable(),
		a.sessionRecordings(), a.sessionPlay(), a.sessionExport(), a.sessionVerify(), a.sessionWatch(), a.sessionKill())
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
			if err != nil {
				return err
			}
			return a.print(cmd, s, func(w io.Writer) { showSession(w, s, "Next", "lockbox ssh "+shortName(nodeOf(s))) })
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Serial, "device", "", "the device's serial")
	f.Int32Var(&req.Node, "node", 1, "the node: 1, or 2 of a Heavy")
	f.StringVar(&req.Ticket, "ticket", "", "the ticket that is the reason")
	f.DurationVar(&lasts, "for", 2*time.Hour, "how long the session lasts")
	return c
}

func showSession(w io.Writer, s *lockboxv1.Session, more ...string) {
	fields(w, append([]string{"Session", s.Id, "Device", s.Serial + "/" + strconv.Itoa(int(s.Node)), "Ticket", s.Ticket, "Engineer", s.Engineer,
		"Key", s.KeyFingerprint, "State", s.State, "Enabled", when(s.Created), "Until", lastsUntil(s)}, more...)...)
}

// lastsUntil says until when a session lasts; what was ended before says nothing.
func lastsUntil(s *lockboxv1.Session) string {
	if s.State == "disabled" || s.State == "killed" {
		return ""
	}
	return until(s.Expires)
}

func (a *app) sessionShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show SESSION",
		Short: "Show a session and what was recorded of it",
		Long: `Show a session: whose it is, on which node, for which ticket, until when, and its
recordings: how far each can be relied on, and who watches it now.`,
		Args: args("SESSION"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			s, err := c.Sessions.GetSession(ctx, &lockboxv1.GetSessionRequest{Id: args[0]})
			if err != nil {
				return err
			}
			list, err := c.Recordings.ListRecordings(ctx, &lockboxv1.ListRecordingsRequest{Session: s.Id})
			if err != nil && protocol.CodeOf(err) != protocol.CodeForbidden { // not everybody sees recordings
				return err
			}
			return a.print(cmd, s, func(w io.Writer) {
				var recorded []string
				for _, parts := range wholes(list.GetRecordings(), false) {
					recorded = append(recorded, "Recorded", fmt.Sprintf("%s from %s, %s, %s", nameOf(parts), when(parts[0].Began), sizeOf(parts), standing(parts)))
				}
				showSession(w, s, recorded...)
			})
		}),
	}
}

func (a *app) sessionList() *cobra.Command {
	req := &lockboxv1.ListSessionsRequest{}
	states := []string{"enabled", "disabled", "killed", "expired"}
	c := &cobra.Command{
		Use:   "list [--device SERIAL] [--engineer PERSON] [--state enabled|disabled|killed|expired]",
		Short: "List sessions",
		Long:  "List sessions, the oldest first. Customers see those on devices of their own orders.",
		Args:  args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			if req.State != "" && !slices.Contains(states, req.State) {
				return usagef("--state is %q: want one of %s", req.State, strings.Join(states, ", "))
			}
			resp, err := c.Sessions.ListSessions(ctx, req)
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, s := range resp.Sessions {
					rows = append(rows, []string{s.Id, s.Serial + "/" + strconv.Itoa(int(s.Node)), s.Ticket, s.Engineer, s.State, lastsUntil(s)})
				}
				table(w, "SESSION NODE TICKET ENGINEER STATE UNTIL", rows)
			})
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Serial, "device", "", "only this device's")
	f.StringVar(&req.Engineer, "engineer", "", "only this person's")
	f.StringVar(&req.State, "state", "", "only those in this state")
	choices(c, "state", states...)
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

func (a *app) sessionCert() *cobra.Command {
	var key string
	c := &cobra.Command{
		Use:   "cert SESSION [--key FILE]",
		Short: "Get a certificate for stock ssh and print the ssh command",
		Long: `Get a certificate over your own SSH key for one session, valid for minutes, and
print the command with which stock ssh uses it.`,
		Args: args("SESSION"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			s, err := a.findSession(ctx, c, args[0])
			if err != nil {
				return err
			}
			host, file, err := a.prepare(ctx, c, s, key)
			if err != nil {
				return err
			}
			options, err := a.sshOptions(file)
			if err != nil {
				return err
			}
			command := []string{"ssh"}
			for _, o := range options {
				command = append(command, "-o", o.key+"="+o.value)
			}
			command = append(command, host)
			return a.printValue(cmd, map[string][]string{"command": command}, func(w io.Writer) {
				for i, word := range command {
					command[i] = shellWord(word)
				}
				fmt.Fprintln(w, strings.Join(command, " "))
			})
		}),
	}
	keyFlag(c, &key)
	return c
}

// plainWord needs no quotes in a shell.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_=./:@-]+$`)

// shellWord returns a word as it is typed in a shell.
func shellWord(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return shellQuote(word)
}
