// Package keyvaulttest is a key vault and its authority for tests: over TLS, with
// real RSA keys, answering as the REST interface of Azure Key Vault does, also
// when it refuses, and misbehaving when told to.
package keyvaulttest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// The identity that the authority knows, and the directory of the vault.
const (
	ClientID  = "5d1f1d47-lockbox"
	Secret    = "a secret of the service"
	Directory = "72f988bf-contoso"
)

// Key is one version of a key.
type Key struct {
	RSA           *rsa.PrivateKey
	Type          string
	Operations    []string
	Enabled       bool
	NotBefore     time.Time
	Expires       time.Time
	RecoveryLevel string
	Deleted       bool
	AnswersFor    string // another kid than its own, if set
}

// Server is a vault and its authority.
type Server struct {
	URL string // https://host:port, of both

	http *httptest.Server

	mu      sync.Mutex
	keys    map[string]*Key // by id; guarded by mu
	newest  map[string]string
	tokens  map[string]bool
	calls   []string
	fault   func(w http.ResponseWriter, r *http.Request) bool
	denied  bool
	unknown bool
	// Challenge is what the vault says to those without a token.
	Challenge string
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	s := Start()
	t.Cleanup(s.Close)
	return s
}

// Start starts a server. [Server.Close] must be called.
func Start() *Server {
	s := &Server{keys: map[string]*Key{}, newest: map[string]string{}, tokens: map[string]bool{}}
	s.http = httptest.NewTLSServer(http.HandlerFunc(s.serve))
	s.URL = s.http.URL
	s.Challenge = fmt.Sprintf(`Bearer authorization="%s/%s", resource="%s"`, s.URL, Directory, s.URL)
	return s
}

// Close ends the server. It may be called twice.
func (s *Server) Close() { s.http.Close() }

// Host is the host and port of the vault.
func (s *Server) Host() string { return strings.TrimPrefix(s.URL, "https://") }

// Transport trusts the server.
func (s *Server) Transport() http.RoundTripper { return s.http.Client().Transport }

// Certificate is the certificate to trust, in PEM.
func (s *Server) Certificate() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.http.Certificate().Raw})
}

var (
	pool   = map[int][]*rsa.PrivateKey{}
	poolMu sync.Mutex
)

// rsaKey returns the nth key of a size. They are slow to make, and tests may
// share them.
func rsaKey(bits, n int) *rsa.PrivateKey {
	poolMu.Lock()
	defer poolMu.Unlock()
	for len(pool[bits]) <= n {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			panic("keyvaulttest: " + err.Error())
		}
		pool[bits] = append(pool[bits], key)
	}
	return pool[bits][n]
}

// AddKey adds a version of a key, good for everything, and returns its address.
func (s *Server) AddKey(name string, bits int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := fmt.Sprintf("%s/keys/%s/%032x", s.URL, name, len(s.keys)+1)
	s.keys[id] = &Key{
		RSA: rsaKey(bits, len(s.keys)%3), Type: "RSA", Operations: []string{"wrapKey", "unwrapKey"}, Enabled: true, RecoveryLevel: "CustomizedRecoverable",
	}
	s.newest[name] = id
	return id
}

// Change changes a version of a key.
func (s *Server) Change(id string, f func(*Key)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.keys[id])
}

// Fault lets f answer a request in the server's place, if it returns true. nil
// ends that.
func (s *Server) Fault(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Deny takes access to all keys away, or gives it back.
func (s *Server) Deny(denied bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied = denied
}

// Forget makes the directory not know the client, or know it again.
func (s *Server) Forget(unknown bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unknown = unknown
}

// EndTokens makes all tokens invalid.
func (s *Server) EndTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

// Calls returns what was asked for since the last call, as "METHOD path".
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.calls = append(s.calls, r.Method+" "+r.URL.Path)
	fault := s.fault
	s.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.HasSuffix(r.URL.Path, "/oauth2/v2.0/token") {
		s.giveToken(w, r)
		return
	}
	s.answer(w, r)
}

func (s *Server) giveToken(w http.ResponseWriter, r *http.Request) {
	fail := func(name string, code int) {
		reply(w, http.StatusBadRequest, map[string]any{"error": name, "error_description": fmt.Sprintf("AADSTS%d", code), "error_codes": []int{code}})
	}
	switch err := r.ParseForm(); {
	case err != nil || r.Method != http.MethodPost || r.URL.RawQuery != "":
		fail("invalid_request", 900144)
	case r.URL.Path != "/"+Directory+"/oauth2/v2.0/token":
		fail("invalid_request", 90002)
	case s.unknown:
		fail("unauthorized_client", 700016)
	case r.PostForm.Get("client_id") != ClientID || r.PostForm.Get("client_secret") != Secret || r.PostForm.Get("grant_type") != "client_credentials":
		fail("invalid_client", 7000215)
	case r.PostForm.Get("scope") != s.URL+"/.default":
		fail("invalid_scope", 70011)
	default:
		token := rand.Text()
		s.tokens[token] = true
		reply(w, http.StatusOK, map[string]any{"token_type": "Bearer", "expires_in": 3599, "access_token": token})
	}
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case !ok || !s.tokens[bearer]:
		w.Header().Set("WWW-Authenticate", s.Challenge)
		refuse(w, http.StatusUnauthorized, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.", "")
		return
	case r.URL.Query().Get("api-version") != "7.4":
		refuse(w, http.StatusBadRequest, "BadParameter", "api-version", "")
		return
	case s.denied:
		refuse(w, http.StatusForbidden, "Forbidden", "The user, group or application does not have keys get permission on key vault.", "ForbiddenByPolicy")
		return
	}
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/") // keys, name, version, operation
	id := s.URL + r.URL.Path
	if len(path) == 2 {
		id = s.newest[path[1]]
	} else if len(path) == 4 {
		id = strings.TrimSuffix(id, "/"+path[3])
	}
	key := s.keys[id]
	switch {
	case key == nil || key.Deleted:
		refuse(w, http.StatusNotFound, "KeyNotFound", "A key with (name/id) was not found in this key vault.", "")
	case len(path) < 4 && r.Method == http.MethodGet:
		s.show(w, id, key)
	case len(path) == 4 && r.Method == http.MethodPost:
		operate(w, r, id, key, path[3])
	default:
		refuse(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "", "")
	}
}

func (s *Server) show(w http.ResponseWriter, id string, k *Key) {
	attributes := map[string]any{"enabled": k.Enabled, "recoveryLevel": k.RecoveryLevel, "recoverableDays": 90}
	for name, at := range map[string]time.Time{"nbf": k.NotBefore, "exp": k.Expires} {
		if !at.IsZero() {
			attributes[name] = at.Unix()
		}
	}
	reply(w, http.StatusOK, map[string]any{
		"key": map[string]any{
			"kid": k.kid(id), "kty": k.Type, "key_ops": k.Operations, "n": encode(k.RSA.N.Bytes()), "e": "AQAB",
		},
		"attributes": attributes,
	})
}

func (k *Key) kid(id string) string {
	if k.AnswersFor != "" {
		return k.AnswersFor
	}
	return id
}

// operate wraps and unwraps. As the real one it unwraps with an expired key.
func operate(w http.ResponseWriter, r *http.Request, id string, k *Key, operation string) {
	var in struct{ Alg, Value string }
	err := json.NewDecoder(r.Body).Decode(&in)
	value, err2 := base64.RawURLEncoding.DecodeString(in.Value)
	names := map[string]string{"wrapkey": "wrapKey", "unwrapkey": "unwrapKey"}
	switch {
	case err != nil || err2 != nil || in.Alg != "RSA-OAEP-256":
		refuse(w, http.StatusBadRequest, "BadParameter", "Property has invalid value", "")
		return
	case !k.Enabled:
		refuse(w, http.StatusForbidden, "Forbidden", "Operation "+names[operation]+" is not allowed on a disabled key.", "KeyDisabled")
		return
	case !slices.Contains(k.Operations, names[operation]):
		refuse(w, http.StatusForbidden, "Forbidden", "Operation "+operation+" is not permitted on this key.", "KeyOperationForbidden")
		return
	}
	var out []byte
	if operation == "wrapkey" {
		out, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, &k.RSA.PublicKey, value, nil)
	} else {
		out, err = rsa.DecryptOAEP(sha256.New(), nil, k.RSA, value, nil)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "BadParameter", "The parameter is incorrect.", "")
		return
	}
	reply(w, http.StatusOK, map[string]any{"kid": k.kid(id), "value": encode(out)})
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func refuse(w http.ResponseWriter, status int, code, message, inner string) {
	e := map[string]any{"code": code, "message": message}
	if inner != "" {
		e["innererror"] = map[string]any{"code": inner}
	}
	reply(w, status, map[string]any{"error": e})
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// Address is the address of a key without a version.
func Address(id string) string {
	u, err := url.Parse(id)
	if err != nil {
		panic("keyvaulttest: " + err.Error())
	}
	u.Path = u.Path[:strings.LastIndex(u.Path, "/")]
	return u.String()
}
