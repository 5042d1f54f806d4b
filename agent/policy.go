package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// The installed trust policy is kept as the chain of envelopes that led to it,
// version 1 first, one a line: an envelope is one line of canonical JSON.

// policy returns the last link of the installed chain, which is verified once for
// as long as it is the same.
func (a *Agent) policy() (*approval.Policy, error) {
	chain := a.state.TrustPolicy()
	a.trust.mu.Lock()
	defer a.trust.mu.Unlock()
	if a.trust.policy != nil && bytes.Equal(chain, a.trust.chain) {
		return a.trust.policy, nil
	}
	policy, err := verifyChain(chain)
	if err != nil {
		return nil, err
	}
	a.trust.chain, a.trust.policy = bytes.Clone(chain), policy
	return policy, nil
}

func verifyChain(chain []byte) (*approval.Policy, error) {
	links := bytes.Split(bytes.TrimSpace(chain), []byte("\n"))
	return approval.VerifyPolicies(links[0], links[1:]...)
}

// replacePolicy adds a link to the chain, if the signers of the last one
// agreed to it. What is unlocked stays so, under the policy it was opened by.
func (a *Agent) replacePolicy(ctx context.Context, envelope []byte) (int64, approval.Digest, error) {
	chain := a.state.TrustPolicy()
	old, err := verifyChain(chain)
	if err != nil {
		return 0, "", err
	}
	next, err := old.VerifySuccessor(envelope)
	if err != nil {
		return 0, "", err
	}
	longer := append(append(bytes.TrimSpace(bytes.Clone(chain)), '\n'), bytes.TrimSpace(envelope)...)
	if last, err := verifyChain(longer); err != nil || last.Digest() != next.Digest() {
		return 0, "", protocol.Errorf(protocol.CodeInvalid, "the trust policy is not one line of canonical JSON")
	}
	op := auditlog.OpReplaceTrustPolicy
	if next.ByRecovery() {
		op = auditlog.OpRecoverTrustPolicy
	}
	r := newRecord(a.cfg, a.opts.Clock.Now(), op, auditlog.Success)
	r.Caller = auditlog.OriginControlPlane
	r.Properties = map[string]string{"from": string(old.Digest()), "to": string(next.Digest())}
	if _, err := a.journal.Append(ctx, r); err != nil {
		return 0, "", err
	}
	if err := a.state.ReplaceTrustPolicy(chain, longer); err != nil {
		return 0, "", err
	}
	return next.Document().Version, next.Digest(), nil
}

// logSize is the size of the last activity-log checkpoint the node accepted.
func (a *Agent) logSize() int64 {
	signed := a.state.Checkpoint()
	if signed == nil {
		return 0
	}
	policy, err := a.policy()
	if err != nil {
		return 0
	}
	v, err := note.NewVerifier(policy.Document().LogKey)
	if err != nil {
		return 0
	}
	c, err := auditlog.OpenCheckpoint(signed, v)
	if err != nil {
		return 0
	}
	return c.Size
}

// describePolicy checks a trust policy of version 1 and says what people
// compare it by.
func describePolicy(envelope []byte) (digest, description string, err error) {
	policy, err := verifyChain(envelope)
	if err != nil {
		return "", "", err
	}
	return string(policy.Digest()), describe(policy.Document()), nil
}

// describe shows all that a trust policy trusts, first who could replace it alone.
func describe(doc approval.TrustPolicy) string {
	var b strings.Builder
	if k := doc.RecoveryKey; k != nil {
		fmt.Fprintf(&b, "Recovery key, which MAY REPLACE THIS POLICY ALONE:\n%s", keyLines(*k))
	} else {
		b.WriteString("No recovery key: the policy changes only as its customers sign\n")
	}
	fmt.Fprintf(&b, "Trust policy version %d of tenant %s, order %s\n", doc.Version, doc.TenantID, cmp.Or(string(doc.OrderID), "any"))
	b.WriteString("Keys of people:\n")
	for _, k := range doc.Keys {
		b.WriteString(keyLines(k))
	}
	for _, k := range doc.ServiceKeys {
		fmt.Fprintf(&b, "Service key %s\n", approval.KeyFingerprint(k))
	}
	fmt.Fprintf(&b, "Log key %s\n", doc.LogKey)
	for _, r := range doc.Rules {
		fmt.Fprintf(&b, "%s, at most %s, needs:\n", r.Action, time.Duration(r.MaxDuration)*time.Second)
		for _, g := range r.CustomerGroups {
			fmt.Fprintf(&b, "  %d of customer group %s: %s\n", g.Threshold, g.Name, people(doc, g.Keys))
		}
		for _, g := range r.ProviderGroups {
			fmt.Fprintf(&b, "  %d of provider group %s: %s\n", g.Threshold, g.Name, people(doc, g.Keys))
		}
	}
	for _, x := range doc.Exclusions {
		fmt.Fprintf(&b, "WITHOUT THE CUSTOMER, for %s, %s, at most %s, it needs:\n", x.Kind, x.Access, time.Duration(x.MaxDuration)*time.Second)
		for _, g := range x.ProviderGroups {
			fmt.Fprintf(&b, "  %d of provider group %s: %s\n", g.Threshold, g.Name, people(doc, g.Keys))
		}
	}
	return b.String()
}

// keyLines shows whose key it is, of which kind, and what it is compared by: the
// fingerprint that ssh-keygen shows, or the digest of a passkey's
// SubjectPublicKeyInfo, and where that may be used.
func keyLines(k approval.Key) string {
	if k.Kind == approval.SSHKey {
		return fmt.Sprintf("  %s, %s %s\n", k.Person, k.Kind, k.Fingerprint())
	}
	digest := "unreadable"
	if spki, err := base64.StdEncoding.DecodeString(k.PublicKey); err == nil {
		digest = string(approval.DigestOf(spki))
	}
	return fmt.Sprintf("  %s, %s %s\n    used at %s by %s\n", k.Person, k.Kind, digest, strings.Join(k.Origins, ", "), k.RPID)
}

// people names those whose keys a group has, each once.
func people(doc approval.TrustPolicy, keys []string) string {
	var names []string
	for _, k := range doc.Keys {
		if slices.Contains(keys, k.ID) && !slices.Contains(names, string(k.Person)) {
			names = append(names, string(k.Person))
		}
	}
	return strings.Join(names, ", ")
}
