package audit_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
)

// childDir makes this test binary append intents to the log in that directory
// until it is killed.
const childDir = "LOCKBOX_TEST_AUDIT_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

var (
	now     = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	auditor = auth.Caller{Person: "ada@provider.example", Role: auth.Auditor}
	owner   = auth.Caller{Person: "olga@contoso.example", Role: auth.Owner, Tenant: storetest.Tenant}
)

func key(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

func open(t testing.TB, s *store.Store) *audit.Service {
	t.Helper()
	a, err := audit.New(t.Context(), audit.Config{Store: s, Key: key(1), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func intent(n int) auditlog.Record {
	rec := auditlog.NewRecord(now, auditlog.OpUnlockIntent, auditlog.Start)
	rec.Caller, rec.CorrelationID = "test", strconv.Itoa(n)
	return rec
}

// verify exports the log and checks it with nothing but its key.
func verify(t *testing.T, a *audit.Service) auditlog.Report {
	t.Helper()
	var out bytes.Buffer
	err := a.ExportLog(t.Context(), auditor, &lockboxv1.ExportLogRequest{}, func(b []byte) error { out.Write(b); return nil })
	if err != nil {
		t.Fatal(err)
	}
	report, err := auditlog.Verify(bytes.NewReader(out.Bytes()), a.VerifierKey(), nil)
	if err != nil {
		t.Fatal(err)
	}
	// Control: one flipped bit is found.
	flipped := bytes.Clone(out.Bytes())
	flipped[len(flipped)/2] ^= 1
	if _, err := auditlog.Verify(bytes.NewReader(flipped), a.VerifierKey(), nil); err == nil {
		t.Error("a flipped bit was not found")
	}
	return report
}

func TestConcurrentWriters(t *testing.T) {
	s := storetest.New(t)
	a := open(t, s)
	const writers, each = 64, 4
	var all sync.WaitGroup
	indexes := make(chan int64, writers*each)
	for w := range writers {
		all.Go(func() {
			for i := range each {
				index, err := a.RecordIntent(t.Context(), intent(w*each+i))
				if err != nil {
					t.Error(err)
				}
				indexes <- index
			}
		})
	}
	all.Wait()
	close(indexes)
	seen := map[int64]bool{}
	for i := range indexes {
		seen[i] = true
	}
	if len(seen) != writers*each {
		t.Errorf("%d records have %d indexes", writers*each, len(seen))
	}
	if report := verify(t, a); report.Operations[auditlog.OpUnlockIntent] != writers*each {
		t.Errorf("the log holds %v", report.Operations)
	}
}

func TestRecordSharesTheFateOfItsTransaction(t *testing.T) {
	s := storetest.New(t)
	a := open(t, s)
	boom := errors.New("boom")
	err := s.Tx(t.Context(), func(tx *store.Tx) error {
		if _, err := a.Record(t.Context(), tx, intent(1)); err != nil {
			return err
		}
		return boom
	})
	if err != boom {
		t.Fatal(err)
	}
	storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error {
		index, err := a.Record(ctx, tx, intent(2))
		if err == nil && index != 0 {
			err = fmt.Errorf("index %d: the record rolled back is still counted", index)
		}
		return err
	})
	verify(t, a)
}

func TestIntentThatCannotBeRecordedIsRefused(t *testing.T) {
	s := storetest.New(t)
	a := open(t, s)
	bad := intent(1)
	bad.Operation = "Not In The Vocabulary"
	if _, err := a.RecordIntent(t.Context(), bad); protocol.CodeOf(err) != protocol.CodeNotRecorded {
		t.Errorf("got %v, want not-recorded", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.RecordIntent(ended, intent(2)); protocol.CodeOf(err) != protocol.CodeNotRecorded {
		t.Errorf("got %v, want not-recorded", err)
	}
}

func TestAnotherLogKeyIsRefused(t *testing.T) {
	s := storetest.New(t)
	open(t, s)
	open(t, s) // control: the same key is taken
	if _, err := audit.New(t.Context(), audit.Config{Store: s, Key: key(2)}); err == nil {
		t.Error("another key was taken")
	}
}

func TestProof(t *testing.T) {
	s := storetest.New(t)
	a := open(t, s)
	for n := range 5 {
		if _, err := a.RecordIntent(t.Context(), intent(n)); err != nil {
			t.Fatal(err)
		}
	}
	v, err := note.NewVerifier(a.VerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	signed, err := a.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	older, err := auditlog.OpenCheckpoint(signed, v)
	if err != nil {
		t.Fatal(err)
	}
	for n := 5; n < 12; n++ {
		if _, err := a.RecordIntent(t.Context(), intent(n)); err != nil {
			t.Fatal(err)
		}
	}
	p, err := a.Proof(t.Context(), 7, older.Size)
	if err != nil {
		t.Fatal(err)
	}
	newer, err := auditlog.OpenCheckpoint(p.Checkpoint, v)
	if err != nil || newer.Size != p.Size {
		t.Fatal(err)
	}
	if err := tlog.CheckRecord(hashes(p.Inclusion), newer.Size, newer.Hash, p.Index, auditlog.LeafHash(p.Record)); err != nil {
		t.Error(err)
	}
	if err := tlog.CheckTree(hashes(p.Consistency), newer.Size, newer.Hash, older.Size, older.Hash); err != nil {
		t.Error(err)
	}
	if _, err := a.Proof(t.Context(), 7, 1000); protocol.CodeOf(err) != protocol.CodeCheckpoint {
		t.Errorf("a log shorter than what was seen gave %v", err)
	}
	resp, err := a.GetCheckpoint(t.Context(), auditor, &lockboxv1.GetCheckpointRequest{ConsistentWith: older.Size})
	if err != nil {
		t.Fatal(err)
	}
	latest, err := auditlog.OpenCheckpoint(resp.Checkpoint, v)
	if err != nil {
		t.Fatal(err)
	}
	if err := auditlog.CheckConsistency(resp.Consistency, older, latest); err != nil {
		t.Error(err)
	}
}

func hashes(raw [][]byte) []tlog.Hash {
	var out []tlog.Hash
	for _, h := range raw {
		out = append(out, tlog.Hash(h))
	}
	return out
}

func TestCustomersSeeTheirOwn(t *testing.T) {
	s := storetest.New(t)
	a := open(t, s)
	for _, tenant := range []string{"contoso", "fabrikam", ""} {
		rec := intent(1)
		rec.Properties = map[string]string{audit.PropertyTenant: tenant, audit.PropertySerial: "DBX0001"}
		if _, err := a.RecordIntent(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
	}
	count := func(caller auth.Caller, in *lockboxv1.ListRecordsRequest) int {
		t.Helper()
		resp, err := a.ListRecords(t.Context(), caller, in)
		if err != nil {
			t.Fatal(err)
		}
		return len(resp.Records)
	}
	if n := count(owner, &lockboxv1.ListRecordsRequest{}); n != 1 {
		t.Errorf("the owner sees %d records, want 1", n)
	}
	if n := count(auditor, &lockboxv1.ListRecordsRequest{Serial: "DBX0001", Operation: string(auditlog.OpUnlockIntent), CorrelationId: "1", Caller: "test"}); n != 3 {
		t.Errorf("the auditor sees %d records, want 3", n)
	}
	if n := count(auditor, &lockboxv1.ListRecordsRequest{Operation: string(auditlog.OpLogin)}); n != 0 {
		t.Errorf("%d records of an operation that never was", n)
	}
	resp, err := a.ListRecords(t.Context(), auditor, &lockboxv1.ListRecordsRequest{Limit: 2})
	if err != nil || len(resp.Records) != 2 || resp.NextIndex != 2 {
		t.Errorf("first page: %d records, next %d, %v", len(resp.Records), resp.NextIndex, err)
	}
	err = a.ExportLog(t.Context(), owner, &lockboxv1.ExportLogRequest{}, func([]byte) error { return nil })
	if protocol.CodeOf(err) != protocol.CodeForbidden {
		t.Errorf("the owner exported everybody's records: %v", err)
	}
}

// chain is a device's own chain.
type chain struct {
	t       *testing.T
	id      protocol.NodeID
	key     ed25519.PrivateKey
	tree    auditlog.Tree
	records []*devicev1.ChainRecord
}

func (c *chain) add(n int) {
	c.t.Helper()
	for range n {
		rec := auditlog.NewRecord(now, auditlog.OpLockVolume, auditlog.Success)
		rec.Origin, rec.Caller, rec.CorrelationID = c.id.String(), c.id.URI().String(), strconv.Itoa(len(c.records))
		data, err := rec.Encode()
		if err != nil {
			c.t.Fatal(err)
		}
		index, err := c.tree.Append(data)
		if err != nil {
			c.t.Fatal(err)
		}
		c.records = append(c.records, &devicev1.ChainRecord{Index: index, Record: data})
	}
}

func (c *chain) checkpoint() []byte {
	c.t.Helper()
	signer, err := auditlog.NewSigner(c.id.URI().String(), c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	signed, err := c.tree.Checkpoint(signer)
	if err != nil {
		c.t.Fatal(err)
	}
	return signed
}

func device(t *testing.T, s *store.Store, seed byte) *chain {
	t.Helper()
	c := &chain{t: t, id: protocol.NodeID{Serial: storetest.Serial, Node: 1}, key: key(seed)}
	spki, err := x509.MarshalPKIXPublicKey(c.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	storetest.Fill(t, s, now, 1)
	storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error {
		n, err := tx.Node(ctx, c.id)
		if err != nil {
			return err
		}
		n.SPKI = spki
		return tx.UpdateNode(ctx, &n)
	})
	return c
}

func TestDeviceRecordsAreReplayedOnce(t *testing.T) {
	s := storetest.New(t)
	a := open(t, s)
	c := device(t, s, 7)
	c.add(10)
	send := func(from, to int, checkpoint []byte) (int64, error) {
		return a.AppendDeviceRecords(t.Context(), c.id, c.records[from:to], checkpoint)
	}
	ten := c.checkpoint()
	for _, step := range []struct {
		name     string
		from, to int
		want     int64
	}{
		{"the first part of what the checkpoint covers", 0, 4, 4},
		{"the same again, after a cut", 0, 4, 4},
		{"an overlap", 2, 7, 7},
		{"after a gap: the device goes back", 8, 10, 7},
		{"the rest", 7, 10, 10},
		{"nothing", 10, 10, 10},
	} {
		got, err := send(step.from, step.to, ten)
		if err != nil || got != step.want {
			t.Fatalf("%s: next %d, %v, want %d", step.name, got, err, step.want)
		}
	}
	report := verify(t, a)
	if report.Operations[auditlog.OpLockVolume] != 10 || report.Replayed != 10 {
		t.Errorf("the log holds %+v", report)
	}
	resp, err := a.ListRecords(t.Context(), owner, &lockboxv1.ListRecordsRequest{Serial: string(c.id.Serial)})
	if err != nil || len(resp.Records) != 10 {
		t.Errorf("the owner of the device sees %d of its records, %v", len(resp.Records), err)
	}
}

func TestChangedChainsAreRefused(t *testing.T) {
	s := storetest.New(t)
	a := open(t, s)
	c := device(t, s, 7)
	c.add(4)
	if _, err := a.AppendDeviceRecords(t.Context(), c.id, c.records, c.checkpoint()); err != nil {
		t.Fatal(err)
	}
	refused := func(name string, records []*devicev1.ChainRecord, checkpoint []byte, want protocol.Code) {
		t.Helper()
		if _, err := a.AppendDeviceRecords(t.Context(), c.id, records, checkpoint); protocol.CodeOf(err) != want {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
	fork := &chain{t: t, id: c.id, key: c.key}
	fork.add(3)
	rec := auditlog.NewRecord(now, auditlog.OpLockVolume, auditlog.Failure)
	rec.Origin = c.id.String()
	data, err := rec.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fork.tree.Append(data); err != nil {
		t.Fatal(err)
	}
	fork.records = append(fork.records, &devicev1.ChainRecord{Index: 3, Record: data})
	refused("another record 3", fork.records, fork.checkpoint(), protocol.CodeCheckpoint)
	refused("only the checkpoint of the fork", nil, fork.checkpoint(), protocol.CodeCheckpoint)
	fork.add(2)
	refused("another record 3, under a checkpoint that cannot be compared yet", fork.records[3:4], fork.checkpoint(), protocol.CodeCheckpoint)

	stranger := &chain{t: t, id: c.id, key: key(9)}
	stranger.add(5)
	refused("signed by another key", stranger.records[4:], stranger.checkpoint(), protocol.CodeCheckpoint)

	four := c.checkpoint()
	c.add(1)
	refused("beyond the checkpoint", c.records[4:], four, protocol.CodeCheckpoint)
	broken := bytes.Replace(c.records[4].Record, []byte("DBX0001/1"), []byte("DBX0002/1"), 1)
	refused("a record of another node", []*devicev1.ChainRecord{{Index: 4, Record: broken}}, c.checkpoint(), protocol.CodeInvalid)
	refused("too many", make([]*devicev1.ChainRecord, audit.MaxBatch+1), c.checkpoint(), protocol.CodeLimit)
	// Control: the real fifth record is taken.
	if next, err := a.AppendDeviceRecords(t.Context(), c.id, c.records[4:], c.checkpoint()); err != nil || next != 5 {
		t.Errorf("the real record: next %d, %v", next, err)
	}
}

// child appends intents and prints each index once it is durable.
func child(dir string) {
	ctx := context.Background()
	s, err := store.Open(ctx, filepath.Join(dir, "store.db"))
	if err != nil {
		panic(err)
	}
	a, err := audit.New(ctx, audit.Config{Store: s, Key: key(1)})
	if err != nil {
		panic(err)
	}
	for n := 0; ; n++ {
		index, err := a.RecordIntent(ctx, intent(n))
		if err != nil {
			panic(err)
		}
		fmt.Println(index)
	}
}

func TestKillLosesNoRecord(t *testing.T) {
	dir := t.TempDir()
	var durable int64 = -1
	for round := range 4 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		kill := func() { cmd.Process.Signal(unix.SIGKILL) }
		stop := time.AfterFunc(time.Minute, kill) // a busy machine takes its time to the first record
		for first := true; lines.Scan(); first = false {
			if first {
				stop.Reset(time.Duration(50+60*round) * time.Millisecond)
			}
			if n, err := strconv.ParseInt(strings.TrimSpace(lines.Text()), 10, 64); err == nil {
				if n != durable+1 && n != durable+2 {
					t.Errorf("after record %d came %d: it is not the next", durable, n)
				}
				durable = n
			}
		}
		cmd.Wait()
		stop.Stop()
	}
	if durable < 4 {
		t.Fatalf("only %d records were written", durable+1)
	}
	s := storetest.Open(t, filepath.Join(dir, "store.db"))
	a := open(t, s)
	report := verify(t, a)
	if got := report.Operations[auditlog.OpUnlockIntent]; got < durable+1 {
		t.Errorf("%d records were acknowledged, %d are in the log", durable+1, got)
	}
}
