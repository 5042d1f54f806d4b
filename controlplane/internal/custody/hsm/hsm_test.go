//go:build cgo

package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/hsm"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/hsm/hsmtest"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/hsm/token"
)

// helper makes this test binary the helper program.
const helper = "LOCKBOX_TEST_HSM_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helper) != "" {
		os.Exit(token.Main())
	}
	goleak.VerifyTestMain(m)
}

// service is a service over a token of its own.
func service(t *testing.T) (*hsm.Service, hsm.Config) {
	cfg := hsmtest.New(t)
	t.Setenv(helper, "1")
	cfg.Helper = os.Args[0]
	return open(t, cfg), cfg
}

func open(t *testing.T, cfg hsm.Config) *hsm.Service {
	s := hsm.New(cfg)
	t.Cleanup(func() { s.Close() })
	return s
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

var (
	secret = []byte("the key of an order, 32 bytes...")
	aad    = []byte("order ORD-1001")
)

func TestWrapAndUnwrap(t *testing.T) {
	s, cfg := service(t)
	w := must(s.Current(t.Context()))(t)
	if want := "pkcs11:token=lockbox%20test;object=lockbox-master;type=secret-key;id=1"; w.ID() != want {
		t.Errorf("id %s, want %s", w.ID(), want)
	}
	wrapped := must(w.Wrap(t.Context(), secret, aad))(t)
	if bytes.Contains(wrapped, secret) {
		t.Error("it is not encrypted")
	}
	other := open(t, cfg) // after a restart
	again := must(other.Key(t.Context(), w.ID()))(t)
	if key := must(again.Unwrap(t.Context(), wrapped, aad))(t); !bytes.Equal(key, secret) {
		t.Errorf("it unwraps to %x", key)
	}
	if _, err := again.Unwrap(t.Context(), wrapped, []byte("order ORD-1002")); !errors.Is(err, custody.ErrNotWrapped) {
		t.Errorf("another order: %v", err)
	}
	for i := range wrapped {
		bad := bytes.Clone(wrapped)
		bad[i] ^= 1
		if _, err := again.Unwrap(t.Context(), bad, aad); !errors.Is(err, custody.ErrNotWrapped) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	for _, cut := range []int{0, 11, 12, 27, len(wrapped) - 1} {
		if _, err := again.Unwrap(t.Context(), wrapped[:cut], aad); !errors.Is(err, custody.ErrNotWrapped) {
			t.Errorf("cut to %d bytes: %v", cut, err)
		}
	}
}

// The program that make builds does the same as this test binary.
func TestTheProgram(t *testing.T) {
	cfg := hsmtest.New(t)
	cfg.Helper = filepath.Join(t.TempDir(), "lockbox-hsm")
	cmd := exec.Command("go", "build", "-o", cfg.Helper, "github.com/databox-lockbox/lockbox/controlplane/cmd/lockbox-hsm")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	w := must(open(t, cfg).Current(t.Context()))(t)
	wrapped := must(w.Wrap(t.Context(), secret, aad))(t)
	if key := must(w.Unwrap(t.Context(), wrapped, aad))(t); !bytes.Equal(key, secret) {
		t.Errorf("it unwraps to %x", key)
	}
}

func TestRotateAndRetire(t *testing.T) {
	s, _ := service(t)
	var ids []string
	var wraps [][]byte
	for range 11 { // past 9, where names sort otherwise than numbers
		w := must(s.Current(t.Context()))(t)
		ids, wraps = append(ids, w.ID()), append(wraps, must(w.Wrap(t.Context(), secret, aad))(t))
		if err := s.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if w := must(s.Current(t.Context()))(t); !strings.HasSuffix(w.ID(), ";id=12") {
		t.Errorf("current is %s", w.ID())
	}
	for i, id := range ids {
		if _, err := must(s.Key(t.Context(), id))(t).Unwrap(t.Context(), wraps[i], aad); err != nil {
			t.Errorf("%s does not unwrap any more: %v", id, err)
		}
	}
	if _, err := must(s.Key(t.Context(), ids[1]))(t).Unwrap(t.Context(), wraps[0], aad); !errors.Is(err, custody.ErrNotWrapped) {
		t.Errorf("another version unwraps: %v", err)
	}
	if err := s.Retire(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, id := range ids {
		_, err := must(s.Key(t.Context(), id))(t).Unwrap(t.Context(), wraps[i], aad)
		if err == nil || errors.Is(err, custody.ErrNotWrapped) {
			t.Errorf("%s was retired: %v", id, err)
		}
	}
	if w := must(s.Current(t.Context()))(t); !strings.HasSuffix(w.ID(), ";id=12") {
		t.Errorf("current is %s", w.ID())
	}
}

func TestForeignKeys(t *testing.T) {
	s, cfg := service(t)
	id := must(s.Current(t.Context()))(t).ID()
	for _, foreign := range []string{"", "service-key", "https://v.vault.azure.net/keys/a/1", id + "x", id + " ", strings.Replace(id, "lockbox-master", "other", 1), strings.TrimSuffix(id, "1") + "01"} {
		if _, err := s.Key(t.Context(), foreign); !errors.Is(err, custody.ErrForeignKey) {
			t.Errorf("%q: %v", foreign, err)
		}
	}
	cfg.Label, cfg.Create = "other", false
	if _, err := open(t, cfg).Current(t.Context()); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("a label without key: %v", err)
	}
}

// logged is cfg with a helper that writes a line for each start, with its
// command line.
func logged(t *testing.T, cfg hsm.Config) (hsm.Config, func() []string) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	script := filepath.Join(dir, "helper")
	text := fmt.Sprintf("#!/bin/sh\necho \"$$ $*\" >> %s\nexec %s \"$@\"\n", log, cfg.Helper)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	cfg.Helper = script
	return cfg, func() []string {
		data, err := os.ReadFile(log)
		if err != nil {
			return nil
		}
		return strings.Split(strings.TrimSpace(string(data)), "\n")
	}
}

func TestAWrongPINIsTriedOnce(t *testing.T) {
	_, cfg := service(t)
	cfg, starts := logged(t, cfg)
	if err := os.WriteFile(cfg.PINFile, []byte("wrong-pin\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, cfg)
	for range 5 {
		_, err := s.Current(t.Context())
		if err == nil || !strings.Contains(err.Error(), "refuse") || strings.Contains(err.Error(), "wrong-pin") {
			t.Errorf("got %v", err)
		}
	}
	if n := len(starts()); n != 1 {
		t.Errorf("the wrong PIN was tried %d times: a token locks itself for good", n)
	}
	if err := os.WriteFile(cfg.PINFile, []byte(hsmtest.PIN), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(cfg.PINFile, time.Time{}, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Current(t.Context()); err != nil {
		t.Errorf("with the right PIN: %v", err)
	}
	if strings.Contains(strings.Join(starts(), " "), hsmtest.PIN) {
		t.Error("the PIN is on the command line")
	}
}

func TestAPINFileThatOthersReadIsRefused(t *testing.T) {
	_, cfg := service(t)
	for what, spoil := range map[string]func() error{
		"others read it": func() error { return os.Chmod(cfg.PINFile, 0o644) },
		"empty":          func() error { return os.Truncate(cfg.PINFile, 0) },
		"gone":           func() error { return os.Remove(cfg.PINFile) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		s := open(t, cfg)
		if _, err := s.Current(t.Context()); err == nil || !strings.Contains(err.Error(), "PIN") {
			t.Errorf("%s: %v", what, err)
		}
		if err := errors.Join(os.WriteFile(cfg.PINFile, []byte(hsmtest.PIN), 0o600), os.Chmod(cfg.PINFile, 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Current(t.Context()); err != nil {
			t.Errorf("%s, and mended: %v", what, err)
		}
	}
}

func TestAHelperThatEndedIsReplaced(t *testing.T) {
	_, cfg := service(t)
	cfg, starts := logged(t, cfg)
	s := open(t, cfg)
	w := must(s.Current(t.Context()))(t)
	wrapped := must(w.Wrap(t.Context(), secret, aad))(t)
	pid := must(strconv.Atoi(strings.Fields(starts()[0])[0]))(t)
	process := must(os.FindProcess(pid))(t)
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Unwrap(t.Context(), wrapped, aad); err != nil {
		t.Errorf("after its helper was killed: %v", err)
	}
	if n := len(starts()); n != 2 {
		t.Errorf("%d helpers were started", n)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := w.Unwrap(t.Context(), wrapped, aad); err == nil {
		t.Error("it unwraps after its end")
	}
}

// What a helper may do that is broken, or not one at all.
func TestABadHelperMeansAnError(t *testing.T) {
	for what, script := range map[string]string{
		"says nothing":     "exec sleep 60",
		"a child":          "sleep 5",
		"hears nothing":    "exec sleep 60 <&-",
		"ends at once":     "echo out of luck >&2; exit 1",
		"talks nonsense":   "cat /dev/zero",
		"an endless reply": "printf '\\377\\377\\377\\377'; cat /dev/zero",
		"an empty reply":   "printf '\\0\\0\\0\\0'; exec sleep 60",
		"half a reply":     "printf '\\0\\0\\0\\7\\0\\0'; exec sleep 60",
		"a lying length":   "printf '\\0\\0\\0\\6\\0\\0\\0\\7ok'; exec sleep 60",
		"no version":       "printf '\\0\\0\\0\\13\\0\\0\\0\\2ok\\0\\0\\0\\1x'; exec sleep 60",
	} {
		t.Run(what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "helper")
			if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			s := open(t, hsm.Config{Helper: path, Token: "t", Label: "l"})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			begin := time.Now()
			w, err := s.Current(ctx)
			if err == nil || time.Since(begin) > 4*time.Second {
				t.Errorf("%v, %v after %s", w, err, time.Since(begin))
			}
			if what == "ends at once" && !strings.Contains(err.Error(), "out of luck") {
				t.Errorf("what it said is lost: %v", err)
			}
		})
	}
	s := open(t, hsm.Config{Helper: "/nowhere/lockbox-hsm"})
	if _, err := s.Current(t.Context()); err == nil || !strings.Contains(err.Error(), "/nowhere/lockbox-hsm") {
		t.Errorf("without a helper: %v", err)
	}
}

// A caller who gives up must not take the answer of the next.
func TestAnswersAreNotMixedUp(t *testing.T) {
	s, _ := service(t)
	w := must(s.Current(t.Context()))(t)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 20 {
				mine := fmt.Appendf(nil, "secret %d %d", i, j)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				if j%7 == i%7 {
					ctx, cancel = context.WithTimeout(t.Context(), time.Duration(j)*100*time.Microsecond)
				}
				wrapped, err := w.Wrap(ctx, mine, aad)
				if err == nil {
					var key []byte
					if key, err = w.Unwrap(t.Context(), wrapped, aad); err != nil || !bytes.Equal(key, mine) {
						t.Errorf("%q came back as %q, %v", mine, key, err)
					}
				}
				cancel()
			}
		})
	}
	all.Wait()
}

func TestATokenThatIsGoneMeansAnError(t *testing.T) {
	s, cfg := service(t)
	w := must(s.Current(t.Context()))(t)
	wrapped := must(w.Wrap(t.Context(), secret, aad))(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(cfg.PINFile)
	entries := must(os.ReadDir(dir))(t)
	for _, e := range entries {
		if e.IsDir() {
			if err := os.Rename(filepath.Join(dir, e.Name()), filepath.Join(t.TempDir(), "token")); err != nil {
				t.Fatal(err)
			}
		}
	}
	other := open(t, cfg)
	if _, err := other.Current(t.Context()); err == nil {
		t.Error("another key was made")
	}
	if _, err := must(other.Key(t.Context(), w.ID()))(t).Unwrap(t.Context(), wrapped, aad); err == nil || errors.Is(err, custody.ErrNotWrapped) {
		t.Errorf("got %v", err)
	}
}

// pkcs11Tool looks at the token, or changes it, from outside.
func pkcs11Tool(t *testing.T, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath("pkcs11-tool")
	if err != nil && os.Getenv("CI") != "true" {
		t.Skip("the test needs pkcs11-tool, of the Debian package opensc")
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("pkcs11-tool: %v: %s", err, out)
	}
	return out
}

// A key that was there and is not any more is not replaced in silence.
func TestALostKeyIsNotReplaced(t *testing.T) {
	s, cfg := service(t)
	must(s.Current(t.Context()))(t)
	args := []string{"--module", cfg.Module, "--token-label", cfg.Token, "--login", "--pin", hsmtest.PIN, "--delete-object", "--type", "secrkey", "--label", cfg.Label}
	pkcs11Tool(t, args...)
	if w, err := s.Current(t.Context()); err == nil {
		t.Errorf("another was made: %s", w.ID())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Create = false // as the control plane says where keys are in use
	if w, err := open(t, cfg).Current(t.Context()); err == nil {
		t.Errorf("another was made after a restart: %s", w.ID())
	}
}

// The keys cannot leave the token: another program with the PIN sees that.
func TestKeysCannotLeaveTheToken(t *testing.T) {
	s, cfg := service(t)
	must(s.Current(t.Context()))(t)
	out := pkcs11Tool(t, "--module", cfg.Module, "--token-label", cfg.Token, "--login", "--pin", hsmtest.PIN, "--list-objects")
	for _, want := range []string{"Secret Key Object; AES length 32", "lockbox-master", "sensitive", "always sensitive", "never extractable"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}
