package cli_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
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
	if args[1] == "open" {
		ts.Check(w.record(protocol.SessionID(args[0])))
	} else {
		end, err := w.recorder.encoder.End(time.Now(), recording.EndKilled, w.nodeKey)
		ts.Check(err)
		w.recorder.data = append(w.recorder.data, end...)
	}
	ts.Check(w.bring(args[1] == "closed"))
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
