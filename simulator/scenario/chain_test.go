package scenario

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// exported returns the records of the activity log, verified offline, as they
// are in an export: number, hash and record.
func (s *Story) exported(ctx context.Context) []string {
	file := filepath.Join(s.w.Dir, "log-so-far")
	defer os.Remove(file)
	s.ok(ctx, "admin", "audit", "export", "--out", file)
	s.ok(ctx, "admin", "audit", "verify", file, "--log-key", s.logKey)
	data, err := os.ReadFile(file)
	s.must(err)
	var lines []string
	for line := range strings.Lines(string(data)) {
		if _, record, ok := cutRecord(line); ok && strings.HasPrefix(record, "{") {
			lines = append(lines, line)
		}
	}
	s.hold(len(lines) > 0, "the export holds no record")
	return lines
}

func cutRecord(line string) (number, record string, ok bool) {
	fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 3)
	if len(fields) != 3 {
		return "", "", false
	}
	return fields[0], fields[2], true
}

// chain returns the records of a node's own chain, as they lie on its disk. A
// last one that is not whole was never acknowledged to anybody.
func (s *Story) chain(n world.Node) [][]byte {
	data, err := os.ReadFile(filepath.Join(n.StateDir(), "journal", "records"))
	if os.IsNotExist(err) {
		return nil
	}
	s.must(err)
	lines := bytes.SplitAfter(data, []byte("\n"))
	var whole [][]byte
	for _, line := range lines {
		if record, ok := bytes.CutSuffix(line, []byte("\n")); ok {
			whole = append(whole, record)
		}
	}
	return whole
}

// nothingLost shows that the activity log begins with what was in it before,
// and holds the whole chain of every node: each record once, in order, with its
// very bytes.
func (s *Story) nothingLost(ctx context.Context, before []string) {
	nodes, now := s.w.Nodes(), []string(nil)
	chains, got := make([][][]byte, len(nodes)), make([][]string, len(nodes))
	for i, n := range nodes {
		chains[i] = s.chain(n)
	}
	s.until(ctx, "the nodes' chains are in the activity log", func() bool {
		now = s.exported(ctx)
		complete := true
		for i, n := range nodes {
			got[i] = s.replayed(now, n)
			complete = complete && len(got[i]) >= len(chains[i])
		}
		return complete
	})
	for k, n := range nodes {
		for i, record := range chains[k] {
			want, err := auditlog.Replay(n.ID, int64(i), record)
			s.must(err)
			text, err := want.Encode()
			s.must(err)
			s.hold(got[k][i] == string(text), "record %d of %s is not in the activity log as it is in the node's own chain", i, n.ID)
		}
	}
	s.hold(len(now) >= len(before), "the log had %d records and has %d", len(before), len(now))
	for i := range before {
		s.hold(now[i] == before[i], "record %d of the log is another one now", i)
	}
	s.out.held("the log verifies: the %d records of before and %d more; the nodes' own chains are in it, complete", len(before), len(now)-len(before))
}

// replayed returns what the log holds of a node's chain, which must be in order
// and without a gap.
func (s *Story) replayed(lines []string, n world.Node) []string {
	var list []string
	for _, line := range lines {
		_, text, _ := cutRecord(line)
		r, err := auditlog.ParseRecord([]byte(text))
		s.must(err)
		if r.Device == nil || r.Origin != n.ID.String() {
			continue
		}
		s.hold(r.Device.Index == int64(len(list)), "record %d of %s follows its record %d", r.Device.Index, n.ID, len(list)-1)
		list = append(list, text)
	}
	return list
}

// chainKept shows that a node's chain begins with what it held before.
func (s *Story) chainKept(n world.Node, before [][]byte) {
	now := s.chain(n)
	s.hold(len(now) >= len(before), "%s had %d records and has %d", n.ID, len(before), len(now))
	for i := range before {
		s.hold(bytes.Equal(now[i], before[i]), "record %d of %s is another one now", i, n.ID)
	}
}
