package approval_test

import (
	"encoding/base64"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/protocol"
	. "github.com/databox-lockbox/lockbox/protocol/approval"
)

var update = flag.Bool("update", false, "write the test vectors anew")

const (
	vectorDir  = "testdata/vectors"
	commonFile = "testdata/common.txt"
)

// vector is one test vector: headers, in order, of which some may repeat.
// testdata/README.md says what they mean.
type vector struct {
	name    string
	headers [][2]string
}

func (v *vector) add(header, value string) { v.headers = append(v.headers, [2]string{header, value}) }

func (v *vector) addAll(header string, values [][]byte) {
	for _, value := range values {
		v.add(header, string(value))
	}
}

// all returns the values of a header.
func (v vector) all(header string) [][]byte {
	var list [][]byte
	for _, h := range v.headers {
		if h[0] == header {
			list = append(list, []byte(h[1]))
		}
	}
	return list
}

// one returns the value of a header, "" if it is not there.
func (v vector) one(header string) string {
	if list := v.all(header); len(list) > 0 {
		return string(list[0])
	}
	return ""
}

func (v vector) number(t *testing.T, header string) int64 {
	t.Helper()
	return must[int64](t)(strconv.ParseInt(v.one(header), 10, 64))
}

func (v vector) now(t *testing.T) time.Time { t.Helper(); return time.Unix(v.number(t, "now"), 0) }

// nodes returns the nodes of a header: "<serial>/<n> <key fingerprint>".
func (v vector) nodes(t *testing.T, header string) []NodeRef {
	t.Helper()
	var list []NodeRef
	for _, value := range v.all(header) {
		name, fingerprint, _ := strings.Cut(string(value), " ")
		id := must[protocol.NodeID](t)(protocol.ParseNodeID(name))
		list = append(list, NodeRef{id.Serial, id.Node, Digest(fingerprint)})
	}
	return list
}

func nodeHeader(n NodeRef) string { return n.ID().String() + " " + string(n.KeyFingerprint) }

// verify runs a vector and returns what the "ok" of a vector must come with.
func (v vector) verify(t *testing.T) (vector, error) {
	t.Helper()
	if v.one("kind") == "parse" {
		payload := must[[]byte](t)(base64.StdEncoding.DecodeString(v.one("payload64")))
		_, err := parse(Kind(v.one("type")), payload)
		return vector{}, err
	}
	policies := v.all("policy")
	p, err := VerifyPolicies(policies[0], policies[1:]...)
	if err != nil {
		return vector{}, err
	}
	var out vector
	switch kind := v.one("kind"); kind {
	case "policy":
		out.add("policy-digest", string(p.Digest()))
	case "unlock":
		var g Grant
		g, err = p.Authorize(Request{
			Statement: []byte(v.one("statement")), Decisions: v.all("decision"), Revocations: v.all("revocation"),
			Self: &v.nodes(t, "self")[0], SelfDisks: v.disks(), Now: v.now(t),
		})
		out.addGrant(g)
	case "copy":
		var g CopyGrant
		g, err = p.AuthorizeCopy(CopyRequest{
			Consent: []byte(v.one("consent")), Revocations: v.all("revocation"),
			Self: &v.nodes(t, "self")[0], SelfDisks: v.disks(), Now: v.now(t),
		})
		out.addCopyGrant(g)
	case "challenge":
		_, err = VerifyChallenge([]byte(v.one("challenge")), v.nodes(t, "node")[0], Digest(v.one("subject")), v.now(t))
	case "order":
		var digest Digest
		_, digest, err = p.VerifyOrder([]byte(v.one("order")))
		out.add("order-digest", string(digest))
	case "opened":
		_, err = VerifyOpened([]byte(v.one("opened")), v.nodes(t, "node")[0], Digest(v.one("subject")))
	case "commit":
		_, err = p.VerifyCommit(CommitRequest{
			Commit: []byte(v.one("commit")), Subject: Digest(v.one("subject")), Nodes: v.nodes(t, "node"),
			Self: v.nodes(t, "self")[0].ID(), OrderDigest: Digest(v.one("order-digest")),
			IntentDigest: Digest(v.one("intent-digest")), Now: v.now(t),
		})
	default:
		t.Fatalf("unknown kind %q", kind)
	}
	return out, err
}

func (v vector) disks() []protocol.DiskID {
	var list []protocol.DiskID
	for _, d := range v.all("self-disk") {
		list = append(list, protocol.DiskID(d))
	}
	return list
}

func (v *vector) addGrant(g Grant) {
	v.add("request-digest", string(g.RequestDigest))
	v.add("decisions-digest", string(g.DecisionsDigest))
	v.add("access", string(g.Access))
	v.add("start", strconv.FormatInt(g.Start.Unix(), 10))
	v.add("end", strconv.FormatInt(g.End.Unix(), 10))
}

func (v *vector) addCopyGrant(g CopyGrant) {
	v.add("consent-digest", string(g.ConsentDigest))
	v.add("decisions-digest", string(g.DecisionsDigest))
	for _, d := range g.Destinations {
		v.add("destination", d.Account+" "+d.Endpoint)
	}
	v.add("end", strconv.FormatInt(g.End.Unix(), 10))
}

// TestVectors verifies what the files say, and nothing but the files.
func TestVectors(t *testing.T) {
	names := must[[]string](t)(filepath.Glob(filepath.Join(vectorDir, "*.txt")))
	if len(names) == 0 {
		t.Fatal("there are no vectors")
	}
	common := readHeaders(t, commonFile)
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			v := readHeaders(t, name)
			for i, h := range v.headers {
				if ref, ok := strings.CutPrefix(h[1], "$"); ok {
					v.headers[i][1] = common.one(ref)
				}
			}
			got, err := v.verify(t)
			if expect := v.one("expect"); expect != "ok" {
				wantCode(t, err, protocol.Code(expect))
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range got.headers {
				if v.one(h[0]) != h[1] {
					t.Errorf("%s is %s, want %s", h[0], h[1], v.one(h[0]))
				}
			}
		})
	}
}

func readHeaders(t *testing.T, name string) vector {
	t.Helper()
	var v vector
	for line := range strings.Lines(string(must[[]byte](t)(os.ReadFile(name)))) {
		header, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		if !ok {
			t.Fatalf("%s: %q is not a header", name, line)
		}
		v.add(header, value)
	}
	return v
}

// TestVectorsAreCurrent checks that the files are what the tables of this
// package make; with -update it writes them.
func TestVectorsAreCurrent(t *testing.T) {
	common, vectors := makeVectors(t)
	want := map[string]string{commonFile: common.text(nil)}
	for _, v := range vectors {
		want[filepath.Join(vectorDir, v.name+".txt")] = v.text(common.headers)
	}
	if *update {
		writeVectors(t, want)
	}
	got := map[string]string{}
	for _, name := range append(must[[]string](t)(filepath.Glob(filepath.Join(vectorDir, "*"))), commonFile) {
		got[name] = string(must[[]byte](t)(os.ReadFile(name)))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the vectors have changed; if that is meant, run go test -run TestVectorsAreCurrent -update\n%.2000s", diff)
	}
}

func writeVectors(t *testing.T, files map[string]string) {
	t.Helper()
	if err := os.RemoveAll(vectorDir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(vectorDir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// text writes a vector, with what stands in common replaced by its name.
func (v vector) text(common [][2]string) string {
	var b strings.Builder
	for _, h := range v.headers {
		value := h[1]
		if i := slices.IndexFunc(common, func(c [2]string) bool { return c[1] == value }); i >= 0 {
			value = "$" + common[i][0]
		}
		fmt.Fprintf(&b, "%s: %s\n", h[0], value)
	}
	return b.String()
}

// makeVectors turns the tables of the other tests into vectors.
func makeVectors(t *testing.T) (common vector, list []vector) {
	base := newScene(t)
	policy, in := base.unlock(t)
	_, copyIn := base.copyRequest(t)
	common.add("policy", string(policy))
	common.add("statement", string(in.Statement))
	for i, d := range in.Decisions {
		common.add("decision-"+base.decisions[i].keyIDs[0], string(d))
	}
	common.add("consent", string(copyIn.Consent))

	for _, c := range unlockCases {
		control, fault := c.scenes(t)
		list = append(list, unlockVector(t, c, or(fault, control)))
	}
	for _, c := range copyCases {
		control, fault := c.scenes(t)
		list = append(list, copyVector(t, c, or(fault, control)))
	}
	for _, faulty := range []bool{false, true} {
		for _, c := range policyCases {
			name, code := c.name, c.code
			if !faulty {
				name, code = "accepted-"+map[bool]string{true: "policy-v1", false: "policy-next"}[c.alone], ""
			}
			v := newVector(name, "policy", code)
			v.addAll("policy", c.envelopes(t, faulty))
			list = append(list, v.finish(t))
		}
	}
	for _, c := range machineCases {
		m := newMachines(t)
		list = append(list, machineVector(t, "accepted-"+c.step, c.step, "", m, policy))
		m = newMachines(t)
		c.fault(t, m)
		list = append(list, machineVector(t, c.name, c.step, c.code, m, policy))
	}
	list = append(list, parseVectors(t)...)
	texts := make(map[string]string)
	for _, v := range list {
		if other, ok := texts[v.name]; ok && other != v.text(nil) {
			t.Fatalf("two vectors are called %s", v.name)
		}
		texts[v.name] = v.text(nil)
	}
	return common, list
}

// parseVectors returns one decision, well spelt and badly spelt.
func parseVectors(t *testing.T) []vector {
	t.Helper()
	payload := string(must[[]byte](t)(samples(t)[1].Encode()))
	spelt := func(name string, code protocol.Code, payload string) vector {
		v := newVector(name, "parse", code)
		v.add("type", string(KindDecision))
		v.add("payload64", base64.StdEncoding.EncodeToString([]byte(payload)))
		return v.finish(t)
	}
	list := []vector{spelt("accepted-spelling", "", payload)}
	for name, change := range respell {
		if name != "huge" {
			list = append(list, spelt("spelling-"+strings.ReplaceAll(name, " ", "-"), protocol.CodeInvalid, change(payload)))
		}
	}
	return list
}

func or(fault, control *scene) *scene {
	if fault != nil {
		return fault
	}
	return control
}

func newVector(name, kind string, code protocol.Code) *vector {
	v := &vector{name: name}
	v.add("kind", kind)
	if code == "" {
		code = "ok"
	}
	v.add("expect", string(code))
	return v
}

// finish adds what an accepted vector must come with.
func (v *vector) finish(t *testing.T) vector {
	t.Helper()
	if v.one("expect") == "ok" {
		got, err := v.verify(t)
		if err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		v.headers = append(v.headers, got.headers...)
	}
	return *v
}

func unlockVector(t *testing.T, c unlockCase, s *scene) vector {
	t.Helper()
	policy, in := s.unlock(t)
	v := newVector(c.name, "unlock", c.code)
	v.addPlace(s)
	v.add("policy", string(policy))
	v.add("statement", string(in.Statement))
	v.addAll("decision", in.Decisions)
	v.addAll("revocation", in.Revocations)
	return v.finish(t)
}

func copyVector(t *testing.T, c unlockCase, s *scene) vector {
	t.Helper()
	policy, in := s.copyRequest(t)
	v := newVector(c.name, "copy", c.code)
	v.addPlace(s)
	v.add("policy", string(policy))
	v.add("consent", string(in.Consent))
	v.addAll("revocation", in.Revocations)
	return v.finish(t)
}

func (v *vector) addPlace(s *scene) {
	v.add("now", strconv.FormatInt(s.now, 10))
	v.add("self", nodeHeader(s.self))
	for _, d := range s.selfDisks {
		v.add("self-disk", string(d))
	}
}

func machineVector(t *testing.T, name, step string, code protocol.Code, m *machines, policy []byte) vector {
	t.Helper()
	s := m.signAll(t)
	v := newVector(name, step, code)
	v.add("now", strconv.FormatInt(m.now, 10))
	v.add("policy", string(policy))
	v.add("subject", string(m.subject))
	switch step {
	case "challenge":
		v.add("node", nodeHeader(m.nodes[0]))
		v.add("challenge", string(s.challenge))
	case "order":
		v.add("order", string(s.order))
	case "opened":
		v.add("node", nodeHeader(m.nodes[0]))
		v.add("opened", string(s.opened[0]))
	case "commit":
		v.add("self", nodeHeader(m.nodes[0]))
		for _, n := range m.nodes {
			v.add("node", nodeHeader(n))
		}
		v.add("order-digest", string(s.orderDigest))
		v.add("intent-digest", string(m.order.IntentDigest()))
		v.add("commit", string(s.commit))
	}
	return v.finish(t)
}
