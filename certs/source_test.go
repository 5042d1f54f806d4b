package certs

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestSourceRenewsBeforeExpiryWithoutARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t)
		a.Now = time.Now
		key, csr := request(t)
		chain, err := a.IssueDevice(csr, node, 9*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var renewals []time.Duration
		s, err := NewSource(key, chain, func(_ context.Context, csr []byte) ([][]byte, error) {
			renewals = append(renewals, time.Since(began).Round(time.Hour))
			return a.IssueDevice(csr, node, 9*time.Hour)
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 25*time.Hour)
		defer cancel()
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
		if want := []time.Duration{6 * time.Hour, 12 * time.Hour, 18 * time.Hour, 24 * time.Hour}; !slices.Equal(renewals, want) {
			t.Errorf("renewed after %v, want %v", renewals, want)
		}
		if got, _ := s.GetCertificate(nil); got.Leaf.NotAfter.Before(began.Add(32 * time.Hour)) {
			t.Errorf("the current certificate ends %v", got.Leaf.NotAfter)
		}
		if got, _ := s.GetClientCertificate(nil); got.Leaf != s.Leaf() {
			t.Error("the two callbacks differ")
		}
	})
}

func TestSourceTriesAgainForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t)
		a.Now = time.Now
		key, csr := request(t)
		_, otherCSR := request(t)
		chain, err := a.IssueDevice(csr, node, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var attempts int
		var told []string
		s, err := NewSource(key, chain, func(_ context.Context, csr []byte) ([][]byte, error) {
			switch attempts++; {
			case attempts == 1:
				return nil, nil
			case attempts == 2:
				return a.IssueDevice(otherCSR, node, time.Hour)
			case attempts == 3:
				return chain, nil // the same again
			case time.Since(began) < 5*time.Hour: // long after it expired
				return nil, errors.New("the control plane is away")
			}
			return a.IssueDevice(csr, node, time.Hour)
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Failed = func(err error, retry time.Duration) {
			if told = append(told, err.Error()); retry <= 0 || retry > retryMax {
				t.Errorf("retries after %v", retry)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Hour+20*time.Minute)
		defer cancel()
		s.Run(ctx)
		if s.Leaf().NotAfter.Before(began.Add(6 * time.Hour)) {
			t.Errorf("the certificate ends %v after %d attempts", s.Leaf().NotAfter, attempts)
		}
		for i, want := range []string{"chain is empty", "for another key", "no later than the old one", "the control plane is away"} {
			if !strings.Contains(told[i], want) {
				t.Errorf("attempt %d failed with %q, want %q", i+1, told[i], want)
			}
		}
		if attempts > 120 {
			t.Errorf("%d attempts in five hours", attempts)
		}
	})
}

func TestSourceNoticesThatTheClockWasSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t)
		var offset atomic.Int64
		now := func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
		a.Now = now
		key, csr := request(t)
		chain, err := a.IssueDevice(csr, node, 9*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		renewed := make(chan struct{}, 1)
		s, err := NewSource(key, chain, func(_ context.Context, csr []byte) ([][]byte, error) {
			renewed <- struct{}{}
			return a.IssueDevice(csr, node, 9*time.Hour)
		}, now)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		time.Sleep(90 * time.Second)
		offset.Store(int64(7 * time.Hour))
		began := time.Now()
		<-renewed
		if took := time.Since(began); took > clockCheck {
			t.Errorf("noticed after %v", took)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestSourceWithoutRenewalOnlyWaits(t *testing.T) {
	s := issued(t, func(c []byte) ([][]byte, error) { return open(t).IssueDevice(c, node, time.Hour) })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.Run(ctx); err != nil {
		t.Error(err)
	}
}

func TestNewSourceRefuses(t *testing.T) {
	a := open(t)
	key, _ := request(t)
	_, otherCSR := request(t)
	chain, err := a.IssueDevice(otherCSR, node, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, chain := range map[string][][]byte{"empty": nil, "of another key": chain, "garbage": {[]byte("x")}} {
		if _, err := NewSource(key, chain, nil, nil); err == nil {
			t.Errorf("a chain that is %s is taken", name)
		}
	}
}
