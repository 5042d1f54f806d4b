package keyvault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"
)

// apiVersion is that of the vaults' REST interface.
const apiVersion = "?api-version=7.4"

// maxBody is the longest answer that is read, in bytes.
const maxBody = 64 << 10

// Retries of what may pass: at most so many requests, with pauses of about this
// length, doubled each time, unless the server asks for another.
const (
	maxAttempts = 4
	firstPause  = 100 * time.Millisecond
)

// answer is what a server said.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// call asks a vault. in may be nil; out is filled from the answer.
func (c *Client) call(ctx context.Context, vault, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
		defer clear(body)
	}
	for fresh := false; ; fresh = true {
		token, cached, err := c.token(ctx, vault)
		if err != nil {
			return err
		}
		a, err := c.send(ctx, method, vault+path+apiVersion, body, http.Header{
			"Authorization": {"Bearer " + token}, "Content-Type": {"application/json"},
		})
		if err != nil {
			return vaultGone(vault, err)
		}
		if a.status == http.StatusUnauthorized && cached && !fresh { // it may have been revoked early
			c.forget(vault)
			continue
		}
		return a.into(out)
	}
}

// vaultGone takes a vault without an address for what it is: deleted vaults
// have none.
func vaultGone(vault string, err error) error {
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return vaultNotFound(vault)
	}
	return err
}

func (a answer) into(out any) error {
	defer clear(a.body)
	if a.status != http.StatusOK {
		var e vaultError
		_ = json.Unmarshal(a.body, &e) // the status says enough
		return e.meaning(a.status)
	}
	if err := json.Unmarshal(a.body, out); err != nil {
		return errors.New("the vault's answer is not JSON of the expected form") // the cause could quote a key
	}
	return nil
}

// send makes a request, and makes it again while the server is out of order or
// asks for a pause.
func (c *Client) send(ctx context.Context, method, url string, body []byte, header http.Header) (answer, error) {
	pause := firstPause
	for attempt := 1; ; attempt++ {
		a, err := c.once(ctx, method, url, body, header)
		if err == nil && !passing(a.status) {
			return a, nil
		}
		if err == nil {
			err = fmt.Errorf("%s answers with status %d", hostOf(url), a.status)
		}
		if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound || ctx.Err() != nil || attempt == maxAttempts {
			return answer{}, err
		}
		wait := pause + rand.N(pause)
		if asked, ok := a.retryAfter(c.cfg.Now()); ok {
			wait = asked
		}
		pause *= 2
		if end, ok := ctx.Deadline(); ok && time.Until(end) < wait {
			return answer{}, fmt.Errorf("%w, and asks to be left alone for %s", err, wait.Round(time.Second))
		}
		select {
		case <-ctx.Done():
			return answer{}, err
		case <-time.After(wait):
		}
	}
}

// passing reports whether a status may be another one soon.
func passing(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// retryAfter reads how long the server asks to wait, in seconds or as a date.
func (a answer) retryAfter(now time.Time) (time.Duration, bool) {
	text := a.header.Get("Retry-After")
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(n) * time.Second, true
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now)), true
	}
	return 0, false
}

func (c *Client) once(ctx context.Context, method, url string, body []byte, header http.Header) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header = header
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err == nil && len(data) > maxBody {
		err = fmt.Errorf("%s answers with more than %d bytes", hostOf(url), maxBody)
	}
	if err != nil {
		return answer{}, err
	}
	return answer{resp.StatusCode, resp.Header, data}, nil
}
