package sessionbench

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
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const smbdProgram = "/usr/sbin/smbd"

// smbServer is a server that smbclient knows the way to.
type smbServer struct {
	port, user, password string
	folder               string // in the share
}

// readSMB measures smbclient reading a file from the share, beside the same smbd over
// a plain folder, without record and limits of ours. Our file is not in the page
// cache, the peer's is.
func (s *session) readSMB(ctx context.Context, cfg Config) (err error) {
	ours, err := s.smbShare(ctx)
	if err != nil {
		return err
	}
	peer, end, err := s.startSMBD(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	shared := filepath.Join(s.folder, "smb")
	for _, path := range []string{shared, filepath.Join(s.dir, "smbd", "plain", "smb")} {
		if err := copyFile(path, filepath.Join(s.dir, "up"), cfg.Size); err != nil {
			return err
		}
	}
	defer os.Remove(shared)
	var took [2][]float64
	for run := range cfg.Runs {
		for i, server := range []smbServer{ours, peer} {
			fmt.Fprintf(cfg.Note, "run %d, smb, %s\n", run+1, []string{"ours", "plain folder"}[i])
			if err := dropPages(shared); err != nil {
				return err
			}
			d, err := server.read(ctx, "smb")
			if err != nil {
				return err
			}
			took[i] = append(took[i], d.Seconds())
		}
	}
	return cfg.printReads("smb_read", took)
}

// read returns how long it takes to get a file, without the time that it takes to
// connect.
func (s smbServer) read(ctx context.Context, name string) (time.Duration, error) {
	idle, err := s.client(ctx, "pwd")
	if err != nil {
		return 0, err
	}
	took, err := s.client(ctx, "get "+strings.TrimPrefix(s.folder+`\`+name, `\`)+" /dev/null")
	return max(took-idle, time.Millisecond), err
}

func (s smbServer) client(ctx context.Context, command string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, "smbclient", "//127.0.0.1/"+share, "-p", s.port, "-s", "/dev/null", "-c", command)
	cmd.Env = append(os.Environ(), "USER="+s.user, "PASSWD="+s.password)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "NT_STATUS") {
		return 0, fmt.Errorf("smbclient, %q: %v: %s", command, err, out)
	}
	return time.Since(start), nil
}

var (
	shownAddress  = regexp.MustCompile(`(?m)^SMB at 127\.0\.0\.1:(\d+)`)
	shownUser     = regexp.MustCompile(`(?m)^user +(\S+)`)
	shownPassword = regexp.MustCompile(`(?m)^password +(\S+)`)
)

// smbShare asks in the session how the share is reached.
func (s *session) smbShare(ctx context.Context) (smbServer, error) {
	out, err := exec.CommandContext(ctx, "ssh", "-F", s.client.config, s.client.host, "shares").Output()
	if err != nil {
		return smbServer{}, fmt.Errorf("ssh %s shares: %w", s.client.host, err)
	}
	server := smbServer{folder: "bench"}
	for form, to := range map[*regexp.Regexp]*string{shownAddress: &server.port, shownUser: &server.user, shownPassword: &server.password} {
		m := form.FindSubmatch(out)
		if m == nil {
			return smbServer{}, errors.New("'shares' does not show how the share is reached over SMB")
		}
		*to = string(m[1])
	}
	return server, nil
}

const smbdConf = `[global]
	server role = standalone server
	disable netbios = yes
	smb ports = {port}
	interfaces = 127.0.0.1
	bind interfaces only = yes
	server min protocol = SMB3_00
	server smb encrypt = required
	rpc start on demand helpers = no
	load printers = no
	logging = file
	passdb backend = smbpasswd:{dir}/smbpasswd
	private dir = {dir}
	lock directory = {dir}
	state directory = {dir}
	cache directory = {dir}
	pid directory = {dir}
	ncalrpc dir = {dir}/rpc
[` + share + `]
	path = {dir}/plain
	force user = root
`

// startSMBD starts the peer over a folder of its own. The caller ends it.
func (s *session) startSMBD(ctx context.Context) (peer smbServer, end func() error, err error) {
	dir := filepath.Join(s.dir, "smbd")
	if err := os.MkdirAll(filepath.Join(dir, "plain"), 0o700); err != nil {
		return peer, nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return peer, nil, err
	}
	peer.port = strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	ln.Close()
	config := filepath.Join(dir, "smb.conf")
	if err := os.WriteFile(config, []byte(strings.NewReplacer("{dir}", dir, "{port}", peer.port).Replace(smbdConf)), 0o600); err != nil {
		return peer, nil, err
	}
	peer.user, peer.password = "daemon", "of the bench" // an account of every Debian
	add := exec.CommandContext(ctx, "smbpasswd", "-c", config, "-s", "-a", peer.user)
	add.Stdin = strings.NewReader(peer.password + "\n" + peer.password + "\n")
	if out, err := add.CombinedOutput(); err != nil {
		return peer, nil, fmt.Errorf("smbpasswd: %w: %s", err, out)
	}
	cmd := exec.CommandContext(ctx, smbdProgram, "--foreground", "--no-process-group", "--configfile="+config, "--log-basename="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		return peer, nil, fmt.Errorf("cannot start the peer, is samba installed? %w", err)
	}
	end = func() error {
		err := cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, by us or with ctx
		if errors.Is(err, os.ErrProcessDone) {
			return nil
		}
		return err
	}
	for until := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		_, err := peer.client(ctx, "pwd")
		if err == nil {
			return peer, end, nil
		}
		if ctx.Err() != nil || time.Now().After(until) {
			return peer, nil, errors.Join(fmt.Errorf("the peer does not answer: %w", err), end())
		}
	}
}

func copyFile(to, from string, size int64) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, in)
	if err == nil && n != size {
		err = fmt.Errorf("%s has %d bytes, want %d", from, n, size)
	}
	return errors.Join(err, out.Sync(), out.Close())
}

// dropPages takes a file out of the page cache.
func dropPages(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
