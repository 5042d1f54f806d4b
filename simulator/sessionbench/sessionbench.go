// Package sessionbench measures support sessions beside OpenSSH, in the same
// minutes on the same machine, and how soon a killed one is over.
//
// The rules:
//
//   - The way is the real one: stock sftp, the configuration that 'lockbox config
//     ssh' prints, control plane, tunnel, agent, and a real BitLocker disk that was
//     unlocked for it.
//   - SMB is read by smbclient from the share of that disk, beside the same smbd over
//     a plain folder.
//   - Of sftp the peer is Debian's sshd with its sftp-server, on a port of the loopback, over
//     the same folder of the same disk. Both make durable what they are sent.
//   - NFS is read over the unlocked disk, and by the same server over a plain folder.
//   - A figure is the median of some runs; those of the peer take turns with ours.
//   - A target that is missed is no error.
package sessionbench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/simulator/figure"
)

// Config says what to measure.
type Config struct {
	Dir     string    // for the world and its disk; made, and removed afterwards
	Lockbox string    // the lockbox program
	Agent   string    // the databox-agent program
	Runs    int       // of which a figure is the median
	Size    int64     // of the file that is transferred, in bytes
	Kills   int       // how often the session is killed; 0: that is not measured
	Out     io.Writer // gets the figures
	Note    io.Writer // told of progress
}

// Run measures, and prints every figure when it is there. Everything it started
// has ended when it returns.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(cfg.Dir)) }()
	s, err := raise(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	peer, err := s.startSSHD(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, peer.end()) }()
	if err := cfg.transfers(ctx, s.client, peer.client); err != nil {
		return err
	}
	if err := s.readSMB(ctx, cfg); err != nil {
		return err
	}
	if err := s.readNFS(ctx, cfg); err != nil {
		return err
	}
	return cfg.kills(ctx, s)
}

// client is stock sftp with a way to a server.
type client struct {
	config string // file
	host   string
	folder string // there
	put    string // the command that sends a file and returns when it is durable
}

// transfers measures both directions.
func (c Config) transfers(ctx context.Context, ours, theirs client) error {
	up, down := filepath.Join(c.Dir, "up"), filepath.Join(c.Dir, "down")
	data := make([]byte, c.Size)
	rand.Read(data)
	if err := os.WriteFile(up, data, 0o600); err != nil {
		return err
	}
	var sent, got [2][]float64
	for run := range c.Runs {
		for i, one := range []client{ours, theirs} {
			fmt.Fprintf(c.Note, "run %d, %s\n", run+1, []string{"ours", "openssh"}[i])
			name := fmt.Sprintf("%s/file%d", one.folder, i)
			for _, step := range []struct {
				times *[]float64
				line  string
			}{
				{&sent[i], fmt.Sprintf("%s %s %s", one.put, up, name)},
				{&got[i], fmt.Sprintf("get %s %s", name, down)},
			} {
				took, err := one.run(ctx, step.line)
				if err != nil {
					return err
				}
				*step.times = append(*step.times, took.Seconds())
			}
			if err := sameFile(up, down); err != nil {
				return err
			}
			if _, err := one.run(ctx, "rm "+name); err != nil {
				return err
			}
		}
	}
	for _, f := range []struct {
		name  string
		times [2][]float64
	}{{"sftp_up", sent}, {"sftp_down", got}} {
		rate := func(times []float64) float64 { return float64(c.Size) / (1 << 20) / figure.Percentile(times, 50) }
		_, err := fmt.Fprintln(c.Out, figure.Figure{
			Name: f.name, Value: rate(f.times[0]), Unit: "MiB/s", More: true, Peer: "openssh", PeerValue: rate(f.times[1]),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// run runs one command of sftp's and returns how long it took, without the time
// that it takes to connect and to do nothing.
func (c client) run(ctx context.Context, line string) (time.Duration, error) {
	idle, err := c.batch(ctx, "pwd\n")
	if err != nil {
		return 0, err
	}
	took, err := c.batch(ctx, line+"\n")
	return max(took-idle, time.Millisecond), err
}

func (c client) batch(ctx context.Context, lines string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, "sftp", "-q", "-F", c.config, "-b", "-", c.host)
	cmd.Stdin = strings.NewReader(lines)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("sftp to %s, %q: %w: %s", c.host, lines, err, out)
	}
	return time.Since(start), nil
}

// sameFile compares what came back with what was sent.
func sameFile(a, b string) error {
	one, err := os.ReadFile(a)
	if err != nil {
		return err
	}
	other, err := os.ReadFile(b)
	if err != nil {
		return err
	}
	if string(one) != string(other) {
		return errors.New("what came back is not what was sent")
	}
	return nil
}
