package share

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/recording"
)

// keptLog keeps what is reported, until told to fail.
type keptLog struct {
	mu     sync.Mutex
	events []recording.FileEvent
	err    error
	failed chan struct{} // nil: never
}

func (l *keptLog) File(e recording.FileEvent) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.events = append(l.events, e)
	}
	return l.err
}

func (l *keptLog) Failed() <-chan struct{} { return l.failed }

func (l *keptLog) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *keptLog) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// kept returns what was reported.
func (l *keptLog) kept() []recording.FileEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

// take is kept, and forgets it.
func (l *keptLog) take() []recording.FileEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { l.events = nil }()
	return l.events
}

// TestCheck says what is missing.
func TestCheck(t *testing.T) {
	needSamba(t)
	for name, want := range map[string]string{
		"/usr/sbin/smbd":    "",
		"/nonexistent/smbd": "/nonexistent/smbd is not installed: install the package samba",
		"/bin/true":         "/bin/true does not say where its modules are: is it smbd?",
	} {
		services := New(NewSMB(SMBConfig{SMBD: name})).Services()
		if len(services) != 1 || services[0].Protocol != "smb" || services[0].Trouble != want {
			t.Errorf("%s: %+v", name, services)
		}
	}
	p := NewSMB(SMBConfig{})
	p.modules = t.TempDir()
	if err := p.Check(); err == nil || !strings.Contains(err.Error(), "samba-vfs-modules") {
		t.Errorf("without the module: %v", err)
	}
}

// TestWithoutSMBD serves nothing, and says so, until it is stopped.
func TestWithoutSMBD(t *testing.T) {
	set := New(NewSMB(SMBConfig{SMBD: "/nonexistent/smbd", RunDir: t.TempDir()}))
	server, err := set.Start(t.Context(), []Share{{Name: shareName, Dir: t.TempDir()}}, approval.ReadOnly, &keptLog{})
	if err != nil {
		t.Fatal(err)
	}
	if user, password := server.Credentials(); user+password != "" {
		t.Error("credentials of nothing")
	}
	if s := server.Services(); len(s) != 1 || s[0].Address != "" || s[0].Trouble == "" {
		t.Errorf("services: %+v", s)
	}
	select {
	case <-server.Done():
		t.Error("done before it is stopped")
	case <-time.After(10 * time.Millisecond):
	}
	for range 2 {
		if err := server.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
	<-server.Done()
}

// fakeProtocol is a protocol whose servers end when told to.
type fakeProtocol struct {
	name     string
	startErr error
	last     *fakeRunning
}

type fakeRunning struct {
	done chan struct{}
	once sync.Once
}

func (p *fakeProtocol) Name() string                  { return p.name }
func (p *fakeProtocol) Check() error                  { return nil }
func (p *fakeProtocol) Cleanup(context.Context) error { return nil }
func (r *fakeRunning) Address() string                { return "127.0.0.1:1" }
func (r *fakeRunning) Done() <-chan struct{}          { return r.done }
func (r *fakeRunning) Err() error                     { return errors.New("it crashed") }
func (r *fakeRunning) Stop(context.Context) error     { r.once.Do(func() { close(r.done) }); return nil }

func (p *fakeProtocol) Start(context.Context, []Share, approval.Access, FileLog) (Running, error) {
	if p.startErr != nil {
		return nil, p.startErr
	}
	p.last = &fakeRunning{done: make(chan struct{})}
	return p.last, nil
}

// TestProtocols goes on with one protocol when the other has ended, and ends when
// none is left.
func TestProtocols(t *testing.T) {
	smb, nfs := &fakeProtocol{name: ProtocolSMB}, &fakeProtocol{name: ProtocolNFS}
	server, err := New(smb, nfs).Start(t.Context(), nil, approval.ReadOnly, &keptLog{})
	if err != nil {
		t.Fatal(err)
	}
	smb.last.Stop(t.Context())
	waitFor(t, func() bool { return server.Services()[0].Trouble != "" })
	want := []Service{{Protocol: ProtocolSMB, Trouble: "it crashed"}, {Protocol: ProtocolNFS, Address: "127.0.0.1:1"}}
	if diff := cmp.Diff(want, server.Services()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	select {
	case <-server.Done():
		t.Error("done while one is left")
	case <-time.After(10 * time.Millisecond):
	}
	nfs.last.Stop(t.Context())
	<-server.Done()
	if err := server.Err(); err == nil || !strings.Contains(err.Error(), "smb: it crashed") || !strings.Contains(err.Error(), "nfs: it crashed") {
		t.Errorf("because: %v", err)
	}

	nfs.startErr = errors.New("no port")
	if _, err := New(smb, nfs).Start(t.Context(), nil, approval.ReadOnly, &keptLog{}); err == nil || !strings.Contains(err.Error(), "no port") {
		t.Errorf("start: %v", err)
	}
	<-smb.last.Done()
}

// TestRecordFails ends all protocols, also those that nobody uses.
func TestRecordFails(t *testing.T) {
	log := &keptLog{failed: make(chan struct{})}
	smb, nfs := &fakeProtocol{name: ProtocolSMB}, &fakeProtocol{name: ProtocolNFS}
	server, err := New(smb, nfs).Start(t.Context(), nil, approval.ReadOnly, log)
	if err != nil {
		t.Fatal(err)
	}
	log.fail(errors.New("no room"))
	close(log.failed)
	<-server.Done()
	if err := server.Err(); err == nil || !strings.Contains(err.Error(), "not recorded any more: no room") {
		t.Errorf("because: %v", err)
	}
}
