package protocol

import (
	"errors"
	"fmt"
)

// Code names why something was refused. Codes cross the tunnel and the API,
// and are recorded; people and programs may rely on them.
type Code string

// Refusals of an unlock by the device, in the order in which it checks.
const (
	CodePeer             Code = "peer-not-control-plane"
	CodeServiceSignature Code = "service-signature-invalid"
	CodeNonce            Code = "nonce-not-outstanding"
	CodeDecisionMissing  Code = "decision-missing"      // a required role has too few valid approvals
	CodeSignatureInvalid Code = "signature-invalid"     // a signature does not verify
	CodeSignerUnknown    Code = "signer-not-in-policy"  // signed by a key the trust policy does not name for that role
	CodeSignerEngineer   Code = "signer-is-engineer"    // the engineer's own key or person approved
	CodeDenied           Code = "decision-is-deny"      // a required role decided deny
	CodePolicyDigest     Code = "trust-policy-mismatch" // the statement was made under another trust policy
	CodeAction           Code = "action-not-allowed"    // action, purpose or destination not in policy
	CodeNode             Code = "node-mismatch"         // the approval is for another device, node or node key
	CodeDisks            Code = "disks-mismatch"        // a disk missing, unknown, or its key does not fit
	CodeDiskKey          Code = "disk-key-wrong"        // the sealed key does not open the disk
	CodeWindow           Code = "outside-window"        // not yet valid, or over
	CodeClock            Code = "clock-not-trusted"     // the clock is below the high-water mark, or off by more than two minutes
	CodeRevoked          Code = "revoked"
	CodeSpent            Code = "spent"
	CodeCheckpoint       Code = "log-checkpoint-inconsistent"
	CodeBusy             Code = "busy"         // another lease or attempt holds the node
	CodeNotRecorded      Code = "not-recorded" // the intent could not be journalled, so nothing was opened
	CodeFaulted          Code = "faulted"
	CodeNotOpened        Code = "not-opened" // commit without every node's proof of opening
)

// Refusals and errors of the services on both sides.
const (
	CodeInvalid         Code = "invalid-argument"
	CodeUnauthenticated Code = "unauthenticated"
	CodeForbidden       Code = "forbidden"
	CodeNotFound        Code = "not-found"
	CodeConflict        Code = "conflict" // the state does not allow it, or somebody was faster
	CodeUnavailable     Code = "unavailable"
	CodeOffline         Code = "device-offline"
	CodeTimeout         Code = "deadline-exceeded"
	CodeLimit           Code = "limit-exceeded"
	CodeNotEnabled      Code = "lockbox-not-enabled"
	CodeSupportPlan     Code = "support-plan-too-low"
	CodeNotApproved     Code = "not-approved"
	CodeJITBlocked      Code = "jit-blocked"
	CodeTokenUsed       Code = "join-token-spent"
	CodeTokenSerial     Code = "join-token-serial"
	CodeTokenExpired    Code = "join-token-expired"
	CodeLocked          Code = "disks-locked"
	CodeRecording       Code = "recording-damaged" // it is not whole, not closed, or not signed by its node
	CodeStorageFull     Code = "storage-full"
	CodeKeyService      Code = "key-service-unavailable" // whatever wraps the keys does not answer, or refuses the service
	CodeCustomerKey     Code = "customer-key-refused"    // the customer's key cannot be used; the message begins with the published name of why
	CodeInternal        Code = "internal"
)

// Error is a refusal with its code. Its message is for the person refused: it
// says what was wrong and what to do, and holds no secret.
type Error struct {
	Code    Code
	Message string
}

func (e *Error) Error() string { return e.Message + " (" + string(e.Code) + ")" }

// Errorf makes an [*Error].
func Errorf(code Code, format string, args ...any) error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// CodeOf returns the code of err: "" for nil, [CodeInternal] for an error that
// carries none.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}
