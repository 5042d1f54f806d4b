package recordings_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/controlplane/internal/auth"
	"github.com/databox-lockbox/lockbox/controlplane/internal/recordings"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Two nodes, each with its key, and people.
var (
	node1, node2 = protocol.NodeID{Serial: storetest.Serial, Node: 1}, protocol.NodeID{Serial: storetest.Serial, Node: 2}
	key1, key2   = key(1), key(2)

	erin    = auth.Caller{Person: storetest.Engineer, Role: auth.Engineer}
	eve     = auth.Caller{Person: "eve@provider.example", Role: auth.Engineer}
	admin   = auth.Caller{Person: "ada@provider.example", Role: auth.Admin}
	olga    = auth.Caller{Person: "olga@contoso.example", Role: auth.Owner, Tenant: storetest.Tenant}
	mallory = auth.Caller{Person: "mallory@fabrikam.example", Role: auth.Owner, Tenant: "fabrikam"}
)

const session = protocol.SessionID("SES-0001")

func key(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

// clock is a clock that tests set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// log keeps the records that were made.
type log struct {
	mu      sync.Mutex
	records []auditlog.Record
	fail    error
}

func (l *log) Record(_ context.Context, _ *store.Tx, rec auditlog.Record) (int64, error) {
	return l.RecordIntent(context.Background(), rec)
}

func (l *log) RecordIntent(_ context.Context, rec auditlog.Record) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return 0, l.fail
	}
	l.records = append(l.records, rec)
	return int64(len(l.records)), nil
}

func (l *log) of(op auditlog.Operation) (list []auditlog.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records {
		if r.Operation == op {
			list = append(list, r)
		}
	}
	return list
}

// device is a node that is told who watches.
type device struct {
	devicev1.UnimplementedNodeServiceHandler
	watching chan string // the name that begins, or "" when one ends
}

func (d *device) WatchRecording(ctx context.Context, in *devicev1.WatchRecordingRequest, _ devicev1.NodeServiceWatchRecordingServerStream) error {
	if in.Offset >= 0 {
		return errors.New("asked for bytes")
	}
	d.watching <- in.Watcher
	<-ctx.Done()
	d.watching <- ""
	return ctx.Err()
}

// world is a store with a device of two nodes and a session, and the service.
type world struct {
	*recordings.Service
	t      *testing.T
	cfg    recordings.Config
	log    *log
	clock  *clock
	device *device
}

func (w *world) Node(protocol.NodeID) (devicev1.NodeServiceClient, error) {
	server := connect.NewServer()
	devicev1.RegisterNodeServiceHandler(server, w.device)
	return devicev1.NewNodeServiceClient(connect.NewClient(connectinprocess.New(server))), nil
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, log: &log{}, clock: &clock{now: time.Now().Truncate(time.Millisecond)}, device: &device{watching: make(chan string, 16)},
	}
	s := storetest.New(t)
	storetest.Fill(t, s, w.clock.Now(), 2)
	storetest.Tx(t, s, func(ctx context.Context, tx *store.Tx) error {
		for id, key := range map[protocol.NodeID]ed25519.PrivateKey{node1: key1, node2: key2} {
			n, err := tx.Node(ctx, id)
			if err != nil {
				return err
			}
			n.KeyFingerprint = string(approval.KeyFingerprint(key.Public().(ed25519.PublicKey)))
			if err := tx.UpdateNode(ctx, &n); err != nil {
				return err
			}
		}
		return tx.InsertSession(ctx, &store.Session{
			ID: session, Node: node1, Order: storetest.Order, Tenant: storetest.Tenant, Ticket: storetest.Ticket, Engineer: storetest.Engineer,
			State: "enabled", Created: w.clock.Now(), Expires: w.clock.Now().Add(time.Hour),
		})
	})
	w.cfg = recordings.Config{
		Store: s, Audit: w.log, Nodes: w, Dir: filepath.Join(t.TempDir(), "recordings"), Now: w.clock.Now, Logger: zerolog.Nop(),
		Limits: recordings.Limits{Recording: 1 << 20, Node: 2 << 20, Total: 3 << 20},
	}
	w.restart()
	return w
}

func (w *world) restart() {
	w.t.Helper()
	var err error
	if w.Service, err = recordings.New(w.t.Context(), w.cfg); err != nil {
		w.t.Fatal(err)
	}
}

// run runs the service until the test ends.
func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			w.t.Error(err)
		}
	})
}

// recordingOf is a recording of n commands, closed and signed.
func (w *world) recordingOf(id string, n int, change ...func(*recording.Meta)) []byte {
	w.t.Helper()
	meta := recording.Meta{
		ID: id, Kind: recording.Session, Node: node1.String(), Session: session, Engineer: storetest.Engineer, Ticket: storetest.Ticket, Started: w.clock.Now(),
	}
	for _, f := range change {
		f(&meta)
	}
	e, data, err := recording.NewEncoder(meta)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range n {
		frame, err := e.Append(w.clock.Now(), recording.Output{Channel: "c1", Data: bytes.Repeat([]byte{byte('a' + i%26)}, 1000)})
		if err != nil {
			w.t.Fatal(err)
		}
		data = append(data, frame...)
	}
	end, err := e.End(w.clock.Now().Add(time.Second), recording.EndDone, key1)
	if err != nil {
		w.t.Fatal(err)
	}
	return append(data, end...)
}

func id(n byte) string { return "REC-" + strings.Repeat("0", 31) + string('0'+n) }

// bring sends what follows an offset, a piece at a time, as a node does.
func (w *world) bring(node protocol.NodeID, id string, data []byte, piece int) (*devicev1.AppendRecordingResponse, error) {
	for at := int64(0); ; {
		end := min(at+int64(piece), int64(len(data)))
		in := &devicev1.AppendRecordingRequest{Recording: id, Offset: at, Data: data[at:end], Closed: end == int64(len(data))}
		if in.Closed {
			in.Digest = string(approval.DigestOf(data))
		}
		out, err := w.Append(w.t.Context(), node, in)
		if err != nil || in.Closed && out.Confirmed || out.Acked == at && !in.Closed {
			return out, err
		}
		at = out.Acked
	}
}

func (w *world) get(id string) *lockboxv1.Recording {
	w.t.Helper()
	r, err := w.GetRecording(w.t.Context(), olga, &lockboxv1.GetRecordingRequest{Id: id})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) file(id string) string { return filepath.Join(w.cfg.Dir, id+".rec") }

func wantCode(t *testing.T, err error, code protocol.Code) {
	t.Helper()
	if protocol.CodeOf(err) != code {
		t.Errorf("got %v, want code %q", err, code)
	}
}

// Pieces of any size, sent again, after a restart and a torn write: what is kept
// is what was sent.
func TestReceive(t *testing.T) {
	w := newWorld(t)
	data := w.recordingOf(id(1), 30)
	half := len(data) / 2
	out, err := w.bring(node1, id(1), data[:half], 3000)
	wantCode(t, err, protocol.CodeRecording) // which says that it is closed, and is not
	if w.get(id(1)).State != "broken" {
		t.Errorf("got %v, %v", out, w.get(id(1)))
	}

	data = w.recordingOf(id(2), 30)
	send := func(from, to int, closed bool) *devicev1.AppendRecordingResponse {
		t.Helper()
		out, err := w.Append(t.Context(), node1, &devicev1.AppendRecordingRequest{Recording: id(2), Offset: int64(from), Data: data[from:to], Closed: closed})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got := send(half, half+10, false).Acked; got != 0 {
		t.Errorf("an unknown one goes on from %d", got)
	}
	first := int(send(0, half, false).Acked)
	if first == 0 || first > half || recording.Whole(data[:half]) != first {
		t.Errorf("took %d of %d bytes", first, half)
	}
	if again := int(send(0, half, false).Acked); again != first {
		t.Errorf("sent again: %d", again)
	}
	if gap := int(send(first+1000, first+3000, false).Acked); gap != first {
		t.Errorf("after a gap: %d", gap)
	}
	// The next daemon finds half a frame that was never acknowledged.
	f, err := os.OpenFile(w.file(id(2)), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Write(data[first : first+500])
	f.Close()
	w.restart()
	if out := send(first-200, first, false); int(out.Acked) != first || out.Confirmed {
		t.Errorf("after a restart: %v", out)
	}
	if out := send(first, len(data), true); int(out.Acked) != len(data) || !out.Confirmed {
		t.Errorf("the end: %v", out)
	}
	kept, err := os.ReadFile(w.file(id(2)))
	if err != nil || !bytes.Equal(kept, data) {
		t.Errorf("kept %d bytes of %d: %v", len(kept), len(data), err)
	}
	if info, err := os.Stat(w.file(id(2))); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	r := w.get(id(2))
	if r.State != "complete" || r.Digest != string(approval.DigestOf(data)) || r.Reason != "end" || r.Size != int64(len(data)) || r.Logged || r.Session != string(session) {
		t.Errorf("got %v", r)
	}
	if out := send(0, 100, false); int(out.Acked) != len(data) || !out.Confirmed {
		t.Errorf("once more: %v", out)
	}
	if got := w.get(string(session)).Id; got != id(2) && got != id(1) {
		t.Errorf("by its session: %s", got)
	}
	if kept := w.log.of(auditlog.OpKeepRecording); len(kept) != 2 || kept[0].Result != auditlog.Failure || kept[1].Properties["digest"] != r.Digest {
		t.Errorf("recorded %v", kept)
	}
}

func TestRefuse(t *testing.T) {
	for name, c := range map[string]struct {
		node protocol.NodeID
		data func(w *world) []byte
		code protocol.Code
	}{
		"another node's":             {node2, func(w *world) []byte { return w.recordingOf(id(1), 3) }, protocol.CodeForbidden},
		"another node's session":     {node2, func(w *world) []byte { return w.recordingOf(id(1), 3, ofNode2) }, protocol.CodeForbidden},
		"another engineer's":         {node1, func(w *world) []byte { return w.recordingOf(id(1), 3, ofEve) }, protocol.CodeForbidden},
		"another id":                 {node1, func(w *world) []byte { return w.recordingOf(id(2), 3) }, protocol.CodeInvalid},
		"no recording":               {node1, func(*world) []byte { return []byte("no recording") }, protocol.CodeInvalid},
		"too large":                  {node1, func(w *world) []byte { return w.recordingOf(id(1), 1100) }, protocol.CodeLimit},
		"signed with another key":    {node2, func(w *world) []byte { return w.recordingOf(id(1), 3, ofNode2, ofNobody) }, protocol.CodeRecording},
		"changed in the middle":      {node1, func(w *world) []byte { d := w.recordingOf(id(1), 9); d[len(d)/2] ^= 1; return d }, protocol.CodeRecording},
		"something behind the end":   {node1, func(w *world) []byte { return append(w.recordingOf(id(1), 3), make([]byte, 60)...) }, protocol.CodeRecording},
		"the control: a whole one":   {node1, func(w *world) []byte { return w.recordingOf(id(1), 3) }, ""},
		"the control: of no session": {node1, func(w *world) []byte { return w.recordingOf(id(1), 3, ofNobody) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			_, err := w.bring(c.node, id(1), c.data(w), 100_000)
			wantCode(t, err, c.code)
		})
	}
}

func ofNode2(m *recording.Meta)  { m.Node = node2.String() }
func ofEve(m *recording.Meta)    { m.Engineer = eve.Person }
func ofNobody(m *recording.Meta) { m.Session = "" }

// What is there is never written again: a node that sends other bytes has broken
// its recording, which stays as it was.
func TestNothingIsRewritten(t *testing.T) {
	w := newWorld(t)
	data, other := w.recordingOf(id(1), 10), w.recordingOf(id(1), 10, func(m *recording.Meta) { m.Ticket = "SR-9" })
	in := &devicev1.AppendRecordingRequest{Recording: id(1), Data: data[:5000]}
	if _, err := w.Append(t.Context(), node1, in); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(w.file(id(1)))
	in.Data = other[:5000]
	_, err := w.Append(t.Context(), node1, in)
	wantCode(t, err, protocol.CodeRecording)
	if after, _ := os.ReadFile(w.file(id(1))); !bytes.Equal(before, after) {
		t.Error("the file was changed")
	}
	in.Data = data[:5000]
	_, err = w.Append(t.Context(), node1, in)
	wantCode(t, err, protocol.CodeRecording)
	if r := w.get(id(1)); r.State != "broken" || r.Problem == "" {
		t.Errorf("got %v", r)
	}
}

// One node cannot take the room of the others.
func TestRoomPerNode(t *testing.T) {
	w := newWorld(t)
	var refused error
	for n := byte(1); n <= 3; n++ {
		_, refused = w.bring(node1, id(n), w.recordingOf(id(n), 800), 100_000)
	}
	wantCode(t, refused, protocol.CodeLimit)
	w.restart()
	_, err := w.bring(node1, id(3), w.recordingOf(id(3), 800), 100_000)
	wantCode(t, err, protocol.CodeLimit)
	in := &devicev1.AppendRecordingRequest{Recording: id(4), Data: w.recordingOf(id(4), 800, ofNode2, ofNobody)[:100_000]}
	if _, err := w.Append(t.Context(), node2, in); err != nil {
		t.Errorf("the control, another node: %v", err)
	}
}

// The node's own record of the end has the digest, or the recording is broken.
func TestActivityLogHasTheDigest(t *testing.T) {
	w := newWorld(t)
	for n := byte(1); n <= 2; n++ {
		if _, err := w.bring(node1, id(n), w.recordingOf(id(n), 3), 100_000); err != nil {
			t.Fatal(err)
		}
	}
	said := func(index int64, of, digest string, origin protocol.NodeID) {
		rec := auditlog.NewRecord(w.clock.Now(), auditlog.OpEndRecording, auditlog.Success)
		rec.Caller, rec.Origin, rec.ResourceID = origin.URI().String(), origin.String(), "/x"
		rec.Properties = map[string]string{"recording": of, "digest": digest}
		data, err := rec.Encode()
		if err != nil {
			t.Fatal(err)
		}
		storetest.Tx(t, w.cfg.Store, func(ctx context.Context, tx *store.Tx) error {
			row := store.AuditRow{Index: index, Time: rec.Time, Operation: string(rec.Operation), Correlation: string(session), Serial: storetest.Serial, Record: data}
			return tx.InsertAuditRow(ctx, &row, 2*index, nil)
		})
	}
	review := func() {
		t.Helper()
		if err := w.Review(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	review()
	if w.get(id(1)).Logged {
		t.Error("logged before it is")
	}
	said(0, id(1), "sha256:of another node", node2)
	said(1, id(1), w.get(id(1)).Digest, node1)
	said(2, id(2), "sha256:another", node1)
	review()
	if r := w.get(id(1)); !r.Logged || r.State != "complete" {
		t.Errorf("got %v", r)
	}
	if r := w.get(id(2)); r.Logged || r.State != "broken" || !strings.Contains(r.Problem, "activity log") {
		t.Errorf("got %v", r)
	}
	if kept := w.log.of(auditlog.OpKeepRecording); kept[len(kept)-1].Result != auditlog.Failure {
		t.Errorf("recorded %v", kept)
	}
}

// TestNobodyHoldsUpReviews has a node bring many recordings that it never writes of:
// those of others have their turn.
func TestNobodyHoldsUpReviews(t *testing.T) {
	w := newWorld(t)
	w.cfg.Limits = recordings.Limits{Recording: 1 << 20, Node: 1 << 30, Total: 1 << 30}
	w.restart()
	if _, err := w.bring(node1, id(1), w.recordingOf(id(1), 1), 100_000); err != nil {
		t.Fatal(err)
	}
	w.clock.advance(time.Second)
	for n := range 110 {
		name := fmt.Sprintf("REC-%032x", 1000+n)
		if _, err := w.bring(node1, name, w.recordingOf(name, 0), 100_000); err != nil {
			t.Fatal(err)
		}
	}
	storetest.Tx(t, w.cfg.Store, func(ctx context.Context, tx *store.Tx) error {
		rec := auditlog.NewRecord(w.clock.Now(), auditlog.OpEndRecording, auditlog.Success)
		rec.Caller, rec.Origin, rec.ResourceID = node1.URI().String(), node1.String(), "/x"
		rec.Properties = map[string]string{"recording": id(1), "digest": w.get(id(1)).Digest}
		data, err := rec.Encode()
		if err != nil {
			return err
		}
		row := store.AuditRow{Time: rec.Time, Operation: string(rec.Operation), Correlation: string(session), Serial: storetest.Serial, Record: data}
		return tx.InsertAuditRow(ctx, &row, 0, nil)
	})
	reviews := 0
	for ; !w.get(id(1)).Logged && reviews < 5; reviews++ {
		if err := w.Review(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if reviews != 2 {
		t.Errorf("the oldest of 111 was compared in review %d: want 2, of 100 each", reviews)
	}
}

// read is what somebody is sent.
func (w *world) read(who auth.Caller, id string) (data []byte, ended bool, err error) {
	err = w.ReadRecording(w.t.Context(), who, &lockboxv1.ReadRecordingRequest{Id: id}, func(m *lockboxv1.ReadRecordingResponse) error {
		if m.Offset != int64(len(data)) {
			w.t.Errorf("offset %d after %d bytes", m.Offset, len(data))
		}
		data, ended = append(data, m.Data...), m.Ended
		return nil
	})
	return data, ended, err
}

// TestListUnderAccess gives an engineer access to a subscription: they see in the
// list what others recorded there, and play none of it.
func TestListUnderAccess(t *testing.T) {
	w := newWorld(t)
	if _, err := w.bring(node1, id(1), w.recordingOf(id(1), 100), 100_000); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		reach  store.Reach
		serial string
		listed int
	}{
		{"none", store.Reach{}, "", 0},
		{"the subscription", store.Reach{Subscriptions: []protocol.SubscriptionID{storetest.Subscription}}, "", 1},
		{"another", store.Reach{Subscriptions: []protocol.SubscriptionID{"other"}}, "", 0},
		{"the tenant", store.Reach{Tenants: []protocol.TenantID{storetest.Tenant}}, "", 1},
		{"another and the tenant", store.Reach{Tenants: []protocol.TenantID{"other", storetest.Tenant}, Subscriptions: []protocol.SubscriptionID{"other"}}, "", 1},
		{"the tenant, another device", store.Reach{Tenants: []protocol.TenantID{storetest.Tenant}}, "DBX9999", 0},
	} {
		w.cfg.Reach = func(_ context.Context, caller auth.Caller, operation string, of *store.Order) (store.Reach, error) {
			if caller.Person != eve.Person || operation != "recordings" || of != nil {
				t.Errorf("asked for %s of %v by %s", operation, of, caller.Person)
			}
			return c.reach, nil
		}
		w.restart()
		list, err := w.ListRecordings(t.Context(), eve, &lockboxv1.ListRecordingsRequest{Serial: c.serial})
		if err != nil || len(list.Recordings) != c.listed {
			t.Errorf("%s: %v: %v", c.name, list, err)
		}
		_, _, err = w.read(eve, id(1))
		wantCode(t, err, protocol.CodeNotFound)
	}
}

func TestWhoMaySee(t *testing.T) {
	w := newWorld(t)
	growing, whole := w.recordingOf(id(1), 100), w.recordingOf(id(2), 100)
	if _, err := w.Append(t.Context(), node1, &devicev1.AppendRecordingRequest{Recording: id(1), Data: growing[:50_000]}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.bring(node1, id(2), whole, 100_000); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		who        auth.Caller
		live, past protocol.Code
	}{
		{olga, "", ""}, {erin, "", ""}, {admin, protocol.CodeForbidden, ""},
		{eve, protocol.CodeNotFound, protocol.CodeNotFound}, {mallory, protocol.CodeNotFound, protocol.CodeNotFound},
	} {
		data, ended, err := w.read(c.who, id(1))
		wantCode(t, err, c.live)
		if err == nil && (ended || !bytes.HasPrefix(growing, data) || len(data) < 40_000) {
			t.Errorf("%s sees %d bytes of a growing one, ended %v", c.who.Person, len(data), ended)
		}
		data, ended, err = w.read(c.who, id(2))
		wantCode(t, err, c.past)
		if err == nil && (!ended || !bytes.Equal(data, whole)) {
			t.Errorf("%s sees %d bytes of %d, ended %v", c.who.Person, len(data), len(whole), ended)
		}
		list, err := w.ListRecordings(t.Context(), c.who, &lockboxv1.ListRecordingsRequest{})
		if err != nil || (len(list.Recordings) == 2) != (c.past == "") {
			t.Errorf("%s is shown %v, %v", c.who.Person, list, err)
		}
		_, err = w.GetRecording(t.Context(), c.who, &lockboxv1.GetRecordingRequest{Id: string(session)})
		wantCode(t, err, c.past)
	}
	var looks []string
	for _, r := range append(w.log.of(auditlog.OpWatchSession), w.log.of(auditlog.OpPlayRecording)...) {
		looks = append(looks, string(r.Operation)+" "+r.Caller+" "+r.Properties["recording"][35:])
	}
	want := []string{"Watch Session olga@contoso.example 1", "Play Recording olga@contoso.example 2", "Play Recording erin@provider.example 1",
		"Play Recording erin@provider.example 2", "Play Recording ada@provider.example 2"}
	if !slices.Equal(looks, want) {
		t.Errorf("recorded %v, want %v", looks, want)
	}
	w.clock.advance(time.Minute)
	w.log.fail = protocol.Errorf(protocol.CodeNotRecorded, "no")
	data, _, err := w.read(olga, id(2))
	wantCode(t, err, protocol.CodeNotRecorded)
	if len(data) > 0 {
		t.Error("shown without a record")
	}
}

// Who watches is sent what comes as it comes, up to the end; the node is told, and
// told when nobody does any more.
func TestWatch(t *testing.T) {
	w := newWorld(t)
	w.run()
	data := w.recordingOf(id(1), 50)
	at := int64(0)
	send := func(to int) {
		t.Helper()
		out, err := w.Append(t.Context(), node1, &devicev1.AppendRecordingRequest{Recording: id(1), Offset: at, Data: data[at:to], Closed: to == len(data)})
		if err != nil {
			t.Fatal(err)
		}
		at = out.Acked
	}
	send(10_000)
	seen, ended := make(chan int, 64), make(chan error, 1)
	var got []byte
	go func() {
		ended <- w.ReadRecording(t.Context(), olga, &lockboxv1.ReadRecordingRequest{Id: string(session), Follow: true}, func(m *lockboxv1.ReadRecordingResponse) error {
			got = append(got, m.Data...)
			seen <- len(got)
			return nil
		})
	}()
	if n := <-seen; n != int(at) {
		t.Errorf("sees %d bytes at first, of %d", n, at)
	}
	if name := <-w.device.watching; name != string(olga.Person) {
		t.Errorf("the node is told of %q", name)
	}
	if r := w.get(id(1)); !slices.Equal(r.Watchers, []string{string(olga.Person)}) {
		t.Errorf("watched by %v", r.Watchers)
	}
	send(20_000)
	if n := <-seen; n != int(at) {
		t.Errorf("sees %d bytes, of %d", n, at)
	}
	send(len(data))
	if err := <-ended; err != nil || !bytes.Equal(got, data) {
		t.Errorf("saw %d bytes of %d: %v", len(got), len(data), err)
	}
	w.clock.advance(10 * time.Second)
	if name := <-w.device.watching; name != "" {
		t.Errorf("the node is told of %q", name)
	}
	if n := len(w.log.of(auditlog.OpWatchSession)); n != 1 {
		t.Errorf("recorded %d times", n)
	}
}

func TestPrune(t *testing.T) {
	w := newWorld(t)
	for n := byte(1); n <= 2; n++ {
		change := ofNobody
		if n == 2 {
			change = func(*recording.Meta) {}
		}
		if _, err := w.bring(node1, id(n), w.recordingOf(id(n), 3, change), 100_000); err != nil {
			t.Fatal(err)
		}
	}
	storetest.Tx(t, w.cfg.Store, func(ctx context.Context, tx *store.Tx) error {
		return tx.InsertLegalHold(ctx, &store.LegalHold{ID: "h", Correlation: string(session), Reason: "x", PlacedBy: "p", Placed: w.clock.Now()})
	})
	if n, err := w.Prune(t.Context()); n != 0 || err != nil {
		t.Errorf("deleted %d young ones: %v", n, err)
	}
	w.clock.advance(recordings.MinRetention + time.Hour)
	if n, err := w.Prune(t.Context()); n != 1 || err != nil {
		t.Errorf("deleted %d: %v", n, err)
	}
	if r := w.get(id(1)); r.State != "deleted" || r.Digest == "" {
		t.Errorf("got %v", r)
	}
	if _, err := os.Stat(w.file(id(1))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file: %v", err)
	}
	_, _, err := w.read(olga, id(1))
	wantCode(t, err, protocol.CodeNotFound)
	if _, ended, err := w.read(olga, id(2)); !ended || err != nil {
		t.Errorf("the one under a hold: %v", err)
	}
	if n := len(w.log.of(auditlog.OpDeleteRecording)); n != 1 {
		t.Errorf("recorded %d times", n)
	}
}
