package certs

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Renew gets a new certificate for the key in csr (DER). It returns the chain
// (DER, leaf first) once it is stored wherever it must survive a restart.
type Renew func(ctx context.Context, csr []byte) ([][]byte, error)

// Source holds the current certificate of one key and renews it without a
// restart. The key stays: statements bind a node to its key's fingerprint.
type Source struct {
	// Failed, if set before Run, is told of every renewal that failed and of
	// when the next one is tried. It must not block.
	Failed func(err error, retry time.Duration)

	key     ed25519.PrivateKey
	renew   Renew
	now     func() time.Time
	current atomic.Pointer[tls.Certificate]
}

const (
	renewTimeout = time.Minute // of one attempt to renew
	retryMin     = time.Second
	retryMax     = 10 * time.Minute
	clockCheck   = time.Minute // how often Run looks at the wall clock, which may be set
)

// NewSource returns a source for key and its chain (DER, leaf first). renew may
// be nil for a certificate that nobody renews; now may be nil for time.Now.
func NewSource(key ed25519.PrivateKey, chain [][]byte, renew Renew, now func() time.Time) (*Source, error) {
	if now == nil {
		now = time.Now
	}
	s := &Source{key: key, renew: renew, now: now}
	cert, err := s.certificate(chain)
	if err != nil {
		return nil, err
	}
	s.current.Store(cert)
	return s, nil
}

func (s *Source) certificate(chain [][]byte) (*tls.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("the certificate chain is empty")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("cannot read the certificate: %w", err)
	}
	if !s.key.Public().(ed25519.PublicKey).Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: s.key, Leaf: leaf}, nil
}

// GetCertificate is for [tls.Config] of a listener.
func (s *Source) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.current.Load(), nil
}

// GetClientCertificate is for [tls.Config] of a dialer.
func (s *Source) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return s.current.Load(), nil
}

// Leaf returns the current certificate.
func (s *Source) Leaf() *x509.Certificate { return s.current.Load().Leaf }

// Run renews the certificate after two thirds of its lifetime, again and again,
// until ctx ends; then it returns nil. After a failure it tries again with
// growing pauses, also once the certificate has expired.
func (s *Source) Run(ctx context.Context) error {
	if s.renew == nil {
		<-ctx.Done()
		return nil
	}
	for s.waitUntilDue(ctx) {
		for pause := retryMin; ctx.Err() == nil; pause = min(2*pause, retryMax) {
			err := s.renewOnce(ctx)
			if err == nil {
				break
			}
			retry := jitter(pause)
			if s.Failed != nil && ctx.Err() == nil {
				s.Failed(err, retry)
			}
			sleep(ctx, retry)
		}
	}
	return nil
}

// waitUntilDue reports whether the certificate is to be renewed now, rather than
// that ctx ended. The wall clock may be set while it waits.
func (s *Source) waitUntilDue(ctx context.Context) bool {
	for {
		wait := s.due().Sub(s.now())
		if wait <= 0 {
			return ctx.Err() == nil
		}
		if !sleep(ctx, min(wait, clockCheck)) {
			return false
		}
	}
}

// due is when the current certificate is to be renewed.
func (s *Source) due() time.Time {
	leaf := s.Leaf()
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * 2 / 3)
}

func (s *Source) renewOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	csr, err := NewCSR(s.key)
	if err != nil {
		return err
	}
	chain, err := s.renew(ctx, csr)
	if err != nil {
		return fmt.Errorf("cannot renew the certificate that expires %s: %w", protocol.Stamp(s.Leaf().NotAfter), err)
	}
	cert, err := s.certificate(chain)
	if err != nil {
		return fmt.Errorf("cannot use the renewed certificate: %w", err)
	}
	if !cert.Leaf.NotAfter.After(s.Leaf().NotAfter) {
		return fmt.Errorf("the renewed certificate ends %s, no later than the old one", protocol.Stamp(cert.Leaf.NotAfter))
	}
	s.current.Store(cert)
	return nil
}

// jitter spreads the retries of many devices: half to all of d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// sleep reports whether it slept for d rather than being ended by ctx.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
