package cli_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (l *liar) ListPendingDocuments(ctx context.Context, in *lockboxv1.ListPendingDocumentsRequest) (*lockboxv1.ListPendingDocumentsResponse, error) {
	resp, err := l.truth.Orders.ListPendingDocuments(ctx, in)
	if err == nil && l.pending != nil {
		for _, d := range resp.Documents {
			l.pending(d)
		}
	}
	return resp, err
}

// fails runs a command that has to fail, and returns what it says.
func (w *world) fails(t *testing.T, short string, args ...string) string {
	t.Helper()
	r := w.lockbox(t, short, "", args...)
	if r.code == 0 {
		t.Fatalf("%v did not fail: %s", args, r.out)
	}
	return r.err
}

func wantText(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, part := range want {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in:\n%s", part, text)
		}
	}
}

// both has the trust policy ask for Olga and Oscar, with a recovery key.
func (w *world) both(t *testing.T) (recovery string) {
	t.Helper()
	recovery = filepath.Join(w.dir, "safe")
	out := w.must(t, "olga", "trust-policy", "recovery-key", "--out", recovery)
	wantText(t, out, "SHA256:", "keep it offline")
	w.must(t, "olga", w.policy("olga", "--recovery-key", recovery+".pub")...)
	return recovery
}

// policy are the arguments that sign a policy of both, with more flags.
func (w *world) policy(short string, flags ...string) []string {
	return append([]string{
		"trust-policy", "sign", order, "--customer-group", "both:2:olga@contoso.example,oscar@contoso.example",
		"--key", w.key(short), "--yes",
	}, flags...)
}

func fingerprintOf(t *testing.T, file string) string {
	t.Helper()
	line, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	fingerprint, err := approval.SSHFingerprint(string(line))
	if err != nil {
		t.Fatal(err)
	}
	return fingerprint
}

// Two people sign at two desks; the requests that waited are void, and who knew
// the policy before follows it by its signatures.
func TestTwoPeopleSignAPolicy(t *testing.T) {
	w := waiting(t)
	safe := w.both(t)
	fingerprint := fingerprintOf(t, safe)
	wantText(t, w.must(t, "erin", "request", "show", "2"), "Voided", "trust policy")

	out := w.must(t, "olga", w.policy("olga", "--recovery-key", fingerprint, "--max-duration", "2h")...)
	wantText(t, out, "not yet", "1 of the 2", "trust-policy cosign "+order, "olga@contoso.example")
	digest := strings.Fields(out)[len(strings.Fields(out))-1]
	wantText(t, w.must(t, "oscar", "trust-policy", "pending", order), digest, "trust-policy", "1 of the 2")
	wantText(t, w.fails(t, "oscar", "trust-policy", "cosign", order, "sha256:00", "--key", w.key("oscar"), "--yes"), "0 documents")
	wantText(t, w.fails(t, "oscar", "trust-policy", "cosign", order, digest, "--key", w.key("erin"), "--yes"), "does not name your key")
	wantText(t, w.fails(t, "oscar", "trust-policy", "cosign", order, digest, "--key", w.key("olga"), "--yes"), "not yours")
	r := w.lockbox(t, "oscar", "", "trust-policy", "cosign", order, digest[:20], "--key", w.key("oscar"), "--yes")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	wantText(t, r.err, "at most 2h0m0s", "Recovery key", fingerprint, "both: 2 of")

	// Olga knew version 2; version 3 is signed as that asks, and she is told.
	out = w.must(t, "olga", "trust-policy", "show", order, "--out", filepath.Join(w.dir, "policy"))
	wantText(t, out, "version 3", fingerprint)
	chain, err := os.ReadFile(filepath.Join(w.dir, "policy"))
	if err != nil || bytes.Count(chain, []byte("\n")) != 3 {
		t.Errorf("%d versions were written, %v", bytes.Count(chain, []byte("\n")), err)
	}
	w.must(t, "erin", "request", "create", "--device", serial, "--ticket", "SR-2001", "--reason-code", "copied-to-wrong-folder", "--justification", "again")
	w.must(t, "ian", "request", "approve", "3", "--key", w.key("ian"), "--yes")
	r = w.lockbox(t, "olga", "", "request", "approve", "3", "--key", w.key("olga"), "--yes")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	wantText(t, r.err, "replaced the one you know, signed as that one asks", "Recovery key")
	wantText(t, w.must(t, "oscar", "request", "approve", "3", "--key", w.key("oscar"), "--yes"), "Approved")
	wantText(t, w.must(t, "olga", "trust-policy", "delivery", order), "version 3", serial+"/1", "refused", "never one of order")
}

// When too few keys are left, the recovery key signs alone, where it lies; those
// who knew the policy before have to accept what came of it.
func TestRecoveryWhereTheKeyLies(t *testing.T) {
	w := waiting(t)
	safe := w.both(t)
	fingerprint := fingerprintOf(t, safe)
	draft, signed := filepath.Join(w.dir, "draft"), filepath.Join(w.dir, "signed")
	alone := []string{"--customer-group", "left:1:olga@contoso.example", "--recovery-key", fingerprint}
	w.must(t, "olga", append([]string{"trust-policy", "draft", order, "--out", draft}, alone...)...)
	offline := filepath.Join(w.dir, "no such home") // that machine is logged in nowhere
	for _, wrong := range [][]string{{"--key", w.key("olga")}, {"--key", filepath.Join(w.dir, "missing")}} {
		if r := w.lockbox(t, "no such home", "", append([]string{"trust-policy", "recover", "--draft", draft, "--out", signed, "--yes"}, wrong...)...); r.code == 0 {
			t.Errorf("%v signs a recovery", wrong)
		}
	}
	r := w.lockbox(t, "no such home", "", "trust-policy", "recover", "--draft", draft, "--key", safe, "--out", signed, "--yes")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	wantText(t, r.err, "MAY REPLACE THIS POLICY ALONE", "left: 1 of olga@contoso.example")
	if _, err := os.Stat(offline); err == nil {
		t.Error("a home was made where nobody logs in")
	}
	w.must(t, "oscar", "trust-policy", "accept", order, "--yes") // version 2
	w.must(t, "olga", "trust-policy", "submit", order, signed)
	wantText(t, w.must(t, "olga", "trust-policy", "show", order), "version 3", "left: 1 of")
	wantText(t, w.must(t, "admin", "audit", "list", "--operation", "Recover Trust Policy"), "Recover Trust Policy")

	// The next one online, by Olga; and Oscar is not taken along unasked.
	w.must(t, "olga", append([]string{"trust-policy", "recover", order, "--key", safe, "--yes", "--customer-group", "both:1:olga@contoso.example,oscar@contoso.example"}, alone[2:]...)...)
	w.must(t, "erin", "request", "create", "--device", serial, "--ticket", "SR-2001", "--reason-code", "copied-to-wrong-folder", "--justification", "again")
	wantText(t, w.fails(t, "ian", "request", "approve", "3", "--key", w.key("ian"), "--yes"), "RECOVERY KEY")
	w.must(t, "ian", "trust-policy", "accept", order, "--yes")
	w.must(t, "ian", "request", "approve", "3", "--key", w.key("ian"), "--yes")
	wantText(t, w.fails(t, "oscar", "request", "approve", "3", "--key", w.key("oscar"), "--yes"), "RECOVERY KEY", "accept")
	w.must(t, "oscar", "trust-policy", "accept", order, "--yes")
	wantText(t, w.must(t, "oscar", "request", "approve", "3", "--key", w.key("oscar"), "--yes"), "Approved")

	// The recovery key names no other, and the customers do.
	next := filepath.Join(w.dir, "next")
	w.must(t, "olga", "trust-policy", "recovery-key", "--out", next)
	wantText(t, w.fails(t, "olga", "trust-policy", "recovery-key", "--out", next), "exists already")
	wantText(t, w.fails(t, "olga", "trust-policy", "recover", order, "--key", safe, "--yes", "--recovery-key", next+".pub"), "only the customers may")
	wantText(t, w.fails(t, "olga", "trust-policy", "sign", order, "--key", safe, "--yes", "--recovery-key", fingerprint), "signs alone")
	w.must(t, "olga", "trust-policy", "sign", order, "--key", w.key("olga"), "--yes", "--recovery-key", next+".pub")
	wantText(t, w.must(t, "olga", "trust-policy", "show", order), fingerprintOf(t, next))
}

// What the control plane sends to be signed beside others is for this order, and
// under the policy that is known.
func TestAPendingDocumentIsNotAltered(t *testing.T) {
	w := waiting(t)
	safe := w.both(t)
	out := w.must(t, "olga", w.policy("olga", "--recovery-key", fingerprintOf(t, safe), "--max-duration", "2h")...)
	digest := strings.Fields(out)[len(strings.Fields(out))-1]
	w.must(t, "oscar", "trust-policy", "accept", order, "--yes")
	for name, c := range map[string]struct {
		change func(*lockboxv1.Document)
		want   string
	}{
		"another order": {func(d *lockboxv1.Document) {
			d.Payload = bytes.Replace(d.Payload, []byte(order), []byte("ORD-6666"), 1)
		}, "of order ORD-6666"},
		"another one before it": {func(d *lockboxv1.Document) {
			p, _ := approval.ParseTrustPolicy(d.Payload)
			p.PreviousDigest = approval.DigestOf(nil)
			d.Payload, _ = p.Encode()
		}, "the one you know"},
		"something else": {func(d *lockboxv1.Document) { d.PayloadType = string(approval.KindDecision) }, "none of ours"},
	} {
		t.Run(name, func(t *testing.T) {
			l := &liar{pending: c.change}
			w.lie(t, l, "oscar")
			wantText(t, w.fails(t, "oscar", "trust-policy", "cosign", order, digest, "--key", w.key("oscar"), "--yes"), c.want)
			if len(l.signed) != 0 {
				t.Error("it was signed")
			}
		})
	}
}

// What is decided before anybody asks, and what needs nobody of the customer.
func TestStandingConsentsAndExclusions(t *testing.T) {
	w := waiting(t)
	if err := w.person("ivy@provider.example", "internal-approver", ""); err != nil {
		t.Fatal(err)
	}
	sign := []string{"trust-policy", "sign", order, "--without-recovery-key", "--key", w.key("olga"), "--yes"}
	wantText(t, w.fails(t, "olga", append(sign, "--exclusion", "break-glass=duty:1:ian@provider.example")...), "2 different people")
	r := w.lockbox(t, "olga", "", append(sign, "--exclusion", "break-glass", "--exclusion", "lockbox-off=a:1:ian@provider.example", "--exclusion", "lockbox-off=b:1:ivy@provider.example")...)
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	wantText(t, r.err, "WITHOUT THE CUSTOMER'S APPROVAL, for break-glass, read-write, at most 2h0m0s", "2 of ian@provider.example, ivy@provider.example", "for lockbox-off")

	create := []string{"request", "create", "--device", serial, "--ticket", "SR-2001", "--justification", "the copy hangs"}
	wantText(t, w.fails(t, "erin", append(create, "--exclusion", "external-legal-demand")...), "does not allow")
	wantText(t, w.must(t, "erin", append(create, "--exclusion", "break-glass")...), "Exclusion", "break-glass")
	r = w.lockbox(t, "ian", "", "request", "approve", "3", "--key", w.key("ian"), "--yes")
	wantText(t, r.err, "THE CUSTOMER IS TOLD, AND NOT ASKED")
	wantText(t, w.must(t, "ivy", "request", "approve", "3", "--key", w.key("ivy"), "--yes"), "Approved")
	w.must(t, "olga", "request", "revoke", "3", "--reason", "no")

	auto := []string{"trust-policy", "auto-approve", order, "--reason-code", "copied-to-wrong-folder", "--access", "read-write", "--for", "30m", "--key", w.key("olga"), "--yes"}
	r = w.lockbox(t, "olga", "", auto...)
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	wantText(t, r.err, "APPROVES, before anybody asks", "up to 30m0s each")
	list := w.must(t, "olga", "trust-policy", "auto-list", order)
	wantText(t, list, "standing", "approve", "copied-to-wrong-folder")
	w.must(t, "erin", append(create, "--reason-code", "copied-to-wrong-folder")...)
	shown := w.must(t, "ian", "request", "approve", "4", "--key", w.key("ian"), "--yes")
	wantText(t, shown, "Approved", "Standing consent")
	id := strings.Fields(strings.SplitAfter(list, "\n")[1])[0]
	wantText(t, w.must(t, "olga", "trust-policy", "auto-revoke", id, "--reason", "enough"), "revoked")
	wantText(t, w.must(t, "olga", "request", "show", "4"), "Revok")

	wantText(t, w.must(t, "olga", "trust-policy", "auto-deny", order, "--reason-code", "incorrect-data-format", "--key", w.key("olga"), "--yes"), "Signed")
	wantText(t, w.must(t, "erin", append(create, "--reason-code", "incorrect-data-format")...), "Denied")
	wantText(t, w.must(t, "olga", "tenant", "disable-lockbox", "contoso", "--without", "provider-approval"), "provider-approval")
	wantText(t, w.must(t, "erin", append(create, "--reason-code", "copied-to-wrong-folder")...), "lockbox-off")
}

// A key is added and removed by who may manage its person.
func TestKeysOfPeople(t *testing.T) {
	w := waiting(t)
	spare := filepath.Join(w.dir, "spare")
	w.must(t, "oscar", "trust-policy", "recovery-key", "--out", spare) // a key like any other
	fingerprint := fingerprintOf(t, spare)
	wantText(t, w.must(t, "olga", "person", "add-key", "oscar@contoso.example", spare+".pub"), fingerprint)
	wantText(t, w.fails(t, "olga", "person", "add-key", "ian@provider.example", spare+".pub"), "not found")
	wantText(t, w.fails(t, "oscar", "person", "remove-key", "oscar@contoso.example", fingerprint), "forbidden")
	if out := w.must(t, "olga", "person", "remove-key", "oscar@contoso.example", fingerprint); strings.Contains(out, fingerprint) {
		t.Errorf("the key is still there: %s", out)
	}
	wantText(t, w.fails(t, "olga", "person", "remove-key", "oscar@contoso.example", fingerprint), "not found")
	for _, op := range []string{"Register Approver Key", "Remove Approver Key"} {
		wantText(t, w.must(t, "admin", "audit", "list", "--operation", op), op)
	}
}
