package api

import (
	"context"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/custody"
	"github.com/databox-lockbox/lockbox/controlplane/internal/lockbox"
	"github.com/databox-lockbox/lockbox/controlplane/internal/notify"
	"github.com/databox-lockbox/lockbox/controlplane/internal/orders"
	"github.com/databox-lockbox/lockbox/controlplane/internal/recordings"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// Services answer the procedures.
type Services struct {
	Accounts   *auth.Service
	Orders     *orders.Service
	Lockbox    *lockbox.Service
	Custody    *custody.Service
	Audit      *audit.Service
	Notices    *notify.Service
	Recordings *recordings.Service
}

// Who may call. Everything a customer sees is limited to their tenant by the
// services.
var (
	anyone    = auth.Roles()
	admins    = []auth.Role{auth.Admin}
	staff     = []auth.Role{auth.Admin, auth.Staff}
	customers = []auth.Role{auth.TenantAdmin, auth.Owner, auth.Approver}
	ownership = []auth.Role{auth.Admin, auth.TenantAdmin, auth.Owner}
	engineers = []auth.Role{auth.Engineer}
	deciders  = []auth.Role{auth.TenantAdmin, auth.Owner, auth.Approver, auth.InternalApprover}
	jobs      = []auth.Role{auth.Admin, auth.Staff, auth.Engineer}
	ticketing = []auth.Role{auth.Admin, auth.Staff, auth.Engineer, auth.TenantAdmin, auth.Owner, auth.Approver}
	filenames = ticketing // engineers of their own orders only
	endAccess = []auth.Role{auth.Admin, auth.Engineer, auth.InternalApprover, auth.TenantAdmin, auth.Owner, auth.Approver}
	provider  = []auth.Role{auth.Admin, auth.Staff, auth.Engineer, auth.InternalApprover, auth.Auditor}
	auditors  = []auth.Role{auth.Admin, auth.Auditor}
	players   = []auth.Role{auth.Admin, auth.Engineer, auth.TenantAdmin, auth.Owner, auth.Approver} // engineers their own only
	killers   = []auth.Role{auth.Admin, auth.TenantAdmin, auth.Owner, auth.Approver}
)

const (
	accounts = "/lockbox.v1.AccountService/"
	tenants  = "/lockbox.v1.TenantService/"
	order    = "/lockbox.v1.OrderService/"
	devices  = "/lockbox.v1.DeviceService/"
	tickets  = "/lockbox.v1.TicketService/"
	sessions = "/lockbox.v1.SessionService/"
	records  = "/lockbox.v1.RecordingService/"
	requests = "/lockbox.v1.RequestService/"
	standing = "/lockbox.v1.StandingService/"
	keys     = "/lockbox.v1.KeyService/"
	activity = "/lockbox.v1.AuditService/"
	notices  = "/lockbox.v1.NoticeService/"
	policies = "/lockbox.v1.PolicyService/"
	contacts = "/lockbox.v1.ContactService/"
	lists    = "/lockbox.v1.CatalogueService/"
	enrol    = "/device.v1.EnrolmentService/"
)

// publicRoutes is the table: every procedure of the API port, once.
func publicRoutes(s Services) []route {
	return []route{
		open(accounts+"Login", s.Accounts.Login),
		open(accounts+"ListSignIns", s.Accounts.ListSignIns),
		open(accounts+"SignIn", s.Accounts.SignIn),
		unary(accounts+"Logout", anyone, s.Accounts.Logout),
		unary(accounts+"WhoAmI", anyone, s.Accounts.WhoAmI),
		unary(accounts+"RenewCertificate", anyone, s.Accounts.RenewCertificate),
		unary(accounts+"CreatePerson", ownership, s.Accounts.CreatePerson),
		unary(accounts+"ListPeople", anyone, s.Accounts.ListPeople),
		unary(accounts+"RemovePerson", ownership, s.Accounts.RemovePerson),
		unary(accounts+"AddKey", ownership, s.Accounts.AddKey),
		unary(accounts+"RemoveKey", ownership, s.Accounts.RemoveKey),
		unary(accounts+"CreateLoginToken", ownership, s.Accounts.CreateLoginToken),
		unary(accounts+"SetGroups", admins, s.Accounts.SetGroups),

		unary(tenants+"CreateTenant", admins, s.Orders.CreateTenant),
		unary(tenants+"GetTenant", anyone, s.Orders.GetTenant),
		unary(tenants+"ListTenants", anyone, s.Orders.ListTenants),
		unary(tenants+"CreateSubscription", admins, s.Orders.CreateSubscription),
		unary(tenants+"EnableLockbox", ownership, s.Orders.EnableLockbox),
		unary(tenants+"DisableLockbox", ownership, s.Orders.DisableLockbox),
		unary(tenants+"SetTenant", ownership, s.Orders.SetTenant),

		unary(tenants+"ReportApplicability", append(auditors, customers...), s.Orders.ReportApplicability),

		unary(order+"PlaceOrder", ownership, s.Orders.PlaceOrder),
		unary(order+"GetOrder", anyone, s.Orders.GetOrder),
		unary(order+"ListOrders", anyone, s.Orders.ListOrders),
		unary(order+"PrepareDevice", staff, s.Orders.PrepareDevice),
		unary(order+"AdvanceOrder", staff, s.Orders.AdvanceOrder),
		unary(order+"DraftTrustPolicy", customers, s.Orders.DraftTrustPolicy),
		unary(order+"SubmitTrustPolicy", customers, s.Orders.SubmitTrustPolicy),
		unary(order+"GetTrustPolicy", anyone, s.Orders.GetTrustPolicy),
		unary(order+"GetPolicyDelivery", anyone, s.Orders.GetPolicyDelivery),
		unary(order+"ListPendingDocuments", anyone, s.Orders.ListPendingDocuments),
		unary(order+"DraftConsent", customers, s.Orders.DraftConsent),
		unary(order+"SubmitConsent", customers, s.Orders.SubmitConsent),
		unary(order+"RevokeConsent", customers, s.Orders.RevokeConsent),
		unary(order+"SetDestinationAccess", []auth.Role{auth.TenantAdmin, auth.Owner}, s.Orders.SetDestinationAccess),
		unary(order+"RemoveDestinationAccess", []auth.Role{auth.TenantAdmin, auth.Owner}, s.Orders.RemoveDestinationAccess),
		unary(order+"CreateJoinToken", staff, s.Orders.CreateJoinToken),
		progress(order+"StartJob", jobs, s.Orders.StartJob),
		unary(order+"GetCopyLog", filenames, s.Orders.GetCopyLog),
		unary(order+"GetManifest", filenames, s.Orders.GetManifest),
		unary(order+"EraseOrder", staff, s.Orders.EraseOrder),
		unary(order+"GetErasure", anyone, s.Orders.GetErasure),

		unary(devices+"ListDevices", anyone, s.Orders.ListDevices),
		unary(devices+"GetDevice", anyone, s.Orders.GetDevice),
		unary(devices+"RevokeDevice", admins, s.Orders.RevokeDevice),

		unary(tickets+"FileTicket", ticketing, s.Orders.FileTicket),
		unary(tickets+"GetTicket", anyone, s.Orders.GetTicket),
		unary(tickets+"ListTickets", anyone, s.Orders.ListTickets),
		unary(tickets+"CommentTicket", ticketing, s.Orders.CommentTicket),
		unary(tickets+"AssignTicket", staff, s.Orders.AssignTicket),

		unary(sessions+"EnableSession", engineers, s.Lockbox.EnableSession),
		unary(sessions+"GetSession", anyone, s.Lockbox.GetSession),
		unary(sessions+"ListSessions", anyone, s.Lockbox.ListSessions),
		unary(sessions+"DisableSession", []auth.Role{auth.Admin, auth.Staff, auth.Engineer, auth.TenantAdmin, auth.Owner, auth.Approver}, s.Lockbox.DisableSession),
		unary(sessions+"IssueCertificate", engineers, s.Lockbox.IssueCertificate),

		unary(records+"ListRecordings", players, s.Recordings.ListRecordings),
		unary(records+"GetRecording", players, s.Recordings.GetRecording),
		stream(records+"ReadRecording", players, s.Recordings.ReadRecording),
		unary(records+"KillSession", killers, s.Lockbox.KillSession),

		unary(requests+"CreateRequest", engineers, s.Lockbox.CreateRequest),
		unary(requests+"GetRequest", anyone, s.Lockbox.GetRequest),
		unary(requests+"ListRequests", anyone, s.Lockbox.ListRequests),
		unary(requests+"DraftDecision", deciders, s.Lockbox.DraftDecision),
		// Engineers are let through to be told, by name, that nobody decides
		// about their own request.
		unary(requests+"Decide", append([]auth.Role{auth.Engineer}, deciders...), s.Lockbox.Decide),
		unary(requests+"CancelRequest", []auth.Role{auth.Admin, auth.Engineer}, s.Lockbox.CancelRequest),
		progress(requests+"ExecuteRequest", engineers, s.Lockbox.ExecuteRequest),
		unary(requests+"RevokeRequest", endAccess, s.Lockbox.RevokeRequest),
		unary(requests+"CommentRequest", append([]auth.Role{auth.Engineer}, deciders...), s.Lockbox.CommentRequest),
		unary(requests+"ExtendRequest", engineers, s.Lockbox.ExtendRequest),
		unary(requests+"RaiseRequestAgain", engineers, s.Lockbox.RaiseRequestAgain),
		unary(requests+"GetChanges", []auth.Role{auth.Admin, auth.Engineer, auth.TenantAdmin, auth.Owner, auth.Approver}, s.Lockbox.GetChanges),

		unary(standing+"DraftStandingConsent", customers, s.Lockbox.DraftStandingConsent),
		unary(standing+"SubmitStandingConsent", customers, s.Lockbox.SubmitStandingConsent),
		unary(standing+"ListStandingConsents", anyone, s.Lockbox.ListStandingConsents),
		unary(standing+"RevokeStandingConsent", customers, s.Lockbox.RevokeStandingConsent),

		unary(keys+"ListKeys", append([]auth.Role{auth.Auditor}, staff...), s.Custody.ListKeys),
		unary(keys+"ExportRecoveryPassword", admins, s.Custody.ExportRecoveryPassword),
		unary(keys+"GetKeyStatus", auditors, s.Custody.GetKeyStatus),
		unary(keys+"RotateKey", admins, s.Custody.RotateKey),
		unary(keys+"GetOrderKey", anyone, s.Custody.GetOrderKey),
		unary(keys+"SetOrderKey", []auth.Role{auth.TenantAdmin, auth.Owner}, s.Custody.SetOrderKey),

		unary(activity+"ListRecords", append(auditors, customers...), s.Audit.ListRecords),
		stream(activity+"ExportLog", auditors, s.exportLog),
		unary(activity+"GetCheckpoint", anyone, s.Audit.GetCheckpoint),
		unary(activity+"PlaceHold", auditors, s.Audit.PlaceHold),
		unary(activity+"ReleaseHold", auditors, s.Audit.ReleaseHold),
		unary(activity+"ListHolds", auditors, s.Audit.ListHolds),
		unary(activity+"ListSinks", auditors, s.Audit.ListSinks),

		unary(notices+"ListNotices", append([]auth.Role{auth.Auditor}, ownership...), s.Notices.ListNotices),
		unary(notices+"RetryNotices", ownership, s.Notices.RetryNotices),
		unary(notices+"CreateWebhook", ownership, s.Notices.CreateWebhook),
		unary(notices+"ListWebhooks", append([]auth.Role{auth.Auditor}, ownership...), s.Notices.ListWebhooks),
		unary(notices+"RemoveWebhook", ownership, s.Notices.RemoveWebhook),
		unary(notices+"TestWebhook", ownership, s.Notices.TestWebhook),

		unary(policies+"GetPolicies", provider, s.Lockbox.GetPolicies),
		unary(policies+"WhyRequest", anyone, s.Lockbox.WhyRequest),
		unary(policies+"WhoCouldUnlock", anyone, s.Lockbox.WhoCouldUnlock),

		unary(contacts+"AskContact", []auth.Role{auth.Staff, auth.Engineer, auth.InternalApprover}, s.Lockbox.AskContact),
		unary(contacts+"DecideContact", []auth.Role{auth.InternalApprover}, s.Lockbox.DecideContact),
		unary(contacts+"ReadContact", []auth.Role{auth.Staff, auth.Engineer, auth.InternalApprover}, s.Lockbox.ReadContact),
		unary(contacts+"ListContacts", anyone, s.Lockbox.ListContacts),

		unary(lists+"ListOperations", anyone, listOperations),

		open(enrol+"Enrol", s.Orders.Enrol),
	}
}

// exportLog adapts the log's export.
func (s Services) exportLog(ctx context.Context, caller auth.Caller, req *lockboxv1.ExportLogRequest, send func(*lockboxv1.ExportLogResponse) error) error {
	return s.Audit.ExportLog(ctx, caller, req, func(data []byte) error { return send(&lockboxv1.ExportLogResponse{Data: data}) })
}
