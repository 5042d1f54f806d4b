// Package azure uploads to the blob service of Azure storage accounts: block
// blobs and page blobs. Azure Files are refused by their kind.
//
// The rules:
//
//   - The device writes only to accounts that its own configuration names, at
//     the very endpoint that the consent names too, over TLS with the server's
//     name checked. Plain HTTP is for endpoints on the loopback interface.
//   - What lets into an account comes with the unlock, is in memory once, and is
//     put into a request when that leaves the process ([conn]). Neither the SDK nor
//     net/http, which keep copies, nor any error or log has it.
//   - Every request that carries content carries its CRC64, which the service
//     checks before it stores anything. The CRC64 of the whole object is
//     compared with the announced one before the object is committed, and kept
//     with the time of modification in the object's metadata.
//   - A block blob appears whole or not at all. A page blob is there from its
//     first page on; until it is whole, its metadata says so.
//   - What a cut left is taken up: blocks are named after their content, pages
//     are listed by the service.
//   - Memory is bounded: a number of blocks for all accounts together.
package azure

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

// Account is a storage account that this device may write to.
type Account struct {
	Name     string
	Endpoint string // see [manifest.CheckEndpoint]
}

// Config says which accounts there are and what an upload may take.
type Config struct {
	Accounts []Account
	Parallel int            // requests with content at once, over all accounts; 0 is one
	Roots    *x509.CertPool // that vouch for servers; nil: the system's
	Pause    time.Duration  // before the first of several retries; 0: one second
}

// Accounts are those a device may write to. It implements [copyjob.Opener].
type Accounts struct {
	cfg   Config
	slots chan struct{} // a block in memory takes one
}

// New returns the accounts. It reads no file and opens no connection.
func New(cfg Config) *Accounts {
	cfg.Parallel = max(cfg.Parallel, 1)
	if cfg.Pause == 0 {
		cfg.Pause = time.Second
	}
	return &Accounts{cfg, make(chan struct{}, cfg.Parallel)}
}

func (a *Accounts) find(d approval.Destination) (Account, error) {
	for _, one := range a.cfg.Accounts {
		if one.Name == d.Account && one.Endpoint == d.Endpoint && manifest.CheckEndpoint(one.Endpoint) == nil {
			return one, nil
		}
	}
	return Account{}, protocol.Errorf(protocol.CodeAction,
		"this device may not write to %q of account %q: its copy.accounts do not name them together", d.Endpoint, d.Account)
}

// Check implements [copyjob.Opener].
func (a *Accounts) Check(d approval.Destination) error {
	_, err := a.find(d)
	return err
}

// Open implements [copyjob.Opener]. It opens no connection.
func (a *Accounts) Open(t copyjob.Target) (copyjob.ObjectStore, error) {
	account, err := a.find(t.Destination)
	if err != nil {
		return nil, err
	}
	if t.Access == nil {
		return nil, protocol.Errorf(protocol.CodeUnavailable,
			"nothing that lets into account %s came with the unlock: its owner hands it over with 'lockbox order destination set-credential'", account.Name)
	}
	p := newPlaceholder(t.Access)
	transport := newTransport(a.cfg, p)
	return &store{
		root: account.Endpoint + "?" + string(p.text), slots: a.slots, transport: transport, containers: make(map[string]func() error),
		options: policy.ClientOptions{
			Transport: &http.Client{Transport: guarded{transport}, CheckRedirect: stay},
			Retry:     retries(a.cfg.Pause),
			Telemetry: policy.TelemetryOptions{ApplicationID: "databox-agent"},
		},
	}, nil
}

// store is one account. It implements [copyjob.ObjectStore].
type store struct {
	root      string // URL of the account, with the placeholder for what lets in
	options   policy.ClientOptions
	slots     chan struct{}
	transport *http.Transport

	mu         sync.Mutex              // guards what follows
	containers map[string]func() error // makes the container, once
}

// Takes implements [copyjob.ObjectStore].
func (s *store) Takes(kind manifest.Kind) bool {
	return kind == manifest.BlockBlob || kind == manifest.PageBlob
}

// Close implements [copyjob.ObjectStore].
func (s *store) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// makeContainer makes an object's container if it is not there. A credential
// that may not make containers is good for those that are there.
func (s *store) makeContainer(ctx context.Context, o copyjob.Object) error {
	s.mu.Lock()
	once := s.containers[o.Container]
	if once == nil {
		once = sync.OnceValue(func() error {
			err := s.createContainer(ctx, o.Container)
			if bloberror.HasCode(err, bloberror.ContainerAlreadyExists) {
				return nil
			}
			if err = explain(err); errors.Is(err, copyjob.ErrDenied) {
				return nil
			}
			return err
		})
		s.containers[o.Container] = once
	}
	s.mu.Unlock()
	return once()
}
