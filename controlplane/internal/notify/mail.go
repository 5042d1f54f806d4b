package notify

import (
	"bytes"
	"context"
	"fmt"
	"net/mail"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	gomail "github.com/wneessen/go-mail"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
)

// message is a notice as mail to one recipient. It is made of the rows alone:
// every attempt sends the same bytes under the same Message-ID.
func (s *Service) message(n store.Notice, d store.Delivery) (*gomail.Msg, error) {
	to, err := mail.ParseAddress(d.Recipient)
	if err != nil || to.Address != d.Recipient {
		return nil, finalError{fmt.Errorf("%q is no mail address", d.Recipient)}
	}
	m := gomail.NewMsg(gomail.WithNoDefaultUserAgent(), gomail.WithEncoding(gomail.EncodingQP), gomail.WithBoundary(d.ID))
	m.FromMailAddress(s.from)
	m.ToMailAddress(to)
	m.Subject(oneLine(n.Title))
	m.SetDateWithValue(n.Created)
	m.SetMessageIDWithValue(d.ID + "@" + domainOf(s.from.Address))
	m.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: nobody is to answer by himself
	m.SetGenHeader("X-Lockbox-Kind", oneLine(n.Kind))
	m.SetGenHeader("X-Lockbox-About", oneLine(n.Subject))
	m.SetBodyString(gomail.TypeTextPlain, n.Text)
	if n.HTML != "" {
		m.AddAlternativeString(gomail.TypeTextHTML, n.HTML)
	}
	return m, nil
}

// domainOf is the part of an address after its last @.
func domainOf(address string) string { return address[strings.LastIndexByte(address, '@')+1:] }

// toFile writes a mail as a file, whose name is made of the rows alone: however
// often it is tried, there is one, complete or not there.
func (s *Service) toFile(_ context.Context, n store.Notice, d store.Delivery) error {
	m, err := s.message(n, d)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if _, err := m.WriteTo(&text); err != nil {
		return err
	}
	name := fmt.Sprintf("%s-%s.eml", n.Created.UTC().Format("20060102T150405.000Z"), d.ID)
	return writeDurably(filepath.Join(s.cfg.Dir, name), text.Bytes())
}

// writeDurably writes a file that is there whole or not at all, and is still
// there after a power cut once writeDurably has returned.
func writeDurably(path string, data []byte) error {
	if err := renameio.WriteFile(path, data, 0o600, renameio.WithTempDir(filepath.Dir(path))); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
