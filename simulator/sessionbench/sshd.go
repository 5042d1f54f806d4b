package sessionbench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Where Debian has the peer.
const (
	sshdProgram   = "/usr/sbin/sshd"
	sftpProgram   = "/usr/lib/openssh/sftp-server"
	sshdSeparated = "/run/sshd" // which sshd wants to be there
)

// sshd is the peer: a private OpenSSH server on the loopback.
type sshd struct {
	cmd    *exec.Cmd
	made   bool // sshdSeparated was made here
	client client
}

// startSSHD starts the peer over the same folder. The caller ends it.
func (s *session) startSSHD(ctx context.Context) (_ *sshd, err error) {
	dir := filepath.Join(s.dir, "sshd")
	host, user := filepath.Join(dir, "host"), filepath.Join(dir, "user")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for _, key := range []string{host, user} {
		if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ssh-keygen: %w: %s", err, out)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := ln.Addr().(*net.TCPAddr)
	ln.Close()
	server := fmt.Sprintf("ListenAddress %s\nHostKey %s\nAuthorizedKeysFile %s.pub\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nSubsystem sftp %s\n",
		address, host, user, sftpProgram)
	ways := fmt.Sprintf("Host *\n  HostName 127.0.0.1\n  Port %d\n  User root\n  IdentityFile %s\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n",
		address.Port, user)
	p := &sshd{}
	p.client = client{filepath.Join(dir, "client.conf"), "peer", s.folder, "put -f"}
	config := filepath.Join(dir, "sshd.conf")
	if err := errors.Join(os.WriteFile(config, []byte(server), 0o600), os.WriteFile(p.client.config, []byte(ways), 0o600)); err != nil {
		return nil, err
	}
	if err := os.Mkdir(sshdSeparated, 0o755); err == nil {
		p.made = true
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	p.cmd = exec.Command(sshdProgram, "-D", "-e", "-f", config)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot start the peer, is openssh-server installed? %w", err), p.tidy())
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", address.String())
		if err == nil {
			conn.Close()
			return p, nil
		}
		if time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("the peer does not listen: %w", err), p.end())
		}
	}
}

func (p *sshd) tidy() error {
	if p.made {
		return os.Remove(sshdSeparated)
	}
	return nil
}

func (p *sshd) end() error {
	err := p.cmd.Process.Kill()
	_ = p.cmd.Wait() // it was killed
	return errors.Join(err, p.tidy())
}
