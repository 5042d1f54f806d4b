package cli_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// recorder is what the device has recorded of a session.
type recorder struct {
	encoder *recording.Encoder
	data    []byte
}

// recorded has the device record a session, and bring it: open, with an engineer
// who wants to steer the terminal of who watches; or closed, as it was killed.
func recorded(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	ts.Setenv("NODEKEY", string(approval.KeyFingerprint(w.nodeKey.Public().(ed25519.PublicKey))))
	switch args[1] {
	case "open":
		ts.Check(w.record(protocol.SessionID(args[0])))
	case "parts":
		w.recordParts(ts, protocol.SessionID(args[0]))
		return
	default:
		end, err := w.recorder.encoder.End(time.Now(), recording.EndKilled, w.nodeKey)
		ts.Check(err)
		w.recorder.data = append(w.recorder.data, end...)
	}
	ts.Check(w.bring(args[1] == "closed"))
}

// recordParts has the device record a session in three parts, which shows a word in
// each, and bring them. They are files as well, and their ids in the environment.
func (w *world) recordParts(ts *testscript.TestScript, session protocol.SessionID) {
	m := recording.Meta{Kind: recording.Session, Node: serial + "/1", Session: session, Engineer: "erin@provider.example", Ticket: "SR-2001"}
	var ids []string
	for range 3 {
		ids = append(ids, fmt.Sprintf("REC-%032x", time.Now().UnixNano()))
	}
	for i, word := range []string{"uno", "due", "tre"} {
		m.ID, m.Started = ids[i], time.Now()
		if i > 0 {
			m.Continues = recording.Continues{Recording: ids[0], Part: i + 1, Before: ids[i-1], Digest: approval.DigestOf(w.recorder.data)}
		}
		e, data, err := recording.NewEncoder(m)
		ts.Check(err)
		w.recorder = &recorder{e, data}
		add := func(b recording.Body) {
			frame, err := e.Append(time.Now(), b)
			ts.Check(err)
			w.recorder.data = append(w.recorder.data, frame...)
		}
		add(recording.Open{Channel: "c1", Terminal: true, Columns: 80, Rows: 24, Continued: i > 0})
		add(recording.Output{Channel: "c1", Data: []byte("it says " + word + "\r\n")})
		add(recording.FileEvent{Via: recording.ViaShell, Op: recording.OpRemove, Share: share, Path: word, Size: -1})
		ts.Check(w.bring(false)) // as it grows
		finish := func() ([]byte, error) { return e.End(time.Now(), recording.EndDone, w.nodeKey) }
		if i < 2 {
			finish = func() ([]byte, error) { return e.Continue(time.Now(), ids[i+1], w.nodeKey) }
		}
		end, err := finish()
		ts.Check(err)
		w.recorder.data = append(w.recorder.data, end...)
		ts.Check(w.bring(true))
		ts.Check(os.WriteFile(ts.MkAbs(word+".rec"), w.recorder.data, 0o600))
		ts.Setenv(strings.ToUpper(word), ids[i])
	}
}

func (w *world) record(session protocol.SessionID) error {
	id := fmt.Sprintf("REC-%032x", time.Now().UnixNano())
	e, data, err := recording.NewEncoder(recording.Meta{
		ID: id, Kind: recording.Session, Node: serial + "/1", Session: session, Engineer: "erin@provider.example", Ticket: "SR-2001", Started: time.Now(),
	})
	if err != nil {
		return err
	}
	w.recorder = &recorder{e, data}
	for _, b := range []recording.Body{
		recording.Open{Channel: "c1", Terminal: true, Columns: 80, Rows: 24},
		recording.Output{Channel: "c1", Data: []byte("DBX0001> ls /shares\r\n\x1b[31mred file\x1b[0m\x1b]52;c;ZXZpbA==\x07\x1b[6n\r\n")},
		recording.Command{Channel: "c1", Line: "ls /shares"},
		recording.Close{Channel: "c1", Bytes: 1, SHA256: fmt.Sprintf("%064x", 1)},
		recording.Open{Channel: "c2"},
		recording.Command{Channel: "c2", Line: "prepare-to-ship"},
		recording.Close{Channel: "c2", SHA256: fmt.Sprintf("%064x", 1)},
		recording.FileEvent{Via: recording.ViaSFTP, Op: recording.OpRename, Share: share, Path: "a", To: share + "/b", Size: -1},
	} {
		frame, err := e.Append(time.Now(), b)
		if err != nil {
			return err
		}
		w.recorder.data = append(w.recorder.data, frame...)
	}
	return nil
}

func (w *world) bring(closed bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	in := &devicev1.AppendRecordingRequest{Recording: w.recorder.encoder.Meta().ID, Data: w.recorder.data, Closed: closed}
	if closed {
		in.Digest = string(approval.DigestOf(in.Data))
	}
	out, err := w.node.AppendRecording(ctx, in)
	if err == nil && (out.Acked != int64(len(in.Data)) || out.Confirmed != closed) {
		err = fmt.Errorf("answered %v for %d bytes", out, len(in.Data))
	}
	return err
}
