// Package notify tells people what happened: a notice is written in the
// transaction of the change it tells of, with a delivery for each recipient, and
// delivered afterwards, by mail or to a tenant's webhooks.
//
// Its rules:
//
//   - A notice exists exactly if the change it tells of was committed.
//   - Telling never holds up a request: it happens in [Service.Run], which tries
//     again with growing pauses and in the end gives up for all to see. Whoever
//     may, has it tried again.
//   - Who tries a delivery takes it first, by compare-and-set and for a time: two
//     daemons on one store do not both send. A daemon that dies between the
//     server's yes and the note of it sends once more when that time is over, with
//     the same Message-ID or webhook-id, by which the receiver knows it.
//   - One recipient that hangs has one attempt under way, and holds up nobody else.
//   - Being told gives no right. What goes to a webhook holds ids, a state and a
//     link, and nothing else.
package notify

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/mail"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/databox-lockbox/lockbox/controlplane/internal/audit"
	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
)

// Pauses between two looks at what is due and between two attempts at one
// delivery. The second doubles with each attempt up to the longest.
const (
	interval     = time.Second
	firstPause   = time.Second
	longestPause = 30 * time.Minute
	batch        = 64 // deliveries read at once
)

// MaxAttempts is how often a delivery is tried before it is given up, which
// takes a little more than a day.
const MaxAttempts = 64

// attemptLimit is the longest that one attempt may take, and lease how long it is
// its daemon's: what has not been noted by then is tried again.
const (
	attemptLimit = 30 * time.Second
	lease        = 2 * attemptLimit
)

// Config are the parts of a [Service]. Store, Audit and Webhooks.Key are needed,
// and Dir or SMTP.
type Config struct {
	Store    *store.Store
	Audit    *audit.Service
	Webhooks Webhooks
	SMTP     *SMTP            // the mail server; nil: mails become files in Dir
	Dir      string           // where mails are written, a file each; made with mode 0700 if missing
	From     string           // sender; "lockbox@localhost" if empty
	BaseURL  string           // of the portal, for links; none if empty
	Now      func() time.Time // time.Now if nil
	Logger   zerolog.Logger
}

// Service keeps and delivers notices. Its methods may be called concurrently.
type Service struct {
	cfg      Config
	from     *mail.Address
	hooks    *hooks
	channels []*channel
}

// New checks the configuration. Nothing is delivered before [Service.Run].
func New(cfg Config) (*Service, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.BaseURL = strings.TrimRight(cfg.BaseURL, "/")
	from, err := mail.ParseAddress(cmp.Or(cfg.From, "lockbox@localhost"))
	if err != nil {
		return nil, fmt.Errorf("%q is no sender of mail: want an address such as lockbox@provider.example", cfg.From)
	}
	hooks, err := newHooks(cfg.Webhooks)
	if err != nil {
		return nil, err
	}
	cfg.Webhooks.Key = nil
	s := &Service{cfg: cfg, from: from, hooks: hooks}
	byMail := s.toServer
	if cfg.SMTP == nil {
		byMail = s.toFile
		if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("cannot make the directory of notices: %w", err)
		}
	}
	s.channels = []*channel{newChannel(store.ByMail, 4, byMail), newChannel(store.ByWebhook, 16, s.toWebhook)}
	return s, nil
}

// Run delivers notices until ctx ends. It returns the error of ctx.
func (s *Service) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, c := range s.channels {
		all.Go(func() { s.serve(ctx, c) })
	}
	all.Wait()
	return ctx.Err()
}

// now is the time as it is stored: in UTC, to the millisecond.
func (s *Service) now() time.Time { return s.cfg.Now().UTC().Truncate(time.Millisecond) }

// pause returns how long to wait after the given number of failed attempts.
func pause(attempts int) time.Duration {
	return min(firstPause<<min(attempts-1, 20), longestPause)
}

func newID(kind string) string {
	var b [12]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return kind + hex.EncodeToString(b[:])
}

// oneLine keeps text from opening a header or a line of its own.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }), " ")
}
