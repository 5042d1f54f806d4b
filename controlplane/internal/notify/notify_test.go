package notify

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const olga = "olga@contoso.example"

func newService(t *testing.T, st *store.Store, dir string) *Service {
	t.Helper()
	return newServiceWith(t, Config{Store: st, Dir: dir})
}

// logKey is the key of the tests' activity logs.
var logKey = sync.OnceValue(func() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)) })

// newServiceWith completes a configuration.
func newServiceWith(t *testing.T, cfg Config) *Service {
	t.Helper()
	var err error
	if cfg.Audit, err = audit.New(t.Context(), audit.Config{Store: cfg.Store, Key: logKey()}); err != nil {
		t.Fatal(err)
	}
	cfg.From, cfg.BaseURL, cfg.Logger = "Lockbox <lockbox@provider.example>", "https://lockbox.example/", zerolog.Nop()
	cfg.Webhooks.Key = bytes.Repeat([]byte{1}, 32)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// start runs the service until stop is called.
func start(t *testing.T, s *Service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	}
}

func tell(t *testing.T, st *store.Store, s *Service, e Event) {
	t.Helper()
	if err := st.Tx(context.Background(), func(tx *store.Tx) error { return s.Tell(context.Background(), tx, e) }); err != nil {
		t.Fatal(err)
	}
}

// told are all deliveries.
func told(t *testing.T, st *store.Store) []store.Word {
	t.Helper()
	var list []store.Word
	err := st.View(context.Background(), func(tx *store.Tx) (err error) {
		list, err = tx.Words(context.Background(), store.WordFilter{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// states counts deliveries by state.
func states(t *testing.T, st *store.Store) map[string]int {
	t.Helper()
	n := map[string]int{}
	for _, w := range told(t, st) {
		n[w.State]++
	}
	return n
}

func mailFiles(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*.eml"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func event() Event {
	return Event{
		Kind: CustomerNotified, Customer: true, Subject: "LockboxRequest_1", Number: 7, State: "Pending",
		Action: "Unlock Databox", Device: "DBX0001\r\nSubject: forged\r\n\r\nbody: zwölf",
		To:     []string{olga, "security@contoso.example", olga},
		Facts:  []Fact{{"Engineer", "erin@provider.example"}, {"Justification", "<script>alert(1)</script>\r\nState: Approved"}, {"Empty", ""}},
		Detail: "Unanswered, it expires.",
	}
}

// parts are the decoded parts of a mail, by media type.
func parts(t *testing.T, m *mail.Message) map[string]string {
	t.Helper()
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for r := multipart.NewReader(m.Body, params["boundary"]); ; {
		p, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(quotedprintable.NewReader(p))
		if err != nil {
			t.Fatal(err)
		}
		kind, _, _ := mime.ParseMediaType(p.Header.Get("Content-Type"))
		out[kind] = string(text)
	}
}

func TestOneMailForEachRecipient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, dir := storetest.New(t), filepath.Join(t.TempDir(), "outbox")
		s := newService(t, st, dir)
		stop := start(t, s)
		defer stop()
		tell(t, st, s, event())
		time.Sleep(time.Minute)
		synctest.Wait()

		list := mailFiles(t, dir)
		if len(list) != 2 || states(t, st)[store.DeliverySent] != 2 {
			t.Fatalf("%d files, deliveries %v", len(list), states(t, st))
		}
		var to []string
		for _, f := range list {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
			m, err := mail.ReadMessage(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			to = append(to, m.Header.Get("To"))
			checkMail(t, m)
		}
		slices.Sort(to)
		if !slices.Equal(to, []string{"<olga@contoso.example>", "<security@contoso.example>"}) {
			t.Errorf("mails to %q", to)
		}
	})
}

// checkMail checks the mail that tells of event.
func checkMail(t *testing.T, m *mail.Message) {
	t.Helper()
	if len(m.Header["Subject"]) != 1 || m.Header.Get("Body") != "" {
		t.Errorf("a title opened a header: %v", m.Header)
	}
	title, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
	if err != nil || title != "Lockbox request 7: Unlock Databox on DBX0001 Subject: forged body: zwölf waits for your decision" {
		t.Errorf("title %q, %v", title, err)
	}
	if id := m.Header.Get("Message-ID"); !strings.HasPrefix(id, "<dlv-") || !strings.HasSuffix(id, "@provider.example>") {
		t.Errorf("message id %q", id)
	}
	p := parts(t, m)
	text, html := p["text/plain"], p["text/html"]
	for _, want := range []string{"lockbox request show 7", "https://lockbox.example/requests/7", "erin@provider.example", "Unanswered, it expires."} {
		if !strings.Contains(text, want) || !strings.Contains(html, want) {
			t.Errorf("%q is missing in\n%s\nor in\n%s", want, text, html)
		}
	}
	if strings.Contains(html, "<script>") {
		t.Errorf("what somebody wrote became HTML:\n%s", html)
	}
	if strings.Contains(text, "\nState:") || strings.Contains(text, "Empty") {
		t.Errorf("a fact opened a line of its own, or an empty one was written:\n%s", text)
	}
}

// A notice exists exactly if its transaction was committed.
func TestRolledBackNoticeIsNeverSent(t *testing.T) {
	st := storetest.New(t)
	s := newService(t, st, t.TempDir())
	failed := errors.New("the change did not happen")
	err := st.Tx(t.Context(), func(tx *store.Tx) error {
		if err := s.Tell(t.Context(), tx, event()); err != nil {
			return err
		}
		return failed
	})
	if !errors.Is(err, failed) {
		t.Fatal(err)
	}
	if list := told(t, st); len(list) != 0 {
		t.Errorf("told %v", list)
	}
}

func TestEveryKindHasWords(t *testing.T) {
	s := newService(t, storetest.New(t), t.TempDir())
	for kind := range kinds {
		e := event()
		e.Kind = kind
		n, err := s.render(e)
		if err != nil || n.Title == "" || strings.Contains(n.Text+n.Title, "<no value>") {
			t.Errorf("%s: %+v, %v", kind, n, err)
		}
	}
	if _, err := s.render(Event{Kind: "unknown"}); err == nil {
		t.Error("an unknown kind was rendered")
	}
}

// A way that is closed for an hour loses nothing and is tried ever less often.
func TestRetriesUntilItSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, dir := storetest.New(t), filepath.Join(t.TempDir(), "outbox")
		s := newService(t, st, dir)
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		stop := start(t, s)
		tell(t, st, s, event())
		time.Sleep(time.Hour)
		synctest.Wait()
		stop()
		list := told(t, st)
		if len(list) != 2 || list[0].State != store.DeliveryWaiting || list[0].LastError == "" {
			t.Fatalf("deliveries %+v", list)
		}
		if n := list[0].Attempts; n < 10 || n > 15 {
			t.Errorf("%d attempts in an hour", n)
		}

		// A new service, as after a restart, delivers it.
		s = newService(t, st, dir)
		stop = start(t, s)
		time.Sleep(longestPause)
		synctest.Wait()
		stop()
		if n := len(mailFiles(t, dir)); n != 2 || states(t, st)[store.DeliverySent] != 2 {
			t.Errorf("%d files, %v", n, states(t, st))
		}
	})
}

// carried counts, by delivery, what a channel was given.
type carried struct {
	mu sync.Mutex
	by map[string]int
}

func (c *carried) add(d store.Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = map[string]int{}
	}
	c.by[d.ID]++
}

func TestGivesUpInTheEnd(t *testing.T) {
	st := storetest.New(t)
	s := newService(t, st, t.TempDir())
	now := time.Now()
	s.cfg.Now = func() time.Time { return now }
	var attempts atomic.Int64
	c := newChannel(store.ByMail, 4, func(_ context.Context, _ store.Notice, d store.Delivery) error {
		if d.Recipient == olga {
			return finalError{errors.New("no such mailbox")}
		}
		attempts.Add(1)
		return errors.New("not now\r\nand not later")
	})
	s.channels = []*channel{c}
	tell(t, st, s, event())
	for range 2 * MaxAttempts {
		var all sync.WaitGroup
		if err := s.startDue(t.Context(), c, &all); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		now = now.Add(longestPause)
	}
	for _, d := range told(t, st) {
		if d.State != store.DeliveryDead {
			t.Errorf("%s is %s after three days", d.Recipient, d.State)
		}
		if d.Recipient == olga && d.Attempts != 1 {
			t.Errorf("a final refusal was tried %d times", d.Attempts)
		}
		if strings.ContainsAny(d.LastError, "\r\n") {
			t.Errorf("the error has lines: %q", d.LastError)
		}
	}
	if n := attempts.Load(); n != MaxAttempts {
		t.Errorf("tried %d times, want %d", n, MaxAttempts)
	}
}

// Two daemons on one store send each mail once.
func TestTwoDaemonsSendOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	var sent carried
	var stops []func()
	var services []*Service
	var stores []*store.Store
	for range 2 {
		st := storetest.Open(t, path)
		s := newService(t, st, t.TempDir())
		s.channels = []*channel{newChannel(store.ByMail, 4, func(_ context.Context, _ store.Notice, d store.Delivery) error {
			sent.add(d)
			time.Sleep(time.Millisecond)
			return nil
		})}
		stores, services = append(stores, st), append(services, s)
		stops = append(stops, start(t, s))
	}
	const events = 20
	for i := range events {
		tell(t, stores[i%2], services[i%2], event())
	}
	for end := time.Now().Add(20 * time.Second); states(t, stores[0])[store.DeliverySent] < 2*events && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	for _, stop := range stops {
		stop()
	}
	if len(sent.by) != 2*events {
		t.Errorf("%d of %d were sent", len(sent.by), 2*events)
	}
	for id, n := range sent.by {
		if n != 1 {
			t.Errorf("%s was sent %d times", id, n)
		}
	}
}

// A daemon that dies between the server's yes and the note of it is followed by
// another that sends once more, under the same name.
func TestACrashAfterSendingSendsOnceMore(t *testing.T) {
	st, dir := storetest.New(t), t.TempDir()
	s := newService(t, st, dir)
	now := time.Now()
	s.cfg.Now = func() time.Time { return now }
	tell(t, st, s, Event{Kind: TestNotice, To: []string{olga}})
	d := told(t, st)[0].Delivery
	n, err := s.take(t.Context(), &d)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.toFile(t.Context(), n, d); err != nil { // and here it dies
		t.Fatal(err)
	}
	due := func() int {
		var list []store.Delivery
		err := st.View(t.Context(), func(tx *store.Tx) (err error) {
			list, err = tx.DueDeliveries(t.Context(), store.ByMail, now, 10)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	now = now.Add(lease - time.Second)
	if due() != 0 {
		t.Error("it is tried again while the first may still be at it")
	}
	now = now.Add(2 * time.Second)
	if due() != 1 {
		t.Fatal("it is never tried again")
	}
	first, err := os.ReadFile(mailFiles(t, dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	s.attempt(t.Context(), s.channels[0], d)
	list := mailFiles(t, dir)
	second, err := os.ReadFile(list[0])
	if err != nil || len(list) != 1 || !bytes.Equal(first, second) {
		t.Errorf("%d files; the second attempt wrote\n%s\nthe first\n%s", len(list), second, first)
	}
}

// A recipient that hangs has one attempt under way, and others are served.
func TestAHangingRecipientHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := storetest.New(t)
		s := newService(t, st, t.TempDir())
		var hanging, most, others atomic.Int64
		s.channels = []*channel{newChannel(store.ByMail, 2, func(ctx context.Context, _ store.Notice, d store.Delivery) error {
			if d.Recipient != olga {
				others.Add(1)
				return nil
			}
			most.Store(max(most.Load(), hanging.Add(1)))
			<-ctx.Done()
			hanging.Add(-1)
			return ctx.Err()
		})}
		stop := start(t, s)
		for range 50 {
			tell(t, st, s, event())
		}
		time.Sleep(attemptLimit - time.Second)
		synctest.Wait()
		if others.Load() != 50 || most.Load() != 1 {
			t.Errorf("%d of 50 others served, %d attempts at once at who hangs", others.Load(), most.Load())
		}
		stop()
	})
}

func TestPauseGrowsToItsLimit(t *testing.T) {
	for attempts, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 12: longestPause, 1000: longestPause} {
		if got := pause(attempts); got != want {
			t.Errorf("after %d attempts: %v, want %v", attempts, got, want)
		}
	}
}
