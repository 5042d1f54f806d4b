// Package uploadbench measures the upload of the copy job beside Azure's own SDK,
// to the same blob service.
//
// The rules:
//
//   - A figure is the median of some runs; those of the peer take turns with ours.
//   - Each run has a service of its own, which is empty.
//   - The peer sends the same files, as many at once, and does nothing else: no
//     checks of names, no bill of materials, no checksums.
package uploadbench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/databox-lockbox/lockbox/agent"
	"github.com/databox-lockbox/lockbox/simulator/figure"
)

// Config says what to measure.
type Config struct {
	Azurite  string    // the folder it is installed in, as 'make deps-azurite' prints it
	Dir      string    // for the files and what the service stores; made, and removed afterwards
	Runs     int       // of which a figure is the median
	Files    int       // small files
	Size     int64     // of each, in bytes
	Large    int64     // the size of the large file, in bytes
	Parallel int       // files at once, and blocks of a large file
	Out      io.Writer // gets the figures
	Note     io.Writer // told of progress
}

const container = "upload"

// Run measures, and prints every figure when it is there.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(cfg.Dir)) }()
	if err := cfg.small(ctx); err != nil {
		return err
	}
	return cfg.large(ctx)
}

func (c Config) small(ctx context.Context) error {
	folder := filepath.Join(c.Dir, "small")
	for i := range c.Files {
		name := filepath.Join(folder, account+"_BlockBlob", container, fmt.Sprint(i%100), fmt.Sprint(i))
		if err := writeRandom(name, c.Size); err != nil {
			return err
		}
	}
	ours, theirs, err := c.both(ctx, folder)
	if err != nil {
		return err
	}
	perSecond := func(d time.Duration) float64 { return float64(c.Files) / d.Seconds() }
	_, err = fmt.Fprintln(c.Out, figure.Figure{
		Name: "upload_small", Value: perSecond(ours), Unit: "files/s", More: true, Peer: "sdk", PeerValue: perSecond(theirs),
	})
	return errors.Join(err, os.RemoveAll(folder))
}

func (c Config) large(ctx context.Context) error {
	folder := filepath.Join(c.Dir, "large")
	if err := writeRandom(filepath.Join(folder, account+"_BlockBlob", container, "large"), c.Large); err != nil {
		return err
	}
	ours, theirs, err := c.both(ctx, folder)
	if err != nil {
		return err
	}
	perSecond := func(d time.Duration) float64 { return float64(c.Large) / 1e6 / d.Seconds() }
	_, err = fmt.Fprintln(c.Out, figure.Figure{
		Name: "upload_1g", Value: perSecond(ours), Unit: "MB/s", More: true, Peer: "sdk", PeerValue: perSecond(theirs),
	})
	return err
}

// both uploads the share in folder by the copy job and by the SDK in turns, and
// returns the median of the times each took.
func (c Config) both(ctx context.Context, folder string) (ours, theirs time.Duration, err error) {
	job := agent.Upload{
		Folder: folder, Account: account, CredentialFile: filepath.Join(c.Dir, "credential"), Parallel: c.Parallel,
	}
	if err := os.WriteFile(job.CredentialFile, []byte("AccountKey="+accountKey), 0o600); err != nil {
		return 0, 0, err
	}
	if err := job.Prepare(ctx); err != nil {
		return 0, 0, err
	}
	var all [2][]time.Duration
	for i := range c.Runs {
		for who, upload := range []func(endpoint string) error{
			func(endpoint string) error {
				job.Endpoint, job.Ledgers = endpoint, filepath.Join(c.Dir, "ledgers")
				return job.Run(ctx)
			},
			func(endpoint string) error {
				return c.peer(ctx, endpoint, filepath.Join(folder, account+"_BlockBlob", container))
			},
		} {
			took, err := c.timed(ctx, upload)
			if err != nil {
				return 0, 0, err
			}
			fmt.Fprintf(c.Note, "%s, run %d of %d, %s: %v\n", filepath.Base(folder), i+1, c.Runs, []string{"ours", "sdk"}[who], took.Round(time.Millisecond))
			all[who] = append(all[who], took)
		}
	}
	return figure.Percentile(all[0], 50), figure.Percentile(all[1], 50), nil
}

// timed returns how long an upload to a service of its own takes.
func (c Config) timed(ctx context.Context, upload func(endpoint string) error) (took time.Duration, err error) {
	s, err := startService(ctx, c.Azurite, filepath.Join(c.Dir, "service"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	began := time.Now()
	err = upload(s.endpoint)
	return time.Since(began), err
}

// writeRandom writes a file that nothing compresses.
func writeRandom(name string, size int64) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{1}), size)
	return errors.Join(err, f.Close())
}
