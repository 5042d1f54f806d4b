package azure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// The metadata of a blob.
const (
	keyCRC64      = "databox_crc64"      // 16 hexadecimal digits
	keyModified   = "mtime"              // RFC 3339, with nanoseconds
	keyIncomplete = "databox_incomplete" // a page blob that is being uploaded
)

var yes = "true"

// describe returns the metadata of an object, with its time of modification if
// that can be kept.
func describe(o copyjob.Object) map[string]*string {
	crc := fmt.Sprintf("%016x", o.CRC64)
	metadata := map[string]*string{keyCRC64: &crc}
	if !copyjob.TimeIsKept(o.Modified) {
		return metadata
	}
	modified := o.Modified.UTC().Format(time.RFC3339Nano)
	metadata[keyModified] = &modified
	return metadata
}

// What is at the place of an object.
type state int

const (
	nothing    state = iota
	same             // the object, whole
	begun            // a part of it
	begunOther       // a part of another that was to have the name
)

type found struct {
	state state
	etag  azcore.ETag
}

// Find implements [copyjob.ObjectStore].
func (s *store) Find(ctx context.Context, o copyjob.Object) (bool, error) {
	f, err := s.look(ctx, o)
	if err != nil || f.state != same {
		return false, explain(err)
	}
	return true, kept(o)
}

// kept is [copyjob.ErrNotKept] of an object whose time of modification metadata
// cannot tell.
func kept(o copyjob.Object) error {
	if !copyjob.TimeIsKept(o.Modified) {
		return fmt.Errorf("%w: it lies beyond the years that are written with four digits", copyjob.ErrNotKept)
	}
	return nil
}

// look says what is at the place of an object; [copyjob.ErrExists] if it is
// something else.
func (s *store) look(ctx context.Context, o copyjob.Object) (found, error) {
	client, err := s.blob(o)
	if err != nil {
		return found{}, err
	}
	p, err := client.GetProperties(ctx, nil)
	if status(err) == http.StatusNotFound {
		return found{}, nil
	}
	if err != nil {
		return found{}, err
	}
	f := found{state: same, etag: *p.ETag}
	metadata := make(map[string]string)
	for k, v := range p.Metadata {
		metadata[strings.ToLower(k)] = *v
	}
	crc, ours := metadata[keyCRC64]
	isOurs := *p.ContentLength == o.Size && crc == fmt.Sprintf("%016x", o.CRC64)
	switch {
	case *p.BlobType != typeOf(o.Kind):
		err = fmt.Errorf("%w: %s", copyjob.ErrExists, *p.BlobType)
	case metadata[keyIncomplete] != "" && isOurs:
		f.state = begun
	case metadata[keyIncomplete] != "":
		f.state = begunOther
	case isOurs:
	case ours || *p.ContentLength != o.Size:
		err = copyjob.ErrExists
	default: // somebody else's, perhaps with the same content
		err = compare(ctx, client, o, f.etag)
	}
	if err != nil {
		f.state = nothing
	}
	return f, err
}

func typeOf(kind manifest.Kind) blob.BlobType {
	if kind == manifest.PageBlob {
		return blob.BlobTypePageBlob
	}
	return blob.BlobTypeBlockBlob
}

func unchanged(etag azcore.ETag) *blob.AccessConditions {
	return &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: &etag}}
}

// compare reads a blob of the size of an object, in ranges, and is
// [copyjob.ErrExists] if it has another content.
func compare(ctx context.Context, client *blob.Client, o copyjob.Object, etag azcore.ETag) error {
	crc := manifest.NewCRC64()
	for offset := int64(0); offset < o.Size; offset += blockSize {
		size := min(blockSize, o.Size-offset)
		reply, err := client.DownloadStream(ctx, &blob.DownloadStreamOptions{
			Range: blob.HTTPRange{Offset: offset, Count: size}, AccessConditions: unchanged(etag),
		})
		if err != nil {
			return err
		}
		body := reply.NewRetryReader(ctx, nil)
		_, err = io.CopyN(crc, body, size)
		if err = errors.Join(err, body.Close()); err != nil {
			return fmt.Errorf("%w: it cannot be compared", copyjob.ErrUnavailable)
		}
	}
	if crc.Sum64() != o.CRC64 {
		return copyjob.ErrExists
	}
	return nil
}
