package azure

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
)

// The SDK's packages for accounts and containers read lists in the format of
// Apache Arrow, which adds 3 MB and seven modules to a program. Only those for blobs are
// used here; nobody asks for a list.

func (s *store) blob(o copyjob.Object) (*blob.Client, error) {
	return newClient(s, o, blob.NewClientWithSharedKeyCredential, blob.NewClientWithNoCredential, blob.ClientOptions{ClientOptions: s.options})
}

func (s *store) blockBlob(o copyjob.Object) (*blockblob.Client, error) {
	return newClient(s, o, blockblob.NewClientWithSharedKeyCredential, blockblob.NewClientWithNoCredential, blockblob.ClientOptions{ClientOptions: s.options})
}

func (s *store) pageBlob(o copyjob.Object) (*pageblob.Client, error) {
	return newClient(s, o, pageblob.NewClientWithSharedKeyCredential, pageblob.NewClientWithNoCredential, pageblob.ClientOptions{ClientOptions: s.options})
}

// newClient makes a client of an object, of the kind that the constructors make.
func newClient[C, O any](s *store, o copyjob.Object,
	withKey func(string, *blob.SharedKeyCredential, *O) (*C, error), withoutKey func(string, *O) (*C, error), options O) (*C, error) {
	name := runtime.JoinPaths(s.root, url.PathEscape(o.Container), url.PathEscape(o.Name))
	if s.key == nil {
		return withoutKey(name, &options)
	}
	return withKey(name, s.key, &options)
}

// createContainer has the service make a container.
func (s *store) createContainer(ctx context.Context, name string) error {
	root, err := s.signedRoot()
	if err != nil {
		return err
	}
	req, err := runtime.NewRequest(ctx, http.MethodPut, runtime.JoinPaths(root, url.PathEscape(name)))
	if err != nil {
		return err
	}
	req.Raw().URL.RawQuery += "&restype=container"
	req.Raw().Header.Set("x-ms-version", sas.Version)
	resp, err := runtime.NewPipeline("azblob", "", runtime.PipelineOptions{}, &s.options).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return runtime.NewResponseError(resp)
	}
	return nil
}

// signedRoot returns the account's URL with a query that lets containers be made.
func (s *store) signedRoot() (string, error) {
	if s.key == nil {
		return s.root, nil
	}
	query, err := sas.AccountSignatureValues{
		ExpiryTime: time.Now().Add(time.Hour), Permissions: (&sas.AccountPermissions{Create: true}).String(), ResourceTypes: (&sas.AccountResourceTypes{Container: true}).String(),
	}.SignWithSharedKey(s.key)
	return s.root + "?" + query.Encode(), err
}
