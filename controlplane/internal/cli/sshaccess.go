package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// freshFor is how long a certificate that is kept must still hold to be used
// once more: long enough for a slow login.
const freshFor = time.Minute

// sessionForm is what an id of a session looks like.
var sessionForm = regexp.MustCompile(`^SES-[0-9a-f]{1,60}$`)

// parseNode reads what people and ssh call a node: DBX0001 for its first or only
// one, DBX0001/2 or DBX0001-2 for the second of a Heavy, and the name that host
// certificates have, dbx0001-2.databox. Case does not matter.
func parseNode(name string) (protocol.NodeID, error) {
	text := strings.ToUpper(strings.TrimSuffix(strings.ToLower(name), "."+certs.HostDomain))
	serial, n := text, 1
	if k := len(text) - 2; k > 0 && (text[k] == '/' || text[k] == '-') && (text[k+1] == '1' || text[k+1] == '2') {
		serial, n = text[:k], int(text[k+1]-'0')
	}
	node := protocol.NodeID{Serial: protocol.DeviceSerial(serial), Node: n}
	if !node.Serial.Valid() {
		return protocol.NodeID{}, usagef("%q is neither a device nor a session: want as in DBX0001, or DBX0001-2 for the second node of a Heavy", name)
	}
	return node, nil
}

// shortName is how people best call a node.
func shortName(n protocol.NodeID) string {
	if n.Node == 1 {
		return string(n.Serial)
	}
	return fmt.Sprintf("%s-%d", n.Serial, n.Node)
}

// nodeOf returns the node of a session.
func nodeOf(s *lockboxv1.Session) protocol.NodeID {
	return protocol.NodeID{Serial: protocol.DeviceSerial(s.Serial), Node: int(s.Node)}
}

// findSession finds the session that the caller has enabled on a node, or the one
// of an id.
func (a *app) findSession(ctx context.Context, c *client.Client, name string) (*lockboxv1.Session, error) {
	if sessionForm.MatchString(name) {
		return c.Sessions.GetSession(ctx, &lockboxv1.GetSessionRequest{Id: name})
	}
	node, err := parseNode(name)
	if err != nil {
		return nil, err
	}
	id, err := a.identity()
	if err != nil {
		return nil, err
	}
	person, err := id.Person()
	if err != nil {
		return nil, err
	}
	resp, err := c.Sessions.ListSessions(ctx, &lockboxv1.ListSessionsRequest{Serial: string(node.Serial), Engineer: string(person)})
	if err != nil {
		return nil, err
	}
	own := slices.DeleteFunc(resp.Sessions, func(s *lockboxv1.Session) bool { return nodeOf(s) != node })
	return newestSession(node, own)
}

// newestSession returns the newest session on a node, by age the last one, if it
// is enabled.
func newestSession(node protocol.NodeID, own []*lockboxv1.Session) (*lockboxv1.Session, error) {
	enable := "enable one: lockbox session enable --device " + string(node.Serial)
	if node.Node != 1 {
		enable += fmt.Sprintf(" --node %d", node.Node)
	}
	if len(own) == 0 {
		return nil, protocol.Errorf(protocol.CodeNotFound, "you have no support session on %s: %s --ticket TICKET", node, enable)
	}
	last := own[len(own)-1]
	enable += " --ticket " + shellWord(last.Ticket)
	switch {
	case last.State == "disabled" || last.State == "killed":
		return nil, protocol.Errorf(protocol.CodeConflict, "your support session %s on %s was %s: %s", last.Id, node, last.State, enable)
	case last.State != "enabled" || time.Now().Unix() >= last.Expires:
		return nil, protocol.Errorf(protocol.CodeConflict, "your support session %s on %s expired at %s: %s", last.Id, node, when(last.Expires), enable)
	}
	return last, nil
}

// sshDir is where the files lie that stock ssh is pointed to.
func (a *app) sshDir() (string, error) {
	dir, err := filepath.Abs(filepath.Join(a.home, "ssh"))
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o700)
}

// prepare puts down what stock ssh needs for a session: a certificate over the
// engineer's own key, a new one unless the one that lies there still holds, and
// the authority that vouches for the node. It returns the node's host name and
// the file of the key.
func (a *app) prepare(ctx context.Context, c *client.Client, s *lockboxv1.Session, key string) (host, keyFile string, err error) {
	node := nodeOf(s)
	if !sessionForm.MatchString(s.Id) || !node.Serial.Valid() {
		return "", "", fmt.Errorf("the control plane's answer about session %q on device %q cannot be given to ssh: tell your security team", s.Id, s.Serial)
	}
	host = certs.SSHHostName(node)
	if keyFile, err = a.findKey(ctx, key, s.KeyFingerprint); err != nil {
		return "", "", err
	}
	public, err := readPublicKey(publicFile(keyFile))
	if err != nil {
		return "", "", err
	}
	dir, err := a.sshDir()
	if err != nil {
		return "", "", err
	}
	file := filepath.Join(dir, host+"-cert.pub")
	if s.State == "enabled" && stillHolds(file, s.Id, public) {
		return host, keyFile, nil
	}
	resp, err := c.Sessions.IssueCertificate(ctx, &lockboxv1.IssueCertificateRequest{Session: s.Id, PublicKey: public})
	if err != nil {
		return "", "", err
	}
	if err := writeFile(filepath.Join(dir, "known_hosts"), []byte(resp.KnownHosts+"\n")); err != nil {
		return "", "", err
	}
	return host, keyFile, writeFile(file, []byte(resp.Certificate+"\n"))
}

// stillHolds reports whether a file holds a certificate over a key for a session
// that is good for another login.
func stillHolds(file, session, public string) bool {
	data, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	parsed, _, _, _, err := ssh.ParseAuthorizedKey(data)
	cert, ok := parsed.(*ssh.Certificate)
	now := time.Now()
	return err == nil && ok && slices.Equal(cert.ValidPrincipals, []string{session}) && authorizedKey(cert.Key) == public &&
		uint64(now.Unix()) >= cert.ValidAfter && uint64(now.Add(freshFor).Unix()) < cert.ValidBefore
}

// publicFile returns the file of the public half of a key. A key whose private
// half only the ssh-agent has is named by its public half.
func publicFile(key string) string {
	if strings.HasSuffix(key, ".pub") {
		return key
	}
	return key + ".pub"
}

// findKey returns the file that stock ssh takes as the key of a fingerprint: the
// one that was named, else one in ~/.ssh, else one that the ssh-agent has.
func (a *app) findKey(ctx context.Context, named, fingerprint string) (string, error) {
	if named != "" {
		return filepath.Abs(named)
	}
	if home, err := os.UserHomeDir(); err == nil {
		files, _ := filepath.Glob(filepath.Join(home, ".ssh", "*.pub")) // the pattern is a good one
		for _, file := range files {
			if fingerprintOf(file) != fingerprint {
				continue
			}
			if private := strings.TrimSuffix(file, ".pub"); isFile(private) {
				return private, nil
			}
			return file, nil
		}
	}
	if file, err := a.agentKey(ctx, fingerprint); err == nil {
		return file, nil
	}
	return "", usagef("your key %s is neither in ~/.ssh nor in an ssh-agent: name its file with --key; its public half must lie beside it as FILE.pub", fingerprint)
}

func isFile(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular()
}

// fingerprintOf returns the fingerprint of a public key file, "" if it is none.
func fingerprintOf(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		return ""
	}
	return ssh.FingerprintSHA256(key)
}

// agentKey writes down the public half of a key that the ssh-agent has, by which
// ssh asks for it.
func (a *app) agentKey(ctx context.Context, fingerprint string) (string, error) {
	signers, done, err := agentSigners(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	i := slices.IndexFunc(signers, func(s ssh.Signer) bool { return ssh.FingerprintSHA256(s.PublicKey()) == fingerprint })
	if i < 0 {
		return "", fmt.Errorf("the ssh-agent does not have %s", fingerprint)
	}
	dir, err := a.sshDir()
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "agent-key.pub")
	return file, writeFile(file, []byte(authorizedKey(signers[i].PublicKey())+"\n"))
}

// sshOption is one option of stock ssh's.
type sshOption struct{ key, value string }

// sshOptions are what stock ssh needs for sessions on any node, whose host name
// it puts in the place of %h.
func (a *app) sshOptions(key string) ([]sshOption, error) {
	dir, err := a.sshDir()
	if err != nil {
		return nil, err
	}
	proxy, err := a.selfCommand("ssh-proxy", "%h")
	if err != nil {
		return nil, err
	}
	return []sshOption{
		{"User", certs.SSHUser},
		{"IdentityFile", sshQuote(key)},
		{"IdentitiesOnly", "yes"},
		{"CertificateFile", `"` + noTokens(dir) + `/%h-cert.pub"`},
		{"UserKnownHostsFile", sshQuote(filepath.Join(dir, "known_hosts"))},
		{"GlobalKnownHostsFile", "/dev/null"},
		{"StrictHostKeyChecking", "yes"},
		{"UpdateHostKeys", "no"},
		// By default clients take chacha20-poly1305, which carries half as much.
		{"Ciphers", "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com"},
		{"ProxyCommand", proxy},
	}, nil
}

// selfCommand returns how a shell that ssh starts calls this program. In args,
// ssh replaces its tokens.
func (a *app) selfCommand(args ...string) (string, error) {
	self, home, err := a.self()
	if err != nil {
		return "", err
	}
	return noTokens(shellQuote(self)+" --home "+shellQuote(home)) + " " + strings.Join(args, " "), nil
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

// noTokens keeps ssh from replacing what looks like one of its % tokens.
func noTokens(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// sshQuote quotes a file name for the options of ssh.
func sshQuote(file string) string { return `"` + noTokens(file) + `"` }

// shellQuote quotes s for the shell with which ssh runs a ProxyCommand.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// keyFlag adds --key to a command.
func keyFlag(c *cobra.Command, key *string) {
	c.Flags().StringVar(key, "key", "", "your SSH private key; without it, the session's key is looked for in ~/.ssh and the ssh-agent")
}
