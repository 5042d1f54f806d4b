package approval_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/protocol"
	. "github.com/databox-lockbox/lockbox/protocol/approval"
)

// samples returns one valid document of each kind.
func samples(t testing.TB) []Document {
	t.Helper()
	s := newScene(t)
	s.unlock(t)
	s.copyRequest(t)
	m := newMachines(t)
	m.signAll(t)
	decision, revocation := s.decisions[0].doc, revoke("alice-laptop").doc
	decision.RequestDigest, decision.Reason = DigestOf(nil), `she said "yes" \ étude`
	revocation.SubjectDigest = DigestOf(nil)
	m.opened[0].OrderDigest = DigestOf(nil)
	withStanding(t, s)
	standing := s.standing.doc
	standing.PolicyDigest = DigestOf(nil)
	return []Document{
		s.statement, decision, revocation, s.consent.doc, s.policy.doc, standing,
		m.challenge, m.order, m.opened[0], m.commit, m.changes(), m.erasure(),
	}
}

// parse reads a payload as a kind says.
func parse(kind Kind, payload []byte) (Document, error) {
	switch kind {
	case KindRequest:
		return ParseStatement(payload)
	case KindDecision:
		return ParseDecision(payload)
	case KindRevocation:
		return ParseRevocation(payload)
	case KindConsent:
		return ParseConsent(payload)
	case KindStanding:
		return ParseStanding(payload)
	case KindPolicy:
		return ParseTrustPolicy(payload)
	case KindChallenge:
		return ParseChallenge(payload)
	case KindOrder:
		return ParseOrder(payload)
	case KindOpened:
		return ParseOpened(payload)
	case KindCommit:
		return ParseCommit(payload)
	case KindErasure:
		return ParseErasure(payload)
	case KindChanges:
		return ParseChanges(payload)
	}
	panic("no such kind: " + kind)
}

func TestRoundTrip(t *testing.T) {
	for _, doc := range samples(t) {
		t.Run(string(doc.Kind()), func(t *testing.T) {
			payload := must[[]byte](t)(doc.Encode())
			again := must[[]byte](t)(must[Document](t)(parse(doc.Kind(), payload)).Encode())
			if diff := cmp.Diff(string(payload), string(again)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// respell changes the spelling of a document, but not its meaning.
var respell = map[string]func(string) string{
	"space before":       func(s string) string { return " " + s },
	"space within":       func(s string) string { return strings.Replace(s, ":", ": ", 1) },
	"newline after":      func(s string) string { return s + "\n" },
	"byte order mark":    func(s string) string { return "\ufeff" + s },
	"another after":      func(s string) string { return s + s },
	"field in capitals":  func(s string) string { return strings.Replace(s, `"v"`, `"V"`, 1) },
	"field twice":        func(s string) string { return strings.Replace(s, `"v":1`, `"v":1,"v":1`, 1) },
	"unknown field":      func(s string) string { return strings.Replace(s, `"v":1`, `"v":1,"x":1`, 1) },
	"version last":       func(s string) string { return "{" + strings.TrimSuffix(s[len(`{"v":1,`):], "}") + `,"v":1}` },
	"version 1.0":        func(s string) string { return strings.Replace(s, `"v":1`, `"v":1.0`, 1) },
	"version 2":          func(s string) string { return strings.Replace(s, `"v":1`, `"v":2`, 1) },
	"no version":         func(s string) string { return strings.Replace(s, `"v":1,`, ``, 1) },
	"needless escape":    func(s string) string { return strings.Replace(s, `"v"`, `"\u0076"`, 1) },
	"huge":               func(s string) string { return s + strings.Repeat(" ", MaxOrder) },
	"empty object":       func(string) string { return "{}" },
	"empty":              func(string) string { return "" },
	"null":               func(string) string { return "null" },
	"array":              func(s string) string { return "[" + s + "]" },
	"first number null":  func(s string) string { return strings.Replace(s, `"v":1`, `"v":null`, 1) },
	"cut by a character": func(s string) string { return s[:len(s)-1] },
}

// TestSpelling respells each document. Nothing but the canonical form may be
// read.
func TestSpelling(t *testing.T) {
	for _, doc := range samples(t) {
		payload := string(must[[]byte](t)(doc.Encode()))
		for name, change := range respell {
			t.Run(string(doc.Kind())+" "+name, func(t *testing.T) {
				_, err := parse(doc.Kind(), []byte(change(payload)))
				wantCode(t, err, protocol.CodeInvalid)
			})
		}
	}
}

// TestText checks what a person may write: anything that looks like itself.
func TestText(t *testing.T) {
	good := []string{"", "plain", `quotes " and \ slashes`, "<b>&amp;", "日本語 العربية עברית", "emoji 🔓👩\u200d💻", strings.Repeat("x", 1024)}
	bad := []string{
		"two\nlines", "tab\t", "bell\a", "escape \x1b[2J", "delete \x7f", "C1 \u009b2J", "line\u2028separator", "paragraph\u2029separator",
		"right to left \u202e override", "isolate \u2067", "mark \u200f", "not UTF-8 \xff", "half a pair \xed\xa0\x80", strings.Repeat("x", 1025),
	}
	encode := func(reason string) error {
		d := Decision{RequestDigest: DigestOf(nil), Role: Customer, Verdict: Deny, DecidedAt: created, Signer: "alice", Reason: reason}
		payload, err := d.Encode()
		if err != nil {
			return err
		}
		back, err := ParseDecision(payload)
		if err == nil && back.Reason != reason {
			t.Errorf("%q came back as %q", reason, back.Reason)
		}
		return err
	}
	for _, s := range good {
		if err := encode(s); err != nil {
			t.Errorf("%q is refused: %v", s, err)
		}
	}
	for _, s := range bad {
		if err := encode(s); protocol.CodeOf(err) != protocol.CodeInvalid {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// TestFields walks through values that are not allowed, one at a time.
func TestFields(t *testing.T) {
	type test struct {
		name string
		doc  Document
	}
	var tests []test
	statement := func(name string, change func(*Statement)) {
		s := newScene(t)
		s.unlock(t)
		change(&s.statement)
		tests = append(tests, test{"statement " + name, s.statement})
	}
	statement("without request", func(s *Statement) { s.RequestID = "" })
	statement("with a long request", func(s *Statement) { s.RequestID = protocol.RequestID(strings.Repeat("x", 129)) })
	statement("without action", func(s *Statement) { s.Action = "" })
	statement("without tenant", func(s *Statement) { s.TenantID = "" })
	statement("without subscription", func(s *Statement) { s.SubscriptionID = "" })
	statement("without order", func(s *Statement) { s.OrderID = "" })
	statement("without nodes", func(s *Statement) { s.Nodes, s.Disks = nil, nil })
	statement("with a bad serial", func(s *Statement) { s.Nodes[0].Serial = "dbx"; s.Disks[0].Node, s.Disks[1].Node = "dbx/1", "dbx/1" })
	statement("with node 3", func(s *Statement) { s.Nodes[0].Node = 3; s.Disks[0].Node, s.Disks[1].Node = "DBX0001/3", "DBX0001/3" })
	statement("with three nodes", func(s *Statement) { s.Nodes = append(s.Nodes, node(2), node(2)) })
	statement("with a node twice", func(s *Statement) { s.Nodes = append(s.Nodes, node(1)) })
	statement("with two devices", func(s *Statement) {
		s.Nodes = append(s.Nodes, NodeRef{"DBX0002", 1, DigestOf(nil)})
		s.Disks = append(s.Disks, DiskRef{"DBX0002/1", "disk1"})
	})
	statement("without fingerprint", func(s *Statement) { s.Nodes[0].KeyFingerprint = "" })
	statement("without disks", func(s *Statement) { s.Disks = nil })
	statement("without disks of a node", func(s *Statement) { s.Nodes = append(s.Nodes, node(2)) })
	statement("with a disk twice", func(s *Statement) { s.Disks = append(s.Disks, s.Disks[0]) })
	statement("with a bad disk", func(s *Statement) { s.Disks[0].Disk = "../disk" })
	statement("with a disk of another node", func(s *Statement) { s.Disks = append(s.Disks, DiskRef{"DBX0001/2", "disk1"}) })
	statement("with a share that is a path", func(s *Statement) { s.Shares = []string{"../contosodata_BlockBlob"} })
	statement("with a share of an unknown kind", func(s *Statement) { s.Shares = []string{"contosodata_Tape"} })
	statement("with a share twice", func(s *Statement) { s.Shares = []string{"contosodata_BlockBlob", "contosodata_BlockBlob"} })
	statement("with a protocol that is no token", func(s *Statement) { s.Protocols = []Protocol{"NFS"} })
	statement("with a protocol twice", func(s *Statement) { s.Protocols = []Protocol{NFS, NFS} })
	statement("with too many shares", func(s *Statement) { s.Shares = make([]string, 65) })
	statement("without purpose", func(s *Statement) { s.Purpose = "" })
	statement("with unknown access", func(s *Statement) { s.Access = "root" })
	statement("without reason", func(s *Statement) { s.ReasonCode = "" })
	statement("with free text as reason", func(s *Statement) { s.ReasonCode = "because I say so" })
	statement("without ticket", func(s *Statement) { s.Ticket = "" })
	statement("without engineer", func(s *Statement) { s.Engineer.Person = "" })
	statement("with an engineer in capitals", func(s *Statement) { s.Engineer.Person = "Erin@provider.example" })
	statement("without the engineer's key", func(s *Statement) { s.Engineer.SSHKey = "" })
	statement("with a hexadecimal fingerprint", func(s *Statement) { s.Engineer.SSHKey = string(DigestOf(nil)) })
	statement("without duration", func(s *Statement) { s.MaxDuration = 0 })
	statement("with a negative duration", func(s *Statement) { s.MaxDuration = -1 })
	statement("with an endless duration", func(s *Statement) { s.MaxDuration = 1 << 40 })
	statement("without policy", func(s *Statement) { s.PolicyDigest = "" })
	statement("with a digest in capitals", func(s *Statement) { s.PolicyDigest = Digest(strings.ToUpper(string(DigestOf(nil)))) })
	statement("without creation", func(s *Statement) { s.Created = 0 })
	statement("with an endless expiry", func(s *Statement) { s.Expires = 1 << 62 })
	statement("expiring at once", func(s *Statement) { s.Expires = s.Created })
	statement("with an unknown exclusion", func(s *Statement) { s.Exclusion = "because" })

	decision := func(name string, change func(*Decision)) {
		d := Decision{RequestDigest: DigestOf(nil), Role: Customer, Verdict: Approve, MaxDuration: 1, DecidedAt: created, Signer: "alice"}
		change(&d)
		tests = append(tests, test{"decision " + name, d})
	}
	decision("without request", func(d *Decision) { d.RequestDigest = "" })
	decision("of another role", func(d *Decision) { d.Role = "service" })
	decision("with another verdict", func(d *Decision) { d.Verdict = "maybe" })
	decision("approving for no time", func(d *Decision) { d.MaxDuration = 0 })
	decision("denying for some time", func(d *Decision) { d.Verdict = Deny })
	decision("without time", func(d *Decision) { d.DecidedAt = 0 })
	decision("without signer", func(d *Decision) { d.Signer = "" })

	revocation := func(name string, change func(*Revocation)) {
		r := Revocation{SubjectDigest: DigestOf(nil), RevokedAt: created, Signer: "alice"}
		change(&r)
		tests = append(tests, test{"revocation " + name, r})
	}
	revocation("without subject", func(r *Revocation) { r.SubjectDigest = "" })
	revocation("without time", func(r *Revocation) { r.RevokedAt = 0 })
	revocation("without signer", func(r *Revocation) { r.Signer = "" })

	consent := func(name string, change func(*Consent)) {
		s := newScene(t)
		s.copyRequest(t)
		change(&s.consent.doc)
		tests = append(tests, test{"consent " + name, s.consent.doc})
	}
	consent("without id", func(c *Consent) { c.ConsentID = "" })
	consent("without destination", func(c *Consent) { c.Destinations = nil })
	consent("without account", func(c *Consent) { c.Destinations[0].Account = "" })
	consent("without endpoint", func(c *Consent) { c.Destinations[0].Endpoint = "" })
	consent("with an account twice", func(c *Consent) { c.Destinations = append(c.Destinations, c.Destinations[0]) })
	consent("without disks", func(c *Consent) { c.Disks = nil })
	consent("ending before it begins", func(c *Consent) { c.Until = c.Created - 1 })

	standing := func(name string, change func(*Standing)) {
		s := newScene(t)
		withStanding(t, s)
		s.standing.doc.PolicyDigest = DigestOf(nil)
		change(&s.standing.doc)
		tests = append(tests, test{"standing consent " + name, s.standing.doc})
	}
	standing("without id", func(s *Standing) { s.StandingID = "" })
	standing("with another verdict", func(s *Standing) { s.Verdict = "maybe" })
	standing("without tenant", func(s *Standing) { s.TenantID = "" })
	standing("without order", func(s *Standing) { s.OrderID = "" })
	standing("without nodes", func(s *Standing) { s.Nodes = nil })
	standing("with two devices", func(s *Standing) { s.Nodes = append(s.Nodes, NodeRef{"DBX0002", 1, DigestOf(nil)}) })
	standing("with a node twice", func(s *Standing) { s.Nodes = append(s.Nodes, s.Nodes[0]) })
	standing("without node key", func(s *Standing) { s.Nodes[0].KeyFingerprint = "" })
	standing("without reasons", func(s *Standing) { s.ReasonCodes = nil })
	standing("with a reason twice", func(s *Standing) { s.ReasonCodes = append(s.ReasonCodes, s.ReasonCodes[0]) })
	standing("with any reason", func(s *Standing) { s.ReasonCodes[0] = "*" })
	standing("with unknown access", func(s *Standing) { s.Access = "all" })
	standing("approving for no time", func(s *Standing) { s.MaxDuration = 0 })
	standing("denying for some time", func(s *Standing) { s.Verdict = Deny })
	standing("without policy", func(s *Standing) { s.PolicyDigest = "" })
	standing("without creation", func(s *Standing) { s.Created = 0 })
	standing("ending before it begins", func(s *Standing) { s.Until = s.Created })
	standing("for years", func(s *Standing) { s.Until = s.Created + 367*24*3600 })

	challenge := func(name string, change func(*Challenge)) {
		m := newMachines(t)
		change(&m.challenge)
		tests = append(tests, test{"challenge " + name, m.challenge})
	}
	challenge("without node", func(c *Challenge) { c.Node = "" })
	challenge("with a short nonce", func(c *Challenge) { c.Nonce = c.Nonce[:31] })
	challenge("with a long node key", func(c *Challenge) { c.NodeKey = append(c.NodeKey, 0) })
	challenge("without key", func(c *Challenge) { c.HPKEKey = nil })
	challenge("with a huge key", func(c *Challenge) { c.HPKEKey = make([]byte, 4097) })

	order := func(name string, change func(*Order)) {
		m := newMachines(t)
		change(&m.order)
		tests = append(tests, test{"order " + name, m.order})
	}
	order("with another purpose", func(o *Order) { o.Purpose = "fun" })
	order("for no node", func(o *Order) { o.Node = "DBX0001" })
	order("without keys", func(o *Order) { o.Keys = nil })
	order("with a disk twice", func(o *Order) { o.Keys = append(o.Keys, o.Keys[0]) })
	order("with a bad disk", func(o *Order) { o.Keys[0].Disk = "" })
	order("without key type", func(o *Order) { o.Keys[0].KeyType = "" })
	order("with an empty key", func(o *Order) { o.Keys[0].Ciphertext = nil })
	order("without nonce", func(o *Order) { o.Nonce = nil })
	order("without checkpoint", func(o *Order) { o.LogCheckpoint = nil })
	order("without record", func(o *Order) { o.LogRecord = nil })
	order("with a negative index", func(o *Order) { o.LogIndex = -1 })
	order("with a short hash", func(o *Order) { o.LogProof[0] = o.LogProof[0][:31] })
	order("with a long proof", func(o *Order) { o.LogConsistency = make([][]byte, 65) })

	opened := Opened{Node: "DBX0001/1", NodeKey: seed("k"), IntentDigest: DigestOf(nil), RequestDigest: DigestOf(nil), OpenedAt: created}
	tests = append(tests, test{"opened without order", opened})
	opened.OrderDigest, opened.IntentDigest = DigestOf(nil), ""
	tests = append(tests, test{"opened without intent", opened})
	tests = append(tests, test{"commit without proof", Commit{RequestDigest: DigestOf(nil), IssuedAt: created}})
	tests = append(tests, test{"commit with three proofs", Commit{RequestDigest: DigestOf(nil), Opened: [][]byte{{1}, {2}, {3}}, IssuedAt: created}})

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.doc.Encode()
			wantCode(t, err, protocol.CodeInvalid)
		})
	}
}
