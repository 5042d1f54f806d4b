package notify

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"mime"
	"path/filepath"
	"strings"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
)

// Enqueue writes a notice within tx. It is delivered once tx is committed. A
// notice to nobody is dropped.
func (s *Service) Enqueue(ctx context.Context, tx *store.Tx, n Notice) error {
	if len(n.To) == 0 {
		return nil
	}
	var id [12]byte
	rand.Read(id[:]) // never fails, see crypto/rand
	now := s.cfg.Now()
	err := tx.InsertNotice(ctx, &store.Notice{
		ID: hex.EncodeToString(id[:]), Kind: n.Kind, Subject: n.Subject, Recipients: n.To,
		Title: n.Title, Body: n.Body, Created: now, NextAttempt: now,
	})
	if err != nil {
		return fmt.Errorf("cannot write the notice about %s: %w", n.Subject, err)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

// deliverDue delivers what is due now.
func (s *Service) deliverDue(ctx context.Context) error {
	for {
		var due []store.Notice
		err := s.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
			due, err = tx.DueNotices(ctx, s.cfg.Now(), batch)
			return err
		})
		if err != nil {
			return err
		}
		for _, n := range due {
			if err := s.deliver(ctx, n); err != nil {
				return err
			}
		}
		if len(due) < batch {
			return nil
		}
	}
}

// deliver tries one notice and notes how that went. Somebody who noted the same
// meanwhile wrote the same file.
func (s *Service) deliver(ctx context.Context, n store.Notice) error {
	failed := writeDurably(filepath.Join(s.cfg.Dir, fileName(n)), s.message(n))
	n.Attempts++
	if failed == nil {
		n.Delivered, n.LastError = s.cfg.Now(), ""
	} else {
		n.NextAttempt, n.LastError = s.cfg.Now().Add(pause(int(n.Attempts))), failed.Error()
		s.cfg.Logger.Warn().Err(failed).Str("notice", n.ID).Int64("attempts", n.Attempts).Msg("cannot deliver a notice, trying again")
	}
	err := s.cfg.Store.Tx(ctx, func(tx *store.Tx) error { return tx.UpdateNotice(ctx, &n) })
	if errors.Is(err, store.ErrConflict) {
		return nil
	}
	return err
}

// fileName is made of the row alone, so that every attempt writes the same file.
func fileName(n store.Notice) string {
	return fmt.Sprintf("%s-%s.eml", n.Created.UTC().Format("20060102T150405.000Z"), n.ID)
}

// message is the notice as mail, made of the row alone.
func (s *Service) message(n store.Notice) []byte {
	var b strings.Builder
	for _, header := range [][2]string{
		{"From", oneLine(s.cfg.From)},
		{"To", recipients(n.Recipients)},
		{"Subject", mime.QEncoding.Encode("utf-8", oneLine(n.Title))},
		{"Date", n.Created.UTC().Format("Mon, 02 Jan 2006 15:04:05 -0700")},
		{"Message-ID", "<" + n.ID + "@lockbox>"},
		{"X-Lockbox-Kind", oneLine(n.Kind)},
		{"X-Lockbox-About", oneLine(n.Subject)},
		{"MIME-Version", "1.0"},
		{"Content-Type", "text/plain; charset=utf-8"},
		{"Content-Transfer-Encoding", "8bit"},
	} {
		b.WriteString(header[0] + ": " + header[1] + "\r\n")
	}
	b.WriteString("\r\n")
	for line := range strings.Lines(n.Body) {
		b.WriteString(strings.TrimRight(line, "\r\n") + "\r\n")
	}
	return []byte(b.String())
}
