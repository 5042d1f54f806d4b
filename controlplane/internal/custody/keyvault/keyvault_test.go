package keyvault_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/keyvault"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody/keyvault/keyvaulttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func configFor(s *keyvaulttest.Server) keyvault.Config {
	return keyvault.Config{
		Authority: s.URL, Hosts: []string{s.Host()}, ClientID: keyvaulttest.ClientID,
		Secret:    func() ([]byte, error) { return []byte(keyvaulttest.Secret), nil },
		Transport: s.Transport(),
	}
}

// vault is a server with one key and a client of it.
func vault(t *testing.T) (*keyvaulttest.Server, *keyvault.Client, string) {
	s := keyvaulttest.New(t)
	return s, keyvault.New(configFor(s)), s.AddKey("orders", 2048)
}

var (
	secret = []byte("the key of an order, 32 bytes...")
	aad    = []byte("order ORD-1001")
)

func wrap(t *testing.T, c *keyvault.Client, id string) (custody.KeyWrapper, []byte) {
	t.Helper()
	w, err := c.Find(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := w.Wrap(t.Context(), secret, aad)
	if err != nil {
		t.Fatal(err)
	}
	return w, wrapped
}

func within5s(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestWrapAndUnwrap(t *testing.T) {
	s, c, id := vault(t)
	w, wrapped := wrap(t, c, id)
	if w.ID() != id || bytes.Contains(wrapped, secret) {
		t.Errorf("id %s, wrapped %x", w.ID(), wrapped)
	}
	s.Calls()
	key, err := w.Unwrap(t.Context(), wrapped, aad)
	if err != nil || !bytes.Equal(key, secret) {
		t.Fatalf("%x, %v", key, err)
	}
	if calls := s.Calls(); len(calls) != 2 {
		t.Errorf("an unwrap takes %v: want one look at the key and one unwrap, with the token from before", calls)
	}
	if _, err := w.Unwrap(t.Context(), wrapped, []byte("order ORD-1002")); !errors.Is(err, custody.ErrNotWrapped) {
		t.Errorf("another order: %v", err)
	}
	for i := range wrapped {
		bad := bytes.Clone(wrapped)
		bad[i] ^= 1
		if _, err := w.Unwrap(t.Context(), bad, aad); err == nil {
			t.Fatalf("byte %d changed: it unwraps", i)
		}
	}
	for _, cut := range []int{0, 1, 2, 3, 100, 259, len(wrapped) - 1} {
		if _, err := w.Unwrap(t.Context(), wrapped[:cut], aad); err == nil {
			t.Errorf("cut to %d bytes: it unwraps", cut)
		}
	}
}

func TestTheNewestVersionIsFound(t *testing.T) {
	s, c, id := vault(t)
	w, err := c.Find(t.Context(), keyvaulttest.Address(id))
	if err != nil || w.ID() != id {
		t.Fatalf("%v, %v", w, err)
	}
	newer := s.AddKey("orders", 2048)
	if w, err := c.Find(t.Context(), keyvaulttest.Address(id)); err != nil || w.ID() != newer {
		t.Errorf("%v, %v", w, err)
	}
	service, err := keyvault.NewService(c, keyvaulttest.Address(id))
	if err != nil {
		t.Fatal(err)
	}
	if w, err := service.Current(t.Context()); err != nil || w.ID() != newer {
		t.Errorf("current %v, %v", w, err)
	}
	if w, err := service.Key(t.Context(), id); err != nil || w.ID() != id {
		t.Errorf("the old one: %v, %v", w, err)
	}
	for _, foreign := range []string{"service-key", "pkcs11:token=a", s.URL + "/keys/others/1", "https://evil.example/keys/orders/1"} {
		if _, err := service.Key(t.Context(), foreign); !errors.Is(err, custody.ErrForeignKey) {
			t.Errorf("%s: %v", foreign, err)
		}
	}
}

// named fails the test unless err is the refusal of that name, with advice.
func named(t *testing.T, err error, name string) {
	t.Helper()
	refusal, ok := errors.AsType[*custody.KeyRefusal](err)
	if !ok || refusal.Name != name || refusal.Reason == "" || refusal.Advice == "" {
		t.Errorf("got %v, want %s", err, name)
	}
}

func TestAKeyThatCannotBeReliedUponIsNotFound(t *testing.T) {
	for _, c := range []struct {
		what, name string
		change     func(*keyvaulttest.Key)
	}{
		{"disabled", "SsemUserErrorEncryptionKeyDisabled", func(k *keyvaulttest.Key) { k.Enabled = false }},
		{"expired", "SsemUserErrorEncryptionKeyExpired", func(k *keyvaulttest.Key) { k.Expires = time.Now().Add(-time.Second) }},
		{"not yet valid", "SsemUserErrorEncryptionKeyExpired", func(k *keyvaulttest.Key) { k.NotBefore = time.Now().Add(time.Hour) }},
		{"soft-deleted", "SsemUserErrorKeyDetailsNotFound", func(k *keyvaulttest.Key) { k.Deleted = true }},
		{"no purge protection", "SsemUserErrorSoftDeleteAndPurgeProtectionNotEnabled", func(k *keyvaulttest.Key) { k.RecoveryLevel = "Recoverable+Purgeable" }},
		{"no purge protection, other days", "SsemUserErrorSoftDeleteAndPurgeProtectionNotEnabled", func(k *keyvaulttest.Key) { k.RecoveryLevel = "CustomizedRecoverable+Purgeable" }},
		{"no soft delete", "SsemUserErrorSoftDeleteAndPurgeProtectionNotEnabled", func(k *keyvaulttest.Key) { k.RecoveryLevel = "Purgeable" }},
		{"nothing said", "SsemUserErrorSoftDeleteAndPurgeProtectionNotEnabled", func(k *keyvaulttest.Key) { k.RecoveryLevel = "" }},
		{"elliptic curve", "SsemUserErrorEncryptionKeyTypeNotSupported", func(k *keyvaulttest.Key) { k.Type = "EC" }},
		{"no unwrap", "SsemUserErrorKeyVaultBadRequestException", func(k *keyvaulttest.Key) { k.Operations = []string{"wrapKey"} }},
		{"no wrap", "SsemUserErrorKeyVaultBadRequestException", func(k *keyvaulttest.Key) { k.Operations = []string{"unwrapKey", "encrypt"} }},
	} {
		t.Run(c.what, func(t *testing.T) {
			s, client, id := vault(t)
			s.Change(id, c.change)
			_, err := client.Find(t.Context(), id)
			named(t, err, c.name)
		})
	}
	t.Run("1024 bits", func(t *testing.T) {
		t.Setenv("GODEBUG", "rsa1024min=0")
		s, client, _ := vault(t)
		_, err := client.Find(t.Context(), s.AddKey("weak", 1024))
		named(t, err, "SsemUserErrorEncryptionKeyTypeNotSupported")
	})
	t.Run("control", func(t *testing.T) {
		s, client, id := vault(t)
		s.Change(id, func(k *keyvaulttest.Key) {
			k.Type, k.RecoveryLevel = "RSA-HSM", "Recoverable+ProtectedSubscription"
			k.NotBefore, k.Expires = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		})
		wrap(t, client, id)
	})
}

func TestTakenBackAfterWrapping(t *testing.T) {
	for _, c := range []struct {
		what, name string
		take       func(*keyvaulttest.Server, string)
	}{
		{"disabled", "SsemUserErrorEncryptionKeyDisabled", func(s *keyvaulttest.Server, id string) {
			s.Change(id, func(k *keyvaulttest.Key) { k.Enabled = false })
		}},
		{"expired", "SsemUserErrorEncryptionKeyExpired", func(s *keyvaulttest.Server, id string) {
			s.Change(id, func(k *keyvaulttest.Key) { k.Expires = time.Now().Add(-time.Second) })
		}},
		{"deleted", "SsemUserErrorKeyDetailsNotFound", func(s *keyvaulttest.Server, id string) {
			s.Change(id, func(k *keyvaulttest.Key) { k.Deleted = true })
		}},
		{"access taken", "SsemUserErrorKeyVaultBadRequestException", func(s *keyvaulttest.Server, _ string) { s.Deny(true) }},
		{"permission to unwrap taken", "SsemUserErrorKeyVaultBadRequestException", func(s *keyvaulttest.Server, id string) {
			s.Change(id, func(k *keyvaulttest.Key) { k.Operations = []string{"wrapKey"} })
		}},
		{"identity gone", "SsemUserErrorKekUserIdentityNotFound", func(s *keyvaulttest.Server, _ string) { s.EndTokens(); s.Forget(true) }},
		{"firewall", "SsemUserErrorKeyVaultBadRequestException", func(s *keyvaulttest.Server, _ string) {
			s.Fault(says(403, `{"error":{"code":"Forbidden","message":"Client address is not authorized","innererror":{"code":"ForbiddenByFirewall"}}}`))
		}},
		{"disabled, by status only", "SsemUserErrorEncryptionKeyDisabled", func(s *keyvaulttest.Server, _ string) {
			s.Fault(says(403, `{"error":{"code":"Forbidden","message":"Operation get is not allowed on a disabled key."}}`))
		}},
		{"forbidden, in no words", "SsemUserErrorKeyVaultBadRequestException", func(s *keyvaulttest.Server, _ string) { s.Fault(says(403, `<html>`)) }},
		{"deleted and recoverable", "SsemUserErrorKeyDetailsNotFound", func(s *keyvaulttest.Server, _ string) {
			s.Fault(says(409, `{"error":{"code":"Conflict","innererror":{"code":"ObjectIsDeletedButRecoverable"}}}`))
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			s, client, id := vault(t)
			w, wrapped := wrap(t, client, id)
			if _, err := w.Unwrap(t.Context(), wrapped, aad); err != nil {
				t.Fatal(err) // the control
			}
			c.take(s, id)
			_, err := w.Unwrap(within5s(t), wrapped, aad)
			named(t, err, c.name)
		})
	}
}

func TestAVaultWithoutAddressIsNotFound(t *testing.T) {
	s, _, id := vault(t)
	cfg := configFor(s)
	cfg.Transport = &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.DNSError{Err: "no such host", Name: "gone.vault.azure.net", IsNotFound: true}
	}}
	_, err := keyvault.New(cfg).Find(within5s(t), id)
	named(t, err, "SsemUserErrorKeyVaultDetailsNotFound")
}

func TestAddresses(t *testing.T) {
	s, _, id := vault(t)
	cfg := configFor(s)
	cfg.Hosts = []string{"vault.azure.net"}
	c := keyvault.New(cfg)
	s.Calls()
	for raw, name := range map[string]string{
		"":                                              "SsemUserErrorInvalidKeyVaultUrl",
		"contoso":                                       "SsemUserErrorInvalidKeyVaultUrl",
		"https://\x7f":                                  "SsemUserErrorInvalidKeyVaultUrl",
		"http://v.vault.azure.net/keys/a":               "SsemUserErrorKeyVaultUrlWithInvalidScheme",
		"file://v.vault.azure.net/keys/a":               "SsemUserErrorKeyVaultUrlWithInvalidScheme",
		"https://evil.example/keys/a":                   "SsemUserErrorKeyVaultUrlInvalidHost",
		"https://169.254.169.254/keys/a":                "SsemUserErrorKeyVaultUrlInvalidHost",
		"https://evilvault.azure.net/keys/a":            "SsemUserErrorKeyVaultUrlInvalidHost",
		"https://v.vault.azure.net:444/keys/a":          "SsemUserErrorKeyVaultUrlInvalidHost",
		"https://v.vault.azure.net.evil.example/keys/a": "SsemUserErrorKeyVaultUrlInvalidHost",
		"https://v.vault.azure.net@evil.example/keys/a": "SsemUserErrorKeyVaultUrlInvalidHost",
		"https://u:p@v.vault.azure.net/keys/a":          "SsemUserErrorInvalidKeyVaultUrl",
		"https://v.vault.azure.net/secrets/a":           "SsemUserErrorInvalidKeyVaultUrl",
		"https://v.vault.azure.net/keys/a/b/c":          "SsemUserErrorInvalidKeyVaultUrl",
		"https://v.vault.azure.net/keys/../x":           "SsemUserErrorInvalidKeyVaultUrl",
		"https://v.vault.azure.net/keys/a?api=1":        "SsemUserErrorInvalidKeyVaultUrl",
		"https://v.vault.azure.net/keys/a#x":            "SsemUserErrorInvalidKeyVaultUrl",
		"https://v.vault.azure.net/keys/a%2Fb":          "SsemUserErrorInvalidKeyVaultUrl",
		id:                                              "SsemUserErrorKeyVaultUrlInvalidHost",
		"https://v.vault.azure.net/keys/" + strings.Repeat("a", 600): "SsemUserErrorInvalidKeyVaultUrl",
	} {
		_, err := c.Find(t.Context(), raw)
		named(t, err, name)
	}
	if calls := s.Calls(); len(calls) != 0 {
		t.Errorf("it asked all the same: %v", calls)
	}
	if w, err := c.Key(t.Context(), "https://V.vault.azure.net/keys/a/1"); err != nil || w.ID() != "https://v.vault.azure.net/keys/a/1" {
		t.Errorf("%v, %v", w, err)
	}
}

func says(status int, body string, header ...string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/token") {
			return false
		}
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		fmt.Fprint(w, body)
		return true
	}
}

func TestWhatPassesIsTriedAgain(t *testing.T) {
	for _, status := range []int{408, 429, 500, 502, 503, 504} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			s, c, id := vault(t)
			w, wrapped := wrap(t, c, id)
			var n atomic.Int32
			s.Fault(func(rw http.ResponseWriter, r *http.Request) bool {
				return n.Add(1)%3 != 0 && says(status, "")(rw, r)
			})
			if _, err := w.Unwrap(within5s(t), wrapped, aad); err != nil {
				t.Errorf("twice: %v", err)
			}
			s.Fault(says(status, ""))
			if _, err := w.Unwrap(within5s(t), wrapped, aad); err == nil || !strings.Contains(err.Error(), fmt.Sprint(status)) {
				t.Errorf("without end: %v", err)
			}
		})
	}
}

func TestRetryAfterIsHeeded(t *testing.T) {
	s, c, id := vault(t)
	w, wrapped := wrap(t, c, id)
	var first, second time.Time
	s.Fault(func(rw http.ResponseWriter, r *http.Request) bool {
		if first.IsZero() {
			first = time.Now()
			return says(429, "", "Retry-After", "1")(rw, r)
		}
		if second.IsZero() {
			second = time.Now()
		}
		return false
	})
	if _, err := w.Unwrap(within5s(t), wrapped, aad); err != nil || second.Sub(first) < time.Second {
		t.Errorf("%v, asked again after %s", err, second.Sub(first))
	}
	for _, long := range []string{"3600", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)} {
		s.Fault(says(429, "", "Retry-After", long))
		begin := time.Now()
		if _, err := w.Unwrap(within5s(t), wrapped, aad); err == nil || time.Since(begin) > 3*time.Second {
			t.Errorf("told to wait for an hour: %v after %s", err, time.Since(begin))
		}
	}
	s.Fault(says(429, "", "Retry-After", "-5"))
	if _, err := w.Unwrap(within5s(t), wrapped, aad); err == nil {
		t.Error("it unwraps")
	}
}

func TestASlowVaultMeansARefusalInTime(t *testing.T) {
	for what, hang := range map[string]func(http.ResponseWriter, *http.Request){
		"no answer":     func(http.ResponseWriter, *http.Request) {},
		"half a header": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200); w.(http.Flusher).Flush() },
		"a drip": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				fmt.Fprint(w, " ")
				w.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			s, c, id := vault(t)
			w, wrapped := wrap(t, c, id)
			s.Fault(func(rw http.ResponseWriter, r *http.Request) bool {
				hang(rw, r)
				<-r.Context().Done()
				return true
			})
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			begin := time.Now()
			if _, err := w.Unwrap(ctx, wrapped, aad); err == nil || time.Since(begin) > 2*time.Second {
				t.Errorf("%v after %s", err, time.Since(begin))
			}
		})
	}
}

func TestWhatAVaultMustNotSay(t *testing.T) {
	huge := func(w http.ResponseWriter, _ *http.Request) bool {
		for range 1000 {
			if _, err := w.Write(bytes.Repeat([]byte(" "), 1<<20)); err != nil {
				break
			}
		}
		return true
	}
	only := func(part string, f func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			return strings.HasSuffix(r.URL.Path, part) && f(w, r)
		}
	}
	for what, set := range map[string]func(*keyvaulttest.Server, string){
		"a huge answer":            func(s *keyvaulttest.Server, _ string) { s.Fault(huge) },
		"not JSON":                 func(s *keyvaulttest.Server, _ string) { s.Fault(says(200, "<html>")) },
		"nothing":                  func(s *keyvaulttest.Server, _ string) { s.Fault(says(200, "")) },
		"an empty object":          func(s *keyvaulttest.Server, _ string) { s.Fault(says(200, "{}")) },
		"a redirect":               func(s *keyvaulttest.Server, _ string) { s.Fault(says(302, "", "Location", s.URL+"/keys/orders/1")) },
		"status 200 for a refusal": func(s *keyvaulttest.Server, _ string) { s.Fault(says(200, `{"error":{"code":"Forbidden"}}`)) },
		"another key": func(s *keyvaulttest.Server, id string) {
			s.Change(id, func(k *keyvaulttest.Key) { k.AnswersFor = id + "0" })
		},
		"no key id": func(s *keyvaulttest.Server, id string) {
			s.Change(id, func(k *keyvaulttest.Key) { k.AnswersFor = "x" })
		},
		"another key, unwrapping": func(s *keyvaulttest.Server, id string) {
			s.Fault(only("/unwrapkey", says(200, `{"kid":"`+id+`0","value":"AAAA"}`)))
		},
		"too short a key": func(s *keyvaulttest.Server, id string) {
			s.Fault(only("/unwrapkey", says(200, `{"kid":"`+id+`","value":"AAAA"}`)))
		},
		"another key's bytes": func(s *keyvaulttest.Server, id string) {
			s.Fault(only("/unwrapkey", says(200, `{"kid":"`+id+`","value":"`+strings.Repeat("A", 43)+`"}`)))
		},
		"not base64": func(s *keyvaulttest.Server, id string) {
			s.Fault(only("/unwrapkey", says(200, `{"kid":"`+id+`","value":"***"}`)))
		},
	} {
		t.Run(what, func(t *testing.T) {
			s, c, id := vault(t)
			w, wrapped := wrap(t, c, id)
			set(s, id)
			key, err := w.Unwrap(within5s(t), wrapped, aad)
			if err == nil {
				t.Fatalf("it unwraps to %x", key)
			}
			if _, refused := errors.AsType[*custody.KeyRefusal](err); refused {
				t.Errorf("%v: the customer is told that their key is at fault", err)
			}
			if len(err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

// The secret goes to the configured authority only, and the token is for vaults
// only, whatever a vault says.
func TestTheSecretGoesToTheAuthorityOnly(t *testing.T) {
	evil := keyvaulttest.New(t)
	for what, say := range map[string]func(*keyvaulttest.Server) string{
		"another authority":   func(s *keyvaulttest.Server) string { return bearer(evil.URL+"/"+keyvaulttest.Directory, s.URL) },
		"a longer host":       func(s *keyvaulttest.Server) string { return bearer(s.URL+".evil.example/d", s.URL) },
		"a name before an at": func(s *keyvaulttest.Server) string { return bearer(s.URL+"@evil.example/d", s.URL) },
		"another path":        func(s *keyvaulttest.Server) string { return bearer(s.URL+"/d/../../x", s.URL) },
		"another resource": func(s *keyvaulttest.Server) string {
			return bearer(s.URL+"/"+keyvaulttest.Directory, "https://graph.example")
		},
		"a vault's resource":   func(s *keyvaulttest.Server) string { return bearer(s.URL+"/"+keyvaulttest.Directory, evil.URL) },
		"http":                 func(s *keyvaulttest.Server) string { return bearer("http://"+s.Host()+"/d", s.URL) },
		"nothing":              func(*keyvaulttest.Server) string { return "" },
		"another kind":         func(s *keyvaulttest.Server) string { return "Basic realm=x" },
		"an empty directory":   func(s *keyvaulttest.Server) string { return bearer(s.URL+"/", s.URL) },
		"quotes without end":   func(s *keyvaulttest.Server) string { return `Bearer authorization="` + s.URL },
		"a newline in a value": func(s *keyvaulttest.Server) string { return bearer(s.URL+"/a b", s.URL) },
	} {
		t.Run(what, func(t *testing.T) {
			s, c, id := vault(t)
			s.Challenge = say(s)
			evil.Calls()
			if _, err := c.Find(within5s(t), id); err == nil {
				t.Error("it went on")
			}
			for _, call := range append(s.Calls(), evil.Calls()...) {
				if strings.Contains(call, "token") {
					t.Errorf("the secret was sent: %s", call)
				}
			}
		})
	}
}

func bearer(authority, resource string) string {
	return fmt.Sprintf(`Bearer authorization="%s", resource="%s"`, authority, resource)
}

func TestTokens(t *testing.T) {
	s, _, id := vault(t)
	now := time.Now()
	cfg := configFor(s)
	cfg.Now = func() time.Time { return now }
	c := keyvault.New(cfg)
	logins := func() int {
		return len(slices.DeleteFunc(s.Calls(), func(call string) bool { return !strings.Contains(call, "token") }))
	}
	_, wrapped := wrap(t, c, id)
	w, _ := wrap(t, c, id)
	if n := logins(); n != 1 {
		t.Errorf("%d logins for four calls", n)
	}
	now = now.Add(59 * time.Minute) // one minute before its end
	wrap(t, c, id)
	if n := logins(); n != 1 {
		t.Errorf("%d logins with a token that is about to end", n)
	}
	s.EndTokens()
	if _, err := w.Unwrap(t.Context(), wrapped, aad); err != nil || logins() != 1 {
		t.Errorf("a token that was revoked: %v", err)
	}
	cfg.Secret = func() ([]byte, error) { return []byte("wrong"), nil }
	if _, err := keyvault.New(cfg).Find(t.Context(), id); err == nil || strings.Contains(err.Error(), "wrong") {
		t.Errorf("a wrong secret: %v", err)
	}
	cfg.Secret = func() ([]byte, error) { return nil, errors.New("no such file") }
	if _, err := keyvault.New(cfg).Find(t.Context(), id); err == nil {
		t.Error("without a secret it found the key")
	}
	s.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/token") {
			return false
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "a\r\nX-Evil: 1", "expires_in": 1})
		return true
	})
	if _, err := keyvault.New(configFor(s)).Find(t.Context(), id); err == nil {
		t.Error("a token with a newline was used")
	}
}

func TestAVaultThatIsDownIsNoRefusal(t *testing.T) {
	s, c, id := vault(t)
	w, wrapped := wrap(t, c, id)
	s.Close()
	_, err := w.Unwrap(within5s(t), wrapped, aad)
	if _, refused := errors.AsType[*custody.KeyRefusal](err); err == nil || refused {
		t.Errorf("got %v", err)
	}
}
