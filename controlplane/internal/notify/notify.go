// Package notify tells people what happened: notices are rows, written in the
// transaction of the change they tell of, and delivered afterwards.
//
// Its rules:
//
//   - A notice exists exactly if the change it tells of was committed.
//   - Delivering never holds up a request: it happens in [Service.Run], which
//     tries again with growing pauses until it succeeds.
//   - A notice has one file name, made of its row: however often it is tried,
//     there is one file, complete or not there.
//
// The carrier is a directory of mail-like files; whatever sends real mail takes
// them from there.
package notify

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
)

// Pauses between two looks at the outbox and between two attempts at one
// notice. The second doubles with each attempt up to the longest.
const (
	interval     = time.Second
	firstPause   = time.Second
	longestPause = 5 * time.Minute
	batch        = 64 // notices taken at once
)

// Config are the parts of a [Service].
type Config struct {
	Store  *store.Store
	Dir    string           // the outbox; made with mode 0700 if missing
	From   string           // sender; "lockbox@localhost" if empty
	Now    func() time.Time // time.Now if nil
	Logger zerolog.Logger
}

// Notice is something to tell people.
type Notice struct {
	Kind    string // what happened, e.g. "customer-notified"
	Subject string // what it is about, e.g. a request id
	To      []string
	Title   string
	Body    string
}

// Service keeps and delivers notices. Its methods may be called concurrently.
type Service struct {
	cfg  Config
	wake chan struct{} // 1 slot
}

// New checks the outbox directory. Nothing is delivered before [Service.Run].
func New(cfg Config) (*Service, error) {
	cfg.From = cmp.Or(cfg.From, "lockbox@localhost")
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the outbox: %w", err)
	}
	return &Service{cfg: cfg, wake: make(chan struct{}, 1)}, nil
}

// Run delivers notices until ctx ends. It returns the error of ctx.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := s.deliverDue(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Error().Err(err).Msg("cannot read the outbox")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		case <-tick.C:
		}
	}
}

// pause returns how long to wait after the given number of failed attempts.
func pause(attempts int) time.Duration {
	return min(firstPause<<min(attempts-1, 20), longestPause)
}

// oneLine keeps text from opening a header of its own.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }), " ")
}

func recipients(list []string) string {
	clean := make([]string, 0, len(list))
	for _, r := range list {
		clean = append(clean, strings.ReplaceAll(oneLine(r), ",", " "))
	}
	slices.Sort(clean)
	return strings.Join(slices.Compact(clean), ", ")
}

// writeDurably writes a file that is there whole or not at all, and is still
// there after a power cut once writeDurably has returned.
func writeDurably(path string, data []byte) error {
	if err := renameio.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
