// Package hsm wraps keys with AES keys in a hardware security module, over
// PKCS#11. The module's library is C code of somebody else's, so a process of its
// own uses it, lockbox-hsm: a call that hangs is ended with the process, a crash
// costs one call, and nothing of it is in the memory where the service's keys
// are.
//
//   - The keys are made in the token and cannot leave it. Each has the
//     configured label, and its version as id.
//   - The PIN is read from a file, by the helper. One that the token refused is
//     not tried again until its file changes: tokens lock themselves for good.
//   - One request at a time goes over the helper's standard input and output, see
//     package wire. The helper ends when its input does.
package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/hsm/wire"
)

// Config says where the keys are.
type Config struct {
	Helper  string // the program lockbox-hsm
	Module  string // the PKCS#11 library
	Token   string // the token's label
	Label   string // of the keys
	PINFile string // the user's PIN, in a file that only its owner can read
	Create  bool   // make the first key if there is none
}

// Service is a key service in a token. Its methods may be called concurrently.
// [Service.Close] must be called.
type Service struct {
	cfg  Config
	turn chan struct{} // one slot: whoever is in it uses what follows

	helper  *helper   // nil if none runs
	refused time.Time // of the PIN file whose PIN the token refused
	closed  bool

	seen  atomic.Bool    // a key was there: another that is not was lost
	ended sync.WaitGroup // helpers that were ended and are still to be waited for
}

// New returns a service, which starts the helper at the first call.
func New(cfg Config) *Service { return &Service{cfg: cfg, turn: make(chan struct{}, 1)} }

// Close ends the helper. Calls after it fail.
func (s *Service) Close() error {
	s.turn <- struct{}{}
	s.closed = true
	s.end()
	<-s.turn
	s.ended.Wait()
	return nil
}

// IDPrefix begins the IDs of all keys in tokens, which are PKCS#11 URIs
// (RFC 7512).
const IDPrefix = "pkcs11:"

// prefix begins the IDs of the service's keys.
func (s *Service) prefix() string {
	return IDPrefix + "token=" + url.PathEscape(s.cfg.Token) + ";object=" + url.PathEscape(s.cfg.Label) + ";type=secret-key;id="
}

// Current returns the key of the highest version.
func (s *Service) Current(ctx context.Context) (custody.KeyWrapper, error) {
	newest, err := s.newest(ctx)
	if err == nil && newest == 0 && s.cfg.Create && !s.seen.Load() {
		newest = 1
		_, err = s.call(ctx, wire.OpGenerate, []byte("1"))
	}
	if err != nil {
		return nil, err
	}
	if newest == 0 {
		return nil, fmt.Errorf("token %q has no key %q: it was lost, or this is another token", s.cfg.Token, s.cfg.Label)
	}
	s.seen.Store(true)
	return wrapper{s, newest}, nil
}

// Key returns the key of that ID.
func (s *Service) Key(_ context.Context, id string) (custody.KeyWrapper, error) {
	version, ours := strings.CutPrefix(id, s.prefix())
	n, err := strconv.Atoi(version)
	if !ours || err != nil || strconv.Itoa(n) != version {
		return nil, custody.ErrForeignKey
	}
	return wrapper{s, n}, nil
}

// Rotate makes the key of the next version.
func (s *Service) Rotate(ctx context.Context) error {
	newest, err := s.newest(ctx)
	if err != nil {
		return err
	}
	_, err = s.call(ctx, wire.OpGenerate, []byte(strconv.Itoa(newest+1)))
	return err
}

// Retire destroys all keys but that of the highest version.
func (s *Service) Retire(ctx context.Context) error {
	versions, err := s.versions(ctx)
	if err != nil || len(versions) == 0 {
		return err
	}
	for _, v := range versions[:len(versions)-1] {
		if _, err := s.call(ctx, wire.OpDestroy, []byte(strconv.Itoa(v))); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) newest(ctx context.Context) (int, error) {
	versions, err := s.versions(ctx)
	if err != nil || len(versions) == 0 {
		return 0, err
	}
	return versions[len(versions)-1], nil
}

// versions lists the versions of the key in the token, in order.
func (s *Service) versions(ctx context.Context) ([]int, error) {
	names, err := s.call(ctx, wire.OpVersions)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, name := range names {
		n, err := strconv.Atoi(string(name))
		if err != nil || n < 1 {
			return nil, fmt.Errorf("token %q has a key %q whose id %.40q is no version: give the service a label of its own", s.cfg.Token, s.cfg.Label, name)
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return out, nil
}

// wrapper is one version of the key.
type wrapper struct {
	s       *Service
	version int
}

func (w wrapper) ID() string { return w.s.prefix() + strconv.Itoa(w.version) }

// Wrap encrypts key in the token, with AES-256-GCM.
func (w wrapper) Wrap(ctx context.Context, key, aad []byte) ([]byte, error) {
	return w.s.one(ctx, wire.OpWrap, []byte(strconv.Itoa(w.version)), key, aad)
}

// Unwrap decrypts what Wrap encrypted.
func (w wrapper) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	return w.s.one(ctx, wire.OpUnwrap, []byte(strconv.Itoa(w.version)), wrapped, aad)
}

// one makes a call that answers with one field.
func (s *Service) one(ctx context.Context, op string, fields ...[]byte) ([]byte, error) {
	out, err := s.call(ctx, op, fields...)
	if err != nil {
		return nil, err
	}
	if len(out) != 1 {
		return nil, fmt.Errorf("the helper answered %s with %d fields", op, len(out))
	}
	return out[0], nil
}

// call asks the helper, starting it if none runs. A helper that does not answer
// in time is ended. One that had ended before is replaced.
func (s *Service) call(ctx context.Context, op string, fields ...[]byte) ([][]byte, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	request := append([][]byte{[]byte(op)}, fields...)
	waited := s.helper != nil // since an earlier call: it may have ended meanwhile
	reply, err := s.ask(ctx, request)
	if err != nil && waited && ctx.Err() == nil && op != wire.OpGenerate {
		reply, err = s.ask(ctx, request)
	}
	if err != nil {
		return nil, err
	}
	return s.understand(reply)
}

func (s *Service) ask(ctx context.Context, request [][]byte) ([][]byte, error) {
	if err := s.start(); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, s.helper.kill)
	reply, err := s.helper.exchange(request)
	if !stop() {
		s.end()
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("the helper for the token ended: %w%s", err, s.end())
	}
	return reply, nil
}

// understand turns a reply into its fields, or the error that it tells.
func (s *Service) understand(reply [][]byte) ([][]byte, error) {
	if len(reply) == 0 {
		return nil, errors.New("the helper gave an empty reply")
	}
	text := ""
	if len(reply) > 1 {
		text = string(reply[1])
	}
	switch string(reply[0]) {
	case wire.StatusOK:
		return reply[1:], nil
	case wire.StatusMismatch:
		return nil, custody.ErrNotWrapped
	case wire.StatusPIN:
		s.refused = s.pinFileTime()
		s.end()
		return nil, fmt.Errorf("token %q refuses the PIN in %s: it is not tried again until that file changes", s.cfg.Token, s.cfg.PINFile)
	}
	// The token may have been pulled out and put back: the next helper finds it.
	s.end()
	return nil, fmt.Errorf("token %q: %.300s", s.cfg.Token, text)
}

// start makes sure that a helper runs.
func (s *Service) start() error {
	switch {
	case s.closed:
		return errors.New("the key service is closed")
	case s.helper != nil:
		return nil
	case !s.refused.IsZero() && s.pinFileTime().Equal(s.refused):
		return fmt.Errorf("token %q refused the PIN in %s: put the right one there", s.cfg.Token, s.cfg.PINFile)
	}
	s.refused = time.Time{}
	h, err := startHelper(s.cfg)
	if err != nil {
		return fmt.Errorf("cannot start the helper for the token: %w", err)
	}
	s.helper = h
	return nil
}

// pinFileTime is when the PIN file last changed, the zero time if it is not
// there.
func (s *Service) pinFileTime() time.Time {
	info, err := os.Stat(s.cfg.PINFile)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// end ends the helper, if one runs, and returns the last that it said of why.
func (s *Service) end() string {
	h := s.helper
	if h == nil {
		return ""
	}
	s.helper = nil
	h.kill()
	s.ended.Go(h.wait)
	select {
	case <-h.ended:
	case <-time.After(endWait): // it is stuck in the kernel
	}
	if said := h.stderr.String(); said != "" {
		return ": " + said
	}
	return ""
}

// endWait is how long a helper that was killed is waited for.
const endWait = time.Second

// helper is a running lockbox-hsm.
type helper struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.ReadCloser
	stderr tail
	ended  chan struct{}
}

func startHelper(cfg Config) (*helper, error) {
	h := &helper{ended: make(chan struct{}), cmd: exec.Command(cfg.Helper, "--module", cfg.Module, "--token", cfg.Token, "--label", cfg.Label, "--pin-file", cfg.PINFile)}
	h.cmd.Stderr = &h.stderr
	h.cmd.WaitDelay = endWait / 2
	var err error
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if h.out, err = h.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	return h, h.cmd.Start()
}

func (h *helper) exchange(request [][]byte) ([][]byte, error) {
	if err := wire.Write(h.in, request); err != nil {
		return nil, err
	}
	return wire.Read(h.out)
}

func (h *helper) kill() {
	_ = h.cmd.Process.Kill() // it may have ended by itself
	h.in.Close()
	h.out.Close() // something that it started may still hold the other end
}

func (h *helper) wait() {
	_ = h.cmd.Wait() // killed, or as its stderr says
	close(h.ended)
}

// tail keeps the beginning of what a helper says, on one line.
type tail struct {
	mu   sync.Mutex
	text []byte // guarded by mu
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p[:min(len(p), 500-len(t.text))]...)
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.Join(bytes.Fields(t.text), []byte(" ")))
}
