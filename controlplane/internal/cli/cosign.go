package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/controlplane/client"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

func (a *app) trustPolicyPending() *cobra.Command {
	return &cobra.Command{
		Use:   "pending ORDER",
		Short: "List what others have signed and you may have to",
		Long: `List the order's trust policies, consents and standing consents that some people
have signed already, and whose signatures are missing still.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			resp, err := c.Orders.ListPendingDocuments(ctx, &lockboxv1.ListPendingDocumentsRequest{Order: args[0]})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				var rows [][]string
				for _, d := range resp.Documents {
					rows = append(rows, []string{d.Digest, d.Kind, strings.Join(d.Signers, ","), d.Missing})
				}
				table(w, "DIGEST KIND SIGNED-BY MISSING", rows)
			})
		}),
	}
}

func (a *app) trustPolicyCosign() *cobra.Command {
	var key string
	var yes bool
	c := &cobra.Command{
		Use:   "cosign ORDER DIGEST [--key FILE]",
		Short: "Sign what somebody else drafted and signed before you",
		Long: `Show a trust policy, consent or standing consent that waits for more signatures,
sign it with your SSH key and submit it. DIGEST is as 'lockbox trust-policy
pending' shows it; its beginning will do.`,
		Args: args("ORDER", "DIGEST"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			pending, err := findPending(ctx, c, args[0], args[1])
			if err != nil {
				return err
			}
			doc, err := a.readPending(ctx, c, cmd, args[0], pending)
			if err != nil {
				return err
			}
			signer, k, done, err := findSigner(ctx, cmd, key, doc.signers)
			if err != nil {
				return err
			}
			defer done()
			me, err := a.me()
			if err != nil {
				return err
			}
			if isRecovery(doc.signers, k) || k.Person != me {
				return fmt.Errorf("the trust policy says that key %s is of %s, not yours: sign nothing, tell your security team", k.Fingerprint(), k.Person)
			}
			envelope, err := sign(cmd, doc, k.ID, signer, yes)
			if err != nil {
				return err
			}
			return doc.submit(envelope)
		}),
	}
	c.Flags().StringVar(&key, "key", "", "your SSH private key; without it, the ssh-agent's")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask before signing")
	return c
}

// findPending finds the one pending document whose digest begins so.
func findPending(ctx context.Context, c *client.Client, order, digest string) (*lockboxv1.Document, error) {
	resp, err := c.Orders.ListPendingDocuments(ctx, &lockboxv1.ListPendingDocumentsRequest{Order: order})
	if err != nil {
		return nil, err
	}
	var found []*lockboxv1.Document
	for _, d := range resp.Documents {
		if strings.HasPrefix(d.Digest, digest) || strings.HasPrefix(d.Digest, "sha256:"+digest) {
			found = append(found, d)
		}
	}
	if len(found) != 1 {
		return nil, protocol.Errorf(protocol.CodeNotFound, "%d documents of order %s that wait for signatures have a digest beginning with %q: 'lockbox trust-policy pending %s' lists them", len(found), order, digest, order)
	}
	return found[0], nil
}

// pendingDocument is one to be signed by one more.
type pendingDocument struct {
	approval.Document
	signers approval.TrustPolicy // whose keys may sign
	submit  func(envelope []byte) error
}

// readPending reads a pending document, shows it, and refuses one that was made
// under another trust policy than this person knows.
func (a *app) readPending(ctx context.Context, c *client.Client, cmd *cobra.Command, order string, d *lockboxv1.Document) (pendingDocument, error) {
	switch approval.Kind(d.PayloadType) {
	case approval.KindPolicy:
		return a.pendingPolicy(ctx, c, cmd, order, d)
	case approval.KindConsent:
		doc, err := approval.ParseConsent(d.Payload)
		if err != nil {
			return pendingDocument{}, err
		}
		show := func(w io.Writer, policy string) { showConsent(w, doc, policy) }
		signers, err := a.underPolicy(ctx, c, cmd, order, doc.PolicyDigest, doc.OrderID, show)
		return pendingDocument{doc, signers, func(envelope []byte) error {
			out, err := c.Orders.SubmitConsent(ctx, &lockboxv1.SubmitConsentRequest{Order: order, Envelope: envelope})
			return a.showSigned(cmd, order, out, err)
		}}, err
	case approval.KindStanding:
		doc, err := approval.ParseStanding(d.Payload)
		if err != nil {
			return pendingDocument{}, err
		}
		show := func(w io.Writer, policy string) { showStanding(w, doc, policy) }
		signers, err := a.underPolicy(ctx, c, cmd, order, doc.PolicyDigest, doc.OrderID, show)
		return pendingDocument{doc, signers, func(envelope []byte) error {
			out, err := c.Standing.SubmitStandingConsent(ctx, &lockboxv1.SubmitStandingConsentRequest{Order: order, Envelope: envelope})
			return a.showSigned(cmd, order, out, err)
		}}, err
	}
	return pendingDocument{}, fmt.Errorf("the control plane sent a %q to be signed, which is none of ours: sign nothing, tell your security team", d.PayloadType)
}

func (a *app) pendingPolicy(ctx context.Context, c *client.Client, cmd *cobra.Command, order string, d *lockboxv1.Document) (pendingDocument, error) {
	doc, err := approval.ParseTrustPolicy(d.Payload)
	if err != nil {
		return pendingDocument{}, err
	}
	if err := checkOrder(doc, order); err != nil {
		return pendingDocument{}, err
	}
	if err := tell(cmd, func(w io.Writer) { showPolicy(w, doc) }); err != nil {
		return pendingDocument{}, err
	}
	signers := doc
	if doc.PreviousDigest != "" {
		if _, err := a.checkPolicy(ctx, c, order, doc.PreviousDigest); err != nil {
			return pendingDocument{}, err
		}
		if signers, err = fetchPolicy(ctx, c, order, doc.PreviousDigest); err != nil {
			return pendingDocument{}, err
		}
	}
	return pendingDocument{doc, signers, func(envelope []byte) error {
		return a.submitPolicy(ctx, c, cmd, order, envelope)
	}}, nil
}

// underPolicy shows a document with the trust policy that it was made under, and
// returns that.
func (a *app) underPolicy(ctx context.Context, c *client.Client, cmd *cobra.Command, order string, digest approval.Digest, of protocol.OrderID, show func(w io.Writer, policy string)) (approval.TrustPolicy, error) {
	if string(of) != order {
		return approval.TrustPolicy{}, fmt.Errorf("the control plane sent a document of order %s for %s: sign nothing, tell your security team", of, order)
	}
	policy, err := fetchPolicy(ctx, c, order, digest)
	if err != nil {
		return policy, err
	}
	known, err := a.checkPolicy(ctx, c, order, digest)
	if err != nil {
		return policy, err
	}
	err = tell(cmd, func(w io.Writer) {
		known.show(w, policy)
		show(w, known.sentence)
	})
	if err != nil {
		return policy, err
	}
	return policy, nil
}

// showSigned says what became of a document that was signed and submitted.
func (a *app) showSigned(cmd *cobra.Command, order string, doc *lockboxv1.Document, err error) error {
	if err != nil {
		return err
	}
	return a.print(cmd, doc, func(w io.Writer) {
		fields(w, "Signed", doc.Digest)
		showMissing(w, order, doc)
	})
}

func (a *app) trustPolicyDelivery() *cobra.Command {
	return &cobra.Command{
		Use:   "delivery ORDER",
		Short: "Show which node has which version of the trust policy",
		Long: `Show which node has which version of the trust policy. A node that is away gets
the newest one as soon as it is back; until then it refuses what was approved
under it.`,
		Args: args("ORDER"),
		RunE: a.connected(func(ctx context.Context, c *client.Client, cmd *cobra.Command, args []string) error {
			resp, err := c.Orders.GetPolicyDelivery(ctx, &lockboxv1.GetPolicyDeliveryRequest{Order: args[0]})
			if err != nil {
				return err
			}
			return a.print(cmd, resp, func(w io.Writer) {
				fields(w, "In force", fmt.Sprintf("version %d %s", resp.Version, resp.Digest))
				var rows [][]string
				for _, n := range resp.Nodes {
					rows = append(rows, []string{n.Node, n.State, strconv.FormatInt(n.Version, 10), when(n.Delivered), n.Error})
				}
				table(w, "NODE STATE VERSION SINCE ERROR", rows)
			})
		}),
	}
}
