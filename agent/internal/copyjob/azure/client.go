package azure

import (
	"context"
	"net/http"
	"net/url"

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
	return newClient(s, o, blob.NewClientWithNoCredential, blob.ClientOptions{ClientOptions: s.options})
}

func (s *store) blockBlob(o copyjob.Object) (*blockblob.Client, error) {
	return newClient(s, o, blockblob.NewClientWithNoCredential, blockblob.ClientOptions{ClientOptions: s.options})
}

func (s *store) pageBlob(o copyjob.Object) (*pageblob.Client, error) {
	return newClient(s, o, pageblob.NewClientWithNoCredential, pageblob.ClientOptions{ClientOptions: s.options})
}

// newClient makes a client of an object, of the kind that the constructor makes.
func newClient[C, O any](s *store, o copyjob.Object, make func(string, *O) (*C, error), options O) (*C, error) {
	return make(runtime.JoinPaths(s.root, url.PathEscape(o.Container), url.PathEscape(o.Name)), &options)
}

// createContainer has the service make a container.
func (s *store) createContainer(ctx context.Context, name string) error {
	req, err := runtime.NewRequest(ctx, http.MethodPut, runtime.JoinPaths(s.root, url.PathEscape(name)))
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
