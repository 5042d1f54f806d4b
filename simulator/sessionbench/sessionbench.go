// Package sessionbench measures what people wait for while a device is repaired:
// support sessions, shares, and the upload, each beside a peer in the same minutes
// on the same machine; and how soon a killed session is over.
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
//   - Files are uploaded by the copy job and by Azure's SDK to a service of their own,
//     which is empty. The SDK sends the same files in the same blocks, as many at once,
//     and a checksum of each block, which the service verifies as it does for the job.
//     It checks no names, knows no bill of materials and remembers nothing.
//   - A figure is the median of some runs; those of the peer take turns with ours.
//   - A target that is missed is no error.
package sessionbench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/simulator/figure"
)

// Config says what to measure.
type Config struct {
	Dir     string    // for the world and its disk; made, and removed afterwards
	Lockbox string    // the lockbox program
	Agent   string    // the databox-agent program
	Only    []string  // which of [Figures] are wanted; nil: all
	Runs    int       // of which a figure is the median
	Size    int64     // of the file that is transferred, in bytes
	Disk    int64     // of the device, in bytes; as large as three such files anyway
	Kills   int       // how often the session is killed
	Uploads Uploads   // need not be set if none is wanted
	Out     io.Writer // gets the figures
	Note    io.Writer // told of progress
}

// Figures are the names of what can be measured, in this order. Those from upload_small
// on need no session.
var Figures = []string{"sftp_up", "sftp_down", "smb_read", "nfs_read", "kill_to_closed_p99", "upload_small", "upload_1g"}

// Wants reports whether one of these figures is wanted.
func (c Config) Wants(names ...string) bool {
	return c.Only == nil || slices.ContainsFunc(names, func(name string) bool { return slices.Contains(c.Only, name) })
}

// print prints a figure if it is wanted.
func (c Config) print(f figure.Figure) error {
	if !c.Wants(f.Name) {
		return nil
	}
	_, err := fmt.Fprintln(c.Out, f)
	return err
}

// printReads prints how fast the measured file was read: of our disk, and of a
// plain folder by the same server, from the seconds that each took.
func (c Config) printReads(name string, took [2][]float64) error {
	rate := func(times []float64) float64 { return float64(c.Size) / (1 << 20) / figure.Percentile(times, 50) }
	return c.print(figure.Figure{
		Name: name, Value: rate(took[0]), Unit: "MiB/s", More: true, Peer: "plain-folder", PeerValue: rate(took[1]),
	})
}

// Run measures, and prints every figure when it is there. Everything it started
// has ended when it returns.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(cfg.Dir)) }()
	for _, part := range []struct {
		figures []string
		measure func(context.Context) error
	}{
		{[]string{"sftp_up", "sftp_down", "smb_read", "nfs_read", "kill_to_closed_p99"}, cfg.inSession},
		{[]string{"upload_small"}, cfg.uploadSmall},
		{[]string{"upload_1g"}, cfg.uploadLarge},
	} {
		if !cfg.Wants(part.figures...) {
			continue
		}
		if err := part.measure(ctx); err != nil {
			return err
		}
	}
	return nil
}

// inSession measures what takes a session.
func (c Config) inSession(ctx context.Context) (err error) {
	s, err := raise(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	if err := writeRandom(filepath.Join(c.Dir, "up"), c.Size); err != nil {
		return err
	}
	for _, part := range []struct {
		figures []string
		measure func(context.Context, Config) error
	}{
		{[]string{"sftp_up", "sftp_down"}, s.transfers},
		{[]string{"smb_read"}, s.readSMB},
		{[]string{"nfs_read"}, s.readNFS},
		{[]string{"kill_to_closed_p99"}, s.kills},
	} {
		if !c.Wants(part.figures...) {
			continue
		}
		if err := part.measure(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// client is stock sftp with a way to a server.
type client struct {
	config string // file
	host   string
	folder string // there
	put    string // the command that sends a file and returns when it is durable
}

// transfers measures sftp in both directions.
func (s *session) transfers(ctx context.Context, c Config) (err error) {
	peer, err := s.startSSHD(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, peer.end()) }()
	up, down := filepath.Join(c.Dir, "up"), filepath.Join(c.Dir, "down")
	var sent, got [2][]float64
	for run := range c.Runs {
		for i, one := range []client{s.client, peer.client} {
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
		err := c.print(figure.Figure{Name: f.name, Value: rate(f.times[0]), Unit: "MiB/s", More: true, Peer: "openssh", PeerValue: rate(f.times[1])})
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
