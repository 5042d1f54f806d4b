package notify

import (
	"context"
	"errors"
	"io"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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

func enqueue(t *testing.T, st *store.Store, s *Service, n Notice) {
	t.Helper()
	if err := st.Tx(context.Background(), func(tx *store.Tx) error { return s.Enqueue(context.Background(), tx, n) }); err != nil {
		t.Fatal(err)
	}
}

func waiting(t *testing.T, st *store.Store) int {
	t.Helper()
	var n int
	err := st.View(context.Background(), func(tx *store.Tx) error {
		due, err := tx.DueNotices(context.Background(), time.Now().Add(24*time.Hour), 1000)
		n = len(due)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*.eml"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

var notice = Notice{
	Kind: "customer-notified", Subject: "LockboxRequest_1",
	To:    []string{"olga@contoso.example", "evil@x.example\r\nBcc: all@x.example", "olga@contoso.example"},
	Title: "Lockbox request 7: zwölf\nSubject: forged",
	Body:  "Type\n\n    lockbox request show 7\n",
}

func TestDeliversOneMailOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, dir := storetest.New(t), filepath.Join(t.TempDir(), "outbox")
		s, err := New(Config{Store: st, Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		stop := start(t, s)
		defer stop()
		enqueue(t, st, s, notice)
		enqueue(t, st, s, Notice{Title: "to nobody"})
		time.Sleep(time.Minute)
		synctest.Wait()

		list := files(t, dir)
		if len(list) != 1 || waiting(t, st) != 0 {
			t.Fatalf("%d files, %d waiting", len(list), waiting(t, st))
		}
		f, err := os.Open(list[0])
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		m, err := mail.ReadMessage(f)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(m.Body)
		if !strings.Contains(string(body), "lockbox request show 7\r\n") {
			t.Errorf("body %q", body)
		}
		if got := m.Header.Get("Bcc"); got != "" {
			t.Errorf("a recipient opened the header Bcc: %s", got)
		}
		if got := m.Header["Subject"]; len(got) != 1 {
			t.Errorf("subjects %q", got)
		}
		if to := m.Header.Get("To"); strings.Count(to, "olga@contoso.example") != 1 {
			t.Errorf("recipients %q", to)
		}
		if info, err := f.Stat(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	})
}

// A notice exists exactly if its transaction was committed.
func TestRolledBackNoticeIsNeverSent(t *testing.T) {
	st, dir := storetest.New(t), t.TempDir()
	s, err := New(Config{Store: st, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	failed := errors.New("the change did not happen")
	err = st.Tx(t.Context(), func(tx *store.Tx) error {
		if err := s.Enqueue(t.Context(), tx, notice); err != nil {
			return err
		}
		return failed
	})
	if !errors.Is(err, failed) {
		t.Fatal(err)
	}
	if err := s.deliverDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(files(t, dir)); n != 0 {
		t.Errorf("%d files", n)
	}
}

// An outbox that is away for an hour loses nothing and is asked ever less often.
func TestRetriesUntilItSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, dir := storetest.New(t), filepath.Join(t.TempDir(), "outbox")
		s, err := New(Config{Store: st, Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		stop := start(t, s)
		enqueue(t, st, s, notice)
		time.Sleep(time.Hour)
		synctest.Wait()
		stop()
		if waiting(t, st) != 1 {
			t.Fatal("the notice is lost")
		}
		attempts := attemptsOf(t, st)
		if attempts < 10 || attempts > 30 {
			t.Errorf("%d attempts in an hour", attempts)
		}

		// A new service, as after a restart, delivers it.
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		s, err = New(Config{Store: st, Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		stop = start(t, s)
		time.Sleep(longestPause)
		synctest.Wait()
		stop()
		if n := len(files(t, dir)); n != 1 || waiting(t, st) != 0 {
			t.Errorf("%d files, %d waiting", n, waiting(t, st))
		}
	})
}

func attemptsOf(t *testing.T, st *store.Store) int64 {
	t.Helper()
	var n int64
	err := st.View(context.Background(), func(tx *store.Tx) error {
		due, err := tx.DueNotices(context.Background(), time.Now().Add(24*time.Hour), 1)
		if err == nil {
			n = due[0].Attempts
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Stopped between writing the file and noting it, or tried by two daemons, a
// notice is still one file.
func TestOneFileHoweverOftenTried(t *testing.T) {
	st, dir := storetest.New(t), t.TempDir()
	s, err := New(Config{Store: st, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	enqueue(t, st, s, notice)
	var due []store.Notice
	err = st.View(t.Context(), func(tx *store.Tx) (err error) {
		due, err = tx.DueNotices(t.Context(), time.Now(), 10)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := s.deliver(t.Context(), due[0]); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(files(t, dir)); n != 1 {
		t.Errorf("%d files", n)
	}
}

func TestPauseGrowsToItsLimit(t *testing.T) {
	for attempts, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 12: longestPause, 1000: longestPause} {
		if got := pause(attempts); got != want {
			t.Errorf("after %d attempts: %v, want %v", attempts, got, want)
		}
	}
}
