package share

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/protocol/approval"
)

// dirPrefix is how the name of a server's directory begins.
const dirPrefix = "smb-"

// environment of all programs of Samba.
var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"}

// account is the Unix account of the lease's user: one of every Debian that owns
// nothing. It must not be root, whom Samba lets replace the access list of a share
// ([noDelete]) over RPC, and not Samba's guest account. The files belong to root:
// each share's section says that it reads and writes as root.
const account = "daemon"

// global is what all shares have in common: no printers, no NetBIOS, no guests, no
// links, no remote procedures, no privileges, nothing that leaves marks in the
// customer's files.
const global = `[global]
	server role = standalone server
	workgroup = DATABOX
	server string = Data Box
	disable netbios = yes
	smb ports = {port}
	{interfaces}
	server min protocol = SMB3_00
	server smb encrypt = required
	server signing = mandatory
	ntlm auth = ntlmv2-only
	restrict anonymous = 2
	map to guest = never
	enable privileges = no
	rpc start on demand helpers = no
	enable core files = no
	passdb backend = smbpasswd:{dir}/private/smbpasswd
	username map = {dir}/private/users
	private dir = {dir}/private
	lock directory = {dir}/lock
	state directory = {dir}/state
	cache directory = {dir}/cache
	pid directory = {dir}/lock
	ncalrpc dir = {dir}/rpc
	usershare path =
	usershare max shares = 0
	load printers = no
	printing = bsd
	printcap name = /dev/null
	disable spoolss = yes
	follow symlinks = no
	wide links = no
	unix extensions = no
	kernel oplocks = no
	strict sync = yes
	oplocks = no
	level2 oplocks = no
	smb2 leases = no
	durable handles = no
	server multi channel support = no
	host msdfs = no
	hosts allow = {allow}
	hosts deny = ALL
	max smbd processes = {clients}
	max open files = {files}
	ea support = no
	nt acl support = no
	store dos attributes = no
	map archive = no
	map readonly = no
	logging = file
	log level = 1
	max log size = 1000
	deadtime = 15
`

// section publishes one folder.
const section = `[{name}]
	path = {path}
	valid users = {account}
	force user = root
	read only = {readOnly}
	create mask = 0600
	directory mask = 0700
` + auditConf

// keepOld makes smbd refuse to open for writing, or for setting attributes, what was
// last changed longer ago than [graceTime].
const keepOld = "worm\n\tworm:grace_period = %.0f"

// graceTime is how long clients may come back to what is new, as they do to set its
// times. In whole seconds.
const graceTime = 10 * time.Second

// Bounds of what clients can hold at a time.
const (
	maxClients = 32   // connections; smbd has a process for each, and one or two of its own
	maxFiles   = 1000 // open files of a client
)

// noDelete are the rights on a share that allow everything but deleting: generic
// read, write and execute. Renaming needs the right to delete.
const noDelete = "S-1-1-0:ALLOWED/0x0/0x001201bf"

var (
	nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,79}$`)
	// A section of one of these names means something else to Samba.
	reserved = map[string]bool{"global": true, "homes": true, "printers": true}
)

func checkShares(shares []Share) error {
	seen := map[string]bool{}
	for _, s := range shares {
		lower := strings.ToLower(s.Name)
		switch {
		case !nameForm.MatchString(s.Name) || reserved[lower]:
			return fmt.Errorf("cannot share as %q: want 1 to 80 letters, digits, dashes and underscores, as in contoso_BlockBlob", s.Name)
		case seen[lower]:
			return fmt.Errorf("cannot share two folders as %q", s.Name)
		case !filepath.IsAbs(s.Dir) || strings.ContainsAny(s.Dir, "\r\n\\\"%") || strings.TrimSpace(s.Dir) != s.Dir:
			return fmt.Errorf("cannot share the folder %q", s.Dir)
		}
		seen[lower] = true
		if info, err := os.Stat(s.Dir); err != nil {
			return fmt.Errorf("cannot share as %q: %w", s.Name, err)
		} else if !info.IsDir() {
			return fmt.Errorf("cannot share as %q: %s is no folder", s.Name, s.Dir)
		}
	}
	return nil
}

// newServer makes the directory of a server, still empty, and its user.
func newServer(cfg SMBConfig) (*smbServer, error) {
	dir, err := os.MkdirTemp(cfg.RunDir, dirPrefix)
	if err != nil {
		return nil, err
	}
	s := &smbServer{
		dir: dir, address: cfg.address(), keeper: cfg.Keeper,
		user: "lease-" + strings.ToLower(rand.Text()[:8]), password: rand.Text(),
	}
	if err := cfg.Keeper.KeepDir(dir); err != nil {
		os.Remove(dir)
		return nil, err
	}
	return s, nil
}

// prepare fills the directory.
func (s *smbServer) prepare(ctx context.Context, cfg SMBConfig, shares []Share, access approval.Access) error {
	for _, name := range []string{"private", "lock", "state", "cache", "rpc", "log", "dev"} {
		if err := os.Mkdir(s.path(name), 0o700); err != nil {
			return err
		}
	}
	files := map[string]string{
		"smb.conf":      configuration(cfg, s.dir, shares, access),
		"private/users": account + " = " + s.user + "\n",
	}
	for name, text := range files {
		if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if err := s.run(ctx, s.password+"\n"+s.password+"\n", "smbpasswd", "-c", s.path("smb.conf"), "-s", "-a", account); err != nil {
		return err
	}
	if access != approval.ReadWrite {
		return nil
	}
	for _, share := range shares {
		if err := s.run(ctx, "", "sharesec", "-s", s.path("smb.conf"), share.Name, "--replace", noDelete); err != nil {
			return err
		}
	}
	return nil
}

func configuration(cfg SMBConfig, dir string, shares []Share, access approval.Access) string {
	interfaces := "interfaces = " + cfg.Address + "\n\tbind interfaces only = yes"
	if net.ParseIP(cfg.Address).IsUnspecified() {
		interfaces = "bind interfaces only = no"
	}
	readOnly := "yes"
	if access == approval.ReadWrite || access == approval.Delete {
		readOnly = "no"
	}
	var text strings.Builder
	strings.NewReplacer("{port}", fmt.Sprint(cfg.Port), "{interfaces}", interfaces, "{dir}", dir, "{allow}", strings.Trim(fmt.Sprint(cfg.Allow), "[]"),
		"{clients}", fmt.Sprint(maxClients), "{files}", fmt.Sprint(maxFiles)).WriteString(&text, global)
	more := ""
	if access == approval.ReadWrite {
		more = fmt.Sprintf(keepOld, cmp.Or(cfg.grace, graceTime).Seconds())
	}
	for _, s := range shares {
		strings.NewReplacer("{name}", s.Name, "{account}", account, "{path}", s.Dir, "{readOnly}", readOnly, "{more}", more).WriteString(&text, section)
	}
	return text.String()
}

// run runs a program of Samba to its end. Secrets go to its standard input.
func (s *smbServer) run(ctx context.Context, stdin, name string, args ...string) error {
	path, err := findProgram(name)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = "/"
	cmd.Env = environment
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, cmp.Or(ctx.Err(), err), strings.Join(strings.Fields(string(out)), " "))
	}
	return nil
}
