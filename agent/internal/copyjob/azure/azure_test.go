package azure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/agent/internal/copyjob"
	"github.com/databox-lockbox/lockbox/agent/internal/copyjob/azure/azuretest"
	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/manifest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// line leads to a blob service; it can be watched and disturbed.
type line struct {
	endpoint string // through the line

	mu      sync.Mutex
	disturb func(w http.ResponseWriter, r *http.Request) (done bool) // nil: not
	after   func(r *http.Request, resp *http.Response) error         // nil: nothing; an error cuts the connection
	active  int                                                      // requests under way
	stored  int64                                                    // bytes of content that the service took
	puts    int64                                                    // requests with content that it took
}

func newLine(t *testing.T) *line {
	behind, err := url.Parse(azuretest.Start(t))
	if err != nil {
		t.Fatal(err)
	}
	s := &line{}
	transport := &http.Transport{}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = behind.Scheme, behind.Host
			r.Out = r.Out.WithContext(context.WithoutCancel(r.In.Context())) // what was sent, arrives
		},
		Transport: transport,
		ModifyResponse: func(resp *http.Response) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			comp := resp.Request.URL.Query().Get("comp")
			if resp.StatusCode == http.StatusCreated && comp != "blocklist" && resp.Request.ContentLength > 0 {
				s.stored += resp.Request.ContentLength
				s.puts++
			}
			if s.after != nil {
				return s.after(resp.Request, resp)
			}
			return nil
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		disturb := s.disturb
		s.active++
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			s.active--
			s.mu.Unlock()
		}()
		if disturb == nil || !disturb(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(func() {
		server.Close()
		transport.CloseIdleConnections()
	})
	s.endpoint = server.URL + behind.Path
	return s
}

// counted returns the bytes and requests with content since the last call.
func (s *line) counted() (stored, puts int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stored, puts = s.stored, s.puts
	s.stored, s.puts = 0, 0
	return stored, puts
}

// settle waits until what is in the line has arrived.
func (s *line) settle(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		active := s.active
		s.mu.Unlock()
		if active == 0 {
			return
		}
	}
	t.Fatal("requests do not end")
}

func (s *line) set(disturb func(http.ResponseWriter, *http.Request) bool, after func(*http.Request, *http.Response) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disturb, s.after = disturb, after
}

func (s *line) accounts() *Accounts {
	return New(Config{
		Accounts: []Account{{azuretest.Name, s.endpoint}}, Parallel: 2, Pause: 5 * time.Millisecond,
	})
}

func (s *line) destination() approval.Destination {
	return approval.Destination{Account: azuretest.Name, Endpoint: s.endpoint}
}

// target is the destination, with what lets into it.
func (s *line) target(t *testing.T) copyjob.Target {
	return copyjob.Target{Destination: s.destination(), Access: copyjob.NewAccess([]byte(azuretest.Sign(t)))}
}

func (s *line) open(t *testing.T) *store {
	t.Helper()
	opened, err := s.accounts().Open(s.target(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close() })
	return opened.(*store)
}

// random returns bytes that are the same in each run.
func random(n int) []byte {
	data := make([]byte, n)
	source := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	source.Read(data)
	return data
}

func object(kind manifest.Kind, name string, data []byte) copyjob.Object {
	return copyjob.Object{
		Account: azuretest.Name, Kind: kind, Container: "photos", Name: name,
		Size: int64(len(data)), CRC64: manifest.ChecksumCRC64(data), Modified: time.Date(2024, 2, 3, 4, 5, 6, 700, time.UTC),
	}
}

func put(ctx context.Context, s *store, o copyjob.Object, data []byte) error {
	return s.Put(ctx, o, bytes.NewReader(data), func(int64) {})
}

// download returns a blob's content, kind and metadata.
func download(t *testing.T, s *store, o copyjob.Object) ([]byte, string, map[string]string) {
	t.Helper()
	client, err := s.blob(o)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := client.DownloadStream(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	data, err := io.ReadAll(reply.Body)
	if err != nil {
		t.Fatal(err)
	}
	metadata := make(map[string]string)
	for k, v := range reply.Metadata {
		metadata[strings.ToLower(k)] = *v
	}
	return data, string(*reply.BlobType), metadata
}

func TestAzurite(t *testing.T) {
	s := newLine(t)
	for name, test := range map[string]func(*testing.T, *line){
		"Job": testJob, "ResumedBlocks": testResumedBlocks, "ResumedPages": testResumedPages, "Existing": testExisting,
		"Faults": testFaults, "LostAnswers": testLostAnswers, "Denied": testDenied, "Content": testContent,
	} {
		t.Run(name, func(t *testing.T) {
			s.set(nil, nil)
			s.counted()
			test(t, s)
		})
	}
}

// A job brings block blobs and page blobs, and refuses what it cannot.
func testJob(t *testing.T, s *line) {
	disk := t.TempDir()
	vhd := append(make([]byte, pageChunk), random(pageChunk+512)...)
	files := map[string][]byte{
		"devstoreaccount1_BlockBlob/job-photos/2024/a b#ü%20.jpg": []byte("named oddly"),
		"devstoreaccount1_BlockBlob/job-photos/empty":             nil,
		"devstoreaccount1_BlockBlob/job-photos/large":             random(2*blockSize + 1000),
		"devstoreaccount1_PageBlob/job-disks/os.vhd":              vhd,
		"devstoreaccount1_PageBlob/job-disks/empty.vhd":           nil,
		"devstoreaccount1_AzFile/job-files/a.txt":                 []byte("cannot go there"),
	}
	for name, data := range files {
		name = filepath.Join(disk, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	shares, err := copyjob.Shares("disk1", disk)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := copyjob.PrepareToShip(t.Context(), shares); err != nil {
		t.Fatal(err)
	}
	job := copyjob.New(copyjob.Config{Blobs: s.accounts(), Parallel: 3, Dir: t.TempDir()})
	run := func() copyjob.Result {
		r, err := job.Run(t.Context(), "ORD-1001", shares, []copyjob.Target{s.target(t)}, func(copyjob.Progress) {})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := run()
	if r.State != copyjob.Halted || r.Progress.FilesDone != 5 || !slices.Equal(r.Codes, []manifest.ErrorCode{manifest.TypeUnsupported}) {
		t.Fatalf("%s %+v %v", r.State, r.Progress, r.Codes)
	}
	if stored, _ := s.counted(); stored != 11+2*blockSize+1000+pageChunk+512 {
		t.Errorf("%d bytes were sent", stored)
	}
	opened := s.open(t)
	for name, want := range files {
		if strings.Contains(name, "_AzFile/") {
			continue
		}
		share, rest, _ := strings.Cut(name, "/")
		var o copyjob.Object
		o.Container, o.Name, _ = strings.Cut(rest, "/")
		data, kind, metadata := download(t, opened, o)
		if !bytes.Equal(data, want) || "devstoreaccount1_"+kind != share {
			t.Errorf("%s: %d bytes, %s", name, len(data), kind)
		}
		info, err := os.Stat(filepath.Join(disk, name))
		if err != nil {
			t.Fatal(err)
		}
		wantMeta := map[string]string{
			keyCRC64: fmt.Sprintf("%016x", manifest.ChecksumCRC64(want)), keyModified: info.ModTime().UTC().Format(time.RFC3339Nano),
		}
		if diff := cmp.Diff(wantMeta, metadata); diff != "" {
			t.Errorf("%s: metadata (-want +got):\n%s", name, diff)
		}
	}
	if r := run(); r.Progress.FilesDone != 5 {
		t.Errorf("again: %+v", r.Progress)
	}
	if stored, _ := s.counted(); stored != 0 {
		t.Errorf("again: %d bytes were sent", stored)
	}
}

// cutAfter ends ctx once the service has taken so many requests with content.
func cutAfter(s *line, puts int64, cancel func()) {
	var n atomic.Int64
	s.set(nil, func(r *http.Request, resp *http.Response) error {
		if r.ContentLength > 1<<20 && resp.StatusCode == http.StatusCreated && n.Add(1) == puts {
			cancel()
		}
		return nil
	})
}

func testResumed(t *testing.T, s *line, o copyjob.Object, data []byte) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cutAfter(s, 2, cancel)
	if err := put(ctx, s.open(t), o, data); !errors.Is(err, context.Canceled) {
		t.Fatalf("cut: %v", err)
	}
	s.set(nil, nil)
	s.settle(t)
	before, puts := s.counted()
	if puts < 2 || before >= int64(len(data)) {
		t.Fatalf("cut after %d requests, %d bytes", puts, before)
	}
	opened := s.open(t)
	if ok, err := opened.Find(t.Context(), o); ok || err != nil {
		t.Errorf("before it is whole: %v, %v", ok, err)
	}
	var told atomic.Int64
	if err := opened.Put(t.Context(), o, bytes.NewReader(data), func(n int64) { told.Add(n) }); err != nil {
		t.Fatal(err)
	}
	if after, _ := s.counted(); before+after != int64(len(data)) || told.Load() != int64(len(data)) {
		t.Errorf("%d bytes before the cut and %d after: want %d; told of %d", before, after, len(data), told.Load())
	}
	if got, _, _ := download(t, opened, o); !bytes.Equal(got, data) {
		t.Error("the content differs")
	}
	if ok, err := opened.Find(t.Context(), o); !ok || err != nil {
		t.Errorf("whole: %v, %v", ok, err)
	}
}

func testResumedBlocks(t *testing.T, s *line) {
	data := random(5*blockSize + 7)
	testResumed(t, s, object(manifest.BlockBlob, "resumed", data), data)
}

func testResumedPages(t *testing.T, s *line) {
	data := random(6*pageChunk + 512)
	o := object(manifest.PageBlob, "resumed.vhd", data)
	testResumed(t, s, o, data)

	// What was begun of other content is begun again.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.Name = "changed.vhd"
	cutAfter(s, 1, cancel)
	if err := put(ctx, s.open(t), o, data); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	s.set(nil, nil)
	s.settle(t)
	changed := random(2 * pageChunk)
	o = object(manifest.PageBlob, "changed.vhd", changed)
	if err := put(t.Context(), s.open(t), o, changed); err != nil {
		t.Fatal(err)
	}
	if got, _, metadata := download(t, s.open(t), o); !bytes.Equal(got, changed) || metadata[keyIncomplete] != "" {
		t.Errorf("the content differs, or %v", metadata)
	}
}

// Nothing is overwritten; the same content counts as uploaded.
func testExisting(t *testing.T, s *line) {
	opened := s.open(t)
	theirs := random(blockSize + 5)
	if err := opened.makeContainer(t.Context(), object(manifest.BlockBlob, "x", nil)); err != nil {
		t.Fatal(err)
	}
	small, large := []byte("theirs"), theirs
	for name, data := range map[string][]byte{"their-small": small, "their-large": large} {
		o := object(manifest.BlockBlob, name, data)
		client, err := opened.blockBlob(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.UploadBuffer(t.Context(), data, nil); err != nil {
			t.Fatal(err)
		}
		if ok, err := opened.Find(t.Context(), o); !ok || err != nil {
			t.Errorf("%s: the same content: %v, %v", name, ok, err)
		}
		if err := put(t.Context(), opened, o, data); err != nil {
			t.Errorf("%s: the same content again: %v", name, err)
		}
		other := bytes.Clone(data)
		other[len(other)-1]++
		for _, o := range []copyjob.Object{
			object(manifest.BlockBlob, name, other), object(manifest.BlockBlob, name, other[1:]), object(manifest.PageBlob, name, make([]byte, 512)),
		} {
			if ok, err := opened.Find(t.Context(), o); ok || !errors.Is(err, copyjob.ErrExists) {
				t.Errorf("%s: Find of other content: %v, %v", name, ok, err)
			}
		}
		if err := put(t.Context(), opened, object(manifest.BlockBlob, name, other), other); !errors.Is(err, copyjob.ErrExists) {
			t.Errorf("%s: other content: %v", name, err)
		}
		if got, _, metadata := download(t, opened, o); !bytes.Equal(got, data) || len(metadata) != 0 {
			t.Errorf("%s: it was overwritten", name)
		}
	}
}

// What passes by itself is tried again.
func testFaults(t *testing.T, s *line) {
	opened := s.open(t)
	var n atomic.Int64
	data, vhd := random(3*blockSize), random(2*pageChunk)
	for name, fault := range map[string]func(w http.ResponseWriter, r *http.Request){
		"busy":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"slow":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) },
		"cut":     func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"damaged": nil,
	} {
		n.Store(0)
		s.set(func(w http.ResponseWriter, r *http.Request) bool {
			if n.Add(1)%3 != 0 {
				return false
			}
			if fault != nil {
				fault(w, r)
				return true
			}
			body, _ := io.ReadAll(r.Body)
			if len(body) > 1<<10 {
				body[len(body)/2] ^= 1
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			return false
		}, nil)
		for _, o := range []copyjob.Object{object(manifest.BlockBlob, name, data), object(manifest.PageBlob, name+".vhd", vhd), object(manifest.BlockBlob, name+"-small", data[:5000])} {
			content := data[:min(int(o.Size), len(data))]
			if o.Kind == manifest.PageBlob {
				content = vhd
			}
			if err := put(t.Context(), opened, o, content); err != nil {
				t.Errorf("%s: %s: %v", name, o.Name, err)
				continue
			}
			if got, _, _ := download(t, opened, o); !bytes.Equal(got, content) {
				t.Errorf("%s: %s: the content differs", name, o.Name)
			}
		}
	}
	s.set(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusBadGateway)
		return true
	}, nil)
	if err := put(t.Context(), opened, object(manifest.BlockBlob, "never", data), data); !errors.Is(err, copyjob.ErrUnavailable) {
		t.Errorf("a service that stays away: %v", err)
	}
}

// An answer that got lost makes no error of an upload that succeeded.
func testLostAnswers(t *testing.T, s *line) {
	opened := s.open(t)
	data := random(blockSize + 1)
	lost := make(map[string]bool)
	s.set(nil, func(r *http.Request, _ *http.Response) error {
		if key := r.Method + r.URL.String(); r.Method != http.MethodHead && r.Method != http.MethodGet && !lost[key] {
			lost[key] = true
			return errors.New("lost")
		}
		return nil
	})
	for _, o := range []copyjob.Object{object(manifest.BlockBlob, "lost", data), object(manifest.BlockBlob, "lost-small", data[:99]), object(manifest.PageBlob, "lost.vhd", data[:1024])} {
		if err := put(t.Context(), opened, o, data[:o.Size]); err != nil {
			t.Errorf("%s: %v", o.Name, err)
		}
		if ok, err := opened.Find(t.Context(), o); !ok || err != nil {
			t.Errorf("%s is not there: %v, %v", o.Name, ok, err)
		}
	}
	if len(lost) < 5 {
		t.Errorf("only %d answers were lost", len(lost))
	}
}

func testDenied(t *testing.T, s *line) {
	wrong := copyjob.NewAccess([]byte("sv=2024-11-04&ss=b&srt=co&sp=rwc&se=2050-01-01&sig=c2VjcmV0c2VjcmV0"))
	opened, err := s.accounts().Open(copyjob.Target{Destination: s.destination(), Access: wrong})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	data := []byte("x")
	if err := put(t.Context(), opened.(*store), object(manifest.BlockBlob, "denied", data), data); !errors.Is(err, copyjob.ErrDenied) {
		t.Errorf("a wrong signature: %v", err)
	}
	s.set(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, nil)
	_, err = opened.Find(t.Context(), object(manifest.BlockBlob, "cut", data))
	if !errors.Is(err, copyjob.ErrUnavailable) || strings.Contains(err.Error(), "c2VjcmV0") || strings.Contains(err.Error(), "sig=") {
		t.Errorf("the error is, or quotes, the wrong thing: %v", err)
	}
	s.set(nil, nil)
	if _, err := s.accounts().Open(copyjob.Target{Destination: s.destination()}); protocol.CodeOf(err) != protocol.CodeUnavailable {
		t.Errorf("with nothing that lets in: %v", err)
	}
	// Once it is wiped, nothing goes out any more.
	access := s.target(t).Access
	if opened, err = s.accounts().Open(copyjob.Target{Destination: s.destination(), Access: access}); err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if err := put(t.Context(), opened.(*store), object(manifest.BlockBlob, "wiped", data), data); err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	s.set(func(http.ResponseWriter, *http.Request) bool { asked.Add(1); return false }, nil)
	access.Wipe()
	if _, err := opened.Find(t.Context(), object(manifest.BlockBlob, "wiped", data)); err == nil || asked.Load() != 0 {
		t.Errorf("after the lease: %v, %d requests", err, asked.Load())
	}
}

// What is not as announced is not committed.
func testContent(t *testing.T, s *line) {
	opened := s.open(t)
	data := random(blockSize + 512)
	for _, kind := range []manifest.Kind{manifest.BlockBlob, manifest.PageBlob} {
		for name, change := range map[string]func(o *copyjob.Object){
			"crc": func(o *copyjob.Object) { o.CRC64++ }, "short": func(o *copyjob.Object) { o.Size += 512 }, "long": func(o *copyjob.Object) { o.Size -= 512 },
			"small": func(o *copyjob.Object) { o.Size = 512 },
		} {
			o := object(kind, fmt.Sprint("wrong-", kind, name), data)
			change(&o)
			if err := put(t.Context(), opened, o, data); !errors.Is(err, copyjob.ErrContent) {
				t.Errorf("%s %s: %v", kind, name, err)
			}
			if ok, err := opened.Find(t.Context(), o); ok || err != nil {
				t.Errorf("%s %s: it is there: %v, %v", kind, name, ok, err)
			}
		}
	}
	o := object(manifest.BlockBlob, "old", data)
	o.Modified = time.Date(60056, 1, 1, 0, 0, 0, 0, time.UTC) // NTFS can
	if err := put(t.Context(), opened, o, data); !errors.Is(err, copyjob.ErrNotKept) {
		t.Errorf("a time that nobody can write: %v", err)
	}
	if ok, err := opened.Find(t.Context(), o); !ok || !errors.Is(err, copyjob.ErrNotKept) {
		t.Errorf("it is not there, or nobody says that its time is not: %v, %v", ok, err)
	}
}

// The server's name is checked, and nobody is followed elsewhere.
func TestServerIsChecked(t *testing.T) {
	var asked atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer elsewhere.Close()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	}))
	defer server.Close()
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	roots := server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	for endpoint, trusted := range map[string]bool{server.URL: true, strings.Replace(server.URL, "127.0.0.1", "localhost", 1): false} {
		accounts := New(Config{Accounts: []Account{{"contosodata", endpoint}}, Roots: roots, Pause: time.Hour})
		opened, err := accounts.Open(copyjob.Target{
			Destination: approval.Destination{Account: "contosodata", Endpoint: endpoint}, Access: copyjob.NewAccess([]byte("sig=x")),
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = opened.Find(t.Context(), object(manifest.BlockBlob, "a", nil))
		if err == nil || strings.Contains(err.Error(), "307") != trusted {
			t.Errorf("%s: %v", endpoint, err)
		}
		opened.Close()
	}
	if asked.Load() != 0 {
		t.Error("a redirection was followed")
	}
}

func TestCheck(t *testing.T) {
	a := New(Config{Accounts: []Account{
		{"contosodata", "https://contosodata.blob.core.windows.net"}, {"plain", "http://10.0.0.1/plain"}, {"devstoreaccount1", "http://127.0.0.1:10000/devstoreaccount1"},
	}})
	for d, ok := range map[approval.Destination]bool{
		{Account: "contosodata", Endpoint: "https://contosodata.blob.core.windows.net"}:      true,
		{Account: "devstoreaccount1", Endpoint: "http://127.0.0.1:10000/devstoreaccount1"}:   true,
		{Account: "plain", Endpoint: "http://10.0.0.1/plain"}:                                false,
		{Account: "contosodata", Endpoint: "https://contosodata.blob.core.windows.net/"}:     false,
		{Account: "contosodata", Endpoint: "http://contosodata.blob.core.windows.net"}:       false,
		{Account: "contosodata", Endpoint: "https://contosodata.blob.core.windows.net.evil"}: false,
		{Account: "contosodata2", Endpoint: "https://contosodata.blob.core.windows.net"}:     false,
	} {
		if err := a.Check(d); ok != (err == nil) || !ok && protocol.CodeOf(err) != protocol.CodeAction {
			t.Errorf("%v: %v", d, err)
		}
	}
}

func TestBlockSize(t *testing.T) {
	for size, want := range map[int64]int64{0: blockSize, 1 << 30: blockSize, maxBlocks * blockSize: blockSize, maxBlocks*blockSize + 1: blockSize + 1<<20, maxBlocks * 100 << 20: 100 << 20} {
		if got := blockSizeOf(size); got != want || (size+got-1)/got > maxBlocks {
			t.Errorf("a file of %d bytes: blocks of %d, want %d", size, got, want)
		}
	}
}
