package scenario

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/protocol"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/simulator/profile"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

func (s *Story) startControlPlane(ctx context.Context) {
	_, err := os.Stat(s.w.DataDir())
	s.hold(os.IsNotExist(err), "%s is not empty", s.w.DataDir())
	s.out.tried("lockboxd --config %s serve   (empty directory)", filepath.Base(s.w.ControlConfig()))
	s.startControl(ctx)
	first := s.identity()
	s.out.back(s.madeFiles())
	s.ok(ctx, "admin", "login", "--server", s.w.API, "--token-file", s.w.TokenFile("admin"))
	before := &lockboxv1.GetCheckpointResponse{}
	s.ask(ctx, before, "admin", "audit", "checkpoint")
	s.logKey = before.VerifierKey

	s.out.tried("stop, and start again")
	s.stopControl()
	s.startControl(ctx)
	after := &lockboxv1.GetCheckpointResponse{}
	s.ask(ctx, after, "admin", "audit", "checkpoint")
	s.hold(s.identity() == first, "the second start made other keys")
	s.hold(after.VerifierKey == before.VerifierKey, "the activity log has another key after a restart")
	s.out.held("the second start found the same authorities and keys; the administrator is still logged in")
}

var authorityLine = regexp.MustCompile(`(?m)^Authority: (.*)$`)

// madeFiles lists what the control plane made, which nobody else may read.
func (s *Story) madeFiles() string {
	var b strings.Builder
	s.must(filepath.WalkDir(s.w.ControlDir(), func(name string, e os.DirEntry, err error) error {
		if err != nil || name == s.w.ControlConfig() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		s.hold(info.Mode().Perm()&0o077 == 0, "others may use %s: its mode is %04o", name, info.Mode().Perm())
		rel, err := filepath.Rel(s.w.ControlDir(), name)
		fmt.Fprintf(&b, "%s  %s\n", info.Mode(), rel)
		return err
	}))
	authorities, err := os.ReadFile(filepath.Join(s.w.DataDir(), "authority", "authorities.pem"))
	s.must(err)
	var names []string
	for _, m := range authorityLine.FindAllStringSubmatch(string(authorities), -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	fmt.Fprintf(&b, "authorities: %s\n", strings.Join(slices.Compact(names), ", "))
	return b.String()
}

// identity is a digest of the control plane's authorities and keys.
func (s *Story) identity() string {
	h := sha256.New()
	for _, name := range []string{"authority/authorities.pem", "service.key", "log.key", "../master.key"} {
		file := filepath.Join(s.w.DataDir(), name)
		data, err := os.ReadFile(file)
		s.must(err)
		info, err := os.Stat(file)
		s.must(err)
		s.hold(info.Mode().Perm() == 0o600, "%s has mode %04o", file, info.Mode().Perm())
		h.Write(data)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func (s *Story) registerEverybody(ctx context.Context) {
	s.ok(ctx, "admin", "tenant", "create", "fabrikam", "--name", "Fabrikam Inc.")
	s.ok(ctx, "admin", "subscription", "create", "--tenant", "fabrikam", "--support-plan", "Basic")
	s.refused(ctx, []protocol.Code{protocol.CodeSupportPlan}, "admin", "tenant", "enable-lockbox", "fabrikam")

	s.ok(ctx, "admin", "tenant", "create", string(world.Tenant), "--name", "Contoso Ltd.")
	s.ok(ctx, "admin", "subscription", "create", string(world.Subscription), "--tenant", string(world.Tenant), "--support-plan", "Developer")
	s.ok(ctx, "admin", "tenant", "enable-lockbox", string(world.Tenant))

	for _, short := range []string{"olga", "andy", "erin", "emil", "ivan", "sam"} {
		p := s.w.People[short]
		args := []string{"person", "create", string(p.Name), "--role", p.Role, "--ssh-key", p.KeyFile() + ".pub", "--token-out", s.w.TokenFile(short)}
		if p.Tenant != "" {
			args = append(args, "--tenant", string(p.Tenant))
		}
		s.ok(ctx, "admin", args...)
		c := s.quietly(ctx, short, "login", "--server", s.w.API, "--token-file", s.w.TokenFile(short))
		s.hold(c.code == 0, "%s cannot log in: %s", short, c.err)
	}
	s.out.held("everybody is logged in, each with a key made on their own machine")
	s.refused(ctx, []protocol.Code{protocol.CodeUnauthenticated}, "erin", "login", "--server", s.w.API, "--token-file", s.w.TokenFile("erin"))
	s.refused(ctx, []protocol.Code{protocol.CodeForbidden}, "erin", "tenant", "create", "evil", "--name", "Evil")
}

func (s *Story) prepareOrder(ctx context.Context) {
	s.out.tried("databox-sim makes the disks of %s and of a second device, %s", s.w.Device.Serial, s.w.Other.Serial)
	began := time.Now()
	keys, err := s.w.PrepareDevices(ctx, nil)
	s.must(err)
	s.keys = keys
	s.out.held("%d real BitLocker volumes of %d MiB with NTFS inside, in %s", len(keys)-1, s.w.Profile.DiskSize>>20, time.Since(began).Round(100*time.Millisecond))
	s.showDisk(ctx)
	for _, d := range []world.Device{s.w.Device, s.w.Other} {
		args := []string{"order", "place", string(d.Order), "--subscription", string(world.Subscription), "--sku", d.SKU}
		for _, account := range s.w.Profile.Accounts() {
			args = append(args, "--destination", account+"="+s.w.Endpoint())
		}
		s.ok(ctx, "olga", args...)
		s.handOver(ctx, d.Order, s.w.Credential())
		s.ok(ctx, "sam", "order", "prepare", string(d.Order), "--from", s.w.PreparedFile(d))
		s.must(os.Remove(s.w.PreparedFile(d)))
	}
	s.out.held("the keys are in custody; the file that held them is destroyed")
	s.ok(ctx, "admin", "key", "list", string(s.w.Device.Order))

	s.signs(ctx, "olga", "trust-policy", "sign", string(s.w.Device.Order), "--without-recovery-key", "--key", s.w.People["olga"].KeyFile(), "--yes")
	c := s.quietly(ctx, "olga", "trust-policy", "sign", string(s.w.Other.Order), "--without-recovery-key", "--key", s.w.People["olga"].KeyFile(), "--yes")
	s.hold(c.code == 0, "olga cannot sign the other device's trust policy: %s", c.err)
	for _, d := range []world.Device{s.w.Device, s.w.Other} {
		for _, stage := range []string{"Dispatched", "Delivered", "PickedUp", "AtAzureDC"} {
			c := s.quietly(ctx, "sam", "order", "advance", string(d.Order), stage)
			s.hold(c.code == 0, "cannot advance to %s: %s", stage, c.err)
		}
	}
	s.ok(ctx, "sam", "order", "show", string(s.w.Device.Order))
}

// handOver has the customer hand over what lets the copy job into the accounts of an
// order, if anything is needed.
func (s *Story) handOver(ctx context.Context, order protocol.OrderID, credential string) {
	if credential == "" {
		return
	}
	s.access = append(s.access, accessSecrets(credential)...)
	file := s.secretFile("credential", credential+"\n")
	for _, account := range s.w.Profile.Accounts() {
		s.ok(ctx, "olga", "order", "destination", "set-credential", string(order), account, "--from", file)
	}
	s.must(os.Remove(file))
}

// showDisk shows what cryptsetup says of the first disk, and what the customer
// put on it.
func (s *Story) showDisk(ctx context.Context) {
	d := s.w.Device.Nodes[0].Disks[0]
	s.out.tried("cryptsetup bitlkDump %s.img", d.ID)
	c, err := run(ctx, "", "cryptsetup", "bitlkDump", d.Image)
	s.must(err)
	var facts []string
	for line := range strings.Lines(c.out) {
		for _, word := range []string{"Cipher", "Protection", "VMK"} {
			if strings.Contains(line, word) {
				facts = append(facts, strings.Join(strings.Fields(line), " "))
				break
			}
		}
	}
	s.out.back(strings.Join(facts, "\n"))
	for _, want := range []string{"xts", "Startup key", "Recovery"} {
		s.hold(strings.Contains(strings.ToLower(c.out), strings.ToLower(want)), "cryptsetup does not say %q of %s:\n%s", want, d.Image, c.out)
	}
	var files []string
	for _, share := range d.Shares {
		for name, content := range share.Files {
			files = append(files, fmt.Sprintf("%8d  %s/%s", len(content), share.Name, name))
		}
	}
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(a[10:], b[10:]) })
	s.out.held("copied to it, and listed in its bill of materials; %s is no valid container name:", profile.WrongFolder)
	s.out.more(strings.Join(files, "\n"))
}

// policyPath is where staff got the signed trust policy of an order.
func (s *Story) policyPath(order protocol.OrderID) string {
	return filepath.Join(s.w.Dir, "devices", string(order)+"-trust-policy.json")
}

func (s *Story) enrol(ctx context.Context) {
	for _, d := range []world.Device{s.w.Device, s.w.Other} {
		doc := &lockboxv1.Document{}
		s.ask(ctx, doc, "olga", "trust-policy", "show", string(d.Order), "--out", s.policyPath(d.Order))
		if d.Serial == s.w.Device.Serial {
			s.policyDigest = doc.Digest
		}
		for i, n := range d.Nodes {
			s.enrolNode(ctx, d, n, doc.Digest, i == 0 && d.Serial == s.w.Device.Serial)
		}
	}
	for _, n := range s.w.Nodes() {
		s.startAgent(n)
	}
	s.online(ctx, s.w.Device, protocol.Locked)
	s.online(ctx, s.w.Other, protocol.Locked)
	s.ok(ctx, "sam", "device", "show", string(s.w.Device.Serial))
	s.showTunnel(ctx)
	s.keysStayHome(s.w.Device.Nodes[0])
	s.signs(ctx, "olga", "consent", "sign", string(s.w.Device.Order), "--key", s.w.People["olga"].KeyFile(), "--yes")
}

// showTunnel shows what the device port asks of whoever dials.
func (s *Story) showTunnel(ctx context.Context) {
	s.out.tried("openssl s_client -connect %s -alpn databox/1   (no certificate)", s.w.Tunnel)
	c, err := run(ctx, "", "openssl", "s_client", "-connect", s.w.Tunnel, "-alpn", "databox/1", "-brief", "-ign_eof")
	s.must(err)
	text := c.out + c.err
	var said []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, "Protocol version") || strings.Contains(line, "certificate required") {
			said = append(said, strings.TrimSpace(line))
		}
	}
	s.out.back(strings.Join(said, "\n"))
	s.hold(strings.Contains(text, "TLSv1.3") && strings.Contains(text, "certificate required"), "the device port let somebody in without a certificate:\n%s", text)
	log, err := os.ReadFile(s.procs.logFile(controlPlane))
	s.must(err)
	s.hold(bytes.Contains(log, []byte("a device connected")), "lockboxd did not see the device connect")
	s.out.held("TLS 1.3 with both certificates; the agents dialled out and are connected over it")
}

// keysStayHome shows that a node's private key is nowhere but in its own state
// directory: not in the control plane's memory, nor in its files.
func (s *Story) keysStayHome(n world.Node) {
	data, err := os.ReadFile(filepath.Join(n.StateDir(), "node.key"))
	s.must(err)
	key, err := certs.DecodeKey(data)
	s.must(err)
	seed := secret{"the private key of " + n.ID.String(), key.Seed()}
	found, err := findInMemory(s.procs.pid(controlPlane), []secret{seed})
	s.must(err)
	s.hold(len(found) == 0, "in lockboxd's memory: %v", found)
	s.must(filepath.WalkDir(s.w.ControlDir(), func(name string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(name)
		s.hold(!bytes.Contains(data, seed.value), "%s is in %s", seed.name, name)
		return err
	}))
	s.out.held("the private key of %s is in its own state directory only: not in lockboxd's memory, nor in its files", n.ID)
}

// enrolNode enrols a node; with faults, it first shows what is refused.
func (s *Story) enrolNode(ctx context.Context, d world.Device, n world.Node, digest string, faults bool) {
	token := filepath.Join(n.Dir, "join.token")
	args := []string{"device", "join-token", string(d.Order), string(d.Serial), "--node", fmt.Sprint(n.ID.Node), "--token-out", token}
	s.ok(ctx, "sam", args...)
	enroll := []string{"enroll", "--server", s.w.API, "--token-file", token, "--trust-policy", s.policyPath(d.Order)}
	if faults {
		wrong := "sha256:" + strings.Repeat("0", 64)
		c := s.agent(ctx, n, append(slices.Clone(enroll), "--digest", wrong)...)
		s.out.back(c.err)
		s.hold(c.code == 3, "enrolling with a wrong digest exited with %d", c.code)
		s.enrolRefused(ctx, s.strangerNode(n), append(slices.Clone(enroll), "--digest", digest), protocol.CodeTokenSerial)
	}
	c := s.agent(ctx, n, append(slices.Clone(enroll), "--digest", digest)...)
	s.out.back(c.out + c.err)
	s.hold(c.code == 0, "cannot enrol %s: %s", n.ID, c.err)
	if !faults {
		return
	}
	s.enrolRefused(ctx, n, append(slices.Clone(enroll), "--digest", digest), protocol.CodeTokenUsed)
	info, err := os.Stat(n.StateDir())
	s.must(err)
	s.hold(info.Mode().Perm() == 0o700, "the state directory has mode %04o", info.Mode().Perm())
}

func (s *Story) enrolRefused(ctx context.Context, n world.Node, args []string, code protocol.Code) {
	c := s.agent(ctx, n, args...)
	s.out.back(c.err)
	s.hold(c.code == 3 && strings.Contains(c.err, "("+string(code)+")"), "want %s, got exit %d: %s", code, c.code, c.err)
}

// strangerNode is another device that tries with this one's token.
func (s *Story) strangerNode(n world.Node) world.Node {
	stranger := n
	stranger.Dir = filepath.Join(s.w.Dir, "devices", "DBX0666-1")
	s.must(os.MkdirAll(stranger.Dir, 0o700))
	data, err := os.ReadFile(n.ConfigFile())
	s.must(err)
	text := strings.ReplaceAll(string(data), string(n.ID.Serial)+"\n", "DBX0666\n")
	text = strings.ReplaceAll(text, n.StateDir(), stranger.StateDir())
	s.must(os.WriteFile(stranger.ConfigFile(), []byte(text), 0o600))
	return stranger
}
