package agent

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
)

// The installed trust policy is kept as the chain of envelopes that led to it,
// version 1 first, one a line: an envelope is one line of canonical JSON.

// policy verifies the installed chain and returns its last link.
func (a *Agent) policy() (*approval.Policy, error) { return verifyChain(a.state.TrustPolicy()) }

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
	r := newRecord(a.cfg, a.opts.Clock.Now(), auditlog.OpReplaceTrustPolicy, auditlog.Success)
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
	doc := policy.Document()
	var b strings.Builder
	fmt.Fprintf(&b, "Trust policy version %d of tenant %s, order %s\n", doc.Version, doc.TenantID, doc.OrderID)
	for _, r := range doc.Rules {
		fmt.Fprintf(&b, "  %s, at most %s, needs:\n", r.Action, time.Duration(r.MaxDuration)*time.Second)
		for _, g := range r.CustomerGroups {
			fmt.Fprintf(&b, "    %d of customer group %s: %s\n", g.Threshold, g.Name, people(doc, g.Keys))
		}
		for _, g := range r.ProviderGroups {
			fmt.Fprintf(&b, "    %d of provider group %s: %s\n", g.Threshold, g.Name, people(doc, g.Keys))
		}
	}
	return string(policy.Digest()), b.String(), nil
}

func people(doc approval.TrustPolicy, keys []string) string {
	var names []string
	for _, id := range keys {
		for _, k := range doc.Keys {
			if k.ID == id {
				names = append(names, string(k.Person))
			}
		}
	}
	return strings.Join(names, ", ")
}
