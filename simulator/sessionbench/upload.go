package sessionbench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"golang.org/x/sync/errgroup"

	"github.com/databox-lockbox/lockbox/agent"
	"github.com/databox-lockbox/lockbox/simulator/azurite"
	"github.com/databox-lockbox/lockbox/simulator/figure"
)

// Uploads say what the copy job uploads when that is measured.
type Uploads struct {
	Azurite  string // the folder it is installed in, as 'make deps-azurite' prints it
	Files    int    // small files
	Size     int64  // of each, in bytes
	Large    int64  // the size of the large file, in bytes
	Parallel int    // files at once, and blocks of a large file
}

// container is where files are uploaded to.
const container = "upload"

func (c Config) uploadSmall(ctx context.Context) error {
	folder := filepath.Join(c.Dir, "small")
	for i := range c.Uploads.Files {
		if err := writeRandom(filepath.Join(uploaded(folder), fmt.Sprint(i%100), fmt.Sprint(i)), c.Uploads.Size); err != nil {
			return err
		}
	}
	return c.upload(ctx, figure.Figure{Name: "upload_small", Unit: "files/s"}, folder, float64(c.Uploads.Files))
}

func (c Config) uploadLarge(ctx context.Context) error {
	folder := filepath.Join(c.Dir, "large")
	if err := writeRandom(filepath.Join(uploaded(folder), "large"), c.Uploads.Large); err != nil {
		return err
	}
	return c.upload(ctx, figure.Figure{Name: "upload_1g", Unit: "MB/s"}, folder, float64(c.Uploads.Large)/1e6)
}

// uploaded is where the files of a container lie in the folder that plays a disk.
func uploaded(folder string) string {
	return filepath.Join(folder, azurite.Account+"_BlockBlob", container)
}

// upload has the copy job and the SDK upload a folder in turns, each to a service of
// its own, and prints how much of its amount each did in a second. It removes the
// folder.
func (c Config) upload(ctx context.Context, f figure.Figure, folder string, amount float64) (err error) {
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	job := agent.Upload{Folder: folder, Account: azurite.Account, Parallel: c.Uploads.Parallel}
	if err := job.Prepare(ctx); err != nil {
		return err
	}
	uploads := []func(s *azurite.Service) error{
		func(s *azurite.Service) (err error) {
			job.Endpoint, job.Ledgers = s.Endpoint, filepath.Join(c.Dir, "ledgers")
			if job.Signature, err = s.Sign(); err != nil {
				return err
			}
			return job.Run(ctx)
		},
		func(s *azurite.Service) error { return c.uploadBySDK(ctx, s.Endpoint, uploaded(folder)) },
	}
	var times [2][]float64
	for run := range c.Runs {
		for turn := range uploads {
			who := (run + turn) % 2 // who is first, changes
			took, err := c.timed(ctx, uploads[who])
			if err != nil {
				return err
			}
			fmt.Fprintf(c.Note, "run %d, %s, %s: %v\n", run+1, f.Name, []string{"ours", "sdk"}[who], took.Round(time.Millisecond))
			times[who] = append(times[who], took.Seconds())
		}
	}
	f.More, f.Peer = true, "sdk"
	f.Value, f.PeerValue = amount/figure.Percentile(times[0], 50), amount/figure.Percentile(times[1], 50)
	return c.print(f)
}

// timed returns how long an upload to a service of its own takes.
func (c Config) timed(ctx context.Context, upload func(*azurite.Service) error) (took time.Duration, err error) {
	s, err := azurite.Start(ctx, c.Uploads.Azurite, filepath.Join(c.Dir, "azurite"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.End()) }()
	if err := s.MakeContainer(ctx, container); err != nil {
		return 0, err
	}
	began := time.Now()
	err = upload(s)
	return time.Since(began), err
}

// blockSize is that of the copy job, in bytes.
const blockSize = 8 << 20

// uploadBySDK is the peer: it uploads the files below a folder.
func (c Config) uploadBySDK(ctx context.Context, endpoint, folder string) error {
	key, err := blob.NewSharedKeyCredential(azurite.Account, azurite.Key)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(c.Uploads.Parallel)
	err = filepath.WalkDir(folder, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(folder, name)
		group.Go(func() error { return c.uploadFileBySDK(ctx, endpoint+"/"+container+"/"+url.PathEscape(rel), key, name) })
		return err
	})
	if failed := group.Wait(); failed != nil {
		return failed
	}
	return err
}

func (c Config) uploadFileBySDK(ctx context.Context, to string, key *blob.SharedKeyCredential, name string) error {
	client, err := blockblob.NewClientWithSharedKeyCredential(to, key, nil)
	if err != nil {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = client.UploadFile(ctx, f, &blockblob.UploadFileOptions{
		BlockSize: blockSize, Concurrency: uint16(c.Uploads.Parallel), TransactionalValidation: blob.TransferValidationTypeComputeCRC64(),
	})
	return err
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
