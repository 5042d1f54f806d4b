package approval

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/databox-lockbox/lockbox/protocol"
)

// Action is what an approval allows. A trust policy has one rule for each.
type Action string

// The actions.
const (
	UnlockDatabox      Action = "unlock-databox"      // a support session; asks for a Statement and decisions
	CopyData           Action = "data-copy"           // the copy job; asks for a Consent
	AccessSubscription Action = "access-subscription" // to see what the service knows of a subscription; judged by the rule of UnlockDatabox, opens no device
)

// Scope is how far a statement that asks for [AccessSubscription] reaches.
type Scope string

// The scopes.
const (
	OfSubscription Scope = "subscription"
	OfTenant       Scope = "tenant" // all subscriptions of the tenant
)

// Access is what the engineer may do with the data.
type Access string

// The kinds of access. Each includes those before it.
const (
	ReadOnly  Access = "read-only"
	ReadWrite Access = "read-write"
	Delete    Access = "delete"
)

// Role is the side for which a decision speaks.
type Role string

// The roles. Each decision has exactly one, and counts for groups of that role.
const (
	Customer Role = "customer"
	Provider Role = "provider"
)

// Verdict is what a decision says.
type Verdict string

// The verdicts.
const (
	Approve Verdict = "approve"
	Deny    Verdict = "deny"
)

// NodeRef names one node of a device and pins its enrolled key.
type NodeRef struct {
	Serial         protocol.DeviceSerial `json:"serial"`
	Node           int                   `json:"node"`           // 1 or 2
	KeyFingerprint Digest                `json:"keyFingerprint"` // KeyFingerprint of its Ed25519 key
}

// ID returns the node's name.
func (n NodeRef) ID() protocol.NodeID { return protocol.NodeID{Serial: n.Serial, Node: n.Node} }

// NodeName is a [protocol.NodeID] as documents write it: "<serial>/<n>".
type NodeName string

// NameOf returns the name of a node.
func NameOf(id protocol.NodeID) NodeName { return NodeName(id.String()) }

// ID reads the name back.
func (n NodeName) ID() (protocol.NodeID, error) { return protocol.ParseNodeID(string(n)) }

// DiskRef names one disk of one node.
type DiskRef struct {
	Node NodeName        `json:"node"`
	Disk protocol.DiskID `json:"disk"`
}

// Engineer is who asks, and the key they will come in with.
type Engineer struct {
	Person protocol.Person `json:"person"`
	SSHKey string          `json:"sshKey"` // fingerprint of their SSH key, "SHA256:…" as ssh-keygen -l prints it
}

// Protocol is a way to reach the shares that a node opens only under a statement
// that names it.
type Protocol string

// NFS has no login: whoever connects from an address that the node's configuration
// allows is let in.
const NFS Protocol = "nfs"

// Statement is the request statement: what everyone decides on. It is
// immutable; its digest is the request digest.
type Statement struct {
	Header
	RequestID      protocol.RequestID      `json:"requestId"`
	Action         Action                  `json:"action"`
	TenantID       protocol.TenantID       `json:"tenantId"`
	SubscriptionID protocol.SubscriptionID `json:"subscriptionId"`
	OrderID        protocol.OrderID        `json:"orderId"`
	Nodes          []NodeRef               `json:"nodes,omitempty"`     // every node of one device; none for AccessSubscription
	Disks          []DiskRef               `json:"disks,omitempty"`     // at least one of each node; none for AccessSubscription
	Shares         []string                `json:"shares,omitempty"`    // only these, "<account>_<kind>"; all of the disks if empty
	Protocols      []Protocol              `json:"protocols,omitempty"` // over which the shares are served beside SMB
	Purpose        protocol.Purpose        `json:"purpose"`
	Access         Access                  `json:"access"`
	ReasonCode     string                  `json:"reasonCode"`
	Ticket         protocol.TicketID       `json:"ticket"`
	Engineer       Engineer                `json:"engineer"`
	MaxDuration    int64                   `json:"maxDuration"` // seconds
	PolicyDigest   Digest                  `json:"policyDigest"`
	Created        int64                   `json:"created"`             // Unix seconds
	Expires        int64                   `json:"expires"`             // Unix seconds; the last moment to decide, not the end of the access
	Exclusion      Exclusion               `json:"exclusion,omitempty"` // why the customer is not asked; "" when they are
	Scope          Scope                   `json:"scope,omitempty"`     // exactly for AccessSubscription
}

// ParseStatement reads a request statement.
func ParseStatement(payload []byte) (Statement, error) { return decode[Statement](payload) }

// Encode returns the canonical bytes of s.
func (s Statement) Encode() ([]byte, error) { s.V = Version; return encode(s) }

// Kind returns [KindRequest].
func (Statement) Kind() Kind { return KindRequest }

// DisksOf returns the disks of one node that s asks for.
func (s Statement) DisksOf(id protocol.NodeID) []protocol.DiskID { return disksOf(s.Disks, id) }

func (s Statement) check() error {
	return cmp.Or(
		checkName("requestId", string(s.RequestID)),
		checkForm("action", string(s.Action), tokenForm),
		checkName("tenantId", string(s.TenantID)),
		checkName("subscriptionId", string(s.SubscriptionID)),
		checkName("orderId", string(s.OrderID)),
		s.checkWhat(),
		checkForm("purpose", string(s.Purpose), tokenForm),
		checkOneOf("access", s.Access, ReadOnly, ReadWrite, Delete),
		checkForm("reasonCode", s.ReasonCode, tokenForm),
		checkName("ticket", string(s.Ticket)),
		checkPerson("engineer.person", s.Engineer.Person),
		checkForm("engineer.sshKey", s.Engineer.SSHKey, fingerprintForm),
		checkDuration("maxDuration", s.MaxDuration),
		checkDigest("policyDigest", s.PolicyDigest),
		checkTime("created", s.Created),
		checkTime("expires", s.Expires),
		checkPeriod("created", s.Created, "expires", s.Expires),
		s.checkExclusion(),
	)
}

// checkWhat refuses a statement whose fields do not say one thing: an access to a
// subscription that names anything of a device, or what else names no device.
func (s Statement) checkWhat() error {
	if s.Action != AccessSubscription {
		if s.Scope != "" {
			return fmt.Errorf("scope is %q: only %s has one", s.Scope, AccessSubscription)
		}
		return cmp.Or(checkDevice(s.Nodes, s.Disks), checkShares(s.Shares), checkProtocols(s.Protocols))
	}
	if len(s.Nodes)+len(s.Disks)+len(s.Shares)+len(s.Protocols) > 0 || s.Exclusion != "" {
		return fmt.Errorf("%s opens no device and has no exclusion: leave out nodes, disks, shares, protocols and exclusion", AccessSubscription)
	}
	return cmp.Or(checkOneOf("scope", s.Scope, OfSubscription, OfTenant), checkOneOf("access", s.Access, ReadOnly))
}

// Decision is what one person said about one statement, for one role.
type Decision struct {
	Header
	RequestDigest Digest  `json:"requestDigest"`
	Role          Role    `json:"role"`
	Verdict       Verdict `json:"verdict"`
	MaxDuration   int64   `json:"maxDuration"`      // seconds; 0 exactly when denying
	DecidedAt     int64   `json:"decidedAt"`        // Unix seconds
	Signer        string  `json:"signer"`           // key id in the trust policy
	Reason        string  `json:"reason,omitempty"` // in the person's words
}

// ParseDecision reads a decision.
func ParseDecision(payload []byte) (Decision, error) { return decode[Decision](payload) }

// Encode returns the canonical bytes of d.
func (d Decision) Encode() ([]byte, error) { d.V = Version; return encode(d) }

// Kind returns [KindDecision].
func (Decision) Kind() Kind { return KindDecision }

func (d Decision) check() error {
	return cmp.Or(
		checkDigest("requestDigest", d.RequestDigest),
		checkOneOf("role", d.Role, Customer, Provider),
		checkOneOf("verdict", d.Verdict, Approve, Deny),
		d.checkDuration(),
		checkTime("decidedAt", d.DecidedAt),
		checkForm("signer", d.Signer, keyIDForm),
		checkLength("reason", d.Reason),
	)
}

func (d Decision) checkDuration() error {
	if d.Verdict == Approve {
		return checkDuration("maxDuration", d.MaxDuration)
	}
	if d.MaxDuration != 0 {
		return fmt.Errorf("maxDuration must be 0 when denying, is %d", d.MaxDuration)
	}
	return nil
}

// Revocation ends a request or a consent for good. Anyone the trust policy
// names may sign one, and so may the service: ending access needs no
// customer's signature.
type Revocation struct {
	Header
	SubjectDigest Digest `json:"subjectDigest"` // of the statement or the consent
	Reason        string `json:"reason,omitempty"`
	RevokedAt     int64  `json:"revokedAt"` // Unix seconds; for the record, it takes effect when seen
	Signer        string `json:"signer"`    // key id in the trust policy, or fingerprint of a service key
}

// ParseRevocation reads a revocation.
func ParseRevocation(payload []byte) (Revocation, error) { return decode[Revocation](payload) }

// Encode returns the canonical bytes of r.
func (r Revocation) Encode() ([]byte, error) { r.V = Version; return encode(r) }

// Kind returns [KindRevocation].
func (Revocation) Kind() Kind { return KindRevocation }

func (r Revocation) check() error {
	return cmp.Or(
		checkDigest("subjectDigest", r.SubjectDigest),
		checkLength("reason", r.Reason),
		checkTime("revokedAt", r.RevokedAt),
		checkForm("signer", r.Signer, keyIDForm),
	)
}

// Destination is one place to which the copy job may write.
type Destination struct {
	Account    string `json:"account"`
	Endpoint   string `json:"endpoint"`             // URL of the account's blob service
	ServerName string `json:"serverName,omitempty"` // name the server's certificate must carry; the endpoint's host if empty
}

// Consent lets the copy job unlock these disks and write to these
// destinations, again and again until it ends. Its envelope carries the
// signatures of the customers; it says nothing of a signer, so that all sign
// the same bytes. It is never valid for support.
type Consent struct {
	Header
	ConsentID      protocol.ConsentID      `json:"consentId"`
	TenantID       protocol.TenantID       `json:"tenantId"`
	SubscriptionID protocol.SubscriptionID `json:"subscriptionId"`
	OrderID        protocol.OrderID        `json:"orderId"`
	Nodes          []NodeRef               `json:"nodes"`
	Disks          []DiskRef               `json:"disks"`
	Destinations   []Destination           `json:"destinations"`
	PolicyDigest   Digest                  `json:"policyDigest"`
	Created        int64                   `json:"created"` // Unix seconds
	Until          int64                   `json:"until"`   // Unix seconds
}

// ParseConsent reads a data-copy consent.
func ParseConsent(payload []byte) (Consent, error) { return decode[Consent](payload) }

// Encode returns the canonical bytes of c.
func (c Consent) Encode() ([]byte, error) { c.V = Version; return encode(c) }

// Kind returns [KindConsent].
func (Consent) Kind() Kind { return KindConsent }

// DisksOf returns the disks of one node that c names.
func (c Consent) DisksOf(id protocol.NodeID) []protocol.DiskID { return disksOf(c.Disks, id) }

func (c Consent) check() error {
	return cmp.Or(
		checkName("consentId", string(c.ConsentID)),
		checkName("tenantId", string(c.TenantID)),
		checkName("subscriptionId", string(c.SubscriptionID)),
		checkName("orderId", string(c.OrderID)),
		checkDevice(c.Nodes, c.Disks),
		checkDestinations(c.Destinations),
		checkDigest("policyDigest", c.PolicyDigest),
		checkTime("created", c.Created),
		checkTime("until", c.Until),
		checkPeriod("created", c.Created, "until", c.Until),
	)
}

func checkDestinations(list []Destination) error {
	if err := checkCount("destinations", len(list), maxList); err != nil {
		return err
	}
	for _, d := range list {
		err := cmp.Or(
			checkName("destinations.account", d.Account),
			checkName("destinations.endpoint", d.Endpoint),
			checkLength("destinations.serverName", d.ServerName),
		)
		if err != nil {
			return err
		}
	}
	return checkUnique("destinations", list, func(d Destination) string { return d.Account })
}

// checkNodes refuses nodes that are not those of one device.
func checkNodes(nodes []NodeRef) error {
	if err := checkCount("nodes", len(nodes), 2); err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Serial != nodes[0].Serial {
			return fmt.Errorf("nodes names two devices, %s and %s: ask for one", nodes[0].Serial, n.Serial)
		}
		_, err := NameOf(n.ID()).ID()
		if err := cmp.Or(err, checkDigest("nodes.keyFingerprint", n.KeyFingerprint)); err != nil {
			return err
		}
	}
	return checkUnique("nodes", nodes, NodeRef.ID)
}

// checkDevice refuses nodes and disks that are not those of one device.
func checkDevice(nodes []NodeRef, disks []DiskRef) error {
	if err := cmp.Or(checkNodes(nodes), checkCount("disks", len(disks), maxDisks)); err != nil {
		return err
	}
	for _, n := range nodes {
		if len(disksOf(disks, n.ID())) == 0 {
			return fmt.Errorf("disks has none of node %s", n.ID())
		}
	}
	for _, d := range disks {
		if !d.Disk.Valid() {
			return fmt.Errorf("disks has %q: want 1 to 32 of a-z, 0-9 and dash", d.Disk)
		}
		if !slices.ContainsFunc(nodes, func(n NodeRef) bool { return NameOf(n.ID()) == d.Node }) {
			return fmt.Errorf("disks has node %q, which is not in nodes", d.Node)
		}
	}
	return checkUnique("disks", disks, func(d DiskRef) DiskRef { return d })
}

// checkShares refuses what is no list of share names; an empty one is fine.
func checkShares(list []string) error {
	if len(list) > maxList {
		return fmt.Errorf("shares must have at most %d entries, has %d", maxList, len(list))
	}
	for _, name := range list {
		if err := checkForm("shares", name, shareForm); err != nil {
			return err
		}
	}
	return checkUnique("shares", list, func(name string) string { return name })
}

// checkProtocols refuses what is no list of protocols; an empty one is fine, and
// one of a later version of this program's.
func checkProtocols(list []Protocol) error {
	if len(list) > maxList {
		return fmt.Errorf("protocols must have at most %d entries, has %d", maxList, len(list))
	}
	for _, name := range list {
		if err := checkForm("protocols", string(name), tokenForm); err != nil {
			return err
		}
	}
	return checkUnique("protocols", list, func(name Protocol) string { return string(name) })
}

func disksOf(disks []DiskRef, id protocol.NodeID) []protocol.DiskID {
	var list []protocol.DiskID
	for _, d := range disks {
		if d.Node == NameOf(id) {
			list = append(list, d.Disk)
		}
	}
	return list
}
