package approval

import (
	"cmp"
	"fmt"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
)

// UncopiedKept is how long disks are kept on which something is left that could not
// be copied: the customer may ask for it.
const UncopiedKept = 14 * 24 * time.Hour

// What an [Erasure] says of how media were sanitized, in the words of NIST SP
// 800-88 Rev. 1.
const (
	ErasureStandard  = "NIST SP 800-88 Rev. 1"
	ErasurePurge     = "Purge"
	ErasureTechnique = "Cryptographic Erase"
	ErasureVerified  = "Full verification"
)

// Erasure is a node's certificate of sanitization: the keys of these disks are
// destroyed, and it has read back that they are. Its fields follow the sample
// certificate in NIST SP 800-88 Rev. 1, appendix G. The node signs it with its
// enrolled key.
type Erasure struct {
	Header
	Node         NodeName         `json:"node"`
	NodeKey      []byte           `json:"nodeKey"` // the node's Ed25519 public key, 32 bytes
	OrderID      protocol.OrderID `json:"orderId"`
	Media        []ErasedMedium   `json:"media"`
	Standard     string           `json:"standard"`     // [ErasureStandard]
	Method       string           `json:"method"`       // [ErasurePurge]
	Technique    string           `json:"technique"`    // [ErasureTechnique]
	Details      string           `json:"details"`      // what was overwritten
	Tool         string           `json:"tool"`         // the program
	ToolVersion  string           `json:"toolVersion"`  // and its version
	Verification string           `json:"verification"` // [ErasureVerified]
	OrderedBy    protocol.Person  `json:"orderedBy"`    // who had it done
	Begun        int64            `json:"begun"`        // Unix seconds
	Finished     int64            `json:"finished"`     // Unix seconds: after the last verification
}

// ErasedMedium is one disk that was erased.
type ErasedMedium struct {
	Disk       protocol.DiskID `json:"disk"`
	VolumeGUID string          `json:"volumeGuid"`
	Size       int64           `json:"size"`       // bytes
	Encryption string          `json:"encryption"` // of the data that are left, as in "AES-XTS-128"
}

// ParseErasure reads a certificate of sanitization.
func ParseErasure(payload []byte) (Erasure, error) { return decode[Erasure](payload) }

// Encode returns the canonical bytes of e.
func (e Erasure) Encode() ([]byte, error) { e.V = Version; return encode(e) }

// Kind returns [KindErasure].
func (Erasure) Kind() Kind { return KindErasure }

// VerifyErasure verifies a certificate: signed by the node's own key, for this
// order.
func VerifyErasure(envelope []byte, node NodeRef, order protocol.OrderID) (Erasure, error) {
	e, err := open[Erasure](envelope)
	if err != nil {
		return Erasure{}, err
	}
	if err := verifyNode(e.Envelope, node, e.doc.Node, e.doc.NodeKey); err != nil {
		return Erasure{}, err
	}
	if e.doc.OrderID != order {
		return Erasure{}, protocol.Errorf(protocol.CodeInvalid, "the certificate of node %s is of order %s", e.doc.Node, e.doc.OrderID)
	}
	return e.doc, nil
}

func (e Erasure) check() error {
	_, err := e.Node.ID()
	err = cmp.Or(
		err,
		checkBytes("nodeKey", e.NodeKey, 32),
		checkName("orderId", string(e.OrderID)),
		checkCount("media", len(e.Media), maxDisks),
		checkOneOf("standard", e.Standard, ErasureStandard),
		checkOneOf("method", e.Method, ErasurePurge),
		checkOneOf("technique", e.Technique, ErasureTechnique),
		checkLength("details", e.Details),
		checkName("tool", e.Tool),
		checkName("toolVersion", e.ToolVersion),
		checkOneOf("verification", e.Verification, ErasureVerified),
		checkPerson("orderedBy", e.OrderedBy),
		checkTime("begun", e.Begun),
		checkTime("finished", e.Finished),
	)
	if err != nil {
		return err
	}
	for _, m := range e.Media {
		if !m.Disk.Valid() || m.Size < 1 {
			return fmt.Errorf("media has disk %q of %d bytes: want what can be", m.Disk, m.Size)
		}
		if err := cmp.Or(checkName("media.volumeGuid", m.VolumeGUID), checkName("media.encryption", m.Encryption)); err != nil {
			return err
		}
	}
	return checkUnique("media", e.Media, func(m ErasedMedium) protocol.DiskID { return m.Disk })
}
