package api

import (
	"context"
	"slices"
	"strings"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// operation is something that people can do. Only what touches the customer's
// data makes a Lockbox request.
type operation struct {
	name, what string
	right      string   // beyond the role, "" if nothing
	data       bool     // it touches the customer's data
	request    bool     // it is asked for by a Lockbox request
	device     bool     // it is done at a device: in a support session, or by staff beside it
	calls      []string // procedures; who may is read from their rows
	shares     []string // procedures that stand behind another operation too
	roles      []auth.Role
}

// catalogue is the table of operations. Every procedure stands behind one of them;
// a test compares it with the rows.
var catalogue = []operation{
	{name: "Unlock Databox", what: "Open the disks of a halted device for the engineer who asked, for a time.", data: true, request: true,
		right: "a ticket of their own, the JIT rules, internal approvers, the customer's approval",
		calls: []string{requests + "CreateRequest", requests + "ExecuteRequest", requests + "ExtendRequest", requests + "RaiseRequestAgain"}},
	{name: "Access Subscription", what: "See in full, for a time, what the service knows of the orders and devices of a subscription, or of a tenant; no disk is opened.", data: true, request: true,
		right:  "a ticket of their own, the JIT rules, internal approvers, the customer's approval; for a tenant, its administrators'",
		shares: []string{requests + "CreateRequest", requests + "ExtendRequest", requests + "RaiseRequestAgain"}},
	{name: "Decide Lockbox Request", what: "Approve or deny a request, by a signature; read and comment it.",
		right: "the role when the request was made and a key that the trust policy names; never one's own request",
		calls: []string{requests + "DraftDecision", requests + "Decide", requests + "CommentRequest", requests + "GetRequest", requests + "ListRequests"}},
	{name: "End Lockbox Request", what: "Withdraw what waits, or revoke what was approved: sessions close, disks lock.",
		right: "to withdraw: one's own request; to revoke: any approver, or the engineer",
		calls: []string{requests + "CancelRequest", requests + "RevokeRequest"}},
	{name: "Sign Standing Consent", what: "Decide for the customer before anybody asks.", right: "the signatures that the trust policy asks for",
		calls: []string{standing + "DraftStandingConsent", standing + "SubmitStandingConsent", standing + "ListStandingConsents", standing + "RevokeStandingConsent"}},
	{name: "Open Support Session", what: "Look at a device over SSH; its disks stay locked.", right: "a ticket of their own, and their own SSH key",
		calls: []string{sessions + "EnableSession", sessions + "GetSession", sessions + "ListSessions", sessions + "DisableSession", sessions + "IssueCertificate"}},
	{name: "Watch And Play Recordings", what: "See what was done in support sessions and on shares, live or later.", data: true,
		right: "the customer; the engineer: their own; an admin: of sessions that have ended",
		calls: []string{records + "ListRecordings", records + "GetRecording", records + "ReadRecording"}},
	{name: "Kill Session", what: "End a support session at once; disks lock, its engineer's approvals are spent.",
		calls: []string{records + "KillSession"}},
	{name: "Work On Tickets", what: "File, read, comment, assign and escalate tickets.", right: "to assign: staff",
		calls: []string{tickets + "FileTicket", tickets + "GetTicket", tickets + "ListTickets", tickets + "CommentTicket", tickets + "AssignTicket"}},
	{name: "Read Contact Email", what: "Read the contact address of a customer, who is told.", right: "the approval of a manager who is somebody else",
		calls: []string{contacts + "AskContact", contacts + "DecideContact", contacts + "ReadContact", contacts + "ListContacts"}},
	{name: "Read JIT Policies", what: "See the rules, why a request passed them, and who could unlock a device.",
		calls: []string{policies + "GetPolicies", policies + "WhyRequest", policies + "WhoCouldUnlock"}},
	{name: "Read Order", what: "See orders and devices, and where they are.",
		calls: []string{order + "GetOrder", order + "ListOrders", devices + "GetDevice", devices + "ListDevices"}},
	{name: "Read File Names", what: "Read the copy log, the manifests and what was touched under a request: names, sizes and sums, no content.",
		right: "an engineer: a ticket of that order; their own request", calls: []string{order + "GetCopyLog", order + "GetManifest", requests + "GetChanges"}},
	{name: "Manage Order", what: "Place an order, prepare its device, record its trip.",
		calls: []string{order + "PlaceOrder", order + "PrepareDevice", order + "AdvanceOrder", order + "CreateJoinToken"}},
	{name: "Sign Trust Policy", what: "Say whose signatures the device wants.", right: "the signatures that the policy before asks for",
		calls: []string{order + "DraftTrustPolicy", order + "SubmitTrustPolicy", order + "GetTrustPolicy", order + "GetPolicyDelivery", order + "ListPendingDocuments"}},
	{name: "Sign Data Copy Consent", what: "Allow the copy job to write to the accounts that it names.", right: "the signatures that the trust policy asks for",
		calls: []string{order + "DraftConsent", order + "SubmitConsent", order + "RevokeConsent"}},
	{name: "Run Data Copy", what: "Start or resume the copy job: to the customer's own accounts, seen by nobody.", right: "the customer's signed consent",
		calls: []string{order + "StartJob"}},
	{name: "Erase Disks", what: "Destroy the keys on the disks of a completed order and those kept of them; read the certificates.",
		right: "that the device itself has completed the copy, and no legal hold", calls: []string{order + "EraseOrder", order + "GetErasure"}},
	{name: "Revoke Device", what: "End a node's certificates; it locks.", calls: []string{devices + "RevokeDevice"}},
	{name: "Enrol Device", what: "Make a node known.", right: "a join token, of one use", calls: []string{enrol + "Enrol"}},
	{name: "Look After Keys", what: "See which keys wrap the disks' keys, and wrap them anew.",
		calls: []string{keys + "ListKeys", keys + "GetKeyStatus", keys + "GetOrderKey", keys + "RotateKey"}},
	{name: "Move To Customer-Managed Key", what: "Wrap an order's keys with one of the customer's, for good.", calls: []string{keys + "SetOrderKey"}},
	{name: "Hand Over Destination Credentials", what: "Give into custody what lets the copy job into the customer's storage accounts, or have it destroyed.",
		right: "an owner's own word: it is used under their consent only, and shown to nobody", calls: []string{order + "SetDestinationAccess", order + "RemoveDestinationAccess"}},
	{name: "Export Recovery Password", what: "Reveal what opens a disk in hand; recorded before it is shown.", data: true,
		right: "for recovery outside of support, by an admin: no request opens a disk that way", calls: []string{keys + "ExportRecoveryPassword"}},
	{name: "Manage Tenant", what: "Tenants, subscriptions, and whether Lockbox is on.",
		calls: []string{tenants + "CreateTenant", tenants + "GetTenant", tenants + "ListTenants", tenants + "CreateSubscription", tenants + "EnableLockbox",
			tenants + "DisableLockbox", tenants + "SetTenant", tenants + "ReportApplicability"}},
	{name: "Manage People", what: "People, their roles, groups and keys.", right: "an owner: of their own tenant",
		calls: []string{accounts + "CreatePerson", accounts + "ListPeople", accounts + "RemovePerson", accounts + "AddKey", accounts + "RemoveKey",
			accounts + "CreateLoginToken", accounts + "SetGroups"}},
	{name: "Sign In", what: "Get a certificate, renew it, give it back.",
		calls: []string{accounts + "Login", accounts + "ListSignIns", accounts + "SignIn", accounts + "Logout", accounts + "WhoAmI", accounts + "RenewCertificate"}},
	{name: "Read Activity Log", what: "Read, export and verify what was done; hold it.",
		calls: []string{activity + "ListRecords", activity + "ExportLog", activity + "GetCheckpoint", activity + "PlaceHold", activity + "ReleaseHold",
			activity + "ListHolds", activity + "ListSinks"}},
	{name: "Look After Notices", what: "See who was told of what; webhooks.",
		calls: []string{notices + "ListNotices", notices + "RetryNotices", notices + "CreateWebhook", notices + "ListWebhooks", notices + "RemoveWebhook", notices + "TestWebhook"}},
	{name: "List Operations", what: "This list.", calls: []string{lists + "ListOperations"}},

	{name: "Look At Device", what: "State, logs and hardware of a device, in a support session.", device: true, roles: engineers,
		right: "a support session"},
	{name: "Repair Data", what: "Work on files of unlocked disks, through the shares, in a support session.", device: true, data: true, request: true,
		roles: engineers, right: "an executed request for Unlock Databox, of the same engineer and key"},
	{name: "Lock Device", what: "Lock the disks at once, beside the device; needs nobody's approval.", device: true, roles: []auth.Role{auth.Staff},
		right: "the device's local socket"},
	{name: "Install Trust Policy", what: "Give a new device its first trust policy, beside it.", device: true, roles: []auth.Role{auth.Staff},
		right: "the device's local socket, and a policy that the customer signed"},
}

// listOperations shows the catalogue, with who may as the rows say.
func listOperations(context.Context, auth.Caller, *lockboxv1.ListOperationsRequest) (*lockboxv1.ListOperationsResponse, error) {
	rows := make(map[string]route)
	for _, r := range publicRoutes(Services{}) {
		rows[r.procedure] = r
	}
	out := &lockboxv1.ListOperationsResponse{}
	for _, o := range catalogue {
		shown := &lockboxv1.Operation{
			Name: o.name, On: "service", What: o.what, Right: o.right, CustomerData: o.data, LockboxRequest: o.request,
		}
		if o.device {
			shown.On = "device"
		}
		calls := slices.Concat(o.calls, o.shares)
		for _, role := range auth.Roles() {
			may := slices.ContainsFunc(calls, func(call string) bool { return rows[call].roles != nil && rows[call].allows(role) })
			if may || slices.Contains(o.roles, role) {
				shown.Roles = append(shown.Roles, string(role))
			}
		}
		for _, call := range calls {
			shown.Calls = append(shown.Calls, strings.TrimPrefix(call, "/lockbox.v1."))
		}
		out.Operations = append(out.Operations, shown)
	}
	return out, nil
}
