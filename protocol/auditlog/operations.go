package auditlog

import (
	"maps"
	"slices"
)

// Operation is what a record says was done. The vocabulary is closed: a record
// with another operation is refused.
type Operation string

// Operations on Lockbox requests. The first seven are the names Azure uses.
const (
	OpCreateRequest      Operation = "Create Lockbox Request"
	OpApproveRequest     Operation = "Approve Lockbox Request"
	OpDenyRequest        Operation = "Deny Lockbox Request"
	OpRequestExpiry      Operation = "Lockbox Request Expiry"
	OpCancelRequest      Operation = "Cancel Lockbox Request"
	OpAutoApproveRequest Operation = "AutoApprove Lockbox Request"
	OpAutoDenyRequest    Operation = "AutoDeny Lockbox Request"
	OpRevokeRequest      Operation = "Revoke Lockbox Request"
	OpExecuteRequest     Operation = "Execute Lockbox Request"
	OpCompleteRequest    Operation = "Complete Lockbox Request"
	OpNotifyApprovers    Operation = "Notify Lockbox Approvers"
	OpCommentRequest     Operation = "Comment Lockbox Request"
	OpBreakGlass         Operation = "Break Glass Access"
	OpExposureAccess     Operation = "Inadvertent Exposure Access"
	OpLegalDemandAccess  Operation = "External Legal Demand Access"
	OpWithoutLockbox     Operation = "Access Without Lockbox"
	OpSignStanding       Operation = "Sign Standing Consent"
	OpRevokeStanding     Operation = "Revoke Standing Consent"
)

// Operations of the JIT evaluation and of tickets.
const (
	OpEvaluateJIT        Operation = "Evaluate JIT Request"
	OpInternalApprove    Operation = "Internal Approve"
	OpInternalDeny       Operation = "Internal Deny"
	OpFileTicket         Operation = "File Ticket"
	OpUpdateTicket       Operation = "Update Ticket"
	OpReadTicket         Operation = "Read Ticket"
	OpAskContact         Operation = "Request Contact Email"
	OpApproveContact     Operation = "Approve Contact Email"
	OpDenyContact        Operation = "Deny Contact Email"
	OpReadContactEmail   Operation = "Read Contact Email"
	OpEnableLockbox      Operation = "Enable Lockbox"
	OpDisableLockbox     Operation = "Disable Lockbox"
	OpUpdateTenant       Operation = "Update Tenant"
	OpCreateTenant       Operation = "Create Tenant"
	OpCreateSubscription Operation = "Create Subscription"
)

// Operations on disks, sessions and shares, recorded by either side.
const (
	OpChallenge       Operation = "Issue Unlock Challenge"
	OpUnlockIntent    Operation = "Unlock Databox Intent"
	OpUnlockVolume    Operation = "Unlock BitLocker Volume"
	OpLockVolume      Operation = "Lock BitLocker Volume"
	OpRefuseUnlock    Operation = "Refuse Unlock"
	OpCommitUnlock    Operation = "Commit Unlock"
	OpOpenShares      Operation = "Open Shares"
	OpCloseShares     Operation = "Close Shares"
	OpEnableSession   Operation = "Enable Support Session"
	OpDisableSession  Operation = "Disable Support Session"
	OpConnectSession  Operation = "Connect Support Session"
	OpEndSession      Operation = "End Support Session"
	OpRefuseSession   Operation = "Refuse Support Session"
	OpRunCommand      Operation = "Run Support Command"
	OpBeginRecording  Operation = "Begin Recording"
	OpNoteRecording   Operation = "Note Recording"
	OpEndRecording    Operation = "End Recording"
	OpRemoveRecording Operation = "Remove Recording"
	OpIssueSSHCert    Operation = "Issue SSH Certificate"
	OpReadShareSecret Operation = "Read Share Credentials"
	OpPrepareToShip   Operation = "Prepare To Ship"
	OpFaultNode       Operation = "Fault Node"
	OpSpendApproval   Operation = "Spend Approval"
	OpReportChanges   Operation = "Report Changed Files"
	OpKillSession     Operation = "Kill Session"
	OpPlayRecording   Operation = "Play Recording"
	OpWatchSession    Operation = "Watch Session"
	OpKeepRecording   Operation = "Keep Recording"
	OpDeleteRecording Operation = "Delete Recording"
)

// Operations on devices and their orders.
const (
	OpPlaceOrder         Operation = "Place Order"
	OpAdvanceOrder       Operation = "Advance Order"
	OpCancelOrder        Operation = "Cancel Order"
	OpReadOrder          Operation = "Read Order"
	OpPrepareDevice      Operation = "Prepare Device"
	OpCreateJoinToken    Operation = "Create Join Token"
	OpEnrolDevice        Operation = "Enrol Device"
	OpRefuseEnrolment    Operation = "Refuse Enrolment"
	OpRevokeDevice       Operation = "Revoke Device"
	OpReadDevice         Operation = "Read Device"
	OpRenewCertificate   Operation = "Renew Device Certificate"
	OpConnectDevice      Operation = "Connect Device"
	OpDisconnectDevice   Operation = "Disconnect Device"
	OpStartAgent         Operation = "Start Agent"
	OpStopAgent          Operation = "Stop Agent"
	OpSignTrustPolicy    Operation = "Sign Trust Policy"
	OpInstallTrustPolicy Operation = "Install Trust Policy"
	OpReplaceTrustPolicy Operation = "Replace Trust Policy"
	OpRecoverTrustPolicy Operation = "Recover Trust Policy"
	OpDeliverTrustPolicy Operation = "Deliver Trust Policy"
	OpCoSign             Operation = "Sign Pending Document"
	OpSignConsent        Operation = "Sign Data Copy Consent"
	OpRevokeConsent      Operation = "Revoke Data Copy Consent"
	OpDataCopyStarted    Operation = "Data Copy Started"
	OpDataCopyHalted     Operation = "Data Copy Halted"
	OpDataCopyPaused     Operation = "Data Copy Paused"
	OpDataCopyResumed    Operation = "Data Copy Resumed"
	OpDataCopyCompleted  Operation = "Data Copy Completed"
	OpReadCopyLog        Operation = "Read Copy Log"
	OpReadUnderAccess    Operation = "Read Under Access" // what an engineer sees by a request for access to a subscription
)

// Operations on keys.
const (
	OpStoreDiskKeys          Operation = "Store Disk Keys"
	OpSealDiskKeys           Operation = "Seal Disk Keys"
	OpExportRecoveryPassword Operation = "Export Recovery Password"
	OpRotateMasterKey        Operation = "Rotate Master Key"
	OpMoveToCustomerKey      Operation = "Move To Customer-Managed Key"
	OpMoveToServiceKey       Operation = "Move To Microsoft-Managed Key"
	OpDeleteDiskKeys         Operation = "Delete Disk Keys"
	OpStoreAccess            Operation = "Store Destination Credential"
	OpDeleteAccess           Operation = "Delete Destination Credential"
	OpSanitizeDisk           Operation = "Sanitize Disk"
	OpRegisterApproverKey    Operation = "Register Approver Key"
	OpRemoveApproverKey      Operation = "Remove Approver Key"
)

// Operations on people and on the service itself.
const (
	OpLogin            Operation = "Login"
	OpRefuseLogin      Operation = "Refuse Login"
	OpLogout           Operation = "Logout"
	OpCreateLoginToken Operation = "Create Login Token"
	OpRenewLogin       Operation = "Renew Login"
	OpCreateUser       Operation = "Create User"
	OpUpdateUser       Operation = "Update User"
	OpDeleteUser       Operation = "Delete User"
	OpAssignRole       Operation = "Assign Role"
	OpRemoveRole       Operation = "Remove Role"
	OpCreateGroup      Operation = "Create Group"
	OpUpdateGroup      Operation = "Update Group"
	OpDeleteGroup      Operation = "Delete Group"
	OpUpdatePolicy     Operation = "Update JIT Policy"
	OpReadActivityLog  Operation = "Read Activity Log"
	OpExportLog        Operation = "Export Activity Log"
	OpPruneLog         Operation = "Prune Activity Log"
	OpPlaceHold        Operation = "Place Legal Hold"
	OpReleaseHold      Operation = "Release Legal Hold"
	OpReadRequest      Operation = "Read Lockbox Request"
	OpReadUser         Operation = "Read User"
	OpRefuseCall       Operation = "Refuse Call"
	OpBackup           Operation = "Backup Store"
	OpRestore          Operation = "Restore Store"
	OpStartService     Operation = "Start Service"
	OpStopService      Operation = "Stop Service"
	OpRetryNotice      Operation = "Retry Notice"
	OpCreateWebhook    Operation = "Create Webhook"
	OpDeleteWebhook    Operation = "Delete Webhook"
	OpTestWebhook      Operation = "Test Webhook"
)

// Category groups operations, as in the Azure activity log.
type Category string

// The categories of operations.
const (
	Administrative Category = "Administrative" // changes to orders, people and settings
	Security       Category = "Security"       // whatever opens, locks, grants or refuses
	Policy         Category = "Policy"         // evaluations of rules
)

// categories is the closed vocabulary, with the category of each operation.
var categories = table(map[Category][]Operation{
	Policy: {OpEvaluateJIT, OpUpdatePolicy, OpSignTrustPolicy, OpInstallTrustPolicy, OpReplaceTrustPolicy, OpRecoverTrustPolicy, OpDeliverTrustPolicy, OpCoSign},
	Security: {
		OpCreateRequest, OpApproveRequest, OpDenyRequest, OpRequestExpiry, OpCancelRequest, OpAutoApproveRequest,
		OpAutoDenyRequest, OpRevokeRequest, OpExecuteRequest, OpCompleteRequest, OpNotifyApprovers, OpCommentRequest, OpBreakGlass,
		OpExposureAccess, OpLegalDemandAccess, OpWithoutLockbox, OpSignStanding, OpRevokeStanding,
		OpInternalApprove, OpInternalDeny, OpAskContact, OpApproveContact, OpDenyContact, OpReadContactEmail, OpEnableLockbox, OpDisableLockbox,
		OpChallenge, OpUnlockIntent, OpUnlockVolume, OpLockVolume, OpRefuseUnlock, OpCommitUnlock, OpOpenShares,
		OpCloseShares, OpEnableSession, OpDisableSession, OpConnectSession, OpEndSession, OpRefuseSession,
		OpRunCommand, OpBeginRecording, OpNoteRecording, OpEndRecording, OpRemoveRecording, OpIssueSSHCert, OpReadShareSecret, OpFaultNode, OpSpendApproval, OpReportChanges,
		OpKillSession, OpPlayRecording, OpWatchSession, OpKeepRecording, OpDeleteRecording,
		OpReadUnderAccess, OpCreateJoinToken, OpEnrolDevice, OpRefuseEnrolment, OpRevokeDevice, OpRenewCertificate,
		OpSignConsent, OpRevokeConsent,
		OpStoreDiskKeys, OpSealDiskKeys, OpExportRecoveryPassword, OpRotateMasterKey, OpMoveToCustomerKey, OpMoveToServiceKey,
		OpDeleteDiskKeys, OpStoreAccess, OpDeleteAccess, OpSanitizeDisk, OpRegisterApproverKey, OpRemoveApproverKey,
		OpPruneLog, OpPlaceHold, OpReleaseHold,
		OpLogin, OpRefuseLogin, OpLogout, OpCreateLoginToken, OpRenewLogin, OpAssignRole, OpRemoveRole, OpRefuseCall,
	},
	Administrative: {
		OpFileTicket, OpUpdateTicket, OpReadTicket, OpUpdateTenant, OpCreateTenant, OpCreateSubscription,
		OpPrepareToShip, OpPlaceOrder, OpAdvanceOrder, OpCancelOrder, OpReadOrder, OpPrepareDevice, OpReadDevice,
		OpConnectDevice, OpDisconnectDevice, OpStartAgent, OpStopAgent, OpDataCopyStarted, OpDataCopyHalted,
		OpDataCopyPaused, OpDataCopyResumed, OpDataCopyCompleted, OpReadCopyLog,
		OpCreateUser, OpUpdateUser, OpDeleteUser, OpCreateGroup, OpUpdateGroup, OpDeleteGroup,
		OpReadActivityLog, OpExportLog, OpReadRequest, OpReadUser, OpBackup, OpRestore, OpStartService, OpStopService,
		OpRetryNotice, OpCreateWebhook, OpDeleteWebhook, OpTestWebhook,
	},
})

func table(groups map[Category][]Operation) map[Operation]Category {
	t := make(map[Operation]Category)
	for category, ops := range groups {
		for _, op := range ops {
			t[op] = category
		}
	}
	return t
}

// ValidOperation reports whether op belongs to the closed vocabulary.
func ValidOperation(op Operation) bool { return categories[op] != "" }

// Category returns the category of op, "" if op is not in the vocabulary.
func (op Operation) Category() Category { return categories[op] }

// Operations returns the whole vocabulary, sorted.
func Operations() []Operation { return slices.Sorted(maps.Keys(categories)) }
