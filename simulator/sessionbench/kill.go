package sessionbench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/simulator/figure"
)

// killSize is that of what is being sent when the session is killed, in bytes. It
// has no blocks here.
const killSize = 1 << 30

// kills measures how long it takes from an approver's kill until the last client
// has lost its connection: sftp and smbclient, which send, and a shell.
func (s *session) kills(ctx context.Context, c Config) error {
	source := filepath.Join(c.Dir, "endless")
	if err := errors.Join(os.WriteFile(source, nil, 0o600), os.Truncate(source, killSize)); err != nil {
		return err
	}
	var times []float64
	for run := range c.Kills {
		fmt.Fprintf(c.Note, "kill %d\n", run+1)
		if run > 0 {
			if err := errors.Join(s.unlock(ctx), s.connect(ctx, c.Lockbox)); err != nil {
				return err
			}
		}
		took, err := s.kill(ctx, source)
		if err != nil {
			return err
		}
		times = append(times, figure.Milliseconds(took))
	}
	return c.print(figure.Figure{Name: "kill_to_closed_p99", Value: figure.Percentile(times, 99), Unit: "ms"})
}

// kill has the session killed while clients are at work, and returns how long the
// last of them was still connected.
func (s *session) kill(ctx context.Context, source string) (time.Duration, error) {
	server, err := s.smbShare(ctx)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	sftp := exec.CommandContext(ctx, "sftp", "-q", "-l", "160000", "-F", s.client.config, "-b", "-", s.client.host)
	sftp.Stdin = bytes.NewBufferString(fmt.Sprintf("put %s %s/killed.sftp\n", source, s.client.folder))
	smb := exec.CommandContext(ctx, "smbclient", "//127.0.0.1/"+share, "-p", server.port, "-s", "/dev/null",
		"-c", fmt.Sprintf(`put %s %s\killed.smb`, source, server.folder))
	smb.Env = append(os.Environ(), "USER="+server.user, "PASSWD="+server.password)
	shell := exec.CommandContext(ctx, "ssh", "-q", "-tt", "-F", s.client.config, s.client.host)
	typed, err := shell.StdinPipe() // stays open
	if err != nil {
		return 0, err
	}
	defer typed.Close()

	ended := make(chan time.Time, 3)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	for _, one := range []*exec.Cmd{sftp, smb, shell} {
		if err := one.Start(); err != nil {
			return 0, err
		}
		all.Go(func() {
			_ = one.Wait() // it is cut off
			ended <- time.Now()
		})
	}
	if _, err := io.WriteString(typed, "echo\r"); err != nil {
		return 0, err
	}
	if err := s.atWork(ctx, "killed.sftp", "killed.smb"); err != nil {
		return 0, err
	}
	select {
	case <-ended:
		return 0, errors.New("a client ended before the session was killed")
	default:
	}
	id, err := s.current(ctx)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := s.crew.As("olga").Recordings.KillSession(ctx, &lockboxv1.KillSessionRequest{Session: id, Reason: "measured"}); err != nil {
		return 0, err
	}
	var last time.Time
	for range 3 {
		last = <-ended
	}
	return last.Sub(began), ctx.Err()
}

// atWork waits until files are being written, each at least a megabyte.
func (s *session) atWork(ctx context.Context, names ...string) error {
	for _, name := range names {
		for {
			info, err := os.Stat(filepath.Join(s.folder, name))
			if err == nil && info.Size() >= 1<<20 {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("nothing is written to %s: %w", name, ctx.Err())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return nil
}

// current is the engineer's session.
func (s *session) current(ctx context.Context) (string, error) {
	resp, err := s.crew.As("erin").Sessions.ListSessions(ctx, &lockboxv1.ListSessionsRequest{Serial: string(s.world.Device.Serial)})
	if err != nil {
		return "", err
	}
	for _, one := range resp.Sessions {
		if one.State == "enabled" {
			return one.Id, nil
		}
	}
	return "", errors.New("the engineer has no session")
}
