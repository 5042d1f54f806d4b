package cli

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func draftKey(t *testing.T, who protocol.Person) approval.Key {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	k, err := approval.NewSSHKey(ssh.FingerprintSHA256(key), who, authorizedKey(key))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func draftPasskey(t *testing.T, who protocol.Person) approval.Key {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return approval.Key{
		ID: "passkey", Person: who, Kind: approval.WebAuthnKey, PublicKey: base64.StdEncoding.EncodeToString(spki),
		CredentialID: "AAAA", RPID: "lockbox.example", Origins: []string{"https://lockbox.example"},
	}
}

const draftOrder = "ORD-1"

// draft is an honest draft: Olga and Andy of Contoso, Ian of the provider.
func draft(t *testing.T) approval.TrustPolicy {
	t.Helper()
	olga, andy, ian := draftKey(t, "olga@contoso.example"), draftKey(t, "andy@contoso.example"), draftKey(t, "ian@provider.example")
	customers := []approval.Group{{Name: "customer-approvers", Threshold: 1, Keys: []string{olga.ID, andy.ID}}}
	service, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return approval.TrustPolicy{
		TenantID: "contoso", OrderID: draftOrder, Version: 1, Keys: []approval.Key{olga, andy, ian},
		Rules: []approval.Rule{
			{
				Action: approval.UnlockDatabox, CustomerGroups: customers, Service: true, MaxDuration: 8 * 3600,
				ProviderGroups: []approval.Group{{Name: "internal-approvers", Threshold: 1, Keys: []string{ian.ID}}},
			},
			{Action: approval.CopyData, CustomerGroups: customers, Service: true, MaxDuration: 8 * 3600},
		},
		ServiceKeys: [][]byte{service}, LogKey: "log+1+key", NoRecovery: true,
	}
}

func wish() policyWish {
	return policyWish{signer: "olga@contoso.example", tenant: "contoso", order: draftOrder, longest: 8 * time.Hour, noRecovery: true}
}

// groups are those of the honest draft, asked for by name.
func askedGroups(w *policyWish) {
	w.customers = []*lockboxv1.PolicyGroup{{Name: "customer-approvers", Threshold: 1, People: []string{"olga@contoso.example", "andy@contoso.example"}}}
	w.providers = []*lockboxv1.PolicyGroup{{Name: "internal-approvers", Threshold: 1, People: []string{"ian@provider.example"}}}
}

func TestADraftIsWhatWasAskedFor(t *testing.T) {
	onBoth := func(p *approval.TrustPolicy, change func(*approval.Group)) {
		g := p.Rules[0].CustomerGroups[0]
		g.Keys = slices.Clone(g.Keys)
		change(&g)
		p.Rules[0].CustomerGroups, p.Rules[1].CustomerGroups = []approval.Group{g}, []approval.Group{g}
	}
	add := func(p *approval.TrustPolicy, k approval.Key) {
		p.Keys = append(p.Keys, k)
		onBoth(p, func(g *approval.Group) { g.Keys = append(g.Keys, k.ID) })
	}
	for _, c := range []struct {
		name   string
		change func(t *testing.T, p *approval.TrustPolicy)
		wish   func(t *testing.T, w *policyWish)
		want   string // "" if it is to be signed
	}{
		{name: "honest, by default"},
		{name: "honest, by groups", wish: func(_ *testing.T, w *policyWish) { askedGroups(w) }},
		{
			name: "a recovery key", want: "recovery key",
			change: func(t *testing.T, p *approval.TrustPolicy) {
				k := draftKey(t, "mallory@x")
				k.ID = "r"
				p.RecoveryKey = &k
			},
		},
		{
			name: "another recovery key than asked for", want: "recovery key",
			change: func(t *testing.T, p *approval.TrustPolicy) {
				k := draftKey(t, "mallory@x")
				k.ID = "r"
				p.RecoveryKey = &k
			},
			wish: func(t *testing.T, w *policyWish) { w.recoveryKey = draftKey(t, "olga@contoso.example").Fingerprint() },
		},
		{
			name: "no recovery key although that was not asked for", want: "--without-recovery-key",
			wish: func(_ *testing.T, w *policyWish) { w.noRecovery = false },
		},
		{
			name: "an exclusion", want: "without your approval for 1 reasons",
			change: func(_ *testing.T, p *approval.TrustPolicy) { p.Exclusions = []approval.ExclusionRule{emergency(*p)} },
		},
		{
			name: "an exclusion that was asked for", wish: askedExclusion,
			change: func(_ *testing.T, p *approval.TrustPolicy) { p.Exclusions = []approval.ExclusionRule{emergency(*p)} },
		},
		{name: "no exclusion although asked for", wish: askedExclusion, want: "you asked for 1"},
		{
			name: "an exclusion that goes further", wish: askedExclusion, want: "gives delete",
			change: func(_ *testing.T, p *approval.TrustPolicy) {
				x := emergency(*p)
				x.Access = approval.Delete
				p.Exclusions = []approval.ExclusionRule{x}
			},
		},
		{
			name: "another exclusion", wish: askedExclusion, want: "you asked for break-glass",
			change: func(_ *testing.T, p *approval.TrustPolicy) {
				x := emergency(*p)
				x.Kind = approval.LockboxOff
				p.Exclusions = []approval.ExclusionRule{x}
			},
		},
		{
			name: "an exclusion by one", wish: askedExclusion, want: "of which 2 are enough",
			change: func(_ *testing.T, p *approval.TrustPolicy) {
				x := emergency(*p)
				x.ProviderGroups[0].Threshold = 1
				p.Exclusions = []approval.ExclusionRule{x}
			},
		},
		{
			name: "no recovery key although asked for", want: "recovery key",
			wish: func(t *testing.T, w *policyWish) { w.recoveryKey = "SHA256:x" },
		},
		{
			name: "a passkey of somebody else's as recovery key", want: "recovery key",
			change: func(t *testing.T, p *approval.TrustPolicy) { k := draftPasskey(t, "mallory@x"); p.RecoveryKey = &k },
		},
		{name: "another order", change: func(_ *testing.T, p *approval.TrustPolicy) { p.OrderID = "ORD-2" }, want: "for order"},
		{name: "any order", change: func(_ *testing.T, p *approval.TrustPolicy) { p.OrderID = "" }, want: "for order"},
		{name: "another tenant", change: func(_ *testing.T, p *approval.TrustPolicy) { p.TenantID = "fabrikam" }, want: "for tenant"},
		{name: "a longer time", change: func(_ *testing.T, p *approval.TrustPolicy) { p.Rules[1].MaxDuration++ }, want: "lasts up to"},
		{name: "two service keys", change: func(_ *testing.T, p *approval.TrustPolicy) { p.ServiceKeys = append(p.ServiceKeys, make([]byte, 32)) }, want: "service keys"},
		{name: "no rule for support", change: func(_ *testing.T, p *approval.TrustPolicy) { p.Rules, p.Keys = p.Rules[1:], p.Keys[:2] }, want: "one rule"},
		{name: "a stranger for the customer", change: func(t *testing.T, p *approval.TrustPolicy) { add(p, draftKey(t, "mallory@x")) }, want: "counts mallory@x"},
		{
			name: "one more of the customer's than was asked for", want: "it has",
			change: func(t *testing.T, p *approval.TrustPolicy) { add(p, draftKey(t, "eve@contoso.example")) },
			wish:   func(_ *testing.T, w *policyWish) { askedGroups(w) },
		},
		{
			name: "a stranger whom the flags name", change: func(t *testing.T, p *approval.TrustPolicy) { add(p, draftKey(t, "carl@consultant.example")) },
			wish: func(_ *testing.T, w *policyWish) {
				askedGroups(w)
				w.customers[0].People = append(w.customers[0].People, "carl@consultant.example")
			},
		},
		{
			name: "one of the customer's for the provider", want: "counts andy@contoso.example for the provider",
			change: func(_ *testing.T, p *approval.TrustPolicy) {
				andy := p.Keys[1].ID
				onBoth(p, func(g *approval.Group) { g.Keys = g.Keys[:1] })
				p.Rules[0].ProviderGroups[0].Keys = []string{andy, p.Keys[2].ID}
			},
		},
		{
			name: "no group of the provider", want: "provider",
			change: func(_ *testing.T, p *approval.TrustPolicy) { p.Rules[0].ProviderGroups, p.Keys = nil, p.Keys[:2] },
		},
		{
			name: "a lower threshold", want: "it wants 1, not 2",
			wish: func(_ *testing.T, w *policyWish) { askedGroups(w); w.customers[0].Threshold = 2 },
		},
		{
			name: "another group", want: "a customer group",
			wish: func(_ *testing.T, w *policyWish) { askedGroups(w); w.customers[0].Name = "owners" },
		},
		{
			name: "a group less", want: "you asked for 2",
			wish: func(_ *testing.T, w *policyWish) { askedGroups(w); w.customers = append(w.customers, w.customers[0]) },
		},
		{
			name: "others for copying", want: "other people of yours",
			change: func(_ *testing.T, p *approval.TrustPolicy) {
				g := p.Rules[1].CustomerGroups[0]
				g.Keys = g.Keys[:1]
				p.Rules[1].CustomerGroups = []approval.Group{g}
			},
		},
		{name: "a key in no group", change: func(t *testing.T, p *approval.TrustPolicy) { p.Keys = append(p.Keys, draftKey(t, "mallory@x")) }, want: "in no group"},
		{
			name: "a key under the fingerprint of another", want: "the key it calls",
			change: func(t *testing.T, p *approval.TrustPolicy) { p.Keys[0].PublicKey = draftKey(t, "x").PublicKey },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, w := draft(t), wish()
			if c.change != nil {
				c.change(t, &p)
			}
			if c.wish != nil {
				c.wish(t, &w)
			}
			err := w.check(p)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// emergency is an exclusion as it is drafted by default.
func emergency(p approval.TrustPolicy) approval.ExclusionRule {
	return approval.ExclusionRule{
		Kind: approval.BreakGlass, Access: approval.ReadWrite, MaxDuration: 3600,
		ProviderGroups: []approval.Group{{Name: "internal-approvers", Threshold: 2, Keys: []string{p.Keys[2].ID}}},
	}
}

func askedExclusion(_ *testing.T, w *policyWish) {
	w.exclusions = []*lockboxv1.PolicyExclusion{{Kind: "break-glass", Access: "read-write", MaxDurationSeconds: 3600}}
}

func TestADraftCallsTheSignerByTheirName(t *testing.T) {
	p := draft(t)
	if err := wish().checkSigner(p.Keys[0]); err != nil {
		t.Error(err)
	}
	if wish().checkSigner(p.Keys[1]) == nil {
		t.Error("Olga's key goes by the name of Andy")
	}
}

// Whoever signs is shown, before all else, who could replace the policy alone;
// and everything by which keys can be compared.
func TestAPolicyIsShownWhole(t *testing.T) {
	p := draft(t)
	recovery, passkey := draftKey(t, "mallory@x"), draftPasskey(t, "andy@contoso.example")
	p.RecoveryKey, p.Keys[1] = &recovery, passkey
	var out bytes.Buffer
	showPolicy(&out, p)
	first, _, _ := strings.Cut(out.String(), "\n")
	for _, want := range []string{"Recovery key", recovery.Fingerprint(), "mallory@x", "ALONE"} {
		if !strings.Contains(first, want) {
			t.Errorf("%q is not in the first line: %s", want, first)
		}
	}
	spki, err := base64.StdEncoding.DecodeString(passkey.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		p.Keys[0].Fingerprint(), "olga@contoso.example", string(approval.DigestOf(spki)), "webauthn", "https://lockbox.example",
		string(approval.KeyFingerprint(p.ServiceKeys[0])), p.LogKey,
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not shown:\n%s", want, out.String())
		}
	}
	p.RecoveryKey = nil
	out.Reset()
	showPolicy(&out, p)
	if first, _, _ := strings.Cut(out.String(), "\n"); !strings.Contains(first, "Recovery key") || !strings.Contains(first, "none") {
		t.Errorf("without a recovery key: %s", first)
	}
}

func TestAConsentIsWhatWasAskedFor(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name   string
		change func(*approval.Consent)
		until  int64
		good   bool
	}{
		{name: "honest", good: true},
		{name: "until the day", until: now.Add(time.Hour).Unix(), good: true, change: func(c *approval.Consent) { c.Until = now.Add(time.Hour).Unix() }},
		{name: "longer than the day", until: now.Add(time.Hour).Unix()},
		{name: "longer than the default", change: func(c *approval.Consent) { c.Until = now.Add(100 * 24 * time.Hour).Unix() }},
		{name: "another order", change: func(c *approval.Consent) { c.OrderID = "ORD-2" }},
		{name: "another tenant", change: func(c *approval.Consent) { c.TenantID = "fabrikam" }},
	} {
		consent := approval.Consent{OrderID: draftOrder, TenantID: "contoso", Until: now.Add(consentTTL).Unix()}
		if c.change != nil {
			c.change(&consent)
		}
		err := checkConsent(consent, draft(t), draftOrder, c.until, now)
		if (err == nil) != c.good {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	other := draft(t)
	if checkOrder(other, draftOrder) != nil || checkOrder(other, "ORD-2") == nil {
		t.Error("a trust policy of another order is not refused, or one of this order is")
	}
}
