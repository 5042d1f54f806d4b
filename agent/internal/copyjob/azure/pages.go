package azure

import (
	"bytes"
	"context"
	"io"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
)

// putPages uploads a page blob. Pages of zeros are not sent, nor are those that
// an interrupted upload of the same object has stored.
func (s *store) putPages(ctx context.Context, o copyjob.Object, r io.Reader, sent func(int64)) error {
	client, err := s.pageBlob(o)
	if err != nil {
		return err
	}
	stored, err := s.beginPages(ctx, o, client)
	if err != nil {
		return err
	}
	err = s.split(ctx, o, r, pageChunk, func(ctx context.Context, c chunk) error {
		size := int64(len(c.data))
		if stored.has(c.offset, size) || isZero(c.data) {
			sent(size)
			return nil
		}
		resp, err := client.UploadPages(ctx, c.body(), blob.HTTPRange{Offset: c.offset, Count: size},
			&pageblob.UploadPagesOptions{TransactionalValidation: blob.TransferValidationTypeCRC64(c.crc64)})
		if err != nil {
			return err
		}
		sent(size)
		return c.confirmed(resp.ContentCRC64)
	})
	if err != nil {
		return err
	}
	metadata := describe(o)
	_, err = client.SetMetadata(ctx, metadata, nil)
	return err
}

// beginPages makes an empty page blob that says it is not whole, or takes up that
// of an interrupted upload, and returns the pages it has.
func (s *store) beginPages(ctx context.Context, o copyjob.Object, client *pageblob.Client) (pages, error) {
	found, err := s.look(ctx, o)
	if err != nil {
		return nil, err
	}
	if found.state == begun {
		return listPages(ctx, client)
	}
	if found.state == begunOther { // left by an upload of what the file was before
		_, err := client.Delete(ctx, &blob.DeleteOptions{AccessConditions: unchanged(found.etag)})
		if err != nil {
			return nil, err
		}
	}
	metadata := describe(o)
	metadata[keyIncomplete] = &yes
	_, err = client.Create(ctx, o.Size, &pageblob.CreateOptions{Metadata: metadata, AccessConditions: absent()})
	if status(err) == http.StatusConflict { // perhaps made by us, and the answer got lost
		if again, other := s.look(ctx, o); again.state == begun || other != nil {
			return nil, other
		}
	}
	return nil, err
}

// pages are ranges that a page blob has, in order.
type pages []struct{ from, to int64 } // without to

// has reports whether one range has all of these bytes. Ranges are whole
// requests or several: a request is stored as one.
func (p pages) has(offset, size int64) bool {
	for _, r := range p {
		if r.from <= offset && offset+size <= r.to {
			return true
		}
	}
	return false
}

func listPages(ctx context.Context, client *pageblob.Client) (pages, error) {
	var list pages
	for pager := client.NewGetPageRangesPager(nil); pager.More(); {
		reply, err := pager.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		for _, r := range reply.PageRange {
			if n := len(list); n > 0 && list[n-1].to == *r.Start {
				list[n-1].to = *r.End + 1
			} else {
				list = append(list, struct{ from, to int64 }{*r.Start, *r.End + 1})
			}
		}
	}
	return list, nil
}

var zeros [64 << 10]byte

func isZero(data []byte) bool {
	for len(data) > 0 {
		n := min(len(data), len(zeros))
		if !bytes.Equal(data[:n], zeros[:n]) {
			return false
		}
		data = data[n:]
	}
	return true
}
