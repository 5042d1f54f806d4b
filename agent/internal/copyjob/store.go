package copyjob

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// Object is what a file becomes in the store of its account.
type Object struct {
	Account   string
	Kind      manifest.Kind
	Container string // or Azure file share
	Name      string // of the blob, or path in the file share
	Size      int64  // bytes
	CRC64     uint64
	Modified  time.Time // of the file
}

// What an [ObjectStore] returns, wrapped, where callers go on differently.
var (
	// ErrContent: what was read is not what the object was announced to be.
	ErrContent = errors.New("the content differs from what was announced")
	// ErrExists: another object has the name. It was not touched.
	ErrExists = errors.New("another object has the name")
	// ErrDenied: the account does not let this device in. Nothing else will go there.
	ErrDenied = errors.New("the account refuses access")
	// ErrUnavailable: the account did not answer, again and again.
	ErrUnavailable = errors.New("the account does not answer")
	// ErrNotKept: the object is stored, but not when its file was modified.
	ErrNotKept = errors.New("the time of modification was not kept")
)

// TimeIsKept reports whether a time of modification can be kept with an object:
// one beyond the years that are written with four digits cannot, and NTFS knows
// such.
func TimeIsKept(modified time.Time) bool {
	year := modified.UTC().Year()
	return 1 <= year && year <= 9999
}

// ObjectStore is one destination account. It is used concurrently. It retries
// what may pass by itself, and its errors quote no secret.
type ObjectStore interface {
	// Takes reports whether objects of that kind can be stored.
	Takes(kind manifest.Kind) bool
	// Find reports whether this very object is there, by size and content. It is
	// ErrExists if another has its name. With true there may be ErrNotKept.
	Find(ctx context.Context, o Object) (bool, error)
	// Put stores what r yields. When it returns nil, the object is durable and
	// the store has confirmed its checksum. What an interrupted Put of the same
	// object has stored is not sent again. An object that is there is never
	// overwritten: it is ErrExists, or nil if it is the same. sent is told of
	// bytes as they are stored, by many goroutines.
	Put(ctx context.Context, o Object, r io.Reader, sent func(bytes int64)) error
	Close() error
}

// Opener opens the stores of one kind of endpoint.
type Opener interface {
	// Check refuses, with [protocol.CodeAction], a destination that this device
	// may not write to.
	Check(d approval.Destination) error
	// Open opens the store of a destination that Check has passed.
	Open(t Target) (ObjectStore, error)
}

// check refuses destinations that this device may not write to.
func (j *Job) check(d approval.Destination) error {
	opener, err := j.opener(d)
	if err != nil {
		return err
	}
	return opener.Check(d)
}

// open opens the store of a destination.
func (j *Job) open(t Target) (ObjectStore, error) {
	opener, err := j.opener(t.Destination)
	if err != nil {
		return nil, err
	}
	if err := opener.Check(t.Destination); err != nil {
		return nil, err
	}
	return opener.Open(t)
}

func (j *Job) opener(d approval.Destination) (Opener, error) {
	switch scheme := schemeOf(d.Endpoint); {
	case scheme == "file":
		return folders(j.cfg.BlobRoots), nil
	case j.cfg.Blobs != nil && (scheme == "https" || scheme == "http"):
		return j.cfg.Blobs, nil
	}
	return nil, protocol.Errorf(protocol.CodeAction,
		"this device cannot write to %q of account %q: want file:///<clean absolute path>, or the https:// endpoint of a blob account", d.Endpoint, d.Account)
}
