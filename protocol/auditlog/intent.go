package auditlog

import (
	"fmt"

	"github.com/databox-lockbox/lockbox/protocol"
)

// PropertySubjectDigest is the property of an [OpUnlockIntent] record that
// holds the digest of the request statement or of the consent. Its correlation
// ID is the request's or the consent's.
const PropertySubjectDigest = "subjectDigest"

// PropertyNonce returns the property of an [OpUnlockIntent] record that holds
// the nonce of a node's challenge, in hexadecimal: "nonce.<serial>.<n>".
func PropertyNonce(node protocol.NodeID) string {
	return fmt.Sprintf("nonce.%s.%d", node.Serial, node.Node)
}
