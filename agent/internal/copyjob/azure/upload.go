package azure

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"golang.org/x/sync/errgroup"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// Sizes in bytes. Larger blocks are used where so many of the least would not do:
// a file of 50,000 × 100 MiB has blocks of 100 MiB.
const (
	blockSize = 8 << 20
	maxBlocks = 50_000
	pageChunk = 4 << 20 // the most that one request takes
)

// absent is the condition that nothing has the name.
func absent() *blob.AccessConditions {
	return &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETagAny)}}
}

// Put implements [copyjob.ObjectStore].
func (s *store) Put(ctx context.Context, o copyjob.Object, r io.Reader, sent func(int64)) error {
	if err := s.makeContainer(ctx, o); err != nil {
		return err
	}
	put := s.putBlocks
	switch {
	case o.Kind == manifest.PageBlob:
		put = s.putPages
	case o.Size <= blockSize:
		put = s.putWhole
	}
	if err := put(ctx, o, r, sent); err != nil {
		if status(err) != http.StatusConflict && status(err) != http.StatusPreconditionFailed {
			return explain(err)
		}
		// Something has the name: perhaps this object, of which the answer got lost.
		if ok, other := s.Find(ctx, o); !ok {
			return errors.Join(explain(err), other)
		}
	}
	return kept(o)
}

// putWhole uploads a block blob with one request.
func (s *store) putWhole(ctx context.Context, o copyjob.Object, r io.Reader, sent func(int64)) error {
	client, err := s.blockBlob(o)
	if err != nil {
		return err
	}
	return s.split(ctx, o, r, max(o.Size, 1), func(ctx context.Context, c chunk) error {
		metadata := describe(o)
		resp, err := client.Upload(ctx, c.body(), &blockblob.UploadOptions{
			Metadata: metadata, AccessConditions: absent(), TransactionalValidation: blob.TransferValidationTypeCRC64(c.crc64),
		})
		if err != nil {
			return err
		}
		sent(int64(len(c.data)))
		return c.confirmed(resp.ContentCRC64)
	})
}

// putBlocks uploads a block blob in blocks. Those that an interrupted upload has
// left are not sent again: a block is named after what is in it.
func (s *store) putBlocks(ctx context.Context, o copyjob.Object, r io.Reader, sent func(int64)) error {
	client, err := s.blockBlob(o)
	if err != nil {
		return err
	}
	staged, err := stagedBlocks(ctx, client)
	if err != nil {
		return err
	}
	size := blockSizeOf(o.Size)
	ids := make([]string, (o.Size+size-1)/size)
	err = s.split(ctx, o, r, size, func(ctx context.Context, c chunk) error {
		id := c.id()
		ids[c.offset/size] = id
		if staged[id] == int64(len(c.data)) {
			sent(int64(len(c.data)))
			return nil
		}
		resp, err := client.StageBlock(ctx, id, c.body(), &blockblob.StageBlockOptions{TransactionalValidation: blob.TransferValidationTypeCRC64(c.crc64)})
		if err != nil {
			return err
		}
		sent(int64(len(c.data)))
		return c.confirmed(resp.ContentCRC64)
	})
	if err != nil {
		return err
	}
	metadata := describe(o)
	_, err = client.CommitBlockList(ctx, ids, &blockblob.CommitBlockListOptions{Metadata: metadata, AccessConditions: absent()})
	return err
}

// blockSizeOf returns the size of the blocks of a file: whole MiB.
func blockSizeOf(size int64) int64 {
	least := (size + maxBlocks - 1) / maxBlocks
	return max(blockSize, (least+1<<20-1)>>20<<20)
}

// stagedBlocks returns the sizes of the blocks that an interrupted upload left, by
// id.
func stagedBlocks(ctx context.Context, client *blockblob.Client) (map[string]int64, error) {
	list, err := client.GetBlockList(ctx, blockblob.BlockListTypeUncommitted, nil)
	if bloberror.HasCode(err, bloberror.BlobNotFound, bloberror.ContainerNotFound) {
		return nil, nil
	}
	staged := make(map[string]int64)
	for _, b := range list.UncommittedBlocks {
		if b != nil && b.Name != nil && b.Size != nil {
			staged[*b.Name] = *b.Size
		}
	}
	return staged, err
}

// chunk is a part of an object.
type chunk struct {
	offset int64
	data   []byte
	crc64  uint64
}

func (c chunk) body() io.ReadSeekCloser { return streaming.NopCloser(bytes.NewReader(c.data)) }

// id names a block after its place and content. All ids have the same length, as
// the service demands.
func (c chunk) id() string {
	var id [24]byte
	binary.BigEndian.PutUint64(id[:], uint64(c.offset))
	binary.BigEndian.PutUint64(id[8:], uint64(len(c.data)))
	binary.BigEndian.PutUint64(id[16:], c.crc64)
	return base64.StdEncoding.EncodeToString(id[:])
}

var errStored = errors.New("the service stored other bytes than were sent")

// confirmed compares the checksum that the service made of what it stored, if it
// says one.
func (c chunk) confirmed(theirs []byte) error {
	if len(theirs) == 8 && binary.LittleEndian.Uint64(theirs) != c.crc64 {
		return errStored
	}
	return nil
}

// split reads an object in chunks of that size and hands them on, several at
// once as far as there is memory. It is [copyjob.ErrContent] if what was read is
// not the object. send may keep a chunk's data for as long as it likes.
func (s *store) split(ctx context.Context, o copyjob.Object, r io.Reader, size int64, send func(context.Context, chunk) error) error {
	group, ctx := errgroup.WithContext(ctx)
	err := s.readChunks(ctx, o, r, size, func(c chunk) {
		group.Go(func() error {
			defer func() { <-s.slots }()
			return send(context.WithValue(ctx, contentKey{}, c.data), c)
		})
	})
	if failed := group.Wait(); failed != nil {
		return failed // which has ended the reading
	}
	return err
}

// readChunks hands on each chunk with a slot taken.
func (s *store) readChunks(ctx context.Context, o copyjob.Object, r io.Reader, size int64, hand func(chunk)) error {
	var crc uint64 // of all chunks until now
	for offset := int64(0); offset < o.Size || offset == 0; offset += size {
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		data := make([]byte, min(size, o.Size-offset)) // never used again: a cut request may still read it
		if _, err := io.ReadFull(r, data); err != nil {
			<-s.slots
			return fmt.Errorf("%w: it ends early: %w", copyjob.ErrContent, err)
		}
		c := chunk{offset, data, manifest.ChecksumCRC64(data)}
		crc = manifest.JoinCRC64(crc, c.crc64, int64(len(data)))
		if offset+size >= o.Size && crc != o.CRC64 {
			<-s.slots
			return fmt.Errorf("%w: CRC64 %016x, not %016x", copyjob.ErrContent, crc, o.CRC64)
		}
		hand(c)
	}
	if n, err := io.CopyN(io.Discard, r, 1); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it is longer", copyjob.ErrContent)
	}
	return nil
}
