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

// PropertyExclusion is the property of the records of an unlock to which the
// customer was not asked to agree; its value says why. A node opens nothing
// without the customer unless the logged intent has it.
const PropertyExclusion = "exclusion"

// PropertyStanding is the property of the records of an unlock that a standing
// consent of the customer's allowed; its value is the consent's id.
const PropertyStanding = "standingConsent"
