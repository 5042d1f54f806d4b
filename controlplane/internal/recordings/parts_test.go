package recordings_test

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/controlplane/internal/recordings"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// goesOn is a recording in n parts, named 1, 2, …; change spoils the Meta of one.
func (w *world) goesOn(n int, change func(part int, m *recording.Meta)) (parts [][]byte) {
	w.t.Helper()
	for part := 1; part <= n; part++ {
		m := recording.Meta{
			ID: id(byte(part)), Kind: recording.Session, Node: node1.String(), Session: session, Engineer: erin.Person, Started: w.clock.Now(),
		}
		if part > 1 {
			m.Continues = recording.Continues{Recording: id(1), Part: part, Before: id(byte(part - 1)), Digest: approval.DigestOf(parts[part-2])}
		}
		if change != nil {
			change(part, &m)
		}
		e, data, err := recording.NewEncoder(m)
		if err != nil {
			w.t.Fatal(err)
		}
		finish := func() ([]byte, error) { return e.Continue(w.clock.Now(), id(byte(part+1)), key1) }
		if part == n {
			finish = func() ([]byte, error) { return e.End(w.clock.Now(), recording.EndKilled, key1) }
		}
		end, err := finish()
		if err != nil {
			w.t.Fatal(err)
		}
		parts = append(parts, append(data, end...))
	}
	return parts
}

// Parts are kept one by one, whichever comes first, and say what they are parts of.
func TestParts(t *testing.T) {
	w := newWorld(t)
	parts := w.goesOn(3, nil)
	for _, n := range []byte{2, 1, 3} {
		if out, err := w.bring(node1, id(n), parts[n-1], 1000); err != nil || !out.Confirmed {
			t.Fatalf("part %d: %v, %v", n, out, err)
		}
	}
	for n, next := range map[byte]string{1: id(2), 2: id(3), 3: ""} {
		if r := w.get(id(n)); r.State != "complete" || r.Whole != id(1) || r.Part != int32(n) || r.Next != next {
			t.Errorf("part %d is %v", n, r)
		}
	}
	if r := w.get(string(session)); r.Id != id(3) {
		t.Errorf("the newest of the session is %s", r.Id)
	}
	list, err := w.ListRecordings(t.Context(), olga, &lockboxv1.ListRecordingsRequest{Session: string(session)})
	if err != nil || len(list.Recordings) != 3 || list.Recordings[0].Id != id(3) || list.Recordings[2].Id != id(1) {
		t.Errorf("listed: %v, %v", list, err)
	}
}

// A part that does not continue the one that is here is broken, whichever of them
// ends last; one whose neighbour is not here is not.
func TestPartsThatDoNotFit(t *testing.T) {
	third := func(change func(m *recording.Meta)) func(int, *recording.Meta) {
		return func(part int, m *recording.Meta) {
			if part == 3 {
				change(m)
			}
		}
	}
	for name, change := range map[string]func(int, *recording.Meta){
		"another digest": third(func(m *recording.Meta) { m.Continues.Digest = approval.DigestOf(nil) }),
		"another number": third(func(m *recording.Meta) { m.Continues.Part = 7 }),
		"another whole":  third(func(m *recording.Meta) { m.Continues.Recording = id(9) }),
		"of no session":  third(func(m *recording.Meta) { m.Session = "" }),
		"of shares":      third(func(m *recording.Meta) { m.Kind = recording.Shares }),
	} {
		for _, order := range [][]byte{{1, 2, 3}, {3, 2, 1}} {
			w := newWorld(t)
			parts, broken := w.goesOn(3, change), 0
			for _, n := range order {
				if _, err := w.bring(node1, id(n), parts[n-1], 100_000); protocol.CodeOf(err) == protocol.CodeRecording {
					broken++
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if last := w.get(id(order[1])); broken != 1 || order[0] == 3 && !strings.Contains(last.Problem, "does not continue part 2") {
				t.Errorf("%s, in the order %v: %d broken, %v", name, order, broken, last)
			}
		}
	}
	w := newWorld(t)
	parts := w.goesOn(3, nil)
	for _, n := range []byte{1, 3} {
		if _, err := w.bring(node1, id(n), parts[n-1], 100_000); err != nil {
			t.Errorf("without the second: %v", err)
		}
	}
}

// A recording that is larger than is allowed here stays on its device, and both say
// what to do.
func TestTooLargeSaysWhatToDo(t *testing.T) {
	w := newWorld(t)
	var log bytes.Buffer
	w.cfg.Logger = zerolog.New(&log)
	w.restart()
	data := w.recordingOf(id(1), 1100)
	for range 2 {
		_, err := w.bring(node1, id(1), data, 100_000)
		wantCode(t, err, protocol.CodeLimit)
		for _, setting := range []string{"recordings.max_mib", "recording.part_mib"} {
			if !strings.Contains(err.Error(), setting) {
				t.Errorf("%v does not name %s", err, setting)
			}
		}
	}
	if n := strings.Count(log.String(), "finds no room"); n != 1 {
		t.Errorf("logged %d times: %s", n, log.String())
	}
	w.cfg.Limits = recordings.Limits{Recording: 2 << 20, Node: 2 << 20, Total: 3 << 20}
	w.restart()
	if out, err := w.bring(node1, id(1), data, 100_000); err != nil || !out.Confirmed {
		t.Errorf("when it is allowed: %v, %v", out, err)
	}
}

// What the store of a restored control plane lists and its folder does not have is
// said not to be here, and taken again from its node: that, and nothing else.
func TestLostIsTakenAgain(t *testing.T) {
	w := newWorld(t)
	data := w.recordingOf(id(1), 30)
	if _, err := w.bring(node1, id(1), data, 100_000); err != nil {
		t.Fatal(err)
	}
	look := func() error {
		return w.ReadRecording(t.Context(), erin, &lockboxv1.ReadRecordingRequest{Id: id(1)}, func(*lockboxv1.ReadRecordingResponse) error { return nil })
	}
	lose := func() {
		t.Helper()
		if err := os.Remove(w.file(id(1))); err != nil {
			t.Fatal(err)
		}
		w.restart()
		if r := w.get(id(1)); r.State != "complete" || r.Problem == "" {
			t.Errorf("without its file it is %v", r)
		}
		wantCode(t, look(), protocol.CodeNotFound)
	}
	ask := func() *devicev1.AppendRecordingResponse {
		t.Helper()
		out, err := w.Append(t.Context(), node1, &devicev1.AppendRecordingRequest{
			Recording: id(1), Offset: int64(len(data)), Closed: true, Digest: string(approval.DigestOf(data)),
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if !ask().Confirmed {
		t.Error("what is here is asked for again")
	}
	lose()
	if out := ask(); out.Confirmed || out.Acked != 0 {
		t.Errorf("what is lost: %v", out)
	}
	if out, err := w.bring(node1, id(1), data, 3000); err != nil || !out.Confirmed {
		t.Errorf("sent again: %v, %v", out, err)
	}
	if kept, _ := os.ReadFile(w.file(id(1))); !bytes.Equal(kept, data) || w.get(id(1)).Problem != "" || look() != nil {
		t.Errorf("%d bytes are here of %d, %v", len(kept), len(data), w.get(id(1)))
	}
	lose()
	other := w.recordingOf(id(1), 31)
	_, err := w.Append(t.Context(), node1, &devicev1.AppendRecordingRequest{Recording: id(1), Data: other})
	wantCode(t, err, protocol.CodeRecording)
	if r := w.get(id(1)); r.State != "broken" || r.Digest != string(approval.DigestOf(data)) {
		t.Errorf("another one was taken: %v", r)
	}
}

// A recording whose signed end is here is completed, though the daemon, or the
// backup, stopped before its row said so.
func TestSettle(t *testing.T) {
	w := newWorld(t)
	data, half, bad := w.recordingOf(id(1), 5), w.recordingOf(id(2), 50), w.recordingOf(id(3), 5)
	for n, d := range map[byte][]byte{1: data, 2: half, 3: bad} {
		if _, err := w.Append(t.Context(), node1, &devicev1.AppendRecordingRequest{Recording: id(n), Data: d[:3000]}); err != nil {
			t.Fatal(err)
		}
	}
	half = half[:len(half)-len(half)/3]
	bad[4000] ^= 1
	for n, d := range map[byte][]byte{1: data, 2: half, 3: bad} {
		if err := os.WriteFile(w.file(id(n)), d, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.restart()
	w.run()
	for deadline := time.Now().Add(10 * time.Second); w.get(id(1)).State == "recording" || w.get(id(3)).State == "recording"; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it is not completed")
		}
	}
	if r := w.get(id(1)); r.State != "complete" || r.Digest != string(approval.DigestOf(data)) {
		t.Errorf("got %v", r)
	}
	if r := w.get(id(3)); r.State != "broken" {
		t.Errorf("one that is damaged is %v", r)
	}
	out, err := w.Append(t.Context(), node1, &devicev1.AppendRecordingRequest{Recording: id(2), Offset: int64(len(half)), Data: nil})
	if err != nil || out.Acked == 0 || out.Acked > int64(len(half)) || recording.Whole(half) != int(out.Acked) {
		t.Errorf("one that grows goes on from %v: %v", out, err)
	}
	if n := len(w.log.of(auditlog.OpKeepRecording)); n != 2 {
		t.Errorf("%d are on record", n)
	}
}

// Recordings that nobody goes on with, as nodes can leave many, take no memory once
// they were looked at.
func TestSettleTakesNoMemory(t *testing.T) {
	const many = 120
	w := newWorld(t)
	last := func(m *recording.Meta) { m.Started = m.Started.Add(-time.Hour) } // the newest are looked at first
	whole := w.recordingOf(id(1), 5, last)
	for n := range many + 1 {
		name, data := fmt.Sprintf("REC-%032x", n+1), whole
		if n > 0 {
			data = w.recordingOf(name, 0)
		}
		begin := data[:recording.Whole(data[:len(data)-1])] // without its end
		if _, err := w.Append(t.Context(), node1, &devicev1.AppendRecordingRequest{Recording: name, Data: begin}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(w.file(id(1)), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	w.restart()
	used := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := used()
	w.run()
	for deadline := time.Now().Add(10 * time.Second); w.get(id(1)).State == "recording"; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it is not completed")
		}
	}
	if grown := used() - before; grown > many*recording.MaxFrame/3 {
		t.Errorf("%d bytes are taken for %d recordings", grown, many)
	}
}
