package cli_test

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (l *liar) WhoAmI(ctx context.Context, in *lockboxv1.WhoAmIRequest) (*lockboxv1.WhoAmIResponse, error) {
	return l.truth.Accounts.WhoAmI(ctx, in)
}

func (l *liar) DraftTrustPolicy(ctx context.Context, in *lockboxv1.DraftTrustPolicyRequest) (*lockboxv1.Document, error) {
	d, err := l.truth.Orders.DraftTrustPolicy(ctx, in)
	if err != nil || l.draft == nil {
		return d, err
	}
	p, err := approval.ParseTrustPolicy(d.Payload)
	if err != nil {
		return nil, err
	}
	l.draft(&p)
	d.Payload, err = p.Encode()
	return d, err
}

func (l *liar) SubmitTrustPolicy(ctx context.Context, in *lockboxv1.SubmitTrustPolicyRequest) (*lockboxv1.Document, error) {
	l.signed = append(l.signed, in.Envelope)
	return l.truth.Orders.GetTrustPolicy(ctx, &lockboxv1.GetTrustPolicyRequest{Order: in.Order})
}

// sshKeyOf makes a key of somebody's.
func sshKeyOf(t *testing.T, id string, who protocol.Person) approval.Key {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return approval.Key{
		ID: id, Person: who, Kind: approval.SSHKey,
		PublicKey: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))),
	}
}

// Nobody signs a draft with something in it that they did not ask for.
func TestAnAlteredDraftIsNotSigned(t *testing.T) {
	w := waiting(t)
	recovery := sshKeyOf(t, "recovery", "mallory@x")
	for _, tt := range []struct {
		name     string
		draft    func(*approval.TrustPolicy)
		flags    []string
		want     string // "" if it is signed
		recovery string // flag; --without-recovery-key if ""
	}{
		{"control", nil, nil, "", ""},
		{"control, with flags", nil, []string{"--customer-group", "owners:1:olga@contoso.example", "--max-duration", "2h"}, "", ""},
		{"a recovery key", func(p *approval.TrustPolicy) { p.RecoveryKey, p.NoRecovery = &recovery, false }, nil, "recovery key", ""},
		{"a longer time", func(p *approval.TrustPolicy) { p.Rules[0].MaxDuration++ }, nil, "lasts up to", ""},
		{"another successor's place", func(p *approval.TrustPolicy) { p.PreviousDigest = approval.DigestOf([]byte("x")) }, nil, "the one you know", ""},
		{
			"a lower threshold", func(p *approval.TrustPolicy) {
				p.Rules[0].CustomerGroups[0].Threshold, p.Rules[1].CustomerGroups[0].Threshold = 1, 1
			}, []string{"--customer-group", "both:2:olga@contoso.example,oscar@contoso.example"}, "it wants 1, not 2", "",
		},
		{"a recovery key that was asked for", func(p *approval.TrustPolicy) { p.RecoveryKey, p.NoRecovery = &recovery, false }, nil, "", "--recovery-key=" + recovery.Fingerprint()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.recovery = cmp.Or(tt.recovery, "--without-recovery-key")
			l := &liar{draft: tt.draft}
			w.lie(t, l, "olga")
			kept := filepath.Join(w.dir, "olga", "trust-policies", order)
			before, err := os.ReadFile(kept)
			if err != nil {
				t.Fatal(err)
			}
			defer os.WriteFile(kept, before, 0o600)
			r := w.lockbox(t, "olga", "", append([]string{"trust-policy", "sign", order, "--key", w.key("olga"), "--yes", tt.recovery}, tt.flags...)...)
			switch {
			case tt.want == "" && (r.code != 0 || len(l.signed) != 1):
				t.Errorf("%+v", r)
			case tt.want != "" && (r.code == 0 || len(l.signed) != 0 || !strings.Contains(r.err, tt.want)):
				t.Errorf("signed %d, want %q: %+v", len(l.signed), tt.want, r)
			}
			if !strings.HasPrefix(r.err, "Recovery key") {
				t.Errorf("the recovery key is not shown first: %s", r.err)
			}
		})
	}
}

// An approver who did not sign the trust policy sees all of it the first time,
// and is held to it once they have said yes, whatever became of the decision.
func TestATrustPolicyIsTrustedOnFirstUse(t *testing.T) {
	w := waiting(t)
	kept := filepath.Join(w.dir, "oscar", "trust-policies", order)
	approve := []string{"request", "approve", "2", "--key", w.key("oscar")}

	r := w.lockbox(t, "oscar", "no\n", approve...)
	if r.code != 1 {
		t.Fatalf("%+v", r)
	}
	for _, shown := range []string{"FIRST TIME", "Recovery key", "customer group", "olga@contoso.example", "Service key"} {
		if !strings.Contains(r.err, shown) {
			t.Errorf("%q is not shown: %s", shown, r.err)
		}
	}
	if _, err := os.Stat(kept); err == nil {
		t.Error("kept although Oscar said no")
	}

	l := &liar{}
	w.lie(t, l, "oscar") // takes the decision and loses it
	if r := w.lockbox(t, "oscar", "yes\n", approve...); r.code != 0 || len(l.decided) != 1 {
		t.Fatalf("%+v", r)
	}
	digest, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	r = w.lockbox(t, "oscar", "yes\n", approve...)
	if r.code != 0 || strings.Contains(r.err, "FIRST TIME") || !strings.Contains(r.err, "same as the one you know") {
		t.Errorf("the second time: %+v", r)
	}
	if !strings.Contains(r.err, strings.TrimSpace(string(digest))) {
		t.Errorf("kept %s, shown %s", digest, r.err)
	}
}
