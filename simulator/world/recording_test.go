package world_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	lockboxv1 "github.com/databox-lockbox/lockbox/protocol/lockbox/v1"
	"github.com/databox-lockbox/lockbox/protocol/recording"
	"github.com/databox-lockbox/lockbox/simulator/netfault"
	"github.com/databox-lockbox/lockbox/simulator/world"
)

// overLine has the bare node dial the control plane over a line that can break.
func overLine(t *testing.T, w *world.World) *netfault.Proxy {
	t.Helper()
	line, err := netfault.New(w.Tunnel)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	t.Cleanup(func() { stop(); all.Wait() })
	all.Go(func() {
		if err := line.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	f, err := os.OpenFile(w.Other.Nodes[0].ConfigFile(), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, port, _ := net.SplitHostPort(line.Addr())
	if _, err := fmt.Fprintf(f, "control_plane:\n  tunnel_address: localhost:%s\n", port); err != nil {
		t.Fatal(err)
	}
	return line
}

// enable lets Erin open sessions on the device.
func (l *local) enable() *lockboxv1.Session {
	l.t.Helper()
	ctx := l.t.Context()
	ticket, err := l.crew.As("olga").Tickets.FileTicket(ctx, &lockboxv1.FileTicketRequest{Order: string(l.w.Other.Order), Title: "it has halted"})
	l.must(err)
	_, err = l.crew.As("sam").Tickets.AssignTicket(ctx, &lockboxv1.AssignTicketRequest{Id: ticket.Id, Engineer: string(l.w.People["erin"].Name)})
	l.must(err)
	s, err := l.crew.As("erin").Sessions.EnableSession(ctx, &lockboxv1.EnableSessionRequest{Serial: string(l.w.Other.Serial), Ticket: ticket.Id})
	l.must(err)
	return s
}

// terminal opens a shell on the device's SSH server, as Erin.
func (l *local) terminal(session string) (*ssh.Client, io.WriteCloser, io.Reader) {
	l.t.Helper()
	erin := l.w.People["erin"]
	signer, err := erin.Signer()
	l.must(err)
	resp, err := l.crew.As("erin").Sessions.IssueCertificate(l.t.Context(), &lockboxv1.IssueCertificateRequest{
		Session: session, PublicKey: string(ssh.MarshalAuthorizedKey(signer.PublicKey())),
	})
	l.must(err)
	cert, _, _, _, err := ssh.ParseAuthorizedKey([]byte(resp.Certificate))
	l.must(err)
	certified, err := ssh.NewCertSigner(cert.(*ssh.Certificate), signer)
	l.must(err)
	conn, err := l.crew.As("erin").DialSSH(l.t.Context(), protocol.SessionID(session))
	l.must(err)
	c, chans, reqs, err := ssh.NewClientConn(conn, "device", &ssh.ClientConfig{
		User: session, Auth: []ssh.AuthMethod{ssh.PublicKeys(certified)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 10 * time.Second,
	})
	l.must(err)
	client := ssh.NewClient(c, chans, reqs)
	l.t.Cleanup(func() { client.Close() })
	sh, err := client.NewSession()
	l.must(err)
	in, err := sh.StdinPipe()
	l.must(err)
	out, err := sh.StdoutPipe()
	l.must(err)
	l.must(sh.RequestPty("xterm", 24, 80, ssh.TerminalModes{}))
	l.must(sh.Shell())
	return client, in, out
}

// says types a line and waits until the terminal shows what follows from it.
func (l *local) says(in io.Writer, out io.Reader, line, want string) {
	l.t.Helper()
	_, err := io.WriteString(in, line+"\r")
	l.must(err)
	l.shows(out, want)
}

func (l *local) shows(out io.Reader, want string) {
	l.t.Helper()
	var seen []byte
	for buf := make([]byte, 4096); !bytes.Contains(seen, []byte(want)); {
		n, err := out.Read(buf)
		seen = append(seen, buf[:n]...)
		if err != nil {
			l.t.Fatalf("the terminal showed %q, not %q: %v", seen, want, err)
		}
	}
}

// recordings lists what there is of a session, oldest first.
func (l *local) recordings(session string) []*lockboxv1.Recording {
	l.t.Helper()
	resp, err := l.crew.As("olga").Recordings.ListRecordings(l.t.Context(), &lockboxv1.ListRecordingsRequest{Session: session})
	l.must(err)
	slices.Reverse(resp.Recordings)
	return resp.Recordings
}

// whole waits until a recording is complete and in the activity log.
func (l *local) whole(id string) *lockboxv1.Recording {
	l.t.Helper()
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		r, err := l.crew.As("olga").Recordings.GetRecording(l.t.Context(), &lockboxv1.GetRecordingRequest{Id: id})
		l.must(err)
		if r.State == "complete" && r.Logged {
			return r
		}
		if r.State == "broken" || time.Now().After(deadline) {
			l.t.Fatalf("the recording is %v", r)
		}
	}
}

// read is a recording as the control plane sends it to Olga.
func (l *local) read(id string, each func(total int)) []byte {
	l.t.Helper()
	var data []byte
	for ended := false; !ended; {
		stream, err := l.crew.As("olga").Recordings.ReadRecording(l.t.Context(), &lockboxv1.ReadRecordingRequest{Id: id, Offset: int64(len(data)), Follow: true})
		l.must(err)
		for !ended {
			m, err := stream.Receive()
			if errors.Is(err, io.EOF) {
				break
			}
			l.must(err)
			data, ended = append(data, m.Data...), m.Ended
			each(len(data))
		}
		stream.Close()
	}
	return data
}

// A session on a real device is on record at the control plane as it goes on: the
// customer watches, the engineer sees that, and a line that breaks loses nothing.
// The customer kills it, and it ends marked as that, signed, and as the activity
// log has it.
func TestSessionIsRecordedWatchedAndKilled(t *testing.T) {
	var line *netfault.Proxy
	l := newLocal(t, func(w *world.World) { line = overLine(t, w) })
	s := l.enable()
	_, in, out := l.terminal(s.Id)
	l.says(in, out, "disks", "DISK")

	// The line breaks, and with it the connection; the recording goes on with the
	// next one.
	line.Cut()
	if _, err := io.Copy(io.Discard, out); err != nil && !errors.Is(err, io.EOF) {
		t.Logf("the terminal ended with %v", err)
	}
	for deadline := time.Now().Add(20 * time.Second); l.node().Online; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the node is online over a line that is cut")
		}
	}
	line.Heal()
	l.reports(protocol.Locked)
	client, in, out := l.terminal(s.Id)
	l.says(in, out, "shares", "(all)")

	// What was recorded until then is whole, whether the device went on with the
	// same recording or with another.
	list := l.recordings(s.Id)
	for deadline := time.Now().Add(20 * time.Second); (len(list) == 0 || list[len(list)-1].State != "recording") && time.Now().Before(deadline); list = l.recordings(s.Id) {
		time.Sleep(50 * time.Millisecond)
	}
	id := list[len(list)-1].Id
	watched, seen := make(chan []byte, 1), make(chan int, 1024)
	go func() { watched <- l.read(id, func(n int) { seen <- n }) }()
	<-seen
	l.shows(out, "olga@contoso.example") // the engineer is told
	l.says(in, out, "help", "file by file")

	began := time.Now()
	resp, err := l.crew.As("olga").Recordings.KillSession(t.Context(), &lockboxv1.KillSessionRequest{Session: s.Id, Reason: "enough"})
	l.must(err)
	_ = client.Wait() // how it was cut is not the question
	if took := time.Since(began); took > 2*time.Second || !resp.Nodes[0].Confirmed {
		t.Errorf("killed in %s: %v", took, resp.Nodes)
	}

	r := l.whole(id)
	if r.Reason != string(recording.EndKilled) {
		t.Errorf("it ended because of %q", r.Reason)
	}
	data := <-watched
	report, err := recording.Verify(bytes.NewReader(data), recording.Expect{
		Key: approval.Digest(l.node().KeyFingerprint), Node: l.w.Other.Nodes[0].ID, Digest: approval.Digest(r.Digest),
	})
	if err != nil {
		t.Fatal(err)
	}
	if report.Meta.Session != protocol.SessionID(s.Id) || report.Meta.Engineer != l.w.People["erin"].Name {
		t.Errorf("it is of %+v", report.Meta)
	}
	var commands []string
	shown := ""
	for _, one := range list {
		data := l.read(l.whole(one.Id).Id, func(int) {})
		more, text := l.holds(data)
		commands, shown = append(commands, more...), shown+text
	}
	if !slices.Equal(commands, []string{"disks", "shares", "help"}) {
		t.Errorf("recorded the commands %q", commands)
	}
	if !strings.Contains(shown, "DISK") || !strings.Contains(shown, "file by file") {
		t.Errorf("recorded as shown: %q", shown)
	}
}

// holds returns the commands of a recording, and what was shown.
func (l *local) holds(data []byte) (commands []string, shown string) {
	l.t.Helper()
	for in := recording.NewReader(bytes.NewReader(data)); ; {
		_, b, err := in.Next()
		if errors.Is(err, io.EOF) {
			return commands, shown
		}
		l.must(err)
		switch b := b.(type) {
		case recording.Command:
			commands = append(commands, b.Line)
		case recording.Output:
			shown += string(b.Data)
		}
	}
}

// A session of which more is recorded than one file takes is one to everybody: its
// engineer works and is watched on, its watcher sees all of it, and its parts prove
// each other.
func TestLongSessionIsOneRecording(t *testing.T) {
	l := newLocal(t, func(w *world.World) {
		f, err := os.OpenFile(w.Other.Nodes[0].ConfigFile(), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := fmt.Fprint(f, "recording:\n  part_mib: 1\n"); err != nil {
			t.Fatal(err)
		}
	})
	s := l.enable()
	_, in, out := l.terminal(s.Id)
	l.says(in, out, "disks", "DISK")
	var list []*lockboxv1.Recording
	for deadline := time.Now().Add(20 * time.Second); len(list) == 0 && time.Now().Before(deadline); list = l.recordings(s.Id) {
		time.Sleep(50 * time.Millisecond)
	}
	watched := make(chan [][]byte, 1)
	watching := make(chan bool, 1)
	go func() {
		var parts [][]byte
		for id := list[0].Id; id != ""; {
			parts = append(parts, l.read(id, func(int) {
				select {
				case watching <- true:
				default:
				}
			}))
			id = l.whole(id).Next
			for deadline := time.Now().Add(20 * time.Second); id != "" && len(l.recordings(s.Id)) <= len(parts) && time.Now().Before(deadline); {
				time.Sleep(20 * time.Millisecond)
			}
		}
		watched <- parts
	}()
	<-watching
	l.shows(out, "olga@contoso.example")

	done := make(chan string, 1)
	go func() {
		var seen bytes.Buffer
		_, _ = io.Copy(&seen, out) // ends with the session
		done <- seen.String()
	}()
	for len(l.recordings(s.Id)) < 2 {
		_, err := io.WriteString(in, strings.Repeat("help\r", 20))
		l.must(err)
		time.Sleep(200 * time.Millisecond)
	}
	time.Sleep(time.Second) // whoever watched the first part comes to the second
	_, err := l.crew.As("olga").Recordings.KillSession(t.Context(), &lockboxv1.KillSessionRequest{Session: s.Id, Reason: "enough"})
	l.must(err)
	parts := <-watched
	if shown := <-done; strings.Contains(shown, "watched by") || strings.Contains(shown, "nobody watches") {
		t.Error("the engineer is told again who watches, though nobody came or left")
	}
	reports, err := recording.VerifyParts(bytes.NewReader(slices.Concat(parts...)), approval.Digest(l.node().KeyFingerprint))
	l.must(err)
	first, last := reports[0], reports[len(reports)-1]
	if len(reports) < 2 || first.Meta.Part() != 1 || last.End.Reason != recording.EndKilled {
		t.Errorf("%d parts from %d on, which ended with %q", len(reports), first.Meta.Part(), last.End.Reason)
	}
}
