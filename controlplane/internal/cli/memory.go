package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/mod/sumdb/note"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// What this person saw before, kept in their home: the newest checkpoint of
// the activity log, and the trust policies they signed or accepted. A control
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
// names it.
func (a *app) checkLog(ctx context.Context, c *client.Client, logKey string) (auditlog.Checkpoint, error) {
	v, err := note.NewVerifier(logKey)
	if err != nil {
		return auditlog.Checkpoint{}, fmt.Errorf("cannot use the log's key: %w", err)
	}
	old, err := a.rememberedCheckpoint()
	if err != nil {
		return auditlog.Checkpoint{}, err
	}
	var older auditlog.Checkpoint
	if old != nil {
		if older, err = auditlog.OpenCheckpoint(old, v); err != nil {
			return auditlog.Checkpoint{}, fmt.Errorf("the checkpoint you kept in %s is not of this log: %w", filepath.Join(a.home, checkpointFile), err)
		}
	}
	resp, err := c.Audit.GetCheckpoint(ctx, &lockboxv1.GetCheckpointRequest{ConsistentWith: older.Size})
	if err != nil {
		return auditlog.Checkpoint{}, err
	}
	newer, err := auditlog.OpenCheckpoint(resp.Checkpoint, v)
	if err != nil {
		return auditlog.Checkpoint{}, fmt.Errorf("the control plane's checkpoint is not signed by the log's key: %w", err)
	}
	if older.Size > 0 {
		if err := auditlog.CheckConsistency(resp.Consistency, older, newer); err != nil {
			return auditlog.Checkpoint{}, fmt.Errorf("the activity log is not the one you saw before (size %d): do not approve anything, tell your security team: %w", older.Size, err)
		}
	}
	return newer, renameio.WriteFile(filepath.Join(a.home, checkpointFile), resp.Checkpoint, 0o600)
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
	return approval.ParseTrustPolicy(doc.Payload)
}

func (a *app) policyFile(order string) string {
	return filepath.Join(a.home, policiesDir, filepath.Base(order))
}

// rememberPolicy keeps the digest of a trust policy that this person signed.
func (a *app) rememberPolicy(order string, digest approval.Digest) error {
	if err := os.MkdirAll(filepath.Join(a.home, policiesDir), 0o700); err != nil {
		return err
	}
	return renameio.WriteFile(a.policyFile(order), []byte(digest+"\n"), 0o600)
}

// checkPolicy compares a statement's trust policy with this person's own copy.
// It returns a sentence for them.
func (a *app) checkPolicy(order string, digest approval.Digest) (string, error) {
	data, err := os.ReadFile(a.policyFile(order))
	if errors.Is(err, fs.ErrNotExist) {
		return "you keep no copy of this order's trust policy; compare the digest with one who does", nil
	}
	if err != nil {
		return "", err
	}
	if own := strings.TrimSpace(string(data)); own != string(digest) {
		return "", fmt.Errorf("the request was made under trust policy %s, but the one you signed is %s: do not approve, tell your security team", digest, own)
	}
	return "same as the one you signed", nil
}
