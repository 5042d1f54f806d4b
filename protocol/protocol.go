// Package protocol is what the control plane and the device promise each
// other: the names of things, the states of a node's lock, and the codes with
// which either side refuses.
//
// It imports nothing of ours, so every other package may use it.
package protocol

import (
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// Names of things. Each is a type of its own, so that a request can never be
// passed where a ticket is meant.
type (
	TenantID       string // a customer organisation, e.g. "contoso"
	SubscriptionID string // an Azure subscription GUID
	OrderID        string // an import order, e.g. "ORD-1001"
	TicketID       string // a service request id, e.g. "SR-2001"
	RequestID      string // "LockboxRequest_<guid>"
	SessionID      string // a support session, "SES-<hex>"
	ConsentID      string // a data-copy consent, "CON-<guid>"
	DeviceSerial   string // printed on the device, e.g. "DBX0001"
	DiskID         string // a disk within its node, e.g. "disk1"
	Person         string // a human, by sign-in name, e.g. "erin@provider.example"
)

var serialForm = regexp.MustCompile(`^[A-Z0-9][A-Z0-9-]{2,31}$`)

// Valid reports whether s can be a serial: 3 to 32 of A–Z, 0–9 and dash.
func (s DeviceSerial) Valid() bool { return serialForm.MatchString(string(s)) }

var diskForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// Valid reports whether d can name a disk: 1 to 32 of a–z, 0–9 and dash.
func (d DiskID) Valid() bool { return diskForm.MatchString(string(d)) }

// NodeID is one node of one device. A Data Box has node 1 only; a Data Box
// Heavy has nodes 1 and 2.
type NodeID struct {
	Serial DeviceSerial
	Node   int
}

// String returns "<serial>/<n>", the form people read and type.
func (n NodeID) String() string { return fmt.Sprintf("%s/%d", n.Serial, n.Node) }

// URI returns "databox://<serial>/node/<n>", the URI SAN of the node's
// certificate.
func (n NodeID) URI() *url.URL {
	return &url.URL{Scheme: "databox", Host: string(n.Serial), Path: "/node/" + strconv.Itoa(n.Node)}
}

// ParseNodeID reads the form of [NodeID.String].
func ParseNodeID(s string) (NodeID, error) {
	serial, node, _ := strings.Cut(s, "/")
	return makeNodeID(serial, node, s)
}

// ParseNodeURI reads the form of [NodeID.URI].
func ParseNodeURI(u *url.URL) (NodeID, error) {
	node, ok := strings.CutPrefix(u.Path, "/node/")
	if u.Scheme != "databox" || !ok || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return NodeID{}, fmt.Errorf("%q is not a node: want databox://<serial>/node/<n>", u)
	}
	return makeNodeID(u.Host, node, u.String())
}

func makeNodeID(serial, node, whole string) (NodeID, error) {
	n, err := strconv.Atoi(node)
	id := NodeID{DeviceSerial(serial), n}
	if err != nil || n < 1 || n > 2 || strconv.Itoa(n) != node || !id.Serial.Valid() {
		return NodeID{}, fmt.Errorf("%q is not a node: want <serial>/<1 or 2>, as in DBX0001/1", whole)
	}
	return id, nil
}

// LockState is the state of one node's lock.
type LockState string

// The states of a node's lock. Faulted stays locked and needs staff.
const (
	Locked     LockState = "Locked"
	Challenged LockState = "Challenged"
	Opening    LockState = "Opening"
	Opened     LockState = "Opened"
	Unlocked   LockState = "Unlocked"
	Locking    LockState = "Locking"
	Faulted    LockState = "Faulted"
)

// Purpose is what a lease is for. An approval is valid for one purpose only.
type Purpose string

// The two purposes.
const (
	SupportAccess Purpose = "support-access"
	DataCopy      Purpose = "data-copy"
)
