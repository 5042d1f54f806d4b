package uploadbench

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"golang.org/x/sync/errgroup"
)

// blockSize is that of the copy job, in bytes.
const blockSize = 8 << 20

// peer uploads the files below folder with Azure's SDK alone.
func (c Config) peer(ctx context.Context, endpoint, folder string) error {
	key, err := azblob.NewSharedKeyCredential(account, accountKey)
	if err != nil {
		return err
	}
	client, err := azblob.NewClientWithSharedKeyCredential(endpoint, key, nil)
	if err != nil {
		return err
	}
	if _, err := client.CreateContainer(ctx, container, nil); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(c.Parallel)
	err = filepath.WalkDir(folder, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		blob, err := filepath.Rel(folder, name)
		group.Go(func() error { return c.peerFile(ctx, client, name, blob) })
		return err
	})
	if failed := group.Wait(); failed != nil {
		return failed
	}
	return err
}

func (c Config) peerFile(ctx context.Context, client *azblob.Client, name, blob string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = client.UploadFile(ctx, container, blob, f, &azblob.UploadFileOptions{BlockSize: blockSize, Concurrency: uint16(c.Parallel)})
	return err
}
