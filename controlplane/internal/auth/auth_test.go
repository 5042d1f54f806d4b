package auth_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/databox-lockbox/lockbox/certs"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// recorder keeps what it is told to record. The real one is on a higher floor.
type recorder struct {
	mu  sync.Mutex
	ops []auditlog.Operation
}

func (r *recorder) Record(_ context.Context, _ *store.Tx, rec auditlog.Record) (int64, error) {
	if _, err := rec.Encode(); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, rec.Operation)
	return int64(len(r.ops)), nil
}

func (r *recorder) has(op auditlog.Operation) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.ops, op)
}

type world struct {
	t     *testing.T
	auth  *auth.Service
	store *store.Store
	log   recorder
	now   time.Time
	roots certs.Roots
}

var admin = auth.Caller{Person: "adam@provider.example", Role: auth.Admin}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, store: storetest.New(t), now: time.Now().Truncate(time.Millisecond)}
	authorities, _, err := certs.Open(filepath.Join(t.TempDir(), "authority"))
	if err != nil {
		t.Fatal(err)
	}
	authorities.Now = func() time.Time { return w.now }
	w.roots = authorities.Roots()
	w.auth = auth.New(auth.Config{
		Store: w.store, Audit: &w.log, Authority: authorities, Now: func() time.Time { return w.now },
		May: func(r auth.Role) []string { return []string{"/" + string(r)} },
	})
	storetest.Tx(t, w.store, func(ctx context.Context, tx *store.Tx) error {
		for _, id := range []protocol.TenantID{"contoso", "fabrikam"} {
			if err := tx.InsertTenant(ctx, &store.Tenant{ID: id, WithoutLockbox: "deny"}); err != nil {
				return err
			}
		}
		return nil
	})
	return w
}

// sshKey makes a line of authorized_keys.
func sshKey(t *testing.T) string {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var blob []byte
	for _, field := range [][]byte{[]byte("ssh-ed25519"), pub} {
		blob = binary.BigEndian.AppendUint32(blob, uint32(len(field)))
		blob = append(blob, field...)
	}
	return "ssh-ed25519 " + base64.StdEncoding.EncodeToString(blob) + " somebody@laptop"
}

func (w *world) create(caller auth.Caller, name, role, tenant string, keys ...string) (string, error) {
	resp, err := w.auth.CreatePerson(w.t.Context(), caller, &lockboxv1.CreatePersonRequest{Name: name, Role: role, Tenant: tenant, SshKeys: keys})
	return resp.GetLoginToken(), err
}

func (w *world) mustCreate(name, role, tenant string, keys ...string) string {
	w.t.Helper()
	token, err := w.create(admin, name, role, tenant, keys...)
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

func newKey(t *testing.T) (key ed25519.PrivateKey, csr []byte) {
	t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if csr, err = certs.NewCSR(key); err != nil {
		t.Fatal(err)
	}
	return key, csr
}

// login returns the state of a connection with the certificate that the token
// brought.
func (w *world) login(token string) (tls.ConnectionState, error) {
	w.t.Helper()
	_, csr := newKey(w.t)
	return w.loginFor(token, csr)
}

func (w *world) loginFor(token string, csr []byte) (tls.ConnectionState, error) {
	w.t.Helper()
	resp, err := w.auth.Login(w.t.Context(), &lockboxv1.LoginRequest{Token: token, Csr: csr})
	if err != nil {
		return tls.ConnectionState{}, err
	}
	return state(w.t, resp.Chain), nil
}

func state(t *testing.T, chain [][]byte) tls.ConnectionState {
	t.Helper()
	var list []*x509.Certificate
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	return tls.ConnectionState{HandshakeComplete: true, Version: tls.VersionTLS13, PeerCertificates: list, VerifiedChains: [][]*x509.Certificate{list}}
}

func wantCode(t *testing.T, what string, err error, want protocol.Code) {
	t.Helper()
	if protocol.CodeOf(err) != want {
		t.Errorf("%s: got %v, want %q", what, err, want)
	}
}

func TestLoginOnce(t *testing.T) {
	w := newWorld(t)
	token := w.mustCreate("erin@provider.example", "engineer", "", sshKey(t))
	parts := strings.Split(token, ".")
	if len(parts) != 4 || parts[0] != "lbxlogin" || "sha256:"+parts[3] != certs.Pin(w.roots.Servers) {
		t.Errorf("token %q", token)
	}
	conn, err := w.login(token)
	if err != nil {
		t.Fatal(err)
	}
	caller, err := w.auth.Identify(t.Context(), conn)
	if err != nil || caller.Person != "erin@provider.example" || caller.Role != auth.Engineer || caller.Tenant != "" {
		t.Fatalf("identified %+v, %v", caller, err)
	}
	who, err := w.auth.WhoAmI(t.Context(), caller, &lockboxv1.WhoAmIRequest{})
	if err != nil || who.Person.Name != "erin@provider.example" || len(who.Person.KeyFingerprints) != 1 || who.May[0] != "/engineer" || who.CertificateExpires == 0 {
		t.Errorf("who am I: %v, %v", who, err)
	}
	_, err = w.login(token)
	wantCode(t, "a second login with the token", err, protocol.CodeUnauthenticated)
	if !w.log.has(auditlog.OpLogin) || !w.log.has(auditlog.OpRefuseLogin) || !w.log.has(auditlog.OpCreateUser) {
		t.Errorf("recorded %v", w.log.ops)
	}
}

func TestLoginTokenExpires(t *testing.T) {
	w := newWorld(t)
	token := w.mustCreate("erin@provider.example", "engineer", "")
	w.now = w.now.Add(auth.TokenTTL)
	_, err := w.login(token)
	wantCode(t, "a token of 24 hours", err, protocol.CodeUnauthenticated)
	w.now = w.now.Add(-time.Second) // control
	if _, err := w.login(token); err != nil {
		t.Error(err)
	}
}

func TestGuessingLocksOut(t *testing.T) {
	w := newWorld(t)
	token := w.mustCreate("erin@provider.example", "engineer", "")
	parts := strings.Split(token, ".")
	wrong := strings.Join([]string{parts[0], parts[1], strings.Repeat("0", 64), parts[3]}, ".")
	for range auth.MaxFailures {
		_, err := w.login(wrong)
		wantCode(t, "a wrong secret", err, protocol.CodeUnauthenticated)
	}
	_, err := w.login(token)
	wantCode(t, "the right secret after five wrong ones", err, protocol.CodeLimit)
	w.now = w.now.Add(auth.LockOut - time.Second)
	_, err = w.login(token)
	wantCode(t, "just before the lock-out ends", err, protocol.CodeLimit)
	w.now = w.now.Add(time.Second)
	if _, err := w.login(token); err != nil {
		t.Errorf("after the lock-out: %v", err)
	}
}

// Who has a used token cannot fill the log with it.
func TestAUsedTokenIsLockedToo(t *testing.T) {
	w := newWorld(t)
	token := w.mustCreate("erin@provider.example", "engineer", "")
	if _, err := w.login(token); err != nil {
		t.Fatal(err)
	}
	for range auth.MaxFailures {
		_, err := w.login(token)
		wantCode(t, "a used token", err, protocol.CodeUnauthenticated)
	}
	before := len(w.log.ops)
	for range 50 {
		_, err := w.login(token)
		wantCode(t, "a used token, again and again", err, protocol.CodeLimit)
	}
	if n := len(w.log.ops) - before; n != 0 {
		t.Errorf("%d records of a locked token", n)
	}
}

func TestMalformedTokensTeachNothing(t *testing.T) {
	w := newWorld(t)
	token := w.mustCreate("erin@provider.example", "engineer", "")
	_, unknown := w.login("lbxlogin.ffffffffffffffff.00.00")
	for _, bad := range []string{"", "lbxlogin", "lbxjoin" + strings.TrimPrefix(token, "lbxlogin"), token + ".x", strings.Repeat("a.", 3) + "a", strings.Repeat("x", 1<<16)} {
		_, err := w.login(bad)
		wantCode(t, bad[:min(len(bad), 40)], err, protocol.CodeUnauthenticated)
		if err.Error() != unknown.Error() {
			t.Errorf("%.40q gave another answer than an unknown token: %v", bad, err)
		}
	}
}

func TestBadRequestDoesNotSpendTheToken(t *testing.T) {
	w := newWorld(t)
	token := w.mustCreate("erin@provider.example", "engineer", "")
	_, err := w.auth.Login(t.Context(), &lockboxv1.LoginRequest{Token: token, Csr: []byte("nonsense")})
	wantCode(t, "nonsense for a request", err, protocol.CodeInvalid)
	if _, err := w.login(token); err != nil {
		t.Errorf("the token was spent: %v", err)
	}
}

func TestRemovalTakesEffectAtOnce(t *testing.T) {
	w := newWorld(t)
	key := sshKey(t)
	conn, err := w.login(w.mustCreate("erin@provider.example", "engineer", "", key))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.auth.Identify(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	_, err = w.auth.RemovePerson(t.Context(), admin, &lockboxv1.RemovePersonRequest{Name: string(admin.Person)})
	wantCode(t, "an admin removing themselves", err, protocol.CodeForbidden)
	if _, err := w.auth.RemovePerson(t.Context(), admin, &lockboxv1.RemovePersonRequest{Name: "erin@provider.example"}); err != nil {
		t.Fatal(err)
	}
	_, err = w.auth.Identify(t.Context(), conn)
	wantCode(t, "a removed person's certificate", err, protocol.CodeUnauthenticated)
	_, err = w.create(admin, "erin@provider.example", "admin", "")
	wantCode(t, "the name of a removed person", err, protocol.CodeConflict)
	if _, err := w.create(admin, "edda@provider.example", "engineer", "", key); err != nil {
		t.Errorf("the key of a removed person is still theirs: %v", err)
	}
}

func TestEndedCertificateIsRefused(t *testing.T) {
	w := newWorld(t)
	conn, err := w.login(w.mustCreate("erin@provider.example", "engineer", ""))
	if err != nil {
		t.Fatal(err)
	}
	storetest.Tx(t, w.store, func(ctx context.Context, tx *store.Tx) error {
		return tx.RevokeCert(ctx, certs.Serial(conn.PeerCertificates[0]), "erin", w.now)
	})
	_, err = w.auth.Identify(t.Context(), conn)
	wantCode(t, "an ended certificate", err, protocol.CodeUnauthenticated)
}

func TestNobodyWithoutCertificate(t *testing.T) {
	w := newWorld(t)
	_, err := w.auth.Identify(t.Context(), tls.ConnectionState{HandshakeComplete: true})
	wantCode(t, "no certificate", err, protocol.CodeUnauthenticated)
	conn, err := w.login(w.mustCreate("erin@provider.example", "engineer", ""))
	if err != nil {
		t.Fatal(err)
	}
	unverified := conn
	unverified.VerifiedChains = nil
	_, err = w.auth.Identify(t.Context(), unverified)
	wantCode(t, "a certificate nobody verified", err, protocol.CodeUnauthenticated)
	w.now = w.now.Add(auth.CertificateTTL + time.Hour)
	_, err = w.auth.Identify(t.Context(), conn)
	wantCode(t, "an expired certificate", err, protocol.CodeUnauthenticated)
}

func TestWhoMayCreateWhom(t *testing.T) {
	w := newWorld(t)
	owner := auth.Caller{Person: "olga@contoso.example", Role: auth.Owner, Tenant: "contoso"}
	tara := auth.Caller{Person: "tara@contoso.example", Role: auth.TenantAdmin, Tenant: "contoso"}
	engineer := auth.Caller{Person: "erin@provider.example", Role: auth.Engineer}
	for _, c := range []struct {
		name         string
		caller       auth.Caller
		person, role string
		tenant       string
		want         protocol.Code
	}{
		{"admin, engineer", admin, "a@x", "engineer", "", ""},
		{"admin, owner", admin, "b@x", "owner", "contoso", ""},
		{"owner, approver of theirs", owner, "c@contoso.example", "approver", "contoso", ""},
		{"owner, approver of others", owner, "d@contoso.example", "approver", "fabrikam", protocol.CodeForbidden},
		{"owner, a name of others", owner, "c@fabrikam.example", "approver", "contoso", protocol.CodeForbidden},
		{"owner, a name of a part of others", owner, "c@x.contoso.example", "approver", "contoso", protocol.CodeForbidden},
		{"owner, a name that only looks like theirs", owner, "c@contoso.example@fabrikam.example", "approver", "contoso", protocol.CodeForbidden},
		{"owner, a name without a domain", owner, "root", "approver", "contoso", protocol.CodeForbidden},
		{"admin, a name of another domain", admin, "c@consultant.example", "approver", "contoso", ""},
		{"owner, admin", owner, "e@x", "admin", "", protocol.CodeForbidden},
		{"engineer, approver", engineer, "f@x", "approver", "contoso", protocol.CodeForbidden},
		{"nobody", auth.Caller{}, "g@x", "engineer", "", protocol.CodeForbidden},
		{"unknown role", admin, "h@x", "king", "", protocol.CodeInvalid},
		{"system role", admin, "h@x", "system", "", protocol.CodeInvalid},
		{"owner without tenant", admin, "h@x", "owner", "", protocol.CodeInvalid},
		{"engineer with tenant", admin, "h@x", "engineer", "contoso", protocol.CodeInvalid},
		{"unknown tenant", admin, "h@x", "owner", "nobody", protocol.CodeNotFound},
		{"admin, tenant administrator", admin, "i@contoso.example", "tenant-admin", "contoso", ""},
		{"tenant administrator without tenant", admin, "j@x", "tenant-admin", "", protocol.CodeInvalid},
		{"owner, tenant administrator", owner, "k@contoso.example", "tenant-admin", "contoso", protocol.CodeForbidden},
		{"tenant administrator, another", tara, "l@contoso.example", "tenant-admin", "contoso", ""},
		{"tenant administrator, owner", tara, "m@contoso.example", "owner", "contoso", ""},
		{"tenant administrator, of others", tara, "n@contoso.example", "tenant-admin", "fabrikam", protocol.CodeForbidden},
		{"tenant administrator, a name of others", tara, "n@fabrikam.example", "owner", "contoso", protocol.CodeForbidden},
		{"tenant administrator, engineer", tara, "o@contoso.example", "engineer", "", protocol.CodeForbidden},
		{"bad name", admin, "../x", "engineer", "", protocol.CodeInvalid},
		{"capital name", admin, "Erin", "engineer", "", protocol.CodeInvalid},
		{"taken name", admin, "a@x", "engineer", "", protocol.CodeConflict},
	} {
		_, err := w.create(c.caller, c.person, c.role, c.tenant)
		wantCode(t, c.name, err, c.want)
	}
}

// TestOwnersDoNotBecomeAdministrators has an owner try to take over the account of an
// administrator of their tenant.
func TestOwnersDoNotBecomeAdministrators(t *testing.T) {
	w := newWorld(t)
	owner := auth.Caller{Person: "olga@contoso.example", Role: auth.Owner, Tenant: "contoso"}
	w.mustCreate("tara@contoso.example", "tenant-admin", "contoso")
	w.mustCreate("otto@contoso.example", "owner", "contoso")
	for name, want := range map[string]protocol.Code{"tara@contoso.example": protocol.CodeForbidden, "otto@contoso.example": ""} {
		_, err := w.auth.AddKey(t.Context(), owner, &lockboxv1.AddKeyRequest{Person: name, SshKey: sshKey(t)})
		wantCode(t, "a key for "+name, err, want)
		_, err = w.auth.CreateLoginToken(t.Context(), owner, &lockboxv1.CreateLoginTokenRequest{Name: name})
		wantCode(t, "a token for "+name, err, want)
		_, err = w.auth.RemovePerson(t.Context(), owner, &lockboxv1.RemovePersonRequest{Name: name})
		wantCode(t, "removing "+name, err, want)
	}
}

func TestKeysBelongToOnePerson(t *testing.T) {
	w := newWorld(t)
	key := sshKey(t)
	w.mustCreate("a@x", "engineer", "", key)
	_, err := w.create(admin, "b@x", "internal-approver", "", key)
	wantCode(t, "the engineer's key for an internal approver", err, protocol.CodeConflict)
	_, err = w.create(admin, "c@x", "engineer", "", "ssh-rsa nonsense")
	wantCode(t, "a malformed key", err, protocol.CodeInvalid)
	_, err = w.create(admin, "d@x", "engineer", "", slices.Repeat([]string{key}, 9)...)
	wantCode(t, "nine keys", err, protocol.CodeInvalid)
}

// Public keys are public: registering another's must not keep them out.
func TestRegisteringAnothersKeyBlocksNobody(t *testing.T) {
	w := newWorld(t)
	key := sshKey(t)
	mallory := auth.Caller{Person: "mallory@fabrikam.example", Role: auth.Owner, Tenant: "fabrikam"}
	if _, err := w.create(mallory, "x@fabrikam.example", "approver", "fabrikam", key); err != nil {
		t.Fatal(err)
	}
	_, err := w.create(mallory, "y@fabrikam.example", "approver", "fabrikam", key)
	wantCode(t, "twice in a tenant", err, protocol.CodeConflict)
	if _, err := w.create(admin, "erin@provider.example", "engineer", "", key); err != nil {
		t.Errorf("its owner, of the provider: %v", err)
	}
	if _, err := w.create(admin, "adam@contoso.example", "approver", "contoso", key); err != nil {
		t.Errorf("its owner, of another tenant: %v", err)
	}
	storetest.Tx(t, w.store, func(ctx context.Context, tx *store.Tx) error {
		keys, err := tx.PersonKeys(ctx, "erin@provider.example")
		if err != nil || len(keys) != 1 || keys[0].Person != "erin@provider.example" {
			t.Errorf("Erin's keys are %v, %v", keys, err)
		}
		return nil
	})
}

func TestCustomersSeeTheirOwn(t *testing.T) {
	w := newWorld(t)
	w.mustCreate("olga@contoso.example", "owner", "contoso")
	w.mustCreate("frank@fabrikam.example", "owner", "fabrikam")
	w.mustCreate("erin@provider.example", "engineer", "")
	owner := auth.Caller{Person: "olga@contoso.example", Role: auth.Owner, Tenant: "contoso"}
	list := func(caller auth.Caller) (names []string) {
		resp, err := w.auth.ListPeople(t.Context(), caller, &lockboxv1.ListPeopleRequest{Tenant: "fabrikam"})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range resp.People {
			names = append(names, p.Name)
		}
		return names
	}
	if got := list(owner); !slices.Equal(got, []string{"olga@contoso.example"}) {
		t.Errorf("the owner of contoso sees %v of fabrikam", got)
	}
	if got := list(admin); !slices.Equal(got, []string{"frank@fabrikam.example"}) {
		t.Errorf("the admin sees %v", got)
	}
	for _, name := range []string{"frank@fabrikam.example", "nobody@x"} {
		_, err := w.auth.CreateLoginToken(t.Context(), owner, &lockboxv1.CreateLoginTokenRequest{Name: name})
		wantCode(t, "a token for "+name, err, protocol.CodeNotFound)
	}
}

func TestANewTokenEndsTheOldOne(t *testing.T) {
	w := newWorld(t)
	old := w.mustCreate("erin@provider.example", "engineer", "")
	resp, err := w.auth.CreateLoginToken(t.Context(), admin, &lockboxv1.CreateLoginTokenRequest{Name: "erin@provider.example"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.login(old)
	wantCode(t, "the old token", err, protocol.CodeUnauthenticated)
	if _, err := w.login(resp.LoginToken); err != nil {
		t.Error(err)
	}
}

func TestFirstAdmin(t *testing.T) {
	w := newWorld(t)
	token, err := w.auth.FirstAdmin(t.Context(), "admin@provider.example")
	if err != nil || token == "" {
		t.Fatal(err)
	}
	again, err := w.auth.FirstAdmin(t.Context(), "other@provider.example")
	if err != nil || again != "" {
		t.Errorf("a second start made another admin: %v", err)
	}
	conn, err := w.login(token)
	if err != nil {
		t.Fatal(err)
	}
	caller, err := w.auth.Identify(t.Context(), conn)
	if err != nil || caller.Role != auth.Admin {
		t.Errorf("identified %+v, %v", caller, err)
	}
}

func TestRenew(t *testing.T) {
	w := newWorld(t)
	key, csr := newKey(t)
	conn, err := w.loginFor(w.mustCreate("erin@provider.example", "engineer", ""), csr)
	if err != nil {
		t.Fatal(err)
	}
	caller, err := w.auth.Identify(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	_, foreign := newKey(t)
	for what, bad := range map[string]struct {
		csr  []byte
		code protocol.Code
	}{"another key": {foreign, protocol.CodeForbidden}, "nonsense": {[]byte("nonsense"), protocol.CodeInvalid}} {
		_, err = w.auth.RenewCertificate(t.Context(), caller, &lockboxv1.RenewCertificateRequest{Csr: bad.csr})
		wantCode(t, what, err, bad.code)
	}
	again, err := certs.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.auth.RenewCertificate(t.Context(), caller, &lockboxv1.RenewCertificateRequest{Csr: again})
	if err != nil {
		t.Fatal(err)
	}
	renewed, err := w.auth.Identify(t.Context(), state(t, resp.Chain))
	if err != nil || renewed.Person != caller.Person {
		t.Errorf("identified %+v, %v", renewed, err)
	}
	if !w.log.has(auditlog.OpRenewLogin) {
		t.Errorf("recorded %v", w.log.ops)
	}
}

// A new login token ends every certificate that a thief may hold, renewed ones
// included, and nobody else's.
func TestANewTokenEndsStolenCertificates(t *testing.T) {
	w := newWorld(t)
	_, csr := newKey(t)
	first, err := w.loginFor(w.mustCreate("erin@provider.example", "engineer", ""), csr)
	if err != nil {
		t.Fatal(err)
	}
	caller, err := w.auth.Identify(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.auth.RenewCertificate(t.Context(), caller, &lockboxv1.RenewCertificateRequest{Csr: csr})
	if err != nil {
		t.Fatal(err)
	}
	other, err := w.login(w.mustCreate("eve@provider.example", "engineer", ""))
	if err != nil {
		t.Fatal(err)
	}
	token, err := w.auth.CreateLoginToken(t.Context(), admin, &lockboxv1.CreateLoginTokenRequest{Name: "erin@provider.example"})
	if err != nil {
		t.Fatal(err)
	}
	for what, conn := range map[string]tls.ConnectionState{"the first certificate": first, "the renewed one": state(t, resp.Chain)} {
		_, err = w.auth.Identify(t.Context(), conn)
		wantCode(t, what, err, protocol.CodeUnauthenticated)
	}
	// A renewal that was on its way when the token was made.
	_, err = w.auth.RenewCertificate(t.Context(), caller, &lockboxv1.RenewCertificateRequest{Csr: csr})
	wantCode(t, "a renewal under way", err, protocol.CodeUnauthenticated)
	if _, err := w.auth.Identify(t.Context(), other); err != nil {
		t.Errorf("somebody else: %v", err)
	}
	fresh, err := w.login(token.LoginToken)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.auth.Identify(t.Context(), fresh); err != nil {
		t.Errorf("with the new token: %v", err)
	}
}

func TestStoredTokensAreHashes(t *testing.T) {
	w := newWorld(t)
	token := w.mustCreate("erin@provider.example", "engineer", "")
	parts := strings.Split(token, ".")
	var row store.LoginToken
	err := w.store.View(t.Context(), func(tx *store.Tx) (err error) { row, err = tx.LoginToken(t.Context(), parts[1]); return err })
	if err != nil || len(row.SecretHash) != 32 || strings.Contains(string(row.SecretHash), parts[2]) {
		t.Errorf("stored %+v, %v", row, err)
	}
}
