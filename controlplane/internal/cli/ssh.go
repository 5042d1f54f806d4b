package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// exitSSH is how ssh ends when not the command on the other side failed, but
// ssh. A status of that command can be anything below.
const exitSSH = 255

// sshFailure is an error before ssh was run.
type sshFailure struct{ error }

func (e sshFailure) Unwrap() error { return e.error }

// asSSH makes err end the program as ssh would, unless it was typed wrong.
func asSSH(err error) error {
	_, usage := errors.AsType[usageError](err)
	_, ran := errors.AsType[exitStatus](err)
	if err == nil || usage || ran {
		return err
	}
	return sshFailure{err}
}

func (a *app) sshCommand() *cobra.Command {
	var key string
	c := &cobra.Command{
		Use:   "ssh [--key FILE] DEVICE [SSH-OPTION…] [COMMAND…]",
		Short: "Open your support session on a device with the stock ssh client",
		Long: `Open the support session that you have enabled on a device, with the stock ssh
client and a certificate that lasts minutes. DEVICE is a serial, or as in
DBX0001-2 the second node of a Heavy, or the id of a session.

Without a command it opens a shell. What follows DEVICE is ssh's: its options,
also after --, and the command, which runs on the device. It ends as ssh does:
with the status of that command, or with 255. Your own ~/.ssh/config takes no
part; 'lockbox config ssh' makes plain ssh know the devices.`,
		Args: first("DEVICE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			rest := args[1:]
			if len(rest) > 0 && rest[0] == "--" {
				rest = rest[1:]
			} else if len(rest) > 0 && strings.HasPrefix(rest[0], "--") {
				return usagef("%s is no option of ssh's: options of lockbox stand before %s", rest[0], args[0])
			}
			return a.runSSH(cmd, "ssh", key, []string{args[0]}, func(hosts []string) []string { return append(hosts, rest...) })
		},
	}
	c.Flags().SetInterspersed(false)
	keyFlag(c, &key)
	return c
}

func (a *app) scpCommand() *cobra.Command {
	var key string
	c := &cobra.Command{
		Use:   "scp [--key FILE] [-r] [-p] [-O] SOURCE… TARGET",
		Short: "Copy files from and to a device with the stock scp client",
		Long: `Copy files with the stock scp client, through the support session that you have
enabled on the device. Files there are DEVICE:PATH, as in
DBX0001:/shares/contoso_BlockBlob/photos. With -O it speaks the old protocol.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usagef("want at least one source and a target: usage: %s", c.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var names []string
			for _, arg := range args {
				if host, _, ok := remoteFile(arg); ok {
					names = append(names, host)
				}
			}
			if len(names) == 0 {
				return usagef("neither source nor target is on a device: name it as in DBX0001:/shares")
			}
			return a.runSSH(cmd, "scp", key, names, func(hosts []string) []string {
				operands := slices.Clone(args)
				for i, arg := range args {
					if _, path, ok := remoteFile(arg); ok {
						operands[i] = hosts[0] + ":" + path
						hosts = hosts[1:]
					}
				}
				return append(passed(cmd), append([]string{"--"}, operands...)...)
			})
		},
	}
	f := c.Flags()
	f.BoolP("recursive", "r", false, "copy folders with all that is in them")
	f.BoolP("preserve", "p", false, "keep the times of files")
	f.BoolP("legacy", "O", false, "speak the old protocol of scp instead of sftp")
	f.BoolP("through", "3", false, "copy between two devices through this machine")
	transferFlags(f)
	keyFlag(c, &key)
	return c
}

func (a *app) sftpCommand() *cobra.Command {
	var key string
	c := &cobra.Command{
		Use:   "sftp [--key FILE] [-b FILE] DEVICE[:PATH]",
		Short: "Look around in a device's shares with the stock sftp client",
		Long: `Look around in the shares of a device, and copy files, with the stock sftp client,
through the support session that you have enabled on the device.`,
		Args: args("DEVICE[:PATH]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, path, remote := remoteFile(args[0])
			if !remote {
				name = args[0]
			}
			return a.runSSH(cmd, "sftp", key, []string{name}, func(hosts []string) []string {
				if remote {
					hosts[0] += ":" + path
				}
				return append(passed(cmd), append([]string{"--"}, hosts...)...)
			})
		},
	}
	f := c.Flags()
	f.StringP("batch", "b", "", "read commands from this file, - for standard input, and stop at the first that fails")
	f.BoolP("recursive", "r", false, "copy folders with all that is in them")
	f.BoolP("preserve", "p", false, "keep the times of files")
	f.BoolP("fsync", "f", false, "have files made durable as soon as they are there")
	transferFlags(f)
	keyFlag(c, &key)
	return c
}

// transferFlags are options that scp and sftp have both, and both get.
func transferFlags(f *pflag.FlagSet) {
	f.BoolP("quiet", "q", false, "show no progress")
	f.BoolP("verbose", "v", false, "show what ssh does")
	f.StringP("limit", "l", "", "use at most so many Kbit/s")
	f.StringArrayP("ssh-option", "o", nil, "an option of ssh's, KEY=VALUE")
	f.StringP("port", "P", "", "ignored: the way to a device has no port")
}

// passed returns the options of stock scp and sftp that cmd was given: those
// that have a letter.
func passed(cmd *cobra.Command) (options []string) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		letter := "-" + f.Shorthand
		switch v := f.Value.(type) {
		case pflag.SliceValue:
			for _, one := range v.GetSlice() {
				options = append(options, letter, one)
			}
		default:
			switch {
			case f.Shorthand == "" || f.Shorthand == "P" || f.Value.String() == "false":
			case f.Value.Type() == "bool":
				options = append(options, letter)
			default:
				options = append(options, letter, f.Value.String())
			}
		}
	})
	return options
}

// remoteFile splits HOST:PATH, as scp does: what has a slash before its colon is
// a local file.
func remoteFile(arg string) (host, path string, ok bool) {
	host, path, ok = strings.Cut(arg, ":")
	return host, path, ok && host != "" && !strings.Contains(host, "/")
}

// runSSH runs ssh, scp or sftp for sessions on the named devices. operands
// returns what follows the options, given the host names of the devices. The
// exit status becomes ours.
func (a *app) runSSH(cmd *cobra.Command, program, key string, names []string, operands func(hosts []string) []string) error {
	var hosts []string
	get := a.connected(func(ctx context.Context, c *client.Client, _ *cobra.Command, _ []string) error {
		for _, name := range names {
			s, err := a.findSession(ctx, c, name)
			if err != nil {
				return err
			}
			var host string
			if host, key, err = a.prepare(ctx, c, s, key); err != nil {
				return err
			}
			hosts = append(hosts, host)
		}
		return nil
	})
	if err := get(cmd, nil); err != nil {
		return asSSH(err)
	}
	options, err := a.sshOptions(key)
	if err != nil {
		return asSSH(err)
	}
	argv := []string{"-F", "none"} // nobody's own configuration takes part
	for _, o := range options {
		argv = append(argv, "-o", o.key+"="+o.value)
	}
	child := exec.CommandContext(cmd.Context(), program, append(argv, operands(hosts)...)...)
	child.Stdin, child.Stdout, child.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	err = child.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exitStatus(exit.ExitCode())
	}
	return asSSH(err)
}

func (a *app) sshProxyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ssh-proxy DEVICE",
		Short: "Carry an SSH connection over standard input and output (for ProxyCommand)",
		Long: `Carry an SSH connection to the support session that you have enabled on a device
over standard input and output. It is what 'lockbox ssh' and 'lockbox config ssh'
name as ProxyCommand.`,
		Args: args("DEVICE"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			s, err := a.findSession(ctx, c, args[0])
			if err != nil {
				return err
			}
			dialling, cancel := context.WithTimeout(ctx, a.timeout)
			defer cancel()
			conn, err := c.DialSSH(dialling, protocol.SessionID(s.Id))
			if err != nil {
				return err
			}
			return carry(ctx, conn, cmd.InOrStdin(), cmd.OutOrStdout())
		}),
	}
}

// carryBuffer is what is carried at once, in bytes: as much as a pipe holds.
const carryBuffer = 64 << 10

// carry copies both ways until the far end closes, or ctx ends. The near end's
// end of file is passed on.
func carry(ctx context.Context, conn net.Conn, in io.Reader, out io.Writer) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go func() { // ends with conn, or with the process
		_, _ = io.CopyBuffer(conn, struct{ io.Reader }{in}, make([]byte, carryBuffer))
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	_, err := io.CopyBuffer(struct{ io.Writer }{out}, conn, make([]byte, carryBuffer))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (a *app) sshCertificateCommand() *cobra.Command {
	var key string
	c := &cobra.Command{
		Use:   "ssh-certificate DEVICE",
		Short: "Put down the certificate of a session for stock ssh (for Match exec)",
		Long: `Put down a certificate, minutes long, for the support session that you have
enabled on a device, unless one lies there that still holds. It is what
'lockbox config ssh' has ssh call before each connection. When there is no
session it says nothing: that is for 'lockbox ssh-proxy' to say, which comes next.`,
		Args: args("DEVICE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var failure error
			// What keeps us from asking for a session keeps the proxy from it, too.
			_ = a.connected(func(ctx context.Context, c *client.Client, _ *cobra.Command, _ []string) error {
				s, err := a.findSession(ctx, c, args[0])
				if err == nil {
					_, _, failure = a.prepare(ctx, c, s, key)
				}
				return nil
			})(cmd, args)
			return asSSH(failure)
		},
	}
	keyFlag(c, &key)
	return c
}

func (a *app) configCommand() *cobra.Command {
	return group("config", "Configuration for other programs", a.configSSH())
}

func (a *app) configSSH() *cobra.Command {
	var key string
	var hosts []string
	c := &cobra.Command{
		Use:   "ssh [--key FILE] [--hosts PATTERN,…]",
		Short: "Print a block for ~/.ssh/config with which plain ssh knows the devices",
		Long: `Print a block for ~/.ssh/config, with which plain ssh, scp, sftp, sshfs and
programs that use them reach devices by name: 'ssh DBX0001', or DBX0001-2 for the
second node of a Heavy. Put it at the top of the file, or in a file of its own:

  lockbox config ssh > ~/.ssh/lockbox.conf
  (printf 'Include lockbox.conf\n'; cat ~/.ssh/config) > ~/.ssh/config.new

A certificate is got before each connection and renewed silently while your
session on the device is enabled. Enabling it stays with 'lockbox session enable'.`,
		Args: args(),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, _ []string) error {
			file, err := a.ownKey(ctx, c, key)
			if err != nil {
				return err
			}
			block, err := a.sshBlock(file, hosts)
			if err != nil {
				return err
			}
			return a.printValue(cmd, map[string]string{"block": block}, func(w io.Writer) { fmt.Fprint(w, block) })
		}),
	}
	c.Flags().StringSliceVar(&hosts, "hosts", []string{"DBX*"}, "which names are devices, as patterns of ssh's")
	keyFlag(c, &key)
	return c
}

// ownKey returns the file of the key that this person's sessions are for.
func (a *app) ownKey(ctx context.Context, c *client.Client, named string) (string, error) {
	if named != "" {
		return a.findKey(ctx, named, "")
	}
	resp, err := c.Accounts.WhoAmI(ctx, &lockboxv1.WhoAmIRequest{})
	if err != nil {
		return "", err
	}
	if len(resp.GetPerson().GetKeyFingerprints()) == 0 {
		return "", protocol.Errorf(protocol.CodeConflict, "you have no SSH key: an admin has to register one")
	}
	return a.findKey(ctx, "", resp.Person.KeyFingerprints[0])
}

// sshBlock returns a block for ~/.ssh/config. ssh takes the first value that it
// finds for an option, and compares Match host with the host name so far.
func (a *app) sshBlock(key string, hosts []string) (string, error) {
	options, err := a.sshOptions(key)
	if err != nil {
		return "", err
	}
	certificate, err := a.selfCommand("ssh-certificate", "--key", noTokens(shellQuote(key)), "%h")
	if err != nil {
		return "", err
	}
	if strings.ContainsAny(certificate, "\"\n") {
		return "", fmt.Errorf("ssh's configuration cannot name a file with a double quote: %s", certificate)
	}
	var both []string
	for _, h := range hosts {
		if strings.ContainsAny(h, " \t\r\n\"#") || h == "" {
			return "", usagef("--hosts has %q: want patterns as in DBX*", h)
		}
		both = append(both, h)
		if lower := strings.ToLower(h); lower != h {
			both = append(both, lower)
		}
	}
	var nodes []string
	for _, h := range both {
		nodes = append(nodes, h+"-1", h+"-2")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Support sessions on devices. Made by 'lockbox config ssh'.\n")
	fmt.Fprintf(&b, "Host *.%s\n  HostName %%h\n", certs.HostDomain)
	fmt.Fprintf(&b, "Host %s\n  HostName %%h.%s\n", strings.Join(nodes, " "), certs.HostDomain)
	fmt.Fprintf(&b, "Host %s\n  HostName %%h-1.%s\n", strings.Join(both, " "), certs.HostDomain)
	fmt.Fprintf(&b, "Match host *.%s exec \"%s\"\n", certs.HostDomain, certificate)
	fmt.Fprintf(&b, "Match host *.%s\n", certs.HostDomain)
	for _, o := range options {
		fmt.Fprintf(&b, "  %s %s\n", o.key, o.value)
	}
	fmt.Fprintln(&b, "Match all")
	return b.String(), nil
}
