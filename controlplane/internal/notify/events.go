package notify

import (
	"context"
	"embed"
	"fmt"
	htmltemplate "html/template"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/databox-lockbox/lockbox/controlplane/internal/store"
	"github.com/databox-lockbox/lockbox/protocol"
)

// Kind is what happened. Webhooks and people who filter their mail rely on the
// names.
type Kind string

// What people are told.
const (
	InternalApproval Kind = "internal-approval" // the provider's own approvers are asked
	CustomerNotified Kind = "customer-notified" // a request waits for the customer
	ExpiryWarning    Kind = "expiry-warning"    // it still does, and will expire
	RequestComment   Kind = "request-comment"   // somebody asks or answers about it
	RequestApproved  Kind = "request-approved"
	RequestDenied    Kind = "request-denied"
	RequestExpired   Kind = "request-expired"
	RequestCancelled Kind = "request-cancelled"
	RequestVoided    Kind = "request-voided"   // the trust policy changed under it
	RequestExecuted  Kind = "request-executed" // the disks are open
	AccessEnding     Kind = "access-ending"    // the window closes soon
	RequestRevoked   Kind = "request-revoked"
	RequestCompleted Kind = "request-completed"
	RequestError     Kind = "request-error"
	Relocked         Kind = "relocked" // the device confirmed that it is locked
	BreakGlass       Kind = "break-glass"
	PolicyReplaced   Kind = "trust-policy-replaced"
	KeyExported      Kind = "key-exported"  // a recovery password left custody
	ContactAsked     Kind = "contact-asked" // a manager is to approve reading a customer's address
	ContactRead      Kind = "contact-read"
	TestNotice       Kind = "test"
)

// kinds are the words of each kind: the title, and a sentence that says what it
// means for the reader. Both see the [Event].
var kinds = map[Kind]struct{ title, lead string }{
	InternalApproval: {`Request {{.Number}} awaits internal approval: {{.Action}} on {{.Device}}`,
		`An engineer asks for access to what is a customer's. The provider's approvers decide first, then the customer.`},
	CustomerNotified: {`Lockbox request {{.Number}}: {{.Action}} on {{.Device}} waits for your decision`,
		`An engineer asks for access to what is yours. Nothing is granted until you approve.`},
	ExpiryWarning: {`Lockbox request {{.Number}} is about to expire: {{.Action}} on {{.Device}}`,
		`This request is still undecided. Unless it is approved before it expires, nobody gets access.`},
	RequestComment: {`Lockbox request {{.Number}}: a new comment`,
		`Somebody wrote about this request.`},
	RequestApproved: {`Lockbox request {{.Number}} was approved: {{.Action}} on {{.Device}}`,
		`The customer approved this request. Access ends by itself.`},
	RequestDenied: {`Lockbox request {{.Number}} was denied: {{.Action}} on {{.Device}}`,
		`This request was denied. Nothing more can be done on it, and nobody gets access.`},
	RequestExpired: {`Lockbox request {{.Number}} has expired: nobody gets access`,
		`Nobody decided this request in time.`},
	RequestCancelled: {`Lockbox request {{.Number}} was withdrawn`,
		`This request was withdrawn before it was decided. Nobody gets access.`},
	RequestVoided: {`Lockbox request {{.Number}} is void: the trust policy has changed`,
		`This request was made under a trust policy that is no longer in force. It has to be raised again.`},
	RequestExecuted: {`Lockbox request {{.Number}}: the disks of {{.Device}} are open`,
		`The engineer has opened the device under the approved request.`},
	AccessEnding: {`Lockbox request {{.Number}}: the access to {{.Device}} ends soon`,
		`The approved time is nearly over. Access ends and open disks lock by themselves; more time takes a new approval.`},
	RequestRevoked: {`Lockbox request {{.Number}} was revoked: the access to {{.Device}} is over`,
		`The access was ended before its time. The approval cannot be used again.`},
	RequestCompleted: {`Lockbox request {{.Number}} is completed: the access to {{.Device}} is over`,
		`The work is done or its time is over. The approval cannot be used again.`},
	RequestError: {`Lockbox request {{.Number}} has failed`,
		`This request could not be carried out.`},
	Relocked: {`Lockbox request {{.Number}}: {{.Device}} is locked`,
		`The device has confirmed that its disks are locked.`},
	BreakGlass: {`BREAK-GLASS access to {{.Device}}`,
		`Support uses an emergency rule of your trust policy to open your device without your approval. You are told before it is opened.`},
	PolicyReplaced: {`The trust policy of {{.Subject}} was replaced`,
		`If you do not know of this, tell your security team now.`},
	KeyExported: {`A recovery password of {{.Device}} leaves custody`,
		`Whoever holds it and the disk can read the disk. If you do not know of this, tell your security team now.`},
	ContactAsked: {`A contact address of {{.Tenant}} is asked for: {{.Subject}}`,
		`An employee asks to read a customer's contact address. A manager decides.`},
	ContactRead: {`Your contact address was read: {{.Subject}}`,
		`An employee read your contact address, with a manager's approval.`},
	TestNotice: {`A test`, `This is a test. Nothing has happened.`},
}

// Event is something to tell people.
type Event struct {
	Kind     Kind
	Customer bool              // the customer is told, and with them the tenant's webhooks; else the provider's people
	Tenant   protocol.TenantID // whose it is
	Subject  string            // what it is about, e.g. a request id
	Number   int64             // of the request it is about, 0 if of none
	State    string            // of the subject after it
	Action   string            // for the title
	Device   string            // for the title
	To       []string          // mail addresses, in any order
	Facts    []Fact            // shown as a list
	Detail   string            // paragraphs of plain text, last
}

// Fact is one line of a notice.
type Fact struct{ Name, Value string }

// Tell writes a notice within tx, with a delivery for each recipient. They are
// told once tx is committed.
func (s *Service) Tell(ctx context.Context, tx *store.Tx, e Event) error {
	n, err := s.render(e)
	if err != nil {
		return err
	}
	if err := tx.InsertNotice(ctx, &n); err != nil {
		return fmt.Errorf("cannot write the notice about %s: %w", e.Subject, err)
	}
	to := slices.Clone(e.To)
	slices.Sort(to)
	for _, address := range slices.Compact(to) {
		if err := s.address(ctx, tx, n, store.ByMail, address); err != nil {
			return err
		}
	}
	if e.Customer {
		if err := s.tellWebhooks(ctx, tx, n); err != nil {
			return err
		}
	}
	s.wakeUp()
	return nil
}

func (s *Service) tellWebhooks(ctx context.Context, tx *store.Tx, n store.Notice) error {
	if n.Tenant == "" {
		return nil
	}
	hooks, err := tx.Webhooks(ctx, n.Tenant)
	if err != nil {
		return err
	}
	for _, w := range hooks {
		if err := s.address(ctx, tx, n, store.ByWebhook, w.ID); err != nil {
			return err
		}
	}
	return nil
}

// wakeUp has all channels look for what is due.
func (s *Service) wakeUp() {
	for _, c := range s.channels {
		c.wakeUp()
	}
}

func (s *Service) address(ctx context.Context, tx *store.Tx, n store.Notice, channel, recipient string) error {
	d := store.Delivery{
		ID: newID("dlv-"), Notice: n.ID, Channel: channel, Recipient: recipient, State: store.DeliveryWaiting, NextAttempt: n.Created,
	}
	if err := tx.InsertDelivery(ctx, &d); err != nil {
		return fmt.Errorf("cannot write the notice about %s for %s: %w", n.Subject, recipient, err)
	}
	return nil
}

//go:embed templates
var files embed.FS

var (
	textLayout = template.Must(template.ParseFS(files, "templates/notice.txt"))
	htmlLayout = htmltemplate.Must(htmltemplate.ParseFS(files, "templates/notice.html"))
)

// page is what the layouts see.
type page struct {
	Event
	Title, Lead, Link, Command string
	Width                      int // of the longest name of a fact
}

// render makes the words of a notice. They are made once, so that every attempt
// sends the same.
func (s *Service) render(e Event) (store.Notice, error) {
	words, ok := kinds[e.Kind]
	if !ok {
		return store.Notice{}, fmt.Errorf("notify: internal error: kind %q has no words", e.Kind)
	}
	p := page{Event: e, Lead: words.lead, Link: s.link(e)}
	if e.Number != 0 {
		p.Command = "lockbox request show " + strconv.FormatInt(e.Number, 10)
	}
	for _, f := range e.Facts {
		p.Width = max(p.Width, len(f.Name))
	}
	title, err := template.New("title").Parse(words.title)
	if err != nil {
		return store.Notice{}, err
	}
	var titled, text, html strings.Builder
	if err := title.Execute(&titled, e); err != nil {
		return store.Notice{}, err
	}
	p.Title = oneLine(titled.String())
	if err := textLayout.Execute(&text, p); err != nil {
		return store.Notice{}, err
	}
	if err := htmlLayout.Execute(&html, p); err != nil {
		return store.Notice{}, err
	}
	audience := store.ToProvider
	if e.Customer {
		audience = store.ToCustomer
	}
	return store.Notice{
		ID: newID("msg_"), Kind: string(e.Kind), Tenant: e.Tenant, Audience: audience, Subject: e.Subject, Number: e.Number, State: e.State,
		Title: p.Title, Text: text.String(), HTML: html.String(), Link: p.Link, Created: s.now(),
	}, nil
}

// Pad fills a name up to the width of the longest.
func (p page) Pad(name string) string { return fmt.Sprintf("%-*s", p.Width+1, name+":") }

// Line keeps what somebody wrote on its line.
func (p page) Line(s string) string { return oneLine(s) }

// link is where the portal shows what the event is about.
func (s *Service) link(e Event) string {
	if s.cfg.BaseURL == "" || e.Number == 0 {
		return ""
	}
	return s.cfg.BaseURL + "/requests/" + url.PathEscape(strconv.FormatInt(e.Number, 10))
}
