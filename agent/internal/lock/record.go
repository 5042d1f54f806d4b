package lock

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/databox-lockbox/lockbox/protocol"
	"github.com/databox-lockbox/lockbox/protocol/approval"
	"github.com/databox-lockbox/lockbox/protocol/auditlog"
	devicev1 "github.com/databox-lockbox/lockbox/protocol/device/v1"
)

// maxText bounds a text in a record, in bytes.
const maxText = 1000

// record makes a record of this node about what a scope allows. properties are
// names and values in turn; those without a value are left out.
func (m *Machine) record(s scope, op auditlog.Operation, result auditlog.Result, properties ...string) auditlog.Record {
	r := auditlog.NewRecord(m.cfg.Clock.Now(), op, result)
	r.ResourceID = fmt.Sprintf("/devices/%s/nodes/%d", m.cfg.Node.Serial, m.cfg.Node.Node)
	r.Caller, r.CorrelationID, r.Origin = s.caller(), s.correlation, m.cfg.Node.String()
	if r.Caller == "" {
		r.Caller = m.cfg.Node.URI().String()
	}
	r.Properties = map[string]string{
		"purpose": string(s.purpose), auditlog.PropertySubjectDigest: string(s.subject),
		"order": string(s.orderID), "ticket": string(s.ticket),
		auditlog.PropertyExclusion: string(s.exclusion), auditlog.PropertyStanding: s.standing,
	}
	for i := 0; i+1 < len(properties); i += 2 {
		r.Properties[properties[i]] = properties[i+1]
	}
	for name, value := range r.Properties {
		if value == "" {
			delete(r.Properties, name)
		}
	}
	return r
}

// intent is the record without which nothing opens.
func (m *Machine) intent(v verified) auditlog.Record {
	return m.record(v.scope, auditlog.OpUnlockIntent, auditlog.Start,
		"orderDigest", string(v.orderDigest),
		"decisionsDigest", string(v.decisionsDigest),
		auditlog.PropertyNonce(m.cfg.Node), hex.EncodeToString(v.order.Nonce),
		"disks", diskList(v.diskIDs),
		"logIndex", strconv.FormatInt(v.order.LogIndex, 10))
}

// append makes a record durable, or returns an error within [recordWithin].
func (m *Machine) append(r auditlog.Record) error { return m.appendWithin(recordWithin, r) }

func (m *Machine) appendWithin(d time.Duration, r auditlog.Record) error {
	return m.writer.do(d, func() error { return m.journal(r) })
}

// journal appends a record; only the writer calls it.
func (m *Machine) journal(r auditlog.Record) error {
	ctx, cancel := context.WithTimeout(context.Background(), recordWithin)
	defer cancel()
	_, err := m.cfg.Journal.Append(ctx, r)
	return err
}

// recordAfter records what has already happened. What cannot be recorded has
// happened all the same: the next unlock will be refused for want of a record.
func (m *Machine) recordAfter(r auditlog.Record) { _ = m.appendWithin(afterWithin, r) }

// recordRefusal records that an order was refused, and with which code.
func (m *Machine) recordRefusal(req *devicev1.UnlockRequest, refusal error) {
	unsaid, ok := m.refusals.allow(m.cfg.Clock.Boot())
	if !ok {
		return
	}
	var s scope
	switch {
	case len(req.GetStatement()) != 0:
		s.subject, s.purpose = approval.DigestOf(req.GetStatement()), protocol.SupportAccess
		if st, err := approval.ParseStatement(req.GetStatement()); err == nil {
			s.correlation, s.orderID, s.ticket, s.engineer = string(st.RequestID), st.OrderID, st.Ticket, st.Engineer
			s.exclusion = st.Exclusion
		}
	case len(req.GetConsent()) != 0:
		s.purpose = protocol.DataCopy
		if e, err := approval.ParseEnvelope(req.GetConsent()); err == nil {
			s.subject = e.Digest()
			if c, err := approval.ParseConsent(e.Payload); err == nil {
				s.correlation, s.orderID = string(c.ConsentID), c.OrderID
			}
		}
	}
	m.recordAfter(m.record(s, auditlog.OpRefuseUnlock, auditlog.Refused,
		"code", string(protocol.CodeOf(refusal)), "message", text(refusal), "unrecordedBefore", unsaid))
}

// text returns what an error says, fit for a record; "" for nil.
func text(err error) string {
	if err == nil {
		return ""
	}
	s := strings.ToValidUTF8(err.Error(), "?")
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "")
	}
	return s
}

// limiter lets a burst through and then a steady rate, so that a flood of
// refusals cannot fill the journal.
type limiter struct {
	mu     sync.Mutex
	used   int           // of the burst
	since  time.Duration // boot time up to which it was given back
	unsaid int           // refusals that were not let through
}

const (
	burst = 100             // refusals recorded at once
	every = 2 * time.Second // one more
)

// allow reports whether one more may pass, and how many were held back before
// it, "" for none.
func (l *limiter) allow(boot time.Duration) (unsaid string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	back := min(int((boot-l.since)/every), l.used)
	l.used -= back
	l.since += time.Duration(back) * every
	if l.used == 0 {
		l.since = boot
	}
	if l.used >= burst {
		l.unsaid++
		return "", false
	}
	l.used++
	if l.unsaid > 0 {
		unsaid = strconv.Itoa(l.unsaid)
	}
	l.unsaid = 0
	return unsaid, true
}
