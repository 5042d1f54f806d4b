package azure

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
)

// Bounds of one request, of which there are several tries.
const (
	connectWithin = 15 * time.Second
	tryWithin     = 3 * time.Minute // a block of 8 MiB at 50 kB/s
	retriesOfOne  = 6               // after about 1, 3, 7, 15, 31 and 61 s
	longestPause  = 30 * time.Second
	maxReply      = 64 << 20 // bytes: a range that is compared; a list of 50,000 blocks has 5 MB
)

// newTransport goes straight to the account, through no proxy.
func newTransport(cfg Config, p placeholder) *http.Transport {
	d := dialer{p, cfg.Roots}
	return &http.Transport{
		DialContext:            d.dial,
		DialTLSContext:         d.dialTLS,
		ResponseHeaderTimeout:  time.Minute,
		ExpectContinueTimeout:  time.Second,
		IdleConnTimeout:        time.Minute,
		MaxIdleConnsPerHost:    cfg.Parallel * 2, // one file more than blocks
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
		WriteBufferSize:        256 << 10,
	}
}

// stay follows no redirection: the query would go along.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// contentKey is of the content of a request, in its context.
type contentKey struct{}

// guarded bounds what a server can make the device read, and gives each try a
// body of its own: the SDK rewinds the one it has, which the try before may still
// be reading when it was answered early or cut.
type guarded struct{ next http.RoundTripper }

func (g guarded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		content, ok := r.Context().Value(contentKey{}).([]byte)
		if !ok {
			var err error
			if content, err = io.ReadAll(io.LimitReader(r.Body, maxReply)); err != nil {
				return nil, err
			}
		}
		r = r.WithContext(r.Context()) // a copy
		r.Body = http.NoBody
		if len(content) > 0 {
			r.Body = io.NopCloser(bytes.NewReader(content))
		}
	}
	resp, err := g.next.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxReply), resp.Body}
	}
	return resp, err
}

// retries tries again what may pass: cut connections, a service that is busy,
// and content that arrived damaged.
func retries(pause time.Duration) policy.RetryOptions {
	return policy.RetryOptions{
		MaxRetries: retriesOfOne, TryTimeout: tryWithin, RetryDelay: pause, MaxRetryDelay: longestPause,
		ShouldRetry: func(resp *http.Response, err error) bool {
			if err != nil {
				_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
				return !untrusted && !errors.Is(err, errWiped)
			}
			return busy(resp.StatusCode) || slices.Contains(damaged, resp.Header.Get("x-ms-error-code"))
		},
	}
}

var damaged = []string{string(bloberror.CRC64Mismatch), string(bloberror.MD5Mismatch)}

func busy(status int) bool {
	return status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500 && status != http.StatusNotImplemented
}

// ours are errors that are not the SDK's.
var ours = []error{context.Canceled, errStored, copyjob.ErrContent, copyjob.ErrExists, copyjob.ErrDenied, copyjob.ErrUnavailable}

// explain says what an error of the SDK means, without quoting a URL: its query
// may be a secret.
func explain(err error) error {
	if err == nil || slices.ContainsFunc(ours, func(one error) bool { return errors.Is(err, one) }) {
		return err
	}
	if r, ok := errors.AsType[*azcore.ResponseError](err); ok {
		text := fmt.Sprintf("the service answered %d %.64q", r.StatusCode, r.ErrorCode)
		switch {
		case r.StatusCode == http.StatusUnauthorized || r.StatusCode == http.StatusForbidden:
			return fmt.Errorf("%w: %s", copyjob.ErrDenied, text)
		case busy(r.StatusCode):
			return fmt.Errorf("%w: %s", copyjob.ErrUnavailable, text)
		}
		return errors.New(text)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		return fmt.Errorf("%w: %w", copyjob.ErrUnavailable, u.Err)
	}
	return fmt.Errorf("%w: the request failed", copyjob.ErrUnavailable)
}

// status returns the HTTP status that an error of the SDK stands for, 0 if none.
func status(err error) int {
	if r, ok := errors.AsType[*azcore.ResponseError](err); ok {
		return r.StatusCode
	}
	return 0
}
