package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/mod/sumdb/note"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// What this person saw before, kept in their home: the newest checkpoint of
// the activity log, and for each order the trust policy they last signed,
// accepted or decided under. A control
// plane that shows another past, or another policy, is found by it.
const (
	checkpointFile = "last-checkpoint"
	policiesDir    = "trust-policies"
)

func (a *app) rememberedCheckpoint() ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(a.home, checkpointFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// checkLog demands that the activity log has only grown since this person last
// looked, and remembers its head. logKey is the log's key as the trust policy
// names it. It returns a sentence for them.
func (a *app) checkLog(ctx context.Context, c *client.Client, logKey string) (string, error) {
	v, err := note.NewVerifier(logKey)
	if err != nil {
		return "", fmt.Errorf("cannot use the log's key: %w", err)
	}
	older, err := a.olderCheckpoint(v)
	if err != nil {
		return "", err
	}
	resp, err := c.Audit.GetCheckpoint(ctx, &lockboxv1.GetCheckpointRequest{ConsistentWith: older.Size})
	if protocol.CodeOf(err) == protocol.CodeCheckpoint {
		return "", fmt.Errorf("%w; do not sign anything, tell your security team", err)
	}
	if err != nil {
		return "", err
	}
	newer, err := auditlog.OpenCheckpoint(resp.Checkpoint, v)
	if err != nil {
		return "", fmt.Errorf("the control plane's checkpoint is not signed by the log's key: do not sign anything, tell your security team: %w", err)
	}
	sentence := fmt.Sprintf("%d records; you look at it for the first time", newer.Size)
	if older.Size > 0 {
		if err := auditlog.CheckConsistency(resp.Consistency, older, newer); err != nil {
			return "", fmt.Errorf("the activity log is not the one you saw before, of %d records: do not sign anything, tell your security team: %w", older.Size, err)
		}
		sentence = fmt.Sprintf("%d records, the %d you saw before unchanged among them", newer.Size, older.Size)
	}
	return sentence, renameio.WriteFile(filepath.Join(a.home, checkpointFile), resp.Checkpoint, 0o600, renameio.WithTempDir(a.home))
}

// olderCheckpoint opens the checkpoint that this person kept. Its size is 0 if
// there is none.
func (a *app) olderCheckpoint(v note.Verifier) (auditlog.Checkpoint, error) {
	kept, err := a.rememberedCheckpoint()
	if err != nil || kept == nil {
		return auditlog.Checkpoint{}, err
	}
	older, err := auditlog.OpenCheckpoint(kept, v)
	if err != nil {
		return auditlog.Checkpoint{}, fmt.Errorf("the checkpoint you kept in %s is not of this log: if you work with several control planes, use a --home for each; else do not sign anything, tell your security team: %w",
			filepath.Join(a.home, checkpointFile), err)
	}
	return older, nil
}

// fetchPolicy gets the trust policy with this digest and checks that its bytes
// have it.
func fetchPolicy(ctx context.Context, c *client.Client, order string, digest approval.Digest) (approval.TrustPolicy, error) {
	doc, err := c.Orders.GetTrustPolicy(ctx, &lockboxv1.GetTrustPolicyRequest{Order: order, Digest: string(digest)})
	if err != nil {
		return approval.TrustPolicy{}, err
	}
	if got := approval.DigestOf(doc.Payload); digest != "" && got != digest {
		return approval.TrustPolicy{}, fmt.Errorf("the control plane sent trust policy %s for %s: do not sign anything, tell your security team", got, digest)
	}
	p, err := approval.ParseTrustPolicy(doc.Payload)
	if err != nil {
		return p, err
	}
	return p, checkOrder(p, order)
}

// checkOrder refuses a trust policy of another order.
func checkOrder(p approval.TrustPolicy, order string) error {
	if p.OrderID != "" && string(p.OrderID) != order {
		return fmt.Errorf("the control plane sent the trust policy of order %s for %s: do not sign anything, tell your security team", p.OrderID, order)
	}
	return nil
}

func (a *app) policyFile(order string) string {
	return filepath.Join(a.home, policiesDir, filepath.Base(order))
}

// rememberPolicy keeps the digest of a trust policy that this person signed,
// accepted or decided under.
func (a *app) rememberPolicy(order string, digest approval.Digest) error {
	if err := os.MkdirAll(filepath.Join(a.home, policiesDir), 0o700); err != nil {
		return err
	}
	return writeFile(a.policyFile(order), []byte(digest+"\n"))
}

// policyCheck is what a comparison with a person's own copy of a trust policy
// came to.
type policyCheck struct {
	known    bool   // they keep a copy, and it is the same
	sentence string // for them
}

// show shows the whole policy to who sees it for the first time: from now on it
// is what others are measured by.
func (c policyCheck) show(w io.Writer, p approval.TrustPolicy) {
	if !c.known {
		showPolicy(w, p)
	}
}

// checkPolicy compares a statement's trust policy with this person's own copy.
// Who keeps none trusts this one on first use: it is to be kept as soon as they
// have said yes, whatever becomes of that. One that replaced theirs, signed as
// theirs asks, is as good.
func (a *app) checkPolicy(ctx context.Context, c *client.Client, order string, digest approval.Digest) (policyCheck, error) {
	data, err := os.ReadFile(a.policyFile(order))
	if errors.Is(err, fs.ErrNotExist) {
		return policyCheck{sentence: "YOU SEE IT FOR THE FIRST TIME and trust it by signing: compare its digest with somebody who signed it. " +
			"It is kept, and any other is refused from then on"}, nil
	}
	if err != nil {
		return policyCheck{}, err
	}
	own := approval.Digest(strings.TrimSpace(string(data)))
	if own == digest {
		return policyCheck{true, "same as the one you know"}, nil
	}
	recovered, err := succeeds(ctx, c, order, own, digest)
	switch {
	case err != nil:
		return policyCheck{}, fmt.Errorf("this is under trust policy %s, but the one you know is %s, and it is not signed as that one asks (%v): sign nothing, ask those who sign for your organization whether it was changed; if so, 'lockbox trust-policy accept %s', else tell your security team", digest, own, err, order)
	case recovered:
		return policyCheck{}, fmt.Errorf("this is under trust policy %s, which your organization's RECOVERY KEY put in the place of %s, the one you know: sign nothing before you have asked who used it; then 'lockbox trust-policy accept %s'", digest, own, order)
	}
	return policyCheck{false, "it has replaced the one you know, signed as that one asks"}, nil
}

// succeeds verifies that a trust policy came of the one called own, each version
// signed as the one before it asks, and reports whether a recovery key did it.
func succeeds(ctx context.Context, c *client.Client, order string, own, digest approval.Digest) (recovered bool, err error) {
	doc, err := c.Orders.GetTrustPolicy(ctx, &lockboxv1.GetTrustPolicyRequest{Order: order, Digest: string(digest)})
	if err != nil {
		return false, err
	}
	if len(doc.Earlier) == 0 {
		return false, errors.New("it is a first version")
	}
	p, err := approval.VerifyPolicyV1(doc.Earlier[0])
	if err != nil {
		return false, err
	}
	met := p.Digest() == own
	for _, next := range append(doc.Earlier[1:], doc.Envelope) {
		if p, err = p.VerifySuccessor(next); err != nil {
			return false, err
		}
		recovered = recovered || met && p.ByRecovery()
		met = met || p.Digest() == own
	}
	if !met || p.Digest() != digest {
		return false, errors.New("it did not come of the one you know")
	}
	return recovered, nil
}
