package scenario

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net"
	"os"
	"strings"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/simulator/actor"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// foreignApproval is a good approval of the other device.
type foreignApproval struct {
	statement []byte
	decisions [][]byte
	requestID string
	number    string
}

// seized stops lockboxd, puts a hostile control plane with all its keys in its
// place, and starts lockboxd again afterwards.
func (s *Story) seized(ctx context.Context, attack func(*actor.Hostile)) {
	s.out.tried("lockboxd is stopped; a hostile one takes its place, with its authorities, service key, log key, database and disk keys")
	s.stopControl()
	h, err := actor.Seize(s.w.DataDir())
	s.must(err)
	ln, err := net.Listen("tcp", strings.Replace(s.w.Tunnel, "localhost", "127.0.0.1", 1))
	s.must(err)
	serving, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(serving, ln) }()
	defer func() {
		stop()
		<-ended
		s.startControl(ctx)
	}()
	attack(h)
}

// target is the node that is attacked.
func (s *Story) target() world.Node { return s.w.Device.Nodes[0] }

// good is an attempt with everything right.
func (s *Story) good() actor.Attempt {
	a := actor.Attempt{
		Statement: s.statement, Decisions: [][]byte{s.provider, s.customer}, Policy: s.policy(),
		Keys: make(map[protocol.DiskID][]byte), Correlation: protocol.RequestID(s.requestID),
	}
	for _, d := range s.target().Disks {
		a.Keys[d.ID] = s.keys[world.KeyName(s.target().ID, d.ID)].External
	}
	return a
}

// deviceRefuses makes an attempt that the device must refuse with code.
func (s *Story) deviceRefuses(ctx context.Context, h *actor.Hostile, what string, code protocol.Code, a actor.Attempt) actor.Result {
	s.out.tried("hostile: %s", what)
	r, err := h.Try(ctx, s.target().ID, a)
	s.hold(err != nil, "the device opened for this: %s", what)
	s.hold(protocol.CodeOf(err) == code, "the device refused with %v, want %s", err, code)
	s.out.back("refused by the device: " + err.Error())
	return r
}

// deviceOpens makes an attempt in which nothing is wrong any more: the control.
func (s *Story) deviceOpens(ctx context.Context, h *actor.Hostile, what string, a actor.Attempt) actor.Result {
	s.out.tried("its control: %s", what)
	r, err := h.Try(ctx, s.target().ID, a)
	s.hold(err == nil && r.Opened, "with only that fault repaired it must open, but: %v", err)
	s.must(h.Lock(ctx, s.target().ID))
	s.out.back("opened; relocked, nothing was shared")
	return r
}

// foreignStatement is the request's statement, but for the other device.
func (s *Story) foreignStatement(ctx context.Context) []byte {
	st, err := approval.ParseStatement(s.statement)
	s.must(err)
	node := s.device(ctx, s.w.Other.Serial).Nodes[0]
	st.Nodes = []approval.NodeRef{{Serial: s.w.Other.Serial, Node: int(node.Node), KeyFingerprint: approval.Digest(node.KeyFingerprint)}}
	st.Disks = []approval.DiskRef{{Node: approval.NameOf(s.w.Other.Nodes[0].ID), Disk: s.w.Other.Nodes[0].Disks[0].ID}}
	payload, err := st.Encode()
	s.must(err)
	return payload
}

// decide has the internal approver and the customer approve a statement.
func (s *Story) decide(statement []byte) [][]byte {
	return [][]byte{
		s.sign(statement, s.w.People["ivan"], s.keyID("ivan"), approval.Provider),
		s.sign(statement, s.w.People["olga"], s.keyID("olga"), approval.Customer),
	}
}

// forge signs an approval of the request, as the customer's, with anybody's key
// under any key id.
func (s *Story) forge(signer actor.Person, keyID string) []byte {
	return s.sign(s.statement, signer, keyID, approval.Customer)
}

func (s *Story) sign(statement []byte, signer actor.Person, keyID string, role approval.Role) []byte {
	st, err := approval.ParseStatement(statement)
	s.must(err)
	envelope, err := signer.Sign(approval.Decision{
		RequestDigest: approval.DigestOf(statement), Role: role, Verdict: approval.Approve,
		MaxDuration: st.MaxDuration, DecidedAt: time.Now().Unix(), Signer: keyID,
	}, keyID)
	s.must(err)
	return envelope
}

// policy is the device's trust policy, of which there is only the first version.
func (s *Story) policy() []byte {
	data, err := os.ReadFile(s.policyPath(s.w.Device.Order))
	s.must(err)
	return bytes.TrimSpace(data)
}

// keyID returns the id of a person's key in the trust policy; for somebody it
// does not name, what the id would be.
func (s *Story) keyID(short string) string {
	policy, err := approval.VerifyPolicyV1(s.policy())
	s.must(err)
	fingerprint, err := s.w.People[short].Fingerprint()
	s.must(err)
	if k, ok := policy.Document().KeyByFingerprint(fingerprint); ok {
		return k.ID
	}
	return "key-of-" + short
}

func (s *Story) attackWithoutDecision(ctx context.Context) {
	s.seized(ctx, func(h *actor.Hostile) {
		a := s.good()
		a.Decisions = [][]byte{s.provider}
		s.deviceRefuses(ctx, h, "a well-signed order, the right disk keys, no customer's decision", protocol.CodeDecisionMissing, a)
		a.Decisions = [][]byte{s.provider, s.forge(s.w.People["emil"], s.keyID("emil"))}
		s.deviceRefuses(ctx, h, "the customer's decision by a key that is not an approver's", protocol.CodeSignerUnknown, a)
		a.Decisions = [][]byte{s.provider, s.forge(s.w.People["erin"], s.keyID("erin"))}
		s.deviceRefuses(ctx, h, "the customer's decision by the engineer's own key", protocol.CodeSignerEngineer, a)
		a.Decisions = [][]byte{s.provider, s.forge(s.w.People["emil"], s.keyID("olga"))}
		s.deviceRefuses(ctx, h, "another's key under the approver's name", protocol.CodeSignatureInvalid, a)
	})
	s.online(ctx, s.w.Device, protocol.Locked)
	s.refusalsOnRecord(ctx, 4)
}

// refusalsOnRecord waits until the device's own records of its refusals have
// reached the activity log.
func (s *Story) refusalsOnRecord(ctx context.Context, n int) {
	found := &lockboxv1.ListRecordsResponse{}
	s.until(ctx, fmt.Sprintf("%d refusals are in the activity log", n), func() bool {
		s.ask(ctx, found, "admin", "audit", "list", "--operation", "Refuse Unlock")
		return len(found.Records) >= n
	})
	s.out.held("%d refusals by the device are in the activity log", len(found.Records))
}

func (s *Story) attackWithDecision(ctx context.Context) {
	s.approveOther(ctx)
	foreign := s.foreignStatement(ctx)
	s.seized(ctx, func(h *actor.Hostile) {
		r := s.deviceOpens(ctx, h, "the same order with the approver's own decision", s.good())
		s.captured = r.Order

		a := s.good()
		a.Statement, a.Decisions, a.Correlation = s.other.statement, s.other.decisions, protocol.RequestID(s.other.requestID)
		s.deviceRefuses(ctx, h, "the approval of another order's device, "+string(s.w.Other.Serial), protocol.CodePolicyDigest, a)
		a.Statement, a.Decisions = foreign, s.decide(foreign)
		s.deviceRefuses(ctx, h, "an approval of that device under this order's trust policy, truly signed by all", protocol.CodeNode, a)
		s.deviceOpens(ctx, h, "this device's approval", s.good())

		a = s.good()
		a.Keys = maps.Clone(a.Keys)
		for disk := range a.Keys {
			wrong := make([]byte, 32)
			rand.Read(wrong)
			a.Keys[disk] = wrong
			break
		}
		s.deviceRefuses(ctx, h, "a good approval with the wrong key for one disk", protocol.CodeDiskKey, a)
		s.deviceOpens(ctx, h, "the right keys", s.good())

		a = s.good()
		a.Replay = s.captured
		s.deviceRefuses(ctx, h, "an order that was captured before", protocol.CodeNonce, a)
		s.deviceOpens(ctx, h, "the same, with a fresh challenge", s.good())
	})
	s.online(ctx, s.w.Device, protocol.Locked)
	s.refusalsOnRecord(ctx, 8)
	s.provesLocked(ctx)
}

// approveOther gets a good approval of the other device.
func (s *Story) approveOther(ctx context.Context) {
	number := s.otherRequest(ctx, "unlock the other device")
	c := s.quietly(ctx, "olga", "request", "approve", number, "--key", s.w.People["olga"].KeyFile(), "--yes")
	s.hold(c.code == 0, "olga cannot approve: %s", c.err)
	r := s.request(ctx, number)
	s.other = foreignApproval{statement: r.Statement.Payload, requestID: r.Id, number: number}
	for _, d := range r.Decisions {
		s.other.decisions = append(s.other.decisions, d.Envelope)
	}
	s.out.held("a request for the other device, %s, is approved by the same customer", s.w.Other.Serial)
}

// otherRequest raises a request for the other device and has it approved
// internally.
func (s *Story) otherRequest(ctx context.Context, why string) string {
	t := &lockboxv1.Ticket{}
	s.ask(ctx, t, "olga", "ticket", "file", string(s.w.Other.Order), "--title", why)
	s.ok(ctx, "sam", "ticket", "assign", t.Id, string(s.w.People["erin"].Name))
	r := &lockboxv1.Request{}
	s.ask(ctx, r, "erin", "request", "create", "--device", string(s.w.Other.Serial), "--ticket", t.Id,
		"--reason-code", "prepare-to-ship-not-run", "--justification", why)
	number := fmt.Sprint(r.Number)
	c := s.quietly(ctx, "ivan", "request", "approve", number, "--key", s.w.People["ivan"].KeyFile(), "--yes")
	s.hold(c.code == 0, "ivan cannot approve: %s", c.err)
	return number
}

// replay sends a captured order again while the device is unlocked.
func (s *Story) replay(ctx context.Context) {
	s.seized(ctx, func(h *actor.Hostile) {
		a := s.good()
		a.Replay = s.captured
		s.deviceRefuses(ctx, h, "the captured order, while the device is unlocked for the engineer", protocol.CodeBusy, a)
	})
	s.online(ctx, s.w.Device, protocol.Unlocked)
	s.refusalsOnRecord(ctx, 9)
	s.out.held("the device stayed unlocked for the engineer; lockboxd is back, and so is the device")
}

func (s *Story) attackSpent(ctx context.Context) {
	number, fresh := s.freshApproval(ctx)
	s.seized(ctx, func(h *actor.Hostile) {
		a := s.good()
		a.Replay = s.captured
		s.deviceRefuses(ctx, h, "the captured order, once the device is locked again", protocol.CodeNonce, a)
		s.deviceRefuses(ctx, h, "the approval that was used, with a fresh challenge and everything else right", protocol.CodeSpent, s.good())
		s.deviceOpens(ctx, h, "an approval that was not used yet", fresh)
	})
	s.online(ctx, s.w.Device, protocol.Locked)
	s.refusalsOnRecord(ctx, 11)
	s.ok(ctx, "olga", "request", "revoke", number, "--reason", "only a control")
	s.provesLocked(ctx)
}

// freshApproval gets a second approval of the device, and an attempt with it.
func (s *Story) freshApproval(ctx context.Context) (number string, a actor.Attempt) {
	s.online(ctx, s.w.Device, protocol.Locked)
	r := &lockboxv1.Request{}
	s.ask(ctx, r, "erin", "request", "create", "--device", string(s.w.Device.Serial), "--ticket", s.ticket,
		"--reason-code", "copied-to-wrong-folder", "--justification", "look once more")
	number = fmt.Sprint(r.Number)
	for _, who := range []string{"ivan", "olga"} {
		c := s.quietly(ctx, who, "request", "approve", number, "--key", s.w.People[who].KeyFile(), "--yes")
		s.hold(c.code == 0, "%s cannot approve: %s", who, c.err)
	}
	a = s.good()
	approved := s.request(ctx, number)
	a.Statement, a.Correlation, a.Decisions = approved.Statement.Payload, protocol.RequestID(approved.Id), nil
	for _, d := range approved.Decisions {
		a.Decisions = append(a.Decisions, d.Envelope)
	}
	return number, a
}

func (s *Story) sideStories(ctx context.Context) {
	denied := s.otherRequest(ctx, "one that is denied")
	s.ok(ctx, "olga", "request", "deny", denied, "--key", s.w.People["olga"].KeyFile(), "--reason", "not now", "--yes")
	s.hold(s.request(ctx, denied).Status == "Denied", "the request is %s", s.request(ctx, denied).Status)
	c := s.lockbox(ctx, "andy", "request", "approve", denied, "--key", s.w.People["andy"].KeyFile(), "--yes")
	s.out.back(c.err)
	s.hold(c.code != 0 && s.request(ctx, denied).Status == "Denied", "a denied request was approved")
	s.refused(ctx, []protocol.Code{protocol.CodeNotApproved, protocol.CodeConflict}, "erin", "request", "execute", denied)

	const expiry = 3 * time.Second
	s.out.tried("lockboxd is restarted with demo_timers: requests expire after %s", expiry)
	s.stopControl()
	s.must(s.w.WriteControlConfig(expiry))
	s.startControl(ctx)
	log, err := os.ReadFile(s.procs.logFile(controlPlane))
	s.must(err)
	s.hold(bytes.Contains(log, []byte("demo_timers is on")), "lockboxd does not warn of demo_timers")
	_, warning, _ := strings.Cut(string(log), "demo_timers is on")
	s.out.back("demo_timers is on" + warning[:strings.IndexAny(warning, "\x1b\n")]) // without colours
	s.online(ctx, s.w.Other, protocol.Locked)
	left := s.otherRequest(ctx, "one that nobody answers")
	s.until(ctx, "the request has expired", func() bool { return s.request(ctx, left).Status == "Expired" })
	s.ok(ctx, "olga", "request", "show", left)
	s.refused(ctx, []protocol.Code{protocol.CodeNotApproved, protocol.CodeConflict}, "erin", "request", "execute", left)
	s.verifyLog(ctx)
}

// verifyLog lists the activity log, verifies it offline, and finds one flipped
// bit.
func (s *Story) verifyLog(ctx context.Context) {
	for _, op := range []string{
		"Create Lockbox Request", "Approve Lockbox Request", "Deny Lockbox Request", "Lockbox Request Expiry",
		"Unlock Databox Intent", "Unlock BitLocker Volume", "Lock BitLocker Volume", "Refuse Unlock",
	} {
		found := &lockboxv1.ListRecordsResponse{}
		s.until(ctx, op+" is in the log", func() bool {
			s.ask(ctx, found, "admin", "audit", "list", "--operation", op)
			return len(found.Records) > 0
		})
	}
	for _, op := range []string{"Create Lockbox Request", "Approve Lockbox Request", "Deny Lockbox Request", "Lockbox Request Expiry"} {
		s.ok(ctx, "admin", "audit", "list", "--operation", op)
	}
	s.ok(ctx, "admin", "audit", "list", "--operation", "Unlock Databox Intent")
	s.ok(ctx, "admin", "audit", "list", "--operation", "Lock BitLocker Volume")
	export := s.secretFile("activity-log", "")
	s.ok(ctx, "admin", "audit", "export", "--out", export)
	s.ok(ctx, "olga", "audit", "verify", export, "--log-key", s.logKey)
	data, err := os.ReadFile(export)
	s.must(err)
	data[len(data)/2] ^= 1
	flipped := s.secretFile("activity-log-flipped", string(data))
	s.out.tried("one bit of a copy is flipped, then: lockbox audit verify")
	c := s.quietly(ctx, "olga", "audit", "verify", flipped, "--log-key", s.logKey)
	s.out.back(c.err)
	s.hold(c.code != 0, "a flipped bit was not found")
}
